"""Means and intervals: over tasks where these are all there is, over training seeds by Student's t where those vary more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from amaml_core.metrics import Interval, interval


def seed_interval(values: Iterable[float]) -> Interval:
    """Mean over seeds and the half-width of its 95 % interval, by Student's t: a few seeds make it wide.

    Raises:
        ValueError: fewer than two values.
    """
    x = np.array(list(values), dtype=float)
    if len(x) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 values, not {len(x)}")
    return Interval(float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5), len(x))


def over_seeds(table: pd.DataFrame, value: str, seed: str = "seed") -> pd.DataFrame:
    """A row for each setting: the ``mean`` over seeds, its ``half`` width (t; missing for one seed), ``low``, ``high``, ``seeds``.

    Args:
        table: one row for each setting and seed; every column but ``value`` and ``seed`` is a setting.
    """
    keys = [c for c in table.columns if c not in (seed, value)]
    found = table.groupby(keys, sort=False)[value].agg(["mean", "std", "min", "max", "count"]).reset_index()
    found["half"] = stats.t.ppf(0.975, np.maximum(found["count"] - 1, 1)) * found.pop("std") / found["count"] ** 0.5
    return found.rename(columns={"min": "low", "max": "high", "count": "seeds"})


def pooled(values: pd.Series, seed: str = "seed", over: str | None = None) -> tuple[Interval, str]:
    """Mean over the tasks of all seeds, with a 95 % interval, and what that is over: ``"tasks"``; or ``"seeds"``, by Student's t,
    where the seeds' means differ more than their tasks explain, by an F test at 5 %.

    Args:
        values: of each task, indexed by ``seed`` and task; missing ones are left out.
        over: decides it in place of the test.

    Raises:
        ValueError: fewer than two values, or one seed where the interval is to be over seeds.
    """
    values = values.dropna()
    groups = [group.to_numpy() for _, group in values.groupby(level=seed)]
    if over is None:
        over = "seeds" if len(groups) > 1 and stats.f_oneway(*groups).pvalue < 0.05 else "tasks"
    return (seed_interval(group.mean() for group in groups) if over == "seeds" else interval(values)), over


def quotient(above: Interval, below: Interval) -> Interval:
    """The quotient of two means, with an interval by linear propagation as if the two were independent."""
    value = above.mean / below.mean
    relative = np.hypot(above.half_width / above.mean, below.half_width / below.mean)
    return Interval(value, float(abs(value) * relative), min(above.count, below.count))


def paired_quotient(above: pd.Series, below: pd.Series, seed: str = "seed") -> Interval:
    """The quotient of two methods' mean errors on the same tasks, with a t interval over seeds of its logarithm's mean; over the
    tasks, by the delta method, where there is one seed.

    Args:
        above, below: errors, indexed by ``seed`` and task; what only one of them has is left out.

    Raises:
        ValueError: the two share fewer than two tasks.
    """
    pairs = pd.concat({"above": above, "below": below}, axis=1).dropna()
    if len(pairs) < 2:
        raise ValueError("a paired quotient needs at least two tasks that both have")
    by_seed = pairs.groupby(level=seed).mean()
    if len(by_seed) > 1:
        mean, half, count = seed_interval(np.log(by_seed["above"] / by_seed["below"]))
        return Interval(float(np.exp(mean)), float(np.exp(mean) * half), count)
    ratio = pairs["above"].mean() / pairs["below"].mean()
    spread = (pairs["above"] - ratio * pairs["below"]).std() / pairs["below"].mean()
    return Interval(float(ratio), float(1.96 * spread / len(pairs) ** 0.5), len(pairs))


class Effect(NamedTuple):
    """The error of one run less that of another, on the same tasks.

    Attributes:
        mean: over seeds and tasks.
        half_width: of the 95 % interval over seeds (Student's t).
        over_tasks: half-width over tasks, the seeds' trained networks given (normal, as in few-shot papers).
        seeds: how many.
    """

    mean: float
    half_width: float
    over_tasks: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"


def below(found: Interval | Effect) -> bool:
    """Whether an interval lies below zero."""
    return found.mean + found.half_width < 0
