r"""Optimisers, learning-rate schedules, and the average of the weights.

An optimiser moves parameters θ against the gradient g that `backward` left in `.grad`, in place:

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

Names, defaults, update equations and the layout of `state_dict` are PyTorch's. A state dict holds tensors and numbers
only, and a run that continues from one takes the same steps, bit for bit, as one that was never interrupted.

optimizer (the base) · algorithms (SGD, Adam, …) · lr_scheduler · average (EMA).
"""

from scratchgen.optim import algorithms, average, lr_scheduler, optimizer
from scratchgen.optim.algorithms import *
from scratchgen.optim.average import *
from scratchgen.optim.lr_scheduler import *
from scratchgen.optim.optimizer import *

__all__ = [*algorithms.__all__, *average.__all__, *lr_scheduler.__all__, *optimizer.__all__]
