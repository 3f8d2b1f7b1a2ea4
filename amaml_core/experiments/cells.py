"""Experiments in cells: each runs alone, leaves a record, and is not run again while its record stands."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..flow import DivergenceError
from ..records import Record, new_record, read_record, write_record

# A cell that is run again comes this near to its record: see :func:`deviation`. Many repeat to the bit; a step that
# is compiled anew, or on another processor, may round otherwise, and training amplifies that.
TOLERANCE = 0.01
SCRATCH = ".scratch"  # beside the records: checkpoints of cells that are under way, named after them
CLOCK = ("seconds", "training_seconds", "low", "high", "load")  # figures that differ from one run to the next
Run = Callable[["Cell", Path], dict]  # the cell, a folder for its checkpoints -> figures


@dataclass(frozen=True)
class Cell:
    """One run of an experiment: its settings (JSON values) and its seed."""

    experiment: str
    settings: dict
    seed: int

    @property
    def name(self) -> str:
        """A file name that tells cells apart: ``ratings-profile=full-method=A-MAML-...-seed=0``."""
        parts = [f"{key}={value}" for key, value in (self.settings | {"seed": self.seed}).items()]
        return re.sub(r"[^\w.=+-]", "_", "-".join([self.experiment, *parts]))

    def path(self, out: Path) -> Path:
        """Where its record stands."""
        return out / f"{self.name}.json"


def run_cell(cell: Cell, run: Run, out: Path, force: bool = False) -> Path:
    """Run a cell and write its record, unless a valid record stands already; ``force`` runs it again and tells how far the new
    record is from the old one.

    That a cell diverged is a result too: the only figure of its record is then ``diverged``, the message.

    Raises:
        ValueError: the record that stands is damaged, or of another cell.
    """
    path = cell.path(out)
    stood = read_record(path) if path.exists() else None
    if stood and (stood.configuration, stood.seed) != (cell.settings, cell.seed):
        raise ValueError(f"{path} records another configuration than its name says; delete it")
    if stood and not force:
        return path
    started = time.perf_counter()
    try:
        figures = run(cell, out / SCRATCH)
    except DivergenceError as error:
        figures = {"diverged": str(error)}
    path = write_record(new_record(cell.experiment, cell.settings, cell.seed, figures, time.perf_counter() - started), path)
    for checkpoint in (out / SCRATCH).glob(f"{cell.name}.*"):
        checkpoint.unlink()
    if stood:
        apart = deviation(stood.figures, json.loads(json.dumps(figures)))
        tqdm.write(
            f"{cell.name}: {apart:.1e} from the record that stood ({'within' if apart <= TOLERANCE else 'NOT within'} {TOLERANCE})"
        )
    return path


def run_cells(todo: list[tuple[Cell, Run, Path]], force: bool = False) -> list[Path]:
    """Run cells that have no record yet, each with the folder of its records; a progress bar estimates the remaining time."""
    paths = []
    with tqdm(todo, desc="cells", disable=None) as bar:
        for cell, run, out in bar:
            bar.set_postfix_str(cell.name[:80])
            if bar.disable and (force or not cell.path(out).exists()):
                print(cell.name, flush=True)
            paths.append(run_cell(cell, run, out, force))
    return paths


def read_records(folder: Path, pattern: str = "*.json", diverged: bool = False) -> list[Record]:
    """The records of a folder in the order of their names: of the cells that came to an end, or of those that ``diverged``.

    An evaluation that has not been run has no folder, and no records.

    Raises:
        FileNotFoundError: not even the folder that holds those of all evaluations is there.
    """
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"there is no {folder.parent}: get the records back with git, or make them with `make full`")
    records = [read_record(path) for path in sorted(folder.glob(pattern))]
    return [record for record in records if ("diverged" in record.figures) == diverged]


def best_of(scores: Sequence[float | None], failure: str, better: Callable = min) -> int:
    """The number of the best of a choice's scores, the first of equals; None stands for a trial that diverged.

    Raises:
        DivergenceError: with the message ``failure``, all did.
    """
    finite = [number for number, score in enumerate(scores) if score is not None]
    if not finite:
        raise DivergenceError(failure)
    return better(finite, key=scores.__getitem__)


def deviation(before: object, after: object) -> float:
    """How far the figures of two runs of one cell are apart: the largest difference of two numbers, those of the clock aside,
    relative to the largest number of their table. Infinite if anything else differs."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return max((deviation(before[key], after[key]) for key in before if key not in CLOCK), default=0.0)
    if before == after:
        return 0.0
    try:
        old, new = (np.array(figures, dtype=float) for figures in (before, after))
    except (TypeError, ValueError):  # words, or lists of tables
        if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            return max(map(deviation, before, after))
        return np.inf
    if old.shape != new.shape or (np.isnan(old) != np.isnan(new)).any():
        return np.inf
    return float(np.nanmax(np.abs(old - new)) / np.nanmax(np.abs([old, new])))


def program(description: str, cells: Callable[[str, int | None], list[Cell]], run: Run) -> None:
    """The command line of an experiment module."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="full", help="smoke, book or full")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records, for example results/full/ratings")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--only", default="", help="only cells whose name contains all these words")
    parser.add_argument("--force", action="store_true", help="run again although a record stands")
    parser.add_argument("--threads", type=int, default=1, help="of each cell")
    parser.add_argument("--list", action="store_true", help="print the cells and whether they have a record")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = [c for c in cells(arguments.profile, arguments.seed) if all(w in c.name for w in arguments.only.split())]
    if not chosen:
        parser.error(f"no cell's name contains {arguments.only!r}; --list shows them")
    if arguments.list:
        print("\n".join(f"{'done' if c.path(arguments.out).exists() else '    '} {c.name}" for c in chosen))
    else:
        run_cells([(cell, run, arguments.out) for cell in chosen], arguments.force)
