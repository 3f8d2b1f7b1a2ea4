"""Times and byte counts as the chapter shows them; all from rows, recorded or live."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..common.published import published
from ..common.records import rows
from .settings import LONG, METHODS, MODES, PUBLISHED_STEPS

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


def published_by_steps(measure: str) -> pd.DataFrame:
    """The same, a row for each method and a column for each number of steps."""
    return theirs(measure).pivot(index="method", columns="steps", values=measure)


def source(seconds: pd.DataFrame) -> str:
    """Where times come from, in words."""
    if seconds["size"].ne("full").any():
        return f"no records yet: measured here, at the size {seconds['size'].iloc[0]}"
    machines = ", ".join(sorted(seconds["machine"].unique()))
    return f"{machines}; one thread; load average up to {seconds['load'].max():.1f}"


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


def published_maml_over_amaml(at: int = FULL_AT) -> float:
    """The same as published."""
    row = theirs("seconds").query("steps == @at").set_index("method")["seconds"]
    return float(row["MAML"] / row["A-MAML"])


def rises(peaks: pd.DataFrame, value: str) -> pd.Series:
    """How many times as much MAML's memory rises from 1 to 200 steps as that of each method; empty if not measured."""
    wide = peaks[peaks["steps"].isin((1, FULL_AT))].pivot(index="method", columns="steps", values=value).dropna()
    if {1, FULL_AT} - set(wide):
        return pd.Series(dtype=float)
    rise = wide[FULL_AT] - wide[1]
    return (rise["MAML"] / rise).drop("MAML")


def shares_side_by_side(peaks: pd.DataFrame) -> pd.DataFrame:
    """Published shares of memory, and ours normalised, of MAML and A-MAML at the published steps."""
    wide, figure = by_steps(peaks, "share"), published_by_steps("share of memory")
    found = {("MAML", "published"): figure.loc["MAML"], ("MAML", "ours"): wide.loc["MAML"]}
    found |= {("A-MAML", "published"): figure.loc["A-MAML"]}
    found |= {("A-MAML", name.split(", ")[1]): wide.loc[name] for name in LONG}
    return pd.DataFrame(found).T.reindex(columns=[k for k in PUBLISHED_STEPS if k in set(wide)])


def far(seconds: pd.DataFrame, peaks: pd.DataFrame) -> pd.DataFrame:
    """MiB and seconds, in the fastest mode, of the methods that are taken to thousands of steps."""
    mode = [m for m in MODES if m in set(seconds["mode"])][-1]
    times = seconds[seconds["mode"].eq(mode) & seconds["method"].isin(LONG)]
    found = {
        "live tensors (MiB)": peaks[peaks["method"].isin(LONG)].pivot(index="steps", columns="method", values="MiB"),
        f"seconds, {mode}": times.pivot(index="steps", columns="method", values="seconds"),
    }
    return pd.concat(found, axis=1)


def at_the_end(seconds: pd.DataFrame, peaks: pd.DataFrame) -> dict[str, str]:
    """The prose's numbers about the largest number of steps: see :func:`far`."""
    table = far(seconds, peaks)
    megabytes, times = (table[name] for name in table.columns.levels[0][[0, 1]])
    steps, store, kept = table.index[-1], *(f"A-MAML, {name}" for name in ("Store", "Checkpoint"))
    middle = table.index[table.index <= PUBLISHED_STEPS[-1]][-1]
    maml = peaks[peaks["method"].eq("MAML")].set_index("steps")["MiB"]
    slope = np.polyfit(maml.index, maml, 1)
    return {
        "steps": f"{steps:,}", "times": f"{times[store][steps] / times[store][middle]:.0f}",
        "store": f"{megabytes[store][steps]:.0f}", "checkpoint": f"{megabytes[kept][steps]:.1f}",
        "maml": f"{np.polyval(slope, steps):,.0f}", "price": f"{times[kept][steps] / times[store][steps]:.2f}",
        "saved": f"{megabytes[store][steps] / megabytes[kept][steps]:.0f}", "graph": f"{np.polyval(slope, FULL_AT):.0f}",
    }  # fmt: skip


def numbers(seconds: pd.DataFrame, peaks: pd.DataFrame, mode: str = "traced", reference: str = "FOMAML") -> pd.DataFrame:
    """Every published number beside ours, in units that machines share: ``steps``, ``method``, ``measure``, ``published``,
    ``ours``, ``given``.

    Times are over the reference method's at the same number of steps, in the package's default mode. Memory is the rise since one
    step over MAML's rise up to 200 steps, so that neither a card's size nor what lay on it before plays a part. What is one or
    zero by this definition is ``given``, and says nothing.
    """

    def relative(table: pd.DataFrame, measure: str) -> pd.Series:
        table = table.rename(index={"A-MAML, Store": "A-MAML"})
        if measure == "seconds":
            return (table / table.loc[reference]).stack()
        rise = table.sub(table[1], axis=0)
        return (rise / rise.loc["MAML", FULL_AT]).stack() if FULL_AT in rise else pd.Series(dtype=float)

    mine = {"seconds": by_steps(seconds[seconds["mode"].eq(mode)], "seconds"), "share of memory": by_steps(peaks, "peak")}
    words = {"seconds": f"seconds over {reference}'s", "share of memory": "rise of memory over MAML's to 200 steps"}
    parts = []
    for measure, table in mine.items():
        both = {"published": relative(published_by_steps(measure), measure), "ours": relative(table, measure)}
        beside = pd.DataFrame(both).dropna(subset="published").rename_axis(["method", "steps"]).reset_index()
        first = beside["method"].eq(reference) if measure == "seconds" else beside["steps"].eq(1)
        filled = beside["method"].eq("MAML") & beside["steps"].eq(FULL_AT) & (measure != "seconds")
        parts.append(beside.assign(measure=words[measure], given=first | filled))
    return pd.concat(parts, ignore_index=True)
