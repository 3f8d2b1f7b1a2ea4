"""Accuracies, choices, paired differences and learning curves, from rows, recorded or live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pandas as pd

from amaml_core import metrics
from amaml_core.metrics import Interval

from ..common import records
from ..common.published import published
from ..common.statistics import seed_interval
from ..common.tables import NOT_RUN
from .settings import FIRST_ROWS, GRIDS, PAPER_TASKS, PUBLISHED, ROWS, SIZES, Recipe

FIVE_WAY = "Rajeswaran et al. 2019"  # iMAML's own paper, which also quotes the other rows
ATTRIBUTES = {
    "data": "data", "way": "classes N of a task", "query": "query drawings of a class", "filters": "filters of a layer",
    "pooled": "max-pooling", "batch": "tasks B of a meta-batch", "updates": "meta updates",
    "equal_budget": "all rows have these", "again": "rows with a second seed", "trial_updates": "meta updates of a trial",
    "measure_every": "meta updates from one point of the learning curve to the next",
    "measured": "inner steps in test, beside the row's own",
}  # fmt: skip
SETTINGS = {"inner_lr": "step size", "regularization": "λ", "steps": "number of steps"}


def recorded(kind: str, size: str) -> pd.DataFrame:
    """All rows of a kind at a size; empty if there are none."""
    return records.rows("images", kind, size=size)


def lost(size: str) -> set[str]:
    """The rows of which a cell diverged at a size."""
    found = records.diverged("images", "accuracy", size=size)
    return set() if found.empty else set(found["row"])


def percent(table: pd.DataFrame) -> pd.DataFrame:
    """With the share of right images as ``accuracy`` in per cent."""
    return table.assign(accuracy=100 * table["right"] / table["of"])


def final(table: pd.DataFrame, row: str, alone: bool = False) -> pd.Series:
    """The accuracy (%) of a row on each test task after its own number of steps, indexed by ``seed`` and ``task``; may be empty."""
    if table.empty:
        return pd.Series(dtype=float)
    keep = table["set"].eq("test") & table["row"].eq(row) & table["alone"].eq(alone) & table["step"].eq(table["test_steps"])
    return percent(table[keep]).set_index(["seed", "task"])["accuracy"]


def over_runs(values: pd.Series) -> Interval | None:
    """Mean and 95 % interval of values by ``seed`` and ``task``: over training seeds (Student's t) where there are several, over
    the tasks where there is one, which leaves out how much training runs differ. ``None`` if there are no values."""
    if values.empty:
        return None
    by_seed = values.groupby(level="seed").mean()
    return metrics.interval(values) if len(by_seed) == 1 else seed_interval(by_seed)


def accuracy(table: pd.DataFrame, row: str, alone: bool = False) -> Interval | None:
    """Mean accuracy (%) of a row on test tasks: see :func:`over_runs`."""
    return over_runs(final(table, row, alone))


def difference(table: pd.DataFrame, row: str, other: str, alone: bool = False) -> Interval | None:
    """Mean accuracy of a row less that of another, task by task on the tasks that both have: see :func:`over_runs`."""
    return over_runs((final(table, row, alone) - final(table, other, alone)).dropna())


def transduction(table: pd.DataFrame, row: str) -> Interval | None:
    """What showing all query images together adds to a row's accuracy (%), task by task."""
    return over_runs((final(table, row) - final(table, row, alone=True)).dropna())


def over(table: pd.DataFrame, row: str) -> str:
    """What the intervals of a row are over: ``600 tasks of 1 training seed``, or ``5 training seeds``."""
    values = final(table, row)
    if values.empty:
        return "–"
    seeds = values.index.get_level_values("seed").nunique()
    return f"{len(values)} tasks of 1 training seed" if seeds == 1 else f"{seeds} training seeds"


def said(found: Interval | None, missing: str = "–", digits: int = 1, signed: bool = False) -> str:
    """``89.8 ± 0.7``, or what is said where nothing was found."""
    return missing if found is None else f"{found.mean:{'+' if signed else ''}.{digits}f} ± {found.half_width:.{digits}f}"


def cautious(tables: Mapping[str, pd.DataFrame]) -> str:
    """What all intervals of some tables are over, in words."""
    words = sorted({over(table, row) for table in tables.values() for row in ROWS} - {"–"})
    if not words:
        return NOT_RUN
    one = any(word.endswith("1 training seed") for word in words)
    return f"95 % intervals over {'; '.join(words)}" + (", and not over training seeds" if one else "")


def paper(data: str) -> dict[str, str]:
    """The paper's accuracies in per cent, by row."""
    table = published("images", source="table", data=data, shots=PAPER_TASKS[data]).set_index("method")
    return {row: f"{table.loc[row, 'value']:g} ± {table.loc[row, 'error']:g}" for row in ROWS}


def five_way() -> dict[str, str]:
    """The accuracies in per cent of Omniglot 5-way 1-shot in iMAML's own paper, by row."""
    table = published("images", source=FIVE_WAY)
    return {line.method: f"{line.value:g} ± {line.error:g}" for line in table.itertuples()}


def sizes(names: Sequence[str]) -> pd.DataFrame:
    """A column for each of some sizes, a row for each of their attributes that are not the same in all, in words."""
    table = pd.DataFrame({name: asdict(SIZES[name]) for name in names})
    different = table.apply(lambda values: len({str(v) for v in values}) > 1, axis=1)
    table = table[different].drop(index=["large", "gpu", "trials"], errors="ignore")
    return table.map(_in_words).rename(index=ATTRIBUTES)


def _in_words(value: object) -> str:
    """A setting as a reader has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "–"
    return (f"{value:,}" if isinstance(value, int) else str(value)) if value else "–"


def recipes() -> pd.DataFrame:
    """The settings at the paper's sizes, in words."""
    return pd.DataFrame({data: {row: str(recipe) for row, recipe in rows.items()} for data, rows in PUBLISHED.items()})


def reduced(table: pd.DataFrame) -> pd.DataFrame:
    """All rows at the reduced size: accuracies, what they are over, and the published ones at five-way's full size."""
    theirs, gone, found = five_way(), lost("reduced"), {}
    for row in ROWS:
        mine = table[table["row"].eq(row)] if not table.empty else table
        missing = "diverged" if row in gone else NOT_RUN
        found[row] = {
            "with transduction": said(accuracy(table, row), missing),
            "one at a time": said(accuracy(table, row, alone=True), missing),
            "what transduction adds": said(transduction(table, row)),
            "intervals over": over(table, row),
            "steps in test": "–" if mine.empty else str(int(mine["test_steps"].iloc[0])),
            "minutes of training": "–" if mine.empty else f"{minutes(table, row):.1f}",
            "iMAML's paper, full size": theirs.get(row, "–"),
        }
    return pd.DataFrame(found).T


def minutes(table: pd.DataFrame, row: str) -> float:
    """Of training, the mean over seeds; one measurement each, on a machine that did other things too."""
    return table[table["row"].eq(row)].groupby("seed")["training_seconds"].first().mean() / 60


def curve(table: pd.DataFrame) -> pd.DataFrame:
    """Mean test accuracy (%) with transduction over tasks and seeds: a row for each number of inner steps, a column for each row;
    missing where an inner loop has diverged, or was not measured."""
    if table.empty:
        return pd.DataFrame()
    tested = percent(table[table["set"].eq("test") & ~table["alone"].astype(bool)])
    wide = tested.groupby(["step", "row"])["accuracy"].agg(lambda x: x.mean(skipna=False)).unstack()
    return wide[[row for row in ROWS if row in wide]]


def learning(table: pd.DataFrame) -> pd.DataFrame:
    """Learning curves: mean accuracy (%) on validation tasks over tasks and seeds, a row for each number of meta updates."""
    seen = percent(table[table["set"].eq("validation")]) if not table.empty else table
    return pd.DataFrame() if seen.empty else seen.groupby(["update", "row"])["accuracy"].mean().unstack()


def speed(measured: pd.DataFrame) -> pd.DataFrame:
    """What one update costs by each ``way``, from rows of the kind ``speed``: CPU seconds, GFLOP, GFLOP a second, and which share
    (%) that is of what the core gives for a product of square matrices."""
    if measured.empty:
        return pd.DataFrame()
    rate = measured["gflop"] / measured["seconds"]
    found = measured.assign(**{"GFLOP/s": rate, "share of the core (%)": 100 * rate / measured["peak"]})
    found = found.rename(columns={"seconds": "CPU seconds", "gflop": "GFLOP"}).set_index(["way", "method"])
    return found[["steps", "CPU seconds", "GFLOP", "GFLOP/s", "share of the core (%)"]]


def own_steps(table: pd.DataFrame) -> dict[str, int]:
    """How many inner steps each row is tested at."""
    return {} if table.empty else table.groupby("row")["test_steps"].first().astype(int).to_dict()


def first_look(table: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Accuracy (%) of the three methods before adapting and after so many steps, with intervals over tasks."""
    found, seen = {}, percent(table)
    for row in FIRST_ROWS:
        mine = seen[seen["row"].eq(row)].set_index("step")
        zero, own = (said(metrics.interval(mine.loc[k, "accuracy"])) for k in (0, steps))
        found[row] = {"meta updates": mine["update"].iloc[0], "before adapting": zero, f"after {steps} steps": own}
        found[row]["intervals over"] = f"{mine['task'].nunique()} tasks of 1 training seed"
    return pd.DataFrame(found).T.rename_axis("accuracy (%)")


# ------------------------------------------------------------------------------------------------------------- choices


def edges(choices: pd.DataFrame) -> pd.DataFrame:
    """For each ``row`` with more than two trials what these differ in (``setting``), the ``chosen`` value, the ``lowest`` and
    ``highest`` on offer, and whether the chosen one is at an ``edge`` (``"lowest"``, ``"highest"``, or ``""``): then a longer grid
    may do better."""
    found = []
    for row, mine in _by_row(choices).items():
        if len(mine) < 3:
            continue
        values, setting = mine[GRIDS[row]], GRIDS[row]
        value = values[mine["chosen"].astype(bool)].item()
        edge = "lowest" if value == values.min() else "highest" if value == values.max() else ""
        found.append((row, setting, value, values.min(), values.max(), edge))
    return pd.DataFrame(found, columns=["row", "setting", "chosen", "lowest", "highest", "edge"])


def at_edge(choices: pd.DataFrame, edge: str, setting: str) -> list[str]:
    """The rows that chose the lowest, or the highest, value of a setting."""
    found = edges(choices)
    return found.loc[found["edge"].eq(edge) & found["setting"].eq(setting), "row"].tolist()


def trials(choices: pd.DataFrame) -> pd.DataFrame:
    """A row for each row: its trials with their validation accuracy in per cent, which was chosen, and, of more than two, at which
    edge that lies."""
    marks = edges(choices).set_index("row")
    found = {}
    for row, mine in _by_row(choices).items():
        words = [str(_trial(trial)) for _, trial in mine.iterrows()]
        scores = ["diverged" if pd.isna(score) else f"{100 * score:.1f}" for score in mine["score"]]
        found[row] = {f"trial {n}": f"{w}: {s}" for n, (w, s) in enumerate(zip(words, scores, strict=True), 1)}
        found[row]["chosen"] = words[mine["chosen"].astype(bool).tolist().index(True)]
        if row in marks.index:
            found[row]["edge of the grid"] = f"{marks.edge[row]} {SETTINGS[marks.setting[row]]}" if marks.edge[row] else "–"
    return pd.DataFrame(found).T


def _by_row(choices: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {} if choices.empty else {row: choices[choices["row"].eq(row)] for row in ROWS if row in set(choices["row"])}


def _trial(trial: pd.Series) -> Recipe:
    names = ("inner_lr", "regularization", "solver", "minibatch")
    given = {name: trial[name] for name in names if name in trial and pd.notna(trial[name])}
    whole = {name: int(value) for name, value in given.items() if name == "minibatch"}
    return Recipe(int(trial["steps"]), **({"inner_lr": None} | given | whole))
