"""One cell: the test users, the errors of a method, or its choice of hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from amaml_core import Problem, adapt, evaluate, metrics
from amaml_core.meta import Method
from amaml_core.samplers import RatingSampler, RatingSplits
from amaml_core.tasks import Tasks

from ..common.cells import Cell, live_rows, stamped
from ..common.choosing import choose
from ..common.training import generator
from ..common.users import error_rows, learn, rounded, scales
from . import settings
from .data import bars, load, make_test_tasks, part_in_choice, tested_before
from .settings import (
    BATCH,
    BEYOND,
    ITEMS,
    META_LR,
    PICTURED,
    SHOTS,
    TRIAL_UPDATES,
    TRIAL_USERS,
    TRIALS,
    Size,
    Trial,
    make_method,
    trained_steps,
)


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of one cell."""
    c = cell.settings
    size = settings.size_of(c["size"], c.get("table", 1))
    fast = c["size"] == "full"  # only there is trained long enough to earn back the time that compilation takes
    if cell.kind == "users":
        return users(c["data"], c["shots"], size, cell.seed)
    if cell.kind in ("choice", "beyond"):
        trials = (TRIALS if cell.kind == "choice" else BEYOND)[c["method"]]
        return choice(c["method"], trials, c["data"], c["shots"], size, cell.seed, fast)
    return errors(learnt(cell, fast), size)


def users(data: str, shots: str, size: Size, seed: int) -> pd.DataFrame:
    """One row for each test ``user``: scales of the ratings, the RMSE of the bars, the user's part ``in_choice``, and whether an
    earlier seed has tested the user too, ``before``.

    In all rows: ``mean`` and ``std`` of the training ratings, ``low`` and ``high``, the ends of the rating scale, the numbers of
    ``query points`` and ``support points``, of training users, of users ``left out`` of each part, and the ``source``.
    """
    found, splits = load(data, shots, size, seed)
    tasks = make_test_tasks(splits, shots, seed)
    table = scales(tasks, splits.mean, splits.std).join(rounded(bars(splits, tasks).astype(float)))
    table.insert(0, "user", range(len(table)))
    support, query = SHOTS[shots]
    facts = {"mean": splits.mean, "std": splits.std, "low": float(found.rating.min()), "high": float(found.rating.max())}
    facts |= {"query points": query, "support points": support, "train users": len(splits.train), "source": found.description}
    facts |= {f"left out of {part}": count.left_out for part, count in splits.counts.items()}
    parts = {"in_choice": part_in_choice(found, splits, size), "before": tested_before(found, splits, shots, size, seed)}
    return table.assign(**parts, **facts)


class Learnt(NamedTuple):
    """A method after its meta-training, and what it is tested on.

    Attributes:
        method: with its number of inner ``steps``.
        problem, theta: the model, and its trained initialisation (P,).
        splits, tasks: the users, and one task for each test user.
        source: the data's own description.
    """

    method: Method
    steps: int
    problem: Problem
    theta: Tensor
    splits: RatingSplits
    tasks: Tasks
    source: str


def learnt(cell: Cell, fast: bool = False) -> Learnt:
    """Train the method of a cell of errors."""
    c = cell.settings
    size = settings.size_of(c["size"], c["table"])
    found, splits = load(c["data"], c["shots"], size, cell.seed)
    steps = c.get("steps") or trained_steps(c["method"], size)
    made = make_method(c["method"], Trial(c["inner_lr"], c["regularization"]), steps)
    sampler = RatingSampler(splits.train, *SHOTS[c["shots"]], BATCH)
    problem, theta = learn(made, sampler, ITEMS, size.updates, c["meta_lr"], cell.seed, fast)
    return Learnt(made, steps, problem, theta, splits, make_test_tasks(splits, c["shots"], cell.seed), found.description)


def errors(model: Learnt, size: Size) -> pd.DataFrame:
    """Test a method: one row for each number of inner steps and test user, see :func:`error_rows`."""
    steps = sorted({*size.test_steps, model.steps})
    tested = evaluate(model.method, model.problem, model.theta, model.tasks, metrics.rmse, steps)
    return error_rows(tested, model.steps).assign(source=model.source)


def predictions(model: Learnt) -> pd.DataFrame:
    """One row for each test ``user`` and item of a ``set``, support or query: the ``item``'s number in the data, the ``rating``,
    and the prediction ``before`` and ``after`` adaptation; all three on the data's own scale."""
    adapted = adapt(model.method, model.problem, model.theta, model.tasks, model.steps)  # (B, P)
    parts = []
    for part, (x, y) in (("support", model.tasks.support), ("query", model.tasks.query)):
        found = {"rating": y}
        for name, u in (("before", model.theta.expand_as(adapted)), ("after", adapted)):
            found[name] = model.problem.predict(u, x).detach()  # (B, n, 1)
        columns = {name: model.splits.undo(values).flatten().double() for name, values in found.items()}
        columns["item"] = model.splits.items[x.argmax(2)].flatten()
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        parts.append(table.assign(set=part, user=table.index // x.shape[1]))
    return pd.concat(parts, ignore_index=True)[["user", "set", "item", "rating", "before", "after"]]


def choice(method: str, trials: Sequence[Trial], data: str, shots: str, size: Size, seed: int, fast: bool = False) -> pd.DataFrame:
    """One row for each trial of a method: its settings, the ``score``, which is the mean RMSE of validation users after a short
    training, and whether it was ``chosen``. In all rows: the numbers of ``users``, ``updates``, ``steps``, and the ``source``."""
    size = replace(size, updates=min(size.updates, TRIAL_UPDATES))
    found, splits = load(data, shots, size, seed)
    steps = trained_steps(method, size)
    train, judges = (RatingSampler(m, *SHOTS[shots], BATCH) for m in (splits.train, splits.validation[:TRIAL_USERS]))
    tasks = judges.all_tasks(generator("validation", seed))

    def score(trial: Trial) -> float:
        made = make_method(method, trial, steps)
        problem, theta = learn(made, train, ITEMS, size.updates, META_LR, seed, fast)
        mean = evaluate(made, problem, theta, tasks, metrics.rmse, (steps,))["query"].mean(skipna=False)
        return mean if math.isfinite(mean) else math.nan

    table = choose(trials, score)
    return table.assign(users=len(tasks), updates=size.updates, steps=steps, source=found.description)


def live(size: str, seed: int, kind: str, **wanted: object) -> pd.DataFrame:
    """The cells of a size and a kind whose settings have these values, run here and now: rows like those of the records."""
    found = (cell for cell in settings.cells(size, seed) if cell.kind == kind)
    return live_rows(c for c in found if all(c.settings.get(name) == value for name, value in wanted.items()))[kind]


def first_look(size: str, seed: int) -> dict[str, pd.DataFrame]:
    """The first comparison, run here and now: ``users``, the ``errors`` of all methods, and the ``predictions`` of those that are
    ``PICTURED``, with the column ``method``."""
    who, *which = settings.first_look(size, seed)
    models = {cell.settings["method"]: learnt(cell) for cell in which}
    tables = [stamped(cell, errors(models[cell.settings["method"]], settings.size_of(size))) for cell in which]
    pictured = [predictions(models[name]).assign(method=name) for name in PICTURED]
    both = {"errors": tables, "predictions": pictured}
    return live_rows([who]) | {name: pd.concat(parts, ignore_index=True) for name, parts in both.items()}
