"""The published figure beside what the recipe gives."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..common.plots import COLOURS, MARKERS, TITLES, band, dashes, legend, say_if_empty
from .settings import FAMILIES, METHODS, SHOTS, UNTRAINED
from .tables import VARIANTS, curves, theirs

PANELS = [(family, shots) for family in FAMILIES for shots in SHOTS]


def _titled(axes, top: float = 1.5) -> None:
    for column, (family, shots) in enumerate(PANELS):
        axes[0, column].set_title(f"{TITLES[family]}, {shots} shots", fontsize=10)
        axes[-1, column].set_xlabel("Adam epochs")
    axes[0, 0].set(ylim=(0, top))


def panels(found: pd.DataFrame) -> Figure:
    """Support errors under the recipe: above A-MAML and the untrained network, below the other methods; markers are published."""
    fig, axes = plt.subplots(2, 4, figsize=(13, 6.4), layout="constrained", sharex=True, sharey=True)
    figure = theirs()
    for column, (family, shots) in enumerate(PANELS):
        here = found[found["family"].eq(family) & found["shots"].eq(shots) & found["set"].eq("support")]
        for axis, names in ((axes[0, column], ("A-MAML", UNTRAINED)), (axes[1, column], (*METHODS[1:], UNTRAINED))):
            for name in names:
                band(axis, here[here["method"].eq(name)], COLOURS[name], ls=dashes(name))
                dots = figure[figure["family"].eq(family) & figure["shots"].eq(shots) & figure["method"].eq(name)]
                axis.plot(dots["step"], dots["published"], MARKERS[name], color=COLOURS[name], ms=6, mec="white", mew=0.5)
            say_if_empty(axis, here)
    _titled(axes)
    axes[0, 0].set_ylabel("error on the support set: A-MAML")
    axes[1, 0].set_ylabel("the other methods")
    legend(fig, (*METHODS, UNTRAINED))
    return fig


def variants(table: pd.DataFrame, method: str = "A-MAML") -> Figure:
    """One method's support and held-out errors under the recipe and with one thing changed at a time."""
    fig, axes = plt.subplots(2, 4, figsize=(13, 6.4), layout="constrained", sharex=True, sharey=True)
    colours = dict(zip(VARIANTS, (COLOURS["A-MAML"], COLOURS["iMAML"], COLOURS["FOMAML"], COLOURS["Reptile"]), strict=True))
    for variant, colour in colours.items():
        mine = curves(table, variant)
        for column, (family, shots) in enumerate(PANELS):
            here = mine[mine["family"].eq(family) & mine["shots"].eq(shots)]
            for axis, of in zip(axes[:, column], ("support", "held-out"), strict=True):
                band(axis, here[here["method"].eq(method) & here["set"].eq(of)], colour, label=variant)
                if variant == "the recipe":
                    band(
                        axis,
                        here[here["method"].eq(UNTRAINED) & here["set"].eq(of)],
                        COLOURS[UNTRAINED],
                        ls=dashes(UNTRAINED),
                        label=UNTRAINED,
                    )
                    figure = theirs()
                    dots = figure[figure["family"].eq(family) & figure["shots"].eq(shots) & figure["method"].eq(method)]
                    axis.plot(dots["step"], dots["published"], "o", color=colour, ms=6, mec="white", mew=0.5)
    _titled(axes)
    for axis, of in zip(axes[:, 0], ("support", "held-out"), strict=True):
        axis.set_ylabel(f"{method}, {of} points")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return fig
