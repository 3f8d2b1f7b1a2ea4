r"""The backward ODE: the adjoint state lam, swept from the horizon back to t = 0, and what is kept for it.

The discrete adjoint of a solver is the vector-Jacobian product of its steps, applied backward along the states that the
forward solve went through:

.. math:: \lambda_k = (\partial \Phi_k/\partial u)(u_k)^\top \lambda_{k+1}, \qquad \lambda_K = \nabla L_\text{query}(u_K).

For Euler's method this reads :math:`\lambda_k = (I - hH(u_k))\lambda_{k+1}`, one Hessian-vector product a step. No graph spans
more than one step. ``Store`` keeps every state, ``Checkpoint`` recomputes some, ``Backsolve`` keeps none and reverses the flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from .chain import Chain, Gradients
from .flow import DivergenceError

# pullback(gradient at the adapted parameters (B, P)) -> gradient at theta (B, P)
Pullback = Callable[[Tensor], Tensor]
Sweep = Callable[[Tensor], Gradients]  # query gradient (B, P) -> gradients at t = 0


@dataclass(frozen=True)
class Store:
    """Keep every state of the trajectory: (K + 1) B P numbers, and no state is computed twice.

    Args:
        dtype: keep the states in another precision (``torch.bfloat16`` halves the memory and perturbs the gradient).
        device: keep them elsewhere; ``"cpu"`` from a GPU puts them in pinned host memory.
    """

    dtype: torch.dtype | None = None
    device: str | None = None

    def solve(self, chain: Chain) -> tuple[Tensor, Sweep]:
        """Run the chain forward; return its last state (B, P) and the sweep back."""
        states = self._record(chain, 0, len(chain), chain.theta)
        end = states[1]

        def sweep(lam: Tensor) -> Gradients:
            return _sweep_stored(chain, 0, states[0], end, chain.start(lam))

        return end, sweep

    def _record(self, chain: Chain, start: int, stop: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """States start ... stop - 1 in one preallocated tensor (n, B, P), and the exact state at ``stop``."""
        device = u.device if self.device is None else torch.device(self.device)
        trajectory = torch.empty(
            (stop - start, *u.shape), dtype=self.dtype or u.dtype, device=device,
            pin_memory=device.type == "cpu" and u.device.type == "cuda",
        )  # fmt: skip
        for k in range(start, stop):
            trajectory[k - start].copy_(u, non_blocking=True)
            u = chain.forward(k, u)
        return trajectory, u


def _sweep_stored(chain: Chain, start: int, trajectory: Tensor, end: Tensor, gradients: Gradients) -> Gradients:
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
            schedule of Revolve. For budgets far below :math:`\sqrt K`.

    Raises:
        ValueError: both are given, or one is < 1.

    Reference: Griewank and Walther, Algorithm 799: Revolve, 2000.
    """

    segments: int | None = None
    snapshots: int | None = None

    def __post_init__(self) -> None:
        if self.segments is not None and self.snapshots is not None:
            raise ValueError("Checkpoint takes segments or snapshots, not both")
        for name, value in (("segments", self.segments), ("snapshots", self.snapshots)):
            if value is not None and value < 1:
                raise ValueError(f"Checkpoint needs {name} >= 1, not {value}")

    def solve(self, chain: Chain) -> tuple[Tensor, Sweep]:
        """Run the chain forward; return its last state (B, P) and the sweep back."""
        return self._revolve(chain) if self.snapshots is not None else self._segments(chain)

    def _segments(self, chain: Chain) -> tuple[Tensor, Sweep]:
        steps = len(chain)
        count = min(self.segments or math.ceil(math.sqrt(steps)), steps)
        bounds = [steps * i // count for i in range(count + 1)]
        kept = chain.theta.new_empty((count, *chain.theta.shape))  # (segments, B, P)
        end = chain.theta
        for i, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            kept[i] = end
            end = _forward(chain, start, stop, end)

        def sweep(lam: Tensor) -> Gradients:
            gradients = chain.start(lam)
            for i in reversed(range(count)):
                states, u = Store()._record(chain, bounds[i], bounds[i + 1], kept[i])
                gradients = _sweep_stored(chain, bounds[i], states, u, gradients)
            return gradients

        return end, sweep

    def _revolve(self, chain: Chain) -> tuple[Tensor, Sweep]:
        # The forward solve already leaves the snapshots that the sweep will want first.
        bounds = revolve_bounds(len(chain), self.snapshots)
        kept, end = [], chain.theta
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            kept.append(end)
            end = _forward(chain, start, stop, end)

        def sweep(lam: Tensor) -> Gradients:
            gradients = chain.start(lam)
            for i in reversed(range(len(kept))):
                gradients = descend(bounds[i], bounds[i + 1], kept[i], self.snapshots - i, gradients)
            return gradients

        def descend(start: int, stop: int, u: Tensor, free: int, gradients: Gradients) -> Gradients:
            # ``u``, the state at ``start``, takes one of the ``free`` snapshots.
            while stop - start > 1:
                split = start + revolve_split(stop - start, free)
                gradients = descend(split, stop, _forward(chain, start, split, u), max(free - 1, 1), gradients)
                stop = split
            u_next = chain.forward(start, u) if chain.kernel.continuous else u  # the discrete adjoint needs one end alone
            return chain.backward(start, u, u_next, gradients)

        return end, sweep


def _forward(chain: Chain, start: int, stop: int, u: Tensor) -> Tensor:
    for k in range(start, stop):
        u = chain.forward(k, u)
    return u


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
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    drift: float = 1e-2
    max_steps: int = 500

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0 and self.drift > 0):
            raise ValueError(f"Backsolve needs rtol, atol and drift > 0, not {self}")

    def solve(self, chain: Chain) -> tuple[Tensor, Sweep]:
        """Run the chain forward; return its last state (B, P) and the sweep back along the reversed flow."""
        end = _forward(chain, 0, len(chain), chain.theta)
        horizon = chain.step_sizes.sum().item()

        def sweep(lam: Tensor) -> Gradients:
            start, gradients, reached = self.reverse(chain, end, horizon, chain.start(lam))
            error = (start - chain.theta).norm(dim=1) / (end - chain.theta).norm(dim=1).clamp(
                min=torch.finfo(end.dtype).tiny
            )
            if reached > 0 or not (error <= self.drift).all():  # a NaN is no number <= drift either
                worst = error.nan_to_num(nan=math.inf).max().item()
                raise DivergenceError(
                    f"Backsolve cannot reverse the flow from the horizon T={horizon:g}"
                    + (
                        f": it is stuck at t={reached:.3g}, where the reversed flow has become too steep. "
                        if reached > 0
                        else f": the reconstructed u(0) misses theta by {worst:.2g} of the distance travelled, "
                        f"more than {self.drift:g}. "
                    )
                    + "Use Store() or Checkpoint(), shorten the horizon, or tighten rtol and atol"
                )
            return gradients

        return end, sweep

    def reverse(
        self, chain: Chain, end: Tensor, horizon: float, gradients: Gradients
    ) -> tuple[Tensor, Gradients, float]:
        """Solve backward from ``end (B, P)``: the reconstructed u(0), the gradients, and the time at which it got stuck or 0."""
        reached = [horizon]

        def backward(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            reached[0] = horizon - s.item()
            u, lam = state[0], state[1]
            points = chain.points(0)
            return (-chain.kernel.field(u, chain.theta, *points), *chain.kernel.field_vjp(u, chain.theta, *points, lam))

        state = (end, gradients.lam, *(() if gradients.theta is None else (gradients.theta,)))
        times = torch.tensor([0.0, horizon], dtype=torch.float64, device=end.device)
        try:
            solution = odeint(
                backward,
                state,
                times,
                rtol=self.rtol,
                atol=self.atol,
                method="dopri5",
                options={"max_num_steps": self.max_steps},
            )
        except AssertionError:  # torchdiffeq: underflow in dt, a state that is not finite, or too many steps
            return torch.full_like(end, math.nan), gradients, max(reached[0], 1e-300)
        last = [s[-1] for s in solution]
        return last[0], Gradients(last[1], last[2] if len(last) > 2 else None), 0.0
