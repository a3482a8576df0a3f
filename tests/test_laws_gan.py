r"""Laws behind the adversarial game: what §4 of Goodfellow et al. 2014 proves, shown to hold."""

import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen import nn, optim
from scratchgen.models.adversarial import OBJECTIVES, between, objective, one_centred, slopes
from scratchgen.models.dirac import WAYS, Dirac, paths
from scratchgen.models.family import lattice

P = np.array([0.5, 0.2, 0.2, 0.1])  # the data, on four outcomes
Q = np.array([0.1, 0.2, 0.3, 0.4])  # the generator


def value(logits, p=P, q=Q):
    r"""V = Σ p log σ(d) + Σ q log(1 − σ(d))"""
    return (sg.tensor(p) * F.logsigmoid(logits) + sg.tensor(q) * F.logsigmoid(-logits)).sum()


def lowered(fake, name):
    """What G lowers, of its logits; none of those asked for here reads the real ones."""
    return objective(name).generator(sg.zeros_like(fake), fake)


def jsd(p, q):
    r"""½ KL(p ‖ m) + ½ KL(q ‖ m),  m = (p + q) / 2"""
    m = (p + q) / 2
    return 0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(q * np.log(q / m))


def test_the_best_discriminator_is_p_over_p_plus_q_and_is_reached_by_training():
    r"""D* = p / (p + q) maximises V(D, G), and V(D*, G) = −log 4 + 2 JSD(p ‖ q)"""
    d = sg.tensor(np.zeros(4), requires_grad=True)
    optimizer = optim.SGD([d], lr=5.0)
    for _ in range(600):
        optimizer.zero_grad()
        (-value(d)).backward()
        optimizer.step()
    np.testing.assert_allclose(1 / (1 + np.exp(-d.data)), P / (P + Q), atol=1e-6)
    assert math.isclose(value(d).item(), -math.log(4) + 2 * jsd(P, Q), rel_tol=1e-9)


def test_nothing_beats_the_best_discriminator():
    r"""∂V/∂D = 0 at D* and ∂²V/∂d² is negative definite there"""
    best = sg.tensor(np.log(P / Q), requires_grad=True)
    (g,) = sg.grad(value(best), best)
    np.testing.assert_allclose(g.data, 0, atol=1e-15)
    curvature = np.linalg.eigvalsh(sg.hessian(value, best).data)
    assert (curvature < 0).all()
    rng = np.random.default_rng(0)
    assert all(value(best + sg.tensor(rng.normal(size=4))).item() < value(best).item() for _ in range(50))


def test_the_games_value_is_lowest_where_the_generator_is_the_data():
    r"""min_G max_D V = −log 4, reached at q = p only: JSD ≥ 0, and 0 only there"""
    rng = np.random.default_rng(0)
    at_data = value(sg.tensor(np.zeros(4)), P, P).item()
    assert math.isclose(at_data, -math.log(4), rel_tol=1e-12)
    for q in rng.dirichlet(np.ones(4), 50):
        assert value(sg.tensor(np.log(P / q)), P, q).item() > at_data


def test_a_generator_that_descends_against_the_best_discriminator_becomes_the_data():
    r"""q ← q − η ∂V(D*, q)/∂q:  with D at its best for each q, descent on V ends at p"""
    logits = sg.tensor(np.log(Q), requires_grad=True)
    optimizer = optim.SGD([logits], lr=2.0)
    for _ in range(1500):
        q = F.softmax(logits, 0)
        d = sg.tensor(np.log(P / q.data))  # D*
        optimizer.zero_grad()
        (q * F.logsigmoid(-d)).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(F.softmax(logits, 0).data, P, atol=1e-4)


def test_the_saturating_gradient_vanishes_where_the_other_does_not():
    r"""d → −∞ (D is sure that G(z) is false):  ∂/∂d log(1 − σ(d)) = −σ(d) → 0,  ∂/∂d (−log σ(d)) = −σ(−d) → −1"""
    for d in (-2.0, -8.0, -40.0):
        x = sg.tensor(np.array([d]), requires_grad=True)
        (saturating,) = sg.grad(lowered(x, "minimax"), x)
        (other,) = sg.grad(lowered(x, "non-saturating"), x)
        assert math.isclose(saturating.item(), -1 / (1 + math.exp(-d)), rel_tol=1e-9)
        assert math.isclose(other.item(), -1 / (1 + math.exp(d)), rel_tol=1e-9)
    assert abs(saturating.item()) < 1e-16 and other.item() == pytest.approx(-1)


