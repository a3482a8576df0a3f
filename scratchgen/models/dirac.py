r"""The smallest adversarial game.  Mescheder et al. 2018, arXiv:1801.04406, §2.

The data are one point, 0; the generator makes one point, θ; the discriminator is linear, D(x) = ψ x. Each player has one
parameter, and the only solution is (θ, ψ) = (0, 0). Both follow the field

    v(θ, ψ) = (−∂L_G/∂θ, −∂L_D/∂ψ) = (ψ s(ψθ), −θ s(ψθ))     minimax: s = σ;  Wasserstein: s = 1                   (1)

whose Jacobian at the solution has, with s = s(0), the paper's f′(0), the eigenvalues

    no penalty           ±i s                                 the field circles                                    (2)
    R1, + γ/2 ψ²         −γ/2 ± √(γ²/4 − s²)                  the field leads inwards                              (3)

A step of length h multiplies a small distance from the solution by |1 + h λ|. So where both players move at once, that is by
√(1 + h² s²) > 1: they spiral outwards, however small h. Where they take turns, it is by 1, as long as h s < 2, since the two
moves of a step are shears, whose product has determinant 1. The penalty of WGAN-GP, λ (|ψ| − 1)², pulls ψ away from 0: for
λ < 1 the players go round the solution for ever, for larger λ they come to rest at (±2λ, 0), which is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scratchgen.autograd import grad
from scratchgen.calculus import jacobian
from scratchgen.models import adversarial
from scratchgen.models.family import Paths, lattice
from scratchgen.ops import cat, zeros
from scratchgen.tensors import Tensor


@dataclass(frozen=True)
class Dirac:
    """One way to play the game."""

    loss: str = "minimax"  # a key of `adversarial.OBJECTIVES`
    alternating: bool = True  # does D move first, and G answer? Else both move at once
    r1: float = 0.0  # γ of the penalty on D's slope at the real point
    gradient_penalty: float = 0.0  # λ of WGAN-GP
    step: float = 0.2  # h, both players' learning rate

    def field(self, state: Tensor) -> Tensor:
        """v(θ, ψ), eq. 1, as part of the graph; (θ, ψ) requires a gradient.     (2) → (2)"""
        theta, psi = state[0:1], state[1:2]
        x = zeros(1, 1, dtype=state.dtype).requires_grad_()  # the real point: one sample, in a space of one dimension
        real, fake = psi * x[:, 0], psi * theta
        objective = adversarial.objective(self.loss)
        loss_d, loss_g = objective.discriminator(real, fake), objective.generator(real, fake)
        if self.r1 or self.gradient_penalty:
            slope = adversarial.slopes(real, x)  # ψ, wherever it is looked at
            loss_d = loss_d + self.r1 * adversarial.zero_centred(slope)
            if self.gradient_penalty:
                loss_d = loss_d + self.gradient_penalty * adversarial.one_centred(slope)
        (by_theta,) = grad(loss_g, theta, create_graph=True)
        (by_psi,) = grad(loss_d, psi, create_graph=True)
        return -cat([by_theta, by_psi])

    def directions(self, states: np.ndarray) -> np.ndarray:
        """v at many (θ, ψ).     float64 (N, 2) → (N, 2)"""
        return np.stack([self.field(Tensor(state, requires_grad=True)).data for state in states])

    def move(self, state: Tensor) -> Tensor:
        """Where one step leads, as part of the graph.     (2) → (2)"""
        theta, psi = state[0:1], state[1:2]
        by_theta, by_psi = self.field(state).chunk(2)
        if self.alternating:
            psi = psi + self.step * by_psi
            return cat([theta + self.step * self.field(cat([theta, psi]))[0:1], psi])
        return cat([theta + self.step * by_theta, psi + self.step * by_psi])

    def path(self, steps: int, start: tuple[float, float] = (1.0, 0.5)) -> np.ndarray:
        """(θ, ψ) at the start and after each step.     → float64 (steps + 1, 2)"""
        states = [np.array(start)]
        for _ in range(steps):
            states.append(self.move(Tensor(states[-1], requires_grad=True)).data)
        return np.stack(states)

    def eigenvalues(self) -> np.ndarray:
        """Of the Jacobian of `field` at the solution, eq. 2 and 3: complex (2), by imaginary part."""
        return _eigenvalues(jacobian(self.field, _solution()))

    def factors(self) -> np.ndarray:
        """By how much one step multiplies a small distance from the solution, in two directions: float64 (2), ascending."""
        return np.sort(np.abs(_eigenvalues(jacobian(self.move, _solution()))))


def _solution() -> Tensor:
    return Tensor(np.zeros(2), requires_grad=True)


def _eigenvalues(matrix: Tensor) -> np.ndarray:
    found = np.linalg.eigvals(matrix.data)
    return found[np.lexsort((found.real, found.imag))]


WAYS = {
    "simultaneous": Dirac(alternating=False),
    "alternating": Dirac(),
    "alternating, R1": Dirac(r1=0.5),
    "alternating, WGAN-GP": Dirac("wasserstein", gradient_penalty=0.3),
}


def paths(steps: int = 300, square: tuple[float, float, float] = (0.0, 0.0, 2.0), side: int = 13) -> Paths:
    """The four ways to play, each from the same start, over the field that it follows."""
    grid = lattice(square, side).astype(np.float64)
    drawn = []
    for name, way in WAYS.items():
        drawn.append((name, way.path(steps), way.directions(grid)))
    return Paths(
        drawn,
        square,
        ("θ, the generator", "ψ, the discriminator"),
        "The smallest game: the data are the point 0, *G* makes the point θ, *D* judges x by ψ x. Both players follow the "
        "arrows from the dot; the cross is the solution. Moving at once they leave it, taking turns they keep their distance, "
        "with R1 they reach it, and with the penalty of WGAN-GP they do not.",
    )
