"""The outer loop: meta-training of theta by any optimiser, with a history, early errors and resumable checkpoints."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from .flow import DivergenceError
from .meta import MetaGradient, Method, meta_gradient
from .methods import AMAML
from .problem import Problem
from .records import write_beside
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
    learn: Literal["horizon", "step_sizes"] | None = None,
) -> FitResult:
    """Meta-train the initialisation.

    Args:
        method: gives the meta-gradient; see :func:`amaml_core.meta_gradient`.
        problem: model and loss.
        sampler: ``sampler(generator) -> Tasks`` draws a meta-batch.
        meta_steps: number of meta updates.
        optimizer: ``optimizer([theta])`` builds a torch optimiser, for example ``lambda p: torch.optim.SGD(p, lr=0.01)``;
            Adam with learning rate 1e-3 by default.
        checkpoint: a file (``.npz``) that is written every half minute, at an interrupt and at the end. If it exists, training
            goes on from it, to the same bits as an uninterrupted run.
        seed: seeds the generator that the sampler draws from.
        theta: where to start (P,); the model's own parameters by default.
        progress: show a progress bar.
        learn: what of an A-MAML method to learn along with theta, by the same optimiser, in its logarithm (so it stays
            positive): the horizon, or the step sizes (K, G).

    Raises:
        DivergenceError: loss, adapted parameters or gradient are not finite.
        ValueError: ``meta_steps`` < 1, the checkpoint belongs to another run, or the method cannot learn what it should.
    """
    if meta_steps < 1:
        raise ValueError(f"meta_steps must be at least 1, not {meta_steps}")
    theta = problem.initial_parameters() if theta is None else theta.detach().clone()
    learned = None if learn is None else _learned(method, learn, theta)
    parameters = [p.requires_grad_() for p in (theta, learned) if p is not None]
    outer = torch.optim.Adam(parameters, lr=1e-3) if optimizer is None else optimizer(parameters)
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple[float, ...]] = []  # (query loss, gradient norm, horizon if learned) of each meta step

    path = None if checkpoint is None else Path(checkpoint)
    identity = f"{method!r}, learn={learn}, {type(outer).__name__}, seed={seed}, P={theta.numel()}, {theta.dtype}"
    if path is not None and path.exists():
        rows = _load(path, identity, parameters, outer, generator)
        if len(rows) > meta_steps:
            raise ValueError(
                f"{path} is {len(rows)} meta steps on, beyond meta_steps={meta_steps}; delete it or choose another file"
            )

    saved_at, updating = time.monotonic(), False
    bar = tqdm(total=meta_steps, initial=len(rows), desc=type(method).__name__, disable=None if progress else True)
    try:
        while len(rows) < meta_steps:
            current = _with(method, learn, learned)
            estimate, row = _estimate(current, problem, sampler, theta, generator, len(rows) + 1)
            updating = True
            theta.grad = estimate.gradient
            if learn == "horizon":  # d/d(log T) = T d/dT
                learned.grad = current.horizon * estimate.stats["horizon_gradient"].mean().to(learned)
                row = (*row, current.horizon)
            elif learn == "step_sizes":
                learned.grad = current.step_sizes * estimate.stats["step_size_gradient"].mean(0).to(learned)
            outer.step()
            rows.append(row)
            updating = False
            bar.update()
            bar.set_postfix(query_loss=f"{row[0]:.4g}", refresh=False)
            if path is not None and time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                _save(path, identity, parameters, outer, generator, rows)
                saved_at = time.monotonic()
    finally:
        bar.close()
        if (
            path is not None and rows and not updating
        ):  # an interrupt amid an update leaves the last checkpoint standing
            _save(path, identity, parameters, outer, generator, rows)
    history = pd.DataFrame(rows, columns=["query_loss", "gradient_norm", "horizon"][: len(rows[0])])
    history.insert(0, "meta_step", np.arange(1, len(rows) + 1))
    return FitResult(
        theta.detach(),
        history,
        replace(_with(method, learn, learned), sensitivities=method.sensitivities) if learn else method,
    )


def _learned(method: Method, learn: str, theta: Tensor) -> Tensor:
    """The logarithm of what is learned: () for the horizon, (K, G) for step sizes."""
    if learn not in ("horizon", "step_sizes"):
        raise ValueError(f'learn must be None, "horizon" or "step_sizes", not {learn!r}')
    if not isinstance(method, AMAML) or (learn == "step_sizes") != (method.step_sizes is not None):
        raise ValueError(
            f"learn={learn!r} needs an AMAML method "
            + (
                "whose step_sizes are given, to start from"
                if learn == "step_sizes"
                else "without step_sizes of its own"
            )
        )
    start = torch.tensor(method.horizon, dtype=torch.float64) if learn == "horizon" else method.step_sizes
    return start.detach().to("cpu", torch.float64).log()


def _with(method: Method, learn: str | None, learned: Tensor | None) -> Method:
    """The method at the present value of what is learned."""
    if learn is None:
        return method
    value = learned.detach().exp()
    return replace(method, **{learn: value.item() if learn == "horizon" else value}, sensitivities=True)


def _estimate(method, problem, sampler, theta, generator, number) -> tuple[MetaGradient, tuple[float, float]]:
    """The meta-gradient of one meta step, and its row of the history. An interrupt leaves the generator as it was."""
    before = generator.get_state()
    try:
        estimate = meta_gradient(method, problem, theta.detach(), sampler(generator))
        kept = ~estimate.stats["diverged"] if "diverged" in estimate.stats else slice(None)
        row = (estimate.query_loss[kept].mean().item(), estimate.gradient.norm().item())
        if not np.isfinite(row).all():
            raise DivergenceError(_cause(method, estimate, number))
    except BaseException as error:
        generator.set_state(before)
        if isinstance(error, DivergenceError) and not str(error).startswith("meta step"):
            raise DivergenceError(f"meta step {number} of {type(method).__name__}: {error}") from error
        raise
    return estimate, row


def _cause(method: Method, estimate: MetaGradient, number: int) -> str:
    where = f"meta step {number} of {type(method).__name__}: "
    tasks = (~estimate.adapted.isfinite().all(1)).nonzero().flatten().tolist()
    if tasks:
        return where + (
            f"the inner loop diverged for tasks {tasks} of the batch. The inner step size is probably too large for the "
            f"curvature of the support loss; lower it or take more steps ({method!r})"
        )
    tasks = (~estimate.query_loss.isfinite()).nonzero().flatten().tolist()
    if tasks:
        return where + (
            f"the query loss of tasks {tasks} is not finite although the adapted parameters are. Check the query data and "
            "the loss for overflow, logarithms of zero or divisions by zero"
        )
    return where + (
        "the meta-gradient is not finite although the query loss is. The pullback overflowed: the inner loop amplifies "
        f"perturbations (step size times negative curvature); shorten it or lower its step size ({method!r})"
    )


def _save(path: Path, identity: str, parameters: list[Tensor], outer: torch.optim.Optimizer, generator, rows) -> None:
    state = outer.state_dict()
    arrays = {"rows": np.array(rows), "generator": generator.get_state().numpy()}
    arrays |= {f"parameter.{i}": p.detach().cpu().numpy() for i, p in enumerate(parameters)}
    for i, entries in state["state"].items():
        arrays |= {f"state.{i}.{k}": torch.as_tensor(v).cpu().numpy() for k, v in entries.items() if v is not None}
    arrays["meta"] = np.array(json.dumps({"identity": identity, "param_groups": state["param_groups"]}))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_beside(path, buffer.getvalue())


def _load(
    path: Path, identity: str, parameters: list[Tensor], outer: torch.optim.Optimizer, generator
) -> list[tuple[float, ...]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    if meta["identity"] != identity:
        raise ValueError(
            f"{path} belongs to another run:\n  there: {meta['identity']}\n  here:  {identity}\nDelete it or choose another file"
        )
    state: dict[int, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        if name.startswith("state."):
            _, i, key = name.split(".", 2)
            state.setdefault(int(i), {})[key] = torch.from_numpy(array)
    for i, p in enumerate(parameters):
        p.data.copy_(torch.from_numpy(arrays[f"parameter.{i}"]))
    outer.load_state_dict({"state": state, "param_groups": meta["param_groups"]})
    generator.set_state(torch.from_numpy(arrays["generator"]))
    return [tuple(row) for row in arrays["rows"].tolist()]
