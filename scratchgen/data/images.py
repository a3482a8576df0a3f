"""Pictures as arrays: the data set of them, and what their pixels and labels must be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen.data.checks import DataError, kind
from scratchgen.data.dataset import Batch, Dataset, shuffled, spread


@dataclass(frozen=True, eq=False)
class Images(Dataset):
    """Pictures, with class labels or without.

    x: float32 (N, C, H, W) in [0, 1];  y: int64 (N,) in [0, len(classes)), or None;  classes: the name of each label.

    Raises DataError where the arrays are anything else, NaN included.
    """

    x: np.ndarray
    y: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    name: str = "images"

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 4:
            raise DataError(f"{self.name}: x must be a float32 array of shape (N, C, H, W), got {kind(x)}.")
        if 0 in x.shape:
            raise DataError(f"{self.name}: x is empty; expected at least one image and one pixel, got shape {x.shape}.")
        require_pixels(x, self.name)
        if y is None:
            return
        if not isinstance(y, np.ndarray) or y.dtype != np.int64 or y.shape != x.shape[:1]:
            raise DataError(f"{self.name}: y must be an int64 array of shape {x.shape[:1]}, got {kind(y)}.")
        if y.min() < 0 or y.max() >= len(self.classes):
            raise DataError(
                f"{self.name}: expected labels in [0, {len(self.classes)}), the number of class names, "
                f"got values from {y.min()} to {y.max()}."
            )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        classes = "" if self.y is None else f", {len(self.classes)} classes"
        return f"Images(name={self.name!r}, {len(self):,} pictures of shape {self.shape}{classes})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.x.shape[1:]

    @property
    def about(self) -> str:
        return f"{len(self):,} images of {'×'.join(map(str, self.shape))}"

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches (x, y) drawn without replacement within an epoch, as by `data.batches`."""
        return batches(self, batch_size, seed=seed, start=start)

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = spread(len(self), limit and limit * batch_size)
        for i in range(0, len(rows), batch_size):
            chosen = rows[i : i + batch_size]
            yield self.x[chosen], None if self.y is None else self.y[chosen]

    def contents(self) -> Iterable[np.ndarray]:
        return [np.array(self.shape), self.x, *([] if self.y is None else [self.y])]

    def metadata(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}


def batches(data: Images | np.ndarray, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
    """An endless run of shuffled batches (x, y), beginning with batch number `start`.

    data: Images, or any array of rows (then y is None);  x: (B, …), y: (B,) or None, both copies. Which rows a batch has, and
    what is refused, is told by `dataset.shuffled`; all is refused at the call, not at the first batch.
    """
    x, y = (data.x, data.y) if isinstance(data, Images) else (np.asarray(data), None)
    if x.ndim == 0:
        raise DataError("batches: expected Images or an array with rows, got a single number.")
    chosen = shuffled(len(x), batch_size, seed=seed, start=start)
    return ((x[rows], None if y is None else y[rows]) for rows in chosen)


def pixels(x: np.ndarray, name: object) -> np.ndarray:
    """(N, H, W) or (N, C, H, W), uint8 or floats → float32 (N, C, H, W)."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(f"{name}: expected pixels as uint8 in 0..255 or as floats in [0, 1], got {kind(x)}.")
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise DataError(
            f"{name}: expected shape (N, C, H, W), got {x.shape}, whose channels come last; x.transpose(0, 3, 1, 2) moves them."
        )
    if x.ndim not in (3, 4):
        raise DataError(f"{name}: expected shape (N, C, H, W) or (N, H, W), got {x.shape}.")
    x = x[:, None] if x.ndim == 3 else x
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    with np.errstate(over="ignore", under="ignore"):  # a value too large for float32 becomes infinite, which is refused later
        return x.astype(np.float32)


def require_pixels(x: np.ndarray, name: object) -> None:
    """Raises DataError, with the index of the first bad image, where a pixel of x (N, …) is not in [0, 1]."""
    with np.errstate(invalid="ignore"):
        bad = ~((x >= 0) & (x <= 1)).all(axis=tuple(range(1, x.ndim)))  # false for NaN too
    if bad.any():
        first = int(np.argmax(bad))
        low, high = x[first].min(), x[first].max()
        found = f"values from {low:g} to {high:g}" if np.isfinite(x[first]).all() else "NaN or infinity"
        raise DataError(f"{name}: expected finite pixels in [0, 1], got {found}, first in image {first}.")


def deal(n: int, split: str, seed: int, name: object) -> np.ndarray:
    """The rows of a split, ascending: a permutation of range(n) from `seed`, its last fifth for the test."""
    order = np.random.default_rng(seed).permutation(n)
    rows = np.sort(order[n - n // 5 :] if split == "test" else order[: n - n // 5])
    if not len(rows):
        raise DataError(f"{name}: expected at least {5 if split == 'test' else 1} images for a {split} split, got {n}.")
    return rows
