"""Experiments in cells: each runs alone, leaves a record, and is not run again while its record stands."""

from __future__ import annotations

import glob
import importlib
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from amaml_core import DivergenceError
from amaml_core.records import alone, machine, tidy

from . import records
from .pools import Failure, pool
from .records import RESULTS, Record, new_record

# A cell that is run again comes this near to its record: see :func:`deviation`. Many repeat to the bit; a step that
# is compiled anew, or on another processor, may round otherwise, and training amplifies that.
TOLERANCE = 0.01
SCRATCH = ".scratch"  # beside the records: checkpoints of cells that are under way, named after them
PAUSES = (1.0, 10.0, 60.0, 60.0)  # seconds until a record that could not be written is tried again
CLOCK = ("seconds", "training_seconds", "low", "high", "load", "peak")  # columns that differ from one run to the next
Run = Callable[["Cell", Path], pd.DataFrame]  # the cell, a folder for its checkpoints -> tidy rows


@dataclass(frozen=True)
class Cell:
    """One run of an experiment.

    Attributes:
        evaluation: the package under ``experiments`` whose ``run`` takes it.
        kind: what it measures, within the evaluation.
        settings: JSON values, of which ``size`` names how much is done.
        seed: of all its draws.
    """

    evaluation: str
    kind: str
    settings: dict
    seed: int

    @property
    def name(self) -> str:
        """Words that tell cells apart: ``ratings-errors-size=full-method=A-MAML-...-seed=0``."""
        parts = [f"{key}={value}" for key, value in (self.settings | {"seed": self.seed}).items()]
        return re.sub(r"[^\w.=+-]", "_", "-".join([self.evaluation, self.kind, *parts]))

    @property
    def key(self) -> tuple:
        """What its record is found by."""
        return records.key(self.kind, self.settings, self.seed)


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of a cell, from its evaluation's ``run``."""
    return importlib.import_module(f"experiments.{cell.evaluation}.run").run(cell, scratch)


def attempt(cell: Cell, scratch: Path, threads: int = 1) -> Record:
    """Run a cell. That it diverged is a result too: its record has no rows, but the message."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    table, lost = None, None
    try:
        table = run(cell, scratch)
    except DivergenceError as error:
        lost = str(error)
    return new_record(cell.kind, cell.settings, cell.seed, table, time.perf_counter() - started, lost)


def live_rows(cells: Iterable[Cell]) -> dict[str, pd.DataFrame]:
    """Run cells here and now, without records: the rows of each kind, with the columns that recorded ones have."""
    found: dict[str, list[pd.DataFrame]] = {}
    for cell in cells:
        with tempfile.TemporaryDirectory() as scratch:
            table = run(cell, Path(scratch))
        found.setdefault(cell.kind, []).append(stamped(cell, table))
    return {kind: pd.concat(tables, ignore_index=True) for kind, tables in found.items()}


def stamped(cell: Cell, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a cell with its settings, its seed and the machine, as records give them."""
    return table.assign(**cell.settings, seed=cell.seed, machine=machine())


def missing(cells: Iterable[Cell], folder: Path = RESULTS) -> list[Cell]:
    """The cells that have no record."""
    cells = list(cells)
    done = _standing(cells, folder)
    return [cell for cell in cells if (cell.evaluation, *cell.key) not in done]


def torch_versions(cells: Iterable[Cell], folder: Path = RESULTS) -> Counter[str]:
    """How many of the cells have a record that was made with each version of PyTorch."""
    cells = list(cells)
    done = _standing(cells, folder)
    of_each = (done.get((cell.evaluation, *cell.key)) for cell in cells)
    return Counter(str(record.versions.get("torch", "unknown")) for record in of_each if record)


def _records(evaluation: str, folder: Path) -> list[Record]:
    return records.read(evaluation, folder) if folder.is_dir() else []


def _standing(cells: Iterable[Cell], folder: Path) -> dict[tuple, Record]:
    """All records of the cells' evaluations, by evaluation and key."""
    return {(e, *record.key): record for e in {cell.evaluation for cell in cells} for record in _records(e, folder)}


@contextmanager
def only_sweep(cells: Iterable[Cell], folder: Path) -> Iterator[None]:
    """Keep other sweeps off the evaluations of some cells; if one is under way, say so and wait. What has a record is to be looked
    up within, since that one may have made it. The system frees what a killed sweep held.

    Raises:
        OSError: the folder cannot be written to.
    """
    with ExitStack() as held:
        for evaluation in sorted({cell.evaluation for cell in cells}):  # in one order, so that no two wait for each other
            mark = folder / f"{evaluation}.sweep"
            try:
                held.enter_context(alone(mark, wait=False))
            except BlockingIOError:
                print(f"another sweep is at work on {records.path(evaluation, folder)}; this one waits for it", file=sys.stderr)
                held.enter_context(alone(mark))
        yield


