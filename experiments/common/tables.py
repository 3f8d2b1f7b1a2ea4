"""Numbers and tables as the book shows them."""

from __future__ import annotations

import copy
import html
import sys
from collections.abc import Iterable
from hashlib import sha256
from typing import TypeVar

import pandas as pd
from pandas.io.formats.style import Styler

NOT_RUN = "not run"
Table = TypeVar("Table", pd.DataFrame, Styler)


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


def shell() -> object | None:
    """That of the notebook; ``None`` outside of one, and on a machine that has no Jupyter."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def use_tables() -> None:
    """From here on a notebook shows data frames by :func:`as_html`."""
    if notebook := shell():
        notebook.display_formatter.formatters["text/html"].for_type(pd.DataFrame, as_html)


def captioned(table: Table, caption: str) -> Table:
    """The table, with a caption where it is shown; a frame, or what its ``style`` gives. The caption is plain text.

    This is the last thing to do with a table: most operations on a frame drop its caption.

    Raises:
        ValueError: an empty caption.
    """
    if not caption.strip():
        raise ValueError("a table's caption is empty: say what the table shows, its units, and what its intervals are over")
    table = copy.copy(table)
    if isinstance(table, Styler):
        number = sha256(f"{caption}\n{table.data.to_csv()}".encode()).hexdigest()[:8]  # pandas would draw one
        return table.set_caption(html.escape(caption)).set_uuid(number)
    table.attrs = {**table.attrs, "caption": caption}
    return table


def as_html(table: pd.DataFrame) -> str:
    """A table with a dash where a value is missing, and the caption that :func:`captioned` gave it."""
    limits = {"max_rows": pd.get_option("display.max_rows"), "max_cols": pd.get_option("display.max_columns")}
    found = table.to_html(na_rep="–", border=0, **limits)
    if caption := table.attrs.get("caption"):
        head, body = found.split(">", 1)
        found = f"{head}>\n  <caption>{html.escape(caption)}</caption>{body}"
    return found
