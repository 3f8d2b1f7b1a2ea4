"""Curves of fine-tuning, distances to the published figure, predictions on a grid, and horizons."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..common.plots import COLOURS, MARKERS, TITLES, band, dashes, legend, say_if_empty
from .settings import FAMILIES, UNTRAINED, VARIANTS
from .tables import NAMES, theirs

FUNCTIONS = [(family, variant) for family in FAMILIES for variant in VARIANTS]


def _look(name: str) -> dict:
    return {"colour": COLOURS[name], "ls": dashes(name)}


def surfaces(instances: pd.DataFrame) -> Figure:
    """One function of each family and variant over its two inputs."""
    fig, axes = plt.subplots(1, len(FUNCTIONS), figsize=(13, 3.6), subplot_kw={"projection": "3d"}, layout="constrained")
    for axis, (family, variant) in zip(axes, FUNCTIONS, strict=True):
        one = instances[instances["family"].eq(family) & instances["variant"].eq(variant)]
        x1, x2, value = (one[name].to_numpy().reshape(2 * [one["x1"].nunique()]) for name in ("x1", "x2", "value"))
        axis.plot_surface(x1, x2, value, cmap="viridis", linewidth=0, rcount=len(x1), ccount=len(x1))
        axis.set(xlabel="$x_1$", ylabel="$x_2$", title=f"{TITLES[family]}, {variant}")
        axis.locator_params(nbins=4)
        axis.tick_params(labelsize=7)
    return fig


def panels(found: pd.DataFrame, variant: str, d: int = 2) -> Figure:
    """Errors against Adam epochs: held-out above, support below, and the published values as markers on both."""
    mine = found[found["variant"].eq(variant) & found["d"].eq(d) & found["protocol"].eq("adam")]
    figure = theirs()
    shots = list(figure[["family", "shots"]].drop_duplicates().itertuples(index=False, name=None))
    fig, axes = plt.subplots(2, len(shots), figsize=(13, 6.4), layout="constrained", sharex=True, sharey=True)
    for column, (family, points) in enumerate(shots):
        dots = figure[figure["family"].eq(family) & figure["shots"].eq(points)]
        for axis, label in zip(axes[:, column], ("held-out", "support"), strict=True):
            here = mine[mine["family"].eq(family) & mine["shots"].eq(points) & mine["set"].eq(label)]
            for name in NAMES:
                band(axis, here[here["method"].eq(name)], **_look(name))
            for name, one in dots.groupby("method"):
                look = {"color": COLOURS[name], "mec": "white", "mew": 0.5, "clip_on": False}
                axis.plot(one["step"], one["published"], MARKERS[name], ms=6, **look)
            say_if_empty(axis, here)
        axes[0, column].set_title(f"{TITLES[family]}, {points} shots", fontsize=10)
        axes[1, column].set_xlabel("Adam epochs")
    axes[0, 0].set(ylim=(0, 1.5), ylabel="nRMSE, held-out points")
    axes[1, 0].set_ylabel("nRMSE, support points")
    legend(fig, NAMES)
    return fig


def distances(trained: pd.DataFrame, untrained: pd.DataFrame) -> Figure:
    """Two tables of :func:`experiments.synthetic.tables.readings` as heat maps."""
    fig, axes = plt.subplots(1, 2, figsize=(13, 4), layout="constrained")
    titles = ("six methods", "untrained network for all six")
    for axis, wide, title in zip(axes, (trained, untrained), titles, strict=True):
        axis.set_title(title)
        axis.grid(False)
        if wide.empty:
            axis.text(0.5, 0.5, "not enough records yet", ha="center")
            continue
        image = axis.imshow(wide, cmap="viridis", vmin=0, vmax=0.7, aspect="auto")
        for (row, column), value in np.ndenumerate(wide.to_numpy()):
            if np.isfinite(value):
                colour = "white" if value < 0.4 else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
        axis.set_xticks(range(wide.shape[1]), [f"{TITLES[family]}\n{shots} shots" for family, shots in wide.columns])
        axis.set_yticks(range(len(wide)), [f"{label}, {variant}, d = {d}" for label, variant, d in wide.index])
        fig.colorbar(image, ax=axis, label="root mean square distance")
    return fig


def own(found: pd.DataFrame, trained_steps: int = 50) -> Figure:
    """Held-out errors of two inputs and 50 shots against steps of each method's own inner loop."""
    mine = found[found["protocol"].eq("own") & found["set"].eq("held-out") & found["d"].eq(2) & found["shots"].eq(50)]
    fig, axes = plt.subplots(1, len(FUNCTIONS), figsize=(13, 3.6), layout="constrained", sharex=True)
    for axis, (family, variant) in zip(axes, FUNCTIONS, strict=True):
        here = mine[mine["family"].eq(family) & mine["variant"].eq(variant)]
        for name in NAMES:
            band(axis, here[here["method"].eq(name)], **_look(name), marker=MARKERS[name], ms=4)
        axis.axvline(trained_steps, color="gray", lw=1, ls=":")
        axis.set(xscale="symlog", xlabel="own inner steps", title=f"{TITLES[family]}, {variant}", ylim=(0, None))
        say_if_empty(axis, here)
    axes[0].set_ylabel("nRMSE, held-out points")
    legend(fig, NAMES)
    return fig