def tidy_up(cells: Iterable[Cell], folder: Path) -> None:
    """Remove the lock files that killed sweeps have left beside the records of some cells."""
    for evaluation in {cell.evaluation for cell in cells}:
        tidy(folder / f"{evaluation}.sweep")
        tidy(records.path(evaluation, folder))


def run_cells(todo: list[Cell], folder: Path = RESULTS, jobs: int = 1, threads: int = 1, scheduler: str = "") -> list[str]:
    """Run cells, ``jobs`` at once in processes of their own or on a Dask cluster, see :func:`pool`, and write each record as it
    comes. This process alone writes records; checkpoints are written where a cell runs.

    Returns:
        The names of the cells that failed. What was wrong is printed on the standard error at once, each traceback once.

    Raises:
        OSError: a record cannot be written, though that was tried again for a while.

    A progress bar estimates the remaining time from the durations of earlier records of the same kind. Where a record stands
    already, the new one takes its place, and it is printed how far the two are apart.
    """
    known = durations(folder, todo)
    stood = _standing(todo, folder)
    scratch = folder.absolute() / SCRATCH
    total = round(sum(known[c.evaluation, c.kind] for c in todo))
    failed, shown = [], {""}
    with (
        pool(jobs, scheduler) as each,
        closing(each(partial(attempt, scratch=scratch, threads=threads), todo)) as found,
        tqdm(total=total, unit="s", desc="cells", disable=None) as bar,
    ):
        for cell, record in found:
            if isinstance(record, Failure):
                trace = "" if record.trace in shown else f"\n{record.trace}"
                tqdm.write(f"{cell.name} failed: {record.error}{trace}", file=sys.stderr)
                failed.append(cell.name)
                shown.add(record.trace)
                bar.update(round(known[cell.evaluation, cell.kind]))
                continue
            _keep(cell, record, folder)
            for pattern in ("", "."):  # checkpoints, and what their writers left
                for file in scratch.glob(f"{pattern}{glob.escape(cell.name)}.*"):
                    file.unlink(missing_ok=True)
            bar.update(round(known[cell.evaluation, cell.kind]))
            note = "diverged" if record.diverged else f"{record.duration:.0f} s"
            if old := stood.get((cell.evaluation, *cell.key)):
                apart = deviation(old, record)
                note += f", {apart:.1e} from the record that stood ({'within' if apart <= TOLERANCE else 'NOT within'} {TOLERANCE})"
            tqdm.write(f"{cell.name}: {note}")
    return failed


def _keep(cell: Cell, record: Record, folder: Path) -> None:
    """Write a record. Where the disk is full, wait until there is room."""
    for pause in (*PAUSES, None):
        try:
            records.write(record, cell.evaluation, folder)
            return
        except OSError as error:
            again = "is not tried again" if pause is None else f"is tried again in {pause:.0f} s: make room, or see to the folder"
            tqdm.write(f"the record of {cell.name} could not be written, and {again}: {error}", file=sys.stderr)
            if pause is None:
                raise
            time.sleep(pause)


def durations(folder: Path, cells: Iterable[Cell]) -> dict[tuple[str, str], float]:
    """Seconds that a cell of each kind takes: the median of its records, or of its evaluation's, or a minute."""
    found = {}
    for evaluation, kind in {(c.evaluation, c.kind) for c in cells}:
        old = _records(evaluation, folder)
        same = [r.duration for r in old if r.kind == kind] or [r.duration for r in old] or [60.0]
        found[evaluation, kind] = max(statistics.median(same), 0.5)
    return found


def deviation(before: Record, after: Record) -> float:
    """How far two records of one cell are apart: the largest difference of two numbers, those of the clock aside, relative to the
    largest number of their column. Infinite if anything else differs.

    Where a row is one ``task``, means over tasks are compared. They are what the tables show, while a rounding may turn several of
    the few answers of one task.
    """
    if (before.rows, list(before.columns), before.diverged) != (after.rows, list(after.columns), after.diverged):
        return np.inf
    apart, old, new = 0.0, before.table, after.table
    differ = [name for name in old if name not in CLOCK and not old[name].equals(new[name])]
    for name in differ:
        try:
            a, b = (table[name].astype(float) for table in (old, new))
        except (TypeError, ValueError):  # words
            return np.inf
        if "task" in old and "task" not in differ:
            shared = [old[other] for other in old if other not in ("task", *CLOCK, *differ)] or [old["task"] * 0]
            a, b = (values.groupby(shared, dropna=False).mean() for values in (a, b))
        a, b = a.to_numpy(), b.to_numpy()
        if (np.isnan(a) != np.isnan(b)).any():
            return np.inf
        apart = max(apart, float(np.nanmax(np.abs(a - b)) / np.nanmax(np.abs([a, b]))))
    return apart
