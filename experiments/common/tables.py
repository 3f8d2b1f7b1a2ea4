"""Numbers as the tables of the book show them."""

from __future__ import annotations

import pandas as pd

NOT_RUN = "not run"


def text(value: float | None, half: float | None = None, digits: int = 3, none: str = "–") -> str:
    """``0.114 ± 0.007``: a value to so many significant digits, with the half-width of its interval where it has one."""
    if value is None or pd.isna(value):
        return none
    shown = f"{value:.{digits}g}"
    return shown if half is None or pd.isna(half) else f"{shown} ± {half:.2g}"
