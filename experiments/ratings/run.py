"""One cell: the test users, the errors of a method, or its choice of hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from amaml_core import evaluate, metrics
from amaml_core.samplers import RatingSampler

from ..common.cells import Cell, live_rows
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
    trial = Trial(c["inner_lr"], c["regularization"])
    return errors(c["method"], trial, c["data"], c["shots"], size, cell.seed, c["meta_lr"], fast)


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


def errors(
    method: str, trial: Trial, data: str, shots: str, size: Size, seed: int, meta_lr: float = META_LR, fast: bool = False
) -> pd.DataFrame:
    """Train a method and test it: one row for each number of inner steps and test user, see :func:`error_rows`."""
    found, splits = load(data, shots, size, seed)
    steps = trained_steps(method, size)
    made = make_method(method, trial, steps)
    sampler = RatingSampler(splits.train, *SHOTS[shots], BATCH)
    problem, theta = learn(made, sampler, ITEMS, size.updates, meta_lr, seed, fast)
    tested = evaluate(made, problem, theta, make_test_tasks(splits, shots, seed), metrics.rmse, size.test_steps)
    return error_rows(tested, steps).assign(source=found.description)


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
    """The first comparison, run here and now: ``users``, and the ``errors`` of all methods."""
    return live_rows(settings.first_look(size, seed))
