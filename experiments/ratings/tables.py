"""Ours beside the published tables; all from rows, recorded or live.

Frames of rows: ``errors``, ``users`` and ``choice`` as :mod:`.run` makes them; ``lost``, one row for each cell that diverged.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import product

import numpy as np
import pandas as pd

from ..common import records, scores
from ..common.published import published
from ..common.scores import Score
from ..common.statistics import paired_quotient, pooled
from ..common.tables import NOT_RUN
from ..ratings_gap.settings import cells as gap_cells
from . import settings
from .settings import AGAIN, BARS, BEYOND, CHOICE_DATA, DATA, METHODS, SHOTS, TABLES, TRIALS, Trial

COLUMNS = list(product(DATA, SHOTS))  # of the published tables
USER = ["data", "shots", "seed", "user"]
KEYS = ["data", "shots", "method"]


def recorded(kind: str, **wanted: object) -> pd.DataFrame:
    """All rows of a kind at full size whose settings have the ``wanted`` values."""
    return records.rows("ratings", kind, size="full", **wanted)


def lost(kind: str = "errors") -> pd.DataFrame:
    """The cells of a kind at full size that diverged: their settings, ``seed`` and ``message``."""
    return records.diverged("ratings", kind, size="full")


def state() -> pd.DataFrame:
    """How many cells the full size has, how many of them a record, how many of these diverged, and core hours; by kind."""
    rows = {}
    for evaluation, every in (("ratings", settings.cells("full")), ("ratings_gap", gap_cells("full"))):
        wanted = {cell.key: cell.kind for cell in every}
        found = [r for r in records.read(evaluation) if r.key in wanted]
        for kind in dict.fromkeys(wanted.values()):
            mine = [r for r in found if r.kind == kind]
            rows[f"results/full/{evaluation}.jsonl", kind] = {
                "cells": sum(k == kind for k in wanted.values()), "with a record": len(mine),
                "diverged": sum(r.diverged is not None for r in mine), "core hours": f"{sum(r.duration for r in mine) / 3600:.2f}",
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def theirs(number: int) -> pd.DataFrame:
    """A published table: ``value`` and ``error`` by data, shots and method."""
    return published("ratings", source=f"table {number}").set_index(KEYS)[["value", "error"]]


def joined(errors: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """Errors with what is known of their users, which :class:`Score` needs."""
    return errors.merge(users.drop(columns=["size", "source", "machine"]), on=USER, validate="many_to_one")


def trained(errors: pd.DataFrame, users: pd.DataFrame, number: int = 1) -> pd.DataFrame:
    """What stands in a table: :func:`joined`, after as many steps as a method was trained for; and the bars as further methods."""
    mine = errors[errors["table"].eq(number) & errors["step"].eq(errors["trained"])]
    bars = [users.drop(columns=["size", "source", "machine"]).assign(method=bar, query=users[bar]) for bar in BARS]
    return pd.concat([joined(mine, users), *bars], ignore_index=True)


def means(table: pd.DataFrame, score: Score, over: pd.Series | None = None) -> pd.DataFrame:
    """A row for each data, shots and method: the ``mean`` score and the ``half`` width of its 95 % interval, what that is
    ``over``, ``"users"`` or ``"seeds"``, as :func:`pooled` decides or as given; the number of ``users`` who have a score, and of
    ``seeds``."""
    rows = {}
    for key, group in table.assign(score=score.of(table)).groupby(KEYS, sort=False):
        values = group.set_index("seed")["score"].dropna()
        found, by = pooled(values, over=None if over is None else over[key].replace("users", "tasks"))
        counts = {"users": len(values), "seeds": group["seed"].nunique()}
        rows[key] = {"mean": found.mean, "half": found.half_width, "over": by.replace("tasks", "users")} | counts
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(KEYS)


def side_by_side(errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame, number: int) -> pd.DataFrame:
    """The paper's table and ours as text: a row for each data, shots and method or bar, a column for each score.

    What has no record yet is "not run". ``users`` are the test users of all seeds together, and how many seeds diverged; ``±`` says
    over what the intervals of the row are, by its first score.
    """
    table, paper, gone = trained(errors, users, number), theirs(number), _diverged(lost, number)
    first = means(table, scores.PLAIN[0])
    found = {score: means(table, score, first["over"]) for score in (*scores.PLAIN, scores.NEAREST)}
    rows = {}
    for data, shots in COLUMNS:
        for method in (*METHODS, *BARS):
            key = (data, shots, method)
            ours = {score: m.loc[key] for score, m in found.items() if key in first.index}
            none = "diverged" if gone.get(key) else NOT_RUN
            count = [str(first.loc[key, "users"]) if ours else "–", *([f"{gone[key]} diverged"] if gone.get(key) else [])]
            said = "{value:.3f} ± {error:.3f}".format(**paper.loc[key]) if key in paper.index else ""
            rows[key] = {"paper": said, _ours(scores.NEAREST): none} | {_ours(s): none for s in scores.PLAIN}
            rows[key] |= {_ours(s): f"{row['mean']:.3f} ± {row['half']:.3f}" for s, row in ours.items()}
            rows[key] |= {"users": ", ".join(count), "±": first.loc[key, "over"] if ours else "–"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(KEYS)


def _ours(score: Score) -> str:
    return "ours, " + str(score).replace("RMSE/", "/ ") if score.scale != "none" else "ours, RMSE"


def _diverged(lost: pd.DataFrame, number: int) -> dict[tuple, int]:
    return lost[lost["table"].eq(number)].groupby(KEYS).size().to_dict() if len(lost) else {}


def for_report(score: str = str(scores.PLAIN[0])) -> pd.DataFrame:
    """For each published number, what the records say: a row for each ``table``, ``data``, ``shots`` and ``method``.

    Args:
        score: by name, for example ``"RMSE/standard deviation"`` or ``"RMSE/(standard deviation·n)"``.

    Returns:
        ``published`` and ``error``; ``mean`` and ``half`` width of ours, missing where no run came to an end; what the interval is
        ``over``, users or seeds; how many ``users`` and ``seeds``; and how many seeds ``diverged``.

    Raises:
        KeyError: an unknown score.
    """
    return _beside(score, recorded("errors"), recorded("users"), lost())


def _beside(score: str, errors: pd.DataFrame, users: pd.DataFrame, gone: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for number in TABLES:
        ours = means(trained(errors, users, number), scores.BY_NAME[score])
        table = theirs(number).rename(columns={"value": "published"}).join(ours)
        away = pd.Series(_diverged(gone, number), dtype=int).reindex(table.index, fill_value=0)
        parts.append(table.assign(diverged=away, table=number).reset_index())
    found = pd.concat(parts, ignore_index=True)
    counts = {name: found[name].fillna(0).astype(int) for name in ("users", "seeds")}
    return found.assign(**counts)[["table", *KEYS, "published", "error", "mean", "half", "over", "users", "seeds", "diverged"]]


def report_rows() -> pd.DataFrame:
    """:func:`for_report` in the reading that comes nearest, by ``source``, data, shots and method: ``mean`` and ``half``, in words
    what the interval is ``over``, a ``note``, and whether a seed ``diverged``."""
    known = recorded("errors"), recorded("users"), lost()
    found, plain = (_beside(str(score), *known) for score in (scores.NEAREST, scores.PLAIN[0]))
    ran = found["users"].astype(str) + " test users, " + found["seeds"].astype(str) + " seeds"
    by = np.where(found["over"].eq("seeds"), ", interval over the seeds", "")
    away = np.where(found["diverged"].gt(0), ", " + found["diverged"].astype(str) + " diverged", "")
    note = "ours in the reading that comes nearest to A-MAML's row, not said in the paper: " + str(scores.NEAREST)
    over_std = plain["mean"].map("; over the standard deviation alone {:.3f}".format).where(plain["mean"].notna(), "")
    return found.assign(
        source="table " + found["table"].astype(str), over=(ran + by + away).where(found["seeds"].gt(0), away),
        note=note + over_std, diverged=found["diverged"].gt(0),
    ).set_index(["source", *KEYS])[["mean", "half", "over", "note", "diverged"]]  # fmt: skip


def paired(errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame, number: int, over: str = "A-MAML") -> pd.DataFrame:
    """Each method's mean RMSE over that of one of them, on the test users that both were tested on.

    Returns:
        A row for each data, shots and method: the ``quotient``; its half width over ``users``, as if training had no part in it,
        and over ``seeds``, by Student's t (missing from one seed); over which of them it is ``resolved`` from 1; how many seeds
        and users both have, ``n seeds`` and ``n users``; the ``largest`` quotient of a seed; how many seeds of either
        ``diverged``; and the ``published`` quotient with its ``error``, as if the two were independent.
    """
    table = trained(errors, users, number).dropna(subset="table").set_index([*KEYS, "seed", "user"])["query"].sort_index()
    paper, gone, rows = theirs(number), _diverged(lost, number), {}
    for (data, shots), method in product(COLUMNS, METHODS):
        key, base = (data, shots, method), (data, shots, over)
        if method == over or any(k not in table.index for k in (key, base)):
            continue
        pairs = pd.concat({"above": table[key], "below": table[base]}, axis=1).dropna()
        as_one = pairs.set_axis(pd.MultiIndex.from_product([[0], range(len(pairs))], names=["seed", "user"]))
        plain = paired_quotient(as_one["above"], as_one["below"])
        by_seed = pairs.groupby(level="seed").mean()
        between = paired_quotient(pairs["above"], pairs["below"]) if len(by_seed) > 1 else None
        resolved = [name for name, i in (("users", plain), ("seeds", between)) if i and abs(i.mean - 1) > i.half_width]
        (a, da), (b, db) = (paper.loc[k, ["value", "error"]] for k in (key, base))
        rows[key] = {
            "quotient": plain.mean, "users": plain.half_width, "seeds": between.half_width if between else np.nan,
            "resolved": " and ".join(resolved), "n seeds": len(by_seed), "n users": len(pairs),
            "largest": (by_seed["above"] / by_seed["below"]).max(), "diverged": gone.get(key, 0) + gone.get(base, 0),
            "published": a / b, "error": a / b * np.hypot(da / a, db / b),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(KEYS)


def second_runs(errors: pd.DataFrame, lost: pd.DataFrame, again: pd.DataFrame, away: pd.DataFrame) -> pd.DataFrame:
    """How far the runs of ``AGAIN`` repeat, by table, data and shots: how many diverged in the ``first`` run, in the ``second``,
    and in ``either``; and the largest ``change`` of a seed's mean RMSE, in per cent, where both came to an end.

    Args:
        errors, lost: of the first runs.
        again, away: of the second.
    """
    keys, means = ["table", "data", "shots", "seed"], []
    for table in (errors[errors["method"].isin(AGAIN)], again):
        means.append(table[table["step"].eq(table["trained"])].groupby(keys)["query"].mean())
    first, second = (set(t[keys].itertuples(index=False, name=None)) if len(t) else set() for t in (lost, away))
    runs = pd.MultiIndex.from_tuples(sorted({*first, *second, *means[0].index, *means[1].index}), names=keys)
    found = pd.DataFrame({"first": runs.isin(list(first)), "second": runs.isin(list(second))}, runs)
    found["either"] = found["first"] | found["second"]
    found["change"] = (100 * (means[1] / means[0] - 1)).abs()
    columns = {"runs": ("first", "size"), "change": ("change", "max")} | {n: (n, "sum") for n in ("first", "second", "either")}
    return found.groupby(level=["table", "data", "shots"], sort=False).agg(**columns)


def choices(choice: pd.DataFrame) -> pd.DataFrame:
    """The score of each trial, which was chosen, and whether that is an end of its grid; a row for each table and method."""
    rows = {}
    for (table, method), trials in choice.groupby(["table", "method"]):
        names = [trial_name(method, t.inner_lr, t.regularization) for t in trials.itertuples()]
        errors = ["diverged" if pd.isna(e) else f"{e:.4f}" for e in trials["score"]]
        best = trials[trials["chosen"]].iloc[0]
        rows[f"Table {table}", method] = {
            **{f"trial {i}": f"{n}: {e}" for i, (n, e) in enumerate(zip(names, errors, strict=True), 1)},
            "chosen": trial_name(method, best["inner_lr"], best["regularization"]),
            "on an edge": edges(method, Trial(best["inner_lr"], best["regularization"])),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def beyond(choice: pd.DataFrame, further: pd.DataFrame, away: pd.DataFrame) -> pd.DataFrame:
    """The scores of trials beyond the ends of the grids, beside the best of each grid; a row for each table and method.

    Args:
        choice, further: rows of the two kinds.
        away: the cells of which every further trial diverged.
    """
    groups = dict(list(further.groupby(["table", "method"]))) if len(further) else {}
    diverged = set(away[["table", "method"]].itertuples(index=False, name=None)) if len(away) else set()
    rows = {}
    for (table, method), best in choice.groupby(["table", "method"])["score"].min().items():
        none = "diverged" if (table, method) in diverged else NOT_RUN
        found = groups[table, method]["score"].tolist() if (table, method) in groups else [none] * len(BEYOND[method])
        rows[f"Table {table}", method] = {"best of the grid": f"{best:.4f}"}
        for number, (trial, score) in enumerate(zip(BEYOND[method], found, strict=True), 1):
            said = score if isinstance(score, str) else "diverged" if pd.isna(score) else f"{score:.4f}"
            rows[f"Table {table}", method][f"beyond {number}"] = f"{trial_name(method, **asdict(trial))}: {said}"
    return pd.DataFrame.from_dict(rows, orient="index")


def trial_name(method: str, inner_lr: float, regularization: float) -> str:
    """``0.1``, and for iMAML ``0.1, λ=1``."""
    return f"{inner_lr:g}" + (f", λ={regularization:g}" if method == "iMAML" else "")


def edges(method: str, trial: Trial) -> str:
    """Which of a trial's values is the smallest or the largest of the method's grid, in words; empty if none is."""
    found = []
    for name, said in (("inner_lr", "rate"), ("regularization", "λ")):
        tried = sorted({getattr(t, name) for t in TRIALS[method]})
        if len(tried) > 1 and getattr(trial, name) in (tried[0], tried[-1]):
            found.append(f"{'smallest' if getattr(trial, name) == tried[0] else 'largest'} {said}")
    return ", ".join(found)


def distinct(users: pd.DataFrame) -> pd.DataFrame:
    """How many test users all seeds have together, and how many different ones, by data and shots."""
    found = users.groupby(["data", "shots"], sort=False)["before"].agg(["count", "sum"])
    return pd.DataFrame({"test users": found["count"], "different ones": found["count"] - found["sum"]})


def seen_in_choice(users: pd.DataFrame) -> pd.DataFrame:
    """How many test users a trial was trained on (``train``) or judged by (``judge``), by shots and seed; on Jester-1, where the
    trials were made, the films have none."""
    mine = users[users["data"].eq(CHOICE_DATA)]
    counts = mine.groupby(["shots", "seed"])["in_choice"].value_counts().unstack(fill_value=0)
    return counts.reindex(columns=["train", "judge", "none"], fill_value=0)


def last(*tables: pd.DataFrame) -> pd.DataFrame:
    """Mean errors of cells that were just run, after their last step: one row for each cell."""
    rows = {}
    for errors in tables:
        mine = errors[errors["step"].eq(errors["step"].max())]
        c = mine.iloc[0]
        rows[c.get("hypothesis", f"Table {c.get('table')}"), c["data"], c["method"]] = {
            "size": c["size"], "steps": c["step"], "RMSE": f"{mine['query'].mean():.3f}",
            "RMSE on the support set": f"{mine['support'].mean():.3f}",
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")
