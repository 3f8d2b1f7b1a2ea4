"""Trained at one number of inner steps, tested at others: tables from rows of the kind ``horizons``, recorded or live."""

from __future__ import annotations

import pandas as pd

from ..common import statistics
from .settings import CHOSEN
from .tables import over_seeds, select

ARM = ["family", "variant", "method", "inner_lr"]


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """Held-out errors over seeds at every test step; ``same`` where the inner rate is A-MAML's, so that both methods take the same
    inner steps."""
    found = over_seeds(select(table, set="held-out"))
    rates = pd.Series({key: names["A-MAML"].inner_lr for key, names in CHOSEN.items()})
    here = pd.MultiIndex.from_frame(found[["family", "variant"]])
    return found.assign(same=found["inner_lr"].to_numpy() == rates.reindex(here).to_numpy())


def excess(table: pd.DataFrame, step: int = 10) -> pd.DataFrame:
    """For each seed, the held-out error after ``step`` test steps less that of the network that was trained with the fewest: a
    column for each larger number of training steps."""
    wide = select(table, set="held-out", step=step).pivot(index=[*ARM, "seed"], columns="trained_steps", values="mean")
    fewest = wide.columns.min()
    return wide.sub(wide[fewest], axis=0).drop(columns=fewest)


def too_early(table: pd.DataFrame, step: int = 10) -> pd.DataFrame:
    """What it costs to be tested after ``step`` steps when trained with more, :func:`excess` over seeds: ``mean`` and ``half`` (t;
    missing for one seed), for each number of training steps."""
    long = excess(table, step).stack().rename("excess").reset_index()
    return statistics.over_seeds(long, "excess").pivot(index=ARM, columns="trained_steps", values=["mean", "half"])


def fomaml_less_amaml(table: pd.DataFrame, step: int = 10) -> pd.DataFrame:
    """How much more that costs FOMAML than A-MAML at the same inner rate, seed by seed: ``mean``, ``half``, ``low``, ``high``,
    ``seeds`` for each family, variant and number of training steps; ``resolved``, whether the interval leaves out 0;
    ``dearer``, for how many seeds FOMAML is."""
    wide = excess(table, step).stack().unstack("method").dropna()
    more = (wide["FOMAML"] - wide["A-MAML"]).rename("more")
    found = statistics.over_seeds(more.reset_index(), "more")
    dearer = more.gt(0).groupby([name for name in more.index.names if name != "seed"], sort=False).sum()
    return found.assign(resolved=found["mean"].abs().gt(found["half"]), dearer=dearer.to_numpy())


def above_lowest(table: pd.DataFrame) -> pd.DataFrame:
    """How far a line is at most above the lowest of its method at the same test step: ``before`` its own horizon, ``at`` it and
    ``beyond``; of means over seeds."""
    found = lines(table)
    above = found["mean"] - found.groupby([*ARM, "step"])["mean"].transform("min")
    gap = (found["step"] - found["trained_steps"]).clip(-1, 1).map({-1: "before", 0: "at", 1: "beyond"})
    return above.groupby([*(found[key] for key in ARM), gap.rename("tested")]).max().unstack()[["before", "at", "beyond"]]
