"""What the recipe's curves say about the published figure; all from rows, recorded or live."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..common.published import curves as theirs
from ..common.published import falling
from ..common.records import diverged, rows
from ..common.statistics import over_seeds
from ..common.tables import span, text
from .settings import FAMILIES, METHODS, RATES, SHOTS, UNTRAINED

PANEL = ["family", "shots"]
RECIPE = {"weight": 1.0, "steps": 50, "outer": "SGD"}
NEAR = 0.04  # twice the error of reading a value off the figure
# What differs from the recipe in one way: how a variant is called in tables and figures.
VARIANTS = {
    "the recipe": {},
    "without proximal terms": {"weight": 0.0},
    "200 inner steps": {"steps": 200},
    "Adam outside": {"outer": "Adam"},
}


def recorded() -> pd.DataFrame:
    """All rows at full size; empty if there are none."""
    return rows("recipe", "curves", size="full")


def lost() -> pd.DataFrame:
    """The trainings that diverged, with their messages."""
    return diverged("recipe", "curves", size="full")


def select(table: pd.DataFrame, variant: str = "the recipe", **wanted: object) -> pd.DataFrame:
    """The rows of one of ``VARIANTS`` whose columns have these values; at the end of training unless ``updates`` says otherwise.

    The untrained network belongs to every variant.
    """
    if table.empty:
        return table
    keep = pd.Series(True, index=table.index)
    untrained = table["method"].eq(UNTRAINED)
    for column, value in (RECIPE | VARIANTS[variant]).items():
        keep &= table[column].eq(value) | untrained
    for column, value in wanted.items():
        keep &= table[column].eq(value)
    if "updates" not in wanted:
        keep &= table["updates"].eq(table["updates"].max()) | untrained
    return table[keep]


def curves(table: pd.DataFrame, variant: str = "the recipe", rate: float = RATES[0], **wanted: object) -> pd.DataFrame:
    """Curves over seeds: ``family``, ``shots``, ``method``, ``set``, ``step``, ``mean``, ``half`` (95 %, t over seeds), ``low``,
    ``high``, ``seeds``."""
    mine = select(table, variant, rate=rate, **wanted)
    return over_seeds(mine[[*PANEL, "method", "set", "step", "seed", "mean"]].rename(columns={"mean": "value"}), "value")


def compared(found: pd.DataFrame, method: str | None = None) -> pd.DataFrame:
    """Curves beside the published ones at the figure's epochs: the columns of both, ``gap`` (ours less published).

    Args:
        found: of :func:`curves`.
        method: compare the curve of this method, or of the untrained network, with the published ones of all.
    """
    ours, on = found, [*PANEL, "method", "step"]
    if method is not None:
        ours, on = found[found["method"].eq(method)].drop(columns="method"), [*PANEL, "step"]
    pairs = ours.merge(theirs(), on=on)
    return pairs.assign(gap=pairs["mean"] - pairs["published"])


def distances(pairs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The root mean square of the gaps: over all epochs, and without the first, where the network has seen no point yet."""
    square = pairs.assign(all=pairs["gap"] ** 2, later=(pairs["gap"] ** 2).where(pairs["step"] > 0))
    found = square.groupby(by, sort=False)[["all", "later"]].mean() ** 0.5
    return found.rename(columns={"all": "all epochs", "later": "without epoch 0"})


def beside(found: pd.DataFrame, method: str = "A-MAML", of: str = "support") -> pd.DataFrame:
    """The published curve of a method and ours, at the figure's epochs: a row for each panel and source, as text."""
    pairs = compared(found[found["method"].eq(method) & found["set"].eq(of)])
    shown = pairs.assign(
        ours=[f"{m:.2f}" if np.isnan(h) else f"{m:.2f} ± {h:.2f}" for m, h in zip(pairs["mean"], pairs["half"], strict=True)],
        published=pairs["published"].map("{:.2f}".format),
    )
    wide = shown.melt([*PANEL, "step"], ["published", "ours"], "source").pivot(
        index=[*PANEL, "source"], columns="step", values="value"
    )
    return wide.rename_axis(columns="epoch").sort_index(level=[0, 1, 2], ascending=[True, True, False])


