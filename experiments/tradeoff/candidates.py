"""The ways to pull a query gradient back over one gradient descent: the methods whose meta-gradients are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    RK4,
    Backsolve,
    Checkpoint,
    Dopri5,
    Euler,
    GradientDescent,
    Heun,
    Problem,
    Reptile,
    Store,
    Tasks,
)
from amaml_core.chain import Chain, chain
from amaml_core.flow import FixedStep
from amaml_core.kernel import Kernel
from amaml_core.meta import Method
from amaml_core.methods.descent import Descent

SOLVERS: dict[str, type[FixedStep]] = {"Heun": Heun, "Euler": Euler, "RK4": RK4}


@dataclass(frozen=True)
class Thinned(Descent):
    r"""Gradient descent; its pullback solves the adjoint ODE on every m-th of the states.

    :math:`d\lambda/dt = H(u(t))\lambda` is solved backward in K / m steps of size :math:`m\alpha`; between two stored states
    :math:`u(t)` is their cubic interpolant. So the sweep costs an m-th of the Hessian-vector products and of the memory. With
    Heun's method and m = 1 this is the scheme of the authors' slides.

    Args:
        lr, steps: of the descent, :math:`\alpha` and K.
        every: m, a divisor of K.
        adjoint: the name of the adjoint's Runge-Kutta method.

    Raises:
        ValueError: ``every`` does not divide ``steps``, or an unknown solver.
    """

    every: int = 1
    adjoint: str = "Heun"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adjoint not in SOLVERS:
            raise ValueError(f"adjoint must be one of {tuple(SOLVERS)}, not {self.adjoint!r}")
        if self.every < 1 or self.steps % self.every:
            raise ValueError(f"Thinned needs every to divide steps={self.steps}, not {self.every}")

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        descent = self.chain(problem, theta, tasks)
        u = descent.theta
        kept = u.new_empty((self.steps // self.every, *u.shape))  # (K / m, B, P)
        for k in range(self.steps):
            if k % self.every == 0:
                kept[k // self.every] = u
            u = descent.forward(k, u)
        kernel = Kernel(problem, SOLVERS[self.adjoint].tableau, continuous=True)
        flow = chain(kernel, theta, tasks, self.lr * self.every, self.steps // self.every)

        def pullback(gradient: Tensor) -> Tensor:
            gradients, u_next = flow.start(gradient), u
            for k in reversed(range(len(flow))):
                gradients = flow.backward(k, kept[k], u_next, gradients)
                u_next = kept[k]
            return gradients.lam

        return u, pullback


@dataclass(frozen=True)
class Truncated(Descent):
    """Gradient descent; its pullback goes back over the last steps alone, as if the earlier ones did not depend on theta.

    Args:
        lr, steps: of the descent.
        last: how many steps are gone back; 0 would be FOMAML, K is exact.

    Raises:
        ValueError: ``last`` is not between 1 and ``steps``.

    Reference: Shaban et al., Truncated back-propagation for bilevel optimization, 2019.
    """

    last: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.last <= self.steps:
            raise ValueError(f"Truncated needs 1 <= last <= steps={self.steps}, not {self.last}")

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        descent = self.chain(problem, theta, tasks)
        u = descent.advance(0, self.steps - self.last, descent.theta)
        last = replace(descent, theta=u, step_sizes=descent.step_sizes[: self.last])
        end, sweep = Store().solve(last)
        return end, lambda gradient: sweep(gradient).lam


@dataclass(frozen=True)
class Swapped(Descent):
    """Gradient descent, with the pullback of an A-MAML that solves the flow once more in its own way.

    Args:
        lr, steps: of the descent.
        method: whose pullback is applied to the query gradient at the end of the descent.
    """

    method: AMAML = AMAML()

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P) of the descent, and the other's pullback (B, P) -> (B, P)."""
        return self.chain(problem, theta, tasks).end(), self.method(problem, theta, tasks)[1]


@dataclass(frozen=True)
class PlainDescent(GradientDescent):
    """Gradient descent for iMAML's pullback, without iMAML's proximal term: it ends where the other candidates end."""

    def chain(self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float, phi: Tensor | None, steps: int) -> Chain:
        return super().chain(problem, theta, tasks, 0.0, phi, steps)


@dataclass(frozen=True)
class Candidate:
    """A way to pull back: the ``group`` it is shown in, its ``setting`` within the group, and the method that does it."""

    group: str
    setting: str
    method: Method

    @property
    def name(self) -> str:
        """Group and setting."""
        return f"{self.group}: {self.setting}" if self.setting else self.group


