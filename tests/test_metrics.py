"""Scores against closed forms, against slower definitions, and on inputs they must refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import sqrtm
from scipy.spatial import cKDTree

from scratchgen.data import mixture, mixture_modes
from scratchgen.metrics import (
    agreement,
    auc,
    bits_per_byte,
    bits_per_dim,
    class_divergence,
    class_entropy,
    distinct_ngrams,
    diversity,
    frechet_distance,
    frechet_gaussians,
    kernel_distance,
    mode_coverage,
    nearest_distances,
    novelty,
    perplexity,
    precision_recall,
    spacing,
    wilson_interval,
)

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**32)


# ------------------------------------------------------------------------------------------------------- likelihood


def test_a_uniform_model_needs_eight_bits_a_byte():
    D = 12
    assert bits_per_dim(D * np.log(256), D) == pytest.approx(8, rel=1e-14)  # a discrete uniform
    assert bits_per_dim(0.0, D, levels=256) == 8  # the density 1 on [0, 1]^D
    assert bits_per_byte(100 * np.log(256), 100) == pytest.approx(8, rel=1e-14)
    assert perplexity(np.full(9, np.log(50))) == pytest.approx(50, rel=1e-14)


def test_likelihood_keeps_shapes_and_extremes():
    assert isinstance(bits_per_dim(1.0, 1), float)
    np.testing.assert_allclose(bits_per_dim(np.array([[np.log(2), 0]]), 1), [[1, 0]])
    assert perplexity(1e6) == np.inf and perplexity(np.inf) == np.inf and perplexity(0.0) == 1
    assert perplexity(np.array([[0.0, np.log(4)]])) == pytest.approx(2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bits_per_dim(np.nan, 3), "nll: expected numbers, got NaN"),
        (lambda: bits_per_dim("x", 3), "nll: expected real numbers"),
        (lambda: bits_per_dim(1.0, 0), "dims: expected a whole number of at least 1, got 0"),
        (lambda: bits_per_dim(1.0, 2.5), "dims"),
        (lambda: bits_per_dim(1.0, 2, levels=0), "levels"),
        (lambda: bits_per_byte(1.0, 0), "n_bytes"),
        (lambda: bits_per_byte(np.ones(3), 3), r"expected one number, the sum over the text, got shape \(3,\)"),
        (lambda: bits_per_byte(np.nan, 3), "NaN"),
        (lambda: perplexity([]), "expected at least one token, got none"),
        (lambda: perplexity([np.nan]), "NaN"),
        (lambda: perplexity([1j]), "expected real numbers, got complex128"),
    ],
)
def test_likelihood_refuses(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# ------------------------------------------------------------------------------------------------- Fréchet distance


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


@few
@given(seed=seeds, d=st.integers(1, 6))
def test_commuting_covariances_have_a_closed_form(seed, d):
    rng = np.random.default_rng(seed)
    U, la, lb = rotation(rng, d), rng.uniform(0, 4, d), rng.uniform(0, 4, d)
    la[0] = 0  # singular is allowed
    mean_a, mean_b = rng.normal(size=(2, d))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(la) - np.sqrt(lb)) ** 2).sum()
    got = frechet_gaussians(mean_a, U * la @ U.T, mean_b, U * lb @ U.T)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


@few
@given(seed=seeds, d=st.integers(1, 6))
def test_samples_moments_and_the_matrix_square_root_agree(seed, d):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(30, d)) @ rng.normal(size=(d, d)), rng.normal(size=(40, d)) + 1
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    cov_a, cov_b = np.cov(a.T).reshape(d, d), np.cov(b.T).reshape(d, d)
    root = np.trace(np.atleast_2d(sqrtm(cov_a @ cov_b))).real
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_gaussians(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("n", "d"), [(50, 4), (2, 1), (3, 40), (2, 3)])  # fewer samples than features, too
def test_a_set_is_at_no_distance_from_itself_and_a_shift_is_its_length(n, d):
    x = np.random.default_rng(0).normal(size=(n, d)) * 3 + 1
    scale = x.var(axis=0, ddof=1).sum()
    assert 0 <= frechet_distance(x, x) <= 1e-13 * scale
    assert 0 <= frechet_distance(x, x[::-1]) <= 1e-13 * scale
    shift = np.linspace(1, 2, d)
    assert frechet_distance(x, x + shift) == pytest.approx(shift @ shift, rel=1e-12, abs=1e-12 * scale)
    U = rotation(np.random.default_rng(1), d)
    assert frechet_distance(x @ U, (x + shift) @ U) == pytest.approx(shift @ shift, rel=1e-12, abs=1e-12 * scale)
    # y = 2x doubles every standard deviation: Σ (2s − s)² = Σ s², and the mean moves by itself.
    assert frechet_distance(x, 2 * x) == pytest.approx((x.mean(axis=0) ** 2).sum() + scale, rel=1e-12)


def test_degenerate_sets():
    same = np.ones((5, 3))
    assert frechet_distance(same, same) == 0
    assert frechet_distance(same, 0 * same) == pytest.approx(3)
    assert frechet_distance(same.astype(np.float32), same.astype(int)) == 0


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), r"a: expected features of shape \(n, d\) with n ≥ 2 and d ≥ 1, got \(1, 3\)"),
        (np.zeros((5, 3)), np.zeros(5), "b: expected features"),
        (np.zeros((5, 0)), np.zeros((5, 0)), "d ≥ 1"),
        (np.zeros((5, 3)), np.zeros((5, 2)), "equally many features, got 3 and 2"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "a: expected numbers, got NaN"),
        (np.zeros((5, 3)), np.full((5, 3), np.inf), "b: expected finite features"),
        (np.array([["a"]]), np.zeros((5, 3)), "expected real numbers"),
    ],
)
def test_frechet_refuses(a, b, said):
    with pytest.raises(ValueError, match=said):
        frechet_distance(a, b)


@pytest.mark.parametrize(
    ("mean", "cov", "said"),
    [
        (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.zeros(2), np.diag([1.0, -0.5]), "no negative eigenvalue, got -0.5"),
        (np.zeros(2), np.eye(3), r"expected shapes \(d,\), \(d, d\), got \(2,\), \(3, 3\)"),
        (np.zeros(2), np.diag([1.0, np.inf]), "finite"),
        (np.array([0.0, np.nan]), np.eye(2), "NaN"),
        (np.zeros(3), np.eye(3), "same number of features, got 3 and 2"),
    ],
)
def test_frechet_gaussians_refuses(mean, cov, said):
    with pytest.raises(ValueError, match=said):
        frechet_gaussians(mean, cov, np.zeros(2), np.eye(2))


# ---------------------------------------------------------------------------------------- nearest-neighbour coverage


def slow_precision_recall(real, fake, k):
    def radius(x):
        return [sorted(np.linalg.norm(x - p, axis=1))[k] for p in x]

    def in_balls(centres, points):
        return np.array(
            [[np.linalg.norm(p - c) <= reach for p in points] for c, reach in zip(centres, radius(centres), strict=True)]
        )

    inside, back = in_balls(real, fake), in_balls(fake, real)
    return inside.any(axis=0).mean(), back.any(axis=0).mean(), inside.sum() / (k * len(fake)), inside.any(axis=1).mean()


@few
@given(seed=seeds, n=st.integers(4, 15), m=st.integers(4, 15), k=st.integers(1, 3))
def test_precision_recall_against_the_definition(seed, n, m, k):
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) * 0.7 + 0.3
    np.testing.assert_allclose(precision_recall(real, fake, k=k), slow_precision_recall(real, fake, k), rtol=1e-12)


def test_precision_recall_tells_collapse_from_strangeness():
    real, mode = mixture("ring-8", 400, seed=0)
    good = mixture("ring-8", 400, seed=1)[0]
    strange = np.concatenate([good[:200], good[:200] + 50])
    collapsed = real[mode == 0][:20].repeat(5, axis=0) + np.random.default_rng(2).normal(size=(100, 2)) * 1e-3
    same = precision_recall(real, real)
    assert same.precision == same.recall == same.coverage == 1 and same.density >= 1
    assert precision_recall(real, good).coverage > 0.85
    assert precision_recall(real, strange).precision == pytest.approx(0.5, abs=0.05)
    assert precision_recall(real, strange).recall > 0.85
    assert precision_recall(real, collapsed).precision > 0.9 and precision_recall(real, collapsed).coverage < 0.2


def test_blocks_make_no_difference():
    x = np.random.default_rng(0).normal(size=(1500, 2))
    assert precision_recall(x, x[:700]).precision == 1  # every sample is a data point, across the block edge
    assert diversity(x) == pytest.approx(np.sqrt(np.pi), rel=0.05)  # E‖u − v‖ for u, v ~ N(0, I₂) is √π


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 0}, "k: expected a whole number of at least 1, got 0"),
        ({"k": 5}, "real: expected features .* n ≥ 6"),
        ({"fake": np.zeros((3, 2))}, "fake: expected features .* n ≥ 4"),
        ({"fake": np.zeros((5, 3))}, "equally many"),
        ({"fake": np.full((5, 2), np.nan)}, "NaN"),
    ],
)
def test_precision_recall_refuses(arguments, said):
    with pytest.raises(ValueError, match=said):
        precision_recall(**{"real": np.zeros((5, 2)), "fake": np.zeros((5, 2)), **arguments})


# ---------------------------------------------------------------------------------------------------------- variety


def test_diversity_by_hand():
    assert diversity(np.array([[0, 0], [3, 4]])) == 5
    assert diversity(np.array([[0.0], [1.0], [2.0]])) == pytest.approx(4 / 3)
    assert diversity(np.ones((9, 2))) == 0
    with pytest.raises(ValueError, match="x: expected features"):
        diversity(np.zeros((1, 2)))


def test_distinct_ngrams_by_hand():
    assert distinct_ngrams(np.array([1, 2, 1, 2, 1]), 2) == 2 / 4
    assert distinct_ngrams(np.array([1, 2, 3]), 1) == 1
    assert distinct_ngrams(np.array([[1, 2], [2, 1]]), 2) == 1  # and no (2, 2) across the rows
    assert distinct_ngrams(np.array([[7, 7], [7, 7]]), 1) == 1 / 4


@pytest.mark.parametrize(
    ("tokens", "n", "said"),
    [
        (np.array([1]), 2, "length ≥ n = 2"),
        (np.zeros((0, 5), int), 2, "expected integers"),
        (np.array([1.0, 2.0]), 1, "got float64"),
        (np.zeros((2, 2, 2), int), 1, r"\(2, 2, 2\)"),
        (np.array([1, 2]), 0, "n: expected a whole number"),
    ],
)
def test_distinct_ngrams_refuses(tokens, n, said):
    with pytest.raises(ValueError, match=said):
        distinct_ngrams(tokens, n)


def test_mode_coverage_counts_the_modes_that_were_hit():
    centres, sigma = mixture_modes("grid-25")
    x, k = mixture("grid-25", 2000, seed=0)
    modes = mode_coverage(x, centres, radius=3 * sigma)
    assert (modes.hit, modes.found) == (25, 25) and 0 < modes.reverse_kl < 25 / 2000  # on average (K − 1) / 2n
    assert modes.near == pytest.approx(1 - np.exp(-4.5), abs=0.01)  # P(‖ε‖ ≤ 3) in the plane
    few = mode_coverage(x[k < 4], centres, radius=3 * sigma)
    assert (few.hit, few.found) == (4, 4) and few.reverse_kl == pytest.approx(np.log(25 / 4), abs=0.01)
    assert mode_coverage(np.full((7, 2), 100.0), centres, radius=1) == (0, 0, 0.0, pytest.approx(np.log(25)))


def test_mode_coverage_by_hand():
    """Modes at 0 and 10. Of 8 points 7 are nearest to the first, 5 within 1 of it; 1, a quarter of 4, is at the second."""
    x = np.array([0, 0.5, -0.5, 1, -1, 2, 3, 10.0])[:, None]
    found = mode_coverage(x, np.array([[0.0], [10.0]]), radius=1)
    assert found[:3] == (2, 2, 6 / 8)
    assert found.reverse_kl == pytest.approx(7 / 8 * np.log(7 / 4) + 1 / 8 * np.log(1 / 4))
    more = np.concatenate([x, x[:1]])  # 9 points: a quarter of a share is more than one
    assert mode_coverage(more, np.array([[0.0], [10.0]]), radius=1)[:2] == (2, 1)


def test_mode_coverage_refuses():
    centres, sigma = mixture_modes("grid-25")
    x = centres
    for radius in (0, -1, np.nan):
        with pytest.raises(ValueError, match="radius: expected a positive number"):
            mode_coverage(x, centres, radius=radius)
    with pytest.raises(ValueError, match="points: expected features"):
        mode_coverage(x[:0], centres, radius=1)


def test_spacing_by_hand():
    """0, 1 and 5: the nearest other of each is 1, 1 and 4 away."""
    assert spacing(np.array([[0.0], [1.0], [5.0]])) == 2
    far, doubled = np.array([[0.0, 0], [30, 40]]), np.array([[0.0, 0], [0, 0], [30, 40], [30, 40]])
    assert spacing(far) == diversity(far) == 50 and spacing(doubled) == 0 < diversity(doubled), "few points, far apart"
    x = np.random.default_rng(0).normal(size=(60, 4))
    assert spacing(x) == pytest.approx(cKDTree(x).query(x, 2)[0][:, 1].mean(), rel=1e-12)
    for bad in (x[:1], x[0], np.where(x > 2, np.inf, x)):
        with pytest.raises(ValueError, match="x: expected"):
            spacing(bad)


@few
@given(seed=seeds, n=st.integers(1, 30), m=st.integers(1, 30))
def test_auc_is_the_share_of_pairs_in_order(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, n), rng.integers(0, 6, m)  # with ties
    expected = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert auc(a, b) == pytest.approx(expected, rel=1e-12)
    assert auc(a, b) + auc(b, a) == pytest.approx(1, rel=1e-12)
    assert auc(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / (n * m), rel=1e-12)


def test_auc_refuses():
    assert auc(np.ones(3), np.ones(5)) == 0.5 and auc(np.ones(3), np.zeros(2)) == 1
    for a in (np.zeros(0), np.zeros((2, 1)), np.array([np.nan])):
        with pytest.raises(ValueError):
            auc(a, np.zeros(3))


# ---------------------------------------------------------------------------------------------------------------------
# Kernel distance
# ---------------------------------------------------------------------------------------------------------------------


def test_kernel_distance_by_hand():
    r"""a = (0, 1), b = (1, 2):  k(0, 1) = 1, k(1, 2) = 27;  across: k(0, 1) + k(0, 2) + k(1, 1) + k(1, 2) = 1 + 1 + 8 + 27"""
    found = kernel_distance(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]))
    assert found.value == pytest.approx(1 + 27 - 2 * 37 / 4) and np.isnan(found.error)


def test_kernel_distance_of_equal_distributions_is_zero_within_its_error_and_of_others_its_closed_form():
    r"""a ~ N(0, 1), b ~ N(s, 1) in one dimension: MMD² of the cubic kernel is Σ_p C(3, p) (E aᵖ − E bᵖ)²"""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 1))
    same = kernel_distance(a, b)
    assert abs(same.value) < 4 * same.error and same.error < 0.05
    s = 0.5
    moments = np.array([(1.0, 1.0), (0.0, s), (1.0, 1 + s * s), (0.0, s**3 + 3 * s)])
    truth = sum(c * (x - y) ** 2 for c, (x, y) in zip((1, 3, 3, 1), moments, strict=True))
    moved = kernel_distance(a, b + s)
    assert abs(moved.value - truth) < 4 * moved.error


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    rng = np.random.default_rng(0)
    few = [kernel_distance(*rng.normal(size=(2, 20, 4))).value for _ in range(400)]
    assert abs(np.mean(few)) < 4 * np.std(few) / 20
    assert np.mean([frechet_distance(*rng.normal(size=(2, 20, 4))) for _ in range(50)]) > 0.3


def slow_mmd2(a, b):
    """The two sums over pairs i ≠ j and the one over all pairs, as they are written."""

    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    n = range(len(a))
    within = sum(k(a[i], a[j]) + k(b[i], b[j]) for i in n for j in n if i != j) / (len(a) * (len(a) - 1))
    return within - 2 * sum(k(a[i], b[j]) for i in n for j in n) / len(a) ** 2


@few
@given(seed=seeds, n=st.integers(2, 9), d=st.integers(1, 4))
def test_kernel_distance_is_the_double_sum(seed, n, d):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(n, d)) + 0.5
    assert kernel_distance(a, b).value == pytest.approx(slow_mmd2(a, b), rel=1e-10, abs=1e-10)


def test_kernel_distance_deals_disjoint_subsets():
    """Three subsets of 3 of 10 rows: each row in one at most, the mean and its error over the three."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 10, 2))
    order = np.random.default_rng(0)
    a2, b2 = a[order.permutation(10)], b[order.permutation(10)]
    values = [slow_mmd2(a2[i : i + 3], b2[i : i + 3]) for i in (0, 3, 6)]
    found = kernel_distance(a, b, subset=3)
    assert found.value == pytest.approx(np.mean(values)) and found.error == pytest.approx(stats.sem(values))


