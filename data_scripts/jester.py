"""Jester-1: ``python -m data_scripts.jester`` writes ``jester-1/ratings.npz``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data_scripts import ratings
from data_scripts.archives import find_member, open_zip, read_member
from data_scripts.common import DataError, DataSet, Source, command
from data_scripts.fetch import Archive, obtain_all

MISSING = 99.0
LOWEST, HIGHEST = -10.0, 10.0
CELL_BYTES = 32  # the most that a cell may have, on average

# Berkeley publishes no checksum. This one is of the file that the Internet Archive captured from both addresses; its
# copy is the last resort, since the official host is often away.
ARCHIVES = (
    Archive(
        "jester/jester_dataset_1_1.zip",
        "sha256:cb7841756ded125b15f3d95c9f8241224065e96354c132a46ae4214deeab7615",
        (
            "https://eigentaste.berkeley.edu/dataset/jester_dataset_1_1.zip",
            "https://eigentaste.berkeley.edu/dataset/archive/jester_dataset_1_1.zip",
            "https://web.archive.org/web/20250409222630id_/https://eigentaste.berkeley.edu/dataset/archive/jester_dataset_1_1.zip",
        ),
    ),
)


def read_spreadsheet(data: bytes, name: str, width: int) -> np.ndarray:
    """The first sheet of an old Excel file as float64 (rows, width), NaN where a cell is not a number.

    Raises DataError for a damaged file, another width, or if xlrd is missing.
    """
    try:
        import xlrd  # only the official archive needs it
    except ImportError as error:
        raise DataError(f"{name} is a spreadsheet, which needs the package xlrd; install the extra 'data'") from error
    try:
        sheet = xlrd.open_workbook(file_contents=data, logfile=io.StringIO()).sheet_by_index(0)
    except Exception as error:  # xlrd stumbles over a damaged file with errors of every kind
        raise DataError(f"{name} is not a readable Excel file ({type(error).__name__}: {error})") from error
    if sheet.ncols != width:
        raise DataError(f"{name} has {sheet.ncols} columns, not {width}")
    table = np.full((sheet.nrows, width), np.nan)
    for row in range(sheet.nrows):
        kinds = np.array(sheet.row_types(row))
        values = np.array(sheet.row_values(row), dtype=object)
        table[row, kinds == xlrd.XL_CELL_NUMBER] = values[kinds == xlrd.XL_CELL_NUMBER]
    return table


def build(sources: Sequence[Source], folder: Path, counts: Mapping[str, int]) -> dict:
    """Write ``ratings.npz`` from Jester's matrix: a row per user, the number of ratings, then a rating or 99 per joke.

    Args:
        sources: the one archive; it holds the matrix as ``jester-data-1.csv``, or, if it is the official one, as ``.xls``.
        folder: where to write.
        counts: users, items (jokes) and ratings.
    Returns: no further manifest entries.
    Raises:
        DataError: a damaged archive, a malformed row (by line), wrong counts, a spreadsheet of unknown origin.
    """
    (source,) = sources
    width = counts["items"] + 1
    with open_zip(source.path) as archive:
        found = find_member(archive, "jester-data-1.xls", "jester-data-1.csv")
        if found.filename.endswith(".xls") and not source.official:  # a hundred bytes of another can ask for any memory
            raise DataError(
                f"{source.path}, {found.filename}: a spreadsheet is read from the official archive alone, whose bytes are known;"
                " take that one, or put the table there as jester-data-1.csv"
            )
        data = read_member(archive, found, 2**16 + CELL_BYTES * width * counts["users"])
    name = f"{source.path}, {found.filename}"
    if found.filename.endswith(".csv"):
        table = ratings.parse_table(data, name, ",", widths=(width,), rows=counts["users"])
    else:
        table = read_spreadsheet(data, name, width)
    number, matrix = table[:, 0], table[:, 1:]  # (users,), (users, jokes)
    ratings.require_rows(np.isfinite(table).all(axis=1), name, "a cell is not a number")
    rated = matrix != MISSING
    in_range = ((matrix >= LOWEST) & (matrix <= HIGHEST)) | ~rated
    wrong_range = f"a rating is neither from {LOWEST:g} to {HIGHEST:g} nor {MISSING:g}"
    ratings.require_rows(in_range.all(axis=1), name, wrong_range)
    agrees = number == rated.sum(axis=1)
    ratings.require_rows(agrees, name, "the first column, the number of ratings, does not agree with the row")
    if len(matrix) != counts["users"]:
        raise DataError(f"{name} has {len(matrix)} rows, but there are {counts['users']} users")
    user, item = np.nonzero(rated)
    ratings.save_ratings(user, item, matrix[rated], folder, counts, name)
    return {}


DATASET = DataSet(
    name="jester-1",
    title="Jester, data set 1, part 1",
    page="https://eigentaste.berkeley.edu/dataset/",
    licence=(
        "free for research use when acknowledged with: K. Goldberg, T. Roeder, D. Gupta, C. Perkins, Eigentaste:"
        " A Constant Time Collaborative Filtering Algorithm, Information Retrieval 4(2), 133-151, 2001"
    ),
    counts={"users": 24_983, "items": 100, "ratings": 1_810_455},
    layout=ratings.layout,
    obtain=partial(obtain_all, ARCHIVES),
    build=build,
)

if __name__ == "__main__":
    raise SystemExit(command(DATASET))
