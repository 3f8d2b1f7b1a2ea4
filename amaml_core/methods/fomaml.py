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
    """First-order MAML: adapts by the steps of :class:`MAML`, and its pullback is the identity.

    So are a mask's, clipping's and an optimiser's share in it: the pullback drops every derivative of the inner loop, whatever the
    loop does. In particular it says nothing about meta-parameters of the inner loop, and is refused for them.

    Args:
        lr, steps, inner, solver: as for :class:`MAML`.

    Reference: Finn, Abbeel, Levine, Model-agnostic meta-learning, ICML 2017, section 5.2.

    >>> FOMAML(lr=0.01, steps=5).steps
    5
    """

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the identity."""
        steps = self.chain(problem, theta, tasks)
        adapted = steps.adapted(steps.end())
        return adapted, Pullback(lambda gradient: (gradient, self.diagnostics()))
