"""Inner loops as chains of steps, and gradient descent in particular, which MAML, FOMAML, Reptile and iMAML share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..chain import Chain, Kernel, StepField
from ..flow import Euler
from ..inner import InnerLoop
from ..problem import Problem
from ..tasks import Tasks
from ..tracing import trace

PLAIN = InnerLoop()


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
        chain = descent_chain(problem, batched(theta, tasks), tasks, self.lr, self.steps)
        return lambda u: chain.forward(0, u)

    def descend(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Tensor:
        """The adapted parameters ``(B, P)``, without a graph."""
        return descent_chain(problem, batched(theta, tasks), tasks, self.lr, self.steps).end()


def inner_field(problem: Problem, inner: InnerLoop, proximal: float) -> StepField:
    r"""What an inner loop follows: the slope of ``inner``, less :math:`\mu(u-\theta)` with :math:`\mu` = ``proximal``."""

    def field(u: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        slope = inner.slope(problem, u, x, y)
        if not proximal:
            return slope
        pull = proximal * (u - theta)
        return slope - (pull if inner.mask is None else inner.mask * pull)

    return field


def make_chain(
    problem: Problem,
    kernel: Kernel,
    key: tuple,
    theta: Tensor,
    step_sizes: Tensor,
    data: tuple[tuple[Tensor, Tensor], ...],
    back: bool = True,
) -> Chain:
    """The chain of these steps, traced where that is possible; for ``key`` and ``back`` see :func:`amaml_core.tracing.trace`."""
    if not (problem.trace or problem.compile):
        return Chain(kernel, theta, step_sizes, data)
    data = tuple((x.contiguous(), y.contiguous()) for x, y in data)  # once, instead of at every step
    return Chain(
        kernel, theta, step_sizes, data, trace(problem, key, kernel, theta, step_sizes[:1].to(theta), *data[0], back=back)
    )


def descent_chain(problem: Problem, theta: Tensor, tasks: Tasks, lr: float, steps: int, proximal: float = 0.0) -> Chain:
    """``steps`` steps of gradient descent on the support loss, with a proximal term around ``theta (B, P)``; forward only."""
    kernel = Kernel(inner_field(problem, PLAIN, proximal), Euler.tableau, theta_enters=proximal > 0)
    step_sizes = torch.tensor([[lr]], dtype=torch.float64).expand(steps, 1)
    data = ((tasks.support_x, tasks.support_y),)
    return make_chain(problem, kernel, ("descent", proximal), theta, step_sizes, data, back=False)


class _Slope(Kernel):
    """A "step" that is the field itself."""

    def step(self, u: Tensor, theta: Tensor, h: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.field(u, theta, x, y)

    def rest(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


def descent_slope(problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
    """What gradient descent follows: ``u (B, P)`` to minus the gradients (B, P) of the support losses, traced where possible."""
    kernel = _Slope(inner_field(problem, PLAIN, 0.0), Euler.tableau)
    data = ((tasks.support_x, tasks.support_y),)
    chain = make_chain(problem, kernel, ("slope",), theta, torch.ones(1, 1, dtype=torch.float64), data, back=False)
    return lambda u: chain.forward(0, u)


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
