"""How samples are written: one entry for each thing that a family can make.

`report` shows the same things on the page of a run.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from scratchgen.models.family import Plane
from scratchgen.training import pictures


class Medium(NamedTuple):
    """What a sample is, as a family's `makes` names it."""

    suffix: str  # of a file of samples
    file: Callable[[Any], bytes]  # samples → the content of such a file
    finite: Callable[[Any], bool]  # false for samples of a model whose layers overflow
    printed: Callable[[Any], str] | None = None  # samples → what is printed of them; None: they are written to a file
    others: Mapping[str, Callable[[Any], bytes]] = MappingProxyType({})  # suffixes of other files of samples → their content
    # (steps and their files of samples, samples like those in the files) → the content of a film strip; None: there is none
    film: Callable[[Sequence[tuple[int, Path]], Any], bytes] | None = None


def _columns(x: np.ndarray) -> int:
    return math.ceil(math.sqrt(len(x)))


def _sheet(x: np.ndarray) -> bytes:
    return pictures.png(pictures.grid(x, _columns(x)))


def _film(kept: Sequence[tuple[int, Path]], x: np.ndarray, most: int = 10) -> bytes:
    """The first pictures of each file, one row a file."""
    from PIL import Image

    rows = []
    for step, path in kept:
        sheet = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
        rows.append((step, pictures.cut(sheet, _columns(x), x.shape[2:])[: min(most, len(x))]))
    return pictures.png(pictures.film(rows))


def _strip(kept: Sequence[tuple[int, Path]], plane: Plane, most: int = 6) -> bytes:
    """The picture in each file, or in some of them that are evenly spread, side by side."""
    from PIL import Image

    chosen = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]
    opened = [(step, Image.open(io.BytesIO(path.read_bytes())).convert("RGB")) for step, path in chosen]
    return pictures.strip([(f"step {step:,}", np.asarray(picture)) for step, picture in opened])


def _joined(texts: Sequence[str]) -> str:
    return f"\n{'─' * 40}\n".join(texts) + "\n"


def _archive(plane: Plane) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=plane.x)
    return file.getvalue()


def _lines(plane: Plane) -> bytes:
    return "".join(["x,y\n", *(f"{x:.9g},{y:.9g}\n" for x, y in plane.x)]).encode()  # nine digits tell every float32 apart


MEDIA = {
    "pictures": Medium(".png", _sheet, lambda x: bool(np.isfinite(x).all()), film=_film),
    "points": Medium(
        ".png",
        pictures.plane,
        lambda plane: bool(np.isfinite(plane.x).all()),
        others={".npz": _archive, ".csv": _lines},
        film=_strip,
    ),
    "text": Medium(".txt", lambda texts: _joined(texts).encode("utf-8", "replace"), lambda texts: True, _joined),
}
