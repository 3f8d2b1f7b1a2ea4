r"""The forward ODE: gradient flow, solved by explicit Runge-Kutta steps.

Adaptation follows :math:`du/dt = f(u) = -\nabla L_\text{s}(u)` from :math:`u(0)=\theta` to the horizon :math:`T`. One step
of Euler's method with step size :math:`h` is one step of gradient descent with learning rate :math:`h`. Chapters "The
adjoint method from scratch" and "A-MAML derived" derive what this module computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from .settings import count, positive

Field = Callable[[Tensor], Tensor]  # u (B, P) -> du/dt (B, P)


class DivergenceError(ArithmeticError):
    """Parameters, a loss or a gradient stopped being finite; the message names where and the likely cause.

    >>> from amaml_core import MAML, Problem, Tasks, meta_gradient
    >>> problem = Problem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
    >>> try:
    ...     meta_gradient(MAML(lr=1e30), problem, problem.initial_parameters(), Tasks(*torch.ones(4, 2, 3, 1)))
    ... except DivergenceError as error:
    ...     print(str(error).partition(".")[0])
    the inner loop diverged for tasks [0, 1] of the batch
    """


class Tableau(NamedTuple):
    """Butcher tableau of an explicit Runge-Kutta method for an autonomous ODE: stage weights ``a``, final weights ``b``.

    It is a rule of one step, like those of :mod:`amaml_core.optimizers`.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def slots(self) -> int:
        """How many vectors (B, P) the state of the inner loop consists of: ``u`` alone."""
        return 1

    @property
    def evaluations(self) -> int:
        """Gradients in one step."""
        return len(self.b)

    def step(self, field: Field, u: Tensor, h: Tensor, clock: Tensor, free: Tensor | None) -> Tensor:
        """One step of size ``h`` from ``u (B, P)``."""
        return runge_kutta_step(self, field, u, h)

    def clock(self, k: int) -> tuple[float, ...]:
        """What a step needs of its number k: nothing."""
        return ()


@dataclass(frozen=True)
class FixedStep:
    """A solver with ``steps`` (K) equal steps. Use one of the subclasses, which name the method.

    Raises:
        TypeError: ``steps`` is no integer.
        ValueError: ``steps`` < 1.
    """

    steps: int
    order: ClassVar[int]

    def __post_init__(self) -> None:
        count(self, "steps")

    @property
    def rule(self) -> Any:
        """One step: see :class:`amaml_core.flow.Tableau` and :mod:`amaml_core.optimizers`."""
        raise NotImplementedError


@dataclass(frozen=True)
class RungeKutta(FixedStep):
    """An explicit Runge-Kutta method for the gradient flow."""

    tableau: ClassVar[Tableau]

    @property
    def rule(self) -> Tableau:
        """Its tableau."""
        return self.tableau


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method, order 1: gradient descent with learning rate h = T / K.

    >>> Euler(steps=50).order
    1
    """

    tableau = Tableau(a=((),), b=(1.0,))
    order = 1


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (explicit trapezoid), order 2, two gradients a step.

    >>> Heun(steps=25).tableau.b
    (0.5, 0.5)
    """

    tableau = Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2))
    order = 2


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical Runge-Kutta method, order 4, four gradients a step.

    >>> RK4(steps=12).order
    4
    """

    tableau = Tableau(a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6))
    order = 4


@dataclass(frozen=True)
class Dopri5:
    """The Dormand-Prince method of order 5 with step sizes chosen by torchdiffeq, jointly for all tasks of a chunk.

    Args:
        rtol, atol: relative and absolute tolerance of the local error.
        max_steps: give up after this many steps, accepted and rejected.

    Raises:
        ValueError: a tolerance that is not positive.

    Reference: Dormand and Prince, A family of embedded Runge-Kutta formulae, 1980.

    >>> Dopri5(rtol=1e-3)
    Dopri5(rtol=0.001, atol=1e-07, max_steps=10000)
    """

    rtol: float = 1e-5
    atol: float = 1e-7
    max_steps: int = 10_000
    tableau: ClassVar[Tableau] = Tableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    )
    order: ClassVar[int] = 5

    @property
    def rule(self) -> Tableau:
        """Its tableau."""
        return self.tableau

    def __post_init__(self) -> None:
        positive(self, "rtol", or_zero=True)
        positive(self, "atol", or_zero=True)
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"Dopri5 needs positive tolerances, not rtol={self.rtol}, atol={self.atol}")
        count(self, "max_steps")


def runge_kutta_step(tableau: Tableau, field: Field, u: Tensor, h: float | Tensor) -> Tensor:
    r"""One step of size ``h`` from ``u (B, P)``: :math:`u + h \sum_i b_i k_i` with :math:`k_i = f(u + h \sum_j a_{ij} k_j)`."""
    slopes: list[Tensor] = []
    for row in tableau.a:
        slopes.append(field(advance(u, h, row, slopes)))
    return advance(u, h, tableau.b, slopes)


def advance(u: Tensor, h: float | Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """``u + h * sum(weights * slopes)``, skipping weights of zero."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            u = u + (h * weight) * slope
    return u