@pytest.mark.parametrize(("d", "s"), [(8, 0.0), (1, 0.5)])
def test_the_standard_error_of_the_kernel_distance_covers_the_truth(d, s):
    r"""|value − MMD²| < t₉(0.975) · error in about 95 % of cases; in one dimension, where the values are skewed, in 89 %.

    a ~ N(0, I), b ~ N(s, I), ten subsets of 20; for d = 1, MMD² as above.
    """
    rng = np.random.default_rng(0)
    truth = 3 * s**2 + 3 * s**4 + (s**3 + 3 * s) ** 2
    found = [kernel_distance(*(rng.normal(size=(2, 200, d)) + [[[0]], [[s]]]), subset=20) for _ in range(400)]
    value, error = np.array(found).T
    assert abs(value.mean() - truth) < 4 * value.std() / 20
    covered = (abs(value - truth) < stats.t.ppf(0.975, 9) * error).mean()
    assert 0.92 < covered < 0.98 if d > 1 else 0.86 < covered < 0.94


def test_the_frechet_distance_of_samples_approaches_that_of_their_gaussians():
    """N(0, diag(1, 4)) and N((1, 2), diag(9, 1)): 1 + 4 + (3 − 1)² + (2 − 1)² = 10"""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20_000, 2)) * [1, 2], rng.normal(size=(20_000, 2)) * [3, 1] + [1, 2]
    assert frechet_distance(a, b) == pytest.approx(10, rel=0.03)
    assert frechet_gaussians([0.0, 0], np.diag([1.0, 4]), [1.0, 2], np.diag([9.0, 1])) == pytest.approx(10, rel=1e-12)


