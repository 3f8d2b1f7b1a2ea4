"""Curves of fine-tuning, distances to the published figure, predictions on a grid, and horizons."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..common.plots import COLOURS, MARKERS, TITLES, WIDTH, band, below, dashes, legend, panels, say_if_empty
from .settings import FAMILIES, UNTRAINED, VARIANTS
from .tables import NAMES, theirs

FUNCTIONS = [(family, variant) for family in FAMILIES for variant in VARIANTS]


def _look(name: str) -> dict:
    return {"colour": COLOURS[name], "ls": dashes(name)}


def surfaces(instances: pd.DataFrame) -> Figure:
    """One function of each family and variant over its two inputs."""
    fig, axes = panels(len(FUNCTIONS), height=3.2, subplot_kw={"projection": "3d"})
    for axis, (family, variant) in zip(axes, FUNCTIONS, strict=True):
        one = instances[instances["family"].eq(family) & instances["variant"].eq(variant)]
        x1, x2, value = (one[name].to_numpy().reshape(2 * [one["x1"].nunique()]) for name in ("x1", "x2", "value"))
        axis.plot_surface(x1, x2, value, cmap="viridis", linewidth=0, rcount=len(x1), ccount=len(x1), rasterized=True)
        axis.set(xlabel="$x_1$", ylabel="$x_2$", title=f"{TITLES[family]}, {variant}")
        axis.locator_params(nbins=4)
        axis.tick_params(labelsize=8)
    return fig


def slices(functions: pd.DataFrame) -> Figure:
    """Some functions of one input, of each family and variant."""
    fig, axes = panels(len(FUNCTIONS), height=2.2)
    for axis, (family, variant) in zip(axes, FUNCTIONS, strict=True):
        here = functions[functions["family"].eq(family) & functions["variant"].eq(variant)]
        count = here["function"].nunique()
        shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, count))
        for shade, ls, (_, one) in zip(shades, ("-", "--", "-.", ":") * count, here.groupby("function"), strict=False):
            axis.plot(one["x"], one["value"], color=shade, ls=ls, lw=1.5)
        axis.set_title(f"{TITLES[family]}, {variant}")
    for axis in axes[::2]:
        axis.set_ylabel("$f(x)$")
    for axis in axes[-2:]:
        axis.set_xlabel("$x$")
    return fig


def curves(found: pd.DataFrame, variant: str, d: int = 2) -> Figure:
    """Errors against Adam epochs: held-out left, support right, and the published values as markers on both."""
    mine = found[found["variant"].eq(variant) & found["d"].eq(d) & found["protocol"].eq("adam")]
    figure = theirs()
    shots = list(figure[["family", "shots"]].drop_duplicates().itertuples(index=False, name=None))
    fig, axes = panels(2 * len(shots), height=2.3, sharex=True, sharey=True)
    for place, (family, points) in enumerate(shots):
        dots = figure[figure["family"].eq(family) & figure["shots"].eq(points)]
        row = axes[2 * place : 2 * place + 2]
        for axis, label in zip(row, ("held-out", "support"), strict=True):
            here = mine[mine["family"].eq(family) & mine["shots"].eq(points) & mine["set"].eq(label)]
            for name in NAMES:
                band(axis, here[here["method"].eq(name)], **_look(name))
            for name, one in dots.groupby("method"):
                look = {"color": COLOURS[name], "mec": "white", "mew": 0.5, "clip_on": False}
                axis.plot(one["step"], one["published"], MARKERS[name], ms=6, **look)
            say_if_empty(axis, here)
            axis.set_title(f"{TITLES[family]}, {points} shots: {label} points")
        row[0].set_ylabel("nRMSE")
    for axis in axes[-2:]:
        axis.set_xlabel("Adam epochs")
    axes[0].set_ylim(0, 1.5)
    legend(fig, NAMES)
    return fig


def distances(trained: pd.DataFrame, untrained: pd.DataFrame) -> Figure:
    """Two tables of :func:`experiments.synthetic.tables.readings` as heat maps."""
    fig, axes = plt.subplots(2, 1, figsize=(WIDTH, 7), layout="constrained")
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
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        axis.set_xticks(range(wide.shape[1]), [f"{TITLES[family]}\n{shots} shots" for family, shots in wide.columns])
        axis.set_yticks(range(len(wide)), [f"{label}, {variant}, d = {d}" for label, variant, d in wide.index])
        fig.colorbar(image, ax=axis, label="root mean square distance")
    return fig


def published() -> Figure:
    """The published curves alone."""
    figure = theirs()
    fig, axes = panels(len(figure[["family", "shots"]].drop_duplicates()), height=2.4, sharex=True, sharey=True)
    for axis, ((family, shots), here) in zip(axes, figure.groupby(["family", "shots"], sort=False), strict=True):
        for name, one in here.groupby("method"):
            axis.plot(one["step"], one["published"], MARKERS[name], color=COLOURS[name], ls=":", lw=1.2, ms=6)
        axis.set(title=f"{TITLES[family]}, {shots} shots", ylim=(0, 1.5))
    for axis in axes[::2]:
        axis.set_ylabel("nRMSE")
    for axis in axes[-2:]:
        axis.set_xlabel("epochs of fine-tuning")
    legend(fig, NAMES[:-1])
    return fig


def held_out(found: pd.DataFrame, protocol: str, trained_steps: int = 50) -> Figure:
    """Held-out errors of two inputs and 50 shots against steps of each method's own inner loop, or against Adam epochs."""
    mine = found[found["protocol"].eq(protocol) & found["set"].eq("held-out") & found["d"].eq(2) & found["shots"].eq(50)]
    fig, axes = panels(len(FUNCTIONS), sharex=True)
    for axis, (family, variant) in zip(axes, FUNCTIONS, strict=True):
        here = mine[mine["family"].eq(family) & mine["variant"].eq(variant)]
        for name in NAMES:
            marker = {"marker": MARKERS[name], "ms": 4} if protocol == "own" else {}
            band(axis, here[here["method"].eq(name)], **_look(name), **marker)
        if protocol == "own":
            axis.axvline(trained_steps, color="gray", lw=1, ls=":")
            axis.set_xscale("symlog")
        axis.set(title=f"{TITLES[family]}, {variant}", ylim=(0, 1.25))
        say_if_empty(axis, here)
    for axis in axes[::2]:
        axis.set_ylabel("nRMSE, held-out points")
    for axis in axes[-2:]:
        axis.set_xlabel({"own": "own inner steps", "adam": "Adam epochs"}[protocol])
    legend(fig, NAMES)
    return fig


