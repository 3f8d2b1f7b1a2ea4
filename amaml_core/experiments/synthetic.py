"""Synthetic regression: every random function is a task; methods are compared by their curves of fine-tuning on test functions.

Chapter "Synthetic regression" shows these results. Also a program:
``python -m amaml_core.experiments.synthetic --profile full --out results/full/synthetic``.

Four kinds of cells:

- ``synthetic``: train one method (or none, ``untrained``) and follow the error on the test tasks, on support and held-out points,
  while a network adapts by Adam (the released code's test) and by the method's own inner loop;
- ``synthetic-choice``: try the four settings of ``GRID`` that every method has, on validation functions that are neither training
  nor test functions, from a pool of their own;
- ``synthetic-horizon``: train at one number of inner steps, test at many;
- ``synthetic-grid``: the adapted prediction of one test function on a grid of inputs.

What the choice cells chose stands in ``CHOSEN``, by hand. So a cell's settings say all that it depends on, and it runs without the
records of others; a test holds the table against the records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import AMAML, FOMAML, IMAML, MAML, Euler, GradientDescent, Problem, Reptile, evaluate, fit, metrics
from ..evaluation import AdamAdaptation
from ..flow import DivergenceError
from ..meta import Method
from ..samplers import (
    Alpine,
    CosMixture,
    FunctionPools,
    PoolSampler,
    Standardisation,
    make_function_pools,
    make_function_tasks,
)
from ..samplers.functions import Family
from ..tasks import Tasks
from . import published_curves
from .cells import Cell, best_of, program, read_records
from .profiles import check_profile
from .ratings import seeded, without_unrolling

RECORDS = Path(__file__).resolve().parents[2] / "results" / "full" / "synthetic"
COMMAND = "python -m amaml_core.experiments.synthetic --profile full --out results/full/synthetic"

FAMILIES = {"cosmixture": CosMixture, "alpine": Alpine}
VARIANTS = ("slides", "released")
METHODS = ("A-MAML", "MAML", "MAML-1", "FOMAML", "Reptile", "iMAML")
UNTRAINED = "untrained"
BATCH = 5
CHOICE_SEED = 100  # a training pool of its own, so that no seed of the results was seen when the choice was made
TEST_ADAM = AdamAdaptation(lr=1e-3, weight_decay=1e-6)  # as in the released code


@dataclass(frozen=True)
class Size:
    """How much a cell does at one profile.

    Attributes:
        train_tasks, test_tasks, validation_tasks: functions.
        meta_steps: updates of the initialisation.
        inner_steps, maml_steps: of the long methods, and of MAML.
        epochs, every: Adam epochs of the test, and how often the error is measured.
        own_steps: numbers of steps of a method's own inner loop at which the error is measured.
        trial_meta_steps, trial_epochs: of each trial of a choice.
        horizons: numbers of inner steps to train at in the horizon test.
        grid: points along each input of a prediction grid.
        seeds: how many seeds.
        compile: compile the inner steps.
    """

    train_tasks: int
    test_tasks: int
    validation_tasks: int
    meta_steps: int
    inner_steps: int
    maml_steps: int
    epochs: int
    every: int
    own_steps: tuple[int, ...]
    trial_meta_steps: int
    trial_epochs: int
    horizons: tuple[int, ...]
    grid: int
    seeds: int
    compile: bool

    @property
    def adam_epochs(self) -> tuple[int, ...]:
        """The epochs at which the error is measured."""
        return tuple(range(0, self.epochs + 1, self.every))


SIZES: dict[str, Size] = {
    "smoke": Size(10, 10, 10, 3, 5, 2, 10, 5, (0, 1, 5, 10), 2, 5, (2, 5), 5, 1, False),
    "book": Size(100, 50, 50, 150, 50, 5, 400, 50, (0, 1, 5, 10, 20, 50, 100, 200), 50, 200, (10, 50), 21, 1, False),
    "full": Size(
        100, 100, 50, 600, 50, 5, 1000, 25, (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), 150, 500,
        (10, 50, 100, 200), 25, 3, True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Which tasks: the family of functions, the formula, the input dimension, and S = Q points of each function."""

    family: str = "cosmixture"
    variant: str = "slides"
    d: int = 2
    shots: int = 50

    def functions(self) -> Family:
        """The family.

        Raises:
            ValueError: an unknown family, variant, or d < 1.
        """
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {tuple(FAMILIES)}, not {self.family!r}")
        return FAMILIES[self.family](self.d, self.variant)


