"""Row kernels against the same functions in NumPy and, where it has one fused kernel, in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.clock import compare, ratio
from kernels import reference
from kernels.cpu import rows as ours


def _cases(rng: np.random.Generator) -> list[tuple]:
    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype("f")

    x, dy, w, b, target = normal(3072, 384), normal(3072, 384), normal(384), normal(384), rng.integers(0, 65, 3072)
    logits = normal(3072, 65)
    _, mean, rstd = reference.layer_norm(x, w, b)
    index, table = rng.integers(0, 50257, 3072), normal(50257, 384)
    return [
        ("softmax", (x,), {}),
        ("cross_entropy", (logits, target), {}),
        ("layer_norm", (x, w, b), {}),
        ("layer_norm_backward", (dy, x, w, mean, rstd), {}),
        ("gelu", (x,), {}),
        ("gelu_backward", (dy, x), {}),
        ("dropout", (x,), {"p": 0.1, "seed": 0}),
        ("embedding", (table, index), {}),
        ("scatter_add", (table.copy(), index, x), {}),
    ]


def run(quick: bool) -> list[dict]:
    try:
        import torch
    except ImportError:
        torch = None
    rows = []
    for door, arguments, options in _cases(np.random.default_rng(0)):
        rivals = {
            "scratchgen": lambda d=door, a=arguments, o=options: getattr(ours, d)(*a, **o),
            "numpy": lambda d=door, a=arguments, o=options: getattr(reference, d)(*a, **o),
        }
        if torch:
            t = [torch.from_numpy(x) for x in arguments]
            fused = {
                "softmax": lambda t=t: torch.nn.functional.softmax(t[0], -1),
                "cross_entropy": lambda t=t: torch.nn.functional.cross_entropy(*t, reduction="none"),
                "layer_norm": lambda t=t: torch.nn.functional.layer_norm(t[0], (384,), t[1], t[2]),
                "gelu": lambda t=t: torch.nn.functional.gelu(t[0]),
                "dropout": lambda t=t: torch.nn.functional.dropout(t[0], 0.1, True),
                "embedding": lambda t=t: torch.nn.functional.embedding(t[1], t[0]),
                "scatter_add": lambda t=t: t[0].index_add_(0, t[1], t[2]),
            }
            if door in fused:
                rivals["torch"] = fused[door]
        times = compare(rivals, 3 if quick else 7, gap=0.05 if quick else 0.15)
        line = {"kernel": door, "ms": 1e3 * float(np.median(times["scratchgen"]))}
        rows.append(line | {f"× {name}": ratio(times, "scratchgen", name) for name in rivals if name != "scratchgen"})
    return rows
