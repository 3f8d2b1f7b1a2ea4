"""Reptile: move theta toward the adapted parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..meta import Pullback
from ..problem import Problem
from ..tasks import Tasks
from .descent import Descent


@dataclass(frozen=True)
class Reptile(Descent):
    """Reptile: adapts by gradient descent; its pullback ignores the query gradient and returns ``theta - adapted``.

    Args:
        lr: inner learning rate.
        steps: inner steps K.

    Reference: Nichol, Achiam, Schulman, On first-order meta-learning algorithms, 2018.

    >>> Reptile(lr=0.01, steps=5)
    Reptile(lr=0.01, steps=5)
    """

    lr: float = 0.01
    steps: int = 5

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and a pullback that returns ``theta - adapted`` (B, P) whatever it is given."""
        adapted = self.chain(problem, theta, tasks).end()
        return adapted, Pullback(lambda gradient: (theta.detach() - adapted, self.diagnostics()))
