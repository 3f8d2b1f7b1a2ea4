"""What each hypothesis yields, and how near it comes to the published Table 1; all from rows, recorded or live.

Frames of rows: ``errors`` and ``users`` as :mod:`.run` makes them; ``lost``, one row for each cell that diverged.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from amaml_core import metrics

from ..common import records, scores
from ..common.published import published
from ..ratings.settings import SHOTS
from .settings import DATA, HYPOTHESES, METHODS, SIZES, cells

KEYS = ["data", "shots", "method"]
FEW, MANY = SHOTS
FALL_WITHIN = 0.15  # a combination has the paper's fall if it is so near, and its spread if that is within the factor
SPREAD_WITHIN = 1.5
BY = ["hypothesis", "set", "steps", "score"]  # a combination


def recorded(kind: str) -> pd.DataFrame:
    """All rows of a kind at full size."""
    return records.rows("ratings_gap", kind, size="full")


def lost() -> pd.DataFrame:
    """The cells of errors at full size that diverged: their settings, ``seed`` and ``message``."""
    return records.diverged("ratings_gap", "errors", size="full")


def joined(errors: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """Errors with what is known of their users, which a score needs."""
    known = users.drop(columns=["size", "source", "machine"])
    return errors.merge(known, on=["hypothesis", "data", "shots", "seed", "user"], validate="many_to_one")


def theirs() -> pd.DataFrame:
    """The numbers of Table 1 that the hypotheses are compared with: ``value`` and ``error`` by data, shots and method."""
    table = published("ratings", source="table 1")
    return table[table["data"].isin(DATA) & table["method"].isin(METHODS)].set_index(KEYS)[["value", "error"]]


def plain(errors: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """The RMSE with its interval over users, after the steps of the training, as text: a row for each hypothesis and data set, a
    column for each method, shots and set."""
    mine = errors[errors["step"].eq(errors["trained"])]
    groups = dict(list(mine.groupby(["hypothesis", *KEYS])))
    away = set(lost[["hypothesis", *KEYS]].itertuples(index=False, name=None)) if len(lost) else set()
    rows = {}
    for name, data in dict.fromkeys((c.settings["hypothesis"], c.settings["data"]) for c in cells("full")):
        rows[name, data] = {}
        for part, method, shots in product(("query", "support"), METHODS, SHOTS):
            key = (name, data, shots, method)
            none = "diverged" if key in away else "not run"
            rows[name, data][f"{method} {shots}, {part}"] = str(metrics.interval(groups[key][part])) if key in groups else none
    return pd.DataFrame.from_dict(rows, orient="index")


def filled(users: pd.DataFrame) -> pd.DataFrame:
    """How much of a completed matrix is no rating, and what two guesses score there, 10–15 shots."""
    mine = users[users["filled"].gt(0) & users["shots"].eq(FEW)]
    found = mine.groupby(["hypothesis", "data"])[["filled", "item means", "user mean"]].mean()
    return pd.DataFrame({
        "targets that are no rating": found["filled"].map("{:.0%}".format),
        "RMSE of the item means": found["item means"].map("{:.3f}".format),
        "RMSE of the user mean": found["user mean"].map("{:.3f}".format),
    })  # fmt: skip


def compare(errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """How near each hypothesis comes to the paper's numbers, on either set, after any number of steps, in each of ``scores.ALL``.

    One row for each combination of a hypothesis of which all cells have a record; those that diverged are left out:

    - ``factor``: by what factor ours and the paper's differ, as a geometric mean over data sets, shots and methods; 1 is perfect;
    - ``fall``: the error with 20 to 30 shots over that with 10 to 15; the paper's is near 0.4 throughout;
    - ``spread``: FOMAML's error over A-MAML's; the paper's is near 3 to 4 throughout;
    - ``inside``: the share of the numbers whose interval meets the paper's;
    - ``diverged``: how many cells are left out.
    """
    table, parts = _complete(errors, users, lost), []
    if table.empty:
        return pd.DataFrame(columns=[*BY, "factor", "fall", "spread", "inside", "diverged"])
    groups = table.groupby(["hypothesis", "step", *KEYS])
    number, names = groups.ngroup(), groups.size().index
    for part, score in product(("query", "support"), scores.ALL):
        values = score.of(table, part).groupby(number).agg(["mean", "std", "count"]).set_axis(names)
        parts.append(values.reset_index().assign(set=part, score=str(score)))
    found = pd.concat(parts, ignore_index=True).rename(columns={"step": "steps"})
    found = found[found.groupby(BY)["count"].transform("min") > 1]  # constant targets have no standard deviation
    found["half"] = 1.96 * found["std"] / found["count"] ** 0.5
    near = _nearness(found).reset_index()
    away = lost.groupby("hypothesis").size() if len(lost) else pd.Series(dtype=int)
    near["diverged"] = near["hypothesis"].map(away).fillna(0).astype(int)
    order = near["hypothesis"].map(list(HYPOTHESES).index).sort_values(kind="stable").index
    return near.loc[order].reset_index(drop=True)


def _complete(errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """:func:`joined`, after at least one step, of hypotheses of which each cell has a record."""
    keys = ["hypothesis", *KEYS]
    done = {tuple(key) for table in (errors, lost) if len(table) for key in table[keys].drop_duplicates().to_numpy()}
    wanted = [tuple(c.settings[k] for k in keys) for c in cells("full") if c.kind == "errors"]
    short = {key[0] for key in wanted if key not in done}
    return joined(errors[errors["step"].gt(0) & ~errors["hypothesis"].isin(short)], users)


def _nearness(ours: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of :func:`compare` by ``BY``, of ``mean`` and ``half`` in rows that have ``KEYS`` too."""
    table = ours.join(theirs(), on=KEYS)
    known = table.set_index([*BY, *KEYS])
    inside = (known["mean"] - known["value"]).abs() <= known["half"] + known["error"]
    # A model that knows its support set by heart may have no error at all there.
    apart = np.log(known["mean"].clip(lower=1e-12) / known["value"]).abs()
    shots, methods = (np.log(known["mean"]).unstack(level) for level in ("shots", "method"))
    means = {
        "factor": apart,
        "fall": shots[MANY] - shots[FEW],
        "spread": methods["FOMAML"] - methods["A-MAML"],
    }
    found = {name: np.exp(values.groupby(level=BY).mean()) for name, values in means.items()}
    return pd.DataFrame(found | {"inside": inside.groupby(level=BY).mean()})


