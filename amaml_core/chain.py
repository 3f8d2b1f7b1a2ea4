r"""A forward solve as a chain of K steps, :math:`u_{k+1} = \Phi(u_k, \theta, h_k)`, and each step's way backward.

The memory strategies of :mod:`amaml_core.adjoint` decide which states are kept; this module knows what one step is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .flow import Tableau, advance, runge_kutta_step

# field(u, theta, x, y) -> du/dt; u, theta and du/dt are (B, P), and x, y the support points (B, n, ...) of the step
StepField = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Gradients(NamedTuple):
    """What the backward sweep carries from step k + 1 to step k.

    Attributes:
        lam: the adjoint state (B, P), the gradient with respect to ``u_k``.
        theta: the gradient (B, P) with respect to theta where it enters the field directly; ``None`` where it does not.
        step_sizes: gradients (B, G) with respect to the step sizes of the steps already swept, last step first.
    """

    lam: Tensor
    theta: Tensor | None
    step_sizes: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """One step and its adjoint, as functions of tensors alone, so that they can be traced and compiled.

    Attributes:
        field: the field that the step follows.
        tableau: its Runge-Kutta method.
        groups: (P,), the step-size group of each parameter; ``None`` where one size holds for all.
        theta_enters: the field depends on theta directly.
        sensitivities: also pull back to the step size.
        continuous: pull back by the adjoint ODE instead of the adjoint of the step.
    """

    field: StepField
    tableau: Tableau
    groups: Tensor | None = None
    theta_enters: bool = False
    sensitivities: bool = False
    continuous: bool = False

    def step(self, u: Tensor, theta: Tensor, h: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
        """``u_{k+1} (B, P)`` from ``u_k (B, P)``; ``h`` is a number or (B or 1, G)."""
        h = h if self.groups is None else h[:, self.groups]  # (B, G) -> (B, P)
        return runge_kutta_step(self.tableau, lambda v: self.field(v, theta, x, y), u, h)

    def rest(self, u: Tensor) -> Tensor:
        """What ``step`` gives where the field is zero."""
        return u

    def back(
        self, u: Tensor, u_next: Tensor, theta: Tensor, h: float | Tensor, x: Tensor, y: Tensor, lam: Tensor
    ) -> list[Tensor]:
        """``lam (B, P)`` pulled back over the step from ``u`` to ``u_next``: the parts for u, theta and h, as far as wanted."""
        return (self._adjoint_step if self.continuous else self._vjp)(u, u_next, theta, h, x, y, lam)

    def _vjp(self, u, u_next, theta, h, x, y, lam) -> list[Tensor]:
        r"""The discrete adjoint: :math:`\lambda_k = (\partial\Phi/\partial u)(u_k)^\top\lambda_{k+1}`, likewise for theta and h."""
        inputs = [u := u.detach().requires_grad_()]
        if self.theta_enters:
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
        h = h if self.groups is None else h[:, self.groups]  # (B, G) -> (B, P)
        nodes = [sum(row) for row in self.tableau.a]  # 0 is the right end of the step, 1 the left
        interior = any(0 < c < 1 for c in nodes)
        slopes = [self.field(v, theta, x, y) for v in (u, u_next)] if interior else None
        to_u: list[Tensor] = []
        to_theta: list[Tensor] = []
        for c, row in zip(nodes, self.tableau.a, strict=True):
            state = u_next if c == 0 else u if c == 1 else hermite(1 - c, u, u_next, *slopes, h)
            part_u, *part_theta = self.field_vjp(state, theta, x, y, advance(lam, h, row, to_u))
            to_u.append(part_u)
            to_theta.extend(part_theta)
        ends = [advance(lam, h, self.tableau.b, to_u)]
        return [*ends, advance(torch.zeros_like(lam), h, self.tableau.b, to_theta)] if self.theta_enters else ends

    def field_vjp(self, u: Tensor, theta: Tensor, x: Tensor, y: Tensor, lam: Tensor) -> list[Tensor]:
        """``lam (B, P)`` times the field's Jacobian with respect to u and, where it enters, theta."""
        inputs = [u := u.detach().requires_grad_()]
        if self.theta_enters:
            inputs.append(theta := theta.detach().requires_grad_())
        with torch.enable_grad():
            slope = self.field(u, theta, x, y)
        return list(torch.autograd.grad(slope, inputs, lam))


