"""Row kernels against the same functions in NumPy and, where it has one fused kernel, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import clock
from kernels import reference

FUSED = ("softmax", "cross_entropy", "layer_norm", "gelu", "dropout", "embedding", "scatter_add")  # PyTorch has one kernel
CASES = (*FUSED, "layer_norm_backward", "gelu_backward")


def _arguments(kernel: str) -> tuple[tuple, dict]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype("f")

    x, dy, w, b, target = normal(3072, 384), normal(3072, 384), normal(384), normal(384), rng.integers(0, 65, 3072)
    if kernel in ("embedding", "scatter_add"):
        table, index = normal(50257, 384), rng.integers(0, 50257, 3072)
        return (table, index) if kernel == "embedding" else (table, index, x), {}
    return {
        "softmax": ((x,), {}),
        "cross_entropy": ((normal(3072, 65), target), {}),
        "layer_norm": ((x, w, b), {}),
        "layer_norm_backward": ((dy, x, w, *reference.layer_norm(x, w, b)[1:]), {}),
        "gelu": ((x,), {}),
        "gelu_backward": ((dy, x), {}),
        "dropout": ((x,), {"p": 0.1, "seed": 0}),
    }[kernel]


def build(who: str, case: str) -> Callable[[], Any]:
    """One call of a kernel: ours, the reference's (NumPy), or PyTorch's."""
    arguments, options = _arguments(case)
    if who == "torch":
        torch = clock.torch()
        t = [torch.from_numpy(x) for x in arguments]
        return {
            "softmax": lambda: torch.nn.functional.softmax(t[0], -1),
            "cross_entropy": lambda: torch.nn.functional.cross_entropy(*t, reduction="none"),
            "layer_norm": lambda: torch.nn.functional.layer_norm(t[0], (384,), t[1], t[2]),
            "gelu": lambda: torch.nn.functional.gelu(t[0]),
            "dropout": lambda: torch.nn.functional.dropout(t[0], 0.1, True),
            "embedding": lambda: torch.nn.functional.embedding(t[1], t[0]),
            "scatter_add": lambda: t[0].index_add_(0, t[1], t[2]),
        }[case]
    backend = reference
    if who == "ours":
        import kernels as backend
    same = [getattr(some, case)(*(x.copy() for x in arguments), **options) for some in (backend, reference)]
    for mine, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in same if x is not None), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)
    kernel = getattr(backend, case)
    return lambda: kernel(*arguments, **options)


def run(quick: bool, only: str) -> list[dict]:
    """A row for each kernel: milliseconds a call, and ratios to the others."""
    rows = []
    with clock.Rivals("rows", ["ours", "numpy", "torch"]) as rivals:
        for case in CASES:
            if only in case:
                times = rivals.compare(case, 3 if quick else 7, names=["ours", "numpy", *["torch"] * (case in FUSED)])
                rows.append({"kernel": case, **clock.summary(times)})
    return rows


def goals(rows: list[dict]) -> list[clock.Goal]:
    """None: the aims are those of the steps that these kernels are parts of."""
    return []
