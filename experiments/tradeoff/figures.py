"""The map of errors and costs, errors over horizon and along training, and what the training runs lead to."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, WIDTH, below, panels, plain_numbers
from .candidates import ADAPTIVE, EXACT, FIRST_ORDER, GROUPS, REPTILE, STORE
from .tables import BFLOAT16, HEUN, IMAML, LIMIT, at, by_batch_medians, followed, main_case, sharpness, spread

LOOKS = dict(
    zip(
        GROUPS,
        (
            (RED, "s"), (BLUE, "o"), (SKY, "X"), (SKY, "o"), (GREY, "P"), (GREY, "d"), (RED, "x"), (ORANGE, "h"), (GREEN, "D"),
            (PURPLE, "^"), (ORANGE, "v"),
        ),
        strict=True,
    )
)  # fmt: skip
TINY = 1e-16  # a logarithmic axis has no zero


def _line(axis: Axes, table: pd.DataFrame, candidate: str, style: str = "-") -> None:
    """A median over seeds with its range."""
    colour, marker = LOOKS[candidate.split(":")[0]]
    axis.plot(table.index, table["median"], color=colour, marker=marker, ms=5, ls=style, lw=1.5, label=candidate)
    axis.fill_between(table.index, table["min"], table["max"], color=colour, alpha=0.15, lw=0)


def cost_map(table: pd.DataFrame) -> Figure:
    """Of ``tables.cost_map``: error against time and against memory; a staircase joins what no other beats."""
    fig, axes = panels(2, height=3.6, sharey=True)
    for axis, cost, label in zip(axes, ("ms", "MiB"), ("CPU time (ms)", "live tensors (MiB)"), strict=True):
        for group in GROUPS:
            rows = table[table["group"].eq(group)]
            colour, marker = LOOKS[group]
            edge = colour if marker == "x" else "white"
            axis.plot(rows[cost], rows["rounded"], marker, color=colour, ms=7, mec=edge, label=group)
        best = table[table[f"best by {cost}"]].sort_values(cost)
        axis.step(best[cost], best["rounded"], where="post", color="gray", lw=1, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel=label)
        plain_numbers(axis.xaxis)
    axes[0].set_ylabel(r"relative error $\|\hat g-g\|/\|g\|$")
    below(fig, *axes[0].get_legend_handles_labels())
    return fig


def horizons(errors: pd.DataFrame) -> Figure:
    """Error against the horizon at the main case's step size, before and after training; of rows of errors."""
    table = by_batch_medians(errors)
    table = table[table["inner_lr"].eq(main_case(errors)[0])]
    styles = {
        f"{STORE}: Store": "-", BFLOAT16: ":", HEUN[1]: "-", HEUN[5]: "--", f"{ADAPTIVE}: rtol=1e-04, discrete": "-",
        IMAML[1, 5]: "-", FIRST_ORDER: "-",
    }  # fmt: skip
    fig, axes = panels(2, height=3.4, sharey=True)
    for axis, updates in zip(axes, (table["updates"].min(), table["updates"].max()), strict=True):
        for candidate, style in styles.items():
            _line(axis, spread(table[table["updates"].eq(updates)], candidate, "T").clip(lower=TINY), candidate, style)
        axis.set(xscale="log", yscale="log", xlabel="horizon $T$", title=f"after {updates} meta updates")
        plain_numbers(axis.xaxis)
    axes[0].set_ylabel("relative error")
    below(fig, *axes[0].get_legend_handles_labels())
    return fig


def along_training(errors: pd.DataFrame, curvature: pd.DataFrame) -> Figure:
    """Error, cosine, and the curvature at the end of the descent, against meta updates; of rows."""
    case = main_case(errors)
    table = by_batch_medians(at(errors, case))
    half = next(name for name in followed(case) if name.startswith("truncated"))
    styles = {HEUN[1]: "-", HEUN[2]: "--", HEUN[5]: ":", half: "-", IMAML[1, 5]: "-", FIRST_ORDER: "-", REPTILE: "-"}
    fig, axes = panels(3, height=3)
    for axis, column in zip(axes, ("error", "cosine"), strict=False):
        for candidate, style in styles.items():
            if (column, candidate) != ("error", REPTILE):  # whose length means nothing
                _line(axis, spread(table, candidate, "updates", column), candidate, style)
        axis.set_xlabel("meta updates")
    axes[0].set(yscale="log", ylabel="relative error")
    axes[1].set(ylabel="cosine", ylim=(None, 1.03))
    for m, style in ((1, "-"), (2, "--"), (5, ":")):
        axes[2].axhline(LIMIT / m, color="gray", lw=1, ls=style)
        place = {"textcoords": "offset points", "xytext": (2, 3), "fontsize": 9, "color": GREY}
        axes[2].annotate(f"m = {m}", (0, LIMIT / m), **place)
    sharp = sharpness(curvature, case)
    axes[2].plot(sharp.index, sharp["median"], color=GREY, marker="o", ms=5, lw=1.5)
    axes[2].fill_between(sharp.index, sharp["min"], sharp["max"], color=GREY, alpha=0.15, lw=0)
    axes[2].set(xlabel="meta updates", ylabel=r"$\alpha$ × largest eigenvalue of $H(u_K)$", ylim=(0, 2.2))
    below(fig, *axes[1].get_legend_handles_labels())
    return fig


def accuracy(results: pd.DataFrame) -> Figure:
    """Of ``tables.against_exact``: each run's difference to the exact one, with its interval and the range over seeds."""
    others = results.drop(index=EXACT).dropna(subset=["difference"]).iloc[::-1]
    fig, axis = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    positions = range(len(others))
    low, high = others["difference"] - others["difference ±"], others["difference"] + others["difference ±"]
    axis.hlines(positions, others["low"], others["high"], color=BLUE, lw=5, alpha=0.5)
    axis.hlines(positions, low, high, color=BLUE, lw=1)
    axis.plot(others["difference"], positions, "o", color=BLUE)
    axis.axvline(0, color="gray", lw=1)
    axis.set_yticks(positions, others.index)
    axis.set_xscale("symlog", linthresh=0.01)
    axis.set_xlabel("held-out RMSE minus the exact run's (sd; linear up to 0.01)")
    return fig
