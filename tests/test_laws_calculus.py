r"""Laws of the calculus itself: linearity, adjoints, the chain rule in its other forms, the first step of Adam."""

import math

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen import nn, optim


def draw(*shape, seed=0):
    return sg.tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (3, 1, 1, 2), (2, (1, 0), (1, 2), 2)],
)
def test_convolution_and_transposed_convolution_are_adjoint(stride, padding, dilation, groups):
    r"""⟨w ⋆ x, y⟩ = ⟨x, w ⋆ᵀ y⟩"""
    x, w = draw(2, 4, 9, 8), draw(6, 4 // groups, 3, 3, seed=1)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    image = F.conv2d(x, w, **how)
    y = draw(*image.shape, seed=2)
    # where the stride does not divide, the transpose would leave out cells at the end, which no window reached
    short = F.conv_transpose2d(y, w, **how).shape[2:]
    rest = tuple(m - n for m, n in zip(x.shape[2:], short, strict=True))
    back = F.conv_transpose2d(y, w, **how, output_padding=rest)
    assert math.isclose((image * y).sum().item(), (x * back).sum().item(), rel_tol=1e-11)


def test_convolution_is_bilinear_and_commutes_with_shifts():
    r"""(a x + b x') ⋆ w = a (x ⋆ w) + b (x' ⋆ w);  shifting x shifts x ⋆ w"""
    x, z, w = draw(1, 2, 7, 7), draw(1, 2, 7, 7, seed=1), draw(3, 2, 3, 3, seed=2)
    both = F.conv2d(2.0 * x - 3.0 * z, w)
    np.testing.assert_allclose(both.data, 2 * F.conv2d(x, w).data - 3 * F.conv2d(z, w).data, atol=1e-12)
    shifted = F.conv2d(x.roll(1, 3), w).data
    np.testing.assert_allclose(shifted[..., 1:], F.conv2d(x, w).data[..., :-1], atol=1e-13)


def test_the_gradient_of_a_sum_over_a_batch_is_the_sum_of_gradients():
    r"""∇ Σ_n ℓ(x_n) = Σ_n ∇ ℓ(x_n)"""
    sg.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    x, t = draw(6, 4), np.array([0, 1, 2, 0, 1, 2])
    parameters = list(net.parameters())
    whole = sg.grad(F.cross_entropy(net(x), t, reduction="sum"), parameters)
    single = [sg.grad(F.cross_entropy(net(x[i : i + 1]), t[i : i + 1], reduction="sum"), parameters) for i in range(6)]
    for i, g in enumerate(whole):
        np.testing.assert_allclose(g.data, sum(s[i].data for s in single), rtol=1e-10, atol=1e-13)


def test_the_gradient_is_linear_in_the_cotangent():
    r"""Jᵀ(a u + b v) = a Jᵀu + b Jᵀv"""
    f = lambda x: F.softmax(x @ x.T, 1)  # noqa: E731
    x, u, v = draw(4, 3), draw(4, 4, seed=1).detach(), draw(4, 4, seed=2).detach()
    g = lambda c: sg.vjp(f, x, c)[1].data  # noqa: E731
    np.testing.assert_allclose(g(2.0 * u - 0.5 * v), 2 * g(u) - 0.5 * g(v), rtol=1e-11, atol=1e-14)


def test_jvp_and_vjp_are_transposes_and_rows_and_columns_of_the_jacobian():
    r"""⟨v, J u⟩ = ⟨Jᵀ v, u⟩"""
    f = lambda x: (x @ x).tanh().sum(0)  # noqa: E731
    x, u, v = draw(3, 3), draw(3, 3, seed=1).detach(), draw(3, seed=2).detach()
    jacobian = sg.jacobian(f, x).data  # (3, 3, 3)
    ju, jtv = sg.jvp(f, x, u)[1].data, sg.vjp(f, x, v)[1].data
    np.testing.assert_allclose(ju, np.einsum("ijk,jk->i", jacobian, u.data), rtol=1e-12)
    np.testing.assert_allclose(jtv, np.einsum("ijk,i->jk", jacobian, v.data), rtol=1e-12)
    assert math.isclose((v.data * ju).sum(), (jtv * u.data).sum(), rel_tol=1e-12)


def test_the_hessian_is_symmetric_and_hvp_is_its_product():
    r"""H = Hᵀ (Schwarz), and hvp(f, x, u) = H u"""
    f = lambda x: (x.exp() * x.roll(1, 0)).sum() + x.prod()  # noqa: E731
    x, u = draw(5), draw(5, seed=1).detach()
    h = sg.hessian(f, x).data
    np.testing.assert_allclose(h, h.T, rtol=1e-12)
    np.testing.assert_allclose(sg.hvp(f, x, u)[1].data, h @ u.data, rtol=1e-11)


def test_recomputing_is_storing():
    r"""checkpoint(f, x) = f(x) and ∇ checkpoint(f, x) = ∇f, bit for bit; ∇² but for the order of sums; dropout is replayed"""
    w = draw(5, 5, seed=1)
    block = lambda x: F.dropout((x @ w).tanh(), 0.3) @ w  # noqa: E731
    found = []
    for f in (block, lambda x: sg.checkpoint(block, x)):
        sg.manual_seed(0)
        x = draw(4, 5)
        y = f(x)
        first = sg.grad(y.square().sum(), [x, w], create_graph=True)
        second = sg.grad(first[0].square().sum() + first[1].sum(), [x, w])
        found.append([[t.data for t in ts] for ts in ((y, *first), second)])
    (plain, plain_second), (again, again_second) = found
    assert all(a.tobytes() == b.tobytes() for a, b in zip(plain, again, strict=True))
    for a, b in zip(plain_second, again_second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_the_chain_rule():
    r"""J_{g∘f}(x) = J_g(f(x)) J_f(x)"""
    f = lambda x: x.sin() * x.flip(0)  # noqa: E731
    g = lambda y: F.softmax(y, 0)  # noqa: E731
    x = draw(4)
    whole = sg.jacobian(lambda x: g(f(x)), x).data
    np.testing.assert_allclose(whole, sg.jacobian(g, f(x).detach()).data @ sg.jacobian(f, x).data, rtol=1e-11, atol=1e-14)


def test_eulers_theorem_for_homogeneous_functions():
    r"""f(t x) = tⁿ f(x)   ⇒   x · ∇f = n f"""
    x = draw(6)
    for f, n in [(lambda x: x.norm(), 1), (lambda x: (x**4).sum(), 4), (lambda x: x.prod(), 6), (lambda x: x.amax(), 1)]:
        (g,) = sg.grad(f(x), x)
        assert math.isclose((x.data * g.data).sum(), n * f(x).item(), rel_tol=1e-11)


def test_adams_first_step_is_lr_times_the_sign_of_the_gradient():
    r"""m̂ = g, v̂ = g²   ⇒   Δ = −lr g / (|g| + ε) ≈ −lr sign(g), whatever the size of g"""
    for Optimizer in (optim.Adam, optim.AdamW):
        x = sg.tensor(np.array([3.0, -2.0, 1e-3, -50.0]), requires_grad=True)
        optimizer = Optimizer([x], lr=0.1, eps=1e-12, weight_decay=0.0)
        (x * sg.tensor(np.array([1e-3, 5.0, -700.0, -1.0]))).sum().backward()
        before = x.data.copy()
        optimizer.step()
        np.testing.assert_allclose(x.data - before, 0.1 * np.array([-1, -1, 1, 1]), rtol=1e-8)


def test_decoupled_weight_decay_is_not_l2_in_the_gradient():
    r"""AdamW shrinks by lr λ whatever the gradient; Adam with λ puts λ p into g, where its size is normalised away"""
    shrink = {}
    for Optimizer in (optim.Adam, optim.AdamW):
        x = sg.tensor(np.array([2.0, 200.0]), requires_grad=True)
        optimizer = Optimizer([x], lr=0.1, weight_decay=0.01)
        (x * 0.0).sum().backward()
        optimizer.step()
        shrink[Optimizer] = 1 - x.data / np.array([2.0, 200.0])
    np.testing.assert_allclose(shrink[optim.AdamW], 0.001, rtol=1e-12)
    np.testing.assert_allclose(shrink[optim.Adam], [0.05, 0.0005], rtol=1e-4)


def test_the_straight_line_of_gradient_descent_on_a_quadratic():
    r"""x ← x − η A x on ½ xᵀ A x:   x_t = (I − η A)ᵗ x_0"""
    a = np.diag([1.0, 3.0, 0.2])
    x = sg.tensor(np.ones(3), requires_grad=True)
    optimizer = optim.SGD([x], lr=0.3)
    for _ in range(20):
        optimizer.zero_grad()
        (0.5 * (x @ sg.tensor(a) @ x)).backward()
        optimizer.step()
    np.testing.assert_allclose(x.data, np.diag(np.linalg.matrix_power(np.eye(3) - 0.3 * a, 20)), rtol=1e-12)