def more_shots(found: pd.DataFrame, epoch: int = 1000) -> pd.DataFrame:
    """The error with 100 shots over that with 50, at one epoch: published, and ours on support and held-out points."""
    at = found[found["step"].eq(epoch)].pivot_table(index=["family", "method"], columns=["set", "shots"], values="mean")
    figure = theirs().query("step == @epoch").pivot(index=["family", "method"], columns="shots", values="published")
    quotients = {"published": figure[100] / figure[50]}
    for of in ("support", "held-out"):
        there = of in at and {50, 100} <= set(at[of])
        quotients[of] = at[of, 100] / at[of, 50] if there else figure[100] * float("nan")
    return pd.DataFrame(quotients).reindex(
        pd.MultiIndex.from_product([figure.index.levels[0], METHODS], names=["family", "method"])
    )


def final(found: pd.DataFrame, epoch: int = 1000) -> pd.DataFrame:
    """Support errors at one epoch, a row for each method and a column for each panel: published, and ours."""
    ours = found[found["step"].eq(epoch) & found["set"].eq("support")].pivot(index="method", columns=PANEL, values="mean")
    figure = theirs().query("step == @epoch").pivot(index="method", columns=PANEL, values="published")
    both = {"published": figure, "ours": ours.reindex(columns=figure.columns)}
    return pd.concat(both, axis=1).reindex([*METHODS, UNTRAINED])


def spread(found: pd.DataFrame, epoch: int = 1000) -> pd.DataFrame:
    """The largest final support error over the smallest, among the six methods of each panel: published, and ours."""
    table = final(found, epoch).drop(index=UNTRAINED)
    return (table.max() / table.min()).unstack(level=0)


def above_untrained(found: pd.DataFrame, epoch: int = 1000) -> tuple[int, int]:
    """How many of the published final errors of baselines lie above an untrained network's support error, and how many there
    are."""
    mine = final(found, epoch)
    baselines = mine["published"].drop(index=["A-MAML", UNTRAINED])
    untrained = mine["ours"].loc[UNTRAINED].dropna()
    return int((baselines[untrained.index] > untrained).sum().sum()), int(baselines[untrained.index].notna().sum().sum())


def stand_ins(table: pd.DataFrame) -> pd.DataFrame:
    """Which curve of ours is nearest to each published one: candidates are the untrained network and the methods of every variant,
    fitted at each of ``RATES``.

    Returns:
        For each panel and published method the ``nearest`` candidate, its ``distance`` (root mean square over the epochs after 0),
        and the distance of the method's ``own`` curve under the recipe at the released rate.
    """
    candidates = []
    for variant in VARIANTS:
        for rate in RATES:
            mine = curves(table, variant, rate, set="support")
            for method in mine["method"].unique():
                if method == UNTRAINED and variant != "the recipe":
                    continue  # no variant changes the untrained network
                name = ", ".join([method, *([variant] if variant != "the recipe" else []), f"rate {rate:g}"])
                pairs = compared(mine, method)
                found = distances(pairs, [*PANEL, "method"])["without epoch 0"].rename("distance").reset_index()
                candidates.append(found.assign(nearest=name))
    if not candidates:
        return pd.DataFrame()
    every = pd.concat(candidates)
    best = every.sort_values("distance", kind="stable").groupby([*PANEL, "method"], sort=False).head(1)
    own = distances(compared(curves(table, set="support")), [*PANEL, "method"])["without epoch 0"].rename("own")
    found = best.set_index([*PANEL, "method"]).join(own)[["nearest", "distance", "own"]]
    return found.reindex(pd.MultiIndex.from_product([*[found.index.levels[i] for i in (0, 1)], METHODS], names=found.index.names))


def changed(table: pd.DataFrame, epoch: int = 1000) -> pd.DataFrame:
    """What becomes of the recipe with one thing changed at a time: for each of ``VARIANTS`` and each family, with the fewer shots,
    the training ``seeds``, how many ``methods`` were trained, A-MAML's distance from its published curve after epoch 0 on
    ``support`` and ``held-out`` points, and the largest final support error of the methods over the smallest, ``apart``."""
    rows = []
    for variant in VARIANTS:
        found = curves(table, variant, shots=SHOTS[0])
        for family in FAMILIES:
            here = found[found["family"].eq(family) & found["method"].ne(UNTRAINED)]
            if here.empty:
                continue
            mine = distances(compared(here[here["method"].eq("A-MAML")]), ["set"])["without epoch 0"]
            ends = here[here["step"].eq(epoch) & here["set"].eq("support")]["mean"]
            apart = ends.max() / ends.min() if len(ends) > 1 else np.nan
            seeds, methods = span(here["seeds"], "{:.0f}"), here["method"].nunique()
            rows.append([variant, family, seeds, methods, mine.get("support"), mine.get("held-out"), apart])
    names = ["variant", "family", "seeds", "methods", "support", "held-out", "apart"]
    return pd.DataFrame(rows, columns=names).set_index(names[:2]).astype(dict.fromkeys(names[4:], float))


