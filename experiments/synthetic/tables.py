"""Curves, choices, distances to the published figure, and horizons as the chapter shows them; all from rows, recorded or live."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ..common import statistics
from ..common.cells import TOLERANCE
from ..common.published import curves as theirs
from ..common.published import falling, published
from ..common.records import rows
from ..common.tables import text
from .settings import METHODS, UNTRAINED, Choice, cells

PANEL = ["family", "shots"]  # of the published figure
DATA = ["family", "variant", "d", "shots"]
KEYS = [*DATA, "method", "inner_lr", "trained_steps", "protocol", "step", "set"]
READING = ["set", "variant", "d"]  # what the published figure leaves open
NAMES = [*METHODS, UNTRAINED]


def recorded(kind: str) -> pd.DataFrame:
    """All rows of a kind at full size; empty if there are none."""
    return rows("synthetic", kind, size="full")


def select(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """The rows whose columns have these values."""
    keep = pd.Series(True, index=table.index)
    for column, value in wanted.items():
        keep &= table[column].eq(value)
    return table[keep]


def source(table: pd.DataFrame) -> str:
    """Where curves come from, in words."""
    done = len(table[[*DATA, "method", "seed"]].drop_duplicates())
    if table["size"].ne("full").any():
        return f"no records yet, so {done} curves of the size {table['size'].iloc[0]}, run in this chapter"
    return f"{done} of {sum(cell.kind == 'curves' for cell in cells('full'))} records"


def bands(found: pd.DataFrame) -> str:
    """What the intervals of :func:`over_seeds` are, in words."""
    seeds = sorted(found["seeds"].unique())
    if seeds == [1]:
        return "95 % over test functions, since there is one training seed"
    return f"95 % by Student's t over {seeds[-1]} training seeds"


def reading_error() -> float:
    """How exactly a value can be read off the published figure."""
    return float(published("synthetic")["error"].max())


def over_seeds(table: pd.DataFrame, value: str = "mean") -> pd.DataFrame:
    """A row for each setting, protocol, set and step: the ``mean`` over seeds, ``half`` of its 95 % interval, ``low``, ``high``,
    ``seeds``. The interval is Student's t over seeds; of one seed it is over test functions.

    Args:
        table: rows of curves or horizons.
        value: ``mean``, in units of the spread of all training targets, or ``task_mean``, of the task's own.
    """
    keys = [key for key in KEYS if key in table]
    found = statistics.over_seeds(table[[*keys, "seed", value]], value)
    alone = table.groupby(keys, sort=False)[{"mean": "se", "task_mean": "task_se"}[value]].mean().to_numpy()
    return found.assign(half=found["half"].where(found["seeds"].gt(1), 1.96 * alone))


def seed_variance(table: pd.DataFrame) -> pd.DataFrame:
    """The variance of an error between training seeds, over that which the choice of test functions explains.

    Returns:
        For each ``protocol``, ``d`` and ``set``: ``quotient``, of the two variances' means over settings and steps, and
        ``median``, of the quotients of single settings and steps. Missing for one seed.
    """
    keys = [key for key in KEYS if key in table]
    groups = table.assign(square=table["se"] ** 2).groupby(keys)
    both = pd.DataFrame({"between": groups["mean"].var(), "within": groups["square"].mean()})
    both["median"] = both["between"] / both["within"]
    found = both.groupby(["protocol", "d", "set"]).agg({"between": "mean", "within": "mean", "median": "median"})
    return found.assign(quotient=found["between"] / found["within"])[["quotient", "median"]]


def rounding(table: pd.DataFrame, nudged: pd.DataFrame) -> pd.DataFrame:
    """What becomes of a change in the last digit of the initial weights: for each data setting and method ``apart``, the largest
    difference of two mean errors along Adam's adaptation over the largest error, and whether that is ``within`` the tolerance that
    a cell run again has."""
    keys = [*DATA, "method", "seed", "step", "set"]
    pairs = nudged[[*keys, "mean"]].merge(select(table, protocol="adam")[[*keys, "mean"]], on=keys, suffixes=("", "_recorded"))
    pairs = pairs.assign(gap=(pairs["mean"] - pairs["mean_recorded"]).abs())
    found = pairs.groupby([*DATA, "method"])[["gap", "mean_recorded"]].max()
    apart = (found["gap"] / found["mean_recorded"]).rename("apart").reset_index()
    return apart.assign(within=apart["apart"].le(TOLERANCE))


def rounding_by_method(found: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`rounding`, for each method: how many ``curves`` there are and how many are ``within`` the tolerance, the ``median``
    and the ``largest`` distance."""
    groups = found.groupby("method")
    wide = groups["within"].agg(curves="size", within="sum").join(groups["apart"].agg(median="median", largest="max"))
    return wide.reindex([name for name in METHODS if name in wide.index])


# ---------------------------------------------------------------------------------------------------------------- choices


def choices() -> pd.DataFrame:
    """All recorded trials: for each family, variant and method the settings, the ``score``, and whether it was ``chosen``."""
    table = recorded("choices")
    return table if table.empty else table[["family", "variant", "method", *Choice.__dataclass_fields__, "score", "chosen"]]


