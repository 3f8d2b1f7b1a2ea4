"""Results with their provenance: one tidy table for each cell, one file of JSON lines for each evaluation.

A line is appended at once and whole, so an interrupted run loses no earlier record; a last line that was cut off is not read, and
is taken away by the next writer. A column whose values are all the same is written once; of one that repeats itself, as keys do,
what is repeated. Each line has a digest of its content, so that a damaged one is not taken for a result; lines of before there were
digests have none.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amaml_core.records import alone, commit, machine, versions, write_beside
from amaml_core.strict import digest, parse

REMEDY = "get the file back with git, or take the line out and let `make full` run its cell again"
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "full"
DIGITS = 10  # significant digits of a recorded number
MOST_ENTRIES = 10**7  # of one record


@dataclass(frozen=True)
class Record:
    """What came out of one cell.

    Attributes:
        kind: of the cell, within its evaluation.
        settings: every setting that the result depends on.
        seed: of all its draws.
        rows: how many rows the table has.
        columns: the table: for each column a list of so many values, or one value for all rows, or a pattern
            ``{"values": [...], "each": n}``: each value n times, and all of that again until the end. ``None`` is a missing number.
        diverged: the message, if the cell diverged; then there are no rows.
        duration: seconds.
        versions, machine, date, commit: where, when and with what it was run.
    """

    kind: str
    settings: dict
    seed: int
    rows: int
    columns: dict
    diverged: str | None
    duration: float
    versions: dict
    machine: str
    date: str
    commit: str

    def __post_init__(self) -> None:
        kinds = {"kind": str, "settings": dict, "seed": int, "rows": int, "columns": dict, "diverged": (str, type(None)),
                 "duration": (int, float), "versions": dict, "machine": str, "date": str, "commit": str}  # fmt: skip
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"entry {name!r} of a record must not be {value!r}")
        if (self.rows > 0) == (self.diverged is not None):
            raise ValueError("a record has rows, or says how the cell diverged")
        if not 0 <= self.rows * (len(self.columns) + len(self.settings)) <= MOST_ENTRIES:
            raise ValueError(f"a record of {self.rows} rows is too large: it has at most {MOST_ENTRIES} entries")
        if lengths := {len(v) for v in self.columns.values() if isinstance(v, list)} - {self.rows}:
            raise ValueError(f"a record of {self.rows} rows has columns of {sorted(lengths)}")
        for pattern in (v for v in self.columns.values() if isinstance(v, dict)):
            if not _is_pattern(pattern, self.rows):
                raise ValueError(f"a record of {self.rows} rows has a column of the pattern {pattern!r:.200}")
        if bad := [name for name, value in self.settings.items() if not _is_plain(value)]:
            raise ValueError(
                f"the setting {bad[0]!r} of a record is {self.settings[bad[0]]!r:.100}, which is no text and no number"
            )
        if bad := [name for name, values in self.columns.items() if not all(map(_is_plain, _entries(values)))]:
            raise ValueError(f"the column {bad[0]!r} of a record holds what is no text and no number of 64 bits")
        if twice := {*self.settings, "seed", "machine"} & set(self.columns):
            raise ValueError(f"a record has {sorted(twice)} both as settings and as columns: rename one of each pair")
        if self.duration < 0:
            raise ValueError(f"a record's duration is in seconds, not {self.duration}")
        datetime.fromisoformat(self.date)

    @property
    def key(self) -> tuple:
        """The cell that it belongs to."""
        return key(self.kind, self.settings, self.seed)

    @property
    def filled(self) -> dict[str, Any]:
        """Its columns. One of numbers of which some are missing has NaN there."""
        return {name: _column(values, self.rows) for name, values in self.columns.items()}

    @property
    def table(self) -> pd.DataFrame:
        """Its rows."""
        return pd.DataFrame(self.filled, range(self.rows))


def _is_plain(value: object) -> bool:
    """Whether a cell of a table can be it."""
    return -(2**63) <= value < 2**63 if isinstance(value, int) else value is None or isinstance(value, (str, float))


def _entries(values: Any) -> Iterable:
    """The entries of a column, one of each that stands for several."""
    return values["values"] if isinstance(values, dict) else values if isinstance(values, list) else [values]


def _is_pattern(content: dict, rows: int) -> bool:
    values, each = content.get("values"), content.get("each")
    whole = content.keys() == {"values", "each"} and isinstance(values, list) and type(each) is int
    return whole and len(values) * each > 0 and rows % (len(values) * each) == 0


def key(kind: str, settings: Mapping, seed: int) -> tuple:
    """What cells and their records are found by; the order of the settings plays no part."""
    return kind, json.dumps(settings, sort_keys=True), seed


def new_record(
    kind: str, settings: Mapping, seed: int, table: pd.DataFrame | None, duration: float, diverged: str | None = None
) -> Record:
    """A record of a result that was made here and now.

    Raises:
        TypeError, ValueError: the settings or the table hold what JSON does not have, such as an infinite number or a date.
    """
    table = pd.DataFrame() if table is None else table
    record = Record(
        kind, dict(settings), seed, len(table), {name: _compact(table[name]) for name in table}, diverged, round(duration, 3),
        versions(), machine(), datetime.now(UTC).isoformat(timespec="seconds"), commit(),
    )  # fmt: skip
    json.dumps(asdict(record), allow_nan=False)  # here, where one cell alone fails of it
    return record


def _compact(values: pd.Series) -> object:
    """A column as JSON has it: whole numbers as they are, others to ``DIGITS`` digits, NaN as None; one value if all are equal, and
    a pattern where that is a quarter as long or less."""
    listed = [_plain(value) for value in values.tolist()]
    if listed.count(listed[0]) == len(listed):
        return listed[0]
    pattern = _pattern(listed)
    return pattern if 4 * len(pattern["values"]) <= len(listed) else listed


def _pattern(listed: list) -> dict:
    each = math.gcd(*(len(list(run)) for _, run in groupby(listed)))
    short = listed[::each]
    lengths = (n for n in range(1, len(short) + 1) if len(short) % n == 0)
    period = next(n for n in lengths if short == short[:n] * (len(short) // n))
    return {"values": short[:period], "each": each}


def _plain(value: object) -> object:
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("a record cannot hold an infinite number; say that the cell diverged, or leave the value out")
        return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")
    return value


def _column(values: object, rows: int) -> object:
    if isinstance(values, dict):
        once = [value for value in values["values"] for _ in range(values["each"])]
        values = once * (rows // len(once))
    listed = values if isinstance(values, list) else [values] * rows
    kinds = {type(value) for value in listed if value is not None}
    return np.array(listed, dtype=float) if None in listed and kinds <= {int, float} else listed


def path(evaluation: str, folder: Path = RESULTS) -> Path:
    """The file of an evaluation's records."""
    return folder / f"{evaluation}.jsonl"


