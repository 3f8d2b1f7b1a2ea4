r"""A forward solve as a chain of K steps, :math:`u_{k+1} = \Phi(u_k, \theta, h_k)`, and each step's way backward.

The memory strategies of :mod:`amaml_core.adjoint` decide which states are kept; this module knows what one step is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import tracing
from .flow import Euler, Tableau, advance, runge_kutta_step
from .inner import InnerLoop
from .problem import Problem
from .tasks import Tasks


class Gradients(NamedTuple):
    """What the backward sweep carries from step k + 1 to step k.

    Attributes:
        lam: the adjoint state (B, P), the gradient with respect to ``u_k``.
        theta: the gradient (B, P) with respect to theta where it enters the field directly; ``None`` where it does not.
        step_sizes: gradients (B, G) with respect to the step sizes of the steps already swept, last step first.
    """

    lam: Tensor
    theta: Tensor | None = None
    step_sizes: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Kernel:
    r"""One step of an inner loop and its adjoint, as functions of tensors alone.

    It follows :math:`-\nabla L_\text{support}(u) - \mu(u-\theta)`, as ``inner`` changes it. Two kernels of equal settings are the
    same functions, so a kernel is the key under which its traced steps are kept.

    Attributes:
        problem: whose support loss is followed.
        tableau: the Runge-Kutta method.
        inner: weight decay, frozen parameters, clipping.
        proximal: :math:`\mu`.
        groups: G, how many groups of parameters have a step size of their own.
        sensitivities: also pull back to the step size.
        continuous: pull back by the adjoint ODE instead of the adjoint of the step.
    """

    problem: Problem
    tableau: Tableau = Euler.tableau
    inner: InnerLoop = InnerLoop()
    proximal: float = 0.0
    groups: int = 1
    sensitivities: bool = False
    continuous: bool = False

    def field(self, u: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """du/dt (B, P) at ``u (B, P)`` for the points ``x, y (B, n, ...)``; differentiable where gradients are enabled."""
        gradient = self.problem.gradient(u, x, y, create_graph=torch.is_grad_enabled())
        slope = self.inner.slope(u, gradient, self._free)
        if not self.proximal:
            return slope
        pull = self.proximal * (u - theta)
        return slope - (pull if self.inner.mask is None else self.inner.mask.to(u.device) * pull)

    def step(self, u: Tensor, theta: Tensor, h: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """``u_{k+1} (B, P)`` from ``u_k (B, P)``; ``h`` is (B or 1, G)."""
        return runge_kutta_step(self.tableau, lambda v: self.field(v, theta, x, y), u, self._spread(h))

    def back(self, u: Tensor, u_next: Tensor, theta: Tensor, h: Tensor, x: Tensor, y: Tensor, lam: Tensor) -> list[Tensor]:
        """``lam (B, P)`` pulled back over the step from ``u`` to ``u_next``: the parts for u, theta and h, as far as wanted."""
        return (self._adjoint_step if self.continuous else self._vjp)(u, u_next, theta, h, x, y, lam)

    def _vjp(self, u, u_next, theta, h, x, y, lam) -> list[Tensor]:
        r"""The discrete adjoint: :math:`\lambda_k = (\partial\Phi/\partial u)(u_k)^\top\lambda_{k+1}`, likewise for theta and h."""
        inputs = [u := u.detach().requires_grad_()]
        if self.proximal:
            inputs.append(theta := theta.detach().requires_grad_())
        if self.sensitivities:
            inputs.append(h := h.detach().requires_grad_())
        with torch.enable_grad():
            end = self.step(u, theta, h, x, y)
        return list(torch.autograd.grad(end, inputs, lam))

    def _adjoint_step(self, u, u_next, theta, h, x, y, lam) -> list[Tensor]:
        r"""The continuous adjoint: one step of :math:`d\lambda/dt = H(u(t))\lambda` backward, by the same tableau.

        Inside the step, :math:`u(t)` is the cubic Hermite interpolant of the states and slopes at both ends.
        """
        h = self._spread(h)
        nodes = [sum(row) for row in self.tableau.a]  # 0 is the right end of the step, 1 the left
        interior = any(0 < c < 1 for c in nodes)
        slopes = tuple(self.field(v, theta, x, y) for v in (u, u_next)) if interior else (u, u_next)  # or not used
        to_u: list[Tensor] = []
        to_theta: list[Tensor] = []
        for c, row in zip(nodes, self.tableau.a, strict=True):
            state = u_next if c == 0 else u if c == 1 else hermite(1 - c, u, u_next, slopes[0], slopes[1], h)
            part_u, *part_theta = self.field_vjp(state, theta, x, y, advance(lam, h, row, to_u))
            to_u.append(part_u)
            to_theta.extend(part_theta)
        ends = [advance(lam, h, self.tableau.b, to_u)]
        return [*ends, advance(torch.zeros_like(lam), h, self.tableau.b, to_theta)] if self.proximal else ends

    def field_vjp(self, u: Tensor, theta: Tensor, x: Tensor, y: Tensor, lam: Tensor) -> list[Tensor]:
        """``lam (B, P)`` times the field's Jacobian with respect to u and, where it enters, theta."""
        inputs = [u := u.detach().requires_grad_()]
        if self.proximal:
            inputs.append(theta := theta.detach().requires_grad_())
        with torch.enable_grad():
            slope = self.field(u, theta, x, y)
        return list(torch.autograd.grad(slope, inputs, lam))

    def _spread(self, h: Tensor) -> Tensor:
        return h if self._groups is None else h[:, self._groups]  # (B or 1, G) -> (B or 1, P)

    @cached_property
    def _groups(self) -> Tensor | None:
        return self.problem.groups(self.groups)

    @cached_property
    def _free(self) -> Tensor | None:
        return self.problem.free()


