"""Arrays as pictures: grids of images, and curves of metrics."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scratchgen.models.family import Line, Panel


def grid(x: np.ndarray, columns: int, *, scale: int | None = None, gap: int = 1) -> np.ndarray:
    """Images side by side, row by row.     (N, C, H, W) in [0, 1] → uint8 (h, w) if grey, else (h, w, 3)

    Each pixel becomes scale × scale pixels: without `scale`, as many as make an image about 48 pixels high, so that an
    8×8 digit can be seen. Between the images lie `gap` pixels of 0, scaled too. Of other than 1 or 3 channels, the first
    3, or the first, are shown.
    """
    x = np.asarray(x)
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1]
    n, c, h, w = x.shape
    rows, scale = -(-n // columns), scale or _scale(h, w)
    sheet = np.zeros((rows * (h + gap) + gap, columns * (w + gap) + gap, c), np.uint8)
    for i, image in enumerate(x):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = np.rint(np.clip(image, 0, 1) * 255).transpose(1, 2, 0)
    sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    return sheet if c == 3 else sheet[:, :, 0]


def _scale(h: int, w: int) -> int:
    return max(1, round(48 / max(h, w)))


def cut(sheet: np.ndarray, columns: int, shape: tuple[int, int], *, gap: int = 1) -> np.ndarray:
    """The images of a sheet that `grid` made, enlarged as it does without `scale`: its inverse, but for the rounding.

    shape: height and width of an image;  uint8 (h, w) or (h, w, 3) → (N, 1 or 3, *shape) in [0, 1], N a multiple of columns
    """
    h, w = shape
    small = sheet[:: _scale(h, w), :: _scale(h, w)][gap:, gap:]
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


def curves(panels: Sequence[Panel], rows: list[dict[str, Any]]) -> bytes:
    """The panels of a family (at least one), drawn from the rows of `metrics.jsonl`, as the bytes of a PNG file.

    In Matplotlib's own style, whatever the user's settings are: equal runs leave equal files, and no LaTeX is needed.
    """
    from matplotlib import rc_context, rcParamsDefault

    with rc_context({key: value for key, value in rcParamsDefault.items() if key != "backend"}):
        return _curves(panels, rows)


def _curves(panels: Sequence[Panel], rows: list[dict[str, Any]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.4), dpi=110)
    canvas = FigureCanvasAgg(figure)
    margins = {"left": 0.32 / len(panels) ** 0.5 / 2.6, "right": 0.985, "bottom": 0.14, "top": 0.9, "wspace": 0.2}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False, gridspec_kw=margins)[0], panels, strict=True):
        for line in panel.lines:
            axes.plot(*points(rows, line), label=line.label, linewidth=1.2, marker="o" if line.held_out else None, markersize=4)
        if panel.level:
            axes.axhline(panel.level[0], color="0.6", linewidth=0.8, linestyle="--", label=panel.level[1])
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return png(np.asarray(canvas.buffer_rgba())[:, :, :3], colours=32)
