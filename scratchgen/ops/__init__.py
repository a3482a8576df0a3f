"""The primitives, each with its equation, forward and vector-Jacobian product side by side.

operands (dtypes, devices) · elementwise, trigonometry (smooth) · choice (kinks) · activation · reduce · shape · indexing ·
ordering · matrix (products) · convolution · resampling · fused (one node for the layers that models spend their time in) ·
creation (from nothing, and draws) · inplace. A function under the line `@method` (see `tensors`) is also a method of tensors;
`@method("add", "__add__", …)` names the operators too.
"""

from __future__ import annotations

from scratchgen.ops import (
    choice,
    convolution,
    creation,
    elementwise,
    fused,
    indexing,
    inplace,
    matrix,
    ordering,
    pooling,
    reduce,
    shape,
    trigonometry,
)
from scratchgen.ops.choice import *
from scratchgen.ops.convolution import *
from scratchgen.ops.creation import *
from scratchgen.ops.elementwise import *
from scratchgen.ops.fused import *
from scratchgen.ops.indexing import *
from scratchgen.ops.matrix import *
from scratchgen.ops.operands import cast
from scratchgen.ops.ordering import *
from scratchgen.ops.pooling import *
from scratchgen.ops.reduce import *
from scratchgen.ops.shape import *
from scratchgen.ops.trigonometry import *

clip = clamp
concatenate = cat

# What PyTorch has at top level is so here too; convolutions, linear and what is fused are reached through `functional`.
_OPS = {name for ops in (elementwise, trigonometry, choice, reduce, shape, indexing, ordering) for name in ops.__all__}
_OPS |= {*creation.__all__, *"bmm cdist clip concatenate dot einsum log_softmax matmul mm outer softmax".split()}
TOP_LEVEL = sorted(_OPS - {"contiguous", "pad", "repeat"})
__all__ = sorted({*_OPS, *convolution.__all__, *pooling.__all__, *fused.__all__, *matrix.__all__, "cast"})
