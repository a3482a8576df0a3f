"""Attention, forward and backward, beside PyTorch's fused attention and the matrices written out in NumPy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks import clock, machine
from benchmarks.clock import Goal
from kernels import reference

SHAPES = [(12, 6, t, 64) for t in (64, 128, 256, 512, 1024)] + [(12, 4, 64, 32)]  # B, H, T, D; the last of the small GPT
STEP = "one head, T ="
LONG = (1, 6, 16384, 64)
MEMORY = f"""
import resource, numpy as np, kernels
kernels.use("cpu")
def step(*shape):
    q, k, v, dout = (np.random.default_rng(0).random(shape, np.float32) for _ in range(4))
    out, statistics = kernels.attention(q, k, v)
    grads = kernels.attention_backward(dout, q, k, v, out, statistics)[:3]
    return sum(x.nbytes for x in (q, k, v, dout, out, statistics, *grads))
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(1, 1, 8, 64)
before = peak()
print(step(*{LONG}), peak() - before)
"""  # bytes of inputs and outputs, and by how much memory grew in all
CASES = {f"{kind}, {' × '.join(map(str, s))}": (kind == "causal", s) for kind in ("causal", "full") for s in SHAPES}


def _step(kernels: Any, q: Any, k: Any, v: Any, g: Any, causal: bool) -> tuple:
    out, statistics = kernels.attention(q, k, v, causal=causal)
    return kernels.attention_backward(g, q, k, v, out, statistics, causal=causal)[:3]


def build(who: str, case: str) -> Callable[[], Any]:
    """Forward and backward, all outputs allocated by the program itself."""
    if case.startswith(STEP):
        return build_step(who, int(case.removeprefix(STEP)))
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
    mine, theirs = (_step(backend, q[few], k[few], v[few], g[few], causal) for backend in (kernels, reference))
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
    if only in "memory" and not quick:
        done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
        needed, grown = map(int, done.stdout.split())
        case = f"memory, {' × '.join(map(str, LONG))}"
        rows.append({"B × H × T × D": case, "inputs and outputs, MB": needed / 1e6, "all memory, MB": grown / 1e6})
    return rows


def _head(t: int) -> list[np.ndarray]:
    """Q, K, V, Ō of one head"""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((t, 64)).astype("f") for _ in range(4)]


def build_step(who: str, t: int) -> Callable[[], Any]:
    """A step of the ladder, which alone is timed: forward, or backward from what its forward step kept."""
    from kernels.cpu.attention_ladder import BACKWARD, FORWARD

    q, k, v, g = _head(t)
    out, statistics = reference.attention(q, k, v)
    if who in FORWARD:
        np.testing.assert_allclose(FORWARD[who](q, k, v)[0], out, rtol=1e-3, atol=1e-3)
        return lambda: FORWARD[who](q, k, v)
    before, step = BACKWARD[who]
    out, kept = FORWARD[before](q, k, v)
    wanted = reference.attention_backward(g, q, k, v, out, statistics)[:3]
    for a, b in zip(step(q, k, v, kept, out, g), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    return lambda: step(q, k, v, kept, out, g)


def ladder(quick: bool, only: str) -> list[dict]:
    """Each step for one head on one thread, as a share of the peak, and what it keeps for the backward pass."""
    from kernels.cpu.attention_ladder import BACKWARD, FORWARD

    rows, steps = [], [*FORWARD, *BACKWARD]
    with clock.Rivals("attention", steps, 1) as rivals:
        for t in (256,) if quick else (256, 1024, 2048):
            times = rivals.compare(f"{STEP} {t}", 3)
            for step in times:
                products = 2 if step in FORWARD else 4
                speed = products * 2 * t * t * 64 / median(times[step])
                weights = step in ("materialised", "from the weights")
                traffic = 4 * (64 * t * (4 if step in FORWARD else 8) + 2 * t * t * weights)
                row = {"step": step, "T": t, "ms": 1e3 * median(times[step]), "Gflop/s": speed / 1e9}
                row |= {"% of peak": 100 * speed / machine.peak(1), "flop/byte": products * 2 * t * t * 64 / traffic}
                rows.append(row | {"kept, kB": 4 * t * (t if weights else 1) / 1e3})
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
    for row in rows:
        if "all memory, MB" in row:
            grown, needed = row["all memory, MB"], row["inputs and outputs, MB"]
            what = f"attention at T = 16,384 (B 1, H 6, D 64), {row['B × H × T × D'].split(',')[0]} to its inputs and outputs"
            table.append(Goal(what, f"{grown:.0f} MB", f"{needed:.0f} MB", grown / needed, 3, 1.5, below=True))
    return table
