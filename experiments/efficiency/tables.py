"""Times and byte counts as the chapter shows them; all from rows, recorded or live."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..common.published import published
from ..common.records import rows
from .settings import METHODS, PUBLISHED_STEPS

FULL_AT = 200  # MAML filled their GPU at this number of steps, to
FULL_SHARE = 0.98
IDLE_SHARE = 0.10  # of which so much was taken before the first inner step


def recorded(kind: str) -> pd.DataFrame:
    """All rows of a kind at full size, by the number of steps; empty if there are none."""
    table = rows("efficiency", kind, size="full")
    return table if table.empty else table.sort_values("steps", kind="stable", ignore_index=True)


def theirs(measure: str) -> pd.DataFrame:
    """The published ``seconds``, or ``share of memory``: ``method``, ``steps`` and the value, under the name of the measure."""
    table = published("efficiency", measure=measure).rename(columns={"step": "steps", "value": measure})
    return table[["method", "steps", measure]]


def normalised(peaks: pd.DataFrame) -> pd.DataFrame:
    """Byte counts with ``MiB``, and with each ``peak`` as a ``share`` of a GPU's memory, the way the paper shows it.

    Their GPU is not named. So ours is one that MAML would fill as it filled theirs, to 98 % at 200 steps (or at the largest
    number that was measured), with the same 10 % taken before the first step.

    Raises:
        ValueError: the table has no row of MAML.
    """
    maml = peaks[peaks["method"].eq("MAML") & peaks["steps"].le(FULL_AT)]
    if maml.empty:
        raise ValueError("to normalise as the paper does, MAML must be among the methods")
    full = maml.loc[maml["steps"].idxmax(), "peak"]
    return peaks.assign(share=IDLE_SHARE + (FULL_SHARE - IDLE_SHARE) * peaks["peak"] / full, MiB=peaks["peak"] / 2**20)


def by_steps(table: pd.DataFrame, value: str, columns: str | list[str] = "steps") -> pd.DataFrame:
    """A row for each of our methods, a column for each number of steps (or of further ``columns``)."""
    return table.pivot(index="method", columns=columns, values=value).reindex([m for m in METHODS if m in set(table["method"])])


def price(table: pd.DataFrame, value: str = "seconds") -> pd.Series:
    """Milliseconds that a further inner step costs each method, by least squares up to 500 steps; missing from one number alone."""
    near = table[table["steps"].le(PUBLISHED_STEPS[-1])]
    slopes = {
        name: 1e3 * np.polyfit(rows["steps"], rows[value], 1)[0] if rows["steps"].nunique() > 1 else np.nan
        for name, rows in near.groupby("method")
    }
    return pd.Series(slopes, dtype=float)


def prices(seconds: pd.DataFrame) -> pd.DataFrame:
    """:func:`price` as published and in each mode; the published A-MAML is taken to store its states."""
    found = {"published": price(theirs("seconds")).rename({"A-MAML": "A-MAML, Store"})}
    found |= {mode: price(seconds[seconds["mode"].eq(mode)]) for mode in seconds["mode"].unique()}
    return pd.DataFrame(found).reindex(list(METHODS))


def maml_over_amaml(seconds: pd.DataFrame, at: int = FULL_AT) -> pd.Series:
    """MAML's time over A-MAML's for each mode, at so many steps or at the most that were measured."""
    steps = seconds.loc[seconds["method"].eq("MAML"), "steps"]
    here = seconds[seconds["steps"].eq(at if at in set(steps) else steps.max())]
    wide = here.pivot(index="mode", columns="method", values="seconds")
    return wide["MAML"] / wide["A-MAML, Store"]


def rises(peaks: pd.DataFrame, value: str, over: str = "MAML") -> pd.Series:
    """How many times as much the memory of ``over`` rises from 1 to 200 steps as that of each method; empty if not measured."""
    wide = peaks[peaks["steps"].isin((1, FULL_AT))].pivot(index="method", columns="steps", values=value).dropna()
    if {1, FULL_AT} - set(wide):
        return pd.Series(dtype=float)
    rise = wide[FULL_AT] - wide[1]
    return (rise[over] / rise).drop(over)
