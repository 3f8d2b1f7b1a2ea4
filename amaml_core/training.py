"""The outer loop: meta-training of theta by any optimiser, with a history, early errors and resumable checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from . import checkpoints
from .flow import DivergenceError
from .identity import describe
from .meta import Diagnostics, MetaGradient, Method, meta_gradient
from .problem import Problem
from .tasks import Tasks

SAVE_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class FitResult:
    """What meta-training gives.

    Attributes:
        theta: the trained initialisation (P,).
        history: one row for each meta step: ``meta_step`` (from 1), ``query_loss`` (mean over the tasks that did not
            diverge), ``gradient_norm``, and ``horizon`` where it is learned.
        method: the method, with the horizon or the step sizes that were learned.

    >>> import pandas
    >>> from amaml_core import MAML
    >>> FitResult(torch.zeros(3), pandas.DataFrame({"meta_step": [1], "query_loss": [0.5]}), MAML()).theta.shape
    torch.Size([3])
    """

    theta: Tensor
    history: pd.DataFrame
    method: Method


def fit(
    method: Method,
    problem: Problem,
    sampler: Callable[[torch.Generator], Tasks],
    meta_steps: int,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    theta: Tensor | None = None,
    progress: bool = True,
    learn: str | None = None,
) -> FitResult:
    """Meta-train the initialisation. Frozen parameters (``requires_grad=False``) keep their values to the bit.

    Args:
        method: gives the meta-gradient; see :func:`amaml_core.meta_gradient`.
        problem: model and loss.
        sampler: ``sampler(generator) -> Tasks`` draws a meta-batch.
        meta_steps: number of meta updates.
        optimizer: ``optimizer([theta])`` builds a torch optimiser, for example ``lambda p: torch.optim.SGD(p, lr=0.01)``;
            Adam with learning rate 1e-3 by default. It is tried out on a copy first.
        checkpoint: a safetensors file that is written every half minute, at an interrupt and at the end. If it exists, training
            goes on from it, to the same bits as an uninterrupted run; one of another method, model, loss, optimiser, sampler
            or seed is refused, with what differs.
        seed: seeds the generator that the sampler draws from.
        theta: where to start (P,); the model's own parameters by default.
        progress: show a progress bar.
        learn: what of the method to learn along with theta, by the same optimiser, in its logarithm (so it stays
            positive): for A-MAML ``"horizon"``, or ``"step_sizes"`` (K, G), whose start is then given.

    Raises:
        DivergenceError: loss, adapted parameters or gradient are not finite.
        TypeError: the optimiser cannot step on one gradient, or has a state that a checkpoint cannot hold.
        OSError: the checkpoint cannot be written, which is tried first.
        ValueError: ``meta_steps`` < 1, the checkpoint belongs to another run, the sampler has a state that it could not hold, or
            the method cannot learn what it should.

    >>> from amaml_core import FOMAML
    >>> problem = Problem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
    >>> sampler = lambda generator: Tasks(*torch.randn(4, 3, 2, 1, generator=generator))
    >>> fit(FOMAML(), problem, sampler, meta_steps=5, progress=False).history.columns.tolist()
    ['meta_step', 'query_loss', 'gradient_norm']
    """
    if meta_steps != int(meta_steps) or meta_steps < 1:
        raise ValueError(f"meta_steps must be a whole number of at least 1, not {meta_steps}")
    theta = problem.initial_parameters() if theta is None else theta.detach().clone()
    start, free = theta.clone(), problem.free()
    learned = None if learn is None else _Learned(method, learn)
    parameters = [p.requires_grad_() for p in (theta, *([] if learned is None else [learned.logarithm]))]
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    _try_out(make, parameters)
    outer = make(parameters)
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple[float, ...]] = []  # (query loss, gradient norm, and what is learned if it is one number) of each meta step

    mark = generator.get_state()  # that belongs to the rows
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        identity = _identity(method, problem, sampler, outer, seed, theta, learn)
        _try_sampler(sampler, torch.Generator().manual_seed(seed), identity)
        if path.exists():
            state = checkpoints.load(path, identity)
            if len(state["rows"]) > meta_steps:
                raise ValueError(
                    f"{path} is {len(state['rows'])} meta steps on, beyond meta_steps={meta_steps}; "
                    "delete it or choose another file"
                )
            rows = [tuple(row) for row in state["rows"].tolist()]
            for p, kept in zip(parameters, state["parameters"], strict=True):
                p.data.copy_(kept)
            _restore(outer, state["optimizer"])
            mark = state["generator"]
            generator.set_state(mark)

    def save() -> None:
        if path is not None:
            now = {"parameters": [p.data for p in parameters], "rows": np.array(rows), "generator": mark}
            checkpoints.save(path, identity, now | {"optimizer": outer.state_dict()})

    save()  # a file that cannot be written is better known now
    saved_at, updating = time.monotonic(), False
    bar = tqdm(total=meta_steps, initial=len(rows), desc=type(method).__name__, disable=None if progress else True)
    try:
        while len(rows) < meta_steps:
            current = method if learned is None else learned.method(sensitivities=True)
            estimate, row = _estimate(current, problem, sampler(generator), theta, len(rows) + 1)
            updating = True
            theta.grad = estimate.gradient
            if learned is not None:
                row = (*row, *learned.take(estimate.stats))
            outer.step()
            if free is not None:  # some optimisers move what has no gradient: weight decay does
                theta.data = torch.where(free, theta.data, start)
            rows.append(row)
            mark = generator.get_state()
            updating = False
            bar.update()
            bar.set_postfix(query_loss=f"{row[0]:.4g}", refresh=False)
            if time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                save()
                saved_at = time.monotonic()
    finally:
        bar.close()
        if not updating:  # an interrupt amid an update leaves the last checkpoint standing
            save()
    history = pd.DataFrame(rows, columns=["query_loss", "gradient_norm", learn][: len(rows[0])])
    history.insert(0, "meta_step", np.arange(1, len(rows) + 1))
    return FitResult(theta.detach(), history, method if learned is None else learned.method())


class _Learned:
    """An entry of a method that is learned beside theta: its logarithm () or (K, G), on the CPU in double precision.

    Raises:
        ValueError: the method cannot learn it, or has no value to start from.
    """

    def __init__(self, method: Any, name: str) -> None:
        learnable = getattr(method, "learnable", {})
        if name not in learnable:
            raise ValueError(f"learn must be one of {tuple(learnable)} for {type(method).__name__}, not {name!r}")
        if method.fixed(name) or getattr(method, name) is None:
            raise ValueError(f"learn={name!r} needs a value to start from, and nothing that stands in its place: {method!r}")
        self.start, self.name, self.gradient = method, name, learnable[name]
        self.logarithm = torch.as_tensor(getattr(method, name), dtype=torch.float64).detach().cpu().log()

    def method(self, **more: Any) -> Method:
        """The method at the present value."""
        return replace(self.start, **{self.name: self.logarithm.detach().exp()}, **more)

    def take(self, stats: Diagnostics) -> tuple[float, ...]:
        """Take the gradient from a meta-gradient's diagnostics, and give the value if it is one number."""
        value = self.logarithm.detach().exp()
        self.logarithm.grad = value * stats[self.gradient].mean(0).to(value)  # d/d(log x) = x d/dx
        return (value.item(),) if value.ndim == 0 else ()


