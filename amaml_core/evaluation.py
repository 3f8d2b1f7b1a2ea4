"""Adaptation at test time: the adapted parameters, and the error on each task after every requested number of steps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .chain import chain
from .inner import InnerLoop
from .kernel import Kernel
from .meta import Method, check_call, checked, chunk_size, normal, outside_inference
from .numerics import detached
from .problem import Problem
from .settings import positive
from .tasks import Ragged, Tasks, in_order

Metric = Callable[[Tensor, Tensor], Tensor]  # prediction (B, n, ...), target (B, n, ...) -> error of each task (B,)


@dataclass(frozen=True)
class AdamAdaptation:
    """Adaptation by Adam on the support loss, as the authors' released code does it at test time.

    Adam acts on each parameter alone, so one optimiser over ``u (B, P)`` is B independent optimisers.

    >>> AdamAdaptation(lr=0.01)
    AdamAdaptation(lr=0.01, weight_decay=0.0)
    """

    lr: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "lr")
        positive(self, "weight_decay", or_zero=True)

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """One Adam step ``u (B, P) -> u (B, P)``; the moments live in the returned function, so each call starts afresh.

        >>> from amaml_core import Problem, Tasks
        >>> problem = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
        >>> theta, tasks = torch.tensor([2.0]), Tasks(*torch.ones(4, 1, 3, 1))  # the loss is (2 - 1)², its gradient 2
        >>> AdamAdaptation(lr=0.1).inner_step(problem, theta, tasks)(theta[None])
        tensor([[1.9000]])
        """
        u = torch.nn.Parameter(theta.detach().expand(len(tasks), -1).clone())
        adam = torch.optim.Adam([u], lr=self.lr, fused=True)
        decaying = chain(Kernel(problem, inner=InnerLoop(weight_decay=self.weight_decay)), theta, tasks, self.lr, 1, phi=phi)

        def step(current: Tensor) -> Tensor:
            u.data.copy_(current)
            decaying.look_again()
            u.grad = decaying.slope(u.detach()).neg().contiguous()  # the fused kernel takes no other layout
            adam.step()
            return u.detach().clone()

        return step


def adapt(
    method: Method | AdamAdaptation, problem: Problem, theta: Tensor, tasks: Ragged, steps: int, phi: Tensor | None = None
) -> Tensor:
    """The parameters (B, P) after ``steps`` steps of the method's own inner loop from ``theta (P,)``, without a graph.

    Raises:
        TypeError, ValueError: as :func:`evaluate`.

    >>> from amaml_core import MAML
    >>> problem = Problem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
    >>> tasks = Tasks(*torch.ones(4, 3, 2, 1))  # B = 3 tasks
    >>> adapt(MAML(lr=0.1), problem, problem.initial_parameters(), tasks, steps=20).shape
    torch.Size([3, 2])
    """
    check_call(problem, _inner_step(method))
    with detached(problem.tf32), problem.guarded():
        found = list(_along(method, problem, theta, tasks, (steps,), phi))
    return in_order([u for *_, u in found], [places for places, *_ in found])


def evaluate(
    method: Method | AdamAdaptation,
    problem: Problem,
    theta: Tensor,
    tasks: Ragged,
    metric: Metric,
    steps: Sequence[int] = (0, 1, 5, 10),
    phi: Tensor | None = None,
) -> pd.DataFrame:
    """Adapt to each task from ``theta`` and measure the error on the way.

    The model is adapted by the method's own inner loop, with its own step size, repeated as often as asked; pass
    ``AdamAdaptation(lr)`` in its place for the protocol of the released code.

    Args:
        method: whose ``inner_step`` adapts.
        problem: model and loss.
        theta: initialisation (P,).
        tasks: test tasks, or a list of tasks of different sizes; ``task`` counts them in the given order.
        metric: for example ``metrics.rmse`` or ``metrics.accuracy``.
        steps: numbers of inner steps after which to measure.
        phi: meta-parameters (M,) of the inner loop.

    Returns:
        A tidy table with the columns ``task``, ``step``, ``support`` and ``query``: the error on both sets, NaN once the inner
        loop of a task has diverged.

    Raises:
        TypeError: steps are no integers, or the metric is no function.
        ValueError: ``steps`` is empty or negative, theta and tasks do not fit the problem, the metric gives no (B,), or the method
            has no steps that could go on: those of Dopri5, and any number of different step sizes.

    >>> from amaml_core import MAML, metrics
    >>> problem = Problem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
    >>> tasks = Tasks(*torch.ones(4, 3, 2, 1))
    >>> table = evaluate(MAML(lr=0.1), problem, problem.initial_parameters(), tasks, metrics.rmse, steps=(0, 5))
    >>> list(table.columns), len(table)
    (['task', 'step', 'support', 'query'], 6)
    """
    check_call(problem, _inner_step(method))
    check_metric(metric)
    tables = []
    with detached(problem.tf32), problem.guarded():
        for places, k, chunk, u in _along(method, problem, theta, tasks, steps, phi):
            lost = ~u.isfinite().all(1)  # (B,)
            errors = {
                name: errors_of(metric, problem.predict(u, x), y, len(u)).masked_fill(lost, torch.nan).cpu()  # (B,)
                for name, (x, y) in (("support", chunk.support), ("query", chunk.query))
            }
            tables.append(pd.DataFrame({"task": places, "step": k} | errors))
    return pd.concat(tables, ignore_index=True).sort_values(["task", "step"], ignore_index=True)


def check_metric(metric: Any) -> None:
    """Refuse what is no function.

    Raises:
        TypeError: it cannot be called, or is a class, which a call would build.
    """
    if isinstance(metric, type):
        raise TypeError(f"metric must be a function of (prediction, target), not the class {metric.__name__}; give an instance")
    if not callable(metric):
        raise TypeError(f"metric must be a function of (prediction, target), not {type(metric).__name__}")


def errors_of(metric: Metric, prediction: Any, y: Any, tasks: int) -> Tensor:
    """The error (B,) of each task, checked; in single precision at least, as NumPy knows no bfloat16."""
    try:
        found = metric(*tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, (prediction, y)))  # it may write to them
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"the metric cannot be computed for what the model predicts and the targets: {error}") from error
    if not isinstance(found, Tensor) or found.shape != (tasks,):
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"a metric must return the error of each of B={tasks} tasks, a tensor (B,), not {what}")
    return found.to(torch.promote_types(found.dtype, torch.float32)) if found.is_floating_point() else found.double()


def _inner_step(method: Any) -> Any:
    """The inner loop of a method, if it is one and has one."""
    return None if isinstance(method, type) else getattr(method, "inner_step", None)


def _along(
    method: Any, problem: Problem, theta: Tensor, tasks: Ragged, steps: Sequence[int], phi: Tensor | None
) -> Iterator[tuple[list[int], int, Tasks, Tensor]]:
    """For each chunk of tasks and each requested number of steps: the tasks' places, the step, the chunk and ``u (B, P)``."""
    try:
        wanted = [operator.index(k) for k in steps]
    except TypeError:
        raise TypeError(f"steps must be whole numbers, not {steps!r}") from None
    if not wanted or min(wanted) < 0:
        raise ValueError(f"steps must hold at least one number, all of them >= 0, not {tuple(wanted)}")
    batches = checked(method, problem, theta, tasks, phi, method.inner_step)
    theta, phi = normal(theta.detach()), None if phi is None else normal(phi.detach())
    for batch, places in batches:
        first = 0
        for chunk in outside_inference(batch).split(chunk_size(problem, theta, batch, phi)):
            step = method.inner_step(problem, theta, chunk, *(() if phi is None else (phi,)))
            u = theta.expand(len(chunk), -1)  # (P,) -> (B, P)
            for k in range(max(wanted) + 1):
                u = step(u) if k else u
                if k in wanted:
                    yield places[first : first + len(chunk)], k, chunk, u
            first += len(chunk)
