"""Scores: how well a model predicts, how close its samples are to the data, and how varied they are.

Arrays in, numbers out, all in float64. Which features the distances are taken between is the caller's choice
(pixels, or a network's activations); scores are comparable only with the same features and the same number of samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = [
    "Coverage",
    "Estimate",
    "Modes",
    "Novelty",
    "active_units",
    "agreement",
    "auc",
    "bits_per_byte",
    "bits_per_dim",
    "class_divergence",
    "class_entropy",
    "distinct_ngrams",
    "diversity",
    "frechet_distance",
    "frechet_gaussians",
    "kernel_distance",
    "linear_probe",
    "mode_coverage",
    "nearest_distances",
    "novelty",
    "perplexity",
    "precision_recall",
    "spacing",
]


# ------------------------------------------------------------------------------------------------------- likelihood


def bits_per_dim(nll: np.ndarray | float, dims: int, *, levels: int = 1) -> np.ndarray | float:
    """Negative log-likelihood per example, in bits for each of its dimensions.

        bits/dim = nll / (D ln 2) + log₂ L

    nll: nats per example, any shape;  dims D: C·H·W;  result: the shape of nll.
    levels L: 1 for a discrete likelihood; for the density of a continuous x ∈ [0, 1] that stands for L grey levels,
    L (256), as each level is a bin 1/L wide.

    Raises ValueError: NaN, D < 1 or L < 1.  Source: Theis, van den Oord & Bethge 2016, §3.1.
    """
    nll = _numbers("nll", nll)
    _require_natural("dims", dims, 1)
    _require_natural("levels", levels, 1)
    return _plain(nll / (dims * np.log(2)) + np.log2(levels))


def bits_per_byte(nll: float, n_bytes: int) -> float:
    """Negative log-likelihood of a whole text, in bits for each byte of its UTF-8 form: comparable across tokenizers.

        bits/byte = nll / (n ln 2)

    nll: nats, summed over all tokens;  n_bytes n: len(text.encode()).   Raises ValueError: NaN, n < 1, not one number.
    """
    nll = _numbers("nll", nll)
    if nll.ndim:
        raise ValueError(f"nll: expected one number, the sum over the text, got shape {nll.shape}.")
    _require_natural("n_bytes", n_bytes, 1)
    return float(nll / (n_bytes * np.log(2)))


def perplexity(nll: np.ndarray | float) -> float:
    """The number of equally likely tokens that would be as hard to predict.

        PPL = exp( 1/n Σ_i nll_i )                             +inf where that exceeds the largest float

    nll: nats per token, any shape with at least one entry (or their mean).   Raises ValueError: NaN, no tokens.
    """
    nll = _numbers("nll", nll)
    if not nll.size:
        raise ValueError("nll: expected at least one token, got none.")
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp(nll.mean()))


# ------------------------------------------------------------------------------------------------- Fréchet distance


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance between the Gaussians fitted to two sets of features.

        d² = ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^{1/2})

    Computed without forming Σ or a matrix square root. With centred features A (n × d) and its QR factor R_a,
    Σ_a = S_aᵀ S_a where S_a = R_a / √(n − 1), and

        tr (Σ_a Σ_b)^{1/2} = ‖S_a S_bᵀ‖_*            (the sum of singular values)

    since Σ_a Σ_b = S_aᵀ (S_a S_bᵀ) S_b has the non-zero eigenvalues of M Mᵀ, M = S_a S_bᵀ. No negative eigenvalue can
    arise, so fewer samples than features are no trouble to the arithmetic (they still bias the estimate upwards).

    a: (n, d), b: (m, d), n and m ≥ 2;  result ≥ 0, in squared feature units.
    Raises ValueError: other shapes, NaN or infinity.
    Source: Dowson & Landau 1982; Heusel et al. 2017 (FID, there on Inception features), eq. 6.
    """
    a, b = _feature_pair("a", a, "b", b, least=2)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    root_a = np.linalg.qr(a - mean_a, mode="r") / np.sqrt(len(a) - 1)
    root_b = np.linalg.qr(b - mean_b, mode="r") / np.sqrt(len(b) - 1)
    return _frechet(mean_a - mean_b, root_a, root_b)