@dataclass(frozen=True)
class Choice:
    """What may be chosen for each method: both learning rates, and the weight of iMAML's proximal term (others ignore it)."""

    inner_lr: float = 0.01
    meta_lr: float = 1e-3
    regularization: float = 1.0


# Four trials each: two ways to set how far adaptation goes (the inner learning rate, or iMAML's proximal weight), two meta rates.
GRID: dict[str, tuple[Choice, ...]] = {
    name: tuple(
        Choice(0.01, meta_lr, reach) if name == "iMAML" else Choice(reach, meta_lr)
        for reach in ((0.5, 2.0) if name == "iMAML" else (0.01, 0.05))
        for meta_lr in (1e-3, 3e-3)
    )
    for name in METHODS
}

# (family, variant): method: the best of its four trials, from the records of the choice cells. Chosen with two inputs and 50
# shots, and used for all dimensions and shots.
CHOSEN: dict[tuple[str, str], dict[str, Choice]] = {
    ("cosmixture", "slides"): {
        "A-MAML": Choice(0.01, 0.003),
        "MAML": Choice(0.01, 0.003),
        "MAML-1": Choice(0.05, 0.003),
        "FOMAML": Choice(0.01, 0.003),
        "Reptile": Choice(0.05, 0.003),
        "iMAML": Choice(0.01, 0.003, 2.0),
    },
    ("alpine", "slides"): {
        "A-MAML": Choice(0.05, 0.003),
        "MAML": Choice(0.05, 0.003),
        "MAML-1": Choice(0.05, 0.003),
        "FOMAML": Choice(0.01, 0.003),
        "Reptile": Choice(0.05, 0.001),
        "iMAML": Choice(0.01, 0.003, 0.5),
    },
    ("cosmixture", "released"): {
        "A-MAML": Choice(0.05, 0.003),
        "MAML": Choice(0.05, 0.003),
        "MAML-1": Choice(0.05, 0.003),
        "FOMAML": Choice(0.01, 0.003),
        "Reptile": Choice(0.05, 0.003),
        "iMAML": Choice(0.01, 0.003, 0.5),
    },
    ("alpine", "released"): {
        "A-MAML": Choice(0.01, 0.003),
        "MAML": Choice(0.05, 0.003),
        "MAML-1": Choice(0.05, 0.003),
        "FOMAML": Choice(0.01, 0.003),
        "Reptile": Choice(0.05, 0.001),
        "iMAML": Choice(0.01, 0.001, 0.5),
    },
}


def chosen(data: Data, name: str) -> Choice:
    """The settings of a method for these tasks, from ``CHOSEN``; the defaults for the untrained network."""
    return CHOSEN.get((data.family, data.variant), {}).get(name, Choice())


# ------------------------------------------------------------------------------------------------------ problem and methods


