"""The meta-gradient, the same five lines for every method: adapt, query gradient, pull back, average over tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .adjoint import Pullback
from .flow import DivergenceError
from .problem import Problem, check_theta, precision
from .tasks import Tasks


class Method(Protocol):
    """What a method is: ``(problem, theta (P,), tasks) -> (adapted (B, P), pullback (B, P) -> (B, P))``.

    ``stats`` is a dictionary that the method may fill with what it did. ``inner_step`` gives one step of its inner loop.
    """

    def __call__(
        self, problem: Problem, theta: Tensor, tasks: Tasks, stats: dict | None = None
    ) -> tuple[Tensor, Pullback]: ...

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks): ...


@dataclass(frozen=True)
class MetaGradient:
    """An estimate of the meta-gradient. All tensors are detached.

    Attributes:
        gradient: (P,), the mean over tasks.
        query_loss: (B,), at the adapted parameters.
        adapted: (B, P).
        stats: what the method did: inner steps, gradient evaluations, residuals, ...
    """

    gradient: Tensor
    query_loss: Tensor
    adapted: Tensor
    stats: dict = field(default_factory=dict)


@torch.no_grad()
def meta_gradient(method: Method, problem: Problem, theta: Tensor, tasks: Tasks) -> MetaGradient:
    r"""The gradient of the mean query loss at the adapted parameters with respect to the initialisation.

    :math:`\frac1B\sum_b \text{pullback}_b\bigl(\nabla L^b_\text{query}(u_b)\bigr)`, in chunks of ``problem.chunk_size`` tasks.
    If that is ``None`` and a GPU's memory does not hold all tasks, the chunks are halved until it does. Convolutions on a GPU are
    computed in full float32 precision unless ``problem.tf32``.

    Args:
        method: for example ``AMAML(horizon=0.5, solver=Euler(steps=50))``.
        problem: model and loss.
        theta: initialisation (P,).
        tasks: B tasks, in theta's dtype and on theta's device.

    Raises:
        ValueError: theta does not fit the model, or dtypes or devices differ.
        DivergenceError: the inner loop of a task, or of every task where they may be skipped, is not finite.
    """
    check_theta(problem, theta, tasks)
    with precision(problem):
        pieces = _of_chunks(method, problem, theta, tasks, problem.chunk_size or problem.fitting.get(len(tasks), len(tasks)))
    gradients, query_losses, adapted, stats = zip(*pieces, strict=True)
    stats = _join(stats)
    return MetaGradient(
        gradient=_mean(torch.cat(gradients), stats.get("diverged")),  # (B, P) -> (P,)
        query_loss=torch.cat(query_losses),
        adapted=torch.cat(adapted),
        stats=stats,
    )


def _mean(gradients: Tensor, diverged: Tensor | None) -> Tensor:
    """The mean over the tasks that did not diverge."""
    if diverged is None or not diverged.any():
        return gradients.mean(0)
    if diverged.all():
        raise DivergenceError(
            "the inner loop of every task diverged: the inner step size is too large for the support loss"
        )
    return gradients[~diverged].mean(0)


def _of_chunks(method: Method, problem: Problem, theta: Tensor, tasks: Tasks, size: int) -> list[tuple]:
    """What :func:`_of_chunk` gives for each chunk of at most ``size`` tasks, or fewer where the memory does not suffice."""
    try:
        return [_of_chunk(method, problem, theta, chunk) for chunk in tasks.split(size)]
    except torch.OutOfMemoryError:
        if problem.chunk_size is not None or size == 1:
            raise
    # Outside the except block, whose exception keeps the frames and so the memory of the failed attempt alive.
    problem.fitting[len(tasks)] = size // 2
    return _of_chunks(method, problem, theta, tasks, size // 2)


def _of_chunk(method: Method, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Tensor, Tensor, dict]:
    stats: dict = {}
    adapted, pullback = method(problem, theta, tasks, stats)
    query_loss, gradient = problem.query_loss_and_gradient(adapted, tasks)
    return pullback(gradient), query_loss, adapted, stats


def _join(stats: tuple[dict, ...]) -> dict:
    """One dictionary for all chunks: per-task tensors are joined, settings are the same in each."""
    return {
        key: torch.cat([s[key] for s in stats]) if isinstance(value, Tensor) else value
        for key, value in stats[0].items()
    }
