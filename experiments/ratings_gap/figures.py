"""Fall and spread of every hypothesis beside the paper's."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..common.plots import BLUE, GREY, ORANGE, WIDTH
from ..common.published import published
from ..ratings.settings import SHOTS, TABLES


def patterns(table: pd.DataFrame, score: str = "RMSE/rating scale") -> Figure:
    """Fall and spread of the combinations of :func:`.tables.compare` in one score, and A-MAML's fall and the spread of the paper's
    tables, each data set."""
    fig, axis = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    plain = table[table["score"].eq(score)]
    for part, colour, marker in (("query", BLUE, "o"), ("support", ORANGE, "^")):
        mine = plain[plain["set"].eq(part)]
        axis.scatter(mine["fall"], mine["spread"], color=colour, marker=marker, alpha=0.7, label=f"ours, {part} set")
    few, many = SHOTS
    for number, marker in zip(TABLES, ("x", "+"), strict=True):
        wide = published("ratings", source=f"table {number}").pivot(index="data", columns=["method", "shots"], values="value")
        falls, spreads = wide["A-MAML", many] / wide["A-MAML", few], wide["FOMAML", few] / wide["A-MAML", few]
        axis.scatter(falls, spreads, color=GREY, marker=marker, label=f"paper, Table {number}")
    axis.set(xscale="log", yscale="log", ylabel="spread: FOMAML over A-MAML")
    axis.set_xlabel("fall: error at 20–30 over error at 10–15 shots")
    axis.axhline(1, color="0.7", lw=1)
    axis.axvline(1, color="0.7", lw=1)
    axis.legend()
    return fig
