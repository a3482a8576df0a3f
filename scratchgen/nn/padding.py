r"""Cells around sequences and pictures: what stands in them is a constant, or comes from the input.

mode        … | a b c d | …          the first and last of a row of four, two cells on each side
constant    v v | a b c d | v v
reflect     c b | a b c d | c b
replicate   a a | a b c d | d d
circular    c d | a b c d | a b
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scratchgen import functional as F
from scratchgen.nn.module import Module
from scratchgen.tensors import Tensor


class _Pad(Module):
    """`padding` cells on each side of n dimensions, or (left, right) of the last one, then of the one before."""

    n: int
    mode: str

    def __init__(self, padding: int | Sequence[int]):
        super().__init__()
        cells = (padding,) * (2 * self.n) if isinstance(padding, int | np.integer) else tuple(padding)
        if len(cells) != 2 * self.n or not all(isinstance(m, int | np.integer) for m in cells):
            name = type(self).__name__
            raise ValueError(f"{name}: expected padding to be one or {2 * self.n} whole numbers, got {padding!r}")
        self.padding = cells

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim not in (self.n + 1, self.n + 2):
            name = type(self).__name__
            raise ValueError(f"{name}: expected an input of {self.n + 1} or {self.n + 2} dimensions, got shape {input.shape}")
        return F.pad(input, self.padding, self.mode)

    def extra_repr(self) -> str:
        return repr(self.padding)


class _ConstantPad(_Pad):
    def __init__(self, padding: int | Sequence[int], value: float):
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        return self._shown("padding", "value")


class ConstantPad1d(_ConstantPad):
    """`value` in the cells around the last dimension.  (…, L) → (…, left + L + right);  negative counts cut."""

    n = 1


class ConstantPad2d(_ConstantPad):
    """`value` in the cells around the last two dimensions.  (…, H, W) → (…, top + H + bottom, left + W + right)."""

    n = 2


class ZeroPad1d(ConstantPad1d):
    """Zeros around the last dimension: ConstantPad1d with value 0."""

    def __init__(self, padding: int | Sequence[int]):
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        return repr(self.padding)


class ZeroPad2d(ConstantPad2d):
    """Zeros around the last two dimensions: ConstantPad2d with value 0."""

    def __init__(self, padding: int | Sequence[int]):
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        return repr(self.padding)


class ReflectionPad1d(_Pad):
    """The input mirrored at its first and last cell.  (N, C, L) or (C, L), cells fewer than L on each side."""

    n, mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """The input mirrored at its outermost rows and columns.  (N, C, H, W) or (C, H, W)."""

    n, mode = 2, "reflect"


class ReplicationPad1d(_Pad):
    """The first and the last cell repeated.  (N, C, L) or (C, L)."""

    n, mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """The outermost rows and columns repeated.  (N, C, H, W) or (C, H, W)."""

    n, mode = 2, "replicate"


class CircularPad1d(_Pad):
    """What comes after the last cell is the first.  (N, C, L) or (C, L), at most L cells on each side."""

    n, mode = 1, "circular"


class CircularPad2d(_Pad):
    """What comes after the last row and column is the first.  (N, C, H, W) or (C, H, W)."""

    n, mode = 2, "circular"
