"""Every published number beside ours: one table, made from the records alone, and kept as ``results/report.json``.

Chapter "What reproduces, and what does not" shows it. ``python -m amaml_core.experiments.report`` writes it anew; a test compares
the committed file with the records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from ..records import write_beside
from . import efficiency, images_full, published_curves, ratings, synthetic
from .cells import read_records
from .published import IMAGES_TABLE, RATINGS_COLUMNS, RATINGS_TABLES

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "results" / "report.json"
VERDICTS = ("reproduced", "same order", "not reproduced", "not run")


@dataclass(frozen=True)
class Row:
    """One published number.

    Attributes:
        evaluation, setting, method, measure: what was measured.
        published, published_error: the value, and its interval as published or the error of reading it off a figure.
        ours, half_width: our mean and the half-width of its 95 % interval; ``None`` where there is no record (or no interval).
        over: what the interval is over.
        verdict: one of ``VERDICTS``, by :func:`judge`.
        note: what must be known to compare the two.
    """

    evaluation: str
    setting: str
    method: str
    measure: str
    published: float
    published_error: float | None
    ours: float | None
    half_width: float | None
    over: str
    verdict: str
    note: str


def judge(
    published: float, published_error: float | None, ours: float | None, half_width: float | None, diverged: bool = False
) -> str:
    """``reproduced``: the two intervals touch. ``same order``: within a factor of two. ``not run``: there is no record.

    What ``diverged`` and has no finished run is not reproduced.
    """
    if ours is None:
        return "not reproduced" if diverged else "not run"
    if abs(ours - published) <= (published_error or 0.0) + (half_width or 0.0):
        return "reproduced"
    return "same order" if published / 2 <= ours <= 2 * published else "not reproduced"


def _row(evaluation, setting, method, measure, published, error, ours, half, over, note, diverged=False) -> Row:
    ours, half = (None if value is None else float(f"{value:.4g}") for value in (ours, half))
    verdict = judge(published, error, ours, half, diverged)
    return Row(evaluation, setting, method, measure, published, error, ours, half, over, verdict, note)


def rows() -> list[Row]:
    """All rows, from the records under ``results/full``."""
    return [*_synthetic(), *_ratings(), *_images(), *_efficiency()]


def _synthetic() -> Iterator[Row]:
    """The slides' functions of two inputs, held-out points, Adam at test time."""
    table = synthetic.read()
    if not table.empty:
        wanted = {"variant": "slides", "d": 2, "protocol": "adam", "set": "held-out", "normaliser": "training"}
        for column, value in wanted.items():
            table = table[table[column] == value]
        table = synthetic.over_seeds(table).set_index(["family", "shots", "method", "step"])
    for line in published_curves.table().itertuples(index=False):
        key = (line.family, line.shots, line.method, line.step)
        ours = table.loc[key] if not table.empty and key in table.index else None
        yield _row(
            "synthetic regression", f"{line.family} {line.shots}–{line.shots}, epoch {line.step}", line.method,
            "nRMSE, held-out points", line.published, published_curves.READING_ERROR,
            None if ours is None else ours["mean"], None if ours is None else 1.96 * ours["se"],
            "" if ours is None else f"100 test tasks, {int(ours['seeds'])} seeds",
            "read off a figure; which points and which normaliser is not said",
        )  # fmt: skip


def _ratings() -> Iterator[Row]:
    records, diverged = (read_records(ratings.RECORDS, diverged=state) for state in (False, True))
    for number, published in RATINGS_TABLES.items():
        found, lost = ratings.of_table(records, number), ratings.of_table(diverged, number, diverged=True)
        for method, values in published.items():
            for (data, k, m), (value, error) in zip(RATINGS_COLUMNS, values, strict=True):
                own, gone = found.get((method, data, k, m)), len(lost.get((method, data, k, m), ()))
                ours = ratings.trained_error(own, "standard deviation") if own else None
                over = ["" if ours is None else f"{ours.count} test users, {len(own)} seeds", f"{gone} diverged" * (gone > 0)]
                yield _row(
                    "collaborative filtering", f"table {number}, {data} {k}–{m}", method, "nRMSE", value, error,
                    None if ours is None else ours.mean, None if ours is None else ours.half_width,
                    ", ".join(filter(None, over)),
                    "ours over the standard deviation of a user's ratings; the published normaliser is not known", gone > 0,
                )  # fmt: skip


def _images() -> Iterator[Row]:
    records = read_records(images_full.RECORDS)
    lost = {(r.configuration["size"], r.configuration["row"]) for r in read_records(images_full.RECORDS, diverged=True)}
    for (data, task), published in IMAGES_TABLE.items():
        for method, (value, error) in published.items():
            ours = images_full.accuracy(records, data, method)
            small = images_full.accuracy(records, "reduced", method) if data == "omniglot" else None
            notes = ["needs a GPU for hours"] * (ours is None) + [f"Omniglot 5-way, reduced: {small}"] * (small is not None)
            yield _row(
                "images", f"{data} {task}", method, "accuracy, %", value, error,
                None if ours is None else ours.mean, None if ours is None else ours.half_width,
                "" if ours is None else f"{ours.count} test tasks",
                "; ".join(notes), (data, method) in lost,
            )  # fmt: skip


def _efficiency() -> Iterator[Row]:
    times, bytes_ = efficiency.read_seconds(), efficiency.read_memory()
    if not bytes_.empty:
        bytes_ = bytes_.assign(share=efficiency.normalised(bytes_))
    for line in efficiency.published().itertuples(index=False):
        name = "A-MAML, Store" if line.method == "A-MAML" else line.method
        for measure, published, table, column, note in (
            ("seconds per meta update", line.seconds, times, "seconds", "theirs on a GPU that is not named, ours on one CPU core"),
            ("share of memory", line.share, bytes_, "share", "normalised so that MAML fills it at 200 steps, as theirs did"),
        ):
            own = table
            if not own.empty:
                own = own[(own["method"] == name) & (own["steps"] == line.steps)]
                own = own[own["mode"] == "traced"] if "mode" in own else own
            ours = None if own.empty else float(own[column].median())
            yield _row(
                "efficiency", f"CosMixture 100–100, K = {line.steps}", line.method, measure, published, None, ours, None,
                "" if ours is None else "medians of one machine", note,
            )  # fmt: skip


def table(found: list[Row] | None = None) -> pd.DataFrame:
    """The rows as a table."""
    return pd.DataFrame([asdict(row) for row in (rows() if found is None else found)])


def content(found: list[Row]) -> str:
    """What ``results/report.json`` holds: the rows, and how many have which verdict."""
    counts = Counter(row.verdict for row in found)
    return json.dumps({"verdicts": {v: counts[v] for v in VERDICTS}, "rows": [asdict(r) for r in found]}, indent=1) + "\n"


def main() -> None:
    """Write ``results/report.json``."""
    found = rows()
    write_beside(REPORT, content(found).encode())
    print(pd.Series(Counter(row.verdict for row in found)).to_string())


if __name__ == "__main__":
    main()
