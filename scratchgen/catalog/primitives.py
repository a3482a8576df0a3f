"""Rows for the primitives, and for what `Tensor` has beyond them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

import numpy as np

from scratchgen.catalog.row import Case, Draw, apart, away, case, fixed, loud, mask, positive, real, row, unit, whole
from scratchgen.ops import class_losses

Drawer = Callable[..., Draw]


def unary(draw: Drawer) -> tuple[Case, ...]:
    return case(draw()), case(draw(2, 3)), case(draw(1)), case(draw(2, 0))


def binary(a: Drawer, b: Drawer) -> tuple[Case, ...]:
    """Equal shapes; both broadcast; a 0-d operand; none left; a number on either side."""
    return (
        case(a(2, 2), b(2, 2)),
        case(a(2, 1), b(3)),
        case(a(), b(2)),
        case(a(2, 1, 2), b(3, 1)),
        case(a(1), b(2, 0)),
        case(a(2), 0.55),
        case(1.35, b(2)),
    )


def reducing(draw: Drawer, empty: bool = True) -> tuple[Case, ...]:
    """All of it; one dimension; two, kept; 0-d; a length of 1; nothing."""
    some = (
        case(draw(2, 3)),
        case(draw(2, 3), dim=1),
        case(draw(2, 3, 2), dim=(0, -1), keepdim=True),
        case(draw()),
        case(draw(3, 1), dim=-1),
    )
    return (
        (*some, case(draw(0, 2), dim=0), case(draw(0, 2), dim=1, keepdim=True)) if empty else (*some, case(draw(0, 2), dim=1))
    )


ELEMENTWISE = [
    row("abs", *unary(away)),
    row("add", *binary(real, real), case(real(2), real(2, 2), alpha=-0.5), analytic=True),
    row(
        "addcdiv",
        case(real(2, 3), real(3), positive(2, 1)),
        case(real(2), real(), positive(2), value=-0.5),
        case(real(0), real(0), 2.0),
        analytic=True,
    ),
    row(
        "addcmul",
        case(real(2, 3), real(3), real(2, 1)),
        case(real(2), real(), real(2), value=-0.5),
        case(real(0), real(0), 2.0),
        analytic=True,
    ),
    row("atan2", *binary(loud, loud)),
    row("ceil", *unary(partial(away, kinks=(-2, -1, 0, 1, 2)))),
    row(
        "clamp",
        case(away(3, 2, kinks=(-0.5, 0.5)), -0.5, 0.5),
        case(away(4, kinks=(0.0,)), min=0),
        case(away(4, kinks=(1.0,)), max=1.0),
        case(away(kinks=(1.0,)), max=1.0),
        case(apart(3, 2), apart(2, phase=1), apart(3, 1, phase=2)),
        case(apart(3), max=apart(3, phase=1)),
        case(away(0, kinks=(1.0,)), 1.0),
    ),
    row("clip", case(away(3, 2, kinks=(-0.5, 0.5)), -0.5, 0.5)),
    row("cos", *unary(real), analytic=True),
    row("cosh", *unary(real), analytic=True),
    row("div", *binary(real, positive), analytic=True),
    row("erf", *unary(real), analytic=True),
    row("exp", *unary(real), analytic=True),
    row("expm1", *unary(real), analytic=True),
    row("floor", *unary(partial(away, kinks=(-2, -1, 0, 1, 2)))),
    row("gelu", *unary(real), case(real(2, 3), approximate="tanh")),
    row(
        "lerp",
        case(real(2, 2), real(2, 2), 0.3),
        case(real(2, 1), real(3), real()),
        case(real(3), 1.5, fixed([0.2, 0.6, 1.4])),
        case(real(1), real(2, 0), 0.7),
        analytic=True,
    ),
    row("log", *unary(positive), analytic=True),
    row("log10", *unary(positive), analytic=True),
    row("log1p", *unary(positive), analytic=True),
    row("log2", *unary(positive), analytic=True),
    row("logaddexp", *binary(real, real)),
    row(
        "masked_fill", case(real(2, 3), mask(3), -1.5), case(real(), mask(2), 2), case(real(0, 3), mask(3), 1.0), analytic=True
    ),
    row("maximum", *binary(apart, partial(apart, phase=1))),
    row("minimum", *binary(apart, partial(apart, phase=1))),
    row("mul", *binary(real, real), analytic=True),
    row("nan_to_num", *unary(real)),
    row("neg", *unary(real), analytic=True),
    row(
        "pow",
        *binary(positive, real),
        *(case(real(3), n) for n in (0, 1, 2, 3, 3.0)),
        case(fixed([0.0, 0.0, 1.5]), 2),
        *(case(positive(3), p) for p in (-1, -0.5, 0.5, 2.5)),
        case(fixed([0.0, -1.0, 2.0]), 1),
        analytic=True,
    ),
    row("reciprocal", *unary(positive), analytic=True),
    row("relu", *unary(away)),
    row("round", *unary(partial(away, kinks=(-1.5, -0.5, 0.5, 1.5)))),
    row("rsqrt", *unary(positive), analytic=True),
    row("sigmoid", *unary(real), analytic=True),
    row("sign", *unary(away)),
    row("sin", *unary(real), analytic=True),
    row("sinh", *unary(real), analytic=True),
    row("softplus", *unary(real), case(real(3), 2.5), case(away(6, kinks=(0.5,)), 1.0, 0.5)),
    row("sqrt", *unary(positive), analytic=True),
    row("square", *unary(real), analytic=True),
    row("tan", *unary(unit), analytic=True),
    row("sub", *binary(real, real), case(real(2), real(2, 2), alpha=2), analytic=True),
    row("tanh", *unary(real), analytic=True),
    row(
        "where",
        case(mask(2, 3), real(2, 3), real(3)),
        case(mask(3), real(2, 1), 0.5),
        case(mask(2), 1.5, real()),
        case(mask(), real(), real()),
        analytic=True,
    ),
    row(
        "cast",
        case(real(2, 3), np.float64),
        case(real(2, 3), np.float32),
        order=0,
        why="float32 is too coarse for differences; the tests compare its gradient with the cotangent",
    ),
]

REDUCTIONS = [
    row(
        "cumprod",
        case(real(5), 0),
        case(real(2, 3), 1),
        case(real(2, 3), -2),
        case(fixed([[0.0, 2.0, 3.0, 0.0, 1.5], [2.0, 0.5, 0.0, -1.0, 3.0]]), 1),
        case(real(), 0),
        case(real(0, 2), 0),
        analytic=True,
    ),
    row("amax", *reducing(apart, empty=False)),
    row("amin", *reducing(apart, empty=False)),
    row(
        "cumsum",
        case(real(4), 0),
        case(real(2, 3), 1),
        case(real(2, 3), -2),
        case(real(), 0),
        case(real(0, 2), 0),
        analytic=True,
    ),
    row(
        "logsumexp",
        case(real(2, 3), 1),
        case(real(2, 3, 2), (0, -1), keepdim=True),
        case(real(), 0),
        case(real(3, 1), -1),
        case(real(0, 2), 1),
        analytic=True,
    ),
    row(
        "max",
        case(apart(2, 3)),
        case(apart(2, 3), 1),
        case(apart(2, 3), 0, keepdim=True),
        case(apart(), 0),
        case(apart(2, 2), apart(2, phase=1)),
    ),
    row("mean", *reducing(real, empty=False), analytic=True),
    row(
        "min",
        case(apart(2, 3)),
        case(apart(2, 3), 1),
        case(apart(2, 3), 0, keepdim=True),
        case(apart(), 0),
        case(apart(2, 2), apart(2, phase=1)),
    ),
    row(
        "norm",
        *reducing(away),
        *(case(loud(2, 3), p, 1) for p in (1, 3, 0.5, np.inf, -np.inf, 0)),
        case(loud(2, 2), 4.0, keepdim=True),
    ),
    row(
        "prod",
        case(positive(3)),
        case(real(2, 3), 1),
        case(real(2, 3), 0, keepdim=True),
        case(real(2, 2), keepdim=True),
        case(fixed([[0.0, 2.0, 3.0], [0.0, 0.0, 2.0]]), 1),
        case(real(), 0),
        case(real(2, 0), 1),
        analytic=True,
    ),
    row(
        "std",
        case(real(2, 3)),
        case(real(2, 3), 1),
        case(real(2, 3, 2), (0, -1), keepdim=True, correction=0),
        case(real(4), 0, False),
        case(real(0, 2), 1),
    ),
    row("sum", *reducing(real), analytic=True),
    row(
        "var",
        case(real(2, 3)),
        case(real(2, 3), 1),
        case(real(2, 3, 2), (0, -1), keepdim=True, correction=0),
        case(real(4), 0, True),
        case(real(0, 2), 1),
        analytic=True,
    ),
]

SHAPES = [
    row("broadcast_to", case(real(2, 1), (3, 2, 2)), case(real(), (2,)), case(real(1), (0,)), analytic=True),
    row(
        "cat",
        case([real(2), real(3)]),
        case([real(2, 1), real(2, 2), real(2, 0)], dim=-1),
        case([real(1, 2)], 0),
        case([real(0), real(2, 2), real(2, 1)], 1),
        analytic=True,
    ),
    row("chunk", case(real(5), 2), case(real(2, 3), 3, dim=1), case(real(2, 0), 2, 1), analytic=True),
    row("clone", case(real(2, 3)), case(real()), analytic=True),
    row("concatenate", case([real(2, 1), real(2, 2)], dim=1), analytic=True),
    row("contiguous", case(real(2, 3)), analytic=True),
    row(
        "diag",
        case(real(3)),
        case(real(2), 1),
        case(real(2), -2),
        case(real(0), 1),
        case(real(2, 3), 1),
        case(real(3, 2), diagonal=-1),
        analytic=True,
    ),
    row(
        "diagonal",
        case(real(3, 4)),
        case(real(2, 3, 3), 1, -1, 1),
        case(real(3, 2), -1),
        case(real(2, 2), 5),
        case(real(4, 2), 1),
        analytic=True,
    ),
    row(
        "expand", case(real(2, 1), 3, -1, 2), case(real(2, 1), -1, 3), case(real(), (2,)), case(real(1, 2), 0, 2), analytic=True
    ),
    row("flatten", case(real(2, 3)), case(real(2, 1, 2), 1), case(real(2, 3, 2), 0, 1), case(real()), analytic=True),
    row("flip", case(real(3), 0), case(real(2, 3), (0, -1)), case(real(0, 2), 1), analytic=True),
    row(
        "gather",
        case(real(3), 0, whole(3, 5)),
        case(real(2, 3), 1, whole(3, 2, 4)),
        case(real(3, 2), 0, whole(3, 2, 1)),
        case(real(2, 3), -1, whole(3, 2, 0)),
        case(real(3), 0, whole(3, 2, 0)),
        case(real(), 0, whole(1, 2)),
        case(real(), -1, whole(1)),
        analytic=True,
    ),
    row(
        "index_add",
        case(real(3, 2), 0, whole(3, 5), real(5, 2)),
        case(real(2, 3), -1, whole(3, 4), real(2, 4), alpha=-0.5),
        case(real(2, 3, 2), 1, whole(3, 2), real(2, 2, 2)),
        case(real(3), 0, whole(3, 0), real(0)),
        case(real(), 0, whole(1, 2), real(2), alpha=3),
        case(real(), 0, whole(1), real()),
        analytic=True,
    ),
    row(
        "index_select",
        case(real(3, 2), 0, whole(3, 5)),
        case(real(2, 3), -1, whole(3, 2)),
        case(real(3), 0, whole(3)),
        case(real(3), 0, whole(3, 0)),
        case(real(), 0, whole(1, 1)),
        analytic=True,
    ),
    row(
        "meshgrid",
        case(real(2), real(3)),
        case(real(2), real(1), real(3), indexing="xy"),
        case([real(), real(2)], indexing="xy"),
        case(real(3), indexing="xy"),
        case(real(2), real(0)),
        analytic=True,
    ),
    row(
        "movedim",
        case(real(2, 3, 1), 0, 2),
        case(real(2, 3), -1, 0),
        case(real(2), 0, 0),
        case(real(2, 1, 3, 2), (3, 0), (0, -2)),
        case(real(), 0, 0),
        analytic=True,
    ),
    row("narrow", case(real(4), 0, 1, 2), case(real(2, 3), -1, 2, 1), case(real(2), 0, 1, 0), analytic=True),
    row(
        "pad",
        case(real(2, 3), (1, 2)),
        case(real(2, 3), (1, 0, 2, 1), value=0.5),
        case(real(2, 4), (-1, 2, 0, -1)),
        case(real(0, 2), (0, 0, 1, 1)),
        *(case(real(3, 2), (1, 1, 2, 1), mode) for mode in ("reflect", "replicate", "circular")),
        analytic=True,
    ),
    row(
        "permute",
        case(real(2, 3, 1), 2, 0, 1),
        case(real(2, 3), (1, 0)),
        case(real(2, 0), (-1, 0)),
        case(real(), ()),
        analytic=True,
    ),
    row("repeat", case(real(2), 2, 3), case(real(2, 1), (1, 3)), case(real(2), 0), analytic=True),
    row("repeat_interleave", case(real(2, 2), 2), case(real(2, 2), 3, 0), case(real(2, 1), 2, dim=-1), analytic=True),
    row(
        "reshape", case(real(2, 3), 3, 2), case(real(2, 3), (-1,)), case(real(), (1, 1)), case(real(0, 2), 2, 0), analytic=True
    ),
    row("roll", case(real(4), 1, 0), case(real(2, 3), 2), case(real(2, 3), -4, 1), case(real(2, 0), 1, 1), analytic=True),
    row(
        "scatter_add",
        case(real(3), 0, whole(3, 5), real(5)),
        case(real(2, 3), 1, whole(3, 2, 2), real(2, 3)),
        case(real(3, 2), -2, whole(3, 4, 1), real(4, 2)),
        case(real(), 0, whole(1, 2), real(3)),
        case(real(), 0, whole(1), real()),
        case(real(2, 3), 0, whole(1, 0), real(2, 3)),
        analytic=True,
    ),
    row("split", case(real(5), 2), case(real(2, 3), [1, 0, 2], dim=-1), case(real(0), 2), analytic=True),
    row("squeeze", case(real(1, 2, 1)), case(real(1, 2, 1), -1), case(real(1, 2, 1), (0, 1)), analytic=True),
    row("stack", case([real(2), real(2)]), case([real(2, 3), real(2, 3)], dim=-1), case([real(), real()]), analytic=True),
    row("transpose", case(real(2, 3), 0, 1), case(real(2, 1, 3), -1, 0), case(real(), 0, -1), analytic=True),
    row("tril", case(real(3, 3)), case(real(2, 2, 3), 1), case(real(3, 2), diagonal=-1), analytic=True),
    row("triu", case(real(3, 3)), case(real(2, 2, 3), 1), case(real(3, 2), diagonal=-1), analytic=True),
    row("unbind", case(real(3)), case(real(2, 3), -1), analytic=True),
    row("unsqueeze", case(real(2, 3), 1), case(real(), -1), case(real(2), 0), analytic=True),
]

ORDERING = [
    row(
        "bincount",
        case(fixed([0, 2, 2, 1]), real(4)),
        case(fixed([0, 1]), real(2), 4),
        case(fixed([3, 0, 3]), real(3), minlength=2),
        case(whole(3, 0), real(0), 2),
        analytic=True,
    ),
    row(
        "sort",
        case(apart(4)),
        case(apart(2, 3), 0, True),
        case(apart(2, 3), descending=True),
        case(apart(3, 2), -2, stable=True),
        case(apart()),
        case(apart(0, 2), 1),
    ),
    row(
        "topk",
        case(apart(4), 2),
        case(apart(3, 2), 2, 0, False),
        case(apart(2, 3), 1, -1),
        case(apart(2, 3), k=3, largest=False),
        case(apart(3), 0),
        case(apart(), 1),
    ),
]

PRODUCTS = [
    row("bmm", case(real(2, 2, 3), real(2, 3, 1)), case(real(0, 2, 1), real(0, 1, 2)), analytic=True),
    row(
        "cdist",
        case(real(2, 3), real(4, 3)),
        case(real(2, 1, 2, 1), real(3, 3, 1)),
        case(apart(2, 2), apart(3, 2, phase=1), 1.0),
        case(apart(2, 2), apart(3, 2, phase=1), p=2.5),
        case(fixed([[0.0, 1.0], [3.0, -2.0]]), fixed([[2.0, 1.5]]), np.inf),
        case(real(2, 3), real(0, 3)),
    ),
    row("dot", case(real(3), real(3)), case(real(0), real(0)), analytic=True),
    row("mm", case(real(2, 3), real(3, 4)), case(real(2, 0), real(0, 1)), analytic=True),
    row("outer", case(real(2), real(3)), case(real(1), real(0)), analytic=True),
    row(
        "matmul",
        *(
            case(real(*a), real(*b))
            for a, b in [
                ((2, 3), (3, 2)),
                ((3,), (3,)),
                ((2, 3), (3,)),
                ((3,), (3, 2)),
                ((2, 2, 3), (3, 2)),
                ((2, 3), (2, 3, 1)),
            ]
        ),
        *(
            case(real(*a), real(*b))
            for a, b in [((2, 1, 2, 2), (3, 2, 1)), ((2, 0), (0, 3)), ((2, 1, 0), (0, 2)), ((0, 2), (2, 2)), ((3,), (2, 3, 2))]
        ),
        analytic=True,
    ),
    row(
        "linear",
        case(real(2, 3), real(2, 3), real(2)),
        case(real(3), real(2, 3)),
        case(real(2, 2, 3), real(1, 3), real(1)),
        case(real(0, 3), real(2, 3), real(2)),
        case(real(4, 3), real(2, 3), real(2), activation="relu"),
        case(real(3), real(2, 3), activation="relu"),
        analytic=True,
    ),
    row(
        "einsum",
        case("ij,jk->ik", real(2, 3), real(3, 2)),
        case("bhqd,bhkd->bhqk", real(1, 2, 2, 2), real(1, 2, 3, 2)),
        case("i,i", real(3), real(3)),
        case("ii->i", real(3, 3)),
        case("iij,j->", real(2, 2, 3), real(3)),
        case("...ij,...jk", real(2, 1, 2, 2), real(3, 2, 1)),
        case("i,j,k->kji", real(2), real(1), real(3)),
        case("ij->j", real(2, 3)),
        case("ij,ij->ij", real(2, 1), real(1, 3)),
        case("ij,jk", real(2, 0), real(0, 2)),
        case("ij,jk->ik", [real(2, 1), real(3, 2)]),
        case("i,ij->j", real(1), real(3, 2)),
        analytic=True,
    ),
]

_GEOMETRIES = [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"stride": 2, "padding": 1, "dilation": 2}]
_TRANSPOSED = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"dilation": 2},
    {"stride": 3, "padding": 1, "output_padding": 2},
]

CONVOLUTIONS = [
    row(
        "conv1d",
        *(case(real(2, 2, 5), real(3, 2, 3), real(3), **g) for g in _GEOMETRIES),
        case(real(1, 2, 4), real(4, 1, 2), groups=2, padding="same"),
        case(real(1, 1, 4), real(1, 1, 4), padding="same"),
        case(real(1, 1, 4), real(1, 1, 2), padding="same", dilation=2),
        case(real(2, 4), real(1, 2, 2), real(1)),
        case(real(0, 2, 4), real(1, 2, 2), real(1)),
        analytic=True,
    ),
    row(
        "conv2d",
        *(case(real(1, 1, 4, 5), real(2, 1, 2, 3), real(2), **g) for g in _GEOMETRIES),
        case(real(1, 4, 3, 2), real(2, 2, 2, 1), groups=2, stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        case(real(1, 3, 3), real(1, 1, 2, 2), real(1), padding="same"),
        case(real(2, 1, 2, 2), real(1, 1, 1, 1)),
        analytic=True,
    ),
    row(
        "conv_transpose1d",
        *(case(real(2, 2, 3), real(2, 3, 3), real(3), **g) for g in _TRANSPOSED),
        case(real(1, 2, 3), real(2, 2, 2), groups=2, stride=2),
        case(real(1, 2, 3), real(2, 1, 2), real(2), groups=2),
        case(real(1, 1, 2), real(1, 1, 2), output_padding=1, dilation=2),
        case(real(2, 3), real(2, 1, 2), real(1)),
        analytic=True,
    ),
    row(
        "conv_transpose2d",
        *(case(real(1, 2, 2, 3), real(2, 1, 3, 2), real(1), **g) for g in _TRANSPOSED),
        case(real(1, 4, 2, 2), real(4, 1, 2, 1), groups=2, stride=(1, 2), padding=(1, 0), output_padding=(0, 1)),
        case(real(1, 2, 2), real(1, 1, 2, 2)),
        analytic=True,
    ),
    row(
        "max_pool1d",
        case(apart(2, 1, 6), 2),
        case(apart(1, 2, 5), 3, 2, 1),
        case(apart(1, 6), 2, stride=1, dilation=2),
        case(apart(1, 1, 5), 2, ceil_mode=True, return_indices=True),
        case(apart(2, 4), 2, return_indices=True),
        case(apart(1, 1, 3), 1),
    ),
    row(
        "max_pool2d",
        case(apart(1, 2, 4, 4), 2),
        case(apart(1, 1, 4, 3), (2, 3), (1, 2), (1, 1)),
        case(apart(1, 5, 5), 3, 2, 1, ceil_mode=True),
        case(apart(1, 1, 5, 3), 2, 1, dilation=(2, 1)),
        case(apart(2, 2, 3), (1, 2), return_indices=True),
    ),
    row(
        "avg_pool1d",
        case(real(2, 1, 6), 2),
        case(real(1, 2, 5), 3, 2, 1),
        case(real(1, 5), 3, 2, 1, True, False),
        case(real(1, 1, 6), 3, 2, ceil_mode=True),
        case(real(2, 4), 1),
        analytic=True,
    ),
    row(
        "avg_pool2d",
        case(real(1, 2, 4, 4), 2),
        case(real(1, 1, 4, 3), (2, 3), (1, 2), (1, 1)),
        case(real(1, 5, 5), 3, 2, 1, ceil_mode=True, count_include_pad=False),
        case(real(1, 1, 5, 4), 2, 3, 1, ceil_mode=True),
        case(real(1, 1, 3, 3), 2, 1, divisor_override=3),
        analytic=True,
    ),
    row(
        "unfold",
        case(real(1, 2, 3, 3), 2),
        case(real(2, 1, 4, 3), (2, 1), padding=(1, 0), stride=2),
        case(real(1, 3, 3), 2, dilation=2),
        analytic=True,
    ),
]

FUSED = [
    row(
        "softmax",
        case(real(3), 0),
        case(real(2, 3), -1),
        case(real(3, 2, 2), 1),
        case(real(), 0),
        case(real(2, 1), 1),
        case(real(2, 0), 1),
        analytic=True,
    ),
    row(
        "log_softmax",
        case(real(3), 0),
        case(real(2, 3), -1),
        case(real(3, 2, 2), 1),
        case(real(), 0),
        case(real(2, 1), 1),
        case(real(0, 2), 1),
        analytic=True,
    ),
    row(
        "class_losses",
        case(real(3, 4), fixed([0, 3, 1]), -100),
        case(real(3, 2), fixed([1, -7, 0]), -7),
        target=lambda x, t, ignored: class_losses(x, t.data, ignored),
    ),
    row(
        "layer_norm",
        case(real(2, 4), 4, real(4), real(4)),
        case(real(2, 2, 3), (2, 3), real(2, 3), None, 1e-2),
        case(real(3), (3,), None, real(3)),
        case(real(3, 2), 2),
        case(real(0, 3), 3, real(3)),
        analytic=True,
    ),
    row(
        "attention",
        case(real(2, 3, 2), real(2, 4, 2), real(2, 4, 3), None, causal=False, scale=0.7),
        case(real(1, 3, 2), real(1, 3, 2), real(1, 3, 2), None, causal=True, scale=1.3),
        case(real(2, 2), real(3, 2), real(3, 1), real(2, 3), causal=False, scale=0.5),
        case(real(2, 0, 2), real(2, 3, 2), real(2, 3, 2), None, causal=False, scale=1.0),
    ),
]


def _reflected(name: str) -> Callable[..., object]:
    return lambda x, y: getattr(x, name)(y)


TENSORS = [
    row(
        "Tensor.__getitem__",
        *(
            case(real(3, 4), key)
            for key in (1, -1, slice(None, None, 2), (..., 2), (slice(2), None, 1), (), (slice(2, 0, -1), 3))
        ),
        case(real(3, 2), whole(3, 4)),
        case(real(3, 2), whole(3, 2, 2)),
        case(real(3, 4), (whole(3, 5), whole(4, 5))),
        case(real(2, 3, 2), (slice(None), whole(3, 4))),
        case(real(2, 3, 2), (whole(2, 3), slice(None), whole(2, 3))),
        case(real(3, 2), mask(3)),
        case(real(3, 2), mask(3, 2)),
        case(real(3, 2), [0, 0, 2]),
        case(real(3, 2), whole(3, 0)),
        case(real(0, 2), slice(None)),
        target=operator.getitem,
        analytic=True,
    ),
    row("Tensor.__iter__", case(real(3)), case(real(2, 3)), target=lambda x: list(x), analytic=True),
    row("Tensor.__mod__", case(fixed([0.7, -1.3, 2.2]), fixed([0.5, 0.9, -0.6])), case(fixed([0.7, -1.3]), 0.5)),
    row("Tensor.__pos__", case(real(2)), analytic=True),
    row("Tensor.T", case(real(2, 3)), case(real(2, 1, 3)), case(real()), target=lambda x: x.T, analytic=True),
    row("Tensor.mT", case(real(2, 3)), case(real(2, 1, 3)), target=lambda x: x.mT, analytic=True),
    row("Tensor.t", case(real(2, 3)), case(real(3)), analytic=True),
    row("Tensor.view", case(real(2, 3), 3, -1), case(real(2, 3), (6,)), analytic=True),
    row(
        "Tensor.to",
        case(real(2), np.float64),
        case(real(2), "cpu"),
        case(real(2), dtype="float64", device="cpu"),
        analytic=True,
    ),
    row("Tensor.cpu", case(real(2)), analytic=True),
    row("Tensor.double", case(real(2)), analytic=True),
    row(
        "Tensor.float",
        case(real(2)),
        order=0,
        why="float32 is too coarse for differences; the tests compare its gradient with the cotangent",
    ),
    row("Tensor.__radd__", case(real(2), 1.5), target=_reflected("__radd__"), analytic=True),
    row("Tensor.__rsub__", case(real(2), 1.5), target=_reflected("__rsub__"), analytic=True),
    row("Tensor.__rmul__", case(real(2), 1.5), target=_reflected("__rmul__"), analytic=True),
    row("Tensor.__rtruediv__", case(positive(2), 1.5), target=_reflected("__rtruediv__"), analytic=True),
    row("Tensor.__rpow__", case(real(2), 1.5), target=_reflected("__rpow__"), analytic=True),
    row("Tensor.__rmatmul__", case(real(2, 3), real(2, 2)), target=_reflected("__rmatmul__"), analytic=True),
]

ROWS = ELEMENTWISE + REDUCTIONS + SHAPES + ORDERING + PRODUCTS + CONVOLUTIONS + FUSED + TENSORS
