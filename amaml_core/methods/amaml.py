r"""A-MAML: adapt by the gradient-flow ODE, pull back by the adjoint ODE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..adjoint import Backsolve, Checkpoint, Store
from ..chain import Chain, Kernel, batched, chain
from ..checks import not_finite
from ..flow import DivergenceError, Dopri5, Euler, FixedStep, adaptive_grid
from ..inner import InnerLoop
from ..meta import Diagnostics, Pullback
from ..problem import Problem
from ..settings import instance, one_of, positive
from ..tasks import Tasks


@dataclass(frozen=True)
class AMAML:
    r"""Adjoint MAML.

    Adapts by :math:`du/dt = -\nabla L_\text{support}(u) - \mu(u-\theta)`, :math:`u(0)=\theta`, to the horizon T; its pullback
    sweeps the adjoint backward along the same states. With Euler steps and :math:`\mu=0` the adapted parameters *and* the
    meta-gradient are MAML's, for the memory of the trajectory alone.

    Args:
        horizon: T > 0, in units of learning rate times steps.
        solver: the Runge-Kutta method; a fixed-step one has K steps of size T / K.
        memory: what of the forward solve is kept for the backward sweep.
        adjoint: ``"discrete"``, the exact gradient of what the solver computed, or ``"continuous"``, the adjoint ODE solved
            by the same tableau on the same grid, the gradient of the flow up to the solver's order. ``Backsolve`` has no
            stored states to be exact about: it always solves the adjoint ODE.
        proximal: weight :math:`\mu \ge 0` of a proximal term :math:`\frac\mu2\|u-\theta\|^2` in the support loss.
        inner: minibatches, weight decay, frozen parameters, clipping.
        step_sizes: (K, 1), or (K, G) with one column for each of the model's G parameter tensors; replaces T / K.
        sensitivities: also give ``stats["horizon_gradient"] (B,)``, d(query loss)/dT at fixed step ratios, and
            ``stats["step_size_gradient"] (B, K, G)``.
        on_divergence: ``"raise"``, or ``"skip"`` the tasks whose inner loop is not finite: they are left out of the mean, and
            ``stats["diverged"] (B,)`` marks them.

    Raises:
        ValueError: settings that cannot work, or that do not go together.

    Reference: Li, Wang, Narayan, Kirby, Zhe, Meta-learning with adjoint methods, AISTATS 2023.

    >>> AMAML(horizon=0.5, solver=Euler(steps=50), memory=Checkpoint(), proximal=0.1).horizon
    0.5
    """

    horizon: float = 0.5
    solver: FixedStep | Dopri5 = Euler(steps=50)
    memory: Store | Checkpoint | Backsolve = Store()
    adjoint: Literal["discrete", "continuous"] = "discrete"
    proximal: float = 0.0
    inner: InnerLoop = InnerLoop()
    step_sizes: Tensor | None = None
    sensitivities: bool = False
    on_divergence: Literal["raise", "skip"] = "raise"
    # what ``fit`` can learn, and where its gradient stands in the diagnostics
    learnable: ClassVar[dict[str, str]] = {"horizon": "horizon_gradient", "step_sizes": "step_size_gradient"}

    def __post_init__(self) -> None:
        backsolve = isinstance(self.memory, Backsolve)
        instance(self, "solver", (FixedStep, Dopri5))
        instance(self, "memory", (Store, Checkpoint, Backsolve))
        instance(self, "inner", (InnerLoop,))
        positive(self, "horizon")
        positive(self, "proximal", or_zero=True)
        one_of(self, "adjoint", ("discrete", "continuous"))
        one_of(self, "on_divergence", ("raise", "skip"))
        if self.adjoint == "continuous" or backsolve:
            if self.inner.clip_norm is not None:
                raise ValueError("clipping breaks the adjoint ODE (its field is no gradient); use the discrete adjoint")
            if self.sensitivities:
                raise ValueError('step-size sensitivities need adjoint="discrete"')
        if self.inner.minibatch is not None and (backsolve or isinstance(self.solver, Dopri5)):
            raise ValueError("minibatches change the field from step to step; they need a fixed-step solver and stored states")
        if self.step_sizes is not None:
            object.__setattr__(self, "step_sizes", torch.as_tensor(self.step_sizes))
            if isinstance(self.solver, Dopri5):
                raise ValueError("Dopri5 chooses its own step sizes; leave step_sizes out")
            if (
                self.step_sizes.ndim != 2
                or len(self.step_sizes) != self.solver.steps
                or not ((self.step_sizes > 0) & self.step_sizes.isfinite()).all()
            ):
                raise ValueError(f"step_sizes must be positive, of shape (K={self.solver.steps}, 1 or G)")

    def fixed(self, name: str) -> bool:
        """Whether something else stands in the place of what is to be learned: given step sizes are not those of a horizon."""
        return name == "horizon" and self.step_sizes is not None

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One step of the solver, of size T / K, without a graph; it may be repeated beyond the horizon.

        Raises:
            ValueError: the steps are not all alike (Dopri5, minibatches, learned step sizes), so there is none to repeat.
        """
        if isinstance(self.solver, Dopri5) or self.inner.minibatch is not None or self.step_sizes is not None:
            raise ValueError(
                "the steps of this A-MAML differ from each other, so none can be repeated; evaluate it by "
                "meta_gradient(...).adapted, or adapt with AdamAdaptation or a fixed-step A-MAML"
            )
        steps, _ = self._chain(problem, theta, tasks)
        return lambda u: steps.forward(0, u)

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Pullback]:
        """Adapted parameters u(T) (B, P), and the pullback (B, P) -> (B, P)."""
        steps, diagnostics = self._chain(problem, theta, tasks)
        end, sweep = self.memory.solve(steps)
        diverged = ~end.isfinite().all(1)  # (B,)
        if self.on_divergence == "raise" and diverged.any():
            raise DivergenceError(describe_divergence(steps, diverged, theta, tasks))
        diagnostics = replace(diagnostics, diverged=diverged)

        def pullback(gradient: Tensor) -> tuple[Tensor, Diagnostics]:
            gradients = sweep(gradient)
            total = gradients.lam if gradients.theta is None else gradients.lam + gradients.theta
            found = diagnostics
            if self.sensitivities:
                by_step = torch.stack(gradients.step_sizes[::-1], dim=1)  # (B, K, G)
                by_step = by_step.masked_fill(diverged[:, None, None], 0)
                # h_k is T times a fixed ratio
                by_horizon = (by_step * steps.step_sizes.to(by_step) / self.horizon).sum((1, 2))  # (B,)
                found = replace(found, step_size_gradient=by_step, horizon_gradient=by_horizon)
            return total.masked_fill(diverged[:, None], 0), found

        return end, Pullback(pullback)

    def _chain(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Chain, Diagnostics]:
        """The steps from ``theta (P,)`` to the horizon, and what they cost."""
        continuous = self.adjoint == "continuous" or isinstance(self.memory, Backsolve)
        groups = 1 if self.step_sizes is None else self.step_sizes.shape[1]
        kernel = Kernel(problem, self.solver.tableau, self.inner, self.proximal, groups, self.sensitivities, continuous)
        if isinstance(self.solver, Dopri5):
            start = batched(theta, tasks)
            grid = adaptive_grid(self.solver, lambda u: kernel.field(u, start, *tasks.support), start, self.horizon)
            sizes = torch.tensor(grid.step_sizes, dtype=torch.float64)[:, None]  # (K, 1)
            cost = Diagnostics(steps=len(sizes), rejected=grid.rejected, gradient_evaluations=grid.evaluations)
            return chain(kernel, theta, tasks, sizes, len(sizes)), cost
        count = self.solver.steps
        given = None if self.step_sizes is None else self.step_sizes.detach().to("cpu", torch.float64)
        cost = Diagnostics(steps=count, rejected=0, gradient_evaluations=count * len(self.solver.tableau.b))
        step_sizes = self.horizon / count if given is None else given
        return chain(kernel, theta, tasks, step_sizes, count, self.inner.schedule(count, tasks)), cost


def describe_divergence(steps: Chain, diverged: Tensor, theta: Tensor, tasks: Tasks) -> str:
    """Which task of the chunk left the finite numbers first, at which step, how far it went before, and the likely cause."""
    if reason := not_finite(theta, tasks):
        return f"the inner loop of {int(diverged.sum())} of {len(diverged)} tasks is not finite, because {reason}"
    u, last = steps.theta, torch.zeros(len(steps.theta))
    for k in range(len(steps)):
        following = steps.forward(k, u)
        lost = ~following.isfinite().all(1)
        if lost.any():
            task = int(lost.nonzero()[0])
            return (
                f"the inner loop of {int(diverged.sum())} of {len(diverged)} tasks diverged, task {task} first, at inner step "
                f"{k + 1} of {len(steps)}; its last finite update had the norm {last[task]:.3g}. The inner step size "
                f"{steps.step_sizes[k].max().item():.3g} is too large for the curvature of the support loss: take more steps, "
                'a shorter horizon, or on_divergence="skip"'
            )
        last, u = (following - u).norm(dim=1), following
    return f"the inner loop of {int(diverged.sum())} of {len(diverged)} tasks diverged, and not when it was run again"
