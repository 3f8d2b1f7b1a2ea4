"""All cells of all evaluations: ``python -m experiments [--profile NAME] [--only WORDS] [--force] [--list] [--jobs N]``.

On a Dask cluster: ``--scheduler tcp://HOST:PORT``, with workers that were started in the same checkout.

Cells that have a record are not run again. So on a checkout with all records this does nothing, and an interrupted run goes on.
A second sweep of the same evaluations waits for the first.
An evaluation whose records are damaged is left out, a cell that fails ends no other, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from amaml_core.loop import ended_by_sigterm

from .common.cells import Cell, durations, missing, only_sweep, run_cells, tidy_up, torch_versions
from .common.parameters import PROFILES
from .common.pools import ClusterError
from .common.records import RESULTS, read

EVALUATIONS = ("synthetic", "recipe", "ratings", "ratings_gap", "images", "efficiency", "tradeoff", "audit")


def cells(profile: str, seed: int | None = None) -> list[Cell]:
    """All cells of a profile that this machine can run."""
    packages = [importlib.import_module(f"experiments.{name}.settings") for name in EVALUATIONS]
    return [cell for package in packages for cell in package.cells(profile, seed)]


def main(argv: list[str] | None = None) -> None:
    """Run the cells that were asked for and have no record."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="full", help="how much is done")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--only", default="", metavar="WORDS", help="only cells whose name contains all these words")
    parser.add_argument("--seed", type=number_from(0), help="only this seed")
    parser.add_argument(
        "--force", action="store_true", help="run again although a record stands, and say how far the two are apart"
    )
    parser.add_argument("--jobs", type=number_from(1), default=1, help="cells at once, each in a process of its own")
    parser.add_argument("--threads", type=number_from(1), default=1, help="of each cell")
    parser.add_argument(
        "--scheduler", type=address, default="", metavar="ADDRESS", help="of a Dask cluster that runs the cells instead"
    )
    parser.add_argument("--list", action="store_true", help="print the cells and whether they have a record")
    arguments = parser.parse_args(argv)
    chosen = [c for c in cells(arguments.profile, arguments.seed) if all(w in c.name for w in arguments.only.split())]
    if not chosen:
        parser.error(f"no cell's name contains {arguments.only!r}; --list shows them")
    damaged = damaged_records({cell.evaluation for cell in chosen}, arguments.out)
    for error in damaged.values():
        print(error, file=sys.stderr)
    chosen = [cell for cell in chosen if cell.evaluation not in damaged]
    failed = 0
    if arguments.list:
        names = {cell.name for cell in missing(chosen, arguments.out)}
        print("\n".join(f"{'    ' if c.name in names else 'done'} {c.name}" for c in chosen))
        say_versions(chosen, arguments.out)
    else:
        try:
            with ended_by_sigterm():
                failed = sweep(chosen, arguments)
        except (KeyboardInterrupt, SystemExit) as stop:
            done = f"{len(chosen) - len(missing(chosen, arguments.out))} of {len(chosen)} cells have a record"
            print(f"interrupted: {done}; the same command goes on", file=sys.stderr)
            sys.exit(130 if isinstance(stop, KeyboardInterrupt) else stop.code)
        except ClusterError as error:
            sys.exit(str(error))
        except OSError as error:
            sys.exit(f"{error}; make room, or see to the folder: then the same command goes on")
    if damaged or failed:
        sys.exit(1)


def number_from(least: int) -> Callable[[str], int]:
    """A reader of whole numbers, of nine digits at most, from the least that is allowed."""

    def read_number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to 999999999, not {text!r}")
        return int(text)

    return read_number


def address(text: str) -> str:
    """The address of a scheduler; empty for none."""
    if text and not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://[^\s/]+:[0-9]{1,5}", text):
        raise argparse.ArgumentTypeError(f"must be of the form tcp://HOST:PORT, not {text!r}")
    return text


def sweep(chosen: list[Cell], arguments: argparse.Namespace) -> int:
    """Run those of some cells that have no record, or all of them if that is forced; how many failed."""
    folder = arguments.out
    without = missing(chosen, folder)
    print(f"{len(chosen) - len(without)} of {len(chosen)} cells have a record")
    say_versions(chosen, folder)
    todo = chosen if arguments.force else without
    with only_sweep(todo, folder):
        if not arguments.force:
            todo = missing(todo, folder)  # another sweep may have made them in between
        if todo:
            each = durations(folder, todo)
            print(f"about {sum(each[c.evaluation, c.kind] for c in todo) / 60:.0f} core minutes to go")
            failed = run_cells(todo, folder, arguments.jobs, arguments.threads, arguments.scheduler)
    if not todo:
        tidy_up(chosen, folder)
        return 0
    if failed:
        said = f"{len(failed)} of {len(todo)} cells failed, for the reasons above; the same command tries them again"
        print(said, file=sys.stderr)
    return len(failed)


def say_versions(chosen: list[Cell], folder: Path) -> None:
    """Say on the standard error with which torch the records of some cells were made, if not all with the one that is here."""
    found, here = torch_versions(chosen, folder), str(torch.__version__)
    if found.keys() - {here}:
        made = " and ".join(f"{version} ({count} records)" for version, count in sorted(found.items()))
        print(f"made with torch {made}, and this is torch {here}; they count, and --force makes them anew", file=sys.stderr)


def damaged_records(evaluations: Iterable[str], folder: Path) -> dict[str, ValueError]:
    """The evaluations whose records cannot be read, and what is wrong with them."""
    found = {}
    for evaluation in sorted(evaluations) if folder.is_dir() else ():
        try:
            read(evaluation, folder)
        except ValueError as error:
            found[evaluation] = error
    return found


if __name__ == "__main__":
    main()
