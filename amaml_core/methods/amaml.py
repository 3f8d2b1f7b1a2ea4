r"""A-MAML: adapt by the gradient-flow ODE, pull back by the adjoint ODE."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..adjoint import Backsolve, Checkpoint, Store
from ..chain import Chain, chain, repeat
from ..checks import not_finite
from ..flow import DivergenceError, Dopri5, Euler, FixedStep, RungeKutta, adaptive_grid
from ..inner import InnerLoop
from ..kernel import Kernel
from ..meta import Diagnostics, Pullback
from ..optimizers import Adam
from ..problem import Problem
from ..settings import instance, one_of, positive, tensor
from ..tasks import Tasks


@dataclass(frozen=True)
class AMAML:
    r"""Adjoint MAML.

    Adapts by :math:`du/dt = -\nabla L_\text{s}(u) - \mu(u-\theta)`, :math:`u(0)=\theta`, to the horizon T; its pullback
    sweeps the adjoint backward along the same states. With Euler steps and :math:`\mu=0` the adapted parameters *and* the
    meta-gradient are MAML's, for the memory of the trajectory alone.

    Args:
        horizon: T > 0, in units of learning rate times steps.
        solver: the Runge-Kutta method, or an inner optimiser (``Momentum``, ``Adam``); one with fixed steps has K of size T / K.
        memory: what of the forward solve is kept for the backward sweep.
        adjoint: ``"discrete"``, the exact gradient of what the solver computed, or ``"continuous"``, the adjoint ODE solved
            by the same tableau on the same grid, the gradient of the flow up to the solver's order. ``Backsolve`` has no
            stored states to be exact about: it always solves the adjoint ODE.
        proximal: weight :math:`\mu \ge 0` of a proximal term :math:`\frac\mu2\|u-\theta\|^2` in the support loss.
        inner: minibatches, weight decay, frozen parameters, clipping.
        step_sizes: (K, 1), or (K, G) with one column for each of the model's G parameter tensors, or (K, P) with one for each
            parameter; a single row (1, ...) serves for all steps. Replaces T / K. As a function ``phi (M,) -> step sizes`` it makes
            them meta-parameters: ``lambda phi: phi.exp()[None]`` with M = P is Meta-SGD, ``lambda phi: phi.exp().view(K, G)`` the
            step sizes of MAML++.
        sensitivities: also give ``stats["horizon_gradient"] (B,)``, d(query loss)/dT at fixed step ratios, and
            ``stats["step_size_gradient"] (B, K, G)``.
        on_divergence: ``"raise"``, or ``"skip"`` the tasks whose inner loop is not finite: they are left out of the mean, and
            ``stats["diverged"] (B,)`` marks them.
        query_weights: (K,), weights of the query loss after each step, the multi-step loss of MAML++: a running cost beside the
            terminal one, which adds its gradient to the adjoint state at every step. By default the last state alone is judged;
            ``query_loss`` is that of the last state in any case.

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
    step_sizes: Any = None  # kept as a tensor, or a function
    sensitivities: bool = False
    on_divergence: Literal["raise", "skip"] = "raise"
    query_weights: Any = None  # kept as a tensor
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
        if getattr(self.memory, "dtype", None) == torch.float16 and isinstance(self.solver, Adam):
            raise ValueError("the squares that Adam remembers are mostly zero in float16; keep them in torch.bfloat16")
        if self.adjoint == "continuous" or backsolve:
            if not isinstance(self.solver, (RungeKutta, Dopri5)):
                raise ValueError(
                    f"{type(self.solver).__name__} discretises no gradient flow; use the discrete adjoint and stored states"
                )
            if self.inner.clip_norm is not None:
                raise ValueError("clipping breaks the adjoint ODE (its field is no gradient); use the discrete adjoint")
            if self.sensitivities or callable(self.step_sizes):
                raise ValueError('step-size sensitivities need adjoint="discrete"')
            if getattr(self.memory, "graphs", 0):
                raise ValueError("Store(graphs=...) keeps what the discrete adjoint uses; the adjoint ODE has no use for it")
        if self.inner.minibatch is not None and (backsolve or isinstance(self.solver, Dopri5)):
            raise ValueError("minibatches change the field from step to step; they need a fixed-step solver and stored states")
        if self.step_sizes is not None:
            if isinstance(self.solver, Dopri5):
                raise ValueError("Dopri5 chooses its own step sizes; leave step_sizes out")
            if not callable(self.step_sizes):
                object.__setattr__(self, "step_sizes", self._checked(tensor(self, "step_sizes")))
                if backsolve and self.step_sizes.shape[1] > 1:
                    raise ValueError("Backsolve follows one flow; it needs one step size for all parameters")
        if self.query_weights is not None:
            self._check_query_weights(backsolve)

    def _checked(self, sizes: Tensor) -> Tensor:
        assert not isinstance(self.solver, Dopri5)
        count = self.solver.steps
        if sizes.ndim != 2 or len(sizes) not in (1, count):
            raise ValueError(f"step_sizes must be of shape (K={count} or 1, 1 or G or P), not {tuple(sizes.shape)}")
        if not ((sizes > 0) & sizes.isfinite()).all():
            least, most = sizes.min().item(), sizes.max().item()
            raise ValueError(
                f"step_sizes must be positive and finite, but lie between {least:.3g} and {most:.3g}; as a function of phi, take "
                "its exponential"
            )
        return sizes

    def _check_query_weights(self, backsolve: bool) -> None:
        if backsolve or isinstance(self.solver, Dopri5):
            raise ValueError("query_weights belong to the states after each step; they need a fixed-step solver and stored states")
        weights = tensor(self, "query_weights", torch.float64).cpu()
        if weights.shape != (self.solver.steps,) or not ((weights >= 0) & weights.isfinite()).all() or not weights.any():
            raise ValueError(f"query_weights must be (K={self.solver.steps},), >= 0 and not all zero, not {tuple(weights.shape)}")
        object.__setattr__(self, "query_weights", weights)

    def fixed(self, name: str) -> bool:
        """Whether something else stands in the place of what is to be learned: given step sizes are not those of a horizon."""
        return name == "horizon" and self.step_sizes is not None

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The steps of the solver, of size T / K, without a graph; they go on beyond the horizon. Momenta live in the function.

        Raises:
            ValueError: the steps have no rule by which they go on: those of Dopri5, and any after K different step sizes.

        >>> from amaml_core import Euler
        >>> problem = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
        >>> theta, tasks = torch.tensor([2.0]), Tasks(*torch.ones(4, 1, 3, 1))  # the loss is (2 - 1)², its gradient 2
        >>> AMAML(horizon=1.0, solver=Euler(steps=10)).inner_step(problem, theta, tasks)(theta[None])
        tensor([[1.8000]])
        """
        if isinstance(self.solver, Dopri5):
            raise ValueError(
                "Dopri5 chooses its own steps, so none can be repeated; evaluate it by meta_gradient(...).adapted, or adapt with "
                "AdamAdaptation or a fixed-step A-MAML"
            )
        given, number = self._given(phi), itertools.count()
        last = len(given) if given is not None and len(given) > 1 else None
        step = repeat(lambda steps: self._chain(problem, theta, tasks, phi, steps)[0], self.solver.steps)

        def following(u: Tensor) -> Tensor:
            if next(number) == last:
                raise ValueError(f"this A-MAML has step sizes for its K={last} steps and no more: ask for at most {last} steps")
            return step(u)

        return following

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """Adapted parameters u(T) (B, P), and the pullback (B, P) -> (B, P)."""
        steps, diagnostics = self._chain(problem, theta, tasks, phi)
        z, sweep = self.memory.solve(steps)
        diverged = ~z.isfinite().all(1)  # (B,)
        if self.on_divergence == "raise" and diverged.any():
            raise DivergenceError(describe_divergence(steps, diverged, theta, tasks, phi))
        end, diagnostics = steps.adapted(z), replace(diagnostics, diverged=diverged)

        def pullback(gradient: Tensor) -> tuple[Tensor, Diagnostics]:
            gradients = sweep(gradient)
            lam = steps.adapted(gradients.lam)
            total = lam if gradients.theta is None else lam + gradients.theta
            found, lost = diagnostics, diverged[:, None]
            if steps.kernel.sensitivities:
                by_step = torch.stack(gradients.step_sizes[::-1], dim=1)  # (B, K, G), or (B, 1, G)
                by_step = by_step.masked_fill(lost[:, :, None], 0)
            if self.sensitivities:
                # h_k is T times a fixed ratio
                sizes = steps.step_sizes[: by_step.shape[1]].to(by_step)
                horizon = self.horizon if self.step_sizes is None else steps.step_sizes.sum(0).mean().item()
                found = replace(found, step_size_gradient=by_step, horizon_gradient=(by_step * sizes / horizon).sum((1, 2)))
            if phi is not None:
                to_phi = torch.zeros_like(steps.phi) if gradients.phi is None else gradients.phi.masked_fill(lost, 0)
                if callable(self.step_sizes):
                    to_phi = to_phi + self._sizes_to_phi(steps.phi, by_step)
                if self.query_weights is not None and problem.query_phi:  # the caller counts the last query loss in full
                    direct = steps.kernel.judge(end, steps.phi, *tasks.query)[2].masked_fill(lost, 0)
                    to_phi = to_phi + (self.query_weights[-1].item() - 1) * direct
                found = replace(found, phi_gradient=to_phi)
            return total.masked_fill(lost, 0), found

        return end, Pullback(pullback)

    def _chain(
        self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None, steps: int | None = None
    ) -> tuple[Chain, Diagnostics]:
        """The steps from ``theta (P,)`` to the horizon, or so many of them, and what they cost."""
        continuous = self.adjoint == "continuous" or isinstance(self.memory, Backsolve)
        given = self._given(phi)
        groups = 1 if given is None else given.shape[1]
        sensitive = self.sensitivities or callable(self.step_sizes)
        kernel = Kernel(problem, self.solver.rule, self.inner, self.proximal, groups, sensitive, continuous)
        if isinstance(self.solver, Dopri5):
            whole = chain(kernel, theta, tasks, 1.0, 1, phi=phi)
            field = lambda u: kernel.field(u, whole.theta, whole.phi, *tasks.support)  # noqa: E731
            try:
                grid = adaptive_grid(self.solver, field, whole.theta, self.horizon)
            except DivergenceError:
                if reason := not_finite(theta, tasks, phi):
                    raise DivergenceError(f"Dopri5 cannot take a step, because {reason}") from None
                raise
            sizes = torch.tensor(grid.step_sizes, dtype=torch.float64)[:, None]  # (K, 1)
            cost = Diagnostics(steps=len(sizes), rejected=grid.rejected, gradient_evaluations=grid.evaluations)
            return chain(kernel, theta, tasks, sizes, len(sizes), phi=phi), cost
        count = steps or self.solver.steps
        cost = Diagnostics(steps=count, rejected=0, gradient_evaluations=count * self.solver.rule.evaluations)
        step_sizes = self.horizon / self.solver.steps if given is None else given
        schedule = self.inner.schedule(count, tasks)
        return chain(kernel, theta, tasks, step_sizes, count, schedule, phi, self.query_weights), cost

    def _given(self, phi: Tensor | None) -> Tensor | None:
        """The step sizes that stand in the place of T / K, in double precision on the CPU; ``None`` for T / K."""
        if self.step_sizes is None:
            return None
        if not callable(self.step_sizes):
            return self.step_sizes.detach().to("cpu", torch.float64)
        if phi is None:
            raise ValueError("step_sizes are a function of phi: pass phi=... (M,)")
        found = self.step_sizes(phi.detach().clone())
        if not isinstance(found, Tensor):
            raise TypeError(f"step_sizes(phi) must return a tensor (K or 1, 1 or G or P), not {type(found).__name__}")
        return self._checked(found.detach().to("cpu", torch.float64))

    def _sizes_to_phi(self, phi: Tensor, by_step: Tensor) -> Tensor:
        """The gradient (B, M) of the meta-parameters ``phi (B, M)`` by way of the step sizes, from theirs (B, K, G)."""
        one = phi[0].detach().clone().requires_grad_()  # the same for all tasks
        with torch.enable_grad():
            sizes = self.step_sizes(one * 1)  # (K or 1, G); times 1, for a function that works in place
        if not sizes.requires_grad:
            return torch.zeros_like(by_step[:, 0, :1].expand_as(phi))
        back = torch.autograd.grad(sizes, one, by_step.to(sizes), is_grads_batched=True, allow_unused=True, materialize_grads=True)
        return back[0].to(by_step)  # (B, M)


def describe_divergence(steps: Chain, diverged: Tensor, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> str:
    """Which task of the chunk left the finite numbers first, at which step, how far it went before, and the likely cause."""
    if reason := not_finite(theta, tasks, phi):
        return f"the inner loop of {int(diverged.sum())} of {len(diverged)} tasks is not finite, because {reason}"
    before = u = steps.initial
    for k in range(len(steps)):
        following = steps.forward(k, u)
        lost = ~following.isfinite().all(1)
        if lost.any():
            task = int(lost.nonzero()[0])
            last = (u - before)[task].abs().max()  # not a norm: a square overflows where the entry does not
            return (
                f"the inner loop of {int(diverged.sum())} of {len(diverged)} tasks diverged, task {task} first, at inner step "
                f"{k + 1} of {len(steps)}; its last finite update changed parameters by up to {last:.3g}. The inner step size "
                f"{steps.step_sizes[k].max().item():.3g} is too large for the curvature of the support loss (a step "
                "of descent is stable below 2 / the largest eigenvalue of its Hessian): take more steps, "
                'a shorter horizon, or on_divergence="skip"'
            )
        before, u = u, following
    return f"the inner loop of {int(diverged.sum())} of {len(diverged)} tasks diverged, and not when it was run again"
