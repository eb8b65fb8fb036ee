"""Stochastic convex problems with a known minimum, to check the theory's claims.

Both average convex functions of a batch z, so the noise of ∇f(x; z) is Lipschitz in x, as the
analysis of μ²-SGD assumes: ∇f(x; z) − ∇f(y; z) vanishes with x − y.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flwr_byzasync.estimators import Gradient

BATCH = 16


class Problem(Protocol):
    """A smooth convex function with stochastic gradients."""

    @property
    def solution(self) -> Tensor:
        """(d,) float64, the minimiser. Runs start at 0."""
        ...

    @property
    def smoothness(self) -> float:
        """L, the Lipschitz constant of the gradient."""
        ...

    def excess(self, x: Tensor) -> float:
        """Return ``f(x) − f*``."""
        ...

    def draw(self, generator: torch.Generator) -> Gradient:
        """Return ``∇f(·; z)`` for a fresh batch z."""
        ...


@dataclass(frozen=True)
class LeastSquares:
    """Strongly convex: ``f(x) = ½ E (⟨a, x − x*⟩ − e)²`` with Gaussian a and e.

    The covariance of a is diagonal, with eigenvalues from 1 down to ``1/condition``, evenly spaced
    on a logarithmic scale, so ``f(x) − f* = ½ Σ h_k (x − x*)_k²`` exactly.

    Parameters
    ----------
    size : int
        d.
    condition : float
        Ratio of the largest to the smallest curvature.
    noise : float
        Standard deviation of e.
    """

    size: int = 30
    condition: float = 10.0
    noise: float = 2.0

    @property
    def curvature(self) -> Tensor:
        """(d,) eigenvalues h of the Hessian."""
        exponents = torch.linspace(0.0, 1.0, self.size, dtype=torch.float64)
        return self.condition**-exponents

    @property
    def solution(self) -> Tensor:
        """x*, of norm √d."""
        return torch.ones(self.size, dtype=torch.float64)

    @property
    def smoothness(self) -> float:
        """L = 1."""
        return 1.0

    def excess(self, x: Tensor) -> float:
        """Return ``½ Σ h_k (x − x*)_k²``."""
        return float(0.5 * (self.curvature * (x - self.solution).square()).sum())

    def draw(self, generator: torch.Generator) -> Gradient:
        """Return the gradient for a batch of pairs (a, e)."""
        drawn = torch.randn(BATCH, self.size + 1, dtype=torch.float64, generator=generator)
        features = drawn[:, :-1] * _roots(self)
        targets = features.sum(dim=1) + self.noise * drawn[:, -1]  # ⟨a, x*⟩ + e
        transposed = features.t() / BATCH
        return lambda x: transposed @ (features @ x - targets)


@cache
def _roots(problem: LeastSquares) -> Tensor:
    return problem.curvature.sqrt()


@dataclass(frozen=True)
class Logistic:
    """Convex: mean logistic loss over generated examples, some with wrong labels.

    Scales of the directions run from 1 down to 0.03, so some are nearly flat; without
    regularisation there is no useful strong convexity.

    Parameters
    ----------
    signed : Tensor
        (n, d) float64, each example's features times its label ±1.
    solution : Tensor
        (d,) the minimiser.
    minimum : float
        f*.
    smoothness : float
        L.
    """

    signed: Tensor
    solution: Tensor
    minimum: float
    smoothness: float

    @classmethod
    def generate(
        cls, size: int = 20, examples: int = 2000, wrong: float = 0.1, seed: int = 0
    ) -> "Logistic":
        """Generate the data from a seed, and find the minimum by Newton's method."""
        generator = torch.Generator().manual_seed(seed)
        scales = torch.logspace(0.0, -1.5, size, dtype=torch.float64)
        features = torch.randn(examples, size, dtype=torch.float64, generator=generator) * scales
        truth = torch.randn(size, dtype=torch.float64, generator=generator)
        flips = torch.rand(examples, dtype=torch.float64, generator=generator) < wrong
        labels = torch.where(features @ truth > 0, 1.0, -1.0) * torch.where(flips, -1.0, 1.0)
        signed = features * labels.unsqueeze(1)
        solution = newton(signed)
        hessian = signed.t() @ signed / (4 * examples)  # σ(1 − σ) <= 1/4
        largest = float(torch.linalg.eigvalsh(hessian)[-1])
        return cls(signed, solution, float(softplus(-(signed @ solution)).mean()), largest)

    def excess(self, x: Tensor) -> float:
        """Return the mean loss over all examples minus the minimum."""
        return float(softplus(-(self.signed @ x)).mean()) - self.minimum

    def draw(self, generator: torch.Generator) -> Gradient:
        """Return the gradient for a batch of examples, drawn with replacement."""
        chosen = torch.randint(len(self.signed), (BATCH,), generator=generator)
        batch = self.signed[chosen]
        transposed = -batch.t() / BATCH
        return lambda x: transposed @ torch.sigmoid(-(batch @ x))


def newton(signed: Tensor) -> Tensor:
    """Return the minimiser of the mean logistic loss, up to rounding.

    Parameters
    ----------
    signed : Tensor
        (n, d) features times labels, not linearly separable.

    Raises
    ------
    RuntimeError
        If the gradient does not vanish: the examples are separable.
    """
    x = signed.new_zeros(signed.shape[1])
    for _ in range(50):
        margins = signed @ x
        miss = torch.sigmoid(-margins)
        gradient = -(signed.t() @ miss) / len(signed)
        # Separable examples have a vanishing gradient too, at infinity.
        if float(torch.linalg.vector_norm(gradient)) < 1e-13 and float(margins.min()) < 0:
            return x
        hessian = (signed.t() * (miss * (1 - miss))) @ signed / len(signed)
        x = x - torch.linalg.solve(hessian, gradient)
    raise RuntimeError("Newton's method did not converge: the examples may be separable")


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "least_squares": LeastSquares,
    "logistic": Logistic.generate,
}


@cache
def problem(name: str) -> Problem:
    """Return a problem by name; cached, since Newton's method takes a while."""
    return PROBLEMS[name]()
