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
    """Reptile: adapts by the steps of :class:`MAML`; its pullback ignores the query gradient and returns ``theta - adapted``.

    Its authors take Adam and minibatches inside, ``Reptile(lr=1e-3, solver=Adam(steps=5, beta1=0.0),
    inner=InnerLoop(minibatch=10))``. Parameters that the inner loop leaves alone get no update, and meta-parameters no gradient.

    Args:
        lr, steps, inner, solver: as for :class:`MAML`.

    Reference: Nichol, Achiam, Schulman, On first-order meta-learning algorithms, 2018.

    >>> Reptile(lr=0.01, steps=5).steps
    5
    """

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and a pullback that returns ``theta - adapted`` (B, P) whatever it is given."""
        steps = self.chain(problem, theta, tasks)
        adapted = steps.adapted(steps.end())
        return adapted, Pullback(lambda gradient: (theta.detach() - adapted, self.diagnostics()))