def drawn(grids: pd.DataFrame, points: pd.DataFrame, methods: tuple[str, ...] = ("A-MAML", UNTRAINED)) -> Figure:
    """The true function with its support points, and predictions after some epochs: a row for each function and method."""
    have = set(grids[["family", "variant", "method"]].itertuples(index=False, name=None))
    order = [(*function, method) for function in FUNCTIONS for method in methods if (*function, method) in have]
    shown = ["truth", *(name for name in grids if name.startswith("after "))]
    size, shared = (WIDTH, 1.8 * len(order)), {"sharex": "row", "sharey": "row"}
    fig, axes = plt.subplots(len(order), len(shown), figsize=size, layout="constrained", squeeze=False, **shared)
    for row, (family, variant, method) in zip(axes, order, strict=True):
        function = points["family"].eq(family) & points["variant"].eq(variant)
        grid = grids[grids["family"].eq(family) & grids["variant"].eq(variant) & grids["method"].eq(method)]
        scale = {"vmin": grid["truth"].min(), "vmax": grid["truth"].max(), "extent": 2 * [grid["x1"].min(), grid["x1"].max()]}
        for axis, name in zip(row, shown, strict=True):
            values = grid.pivot(index="x2", columns="x1", values=name)
            axis.imshow(values, origin="lower", cmap="viridis", aspect="auto", **scale)
            axis.grid(False)
            axis.locator_params(nbins=3)
        row[0].plot(points.loc[function, "x1"], points.loc[function, "x2"], ".", color="white", ms=4, mec="black", mew=0.4)
        row[0].set_ylabel(f"{TITLES[family]}, {variant}\n{method}\n$x_2$", fontsize=9)
    for axis, name in zip(axes[0], shown, strict=True):
        axis.set_title(name if name == "truth" else f"{name} epochs", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$")
    return fig


def horizons(found: pd.DataFrame) -> Figure:
    """Held-out errors against test steps, a line for each number of training steps; both methods take the same inner steps."""
    found = found[found["same"]]
    functions = [key for key in FUNCTIONS if key in set(found[["family", "variant"]].itertuples(index=False, name=None))]
    methods, steps = list(found["method"].unique()), sorted(found["trained_steps"].unique())
    size = (WIDTH, 2.5 * len(functions))
    fig, axes = plt.subplots(
        len(functions), len(methods), figsize=size, layout="constrained", squeeze=False, sharex=True, sharey="row"
    )
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(steps)))
    for row, (family, variant) in zip(axes, functions, strict=True):
        for axis, method in zip(row, methods, strict=True):
            here = found[found["family"].eq(family) & found["variant"].eq(variant) & found["method"].eq(method)]
            for shade, k in zip(shades, steps, strict=True):
                line = here[here["trained_steps"].eq(k)]
                band(axis, line, shade, label=f"K = {k}")
                at = line[line["step"].eq(k)]
                axis.plot(at["step"], at["mean"], "o", color=shade, ms=7, mec="white")
            rate = ", ".join(f"{value:g}" for value in here["inner_lr"].unique())
            axis.set(xscale="symlog")
            axis.set_title(f"{TITLES[family]}, {variant}: {method}, α = {rate}", fontsize=9)
        row[0].set_ylabel("nRMSE, held-out points")
        # A network that was trained for many steps may be far off after few of them.
        near = found[found["family"].eq(family) & found["variant"].eq(variant) & found["step"].ge(steps[0])]["mean"]
        row[0].set_ylim(0.9 * near.min(), 1.1 * near.max())
    for axis in axes[-1]:
        axis.set_xlabel("test steps $K'$")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    below(fig, handles, [f"trained with {label}" for label in labels])
    return fig