@dataclass(frozen=True, eq=False)
class Chain:
    """K steps of B tasks, as the memory strategies see them.

    Attributes:
        kernel: one step and its adjoint.
        theta: where every task starts (B, P).
        step_sizes: (K, G), one for each step and group of parameters (G = 1: the same for all).
        data: support points ``(x, y)`` of all steps (one entry) or of each step (K entries).
    """

    kernel: Kernel
    theta: Tensor
    step_sizes: Tensor
    data: tuple[tuple[Tensor, Tensor], ...]

    def __len__(self) -> int:
        return len(self.step_sizes)

    def start(self, lam: Tensor) -> Gradients:
        """The terminal value of the sweep, from the query gradient ``lam (B, P)``."""
        return Gradients(lam, torch.zeros_like(lam) if self.kernel.proximal else None)

    def points(self, k: int) -> tuple[Tensor, Tensor]:
        """The support points (B, n, ...) of step k."""
        return self.data[k if len(self.data) > 1 else 0]

    def slope(self, u: Tensor) -> Tensor:
        """du/dt (B, P) of the first step's field at ``u (B, P)``, without a graph."""
        with torch.no_grad():
            return self._fast("field")(u, self.theta, *self.points(0))

    def forward(self, k: int, u: Tensor) -> Tensor:
        """``u_{k+1} (B, P)`` from ``u_k (B, P)``, without a graph."""
        with torch.no_grad():
            return self._fast("step")(u, self.theta, self._sizes[k], *self.points(k))

    def end(self) -> Tensor:
        """``u_K (B, P)``, without a graph."""
        return self.advance(0, len(self), self.theta)

    def advance(self, start: int, stop: int, u: Tensor) -> Tensor:
        """``u_stop (B, P)`` from ``u_start (B, P)``, without a graph."""
        for k in range(start, stop):
            u = self.forward(k, u)
        return u

    def backward(self, k: int, u: Tensor, u_next: Tensor | None, gradients: Gradients) -> Gradients:
        """The gradients at step k from those at step k + 1; ``u`` and ``u_next`` (B, P) are the states at both ends.

        ``u_next`` is computed where it is ``None`` and needed, which is for the adjoint ODE alone.
        """
        kernel, h = self.kernel, self._sizes[k]  # (1, G)
        if kernel.sensitivities:
            h = h.expand(len(u), -1)  # (B, G), one for each task
        if u_next is None:
            u_next = self.forward(k, u) if kernel.continuous else u
        with torch.no_grad():
            lam, *parts = self._fast("back")(u, u_next, self.theta, h, *self.points(k), gradients.lam)
        theta = None if gradients.theta is None else gradients.theta + parts.pop(0)
        return Gradients(lam, theta, (*gradients.step_sizes, *parts))

    @cached_property
    def _sizes(self) -> list[Tensor]:
        if self.step_sizes.stride(0) == 0:  # one size for all
            return [self.step_sizes[:1].to(self.theta)] * len(self)
        return list(self.step_sizes.to(self.theta)[:, None])  # (K, G) -> K times (1, G)

    @cached_property
    def _found(self) -> dict[str, Callable]:
        return {}

    def _fast(self, name: Literal["field", "step", "back"]) -> Callable:
        """This function of the kernel, traced where that is possible; looked up once in a solve."""
        if name not in self._found:
            if name == "back":
                self._fast("step")  # whose trace is compared with the model in every solve
            self._found[name] = tracing.fast(self.kernel, name, len(self), self.theta, self._sizes[0], *self.points(0))
        return self._found[name]


def chain(
    kernel: Kernel, theta: Tensor, tasks: Tasks, step_sizes: Tensor | float, steps: int, schedule: Tensor | None = None
) -> Chain:
    """``steps`` (K) steps from ``theta (P,)`` on the support sets of tasks.

    Args:
        step_sizes: one number, or (K, G).
        schedule: (K, n), which support points each step takes; all by default.

    Raises:
        ValueError: a mask that does not fit the parameters.
    """
    mask = kernel.inner.mask
    if mask is not None and mask.shape != theta.shape:
        raise ValueError(f"a mask of {len(mask)} entries does not fit the model's P={len(theta)} parameters")
    if not isinstance(step_sizes, Tensor):
        step_sizes = torch.tensor([[step_sizes]], dtype=torch.float64, device="cpu").expand(steps, 1)
    x, y = tasks.support
    sets = [(x, y)] if schedule is None else [(x[:, rows], y[:, rows]) for rows in schedule]
    data = tuple((x.contiguous(), y.contiguous()) for x, y in sets)  # once, instead of at every step
    return Chain(kernel, batched(theta, tasks), step_sizes, data)


def batched(theta: Tensor, tasks: Tasks) -> Tensor:
    """One copy of ``theta (P,)`` for each task: (B, P), detached."""
    return theta.detach().expand(len(tasks), -1).contiguous()


def hermite(s: float, u: Tensor, u_next: Tensor, slope: Tensor, slope_next: Tensor, h: float | Tensor) -> Tensor:
    """The cubic that has the states and slopes of a step of size ``h`` at its ends, at the fraction ``s`` of the step."""
    return (
        (1 + 2 * s) * (1 - s) ** 2 * u
        + s * s * (3 - 2 * s) * u_next
        + h * (s * (1 - s) ** 2 * slope - s * s * (1 - s) * slope_next)
    )
