"""Training and testing the rows, and choosing their settings."""

from __future__ import annotations

import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from amaml_core import HessianFree, Problem, evaluate, metrics
from amaml_core.meta import Method
from amaml_core.numerics import detached
from amaml_core.tasks import Tasks

from ..common.cells import Cell, live_rows
from ..common.choosing import choose
from ..common.training import generator
from .settings import FIRST_LOOK, FIRST_RECIPE, SIZES, TRIALS, Recipe, Size, cells, make_method
from .speed import speed
from .training import adapt_all, as_tested, keep_freed_memory, make_problem, samplers, train, validate


def one_at_a_time(problem: Problem, u: Tensor, tasks: Tasks) -> Tensor:
    """Accuracy (B,) when each query image is shown alone with the support images, so that batch norm cannot see the others.

    Reptile's authors call this *not transductive* (Nichol, Achiam, Schulman, On first-order meta-learning algorithms, 2018).
    """
    right = []
    for q in range(tasks.query_x.shape[1]):
        shown = torch.cat([tasks.support_x, tasks.query_x[:, q : q + 1]], dim=1)  # (B, S + 1, Ch, H, W)
        right.append(problem.predict(u, shown)[:, -1].argmax(-1) == tasks.query_y[:, q])  # (B,)
    return torch.stack(right, dim=1).float().mean(1)


def _counted(table: pd.DataFrame, of: int) -> pd.DataFrame:
    """Accuracies as numbers of ``right`` images ``of`` so many; missing where the inner loop has diverged."""
    right = (table.pop("accuracy") * of).round()
    return table.assign(right=right if right.isna().any() else right.astype(int))


def count_right(method: Method, problem: Problem, theta: Tensor, tasks: Tasks, steps: tuple[int, ...]) -> pd.DataFrame:
    """How many query images of each ``task`` are ``right`` after each ``step``, with transduction."""
    found = evaluate(method, problem, theta, tasks, metrics.accuracy, steps).rename(columns={"query": "accuracy"})
    found = found.sort_values(["step", "task"], ignore_index=True)
    return _counted(found[["step", "task", "accuracy"]].copy(), tasks.query_y.shape[1])


