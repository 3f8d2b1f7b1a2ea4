"""Numbers as the tables of the book show them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

NOT_RUN = "not run"


def text(value: float | None, half: float | None = None, digits: int = 3, none: str = "–") -> str:
    """``0.114 ± 0.007``: a value to so many significant digits, with the half-width of its interval where it has one."""
    if value is None or pd.isna(value):
        return none
    shown = f"{value:.{digits}g}"
    return shown if half is None or pd.isna(half) else f"{shown} ± {half:.2g}"


def span(values: Iterable[float], form: str = "{:.2f}", none: str = "–") -> str:
    """``0.23 to 0.31``: the smallest and the largest value; one where both read the same, ``none`` where there is no value."""
    found = pd.Series(list(values), dtype=float).dropna()
    if found.empty:
        return none
    low, high = form.format(found.min()), form.format(found.max())
    return low if low == high else f"{low} to {high}"
