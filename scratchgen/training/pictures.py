"""Arrays as pictures: grids of images, curves of metrics, points and paths of the plane."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scratchgen.models.family import Line, Panel, Paths, Plane, lattice


def grid(x: np.ndarray, columns: int, *, scale: int | None = None, gap: int = 1) -> np.ndarray:
    """Images side by side, row by row.     (N, C, H, W) in [0, 1] → uint8 (h, w) if grey, else (h, w, 3)

    Each pixel becomes scale × scale pixels: without `scale`, as many as make an image about 48 pixels high, so that an
    8×8 digit can be seen. Between the images lie `gap` pixels of 0, scaled too. Of other than 1 or 3 channels, the first
    3, or the first, are shown.
    """
    x = np.asarray(x)
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1]
    n, c, h, w = x.shape
    rows, scale = -(-n // columns), scale or _scale(h)
    sheet = np.zeros((rows * (h + gap) + gap, columns * (w + gap) + gap, c), np.uint8)
    for i, image in enumerate(x):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = np.rint(np.clip(image, 0, 1) * 255).transpose(1, 2, 0)
    sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    return sheet if c == 3 else sheet[:, :, 0]


def _scale(h: int) -> int:
    return max(1, round(48 / h))


def cut(sheet: np.ndarray, columns: int, shape: tuple[int, int], *, gap: int = 1) -> np.ndarray:
    """The images of a sheet that `grid` made, enlarged as it does without `scale`: its inverse, but for the rounding.

    shape: height and width of an image;  uint8 (h, w) or (h, w, 3) → (N, 1 or 3, *shape) in [0, 1], N a multiple of columns
    """
    h, w = shape
    small = sheet[:: _scale(h), :: _scale(h)][gap:, gap:]
    parts = small.reshape(-1, h + gap, columns, w + gap, small.shape[2] if small.ndim == 3 else 1)[:, :h, :, :w]
    return parts.transpose(0, 2, 4, 1, 3).reshape(-1, parts.shape[-1], h, w) / 255  # from (rows, h, columns, w, C)


def film(rows: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """A film strip, downwards: a row of images for each step, which is printed before it.     images: (N, C, H, W), N alike"""
    from PIL import Image, ImageDraw, ImageFont

    images = np.concatenate([x for _, x in rows])
    sheet = grid(images, len(rows[0][1]))
    font = ImageFont.load_default(14)
    margin = 10 + math.ceil(max(font.getlength(f"{step:,}") for step, _ in rows))
    sheet = np.pad(sheet, ((0, 0), (margin, 0), (0, 0))[: sheet.ndim])
    picture = Image.fromarray(sheet)
    for i, (step, _) in enumerate(rows):
        middle = len(sheet) * (i + 0.5) / len(rows)
        ImageDraw.Draw(picture).text((margin - 5, middle), f"{step:,}", (170,) * sheet[0, 0].size, font, anchor="rm")
    return np.asarray(picture)


def png(sheet: np.ndarray, *, colours: int | None = None) -> bytes:
    """The bytes of a PNG file, all its colours kept or the best few.     uint8 (h, w) or (h, w, 3)"""
    from PIL import Image

    file = io.BytesIO()
    picture = Image.fromarray(sheet)
    (picture.quantize(colours) if colours else picture).save(file, "PNG", optimize=True)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


def points(rows: list[dict[str, Any]], line: Line, *, at_most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a line; of more than `at_most` points, the means of neighbours."""
    found = [(row["step"], line.sign * row[line.key]) for row in rows if math.isfinite(row.get(line.key, math.nan))]
    if not found:
        return np.zeros(0), np.zeros(0)
    width = -(-len(found) // at_most)
    whole = np.array(found[: len(found) // width * width], np.float64).reshape(-1, width, 2).mean(axis=1)
    return whole[:, 0], whole[:, 1]


def lines(panel: Panel, rows: list[dict[str, Any]]) -> list[tuple[Line, np.ndarray, np.ndarray]]:
    """The lines of a panel that tell something, with their steps and values: not one that is 0 throughout."""
    found = []
    for line in panel.lines:
        steps, values = points(rows, line)
        if panel.log:
            steps, values = steps[values > 0], values[values > 0]
        if values.any():
            found.append((line, steps, values))
    return found


def curves(panels: Sequence[Panel], rows: list[dict[str, Any]]) -> bytes:
    """The panels of a family (at least one), drawn from the rows of `metrics.jsonl`, as the bytes of a PNG file."""
    width = 5.2 * len(panels)
    margins = {"left": 0.75 / width, "right": 1 - 0.1 / width, "bottom": 0.13, "top": 0.83, "wspace": 0.18}
    return _drawn(len(panels), (width, 3.7), margins, lambda all_axes: _curves(panels, rows, all_axes))


def _drawn(
    panels: int, inches: tuple[float, float], margins: dict[str, float], draw: Callable[[Any], None], *, colours: int = 32
) -> bytes:
    """What `draw` draws on so many axes side by side, as the bytes of a PNG file.

    In Matplotlib's own style, whatever the user's settings are: equal runs leave equal files, and no LaTeX is needed.
    """
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({key: value for key, value in rcParamsDefault.items() if key != "backend"}):
        figure = Figure(figsize=inches, dpi=110)
        canvas = FigureCanvasAgg(figure)
        draw(figure.subplots(1, panels, squeeze=False, gridspec_kw=margins)[0])
        canvas.draw()
    return png(np.asarray(canvas.buffer_rgba())[:, :, :3], colours=colours)


def _curves(panels: Sequence[Panel], rows: list[dict[str, Any]], all_axes: Any) -> None:
    from matplotlib.ticker import LogFormatter

    for axes, panel in zip(all_axes, panels, strict=True):
        for line, steps, values in lines(panel, rows):
            axes.plot(steps, values, label=line.label, linewidth=1.2, marker="o" if line.held_out else None, markersize=4)
        if panel.level:
            axes.axhline(panel.level[0], color="0.6", linewidth=0.8, linestyle="--", label=panel.level[1])
        if panel.log and axes.lines:
            axes.set_yscale("log")
            axes.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())  # 0.4, not 4 × 10⁻¹
        axes.set_title(panel.title, fontsize=10, pad=24)
        axes.set_xlabel("step")
        if not axes.lines:  # all of the panel's lines are 0 throughout: of a model without a codebook, none is revived
            continue
        # over the axes, where it hides no line
        axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=4, columnspacing=1.2)
        axes.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------------------------------------------------------------
# The plane
# ---------------------------------------------------------------------------------------------------------------------

PAPER, INK, SOFT = "#fbfaf6", "#1d1c1a", "#6d6a63"
REAL, MADE = "#2b6a8f", "#b5452c"


def plane(shown: Plane, title: str = "") -> bytes:
    """Points that a model made over real ones and over a surface, with lines of equal height, as the bytes of a PNG file."""
    return planes([(title, shown)])


def planes(shown: Sequence[tuple[str, Plane]]) -> bytes:
    """The same side by side, each under its title."""
    n, top = len(shown), 0.3 * any(title for title, _ in shown) + 0.05
    inches = (4.0 * n, 4.0 + top + 0.3)
    margins = {"left": 0.01, "right": 0.99, "bottom": 0.3 / inches[1], "top": 1 - top / inches[1], "wspace": 0.03}

    def draw(all_axes: Any) -> None:
        all_axes[0].figure.set_facecolor(PAPER)
        for axes, (title, one) in zip(all_axes, shown, strict=True):
            _plane(axes, one)
            axes.set_title(title, fontsize=10, color=INK, pad=5)

    return _drawn(n, inches, margins, draw, colours=256)


def _frame(axes: Any, square: tuple[float, float, float]) -> tuple[float, float, float, float]:
    """Equal axes without ticks that show a square; returns its left, right, bottom and top."""
    x, y, half = square
    sides = (x - half, x + half, y - half, y + half)
    axes.set(xlim=sides[:2], ylim=sides[2:], xticks=(), yticks=(), aspect="equal")
    axes.set_facecolor("white")
    for spine in axes.spines.values():
        spine.set(color=SOFT, linewidth=0.5)
    return sides


def _plane(axes: Any, shown: Plane) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    sides = _frame(axes, shown.square)
    if shown.surface is not None:
        height = shown.surface.astype(np.float64)
        low, high = np.quantile(height, [0.02, 0.98])
        if high > low:
            colours = LinearSegmentedColormap.from_list("surface", ["#e4ded0", "#fdfcf9", "#d3e2ea"])
            axes.imshow(
                height, extent=sides, origin="lower", cmap=colours, vmin=low, vmax=high, interpolation="bilinear", zorder=0
            )
            across = np.linspace(*sides[:2], 2 * len(height) + 1)[1::2]  # the centres of the squares
            up = np.linspace(*sides[2:], 2 * len(height) + 1)[1::2]
            levels = np.linspace(low, high, 9)[1:-1]
            axes.contour(across, up, height, levels, colors=SOFT, linewidths=0.45, alpha=0.6, negative_linestyles="solid")
    if shown.arrows is not None:
        _arrows(axes, shown.arrows, shown.square)
    size = 2.5 if len(shown.x) > 500 else 8.0
    if shown.real is not None:  # larger, so that they are seen around samples that lie where they should
        axes.scatter(*shown.real.T, s=3 * size, color=REAL, alpha=0.35, linewidths=0, zorder=2)
    axes.scatter(*shown.x.T, s=size, color=MADE, alpha=0.7, linewidths=0, zorder=3)
    _legend(axes, [("data", REAL)] * (shown.real is not None) + [("samples", MADE)] * (len(shown.x) > 0))


def _arrows(axes: Any, field: np.ndarray, square: tuple[float, float, float]) -> None:
    """The directions of a field on the lattice, arrows of one length."""
    side = math.isqrt(len(field))
    at, length = lattice(square, side), np.hypot(*field.T)
    direction = field / np.where(length > 0, length, 1)[:, None]
    axes.quiver(*at.T, *direction.T, color="#c9c4b8", pivot="mid", angles="xy", scale=1.5 * side, width=0.004, headwidth=4)


def _legend(axes: Any, words: list[tuple[str, str]]) -> None:
    """Words in their colours, below the axes."""
    for i, (word, colour) in enumerate(words):
        axes.text(0.015 + 0.17 * i, -0.02, f"● {word}", transform=axes.transAxes, color=colour, fontsize=9, va="top")


def strip(shown: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """Pictures (H, W, 3) drawn already, side by side and smaller, each under its title, as the bytes of a PNG file."""
    n = len(shown)
    inches = (1.9 * n, 2.2)
    margins = {"left": 0.005, "right": 0.995, "bottom": 0.01, "top": 0.88, "wspace": 0.03}

    def draw(all_axes: Any) -> None:
        all_axes[0].figure.set_facecolor(PAPER)
        for axes, (title, picture) in zip(all_axes, shown, strict=True):
            axes.imshow(picture, interpolation="antialiased")
            axes.set_title(title, fontsize=9, color=INK, pad=4)
            axes.axis("off")

    return _drawn(n, inches, margins, draw, colours=128)


def paths(shown: Paths) -> bytes:
    """Paths in the plane, over the fields that they follow, side by side, as the bytes of a PNG file."""
    n = len(shown.paths)
    inches = (2.9 * n, 3.35)
    margins = {"left": 0.03, "right": 0.995, "bottom": 0.09, "top": 0.91, "wspace": 0.06}

    def draw(all_axes: Any) -> None:
        all_axes[0].figure.set_facecolor(PAPER)
        for axes, (title, path, field) in zip(all_axes, shown.paths, strict=True):
            _path(axes, path, field, shown.square)
            axes.set_title(title, fontsize=10, color=INK, pad=5)
            axes.set_xlabel(shown.axes[0], fontsize=9, color=SOFT)
        all_axes[0].set_ylabel(shown.axes[1], fontsize=9, color=SOFT)

    return _drawn(n, inches, margins, draw, colours=64)


def _path(axes: Any, path: np.ndarray, field: np.ndarray, square: tuple[float, float, float]) -> None:
    _frame(axes, square)
    _arrows(axes, field, square)
    axes.axhline(0, color=SOFT, linewidth=0.4)
    axes.axvline(0, color=SOFT, linewidth=0.4)
    axes.plot(*path.T, color=MADE, linewidth=1.1)
    axes.plot(*path[0], "o", color=INK, markersize=4)
    axes.plot(0, 0, "+", color=INK, markersize=9, markeredgewidth=1.2)
