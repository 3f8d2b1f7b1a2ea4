"""Tables of the chapter; all from rows, recorded or live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pandas as pd

from amaml_core.metrics import Interval, interval

from ..common.records import of_kind, rows
from ..common.statistics import Effect, seed_interval
from .formulas import FORMULAS
from .settings import EXACT, PROXIMAL, SIZES, TRAINED, UNTRAINED, cells
from .switches import PAPER, RELEASED, Switches, backward_loops, one_at_a_time, without_proximal

KINDS = ("gradient", "training", "standardisation", "functions", "memory")
INNER = ("inner", 50)  # the rule and the number of steps that were trained for
ADAM = ("adam", 500)  # the released test
UNROLLED = "unrolled task by task"


def recorded(kind: str) -> pd.DataFrame:
    """All rows of a kind at full size.

    Raises:
        FileNotFoundError: there are none.
    """
    table = rows("audit", kind, size="full")
    if table.empty:
        raise FileNotFoundError(f"there are no records of the audit's {kind}: make them with `make full CELL='audit {kind}'`")
    return table


def read() -> dict[str, pd.DataFrame]:
    """:func:`recorded` of every kind."""
    return {kind: recorded(kind) for kind in KINDS}


def counts() -> pd.DataFrame:
    """For each kind of cells, how many have a record, and how many there are at full size."""
    wanted = pd.Series([cell.kind for cell in cells("full")]).value_counts().reindex(KINDS)
    found = {kind: sum(1 for _ in of_kind("audit", kind, size="full")) for kind in KINDS}
    return pd.DataFrame({"records": found, "of": wanted}).reindex(KINDS)


def number(value: float) -> str:
    """Two digits that count."""
    return f"{value:.2f}" if 0.095 <= abs(value) < 100 else f"{value:.1e}"


def spelled(found: Interval | Effect, digits: int = 3, sign: str = "-") -> str:
    """A mean and its interval, with so many decimals; a sign of ``"+"`` shows those above zero, too."""
    return f"{found.mean:{sign}.{digits}f} ± {found.half_width:.{digits}f}"


# -------------------------------------------------------------------------------------------------------- meta-gradients


def switches() -> pd.DataFrame:
    """All switches at their two positions."""
    return pd.DataFrame({"released": asdict(RELEASED), "paper": asdict(PAPER)}).rename_axis("switch")


def select(table: pd.DataFrame, wanted: Switches) -> pd.DataFrame:
    """The rows of meta-gradients that have these switches."""
    keep = pd.Series(True, index=table.index)
    for name, value in asdict(wanted).items():
        keep &= table[name].eq(value)
    return table[keep]


def typical(table: pd.DataFrame, wanted: Switches, column: str) -> float:
    """Over the seeds of rows that differ in nothing else: the geometric mean of an error or a norm, the mean of a cosine."""
    values = select(table, wanted)[column]
    return float(values.mean() if column.endswith("cosine") else np.exp(np.log(values).mean()))


def one_each(gradient: pd.DataFrame, wanted: Switches, column: str) -> pd.Series:
    """A column's value by ``formula``, ``at``, ``steps`` and ``seed``."""
    return select(gradient, wanted).set_index(["formula", "at", "steps", "seed"])[column].sort_index()


def by_cell(gradient: pd.DataFrame, wanted: Switches, column: str) -> pd.Series:
    """:func:`typical` by ``formula``, ``at`` and ``steps``."""
    values, keys = one_each(gradient, wanted, column), ["formula", "at", "steps"]
    return values.groupby(level=keys).mean() if column.endswith("cosine") else np.exp(np.log(values).groupby(level=keys).mean())


def turned(table: pd.DataFrame, base: Switches, other: Switches) -> pd.DataFrame:
    """One row for the base, and one for each switch turned to its other position: errors and cosines, all seeds together."""
    columns: dict[str, Callable[[float], str]] = {
        "own_error": number, "own_cosine": "{:.5f}".format, "plain_error": number, "plain_cosine": "{:.3f}".format,
    }  # fmt: skip
    found = {
        name: {column.replace("_", ": "): show(typical(table, wanted, column)) for column, show in columns.items()}
        for name, wanted in {"(none)": base, **one_at_a_time(base, other)}.items()
    }
    return pd.DataFrame(found).T.rename_axis("switch turned")


def loops(gradient: pd.DataFrame, formula: str, numbers: tuple[int, ...]) -> pd.DataFrame:
    """Errors against the own exact gradient of all backward loops, without and with the proximal terms."""
    found = {}
    for at in ("initial", "trained"):
        for steps in numbers:
            mine = cell(gradient, formula, at, steps)
            for label, base in (("without", without_proximal(RELEASED)), ("with", RELEASED)):
                errors = {name: number(typical(mine, wanted, "own_error")) for name, wanted in backward_loops(base).items()}
                found[at, f"K = {steps}", f"{label} proximal"] = errors
    return pd.DataFrame(found)


def cell(gradient: pd.DataFrame, formula: str, at: str, steps: int) -> pd.DataFrame:
    """The rows of one formula, network and number of steps, all seeds."""
    return gradient[gradient["formula"].eq(formula) & gradient["at"].eq(at) & gradient["steps"].eq(steps)]


# -------------------------------------------------------------------------------------------------------- held-out errors


