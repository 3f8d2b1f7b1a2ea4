"""Make everything small twice, and compare: ``python tests/faults/twice.py [--jobs N] [--record FILE] [WORK ...]``.

Compared to the bit are the records of all cells of the smoke profile, columns of the clock aside, and what each code cell of each
chapter prints and shows at that profile, pictures and cells that are tagged ``clock`` aside: those say what something took.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import nbformat
from nbformat import NotebookNode

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from experiments.__main__ import EVALUATIONS, cells  # noqa: E402
from experiments.common import records  # noqa: E402
from experiments.common.cells import CLOCK, run_cells  # noqa: E402
from tools import notebooks  # noqa: E402
from tools.faults import keep  # noqa: E402

TIMED = "clock"  # the tag of a cell that says what something took


def made(name: str) -> NotebookNode:
    """The notebook of a chapter, run in a process of its own."""
    command = [sys.executable, "-m", "tools.notebooks", "run", name, "--profile", "smoke"]
    subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    return nbformat.read(notebooks.run_path(name, "smoke"), as_version=4)


def compared(name: str, first: NotebookNode, second: NotebookNode) -> Iterator[tuple[str, bool]]:
    """Each code cell that tells no time, and whether it told the same twice."""
    cells = [[cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in (first, second)]
    for number, (cell, again) in enumerate(zip(*cells, strict=True), start=1):
        if TIMED not in cell.metadata.get("tags", []):
            yield f"{name}, code cell {number}", notebooks.told(cell) == notebooks.told(again)


def chapters(jobs: int) -> Iterator[tuple[str, bool]]:
    """The code cells of all chapters."""
    names = notebooks.names()
    found = joblib.Parallel(n_jobs=jobs, prefer="threads")(joblib.delayed(made)(name) for name in names * 2)
    for name, first, second in zip(names, found[: len(names)], found[len(names) :], strict=True):
        yield from compared(name, first, second)


def experiments(jobs: int) -> Iterator[tuple[str, bool]]:
    """Each small cell, and whether its record was the same twice."""
    todo, found = cells("smoke"), []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            run_cells(todo, Path(name), jobs)
            found.append({(e, *record.key): record for e in EVALUATIONS for record in records.read(e, Path(name))})
    for cell in todo:
        first, second = (records_of[cell.evaluation, *cell.key] for records_of in found)
        one, other = (record.table.drop(columns=list(CLOCK), errors="ignore") for record in (first, second))
        yield cell.name, one.equals(other) and first.diverged == second.diverged


WORKS: dict[str, Callable[[int], Iterator[tuple[str, bool]]]] = {"chapters": chapters, "records": experiments}


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; both by default")
    parser.add_argument("--jobs", type=int, default=1, help="chapters or experiments at once")
    parser.add_argument("--record", type=Path, help="a JSON file that gets the counts")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.works) - set(WORKS):
        parser.error(f"no work is called {', '.join(sorted(unknown))}; there are {', '.join(WORKS)}")
    counts = {}
    for work in arguments.works or WORKS:
        found = list(WORKS[work](arguments.jobs))
        differ = [place for place, same in found if not same]
        counts[f"twice {work}"] = {"tried": len(found), "lost": len(differ)}
        print(f"{work}: {len(found)} made twice, {len(differ)} differ", *differ, sep="\n    ", flush=True)
        if arguments.record:  # at once: what comes next may fail
            keep(arguments.record, {f"twice {work}": counts[f"twice {work}"]})
    total = {key: sum(count[key] for count in counts.values()) for key in ("tried", "lost")}
    print(f"{total['tried']} made twice, {total['lost']} differ")
    return int(total["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
