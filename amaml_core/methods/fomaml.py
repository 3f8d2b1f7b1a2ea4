"""FOMAML: pretend that the adapted parameters move with theta one to one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..meta import Pullback
from ..problem import Problem
from ..tasks import Tasks
from .descent import Descent


@dataclass(frozen=True)
class FOMAML(Descent):
    """First-order MAML: adapts by gradient descent, and its pullback is the identity.

    Args:
        lr: inner learning rate.
        steps: inner steps K.

    Reference: Finn, Abbeel, Levine, Model-agnostic meta-learning, ICML 2017, section 5.2.

    >>> FOMAML(lr=0.01, steps=5)
    FOMAML(lr=0.01, steps=5)
    """

    lr: float = 0.01
    steps: int = 5

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the identity."""
        return self.chain(problem, theta, tasks).end(), Pullback(lambda gradient: (gradient, self.diagnostics()))
