"""Matrix products beside NumPy's BLAS, on one thread and on all; `ladder`: the steps from the naive loop, on one.

A product of m × k by k × n takes 2 m n k floating-point operations: as many products as sums.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks import assembly, clock, machine
from benchmarks.clock import Goal

SMALL = (16, 32, 64, 96)
SQUARE = (128, 256, 512, 1024, 2048)
TRANSFORMER = ((768, 128, 512), (768, 512, 128), (1024, 384, 1536), (1024, 1536, 384), (4096, 384, 384), (3072, 384, 65))
BATCHED = ((48, 256, 64, 256, "NT"), (48, 256, 256, 64, "NN"), (72, 64, 64, 64, "NN"), (12, 1024, 64, 1024, "NT"))


def name(*shape: int | str) -> str:
    """(m, k, n, form) as a case is called: N a matrix that lies as it is, T one that lies transposed, of A and of B"""
    *sizes, form = shape
    return f"{' × '.join(map(str, sizes))} {form}"


CASES = {
    "small": [name(n, n, n, "NN") for n in SMALL],
    "large": [name(*mkn, f) for mkn in (*((n, n, n) for n in SQUARE), *TRANSFORMER) for f in ("NN", "TN", "NT")],
    "batched": [name(*case) for case in BATCHED],
}


def sizes(case: str) -> list[int]:
    """(batch …, m, k, n)"""
    return [int(n) for n in case.split(" ")[:-1:2]]


def operands(case: str) -> tuple[np.ndarray, np.ndarray]:
    """A and B, the transposed ones lying transposed."""
    (*lead, m, k, n), form, rng = sizes(case), case.split(" ")[-1], np.random.default_rng(0)
    a = rng.standard_normal((*lead, k, m) if form[0] == "T" else (*lead, m, k), np.float32)
    b = rng.standard_normal((*lead, n, k) if form[1] == "T" else (*lead, k, n), np.float32)
    return a.swapaxes(-1, -2) if form[0] == "T" else a, b.swapaxes(-1, -2) if form[1] == "T" else b


def build(who: str, case: str) -> Callable[[], Any]:
    """The product by NumPy, by ours, or by a step of the ladder."""
    a, b = operands(case)
    if who == "numpy":
        return lambda: np.matmul(a, b)
    import kernels
    from kernels.cpu.ladder import LADDER

    c = np.empty((a.shape[0], b.shape[1]), "f") if a.ndim == 2 else None
    product = (lambda: kernels.matmul(a, b)) if who == "ours" else lambda: LADDER[who](a, b, c)
    found = product()
    np.testing.assert_allclose(c if found is None else found, np.matmul(a, b), rtol=1e-3, atol=1e-3)
    return product


def run(quick: bool, only: str) -> list[dict]:
    """A row for each product, on one thread and on all; × above 1 means faster than NumPy."""
    rows = []
    for threads in sorted({1, clock.THREADS}):
        with clock.Rivals("matmul", ["ours", "numpy"], threads) as rivals:
            for kind, cases in CASES.items():
                for case in cases[:: 4 if quick else 1]:
                    if only in f"{kind} {case}":
                        times = rivals.compare(case, 3 if quick else 7)
                        speed = 2 * np.prod(sizes(case), dtype=float) / median(times["ours"])
                        share = 100 * speed / machine.peak(threads)
                        row = {"product": case, "kind": kind, "threads": threads, "Gflop/s": speed / 1e9, "% of peak": share}
                        rows.append(row | {"× numpy": clock.ratio(times, "ours", "numpy")})
    return rows


def goals(rows: list[dict]) -> list[Goal]:
    """The median of each kind, and the worst of the large products, on one thread and on all."""
    table = []
    whats = {
        "large": ("GEMM 128…2048 and transformer shapes, float32", 0.95, 1.05),
        "small": ("GEMM 16…96", 1.0, 1.5),
        "batched": ("batched GEMM", 1.1, 1.3),
    }
    for kind, (what, least, aim) in whats.items():
        for threads in sorted({row["threads"] for row in rows}):
            some = [row for row in rows if (row["kind"], row["threads"]) == (kind, threads)]
            if some:
                speed = f"{median(row['Gflop/s'] for row in some):.0f} Gflop/s"
                on = f"{threads} thread{'s' * (threads > 1)}"
                rest = ("NumPy's OpenBLAS", median(row["× numpy"] for row in some), least, aim)
                table.append(Goal(f"{what}, {on}, median", speed, *rest))
                if kind == "large":
                    worst = min(some, key=lambda row: row["× numpy"])
                    speed = f"{worst['Gflop/s']:.0f} Gflop/s"
                    name = f"  the worst: {worst['product']}"
                    table.append(Goal(name, speed, "NumPy's OpenBLAS", worst["× numpy"], 0.85, 0.95))
    return table


def ladder(quick: bool, only: str) -> list[dict]:
    """Each step on one thread, as a share of NumPy's BLAS on one thread and of the peak."""
    rows = []
    with clock.Rivals("matmul", ["numpy", *assembly.STEPS["matmul"]], 1) as rivals:
        for n in (256,) if quick else (256, 512, 1024):
            times = rivals.compare(name(n, n, n, "NN"), 3)
            for step in times:
                speed = 2 * n**3 / median(times[step])
                row = {"step": step, "n": n, "Gflop/s": speed / 1e9, "% of numpy": 100 * clock.ratio(times, step, "numpy")}
                rows.append(row | {"% of peak": 100 * speed / machine.peak(1), "flop/byte": 2 * n**3 / (4 * 3 * n**2)})
    return rows