def paper() -> dict[str, float]:
    """The paper's own ``fall`` and ``spread``, as geometric means over the numbers that :func:`compare` compares with."""
    table = theirs().set_axis(["mean", "half"], axis=1).reset_index().assign(**dict.fromkeys(BY, "paper"))
    return _nearness(table).iloc[0].to_dict()


def with_both(table: pd.DataFrame) -> pd.DataFrame:
    """Those combinations that have the paper's fall and its spread at once, the nearest in size first."""
    wanted = paper()
    fall = (table["fall"] - wanted["fall"]).abs() < FALL_WITHIN
    spread = np.log(table["spread"] / wanted["spread"]).abs() < np.log(SPREAD_WITHIN)
    return table[fall & spread].sort_values("factor")


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each hypothesis of :func:`compare`: the guess in words; fall and spread of the RMSE on either set, after the steps
    of the training; by what factor its nearest combination differs from the paper's numbers, and which that is; and how many
    of its combinations are :func:`with_both`."""
    nearest = table.loc[table.groupby("hypothesis", sort=False)["factor"].idxmin()].set_index("hypothesis")
    found = pd.DataFrame({"the guess": {name: HYPOTHESES[name].says for name in nearest.index}})
    after = patterns(table)
    for part, seen in (("query", "unseen"), ("support", "seen")):
        for what in ("fall", "spread"):
            found[f"{what}, {seen}"] = after[part, what].map("{:.2f}".format)
    found["nearest"] = nearest["factor"].map("{:.2f}".format)
    steps = nearest["steps"].map(lambda count: f"{count} step" + "s" * (count > 1))
    found["where"] = nearest["set"] + " set, " + steps + ", " + nearest["score"]
    found["with both"] = with_both(table)["hypothesis"].value_counts().reindex(found.index, fill_value=0)
    return found


def patterns(table: pd.DataFrame, score: str = "RMSE") -> pd.DataFrame:
    """Fall and spread of each hypothesis on either set in one score, after the steps of the training, or all of Adam's."""
    last = {name: SIZES["full"].inner_steps if h.adapt == "own" else SIZES["full"].adam_steps[-1] for name, h in HYPOTHESES.items()}
    mine = table[table["score"].eq(score) & table["steps"].eq(table["hypothesis"].map(last))]
    wide = mine.pivot(index="hypothesis", columns="set", values=["fall", "spread"])
    return wide.swaplevel(axis=1).reindex(list(mine["hypothesis"].unique())).sort_index(axis=1)


def support_fit(errors: pd.DataFrame) -> pd.DataFrame:
    """The smallest and the largest mean RMSE on the support set over data, shots and methods, after the steps of the training, for
    each hypothesis."""
    mine = errors[errors["step"].eq(errors["trained"])]
    means = mine.groupby(["hypothesis", *KEYS], sort=False)["support"].mean()
    return means.groupby(level="hypothesis", sort=False).agg(["min", "max"])