def settings_chosen(choices: pd.DataFrame) -> pd.DataFrame:
    """What each method chose, in words: a row for each method, a column for each family and variant."""
    best = choices[choices["chosen"]]
    reach = np.where(best["method"].eq("iMAML"), "λ = " + best["regularization"].astype(str), "α = " + best["inner_lr"].astype(str))
    best = best.assign(setting=reach + ", β = " + best["meta_lr"].astype(str))
    return best.pivot(index="method", columns=["family", "variant"], values="setting").loc[list(METHODS)]


def at_larger_rate(choices: pd.DataFrame) -> tuple[int, int]:
    """How many choices took the larger of the two meta learning rates, and how many choices there are."""
    best = choices[choices["chosen"]]
    return int(best["meta_lr"].eq(choices["meta_lr"].max()).sum()), len(best)


# ----------------------------------------------------------------------------------------------------------------- errors


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """Mean errors before and after all Adam epochs, a row for each method."""
    adam = table[table["protocol"].eq("adam")]
    here = adam[adam["step"].isin((0, adam["step"].max()))]
    return here.pivot_table(index="method", columns=["set", "step"], values="mean").reindex(NAMES)


def errors(table: pd.DataFrame, epoch: int = 1000, **wanted: object) -> pd.DataFrame:
    """Errors over seeds after so many Adam epochs: a row for each of the wanted settings, a column for each method below
    ``mean`` and ``half``; see :func:`over_seeds`."""
    found = over_seeds(select(table, protocol="adam", step=epoch, **wanted))
    wide = found.pivot(index=["variant", "family", "d", "shots"], columns="method", values=["mean", "half"])
    names = [name for name in NAMES if name in set(found["method"])]
    return wide.reindex(columns=pd.MultiIndex.from_product([["mean", "half"], names]))