def frechet_gaussians(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """`frechet_distance` from means (d,) and covariances (d, d), for statistics that were saved without their samples.

    Each covariance is factored by its eigenvalues, Σ = U Λ Uᵀ = Sᵀ S with S = Λ^{1/2} Uᵀ.
    Raises ValueError: other shapes, NaN, or a covariance that is not symmetric and positive semi-definite to rounding.
    """
    roots, means = [], []
    for name, mean, cov in (("a", mean_a, cov_a), ("b", mean_b, cov_b)):
        mean, cov = _numbers(f"mean_{name}", mean), _numbers(f"cov_{name}", cov)
        if mean.ndim != 1 or cov.shape != (mean.size, mean.size) or mean.size == 0:
            raise ValueError(f"mean_{name}, cov_{name}: expected shapes (d,), (d, d), got {mean.shape}, {cov.shape}.")
        scale = np.abs(cov).max()
        if not np.isfinite(scale) or not np.isfinite(mean).all():
            raise ValueError(f"mean_{name}, cov_{name}: expected finite numbers, got an infinity.")
        if np.abs(cov - cov.T).max() > 1e-6 * scale:
            raise ValueError(f"cov_{name}: expected a symmetric matrix, got one that differs from its transpose.")
        eigenvalues, vectors = np.linalg.eigh((cov + cov.T) / 2)
        if eigenvalues[0] < -1e-6 * scale:
            raise ValueError(f"cov_{name}: expected no negative eigenvalue, got {eigenvalues[0]:g}.")
        means.append(mean)
        roots.append(np.sqrt(np.maximum(eigenvalues, 0))[:, None] * vectors.T)
    if means[0].shape != means[1].shape:
        raise ValueError(f"means: expected the same number of features, got {means[0].size} and {means[1].size}.")
    return _frechet(means[0] - means[1], *roots)


def _frechet(shift: np.ndarray, root_a: np.ndarray, root_b: np.ndarray) -> float:
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    d2 = shift @ shift + (root_a * root_a).sum() + (root_b * root_b).sum() - 2 * cross
    return max(float(d2), 0.0)  # for equal sets rounding leaves about ±1e-16 tr Σ


# --------------------------------------------------------------------------------------------------- kernel distance


class Estimate(NamedTuple):
    """A number found from samples, and its standard error."""

    value: float
    error: float


def kernel_distance(a: np.ndarray, b: np.ndarray, *, subset: int = 1000, seed: int = 0) -> Estimate:
    r"""Squared maximum mean discrepancy between two sets of features, without bias; the mean over pairs of subsets.

        k(x, y) = (xᵀy / d + 1)³
        MMD² = 1/(m (m − 1)) Σ_{i≠j} [k(a_i, a_j) + k(b_i, b_j)] − 2/m² Σ_{i,j} k(a_i, b_j)

    The expectation over samples is the distance itself whatever their number, where that of `frechet_distance` is larger the
    fewer there are. For equal distributions the value is about 0, and as often below as above. Both sets are shuffled and
    dealt into disjoint subsets of m = min(subset, n, …) rows, what is left over being dropped; the error is the standard
    deviation of their values over the root of their number, NaN where there is only one.

    a: (n, d), b: (m, d), n and m ≥ 2.   Raises ValueError: other shapes, NaN or infinity, subset < 2.
    Source: Bińkowski et al. 2018, arXiv:1801.01401, eq. 3 and §3 (KID, there on Inception features); Gretton et al. 2012.
    """
    a, b = _feature_pair("a", a, "b", b, least=2)
    _require_natural("subset", subset, 2)
    rng = np.random.default_rng(seed)
    a, b = a[rng.permutation(len(a))], b[rng.permutation(len(b))]
    m = min(subset, len(a), len(b))
    values = [_mmd2(a[i : i + m], b[i : i + m]) for i in range(0, min(len(a), len(b)) - m + 1, m)]
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Estimate(float(np.mean(values)), float(error))


def _mmd2(a: np.ndarray, b: np.ndarray) -> float:
    m, d = a.shape
    kernel = lambda x, y: (x @ y.T / d + 1) ** 3  # noqa: E731
    within = [(k.sum() - np.trace(k)) / (m * (m - 1)) for k in (kernel(a, a), kernel(b, b))]
    return float(sum(within) - 2 * kernel(a, b).mean())


# ---------------------------------------------------------------------------------------- nearest-neighbour coverage


class Coverage(NamedTuple):
    """What `precision_recall` returns: four numbers, 1 being good (density alone can exceed it)."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: np.ndarray, fake: np.ndarray, *, k: int = 3) -> Coverage:
    """Are the samples like the data, and is the data all covered? Judged by balls that reach the k-th neighbour.

    Let r_k(x) be the distance from x to its k-th nearest neighbour in its own set, itself left out; B(x) the closed
    ball of that radius.

        precision = 1/m Σ_j 1[f_j ∈ ∪_i B(r_i)]          samples f that lie on the data
        recall    = 1/n Σ_i 1[r_i ∈ ∪_j B(f_j)]          data r that lie on the samples
        density   = 1/(k m) Σ_j Σ_i 1[f_j ∈ B(r_i)]      precision, less moved by a single far-out r
        coverage  = 1/n Σ_i 1[∃ j: f_j ∈ B(r_i)]         data with a sample near by: sees a collapse of modes

    real: (n, d), fake: (m, d), both with more than k rows; Euclidean distance; n (n + m) time, blocks of memory.
    Raises ValueError: other shapes, NaN or infinity, k < 1.
    Source: Kynkäänniemi et al. 2019, eq. 1-2; Naeem et al. 2020, §3.
    """
    _require_natural("k", k, 1)
    real, fake = _feature_pair("real", real, "fake", fake, least=k + 1)
    radius_real, radius_fake = _neighbour_radius(real, k), _neighbour_radius(fake, k)
    on_real = np.zeros(len(fake), dtype=np.int64)  # in how many balls of the data each sample lies
    recalled = np.zeros(len(real), dtype=bool)
    covered = np.zeros(len(real), dtype=bool)
    for rows, distance in _distances(real, fake):
        inside = distance <= radius_real[rows, None]  # (rows of real, m)
        on_real += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (distance <= radius_fake).any(axis=1)
    return Coverage(
        precision=float((on_real > 0).mean()),
        recall=float(recalled.mean()),
        density=float(on_real.mean() / k),
        coverage=float(covered.mean()),
    )


def _neighbour_radius(x: np.ndarray, k: int) -> np.ndarray:
    # Each row's distance to itself is an exact 0 and sorts first, so index k is the k-th other point.
    return np.concatenate([np.partition(distance, k, axis=1)[:, k] for _, distance in _distances(x, x)])


def _distances(a: np.ndarray, b: np.ndarray, block: int = 1024):
    """(rows, distances of those rows of a to all of b), block by block: n × m numbers need not fit in memory."""
    from scipy.spatial.distance import cdist

    # cdist takes differences. a² + b² − 2ab would be faster, but cancels where points are close, and close ones count here.
    for i in range(0, len(a), block):
        yield slice(i, i + block), cdist(a[i : i + block], b)


# ------------------------------------------------------------------------------------------- nearest training picture


def nearest_distances(x: np.ndarray, to: np.ndarray) -> np.ndarray:
    r"""The Euclidean distance from each row of x to the nearest row of `to`: 0 for a copy.

        d_i = min_j ‖x_i − t_j‖,     the nearest being found by   ‖t_j‖² − 2 x_iᵀ t_j,   which a matrix product gives

    The product cancels where points are close, so the distance to the row that it found is then taken by differences.
    x: (n, d), to: (m, d) → (n,).   Raises ValueError: other shapes, NaN or infinity.
    """
    x, to = _feature_pair("x", x, "to", to, least=1)
    found, centre = np.empty(len(x)), to.mean(axis=0)
    to = to - centre  # far from the origin the squares would be large beside their differences
    squares = (to * to).sum(axis=1)
    for i in range(0, len(x), 256):
        rows = x[i : i + 256] - centre
        nearest = to[(squares - 2 * (rows @ to.T)).argmin(axis=1)]  # (256, d)
        found[i : i + 256] = np.sqrt(((rows - nearest) ** 2).sum(axis=1))
    return found


class Novelty(NamedTuple):
    """What `novelty` returns: of a perfect model 1 and 0.01, of one that only remembers 0 and 1."""

    distance: float
    copies: float


def novelty(fake: np.ndarray, real: np.ndarray) -> Novelty:
    """Are the samples new, or remembered? Judged by how far they are from what was learned, beside held-out data.

        distance = median of fake / median of real
        copies   = share of fake nearer than 99 % of real are: below the first percentile of real

    fake (m,), real (n,): `nearest_distances` of samples, and of held-out data, to the data that were learned from.
    Raises ValueError: other shapes, NaN, infinite or negative distances, none, or a median of real that is 0.
    """
    fake, real = (_features(name, np.asarray(d)[:, None], least=1) for name, d in (("fake", fake), ("real", real)))
    if min(fake.min(), real.min()) < 0:
        raise ValueError("fake, real: expected distances, got a negative number.")
    if not np.median(real) > 0:
        raise ValueError("real: half of the held-out data are copies of the data learned from, so nothing tells what is new.")
    return Novelty(float(np.median(fake) / np.median(real)), float((fake < np.quantile(real, 0.01)).mean()))


# ---------------------------------------------------------------------------------------------------------- classes


def class_entropy(counts: np.ndarray) -> float:
    """How evenly samples are spread over K classes: 1 when each is as frequent, 0 when all are of one.

        H(p) / log K,    H(p) = −Σ_k p_k log p_k,    p = counts / Σ counts

    counts: (K,), K ≥ 2.   Raises ValueError: other shapes, negative numbers, no sample.
    """
    p = _shares("counts", counts)
    seen = p[p > 0]
    return float(max(0.0, -(seen * np.log(seen)).sum() / np.log(len(p))))


def class_divergence(fake: np.ndarray, real: np.ndarray) -> float:
    """How far the classes of samples are from those of the data, in nats: the reverse divergence, KL(fake ‖ real).

        Σ_k p_k log(p_k / q_k),    p = fake / Σ fake,   q = real / Σ real             +inf where q_k = 0 < p_k

    A class that samples lack leaves it finite: without half of the data it is log 2.
    fake, real: counts (K,), K ≥ 2.   Raises ValueError: other shapes, negative numbers, no sample.
    """
    p, q = _shares("fake", fake), _shares("real", real)
    if len(p) != len(q):
        raise ValueError(f"fake, real: expected equally many classes, got {len(p)} and {len(q)}.")
    seen = p > 0
    if (q[seen] == 0).any():
        return np.inf
    return float(max(0.0, (p[seen] * np.log(p[seen] / q[seen])).sum()))


def agreement(asked: np.ndarray, read: np.ndarray, classes: int) -> np.ndarray:
    """Of the samples asked to be of each class, the share that a classifier reads as such; NaN for a class not asked for.

    asked, read: integers (n,) from 0 to below `classes`;  result: (classes,).   Raises ValueError for anything else.
    """
    _require_natural("classes", classes, 1)
    asked, read = np.asarray(asked), np.asarray(read)
    for name, y in (("asked", asked), ("read", read)):
        if (
            y.dtype.kind not in "iu"
            or y.ndim != 1
            or len(y) != len(asked)
            or not len(y)
            or not 0 <= y.min() <= y.max() < classes
        ):
            raise ValueError(f"{name}: expected integers (n,) from 0 to below {classes}, got {y.dtype} {y.shape}.")
    right, all_ = np.bincount(asked[asked == read], minlength=classes), np.bincount(asked, minlength=classes)
    return np.divide(right, all_, out=np.full(classes, np.nan), where=all_ > 0)


class Interval(NamedTuple):
    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, z: float = 1.959964) -> Interval:
    r"""What a probability is likely to be, of which so many trials succeeded: Wilson's interval, by default of 95 %.

    The p with |p̂ − p| ≤ z √(p (1 − p) / n), p̂ = successes / n: between the roots of a quadratic. It stays within 0 and 1, and
    is no point where all trials or none succeed.   Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.
    """
    _require_natural("trials", trials, 1)
    if not 0 <= successes <= trials:
        raise ValueError(f"wilson_interval: expected from 0 to {trials} successes, got {successes}")
    share, n = successes / trials, trials
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + side) / (1 + z * z / n) for side in (-half, half))
    return Interval(max(0.0, low), min(1.0, high))


def _shares(name: str, counts: np.ndarray) -> np.ndarray:
    counts = _numbers(name, counts)
    if counts.ndim != 1 or len(counts) < 2 or not np.isfinite(counts).all() or counts.min() < 0 or not counts.sum() > 0:
        raise ValueError(f"{name}: expected counts (K,) of K ≥ 2 classes, none negative and not all 0, got {counts.tolist()}.")
    return counts / counts.sum()


# ---------------------------------------------------------------------------------------------------------- variety


def diversity(x: np.ndarray) -> float:
    """The mean Euclidean distance between two different members of a set: 0 when all are the same.

        1/(n (n − 1)) Σ_{i ≠ j} ‖x_i − x_j‖

    x: (n, d), n ≥ 2; in feature units.   Raises ValueError: other shapes, NaN or infinity.
    """
    x = _features("x", x, least=2)
    return float(sum(distance.sum() for _, distance in _distances(x, x)) / (len(x) * (len(x) - 1)))


def spacing(x: np.ndarray) -> float:
    """The mean distance from a member of a set to the nearest other one: 0 when each has a double.

        1/n Σ_i min_{j ≠ i} ‖x_i − x_j‖

    Where `diversity` is that of a wide set, since a few points lie far apart, this tells whether they are few. It falls as n
    grows, so only sets of equal size are compared.
    x: (n, d), n ≥ 2; in feature units.   Raises ValueError: other shapes, NaN or infinity.
    """
    return float(_neighbour_radius(_features("x", x, least=2), 1).mean())


def distinct_ngrams(tokens: np.ndarray, n: int) -> float:
    """The share of n-grams that are not repeats of another: low for a text that goes round in circles.

        distinct-n = |set of n-grams| / number of n-grams

    tokens: integers (length,) or (batch, length), n-grams never crossing a row.
    Raises ValueError: no n-gram, or not integers.   Source: Li et al. 2016.
    """
    tokens = np.atleast_2d(np.asarray(tokens))
    _require_natural("n", n, 1)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape[0] == 0 or tokens.shape[1] < n:
        raise ValueError(
            f"tokens: expected integers (length,) or (batch, length) with length ≥ n = {n}, got {tokens.dtype} {tokens.shape}."
        )
    grams = np.lib.stride_tricks.sliding_window_view(tokens, n, axis=1).reshape(-1, n)
    return len(np.unique(grams, axis=0)) / len(grams)


class Modes(NamedTuple):
    """What `mode_coverage` finds of K modes."""

    hit: int  # modes with at least one point near by
    found: int  # modes with at least a quarter of their share of the points near by
    near: float  # share of the points that lie near a mode
    reverse_kl: float  # of the points' distribution over the modes from the uniform one, in nats


def mode_coverage(points: np.ndarray, centres: np.ndarray, *, radius: float) -> Modes:
    """For a mixture of K equal modes: how many of them a set of points covers, how closely, and how evenly.

        k_j = argmin_k ‖x_j − μ_k‖,   near_j = ‖x_j − μ_{k_j}‖ ≤ radius,   c_k = Σ_j [k_j = k and near_j]
        hit = |{k: c_k ≥ 1}|,   found = |{k: c_k ≥ n/(4 K)}|,   near = 1/n Σ_k c_k
        reverse KL = Σ_k q_k log (q_k K),   q_k = 1/n Σ_j [k_j = k]

    One point makes a hit, by which the count of hits grows with n and a spray of points has them all; so `found` asks for a
    quarter of a mode's share. The reverse KL counts all points, each for the mode nearest to it.
    points: (n, d), centres: (K, d), radius usually 3σ.   Raises ValueError: other shapes, NaN or infinity, radius ≤ 0.
    Source: hits and near points Srivastava et al. 2017 (VEEGAN), arXiv:1705.07761; reverse KL Lin et al. 2018 (PacGAN),
    arXiv:1712.04086.
    """
    points, centres = _feature_pair("points", points, "centres", centres, least=1)
    if not radius > 0:
        raise ValueError(f"radius: expected a positive number, got {radius!r}.")
    n, k = len(points), len(centres)
    of_all, of_near = np.zeros(k), np.zeros(k)
    for _, distance in _distances(points, centres):
        nearest, near = distance.argmin(axis=1), distance.min(axis=1) <= radius
        of_all += np.bincount(nearest, minlength=k)
        of_near += np.bincount(nearest[near], minlength=k)
    q = of_all[of_all > 0] / n
    return Modes(
        hit=int((of_near > 0).sum()),
        found=int((of_near >= n / (4 * k)).sum()),
        near=float(of_near.sum() / n),
        reverse_kl=float((q * np.log(q * k)).sum()),
    )


# ----------------------------------------------------------------------------------------------------------- latents


def active_units(means: np.ndarray, *, threshold: float = 0.01) -> int:
    """How many latents tell inputs apart: those of which the mean, given an input, varies over the inputs.

        #{j: Var_x(E[z_j | x]) > threshold}

    means: (n, d), E[z | x] of n inputs, not samples of z, whose noise would count.
    Raises ValueError: other shapes, NaN or infinity.   Source: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, §2.
    """
    return int((_features("means", means, least=1).var(axis=0) > threshold).sum())


def linear_probe(features: np.ndarray, classes: np.ndarray, held_out: np.ndarray, its_classes: np.ndarray) -> float:
    """The share of held-out features whose class a linear classifier finds that learned from the others: what they tell of it.

        min over W, b of  −1/n Σ_i log softmax(W f_i + b)_{y_i} + 10⁻⁴/2 ‖W‖²,  features standardised

    Logistic regression, convex, so that no seed and no learning rate has a say; by L-BFGS.
    features: (n, d), classes: (n) integers; held_out: (m, d), its_classes: (m);  result: 0 … 1.
    Raises ValueError: other shapes, NaN or infinity, classes that are no integers.
    """
    from scipy.optimize import minimize

    x, t = _feature_pair("features", features, "held_out", held_out, least=1)
    for name, y, of in (("classes", classes, x), ("its_classes", its_classes, t)):
        if np.asarray(y).dtype.kind not in "iu" or np.shape(y) != (len(of),):
            raise ValueError(f"{name}: expected {len(of)} integers, got {np.asarray(y).dtype} of shape {np.shape(y)}.")
    known, y = np.unique(classes, return_inverse=True)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-12
    x, t = ((np.hstack([(f - mean) / scale, np.ones((len(f), 1))])) for f in (x, t))  # the last column is b's
    target, size = np.eye(len(known))[y], (x.shape[1], len(known))

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        w = w.reshape(size)
        logits = x @ w
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        kept = w * (np.arange(len(w)) < len(w) - 1)[:, None]  # b is free
        slope = x.T @ (np.exp(log_p) - target) / len(x) + 1e-4 * kept
        return float(-(log_p * target).sum() / len(x) + 0.5e-4 * (kept * kept).sum()), slope.ravel()

    with np.errstate(under="ignore"):
        w = minimize(loss, np.zeros(math.prod(size)), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return float((known[(t @ w.reshape(size)).argmax(axis=1)] == its_classes).mean())


# ---------------------------------------------------------------------------------------------------------- judgement


def auc(a: np.ndarray, b: np.ndarray) -> float:
    """How often a judgement of one kind is above one of the other: ½ where the judge can tell nothing, 1 where it always can.

        P(a_i > b_j) + ½ P(a_i = b_j)                        the area under the curve of true over false positives

    a: (n,), b: (m,), neither empty.   Raises ValueError: other shapes, NaN.   Source: Hanley & McNeil 1982.
    """
    a, b = _numbers("a", a), _numbers("b", b)
    if a.ndim != 1 or b.ndim != 1 or not a.size or not b.size:
        raise ValueError(f"a, b: expected judgements of shapes (n,), (m,), at least one of each, got {a.shape}, {b.shape}.")
    b = np.sort(b)
    return float((np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")).mean() / (2 * b.size))


# ----------------------------------------------------------------------------------------------------------- checks


def _numbers(name: str, value: np.ndarray | float) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected real numbers, got {value.dtype}.")
    value = value.astype(np.float64)
    if np.isnan(value).any():
        raise ValueError(f"{name}: expected numbers, got NaN.")
    return value


def _features(name: str, x: np.ndarray, *, least: int) -> np.ndarray:
    x = _numbers(name, x)
    if x.ndim != 2 or len(x) < least or x.shape[1] == 0:
        raise ValueError(f"{name}: expected features of shape (n, d) with n ≥ {least} and d ≥ 1, got {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: expected finite features, got an infinity.")
    return x


def _feature_pair(
    name_a: str,
    a: np.ndarray,
    name_b: str,
    b: np.ndarray,
    *,
    least: int,
) -> tuple[np.ndarray, np.ndarray]:
    a, b = _features(name_a, a, least=least), _features(name_b, b, least=least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{name_a}, {name_b}: expected equally many features, got {a.shape[1]} and {b.shape[1]}.")
    return a, b


def _require_natural(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}.")


def _plain(value: np.ndarray) -> np.ndarray | float:
    return value if value.ndim else float(value)
