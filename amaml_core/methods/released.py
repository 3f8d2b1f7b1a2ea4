r"""The arithmetic of the authors' released code, as one recipe, for comparison. Chapter by chapter the book explains each part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..adjoint import Pullback
from ..flow import Tableau, runge_kutta_step
from ..problem import Problem
from ..tasks import Tasks
from .descent import batched, record


@dataclass(frozen=True)
class ReleasedAMAML:
    r"""A-MAML with the arithmetic of the released code; build it with ``AMAML.as_released``.

    Forward: the fourth-order Runge-Kutta method that torchdiffeq calls ``rk4`` (Kutta's 3/8 rule) on the support loss with the
    proximal term :math:`\frac\mu2\|u-\theta\|^2`. Backward, with :math:`h=T/K` and :math:`\mu` also in the query loss:

    .. math::
        \lambda \leftarrow \nabla L_\text{query}(u_K) + \mu(u_K-\theta), \qquad
        \lambda \leftarrow \lambda - h(H(u_k)+\mu I)\lambda \quad\text{for } k = K, K-1, \dots, 0,

    which is Euler's method with K + 1 steps over K intervals, and the gradient
    :math:`\lambda + \mu h\sum\lambda + \mu(\theta-u_K)`, the sum running over all K + 2 values of :math:`\lambda`.

    Args:
        horizon: T.
        steps: K.
        proximal: :math:`\mu`, 1 in the released code.
    """

    horizon: float = 0.5
    steps: int = 50
    proximal: float = 1.0
    tableau: ClassVar[Tableau] = Tableau(
        a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), b=(1 / 8, 3 / 8, 3 / 8, 1 / 8)
    )

    def __post_init__(self) -> None:
        if not (self.horizon > 0 and self.steps >= 1 and self.proximal >= 0):
            raise ValueError(f"the released recipe needs horizon > 0, steps >= 1 and proximal >= 0, not {self}")

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks):
        """One step of the forward solve, without a graph."""

        def field(u: Tensor) -> Tensor:
            return -problem.support_gradient(u, tasks) - self.proximal * (u - theta.detach())

        return torch.no_grad()(lambda u: runge_kutta_step(self.tableau, field, u, self.horizon / self.steps))

    def __call__(
        self, problem: Problem, theta: Tensor, tasks: Tasks, stats: dict | None = None
    ) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the released pullback (B, P) -> (B, P)."""
        start = batched(theta, tasks)
        step, states = self.inner_step(problem, theta, tasks), [start]
        for _ in range(self.steps):
            states.append(step(states[-1]))
        record(stats, steps=self.steps, gradient_evaluations=4 * self.steps)
        h, mu, end = self.horizon / self.steps, self.proximal, states[-1]

        def pullback(gradient: Tensor) -> Tensor:
            lam = gradient + mu * (end - start)
            total = lam
            for u in reversed(states):
                lam = lam - h * (problem.support_hvp(u, tasks, lam) + mu * lam)
                total = total + lam
            return lam + mu * h * total + mu * (start - end)

        return end, pullback