def network(d: int) -> nn.Module:
    """The paper's network: two hidden layers of 32 tanh units, one output."""
    return nn.Sequential(nn.Linear(d, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error, as in the released code."""
    return 0.5 * (prediction - target).square().mean()


def make_method(name: str, choice: Choice, size: Size, inner_steps: int | None = None) -> Method:
    """A method with its inner steps: ``size.inner_steps`` (or ``inner_steps``) for all but MAML, which takes a tenth, and MAML-1.

    Raises:
        ValueError: an unknown method.
    """
    lr, steps = choice.inner_lr, inner_steps or size.inner_steps
    if name == "iMAML":
        inner = GradientDescent(lr, steps)
        return IMAML(inner, choice.regularization, cg_steps=5, on_negative_curvature="truncate")
    makers = {
        "A-MAML": lambda: AMAML(lr * steps, Euler(steps)),
        "MAML": lambda: MAML(lr, size.maml_steps),
        "MAML-1": lambda: MAML(lr, 1),
        "FOMAML": lambda: FOMAML(lr, steps),
        "Reptile": lambda: Reptile(lr, steps),
        UNTRAINED: lambda: FOMAML(lr, steps),  # lends its inner loop
    }
    if name not in makers:
        raise ValueError(f"method must be one of {(*METHODS, UNTRAINED)}, not {name!r}")
    return makers[name]()


def load(data: Data, size: Size, seed: int) -> FunctionPools:
    """Training and test functions, standardised by the training functions alone; they depend on the seed, not on the method."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return make_function_pools(data.functions(), size.train_tasks, size.test_tasks, data.shots, data.shots, generator)


def validation_tasks(data: Data, size: Size, standardisation: Standardisation, seed: int) -> Tasks:
    """Further functions of the training distribution: what choices are made on."""
    generator = torch.Generator().manual_seed(3000 + seed)
    functions = make_function_tasks(data.functions(), size.validation_tasks, data.shots, data.shots, generator)
    return standardisation.apply(functions)


def train(
    name: str, data: Data, size: Size, pool: Tasks, choice: Choice, seed: int, inner_steps: int | None = None
) -> tuple[nn.Module, Tensor]:
    """Meta-train one method by Adam: the model and the trained initialisation (P,), or the initial one if ``untrained``."""
    model = seeded(network(data.d), torch.Generator().manual_seed(seed))
    initial = Problem(model, loss).initial_parameters()
    if name == UNTRAINED:
        return model, initial
    adam = partial(torch.optim.Adam, lr=choice.meta_lr)
    method = without_unrolling(make_method(name, choice, size, inner_steps))
    sampler = PoolSampler(pool, BATCH)
    problem = make_problem(model, data, size)
    return model, fit(method, problem, sampler, size.meta_steps, adam, seed=seed, theta=initial, progress=False).theta


def make_problem(model: nn.Module, data: Data, size: Size) -> Problem:
    """The problem of a model, or where it is to be compiled, one for all models of the same shapes."""
    return compiled(data.d) if size.compile else Problem(model, loss)


@cache
def compiled(d: int) -> Problem:
    """One compiled problem for all cells of a process: its graphs depend on shapes alone, and are made once."""
    return Problem(network(d), loss, compile=True)


# ------------------------------------------------------------------------------------------------------------------ curves


def curves(name: str, data: Data, size: Size, choice: Choice, seed: int, inner_steps: int | None = None, adam: bool = True) -> dict:
    """Train a method and follow its errors on the test tasks.

    Returns:
        For each protocol (``adam``, ``own``): ``steps``, and for each set (``support``, ``held-out``) and each normaliser
        (``training``: the standard deviation of all training targets; ``task``: that of the task's own targets on the same
        points) the ``mean`` and its standard error ``se`` over tasks, lists as long as ``steps``.
    """
    pools = load(data, size, seed)
    model, theta = train(name, data, size, pools.train, choice, seed, inner_steps)
    problem = make_problem(model, data, size)
    found = {}
    if adam:
        table = evaluate(TEST_ADAM, problem, theta, pools.test, metrics.rmse, size.adam_epochs)
        found["adam"] = summary(table, pools.test)
    method = make_method(name, choice, size, inner_steps)
    found["own"] = summary(evaluate(method, problem, theta, pools.test, metrics.rmse, size.own_steps), pools.test)
    return found


def summary(table: pd.DataFrame, tasks: Tasks) -> dict:
    """Mean and standard error over tasks of the errors that ``evaluate`` gives (see :func:`curves`)."""
    found: dict = {"steps": sorted(table["step"].unique().tolist())}
    for label, column, y in (("support", "support", tasks.support_y), ("held-out", "query", tasks.query_y)):
        errors = table.pivot(index="step", columns="task", values=column).to_numpy(dtype=float)  # (steps, B)
        own = y.flatten(1).std(1, correction=0).double().numpy()  # (B,)
        found[label] = {
            normaliser: {
                "mean": _rounded(scaled.mean(1)),
                "se": _rounded(scaled.std(1, ddof=1) / math.sqrt(scaled.shape[1])),
            }
            for normaliser, scaled in (("training", errors), ("task", errors / own))
        }
    return found


def _rounded(values: np.ndarray) -> list[float | None]:
    """Five decimals; None for what is not finite, which JSON does not have."""
    return [round(float(v), 5) if math.isfinite(v) else None for v in values.ravel()]


def tidy(figures: dict, **settings: object) -> pd.DataFrame:
    """The figures of :func:`curves` as a table: ``settings``, ``protocol``, ``set``, ``normaliser``, ``step``, ``mean``, ``se``."""
    columns: dict[str, list] = {key: [] for key in ("protocol", "set", "normaliser", "step", "mean", "se")}
    for protocol, entries in figures.items():
        for label in ("support", "held-out"):
            for normaliser, values in entries[label].items():
                count = len(entries["steps"])
                names = ([protocol] * count, [label] * count, [normaliser] * count)
                parts = (*names, entries["steps"], values["mean"], values["se"])
                for column, part in zip(columns.values(), parts, strict=True):
                    column.extend(part)
    return pd.DataFrame(settings | columns).astype({"mean": float, "se": float})


def compare(
    profile: str, seed: int, data: Iterable[Data] = (Data(),), methods: tuple[str, ...] = (*METHODS, UNTRAINED)
) -> pd.DataFrame:
    """Run the curves of these methods here and now; a table like that of :func:`read`."""
    size = SIZES[check_profile(profile)]
    return pd.concat(
        [tidy(curves(m, d, size, chosen(d, m), seed), **asdict(d), method=m, seed=seed) for d in data for m in methods],
        ignore_index=True,
    )


def read(folder: Path = RECORDS, experiment: str = "synthetic") -> pd.DataFrame:
    """All full-scale curves that have a record, tidy; empty if there are none.

    Args:
        folder: of the records.
        experiment: ``synthetic`` or ``synthetic-horizon`` (which adds the column ``trained_steps``).
    """
    tables = []
    for record in read_records(folder, f"{experiment}-profile=full-*.json"):
        settings = {k: v for k, v in record.configuration.items() if k not in ("profile", *asdict(Choice()))}
        tables.append(tidy(record.figures, **settings, seed=record.seed))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def read_choices(folder: Path = RECORDS) -> pd.DataFrame:
    """All trials of the choice cells that have a record: settings, validation ``score``, and whether it was ``chosen``."""
    rows = []
    for record in read_records(folder, "synthetic-choice-profile=full-*.json"):
        settings = {key: record.configuration[key] for key in ("family", "variant", "method")}
        for number, trial in enumerate(record.figures["trials"]):
            rows.append(settings | trial | {"chosen": number == record.figures["best"]})
    return pd.DataFrame(rows)


def read_grids(folder: Path = RECORDS) -> dict[tuple[str, str, str], dict]:
    """All prediction grids that have a record: (family, variant, method) to the figures of :func:`predictions`."""
    found = {}
    for record in read_records(folder, "synthetic-grid-profile=full-*.json"):
        found[tuple(record.configuration[key] for key in ("family", "variant", "method"))] = record.figures
    return found


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds: ``mean``, its standard error ``se`` over all their tasks, ``low`` and ``high`` seed, and ``seeds``.

    Each seed has test functions of its own, so the standard errors of seeds are independent: se = sqrt(sum se^2) / seeds.
    """
    keys = [c for c in table.columns if c not in ("seed", "mean", "se")]
    groups = table.assign(square=table["se"] ** 2).groupby(keys, sort=False)
    pooled = groups.agg(
        mean=("mean", "mean"),
        low=("mean", "min"),
        high=("mean", "max"),
        seeds=("seed", "nunique"),
        square=("square", "sum"),
    )
    pooled["se"] = pooled.pop("square") ** 0.5 / pooled["seeds"]
    return pooled.reset_index()


def distances(table: pd.DataFrame, by_method: bool = False, stand_in: str | None = None) -> pd.DataFrame:
    """How far our curves are from the published ones, for each reading of what the figure shows.

    Args:
        table: like that of :func:`read`, one or more seeds.
        by_method: one row for each method, too.
        stand_in: compare the curves of this one method (or ``untrained``) with the published curves of all of them.

    Returns:
        A row for each family, shots, variant, d, protocol, set and normaliser: ``distance``, the root mean square of published
        minus ours over methods and epochs; ``correlation`` between the two; ``points``, how many values are compared. The
        smallest distance first. Compare it with ``published_curves.READING_ERROR``.
    """
    ours, on = over_seeds(table), ["family", "shots", "method", "step"]
    if stand_in is not None:
        ours, on = ours[ours["method"] == stand_in].drop(columns="method"), [key for key in on if key != "method"]
    pairs = ours.merge(published_curves.table(), on=on)
    keys = ["family", "shots", "variant", "d", "protocol", "set", "normaliser"] + ["method"] * by_method

    def measure(group: pd.DataFrame) -> pd.Series:
        gap = group["published"] - group["mean"]
        return pd.Series(
            {
                "distance": math.sqrt((gap**2).mean()),
                "correlation": group["published"].corr(group["mean"]),
                "points": len(group),
            }
        )

    if pairs.empty:
        return pd.DataFrame(columns=[*keys, "distance", "correlation", "points"])
    found = pairs.groupby(keys)[["published", "mean"]].apply(measure).reset_index()
    return found.astype({"points": int}).sort_values("distance", ignore_index=True)


# ----------------------------------------------------------------------------------------------------- surfaces and choices


def instance(data: Data, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """One random function of two inputs on a grid: the values along each input (n,), and f (n, n), first input along rows."""
    family = replace(data, d=2).functions()
    parameters = family.draw(1, torch.Generator().manual_seed(seed))
    line, x = _grid(family, points)
    return line, family(parameters, x[None]).view(points, points)


def _grid(family: Family, points: int) -> tuple[Tensor, Tensor]:
    """The values along one input (n,), and all grid points (n * n, 2), first input slowest; float64."""
    line = torch.linspace(family.low, family.high, points, dtype=torch.float64)
    return line, torch.cartesian_prod(line, line)


def predictions(name: str, data: Data, size: Size, choice: Choice, seed: int, task: int = 0) -> dict:
    """The adapted network on a grid of inputs, for one test function of two inputs.

    Returns:
        ``line`` (n,), ``truth`` (n, n), ``epochs``, and ``predictions`` (len(epochs), n, n) after so many Adam epochs, in
        the function's units; ``support`` (S, 2), the inputs that the network was shown.

    Raises:
        ValueError: data of another dimension than 2.
    """
    if data.d != 2:
        raise ValueError(f"a grid needs functions of two inputs, not d={data.d}")
    pools = load(data, size, seed)
    family, standardisation = data.functions(), pools.standardisation
    # The pools draw all parameters first, so a generator of the same seed gives them again.
    parameters = family.draw(size.train_tasks + size.test_tasks, torch.Generator().manual_seed(1000 + seed))
    parameters = parameters[size.train_tasks + task][None]  # (1, ...)
    model, theta = train(name, data, size, pools.train, choice, seed)
    problem, tasks = Problem(model, loss), pools.test[task : task + 1]
    line, x = _grid(family, size.grid)
    inputs = (x[None].float() - standardisation.x_mean) / standardisation.x_std  # (1, n * n, 2)
    epochs = (0, size.epochs // 5, size.epochs)
    step, u, seen = TEST_ADAM.inner_step(problem, theta, tasks), theta[None], []
    for epoch in range(size.epochs + 1):
        u = step(u) if epoch else u
        if epoch in epochs:
            seen.append(standardisation.undo_y(problem.predict(u, inputs)).view(size.grid, size.grid))
    shape = (size.grid, size.grid)
    return {
        "line": _rounded(line.numpy()),
        "truth": [_rounded(row) for row in family(parameters, x[None]).view(shape).numpy()],
        "epochs": list(epochs),
        "predictions": [[_rounded(row) for row in grid.numpy()] for grid in seen],
        "support": [_rounded(p) for p in (tasks.support_x[0] * standardisation.x_std + standardisation.x_mean).numpy()],
    }


def choose(name: str, data: Data, size: Size, seed: int) -> dict:
    """Try a method's settings in ``GRID``: train for a while, score on validation functions.

    The score is the mean over Adam epochs and validation functions of the held-out error; ``None`` if training diverged.

    Returns:
        ``trials``, each with its settings and its ``score``, and ``best``, the number of the one with the lowest score.

    Raises:
        DivergenceError: all trials diverged.
    """
    size = replace(size, meta_steps=size.trial_meta_steps, epochs=size.trial_epochs)
    pools = load(data, size, seed)
    tasks = validation_tasks(data, size, pools.standardisation, seed)
    trials = []
    for choice in GRID[name]:
        try:
            model, theta = train(name, data, size, pools.train, choice, seed)
            table = evaluate(TEST_ADAM, make_problem(model, data, size), theta, tasks, metrics.rmse, size.adam_epochs)
            score = _rounded(np.array(table["query"].mean()))[0]
        except DivergenceError:
            score = None
        trials.append(asdict(choice) | {"score": score})
    best = best_of([trial["score"] for trial in trials], f"all {len(trials)} trials of {name} diverged")
    return {"trials": trials, "best": best}


# ------------------------------------------------------------------------------------------------------------------- cells


def cells(profile: str, seed: int | None = None) -> list[Cell]:
    """All cells of a profile, those that the others stand on or that say most first."""
    size = SIZES[check_profile(profile)]
    seeds = range(size.seeds) if seed is None else [seed]
    both = [Data(family, variant) for variant in VARIANTS for family in FAMILIES]

    def cell(kind: str, data: Data, method: str, seed: int, **more: object) -> Cell:
        choice = {} if kind == "synthetic-choice" else asdict(chosen(data, method))
        return Cell(kind, {"profile": profile, **asdict(data), "method": method, **choice, **more}, seed)

    found = [cell("synthetic-choice", data, m, CHOICE_SEED) for data in both for m in METHODS]
    for s in seeds:
        for d, shots in ((2, 50), (1, 50), (2, 100), (1, 100)):
            found += [cell("synthetic", replace(data, d=d, shots=shots), m, s) for data in both for m in (*METHODS, UNTRAINED)]
        if s == seeds[0]:
            found += [cell("synthetic-grid", data, m, s) for data in both for m in ("A-MAML", "FOMAML", UNTRAINED)]
            found += [
                cell("synthetic-horizon", data, m, s, trained_steps=steps)
                for data in both
                for m in ("A-MAML", "FOMAML")
                for steps in size.horizons
            ]
    return found


def run(cell: Cell, scratch: Path) -> dict:
    """The figures of one cell."""
    settings = dict(cell.settings)
    size, name = SIZES[settings.pop("profile")], settings.pop("method")
    data = Data(*(settings.pop(key) for key in asdict(Data())))
    if cell.experiment == "synthetic-choice":
        return choose(name, data, size, cell.seed)
    trained_steps = settings.pop("trained_steps", None)
    choice = Choice(**settings)
    if cell.experiment == "synthetic-grid":
        return predictions(name, data, size, choice, cell.seed)
    return curves(name, data, size, choice, cell.seed, trained_steps, adam=cell.experiment == "synthetic")


if __name__ == "__main__":
    program(__doc__, cells, run)