def _try_out(make: Callable, parameters: list[Tensor]) -> None:
    """One step of the optimiser on copies, before any work is done.

    Raises:
        TypeError: it needs more than a gradient, or its state cannot be saved.
    """
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    trial = make(copies)
    for p in copies:
        p.grad = torch.zeros_like(p)
    try:
        trial.step()
    except TypeError as error:
        raise TypeError(
            f"{type(trial).__name__} cannot be used here: fit gives an optimiser one gradient, and calls step() ({error})"
        ) from error
    checkpoints.flatten(trial.state_dict(), {}, type(trial).__name__)


def _try_sampler(sampler: Callable, generator: torch.Generator, identity: dict[str, str]) -> None:
    """One draw, to see that nothing but the generator moves on.

    Raises:
        ValueError: the sampler has a state of its own, or draws from PyTorch's, so that a run could not be resumed.
    """
    before = torch.get_rng_state()
    sampler(generator)
    changed = [key for key, value in describe(sampler, "sampler").items() if identity.get(key) != value]
    if not torch.equal(before, torch.get_rng_state()):
        changed.append("PyTorch's own generator")
    if changed:
        raise ValueError(
            f"the sampler has a state that a checkpoint does not hold ({changed[0]} moved on with a draw); draw from the given "
            "generator alone, and let names of caches start with an underscore"
        )


def _restore(outer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state to the bit: ``load_state_dict`` alone casts some of it to the dtype of the parameters."""
    outer.load_state_dict(state)
    parameters = [p for group in outer.param_groups for p in group["params"]]
    for number, entries in state["state"].items():
        own = outer.state[parameters[number]]
        own.update({key: value.to(own[key].device) for key, value in entries.items() if isinstance(value, Tensor)})


def _identity(method, problem, sampler, outer, seed, theta, learn) -> dict[str, str]:
    """All that the result of a run depends on, the number of meta steps aside."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in outer.param_groups]
    entries = {
        "method": method, "model": problem.model, "loss": problem.loss, "seed": seed, "learn": learn, "theta": theta,
        "optimizer": {"class": type(outer), "settings": groups},
    }  # fmt: skip
    # The sampler by itself, so that it reads the same alone: what it shares with the loss is spelled out in both.
    return describe(entries) | describe(sampler, "sampler")


def _estimate(method: Any, problem: Problem, tasks: Tasks, theta: Tensor, number: int) -> tuple[MetaGradient, tuple[float, ...]]:
    """The meta-gradient of one meta step, and its row of the history."""
    try:
        estimate = meta_gradient(method, problem, theta.detach(), tasks)
    except DivergenceError as error:
        raise DivergenceError(f"meta step {number} of {type(method).__name__}: {error}") from error
    kept = slice(None) if estimate.stats.diverged is None else ~estimate.stats.diverged
    return estimate, (estimate.query_loss[kept].mean().item(), estimate.gradient.norm().item())
