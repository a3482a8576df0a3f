r"""Work in the space of codes: ways between two of them, differences of classes, axes, planes.

An autoencoder makes a picture x the point z = E(x), the mean of q(z | x), and a point a picture D(z). What is far too rich to
be described in pixels is often a straight step between points. Everything here is of points (…, d), without a model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


def line(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Points at equal distances on the straight line from a to b.     (…, d) twice → (…, steps, d)

    z(t) = (1 − t) a + t b

    Between two draws from N(0, I) in many dimensions the middle of the line is shorter than either end, by about √½, and so
    unlike any draw; between the codes of two pictures, which lie where they lie, nothing says so.
    """
    t = np.linspace(0, 1, steps, dtype=a.dtype)[:, None]  # (steps, 1)
    return (1 - t) * a[..., None, :] + t * b[..., None, :]


def arc(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Points on the great circle from a to b, whose length goes from that of a to that of b.     (…, d) twice → (…, steps, d)

    z(t) = [sin((1 − t) θ) a + sin(t θ) b] / sin θ,  θ the angle between a and b           the line, where a and b are parallel
    """
    t = np.linspace(0, 1, steps, dtype=a.dtype)[:, None]  # (steps, 1)
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.where(length > 0, length, 1)
    theta = np.arccos(np.clip(cosine, -1, 1)).astype(a.dtype)[..., None, None]  # (…, 1, 1)
    sine = np.sin(theta)
    straight = np.abs(sine) < 1e-4
    with np.errstate(divide="ignore", invalid="ignore"):
        round_ = (np.sin((1 - t) * theta) * a[..., None, :] + np.sin(t * theta) * b[..., None, :]) / sine
    return np.where(straight, line(a, b, steps), round_)


WAYS = {"linear": line, "spherical": arc}


def class_means(z: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """The mean code of each class.     (N, d), (N) → (classes, d), NaN for a class without a picture"""
    with np.errstate(invalid="ignore"):
        return np.stack([z[y == k].mean(0) if (y == k).any() else np.full(z.shape[1], np.nan) for k in range(classes)])


def analogy(z: np.ndarray, minus: np.ndarray, plus: np.ndarray, amount: float = 1.0) -> np.ndarray:
    """z + amount · (plus − minus): as `minus` is to `plus`, so is z to the result.     (…, d) all"""
    return z + amount * (plus - minus)


def traverse(z: np.ndarray, latent: int, values: np.ndarray) -> np.ndarray:
    """Copies of z with one number replaced by each of the values.     (d), (n) → (n, d)"""
    copies = np.repeat(z[None], len(values), axis=0)
    copies[:, latent] = values
    return copies


class Plane(NamedTuple):
    """A plane in the space of codes, (u, v) ↦ centre + u a + v b, and back by projection."""

    centre: np.ndarray  # (d)
    axes: np.ndarray  # a and b, of length 1, at a right angle: (2, d)

    def coordinates(self, z: np.ndarray) -> np.ndarray:
        """(…, d) → (…, 2)"""
        return (z - self.centre) @ self.axes.T

    def points(self, uv: np.ndarray) -> np.ndarray:
        """(…, 2) → (…, d)"""
        return self.centre + uv @ self.axes


def plane(z: np.ndarray) -> Plane:
    """The plane in which the codes z (N, d) are spread the most; for d = 2 the space itself, for d = 1 its only axis twice."""
    if z.shape[1] == 2:
        return Plane(np.zeros(2, z.dtype), np.eye(2, dtype=z.dtype))
    centre = z.mean(0)
    axes = np.linalg.svd(z - centre, full_matrices=False)[2][:2]
    if len(axes) < 2:
        axes = np.concatenate([axes, np.zeros((2 - len(axes), z.shape[1]), z.dtype)])
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])  # so that the same codes give the same plane
    return Plane(centre, (axes * np.where(signs == 0, 1, signs)[:, None]).astype(z.dtype))


def grid(uv: np.ndarray, side: int) -> np.ndarray:
    """Coordinates that are dense where the points uv (N, 2) are.     → (side, side, 2), v falling

    Along each axis the points' quantiles at (i + ½)/side, so that as many lie between any two neighbours.
    """
    u, v = np.quantile(uv, (np.arange(side) + 0.5) / side, axis=0).T
    v = v[::-1]
    return np.stack(np.meshgrid(u, v), axis=-1).astype(uv.dtype)