def count_right_alone(method: Method, problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> pd.DataFrame:
    """The same after so many steps without transduction.

    Raises:
        DivergenceError: the inner loop diverged on a task.
    """
    with detached(problem.tf32):
        found = one_at_a_time(problem, adapt_all(method, problem, theta, tasks, steps), tasks)
    table = pd.DataFrame({"step": steps, "task": range(len(tasks)), "accuracy": found.cpu()})
    return _counted(table, tasks.query_y.shape[1])


def measure(row: str, size: Size, recipe: Recipe, seed: int, device: torch.device, checkpoint: Path) -> pd.DataFrame:
    """Train a row by its complete recipe, and test it.

    Returns:
        A row for each measurement: ``set`` (``"test"``, or ``"validation"`` for the learning curve), the meta ``update`` and the
        inner ``step`` after which it was made, whether each query image was shown ``alone``, the ``task``, and how many query
        images were ``right``, ``of`` so many. ``data`` and ``training_seconds`` are the same in all rows; ``seconds`` are those of
        training until a point of the learning curve, where there is one.

    Raises:
        DivergenceError: training, or the inner loop on a task within the row's own number of steps.
    """
    problem = make_problem(size, seed, device)
    method = as_tested(row, recipe, problem.model)
    data = samplers(row, size, recipe, seed, device)
    result, watch = train(row, problem, size, recipe, data, seed, checkpoint)
    own = recipe.test_steps
    # A Newton step costs about as much as fifteen others: none is measured beyond the row's own.
    most = own if isinstance(getattr(method, "inner", None), HessianFree) else max(*size.measured, own)
    steps = tuple(sorted({k for k in size.measured if k <= most} | {own}))
    tasks, of = data.test(generator("test", seed)), size.way * size.query
    tested = [
        count_right(method, problem, result.theta, tasks, steps).assign(alone=False),
        count_right_alone(method, problem, result.theta, tasks, own).assign(alone=True),
    ]
    curve = [
        _counted(pd.DataFrame({"update": update, "step": own, "task": range(len(found)), "accuracy": found}), of).assign(
            seconds=seconds
        )
        for update, found, seconds in watch.points
    ]
    table = pd.concat(
        [
            *(part.assign(set="test", update=len(result.history)) for part in tested),
            *(part.assign(set="validation", alone=False) for part in curve),
        ],
        ignore_index=True,
    )
    return table[["set", "update", "step", "alone", "task", "right", *(["seconds"] if curve else [])]].assign(
        of=of, data=data.description, training_seconds=round(watch.seconds, 3)
    )


def choice(row: str, size: Size, seed: int, device: torch.device) -> pd.DataFrame:
    """The trials of a row, complete, with their mean validation accuracy as ``score`` after a short training.

    Raises:
        DivergenceError: all trials diverged.
    """

    def score(trial: Recipe) -> float:
        problem, data = make_problem(size, seed, device), samplers(row, size, trial, seed, device)
        result, _ = train(row, problem, replace(size, measure_every=0, seconds=None), trial, data, seed)
        tasks = data.validation(generator("validation", seed))
        return validate(as_tested(row, trial, problem.model), problem, result.theta, tasks, trial.test_steps).mean().item()

    trials = [trial.at(size, size.trial_updates) for trial in TRIALS[size.trials][row]]
    return choose(trials, score, best="highest").assign(validation_tasks=size.validation_tasks)


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of one cell; its training goes on from a checkpoint in ``scratch``."""
    settings = cell.settings
    size, row = SIZES[settings["size"]], settings.get("row")
    if cell.kind == "speed":
        return speed(size)
    device = torch.device("cuda" if size.large and torch.cuda.is_available() else "cpu")
    if size.large:
        keep_freed_memory()
    if cell.kind == "choice":
        return choice(row, size, cell.seed, device)
    recipe = Recipe(**{entry.name: settings[entry.name] for entry in fields(Recipe) if entry.name in settings})
    state = zlib.crc32(repr(size).encode())  # a checkpoint of another size is not gone on from
    return measure(row, size, recipe, cell.seed, device, scratch / f"{cell.name}.{state:08x}.safetensors")


def live(size: str, seed: int, rows: tuple[str, ...]) -> pd.DataFrame:
    """Some rows of a size, trained and tested here and now: rows like those of the records."""
    wanted = [c for c in cells(size, seed) if c.kind == "accuracy" and c.settings["row"] in rows]
    return live_rows(wanted)["accuracy"]


class FirstLook(NamedTuple):
    """What the first look found.

    Attributes:
        tests: as in :func:`measure`, all with transduction, by ``row``.
        history: of the trainings: ``row``, ``meta_step``, ``query_loss``, ``gradient_norm``.
        thetas: what each row has learnt, (P,).
        problem: that they are parameters of.
    """

    tests: pd.DataFrame
    history: pd.DataFrame
    thetas: dict[str, Tensor]
    problem: Problem


def first_look(size: str, seed: int) -> FirstLook:
    """Three methods with the same settings, one after another."""
    wanted = FIRST_LOOK[size]
    recipe, tests, histories, thetas = FIRST_RECIPE.at(wanted), [], [], {}
    problem = make_problem(wanted, seed)
    for row in wanted.rows:
        method, data = make_method(row, recipe), samplers(row, wanted, recipe, seed)
        result, _ = train(row, problem, wanted, recipe, data, seed)
        tasks = data.test(generator("test", seed))
        tested = count_right(method, problem, result.theta, tasks, wanted.measured)
        tests.append(tested.assign(row=row, of=wanted.way * wanted.query, update=len(result.history), data=data.description))
        histories.append(result.history.assign(row=row))
        thetas[row] = result.theta
    return FirstLook(pd.concat(tests, ignore_index=True), pd.concat(histories, ignore_index=True), thetas, problem)


def answers(found: FirstLook, tasks: Tasks, recipe: Recipe) -> dict[str, Tensor]:
    """Which class each row takes each query image for, after its inner steps: (B, Q) by row."""
    said = {}
    for row, theta in found.thetas.items():
        u = adapt_all(make_method(row, recipe), found.problem, theta, tasks, recipe.test_steps)
        said[row] = found.problem.predict(u, tasks.query_x).detach().argmax(-1)
    return said
