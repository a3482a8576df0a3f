"""Pictures of the figures: the table of aims as bars, a ladder under the machine's roof."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.clock import Goal

COLOURS = {"aim": "#2b8a3e", "yes": "#74b816", "NO": "#e03131"}


def _axes(width: float, height: float):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def draw_goals(goals: Sequence[Goal], path: str | Path) -> None:
    """A bar for each row whose rival could run: the figure as a multiple of what it must be at least, the aim as a mark"""
    rows = [goal for goal in goals if goal.figure is not None][::-1]
    figure, axes = _axes(10, 1 + 0.3 * len(rows))
    for y, goal in enumerate(rows):
        turn = -1 if goal.below else 1  # "at most": how many times less than allowed
        length, aim = (goal.figure / goal.least) ** turn, (goal.aim / goal.least) ** turn
        axes.barh(y, length, color=COLOURS[goal.row()["met"]], height=0.7)
        axes.plot([aim, aim], [y - 0.4, y + 0.4], color="black", linewidth=1.5)
        axes.text(length, y, f" {goal.figure:.3g}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [f"{goal.what.strip()}  {goal.rival}".strip()[:90] for goal in rows], fontsize=7)
    axes.set_xlabel("figure ÷ what it must be at least; a line where the aim is")
    figure.savefig(path, dpi=110)


def draw_ladder(rows: Sequence[dict], path: str | Path) -> None:
    """The roofline of one core (Williams, Waterman & Patterson 2009): a step does at most min(peak, intensity · bandwidth)."""
    peak, bandwidth = machine.peak(1) / 1e9, machine.bandwidth(1) / 1e9
    figure, axes = _axes(9, 6)
    least, most = 0.5 * min(r["flop/byte"] for r in rows), 2 * max(r["flop/byte"] for r in rows)
    least = min(least, 0.3 * peak / bandwidth)
    axes.plot([least, peak / bandwidth, most], [least * bandwidth, peak, peak], color="black")
    axes.annotate(f"peak {peak:.0f} Gflop/s", (most, peak), ha="right", va="bottom")
    along = {"rotation": math.degrees(math.atan(bandwidth)), "rotation_mode": "anchor", "transform_rotates_text": True}
    axes.text(least, least * bandwidth, f"  memory {bandwidth:.0f} GB/s", va="bottom", **along)
    for step in dict.fromkeys(row["step"] for row in rows):
        some = [row for row in rows if row["step"] == step]
        axes.plot([row["flop/byte"] for row in some], [row["Gflop/s"] for row in some], "o-", label=step)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("products and sums for each byte of operands and results, flop/byte")
    axes.set_ylabel("Gflop/s, one thread")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
