"""The counts of faults that the scripts of ``tests/faults`` tried, and what was lost: kept in a file, and shown by the book."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from amaml_core.records import commit, machine, write_beside

FAULTS = Path(__file__).resolve().parents[1] / "results" / "faults.json"


def keep(path: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Put ``tried`` and ``lost`` of each fault into a file, in the place of earlier ones, with where and when."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stamp = {"date": datetime.now(UTC).date().isoformat(), "commit": commit(), "machine": machine()}
    known |= {fault: {**count, **stamp} for fault, count in counts.items()}
    write_beside(path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())


def table(path: Path = FAULTS) -> str:
    """The file as a Markdown table."""
    lines = ["| fault | tried | lost | date | commit |", "|---|---|---|---|---|"]
    for fault, found in json.loads(path.read_text(encoding="utf-8")).items():
        date = found["date"].replace("-", "\N{NON-BREAKING HYPHEN}")
        lines.append(f"| {fault} | {found['tried']:,} | {found['lost']:,} | {date} | `{found['commit'][:8]}` |")
    return "\n".join(lines)
