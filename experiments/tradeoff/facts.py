"""The numbers that the chapter's text quotes, as it quotes them; all from rows."""

from __future__ import annotations

import pandas as pd

from . import tables
from .candidates import ADAPTIVE, BACKSOLVE, COARSE, EXACT, FIRST_ORDER, REPTILE, STORE, THINNED, UNROLLED
from .tables import BFLOAT16, HEUN, IMAML, Case, Rows

CLOSE = (REPTILE, "truncated, K/2", "truncated, K/10", "iMAML, λT=1")  # training runs that end near the exact one
FLOW = (THINNED, COARSE, ADAPTIVE)  # groups that solve the flow instead of following the descent
LOOSE = f"{ADAPTIVE}: rtol=1e-02, discrete"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(value: float, digits: int = 2) -> str:
    """``0.45``."""
    return f"{float(f'{value:.{digits}g}'):g}"


def percent(value: float) -> str:
    """``2.4 %``."""
    return f"{plain(100 * value)} %"


def power(value: float) -> str:
    """``6.8·10⁵``."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}·10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def arrows(values: pd.Series) -> str:
    """``0.44 → 0.62 → 0.26``."""
    return " → ".join(f"{value:.2f}" for value in values)


def facts(rows: Rows) -> dict[str, str]:
    """All of them, by label."""
    found = _costs(rows) | _horizons(rows) | _along_training(rows) | _stability(rows) | _trained(rows)
    return {f"tradeoff-{name}": text for name, text in found.items()}


def _costs(rows: Rows) -> dict[str, str]:
    table = tables.cost_map(rows["errors"], rows["costs"]).set_index("candidate")
    store, checkpoint = table.loc[f"{STORE}: Store"], table.loc[f"{STORE}: Checkpoint"]
    unrolled, error = table.loc[UNROLLED], table["error"]
    return {
        "memory-store": plain(unrolled["MiB"] / store["MiB"]),
        "memory-checkpoint": plain(unrolled["MiB"] / checkpoint["MiB"]),
        "time-store": plain(store["ms"] / unrolled["ms"]),
        "time-checkpoint": plain(checkpoint["ms"] / unrolled["ms"]),
        "time-spread": plain((table["high"] / table["low"]).max()),
        "time-m5": plain(table.loc[HEUN[5], "ms"] / table.loc[HEUN[1], "ms"]),
        "shelf": percent(error[table["group"].isin(FLOW)].min()),
        "imaml": percent(error[IMAML[1, 5]]),
        "imaml-10": percent(error[IMAML[1, 10]]),
        "imaml-1": percent(error[IMAML[1, 1]]),
        "imaml-wrong": plain(error[IMAML[0.5, 5]]),
    }


def _horizons(rows: Rows) -> dict[str, str]:
    """For the seeds that all horizons and step sizes have."""
    table = tables.shared_seeds(tables.by_batch_medians(rows["errors"]))
    lr, steps = tables.main_case(rows["errors"])
    start = table[table["updates"].eq(table["updates"].min()) & table["inner_lr"].eq(lr)]
    cosines = tables.spread(start, FIRST_ORDER, "T", "cosine")["median"]
    errors = tables.spread(start, HEUN[1], "T")["median"]
    halved, close = tables.halved(rows["errors"]), tables.following(rows["errors"])
    return {
        "fomaml-horizons": ", ".join(f"{cosine:.2f} over T = {T:g}" for T, cosine in cosines.items()),
        "m1-horizons": ", ".join(f"{percent(error)} over T = {T:g}" for T, error in errors.items()),
        "halving": f"{plain(halved.min())} to {plain(halved.max())}",
        "long-step": plain(close[2 * lr, steps // 2].min()),
    }


def _along_training(rows: Rows) -> dict[str, str]:
    """At the main case."""
    every = tables.by_batch_medians(rows["errors"])
    here = tables.at(every, tables.main_case(rows["errors"]))
    errors = {name: tables.spread(here, name, "updates") for name in (*HEUN.values(), BFLOAT16, IMAML[0.5, 10], LOOSE)}
    medians = {name: table["median"] for name, table in errors.items()}
    cosines = {name: tables.spread(here, name, "updates", "cosine")["median"] for name in (FIRST_ORDER, *IMAML.values())}
    refused = every.loc[every["group"].eq(BACKSOLVE), "refused"]
    broken = errors[HEUN[5]].iloc[1]
    return {
        "bfloat16-start": percent(medians[BFLOAT16].iloc[0]),
        "bfloat16-end": percent(medians[BFLOAT16].iloc[-1]),
        "m1-largest": percent(medians[HEUN[1]].max()),
        "m2-end": power(medians[HEUN[2]].iloc[-1]),
        "m5-start": percent(medians[HEUN[5]].iloc[0]),
        "m5-middle": power(broken["median"]),
        "m5-range": f"{power(broken['min'])} to {power(broken['max'])}",
        "fomaml-cosines": arrows(cosines[FIRST_ORDER]),
        "imaml-cosines": arrows(cosines[IMAML[1, 5]]),
        "imaml-start-10": plain(medians[IMAML[0.5, 10]].iloc[0]),
        "imaml-end-10": plain(cosines[IMAML[0.5, 10]].iloc[-1], 3),
        "loose-end": power(medians[LOOSE].iloc[-1]),
        "refused": f"{refused.sum()} of {len(refused)}",
    }


def _stability(rows: Rows) -> dict[str, str]:
    """Of step size times largest eigenvalue."""
    curvature, case = rows["curvature"], tables.main_case(rows["errors"])
    lr, steps = case
    same = tables.shared_seeds(curvature)  # as in the table of step sizes

    def last(case: Case, place: str) -> float:
        return tables.sharpness(same, case, place)["median"].iloc[-1]

    ends, grid = tables.sharpness(curvature, case), tables.stability(rows["errors"], curvature)
    return {
        "sharp-start": plain(ends["median"].iloc[0]),
        "sharp-end": plain(ends["median"].iloc[-1], 3),
        "sharp-range": f"{plain(ends['min'].iloc[-1], 3)} to {plain(ends['max'].iloc[-1], 3)}",
        "sharp-half": plain(last((lr / 2, 2 * steps), "end")),
        "sharp-twice": plain(last((2 * lr, steps // 2), "start")),
        "below": f"{(grid['product'] < tables.LIMIT).sum()}",
        "below-worst": percent(grid.loc[grid["product"] < tables.LIMIT, "error"].max()),
        "above": f"{(grid['product'] > tables.LIMIT).sum()}",
        "above-best": percent(grid.loc[grid["product"] > tables.LIMIT, "error"].min()),
    }


def _trained(rows: Rows) -> dict[str, str]:
    table = tables.against_exact(rows["training"])
    exact = table.loc[EXACT, "held_out"]
    return {
        "untrained": plain(tables.untrained(rows["training"]), 3),
        "fomaml-ratio": plain(table.loc[FIRST_ORDER, "held_out"] / exact),
        "half-gain": percent(-table.loc["truncated, K/2", "difference"] / exact),
        "close": percent(table.loc[list(CLOSE), "difference"].abs().max() / exact),
    }