UNROLLED, STORE = "MAML, unrolled", "A-MAML, discrete"
FIRST_ORDER, REPTILE, IMPLICIT, TRUNCATION = "FOMAML", "Reptile", "iMAML", "truncated"
THINNED, COARSE, ADAPTIVE, BACKSOLVE, ROUNDED = (
    "adjoint ODE on stored states", "A-MAML, coarser solve", "A-MAML, Dopri5", "A-MAML, Backsolve", "A-MAML, rounded states",
)  # fmt: skip
GROUPS = (
    UNROLLED, STORE, ROUNDED, THINNED, COARSE, ADAPTIVE, BACKSOLVE, TRUNCATION, IMPLICIT, FIRST_ORDER, REPTILE,
)  # fmt: skip


def candidates(lr: float, steps: int, few: bool = False) -> list[Candidate]:
    """All ways to pull back over ``steps`` steps of size ``lr``; the first is the exact gradient by unrolling.

    Args:
        lr, steps: of the descent that all share.
        few: the first setting of each group alone.
    """
    horizon = lr * steps
    implicit = partial(IMAML, PlainDescent(lr, steps), on_negative_curvature="truncate")
    found = [
        Candidate(UNROLLED, "", MAML(lr, steps)),
        Candidate(STORE, "Store", AMAML(horizon, Euler(steps))),
        Candidate(STORE, "Checkpoint", AMAML(horizon, Euler(steps), Checkpoint())),
    ]
    found += [
        Candidate(ROUNDED, str(dtype).removeprefix("torch."), AMAML(horizon, Euler(steps), Store(dtype)))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for every in (m for m in (1, 2, 5, 10) if steps % m == 0):
        for solver in SOLVERS:
            found.append(Candidate(THINNED, f"{solver}, m={every}", Thinned(lr, steps, every, solver)))
    for solver, rule in SOLVERS.items():
        for adjoint in ("discrete", "continuous"):
            method = AMAML(horizon, rule(steps // 5), adjoint=adjoint)
            setting = f"{solver}, K/5 steps, {adjoint}"
            found.append(Candidate(COARSE, setting, Swapped(lr, steps, method)))
    for rtol in (1e-4, 1e-2, 1e-6):
        for adjoint in ("discrete", "continuous"):
            method = AMAML(horizon, Dopri5(rtol, rtol / 100), adjoint=adjoint)
            found.append(Candidate(ADAPTIVE, f"rtol={rtol:.0e}, {adjoint}", Swapped(lr, steps, method)))
    backsolve = AMAML(horizon, Euler(steps), Backsolve(1e-6, 1e-8, max_steps=100))
    found.append(Candidate(BACKSOLVE, "rtol=1e-06", backsolve))
    for last in sorted({max(1, steps // part) for part in (10, 4, 2)}):
        found.append(Candidate(TRUNCATION, f"last {last} of {steps}", Truncated(lr, steps, last)))
    for weight in (1.0, 0.5, 2.0):
        for cg in (5, 1, 10):
            method = implicit(regularization=weight / horizon, cg_steps=cg)
            found.append(Candidate(IMPLICIT, f"λT={weight:g}, {cg} CG", method))
    found += [Candidate(FIRST_ORDER, "", FOMAML(lr, steps)), Candidate(REPTILE, "", Reptile(lr, steps))]
    return list({c.group: c for c in reversed(found)}.values())[::-1] if few else found


EXACT = "exact"


def training_methods(lr: float, steps: int) -> dict[str, Method]:
    """What the training runs compare: the exact gradient, and one or two settings of some ways to approximate it."""
    horizon = lr * steps
    implicit = partial(IMAML, PlainDescent(lr, steps), cg_steps=5, on_negative_curvature="truncate")
    return {
        EXACT: AMAML(horizon, Euler(steps)),
        "adjoint ODE, Heun, m=1": Thinned(lr, steps, 1),
        "adjoint ODE, Heun, m=5": Thinned(lr, steps, 5),
        "truncated, K/2": Truncated(lr, steps, steps // 2),
        "truncated, K/10": Truncated(lr, steps, max(1, steps // 10)),
        "iMAML, λT=1": implicit(regularization=1 / horizon),
        "FOMAML": FOMAML(lr, steps),
        "Reptile": Reptile(lr, steps),
    }