def read(evaluation: str, folder: Path = RESULTS) -> list[Record]:
    """All records of an evaluation, in the order of their cells' settings; none if it has not been run.

    Raises:
        FileNotFoundError: not even the folder of the records is there.
        ValueError: a line, other than an incomplete last one, is not a record.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder}: get the records back with git, or make them with `make full`")
    file = path(evaluation, folder)
    if not file.exists():
        return []
    state = file.stat()
    return list(_read(file, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=32)
def _read(file: Path, changed: int, size: int) -> tuple[Record, ...]:
    found: list[tuple] = []
    lines: dict[tuple, int] = {}  # of each cell
    for number, line in enumerate(_lines(file), 1):
        if not line.endswith(b"\n"):  # a writer was cut off
            continue
        try:
            record = _record(line)
            if (first := lines.setdefault(record.key, number)) != number:
                raise ValueError(f"line {first} is one of the same cell")
            found.append((record.kind, json.dumps(record.settings), record.seed, number, record))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}, is not a record: {error}; {REMEDY}") from None
    return tuple(record for *_, record in sorted(found))


def _lines(file: Path) -> list[bytes]:
    """With their ends; JSON leaves no other line feed in them."""
    return io.BytesIO(file.read_bytes()).readlines()


def _record(line: bytes) -> Record:
    """A line's record. Raises ValueError: it holds none, or another one than was written."""
    content, known = parse(line), {entry.name for entry in fields(Record)}
    if not isinstance(content, dict) or set(content) - {"digest"} != known:
        raise ValueError(f"its entries are not {sorted(known)}")
    if content.pop("digest", None) not in (None, digest(content)):
        raise ValueError("it is damaged: its digest is not that of its content")
    return Record(**content)


def write(record: Record, evaluation: str, folder: Path = RESULTS) -> Path:
    """Append a record to its evaluation's file, or put it in the place of the one of the same cell.

    A line that is no record stays as it is, for :func:`read` to complain of: what has just been computed is not lost for it.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    file, content = path(evaluation, folder), parse(json.dumps(asdict(record), allow_nan=False))
    line = json.dumps({"digest": digest(content)} | content).encode() + b"\n"  # a word that loses its end runs into no digest
    try:
        with alone(file):
            lines = _lines(file) if file.exists() else []
            whole = [old for old in lines if old.endswith(b"\n")]
            stands = [_key_of(old) == record.key for old in whole]
            if any(stands) or len(whole) < len(lines):
                kept = [line if same else old for old, same in zip(whole, stands, strict=True)] + [line] * (not any(stands))
                write_beside(file, b"".join(kept))
            else:
                with open(file, "ab") as end:
                    end.write(line)
                    end.flush()
                    os.fsync(end.fileno())
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, str(file)) from error
    return file


def _key_of(line: bytes) -> tuple | None:
    """The cell of a line's record; ``None`` if it is none."""
    try:
        return _record(line).key
    except (ValueError, RecursionError):
        return None


def rows(evaluation: str, kind: str, folder: Path = RESULTS, **wanted: object) -> pd.DataFrame:
    """The tables of all records of a kind below each other; their settings, ``seed`` and ``machine`` are further columns.

    Args:
        evaluation, kind: which.
        folder: of the records.
        wanted: values that settings must have, for example ``size="full"``.

    Returns:
        A tidy table; empty if there are no such records.
    """
    parts = [
        pd.DataFrame(record.filled | record.settings | {"seed": record.seed, "machine": record.machine}, range(record.rows))
        for record in of_kind(evaluation, kind, folder, **wanted)
        if record.diverged is None
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def diverged(evaluation: str, kind: str, folder: Path = RESULTS, **wanted: object) -> pd.DataFrame:
    """The cells of a kind that diverged: one row for each, with its settings, ``seed`` and ``message``."""
    lost = [r for r in of_kind(evaluation, kind, folder, **wanted) if r.diverged is not None]
    return pd.DataFrame([r.settings | {"seed": r.seed, "message": r.diverged} for r in lost])


def of_kind(evaluation: str, kind: str, folder: Path = RESULTS, **wanted: object) -> Iterator[Record]:
    """The records of a kind whose settings have the ``wanted`` values."""
    for record in read(evaluation, folder):
        if record.kind == kind and all(record.settings.get(name) == value for name, value in wanted.items()):
            yield record
