"""Toy distributions in the plane: mixtures of Gaussians whose modes are known."""

from __future__ import annotations

import numpy as np

from scratchgen.data.checks import DataError, require_natural


def mixture_modes(name: str) -> tuple[np.ndarray, float]:
    """Centres μ: float32 (K, 2) and the standard deviation σ of a toy mixture of Gaussians in the plane.

        "ring"   μ_k = 2 (cos 2πk/8, sin 2πk/8),  k < 8,   σ = 0.02     Metz et al. 2017, Unrolled GANs
        "grid"   μ   = {−4, −2, 0, 2, 4}²,                 σ = 0.05     Lin et al. 2018, PacGAN

    Raises DataError for another name.
    """
    if name == "ring":
        angle = 2 * np.pi * np.arange(8) / 8
        return 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32), 0.02
    if name == "grid":
        side = np.arange(-4, 5, 2, dtype=np.float32)
        return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2), 0.05
    raise DataError(f"mixture: expected 'ring' or 'grid', got {name!r}.")


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
