"""The meta-gradient, the same five lines for every method: adapt, query gradient, pull back, average over tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from .checks import check_theta, not_finite
from .flow import DivergenceError
from .numerics import detached
from .problem import Problem
from .tasks import Tasks


@dataclass(frozen=True, eq=False)
class Diagnostics(Mapping):
    """What a method did for a meta-gradient. Entries that do not apply are ``None``; as a mapping, it holds the others alone.

    Attributes:
        steps: inner steps.
        gradient_evaluations: of the forward solve, for each task.
        rejected: steps that an adaptive solver tried and did not take.
        diverged: (B,), true where the inner loop left the finite numbers.
        cg_residual: (B,), relative residuals of conjugate gradients.
        indefinite: (B,), true where they met a curvature that is not positive.
        horizon_gradient: (B,), d(query loss)/dT at fixed step ratios.
        step_size_gradient: (B, K, G), d(query loss)/dh.

    >>> Diagnostics(steps=5)["steps"]
    5
    """

    steps: int | None = None
    gradient_evaluations: int | None = None
    rejected: int | None = None
    diverged: Tensor | None = None
    cg_residual: Tensor | None = None
    indefinite: Tensor | None = None
    horizon_gradient: Tensor | None = None
    step_size_gradient: Tensor | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in set(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in fields(self) if getattr(self, entry.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Pullback:
    """The way back of an adaptation: gradients at the adapted parameters (B, P) -> gradients at theta (B, P).

    Attributes:
        run: does it, and also returns what was done, forward and backward.

    >>> first_order = Pullback(lambda gradient: (gradient, Diagnostics(steps=5)))
    >>> first_order(torch.ones(2))
    tensor([1., 1.])
    """

    run: Callable[[Tensor], tuple[Tensor, Diagnostics]]

    def __call__(self, gradient: Tensor) -> Tensor:
        """The gradients at theta (B, P) alone."""
        return self.run(gradient)[0]


class Method(Protocol):
    """What a method is: ``(problem, theta (P,), tasks) -> (adapted (B, P), pullback (B, P) -> (B, P))``.

    Any function may be the pullback; a :class:`Pullback` comes with :class:`Diagnostics`. ``inner_step`` gives one step of the
    method's inner loop.
    """

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]: ...

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]: ...


@dataclass(frozen=True)
class MetaGradient:
    """An estimate of the meta-gradient. All tensors are detached.

    Attributes:
        gradient: (P,), the mean over tasks.
        query_loss: (B,), at the adapted parameters.
        adapted: (B, P).
        stats: what the method did; reads like a dictionary, too.

    >>> estimate = MetaGradient(torch.zeros(3), torch.zeros(2), torch.zeros(2, 3), Diagnostics(steps=5))
    >>> estimate.stats["steps"], "diverged" in estimate.stats
    (5, False)
    """

    gradient: Tensor
    query_loss: Tensor
    adapted: Tensor
    stats: Diagnostics = field(default_factory=Diagnostics)


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
        TypeError: theta or tasks are of the wrong kind.
        ValueError: theta does not fit the model, dtypes or devices differ, or what :class:`Problem` says of a first use.
        DivergenceError: a task's adapted parameters, query loss or gradient are not finite, where they may not be skipped.

    >>> from amaml_core import AMAML, MAML, Euler
    >>> problem = Problem(torch.nn.Linear(1, 1).double(), torch.nn.functional.mse_loss)
    >>> theta, tasks = problem.initial_parameters(), Tasks(*torch.linspace(0, 1, 32).double().view(4, 4, 2, 1))
    >>> adjoint = meta_gradient(AMAML(horizon=0.5, solver=Euler(steps=5)), problem, theta, tasks)
    >>> unrolled = meta_gradient(MAML(lr=0.1, steps=5), problem, theta, tasks)
    >>> torch.allclose(adjoint.gradient, unrolled.gradient, rtol=1e-12)
    True
    """
    check_theta(problem, theta, tasks)
    with detached(problem.tf32), problem.guarded():
        theta, tasks = outside_inference(theta, tasks)
        size = chunk_size(problem, theta, tasks)
        pieces = _of_chunks(method, problem, theta, tasks, size)
        gradients, query_losses, adapted, stats = (list(parts) for parts in zip(*pieces, strict=True))
        joined = _join(stats)
        estimate = MetaGradient(
            gradient=_mean(torch.cat(gradients), joined.diverged),  # (B, P) -> (P,)
            query_loss=torch.cat(query_losses),
            adapted=torch.cat(adapted),
            stats=joined,
        )
    if reason := _failure(estimate, problem, theta, tasks):
        raise DivergenceError(f"{reason} ({method!r})")
    return estimate


