"""Tasks, training histories, and accuracies against the number of inner steps."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from amaml_core.tasks import Tasks

from ..common.plots import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    adaptation_curves,
    below,
    panels,
    say_if_empty,
)
from .settings import FIRST_ROWS, ROWS
from .tables import accuracy, curve, lost, own_steps, percent
from .tables import learning as curves_of_training

LOOKS = dict(zip(ROWS, zip((RED, PURPLE, ORANGE, GREEN, GREY, BLUE, SKY), "s^vDPoX", strict=True), strict=True))


def tasks(some: Tasks, way: int) -> Figure:
    """A strip for each task: its support set with one drawing of each class, and one query drawing of each."""
    fig, axes = plt.subplots(len(some), 1, figsize=(WIDTH, 1.2 * len(some)), layout="constrained", squeeze=False)
    for row, axis in enumerate(axes.flat):
        query = some.query_x[row].unflatten(0, (way, -1))[:, 0]  # one drawing of each class: (N, 1, H, W)
        strip = torch.cat([some.support_x[row], torch.zeros_like(query[:1]), query])[:, 0]  # (2 N + 1, H, W)
        axis.imshow(1 - torch.cat(list(strip), dim=1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
    title = "support: one drawing of each class" + " " * 30 + "query: which is which?"
    axes[0, 0].set_title(title)
    return fig


def predictions(some: Tasks, answers: Mapping[str, torch.Tensor], way: int, shown: int = 8) -> Figure:
    """A line of images for each task: its support set, and some query images with what each row takes them for below.

    Args:
        some: B tasks.
        answers: of :func:`run.answers`.
        shown: how many query images of a task: those on which most rows err are taken first.
    """
    fig, axes = plt.subplots(len(some), way + 1 + shown, figsize=(WIDTH, 1.15 * len(some)), layout="constrained", squeeze=False)
    for b, line in enumerate(axes):
        for axis in line:
            axis.set_axis_off()
        truth, said = some.query_y[b].tolist(), torch.stack([found[b] for found in answers.values()])  # (rows, Q)
        wrong = (said != some.query_y[b]).sum(0)  # (Q,)
        chosen = wrong.argsort(descending=True, stable=True)[:shown].sort().values
        for axis, x, y in zip(line[:way], some.support_x[b], some.support_y[b].tolist(), strict=True):
            axis.imshow(1 - x[0].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{y + 1}")
        words = {"va": "top", "fontsize": "x-small"}
        heights = [-0.08 - 0.26 * n for n in range(len(answers))]
        for name, height in zip(answers, heights, strict=True):
            line[way].text(1.1, height, name, ha="right", transform=line[way].transAxes, **words)
        for axis, q in zip(line[way + 1 :], chosen.tolist(), strict=True):
            axis.imshow(1 - some.query_x[b, q, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{truth[q] + 1}")
            for answer, height in zip(said[:, q].tolist(), heights, strict=True):
                look = {"color": GREY} if answer == truth[q] else {"color": RED, "weight": "bold"}
                axis.text(0.5, height, f"{answer + 1}", ha="center", transform=axis.transAxes, **words, **look)
    return fig


def first_look(table: pd.DataFrame, history: pd.DataFrame, way: int) -> Figure:
    """The query loss during training, smoothed, and the accuracy on new characters with intervals over tasks."""
    fig, (left, right) = panels(2, height=3.4)
    for row in FIRST_ROWS:
        mine = history[history["row"].eq(row)].set_index("meta_step")["query_loss"]
        left.plot(mine.rolling(25, min_periods=1).mean(), color=COLOURS[row], label=row, lw=1.5)
    left.set(xlabel="meta update", ylabel="query loss (nats), mean of 25", ylim=(0, None))
    adaptation_curves(right, percent(table).rename(columns={"row": "method"}), "accuracy", FIRST_ROWS)
    right.axhline(100 / way, color=GREY, lw=1, ls="--", label="guessing")
    right.set(xlabel="inner steps at test time", ylabel="accuracy on new characters (%)", ylim=(0, 100))
    below(fig, *right.get_legend_handles_labels())
    return fig


def learning(tables: Mapping[str, pd.DataFrame], costs: Mapping[str, pd.Series]) -> Figure:
    """Learning curves on validation tasks, over updates and over what they cost; a line of charts for each data set.

    Args:
        costs: CPU seconds of an update by row, of :func:`beside.cost`.
    """
    fig, axes = panels(2 * len(tables), height=3, sharey="row")
    for (name, table), left, right in zip(tables.items(), axes[::2], axes[1::2], strict=True):
        wide = curves_of_training(table)
        for row in (row for row in ROWS if row in wide):
            points, (colour, marker) = wide[row].dropna(), LOOKS[row]
            left.plot(points, color=colour, marker=marker, ms=4, lw=1.5, label=row)
            if row in costs[name]:
                right.plot(points.index * costs[name][row] / 60, points, color=colour, marker=marker, ms=4, lw=1.5)
        say_if_empty(left, wide)
        say_if_empty(right, costs[name])
        left.set(title=name, xlabel="meta updates", ylabel="accuracy (%)")
        right.set(title=name, xlabel="CPU minutes on one core")
    handles = [plt.Line2D([], [], color=LOOKS[row][0], marker=LOOKS[row][1], label=row) for row in ROWS]
    below(fig, handles, list(ROWS))
    return fig


def reduced(table: pd.DataFrame) -> Figure:
    """All rows at the reduced size: accuracy against inner steps, and with transduction (filled) and without (hollow)."""
    fig, (left, right) = panels(2, height=3.8)
    wide, own, gone = curve(table), own_steps(table), lost("reduced")
    for y, row in enumerate(ROWS):
        colour, marker = LOOKS[row]
        if row not in wide:
            right.text(60, y, "diverged" if row in gone else "not run", va="center")
            continue
        mine = wide[row].dropna()
        left.plot(mine, color=colour, marker=marker, ms=4, label=row, lw=1.5)
        left.plot(own[row], mine[own[row]], "o", mfc="none", mec=colour, ms=12)
        for alone, fill in ((False, colour), (True, "white")):
            found = accuracy(table, row, alone)
            right.errorbar(found.mean, y + (-0.12 if alone else 0.12), xerr=found.half_width, color=colour, marker=marker, mfc=fill)
    left.axhline(20, color=GREY, lw=1, ls="--")
    left.set(
        xscale="symlog", xlabel="inner steps at test time", ylabel="accuracy on new characters (%)", xlim=(0, 60), ylim=(0, 100)
    )
    if own:
        below(fig, *left.get_legend_handles_labels())
    right.set(yticks=range(len(ROWS)), yticklabels=ROWS, xlabel="accuracy (%)")
    right.invert_yaxis()
    return fig
