"""The primitives, each with its equation, forward and vector-Jacobian product side by side.

operands (dtypes) · elementwise, trigonometry (smooth) · choice (kinks) · activation · reduce · shape · ordering ·
matrix (products) · convolution · fused (one node for what models spend time in) · creation (from nothing, and draws) · inplace.
The block at the end gives tensors their operators and methods: the only place where that happens.
"""

from __future__ import annotations

from typing import Any

from scratchgen import device as devices
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
    reduce,
    shape,
    trigonometry,
)
from scratchgen.ops.choice import *
from scratchgen.ops.choice import bitwise_and, bitwise_not, bitwise_or, bitwise_xor
from scratchgen.ops.convolution import *
from scratchgen.ops.creation import *
from scratchgen.ops.elementwise import *
from scratchgen.ops.elementwise import floor_divide, remainder
from scratchgen.ops.fused import *
from scratchgen.ops.indexing import *
from scratchgen.ops.matrix import *
from scratchgen.ops.operands import cast, move
from scratchgen.ops.ordering import *
from scratchgen.ops.reduce import *
from scratchgen.ops.shape import *
from scratchgen.ops.trigonometry import *
from scratchgen.tensors import Tensor

clip = clamp
concatenate = cat

# What PyTorch has at top level is so here too; convolutions, linear and what is fused are reached through `functional`.
_OPS = {name for ops in (elementwise, trigonometry, choice, reduce, shape, indexing, ordering) for name in ops.__all__} | {
    *"bmm dot matmul mm outer bernoulli multinomial softmax log_softmax clip".split()
}
METHODS = sorted(_OPS - {"cast", "cat", "meshgrid", "move", "stack", "where"})
TOP_LEVEL = sorted(
    {*METHODS, *creation.__all__, "cat", "cdist", "concatenate", "einsum", "meshgrid", "stack", "where"}
    - {"contiguous", "pad", "repeat"}
)
__all__ = sorted({*TOP_LEVEL, *METHODS, *convolution.__all__, *fused.__all__, *matrix.__all__, "cast"})


def _attach() -> None:
    """Operators and methods of Tensor. A method is the function of the same name with the tensor as its first argument."""

    def swapped(function: Any) -> Any:
        return lambda self, other: function(other, self)

    def to(
        self: Tensor,
        *args: Any,
        dtype: Any = None,
        device: str | None = None,
        non_blocking: bool = False,
        copy: bool = False,
    ) -> Tensor:
        """The tensor in another dtype (`to(float64)`), on another device (`to("cpu")`), or both as another tensor's.

        Itself where nothing changes, unless a `copy` is asked for. `non_blocking` is taken as in PyTorch, and changes nothing.
        """
        flags: list[bool] = []  # non_blocking and copy, by position
        for arg in args:
            if devices.is_name(arg):
                device = arg
            elif isinstance(arg, Tensor):
                dtype, device = arg.dtype, arg.device
            elif isinstance(arg, bool):
                flags.append(arg)
            else:
                dtype = arg
        moved = self if device is None else move(self, device)
        moved = moved if dtype is None else cast(moved, dtype)
        return shape.clone(moved) if moved is self and (copy or True in flags[1:]) else moved

    operators = {
        "__neg__": neg,
        "__pos__": lambda self: self,
        "__abs__": abs,
        "__add__": add,
        "__radd__": swapped(add),
        "__sub__": sub,
        "__rsub__": swapped(sub),
        "__mul__": mul,
        "__rmul__": swapped(mul),
        "__truediv__": div,
        "__rtruediv__": swapped(div),
        "__pow__": pow,
        "__rpow__": swapped(pow),
        "__matmul__": matmul,
        "__rmatmul__": swapped(matmul),
        "__eq__": eq,
        "__ne__": ne,
        "__lt__": lt,
        "__le__": le,
        "__gt__": gt,
        "__ge__": ge,
        "__and__": bitwise_and,
        "__rand__": bitwise_and,
        "__or__": bitwise_or,
        "__ror__": bitwise_or,
        "__xor__": bitwise_xor,
        "__rxor__": bitwise_xor,
        "__invert__": bitwise_not,
        "__floordiv__": floor_divide,
        "__mod__": remainder,
        "__getitem__": indexing.index,
        "__iter__": shape.iterate,
        "to": to,
        "cpu": lambda self: move(self, "cpu"),
        "float": lambda self: cast(self, "float32"),
        "double": lambda self: cast(self, "float64"),
        "long": lambda self: cast(self, "int64"),
        "bool": lambda self: cast(self, "bool"),
        "view": reshape,
        "t": lambda self: permute(self, tuple(reversed(range(self.ndim))) if self.ndim < 3 else (1, 0)),
        "T": property(lambda self: permute(self, tuple(reversed(range(self.ndim))))),
        "mT": property(lambda self: transpose(self, -2, -1)),
    }
    methods = {name: globals()[name] for name in METHODS}
    methods |= {name: getattr(creation, name) for name in "new_empty new_full new_ones new_tensor new_zeros".split()}
    methods |= {f"{name}_": inplace.in_place(globals()[name]) for name in inplace.OPS}
    methods |= {name: getattr(inplace, name) for name in ("bernoulli_", "normal_", "uniform_")}
    for name, function in (methods | operators).items():
        setattr(Tensor, name, function)


_attach()