def moved_away(table: pd.DataFrame) -> pd.Series:
    """By how much A-MAML's support curve is farther from the published one with a change than under the recipe, on the seeds that
    changes were trained with, by family and change."""
    other = table[list(RECIPE)].ne(pd.Series(RECIPE)).any(axis=1) & table["method"].ne(UNTRAINED)
    if not other.any():
        return pd.Series(dtype=float)
    pairs = changed(table[table["seed"].isin(table.loc[other, "seed"])])["support"].unstack(level=0)
    return pairs.drop(columns="the recipe").sub(pairs["the recipe"], axis=0).stack().dropna()


def said(table: pd.DataFrame) -> str:
    """What the curves rest on, in words."""
    if table["size"].ne("full").any():
        return f"no records yet: trained here, at the size {table['size'].iloc[0]}"
    seeds = _seeds(table)
    missing = 4 * (len(METHODS) + 1) - len(seeds)
    return f"{span(seeds, '{:.0f}')} training seeds, 100 test functions each" + (
        f"; {missing} curves have no record" if missing else ""
    )


def _seeds(table: pd.DataFrame) -> pd.Series:
    """How many training seeds each curve of the recipe rests on."""
    return select(table).groupby([*PANEL, "method"])["seed"].nunique()


def facts(table: pd.DataFrame, epoch: int = 1000) -> dict[str, str]:
    """The numbers of the chapter's prose; a dash where a curve is missing."""
    found = curves(table)
    mine = found[found["method"].eq("A-MAML") & found["set"].eq("support")]
    families = distances(compared(mine), ["family"])["without epoch 0"]
    gaps = {
        s: distances(compared(found[found["set"].eq(s) & found["method"].eq("A-MAML")]), ["method"])
        for s in ("support", "held-out")
    }
    shots, apart, near = more_shots(found, epoch), spread(found, epoch), stand_ins(table)
    near = near[near.index.get_level_values("method") != "A-MAML"].dropna() if len(near) else near
    above, baselines = above_untrained(found, epoch)
    tried = changed(table, epoch).drop(index="the recipe", level=0)
    further = moved_away(table)
    first = compared(mine[mine["step"].eq(0) & mine["family"].eq("cosmixture")])["gap"]
    return {
        "seeds": span(_seeds(table), "{:.0f}"),
        "changes-seeds": span(tried["seeds"].str.split(" to ").explode(), "{:.0f}"), "changes-spread": span(tried["apart"]),
        "changes-farther": str(int(further.gt(0).sum())), "changes-cases": str(len(further)),
        "changes-by": text(further.max(), digits=1), "first": span(first),
        **{s: text(gap["without epoch 0"].get("A-MAML"), digits=2) for s, gap in gaps.items()},
        **{f"support-{family}": text(families.get(family), digits=2) for family in FAMILIES},
        "falling": text(falling(theirs().query("step > 0")), digits=2),
        **{f"shots-{s}": span(shots[s]) for s in ("published", "support", "held-out")},
        **{f"spread-{s}": span(apart[s]) if s in apart else "–" for s in ("published", "ours")},
        "above": str(above), "baselines": str(baselines),
        "half-rate": str(int(near["nearest"].str.endswith(f"rate {RATES[1]:g}").sum())) if len(near) else "–",
        "baseline-curves": str(len(near)),
        "explained": str(int(near["distance"].le(NEAR).sum())) if len(near) else "–", "near": f"{NEAR:g}",
        "untrained-nearest": str(int(near["nearest"].str.startswith(UNTRAINED).sum())) if len(near) else "–",
        "farthest": text(near["distance"].max(), digits=2) if len(near) else "–",
    }  # fmt: skip
