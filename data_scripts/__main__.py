"""Prepare every data set that can be reached: ``python -m data_scripts [--images] [--status]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd

from data_scripts import jester, mini_imagenet, movielens_1m, movielens_100k, omniglot
from data_scripts.common import INTERRUPTED, DataError, DataSet, Unreachable, data_folder, defect, describe, prepare, strict

SMALL = (jester.DATASET, movielens_100k.DATASET, movielens_1m.DATASET, omniglot.DATASET)
LARGE = (mini_imagenet.DATASET,)


def status_table(datasets: Sequence[DataSet], notes: dict[str, str]) -> pd.DataFrame:
    """A row per data set: name, state, origin of the archive, and what it holds or why it is missing (`notes`)."""
    rows = []
    for dataset in datasets:
        folder = data_folder() / dataset.name
        reason = defect(dataset, folder)
        if reason is None:
            official = strict.parse((folder / "manifest.json").read_bytes()).get("official")
            rows.append((dataset.name, "prepared", "official" if official else "mirror", describe(dataset.counts)))
        else:
            rows.append((dataset.name, "missing", "", notes.get(dataset.name, reason)))
    return pd.DataFrame(rows, columns=["data set", "state", "archive", "contents, or why it is missing"])


def show(table: pd.DataFrame) -> str:
    """The table as text, its cells flush left."""
    widths = {name: table[name].str.len().max() for name in table}
    return table.to_string(index=False, justify="left", formatters={name: f"{{:<{widths[name]}}}".format for name in table})


def run(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, also if something cannot be reached; 1 after an error; 130 after an interrupt."""
    parser = argparse.ArgumentParser(prog="python -m data_scripts", description="Fetch and prepare the book's data sets.")
    parser.add_argument("--images", action="store_true", help="also prepare mini-ImageNet (1.3 GB on disk, a few minutes)")
    parser.add_argument("--status", action="store_true", help="only show what is prepared")
    options = parser.parse_args(arguments)
    try:
        place = data_folder()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    notes: dict[str, str] = {}
    status = 0
    for dataset in () if options.status else SMALL + (LARGE if options.images else ()):
        try:
            prepare(dataset)
        except DataError as error:
            print(f"{dataset.name}: {error}", file=sys.stderr, flush=True)
            reason = str(error).splitlines()[0].partition(". ")[0]
            notes[dataset.name] = reason if isinstance(error, Unreachable) else f"error: {reason}"
            status = status if isinstance(error, Unreachable) else 1
        except KeyboardInterrupt:
            print(INTERRUPTED.format(dataset.name), file=sys.stderr)
            return 130
    if not options.images and defect(mini_imagenet.DATASET, place / mini_imagenet.DATASET.name):
        notes.setdefault(mini_imagenet.DATASET.name, "not asked for: --images prepares it")
    print(f"\nprepared data in {place}")
    print(show(status_table(SMALL + LARGE, notes)))
    return status


if __name__ == "__main__":
    raise SystemExit(run())
