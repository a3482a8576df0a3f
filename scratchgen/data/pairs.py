"""Pairs of pictures, a and b: what a model of image-to-image translation learns from.

They are made of pictures that there are (edges, outlines), or read from a folder of the user's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.data import files
from scratchgen.data.checks import DataError, kind
from scratchgen.data.dataset import Batch, Dataset, shuffled, spread
from scratchgen.data.images import Images, deal, require_pixels
from scratchgen.data.shapes import Shapes


@dataclass(frozen=True, eq=False)
class Pairs(Dataset):
    """Pictures, and what each is to become.

    a: float32 (N, C_a, H, W), b: float32 (N, C_b, H, W), both in [0, 1];  a batch: rows of (a, b).
    y, classes: of the pictures b, as of `Images`, where these have any; no model is told them, scores are.
    `kept`: further pairs, as arrays like a and b, that a checkpoint keeps so that samples can be drawn without the data.
    Raises DataError where the arrays are anything else, or not equally many, or of other heights or widths.
    """

    a: np.ndarray
    b: np.ndarray
    y: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    name: str = "pairs"
    kept: tuple[np.ndarray, np.ndarray] | None = None

    def __post_init__(self) -> None:
        for side, x in (("a", self.a), ("b", self.b)):
            if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 4 or 0 in x.shape:
                raise DataError(f"{self.name}: {side} must be a float32 array of shape (N, C, H, W), got {kind(x)}.")
            require_pixels(x, f"{self.name}: {side}")
        if len(self.a) != len(self.b) or self.a.shape[2:] != self.b.shape[2:]:
            raise DataError(
                f"{self.name}: expected as many b as a, of the same height and width, got {self.a.shape} and {self.b.shape}."
            )

    def __len__(self) -> int:
        return len(self.a)

    def __repr__(self) -> str:
        return f"Pairs(name={self.name!r}, {len(self):,} pairs of shapes {self.a.shape[1:]} and {self.b.shape[1:]})"

    @property
    def about(self) -> str:
        a, b = ("×".join(map(str, x.shape[1:])) for x in (self.a, self.b))
        return f"{len(self):,} pairs of images, {a} to {b}"

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        return ((self.a[rows], self.b[rows]) for rows in shuffled(len(self), batch_size, seed=seed, start=start))

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = spread(len(self), limit and limit * batch_size)
        for i in range(0, len(rows), batch_size):
            yield self.a[rows[i : i + batch_size]], self.b[rows[i : i + batch_size]]

    def contents(self) -> Iterable[np.ndarray]:
        return [np.array(self.a.shape), self.a, np.array(self.b.shape), self.b, *([] if self.y is None else [self.y])]

    def metadata(self) -> dict[str, Any]:
        return {} if self.kept is None else {"a": self.kept[0], "b": self.kept[1]}

    def images(self) -> Images:
        """The pictures b alone, with their classes."""
        return Images(self.b, self.y, self.classes, self.name)

    def reversed(self) -> Pairs:
        """The pairs (b, a)."""
        return replace(self, a=self.b, b=self.a, kept=self.kept and self.kept[::-1])


# ---------------------------------------------------------------------------------------------------------------------
# Edges
# ---------------------------------------------------------------------------------------------------------------------

EDGE = 0.3  # a pixel is an edge where Sobel's slope exceeds this share of that of a step from black to white


def sobel(x: np.ndarray) -> np.ndarray:
    r"""How steep a picture is at each pixel: 1 beside a step from 0 to 1 that runs along an axis, at most √2.

        s = √(s_x² + s_y²),   s_x = ¼ [1 2 1]ᵀ [−1 0 1] ∗ x,   s_y = ¼ [−1 0 1]ᵀ [1 2 1] ∗ x

    Beyond the border stand the pixels of the border.   x: (…, H, W) → the same, in units of x.
    Source: Sobel & Feldman 1968.
    """
    h, w = x.shape[-2:]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    rise = padded[..., :, 2:] - padded[..., :, :-2]  # (…, H + 2, W): along the width
    s_x = rise[..., :h, :] + 2 * rise[..., 1:-1, :] + rise[..., 2:, :]
    rise = padded[..., 2:, :] - padded[..., :-2, :]  # (…, H, W + 2): along the height
    s_y = rise[..., :, :w] + 2 * rise[..., :, 1:-1] + rise[..., :, 2:]
    return np.hypot(s_x, s_y) / 4


def edges(x: np.ndarray) -> np.ndarray:
    """1 where a picture is steeper than `EDGE`, else 0: a drawing in white on black.     (N, C, H, W) → (N, 1, H, W)

    Of a picture in colour, an edge is one of the mean over its channels.
    """
    return np.concatenate(
        [(sobel(x[i : i + 4096].mean(1, keepdims=True)) > EDGE).astype(x.dtype) for i in range(0, len(x), 4096)]
    )


def of_edges(images: Images, name: str) -> Pairs:
    """The edges of each picture, and the picture."""
    return Pairs(edges(images.x), images.x, images.y, images.classes, name)


def of_outlines(shapes: Shapes, name: str) -> Pairs:
    """The outline of each shape, in its colour on black paper or on white, and the picture.

    The paper is black where the ground is dark, and tells no more of it: neither how dark, nor its tint, nor how it is lit.
    """
    paper = (shapes.scenes.ground.mean(1) > 0.5)[:, None, None, None].astype(np.float32)  # (N, 1, 1, 1)
    ink = shapes.scenes.rgb[:, 0, :, None, None].astype(np.float32)  # (N, 3, 1, 1)
    return Pairs(paper + shapes.outlines() * (ink - paper), shapes.x, name=name)


# ---------------------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------------------

_SIDES = {"a": "a", "input": "a", "source": "a", "b": "b", "output": "b", "target": "b"}  # names of sub-folders → the side


def load_pairs(folder: Path, split: str, seed: int, size: int | tuple[int, int] | None) -> Pairs:
    """A split of the pairs in a folder: pictures A|B, a in the left half and b in the right, or sub-folders a and b.

    Of sub-folders, a picture's partner has its name, whatever the suffix. Parts (train, test) are kept as of other folders.
    Raises DataError where a picture has no partner or no middle, is damaged or of another size than the first.
    """
    folders, found = files.tree(folder)
    found = [f for f in found if f.suffix.lower() in files.SUFFIXES]
    if not found:
        raise DataError(f"{folder}: expected pairs of images, got no image.")
    parts, top = files.parts_of(folder, folders, found), folder
    if parts:
        found, top = [f.relative_to(parts[split]) for f in found if f.parts[0] == parts[split]], folder / parts[split]
        if not found:
            raise DataError(f"{top}: expected pairs of images, got no image.")
    sides = sorted({f.parts[0] for f in found if len(f.parts) > 1})
    name = folder.resolve().name
    if not sides:
        rows = range(len(found)) if parts else deal(len(found), split, seed, folder)
        x = files.read_pictures([top / found[row] for row in rows], size, halves=True)  # (N, C, H, 2W)
        a, b = np.split(x, 2, axis=3)
        return Pairs(np.ascontiguousarray(a), np.ascontiguousarray(b), name=name)
    if sorted(_SIDES.get(side.lower(), "") for side in sides) != ["a", "b"] or any(len(f.parts) == 1 for f in found):
        loose = " beside images" if any(len(f.parts) == 1 for f in found) else ""
        raise DataError(
            f"{top}: expected images that hold a and b side by side, or all images in two sub-folders, a and b (or input and "
            f"output, source and target), got {', '.join(sides)}{loose}."
        )
    partners = _partners(top, found, {_SIDES[side.lower()]: side for side in sides})
    rows = range(len(partners)) if parts else deal(len(partners), split, seed, folder)
    a, b = (files.read_pictures([top / partners[row][side] for row in rows], size) for side in (0, 1))
    if a.shape[2:] != b.shape[2:]:
        (h, w), (other_h, other_w) = a.shape[2:], b.shape[2:]
        raise DataError(
            f"{top}: expected a and b of one size, got {h}×{w} (height × width) in a and {other_h}×{other_w} in b; "
            f"size= resizes them all."
        )
    return Pairs(a, b, name=name)


def _partners(top: Path, found: list[Path], names: dict[str, str]) -> list[tuple[Path, Path]]:
    """The pictures of the sub-folders called names["a"] and names["b"] that are of one name, in the order of these."""
    by_name: dict[str, dict[Path, Path]] = {"a": {}, "b": {}}
    for side, name in names.items():
        for file in (f for f in found if f.parts[0] == name):
            key = Path(*file.parts[1:]).with_suffix("")
            if key in by_name[side]:
                raise DataError(f"{top / file}: expected one image of each name, got {by_name[side][key].name} too.")
            by_name[side][key] = file
    for side, other in (("a", "b"), ("b", "a")):
        alone = sorted(by_name[side].keys() - by_name[other].keys())
        if alone:
            raise DataError(
                f"{top / by_name[side][alone[0]]}: has no partner of the same name in {names[other]} "
                f"({len(alone)} of {len(by_name[side])} have none)."
            )
    return [(by_name["a"][key], by_name["b"][key]) for key in sorted(by_name["a"])]
