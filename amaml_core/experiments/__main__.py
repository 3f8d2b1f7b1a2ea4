"""All cells of all evaluations at one profile: ``python -m amaml_core.experiments [--only WORDS] [--force] [--list]``.

Cells that have a record are not run again. So on a checkout with all records this does nothing, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from pathlib import Path

import torch

from ..records import read_record
from .cells import Cell, run_cells

NAMES = ("synthetic", "ratings", "ratings_gap", "images_full", "efficiency", "tradeoff", "audit")


def remaining_seconds(missing: dict[str, list[Cell]], out: Path) -> tuple[float, list[str]]:
    """The time that missing cells will take, from the median duration of the records of the same experiment, and the names of the
    experiments that have no record to judge by."""
    total, unknown = 0.0, []
    for name, cells in missing.items():
        durations = [read_record(path).duration for path in (out / name).glob("*.json")]
        if durations:
            total += statistics.median(durations) * len(cells)
        elif cells:
            unknown.append(name)
    return total, unknown


def main(argv: list[str] | None = None) -> None:
    """Run the cells that were asked for and have no record."""
    parser = argparse.ArgumentParser(prog="python -m amaml_core.experiments", description=__doc__)
    parser.add_argument("--profile", default="full", help="smoke, book or full")
    parser.add_argument("--out", type=Path, default=Path("results/full"), help="folder of the folders of records")
    parser.add_argument("--only", default="", help="only cells whose name contains all these words")
    parser.add_argument("--force", action="store_true", help="run again although a record stands")
    parser.add_argument("--threads", type=int, default=1, help="of each cell")
    parser.add_argument("--list", action="store_true", help="print the cells and whether they have a record")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in NAMES}
    chosen = {
        name: [
            cell
            for cell in getattr(module, "every_cell", module.cells)(arguments.profile)
            if all(word in cell.name for word in arguments.only.split())
        ]
        for name, module in modules.items()
    }
    if not any(chosen.values()):
        parser.error(f"no cell's name contains {arguments.only!r}; --list shows them")
    missing = {
        name: [cell for cell in cells if arguments.force or not cell.path(arguments.out / name).exists()]
        for name, cells in chosen.items()
    }
    for name, cells in chosen.items():
        if cells:
            done = sum(cell.path(arguments.out / name).exists() for cell in cells)
            print(f"{name}: {done} of {len(cells)} cells have a record")
    if arguments.list:
        for name, cells in chosen.items():
            for cell in cells:
                print("    " if cell in missing[name] else "done", cell.name)
        return
    seconds, unknown = remaining_seconds(missing, arguments.out)
    if any(missing.values()):
        guess = f", and more for {', '.join(unknown)}, of which nothing is known yet" if unknown else ""
        print(f"about {seconds / 60:.0f} minutes to go{guess}")
    run_cells(
        [(cell, modules[name].run, arguments.out / name) for name, cells in missing.items() for cell in cells],
        arguments.force,
    )


if __name__ == "__main__":
    main()
