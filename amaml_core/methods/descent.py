"""Inner gradient descent, shared by MAML, FOMAML and Reptile, and the checks of its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..problem import Problem
from ..tasks import Tasks


@dataclass(frozen=True)
class Descent:
    """``steps`` (K) steps of gradient descent on the support loss with learning rate ``lr``: settings shared by three methods.

    Raises:
        ValueError: ``lr`` is not positive or ``steps`` < 1.
    """

    lr: float
    steps: int

    def __post_init__(self) -> None:
        check_descent(type(self).__name__, self.lr, self.steps)

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One inner step ``u (B, P) -> u (B, P)``, without a graph; ``theta`` plays no part in it."""
        return lambda u: u - self.lr * problem.support_gradient(u, tasks)

    def descend(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Tensor:
        """The adapted parameters ``(B, P)``, without a graph."""
        step = self.inner_step(problem, theta, tasks)
        u = theta.expand(len(tasks), -1)  # (P,) -> (B, P)
        for _ in range(self.steps):
            u = step(u)
        return u


def check_descent(name: str, lr: float, steps: int) -> None:
    """Refuse a learning rate or a number of steps that cannot adapt anything."""
    if not lr > 0:
        raise ValueError(f"{name} needs lr > 0, not {lr}")
    if steps < 1:
        raise ValueError(f"{name} needs steps >= 1, not {steps}")


def record(stats: dict | None, **entries: object) -> None:
    """Note what a method did in ``stats``, if the caller asked for it."""
    if stats is not None:
        stats.update({key: value.detach() if isinstance(value, Tensor) else value for key, value in entries.items()})


def batched(theta: Tensor, tasks: Tasks) -> Tensor:
    """One copy of ``theta (P,)`` for each task: (B, P), detached."""
    return theta.detach().expand(len(tasks), -1).contiguous()
