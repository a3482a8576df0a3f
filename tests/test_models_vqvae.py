"""Codes that are symbols: which is nearest, where the gradient goes, how the codebook follows, which code has which number."""

import dataclasses
import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen.models import VQVAE, VQVAEConfig
from scratchgen.models.vqvae import FiniteScalarQuantizer, VectorQuantizer, _perplexity, rotated, straight_through

SHAPE = (1, 8, 12)
VQ = VQVAEConfig(SHAPE, variance=0.1, hidden=8, dim=3, codes=5)
KINDS = {
    "vq": VQ,
    "vq, rotated": dataclasses.replace(VQ, rotation=True),
    "fsq": dataclasses.replace(VQ, quantizer="fsq", levels="3,2"),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


def build(config, seed=0):
    sg.manual_seed(seed)
    return VQVAE(config)


def pictures(n=16):
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 2, (n, 1, 2, 3)), np.ones((4, 4))).astype(np.float32)  # patches that are black or white


def quantizer(codes=4, dim=2, decay=0.9, beta=0.25, rotation=False, seed=0):
    q = VectorQuantizer(codes, dim, beta=beta, decay=decay, rotation=rotation)
    rng = np.random.default_rng(seed)
    e = rng.standard_normal((codes, dim))
    q.codebook.copy_(e)
    q.counts.copy_(np.full(codes, 20.0))
    q.sums.copy_(20 * e)
    return q.double()


# ---------------------------------------------------------------------------------------------------------------------
# The nearest code
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_nearest_code_is_found_also_far_from_0(offset):
    """‖z‖² − 2 z·e + ‖e‖² of float32 numbers near 10⁴ would be right to 16 only"""
    rng = np.random.default_rng(0)
    q = VectorQuantizer(32, 3, beta=0.25, decay=0.99, rotation=False)
    e, z = (np.float32(offset) + rng.standard_normal((n, 3)).astype(np.float32) for n in (32, 500))
    q.codebook.copy_(e)
    exact = np.square(z[:, None].astype(np.float64) - e).sum(2)
    chosen = exact[np.arange(500), q.nearest(sg.tensor(z)).data]
    assert (chosen <= exact.min(1) + 1e-2 * (offset > 0)).all()


def test_a_grid_is_quantized_place_by_place():
    model = build(VQ)
    model.quantizer._begin(sg.tensor(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)))
    model.eval()
    x = pictures(4)
    q, ids, _ = model.quantize(sg.tensor(x))
    z, e = model.encoder(sg.tensor(x)).data, model.quantizer.codebook.data
    for b in range(4):
        for i in range(2):
            for j in range(3):
                k = np.square(z[b, :, i, j] - e).sum(1).argmin()
                assert ids.data[b, 3 * i + j] == k
                np.testing.assert_array_equal(q.data[b, :, i, j], e[k])
    np.testing.assert_array_equal(model.encode(x), ids.data.reshape(4, 2, 3))
    np.testing.assert_allclose(model.decode(model.encode(x)), model(sg.tensor(x))[0].data.clip(0, 1), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Where the gradient goes
# ---------------------------------------------------------------------------------------------------------------------


def test_straight_through_copies_the_gradient():
    rng = np.random.default_rng(0)
    z, q, dy = (sg.tensor(rng.standard_normal((6, 3)), requires_grad=i == 0) for i in range(3))
    y = straight_through(z, q)
    assert (y.data == q.data).all()
    np.testing.assert_array_equal(sg.grad((y * dy).sum(), z)[0].data, dy.data)


def test_the_rotation_trick_turns_the_gradient_as_the_code_lies_against_the_vector():
    r"""q = λ R z bit for bit, and z̄ = λ Rᵀ q̄, R the rotation from z to q in their plane: it keeps lengths and angles"""
    rng = np.random.default_rng(0)
    z, q, dy = (rng.standard_normal((50, 4)) for _ in range(3))
    leaf = sg.tensor(z, requires_grad=True)
    y = rotated(leaf, sg.tensor(q))
    assert (y.data == q).all()
    (dz,) = sg.grad((y * sg.tensor(dy)).sum(), leaf)
    length = lambda a: np.linalg.norm(a, axis=1)  # noqa: E731
    scale = length(q) / length(z)
    np.testing.assert_allclose(length(dz.data), scale * length(dy), rtol=1e-9)
    np.testing.assert_allclose((dz.data * z).sum(1), (dy * q).sum(1), rtol=1e-9)  # as ȳ lies against q, so z̄ against z
    for i in range(5):  # R written out: the rotation by the angle between z and q in the plane of both
        a = z[i] / length(z)[i]
        b = q[i] - (q[i] @ a) * a
        b /= np.linalg.norm(b)
        cos, sin = q[i] @ a / length(q)[i], q[i] @ b / length(q)[i]
        R = np.eye(4) + (cos - 1) * (np.outer(a, a) + np.outer(b, b)) + sin * (np.outer(b, a) - np.outer(a, b))
        np.testing.assert_allclose(dz.data[i], scale[i] * R.T @ dy[i], rtol=1e-9)


def test_the_rotation_trick_where_there_is_no_rotation():
    z = sg.tensor(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]), requires_grad=True)
    q = sg.tensor(np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]]))  # from 0, to the opposite, to 0
    y = rotated(z, q)
    (dz,) = sg.grad(y.sum(), z)
    assert (y.data == q.data).all() and np.isfinite(dz.data).all()


