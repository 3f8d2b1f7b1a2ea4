"""Do the same twice, and see whether it comes out the same: ``python tests/faults/same.py [--jobs N] [--record FILE]``.

- ``chapters``: every chapter at the profile smoke. What a cell prints and shows must be the same to the letter, but for pictures.
  Cells that show times have the tag ``clock`` and are left out.
- ``cells``: every experiment at the size smoke. Its record must be the same to the bit, but for what a clock has measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import joblib
import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.__main__ import cells as all_cells  # noqa: E402
from experiments.common.cells import Cell, attempt, deviation  # noqa: E402
from tools import notebooks  # noqa: E402
from tools.faults import keep  # noqa: E402

CLOCK = "clock"


def chapter(name: str) -> list[str]:
    """For each cell with code that shows no times: what is not the same, an empty word for nothing."""
    one, other = (nbformat.read(notebooks.run(name, "smoke"), as_version=4).cells for _ in range(2))
    compared = [pair for pair in zip(one, other, strict=True) if pair[0].cell_type == "code"]
    return [
        "" if notebooks.told(a) == notebooks.told(b) else f"{name}: {a.source.strip().splitlines()[-1][:100]}"
        for a, b in compared
        if CLOCK not in a.metadata.get("tags", [])
    ]


def cell(found: Cell) -> list[str]:
    """What is not the same of an experiment's record."""
    with tempfile.TemporaryDirectory() as folder:
        apart = deviation(*(attempt(found, Path(folder, str(time))) for time in range(2)))
    return [f"{found.name}: apart by {apart:.1e}" if apart else ""]


def works(jobs: int) -> Iterator[tuple[str, list[str]]]:
    """Each work, and what it found."""
    for name, function, inputs in (("chapters", chapter, notebooks.names()), ("cells", cell, all_cells("smoke"))):
        found = joblib.Parallel(jobs)(joblib.delayed(function)(one) for one in inputs)
        yield name, [word for words in found for word in words]


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if anything came out otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--record", type=Path, help="a JSON file that gets the counts")
    arguments = parser.parse_args(argv)
    counts = {}
    for name, words in works(arguments.jobs):
        different = [word for word in words if word]
        counts[f"repeat {name}"] = {"tried": len(words), "lost": len(different)}
        print(f"{name}: {len(words)} repeated, {len(different)} otherwise", *different, sep="\n    ", flush=True)
    if arguments.record:
        keep(arguments.record, counts)
    return int(any(count["lost"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
