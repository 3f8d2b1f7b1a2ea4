"""Claims of the paper, each with the test that decides it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

Verdict = Literal["holds", "holds in part", "does not hold", "not run"]


@dataclass(frozen=True)
class Claim:
    """A published claim and what our records say of it.

    Attributes:
        evaluation: where it is tested.
        claim: in words.
        test: what our records must show; else the claim does not hold.
        published, ours: what decides, as published and from our records.
        verdict: see :func:`decide`.
        note: what must be known beside.
    """

    evaluation: str
    claim: str
    test: str
    published: str
    ours: str
    verdict: Verdict
    note: str = ""


def decide(outcomes: Iterable[bool]) -> Verdict:
    """``holds`` if every outcome of the test is true, ``does not hold`` if none is, ``holds in part`` between, ``not run`` without
    any."""
    found = list(outcomes)
    if not found:
        return "not run"
    return "holds" if all(found) else "holds in part" if any(found) else "does not hold"


def table(claims: Iterable[Claim]) -> pd.DataFrame:
    """Claims as the chapters show them."""
    frame = pd.DataFrame([asdict(claim) for claim in claims])
    return frame.drop(columns="evaluation") if frame["evaluation"].nunique() == 1 else frame
