"""What both evaluations on ratings run: meta-training of the paper's network, errors of test users, and what they may be over."""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd
from torch import Tensor, nn

from amaml_core import DivergenceError, Problem
from amaml_core.meta import Method
from amaml_core.tasks import Tasks

from .training import meta_train, network, seeded

WIDTH = 40  # of the paper's network for ratings
BLOWN_UP = 1e3  # standard deviations of the ratings: an error of that size is an overflow that has not come to its end
DIGITS = 5  # significant digits of an error and of a scale, which keeps the records small


def learn(method: Method, sampler: Any, inputs: int, updates: int, lr: float, seed: int, fast: bool) -> tuple[Problem, Tensor]:
    """Meta-train the paper's network, drawn from ``seed``, on the sampler's tasks by Adam.

    Args:
        method: whose meta-gradient.
        sampler: of training tasks.
        inputs: numbers that describe an item.
        updates, lr: of Adam.
        seed: of the network and of the meta-batches.
        fast: train a compiled network, which pays from about a thousand updates on; the same to rounding.

    Returns:
        An eager problem to test with, and the trained theta (P,).

    Raises:
        DivergenceError: an update is not finite.
    """
    problem = Problem(seeded(network(inputs, WIDTH), seed), nn.functional.mse_loss)
    trainer = _compiled(inputs) if fast else problem
    return problem, meta_train(method, trainer, sampler, updates, lr, seed, problem.initial_parameters())


@cache
def _compiled(inputs: int) -> Problem:
    """One compiled problem for all cells of a process: its graphs depend on shapes alone, and are made once."""
    return Problem(network(inputs, WIDTH), nn.functional.mse_loss, compile=True)


def error_rows(found: pd.DataFrame, trained: int) -> pd.DataFrame:
    """A table of :func:`amaml_core.evaluate` as a cell's rows: ``step``, ``user``, and the RMSE on ``query`` and ``support`` items.

    Args:
        found: errors in standard deviations of the training ratings.
        trained: the number of steps that the method was trained for; a further column. Errors after more steps may be missing.

    Raises:
        DivergenceError: an error is not finite, or beyond ``BLOWN_UP``, after ``trained`` steps or before.
    """
    lost = found.loc[~(found["query"] + found["support"] < BLOWN_UP) & (found["step"] <= trained), ["step", "task"]]
    if len(lost):
        raise DivergenceError(f"the test diverged for {lost['task'].nunique()} users, from step {lost['step'].min()} on")
    table = found.rename(columns={"task": "user"}).sort_values(["step", "user"], ignore_index=True)
    errors = table[["query", "support"]].astype(float)
    return table[["step", "user"]].join(rounded(errors.where(errors.abs() < float("inf")))).assign(trained=trained)


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers to ``DIGITS`` significant digits."""
    return table.map(lambda value: float(f"{value:.{DIGITS}g}"))


def scales(tasks: Tasks, mean: float, std: float) -> pd.DataFrame:
    """What an error may be divided by: one row for each user, in units of ``std``.

    Args:
        tasks: with standardised ratings as targets.
        mean, std: of the training ratings, on the data's own scale.

    Returns:
        For ``query`` and ``support`` items the ``standard deviation``, the ``range`` and the ``norm`` (root mean square) of the
        user's ratings, and the ``norm of raw ratings``, as the user gave them.
    """
    columns = {}
    for part, y in (("query", tasks.query_y), ("support", tasks.support_y)):
        y = y.flatten(1).double()  # (B, n)
        columns[f"{part} standard deviation"] = y.std(1, correction=0)
        columns[f"{part} range"] = y.amax(1) - y.amin(1)
        columns[f"{part} norm"] = y.square().mean(1).sqrt()
        columns[f"{part} norm of raw ratings"] = (y + mean / std).square().mean(1).sqrt()
    return rounded(pd.DataFrame(columns))
