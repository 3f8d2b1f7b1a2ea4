"""Training, following the error while test functions are fitted, choosing settings, and predictions on a grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from amaml_core import Problem, Tasks, evaluate, metrics
from amaml_core.evaluation import AdamAdaptation
from amaml_core.meta import Method
from amaml_core.samplers import FunctionPools, PoolSampler, Standardisation, make_function_pools, make_function_tasks
from amaml_core.samplers.functions import Family

from ..common import choosing
from ..common.cells import Cell, live_rows
from ..common.training import generator, loss, meta_train, network, seeded
from .settings import (
    BATCH,
    FAMILIES,
    METHODS,
    NUDGE,
    SIZES,
    TEST_ADAM,
    TRIALS,
    UNTRAINED,
    VARIANTS,
    Choice,
    Data,
    Size,
    cells,
    make_method,
)

SETS = {"support": "support", "query": "held-out"}  # the core's word: the chapter's


def load(data: Data, size: Size, seed: int) -> FunctionPools:
    """Training and test functions, standardised by the training functions alone; they depend on the seed, not on the method."""
    return make_function_pools(data.functions(), size.train_tasks, size.test_tasks, data.shots, data.shots, generator("data", seed))


def validation_tasks(data: Data, size: Size, standardisation: Standardisation, seed: int) -> Tasks:
    """Further functions of the training distribution: what choices are made on."""
    draws = generator("validation", seed)
    return standardisation.apply(make_function_tasks(data.functions(), size.validation_tasks, data.shots, data.shots, draws))


def make_problem(model: nn.Module, data: Data, size: Size) -> Problem:
    """The problem of a model, or where it is to be compiled, one for all models of the same shapes."""
    return _compiled(data.d) if size.compile else Problem(model, loss)


@cache
def _compiled(d: int) -> Problem:
    """One compiled problem for all cells of a process: its graphs depend on shapes alone, and are made once."""
    return Problem(network(d), loss, compile=True)


def train(
    name: str, data: Data, size: Size, pool: Tasks, choice: Choice, seed: int, inner_steps: int | None = None, nudge: float = 0.0
) -> tuple[nn.Module, Tensor]:
    """Meta-train one method by Adam: the model and the trained initialisation (P,), or the initial one if ``untrained``.

    The initial weights are multiplied by 1 + ``nudge``.

    Raises:
        DivergenceError: an update is not finite.
    """
    model = seeded(network(data.d), seed)
    initial = Problem(model, loss).initial_parameters() * (1 + nudge)
    if name == UNTRAINED:
        return model, initial
    method, problem = make_method(name, choice, size, inner_steps), make_problem(model, data, size)
    return model, meta_train(method, problem, PoolSampler(pool, BATCH), size.meta_steps, choice.meta_lr, seed, initial)


def curves(
    name: str, data: Data, size: Size, choice: Choice, seed: int, inner_steps: int | None = None, adam: bool = True
) -> pd.DataFrame:
    """Train a method and follow its errors on the test tasks: :func:`along` for each ``protocol``, ``adam`` and ``own``."""
    pools = load(data, size, seed)
    model, theta = train(name, data, size, pools.train, choice, seed, inner_steps)
    problem, own = make_problem(model, data, size), make_method(name, choice, size, inner_steps)
    protocols = {"adam": (TEST_ADAM, size.adam_epochs)} if adam else {}
    protocols["own"] = (own, size.own_steps)
    parts = [along(how, problem, theta, pools.test, steps).assign(protocol=key) for key, (how, steps) in protocols.items()]
    table = pd.concat(parts, ignore_index=True)
    return table[["protocol", *table.columns.drop("protocol")]]


def nudged(name: str, data: Data, size: Size, choice: Choice, seed: int) -> pd.DataFrame:
    """Train a method from initial weights that differ in their last digit, and follow its errors along Adam's adaptation."""
    pools = load(data, size, seed)
    model, theta = train(name, data, size, pools.train, choice, seed, nudge=NUDGE)
    return along(TEST_ADAM, make_problem(model, data, size), theta, pools.test, size.figure_epochs).assign(protocol="adam")


def along(how: Method | AdamAdaptation, problem: Problem, theta: Tensor, tasks: Tasks, steps: tuple[int, ...]) -> pd.DataFrame:
    """Errors along the adaptation to test tasks.

    Returns:
        A row for each ``step`` and ``set`` (``support``, ``held-out``): the ``mean`` root mean squared error over tasks and its
        standard error ``se``, in units of the spread of all training targets; ``task_mean`` and ``task_se``, each task's error in
        units of the spread of its own targets on the same points. Missing once a task's adaptation has diverged.
    """
    table = evaluate(how, problem, theta, tasks, metrics.rmse, steps).astype({name: float for name in SETS}).replace(np.inf, np.nan)
    parts = []
    for column, label in SETS.items():
        y = tasks.support_y if column == "support" else tasks.query_y
        own = pd.Series(y.flatten(1).std(1, correction=0).double().numpy())  # of each task, (B,)
        errors = pd.DataFrame({"step": table["step"], "": table[column], "task_": table[column] / table["task"].map(own)})
        found = errors.groupby("step").agg(["mean", "sem"], skipna=False)
        found.columns = ["mean", "se", "task_mean", "task_se"]
        parts.append(found.reset_index().assign(set=label))
    rows = pd.concat(parts, ignore_index=True).sort_values("step", kind="stable", ignore_index=True)
    return rows[["step", "set", "mean", "se", "task_mean", "task_se"]].round(5)


def choose(name: str, data: Data, size: Size, seed: int) -> pd.DataFrame:
    """Try a method's settings in ``TRIALS``: train for a while, score on validation functions; see :func:`choosing.choose`.

    The score is the mean over Adam epochs and validation functions of the held-out error.

    Raises:
        DivergenceError: all trials diverged.
    """
    size = replace(size, meta_steps=size.trial_meta_steps, epochs=size.trial_epochs)
    pools = load(data, size, seed)
    tasks = validation_tasks(data, size, pools.standardisation, seed)

    def score(choice: Choice) -> float:
        model, theta = train(name, data, size, pools.train, choice, seed)
        table = evaluate(TEST_ADAM, make_problem(model, data, size), theta, tasks, metrics.rmse, size.adam_epochs)
        return round(float(table["query"].mean()), 5)

    return choosing.choose(TRIALS[name], score)


def instance(data: Data, points: int, seed: int) -> pd.DataFrame:
    """One random function of two inputs on a grid: ``x1``, ``x2`` and ``value``, the first input slowest."""
    family = replace(data, d=2).functions()
    x = _grid(family, points)
    value = family(family.draw(1, torch.Generator().manual_seed(seed)), x[None]).flatten()
    return pd.DataFrame({"x1": x[:, 0].numpy(), "x2": x[:, 1].numpy(), "value": value.numpy()})


def instances(points: int, seed: int) -> pd.DataFrame:
    """:func:`instance` of each ``family`` and ``variant``, of the same seed."""
    every = [(family, variant) for family in FAMILIES for variant in VARIANTS]
    return pd.concat(
        [instance(Data(family, variant), points, seed).assign(family=family, variant=variant) for family, variant in every],
        ignore_index=True,
    )


def slices(points: int, count: int, seed: int) -> pd.DataFrame:
    """Some functions of one input on a grid, for each ``family`` and ``variant``: ``function`` (0, 1, ...), ``x`` and ``value``."""
    parts = []
    for family in FAMILIES:
        for variant in VARIANTS:
            functions = Data(family, variant, d=1).functions()
            x = torch.linspace(functions.low, functions.high, points, dtype=torch.float64)
            parameters = functions.draw(count, torch.Generator().manual_seed(seed))  # (count, ...)
            values = functions(parameters, x[None, :, None].expand(count, -1, -1))[..., 0]  # (count, points)
            parts += [
                pd.DataFrame({"family": family, "variant": variant, "function": i, "x": x.numpy(), "value": value.numpy()})
                for i, value in enumerate(values)
            ]
    return pd.concat(parts, ignore_index=True)


def without_network(seeds: Iterable[int], shots: int = 50, draws: int = 200) -> pd.DataFrame:
    """Held-out errors of two predictions that need no network, on the full size's test functions of two inputs.

    Returns:
        For each ``family``, ``variant`` and ``seed``, in units of the spread of all training targets: ``family mean``, of the mean
        of ``draws`` random functions of the family at the same inputs, which knows the family and no point of the function; and
        ``nearest point``, of the value of the nearest support point, which knows the points and no family.
    """
    rows = []
    for family in FAMILIES:
        for variant in VARIANTS:
            for seed in seeds:
                data = Data(family, variant, 2, shots)
                pools, functions = load(data, SIZES["full"], seed), data.functions()
                test, units = pools.test, pools.standardisation
                x = (test.query_x * units.x_std + units.x_mean).double().flatten(0, 1)  # (B Q, 2)
                parameters = functions.draw(draws, generator("validation", seed))
                mean = functions(parameters, x[None].expand(draws, -1, -1)).mean(0)  # (B Q, 1)
                mean = ((mean - units.y_mean) / units.y_std).view_as(test.query_y)
                nearest = torch.cdist(test.query_x, test.support_x).argmin(2, keepdim=True)  # (B, Q, 1)
                guesses = {"family mean": mean, "nearest point": test.support_y.gather(1, nearest)}
                errors = {
                    name: float(metrics.rmse(guess.double(), test.query_y.double()).mean()) for name, guess in guesses.items()
                }
                rows.append({"family": family, "variant": variant, "seed": seed, **errors})
    return pd.DataFrame(rows)


def _grid(family: Family, points: int) -> Tensor:
    """All grid points (n * n, 2), first input slowest; float64."""
    line = torch.linspace(family.low, family.high, points, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def predictions(name: str, data: Data, size: Size, choice: Choice, seed: int, task: int = 0) -> pd.DataFrame:
    """The adapted network on a grid of inputs, for one test function of two inputs.

    Returns:
        A row for each grid point, the first input slowest: ``x1``, ``x2``, ``truth``, and the predictions after so many Adam
        epochs, ``after 0`` and so on; all in the function's own units.

    Raises:
        ValueError: data of another dimension than 2.
    """
    if data.d != 2:
        raise ValueError(f"a grid needs functions of two inputs, not d={data.d}")
    pools, family = load(data, size, seed), data.functions()
    # The pools draw all parameters first, so a generator of the same seed gives them again.
    parameters = family.draw(size.train_tasks + size.test_tasks, generator("data", seed))[size.train_tasks + task][None]  # (1, ...)
    model, theta = train(name, data, size, pools.train, choice, seed)
    problem, tasks, x = Problem(model, loss), pools.test[task : task + 1], _grid(family, size.grid)
    inputs = (x[None].float() - pools.standardisation.x_mean) / pools.standardisation.x_std  # (1, n * n, 2)
    columns = {"x1": x[:, 0], "x2": x[:, 1], "truth": family(parameters, x[None]).flatten()}
    step, u = TEST_ADAM.inner_step(problem, theta, tasks), theta[None]
    for epoch in range(size.epochs + 1):
        u = step(u) if epoch else u
        if epoch in size.drawn_epochs:
            columns[f"after {epoch}"] = pools.standardisation.undo_y(problem.predict(u, inputs)).flatten()
    return pd.DataFrame({key: values.double().numpy() for key, values in columns.items()}).round(5)


def points(data: Data, size: Size, seed: int, task: int = 0) -> pd.DataFrame:
    """The support points of one test function of two inputs, in its own units: ``x1`` and ``x2``."""
    pools = load(data, size, seed)
    x = pools.test.support_x[task] * pools.standardisation.x_std + pools.standardisation.x_mean  # (S, 2)
    return pd.DataFrame(x.double().numpy(), columns=["x1", "x2"]).round(5)


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of one cell."""
    settings = dict(cell.settings)
    size, data = SIZES[settings.pop("size")], Data(*(settings.pop(key) for key in asdict(Data())))
    if cell.kind == "points":
        return points(data, size, cell.seed)
    name = settings.pop("method")
    if cell.kind == "choices":
        return choose(name, data, size, cell.seed)
    trained_steps = settings.pop("trained_steps", None)
    choice = Choice(**settings)
    if cell.kind == "nudged":
        return nudged(name, data, size, choice, cell.seed)
    if cell.kind == "grids":
        return predictions(name, data, size, choice, cell.seed)
    return curves(name, data, size, choice, cell.seed, trained_steps, adam=cell.kind == "curves")


def live(
    size: str, seed: int, kind: str = "curves", methods: tuple[str, ...] = (*METHODS, UNTRAINED), **wanted: object
) -> pd.DataFrame:
    """The rows of some cells of a kind, run here and now, like those of the records.

    Args:
        size, seed: of the cells.
        kind: which.
        methods: of these alone.
        wanted: values that settings must have, for example ``family="alpine"``.
    """
    found = [c for c in cells(size, seed) if c.kind == kind and c.settings.get("method", UNTRAINED) in methods]
    return live_rows(c for c in found if all(c.settings[key] == value for key, value in wanted.items()))[kind]
