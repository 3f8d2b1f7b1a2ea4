r"""The backward ODE: the adjoint state lam, swept from the horizon back to t = 0, and what is kept for it.

The discrete adjoint of a solver is the vector-Jacobian product of its steps, applied backward along the states that the
forward solve went through:

.. math:: \lambda_k = (\partial \Phi_k/\partial u)(u_k)^\top \lambda_{k+1}, \qquad \lambda_K = \nabla L_\text{q}(u_K).

For Euler's method this reads :math:`\lambda_k = (I - hH(u_k))\lambda_{k+1}`, one Hessian-vector product a step. No graph spans
more than one step. ``Store`` keeps every state, ``Checkpoint`` recomputes some, ``Backsolve`` keeps none and reverses the flow.
``Store`` and ``Checkpoint`` use nothing of a chain but its length, ``initial``, ``start``, ``forward``, ``advance``, ``backward``
and ``linearize``.
Chapter "Which states to keep" draws and counts what they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .chain import Chain, Gradients
from .flow import DivergenceError, Stuck, adaptive_solve
from .settings import count, positive

Sweep = Callable[[Tensor], Gradients]  # query gradient (B, P) -> gradients at t = 0


@dataclass(frozen=True)
class Store:
    """Keep every state of the trajectory: (K + 1) B P numbers, and no state is computed twice.

    Args:
        dtype: keep the states in another precision (``torch.bfloat16`` halves the memory and perturbs the gradient).
        device: keep them elsewhere; ``"cpu"`` from a GPU puts them in pinned host memory.
        graphs: also keep the graph of this many of the last steps, which are then not run a second time on the way back. In
            arithmetic a step's way forward costs 3 passes through the model and its way back 9, or 6 with its graph; ``graphs=K``
            costs the time and the memory of unrolling.

    Raises:
        TypeError: ``dtype`` is none of floating-point numbers.
        ValueError: ``graphs`` < 0, or together with another precision or device; a device that torch does not know.

    >>> from amaml_core import AMAML, Euler
    >>> AMAML(0.5, Euler(steps=50), memory=Store(dtype=torch.bfloat16)).memory
    Store(dtype=torch.bfloat16, device=None, graphs=0)
    """

    dtype: torch.dtype | None = None
    device: str | None = None
    graphs: int = 0

    def __post_init__(self) -> None:
        count(self, "graphs", least=0)
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"Store keeps states in a floating-point dtype such as torch.bfloat16, not in {self.dtype!r}")
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"Store needs a device such as 'cpu', not {self.device!r}") from error
        if self.graphs and (self.dtype is not None or self.device is not None):
            raise ValueError("the graphs of steps cannot be kept in another precision or elsewhere; leave dtype and device out")

    def solve(self, chain: Chain) -> tuple[Tensor, Sweep]:
        """Run the chain forward; return its last state and the sweep back."""
        first = max(len(chain) - self.graphs, 0)
        trajectory, middle = record(chain, 0, first, chain.initial, self.dtype, self.device)
        end, ways_back = middle, []
        for k in range(first, len(chain)):
            end, way_back = chain.linearize(k, end)
            ways_back.append(way_back)

        def sweep(lam: Tensor) -> Gradients:
            gradients = chain.start(lam)
            for way_back in reversed(ways_back):
                gradients = way_back(gradients)
            return sweep_back(chain, 0, trajectory, middle, gradients)

        return end, sweep


def record(
    chain: Chain, start: int, stop: int, u: Tensor, dtype: torch.dtype | None = None, device: str | None = None
) -> tuple[Tensor, Tensor]:
    """From the state ``u`` at ``start``: states start ... stop - 1 in one new tensor (n, B, P), and the exact one at ``stop``."""
    place = u.device if device is None else torch.device(device)
    trajectory = torch.empty(
        (stop - start, *u.shape), dtype=dtype or u.dtype, device=place,
        pin_memory=place.type == "cpu" and u.device.type == "cuda",
    )  # fmt: skip
    for k in range(start, stop):
        trajectory[k - start].copy_(u, non_blocking=True)
        u = chain.forward(k, u)
    return trajectory, u


def sweep_back(chain: Chain, start: int, trajectory: Tensor, end: Tensor, gradients: Gradients) -> Gradients:
    """From the state ``end`` back over the stored states (n, B, P), the first of which is number ``start``."""
    u_next = end
    for k in reversed(range(start, start + len(trajectory))):
        u = trajectory[k - start].to(end, non_blocking=True)  # to the device and precision that the solve has
        gradients = chain.backward(k, u, u_next, gradients)
        u_next = u
    return gradients


@dataclass(frozen=True)
class Checkpoint:
    r"""Keep some states and recompute the others on the way back: memory for time.

    Args:
        segments: cut the trajectory into this many segments, keep the first state of each, and recompute one segment at a
            time: about segments + K / segments states for one more forward solve. By default :math:`\lceil\sqrt K\rceil`.
        snapshots: keep at most this many states at any time and recompute as little as that allows, by the binomial
            schedule of Revolve. For budgets far below :math:`\sqrt K`. With the least r such that
            :math:`\binom{s+r}{s}>K`, s snapshots take :math:`r(K+1)-\binom{s+r}{s+1}` steps forward in all.

    Raises:
        ValueError: both are given, or one is < 1.

    Reference: Griewank and Walther, Algorithm 799: Revolve, 2000.

    >>> from amaml_core import AMAML, Euler
    >>> AMAML(5.0, Euler(steps=500), memory=Checkpoint(snapshots=8)).memory.snapshots
    8
    >>> revolve_bounds(steps=500, snapshots=3)  # the states that the forward solve leaves
    [0, 409, 487, 500]
    """

    segments: int | None = None
    snapshots: int | None = None

    def __post_init__(self) -> None:
        if self.segments is not None and self.snapshots is not None:
            raise ValueError("Checkpoint takes segments or snapshots, not both")
        for name in ("segments", "snapshots"):
            if getattr(self, name) is not None:
                count(self, name)

    def solve(self, chain: Chain) -> tuple[Tensor, Sweep]:
        """Run the chain forward; return its last state (B, P) and the sweep back."""
        return self._segments(chain) if self.snapshots is None else _revolve(chain, self.snapshots)

    def _segments(self, chain: Chain) -> tuple[Tensor, Sweep]:
        steps = len(chain)
        segments = min(self.segments or math.ceil(math.sqrt(steps)), steps)
        bounds = [steps * i // segments for i in range(segments + 1)]
        end = chain.initial
        kept = end.new_empty((segments, *end.shape))  # (segments, B, P)
        for i, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            kept[i] = end
            end = chain.advance(start, stop, end)

        def sweep(lam: Tensor) -> Gradients:
            gradients = chain.start(lam)
            for i in reversed(range(segments)):
                states, u = record(chain, bounds[i], bounds[i + 1], kept[i])
                gradients = sweep_back(chain, bounds[i], states, u, gradients)
            return gradients

        return end, sweep


def _revolve(chain: Chain, snapshots: int) -> tuple[Tensor, Sweep]:
    # The forward solve already leaves the snapshots that the sweep will want first.
    bounds = revolve_bounds(len(chain), snapshots)
    kept, end = [], chain.initial
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        kept.append((start, end))
        end = chain.advance(start, stop, end)

    def sweep(lam: Tensor) -> Gradients:
        gradients, waiting, stop = chain.start(lam), list(kept), len(chain)  # the states with their numbers, the last one on top
        while waiting:
            start, u = waiting[-1]
            if stop - start > 1:
                free = max(snapshots - len(waiting) + 1, 1)  # the state on top takes one of them
                split = start + revolve_split(stop - start, free)
                waiting.append((split, chain.advance(start, split, u)))
            else:
                gradients = chain.backward(start, u, None, gradients)
                stop = start
                waiting.pop()
        return gradients

    return end, sweep


def revolve_split(steps: int, snapshots: int) -> int:
    r"""How many steps to take before the next snapshot, if ``snapshots`` states may be kept, the first one included.

    :math:`\beta(s,r)=\binom{s+r}{s}` steps are within reach of s snapshots if no step is repeated more than r times. With the
    least r that reaches all steps, a split is optimal if the left side is within :math:`\beta(s,r-1)`, the right side within
    :math:`\beta(s-1,r)`, and neither is within one repetition fewer.

    Reference: Griewank and Walther, Algorithm 799: Revolve, 2000, section 2.
    """
    if snapshots == 1:
        return steps - 1
    repetitions = 1
    while math.comb(snapshots + repetitions, snapshots) < steps:
        repetitions += 1
    left = math.comb(snapshots + repetitions - 1, snapshots)
    right = math.comb(snapshots + repetitions - 2, snapshots - 1)
    return max(1, min(left, steps - right))


def revolve_bounds(steps: int, snapshots: int) -> list[int]:
    """The states that a forward solve keeps, and its end: 0, the successive splits, and ``steps``."""
    bounds = [0]
    while snapshots > 1 and steps - bounds[-1] > 1:
        bounds.append(bounds[-1] + revolve_split(steps - bounds[-1], snapshots))
        snapshots -= 1
    return [*bounds, steps]


@dataclass(frozen=True)
class Backsolve:
    r"""Keep nothing: solve :math:`u` backward in time together with :math:`\lambda`, from u(T), by adaptive steps.

    Memory does not depend on K. But a gradient flow contracts, so its reversal expands errors exponentially; the
    reconstructed u(0) is compared with theta, and the gradient is refused when they differ.

    Args:
        rtol, atol: tolerances of torchdiffeq's dopri5.
        drift: the largest :math:`\|u(0)-\theta\|/\|u(T)-\theta\|` of any task that is accepted.
        max_steps: give up after this many steps.

    Raises:
        ValueError: an argument that is not positive.

    Reference: Chen et al., Neural ordinary differential equations, NeurIPS 2018.

    >>> from amaml_core import AMAML, RK4
    >>> AMAML(0.1, RK4(steps=10), memory=Backsolve(rtol=1e-8)).memory.drift
    0.01
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    drift: float = 1e-2
    max_steps: int = 500

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "drift"):
            positive(self, name)
        count(self, "max_steps")

    def solve(self, chain: Chain) -> tuple[Tensor, Sweep]:
        """Run the chain forward; return its last state (B, P) and the sweep back along the reversed flow."""
        end = chain.end()
        horizon = chain.step_sizes.sum().item()

        def refuse(what: str) -> DivergenceError:
            return DivergenceError(
                f"Backsolve cannot reverse the flow from the horizon T={horizon:g}: {what}. Use Store() or Checkpoint(), "
                "shorten the horizon, or tighten rtol and atol"
            )

        def sweep(lam: Tensor) -> Gradients:
            try:
                start, gradients = self.reverse(chain, end, horizon, chain.start(lam))
            except Stuck as stuck:
                left = horizon - stuck.time
                raise refuse(f"it is stuck at t={left:.3g}, where the reversed flow has become too steep ({stuck})") from None
            distance = (end - chain.theta).norm(dim=1).clamp(min=torch.finfo(end.dtype).tiny)  # (B,)
            worst = ((start - chain.theta).norm(dim=1) / distance).nan_to_num(nan=math.inf).max().item()
            if worst > self.drift:
                raise refuse(
                    f"the reconstructed u(0) misses theta by {worst:.2g} of the distance travelled, more than {self.drift:g}"
                )
            return gradients

        return end, sweep

    def reverse(self, chain: Chain, end: Tensor, horizon: float, gradients: Gradients) -> tuple[Tensor, Gradients]:
        """Solve backward from ``end (B, P)``: the reconstructed u(0), and the gradients there.

        Raises:
            Stuck: the reversed flow cannot be followed to t = 0; its time runs from the horizon backward.
        """
        points, kernel = chain.points(0), chain.kernel

        def backward(state: Tensor) -> Tensor:
            u, lam = (part.contiguous() for part in state.split(widths, 1)[:2])
            slope = -kernel.field(u, chain.theta, chain.phi, *points)
            return torch.cat([slope, *kernel.field_vjp(u, chain.theta, chain.phi, *points, lam)], 1)

        parts = [end, *(part for part in gradients[:3] if part is not None)]  # u, lam, and theta's and phi's integrals
        widths = [part.shape[1] for part in parts]
        with torch.no_grad():
            state = adaptive_solve(backward, torch.cat(parts, 1), horizon, self.rtol, self.atol, self.max_steps)[0]
        start, lam, *integrals = (part.contiguous() for part in state.split(widths, 1))
        theta = integrals.pop(0) if gradients.theta is not None else None
        return start, Gradients(lam, theta, *integrals)