def test_the_commitment_draws_the_vector_and_leaves_the_code():
    q = quantizer()
    z = sg.tensor(np.random.default_rng(1).standard_normal((7, 2)), requires_grad=True)
    e = q.codebook.data.copy()
    _, ids, commitment = q.eval()(z)
    chosen = e[ids.data]
    assert math.isclose(commitment.item(), 0.25 * np.square(z.data - chosen).mean(), rel_tol=1e-12)
    np.testing.assert_allclose(sg.grad(commitment, z)[0].data, 0.25 * 2 * (z.data - chosen) / 14, rtol=1e-9)
    assert not q.codebook.requires_grad


@every_kind
def test_the_encoder_learns_from_the_gradient_at_the_codes_and_the_codebook_from_the_vectors(config):
    r"""z̄ = q̄ + β ∂‖z − q‖²/∂z of the whole loss, q̄ turned where that is asked, times f′(z) of "fsq"; codes get no gradient,
    and move, by the vectors that chose them alone"""
    model, x = build(config).double(), sg.tensor(pictures(8).astype(np.float64))
    if config.quantizer == "vq":
        model.quantizer._begin(model.encoder(x).permute(0, 2, 3, 1).reshape(-1, 3) * 1.5)
    kept = {}

    def watch(name, module, returns):
        forward = module.forward

        def watched(t):
            out = forward(t)
            kept[name] = out if returns else t
            return out

        module.forward = watched

    watch("z", model.encoder, returns=True)
    watch("q", model.decoder, returns=False)
    before = model.quantizer.codebook.data.copy() if config.quantizer == "vq" else None
    y, ids, commitment = model(x)
    error = (y - x).square().mean() / config.variance
    dz, dq = (g.data for g in sg.grad(error + commitment, [kept["z"], kept["q"]]))
    z, q = kept["z"].data, kept["q"].data
    if config.quantizer == "vq":
        assert not model.quantizer.codebook.requires_grad and (model.quantizer.codebook.data != before).any()
        pull = 2 * config.beta * (z - q) / z.size
        if config.rotation:
            flat = lambda t: np.moveaxis(t, 1, 3).reshape(-1, 3)  # noqa: E731
            leaf = sg.tensor(flat(z), requires_grad=True)
            (turned,) = sg.grad((rotated(leaf, sg.tensor(flat(q))) * sg.tensor(flat(dq))).sum(), leaf)
            np.testing.assert_allclose(flat(dz - pull), turned.data, rtol=1e-9, atol=1e-15)
        else:
            np.testing.assert_allclose(dz - pull, dq, rtol=1e-9, atol=1e-15)
    else:
        half, shift = (a.reshape(-1, 1, 1) for a in (model.quantizer.half, model.quantizer.shift))
        slope = half * (1 - np.tanh(z + shift) ** 2) / model.quantizer.width.reshape(-1, 1, 1)
        np.testing.assert_allclose(dz, slope * dq, rtol=1e-9, atol=1e-15)
    assert np.abs(dq).max() > 0


# ---------------------------------------------------------------------------------------------------------------------
# The codebook follows
# ---------------------------------------------------------------------------------------------------------------------


def test_codes_are_running_means_of_the_vectors_that_chose_them():
    q = quantizer()
    counts, sums = q.counts.data.copy(), q.sums.data.copy()
    rng = np.random.default_rng(1)
    for _ in range(3):
        z = rng.standard_normal((40, 2))
        ids = np.square(z[:, None] - q.codebook.data).sum(2).argmin(1)
        counts = 0.9 * counts + 0.1 * np.bincount(ids, minlength=4)
        sums = 0.9 * sums + 0.1 * np.stack([z[ids == k].sum(0) for k in range(4)])
        q(sg.tensor(z))
        np.testing.assert_allclose(q.counts.data, counts, rtol=1e-9)
        np.testing.assert_allclose(q.codebook.data, sums / counts[:, None], rtol=1e-9)
        assert q.revived == 0


