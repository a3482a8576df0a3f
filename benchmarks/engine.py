"""What a node of the graph costs: a chain of small ops, forward and backward, beside PyTorch, on one thread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import scratchgen as sg
from benchmarks import clock

NODES = 2000  # half of them products, half sums
CASE = "chain of 2,000 ops, 8 × 8 floats"


def chain(x, w):
    y = x
    for _ in range(NODES // 2):
        y = y * w
        y = y + x
    return y


def build(who: str, case: str) -> Callable[[], float]:
    tensor = sg.tensor if who == "ours" else clock.torch().tensor
    a = np.random.default_rng(0).random((8, 8)).astype(np.float32)

    def step() -> float:
        x, w = tensor(a, requires_grad=True), tensor(0.5 * a, requires_grad=True)
        chain(x, w).sum().backward()
        return float(x.grad.numpy().sum())

    return step


def run(quick: bool, only: str) -> list[dict]:
    """Microseconds a node, forward and backward together."""
    if only not in CASE:
        return []
    with clock.Rivals("engine", ["ours", "torch"], threads=1) as rivals:
        times = rivals.compare(CASE, rounds=3 if quick else 11, turn=0.1 if quick else 0.3)
    return [{"what": CASE, **clock.summary(times, 1e6 / NODES, "µs a node")}]


def goals(rows: list[dict]) -> list[clock.Goal]:
    return []
