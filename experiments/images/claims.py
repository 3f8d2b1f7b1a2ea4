"""What the chapters say in numbers, and what would refute it; all from rows."""

from __future__ import annotations

import re

import pandas as pd

from ..common.claims import Claim, decide
from ..common.statistics import below
from ..common.tables import span
from .beside import BEST
from .settings import EXACT, FIRST_ROWS, PUBLISHED, ROWS, SIZES
from .tables import (
    accuracy,
    at_edge,
    curve,
    difference,
    final,
    five_way,
    minutes,
    over,
    own_steps,
    paper,
    percent,
    said,
    transduction,
)

SLOW = ("Reptile", "iMAML-GD", "iMAML-HF")


def complete(table: pd.DataFrame) -> bool:
    """Whether all rows have been run."""
    return not any(final(table, row).empty for row in ROWS)


def slug(row: str) -> str:
    """A row's name as part of a label: ``a-maml-t-0-5``."""
    return re.sub(r"[^a-z0-9]+", "-", row.lower())


def published_facts() -> dict[str, str]:
    """The published accuracies that the chapters name: ``images-omniglot-maml`` and so on, and ``images-five-way-least``."""
    found = {f"images-{data}-{slug(row)}": text for data in PUBLISHED for row, text in paper(data).items()}
    return found | {"images-five-way-least": min((text.split()[0] for text in five_way().values()), key=float)}


def first_facts(table: pd.DataFrame, steps: int) -> dict[str, str]:
    """Of the first look: how far A-MAML and MAML are apart, the share (%) of the gain that comes with the first inner step, and the
    largest change (%) beyond those of the training; the last two of the method where they say least for us."""
    wide = percent(table).pivot_table(index="step", columns="row", values="accuracy")
    share = (wide.loc[1] - wide.loc[0]) / (wide.loc[steps] - wide.loc[0])
    beyond = (wide.loc[wide.index > steps] - wide.loc[steps]).abs().max()
    return {
        "images-first-apart": f"{abs(wide.loc[steps, 'A-MAML'] - wide.loc[steps, 'MAML']):.2f}",
        "images-first-share": f"{100 * share[list(FIRST_ROWS)].min():.0f}",
        "images-first-beyond": f"{beyond.max():.1f}",
    }


def facts(table: pd.DataFrame, choices: pd.DataFrame) -> dict[str, str]:
    """What the chapter says in numbers of the reduced size, by name; empty unless all rows have been run."""
    if not complete(table):
        return {}
    took = {row: minutes(table, row) for row in ROWS}
    longest = min(recipe.updates or SIZES["omniglot"].updates for recipe in PUBLISHED["omniglot"].values())
    return {
        "images-differing": f"{differing(table, BEST, 'MAML')} of {len(final(table, 'MAML'))}",
        "images-short": said(difference(table, "A-MAML, T=0.5", "MAML"), signed=True),
        "images-short-trials": _validated(choices, "A-MAML, T=0.5", (3, 5)),
        "images-fomaml": said(difference(table, "FOMAML", "MAML"), signed=True),
        "images-fomaml-time": f"{100 * took['FOMAML'] / took['MAML']:.0f}",
        "images-fomaml-time-adjoint": f"{100 * took['FOMAML'] / took[BEST]:.0f}",
        "images-slow": span((-difference(table, row, "MAML").mean for row in SLOW), "{:.1f}"),
        "images-longer": f"{longest / SIZES['reduced'].updates:.0f}",
        "images-added": span((transduction(table, row).mean for row in ROWS), "{:.1f}"),
        "images-last": said(difference(table, "Reptile", "iMAML-HF", alone=True), signed=True),
        "images-first-step": f"{100 * first_step(table):.0f}",
        "images-beyond": f"{beyond(table):.1f}",
        "images-edge-rate": _listed(at_edge(choices, "highest", "inner_lr")),
        "images-edge-steps": _listed(at_edge(choices, "lowest", "steps")),
        "images-edge-weight": _listed(at_edge(choices, "lowest", "regularization")),
    }


