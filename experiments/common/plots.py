"""The look of the figures: one style, and one colour for each method in every chapter."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: distinguishable with every common form of colour blindness.
BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
COLOURS = {
    "A-MAML": BLUE, "MAML": RED, "MAML-1": SKY, "iMAML": GREEN, "FOMAML": PURPLE, "Reptile": ORANGE, "untrained": BLACK,
}  # fmt: skip
MARKERS = {"A-MAML": "o", "MAML": "s", "MAML-1": "P", "iMAML": "D", "FOMAML": "^", "Reptile": "v", "untrained": "x"}
TITLES = {"cosmixture": "CosMixture", "alpine": "Alpine"}  # of functions, in titles


def use_style() -> None:
    """Set matplotlib's defaults for all figures of a notebook."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "lines.linewidth": 2,
            "legend.frameon": False,
        }
    )


def adaptation_curves(axes: Axes, table: pd.DataFrame, column: str, methods: Iterable[str] | None = None) -> None:
    """The mean over tasks of ``column`` against the number of inner steps, with 95 % intervals, one line for each method.

    Args:
        axes: to draw in.
        table: tidy, with the columns ``method``, ``task``, ``step`` and ``column``, as the experiments give it.
        methods: which, in this order; all by default.
    """
    for method in methods or table["method"].unique():
        groups = table[table["method"] == method].groupby("step")[column]
        mean, half = groups.mean(), 1.96 * groups.std() / groups.count() ** 0.5
        colour = COLOURS[method]
        axes.plot(mean.index, mean, color=colour, marker=MARKERS[method], markersize=4, label=method)
        axes.fill_between(mean.index, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def band(axes: Axes, rows: pd.DataFrame, colour: object, **look: object) -> None:
    """A curve, ``mean`` against ``step``, and its interval, ``half`` to either side, where it has one."""
    rows = rows.sort_values("step")
    axes.plot(rows["step"], rows["mean"], color=colour, lw=1.5, **look)
    axes.fill_between(rows["step"], rows["mean"] - rows["half"], rows["mean"] + rows["half"], color=colour, alpha=0.12, lw=0)


def dashes(method: str) -> str:
    """The network that was not trained is dashed."""
    return "--" if method == "untrained" else "-"


def legend(fig: Figure, methods: Iterable[str]) -> None:
    """All methods below the figure, whether or not each has a record."""
    lines = [plt.Line2D([], [], color=COLOURS[n], marker=MARKERS[n], ls=dashes(n), label=n) for n in methods]
    fig.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=9)


def say_if_empty(axes: Axes, rows: pd.DataFrame) -> None:
    """Say in the axes that there is nothing to draw."""
    if rows.empty:
        axes.text(0.5, 0.5, "no record", transform=axes.transAxes, ha="center", color="gray")