def test_both_generator_losses_have_the_same_fixed_point():
    r"""where D = ½ everywhere both pull equally hard: −σ(0) = −½ and −σ(−0) = −½"""
    x = sg.tensor(np.zeros(3), requires_grad=True)
    pulls = [sg.grad(lowered(x, kind), x)[0].data for kind in ("minimax", "non-saturating")]
    np.testing.assert_array_equal(pulls[0], pulls[1])


def test_the_discriminator_loss_is_binary_cross_entropy():
    r"""−V = BCE(d(x), 1) + BCE(d(G(z)), 0)"""
    rng = np.random.default_rng(0)
    real, fake = (sg.tensor(rng.normal(size=7)) for _ in range(2))
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, sg.ones_like(real)) + bce(fake, sg.zeros_like(fake))
    assert math.isclose(objective("minimax").discriminator(real, fake).item(), expected.item(), rel_tol=1e-12)


def test_batch_norm_forgets_the_scale_before_it():
    r"""BN(a x + b) = BN(x) for a > 0, so the gradient with respect to the scale before it is 0 (as ε → 0)"""
    rng = np.random.default_rng(0)
    x = sg.tensor(rng.normal(size=(16, 3)))
    norm = lambda t: F.batch_norm(t, None, None, training=True, eps=0.0)  # noqa: E731
    np.testing.assert_allclose(norm(x * 5 + 2).data, norm(x).data, rtol=1e-9, atol=1e-12)
    a = sg.tensor(np.array(2.0), requires_grad=True)
    (g,) = sg.grad((norm(x * a) * sg.tensor(rng.normal(size=(16, 3)))).sum(), a)
    assert abs(g.item()) < 1e-12


def test_the_gradient_penalty_of_a_linear_critic_is_known():
    r"""d(x) = w·x:  ∇d = w, so (‖∇d‖ − 1)² = (‖w‖ − 1)² and its gradient is 2 (‖w‖ − 1) w / ‖w‖:  second order, through nn"""
    sg.manual_seed(0)
    critic = nn.Linear(5, 1).double()
    x = sg.tensor(np.random.default_rng(0).normal(size=(4, 5)), requires_grad=True)
    (g,) = sg.grad(critic(x).sum(), x, create_graph=True)
    penalty = (g.norm(dim=1) - 1).square().mean()
    w = critic.weight.data
    size = np.linalg.norm(w)
    assert math.isclose(penalty.item(), (size - 1) ** 2, rel_tol=1e-12)
    np.testing.assert_allclose(sg.grad(penalty, critic.weight)[0].data, 2 * (size - 1) * w / size, rtol=1e-10)


def test_the_gradient_penalty_reaches_every_weight_of_a_convolutional_critic():
    r"""∂/∂θ E[(‖∇_x d(x)‖ − 1)²] is what differences of the penalty say, for every θ but the last bias, and nowhere 0"""
    sg.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(12, 1)).double()
    x = np.random.default_rng(0).normal(size=(2, 1, 4, 4))

    def penalty(x):
        (g,) = sg.grad(critic(x).sum(), x, create_graph=True)
        return (g.flatten(1).norm(dim=1) - 1).square().mean()

    weights = [p for name, p in critic.named_parameters() if name != "3.bias"]  # a shift of d has no slope
    x = sg.tensor(x, requires_grad=True)
    for p, g in zip(weights, sg.grad(penalty(x), weights), strict=True):
        at = np.unravel_index(np.abs(g.data).argmax(), g.shape)
        h, centre = 1e-5, p.data[at].item()
        sides = []
        for move in (h, -h):
            with p.writing() as array:
                array[at] = centre + move
            sides.append(penalty(x).item())
        with p.writing() as array:
            array[at] = centre
        assert g.data[at] != 0 and math.isclose((sides[0] - sides[1]) / (2 * h), g.data[at], rel_tol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The other objectives
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, of_d, of_g",
    [  # at d_r = (2, 0), d_f = (1, −1), worked by hand;  ς(t) = log(1 + eᵗ)
        ("minimax", (0.126928 + 0.693147 + 1.313262 + 0.313262) / 2, -(1.313262 + 0.313262) / 2),
        ("non-saturating", (0.126928 + 0.693147 + 1.313262 + 0.313262) / 2, (0.313262 + 1.313262) / 2),
        ("least-squares", (1 + 1) / 4 + (1 + 1) / 4, (0 + 4) / 4),
        ("hinge", (0 + 1) / 2 + (2 + 0) / 2, 0.0),
        ("wasserstein", 0.0 - 1.0, 0.0),
        ("relativistic", (0.313262 + 0.313262) / 2, (1.313262 + 1.313262) / 2),
    ],
)
def test_objectives_at_known_logits(name, of_d, of_g):
    real, fake = sg.tensor([2.0, 0.0], dtype=np.float64), sg.tensor([1.0, -1.0], dtype=np.float64)
    assert objective(name).discriminator(real, fake).item() == pytest.approx(of_d, abs=1e-6)
    assert objective(name).generator(real, fake).item() == pytest.approx(of_g, abs=1e-6)
    assert len(OBJECTIVES) == 6


def best_logits(name, steps=4000, lr=0.5):
    """The logits on four outcomes that minimise the discriminator's loss; pairs of outcomes stand for the pairs of a batch."""
    pairs = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), -1).reshape(-1, 2)
    weight = sg.tensor(P[pairs[:, 0]] * Q[pairs[:, 1]])
    d = sg.tensor(np.zeros(4), requires_grad=True)
    optimizer = optim.SGD([d], lr=lr)
    for step in range(steps):
        real, fake = d[pairs[:, 0]], d[pairs[:, 1]]
        each = [objective(name).discriminator(real[i : i + 1], fake[i : i + 1]) for i in range(len(pairs))]
        loss = (sg.stack(each) * weight).sum()
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return d.data


def test_the_best_least_squares_discriminator_is_p_over_p_plus_q():
    r"""½ p (d − 1)² + ½ q d² is lowest at d = p / (p + q)"""
    np.testing.assert_allclose(best_logits("least-squares", 200, 1.0), P / (P + Q), atol=1e-6)


def test_the_best_hinge_discriminator_is_a_sign():
    r"""p max(0, 1 − d) + q max(0, 1 + d) is lowest at 1 where p > q, at −1 where p < q; where p = q all between are best"""
    d = best_logits("hinge", 400, 0.5)
    np.testing.assert_allclose(d[[0, 2, 3]], [1, -1, -1], atol=0.05)
    assert -1.05 < d[1] < 1.05


def test_the_best_relativistic_discriminator_is_the_log_ratio_up_to_a_constant():
    r"""Σ_x Σ_y p(x) q(y) log σ(d(x) − d(y)) is highest at d = log p/q + const"""
    d = best_logits("relativistic", 1200, 8.0)
    ratio = np.log(P / Q)
    np.testing.assert_allclose(d - d.mean(), ratio - ratio.mean(), atol=1e-3)


def test_a_wasserstein_critic_finds_the_distance_from_below():
    r"""sup over slopes ≤ 1 of E f(x) − E f(y) = W₁ (Kantorovich–Rubinstein), so (E d_r − E d_f) / max |d′| ≤ W₁ always;
    trained with the gradient penalty it comes near, with |d′| near 1 between the samples"""
    from scipy.stats import wasserstein_distance

    sg.manual_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(-1, 0.3, (256, 1)), rng.normal(1.5, 0.5, (256, 1))
    real, fake, truth = sg.tensor(x), sg.tensor(y), wasserstein_distance(x[:, 0], y[:, 0])
    critic = nn.Sequential(nn.Linear(1, 32), nn.Softplus(), nn.Linear(32, 32), nn.Softplus(), nn.Linear(32, 1)).double()
    optimizer = optim.Adam(critic.parameters(), lr=3e-3, betas=(0.5, 0.9))
    line = sg.tensor(np.linspace(-3, 4, 400)[:, None], requires_grad=True)
    found = []
    for step in range(400):
        middle = between(real, fake, generator=rng).requires_grad_()
        loss = objective("wasserstein").discriminator(critic(real), critic(fake))
        loss = loss + 10 * one_centred(slopes(critic(middle), middle))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            steepest = np.abs(sg.grad(critic(line).sum(), line)[0].data).max()
            with sg.no_grad():
                found.append((critic(real).mean() - critic(fake).mean()).item() / steepest)
    assert max(found) <= truth + 1e-9 and found[-1] > 0.93 * truth
    (slope,) = sg.grad(critic(line).sum(), line)
    inside = (line.data[:, 0] > x.mean()) & (line.data[:, 0] < y.mean())
    assert 0.9 < np.abs(slope.data[inside]).mean() < 1.2  # the objective pulls it beyond 1, against a penalty of finite weight


# ---------------------------------------------------------------------------------------------------------------------
# The smallest game: Mescheder et al. 2018, arXiv:1801.04406, §2
# ---------------------------------------------------------------------------------------------------------------------


def test_the_field_of_the_smallest_game_is_what_the_equations_say():
    r"""v(θ, ψ) = (ψ s(ψθ), −θ s(ψθ)), s = σ or 1;  R1 adds −γ ψ to the second, WGAN-GP −2λ (|ψ| − 1) sign ψ"""
    at = np.array([[0.7, -0.4], [-0.2, 1.5]])
    theta, psi = at.T
    sigmoid = 1 / (1 + np.exp(-psi * theta))
    np.testing.assert_allclose(Dirac().directions(at).T, [psi * sigmoid, -theta * sigmoid], atol=1e-15)
    np.testing.assert_allclose(Dirac(r1=0.3).directions(at).T, [psi * sigmoid, -theta * sigmoid - 0.3 * psi], atol=1e-15)
    np.testing.assert_allclose(Dirac("wasserstein").directions(at).T, [psi, -theta], atol=1e-15)
    pulled = Dirac("wasserstein", gradient_penalty=0.3).directions(at).T
    np.testing.assert_allclose(pulled, [psi, -theta - 0.6 * (abs(psi) - 1) * np.sign(psi)], atol=1e-15)


def test_eigenvalues_of_the_smallest_game():
    r"""at (0, 0), f′(0) = ½:  minimax ±i f′(0), which circles;  with R1  −γ/2 ± √(γ²/4 − f′(0)²), which converges"""
    for name in ("minimax", "non-saturating", "relativistic"):
        np.testing.assert_allclose(Dirac(name).eigenvalues(), [-0.5j, 0.5j], atol=1e-12)
    for gamma in (0.1, 0.5, 2.0):
        found = Dirac(r1=gamma).eigenvalues()
        root = np.sqrt(complex(gamma**2 / 4 - 0.25))
        np.testing.assert_allclose(np.sort_complex(found), np.sort_complex([-gamma / 2 - root, -gamma / 2 + root]), atol=1e-9)
        assert found.real.max() < 0


def test_factors_of_a_step_of_the_smallest_game():
    r"""both at once: |1 + hλ| = √(1 + h² f′(0)²) > 1, however small h;  in turns 1;  with R1 below 1"""
    for h in (0.01, 0.2):
        both = Dirac(alternating=False, step=h).factors()
        np.testing.assert_allclose(both, math.sqrt(1 + h * h / 4), rtol=1e-12)
        np.testing.assert_allclose(Dirac(step=h).factors(), 1, rtol=1e-12)
        assert Dirac(r1=0.5, step=h).factors().max() < 1


def distances(steps, **way):
    """The distances from (0, 0) on the way from (1, 0.5)."""
    return np.hypot(*Dirac(**way).path(steps).T)


def test_paths_of_the_smallest_game():
    """Simultaneous steps spiral out, alternating ones keep their distance, R1 leads to the solution, WGAN-GP does not."""
    together = distances(100, alternating=False, loss="wasserstein")
    np.testing.assert_allclose(together, together[0] * 1.04 ** (np.arange(101) / 2), rtol=1e-9)  # √(1 + h²) a step
    together = distances(100, alternating=False)
    assert together[-1] > 1.2 * together[0] and (np.diff(together) > 0).all()
    for loss in ("wasserstein", "minimax"):
        turns = distances(150, loss=loss)
        assert 0.8 * turns[0] < turns.min() and turns.max() < 1.25 * turns[0]
    assert distances(150, r1=1.0)[-1] < 1e-4
    round_it = Dirac("wasserstein", gradient_penalty=0.3).path(200)[-100:]
    assert np.hypot(*round_it.T).min() > 0.5 and (np.abs(round_it).max(0) > 0.5).all()  # it goes round for ever


def test_a_strong_penalty_of_wgan_gp_stops_the_smallest_game_elsewhere():
    """With λ ≥ 1 the game comes to rest at (±2λ, 0), where D tells nothing of a θ that is wrong."""
    theta, psi = Dirac("wasserstein", gradient_penalty=1.0).path(100)[-1]
    assert abs(theta) == pytest.approx(2, abs=1e-3) and abs(psi) < 1e-3


def test_the_four_ways_are_drawn_with_the_field_that_they_follow():
    drawn = paths(steps=5, side=4)
    assert [title for title, _, _ in drawn.paths] == list(WAYS)
    for (_, path, field), way in zip(drawn.paths, WAYS.values(), strict=True):
        np.testing.assert_array_equal(path, way.path(5))
        np.testing.assert_array_equal(field, way.directions(lattice(drawn.square, 4).astype(np.float64)))
