"""The report as chapter "What reproduces, and what does not" shows it."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from .audit.claims import SCHEME
from .common import records
from .common.claims import Claim
from .common.claims import table as claims_table
from .common.plots import BLUE, GREEN, GREY, ORANGE, RED, WIDTH
from .common.tables import text
from .report import VERDICTS

LOOKS = ((BLUE, "o"), (RED, "s"), (ORANGE, "D"), (GREEN, "^"))
SIGNS = {"holds": "✓ holds", "holds in part": "◐ holds in part", "does not hold": "✗ does not hold", "not run": "– not run"}


def claims(found: Iterable[Claim]) -> pd.DataFrame:
    """Claims on one screen: the evaluation, the claim, the verdict."""
    rows = [{"evaluation": c.evaluation, "claim": c.claim, "verdict": SIGNS[c.verdict]} for c in found]
    return pd.DataFrame(rows).set_index(["evaluation", "claim"])


def screen(found: Iterable[Claim]) -> Styler:
    """:func:`claims` in small type: a line each, so that all of them fit on one screen."""
    table = claims(found).rename(index=lambda claim: claim.removeprefix("Ratings: "), level="claim")
    small = [
        {"selector": "", "props": "font-size: 0.75em; line-height: 1.25"},
        {"selector": "th, td", "props": "padding: 0 0.6em; text-align: left; vertical-align: top; white-space: nowrap"},
        {"selector": "th.level0", "props": "max-width: 8em; white-space: normal"},
        {"selector": "th.level1", "props": "font-weight: normal; white-space: normal"},  # so that no verdict is cut off
    ]
    return Styler(table, uuid="claims", cell_ids=False).set_table_styles(small).hide(names=True)


def tests(found: Iterable[Claim]) -> pd.DataFrame:
    """Claims with the tests that decide them, and with what was published and found."""
    return claims_table(found).set_index(["evaluation", "claim"])


def facts(found: list[Claim], numbers: pd.DataFrame) -> dict[str, str]:
    """How many claims have which verdict, and how far the paper's scheme is off."""
    count = {verdict: sum(claim.verdict == verdict for claim in found) for verdict in SIGNS}
    return {
        "claims": str(len(found)), "holds": str(count["holds"]), "part": str(count["holds in part"]),
        "fails": str(count["does not hold"]), "open": str(count["not run"]), "numbers": str(len(numbers)),
        "scheme": next(claim.ours for claim in found if claim.claim == SCHEME),
    }  # fmt: skip


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """How many numbers of each evaluation have which verdict."""
    found = table.pivot_table(index="evaluation", columns="verdict", values="published", aggfunc="count", fill_value=0, sort=False)
    found = found.reindex(columns=list(VERDICTS), fill_value=0)
    return found.assign(all=found.sum(axis=1))


def numbers(table: pd.DataFrame, evaluation: str) -> pd.DataFrame:
    """The rows of an evaluation, published and ours side by side, each with its interval."""
    rows = table[table["evaluation"].eq(evaluation)]
    pairs = {"published": ("published", "published_error"), "ours": ("ours", "half_width")}
    shown = {name: [text(*pair) for pair in zip(rows[value], rows[half], strict=True)] for name, (value, half) in pairs.items()}
    found = rows[["setting", "method", "measure"]].assign(**shown, over=rows["over"], verdict=rows["verdict"])
    return found.set_index(["setting", "method"])


def figure(table: pd.DataFrame) -> Figure:
    """Ours over the published number, for each that says something."""
    fig, axis = plt.subplots(figsize=(WIDTH, 5), layout="constrained")
    ran = table[table["verdict"].ne("given") & table["ours"].gt(0) & table["published"].gt(0)]
    looks = dict(zip(table["evaluation"].unique(), LOOKS, strict=True))
    for name, rows in ran.groupby("evaluation", sort=False):
        colour, marker = looks[name]
        axis.loglog(rows["published"], rows["ours"], marker, color=colour, ms=5, alpha=0.7, label=name)
    if len(ran):
        both = ran[["published", "ours"]].to_numpy()
        ends = both.min() / 1.5, both.max() * 1.5
        axis.plot(ends, ends, color=GREY, lw=1)
        axis.fill_between(ends, [e / 2 for e in ends], [e * 2 for e in ends], color="0.85", zorder=0)
        axis.legend()
    axis.set(xlabel="published", ylabel="ours")
    return fig


def spent() -> pd.DataFrame:
    """Cells and hours of every evaluation, by machine."""
    found = [
        {"machine": record.machine, "evaluation": file.stem, "hours": record.duration / 3600}
        for file in sorted(records.RESULTS.glob("*.jsonl"))
        for record in records.read(file.stem)
    ]
    table = pd.DataFrame(found, columns=["machine", "evaluation", "hours"])
    return (
        table.groupby(["machine", "evaluation"])["hours"].agg(["count", "sum"]).rename(columns={"count": "cells", "sum": "hours"})
    )