def outside_inference(theta: Tensor, tasks: Tasks) -> tuple[Tensor, Tasks]:
    """Copies of tensors that were made in inference mode, which autograd does not take."""
    normal = lambda t: t.clone() if t.is_inference() else t  # noqa: E731
    return normal(theta.detach()), Tasks(*map(normal, tasks.tensors)) if any(t.is_inference() for t in tasks.tensors) else tasks


def chunk_size(problem: Problem, theta: Tensor, tasks: Tasks) -> int:
    """How many of the tasks are handled at once."""
    if problem.chunk_size == 1 or not problem.batches(theta, tasks):
        return 1
    return problem.chunk_size or problem.fitting.get(len(tasks)) or len(tasks)


def _mean(gradients: Tensor, diverged: Tensor | None) -> Tensor:
    """The mean over the tasks that did not diverge."""
    if diverged is None or not diverged.any():
        return gradients.mean(0)
    if diverged.all():
        raise DivergenceError("the inner loop of every task diverged: the inner step size is too large for the support loss")
    return gradients[~diverged].mean(0)


def _of_chunks(method: Method, problem: Problem, theta: Tensor, tasks: Tasks, size: int) -> list[tuple]:
    """What :func:`_of_chunk` gives for each chunk of at most ``size`` tasks, or fewer where the memory does not suffice."""
    try:
        return [_of_chunk(method, problem, theta, chunk) for chunk in tasks.split(size)]
    except torch.OutOfMemoryError:
        if problem.chunk_size is not None or size == 1:
            raise
    # Outside the except block, whose exception keeps the frames and so the memory of the failed attempt alive.
    problem.fitting.put(len(tasks), size // 2)
    return _of_chunks(method, problem, theta, tasks, size // 2)


def _of_chunk(method: Method, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple:
    adapted, pullback = method(problem, theta, tasks)
    query_loss, gradient = problem.losses_and_gradient(adapted, *tasks.query)
    pulled, stats = pullback.run(gradient) if isinstance(pullback, Pullback) else (pullback(gradient), Diagnostics())
    return pulled, query_loss, adapted, stats


def _join(stats: list[Diagnostics]) -> Diagnostics:
    """The diagnostics of all chunks as one: per-task tensors are joined, settings are the same in each."""
    entries: dict[str, Any] = {
        name: torch.cat([s[name] for s in stats]).detach() if isinstance(value, Tensor) else value
        for name, value in stats[0].items()
    }
    return Diagnostics(**entries)


def _failure(estimate: MetaGradient, problem: Problem, theta: Tensor, tasks: Tasks) -> str | None:
    """What is not finite in an estimate, the tasks that were skipped aside, and the likely cause; ``None`` if all is finite."""
    skipped = estimate.stats.diverged
    kept = torch.ones(len(tasks), dtype=torch.bool, device=theta.device) if skipped is None else ~skipped  # (B,)
    lost = [
        (~values & kept).nonzero().flatten().tolist()
        for values in (estimate.adapted.isfinite().all(1), estimate.query_loss.isfinite())
    ]
    if not any(lost) and estimate.gradient.isfinite().all():
        return None
    if lost[0]:
        what = f"the inner loop diverged for tasks {lost[0]} of the batch"
        cause = "The inner step size is probably too large for the curvature of the support loss; lower it or take more steps"
    elif lost[1]:
        what = f"the query loss of tasks {lost[1]} is not finite although the adapted parameters are"
        cause = "Check the loss for overflow, logarithms of zero or divisions by zero"
    else:
        what = "the meta-gradient is not finite although the query loss is"
        cause = (
            "The pullback overflowed: the inner loop amplifies perturbations (step size times negative curvature); shorten it or "
            "lower its step size"
        )
    reason = not_finite(theta, tasks)
    return f"{what}, because {reason}" if reason else f"{what}. {cause}"
