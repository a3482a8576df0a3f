"""Timing that can be trusted on a noisy machine: rivals in turn, idle gaps between, medians, ratios within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

GAP = 0.2  # seconds: thread pools spin for up to 0.1 s after their last work, and slow whoever comes next


def median_time(f: Callable[[], object], *, seconds: float = 0.3, least: int = 3) -> float:
    """Median duration of one call, over as many calls as fit, in seconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(
    ours: Callable[[], object], rivals: dict[str, Callable[[], object]], *, rounds: int = 7, seconds: float = 0.3
) -> dict:
    """Time `ours` and each rival in turn.

    Returns {"ours_ms": median, "<rival>_ms": median, "x_<rival>": median over rounds of rival's time / ours} — above 1
    means that ours is faster.
    """
    everyone = {"ours": ours, **rivals}
    for f in everyone.values():
        f()
    times: dict[str, list[float]] = {name: [] for name in everyone}
    for _ in range(rounds):
        for name, f in everyone.items():
            time.sleep(GAP)
            times[name].append(median_time(f, seconds=seconds))
    row = {f"{name}_ms": 1e3 * statistics.median(t) for name, t in times.items()}
    for name in rivals:
        row[f"x_{name}"] = statistics.median(b / a for a, b in zip(times["ours"], times[name], strict=True))
    return row


def torch_or_none() -> object | None:
    """PyTorch, if it is installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch
