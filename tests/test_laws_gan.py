r"""Laws behind the adversarial game: what §4 of Goodfellow et al. 2014 proves, shown to hold."""

import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen import nn, optim
from scratchgen.models.gan import discriminator_loss, generator_loss

P = np.array([0.5, 0.2, 0.2, 0.1])  # the data, on four outcomes
Q = np.array([0.1, 0.2, 0.3, 0.4])  # the generator


def value(logits, p=P, q=Q):
    r"""V = Σ p log σ(d) + Σ q log(1 − σ(d))"""
    return (sg.tensor(p) * F.logsigmoid(logits) + sg.tensor(q) * F.logsigmoid(-logits)).sum()


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
        (saturating,) = sg.grad(generator_loss(x, "saturating"), x)
        (other,) = sg.grad(generator_loss(x, "non-saturating"), x)
        assert math.isclose(saturating.item(), -1 / (1 + math.exp(-d)), rel_tol=1e-9)
        assert math.isclose(other.item(), -1 / (1 + math.exp(d)), rel_tol=1e-9)
    assert abs(saturating.item()) < 1e-16 and other.item() == pytest.approx(-1)


def test_both_generator_losses_have_the_same_fixed_point():
    r"""where D = ½ everywhere both pull equally hard: −σ(0) = −½ and −σ(−0) = −½"""
    x = sg.tensor(np.zeros(3), requires_grad=True)
    pulls = [sg.grad(generator_loss(x, kind), x)[0].data for kind in ("saturating", "non-saturating")]
    np.testing.assert_array_equal(pulls[0], pulls[1])


def test_the_discriminator_loss_is_binary_cross_entropy():
    r"""−V = BCE(d(x), 1) + BCE(d(G(z)), 0)"""
    rng = np.random.default_rng(0)
    real, fake = (sg.tensor(rng.normal(size=7)) for _ in range(2))
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, sg.ones_like(real)) + bce(fake, sg.zeros_like(fake))
    assert math.isclose(discriminator_loss(real, fake).item(), expected.item(), rel_tol=1e-12)


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
