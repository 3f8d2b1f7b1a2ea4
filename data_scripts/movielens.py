"""MovieLens: ``user, item, rating[, timestamp]`` rows with ids from 1 and whole ratings from 1 to 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_scripts.archives import find_member, open_zip, read_member
from data_scripts.common import Source
from data_scripts.ratings import parse_table, require_rows, save_ratings

LINE_BYTES = 64  # the most that a line may have, on average
LICENCE = (
    "GroupLens terms: research use, with acknowledgement (Harper and Konstan 2015, doi 10.1145/2827872);"
    " no redistribution and no commercial use without permission"
)


def build(sources: Sequence[Source], folder: Path, counts: Mapping[str, int], *, member: str, separator: str) -> dict:
    """Write ``ratings.npz`` from a MovieLens archive; index = official id - 1.

    Args:
        sources: the one archive.
        folder: where to write.
        counts: users, items (the highest item id) and ratings.
        member: file name of the ratings in the archive.
        separator: between its fields; the fourth field, the timestamp, may be missing.
    Returns: manifest entries: how many items have ratings.
    Raises:
        DataError: a damaged archive, a malformed row (by line), wrong counts, a repeated (user, item).
    """
    (source,) = sources
    with open_zip(source.path) as archive:
        found = find_member(archive, member)
        data = read_member(archive, found, 4096 + LINE_BYTES * counts["ratings"])
    name = f"{source.path}, {found.filename}"
    table = parse_table(data, name, separator, widths=(3, 4), rows=counts["ratings"])
    user, item, rating = table[:, 0], table[:, 1], table[:, 2]
    whole = (table[:, :3] == np.floor(table[:, :3])).all(axis=1)
    require_rows(whole, name, "user, item and rating must be whole numbers")
    require_rows((user >= 1) & (user <= counts["users"]), name, f"the user id must be from 1 to {counts['users']}")
    require_rows((item >= 1) & (item <= counts["items"]), name, f"the item id must be from 1 to {counts['items']}")
    require_rows((rating >= 1) & (rating <= 5), name, "the rating must be from 1 to 5")
    save_ratings(user.astype(np.int64) - 1, item.astype(np.int64) - 1, rating, folder, counts, name)
    return {"rated_items": len(np.unique(item)), "ids": "index = official id - 1"}
