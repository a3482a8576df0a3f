r"""Optimisers, learning-rate schedules, and the average of the weights.

An optimiser moves parameters θ against the gradient g that `backward` left in `.grad`, in place:

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

Names, defaults, update equations and the layout of `state_dict` are PyTorch's. A state dict holds tensors and numbers
only, and a run that continues from one takes the same steps, bit for bit, as one that was never interrupted.

optimizer (the base) · algorithms (SGD, Adam, …) · lr_scheduler · average (EMA).
"""

from scratchgen.optim.algorithms import SGD, Adagrad, Adam, AdamW, RAdam, RMSprop
from scratchgen.optim.average import EMA
from scratchgen.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
    warmup_cosine,
)
from scratchgen.optim.optimizer import Optimizer

__all__ = [
    "EMA",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "warmup_cosine",
]
