"""How long should the horizon be? The same step size, more and more inner steps; from rows of the kind ``horizons``."""

from __future__ import annotations

import pandas as pd

from ..common.claims import Claim, decide
from ..common.statistics import seed_interval
from .settings import CHOSEN, HORIZON_METHODS, HORIZON_STEPS, SIZES

LONG = SIZES["full"].inner_steps  # that of the published table


def own(table: pd.DataFrame) -> pd.DataFrame:
    """Mean RMSE of the test users after the steps that were trained for: a row for each seed and number of steps, a column for
    each method."""
    mine = table[table["step"].eq(table["trained"])]
    return mine.groupby(["seed", "trained", "method"])["query"].mean().unstack("method")


def by_horizon(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`own` over seeds with its 95 % interval (t), and FOMAML less A-MAML seed by seed; by number of steps and horizon."""
    if table.empty:
        return pd.DataFrame()
    found, rows = own(table), {}
    for steps, group in found.groupby("trained"):
        columns = group[list(HORIZON_METHODS)].assign(**{"FOMAML − A-MAML": group["FOMAML"] - group["A-MAML"]})
        rows[steps] = {name: str(seed_interval(values)) for name, values in columns.items()}
        rows[steps] |= {"seeds": len(group), "T": steps * CHOSEN[1]["A-MAML"].inner_lr}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("inner steps").set_index("T", append=True)


def conclusions(table: pd.DataFrame) -> list[Claim]:
    """Whether a horizon beyond the published one pays, and whether an exact gradient matters more there; each with its test."""
    if table.empty:
        return []
    found = own(table)
    exact, behind = found["A-MAML"].unstack("trained"), (found["FOMAML"] - found["A-MAML"]).unstack("trained")
    shorter, longer = (seed_interval(exact[k] - exact[LONG]) for k in (HORIZON_STEPS[0], HORIZON_STEPS[-1]))
    more = seed_interval(behind[HORIZON_STEPS[-1]] - behind[HORIZON_STEPS[0]])
    asked = [
        ("A tenth of the horizon costs A-MAML accuracy", "above 0", shorter, shorter.mean > shorter.half_width),
        ("A four times longer horizon improves A-MAML", "below 0", longer, longer.mean < -longer.half_width),
        ("FOMAML falls further behind A-MAML as the horizon grows", "above 0", more, more.mean > more.half_width),
    ]
    return [
        Claim("ratings", claim, f"the interval of the difference in RMSE over seeds lies {side}", "–",
              f"{d.mean:+.3f} ± {d.half_width:.3f}", decide([outcome]), f"{d.count} training seeds")
        for claim, side, d, outcome in asked
    ]  # fmt: skip
