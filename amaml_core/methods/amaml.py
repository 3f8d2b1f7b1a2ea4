r"""A-MAML: adapt by the gradient-flow ODE, pull back by the adjoint ODE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..adjoint import Backsolve, Checkpoint, Pullback, Store
from ..chain import Chain, Kernel
from ..flow import DivergenceError, Dopri5, Euler, FixedStep, adaptive_grid
from ..inner import InnerLoop
from ..problem import Problem
from ..tasks import Tasks
from .descent import batched, inner_field, make_chain, record
from .released import ReleasedAMAML


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

    def __post_init__(self) -> None:
        adaptive, backsolve = isinstance(self.solver, Dopri5), isinstance(self.memory, Backsolve)
        if not self.horizon > 0:
            raise ValueError(f"AMAML needs horizon > 0, not {self.horizon}")
        if self.proximal < 0:
            raise ValueError(f"AMAML needs proximal >= 0, not {self.proximal}")
        for name, allowed in (("adjoint", ("discrete", "continuous")), ("on_divergence", ("raise", "skip"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        if self.adjoint == "continuous" or backsolve:
            if self.inner.clip_norm is not None:
                raise ValueError("clipping breaks the adjoint ODE (its field is no gradient); use the discrete adjoint")
            if self.sensitivities:
                raise ValueError('step-size sensitivities need adjoint="discrete"')
        if self.inner.minibatch is not None and (adaptive or backsolve):
            raise ValueError(
                "minibatches change the field from step to step; they need a fixed-step solver and stored states"
            )
        if self.step_sizes is not None:
            if adaptive:
                raise ValueError("Dopri5 chooses its own step sizes; leave step_sizes out")
            if (
                self.step_sizes.ndim != 2
                or len(self.step_sizes) != self.solver.steps
                or not (self.step_sizes > 0).all()
            ):
                raise ValueError(f"step_sizes must be positive, of shape (K={self.solver.steps}, 1 or G)")

    @staticmethod
    def as_released(horizon: float = 0.5, steps: int = 50, proximal: float = 1.0) -> ReleasedAMAML:
        """The arithmetic of the authors' released code; see :class:`amaml_core.methods.released.ReleasedAMAML`."""
        return ReleasedAMAML(horizon, steps, proximal)

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
        chain = self._chain(problem, batched(theta, tasks), tasks)
        return lambda u: chain.forward(0, u)

    def __call__(
        self, problem: Problem, theta: Tensor, tasks: Tasks, stats: dict | None = None
    ) -> tuple[Tensor, Pullback]:
        """Adapted parameters u(T) (B, P), and the pullback (B, P) -> (B, P)."""
        chain = self._chain(problem, batched(theta, tasks), tasks, stats)
        end, sweep = self.memory.solve(chain)
        diverged = ~end.isfinite().all(1)  # (B,)
        if self.on_divergence == "raise" and diverged.any():
            raise DivergenceError(describe_divergence(chain, diverged))
        record(stats, diverged=diverged)

        def pullback(gradient: Tensor) -> Tensor:
            gradients = sweep(gradient)
            total = gradients.lam if gradients.theta is None else gradients.lam + gradients.theta
            if self.sensitivities:
                by_step = torch.stack(gradients.step_sizes[::-1], dim=1)  # (B, K, G)
                by_step = by_step.masked_fill(diverged[:, None, None], 0)
                by_horizon = (by_step * chain.step_sizes.to(by_step) / self.horizon).sum(
                    (1, 2)
                )  # h_k = T times a fixed ratio
                record(stats, step_size_gradient=by_step, horizon_gradient=by_horizon)
            return total.masked_fill(diverged[:, None], 0)

        return end, pullback

    def _chain(self, problem: Problem, theta: Tensor, tasks: Tasks, stats: dict | None = None) -> Chain:
        """The steps from ``theta (B, P)`` to the horizon."""
        data = ((tasks.support_x, tasks.support_y),)
        if self.inner.minibatch is not None:
            schedule = self.inner.schedule(self.solver.steps, tasks)  # (K, minibatch)
            data = tuple((tasks.support_x[:, rows], tasks.support_y[:, rows]) for rows in schedule)

        field = inner_field(problem, self.inner, self.proximal)
        if isinstance(self.solver, Dopri5):
            grid = adaptive_grid(self.solver, lambda u: field(u, theta, *data[0]), theta, self.horizon)
            step_sizes = torch.tensor(grid.step_sizes, dtype=torch.float64)[:, None]
            record(stats, steps=len(step_sizes), rejected=grid.rejected, gradient_evaluations=grid.evaluations)
        else:
            steps = self.solver.steps
            step_sizes = torch.full((steps, 1), self.horizon / steps, dtype=torch.float64)
            if self.step_sizes is not None:
                step_sizes = self.step_sizes.detach().to("cpu", torch.float64)
            record(stats, steps=steps, rejected=0, gradient_evaluations=steps * len(self.solver.tableau.b))
        kernel = Kernel(
            field, self.solver.tableau, problem.groups(step_sizes.shape[1]),
            theta_enters=self.proximal > 0, sensitivities=self.sensitivities,
            continuous=self.adjoint == "continuous" or isinstance(self.memory, Backsolve),
        )  # fmt: skip
        key = (kernel.tableau, self.inner, self.proximal, kernel.sensitivities, kernel.continuous)
        return make_chain(problem, kernel, key, theta, step_sizes, data, back=not isinstance(self.memory, Backsolve))


def describe_divergence(chain: Chain, diverged: Tensor) -> str:
    """Which task of the chunk left the finite numbers first, at which step, and how far its last finite step went."""
    u, last = chain.theta, torch.zeros(len(chain.theta))
    for k in range(len(chain)):
        following = chain.forward(k, u)
        lost = ~following.isfinite().all(1)
        if lost.any():
            task = int(lost.nonzero()[0])
            return (
                f"the inner loop of {int(diverged.sum())} of {len(diverged)} tasks diverged, task {task} first, at inner step "
                f"{k + 1} of {len(chain)}; its last finite update had the norm {last[task]:.3g}. The inner step size "
                f"{chain.step_sizes[k].max().item():.3g} is too large for the curvature of the support loss: take more steps, "
                'a shorter horizon, or on_divergence="skip"'
            )
        last, u = (following - u).norm(dim=1), following
    raise AssertionError("a diverged chain must diverge again when it is replayed")