def test_kernel_distance_of_degenerate_sets():
    same = np.ones((20, 3))
    assert kernel_distance(same, same, subset=5) == (0, 0)
    for bad, said in ((same[:1], "n ≥ 2"), (np.full((5, 3), np.nan), "NaN"), (same[:, :2], "equally many")):
        with pytest.raises(ValueError, match=said):
            kernel_distance(same, bad)
    with pytest.raises(ValueError, match="subset: expected a whole number of at least 2, got 1"):
        kernel_distance(same, same, subset=1)


# ---------------------------------------------------------------------------------------------------------------------
# Nearest training picture
# ---------------------------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, n=st.integers(1, 300), m=st.integers(1, 20), d=st.integers(1, 5), far=st.sampled_from([0, 1e4]))
def test_nearest_distances_are_those_of_a_tree(seed, n, m, d, far):
    rng = np.random.default_rng(seed)
    x, to = rng.normal(size=(n, d)) + far, rng.normal(size=(m, d)) + far
    np.testing.assert_allclose(nearest_distances(x, to), cKDTree(to).query(x)[0], rtol=1e-9, atol=1e-9)


def test_a_copy_is_at_distance_zero():
    to = np.random.default_rng(0).normal(size=(600, 128)).astype(np.float32) * 30 + 100
    assert (nearest_distances(to[::-1], to) == 0).all()
    nearly = to[:5] + np.float32(1e-3)
    np.testing.assert_allclose(nearest_distances(nearly, to), np.linalg.norm(nearly.astype(float) - to[:5], axis=1), rtol=1e-9)