def drawn(grids: pd.DataFrame, points: pd.DataFrame, methods: tuple[str, ...] = ("A-MAML", UNTRAINED)) -> Figure:
    """The true function with its support points, and predictions after some epochs: a row for each function and method."""
    have = set(grids[["family", "variant", "method"]].itertuples(index=False, name=None))
    order = [(*function, method) for function in FUNCTIONS for method in methods if (*function, method) in have]
    shown = ["truth", *(name for name in grids if name.startswith("after "))]
    size, shared = (2.5 * len(shown), 2.4 * len(order)), {"sharex": "row", "sharey": "row"}
    fig, axes = plt.subplots(len(order), len(shown), figsize=size, layout="constrained", squeeze=False, **shared)
    for row, (family, variant, method) in zip(axes, order, strict=True):
        function = points["family"].eq(family) & points["variant"].eq(variant)
        grid = grids[grids["family"].eq(family) & grids["variant"].eq(variant) & grids["method"].eq(method)]
        scale = {"vmin": grid["truth"].min(), "vmax": grid["truth"].max(), "extent": 2 * [grid["x1"].min(), grid["x1"].max()]}
        for axis, name in zip(row, shown, strict=True):
            values = grid.pivot(index="x2", columns="x1", values=name)
            axis.imshow(values, origin="lower", cmap="viridis", aspect="auto", **scale)
            axis.set_title(name if name == "truth" else f"{name} epochs", fontsize=9)
            axis.grid(False)
        row[0].plot(points.loc[function, "x1"], points.loc[function, "x2"], ".", color="white", ms=4, mec="black", mew=0.4)
        row[0].set_ylabel(f"{TITLES[family]}, {variant}\n{method}\n$x_2$", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$")
    return fig


def horizons(found: pd.DataFrame) -> Figure:
    """Held-out errors against test steps, a line for each number of training steps; both methods take the same inner steps."""
    found = found[found["same"]]
    functions = [key for key in FUNCTIONS if key in set(found[["family", "variant"]].itertuples(index=False, name=None))]
    methods, steps = list(found["method"].unique()), sorted(found["trained_steps"].unique())
    size = (3.3 * len(functions) + 1, 6)
    fig, axes = plt.subplots(
        len(methods), len(functions), figsize=size, layout="constrained", squeeze=False, sharex=True, sharey="col"
    )
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(steps)))
    for column, (family, variant) in enumerate(functions):
        for axis, method in zip(axes[:, column], methods, strict=True):
            here = found[found["family"].eq(family) & found["variant"].eq(variant) & found["method"].eq(method)]
            for shade, k in zip(shades, steps, strict=True):
                line = here[here["trained_steps"].eq(k)]
                band(axis, line, shade, label=f"K = {k}")
                at = line[line["step"].eq(k)]
                axis.plot(at["step"], at["mean"], "o", color=shade, ms=7, mec="white")
            rate = ", ".join(f"{value:g}" for value in here["inner_lr"].unique())
            axis.set(xscale="symlog")
            axis.set_title(f"{TITLES[family]}, {variant}: {method}, α = {rate}", fontsize=9)
        axes[-1, column].set_xlabel("test steps $K'$")
        # A network that was trained for many steps may be far off after few of them.
        near = found[found["family"].eq(family) & found["variant"].eq(variant) & found["step"].ge(steps[0])]["mean"]
        axes[0, column].set_ylim(0.9 * near.min(), 1.1 * near.max())
    for axis in axes[:, 0]:
        axis.set_ylabel("nRMSE, held-out points")
    axes[0, 0].legend(title="trained with", fontsize=8)
    return fig
