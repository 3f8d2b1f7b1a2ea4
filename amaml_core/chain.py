r"""A forward solve as a chain of K steps, :math:`z_{k+1} = \Phi_k(z_k, \theta, \varphi, h_k)`, and each step's way backward.

The state z is the adapted parameters u, followed by whatever the rule of the steps remembers (momenta). The memory strategies of
:mod:`amaml_core.adjoint` decide which states are kept; this module knows what a chain is, and :mod:`amaml_core.kernel` what a step
is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from . import tracing
from .kernel import Kernel
from .tasks import Tasks


class Gradients(NamedTuple):
    """What the backward sweep carries from step k + 1 to step k.

    Attributes:
        lam: the adjoint state, the gradient with respect to the state ``z_k``: (B, P) for a Runge-Kutta method.
        theta: the gradient (B, P) with respect to theta where it enters the field directly; ``None`` where it does not.
        phi: the gradient (B, M) with respect to the meta-parameters, likewise.
        step_sizes: gradients (B, G) with respect to the step sizes of the steps already swept, last step first; their sum where
            all steps have the same.
    """

    lam: Tensor
    theta: Tensor | None = None
    phi: Tensor | None = None
    step_sizes: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Chain:
    """K steps of B tasks, as the memory strategies see them.

    Attributes:
        kernel: one step and its adjoint.
        theta: where every task starts (B, P).
        phi: the meta-parameters (B, M); M = 0 without.
        step_sizes: (K, G), one for each step and group of parameters (G = 1: the same for all).
        data: support points ``(x, y)`` of all steps (one entry) or of each step (K entries).
        tied: all steps have the same step sizes, whose gradients are summed.
        query: the query points ``(x, y)``, and the weights (K,) of the query loss after each step; ``None`` for the last one alone.
    """

    kernel: Kernel
    theta: Tensor
    phi: Tensor
    step_sizes: Tensor
    data: tuple[tuple[Any, Any], ...]
    tied: bool = False
    query: tuple[tuple[Any, Any], list[float]] | None = None

    def __len__(self) -> int:
        return len(self.step_sizes)

    @property
    def initial(self) -> Tensor:
        """The state before the first step: theta (B, P), and zeros for what the rule remembers."""
        return self._padded(self.theta)

    def adapted(self, z: Tensor) -> Tensor:
        """The parameters ``u (B, P)`` in a state."""
        return z if self.kernel.rule.slots == 1 else z[:, : self.theta.shape[1]].contiguous()

    def start(self, lam: Tensor) -> Gradients:
        """The terminal value of the sweep, from the query gradient ``lam (B, P)``."""
        if self.query is not None:
            lam = self.query[1][-1] * lam
        to_phi = self.kernel.to_phi(self.phi) or (self.query is not None and self.phi.shape[1])
        return Gradients(
            self._padded(lam.contiguous()),
            torch.zeros_like(lam) if self.kernel.to_theta else None,
            torch.zeros_like(self.phi) if to_phi else None,
        )

    @property
    def compared(self) -> tracing.Seen | None:
        """What belongs to a step that is traced in this solve; ``None`` if none is."""
        return self._found["step"][1] if "step" in self._found else None

    def points(self, k: int) -> tuple[Any, Any]:
        """The support points (B, n, ...) of step k."""
        return self.data[k if len(self.data) > 1 else 0]

    def slope(self, u: Tensor) -> Tensor:
        """du/dt (B, P) of the first step's field at ``u (B, P)``, without a graph."""
        with torch.no_grad():
            return self._fast("field")(u, self.theta, self.phi, *self.points(0))

    def forward(self, k: int, z: Tensor) -> Tensor:
        """``z_{k+1}`` from ``z_k``, without a graph."""
        if torch.is_grad_enabled():  # a look is cheaper than to switch it off at every step
            with torch.no_grad():
                return self.forward(k, z)
        return self._fast("step")(z.contiguous(), *self._constants(k))  # a graph is made for one memory layout

    def unrolled(self, k: int, z: Tensor) -> Tensor:
        """``z_{k+1}`` from ``z_k``, in the graph of whoever calls."""
        return self.kernel.step(z, *self._constants(k))

    def end(self) -> Tensor:
        """``z_K``, without a graph."""
        return self.advance(0, len(self), self.initial)

    def advance(self, start: int, stop: int, z: Tensor) -> Tensor:
        """``z_stop`` from ``z_start``, without a graph."""
        for k in range(start, stop):
            z = self.forward(k, z)
        return z

    def backward(self, k: int, z: Tensor, z_next: Tensor | None, gradients: Gradients) -> Gradients:
        """The gradients at step k from those at step k + 1; ``z`` and ``z_next`` are the states at both ends.

        ``z_next`` is computed where it is ``None`` and needed, which is for the adjoint ODE alone.
        """
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.backward(k, z, z_next, gradients)
        if z_next is None:
            z_next = self.forward(k, z) if self.kernel.continuous else z
        given = z.contiguous(), z_next.contiguous(), *self._constants(k, own=True), gradients.lam.contiguous()
        return self._add(k, z, self._fast("back")(*given), gradients)

    def linearize(self, k: int, z: Tensor) -> tuple[Tensor, Callable[[Gradients], Gradients]]:
        """``z_{k+1}`` from ``z_k``, and :meth:`backward` for this step, which goes back through the graph of the step."""
        with torch.no_grad():
            z_next, pull = self.kernel.linearize(z, *self._constants(k, own=True))
        return z_next, lambda gradients: self._add(k, z, pull(gradients.lam), gradients)

    def _add(self, k: int, z: Tensor, parts: list[Tensor], gradients: Gradients) -> Gradients:
        lam, *rest = parts
        theta, phi, sizes = gradients.theta, gradients.phi, gradients.step_sizes
        if theta is not None:
            theta = theta + rest.pop(0)
        if phi is not None and self.kernel.to_phi(self.phi):
            phi = phi + rest.pop(0)
        if self.kernel.sensitivities:
            sizes = (sizes[0] + rest[0],) if self.tied and sizes else (*sizes, rest[0])
        if self.query is not None and k:  # the query loss after step k - 1, which ends in this state
            points, weights = self.query
            _, slope, *to_phi = self.kernel.judge(self.adapted(z), self.phi, *points)
            lam = lam + weights[k - 1] * self._padded(slope)
            phi = phi + weights[k - 1] * to_phi[0] if phi is not None and to_phi else phi
        return Gradients(lam, theta, phi, sizes)

    def _padded(self, u: Tensor) -> Tensor:
        slots = self.kernel.rule.slots
        return u if slots == 1 else torch.cat([u, u.new_zeros((len(u), (slots - 1) * u.shape[1]))], 1)

    def _constants(self, k: int, own: bool = False) -> tuple[Any, ...]:
        """What step k takes beside the state; ``own`` step sizes for each task, where their gradients are wanted."""
        own = own and self.kernel.sensitivities
        if own in self._same:
            return self._same[own]
        h = self._sizes[min(k, len(self) - 1)]  # (1, G)
        found = self.theta, self.phi, h.repeat(len(self.theta), 1) if own else h, self._clock(k), *self.points(k)
        if self._sizes[0] is self._sizes[-1] and not self._clocks[0].numel() and len(self.data) == 1:
            self._same[own] = found
        return found

    @cached_property
    def _same(self) -> dict[bool, tuple[Any, ...]]:
        return {}

    @cached_property
    def _sizes(self) -> list[Tensor]:
        if self.step_sizes.stride(0) == 0:  # one size for all
            return [self.step_sizes[:1].to(self.theta)] * len(self)
        return list(self.step_sizes.to(self.theta)[:, None])  # (K, G) -> K times (1, G)

    def _clock(self, k: int) -> Tensor:
        """What the rule needs of the number of a step: (1, C)."""
        if k < len(self._clocks):
            return self._clocks[k]
        return self._clocks[0] if not self._clocks[0].numel() else self.theta.new_tensor([self.kernel.rule.clock(k)])

    @cached_property
    def _clocks(self) -> list[Tensor]:
        numbers = [self.kernel.rule.clock(k) for k in range(len(self))]
        if not numbers[0]:
            return [self.theta.new_empty((1, 0))]
        return list(torch.tensor(numbers, dtype=torch.float64).to(self.theta)[:, None])  # K times (1, C)

    @cached_property
    def _found(self) -> dict[str, tuple[Callable, tracing.Seen | None]]:
        return {}

    def look_again(self) -> None:
        """Between steps that a user takes one by one the model may be changed: they run as it is then, untraced."""
        if not self.kernel.problem.unchanging:
            now = replace(self.kernel)  # which has not looked up yet what is frozen
            self._found.update(step=(now.step, None), field=(now.field, None))

    def _fast(self, name: Literal["field", "step", "back"]) -> Callable:
        """This function of the kernel, traced where that is possible; looked up once in a solve."""
        if name not in self._found:
            if name == "back":
                self._fast("step")  # so that a trace is compared with the model in every solve
            self._found[name] = tracing.fast(self.kernel, name, len(self), self.compared, *self._constants(0))
        return self._found[name][0]


