"""A model of what a meta step of :func:`amaml_core.fit` costs, against tasks, inner steps, parameters and ranks.

Its seconds are a sum of prices times amounts (:func:`amounts`). The prices are not negative, and are fitted to some of the measured
sizes; the others are predicted, which is the test of the model.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from ..common.claims import Claim, decide
from ..common.tables import NOT_RUN
from .settings import LARGE, MANY, SHOTS, SIZES, Load

PRICES = ("a meta step", "an inner step", "an activation", "a product", "a word of the ranks", "a number sent")
NEAR = 1.25  # a prediction is right within this factor


def amounts(table: pd.DataFrame) -> pd.DataFrame:
    """What a meta step needs of each of ``PRICES``, for rows of ``tasks``, ``steps``, ``width``, ``parameters`` and ``ranks``.

    A rank solves b = ⌈B/R⌉ tasks. An inner step has an overhead of its own; and for b·S points 2·``width`` activations and P
    products. Ranks exchange a word in log₂ R rounds, and in a ring each sends 2 (R - 1)/R times the P numbers of the gradient.
    """
    ranks, steps, weights = table["ranks"], table["steps"], table["parameters"]
    points = SHOTS * steps * -(-table["tasks"] // ranks)
    sent = 2 * (1 - 1 / ranks) * weights
    columns = [0 * steps + 1, steps, points * 2 * table["width"], points * weights, ranks.map(math.log2), sent]
    return pd.concat(columns, axis=1, keys=PRICES).astype(float)


def fitted(table: pd.DataFrame) -> pd.Series:
    """The prices in seconds, of the rows that are not ``held out``: least squares of the relative error, none below zero."""
    known = table[~table["held out"]]
    found, _ = nnls(amounts(known).div(known["seconds"], axis=0).to_numpy(), np.ones(len(known)))
    return pd.Series(found, PRICES)


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of kind ``scaling`` of one size, with what the model says: ``held out``, ``predicted`` seconds, and the ``ratio`` to the
    measured ones."""
    apart = {tuple(asdict(load).values()) for name in table["size"].unique() for load in SIZES[name].held_out}
    keys = table[["tasks", "steps", "width"]].itertuples(index=False, name=None)
    table = table.assign(**{"held out": [key in apart for key in keys]})
    table["predicted"] = amounts(table) @ fitted(table)
    return table.assign(ratio=table["predicted"] / table["seconds"])


def by_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds of each load by the number of ranks, measured and predicted; of what :func:`compared` gives."""
    named = table.rename(columns={"seconds": "measured", "tasks": "B", "steps": "K", "parameters": "P"})
    wide = named.pivot(index=["held out", "B", "K", "P"], columns="ranks", values=["measured", "predicted"])
    return (1e3 * wide).rename(index={False: "fitted", True: "held out"}, level=0).swaplevel(axis=1).sort_index(axis=1)


def outlook(table: pd.DataFrame, load: Load = LARGE, ranks: tuple[int, ...] = MANY) -> pd.DataFrame:
    """What the model says of many ranks: the efficiency, one being ideal, with four times the load's tasks shared by all ranks
    (``strong``), and with the load's tasks for each of them (``weak``); and what was measured of it."""
    found = {}
    for way, tasks in {"strong": [4 * load.tasks] * len(ranks), "weak": [load.tasks * r for r in ranks]}.items():
        asked = pd.DataFrame(
            {"tasks": tasks, "steps": load.steps, "width": load.width, "parameters": load.parameters, "ranks": ranks}
        )
        known = table.set_index(["tasks", "steps", "width", "ranks"])["seconds"]
        measured = known.reindex(pd.MultiIndex.from_frame(asked[["tasks", "steps", "width", "ranks"]])).to_numpy()
        share = np.array(ranks) if way == "strong" else 1
        seconds = (amounts(asked) @ fitted(table)).to_numpy()
        found[way, "predicted"], found[way, "measured"] = seconds[0] / seconds / share, measured[0] / measured / share
    return pd.DataFrame(found, index=pd.Index(ranks, name="ranks"))


def even_share(found: pd.Series, load: Load) -> float:
    """How many tasks of a load make the arithmetic of an inner step cost as much as the step as such, by the prices found."""
    a_task = found["an activation"] * 2 * load.width + found["a product"] * load.parameters
    return float(found["an inner step"] / (SHOTS * a_task))


def conclusions(table: pd.DataFrame) -> list[Claim]:
    """What one would expect of the model and of two processes, each with the test that would refute it."""
    apart = table.loc[table["held out"], "ratio"]
    speedup = outlook(table).loc[2, ("strong", "measured")] * 2
    measured = [] if math.isnan(speedup) else [speedup > 2 / NEAR]
    return [
        Claim("efficiency", "The cost model predicts sizes that it was not fitted to", f"each within a factor of {NEAR:g}", "–",
              f"{apart.min():.2f} to {apart.max():.2f} times the measured seconds", decide(apart.between(1 / NEAR, NEAR))),
        Claim("efficiency", "Two processes halve the time of a large meta step", f"at least {2 / NEAR:g} times as fast", "–",
              f"{speedup:.2f} times" if measured else NOT_RUN, decide(measured)),
    ]  # fmt: skip
