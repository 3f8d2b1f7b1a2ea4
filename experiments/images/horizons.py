"""How long the horizon should be, and how much of the network should follow the flow: a table and what it decides."""

from __future__ import annotations

import pandas as pd

from ..common.claims import Claim, decide
from ..common.tables import NOT_RUN, span
from .settings import HEAD, HORIZONS, WHOLE
from .tables import accuracy, difference, final, over, said

SHORT, USUAL, LONG = (f"{WHOLE}, T={T:g}" for T in (0.1, 0.5, 2.0))
HEADS = [row for row in HORIZONS if row.startswith(HEAD)]


def by_horizon(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (%) on test tasks by row, with transduction and without, and how far it is from that at T = 0.5, task by task."""
    return pd.DataFrame(
        {
            row: {
                "inner steps": str(recipe),
                "with transduction": said(accuracy(table, row), NOT_RUN),
                "one at a time": said(accuracy(table, row, alone=True), NOT_RUN),
                "less that at T = 0.5": said(difference(table, row, USUAL), signed=True) if row != USUAL else "–",
                "intervals over": over(table, row),
            }
            for row, recipe in HORIZONS.items()
        }
    ).T


def facts(table: pd.DataFrame) -> dict[str, str]:
    """The numbers of the prose: accuracies (%) by seed at the longest horizons, and what the head gains by its longer one."""
    found = {row: final(table, row) for row in (LONG, HEADS[-1])}
    seeds = {row: [] if values.empty else values.groupby(level="seed").mean() for row, values in found.items()}
    return {
        "images-horizon-whole": span(seeds[LONG], "{:.0f}"),
        "images-horizon-head": span(seeds[HEADS[-1]], "{:.0f}"),
        "images-horizon-gain": said(difference(table, HEADS[-1], HEADS[0])),
    }


def conclusions(table: pd.DataFrame) -> list[Claim]:
    """What one would expect of the horizon and of the head, each with the test that would refute it."""
    above = "the interval of the difference over training seeds lies above 0"
    asked = [
        ("A horizon of one step is too short", [(USUAL, SHORT)]),
        ("After as many updates a four times longer horizon is better", [(LONG, USUAL)]),
        ("A ten times longer horizon is better for the head alone", [(HEADS[-1], HEADS[0])]),
        ("Adapting the whole network is better than adapting the head alone", [(USUAL, head) for head in HEADS]),
    ]
    found = []
    for claim, pairs in asked:
        apart = [difference(table, *pair) for pair in pairs]
        run = all(apart)
        least = min(apart, key=lambda d: d.mean - d.half_width) if run else None
        verdict = decide(d.mean > d.half_width for d in apart) if run else "not run"
        found.append(Claim("images", claim, above, "–", said(least, NOT_RUN, signed=True), verdict, over(table, USUAL)))
    return found