def shown(wide: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A frame with the columns ``mean`` and ``half``, and others below these, as text."""
    if wide.empty:
        return pd.DataFrame(index=wide.index)
    pairs = {name: zip(wide["mean"][name], wide["half"][name], strict=True) for name in wide["mean"]}
    return pd.DataFrame({name: [text(m, h, digits) for m, h in found] for name, found in pairs.items()}, wide.index)


def paired(table: pd.DataFrame, other: str) -> pd.DataFrame:
    """Each method's error less that of ``other`` on the same functions, seed by seed.

    Args:
        table: rows of one protocol, set and step.

    Returns:
        A row for each data setting and method: ``mean``, ``half`` (t over seeds; missing for one), ``low``, ``high``, ``seeds``;
        ``resolved``, whether the interval leaves out 0.
    """
    wide = table.pivot(index=[*DATA, "seed"], columns="method", values="mean")
    found = statistics.over_seeds(wide.sub(wide[other], axis=0).drop(columns=other).stack().rename("less").reset_index(), "less")
    return found.assign(resolved=found["mean"].abs().gt(found["half"]))


def learned(table: pd.DataFrame, steps: int = 50) -> pd.DataFrame:
    """What meta-training gives on two inputs and 50 shots: the held-out error after so many steps of each method's own inner loop,
    less the lowest that the untrained network reaches at any step of either protocol; see :func:`paired`."""
    here = select(table, set="held-out", d=2, shots=50)
    own = select(here, protocol="own", step=steps).query("method != @UNTRAINED")
    none = select(here, method=UNTRAINED).sort_values("mean").groupby([*DATA, "seed"]).head(1)
    return paired(pd.concat([own, none]), UNTRAINED)


def signed(found: pd.DataFrame) -> pd.DataFrame:
    """Differences of :func:`paired` as text, a row for each method and a column for each family and variant."""
    words = [f"{m:+.3f}" + ("" if math.isnan(h) else f" ± {h:.3f}") for m, h in zip(found["mean"], found["half"], strict=True)]
    wide = found.assign(text=words).pivot(index="method", columns=["family", "variant"], values="text")
    return wide.reindex([name for name in NAMES if name in wide.index])


def ladder(table: pd.DataFrame, bars: pd.DataFrame) -> pd.DataFrame:
    """What more and more knowledge gives, on two inputs and 50 shots: held-out errors, means over seeds, of

    - the ``nearest point`` and the ``family mean``, see :func:`experiments.synthetic.run.without_network`;
    - the network ``untrained``, at its best step of either protocol;
    - the best network ``not adapted``: the lowest error of the six methods before the first step;
    - the best network ``adapted``: their lowest error at any step of their own inner loops.

    Args:
        table: rows of curves.
        bars: of the two predictions without a network.
    """
    means = over_seeds(select(table, set="held-out", d=2, shots=50))
    trained, keys = select(means[means["method"].ne(UNTRAINED)], protocol="own"), ["variant", "family"]
    found = bars.groupby(keys)[["nearest point", "family mean"]].mean()
    found["untrained"] = select(means, method=UNTRAINED).groupby(keys)["mean"].min()
    found["not adapted"] = select(trained, step=0).groupby(keys)["mean"].min()
    found["adapted"] = trained.groupby(keys)["mean"].min()
    return found


# -------------------------------------------------------------------------------------------------------------- distances


def distances(table: pd.DataFrame, by_method: bool = False, stand_in: str | None = None, value: str = "mean") -> pd.DataFrame:
    """How far our curves are from the published ones, for each reading of what the figure shows.

    Args:
        table: rows of curves, one or more seeds.
        by_method: one row for each method, too.
        stand_in: compare the curves of this one method (or ``untrained``) with the published curves of all of them.
        value: as in :func:`over_seeds`.

    Returns:
        A row for each family, shots, variant, d and set: ``distance``, the root mean square of published minus ours over methods
        and epochs; ``correlation`` between the two; ``points``, how many values are compared; ``whole``, whether these are all
        that the panel (or its method) has. The smallest distance first.
    """
    ours, on = over_seeds(table[table["protocol"].eq("adam")], value), [*PANEL, "method", "step"]
    if stand_in is not None:
        ours, on = ours[ours["method"].eq(stand_in)].drop(columns="method"), [*PANEL, "step"]
    figure, by = theirs(), ["method"] * by_method
    pairs, keys = ours.merge(figure, on=on), [*PANEL, *READING, *by]
    if pairs.empty:
        return pd.DataFrame(columns=[*keys, "distance", "correlation", "points", "whole"])

    def measure(group: pd.DataFrame) -> pd.Series:
        gap = group["published"] - group["mean"]
        correlation = group["published"].corr(group["mean"])
        return pd.Series({"distance": math.sqrt((gap**2).mean()), "correlation": correlation, "points": len(group)})

    found = pairs.groupby(keys)[["published", "mean"]].apply(measure).reset_index().astype({"points": int})
    size = figure.groupby([*PANEL, *by]).size().rename("size").reset_index()
    found = found.merge(size, on=[*PANEL, *by])
    found["whole"] = found["points"].eq(found.pop("size"))
    return found.sort_values("distance", ignore_index=True)


def readings(table: pd.DataFrame, stand_in: str | None = None) -> pd.DataFrame:
    """Distances, one row for each reading of the figure, the nearest first, and one column for each panel; whole panels alone."""
    found = distances(table, stand_in=stand_in)
    wide = found[found["whole"]].pivot(index=READING, columns=PANEL, values="distance")
    order = [key for key in theirs().groupby(PANEL, sort=False).groups if key in wide.columns]
    return wide.loc[wide.mean(axis=1).sort_values().index, order]


def signs(table: pd.DataFrame, variant: str = "released", epoch: int = 1000) -> pd.DataFrame:
    """Two signs of a reading that need no distance. A row for each set, dimension and family: ``last`` over the lowest error of the
    untrained network with 50 shots, at the last epoch; for each method the quotient of its errors with 100 and with 50 shots."""
    means = over_seeds(select(table, protocol="adam", variant=variant))
    keys = ["set", "d", "family"]
    few = select(means, method=UNTRAINED, shots=50)
    last = select(few, step=epoch).set_index(keys)["mean"] / few.groupby(keys)["mean"].min()
    wide = select(means, step=epoch).pivot(index=[*keys, "method"], columns="shots", values="mean").reindex(columns=[50, 100])
    quotients = (wide[100] / wide[50]).unstack("method").reindex(columns=NAMES)
    return quotients.assign(last=last.reindex(quotients.index))[["last", *NAMES]]


def by_normaliser(table: pd.DataFrame, stand_in: str = UNTRAINED) -> pd.DataFrame:
    """Distances of one curve of ours, averaged over panels, with both normalisers."""
    found = {}
    for name, value in (("training", "mean"), ("task", "task_mean")):
        one = distances(table, stand_in=stand_in, value=value)
        found[name] = one[one["whole"]].groupby(READING)["distance"].mean()
    return pd.DataFrame(found)


def by_method(table: pd.DataFrame) -> pd.DataFrame:
    """Distances of each method's own curve, averaged over panels: a row for each set and method, a column for variant and d."""
    found = distances(table, by_method=True)
    return found[found["whole"]].pivot_table(index=["set", "method"], columns=["variant", "d"], values="distance")


def guesses() -> tuple[float, float]:
    """The distances of two guesses that know little: the best constant, and the best curve that is the same for all methods and
    panels."""
    figure = theirs()
    return float(figure["published"].std(ddof=0)), falling(figure)


def above_untrained(table: pd.DataFrame, variant: str, family: str) -> tuple[int, int]:
    """How many published values of a family after epoch 0 lie above the held-out error, at the same epoch, of an untrained network
    of two inputs, and how many there are."""
    mine = over_seeds(select(table, protocol="adam", method=UNTRAINED, set="held-out", variant=variant, d=2)).drop(columns="method")
    pairs = theirs().query("step > 0 and family == @family").merge(mine, on=[*PANEL, "step"])
    return int(pairs["published"].gt(pairs["mean"]).sum()), len(pairs)
