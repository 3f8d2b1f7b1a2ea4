"""Collaborative filtering: every user is a task, every method predicts held-out ratings after adapting to a few.

Chapter "Collaborative filtering, first look" shows a first comparison, chapter "Collaborative filtering at full size" the
records of all cells. Also a program: ``python -m amaml_core.experiments.ratings --profile full --out results/full/ratings``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import AMAML, FOMAML, IMAML, MAML, Euler, GradientDescent, Problem, Reptile, evaluate, fit, metrics
from ..datasets import RatingData, load_ratings
from ..flow import DivergenceError
from ..meta import Method
from ..records import Record
from ..samplers import RatingSampler, RatingSplits, split_users
from ..tasks import Tasks
from .cells import Cell, best_of, program
from .profiles import RATINGS, RatingsSize, check_profile
from .published import RATINGS_TABLES

METHODS = ("A-MAML", "iMAML", "MAML", "FOMAML", "Reptile")
DATA = ("jester-1", "ml-100k", "ml-1m")
SHOTS = ((10, 15), (20, 30))
BATCH = 5
TABLES = (1, 2)  # of the paper; the second has twice as many inner steps
BLOWN_UP = 1e3  # standard deviations of the ratings: an error of that size is an overflow that has not come to its end
BARS = "bars"  # stands in place of a method's name
RECORDS = Path(__file__).resolve().parents[2] / "results" / "full" / "ratings"


@dataclass(frozen=True)
class Setting:
    """What all methods of a comparison share: the data, the sizes, and the learning rates of both loops."""

    data: str = "jester-1"
    support: int = 10
    query: int = 15
    inner_lr: float = 0.1
    meta_lr: float = 1e-3
    regularization: float = 1.0


def network(items: int) -> nn.Module:
    """The paper's network: ``items`` inputs, two hidden layers of 40 tanh units, one output."""
    return nn.Sequential(nn.Linear(items, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


@dataclass(frozen=True)
class Trial:
    """What a method may choose: the inner learning rate, and for iMAML the weight of its proximal term."""

    inner_lr: float
    regularization: float = 1.0


# Three trials for each method, whatever it has to choose.
TRIALS: dict[str, tuple[Trial, ...]] = dict.fromkeys(METHODS, (Trial(0.01), Trial(0.03), Trial(0.1))) | {
    "iMAML": (Trial(0.1, 1.0), Trial(0.1, 0.1), Trial(0.03, 0.1))
}
TRIAL_UPDATES, TRIAL_USERS = 300, 300
# The trial with the smallest validation error, by the ``choice`` records of the full profile; a test compares the two.
CHOSEN: dict[int, dict[str, Trial]] = dict.fromkeys(
    TABLES,
    {
        "A-MAML": Trial(0.01),
        "iMAML": Trial(0.1, 1.0),
        "MAML": Trial(0.03),
        "FOMAML": Trial(0.01),
        "Reptile": Trial(0.1),
    },
)


def size_of(profile: str, table: int = 1) -> RatingsSize:
    """The sizes of a profile for one of the paper's tables: Table 2 doubles all inner steps."""
    size = RATINGS[check_profile(profile)]
    if table == 1:
        return size
    return replace(
        size,
        inner_steps=2 * size.inner_steps,
        maml_steps=2 * size.maml_steps,
        test_steps=tuple(sorted({*size.test_steps, 2 * size.maml_steps, 2 * size.inner_steps})),
    )


def make_method(name: str, setting: Setting, size: RatingsSize) -> Method:
    """One of the five methods at the paper's number of inner steps: MAML takes a tenth of the others'."""
    lr, steps = setting.inner_lr, size.inner_steps
    return {
        "A-MAML": AMAML(horizon=lr * steps, solver=Euler(steps)),
        "iMAML": IMAML(GradientDescent(lr, steps), setting.regularization, cg_steps=5, on_negative_curvature="truncate"),
        "MAML": MAML(lr, size.maml_steps),
        "FOMAML": FOMAML(lr, steps),
        "Reptile": Reptile(lr, steps),
    }[name]


def load(setting: Setting, size: RatingsSize, seed: int) -> tuple[RatingData, RatingSplits]:
    """The data and their split into training, validation and test users, which depends on the seed alone."""
    data = load_ratings(setting.data)
    generator = torch.Generator().manual_seed(1000 + seed)
    counts = (size.train_users, None, size.test_users)
    return data, split_users(data, generator, counts, d=100, min_items=setting.support + setting.query)


def test_tasks(splits: RatingSplits, setting: Setting, seed: int) -> Tasks:
    """One task for each test user; the same for every method."""
    sampler = RatingSampler(splits.test, setting.support, setting.query, BATCH)
    return sampler.all_tasks(torch.Generator().manual_seed(2000 + seed))


def train(
    name: str,
    setting: Setting,
    size: RatingsSize,
    splits: RatingSplits,
    seed: int,
    progress: bool = True,
    compile: bool = False,
) -> tuple[Problem, Tensor]:
    """Meta-train one method on the training users: an eager problem to test with, and the trained initialisation."""
    sampler = RatingSampler(splits.train, setting.support, setting.query, BATCH)
    return meta_train(make_method(name, setting, size), sampler, setting.meta_lr, size.meta_steps, seed, progress, compile)


def meta_train(
    method: Method, sampler, meta_lr: float, meta_steps: int, seed: int, progress: bool = True, compile: bool = False
) -> tuple[Problem, Tensor]:
    """Meta-train the paper's network, drawn from ``seed``, on the sampler's tasks by Adam; returns as :func:`train` does."""
    inputs = sampler(torch.Generator().manual_seed(0)).support_x.shape[-1]
    problem = Problem(seeded(network(inputs), torch.Generator().manual_seed(seed)), nn.functional.mse_loss)
    adam = partial(torch.optim.Adam, lr=meta_lr)
    trained = fit(
        without_unrolling(method), compiled(inputs) if compile else problem, sampler, meta_steps, adam, seed=seed,
        theta=problem.initial_parameters(), progress=progress,
    )  # fmt: skip
    return problem, trained.theta


def without_unrolling(method: Method) -> Method:
    """MAML by the adjoint of its steps: the same meta-gradient to rounding, and compiled where unrolling is not."""
    return AMAML(method.lr * method.steps, Euler(method.steps)) if isinstance(method, MAML) else method


@cache
def compiled(inputs: int) -> Problem:
    """One compiled problem for all cells of a process: its graphs depend on shapes alone, and are made once."""
    return Problem(network(inputs), nn.functional.mse_loss, compile=True)


def seeded(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """PyTorch's default initialisation of linear and convolutional layers, drawn from a generator of our own."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return model


def bars(splits: RatingSplits, tasks: Tasks) -> pd.DataFrame:
    """What no network is needed for: RMSE (B,) of each user by the user's mean, the items' means, and a ridge regression.

    The ridge is a linear model on the same one-hot inputs, fitted to the user's support ratings around the items' means
    and shrunk with the weight 1: it says what the support ratings alone give, without learning to learn.
    """
    item_mean = splits.train.nanmean(0)  # (d,)
    item_mean = torch.where(item_mean.isnan(), splits.train.nanmean(), item_mean)
    base_support, base_query = (x @ item_mean[:, None] for x in (tasks.support_x, tasks.query_x))  # (B, n, 1)
    residual = tasks.support_y - base_support
    # One-hot inputs leave the ridge only its intercept on items the user has not rated.
    shift = residual.sum(1, keepdim=True) / (tasks.support_x.shape[1] + 1)  # (B, 1, 1)
    return pd.DataFrame(
        {
            "user mean": metrics.rmse(tasks.support_y.mean(1, keepdim=True).expand_as(tasks.query_y), tasks.query_y),
            "item means": metrics.rmse(base_query, tasks.query_y),
            "item means + ridge": metrics.rmse(base_query + shift, tasks.query_y),
        }
    )


def compare(profile: str, seed: int, setting: Setting = Setting(), methods: tuple[str, ...] = METHODS) -> pd.DataFrame:
    """Train and test the methods one after another: a tidy table of ``method``, ``task``, ``step``, ``support``, ``query``.

    Errors are root mean squared errors of standardised ratings, so 1 is the standard deviation of the training ratings.
    """
    size = RATINGS[check_profile(profile)]
    _, splits = load(setting, size, seed)
    tasks = test_tasks(splits, setting, seed)
    return pd.concat([_test(name, setting, size, splits, tasks, seed) for name in methods], ignore_index=True)


def _test(
    name: str,
    setting: Setting,
    size: RatingsSize,
    splits: RatingSplits,
    tasks: Tasks,
    seed: int,
    progress: bool = True,
    compile: bool = False,
) -> pd.DataFrame:
    problem, theta = train(name, setting, size, splits, seed, progress, compile)
    table = evaluate(make_method(name, setting, size), problem, theta, tasks, metrics.rmse, size.test_steps)
    table.insert(0, "method", name)
    return table


def trained_steps(method: str, size: RatingsSize) -> int:
    """The number of inner steps that a method was trained for."""
    return size.maml_steps if method == "MAML" else size.inner_steps


# --------------------------------------------------------------------------------------------------------------- cells


def cells(profile: str, seed: int | None = None, table: int = 1) -> list[Cell]:
    """Data × shots × method × seed at a profile, for one of the paper's tables."""
    chosen = CHOSEN[table]
    return [
        Cell("ratings", {"profile": profile, "table": table, "method": method} | asdict(setting), s)
        for data in DATA
        for k, m in SHOTS
        for method in METHODS
        for setting in [Setting(data, k, m, **asdict(chosen[method]))]
        for s in _seeds(profile, seed)
    ]


def bar_cells(profile: str, seed: int | None = None) -> list[Cell]:
    """Data × shots × seed: what no network is needed for."""
    return [
        Cell("ratings", {"profile": profile, "method": BARS, "data": data, "support": k, "query": m}, s)
        for data in DATA
        for k, m in SHOTS
        for s in _seeds(profile, seed)
    ]


def choice_cells(profile: str) -> list[Cell]:
    """Table × method: which trial is best on validation users of Jester-1, 10 to 15 shots. Always with seed 0."""
    setting = Setting()
    return [
        Cell("ratings", {"profile": profile, "choice": table, "method": method, "data": setting.data,
                         "support": setting.support, "query": setting.query}, 0)
        for table in TABLES
        for method in METHODS
    ]  # fmt: skip


def every_cell(profile: str, seed: int | None = None) -> list[Cell]:
    """All cells: the choice of hyperparameters, the bars, Table 1 and Table 2."""
    return [
        *choice_cells(profile), *bar_cells(profile, seed), *(c for table in TABLES for c in cells(profile, seed, table))
    ]  # fmt: skip


def _seeds(profile: str, seed: int | None) -> Iterable[int]:
    size = size_of(profile)
    return range(size.seeds) if seed is None else [seed]


def run(cell: Cell, scratch: Path) -> dict:
    """The figures of one cell: errors of each test user and the scales they may be divided by, bars, or a choice."""
    settings = dict(cell.settings)
    profile, name = settings.pop("profile"), settings.pop("method")
    if "choice" in settings:
        table = settings.pop("choice")
        return _choose(name, Setting(**settings), size_of(profile, table), cell.seed, profile == "full")
    size = size_of(profile, settings.pop("table", 1))
    setting = Setting(**settings)
    data, splits = load(setting, size, cell.seed)
    tasks = test_tasks(splits, setting, cell.seed)
    started = time.perf_counter()
    if name == BARS:
        errors = {bar: rounded(column) for bar, column in bars(splits, tasks).items()}
    else:
        # Only the full profile trains long enough to earn back the time that compilation takes.
        found = _test(name, setting, size, splits, tasks, cell.seed, progress=False, compile=profile == "full")
        errors = errors_by_step(found, trained_steps(name, size))
    return errors | {
        "data": data.description,
        "left_out": {part: count.left_out for part, count in splits.counts.items()},
        "size": asdict(size),
        "scales": scales(tasks, splits.mean, splits.std, data),
        "seconds": time.perf_counter() - started,
    }


def errors_by_step(found: pd.DataFrame, own: int) -> dict:
    """A table of :func:`amaml_core.evaluate` as lists: ``rmse`` and ``support_rmse`` (steps, users), and the ``steps``.

    Raises:
        DivergenceError: an error is not finite, or beyond ``BLOWN_UP``, after ``own`` steps, the number that the method was
            trained for, or before.
    """
    lost = found.loc[~(found["query"] + found["support"] < BLOWN_UP) & (found["step"] <= own), ["step", "task"]]
    if len(lost):
        raise DivergenceError(f"the test diverged for {lost['task'].nunique()} users, from step {lost['step'].min()} on")
    query, support = (found.pivot(index="step", columns="task", values=column) for column in ("query", "support"))
    return {"steps": query.index.tolist(), "rmse": rounded(query), "support_rmse": rounded(support)}


def _choose(name: str, setting: Setting, size: RatingsSize, seed: int, compile: bool) -> dict:
    """The mean validation error of each trial of a method after a short training, and the number of the best trial."""
    size = replace(size, meta_steps=min(size.meta_steps, TRIAL_UPDATES))
    data, splits = load(setting, size, seed)
    sampler = RatingSampler(splits.validation[:TRIAL_USERS], setting.support, setting.query, BATCH)
    tasks = sampler.all_tasks(torch.Generator().manual_seed(3000 + seed))
    steps = trained_steps(name, size)
    means: list[float | None] = []
    for trial in TRIALS[name]:
        tried = replace(setting, **asdict(trial))
        try:
            problem, theta = train(name, tried, size, splits, seed, progress=False, compile=compile)
        except DivergenceError:
            means.append(None)  # JSON has no infinity
            continue
        table = evaluate(make_method(name, tried, size), problem, theta, tasks, metrics.rmse, (steps,))
        mean = table["query"].mean()
        means.append(float(mean) if np.isfinite(mean) else None)
    return {
        "data": data.description,
        "trials": [asdict(trial) for trial in TRIALS[name]],
        "validation_rmse": means,
        "best": best_of(means, f"every trial of {name} diverged: {TRIALS[name]}"),
        "users": len(tasks),
        "updates": size.meta_steps,
        "steps": steps,
    }


# ------------------------------------------------------------------------------------------------- scales and records

SCALES = ("standard deviation", "range", "norm", "norm of raw ratings")
NORMALISERS = (*SCALES, "rating scale", "none")


def rounded(values) -> list:
    """Numbers with five significant digits, which keeps the records small; None for what is not finite."""
    array = np.asarray(values, dtype=float)
    return np.vectorize(lambda x: float(f"{x:.5g}") if np.isfinite(x) else None, otypes=[object])(array).tolist()


def scales(tasks: Tasks, mean: float, std: float, data: RatingData) -> dict:
    """What an error may be divided by, for ``support`` and ``query``, in units of ``std``.

    For each user the standard deviation, the range and the root mean square of the targets, the latter also of the
    ratings as the user gave them; and for all users the mean, the standard deviation and the ends of the rating scale.
    """
    parts = {}
    for part, y in (("support", tasks.support_y), ("query", tasks.query_y)):
        y = y.flatten(1).double()  # (B, n)
        raw = y + mean / std
        values = (y.std(1, correction=0), y.amax(1) - y.amin(1), y.square().mean(1).sqrt(), raw.square().mean(1).sqrt())
        parts[part] = {scale: rounded(value) for scale, value in zip(SCALES, values, strict=True)}
    return parts | {"mean": mean, "std": std, "ends": [float(data.rating.min()), float(data.rating.max())]}


def normalised(figures: dict, normaliser: str, step: int | None = None, part: str = "query", bar: str = "") -> np.ndarray:
    """Each user's RMSE over a scale (users,), from the figures of a record; NaN where the scale is zero.

    Args:
        figures: of a cell of this module.
        normaliser: one of ``NORMALISERS``. ``"rating scale"`` is its whole length, 20 for Jester and 4 for MovieLens, and
            ``"none"`` leaves the error in standard deviations of the training ratings.
        step: number of inner steps; ``None`` for a bar.
        part: ``"query"`` or ``"support"``.
        bar: which bar, in a record of bars.

    Raises:
        ValueError: an unknown normaliser, or a step that was not measured.
    """
    if normaliser not in NORMALISERS:
        raise ValueError(f"normaliser must be one of {NORMALISERS}, not {normaliser!r}")
    if bar:
        rmse = np.array(figures[bar])
    elif step not in figures["steps"]:
        raise ValueError(f"step {step} was not measured, only {figures['steps']}")
    else:
        rmse = np.array(figures["rmse" if part == "query" else "support_rmse"][figures["steps"].index(step)], dtype=float)
    lengths = figures["scales"]
    if normaliser == "none":
        return rmse
    if normaliser == "rating scale":
        return rmse * lengths["std"] / (lengths["ends"][1] - lengths["ends"][0])
    scale = np.array(lengths[part][normaliser])
    return np.where(scale > 1e-6, rmse / np.where(scale > 1e-6, scale, 1), np.nan)


def of_table(records: Iterable[Record], table: int, diverged: bool = False) -> dict[tuple[str, str, int, int], list[Record]]:
    """The records of one of the paper's tables by (method, data, support, query), and the bars, which both tables share:
    those of the cells that came to an end, or those that ``diverged``."""
    found: dict[tuple[str, str, int, int], list[Record]] = {}
    for record in records:
        c = record.configuration
        if (c.get("table") == table or c["method"] == BARS) and ("diverged" in record.figures) == diverged:
            found.setdefault((c["method"], c["data"], c["support"], c["query"]), []).append(record)
    return found


def trained_error(records: Iterable[Record], normaliser: str, part: str = "query") -> metrics.Interval:
    """Mean and 95 % interval over the test users of all seeds, each adapted by the steps its method was trained for."""
    values = [
        normalised(r.figures, normaliser, trained_steps(r.configuration["method"], RatingsSize(**r.figures["size"])), part)
        for r in records
    ]
    return _over_users(values)


def bar_error(records: Iterable[Record], bar: str, normaliser: str) -> metrics.Interval:
    """The same of a bar."""
    return _over_users([normalised(r.figures, normaliser, bar=bar) for r in records])


def _over_users(values: list[np.ndarray]) -> metrics.Interval:
    """The interval over the users of all seeds who have a scale: one who gave the same rating throughout has none."""
    joined = np.concatenate(values)
    return metrics.interval(joined[np.isfinite(joined)])


def side_by_side(records: Iterable[Record], table: int) -> pd.DataFrame:
    """The paper's table and ours as text: a row for each (data, shots, method) and bar, a column for each normaliser.

    What has no record yet is "not run". ``users`` are the test users of all seeds together, over which the intervals are, and
    how many seeds diverged.
    """
    records = list(records)
    grouped, lost = of_table(records, table), of_table(records, table, diverged=True)
    normalisers = ("standard deviation", "range", "norm", "norm of raw ratings", "rating scale", "none")
    rows = {}
    for column, (data, (k, m)) in enumerate((data, shots) for data in DATA for shots in SHOTS):
        for method in METHODS:
            found = grouped.get((method, data, k, m))
            ours = [trained_error(found, n) if found else None for n in normalisers]
            published = "{:.3f} ± {:.3f}".format(*RATINGS_TABLES[table][method][column])
            rows[data, f"{k}–{m}", method] = _as_text(published, ours, len(lost.get((method, data, k, m), ())))
        found = grouped.get((BARS, data, k, m))
        for bar in ("user mean", "item means", "item means + ridge"):
            ours = [bar_error(found, bar, n) if found else None for n in normalisers]
            rows[data, f"{k}–{m}", bar] = _as_text("", ours)
    columns = ["paper", *(f"ours / {n}" for n in normalisers[:-1]), "ours, RMSE", "users"]
    index = pd.MultiIndex.from_tuples(rows, names=["data", "shots", "method"])
    return pd.DataFrame(list(rows.values()), index, columns)


def _as_text(published: str, ours: list[metrics.Interval | None], diverged: int = 0) -> list[str]:
    none = "diverged" if diverged else "not run"
    users = ["–" if ours[0] is None else str(ours[0].count), *([f"{diverged} diverged"] if diverged else [])]
    return [published, *(none if found is None else str(found) for found in ours), ", ".join(users)]


def curves(records: Iterable[Record], data: str, support: int, table: int = 1) -> pd.DataFrame:
    """Adaptation curves of a table's records of all seeds, tidy: ``method``, ``task``, ``step``, ``support``, ``query``."""
    pieces = []
    for (method, name, k, _), found in of_table(records, table).items():
        if (name, k) == (data, support) and method != BARS:
            for r in found:
                query, on_support = (np.array(r.figures[key], dtype=float) for key in ("rmse", "support_rmse"))  # (steps, users)
                steps, users = r.figures["steps"], query.shape[1]
                entries = {
                    "method": method,
                    "task": np.tile(np.arange(users) + users * r.seed, len(steps)),
                    "step": np.repeat(steps, users),
                    "support": on_support.ravel(),
                    "query": query.ravel(),
                }
                pieces.append(pd.DataFrame(entries))
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def best_trial(record: Record) -> Trial:
    """The trial that a choice record found best."""
    return Trial(**record.figures["trials"][record.figures["best"]])


if __name__ == "__main__":
    program(__doc__, every_cell, run)
