"""Attention, forward and backward, against PyTorch's fused attention and against the matrices written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.clock import compare, ratio
from kernels import reference
from kernels.cpu import attention as ours
from kernels.cpu.threads import threads

SHAPES = ((12, 6, 64, 64), (12, 6, 256, 64), (12, 6, 1024, 64))


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads())
    return torch


def _step(kernels: Any, q: Any, k: Any, v: Any, g: Any, causal: bool) -> tuple:
    out, lse = kernels.attention(q, k, v, causal=causal)
    return kernels.attention_backward(g, q, k, v, out, lse, causal=causal)[:3]


def run(quick: bool) -> list[dict]:
    rng, torch, rows = np.random.default_rng(0), _torch(), []
    for shape in SHAPES[: 1 if quick else None]:
        q, k, v, g = (rng.standard_normal(shape).astype("f") for _ in range(4))
        for causal in (True, False):
            for mine, theirs in zip(_step(ours, q, k, v, g, causal), _step(reference, q, k, v, g, causal), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)
            rivals = {"scratchgen": lambda q=q, k=k, v=v, g=g, c=causal: _step(ours, q, k, v, g, c)}
            rivals["numpy"] = lambda q=q, k=k, v=v, g=g, c=causal: _step(reference, q, k, v, g, c)
            if torch:
                tq, tk, tv = (torch.from_numpy(x).requires_grad_() for x in (q, k, v))
                tg = torch.from_numpy(g)

                def fused(tq=tq, tk=tk, tv=tv, tg=tg, c=causal) -> Any:
                    out = torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, is_causal=c)
                    return torch.autograd.grad(out, (tq, tk, tv), tg)

                rivals["torch"] = fused
            times = compare(rivals, 3 if quick else 5)
            line = {
                "B, H, T, D": str(shape),
                "causal": causal,
                "threads": threads(),
                "ms": 1e3 * float(np.median(times["scratchgen"])),
            }
            rows.append(line | {f"× {name}": ratio(times, "scratchgen", name) for name in rivals if name != "scratchgen"})
    return rows
