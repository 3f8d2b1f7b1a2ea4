r"""One step :math:`z_{k+1} = \Phi_k(z_k, \theta, \varphi, h_k)` of an inner loop, and its adjoint, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .flow import Euler, advance
from .inner import InnerLoop
from .problem import Problem, slopes


@dataclass(frozen=True)
class Kernel:
    r"""One step of an inner loop and its adjoint.

    It follows :math:`-\nabla_u\bigl(L_\text{s}(u,\varphi) + R(u,\theta,\varphi) + \frac\mu2\|u-\theta\|^2\bigr)`, as
    ``inner`` changes it. Two kernels of equal settings are the same functions, so a kernel is the key under which its traced steps
    are kept.

    Attributes:
        problem: whose support loss and regularizer R are followed.
        rule: of the steps, a Runge-Kutta tableau or an optimiser's.
        inner: weight decay, frozen parameters, clipping.
        proximal: :math:`\mu`.
        groups: G, how many groups of parameters have a step size of their own.
        sensitivities: also pull back to the step size.
        continuous: pull back by the adjoint ODE instead of the adjoint of the step.
    """

    problem: Problem
    rule: Any = Euler.tableau
    inner: InnerLoop = InnerLoop()
    proximal: float = 0.0
    groups: int = 1
    sensitivities: bool = False
    continuous: bool = False

    @property
    def to_theta(self) -> bool:
        """Whether theta enters the field, and not the start alone."""
        return bool(self.proximal) or self.problem.regularizer is not None

    def to_phi(self, phi: Tensor) -> bool:
        """Whether the meta-parameters ``phi (B, M)`` enter the field."""
        return phi.shape[1] > 0 and self.problem.inner_phi

    def gradient(self, u: Tensor, theta: Tensor, phi: Tensor, x: Any, y: Any) -> Tensor:
        """The gradient (B, P) of the support loss and R at ``u (B, P)`` for the points ``x, y (B, n, ...)``; differentiable where
        gradients are enabled."""
        given = (phi,) if self.to_phi(phi) else ()
        return slopes(lambda v: self.problem.objectives(v, theta, x, y, *given), u, create_graph=torch.is_grad_enabled())[1]

    def field(self, u: Tensor, theta: Tensor, phi: Tensor, x: Any, y: Any) -> Tensor:
        """du/dt (B, P) there."""
        gradient = self.gradient(u, theta, phi, x, y)
        if self.problem.regularizer is not None and self._free is not None:
            gradient = gradient * self._free
        if self.proximal:
            gradient = gradient + self.proximal * (u - theta)
        return self.inner.slope(u, gradient, self._free)

    def step(self, z: Tensor, theta: Tensor, phi: Tensor, h: Tensor, clock: Tensor, x: Any, y: Any) -> Tensor:
        """``z_{k+1}`` from ``z_k``; ``h`` is (B or 1, G), ``clock (1, C)`` what the rule needs of the step's number."""
        return self.rule.step(lambda u: self.field(u, theta, phi, x, y), z, self._spread(h), clock, self.movable)

    def back(
        self, z: Tensor, z_next: Tensor, theta: Tensor, phi: Tensor, h: Tensor, clock: Tensor, x: Any, y: Any, lam: Tensor
    ) -> list[Tensor]:
        """``lam`` pulled back over the step from ``z`` to ``z_next``: the parts for z, theta, phi and h, as far as wanted."""
        if self.continuous:
            return self._adjoint_step(z, z_next, theta, phi, h, x, y, lam)
        return self.linearize(z, theta, phi, h, clock, x, y)[1](lam)

    def linearize(
        self, z: Tensor, theta: Tensor, phi: Tensor, h: Tensor, clock: Tensor, x: Any, y: Any
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        r"""The step, and its discrete adjoint :math:`\lambda_k = (\partial\Phi/\partial z)(z_k)^\top\lambda_{k+1}`, likewise for
        theta, phi and h."""
        z, theta, phi, h = (t.detach() for t in (z, theta, phi, h))
        wanted = self._wanted(z, theta, phi) + ([h] if self.sensitivities else [])
        for tensor in wanted:
            tensor.requires_grad_()
        with torch.enable_grad():
            end = self.step(z, theta, phi, h, clock, x, y)
        return end.detach(), lambda lam: list(torch.autograd.grad(end, wanted, lam, allow_unused=True, materialize_grads=True))

    def field_vjp(self, u: Tensor, theta: Tensor, phi: Tensor, x: Any, y: Any, lam: Tensor) -> list[Tensor]:
        """``lam (B, P)`` times the field's Jacobian with respect to u and, where they enter, theta and phi."""
        u, theta, phi = (t.detach() for t in (u, theta, phi))
        wanted = self._wanted(u, theta, phi)
        for tensor in wanted:
            tensor.requires_grad_()
        with torch.enable_grad():
            slope = self.field(u, theta, phi, x, y)
        if not slope.requires_grad:  # a loss linear in u
            return [torch.zeros_like(t) for t in wanted]
        return list(torch.autograd.grad(slope, wanted, lam, allow_unused=True, materialize_grads=True))

    def judge(self, u: Tensor, phi: Tensor, x: Any, y: Any) -> list[Tensor]:
        """The query losses (B,), their gradients (B, P) and, where phi enters the query loss, those with respect to it (B, M)."""
        u = u.detach().requires_grad_()
        phi = phi.detach().requires_grad_()
        given = (phi,) if phi.shape[1] else ()
        with torch.enable_grad():
            losses = self.problem.query_losses(u, x, y, *given)
            if not losses.requires_grad:
                raise ValueError(
                    "the query loss depends on no parameter (is it an accuracy?): there is no meta-gradient. Give a loss that can "
                    "be differentiated as query_loss, and measure the rest by evaluate"
                )
            wanted = (u, phi) if given and self.problem.query_phi else (u,)
            found = torch.autograd.grad(losses.sum(), wanted, allow_unused=True, materialize_grads=True)
        return [losses.detach(), *found]

    def _wanted(self, z: Tensor, theta: Tensor, phi: Tensor) -> list[Tensor]:
        return [z, *([theta] if self.to_theta else []), *([phi] if self.to_phi(phi) else [])]

    def _adjoint_step(self, u, u_next, theta, phi, h, x, y, lam) -> list[Tensor]:
        r"""The continuous adjoint: one step of :math:`d\lambda/dt = H(u(t))\lambda` backward, by the same tableau, and of the
        integrals :math:`\int\lambda^\top\partial_\theta f\,dt` and :math:`\int\lambda^\top\partial_\varphi f\,dt`.

        Inside the step, :math:`u(t)` is the cubic Hermite interpolant of the states and slopes at both ends.
        """
        h, tableau = self._spread(h), self.rule
        nodes = [sum(row) for row in tableau.a]  # 0 is the right end of the step, 1 the left
        interior = any(0 < c < 1 for c in nodes)
        ends = tuple(self.field(v, theta, phi, x, y) for v in (u, u_next)) if interior else (u, u_next)  # or not used
        several = h.shape[1] > 1  # then the field is h * f, and its Jacobian is applied to h * lam
        size = 1.0 if several else h
        stages: list[list[Tensor]] = []
        for c, row in zip(nodes, tableau.a, strict=True):
            state = u_next if c == 0 else u if c == 1 else hermite(1 - c, u, u_next, ends[0], ends[1], h)
            at_stage = advance(lam, size, row, [stage[0] for stage in stages])
            stages.append(self.field_vjp(state, theta, phi, x, y, h * at_stage if several else at_stage))
        starts = [lam, *[torch.zeros_like(part) for part in stages[0][1:]]]
        return [advance(start, size, tableau.b, list(part)) for start, part in zip(starts, zip(*stages, strict=True), strict=True)]

    def _spread(self, h: Tensor) -> Tensor:
        return h if self._groups is None else h[:, self._groups]  # (B or 1, G) -> (B or 1, P)

    @cached_property
    def _groups(self) -> Tensor | None:
        return self.problem.groups(self.groups)

    @cached_property
    def _free(self) -> Tensor | None:
        return self.problem.free()

    @cached_property
    def movable(self) -> Tensor | None:
        """(P,), true where the inner loop may move a parameter; ``None`` where it may move all."""
        if self.inner.mask is None:
            return self._free
        mask = self.inner.mask.to(next(self.problem.model.parameters()).device)
        return mask if self._free is None else mask & self._free


def hermite(s: float, u: Tensor, u_next: Tensor, slope: Tensor, slope_next: Tensor, h: float | Tensor) -> Tensor:
    """The cubic that has the states and slopes of a step of size ``h`` at its ends, at the fraction ``s`` of the step."""
    return (
        (1 + 2 * s) * (1 - s) ** 2 * u
        + s * s * (3 - 2 * s) * u_next
        + h * (s * (1 - s) ** 2 * slope - s * s * (1 - s) * slope_next)
    )
