"""Adaptation at test time: the error on each task after every requested number of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from .meta import Method
from .methods.descent import descent_slope
from .problem import Problem, check_theta, precision
from .tasks import Tasks

Metric = Callable[[Tensor, Tensor], Tensor]  # prediction (B, n, ...), target (B, n, ...) -> error of each task (B,)


@dataclass(frozen=True)
class AdamAdaptation:
    """Adaptation by Adam on the support loss, as the authors' released code does it at test time.

    Adam acts on each parameter alone, so one optimiser over ``u (B, P)`` is B independent optimisers.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One Adam step ``u (B, P) -> u (B, P)``; the moments live in the returned function, so each call starts afresh."""
        u = torch.nn.Parameter(theta.detach().expand(len(tasks), -1).clone())
        adam = torch.optim.Adam([u], lr=self.lr, weight_decay=self.weight_decay, fused=True)
        slope = descent_slope(problem, u.detach(), tasks)

        def step(current: Tensor) -> Tensor:
            u.data.copy_(current)
            u.grad = slope(u.detach()).neg().contiguous()  # the fused kernel takes no other layout
            adam.step()
            return u.detach().clone()

        return step


@torch.no_grad()
def evaluate(
    method: Method | AdamAdaptation,
    problem: Problem,
    theta: Tensor,
    tasks: Tasks,
    metric: Metric,
    steps: Sequence[int] = (0, 1, 5, 10),
) -> pd.DataFrame:
    """Adapt to each task from ``theta`` and measure the error on the way.

    The model is adapted by the method's own inner loop, with its own step size, repeated as often as asked; pass
    ``AdamAdaptation(lr)`` in its place for the protocol of the released code.

    Args:
        method: whose ``inner_step`` adapts.
        problem: model and loss.
        theta: initialisation (P,).
        tasks: test tasks.
        metric: for example ``metrics.rmse`` or ``metrics.accuracy``.
        steps: numbers of inner steps after which to measure.

    Returns:
        A tidy table with the columns ``task``, ``step``, ``support`` and ``query``: the error on both sets.

    Raises:
        ValueError: ``steps`` is empty or negative, or theta and tasks do not fit the problem.
    """
    if not steps or min(steps) < 0:
        raise ValueError(f"steps must hold at least one number, all of them >= 0, not {tuple(steps)}")
    check_theta(problem, theta, tasks)
    with precision(problem):
        return _evaluate(method, problem, theta, tasks, metric, steps)


def _evaluate(
    method: Method | AdamAdaptation, problem: Problem, theta: Tensor, tasks: Tasks, metric: Metric, steps: Sequence[int]
) -> pd.DataFrame:
    tables, first = [], 0
    for chunk in tasks.split(problem.chunk_size):
        numbers = range(first, first + len(chunk))
        first += len(chunk)
        step = method.inner_step(problem, theta, chunk)
        u = theta.expand(len(chunk), -1)  # (P,) -> (B, P)
        for k in range(max(steps) + 1):
            u = step(u) if k else u
            if k in steps:
                support = metric(problem.predict(u, chunk.support_x), chunk.support_y)  # (B,)
                query = metric(problem.predict(u, chunk.query_x), chunk.query_y)  # (B,)
                tables.append(
                    pd.DataFrame({"task": numbers, "step": k, "support": support.cpu(), "query": query.cpu()})
                )
    return pd.concat(tables, ignore_index=True).sort_values(["task", "step"], ignore_index=True)
