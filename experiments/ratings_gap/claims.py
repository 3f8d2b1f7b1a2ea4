"""What the chapter concludes from the hypotheses, each with the test that would refute it; and the numbers in its text."""

from __future__ import annotations

import pandas as pd

from ..common.claims import Claim, decide
from ..ratings.settings import SHOTS
from .tables import KEYS, paper, patterns, support_fit, theirs, with_both

FEW, MANY = SHOTS
NEAR = 1.5  # by such a factor a combination may differ from the paper's numbers and be called near


def conclusions(errors: pd.DataFrame, table: pd.DataFrame) -> list[Claim]:
    """What the chapter concludes.

    Args:
        errors: rows of all hypotheses.
        table: of :func:`.tables.compare`.
    """
    wanted, both, falls = paper(), with_both(table), patterns(table)["support"]["fall"]
    fit, low, high = support_fit(errors).loc["base"], theirs()["value"].min(), theirs()["value"].max()
    said = f"fall {wanted['fall']:.2f}, spread {wanted['spread']:.2f}"
    drawn = [
        ("No combination that was tried gives the paper's size, fall and spread at once",
         f"of those with its fall and spread none is within a factor of {NEAR}", said,
         f"{len(both)} of {len(table)} have its fall and spread, the nearest within a factor of "
         + (f"{both['factor'].min():.2f}" if len(both) else "–"),
         [(both["factor"] > NEAR).all()]),
        ("Errors of the published size come up on the support set",
         "its mean RMSE after the steps of the training, at the largest rate, overlaps the published range",
         f"{low:.3f} to {high:.3f}", f"{fit['min']:.3f} to {fit['max']:.3f}", [fit["min"] < high and fit["max"] > low]),
        ("But there they rise with the shots, and the published ones fall",
         "the fall of the RMSE on the support set, in the mean over data and methods, is above 1 for every hypothesis",
         f"fall {wanted['fall']:.2f}",
         f"{falls.min():.2f} to {falls.max():.2f}", falls > 1),
    ]  # fmt: skip
    return [
        Claim("ratings", what, test, published, ours, decide(bool(o) for o in out)) for what, test, published, ours, out in drawn
    ]


def facts(errors: pd.DataFrame, table: pd.DataFrame) -> dict[str, str]:
    """Every number that the chapter says in its text of the hypotheses, by name."""
    both, fit, support = with_both(table), support_fit(errors), patterns(table)["support"]
    near = table.groupby("hypothesis")["factor"].min()
    mine = errors[errors["step"].eq(errors["trained"])].groupby(["hypothesis", *KEYS])["query"].mean()
    filled = {name: mine[name, "ml-100k"] for name in ("base", "user mean", "user mean, first")}
    found = {
        "gap-combinations": f"{len(table)}",
        "gap-nearest": f"{near.min():.2f} to {near.max():.2f}",
        "gap-both": f"{len(both)}",
        "gap-both-where": "; ".join(f"“{c.hypothesis}”, {c.set} set, {c.steps} steps, {c.score}" for c in both.itertuples())
        or "none",
        "gap-both-factor": f"{both['factor'].min():.2f}" if len(both) else "–",
        "gap-rising": f"{support['fall'].gt(1).sum()} of {len(support)}",
        "gap-spread": f"{support['spread'].min():.1f} to {support['spread'].max():.1f}",
        "gap-fit": f"{fit.loc['base', 'min']:.2f} to {fit.loc['base', 'max']:.2f}",
        "gap-fit-same": f"{fit.loc['same', 'min']:.2f} to {fit.loc['same', 'max']:.2f}",
    }
    for name, values in filled.items():
        found[f"gap-{name.replace(', ', '-').replace(' ', '-')}"] = f"{values.min():.2f} to {values.max():.2f}"
    return found
