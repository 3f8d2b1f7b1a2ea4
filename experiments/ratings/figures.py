"""The data as tasks, one user's predictions, adaptation curves, and ours beside the published tables."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amaml_core.samplers import RatingSplits

from ..common import scores
from ..common.plots import BLUE, COLOURS, GREY, MARKERS, adaptation_curves, below, legend, panels, plain_numbers, say_if_empty
from ..common.scores import Score
from .first import of_one_user
from .settings import DATA, METHODS, size_of
from .tables import COLUMNS, means, theirs, trained

RMSE = "RMSE (standard deviations)"


def matrix(splits: RatingSplits, rows: int = 60) -> Figure:
    """The first training users' ratings, and a histogram of all training ratings; both on the data's own scale."""
    fig, (left, right) = panels(2, height=3, width_ratios=(3, 2))
    image = left.imshow(splits.undo(splits.train[:rows]), aspect="auto", cmap="PuOr", interpolation="nearest")
    left.set(xlabel="item, most rated first", ylabel="user")
    left.grid(False)
    fig.colorbar(image, ax=left, label="rating")
    known = splits.train[splits.train.isfinite()].double()
    right.hist(splits.undo(known).numpy(), bins=40, color=BLUE)
    right.set(xlabel="rating", ylabel="number of training ratings")
    return fig


def one_user(predictions: pd.DataFrame) -> Figure:
    """One user's ratings and two methods' predictions of them: support items above, query items below, a column for each method."""
    found, errors = dict(list(predictions.groupby(["method", "set"]))), of_one_user(predictions)
    names, counts = list(predictions["method"].unique()), predictions.groupby("set")["item"].nunique()
    rows = ("support", "query")
    fig, axes = panels(4, height=3.1, sharex=True, sharey="row", height_ratios=[counts[part] + 3 for part in rows])
    for axis, (part, name) in zip(axes, ((part, name) for part in rows for name in names), strict=True):
        mine = found[name, part].sort_values(["rating", "item"], ignore_index=True)
        axis.hlines(mine.index, mine["rating"], mine["after"], color=COLOURS[name], lw=2.5, alpha=0.5, label="error after")
        axis.plot(mine["before"], mine.index, "o", mfc="none", mec=GREY, ms=5, label="predicted before adaptation")
        axis.plot(mine["after"], mine.index, "o", color=COLOURS[name], ms=5, label="predicted after")
        axis.plot(mine["rating"], mine.index, "|", color=GREY, ms=11, mew=2.5, label="the user's rating")
        axis.set(yticks=mine.index, yticklabels=mine["item"], ylim=(-0.7, len(mine) - 0.3))
        seen = "seen" if part == "support" else "unseen"
        axis.set_title("{}, {}: RMSE {before:.1f} → {after:.1f}".format(name, seen, **errors.loc[name, part]))
    for axis in axes[::2]:
        axis.set_ylabel("item")
    for axis in axes[-2:]:
        axis.set_xlabel("rating")
    marks = axes[0].get_legend_handles_labels()
    below(fig, [marks[0][i] for i in (3, 1, 2, 0)], [marks[1][i] for i in (3, 1, 2, 0)])
    return fig


def first_look(errors: pd.DataFrame, users: pd.DataFrame, size: str) -> Figure:
    """The first comparison: errors against inner steps on query and on support items, with the best bar."""
    fig, axes = panels(2, height=3.2, sharey=True)
    steps = size_of(size).test_steps
    for axis, part, title in zip(
        axes, ("query", "support"), ("Ratings not seen (query)", "Ratings adapted to (support)"), strict=True
    ):
        adaptation_curves(axis, errors, part, METHODS)
        axis.set(xscale="symlog", xlabel="inner steps", title=title)
        axis.set_xticks(steps, [str(k) for k in steps], minor=False)
        axis.axhline(users["item means + ridge"].mean(), color=GREY, lw=1, ls="--", label="item means + ridge")
    axes[0].set_ylabel(RMSE)
    below(fig, *axes[1].get_legend_handles_labels())
    return fig


def curves(errors: pd.DataFrame, shots: str = "10–15", number: int = 1) -> Figure:
    """Errors of a table against inner steps: query items left, support items right, a row for each data set."""
    fig, axes = panels(2 * len(DATA), sharex=True, sharey="col")
    for place, data in enumerate(DATA):
        mine = errors[errors["table"].eq(number) & errors["data"].eq(data) & errors["shots"].eq(shots)]
        for axis, part in zip(axes[2 * place :], ("query", "support"), strict=False):
            adaptation_curves(axis, mine, part, [m for m in METHODS if m in set(mine["method"])])
            say_if_empty(axis, mine)
            axis.set(xscale="symlog", title=f"{data}, {part}")
        axes[2 * place].set_ylabel("RMSE (sd)")
    for axis in axes[-2:]:
        axis.set_xlabel("inner steps")
    legend(fig, METHODS)
    return fig


def table(errors: pd.DataFrame, users: pd.DataFrame, number: int = 1) -> Figure:
    """A published table, hollow, and ours, filled: the RMSE, and a bar from the smallest to the largest of the plain scores."""
    rows = trained(errors, users, number)
    plain = {str(score): means(rows, score)["mean"] for score in scores.PLAIN}
    fig = _panels(rows, Score("none"), "item means + ridge", number)
    ends = pd.DataFrame(plain).agg(["min", "max"], axis=1)
    for axis, column in zip(fig.axes, COLUMNS, strict=True):
        for x, method in enumerate(METHODS):
            if (*column, method) in ends.index:
                axis.plot([x, x], ends.loc[(*column, method)], color="0.75", lw=6, zorder=0)
    return fig


def reading(errors: pd.DataFrame, users: pd.DataFrame, number: int = 1, score: Score = scores.NEAREST) -> Figure:
    """A published table, hollow, and ours in a score, filled, with the score of the user's mean."""
    return _panels(trained(errors, users, number), score, "user mean", number)


def _panels(rows: pd.DataFrame, score: Score, bar: str, number: int) -> Figure:
    paper, ours = theirs(number), means(rows, score)
    fig, axes = panels(len(COLUMNS), height=2.3, sharex=True, sharey=True)
    for axis, (data, shots) in zip(axes, COLUMNS, strict=True):
        for x, method in enumerate(METHODS):
            key = (data, shots, method)
            _mark(axis, x, method, *paper.loc[key, ["value", "error"]], mfc="white")
            if key in ours.index:
                _mark(axis, x, method, *ours.loc[key, ["mean", "half"]])
        if (data, shots, bar) in ours.index:
            axis.axhline(ours.loc[(data, shots, bar), "mean"], color=GREY, lw=1, ls="--")
        axis.set(yscale="log", title=f"{data}, {shots} shots", xticks=range(len(METHODS)))
        axis.set_xticklabels(METHODS)
        plain_numbers(axis.yaxis)
    for axis in axes[::2]:
        axis.set_ylabel("error")
    return fig


def _mark(axis: Axes, x: int, method: str, mean: float, half: float, **more: object) -> None:
    # On a logarithmic axis an interval that reaches to zero has no lower end to draw.
    axis.errorbar(x, mean, [[min(half, 0.9 * mean)], [half]], color=COLOURS[method], marker=MARKERS[method], lw=1, **more)
