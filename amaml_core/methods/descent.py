"""Gradient descent on the support loss, the inner loop that MAML, FOMAML and Reptile share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..chain import Chain, Kernel, chain
from ..meta import Diagnostics
from ..problem import Problem
from ..settings import count, positive
from ..tasks import Tasks


@dataclass(frozen=True)
class Descent:
    """``steps`` (K) steps of gradient descent on the support loss with learning rate ``lr``: settings shared by three methods.

    Raises:
        TypeError: ``steps`` is no integer, or ``lr`` no number.
        ValueError: ``lr`` is not positive or ``steps`` < 1.
    """

    lr: float
    steps: int

    def __post_init__(self) -> None:
        positive(self, "lr")
        count(self, "steps")

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One inner step ``u (B, P) -> u (B, P)``, without a graph; ``theta`` plays no part in it."""
        descent = self.chain(problem, theta, tasks)
        return lambda u: descent.forward(0, u)

    def chain(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Chain:
        """The steps from ``theta (P,)``."""
        return chain(Kernel(problem), theta, tasks, self.lr, self.steps)

    def diagnostics(self) -> Diagnostics:
        """What the inner loop costs."""
        return Diagnostics(steps=self.steps, gradient_evaluations=self.steps)
