"""Rows for the compositions of `functional`, and for the functions of `calculus`."""

from __future__ import annotations

import numpy as np

from scratchgen.catalog.primitives import unary
from scratchgen.catalog.row import Fresh, apart, away, case, fixed, loud, positive, real, row, simplex, unit, whole
from scratchgen.tensors import Tensor

REDUCTION = ("mean", "sum", "none")

ACTIVATIONS = [
    row("leaky_relu", *unary(away), case(away(3), 0.3)),
    row(
        "prelu",
        case(away(2, 3), real(1)),
        case(away(2, 3), real(3)),
        case(away(1, 2, 2), real(2)),
        case(away(), real()),
        case(away(), real(1)),
        case(away(0, 2), real(2)),
        case(away(1, 2, 3), real(2)),
    ),
    row("elu", *unary(away), case(away(4), 1.7)),
    row("celu", *unary(away), case(away(4), 0.6)),
    row("selu", *unary(away)),
    row("silu", *unary(real), analytic=True),
    row("mish", *unary(real)),
    row("logsigmoid", *unary(real)),
    row("softsign", *unary(away)),
    row(
        "hardtanh",
        case(away(2, 3, kinks=(-1.0, 1.0))),
        case(away(4, kinks=(-0.3, 0.5)), -0.3, 0.5),
        case(away(0, kinks=(-1.0, 1.0))),
    ),
    row("glu", case(real(4)), case(real(2, 3), 0), case(real(2, 4), dim=-1), case(real(0, 2)), analytic=True),
]


def losses(x, t):
    """All reductions; one number; nothing, added up."""
    return (*(case(x(2, 3), t(2, 3), reduction=r) for r in REDUCTION), case(x(), t()), case(x(0, 2), t(0, 2), reduction="sum"))


def _above(*shape):
    """Targets that no `apart` number ties with."""
    return apart(*shape, phase=1)


def _bent(*shape, d=1.0):
    """Inputs whose distance to `_quarters` keeps clear of 0 and ±d, where two pieces of a loss meet."""
    return away(*shape, kinks=(0.25 - d, 0.25, 0.25 + d))


def _quarters(*shape):
    """Targets that are not 0, which would hide the sign of a target."""
    return fixed(np.full(shape, 0.25))


_CLASS = [
    *({"reduction": r} for r in REDUCTION),
    *({"reduction": r, "weight": positive(3), "ignore_index": 1} for r in REDUCTION),
]