def held_out(table: pd.DataFrame, rule: str, step: int, **wanted: object) -> pd.Series:
    """Errors by ``seed`` and ``task`` after so many steps of a rule, of the rows with these settings.

    Raises:
        ValueError: there are several errors of one seed and task, or none at all.
    """
    keep = table["rule"].eq(rule) & table["step"].eq(step)
    for column, value in wanted.items():
        keep &= table[column].eq(value)
    found = table[keep].set_index(["seed", "task"])["held_out"]
    if found.empty or found.index.has_duplicates:
        raise ValueError(f"one error of each seed and task is needed, not {len(found)}, of {rule} after {step} steps with {wanted}")
    return found


def trained_on(training: pd.DataFrame, formula: str, setting: str, rule: str, step: int, tested_on: str = "own") -> pd.Series:
    """:func:`held_out` of what was trained with a setting on a formula."""
    return held_out(training, rule, step, formula=formula, setting=setting, tested_on=tested_on)


def level(errors: pd.Series) -> Interval:
    """The mean of errors by seed and task, with its interval over seeds."""
    return seed_interval(errors.groupby(level="seed").mean())


def effect(with_it: pd.Series, without: pd.Series) -> Effect:
    """The effect of something on errors by seed and task, task by task, over the seeds that both have.

    Raises:
        ValueError: they share fewer than two seeds, or of one seed not the same tasks.
    """
    seeds = with_it.index.unique("seed").intersection(without.index.unique("seed"))
    one, other = (errors[errors.index.get_level_values("seed").isin(seeds)].sort_index() for errors in (with_it, without))
    if not one.index.equals(other.index):
        raise ValueError("an effect needs the same tasks on both sides")
    difference = one - other
    found = level(difference)
    return Effect(found.mean, found.half_width, interval(difference).half_width, len(seeds))


def trained(training: pd.DataFrame, formula: str, rule: str, step: int) -> pd.DataFrame:
    """Held-out errors of all settings that were trained on a formula, and their effects against the exact meta-gradient."""
    exact, found = trained_on(training, formula, EXACT, rule, step), {}
    have = set(training.loc[training["formula"].eq(formula), "setting"])
    for setting in (name for name in TRAINED if name in have):
        mine = trained_on(training, formula, setting, rule, step)
        found[setting] = {
            "held-out error": spelled(level(mine)),
            "difference from exact": "" if setting == EXACT else str(effect(mine, exact)),
            "seeds": level(mine).count,
        }
    return pd.DataFrame(found).T


def by_seed(training: pd.DataFrame, formula: str) -> pd.DataFrame:
    """Held-out errors of each seed with and without the proximal terms, before adaptation and after several rules."""
    moments = {
        "before adaptation": ("inner", 0),
        "50 inner steps": INNER,
        "500 inner steps": ("inner", 500),
        "500 epochs of Adam": ADAM,
    }
    return pd.DataFrame(
        {
            label: {
                setting: " / ".join(
                    f"{mean:.3f}" for mean in trained_on(training, formula, setting, *moment).groupby(level="seed").mean()
                )
                for setting in (EXACT, PROXIMAL, "released")
            }
            for label, moment in moments.items()
        }
    )


def by_rule(training: pd.DataFrame, formula: str) -> pd.DataFrame:
    """Held-out errors after each rule of adaptation, untrained, with the exact and with the released meta-gradient."""
    return pd.DataFrame(
        {
            f"{rule} {step}": {
                setting: spelled(level(trained_on(training, formula, setting, rule, step)))
                for setting in (UNTRAINED, EXACT, "released")
            }
            for rule, steps in SIZES["full"].rules
            for step in steps
        }
    ).rename_axis("trained with")


def formulas(functions: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """For each formula: the distance of its meta-gradient from that on the slides' formula, a mean over seeds; and the held-out
    error after 50 inner steps, where it was trained on."""
    found, tried = {}, set(training["formula"])
    for name in FORMULAS:
        mine = functions[functions["formula"].eq(name)]
        found[name] = {"meta-gradient: error": number(mine["error"].mean()), "cosine": f"{mine['cosine'].mean():.3f}"}
        if name in tried:
            found[name]["untrained"] = spelled(level(trained_on(training, name, UNTRAINED, *INNER)))
            found[name]["trained"] = spelled(level(trained_on(training, name, EXACT, *INNER)))
        if name in tried and name.endswith("released"):
            found[name]["trained, on the slides' formula"] = spelled(level(trained_on(training, name, EXACT, *INNER, "slides")))
    return pd.DataFrame(found).T.fillna("")


def standardised(standardisation: pd.DataFrame) -> pd.DataFrame:
    """Held-out errors by what the standardisation was fitted on, and the difference."""
    found = {}
    for formula in standardisation["formula"].unique():
        for rule, step in (INNER, ADAM):
            sides = {f: held_out(standardisation, rule, step, formula=formula, fit_on=f) for f in ("train", "all")}
            found[f"{formula}, {rule} {step}"] = {
                **{f"fitted on {f}": spelled(level(errors)) for f, errors in sides.items()},
                "difference": str(effect(sides["all"], sides["train"])),
            }
    return pd.DataFrame(found).T


# ------------------------------------------------------------------------------------------------------------------- memory


def by_way(memory: pd.DataFrame, value: str) -> pd.DataFrame:
    """A row for each way of working, a column for each B and K; ``"seconds"`` over those of plain unrolling, ``"MB"`` (10^6 bytes)
    of the peak, or ``"nodes"``."""
    table = memory.sort_values(["steps", "batch"], kind="stable").assign(MB=memory["peak"] / 1e6)
    table["cell"] = [f"B = {b}, K = {k}" for b, k in zip(table["batch"], table["steps"], strict=True)]
    wide = table.pivot(index="way", columns="cell", values=value).loc[memory["way"].unique(), table["cell"].unique()]
    return (wide / wide.loc[UNROLLED] if value == "seconds" else wide).round(2)
