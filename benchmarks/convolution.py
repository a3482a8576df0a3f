"""Convolution and its two gradients at the shapes of a DCGAN, batch 64, beside PyTorch in both of its layouts."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from benchmarks.clock import compare
from kernels import reference
from kernels.cpu import convolution
from kernels.cpu.convolution_tile import call, fields, host_width, launch, part, tiles
from kernels.cpu.threads import threads

# channels, size, outputs, kernel, stride, padding
SHAPES = [
    (1, 28, 64, 4, 2, 1),
    (64, 14, 128, 4, 2, 1),
    (128, 8, 256, 4, 2, 1),
    (32, 28, 32, 3, 1, 1),
    (64, 14, 64, 3, 1, 1),
    (64, 28, 64, 3, 1, 1),
    (64, 28, 64, 1, 1, 0),
]


@part(3)
def _busy(t, threads, job):
    tile, repeats, depth, a, ro, ko, b, b_row, c, c_step, cr, m = fields(job, 12)
    for _ in range(repeats):
        call(tile, (depth, a, ro, ko, b, b_row, c + t * c_step, cr, m, b_row, 0))


def peak() -> float:
    """Arithmetic of all threads, in operations a second: the tile on operands in the first cache."""
    k, depth, best = tiles(32, host_width()), 192, 0.0
    m, n = int(k.heights[-1]), k.panel
    arrays = np.ones((m, depth), np.float32), np.arange(m) * depth, np.arange(depth), np.ones((depth, n), np.float32)
    c, cr, repeats = np.zeros((threads(), 4096), np.float32), np.arange(m) * n, 2000
    places = [a.ctypes.data for a in arrays]
    job = np.array([k.tile, repeats, depth, *places, n, c.ctypes.data, 4 * 4096, cr.ctypes.data, m], np.int64)
    for seconds in compare({"peak": lambda: launch(_busy, job, threads())}, rounds=7, gap=0.02)["peak"]:
        best = max(best, 2 * m * n * depth * repeats * threads() / seconds)
    return best


def _torch_passes(x: Any, w: Any, dy: Any, stride: int, padding: int) -> dict[str, list[Any]]:
    """For each layout: forward, input gradient, weight gradient."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads())
    backward = torch.ops.aten.convolution_backward

    def passes(layout: Any) -> list[Any]:
        a, b, c = (torch.from_numpy(t).to(memory_format=layout) for t in (x, w, dy))
        how = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
        return [
            lambda: torch.conv2d(a, b, stride=stride, padding=padding),
            lambda: backward(c, a, b, None, *how, [True, False, False]),
            lambda: backward(c, a, b, None, *how, [False, True, False]),
        ]

    return {"nchw": passes(torch.contiguous_format), "nhwc": passes(torch.channels_last)}


def _verify(passes: list[Any], x: Any, w: Any, dy: Any, how: dict[str, Any], kernel: int) -> None:
    few = slice(0, 3)
    expected = (
        reference.conv(x[few], w, **how),
        reference.conv_input_grad(dy[few], w, x.shape[2:], **how),
        reference.conv_weight_grad(x, dy, (kernel, kernel), **how),
    )
    for function, b, some in zip(passes, expected, (few, few, slice(None)), strict=True):
        error = np.abs(function()[some] - b).max()
        if not error <= 1e-4 * np.abs(b).max():
            raise AssertionError(f"convolution {x.shape} ⋆ {w.shape}: off by {error}")


def run(quick: bool) -> list[dict]:
    """A row for each shape: milliseconds, share of peak, and ratios to PyTorch (> 1: faster) in its faster layout."""
    rows, rng, batch = [], np.random.default_rng(0), 64
    highest = peak()
    for channels, size, outputs, kernel, stride, padding in SHAPES:
        count = (size + 2 * padding - kernel) // stride + 1
        shapes = (batch, channels, size, size), (outputs, channels, kernel, kernel), (batch, outputs, count, count)
        x, w, dy = (rng.standard_normal(shape, np.float32) for shape in shapes)
        how = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1)}
        ours = [
            lambda x=x, w=w, how=how: convolution.conv(x, w, **how),
            lambda x=x, w=w, dy=dy, how=how: convolution.conv_input_grad(dy, w, x.shape[2:], **how),
            lambda x=x, w=w, dy=dy, how=how: convolution.conv_weight_grad(x, dy, w.shape[2:], **how),
        ]
        _verify(ours, x, w, dy, how, kernel)
        rivals = {"ours": ours, **_torch_passes(x, w, dy, stride, padding)}
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for i in range(3):
            taken = compare({name: passes[i] for name, passes in rivals.items()}, rounds=3 if quick else 7)
            for name, seconds in taken.items():
                times[name].append(median(seconds))
        flops = 3 * 2 * batch * outputs * channels * kernel**2 * count**2
        total = {name: sum(seconds) for name, seconds in times.items()}
        row: dict[str, Any] = {
            "benchmark": "convolution",
            "shape": f"{channels}->{outputs} @{size} k{kernel} s{stride} p{padding}",
            "threads": threads(),
            "ms": 1e3 * total["ours"],
            "of_peak": flops / total["ours"] / highest,  # of the direct sum's arithmetic: Winograd's can be over 1
        }
        if len(total) > 1:
            best = min((name for name in total if name != "ours"), key=total.__getitem__)
            row["to_torch"] = total[best] / total["ours"]
            row |= {f"{p}_to_torch": t / o for p, o, t in zip(("y", "dx", "dw"), times["ours"], times[best], strict=True)}
            row["torch_layout"] = best
        rows.append(row)
    return rows