LOSSES = [
    row("mse_loss", *losses(real, real), analytic=True),
    row("l1_loss", *losses(apart, _above)),
    row("huber_loss", *losses(_bent, _quarters), case(_bent(6, d=0.52), _quarters(6), delta=0.52)),
    row(
        "smooth_l1_loss",
        *losses(_bent, _quarters),
        case(_bent(6, d=0.52), _quarters(6), beta=0.52),
        case(apart(3), _above(3), beta=0.0),
    ),
    row(
        "binary_cross_entropy_with_logits",
        *losses(real, unit),
        *(case(real(2, 3), unit(2, 3), positive(3), r, positive(3)) for r in REDUCTION),
        case(real(2), unit(2), None, "mean", positive(2)),
        case(real(3), fixed([0, 1, 1])),
    ),
    row(
        "cross_entropy",
        *(case(real(4, 3), fixed([0, 1, 2, 1]), **o) for o in _CLASS),
        *(case(real(4, 3), fixed([0, 1, 2, 1]), label_smoothing=0.2, **o) for o in _CLASS),
        case(real(2, 3, 2), whole(3, 2, 2), reduction="none"),
        case(real(3), fixed(2)),
        *(case(real(2, 3), simplex(2, 3), reduction=r) for r in REDUCTION),
        case(real(2, 3), simplex(2, 3), positive(3), label_smoothing=0.3),
        case(real(3), simplex(3)),
        case(real(0, 3), whole(3, 0), reduction="sum"),
        case(real(2, 1), fixed([0, -100]), real(1)),
    ),
    row(
        "nll_loss",
        *(case(real(4, 3), fixed([0, 1, 2, 1]), **o) for o in _CLASS),
        case(real(2, 3, 2), whole(3, 2, 2), reduction="none"),
        case(real(3), fixed(2)),
        case(real(0, 3), whole(3, 0), reduction="sum"),
        case(real(3, 2), fixed([0, -100, 1])),
        case(real(2, 1), fixed([0, -100]), real(1)),
        analytic=True,
    ),
    row(
        "kl_div",
        *(case(real(2, 3), unit(2, 3), reduction=r) for r in (*REDUCTION, "batchmean")),
        case(real(2, 3), real(2, 3), reduction="batchmean", log_target=True),
        case(real(3), fixed([0, 1, 0])),
        case(real(), unit(), reduction="batchmean"),
    ),
    row(
        "gaussian_log_prob",
        case(real(2, 3), real(2, 3), real(2, 3)),
        case(real(2, 1), real(3), real()),
        case(real(3), 0.5, -0.3),
        analytic=True,
    ),
    row(
        "gaussian_nll_loss",
        *(case(real(2, 3), real(2, 3), positive(2, 3), reduction=r) for r in REDUCTION),
        case(real(2, 3), real(2, 3), positive(2), True),
        case(real(2, 3), real(2, 3), positive(2, 1), full=True, reduction="none"),
        case(real(2, 3), real(2, 3), 0.7, reduction="sum"),
        case(real(3), real(3), positive(), eps=0.1),
        case(real(0, 3), real(0, 3), positive(0), reduction="sum"),
        analytic=True,
    ),
    row("bernoulli_log_prob", case(unit(2, 3), real(2, 3)), case(unit(), real()), case(unit(0), real(0))),
    row(
        "continuous_bernoulli_log_prob",
        case(unit(2, 3), real(2, 3)),
        case(unit(4), fixed([-30.0, -1.3, 1.3, 30.0])),
        case(fixed([0.0, 1.0, 0.5]), fixed([0.0, 1e-3, -1e-3])),
        case(unit(), real()),
        case(unit(0), real(0)),
    ),
    row(
        "discretized_logistic_log_prob",
        case(unit(2, 3), real(2, 3), real(2, 3), 4),
        case(fixed([0.0, 0.25, 0.5, 1.0]), real(2, 4), real(2, 1), levels=5),
        case(fixed([0.0, 1.0]), real(2), real(2), 2),
        case(unit(), real(), real()),
        case(unit(0), real(0), real(0)),
    ),
    row("reparameterize", case(real(2, 3), real(2, 3), real(2, 3)), case(real(2, 1), real(3), real(2, 3)), analytic=True),
    row("kl_standard_gaussian", case(real(2, 3), real(2, 3)), case(real(2, 1), real(3)), analytic=True),
    row(
        "kl_gaussian",
        case(real(2, 3), real(2, 3), real(2, 3), real(2, 3)),
        case(real(2, 1), real(3), real(), real(1)),
        analytic=True,
    ),
    row("kl_bernoulli", case(real(2, 3), real(2, 3)), case(real(2, 1), real(3))),
]


def _buffers(n: int) -> tuple[Fresh, Fresh]:
    """Running statistics, which a call in training changes."""
    return Fresh(lambda: Tensor(np.zeros(n))), Fresh(lambda: Tensor(np.ones(n)))


