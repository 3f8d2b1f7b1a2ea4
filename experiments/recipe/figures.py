"""The published figure beside what the recipe gives."""

from __future__ import annotations

from itertools import product

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.plots import COLOURS, MARKERS, SOLVERS, TITLES, band, below, dashes, legend, panels, say_if_empty
from .settings import FAMILIES, METHODS, RATES, SHOTS, UNTRAINED
from .tables import VARIANTS, theirs
from .tables import curves as over_training


def _grid(left: str, right: str, numbers: tuple[int, ...] = SHOTS) -> tuple[Figure, list[tuple[str, int, Axes, Axes]]]:
    """A row of two axes for each family and number of shots, left and right titled."""
    places = list(product(FAMILIES, numbers))
    fig, axes = panels(2 * len(places), height=2.3, sharex=True, sharey=True)
    rows = [(*panel, *axes[2 * place : 2 * place + 2]) for place, panel in enumerate(places)]
    for family, shots, *row in rows:
        for axis, what in zip(row, (left, right), strict=True):
            axis.set_title(f"{TITLES[family]}, {shots} shots: {what}")
        row[0].set_ylabel("nRMSE")
    for axis in axes[-2:]:
        axis.set_xlabel("Adam epochs")
    axes[0].set_ylim(0, 1.5)
    return fig, rows


def curves(found: pd.DataFrame) -> Figure:
    """Support errors under the recipe: left A-MAML and the untrained network, right the other methods; markers are published."""
    fig, rows = _grid("A-MAML", "the others")
    figure = theirs()
    for family, shots, *row in rows:
        here = found[found["family"].eq(family) & found["shots"].eq(shots) & found["set"].eq("support")]
        for axis, names in zip(row, (("A-MAML", UNTRAINED), (*METHODS[1:], UNTRAINED)), strict=True):
            for name in names:
                band(axis, here[here["method"].eq(name)], COLOURS[name], ls=dashes(name))
                dots = figure[figure["family"].eq(family) & figure["shots"].eq(shots) & figure["method"].eq(name)]
                axis.plot(dots["step"], dots["published"], MARKERS[name], color=COLOURS[name], ms=6, mec="white", mew=0.5)
            say_if_empty(axis, here)
    legend(fig, (*METHODS, UNTRAINED))
    return fig


def baselines(table: pd.DataFrame) -> Figure:
    """The published baselines beside what two rates of the test's Adam give: the range and the mean of our six methods under the
    recipe, and the untrained network."""
    places = list(product(FAMILIES, SHOTS))
    fig, axes = panels(len(places), height=2.6, sharex=True, sharey=True)
    figure, shades = theirs(), (SOLVERS["Euler"], SOLVERS["Dopri5"])
    for axis, (family, shots) in zip(axes, places, strict=True):
        for rate, colour in zip(RATES, shades, strict=True):
            here = over_training(table, rate=rate, family=family, shots=shots, set="support")
            ours = here[here["method"].ne(UNTRAINED)].groupby("step")["mean"].agg(["min", "mean", "max"])
            axis.fill_between(ours.index, ours["min"], ours["max"], color=colour, alpha=0.35, lw=0)
            axis.plot(ours.index, ours["mean"], color=colour, lw=1.5, label=f"ours, rate {rate:g}")
            plain = here[here["method"].eq(UNTRAINED)].sort_values("step")
            axis.plot(plain["step"], plain["mean"], color=colour, ls="--", lw=1.5, label=f"untrained, rate {rate:g}")
        for name in METHODS[1:]:
            dots = figure[figure["family"].eq(family) & figure["shots"].eq(shots) & figure["method"].eq(name)]
            axis.plot(dots["step"], dots["published"], MARKERS[name], color=COLOURS[name], ms=6, mec="white", mew=0.5, label=name)
        axis.set(title=f"{TITLES[family]}, {shots} shots", ylim=(0, 1.5))
    for axis in axes[::2]:
        axis.set_ylabel("nRMSE, support points")
    for axis in axes[-2:]:
        axis.set_xlabel("Adam epochs")
    below(fig, *axes[0].get_legend_handles_labels())
    return fig


def variants(table: pd.DataFrame, method: str = "A-MAML") -> Figure:
    """One method's support and held-out errors under the recipe and with one thing changed at a time, with the fewer shots."""
    fig, rows = _grid("support", "held-out", SHOTS[:1])
    shades = dict(zip(VARIANTS, (COLOURS[method], *seaborn.color_palette("flare", len(VARIANTS) - 1)), strict=True))
    figure = theirs()
    for variant, colour in shades.items():
        mine = over_training(table, variant)
        for family, shots, *row in rows:
            here = mine[mine["family"].eq(family) & mine["shots"].eq(shots)]
            for axis, of in zip(row, ("support", "held-out"), strict=True):
                band(axis, here[here["method"].eq(method) & here["set"].eq(of)], colour, label=variant)
                if variant == "the recipe":
                    plain = here[here["method"].eq(UNTRAINED) & here["set"].eq(of)]
                    band(axis, plain, COLOURS[UNTRAINED], ls=dashes(UNTRAINED), label=UNTRAINED)
                    dots = figure[figure["family"].eq(family) & figure["shots"].eq(shots) & figure["method"].eq(method)]
                    axis.plot(dots["step"], dots["published"], "o", color=colour, ms=6, mec="white", mew=0.5)
    handles = {label: handle for *_, axis, _ in rows for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    below(fig, [*handles.values()], [*handles])  # not every change was tried for every family
    return fig
