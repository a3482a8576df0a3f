"""Generative models from nothing but NumPy and Numba: `import scratchgen as sg`."""
from scratchgen import functional, ops
from scratchgen.ops import *
from scratchgen.random import get_rng_state, manual_seed, set_rng_state
from scratchgen.tensor import *
from scratchgen.tensor import Tensor, checkpoint, detect_anomaly, enable_grad, from_numpy, grad, no_grad, tensor
