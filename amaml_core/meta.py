"""The meta-gradient, the same five lines for every method: adapt, query gradient, pull back, average over tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .checks import check_theta, not_finite
from .flow import DivergenceError
from .kernel import Kernel
from .numerics import detached
from .problem import Problem
from .tasks import Ragged, Tasks, batches_of, in_order


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
        step_size_gradient: (B, K, G), d(query loss)/dh; (B, 1, G) where all steps share theirs. NaN where an
            adaptive solver took fewer steps for a chunk of tasks than for another.
        phi_gradient: (B, M), the part of the meta-parameters' gradient that comes by way of the adapted parameters.

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
    phi_gradient: Tensor | None = None

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

    Any function may be the pullback; a :class:`Pullback` comes with :class:`Diagnostics`. ``inner_step`` gives the method's inner
    loop, one step a call. A method that knows meta-parameters takes ``phi (M,)`` as a further argument of both, and its pullback
    gives ``phi_gradient`` among the diagnostics.
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
        phi_gradient: (M,), the mean over tasks; ``None`` without phi.

    >>> estimate = MetaGradient(torch.zeros(3), torch.zeros(2), torch.zeros(2, 3), Diagnostics(steps=5))
    >>> estimate.stats["steps"], "diverged" in estimate.stats
    (5, False)
    """

    gradient: Tensor
    query_loss: Tensor
    adapted: Tensor
    stats: Diagnostics = field(default_factory=Diagnostics)
    phi_gradient: Tensor | None = None


def meta_gradient(method: Method, problem: Problem, theta: Tensor, tasks: Ragged, phi: Tensor | None = None) -> MetaGradient:
    r"""The gradient of the mean query loss at the adapted parameters with respect to the initialisation, and to meta-parameters.

    :math:`\frac1B\sum_b \text{pullback}_b\bigl(\nabla L^b_\text{query}(u_b)\bigr)`, in chunks of ``problem.chunk_size`` tasks.
    If that is ``None`` and a GPU's memory does not hold all tasks, the chunks are halved until it does. Convolutions on a GPU are
    computed in full float32 precision unless ``problem.tf32``.

    Args:
        method: for example ``AMAML(horizon=0.5, solver=Euler(steps=50))``.
        problem: model and loss.
        theta: initialisation (P,).
        tasks: B tasks, in theta's dtype and on theta's device; or a list of tasks of different sizes, which are batched size by
            size. Every task counts alike, and results come in the given order.
        phi: meta-parameters (M,), shared by all tasks: they enter a loss with a third argument, the regularizer, or the method's
            step sizes.

    Raises:
        TypeError: theta, tasks or phi are of the wrong kind.
        ValueError: theta does not fit the model, dtypes or devices differ, phi enters nothing or a method that has no gradient for
            it, or what :class:`Problem` says of a first use.
        DivergenceError: a task's adapted parameters, query loss or gradient are not finite, where they may not be skipped.

    >>> from amaml_core import AMAML, MAML, Euler
    >>> problem = Problem(torch.nn.Linear(1, 1).double(), torch.nn.functional.mse_loss)
    >>> theta, tasks = problem.initial_parameters(), Tasks(*torch.linspace(0, 1, 32).double().view(4, 4, 2, 1))
    >>> adjoint = meta_gradient(AMAML(horizon=0.5, solver=Euler(steps=5)), problem, theta, tasks)
    >>> unrolled = meta_gradient(MAML(lr=0.1, steps=5), problem, theta, tasks)
    >>> torch.allclose(adjoint.gradient, unrolled.gradient, rtol=1e-12)
    True
    """
    each = of_each(method, problem, theta, checked(method, problem, theta, tasks, phi), phi)
    columns = [part for part in (each.gradient, each.phi_gradient) if part is not None]
    with detached(problem.tf32):
        gradient, *of_phi = mean(total(each, columns)).to(each.gradient).split([column.shape[1] for column in columns])
    return replace(each, gradient=gradient, phi_gradient=of_phi[0] if of_phi else None)