class Traced(NamedTuple):
    """A kernel's step and its way back as graphs (:mod:`amaml_core.tracing`), with step sizes as tensors (1 or B, G)."""

    step: Callable[..., Tensor]
    back: Callable[..., list[Tensor]] | None


@dataclass(frozen=True, eq=False)
class Chain:
    """K steps of B tasks.

    Attributes:
        kernel: one step and its adjoint.
        theta: where every task starts (B, P).
        step_sizes: (K, G), one for each step and group of parameters (G = 1: the same for all); on the CPU, float64.
        data: support points ``(x, y)`` of all steps (one entry) or of each step (K entries).
        traced: what runs in place of the kernel's ``step`` and ``back``, if anything.
    """

    kernel: Kernel
    theta: Tensor
    step_sizes: Tensor
    data: tuple[tuple[Tensor, Tensor], ...]
    traced: Traced | None = None

    def __len__(self) -> int:
        return len(self.step_sizes)

    def start(self, lam: Tensor) -> Gradients:
        """The terminal value of the sweep, from the query gradient ``lam (B, P)``."""
        return Gradients(lam, torch.zeros_like(lam) if self.kernel.theta_enters else None)

    def points(self, k: int) -> tuple[Tensor, Tensor]:
        """The support points (B, n, ...) of step k."""
        return self.data[k if len(self.data) > 1 else 0]

    def forward(self, k: int, u: Tensor) -> Tensor:
        """``u_{k+1} (B, P)`` from ``u_k (B, P)``, without a graph."""
        with torch.no_grad():
            return (self.traced or self.kernel).step(u, self.theta, self._sizes[k], *self.points(k))

    def end(self) -> Tensor:
        """``u_K (B, P)``, without a graph."""
        u = self.theta
        for k in range(len(self)):
            u = self.forward(k, u)
        return u

    def backward(self, k: int, u: Tensor, u_next: Tensor, gradients: Gradients) -> Gradients:
        """The gradients at step k from those at step k + 1; ``u`` and ``u_next`` (B, P) are the states at both ends."""
        kernel = self.kernel
        h = self._sizes[k].expand(len(u), -1) if kernel.sensitivities else self._sizes[k]  # (1, G) -> (B, G): one for each task
        with torch.no_grad():
            lam, *parts = (self.traced or kernel).back(u, u_next, self.theta, h, *self.points(k), gradients.lam)
        theta = gradients.theta + parts.pop(0) if kernel.theta_enters else None
        return Gradients(lam, theta, (*gradients.step_sizes, *parts))

    @cached_property
    def _sizes(self) -> list[float] | list[Tensor]:
        """The size of each step: a plain number where that is enough, else (1, G)."""
        plain = self.traced is None and self.kernel.groups is None and not self.kernel.sensitivities
        if plain:
            return self.step_sizes[:, 0].tolist()
        return list(self.step_sizes.to(self.theta)[:, None])  # (K, G) -> K times (1, G)


def hermite(s: float, u: Tensor, u_next: Tensor, slope: Tensor, slope_next: Tensor, h: float | Tensor) -> Tensor:
    """The cubic that has the states and slopes of a step of size ``h`` at its ends, at the fraction ``s`` of the step."""
    return (
        (1 + 2 * s) * (1 - s) ** 2 * u
        + s * s * (3 - 2 * s) * u_next
        + h * (s * (1 - s) ** 2 * slope - s * s * (1 - s) * slope_next)
    )
