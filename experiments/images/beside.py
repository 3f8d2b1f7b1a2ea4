"""The paper's table with ours beside it: at its full size where that has been run, else after fewer updates of the same task."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..common.claims import Claim, decide
from ..common.published import published
from ..common.tables import NOT_RUN
from .settings import CPU, PUBLISHED, ROWS, SIZES
from .tables import PAPER_TASKS, accuracy, difference, lost, over, paper, percent, recorded, said

SMALL = dict(zip(PAPER_TASKS, CPU, strict=True))  # the size for a CPU with the task and the network of each data set
BEST = "A-MAML, T=1.0"  # the paper's best row of its own
NAMES = {"omniglot": "Omniglot", "mini-imagenet": "mini-ImageNet"}


def small() -> dict[str, pd.DataFrame]:
    """The recorded rows after fewer updates, of each data set."""
    return {data: recorded("accuracy", size) for data, size in SMALL.items()}


def full() -> dict[str, pd.DataFrame]:
    """The recorded rows of the full size, of each data set."""
    return {data: recorded("accuracy", data) for data in PAPER_TASKS}


def updates(data: str, row: str) -> tuple[int, int]:
    """How many meta updates the row takes at the size for a CPU, and how many its own paper does."""
    return SIZES[SMALL[data]].updates, PUBLISHED[data][row].updates or SIZES[data].updates


def at_paper_size(full: Mapping[str, pd.DataFrame], small: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracies (%): the paper's, ours after fewer updates with transduction and without, and ours at the full size.

    Args:
        full, small: rows of each of ``PAPER_TASKS``, as :func:`full` and :func:`small` give them.
    """
    found = {}
    for data in PAPER_TASKS:
        fewer = f"ours, {SIZES[SMALL[data]].updates:,} updates"
        found[data, "paper"] = paper(data)
        found[data, fewer] = _column(small[data], SMALL[data])
        found[data, f"{fewer}, one at a time"] = _column(small[data], SMALL[data], alone=True)
        found[data, "ours, full size"] = _column(full[data], data)
    return pd.DataFrame(found).reindex(list(ROWS))


def _column(table: pd.DataFrame, size: str, alone: bool = False) -> dict[str, str]:
    gone = lost(size)
    return {row: said(accuracy(table, row, alone), "diverged" if row in gone else NOT_RUN) for row in ROWS}


def at_equal_time(table: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy (%) of each row, at equal updates and at equal seconds of training: those of the row that took the
    fewest for all its updates.

    Returns:
        For each row the seconds of an update, the accuracy at the ``end`` of its updates, how many updates fit into the time of the
        fastest row (the last measured point of the learning curve within it), and the accuracy there; means over training seeds.
        Empty without records.
    """
    if table.empty:
        return table
    seen = percent(table[table["set"].eq("validation")])
    points = seen.groupby(["row", "seed", "update"]).agg(accuracy=("accuracy", "mean"), seconds=("seconds", "first")).reset_index()
    last = points.loc[points.groupby(["row", "seed"])["update"].idxmax()].set_index(["row", "seed"])
    time = last["seconds"].min()
    within = points[points["seconds"] <= time]
    there = within.loc[within.groupby(["row", "seed"])["update"].idxmax()].set_index(["row", "seed"])
    wide = pd.DataFrame(
        {
            "seconds an update": last["seconds"] / last["update"],
            "updates": last["update"],
            "accuracy after them": last["accuracy"],
            f"updates in {time / 60:.0f} min": there["update"].reindex(last.index, fill_value=0),
            "accuracy after these": there["accuracy"],
        }
    )
    return wide.groupby(level="row").mean().reindex([row for row in ROWS if row in set(last.index.get_level_values("row"))])


def report_rows() -> pd.DataFrame:
    """For each published accuracy what the records say, by data and row: ``mean``, ``half``, what the interval is ``over``, a
    ``note``, and whether the row ``diverged``."""
    rows, whole, less = {}, full(), small()
    for data in PAPER_TASKS:
        for row in ROWS:
            table, size, note = whole[data], data, ""
            if accuracy(table, row) is None:
                ours, theirs = updates(data, row)
                table, size, note = less[data], SMALL[data], f"the same task and network, {ours:,} updates instead of {theirs:,}"
            found, gone = accuracy(table, row), row in lost(size)
            rows[data, row] = {
                "mean": found and found.mean, "half": found and found.half_width, "over": over(table, row) if found else "",
                "note": note if found or gone else "needs hours", "diverged": gone,
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def claims(full: Mapping[str, pd.DataFrame], small: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """What the paper's table says of A-MAML at T = 1.0, against MAML and the best of the others, where it says that it is ahead.

    Args:
        full, small: rows of each of ``PAPER_TASKS``. Fewer updates decide where the full size has not been run, and a note says so.
    """
    found = []
    for data, task in PAPER_TASKS.items():
        theirs = published("images", source="table", data=data, shots=task).set_index("method")
        best = theirs.loc[[row for row in ROWS if not row.startswith("A-MAML")], "value"].idxmax()
        ahead = [row for row in dict.fromkeys(["MAML", best]) if theirs.loc[row, "value"] < theirs.loc[BEST, "value"]]
        for row in ahead:
            ours, table, note = difference(full[data], BEST, row), full[data], ""
            if ours is None:
                ours, table = difference(small[data], BEST, row), small[data]
                note = "after {:,} updates, where the paper has {:,}; ".format(*updates(data, BEST))
            apart = theirs.loc[BEST, "value"] - theirs.loc[row, "value"]
            half = np.hypot(theirs.loc[BEST, "error"], theirs.loc[row, "error"])  # as if the two were independent
            found.append(
                Claim(
                    "images",
                    f"{NAMES[data]}, {task}: A-MAML at T = 1.0 is more accurate than {row}",
                    "the interval of the difference, task by task, lies above 0",
                    f"{apart:+.2f} ± {half:.2f} %",
                    said(ours, "", signed=True),
                    decide([] if ours is None else [ours.mean > ours.half_width]),
                    "" if ours is None else note + over(table, BEST),
                )  # fmt: skip
            )
    return found


def recorded_claims() -> list[Claim]:
    """:func:`claims` of the records."""
    return claims(full(), small())
