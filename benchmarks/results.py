"""The table of measurements: one row for each contender at each case, as CSV."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from amaml_core.records import write_beside

KEY = ("device", "network", "tasks", "steps", "dtype", "contender")
# seconds are of one meta-gradient, medians; memory_mb is the growth of the peak; error is relative to float64 "unrolled"
FIGURES = ("cpu_seconds", "wall_seconds", "memory_mb", "error", "calls", "compile_seconds")
PROVENANCE = ("load_average", "machine", "versions", "date", "commit")
COLUMNS = (*KEY, "status", "reason", *FIGURES, *PROVENANCE)
STATUSES = ("ok", "skipped", "failed", "out of memory", "not installed")


def slug(machine: str) -> str:
    """A file name for a machine."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def read(path: Path) -> pd.DataFrame:
    """Read and validate a table.

    Raises:
        ValueError: it is no table, or has other columns, an unknown status, two rows for one contender at one case, or figures
            that do not go with the status.
    """
    try:
        table = pd.read_csv(path)
    except ValueError as error:  # the reader's own errors do not name the file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no table: {reason}; take it again by `git restore`, or remove it and measure again") from error
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{path} has the columns {list(table.columns)}, not {list(COLUMNS)}")
    if unknown := set(table.status) - set(STATUSES):
        raise ValueError(f"{path} has the unknown statuses {sorted(unknown)}; known are {STATUSES}")
    if table.duplicated(list(KEY)).any():
        raise ValueError(f"{path} has two rows for {table[table.duplicated(list(KEY))].iloc[0][list(KEY)].to_dict()}")
    ok = table.status == "ok"
    if not (table[ok][["cpu_seconds", "wall_seconds", "memory_mb", "calls"]] >= 0).all(axis=None):
        raise ValueError(f"{path} has a row with the status 'ok' and no figures")
    if not (table[~ok].reason.notna() & table[~ok].cpu_seconds.isna()).all():
        raise ValueError(f"{path} has a row that was not measured, but gives figures or no reason")
    return table


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table, in the order of the cases, so that a new measurement changes its own rows alone."""
    table = table.sort_values(list(KEY), kind="stable")[list(COLUMNS)]
    write_beside(path, table.to_csv(index=False, float_format="%.5g", lineterminator="\n").encode())
