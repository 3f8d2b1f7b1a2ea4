"""Rating tables: fast strict parsing, checks that name the line, and the arrays that Jester and MovieLens share."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from data_scripts.common import DataError, Layout

NUMBERS = "0123456789+-.eE "  # what they are written with


def layout(counts: Mapping[str, int]) -> Layout:
    """``ratings.npz``: user and item (0-based) and rating, one entry per rating, sorted by (user, item)."""
    shape = (counts["ratings"],)
    return {"ratings.npz": {"user": (shape, "int32"), "item": (shape, "int32"), "rating": (shape, "float32")}}


def parse_table(data: bytes, name: str, separator: str, widths: Collection[int], rows: int) -> np.ndarray:
    """A text table of finite numbers as a float64 array (rows, columns); row i is line i + 1.

    Args:
        data: the file's bytes.
        name: the file's name, for errors.
        separator: between fields.
        widths: the numbers of fields that a line may have; all lines have the same.
        rows: the most that there may be.
    Raises:
        DataError: names file and line of the first row that is not such a row, or is one too many.
    """
    data, apart = data.rstrip(b"\r\n"), separator.encode()
    if not data:
        raise DataError(f"{name} is empty")
    problem = "its lines are not a table of numbers"
    lines, width = data.count(b"\n") + 1, data.partition(b"\n")[0].count(apart) + 1
    # What NumPy takes for a table grows with its lines and fields, of which a packed file holds millions for nothing.
    fits = lines <= rows and width in widths and data.count(apart) == lines * (width - 1)
    if fits and not set(data) - {*f"{NUMBERS}{separator}\r\n".encode()}:  # NumPy passes over some control characters
        try:
            # NumPy takes separators of one character only.
            file = io.TextIOWrapper(io.BytesIO(data.replace(apart, b"\t")), encoding="ascii", newline="\n")
            table = np.loadtxt(file, delimiter="\t", comments=None, ndmin=2)
            # NumPy skips blank lines; a count that disagrees gives them away.
            if table.shape == (lines, width) and np.isfinite(table).all():
                return table
        except ValueError as error:
            problem = str(error)
    raise_for_line(data, name, separator, widths, rows)
    raise DataError(f"{name}: {problem}")


def raise_for_line(data: bytes, name: str, separator: str, widths: Collection[int], rows: int) -> None:
    """Raise DataError for the first line that is not a row of finite numbers as wide as the first one, or one too many."""
    width = None
    for number, raw in enumerate(io.BytesIO(data), start=1):
        line = raw.decode("latin-1").rstrip("\r\n")
        if number > rows:
            raise DataError(f"{name} has more than {rows:,} lines; get its archive again")
        count = line.count(separator) + 1  # before they are split, since there may be millions
        if count not in ([width] if width else widths):
            expected = width or " or ".join(map(str, sorted(widths)))
            raise DataError(f"{name} line {number} has {count} fields, not {expected}: {line[:80]!r}")
        for field in line.split(separator):
            try:
                finite = set(field) <= {*NUMBERS} and np.isfinite(float(field))
            except ValueError:
                finite = False
            if not finite:
                raise DataError(f"{name} line {number} has {field[:80]!r} where a number should be")
        width = count


def require_rows(good: np.ndarray, name: str, what: str) -> None:
    """Raise DataError with the line of the first row where `good` (rows,) is false; `what` says what is wrong."""
    if not good.all():
        raise DataError(f"{name} line {int(np.argmin(good)) + 1}: {what}")


def save_ratings(
    user: np.ndarray, item: np.ndarray, rating: np.ndarray, folder: Path, counts: Mapping[str, int], name: str
) -> None:
    """Check ratings against the official counts and write them, sorted by (user, item), as ``ratings.npz``.

    Args:
        user, item: 0-based, (ratings,); every user has ratings, and the last item has.
        rating: (ratings,).
        folder: where to write.
        counts: users, items (the range of the item index) and ratings.
        name: the file that they come from, for errors.
    Raises:
        DataError: the counts differ, or a user has rated an item twice.
    """
    found = {"users": len(np.unique(user)), "items": int(item.max(initial=-1)) + 1, "ratings": len(rating)}
    if found != dict(counts):
        raise DataError(f"{name} holds {found} (items: up to the last one), but the official counts are {dict(counts)}")
    order = np.lexsort((item, user))
    user, item, rating = user[order], item[order], rating[order]
    twice = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
    if twice.any():
        first = int(np.argmax(twice))
        lines = sorted(int(row) + 1 for row in order[first : first + 2])
        raise DataError(f"{name} lines {lines[0]} and {lines[1]} rate the same item for the same user")
    arrays = {"user": user.astype(np.int32), "item": item.astype(np.int32), "rating": rating.astype(np.float32)}
    np.savez(folder / "ratings.npz", **arrays)
