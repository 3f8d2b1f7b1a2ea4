"""Time and memory against the number of inner steps."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..common.plots import COLOURS, MARKERS, SKY, below, panels
from .settings import METHODS, MODES
from .tables import theirs

COLOUR = COLOURS | {"A-MAML, Store": COLOURS["A-MAML"], "A-MAML, Checkpoint": SKY}
MARKER = MARKERS | {"A-MAML, Store": MARKERS["A-MAML"], "A-MAML, Checkpoint": "P"}


def _line(name: str) -> dict:
    return {"color": COLOUR[name], "marker": MARKER[name], "ms": 4, "lw": 1.5}


def time(seconds: pd.DataFrame) -> Figure:
    """Published seconds, and ours on one device in every mode; bars reach from the fastest to the slowest turn."""
    device = {"cpu": "CPU", "cuda": "GPU"}[seconds["device"].iloc[0]]
    modes = [mode for mode in MODES if mode in set(seconds["mode"])]
    fig, axes = panels(len(modes) + 1, height=3, sharex=True)
    for name, rows in theirs("seconds").groupby("method", sort=False):
        axes[0].plot(rows["steps"], rows["seconds"], **_line(name))
    axes[0].set(title="published (GPU)", ylabel="seconds for a meta update")
    for axis, mode in zip(axes[1:], modes, strict=True):
        for name in METHODS:
            rows = seconds[seconds["mode"].eq(mode) & seconds["method"].eq(name)]
            spread = [rows["seconds"] - rows["low"], rows["high"] - rows["seconds"]]
            axis.errorbar(rows["steps"], rows["seconds"], spread, elinewidth=1, label=name, **_line(name))
        axis.set_title(f"ours ({device}), {mode}")
        axis.sharey(axes[1])
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="inner steps $K$")
    below(fig, *axes[1].get_legend_handles_labels())
    return fig


def memory(peaks: pd.DataFrame) -> Figure:
    """Published shares of a GPU, ours normalised in the same way, and ours in MiB; of byte counts with their shares."""
    fig, (left, middle, right) = panels(3, height=3)
    for name, rows in theirs("share of memory").groupby("method", sort=False):
        left.plot(rows["steps"], rows["share of memory"], **_line(name))
    for name in METHODS:
        rows = peaks[peaks["method"].eq(name)]
        shown = rows[rows["steps"].le(500) & rows["share"].le(1)]
        middle.plot(shown["steps"], shown["share"], label=name, **_line(name))
        right.plot(rows["steps"], rows["MiB"], **_line(name))
    for axis, title in ((left, "published"), (middle, "ours, normalised")):
        axis.set(title=title, ylim=(0, 1.05), xlabel="inner steps $K$", ylabel="share of the GPU's memory")
        axis.axhline(1, color="gray", lw=1, ls=":")
    right.set(title="ours, absolute", xscale="log", yscale="log", xlabel="inner steps $K$", ylabel="live tensors (MiB)")
    below(fig, *middle.get_legend_handles_labels())
    return fig