class Grid(NamedTuple):
    """What an adaptive solve did: the sizes of its accepted steps, and what it cost."""

    step_sizes: list[float]
    rejected: int
    evaluations: int


class Stuck(DivergenceError):
    """An adaptive solve cannot go on; ``time`` says how far it came."""

    def __init__(self, time: float, reason: str) -> None:
        super().__init__(reason)
        self.time = time


def adaptive_grid(solver: Dopri5, field: Field, u: Tensor, horizon: float) -> Grid:
    """The steps that torchdiffeq accepts from ``u (B, P)`` to the horizon.

    Replaying them with :func:`runge_kutta_step` gives the same states to rounding, and makes the discrete adjoint exact for
    the steps that were taken.

    Raises:
        DivergenceError: the step size underflows, the state is not finite, or ``max_steps`` are not enough.
    """
    try:
        return adaptive_solve(field, u, horizon, solver.rtol, solver.atol, solver.max_steps, land=True)[1]
    except Stuck as stuck:
        raise DivergenceError(
            f"Dopri5 stopped at t={stuck.time:.3g} of {horizon:g}: {stuck}. The flow is stiff, too steep for these tolerances, or "
            "runs off to infinity. Loosen the tolerances, shorten the horizon, or raise max_steps"
        ) from None


def adaptive_solve(
    field: Field, u: Tensor, horizon: float, rtol: float, atol: float, max_steps: int, land: bool = False
) -> tuple[Tensor, Grid]:
    """Solve ``du/dt = field(u)`` from ``u``, of any shape, to the horizon by torchdiffeq's dopri5: the end, and the steps taken.

    torchdiffeq steps past the horizon and interpolates back, unless it shall ``land`` there. It checks by ``assert``, which
    ``python -O`` takes out, so its call-backs check here.

    Raises:
        Stuck: the step size underflows, the state is not finite, or ``max_steps`` are not enough.
    """
    recorder = _Recorder(field, max_steps)
    times = torch.tensor([0.0, horizon], dtype=torch.float64, device=u.device)
    options = {"step_t": times[1:]} if land else {}
    try:
        end = odeint(recorder, u, times, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
    except AssertionError as error:  # torchdiffeq's own words: underflow in dt, or non-finite values in state
        raise Stuck(sum(recorder.accepted), str(error).split(":")[0]) from None
    if not end.isfinite().all():
        raise Stuck(sum(recorder.accepted), "the state is not finite")
    return end, Grid(recorder.accepted, recorder.rejected, recorder.evaluations)


class _Recorder:
    """The field as torchdiffeq wants it, with its call-backs, which record the steps."""

    def __init__(self, field: Field, max_steps: int) -> None:
        self.field, self.max_steps = field, max_steps
        self.accepted: list[float] = []
        self.rejected = self.evaluations = 0

    def __call__(self, t: Tensor, u: Tensor) -> Tensor:
        self.evaluations += 1
        return self.field(u)

    def callback_accept_step(self, t: Tensor, u: Tensor, h: Tensor) -> None:
        self.accepted.append(h.item())
        self._check(t, h)

    def callback_reject_step(self, t: Tensor, u: Tensor, h: Tensor) -> None:
        self.rejected += 1
        self._check(t, h)

    def _check(self, t: Tensor, h: Tensor) -> None:
        if len(self.accepted) + self.rejected >= self.max_steps:
            raise Stuck(t.item(), f"it needs more than max_steps={self.max_steps} steps")
        if not t + h > t:  # neither is a NaN
            raise Stuck(t.item(), "underflow in the step size")
