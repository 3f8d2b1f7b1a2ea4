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

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from experiments.__main__ import EVALUATIONS, cells  # noqa: E402
from experiments.common import records  # noqa: E402
from experiments.common.cells import deviation, run_cells  # noqa: E402
from tools import notebooks  # noqa: E402
from tools.faults import keep  # noqa: E402

CLOCK = "clock"


def chapter(name: str) -> list[tuple[str, list[str] | None]]:
    """Run a chapter in a process of its own; a place and what is told there for each code cell, None where it is the clock's."""
    command = [sys.executable, "-m", "tools.notebooks", "run", name, "--profile", "smoke"]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)
    made = nbformat.read(notebooks.run_path(name, "smoke"), as_version=4)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    return [
        (f"{name}, code cell {number}", None if CLOCK in cell.metadata.get("tags", []) else notebooks.told(cell))
        for number, cell in enumerate(code, start=1)
    ]


def chapters(jobs: int) -> Iterator[tuple[str, bool]]:
    """Each code cell that tells no time, and whether it told the same twice."""
    names = notebooks.names()
    found = joblib.Parallel(n_jobs=jobs, prefer="threads")(joblib.delayed(chapter)(name) for name in names * 2)
    for first, second in zip(found[: len(names)], found[len(names) :], strict=True):
        for (place, told), (_, again) in zip(first, second, strict=True):
            if told is not None:
                yield place, told == again


def experiments(jobs: int) -> Iterator[tuple[str, bool]]:
    """Each small cell, and whether its record was the same twice."""
    todo, found = cells("smoke"), []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            run_cells(todo, Path(name), jobs)
            found.append({(e, *record.key): record for e in EVALUATIONS for record in records.read(e, Path(name))})
    first, second = found
    for cell in todo:
        key = (cell.evaluation, *cell.key)
        yield cell.name, deviation(first[key], second[key]) == 0


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
    if arguments.record:
        keep(arguments.record, counts)
    total = {key: sum(count[key] for count in counts.values()) for key in ("tried", "lost")}
    print(f"{total['tried']} made twice, {total['lost']} differ")
    return int(total["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