NORMS = [
    row(
        "batch_norm",
        case(real(4, 2), None, None, real(2), real(2), True),
        case(real(2, 2, 3), *_buffers(2), real(2), None, True, eps=1e-2),
        case(real(2, 1, 2, 2), None, None, None, real(1), training=True),
        case(real(3, 2), real(2), positive(2), real(2), real(2)),
        case(real(1, 2, 2), real(2), positive(2)),
        case(real(0, 2), real(2), positive(2), real(2)),
        case(real(2, 0, 3), None, None, training=True),
        analytic=True,
    ),
    row(
        "group_norm",
        case(real(2, 4, 2), 2, real(4), real(4)),
        case(real(1, 3), 1),
        case(real(2, 2, 2, 1), 2, None, real(2), 0.1),
        case(real(0, 2, 2), 1, real(2)),
        analytic=True,
    ),
    row(
        "instance_norm",
        case(real(2, 2, 3)),
        case(real(1, 2, 2, 2), *_buffers(2), real(2), real(2), eps=0.1),
        case(real(2, 2, 3), real(2), positive(2), real(2), None, False),
        case(real(2, 0, 3)),
        analytic=True,
    ),
    row(
        "rms_norm",
        case(real(2, 4), 4, real(4)),
        case(real(2, 2, 3), (2, 3), real(2, 3), 0.1),
        case(real(3), (3,)),
        case(real(0, 2), 2),
        analytic=True,
    ),
    row(
        "normalize",
        case(loud(2, 3)),
        case(loud(3), dim=0),
        case(loud(2, 3), 1.0, -1),
        case(loud(2, 2), 3.0, 0),
        case(loud(2, 3), np.inf),
        case(real(2, 2), eps=50.0),
        case(loud(0, 2)),
    ),
    row(
        "cosine_similarity",
        case(loud(2, 3), loud(2, 3)),
        case(loud(3), loud(3), 0),
        case(loud(2, 1, 3), loud(2, 3), dim=-1),
        case(loud(3), loud(2, 3)),
        case(loud(2, 3), loud(3)),
        case(loud(2, 2), loud(2, 2), eps=50.0),
    ),
]

_QKV = real(2, 3, 2), real(2, 4, 2), real(2, 4, 3)

