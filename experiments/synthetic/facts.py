"""The numbers that the prose of the chapter says, by name, from rows."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from ..common.cells import TOLERANCE
from ..common.plots import TITLES
from ..common.tables import span
from . import horizons
from .settings import METHODS, UNTRAINED
from .tables import (
    above_untrained,
    errors,
    guesses,
    learned,
    over_seeds,
    paired,
    reading_error,
    readings,
    rounding,
    seed_variance,
    select,
    theirs,
)


def share(outcomes: Iterable[bool]) -> str:
    """``29 of the 30``: how many are true."""
    found = list(outcomes)
    return f"all {len(found)}" if all(found) and found else f"{sum(found)} of the {len(found)}"


def hard(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of all functions but the slides' mixture."""
    return table[table["family"].ne("cosmixture") | table["variant"].ne("slides")]


def final_support(table: pd.DataFrame, epoch: int = 1000) -> pd.DataFrame:
    """Rows of the support error of two inputs after so many Adam epochs, on all functions but the slides' mixture."""
    return hard(select(table, protocol="adam", set="support", d=2, step=epoch))


def of_curves(table: pd.DataFrame) -> dict[str, str]:
    """What is said of curves."""
    adam = over_seeds(select(table, protocol="adam"))
    none = select(adam, method=UNTRAINED)
    two, dome = select(none, d=2, set="held-out"), select(none, d=2, set="held-out", family="cosmixture", variant="slides")
    few = hard(select(two, shots=50))
    turn = few.loc[few.groupby(["family", "variant"])["mean"].idxmin()]
    shape = hard(pd.concat([select(none, d=2, set="support"), select(none, d=1, set="held-out")]))
    six = hard(select(adam, d=2, shots=50, set="held-out", step=1000).query("method != @UNTRAINED"))
    count, total = above_untrained(table, "slides", "cosmixture")
    gain, ratio = learned(table), seed_variance(table)["quotient"]
    apart = hard(gain).groupby(["family", "variant"])["mean"].agg(lambda values: values.max() - values.min())
    best = gain.loc[gain.groupby(["family", "variant"])["mean"].idxmin()] if len(gain) else gain
    winners = [f"{row.method} on {TITLES[row.family]}, {row.variant}" for row in best.itertuples()]
    variance = {f"variance-{d}-{of}": ratio.get(("adam", d, of), float("nan")) for d in (1, 2) for of in ("support", "held-out")}
    return {
        "dome-200": span(select(dome, step=200)["mean"]), "dome-1000": span(select(dome, step=1000)["mean"]),
        "above": share([True] * count + [False] * (total - count)),
        "best-epoch": span(turn["step"], "{:.0f}"), "best-error": span(turn["mean"]),
        "late-error": span(select(few, step=1000)["mean"]),
        "six": span(six["mean"]), "shape": span(select(shape, step=1000)["mean"]),
        "learned": share(gain["resolved"] & gain["mean"].lt(0)), "gain": span(-hard(gain)["mean"]),
        "apart": span(apart), "winners": "; ".join(winners) or "–",
        **{name: f"{value:.1f}" for name, value in variance.items()},
    }  # fmt: skip


def of_ladder(found: pd.DataFrame) -> dict[str, str]:
    """What is said of :func:`experiments.synthetic.tables.ladder`, on the three hard functions."""
    three = hard(found.reset_index())
    return {
        "adapting": span(three["not adapted"] - three["adapted"], "{:.3f}"), "nearest-point": span(three["nearest point"]),
        "above-mean": span(three["adapted"] - three["family mean"], "{:.3f}"), "family-mean": span(three["family mean"]),
    }  # fmt: skip


