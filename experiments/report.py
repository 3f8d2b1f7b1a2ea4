"""Every published claim and number beside ours: made from the records alone, and kept as ``results/report.json``.

Chapter "What reproduces, and what does not" shows it. ``python -m experiments.report`` writes it anew; a test compares the
committed file with the records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pandas as pd

from amaml_core.records import write_beside

from . import audit, efficiency, images, ratings, recipe, synthetic, tradeoff
from .common.claims import Claim
from .common.published import published
from .common.records import ROOT

REPORT = ROOT / "results" / "report.json"
NARROW = 0.25
VERDICTS = ("reproduced", "same order", "not reproduced", "not run", "given")


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
    """``reproduced``: the two intervals touch, and together they are at most ``NARROW`` of the published number, since intervals
    that hold anything decide nothing. ``same order``: within a factor of two. ``not run``: there is no record.

    What ``diverged`` and has no finished run is not reproduced.
    """
    if ours is None:
        return "not reproduced" if diverged else "not run"
    width = (published_error or 0.0) + (half_width or 0.0)
    if abs(ours - published) <= width <= NARROW * published:
        return "reproduced"
    return "same order" if published / 2 <= ours <= 2 * published else "not reproduced"


def _row(evaluation, setting, method, measure, value, error, ours, half, over, note, diverged=False, given=False) -> Row:
    value, error, ours, half = (None if v is None or pd.isna(v) else float(f"{v:.4g}") for v in (value, error, ours, half))
    verdict = "given" if given else judge(value, error, ours, half, diverged)
    return Row(evaluation, setting, method, measure, value, error, ours, half, over, verdict, note)


def rows() -> list[Row]:
    """All rows, from the records under ``results/full``."""
    return [*_synthetic(), *_ratings(), *_images(), *_efficiency()]


def claims() -> list[Claim]:
    """All claims, from the same records."""
    cpu = efficiency.tables.recorded("seconds").query("device == 'cpu'")
    peaks = efficiency.tables.normalised(efficiency.tables.recorded("bytes"))
    return [
        *tradeoff.claims.claims(), *recipe.claims.claims(recipe.tables.recorded()), *synthetic.claims.claims(),
        *ratings.claims.claims(), *images.beside.claims(images.beside.everything()), *efficiency.claims.claims(cpu, peaks),
        *audit.claims.claims(),
    ]  # fmt: skip


def _synthetic() -> Iterator[Row]:
    """The reading that explains A-MAML's curves: support errors of the released functions of two inputs, under the recipe."""
    found = recipe.tables.curves(recipe.tables.recorded(), set="support")
    found = found.set_index(["family", "shots", "method", "step"]) if len(found) else found
    for line in published("synthetic").itertuples(index=False):
        key = (line.data, int(line.shots.split("–")[0]), line.method, line.step)
        ours = found.loc[key] if key in found.index else None
        yield _row(
            "synthetic regression", f"{line.data} {line.shots}, epoch {line.step}", line.method, "nRMSE, support points",
            line.value, line.error, None if ours is None else ours["mean"], None if ours is None else ours["half"],
            "" if ours is None else f"{int(ours['seeds'])} training seeds",
            "read off a figure; released functions of two inputs, under the released recipe",
        )  # fmt: skip


def _ratings() -> Iterator[Row]:
    """The reading that comes nearest without a free constant."""
    found = ratings.tables.report_rows()
    for line in published("ratings").itertuples(index=False):
        ours = found.loc[(line.source, line.data, line.shots, line.method)]
        yield _row(
            "collaborative filtering", f"{line.source}, {line.data} {line.shots}", line.method, "nRMSE", line.value, line.error,
            ours["mean"], ours["half"], ours["over"], ours["note"], bool(ours["diverged"]),
        )  # fmt: skip


def _images() -> Iterator[Row]:
    found = images.beside.report_rows()
    for line in published("images", source="table").itertuples(index=False):
        ours = found.loc[(line.data, line.method)]
        yield _row(
            "images", f"{line.data} {line.shots}", line.method, line.measure, line.value, line.error, ours["mean"], ours["half"],
            ours["over"], ours["note"], bool(ours["diverged"]),
        )  # fmt: skip


def _efficiency() -> Iterator[Row]:
    tables = efficiency.tables
    seconds = tables.recorded("seconds").query("device == 'cpu'")
    for line in tables.numbers(seconds, tables.normalised(tables.recorded("bytes"))).itertuples(index=False):
        yield _row(
            "efficiency", f"CosMixture 100–100, K = {line.steps}", line.method, line.measure, line.published, None, line.ours, None,
            "medians of one machine" if "seconds" in line.measure else "byte counts",
            "theirs on a GPU that is not named, ours on a CPU core" * ("seconds" in line.measure),
            given=line.given,
        )  # fmt: skip


def table(found: list[Row] | None = None) -> pd.DataFrame:
    """The rows as a table."""
    return pd.DataFrame([asdict(row) for row in (rows() if found is None else found)])


def content(found: list[Row], decided: list[Claim]) -> str:
    """What ``results/report.json`` holds: the claims, the rows, and how many of each have which verdict."""
    entries = {
        "claim_verdicts": dict(Counter(claim.verdict for claim in decided)),
        "claims": [asdict(claim) for claim in decided],
        "verdicts": {v: sum(row.verdict == v for row in found) for v in VERDICTS},
        "rows": [asdict(row) for row in found],
    }
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write ``results/report.json``."""
    found, decided = rows(), claims()
    write_beside(REPORT, content(found, decided).encode())
    print(pd.Series(Counter(claim.verdict for claim in decided), name="claims").to_string())
    print(pd.Series(Counter(row.verdict for row in found), name="numbers").to_string())


if __name__ == "__main__":
    main()
