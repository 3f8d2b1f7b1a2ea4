"""The outer loop: meta-training of theta by any optimiser, with a history, early errors and resumable checkpoints."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .flow import DivergenceError
from .meta import MetaGradient, Method, meta_gradient
from .problem import Problem
from .records import write_beside
from .tasks import Tasks

SAVE_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class FitResult:
    """What meta-training gives.

    Attributes:
        theta: the trained initialisation (P,).
        history: one row for each meta step: ``meta_step`` (from 1), ``query_loss`` (mean over tasks), ``gradient_norm``.
    """

    theta: Tensor
    history: pd.DataFrame


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

    Raises:
        DivergenceError: loss, adapted parameters or gradient are not finite.
        ValueError: ``meta_steps`` < 1, or the checkpoint belongs to another run.
    """
    if meta_steps < 1:
        raise ValueError(f"meta_steps must be at least 1, not {meta_steps}")
    theta = (problem.initial_parameters() if theta is None else theta.detach().clone()).requires_grad_()
    outer = torch.optim.Adam([theta], lr=1e-3) if optimizer is None else optimizer([theta])
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple[float, float]] = []  # (query loss, gradient norm) of each meta step

    path = None if checkpoint is None else Path(checkpoint)
    identity = f"{method!r}, {type(outer).__name__}, seed={seed}, P={theta.numel()}, {theta.dtype}"
    if path is not None and path.exists():
        rows = _load(path, identity, theta, outer, generator)

    saved_at, updating = time.monotonic(), False
    bar = tqdm(total=meta_steps, initial=len(rows), desc=type(method).__name__, disable=None if progress else True)
    try:
        while len(rows) < meta_steps:
            estimate, row = _estimate(method, problem, sampler, theta, generator, len(rows) + 1)
            updating = True
            theta.grad = estimate.gradient
            outer.step()
            rows.append(row)
            updating = False
            bar.update()
            bar.set_postfix(query_loss=f"{row[0]:.4g}", refresh=False)
            if path is not None and time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                _save(path, identity, theta, outer, generator, rows)
                saved_at = time.monotonic()
    finally:
        bar.close()
        if path is not None and rows and not updating:  # an interrupt amid an update leaves the last checkpoint standing
            _save(path, identity, theta, outer, generator, rows)
    history = pd.DataFrame(rows, columns=["query_loss", "gradient_norm"])
    history.insert(0, "meta_step", np.arange(1, len(rows) + 1))
    return FitResult(theta.detach(), history)


def _estimate(method, problem, sampler, theta, generator, number) -> tuple[MetaGradient, tuple[float, float]]:
    """The meta-gradient of one meta step, and its row of the history. An interrupt leaves the generator as it was."""
    before = generator.get_state()
    try:
        estimate = meta_gradient(method, problem, theta.detach(), sampler(generator))
        row = (estimate.query_loss.mean().item(), estimate.gradient.norm().item())
        if not np.isfinite(row).all():
            raise DivergenceError(_cause(method, estimate, number))
    except BaseException:
        generator.set_state(before)
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


def _save(path: Path, identity: str, theta: Tensor, outer: torch.optim.Optimizer, generator, rows) -> None:
    state = outer.state_dict()
    arrays = {"theta": theta.detach().cpu().numpy(), "rows": np.array(rows), "generator": generator.get_state().numpy()}
    # One parameter, so the optimiser's state has at most the key 0.
    arrays |= {f"state.{k}": torch.as_tensor(v).cpu().numpy() for k, v in state["state"].get(0, {}).items() if v is not None}
    arrays["meta"] = np.array(json.dumps({"identity": identity, "param_groups": state["param_groups"]}))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_beside(path, buffer.getvalue())


def _load(path: Path, identity: str, theta: Tensor, outer: torch.optim.Optimizer, generator) -> list[tuple[float, float]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    if meta["identity"] != identity:
        raise ValueError(
            f"{path} belongs to another run:\n  there: {meta['identity']}\n  here:  {identity}\nDelete it or choose another file"
        )
    theta.data.copy_(torch.from_numpy(arrays["theta"]))
    state = {k.removeprefix("state."): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("state.")}
    outer.load_state_dict({"state": {0: state} if state else {}, "param_groups": meta["param_groups"]})
    generator.set_state(torch.from_numpy(arrays["generator"]))
    return [tuple(row) for row in arrays["rows"].tolist()]
