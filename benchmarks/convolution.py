"""Convolution and its two gradients at the shapes of a DCGAN, with 3 × 3 kernels and those of one tap, one or few channels, by
channel; batch 64, on one thread and on all, beside PyTorch's two layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks import clock, machine
from benchmarks.clock import Goal
from kernels import reference

BATCH = 64
# channels, size, outputs, kernel, stride, padding, groups
SHAPES = {
    "DCGAN": [(1, 28, 64, 4, 2, 1, 1), (64, 14, 128, 4, 2, 1, 1), (128, 8, 256, 4, 2, 1, 1)],
    "3 × 3": [(32, 28, 32, 3, 1, 1, 1), (64, 14, 64, 3, 1, 1, 1), (64, 28, 64, 3, 1, 1, 1)],
    "1 × 1": [(64, 28, 64, 1, 1, 0, 1), (128, 16, 256, 1, 1, 0, 1), (32, 32, 128, 1, 1, 0, 1), (256, 8, 64, 1, 1, 0, 1)],
    "few channels": [(1, 28, 64, 3, 1, 1, 1), (3, 32, 64, 3, 1, 1, 1), (3, 32, 64, 4, 4, 0, 1), (64, 28, 1, 3, 1, 1, 1)],
    "depthwise": [(64, 28, 64, 3, 1, 1, 64), (128, 14, 128, 3, 2, 1, 128), (64, 16, 64, 7, 1, 3, 64)],
}
PASSES = ("y", "dx", "dw")


def name(channels: int, size: int, outputs: int, kernel: int, stride: int, padding: int, groups: int) -> str:
    return f"{channels} → {outputs}, {size} × {size}, kernel {kernel}, stride {stride}" + ", depthwise" * (groups > 1)


CASES = {name(*shape): (kind, shape) for kind, shapes in SHAPES.items() for shape in shapes}


def build(who: str, case: str) -> Callable[[], Any]:
    """One of the three passes, "y", "dx" or "dw"; PyTorch's in either layout."""
    case, which = case.rsplit(" ", 1)
    channels, size, outputs, kernel, stride, padding, groups = CASES[case][1]
    count, rng = (size + 2 * padding - kernel) // stride + 1, np.random.default_rng(0)
    shapes = (BATCH, channels, size, size), (outputs, channels // groups, kernel, kernel), (BATCH, outputs, count, count)
    x, w, dy = (rng.standard_normal(shape, np.float32) for shape in shapes)
    if who == "ours":
        import kernels

        how = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1), "groups": groups}
        calls = {
            "y": lambda backend, x=x, dy=dy: backend.conv(x, w, **how),
            "dx": lambda backend, x=x, dy=dy: backend.conv_input_grad(dy, w, x.shape[2:], **how),
            "dw": lambda backend, x=x, dy=dy: backend.conv_weight_grad(x, dy, w.shape[2:], **how),
        }
        mine, theirs = calls[which](kernels), calls[which](reference)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
        return lambda: calls[which](kernels)
    torch = clock.torch()
    layout = torch.channels_last if who == "torch nhwc" else torch.contiguous_format
    a, b, c = (torch.from_numpy(t).to(memory_format=layout) for t in (x, w, dy))
    backward, how = torch.ops.aten.convolution_backward, ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
    return {
        "y": lambda: torch.conv2d(a, b, stride=stride, padding=padding, groups=groups),
        "dx": lambda: backward(c, a, b, None, *how, [True, False, False]),
        "dw": lambda: backward(c, a, b, None, *how, [False, True, False]),
    }[which]


def run(quick: bool, only: str) -> list[dict]:
    """A row for each shape and number of threads: milliseconds of three passes together, ratios to PyTorch's faster layout."""
    rows = []
    for threads in sorted({1, clock.THREADS}):
        with clock.Rivals("convolution", ["ours", "torch nchw", "torch nhwc"], threads) as rivals:
            for case, (kind, (channels, size, outputs, kernel, stride, _, groups)) in CASES.items():
                if only not in f"{kind} {case}":
                    continue
                times = {which: rivals.compare(f"{case} {which}", 3 if quick else 7) for which in PASSES}
                total = {who: sum(median(times[which][who]) for which in PASSES) for who in times["y"]}
                row: dict[str, Any] = {"convolution": case, "kind": kind, "threads": threads, "ours ms": 1e3 * total["ours"]}
                flops = 3 * 2 * BATCH * (size // stride) ** 2 * outputs * channels // groups * kernel**2
                row["% of peak"] = 100 * flops / total["ours"] / machine.peak(threads)  # of the direct sum; Winograd needs less
                if len(total) > 1:
                    best = min((who for who in total if who != "ours"), key=total.__getitem__)
                    row |= {"torch ms": 1e3 * total[best], "× torch": total[best] / total["ours"]}
                    row |= {f"× {which}": clock.ratio(times[which], "ours", best) for which in PASSES} | {"layout": best[-4:]}
                rows.append(row)
    return rows


def goals(rows: list[dict]) -> list[Goal]:
    table = []
    aims = {"DCGAN": (0.95, 1.1), "3 × 3": (1.2, 1.4), "1 × 1": (1.0, 1.1), "few channels": (1.0, 1.5), "depthwise": (1.0, 1.5)}
    for kind, (least, aim) in aims.items():
        some = [row for row in rows if row["kind"] == kind]
        if some:
            ours, found = sum(row["ours ms"] for row in some), [row["× torch"] for row in some if "× torch" in row]
            worst = f", worst {min(found):.2f}" if found else ""
            what = f"convolution, {kind}{' stride 1' * (kind == '3 × 3')}, y + dx + dw, median{worst}"
            table.append(Goal(what, f"{ours:.1f} ms", "PyTorch's faster layout", median(found) if found else None, least, aim))
    return table
