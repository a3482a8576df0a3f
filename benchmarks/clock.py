"""Timing that two programs on the same cores can be compared by.

A thread pool keeps its idle threads spinning for a tenth of a second: a rival timed in that time runs at half its speed.
So rivals take turns, with an idle gap before each turn; a turn repeats the call often enough to be measured; the figure
is the median over the rounds, and a ratio is the median of the ratios within a round, since the machine drifts between
rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

GAP = 0.15  # seconds of idleness before a turn
TURN = 0.02  # seconds of work in a turn, at least


def _turn(function: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def compare(
    rivals: Mapping[str, Callable[[], object]], rounds: int = 7, gap: float = GAP, turn: float = TURN
) -> dict[str, list[float]]:
    """Seconds a call, for each rival and round."""
    repeats = {}
    for name, function in rivals.items():
        time.sleep(gap)
        function()  # what is compiled or allocated once
        once = _turn(function, 2)
        repeats[name] = max(1, int(turn / max(once, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, function in rivals.items():
            time.sleep(gap)
            _turn(function, max(1, repeats[name] // 5))  # wake the pool
            times[name].append(_turn(function, repeats[name]))
    return times


def ratio(times: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """How many times faster ours is."""
    return median(t / o for o, t in zip(times[ours], times[theirs], strict=True))


def table(rows: list[dict]) -> str:
    """Rows of one kind as aligned columns."""
    if not rows:
        return ""
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{row.get(n, ''):.2f}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names] for row in rows]
    widths = [max(len(c) for c in column) for column in zip(names, *cells, strict=True)]
    lines = [names, *cells]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines
    )


def summary(times: Mapping[str, list[float]], scale: float = 1e3, unit: str = "ms") -> dict[str, float]:
    """{"ours_ms": median, "torch_ms": median, "x_torch": ratio, …} of what `compare` measured; above 1: ours is faster."""
    row = {f"{name}_{unit}": scale * median(t) for name, t in times.items()}
    return row | {f"x_{name}": ratio(times, "ours", name) for name in times if name != "ours"}


def torch_or_none() -> object | None:
    """PyTorch, if it is installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch
