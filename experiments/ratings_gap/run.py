"""One cell: the test users under a hypothesis, or the errors of a method."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
from torch import Tensor, cdist

from amaml_core import evaluate, metrics
from amaml_core.evaluation import AdamAdaptation
from amaml_core.tasks import Tasks

from ..common.cells import Cell, live_rows
from ..common.training import generator
from ..common.users import error_rows, learn, rounded, scales
from ..ratings.settings import META_LR, make_method
from .settings import ADAM, HYPOTHESES, SIZES, TRIAL, Size, cells
from .setup import Setup, prepare


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of one cell."""
    c, size = cell.settings, SIZES[cell.settings["size"]]
    setup = prepare(c["hypothesis"], c["data"], c["shots"], size, cell.seed)
    tasks = setup.test.all_tasks(generator("test", cell.seed))
    if cell.kind == "users":
        return users(setup, tasks)
    return errors(c["method"], c["hypothesis"], setup, tasks, size, cell.seed, fast=c["size"] == "full")


def users(setup: Setup, tasks: Tasks) -> pd.DataFrame:
    """One row for each test ``user``: scales of the ratings, and the RMSE of two guesses, the ``user mean`` and the ``item means``.

    In all rows: ``mean`` and ``std`` of the training ratings, ``low`` and ``high``, the ends of the rating scale, the numbers of
    ``query points`` and ``support points`` and of training users, the share of the test users' matrix that is ``filled``, and the
    ``source``.
    """
    guesses = {
        "user mean": tasks.support_y.mean(1, keepdim=True).expand_as(tasks.query_y),
        "item means": _query_items(setup, tasks, setup.train.matrix.nanmean(0)),
    }
    table = scales(tasks, setup.mean, setup.std)
    for name, guess in guesses.items():
        table[name] = rounded(pd.DataFrame({name: metrics.rmse(guess, tasks.query_y)}).astype(float))
    table.insert(0, "user", range(len(table)))
    rating, points = setup.data.rating, {"query points": tasks.query_y.shape[1], "support points": tasks.support_y.shape[1]}
    return table.assign(
        mean=setup.mean, std=setup.std, low=float(rating.min()), high=float(rating.max()),
        **points, **{"train users": len(setup.train.matrix)}, filled=setup.filled, source=setup.data.description,
    )  # fmt: skip


def errors(method: str, name: str, setup: Setup, tasks: Tasks, size: Size, seed: int, fast: bool = False) -> pd.DataFrame:
    """Train a method and test it: one row for each number of inner steps and test user, see :func:`error_rows`.

    ``trained`` are the steps of the method's own loop, or all of Adam's. The hypothesis and the inner rate stand in all rows.
    """
    hypothesis = HYPOTHESES[name]
    made = make_method(method, TRIAL, size.inner_steps)
    updates = size.updates * hypothesis.updates
    problem, theta = learn(made, setup.train, tasks.support_x.shape[-1], updates, META_LR, seed, fast)
    own = hypothesis.adapt == "own"
    adapts, steps = (made, size.test_steps) if own else (AdamAdaptation(**ADAM), size.adam_steps)
    tested = evaluate(adapts, problem, theta, tasks, metrics.rmse, steps)
    table = error_rows(tested, size.inner_steps if own else steps[-1])
    return table.assign(inner_lr=TRIAL.inner_lr, source=setup.data.description, **asdict(hypothesis))


def _query_items(setup: Setup, tasks: Tasks, mean: Tensor) -> Tensor:
    """The mean over training users of each query item (B, Q, 1): an item is known by its features."""
    distances = cdist(tasks.query_x.flatten(0, 1), setup.test.features)  # (B Q, d)
    return mean[distances.argmin(1)].view_as(tasks.query_y)


def live(size: str, seed: int, kind: str, **wanted: object) -> pd.DataFrame:
    """The cells of a size and a kind whose settings have these values, run here and now: rows like those of the records."""
    found = (cell for cell in cells(size, seed) if cell.kind == kind)
    return live_rows(c for c in found if all(c.settings.get(name) == value for name, value in wanted.items()))[kind]