def of_rounding(table: pd.DataFrame, nudged: pd.DataFrame) -> dict[str, str]:
    """What is said of rounding."""
    found = rounding(table, nudged)
    beyond = found[~found["within"]]
    names = [f"{name} {len(rows)}" for name, rows in beyond.groupby("method")]
    return {
        "tolerance": f"{TOLERANCE:.0%}", "rounding-within": share(found["within"]), "rounding-beyond": ", ".join(names) or "none",
        "rounding-two-inputs": share(select(found, d=2)["within"]),
        "rounding-median": f"{found['apart'].median():.0e}", "rounding-largest": f"{found['apart'].max():.0%}",
    }  # fmt: skip


def of_distances(table: pd.DataFrame) -> dict[str, str]:
    """What is said of the distances to the published figure."""
    constant, falling = guesses()
    trained, none = readings(table), readings(table, UNTRAINED)
    average = theirs().groupby("step")["published"].mean()
    label, variant, d = trained.index[0] if len(trained) else ("–", "–", 0)
    return {
        "published-start": f"{average.iloc[0]:.2f}", "published-end": f"{average.iloc[-1]:.2f}",
        "constant": f"{constant:.2f}", "falling": f"{falling:.2f}", "reading-error": f"{reading_error():g}",
        "readings": str(len(trained)), "nearest": f"{label}, {variant}, d = {d}",
        "nearest-distance": span(trained.mean(axis=1).head(1)), "panels-least": span([trained.min().min()]),
        "untrained-least": span([none.mean(axis=1).min()]),
    }  # fmt: skip


def of_order(table: pd.DataFrame) -> dict[str, str]:
    """What is said of the order of the methods by their final support error."""
    end = final_support(table)
    if end.empty:
        return dict.fromkeys(("highest", "exceptions", "higher", "higher-resolved", "lower-resolved", "maml-seeds"), "–")
    order = hard(errors(table, set="support", d=2)["mean"][list(METHODS)].reset_index())
    order["highest"] = order[list(METHODS)].idxmax(axis=1)
    others = order[order["highest"].ne("A-MAML")]
    words = [f"{row.highest} on {TITLES[row.family]}, {row.variant}, {row.shots} shots" for row in others.itertuples()]
    pairs = paired(end[end["method"].ne(UNTRAINED)], "A-MAML")
    return {
        "highest": share(order["highest"].eq("A-MAML")), "exceptions": "; ".join(words) or "none",
        "higher": share(pairs["mean"].lt(0)), "higher-resolved": str((pairs["resolved"] & pairs["mean"].lt(0)).sum()),
        "lower-resolved": str((pairs["resolved"] & pairs["mean"].gt(0)).sum()),
        "maml-seeds": span(select(end, method="MAML", variant="released", family="cosmixture", shots=50)["mean"]),
    }  # fmt: skip


def of_horizons(table: pd.DataFrame) -> dict[str, str]:
    """What is said of the horizon test, of the lines of equal inner rates."""
    lines, most, cost = horizons.lines(table), table["trained_steps"].max(), horizons.fomaml_less_amaml(table)
    arms = lines.loc[lines["same"], horizons.ARM].drop_duplicates()
    above = horizons.above_lowest(table).reset_index().merge(arms)
    costs = horizons.too_early(table)
    early, resolved = (frame.reset_index().merge(arms) for frame in (costs["mean"], costs["mean"].gt(costs["half"])))
    found = {
        "fomaml-dearer": f"{cost['dearer'].sum()} of the {cost['seeds'].sum()}",
        "most": str(most), "compared": str(len(cost)), "fomaml-more": share(cost["mean"].gt(0)),
        "fomaml-more-resolved": str((cost["resolved"] & cost["mean"].gt(0)).sum()),
        "fomaml-less-resolved": str((cost["resolved"] & cost["mean"].lt(0)).sum()),
    }  # fmt: skip
    for method in arms["method"].unique():
        key = method.lower()
        found[f"early-{key}"] = span(select(early, method=method)[most])
        found[f"early-resolved-{key}"] = share(select(resolved, method=method)[most])
        found |= {f"{where}-{key}": span([select(above, method=method)[where].max()], "{:.3f}") for where in ("at", "beyond")}
    return found
