r"""A forward solve as a chain of K steps, :math:`u_{k+1} = \Phi_k(u_k, \theta, h_k)`, and each step's way backward.

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

# field(u, theta, k) -> du/dt, all (B, P); k is the number of the step, which selects its minibatch
StepField = Callable[[Tensor, Tensor, int], Tensor]


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


@dataclass(frozen=True, eq=False)
class Chain:
    """K steps of B tasks.

    Attributes:
        field: the field that the steps follow.
        tableau: their Runge-Kutta method.
        theta: where every task starts (B, P).
        step_sizes: (K, G), one for each step and group of parameters (G = 1: the same for all); on the CPU, float64.
        groups: (P,), the group of each parameter; ``None`` for G = 1.
        theta_enters: the field depends on theta directly.
        sensitivities: also pull back to the step sizes.
        continuous: pull back by the adjoint ODE instead of the adjoint of the step.
    """

    field: StepField
    tableau: Tableau
    theta: Tensor
    step_sizes: Tensor
    groups: Tensor | None = None
    theta_enters: bool = False
    sensitivities: bool = False
    continuous: bool = False

    def __len__(self) -> int:
        return len(self.step_sizes)

    def start(self, lam: Tensor) -> Gradients:
        """The terminal value of the sweep, from the query gradient ``lam (B, P)``."""
        return Gradients(lam, torch.zeros_like(lam) if self.theta_enters else None)

    def forward(self, k: int, u: Tensor) -> Tensor:
        """``u_{k+1} (B, P)`` from ``u_k (B, P)``, without a graph."""
        return self._step(k, u, self.theta, self._size(k))

    def backward(self, k: int, u: Tensor, u_next: Tensor, gradients: Gradients) -> Gradients:
        """The gradients at step k from those at step k + 1; ``u`` and ``u_next`` (B, P) are the states at both ends."""
        return self._adjoint_step(k, u, u_next, gradients) if self.continuous else self._vjp(k, u, gradients)

    @cached_property
    def _plain_sizes(self) -> list[float]:
        return self.step_sizes[:, 0].tolist()

    def _size(self, k: int) -> float | Tensor:
        """The size of step k: a plain number, or (1, P) where parameters differ in it."""
        if self.groups is None:
            return self._plain_sizes[k]
        return self.step_sizes[k].to(self.theta)[None, self.groups]

    def _step(self, k: int, u: Tensor, theta: Tensor, h: float | Tensor) -> Tensor:
        return runge_kutta_step(self.tableau, lambda v: self.field(v, theta, k), u, h)

    def _vjp(self, k: int, u: Tensor, gradients: Gradients) -> Gradients:
        r"""The discrete adjoint: :math:`\lambda_k = (\partial\Phi_k/\partial u)^\top\lambda_{k+1}`, likewise for theta and h."""
        u = u.detach().requires_grad_()
        theta = self.theta.detach().requires_grad_(self.theta_enters)
        inputs = [u, theta] if self.theta_enters else [u]
        with torch.enable_grad():
            h = self._size(k)
            if self.sensitivities:
                inputs.append(self.step_sizes[k].to(u).repeat(len(u), 1).requires_grad_())  # (B, G): one for each task
                h = inputs[-1] if self.groups is None else inputs[-1][:, self.groups]  # (B, G) -> (B, P)
            end = self._step(k, u, theta, h)
        parts = list(torch.autograd.grad(end, inputs, gradients.lam))
        return Gradients(
            lam=parts.pop(0),
            theta=gradients.theta + parts.pop(0) if self.theta_enters else None,
            step_sizes=(*gradients.step_sizes, parts.pop(0)) if self.sensitivities else (),
        )

    def _adjoint_step(self, k: int, u: Tensor, u_next: Tensor, gradients: Gradients) -> Gradients:
        r"""The continuous adjoint: one step of :math:`d\lambda/dt = H(u(t))\lambda` backward, by the same tableau.

        Inside the step, :math:`u(t)` is the cubic Hermite interpolant of the states and slopes at both ends.
        """
        h = self._size(k)
        nodes = [sum(row) for row in self.tableau.a]  # 0 is the right end of the step, 1 the left
        interior = any(0 < c < 1 for c in nodes)
        slopes = (self.field(u, self.theta, k), self.field(u_next, self.theta, k)) if interior else None
        to_u: list[Tensor] = []
        to_theta: list[Tensor] = []
        for c, row in zip(nodes, self.tableau.a, strict=True):
            state = u_next if c == 0 else u if c == 1 else hermite(1 - c, u, u_next, slopes[0], slopes[1], h)
            lam = advance(gradients.lam, h, row, to_u)
            part_u, part_theta = self._field_vjp(k, state, lam)
            to_u.append(part_u)
            to_theta.append(part_theta)
        theta = advance(gradients.theta, h, self.tableau.b, to_theta) if self.theta_enters else None
        return Gradients(advance(gradients.lam, h, self.tableau.b, to_u), theta)

    def _field_vjp(self, k: int, u: Tensor, lam: Tensor) -> tuple[Tensor, Tensor | None]:
        """``lam (B, P)`` times the field's Jacobians with respect to u and theta."""
        u = u.detach().requires_grad_()
        theta = self.theta.detach().requires_grad_(self.theta_enters)
        with torch.enable_grad():
            slope = self.field(u, theta, k)
        parts = torch.autograd.grad(slope, (u, theta) if self.theta_enters else (u,), lam)
        return parts[0], parts[1] if self.theta_enters else None


def hermite(s: float, u: Tensor, u_next: Tensor, slope: Tensor, slope_next: Tensor, h: float | Tensor) -> Tensor:
    """The cubic that has the states and slopes of a step of size ``h`` at its ends, at the fraction ``s`` of the step."""
    return (
        (1 + 2 * s) * (1 - s) ** 2 * u
        + s * s * (3 - 2 * s) * u_next
        + h * (s * (1 - s) ** 2 * slope - s * s * (1 - s) * slope_next)
    )