def of_each(
    method: Method, problem: Problem, theta: Tensor, batches: list[tuple[Tasks, list[int]]], phi: Tensor | None
) -> MetaGradient:
    """A meta-gradient before its mean is taken: ``gradient (B, P)`` and ``phi_gradient (B, M)`` have a row for each task."""
    with detached(problem.tf32), problem.guarded():
        theta, phi = normal(theta.detach()), None if phi is None else normal(phi.detach())
        pieces, places = [], []
        for batch, place in batches:
            batch = outside_inference(batch)
            pieces += _of_chunks(method, problem, theta, batch, phi, chunk_size(problem, theta, batch, phi))
            places.append(place)
        gradients, direct, query_losses, adapted, stats = (list(parts) for parts in zip(*pieces, strict=True))
        joined, free = _join(stats, places), problem.free()
        gradient = in_order(gradients, places)  # (B, P)
        each = MetaGradient(
            gradient=gradient if free is None else gradient.masked_fill_(~free, 0),
            query_loss=in_order(query_losses, places),
            adapted=in_order(adapted, places),
            stats=joined,
            phi_gradient=None if phi is None else in_order(direct, places) + joined["phi_gradient"],  # (B, M)
        )
    if reason := _failure(each, problem, theta, batches, phi):
        raise DivergenceError(f"{reason} ({method!r})")
    return each


def total(each: MetaGradient, columns: list[Tensor]) -> Tensor:
    """The number of the tasks that did not diverge, and behind it the sums of all columns (B, n) over them, side by side.

    All in single precision at least, and so that totals of parts of a meta-batch may be added.
    """
    kept, dtype = _kept(each), torch.promote_types(each.gradient.dtype, torch.float32)
    if not kept.all():
        columns = [column[kept] for column in columns]
    return torch.cat([part.sum(0, dtype=dtype).flatten() for part in (kept, *columns)])  # (1 + n + ...,)


def mean(total: Tensor) -> Tensor:
    """The means of all columns, from their :func:`total`.

    Raises:
        DivergenceError: no task is left, or a sum has overflowed.
    """
    if not total[0]:
        raise DivergenceError(
            "the inner loop of every task diverged: the inner step size is too large for the support loss, or theta "
            "or the data are not finite"
        )
    if not total.isfinite().all():
        raise DivergenceError("the sum of the tasks' gradients is not finite although each of them is: shrink the query loss")
    return total[1:] / total[0]


def _kept(each: MetaGradient) -> Tensor:
    """Which tasks (B,) did not diverge."""
    diverged = each.stats.diverged
    return torch.ones_like(each.query_loss, dtype=torch.bool) if diverged is None else ~diverged


def check_call(problem: Problem, method: Any) -> None:
    """Refuse what is no problem, or no method: a class in place of its instance, or something that cannot be called.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, not {problem!r:.100}")
    if isinstance(method, type) or not callable(method):
        raise TypeError(f"the method must be one like MAML(lr=0.1, steps=5), or a function, not {method!r:.100}")


def checked(
    method: Any, problem: Problem, theta: Tensor, tasks: Ragged, phi: Tensor | None, function: Callable | None = None
) -> list[tuple[Tasks, list[int]]]:
    """The tasks in batches of one size, with the places of their tasks, after everything that was given has been checked.

    ``function`` is what will be given phi, the method itself by default.
    """
    check_call(problem, function or method)
    batches = batches_of(tasks)
    for batch, _ in batches:
        check_theta(problem, theta, batch, phi)
    if phi is None:
        return batches
    if "phi" not in inspect.signature(function or method).parameters:
        raise ValueError(
            f"{type(method).__name__} has no gradient with respect to phi: its pullback ignores what the inner loop depends on. "
            "Use AMAML, MAML or IMAML"
        )
    if not (problem.inner_phi or problem.query_phi or callable(getattr(method, "step_sizes", None))):
        raise ValueError(
            "phi enters nothing: give the loss or the query loss a third argument, the problem a regularizer, or the method "
            "step_sizes as a function of phi"
        )
    return batches


def normal(tensor: Tensor) -> Tensor:
    """A copy of what was made in inference mode, which autograd does not take."""
    return tensor.clone() if tensor.is_inference() else tensor


def outside_inference(tasks: Tasks) -> Tasks:
    """These tasks, or a copy that was not made in inference mode."""
    return tasks.map(normal) if any([tensor.is_inference() for tensor in tasks.named().values()]) else tasks


def chunk_size(problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> int:
    """How many of the tasks are handled at once."""
    if problem.chunk_size == 1 or not problem.batches(theta, tasks, phi):
        return 1
    return problem.chunk_size or problem.fitting.get(len(tasks)) or len(tasks)


def _of_chunks(method: Method, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None, size: int) -> list[tuple]:
    """What :func:`_of_chunk` gives for each chunk of at most ``size`` tasks, or fewer where the memory does not suffice."""
    try:
        return [_of_chunk(method, problem, theta, chunk, phi) for chunk in tasks.split(size)]
    except torch.OutOfMemoryError:
        if problem.chunk_size is not None or size == 1:
            raise
    # Outside the except block, whose exception keeps the frames and so the memory of the failed attempt alive.
    problem.fitting.put(len(tasks), size // 2)
    return _of_chunks(method, problem, theta, tasks, phi, size // 2)


def _of_chunk(method: Any, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None) -> tuple:
    """Gradients (B, P), phi's direct gradients (B, M), query losses (B,), adapted parameters (B, P), and diagnostics."""
    adapted, pullback = method(problem, theta, tasks) if phi is None else method(problem, theta, tasks, phi=phi)
    given = (adapted, theta.new_empty(len(tasks), 0) if phi is None else phi.expand(len(tasks), -1), *tasks.query)
    query_loss, gradient, *direct = Kernel(problem).judge(*given)
    pulled, stats = pullback.run(gradient) if isinstance(pullback, Pullback) else (pullback(gradient), Diagnostics())
    if pulled.shape != adapted.shape:
        raise ValueError(f"the pullback of {type(method).__name__} gives {tuple(pulled.shape)} in place of {tuple(adapted.shape)}")
    if phi is not None and stats.phi_gradient is None:
        raise ValueError(f"the pullback of {type(method).__name__} gives no phi_gradient among its diagnostics")
    return pulled, direct[0] if direct else torch.zeros_like(given[1]), query_loss, adapted, stats


