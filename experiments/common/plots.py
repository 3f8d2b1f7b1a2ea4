"""The look of the figures: one style, and one colour for each method in every chapter."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

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
COLOURS = {"A-MAML": BLUE, "MAML": RED, "iMAML": GREEN, "FOMAML": PURPLE, "Reptile": ORANGE}
MARKERS = {"A-MAML": "o", "MAML": "s", "iMAML": "D", "FOMAML": "^", "Reptile": "v"}


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
