"""What was published, to stand beside ours: ``published.csv``.

The numbers are those of Li et al., Meta-learning with adjoint methods, AISTATS 2023, and of its slides; ``source`` says where
another paper published them. ``error`` is the interval as published, or the error of reading a value off a figure by eye; where a
method's line leaves a figure, there is no row. In the ratings, ``shots`` are support and query points; Table 1 has 50 inner steps
and MAML 5, Table 2 has 100 and 10. Baselines' rows of Omniglot equal those of iMAML's own paper.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

FILE = Path(__file__).resolve().parents[1] / "published.csv"


@cache
def _all() -> pd.DataFrame:
    return pd.read_csv(FILE)


def published(evaluation: str, **wanted: object) -> pd.DataFrame:
    """The published numbers of an evaluation: ``source``, ``data``, ``shots``, ``step``, ``method``, ``measure``, ``value``,
    ``error``; those of which the columns named in ``wanted`` have these values.

    Raises:
        KeyError: an evaluation of which nothing was published, or an unknown column.
    """
    table = _all()
    if evaluation not in set(table["evaluation"]):
        raise KeyError(evaluation)
    keep = table["evaluation"].eq(evaluation)
    for column, value in wanted.items():
        keep &= table[column].eq(value)
    found = table[keep].drop(columns="evaluation").reset_index(drop=True)
    return found.astype({"step": int}) if found["step"].notna().all() else found.drop(columns="step")


def curves() -> pd.DataFrame:
    """The published curves of fine-tuning: ``family``, ``shots``, ``method``, ``step`` (epoch), ``published``."""
    table = published("synthetic").rename(columns={"data": "family", "value": "published"})
    shots = table["shots"].str.split("–").str[0].astype(int)
    return table.assign(shots=shots)[["family", "shots", "method", "step", "published"]]


def falling(figure: pd.DataFrame) -> float:
    """The distance (root mean square) of published curves from the best one that is the same for all methods and panels."""
    return float((figure["published"] - figure.groupby("step")["published"].transform("mean")).pow(2).mean() ** 0.5)
