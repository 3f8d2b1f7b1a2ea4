r"""A-MAML: adapt by the gradient-flow ODE, pull back by the adjoint ODE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adjoint import Pullback, Store
from ..flow import Euler, FixedStep, runge_kutta_step
from ..problem import Problem
from ..tasks import Tasks
from .descent import batched, record


@dataclass(frozen=True)
class AMAML:
    r"""Adjoint MAML.

    Adapts by :math:`du/dt = -\nabla L_\text{support}(u) - \mu(u-\theta)`, :math:`u(0)=\theta`, to the horizon T; its pullback
    sweeps the adjoint backward along the stored states. With Euler steps and :math:`\mu=0` the adapted parameters *and* the
    meta-gradient are MAML's, for the memory of the trajectory alone.

    Args:
        horizon: T > 0, in units of learning rate times steps.
        solver: the Runge-Kutta method and its number of steps K; the step size is T / K.
        memory: what of the forward solve is kept for the backward sweep.
        proximal: weight :math:`\mu \ge 0` of a proximal term :math:`\frac\mu2\|u-\theta\|^2` in the support loss.

    Raises:
        ValueError: ``horizon`` is not positive or ``proximal`` is negative.

    Reference: Li, Wang, Narayan, Kirby, Zhe, Meta-learning with adjoint methods, AISTATS 2023.
    """

    horizon: float = 0.5
    solver: FixedStep = Euler(steps=50)
    memory: Store = Store()
    proximal: float = 0.0

    def __post_init__(self) -> None:
        if not self.horizon > 0:
            raise ValueError(f"AMAML needs horizon > 0, not {self.horizon}")
        if self.proximal < 0:
            raise ValueError(f"AMAML needs proximal >= 0, not {self.proximal}")

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One step of the solver, of size T / K, without a graph; it may be repeated beyond the horizon."""
        step = self._step(problem, tasks)
        anchor = batched(theta, tasks)
        return lambda u: step(u, anchor)

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks, stats: dict | None = None) -> tuple[Tensor, Pullback]:
        """Adapted parameters u(T) (B, P), and the pullback (B, P) -> lam(0) (B, P)."""
        step = self._step(problem, tasks)
        record(stats, steps=self.solver.steps, gradient_evaluations=self.solver.steps * len(self.solver.tableau.b))
        return self.memory.solve(step, batched(theta, tasks), self.solver.steps, theta_enters=self.proximal > 0)

    def _step(self, problem: Problem, tasks: Tasks) -> Callable[[Tensor, Tensor], Tensor]:
        h = self.horizon / self.solver.steps

        def step(u: Tensor, theta: Tensor) -> Tensor:
            def field(u: Tensor) -> Tensor:
                slope = -problem.support_gradient(u, tasks, create_graph=torch.is_grad_enabled())
                return slope - self.proximal * (u - theta) if self.proximal else slope

            return runge_kutta_step(self.solver.tableau, field, u, h)

        return step