def test_novelty_by_hand():
    real = np.arange(1, 101) / 10  # median 5.05, first percentile 0.199
    assert novelty(real, real) == (1, 0.01)
    assert novelty(np.zeros(3), real) == (0, 1)
    assert novelty([0.1, 0.198, 0.2, 10.1], real) == (pytest.approx(0.199 / 5.05), 0.5)


def test_novelty_tells_memory_from_invention():
    rng = np.random.default_rng(0)
    train, held_out, good = rng.normal(size=(3, 2000, 4))
    far = nearest_distances(held_out, train)
    invented = novelty(nearest_distances(good, train), far)
    assert invented.distance == pytest.approx(1, abs=0.05) and invented.copies < 0.03
    remembered = novelty(nearest_distances(train[:500] + rng.normal(size=(500, 4)) * 1e-3, train), far)
    assert remembered.distance < 0.02 and remembered.copies == 1
    half = novelty(nearest_distances(np.concatenate([train[:1000], good[:1000]]), train), far)
    assert half.copies == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: nearest_distances(np.zeros((0, 2)), np.zeros((3, 2))), "x: expected features .* n ≥ 1"),
        (lambda: nearest_distances(np.zeros((3, 2)), np.zeros((3, 1))), "equally many features, got 2 and 1"),
        (lambda: nearest_distances(np.zeros((3, 2)), np.full((3, 2), np.inf)), "to: expected finite"),
        (lambda: novelty([], [1.0]), "fake: expected features"),
        (lambda: novelty([1.0], [np.nan]), "real: expected numbers, got NaN"),
        (lambda: novelty([-1.0], [1.0]), "expected distances, got a negative number"),
        (lambda: novelty([1.0], [0.0, 0.0, 1.0]), "half of the held-out data are copies"),
    ],
)
def test_neighbours_refuse(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


@few
@given(p=st.lists(st.integers(0, 50), min_size=2, max_size=12), seed=seeds)
def test_entropy_and_divergence_of_classes_are_scipys(p, seed):
    p = np.array(p) + (np.arange(len(p)) == 0)  # at least one sample
    q = np.random.default_rng(seed).integers(1, 50, len(p))
    assert class_entropy(p) == pytest.approx(stats.entropy(p) / np.log(len(p)), abs=1e-12)
    assert class_divergence(p, q) == pytest.approx(stats.entropy(p, q), abs=1e-12)


def test_classes_by_hand():
    assert class_entropy([5, 5, 5]) == pytest.approx(1) and class_entropy([9, 0, 0]) == 0
    assert class_entropy([7, 7, 0, 0]) == pytest.approx(0.5)
    assert class_divergence([3, 3], [50, 50]) == 0
    assert class_divergence([1, 1, 0, 0], [9, 9, 9, 9]) == pytest.approx(np.log(2)), "without half of the classes: log 2"
    assert class_divergence([1, 1], [1, 0]) == np.inf and class_divergence([1, 0], [1, 0]) == 0


def test_agreement_by_hand():
    found = agreement(np.array([0, 0, 0, 1, 3]), np.array([0, 0, 1, 1, 0]), 4)
    np.testing.assert_allclose(found, [2 / 3, 1, np.nan, 0])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: class_entropy([3]), r"counts: expected counts \(K,\) of K ≥ 2"),
        (lambda: class_entropy([0, 0]), r"not all 0, got \[0.0, 0.0\]"),
        (lambda: class_entropy([-1, 2]), "none negative"),
        (lambda: class_entropy([np.nan, 2]), "NaN"),
        (lambda: class_entropy([np.inf, 2]), "none negative"),
        (lambda: class_divergence([1, 1], [1, 1, 1]), "equally many classes, got 2 and 3"),
        (lambda: class_divergence([1, 1], [0, 0]), "real: expected counts"),
        (lambda: agreement(np.zeros(3, int), np.zeros(2, int), 2), "read: expected integers"),
        (lambda: agreement(np.zeros(0, int), np.zeros(0, int), 2), "asked: expected integers"),
        (lambda: agreement(np.zeros(3), np.zeros(3, int), 2), "got float64"),
        (lambda: agreement(np.zeros(3, int), np.full(3, 2), 2), "read: expected integers .n,. from 0 to below 2"),
        (lambda: agreement(np.zeros(3, int), np.zeros(3, int), 0), "classes: expected a whole number"),
    ],
)
def test_classes_refuse(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# ---------------------------------------------------------------------------------------------------------------------
# How sure a share is
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("successes, trials", [(0, 10), (7, 10), (184, 200), (200, 200)])
def test_wilsons_interval_is_where_the_share_is_z_deviations_off(successes, trials):
    found = wilson_interval(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=1e-7)
    for p in found:
        if 0 < p < 1:
            assert abs(successes / trials - p) == pytest.approx(1.959964 * np.sqrt(p * (1 - p) / trials), abs=1e-8)
    with pytest.raises(ValueError, match="expected from 0 to 10 successes, got 11"):
        wilson_interval(11, 10)
