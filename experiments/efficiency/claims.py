"""What the paper claims of cost, and what our records say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..common.claims import Claim, decide
from .settings import METHODS
from .tables import FULL_AT, by_steps, maml_over_amaml, prices, published_maml_over_amaml, rises, theirs

NAME = "efficiency"
FLAT = ("iMAML", "FOMAML", "Reptile")
NEAR = 1.25  # two quotients are the same within this factor


def _off_the_line(seconds: pd.DataFrame) -> pd.Series:
    """The largest share by which a time, from 100 to 500 steps, is off the straight line through them: (mode, method)."""
    found = {}
    for key, rows in seconds[seconds["steps"].between(100, 500)].groupby(["mode", "method"]):
        if rows["steps"].nunique() > 2:
            line = np.polyval(np.polyfit(rows["steps"], rows["seconds"], 1), rows["steps"])
            found[key] = (line / rows["seconds"] - 1).abs().max()
    return pd.Series(found, dtype=float)


def claims(seconds: pd.DataFrame, peaks: pd.DataFrame) -> list[Claim]:
    """Of times on one device, and of byte counts with their shares (:func:`experiments.efficiency.tables.normalised`)."""
    *of_growth, of_the_end = of_memory(peaks)
    return [*of_growth, *of_time(seconds), of_the_end]


def of_memory(peaks: pd.DataFrame) -> list[Claim]:
    """Of byte counts alone."""
    mib, figure = by_steps(peaks, "MiB"), theirs("share of memory")
    maml = mib.loc["MAML"].dropna()
    bend = (np.diff(maml) / np.diff(maml.index)) if len(maml) > 2 else np.array([])
    rise, published_rise = rises(peaks, "peak"), rises(figure, "share of memory")["A-MAML"]
    growth = {m: mib.loc[m].max() / mib.loc[m].min() for m in FLAT}
    most = int(maml.index.max())
    return [
        Claim(NAME, "MAML's memory grows in proportion to K",
              "each further step takes the same number of bytes, to 1 %", "from .10 to .98 of a GPU at 200 steps",
              f"{bend.min() * 1024:.1f} to {bend.max() * 1024:.1f} KiB a step" if len(bend) else "",
              decide([bend.max() / bend.min() < 1.01] if len(bend) else [])),
        Claim(NAME, "A-MAML's memory grows far more slowly",
              "MAML's rises at least four times as much from 1 to 200 steps", f"{published_rise:.1f} times",
              ", ".join(f"{rise[m]:.0f} times ({m.split(', ')[1]})" for m in METHODS if m.startswith("A-MAML") and m in rise),
              decide(rise[m] >= 4 for m in METHODS if m.startswith("A-MAML") and m in rise)),
        Claim(NAME, "The memory of iMAML, FOMAML and Reptile does not grow",
              "the same number of bytes at every K", "flat", ", ".join(f"{m}: {g:.2f} times" for m, g in growth.items()),
              decide(g < 1.01 for g in growth.values())),
        Claim(NAME, "MAML cannot take 300 steps",
              "it runs out of memory", "out of memory", f"{maml[most]:.0f} MiB at {most} steps",
              decide([False] if most >= 300 else []), "a matter of their implementation or their card"),
    ]  # fmt: skip


def of_time(seconds: pd.DataFrame) -> list[Claim]:
    """Of times on one device alone."""
    off = _off_the_line(seconds)
    at = {mode: by_steps(rows[rows["steps"].eq(FULL_AT)], "seconds")[FULL_AT] for mode, rows in seconds.groupby("mode")
          if FULL_AT in set(rows.loc[rows["method"].eq("MAML"), "steps"])}  # fmt: skip
    ordered = [max(t["FOMAML"], t["Reptile"]) <= NEAR * t["iMAML"] <= NEAR * t["A-MAML, Store"] for t in at.values()]
    over = prices(seconds) / prices(seconds).loc["FOMAML"]
    modes = [m for m in over if m != "published"]
    ratio = maml_over_amaml(seconds)[list(at)] if at else pd.Series(dtype=float)
    cost = {m: over[m]["A-MAML, Store"] for m in modes if np.isfinite(over[m]["A-MAML, Store"])}
    return [
        Claim(NAME, "The time of every method grows by the same amount for each step",
              "from 100 to 500 steps no time is off a straight line by more than a tenth, in every mode", "straight lines",
              f"off by at most {off.max():.0%}" if len(off) else "", decide(off < 0.1)),
        Claim(NAME, "FOMAML and Reptile are the fastest, then iMAML, then A-MAML",
              f"in this order at 200 steps in every mode, equal ones within {NEAR:g}", "yes",
              f"in {sum(ordered)} of {len(ordered)} modes", decide(ordered)),
        Claim(NAME, "A-MAML costs half as much again as FOMAML",
              f"the quotient of their prices of a step is the published one, within {NEAR:g}",
              f"{over['published']['A-MAML, Store']:.1f} times",
              ", ".join(f"{v:.1f} times ({m})" for m, v in cost.items()),
              decide(1 / NEAR <= v / over["published"]["A-MAML, Store"] <= NEAR for v in cost.values()),
              "other hardware, and another split of a step's price"),
        Claim(NAME, "MAML takes five times the time of A-MAML",
              f"the quotient at 200 steps is the published one, within {NEAR:g}, in every mode",
              f"{published_maml_over_amaml():.1f} times",
              ", ".join(f"{v:.1f} times ({m})" for m, v in ratio.items()),
              decide(1 / NEAR <= v / published_maml_over_amaml() <= NEAR for v in ratio),
              "depends on the implementation, not on the algorithm"),
    ]  # fmt: skip
