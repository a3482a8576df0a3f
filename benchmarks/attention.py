"""Attention, forward and backward, beside PyTorch's fused attention and the matrices written out in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks import clock, machine
from benchmarks.clock import Goal
from kernels import reference

SHAPES = [(12, 6, t, 64) for t in (64, 128, 256, 512, 1024)] + [(12, 4, 64, 32)]  # B, H, T, D; the last of the small GPT
CASES = {f"{kind}, {' × '.join(map(str, s))}": (kind == "causal", s) for kind in ("causal", "full") for s in SHAPES}


def _step(kernels: Any, q: Any, k: Any, v: Any, g: Any, causal: bool) -> tuple:
    out, lse = kernels.attention(q, k, v, causal=causal)
    return kernels.attention_backward(g, q, k, v, out, lse, causal=causal)[:3]


def build(who: str, case: str) -> Callable[[], Any]:
    """Forward and backward, all outputs allocated by the program itself."""
    causal, shape = CASES[case]
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal(shape).astype("f") for _ in range(4))
    if who == "torch":
        torch = clock.torch()
        tq, tk, tv = (torch.from_numpy(x).requires_grad_() for x in (q, k, v))
        tg = torch.from_numpy(g)

        def fused() -> Any:
            out = torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, is_causal=causal)
            return torch.autograd.grad(out, (tq, tk, tv), tg)

        return fused
    if who == "numpy":
        return lambda: _step(reference, q, k, v, g, causal)
    import kernels

    few = slice(0, 2)
    mine, theirs = (_step(room, q[few], k[few], v[few], g[few], causal) for room in (kernels, reference))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    return lambda: _step(kernels, q, k, v, g, causal)


def flops(causal: bool, shape: tuple[int, ...]) -> int:
    """Multiplications and additions of the two products forward and the four backward; none recomputed."""
    b, h, t, d = shape
    return 6 * 2 * b * h * d * (t * (t + 1) // 2 if causal else t * t)


def run(quick: bool, only: str) -> list[dict]:
    rows = []
    with clock.Rivals("attention", ["ours", "torch"]) as rivals:
        for case, (causal, shape) in CASES.items():
            if only in case and (not quick or shape[2] in (64, 256)):
                times = rivals.compare(case, 3 if quick else 7)
                share = 100 * flops(causal, shape) / median(times["ours"]) / machine.peak()
                rows.append({"B × H × T × D": case, **clock.summary(times), "% of peak": share})
    return rows


def goals(rows: list[dict]) -> list[Goal]:
    table = []
    for kind, what, least, aim in (("causal", "causal", 1.7, 2.2), ("full", "non-causal", 1.2, 1.5)):
        some = [row for row in rows if row["B × H × T × D"].startswith(kind) and row["B × H × T × D"].endswith("64")]
        found = [row["× torch"] for row in some if "× torch" in row]
        if some:
            ours, worst = sum(row["ours ms"] for row in some), f", worst {min(found):.2f}" if found else ""
            name = f"{what} attention, forward + backward, B 12, H 6, D 64, median{worst}"
            table.append(Goal(name, f"{ours:.0f} ms", "PyTorch", median(found) if found else None, least, aim))
    return table