def _join(stats: list[Diagnostics], places: list[list[int]]) -> Diagnostics:
    """The diagnostics of all chunks as one: per-task tensors are joined in order, settings are the same in each."""
    entries: dict[str, Any] = {
        name: in_order(_padded([s[name].detach() for s in stats]), places) if isinstance(value, Tensor) else value
        for name, value in stats[0].items()
    }
    return Diagnostics(**entries)


def _padded(tables: list[Tensor]) -> list[Tensor]:
    """Tables (b, K, G) of chunks for which an adaptive solver took different numbers of steps: NaN where there was none."""
    longest = max([t.shape[1] if t.ndim == 3 else 0 for t in tables])
    return [t if t.ndim < 3 else functional.pad(t, (0, 0, 0, longest - t.shape[1]), value=torch.nan) for t in tables]


def _failure(
    estimate: MetaGradient, problem: Problem, theta: Tensor, batches: list[tuple[Tasks, list[int]]], phi: Tensor | None
) -> str | None:
    """What is not finite in an estimate, the tasks that were skipped aside, and the likely cause; ``None`` if all is finite."""
    kept = _kept(estimate)
    lost = [
        (~values & kept).nonzero().flatten().tolist()
        for values in (estimate.adapted.isfinite().all(1), estimate.query_loss.isfinite())
    ]
    gradients = [part for part in (estimate.gradient, estimate.phi_gradient) if part is not None]
    if not any(lost) and all([(gradient.isfinite().all(1) | ~kept).all() for gradient in gradients]):
        return None
    if lost[0]:
        what = f"the inner loop diverged for tasks {lost[0]} of the batch"
        cause = "The inner step size is probably too large for the curvature of the support loss; lower it or take more steps"
    elif lost[1]:
        what = f"the query loss of tasks {lost[1]} is not finite although the adapted parameters are"
        way = (estimate.adapted - theta).double().norm(dim=1)[lost[1]].max().item()
        cause = (
            f"They are up to {way:.3g} away from theta, whose norm is {theta.double().norm().item():.3g}: if that is far, the "
            "inner step size is too large; if not, check the loss for overflow, logarithms of zero or divisions by zero"
        )
    else:
        what = "the meta-gradient is not finite although the query loss is"
        cause = (
            "The pullback overflowed: the inner loop amplifies perturbations (step size times negative curvature); shorten it or "
            "lower its step size"
        )
    reasons = [reason for batch, _ in batches if (reason := not_finite(theta, batch, phi))]
    reason = reasons[0] if reasons else None
    return f"{what}, because {reason}" if reason else f"{what}. {cause}"