def conclusions(table: pd.DataFrame) -> list[Claim]:
    """What the chapter concludes from the reduced size, each with the test that would refute it."""
    if not complete(table):
        return []
    short, first_order = (difference(table, row, "MAML") for row in ("A-MAML, T=0.5", "FOMAML"))
    behind = {row: difference(table, row, "FOMAML") for row in SLOW}
    nearest = max(behind, key=lambda row: behind[row].mean)
    added = {row: transduction(table, row) for row in ROWS}
    least = min(added, key=lambda row: added[row].mean - added[row].half_width)
    count, share, change = differing(table, BEST, "MAML"), first_step(table), beyond(table)
    orders, last = (order(table, alone=False), order(table, alone=True)), difference(table, "Reptile", "iMAML-HF", alone=True)
    by_zero = "the interval of the difference, task by task, lies below 0"
    drawn = [
        ("A-MAML at T = 1.0 and MAML are one computation", "they have the same accuracy on every test task",
         f"different on {count}", [count == 0]),
        ("A-MAML at T = 0.5 is behind MAML", by_zero, f"{said(short, signed=True)} %", [below(short)]),
        ("FOMAML is behind MAML after as many updates", by_zero, f"{said(first_order, signed=True)} %", [below(first_order)]),
        ("Reptile and both iMAML rows are behind FOMAML", f"{by_zero}, for each",
         f"{said(behind[nearest], signed=True)} % ({nearest})", map(below, behind.values())),
        ("Transduction adds to every row", "the interval of what it adds, task by task, lies above 0, for each",
         f"{said(added[least], signed=True)} % ({least})", [found.mean > found.half_width for found in added.values()]),
        ("The order of the rows is the same without transduction", "no two rows change places",
         f"{'the same' if orders[0] == orders[1] else ', '.join(orders[1])}; Reptile less iMAML-HF {said(last, signed=True)} %",
         [orders[0] == orders[1]]),
        ("With an exact meta-gradient most of the accuracy comes with the first inner step",
         "more than half of the gain, for each row",
         f"at least {100 * share:.0f} % of the gain", [share > 0.5]),
        ("With an exact meta-gradient, steps beyond those of the training change little", "less than 1 %, for each row",
         f"at most {change:.1f} %", [change < 1]),
    ]  # fmt: skip
    return [Claim("images", claim, test, "–", ours, decide(outcomes), over(table, "MAML")) for claim, test, ours, outcomes in drawn]


def differing(table: pd.DataFrame, row: str, other: str) -> int:
    """On how many test tasks two rows have different accuracies."""
    return int((final(table, row) != final(table, other)).sum())


def first_step(table: pd.DataFrame) -> float:
    """The share of its gain in accuracy that a row has after one inner step; the smallest of the rows in ``EXACT``."""
    wide = curve(table)
    return min((wide.loc[1, r] - wide.loc[0, r]) / (accuracy(table, r).mean - wide.loc[0, r]) for r in EXACT)


def beyond(table: pd.DataFrame) -> float:
    """By how much (%) a row's accuracy changes at most beyond its own number of inner steps; the largest of those in ``EXACT``."""
    wide, own = curve(table), own_steps(table)
    return max((wide.loc[wide.index > own[r], r] - accuracy(table, r).mean).abs().max() for r in EXACT)


def order(table: pd.DataFrame, alone: bool) -> list[str]:
    """The rows, the most accurate first; of equals, the first of ``ROWS``."""
    return sorted(ROWS, key=lambda row: -accuracy(table, row, alone).mean)


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:]) or "none"


def _validated(choices: pd.DataFrame, row: str, steps: tuple[int, ...]) -> str:
    scores = choices[choices["row"].eq(row)].set_index("steps")["score"]
    return " and ".join(f"{100 * scores[k]:.1f}" for k in steps)