def chain(
    kernel: Kernel,
    theta: Tensor,
    tasks: Tasks,
    step_sizes: Tensor | float,
    steps: int,
    schedule: Tensor | None = None,
    phi: Tensor | None = None,
    query_weights: Tensor | None = None,
) -> Chain:
    """``steps`` (K) steps from ``theta (P,)`` on the support sets of tasks.

    Args:
        step_sizes: one number, or (K, G), or (1, G) for all steps.
        schedule: (K, n), which support points each step takes; all by default.
        phi: meta-parameters (M,), or none.
        query_weights: (K,), of the query loss after each step; of the last one alone by default.

    Raises:
        ValueError: a mask that does not fit the parameters.
    """
    mask = kernel.inner.mask
    if mask is not None and mask.shape != theta.shape:
        raise ValueError(f"a mask of {len(mask)} entries does not fit the model's P={len(theta)} parameters")
    if not isinstance(step_sizes, Tensor):
        step_sizes = torch.tensor([[step_sizes]], dtype=torch.float64, device="cpu").expand(steps, 1)
    tied = kernel.sensitivities and len(step_sizes) == 1 < steps
    if len(step_sizes) == 1:
        step_sizes = step_sizes.expand(steps, -1)
    rows = [None] if schedule is None else list(schedule)
    data = tuple(tree_map(partial(_taken, rows=row), tasks.support) for row in rows)  # once, instead of at every step
    given = theta.new_empty((len(tasks), 0)) if phi is None else batched(phi, tasks)
    query = None if query_weights is None else (tasks.query, query_weights.tolist())
    return Chain(kernel, batched(theta, tasks), given, step_sizes, data, tied, query)


def _taken(points: Tensor, rows: Tensor | None) -> Tensor:
    return (points if rows is None else points[:, rows]).contiguous()


def repeat(make: Callable[[int], Chain], steps: int) -> Callable[[Tensor], Tensor]:
    """The steps of a chain as one function ``u (B, P) -> u (B, P)``, to be called as often as wanted, from theta on.

    Args:
        make: a chain of so many steps; asked for a longer one where its steps take different points.
        steps: of the first chain.
    """
    current, k = make(steps), 0
    z, width = current.initial, current.theta.shape[1]

    def step(u: Tensor) -> Tensor:
        nonlocal current, z, k
        if k == len(current) and current.kernel.inner.minibatch is not None:
            current = make(2 * k)
        current.look_again()
        z = current.forward(k, u if z.shape[1] == width else torch.cat([u, z[:, width:]], 1))
        k += 1
        return current.adapted(z)

    return step


def batched(theta: Tensor, tasks: Tasks) -> Tensor:
    """One copy of ``theta (P,)`` for each task: (B, P), detached."""
    return theta.detach().expand(len(tasks), -1).contiguous()
