"""What is done to the parameters of a module as a whole.

clip_grad (gradients held to a bound).
"""

from scratchgen.nn.utils.clip_grad import clip_grad_norm_, clip_grad_value_

__all__ = ["clip_grad_norm_", "clip_grad_value_"]
