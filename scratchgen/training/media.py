"""How samples are written: one entry for each thing that a family can make.

`report` shows the same things on the page of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchgen.training import pictures


class Medium(NamedTuple):
    """What a sample is, as a family's `makes` names it."""

    suffix: str  # of a file of samples
    file: Callable[[Any], bytes]  # samples → the content of such a file
    finite: Callable[[Any], bool]  # false for samples of a model whose layers overflow
    printed: Callable[[Any], str] | None = None  # samples → what is printed of them; None: they are written to a file


def _sheet(x: np.ndarray) -> bytes:
    return pictures.png(pictures.grid(x, math.ceil(math.sqrt(len(x)))))


def _joined(texts: Sequence[str]) -> str:
    return f"\n{'─' * 40}\n".join(texts) + "\n"


MEDIA = {
    "pictures": Medium(".png", _sheet, lambda x: bool(np.isfinite(x).all())),
    "text": Medium(".txt", lambda texts: _joined(texts).encode("utf-8", "replace"), lambda texts: True, _joined),
}
