r"""iMAML: adapt to a proximal optimum and differentiate its optimality condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..chain import Kernel, batched, chain
from ..flow import DivergenceError
from ..linalg import conjugate_gradients
from ..meta import Diagnostics, Pullback
from ..problem import Problem
from ..settings import count, instance, one_of, positive
from ..tasks import Tasks


@dataclass(frozen=True)
class GradientDescent:
    r"""Inner solver of iMAML: gradient descent on :math:`L_\text{support}(u) + \frac\lambda2\|u-\theta\|^2`.

    Args:
        lr: learning rate.
        steps: number of steps K.

    Raises:
        ValueError: ``lr`` is not positive or ``steps`` < 1.

    >>> IMAML(inner=GradientDescent(lr=0.01, steps=50), regularization=2.0).inner.steps
    50
    """

    lr: float = 0.01
    steps: int = 50

    def __post_init__(self) -> None:
        positive(self, "lr")
        count(self, "steps")

    def step(self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float) -> Callable[[Tensor], Tensor]:
        """One step ``u (B, P) -> u (B, P)`` of the proximal problem around ``theta (P,)``."""
        descent = chain(Kernel(problem, proximal=regularization), theta, tasks, self.lr, self.steps)
        return lambda u: descent.forward(0, u)


@dataclass(frozen=True)
class HessianFree:
    r"""Inner solver of iMAML: Newton's method on the proximal problem, with conjugate gradients and a line search.

    Each step solves :math:`(H + \lambda I)d = -g` by conjugate gradients and takes the longest of the steps
    :math:`d, \tfrac12 d, \tfrac14 d, \dots` that lowers the loss by a fraction of what its slope promises (Armijo), for each
    task on its own. A task whose curvature is not positive falls back on what conjugate gradients had reached, at worst
    steepest descent; one for which no step helps stays where it is.

    Args:
        cg_steps: conjugate gradient iterations for each direction.
        steps: Newton steps.
        halvings: the largest number of halvings in the line search.
        slope_share: the fraction of the promised decrease that is asked for.

    Raises:
        ValueError: a count < 1 or a share outside (0, 1).

    Reference: Martens, Deep learning via Hessian-free optimization, ICML 2010; iMAML-HF in Rajeswaran et al., 2019.

    >>> IMAML(inner=HessianFree(cg_steps=5), regularization=2.0).inner.halvings
    10
    """

    cg_steps: int = 5
    steps: int = 5
    halvings: int = 10
    slope_share: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("cg_steps", "steps", "halvings"):
            count(self, name)
        if not 0 < self.slope_share < 1:
            raise ValueError(f"HessianFree needs 0 < slope_share < 1, not {self.slope_share}")

    def step(self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float) -> Callable[[Tensor], Tensor]:
        """One Newton step ``u (B, P) -> u (B, P)`` of the proximal problem around ``theta (P,)``."""

        def loss(u: Tensor) -> Tensor:  # (B,)
            return problem.losses(u, *tasks.support) + regularization / 2 * (u - theta).square().sum(1)

        def newton(u: Tensor) -> Tensor:
            gradient = problem.gradient(u, *tasks.support) + regularization * (u - theta)
            hessian = problem.hessian(u, *tasks.support)
            direction = conjugate_gradients(lambda v: hessian(v) + regularization * v, -gradient, self.cg_steps).x
            start, slope = loss(u), (gradient * direction).sum(1)  # (B,), (B,) negative
            slack = 10 * torch.finfo(u.dtype).eps * start.abs()  # close to the minimum, losses differ by rounding alone

            def lowers(rate: Tensor) -> Tensor:  # (B,) -> (B,)
                return loss(u + rate[:, None] * direction) <= start + self.slope_share * rate * slope + slack

            rate = torch.ones_like(start)
            for _ in range(self.halvings):
                enough = lowers(rate)
                if enough.all():
                    break
                rate = torch.where(enough, rate, rate / 2)
            return torch.where(lowers(rate)[:, None], u + rate[:, None] * direction, u)

        return torch.no_grad()(newton)


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
        on_negative_curvature: where :math:`I + H/\lambda` proves not to be positive definite, ``u`` is no minimum of the
            proximal problem and the formula has no meaning: ``"raise"``, or ``"truncate"``, which keeps what conjugate
            gradients had reached, as the literature does without saying so (``stats["indefinite"] (B,)`` marks the tasks).

    Raises:
        ValueError: ``regularization`` is not positive, ``cg_steps`` < 1, ``cg_tolerance`` < 0, or an unknown choice.

    Reference: Rajeswaran, Finn, Kakade, Levine, Meta-learning with implicit gradients, NeurIPS 2019.

    >>> IMAML(regularization=2.0, cg_steps=5, on_negative_curvature="truncate").cg_steps
    5
    """

    inner: GradientDescent | HessianFree = GradientDescent()
    regularization: float = 2.0
    cg_steps: int = 5
    cg_tolerance: float = 0.0
    on_negative_curvature: Literal["raise", "truncate"] = "raise"

    def __post_init__(self) -> None:
        instance(self, "inner", (GradientDescent, HessianFree))
        positive(self, "regularization")  # without it the optimum forgets theta
        count(self, "cg_steps")
        positive(self, "cg_tolerance", or_zero=True)
        one_of(self, "on_negative_curvature", ("raise", "truncate"))

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One step of the inner solver, without a graph."""
        return self.inner.step(problem, theta, tasks, self.regularization)

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P), which knows its ``cg_residual`` (B,)."""
        theta = theta.detach()
        step = self.inner_step(problem, theta, tasks)
        u = batched(theta, tasks)
        for _ in range(self.inner.steps):
            u = step(u)

        def pullback(gradient: Tensor) -> tuple[Tensor, Diagnostics]:
            hessian = problem.hessian(u, *tasks.support)
            solution = conjugate_gradients(
                lambda v: v + hessian(v) / self.regularization, gradient, self.cg_steps, self.cg_tolerance
            )
            if self.on_negative_curvature == "raise" and solution.indefinite.any():
                worst = solution.indefinite.nonzero().flatten().tolist()
                raise DivergenceError(
                    f"the support loss curves down by more than regularization={self.regularization} for tasks {worst}: "
                    "I + H/regularization is not positive definite, and the adapted parameters are no minimum of the proximal "
                    'problem. Raise regularization, take more inner steps, or pass on_negative_curvature="truncate"'
                )
            return solution.x, Diagnostics(steps=self.inner.steps, cg_residual=solution.residual, indefinite=solution.indefinite)

        return u, Pullback(pullback)
