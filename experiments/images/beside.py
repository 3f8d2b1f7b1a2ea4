"""The paper's table with ours beside it: the same tasks and networks, after as many updates as have been run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

import numpy as np
import pandas as pd

from ..common.claims import Claim, decide
from ..common.published import published
from ..common.tables import NOT_RUN
from .settings import EXACT, PAPER_TASKS, PUBLISHED, ROWS, SIZES, SIZES_OF
from .speed import AS_TRAINED
from .tables import accuracy, difference, final, lost, over, paper, percent, recorded, said

BEST = "A-MAML, T=1.0"  # the paper's best row of its own
IMPLICIT = [row for row in ROWS if row.startswith("iMAML")]
NAMES = {"omniglot": "Omniglot", "mini-imagenet": "mini-ImageNet"}
Tables = Mapping[str, pd.DataFrame]  # rows by size, for each size with the task and the network of the paper


def everything() -> dict[str, pd.DataFrame]:
    """The recorded accuracies of all ``SIZES_OF``."""
    return {size: recorded("accuracy", size) for sizes in SIZES_OF.values() for size in sizes}


def best_size(tables: Tables, data: str, *rows: str) -> str:
    """The size with the most updates at which all these rows have been run; the smallest if there is none."""
    sizes = SIZES_OF[data]
    return next((size for size in sizes if all(len(final(tables[size], row)) for row in rows)), sizes[-1])


def updates(size: str, row: str) -> tuple[int, int]:
    """How many meta updates the row takes at a size, and how many its own paper does."""
    full = SIZES[size].data
    own = PUBLISHED[full][row].updates or SIZES[full].updates
    return (own if size == full else SIZES[size].updates), own


def at_paper_size(tables: Tables) -> pd.DataFrame:
    """Accuracies (%) by row: the paper's, ours with transduction and without, and after how many updates; of each data set."""
    found = {}
    for data in PAPER_TASKS:
        sizes = {row: best_size(tables, data, row) for row in ROWS}
        missing = {row: "diverged" if row in lost(size) else NOT_RUN for row, size in sizes.items()}
        found[data, "paper"] = paper(data)
        for alone, name in ((False, "ours"), (True, "ours, one at a time")):
            found[data, name] = {row: said(accuracy(tables[sizes[row]], row, alone), missing[row]) for row in ROWS}
        counts = {row: "{:,} of {:,}".format(*updates(sizes[row], row)) for row in ROWS}
        found[data, "updates"] = {row: counts[row] if len(final(tables[sizes[row]], row)) else "–" for row in ROWS}
    return pd.DataFrame(found).reindex(list(ROWS))


def cost(measured: pd.DataFrame) -> pd.Series:
    """CPU seconds of an update of each row as it is trained, from rows of the kind ``speed``; empty without them."""
    if measured.empty:
        return pd.Series(dtype=float)
    return measured[measured["way"].eq(AS_TRAINED)].set_index("method")["seconds"]


def at_equal_cost(table: pd.DataFrame, seconds: pd.Series) -> pd.DataFrame:
    """Validation accuracy (%) of each row, at equal updates and at equal work: that of the row whose updates cost least in all.

    Rows were trained on machines of several kinds, several at once. So work is not what a clock said there, but the number of
    updates times what one costs on one core.

    Args:
        seconds: of :func:`cost`.

    Returns:
        For each row the CPU seconds of an update, the accuracy at the end of its updates, how many updates the least work pays for
        (the last measured point of the learning curve within it), and the accuracy there; means over training seeds. Empty without
        records.

    Raises:
        ValueError: if seeds of a row have different numbers of updates, which have no mean that is a number of updates.
    """
    if table.empty or seconds.empty:
        return pd.DataFrame()
    seen = percent(table[table["set"].eq("validation")])
    points = seen.groupby(["row", "seed", "update"])["accuracy"].mean().reset_index()
    points["work"] = points["update"] * points["row"].map(seconds)
    last = points.loc[points.groupby(["row", "seed"])["update"].idxmax()].set_index(["row", "seed"])
    least = last["work"].min()
    within = points[points["work"] <= least]
    there = within.loc[within.groupby(["row", "seed"])["update"].idxmax()].set_index(["row", "seed"])
    within_least = f"updates in {least / 60:.0f} min"
    wide = pd.DataFrame(
        {
            "seconds an update": last["work"] / last["update"],
            "updates": last["update"],
            "accuracy after them": last["accuracy"],
            within_least: there["update"].reindex(last.index, fill_value=0),
            "accuracy after these": there["accuracy"],
        }
    )
    rows = wide.groupby(level="row")
    if (uneven := rows[["updates", within_least]].nunique().gt(1).any(axis=1)).any():
        raise ValueError(f"the seeds of {', '.join(uneven[uneven].index)} have different numbers of updates: compare each alone")
    order = [row for row in ROWS if row in rows.groups]
    return rows.mean().reindex(order).astype({"updates": int, within_least: int})