def test_a_dead_code_becomes_a_vector_of_the_batch_and_stays_there():
    q = quantizer()
    with sg.no_grad():
        far = q.codebook.data.copy()
        far[2] = 1e3
        q.codebook.copy_(far)
        q.sums.copy_(20 * far)
    rng = np.random.default_rng(1)
    for step, z in enumerate(rng.standard_normal((60, 40, 2))):  # noqa: B007
        q(sg.tensor(z))
        if q.revived:
            break
    assert step == 28, "20 · 0.9ⁿ falls below 1 at the 29th step"
    assert q.revived == 1 and (z == q.codebook.data[2]).all(1).any()
    np.testing.assert_array_equal(q.sums.data[2], q.codebook.data[2])
    assert q.counts.data[2] == 1
    before = q.codebook.data[2].copy()
    q(sg.tensor(rng.standard_normal((40, 2))))
    assert q.revived == 0 and q.revivals.item() == 1 and q.revivals.dtype == np.int64
    assert np.abs(q.codebook.data[2] - before).max() < 3 and np.abs(q.codebook.data).max() < 10


def test_codes_begin_as_vectors_of_the_first_batch_also_of_a_small_one():
    rng = np.random.default_rng(1)
    for n in (3, 40):
        q = VectorQuantizer(8, 2, beta=0.25, decay=0.99, rotation=False)
        z = rng.standard_normal((n, 2)).astype(np.float32)
        sg.manual_seed(0)
        q._begin(sg.tensor(z))
        assert all((row == z).all(1).any() for row in q.codebook.data)
        assert len(np.unique(q.codebook.data, axis=0)) == min(n, 8) or n == 3
        q(sg.tensor(z))
        assert np.isfinite(q.codebook.data).all()


@every_kind
def test_looking_at_pictures_changes_nothing(config):
    model = build(config)
    model.training_step((pictures(), None), model.optimizers())
    before = {k: np.array(v.numpy()) for k, v in model.state_dict().items()}
    model.eval()
    found = model.evaluate([(pictures(), None), (pictures(3), None)])
    model.reconstruct(pictures())
    assert all((before[k] == v.numpy()).all() for k, v in model.state_dict().items())
    assert all(map(math.isfinite, found.values())) and 1 <= found["perplexity"] <= found["codes_used"] <= 6


