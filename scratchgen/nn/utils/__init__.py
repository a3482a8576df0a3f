"""What is done to the parameters of a module as a whole.

clip_grad (gradients held to a bound) · convert_parameters (parameters as one vector) · parametrize (parameters that are
computed) · parametrizations (spectral norm, weight norm).
"""

from scratchgen.nn.utils import parametrizations, parametrize
from scratchgen.nn.utils.clip_grad import clip_grad_norm_, clip_grad_value_
from scratchgen.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters
from scratchgen.nn.utils.parametrizations import spectral_norm, weight_norm

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "parameters_to_vector",
    "parametrizations",
    "parametrize",
    "spectral_norm",
    "vector_to_parameters",
    "weight_norm",
]