def report_rows() -> pd.DataFrame:
    """For each published accuracy what the records say, by data and row: ``mean``, ``half``, what the interval is ``over``, a
    ``note``, and whether the row ``diverged``."""
    rows, tables = {}, everything()
    for data in PAPER_TASKS:
        for row in ROWS:
            size = best_size(tables, data, row)
            found, gone = accuracy(tables[size], row), row in lost(size)
            note = "" if size == data else "the same task and network, {:,} updates instead of {:,}".format(*updates(size, row))
            rows[data, row] = {
                "mean": found and found.mean, "half": found and found.half_width, "diverged": gone,
                "over": over(tables[size], row) if found else "", "note": note if found or gone else "needs hours",
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def claims(tables: Tables) -> list[Claim]:
    """What the paper's table says of A-MAML at T = 1.0, against MAML and the best of the others, where it says that it is ahead.
    The most updates that both have decide; a note says how many, where the paper has more."""
    found = []
    for data, task in PAPER_TASKS.items():
        theirs = published("images", source="table", data=data, shots=task).set_index("method")
        best = theirs.loc[[row for row in ROWS if not row.startswith("A-MAML")], "value"].idxmax()
        ahead = [row for row in dict.fromkeys(["MAML", best]) if theirs.loc[row, "value"] < theirs.loc[BEST, "value"]]
        for row in ahead:
            size = best_size(tables, data, BEST, row)
            ours = difference(tables[size], BEST, row)
            apart = theirs.loc[BEST, "value"] - theirs.loc[row, "value"]
            half = np.hypot(theirs.loc[BEST, "error"], theirs.loc[row, "error"])  # as if the two were independent
            open_ = "undecided, since the interval holds 0; " if ours and abs(ours.mean) <= ours.half_width else ""
            fewer = "after {:,} updates, where the paper has {:,}; ".format(*updates(size, BEST)) if size != data else ""
            found.append(
                Claim(
                    "images",
                    f"{NAMES[data]}, {task}: A-MAML at T = 1.0 is more accurate than {row}",
                    "the interval of the difference, task by task, lies above 0",
                    f"{apart:+.2f} ± {half:.2f} %",
                    said(ours, "", signed=True),
                    decide([] if ours is None else [ours.mean > ours.half_width]),
                    "" if ours is None else open_ + fewer + over(tables[size], BEST),
                )
            )
    return found


def conclusions(tables: Tables) -> list[Claim]:
    """What the shortened trainings show, of each data set, each with the test that would refute it."""
    found, others = [], [row for row in ROWS if row not in EXACT]
    for data, task in PAPER_TASKS.items():
        table = tables[f"cpu-{data}"]
        ahead = [difference(table, *pair) for pair in product(EXACT, others)]
        level = [difference(table, *pair) for pair in combinations(EXACT, 2)]
        longer = [difference(table, BEST, "A-MAML, T=0.5")]
        behind = [difference(table, row, other) for row in IMPLICIT for other in ROWS if other not in IMPLICIT]
        drawn = [
            ("the rows with an exact meta-gradient are ahead of all others",
             "the interval of each difference, task by task, lies above 0", ahead,
             lambda d: -d.mean, lambda d: d.mean > d.half_width),
            ("the rows with an exact meta-gradient are level",
             "the interval of each of their differences holds 0", level,
             lambda d: abs(d.mean), lambda d: abs(d.mean) <= d.half_width),
            ("the iMAML rows are behind all others", "the interval of each difference, task by task, lies below 0", behind,
             lambda d: d.mean, lambda d: d.mean < -d.half_width),
            ("A-MAML is more accurate at the longer of its horizons",
             "the interval of the difference, task by task, lies above 0", longer,
             lambda d: -d.mean, lambda d: d.mean > d.half_width),
        ]  # fmt: skip
        for claim, test, apart, closest, outcome in drawn:
            ours = max(apart, key=closest) if all(apart) else None  # the one that comes nearest to refuting it
            verdict = decide(map(outcome, apart)) if ours else "not run"
            words = f"{NAMES[data]}, {task}: {claim}"
            found.append(Claim("images", words, test, "–", said(ours, "", signed=True), verdict, over(table, "MAML")))
    return found