# ---------------------------------------------------------------------------------------------------------------------
# Finite scalars
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(8, 4, 4), (5, 5, 5), (2, 3), (7,), (2, 2, 2, 2)])
def test_numbers_and_codes_of_finite_scalars_are_one_to_one_and_each_is_reached(levels):
    q = FiniteScalarQuantizer(levels)
    ids = np.arange(q.codes)
    codes = q.look_up(sg.tensor(ids))
    assert len(np.unique(codes.data, axis=0)) == q.codes and np.abs(codes.data).max() <= 1
    whole = np.round(codes.data * (np.array(levels) // 2))
    np.testing.assert_array_equal(q._numbers(sg.tensor(whole)).data, ids)
    z = np.stack(np.meshgrid(*[np.linspace(-6, 6, 121)] * min(len(levels), 2)), -1).reshape(-1, min(len(levels), 2))
    z = np.concatenate([z, np.zeros((len(z), len(levels) - z.shape[1]))], 1)
    for i in range(len(levels)):  # each level of each number is reached
        found, numbers, _ = q(sg.tensor(np.roll(z, i, 1)))
        assert len(np.unique(found.data[:, i])) == levels[i]
        np.testing.assert_array_equal(q.look_up(numbers).data, found.data.astype(np.float32))


def test_finite_scalars_round_to_the_nearest_level_and_pass_the_gradient_of_what_is_rounded():
    q = FiniteScalarQuantizer((5, 4))
    z = sg.tensor(np.random.default_rng(0).normal(0, 1.5, (200, 2)), requires_grad=True)
    y, _, loss = q(z)
    half, offset = np.array([4, 3]) * 1.001 / 2, np.array([0, 0.5])
    bounded = half * np.tanh(z.data + np.arctanh(offset / half)) - offset
    np.testing.assert_array_equal(y.data, np.round(bounded) / 2)
    slope = half * (1 - np.tanh(z.data + np.arctanh(offset / half)) ** 2) / 2
    np.testing.assert_allclose(sg.grad(y.sum(), z)[0].data, slope, rtol=1e-9)
    assert loss.item() == 0
    zero, *_ = q(sg.tensor(np.zeros((1, 2))))
    assert (zero.data == 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder
# ---------------------------------------------------------------------------------------------------------------------


@every_kind
def test_it_learns_patches_by_heart(config):
    model = build(dataclasses.replace(config, hidden=16, lr=5e-3))
    optimizers = model.optimizers()
    before = {k: v.data.copy() for k, v in model.named_parameters()}
    losses = model.training_step((pictures(), None), optimizers)
    assert set(losses) == {"loss", "error", "commitment", "perplexity", "revived"}
    assert math.isclose(losses["loss"], losses["error"] + losses["commitment"], rel_tol=1e-5)
    for _ in range(200):
        last = model.training_step((pictures(), None), optimizers)
    assert not [k for k, v in model.named_parameters() if (v.data == before[k]).all()]
    assert last["error"] < 0.3 * losses["error"]
    model.eval()
    assert np.mean((model.reconstruct(pictures()) > 0.5) == (pictures() > 0.5)) > 0.9


def test_scores_tell_over_all_batches_which_codes_stand_for_pictures_and_how_many_were_revived():
    """Codes 0 and 1 in one batch, 2 in another, of 12 and 6 places: 3 are used, e^(log 3) evenly"""
    model = build(VQ).eval()
    e = model.quantizer.codebook.data.copy()
    e[:, 0] = np.arange(5)
    model.quantizer.codebook.copy_(e)
    model.quantizer.revivals.fill_(7)
    first = sg.tensor(np.array([1, 0, 0], np.float32).reshape(3, 1, 1))
    model.encoder.forward = lambda x: x[:, :, ::4, ::4].expand(-1, 3, -1, -1) * first  # a patch's vector is its corner pixel
    x = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, *SHAPE), np.float32)
    found = model.evaluate([(x[:2], None), (x[2:], None)])
    assert found["codes_used"] == 3 and found["perplexity"] == pytest.approx(3) and found["revivals"] == 7
    alone = model.evaluate([(x[:2], None), (np.concatenate([x[:2]] * 4), None)])
    assert alone["codes_used"] == 2 and alone["perplexity"] == pytest.approx(2)
    assert "revivals" not in build(KINDS["fsq"]).eval().evaluate([(x, None)])


def test_the_error_is_1_where_the_picture_is_the_mean():
    x = pictures(32)
    model = build(dataclasses.replace(VQ, variance=float(x.var()))).eval()
    for p in model.decoder.parameters():
        p.data = np.zeros_like(p.data)
    model.decoder.conv2.bias.data = np.full(1, x.mean(), np.float32)
    assert math.isclose(model.evaluate([(x, None)])["error"], 1, rel_tol=1e-5)


@every_kind
def test_codes_are_drawn_as_often_as_they_stood_at_their_place(config):
    model = build(config).eval()
    k = model.quantizer.codes
    chance = np.random.default_rng(0).dirichlet(np.ones(k), 6).astype(np.float32)
    model.frequencies.copy_(chance)
    seen = []
    model.decode = lambda ids: seen.append(ids)
    model.generate(20_000, generator=np.random.default_rng(1))
    drawn = np.stack([np.bincount(seen[0].reshape(-1, 6)[:, i], minlength=k) for i in range(6)]) / 20_000
    assert np.abs(drawn - chance).max() < 0.02
    del model.decode
    made = model.generate(4, generator=np.random.default_rng(1))
    assert made.shape == (4, *SHAPE) and made.min() >= 0 and made.max() <= 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"shape": (1, 8, 10)}, "divisible by 4"),
        ({"quantizer": "rvq"}, "quantizer 'vq' or 'fsq', got 'rvq'"),
        ({"decay": 1.0}, "decay of at least 0 and below 1, got 1"),
        ({"hidden": 7}, "even hidden, got 7"),
        ({"quantizer": "fsq", "levels": "8,x"}, "levels such as 8,4,4.*'8,x'"),
        ({"quantizer": "fsq", "levels": "1,4"}, "at least 2, got '1,4'"),
    ],
)
def test_bad_settings_get_one_clear_sentence(how, words):
    with pytest.raises(ValueError, match=words):
        build(dataclasses.replace(VQ, **how))


def test_the_perplexity_is_the_number_of_codes_where_all_are_used_evenly():
    assert math.isclose(_perplexity(np.full(7, 1 / 7)), 7, rel_tol=1e-12)
    assert math.isclose(_perplexity(np.array([0.5, 0.5, 0, 0])), 2, rel_tol=1e-12)
