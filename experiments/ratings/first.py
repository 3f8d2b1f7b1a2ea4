"""Tables of the first look: the split, one user's predictions, the scales of the ratings, and the first comparison."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from amaml_core import metrics
from amaml_core.samplers import RatingSplits

from .settings import BARS, METHODS, PICTURED, size_of
from .tables import theirs


def parts(splits: RatingSplits) -> pd.DataFrame:
    """How many users each part was allotted, left out and kept."""
    return pd.DataFrame({part: count._asdict() for part, count in splits.counts.items()})


def in_two_parts(splits: RatingSplits) -> list[int]:
    """How many users training and validation, training and test, validation and test have in common."""
    return [len(np.intersect1d(splits.users[a], splits.users[b])) for a, b in combinations(("train", "validation", "test"), 2)]


def over_scales(errors: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """Scales of the test users' query ratings, and A-MAML's error after its steps over them; all as means over test users."""
    scales = {"standard deviation of the training ratings": 1.0}
    names = {"standard deviation": "standard deviation", "range": "range", "norm": "norm (root mean square)"}
    scales |= {f"{said} of the user's query ratings": users[f"query {name}"].mean() for name, said in names.items()}
    error, scale = own_error(errors)["query"].mean(), pd.Series(scales)
    return pd.DataFrame({"scale": scale, "A-MAML's error / scale": error / scale})


def own_error(errors: pd.DataFrame, method: str = "A-MAML") -> pd.DataFrame:
    """A method's rows after as many steps as it was trained for."""
    return errors[errors["method"].eq(method) & errors["step"].eq(errors["trained"])]


def over_published(errors: pd.DataFrame) -> float:
    """A-MAML's mean RMSE over its number in Table 1, of one data set and number of shots."""
    mine = own_error(errors)
    return float(mine["query"].mean() / theirs(1).loc[(mine["data"].iloc[0], mine["shots"].iloc[0], "A-MAML"), "value"])


def changes(predictions: pd.DataFrame) -> pd.DataFrame:
    """By how much adaptation changes each user's RMSE on the query items, on the data's own scale; a column for each method."""
    rmse = _rmse(predictions[predictions["set"].eq("query")], ["user", "method"])
    return (rmse["after"] - rmse["before"]).unstack("method")


def typical(predictions: pd.DataFrame, method: str = PICTURED[0]) -> pd.DataFrame:
    """The predictions for one test user: the one whose error on the query items a method's adaptation changes by the median."""
    order = changes(predictions)[method].sort_values(kind="stable").index
    return predictions[predictions["user"].eq(order[(len(order) - 1) // 2])]


def of_one_user(predictions: pd.DataFrame) -> pd.DataFrame:
    """The RMSE of one user's predictions ``before`` and ``after`` adaptation, by method and set, on the data's own scale."""
    return _rmse(predictions, ["method", "set"])


def _rmse(predictions: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    squares = predictions[["before", "after"]].sub(predictions["rating"], axis=0).pow(2)
    return squares.groupby([predictions[name] for name in by], sort=False).mean().pow(0.5)


def same_guess(predictions: pd.DataFrame) -> bool:
    """Whether each item has one prediction for all users before adaptation, and not after it."""
    widest = predictions.groupby(["method", "item"])[["before", "after"]].agg(lambda v: v.max() - v.min()).groupby("method").max()
    return bool(widest["before"].lt(1e-4).all() and widest["after"].gt(1e-2).all())


def of_bars(users: pd.DataFrame) -> pd.DataFrame:
    """The mean RMSE of each bar with its interval over test users."""
    table = pd.DataFrame({bar: metrics.interval(users[bar]) for bar in BARS}, index=["RMSE", "± 95 %", "test users"]).T
    return table.round(3).astype({"test users": int})


def summary(errors: pd.DataFrame, users: pd.DataFrame, size: str) -> pd.DataFrame:
    """The first comparison: for each method its steps, the RMSE after these, after the long methods' and before the first, and the
    paper's number."""
    long, paper, rows = size_of(size).inner_steps, theirs(1), {}
    for method in METHODS:
        mine = errors[errors["method"].eq(method)]
        own = mine["trained"].iloc[0]
        at = {k: metrics.interval(mine.loc[mine["step"].eq(k), "query"]) for k in (0, own, long)}
        published_one = paper.loc[(mine["data"].iloc[0], mine["shots"].iloc[0], method)]
        rows[method] = {
            "inner steps K": own, "RMSE after K": str(at[own]), f"RMSE after {long}": str(at[long]),
            "RMSE after 0": f"{at[0].mean:.3f}",
            "paper's nRMSE": "{value:.3f} ± {error:.3f}".format(**published_one),
        }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis(f"{len(users)} test users, {users['source'].iloc[0]}")
