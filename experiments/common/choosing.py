"""Choosing settings: every method may try equally many, on tasks that are neither trained nor tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd

from amaml_core import DivergenceError


def choose(trials: Sequence[Any], score: Callable[[Any], float], best: Literal["lowest", "highest"] = "lowest") -> pd.DataFrame:
    """Score each trial: a row for each, its settings, its ``score`` (missing if it diverged), and whether it was ``chosen``.

    Args:
        trials: frozen dataclasses of settings.
        score: trains with a trial's settings and scores it on validation tasks.
        best: which score is chosen; the first of equals.

    Raises:
        DivergenceError: all trials diverged.
    """
    rows = []
    for trial in trials:
        try:
            found = score(trial)
        except DivergenceError:
            found = float("nan")
        rows.append(asdict(trial) | {"score": found})
    table = pd.DataFrame(rows)
    if table["score"].isna().all():
        raise DivergenceError(f"all {len(trials)} trials diverged: {list(trials)}")
    chosen = table["score"].idxmin() if best == "lowest" else table["score"].idxmax()
    return table.assign(chosen=table.index == chosen)


def chosen(table: pd.DataFrame, kind: type, by: Sequence[str]) -> dict:
    """What records of choices chose, as settings of a kind, by the values of ``by``."""
    names = [name for name in kind.__dataclass_fields__ if name in table]  # records may be older than a setting
    best = table[table["chosen"]].set_index(list(by))[names]
    return {key: kind(**{n: None if v != v else v for n, v in row.items()}) for key, row in best.to_dict("index").items()}
