"""The counts of faults that the scripts of ``tests/faults`` tried, and what was lost: kept in a file, and shown by the book."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amaml_core import strict
from amaml_core.records import alone, commit, machine, write_beside

FAULTS = Path(__file__).resolve().parents[1] / "results" / "faults.json"
FIELDS = {"tried": int, "lost": int, "date": str, "commit": str, "machine": str}


def read(path: Path = FAULTS) -> dict[str, dict[str, Any]]:
    """What the file says of each fault.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    try:
        found = strict.parse(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is no table of faults")
        for fault, entry in found.items():
            if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != FIELDS:
                raise ValueError(f"the entry {fault[:80]!r} does not have {', '.join(FIELDS)} and no more, each of its kind")
    except ValueError as error:
        remedy = "take it again by `git restore`, or remove it and run `make test-faults test-twice`"
        raise ValueError(f"{path} is damaged: {error}; {remedy}") from error
    return found


def keep(path: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Put ``tried`` and ``lost`` of each fault into a file, in the place of earlier ones, with where and when.

    Raises:
        ValueError: the file is damaged; it stays as it is.
    """
    stamp = {"date": datetime.now(UTC).date().isoformat(), "commit": commit(), "machine": machine()}
    with alone(path):
        known = read(path) if path.exists() else {}
        known |= {fault: {**count, **stamp} for fault, count in counts.items()}
        write_beside(path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())


def table(path: Path = FAULTS) -> str:
    """The file as a Markdown table. Raises what :func:`read` raises."""
    lines = ["| fault | tried | lost | date | commit |", "|---|---|---|---|---|"]
    for fault, found in read(path).items():
        date = found["date"].replace("-", "\N{NON-BREAKING HYPHEN}")
        lines.append(f"| {fault} | {found['tried']:,} | {found['lost']:,} | {date} | `{found['commit'][:8]}` |")
    return "\n".join(lines)
