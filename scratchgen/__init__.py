"""Generative models from nothing but NumPy and Numba: `import scratchgen as sg`.

`tensors` · `autograd` the chain rule · `ops` the primitives · `functional` (as F) losses and activations · `calculus`
jacobians and `gradcheck` · `nn`, `optim` layers and optimisers · `data`, `text`, `metrics` · `models` · `training`.
Each knows only those before it.
"""

from scratchgen import startup  # first of all: it answers Ctrl-C while the rest is loaded

# isort: split
from scratchgen import _kernels, calculus, data, functional, metrics, models, nn, ops, optim, text
from scratchgen.anomaly import detect_anomaly
from scratchgen.autograd import Function, grad
from scratchgen.calculus import checkpoint, gradcheck, hessian, hvp, jacobian, jvp, vjp
from scratchgen.grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from scratchgen.ops import *
from scratchgen.random import get_rng_state, manual_seed, set_rng_state
from scratchgen.serialization import load, save
from scratchgen.tensors import Tensor, from_numpy, tensor

__version__ = "0.1.0"
__all__ = [
    *ops.TOP_LEVEL,
    *"calculus data functional metrics models nn ops optim text".split(),
    *"gradcheck hessian hvp jacobian jvp vjp get_rng_state manual_seed set_rng_state".split(),
    *"Function Tensor checkpoint detect_anomaly enable_grad from_numpy grad is_grad_enabled no_grad".split(),
    *"inference_mode load save set_grad_enabled tensor".split(),
]