TABLES = [
    row(  # no index here is padding_idx, whose row has no gradient although differences have one
        "embedding",
        *(case(whole(3, *shape), real(3, 2)) for shape in ((4,), (2, 3), (), (0,))),
        case(fixed([[0, 2], [2, 2]]), real(3, 1), 1),
        case(fixed([0, 1, 1]), real(3, 2), -1),
        analytic=True,
    ),
    row(
        "dropout",
        case(real(2, 3)),
        case(real(8), 0.25),
        case(real(3), 0.9, False),
        case(real(3), 1.0),
        case(real(0, 2)),
        analytic=True,
        seeded=True,
    ),
    row(
        "scaled_dot_product_attention",
        case(*_QKV),
        case(real(1, 3, 2), real(1, 3, 2), real(1, 3, 2), is_causal=True),
        case(real(2, 1), real(3, 1), real(3, 2), dropout_p=0.3, is_causal=True),
        case(real(2, 0), real(3, 0), real(3, 2)),
        case(real(2, 3, 2), real(4, 2), real(1, 4, 3), scale=0.3),
        case(*_QKV, real(3, 4)),
        case(*_QKV, real(2, 1, 4)),
        case(*_QKV, fixed(np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], bool))),
        case(real(1, 4, 3, 2), real(1, 2, 3, 2), real(1, 2, 3, 1), is_causal=True, enable_gqa=True),
        *(
            case(real(2, 4, 2, 1), real(2, 2, 3, 1), real(2, 2, 3, 1), real(*mask, 2, 3), enable_gqa=True)
            for mask in ((), (4,), (2, 4), (2, 1))
        ),
        case(*_QKV, None, 0.4),
        case(*_QKV, fixed(np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], bool)), 0.3),
        case(real(3, 2), real(3, 2), real(3, 2), None, 0.3, True),
        case(real(0, 2), real(3, 2), real(3, 2)),
        seeded=True,
    ),
    row(
        "self_attention",
        case(real(2, 3, 3, 2, 2)),
        case(real(3, 3, 1, 4), is_causal=True, scale=0.3),
        case(real(1, 5, 3, 2, 3), 0.4, True),
        case(real(2, 0, 3, 2, 2)),
        case(real(3, 3, 2, 1)),
        case(real(2, 3, 1, 0)),
        seeded=True,
    ),
    row(
        "interpolate",
        case(real(1, 2, 3), 5),
        case(real(1, 1, 2, 3), scale_factor=2),
        case(real(1, 1, 3, 2), (2, 5)),
        case(real(1, 1, 3), scale_factor=1.7),
        case(real(1, 2, 3), 5, mode="linear"),
        case(real(1, 1, 3, 2), (2, 5), mode="bilinear"),
        case(real(1, 1, 2, 3), scale_factor=(2, 1.5), mode="bilinear"),
        case(real(1, 1, 3), scale_factor=1.7, mode="linear", recompute_scale_factor=True),
        case(real(1, 1, 2, 3), scale_factor=1.7, recompute_scale_factor=True),
        case(real(1, 1, 3, 2), (5, 1), mode="bilinear", align_corners=True),
        case(real(1, 1, 3, 2), (2, 2), mode="bilinear", align_corners=True),
        case(real(1, 2, 3), 4, mode="nearest-exact"),
        case(real(1, 1, 2, 3), scale_factor=1.5, mode="nearest-exact"),
        case(real(1, 1, 2, 1, 3), (3, 2, 4)),
        case(real(1, 1, 2, 1, 3), (3, 2, 2), mode="trilinear"),
        case(real(1, 1, 1, 2, 3), (2, 3, 2), mode="trilinear", align_corners=True),
        case(real(1, 1, 3, 2), (5, 3), mode="bicubic"),
        case(real(1, 1, 2, 3), (3, 2), mode="bicubic", align_corners=True),
        case(real(1, 1, 2, 3), scale_factor=1.7, mode="bicubic"),
        case(real(1, 1, 3, 2), (2, 3), mode="area"),
        case(real(1, 1, 3, 1, 2), (2, 2, 1), mode="area"),
        analytic=True,
    ),
    row("pixel_shuffle", case(real(1, 4, 2, 1), 2), case(real(9, 1, 1), 3), analytic=True),
    row("pixel_unshuffle", case(real(1, 1, 4, 2), 2), case(real(2, 3, 3), 3), analytic=True),
    row(
        "adaptive_avg_pool2d",
        case(real(1, 2, 4, 3), 2),
        case(real(1, 3, 5), (2, 3)),
        case(real(1, 1, 2, 2), (3, 1)),
        case(real(1, 2, 3), (None, 2)),
        analytic=True,
    ),
]


# Functions with curvature, for what takes functions


def curve(x, *weight):
    """x³ − 2x, times a second argument where there is one"""
    y = x * x * x - 2 * x
    return y * weight[0] if weight else y


def energy(x):
    """A scalar whose Hessian is full: Σ_i e^{x_i} x_{n−i}"""
    return (x.exp() * x.flip(0)).sum()


CALCULUS = [
    row(
        "calculus.vjp",
        case(curve, real(3), real(3), create_graph=True),
        case(curve, (real(2), real(2)), real(2), create_graph=True),
        case(energy, real(2), create_graph=True),
    ),
    row(
        "calculus.jvp",
        case(curve, real(3), real(3), create_graph=True),
        case(curve, (real(2), real(2)), (real(2), real(2)), create_graph=True),
    ),
    row("calculus.hvp", case(energy, real(3), real(3), create_graph=True)),
    row("calculus.jacobian", case(curve, real(2), create_graph=True), case(curve, (real(2), real(2)), create_graph=True)),
    row("calculus.hessian", case(energy, real(2), create_graph=True)),
    row("calculus.checkpoint", case(curve, real(3)), case(curve, real(2), real(2)), analytic=True),
]

ROWS = ACTIVATIONS + LOSSES + NORMS + TABLES + CALCULUS
