r"""iMAML: adapt to a proximal optimum and differentiate its optimality condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..adjoint import Pullback
from ..linalg import conjugate_gradients
from ..problem import Problem
from ..tasks import Tasks
from .descent import batched, check_descent, record


@dataclass(frozen=True)
class GradientDescent:
    r"""Inner solver of iMAML: gradient descent on :math:`L_\text{support}(u) + \frac\lambda2\|u-\theta\|^2`.

    Args:
        lr: learning rate.
        steps: number of steps K.

    Raises:
        ValueError: ``lr`` is not positive or ``steps`` < 1.
    """

    lr: float = 0.01
    steps: int = 50

    def __post_init__(self) -> None:
        check_descent("GradientDescent", self.lr, self.steps)

    def step(self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float) -> Callable[[Tensor], Tensor]:
        """One step ``u (B, P) -> u (B, P)`` of the proximal problem around ``theta (P,)``."""
        return lambda u: u - self.lr * (problem.support_gradient(u, tasks) + regularization * (u - theta))


@dataclass(frozen=True)
class IMAML:
    r"""Implicit MAML.

    At the minimiser :math:`u^*` of the proximal problem, :math:`du^*/d\theta = (I + H/\lambda)^{-1}`; the pullback solves
    this symmetric system by conjugate gradients. It is exact when both the inner problem and the system are solved exactly.

    Args:
        inner: the solver of the inner problem.
        regularization: the weight :math:`\lambda > 0` of the proximal term.
        cg_steps: the largest number of conjugate gradient iterations.
        cg_tolerance: stop at this relative residual; 0 stops by count alone.

    Raises:
        ValueError: ``regularization`` is not positive, ``cg_steps`` < 1 or ``cg_tolerance`` < 0.

    Reference: Rajeswaran, Finn, Kakade, Levine, Meta-learning with implicit gradients, NeurIPS 2019.
    """

    inner: GradientDescent = GradientDescent()
    regularization: float = 2.0
    cg_steps: int = 5
    cg_tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not self.regularization > 0:
            raise ValueError(
                f"IMAML needs regularization > 0, not {self.regularization}: without it the optimum forgets theta"
            )
        if self.cg_steps < 1 or self.cg_tolerance < 0:
            raise ValueError(
                f"IMAML needs cg_steps >= 1 and cg_tolerance >= 0, not {self.cg_steps} and {self.cg_tolerance}"
            )

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One step of the inner solver, without a graph."""
        return self.inner.step(problem, theta, tasks, self.regularization)

    def __call__(
        self, problem: Problem, theta: Tensor, tasks: Tasks, stats: dict | None = None
    ) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P); stats gain the ``cg_residual`` (B,)."""
        theta = theta.detach()
        step = self.inner_step(problem, theta, tasks)
        u = batched(theta, tasks)
        for _ in range(self.inner.steps):
            u = step(u)
        record(stats, steps=self.inner.steps, gradient_evaluations=self.inner.steps)

        def pullback(gradient: Tensor) -> Tensor:
            solution, residual = conjugate_gradients(
                lambda v: v + problem.support_hvp(u, tasks, v) / self.regularization,
                gradient,
                self.cg_steps,
                self.cg_tolerance,
            )
            record(stats, cg_residual=residual)
            return solution

        return u, pullback
