"""Points of the plane: the data set of them, and toy distributions whose modes are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchgen.data.checks import DataError, kind, require_natural
from scratchgen.data.dataset import Batch, Dataset, spread
from scratchgen.data.images import batches


@dataclass(frozen=True, eq=False)
class Points(Dataset):
    """Points of the plane, with the modes of their distribution where these are known.

    x: float32 (N, 2), finite;  centres: float32 (K, 2), the modes, of standard deviation sigma each, or None.

    Raises DataError where the arrays are anything else.
    """

    x: np.ndarray
    centres: np.ndarray | None = None
    sigma: float = 0.0
    name: str = "points"

    def __post_init__(self) -> None:
        for what, x in (("x", self.x), ("centres", self.centres)):
            if x is None and what == "centres":
                continue
            if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != 2 or not len(x):
                raise DataError(f"{self.name}: {what} must be a float32 array of shape (N, 2) with N ≥ 1, got {kind(x)}.")
            if not np.isfinite(x).all():
                row = int(np.argmin(np.isfinite(x).all(axis=1)))
                raise DataError(f"{self.name}: expected finite points, got NaN or infinity, first in row {row} of {what}.")
        if self.centres is not None and not self.sigma > 0:
            raise DataError(f"{self.name}: sigma must be positive where the modes are known, got {self.sigma!r}.")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        modes = "" if self.centres is None else f", {len(self.centres)} modes"
        return f"Points(name={self.name!r}, {len(self):,} points of the plane{modes})"

    @property
    def about(self) -> str:
        return f"{len(self):,} points of the plane"

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        return batches(self.x, batch_size, seed=seed, start=start)

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = spread(len(self), limit and limit * batch_size)
        for i in range(0, len(rows), batch_size):
            yield self.x[rows[i : i + batch_size]], None

    def contents(self) -> Iterable[np.ndarray]:
        return [self.x]

    def metadata(self) -> dict[str, Any]:
        """The square around all points, and the modes: what a picture of samples is drawn on."""
        low, high = self.x.min(axis=0).astype(float), self.x.max(axis=0).astype(float)
        middle, half = (low + high) / 2, max((high - low).max() / 2, 1e-9) * 1.1
        modes = None if self.centres is None else self.centres.tolist()
        return {"square": [*middle.tolist(), float(half)], "centres": modes, "sigma": float(self.sigma)}


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures of Gaussians
# ---------------------------------------------------------------------------------------------------------------------


def mixture_modes(name: str) -> tuple[np.ndarray, float]:
    """Centres μ: float32 (K, 2) and the standard deviation σ of a toy mixture of Gaussians in the plane.

        "ring-8"    μ_k = 2 (cos 2πk/8, sin 2πk/8),  k < 8,   σ = 0.02     Metz et al. 2017, Unrolled GANs
        "grid-25"   μ   = {−4, −2, 0, 2, 4}²,                 σ = 0.05     Lin et al. 2018, PacGAN

    Raises DataError for another name.
    """
    if name == "ring-8":
        angle = 2 * np.pi * np.arange(8) / 8
        return 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32), 0.02
    if name == "grid-25":
        side = np.arange(-4, 5, 2, dtype=np.float32)
        return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2), 0.05
    raise DataError(f"mixture: expected 'ring-8' or 'grid-25', got {name!r}.")


def mixture(name: str, n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n points of a toy mixture, and the mode each came from.

        k ~ uniform on 0 … K − 1,   x = μ_k + σ ε,   ε ~ N(0, I)

    x: float32 (n, 2);  k: int64 (n,);  μ and σ from `mixture_modes(name)`.
    """
    centres, sigma = mixture_modes(name)
    require_natural("n", n, 0)
    require_natural("seed", seed, 0)
    rng = np.random.default_rng(seed)
    mode = rng.integers(0, len(centres), size=n)
    return (centres[mode] + sigma * rng.standard_normal((n, 2))).astype(np.float32), mode
