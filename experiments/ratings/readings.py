"""What the published tables can mean: properties that no normaliser changes, readings of the error, and what follows from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from amaml_core.metrics import Interval

from ..common import scores
from ..common.scores import Score
from ..common.statistics import quotient
from .settings import BARS, DATA, METHODS, SHOTS, TABLES
from .tables import COLUMNS, KEYS, means, theirs, trained

FEW, MANY = SHOTS
NOT_MAML = tuple(m for m in METHODS if m != "MAML")


# ------------------------------------------------------------------------------------------------------ the published tables alone


def fall(value: pd.Series | pd.DataFrame) -> pd.Series | pd.DataFrame:
    """The error with 20–30 shots over that with 10–15, by data and method."""
    return value.xs(MANY, level="shots") / value.xs(FEW, level="shots")


def spread(value: pd.Series) -> pd.Series:
    """The error of FOMAML over that of A-MAML, by data and shots."""
    return value.xs("FOMAML", level="method") / value.xs("A-MAML", level="method")


def published_patterns() -> pd.DataFrame:
    """For each published table the smallest, the median and the largest fall and spread."""
    found = {
        (f"Table {n}", name): of(theirs(n)["value"]).quantile([0, 0.5, 1]).tolist()
        for n in TABLES
        for name, of in (("fall", fall), ("spread", spread))
    }
    return pd.DataFrame(found, index=["smallest", "median", "largest"]).T


class Common(NamedTuple):
    """One fall for all methods and data sets.

    Attributes:
        value, half_width: its mean, weighted by the published ±, and the same kind of ± of the mean.
        chi2, freedom: whether one value is enough, if each ± is a standard error.
        p: the probability of a larger ``chi2`` then.
        p_half: the same if each ± is the half-width of a 95 % interval.
    """

    value: float
    half_width: float
    chi2: float
    freedom: int
    p: float
    p_half: float

    def __str__(self) -> str:
        said = f"{self.value:.3f} ± {self.half_width:.3f}, χ² = {self.chi2:.1f} on {self.freedom}"
        return f"{said}; p = {self.p:.2g}, or {self.p_half:.2g} if ± is a half-width"


def common_fall(number: int, methods: tuple[str, ...] = NOT_MAML) -> Common:
    """The fall that the methods of a published table have in common: the mean of its logarithm, weighted by the published ±."""
    table = theirs(number)
    table = table[table.index.get_level_values("method").isin(methods)]
    relative = table["error"] / table["value"]
    logs = np.log(fall(table["value"]))
    error = np.hypot(relative.xs(MANY, level="shots"), relative.xs(FEW, level="shots"))
    weight = 1 / error**2
    mean, free = (logs * weight).sum() / weight.sum(), len(logs) - 1
    chi2 = float((weight * (logs - mean) ** 2).sum())
    value = float(np.exp(mean))
    p, p_half = (float(stats.chi2.sf(chi2 * scale, free)) for scale in (1, 1.96**2))
    return Common(value, value * float(weight.sum()) ** -0.5, chi2, free, p, p_half)


def relative_errors(number: int = 1) -> pd.DataFrame:
    """The published ± over its mean, by method and column."""
    table = theirs(number)
    found = (table["error"] / table["value"]).unstack(["data", "shots"])
    return found.reindex(METHODS)[COLUMNS]


def least_error(points: int, users: int = 100) -> float:
    """The least relative standard error that so many users with so many points each allow: of an RMSE of normal errors."""
    return (2 * points) ** -0.5 / users**0.5


# ------------------------------------------------------------------------------------------------------------- beside our records


def of_methods(errors: pd.DataFrame, users: pd.DataFrame, number: int, score: Score) -> pd.DataFrame:
    """:func:`means` of the methods, without the bars."""
    found = means(trained(errors, users, number), score)
    return found[~found.index.get_level_values("method").isin(BARS)]


def our_patterns(errors: pd.DataFrame, users: pd.DataFrame, number: int = 1) -> pd.DataFrame:
    """The fall of A-MAML and the spread at 10–15 shots with their intervals, for each data set and some scores; as text."""
    rows = {}
    for scale in ("standard deviation", "range", "norm of raw ratings", "none"):
        found = of_methods(errors, users, number, Score(scale))
        ours = {key: Interval(row["mean"], row["half"], row["users"]) for key, row in found.to_dict("index").items()}
        for data in DATA:
            few, many, other = (ours.get(k) for k in ((data, FEW, "A-MAML"), (data, MANY, "A-MAML"), (data, FEW, "FOMAML")))
            rows[data, scale] = {
                "fall of A-MAML": str(quotient(many, few)) if many and few else "not run",
                f"spread, {FEW}": str(quotient(other, few)) if other and few else "not run",
            }
    return pd.DataFrame(rows).T.loc[list(DATA)]


def distances(errors: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """How near each of ``scores.ALL`` comes to the published tables, without a free constant.

    Returns:
        A row for each score, the nearest first; for each table by what factor A-MAML's row and all rows are apart, the ``fall`` of
        ours (methods other than MAML), and whether A-MAML's is the nearest of the five rows.
    """
    found = {}
    for number in TABLES:
        table = trained(errors, users, number).dropna(subset="table")
        values = pd.DataFrame({str(score): score.of(table) for score in scores.ALL})
        ours = values.groupby([table[key] for key in KEYS]).mean()  # a column for each score
        logs = np.log(ours.div(theirs(number)["value"].reindex(ours.index), axis=0)).abs()
        by_method = np.exp(logs.groupby(level="method").mean())
        rest = np.log(fall(ours)).loc[lambda falls: falls.index.get_level_values("method") != "MAML"]
        found[f"Table {number}"] = pd.DataFrame({
            "A-MAML": by_method.loc["A-MAML"], "all methods": np.exp(logs.mean()), "fall": np.exp(rest.mean()),
            "A-MAML nearest": by_method.idxmin().eq("A-MAML"),
        })  # fmt: skip
    return pd.concat(found, axis=1).sort_values(("Table 1", "A-MAML"))


def floor(errors: pd.DataFrame, users: pd.DataFrame, number: int) -> float:
    """By what factor ours and a published table stay apart if every column had a normaliser of its own, chosen to fit: no scale
    that is the same for all methods can come nearer."""
    ours = of_methods(errors, users, number, scores.PLAIN[0])["mean"]
    logs = np.log(ours / theirs(number)["value"].reindex(ours.index)).unstack(["data", "shots"])
    return float(np.exp((logs - logs.median()).abs().stack(["data", "shots"]).mean()))


def reading(errors: pd.DataFrame, users: pd.DataFrame, score: Score = scores.NEAREST) -> pd.DataFrame:
    """A-MAML's published rows, ours in a score, and what the user's mean has in it; as text, a column for each of the paper's."""
    rows = {}
    for number in TABLES:
        paper, ours = theirs(number), means(trained(errors, users, number), score)
        for said, table, method, columns in (
            ("A-MAML, published", paper, "A-MAML", ("value", "error")),
            ("A-MAML, ours", ours, "A-MAML", ("mean", "half")),
            ("user mean", ours, "user mean", ("mean", "half")),
        ):
            keys = {column: (*column, method) for column in COLUMNS}
            rows[f"Table {number}", said] = {
                c: "{:.3f} ± {:.3f}".format(*table.loc[k, list(columns)]) if k in table.index else "not run"
                for c, k in keys.items()
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def over_user_mean(users: pd.DataFrame, score: Score = scores.NEAREST) -> pd.DataFrame:
    """Each published number over what predicting the user's mean of the support ratings scores: ``ratio``, and whether its interval
    lies ``above`` 1, by table, data, shots and method; that of the user's mean is taken from our test users."""
    bars = users.drop(columns=["size", "source", "machine"]).assign(method="user mean", query=users["user mean"])
    base, parts = means(bars, score).droplevel("method"), []
    for number in TABLES:
        table = theirs(number)
        mine = base.reindex(table.index.droplevel("method")).set_axis(table.index)
        above = table["value"] - table["error"] > mine["mean"] + mine["half"]
        parts.append(pd.DataFrame({"ratio": table["value"] / mine["mean"], "above": above}).assign(table=number).reset_index())
    return pd.concat(parts, ignore_index=True)
