"""The seven rows and their settings, the sizes, and the cells."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from amaml_core import AMAML, FOMAML, IMAML, MAML, RK4, Adam, Euler, GradientDescent, HessianFree, InnerLoop, Reptile, Store
from amaml_core.meta import Method

from ..common.cells import Cell

ROWS = ("MAML", "FOMAML", "Reptile", "iMAML-GD", "iMAML-HF", "A-MAML, T=0.5", "A-MAML, T=1.0")
EXACT = ("MAML", "A-MAML, T=0.5", "A-MAML, T=1.0")  # rows with the exact meta-gradient of their inner loop
PAPER_TASKS = {"omniglot": "20-way 1-shot", "mini-imagenet": "5-way 1-shot"}
META_LR = 1e-3  # of Adam
MEASURED = (0, 1, 2, 3, 5, 10, 20, 50)  # numbers of inner steps at test time, beside the row's own


@dataclass(frozen=True, kw_only=True)
class Size:
    """The data, the network, and how much is done.

    Attributes:
        data: ``"omniglot"`` or ``"mini-imagenet"``.
        way, query: classes of a task, and query drawings of each.
        filters, pooled: of the network.
        batch, updates: tasks of a meta-batch, and meta updates; a recipe may say otherwise.
        equal_budget: whether it may not.
        rows, seeds: what is trained, each with each.
        again: what costs least, and is trained with seed 1 too.
        trial_updates: meta updates of each trial of a choice; 0 where nothing is chosen, or it was at another size.
        measure_every: meta updates between two points of the learning curve, on validation tasks; 0 for no curve.
        seconds: of training, after which a row is tested with what it has learnt by then; ``None`` for no limit.
        validation_tasks, test_tasks: how many.
        measured: numbers of inner steps at test time, beside the row's own.
        stand_in: classes of a stand-in for absent data; 0 where no stand-in will do.
        trials: of which ``TRIALS`` one is chosen; ``None`` for the settings of the rows' own papers.
        large: whether a GPU trains it where there is one. On a CPU tasks then come one at a time, and neither the graphs of the
            steps nor freed memory are given back.
        gpu: whether there must be one.
    """

    data: str = "omniglot"
    way: int = 5
    query: int = 5
    filters: int = 32
    pooled: bool = False
    batch: int = 4
    updates: int
    equal_budget: bool = False
    rows: tuple[str, ...] = ROWS
    seeds: tuple[int, ...] = (0,)
    again: tuple[str, ...] = ()
    trial_updates: int = 0
    measure_every: int = 0
    seconds: float | None = None
    validation_tasks: int = 100
    test_tasks: int = 600
    measured: tuple[int, ...] = MEASURED
    stand_in: int = 0
    trials: str | None = "reduced"
    large: bool = False
    gpu: bool = False

    @property
    def validates(self) -> bool:
        """Whether validation tasks are needed."""
        return self.trial_updates > 0 or self.measure_every > 0


@dataclass(frozen=True)
class Recipe:
    """What a row does.

    Attributes:
        steps: inner steps in training.
        inner_lr: of each; ``None`` for Newton steps, which have none.
        test_steps: inner steps in test; ``None`` for as many as in training.
        regularization: iMAML's λ.
        batch, updates: of the outer loop, where its paper says so; ``None`` for those of the size.
        solver: ``"RK4"``, whose steps cost four gradients; or ``"Adam"``, Reptile as its authors have it: Adam without momentum
            inside, and a meta step that falls from 1 to 0. ``None`` for gradient descent.
        minibatch: support images of a step in training; ``None`` for all.
    """

    steps: int
    inner_lr: float | None = 0.1
    test_steps: int | None = None
    regularization: float | None = None
    batch: int | None = None
    updates: int | None = None
    solver: str | None = None
    minibatch: int | None = None

    def __str__(self) -> str:
        """In words: ``5 steps of 0.1``; what is left to the size is left out."""
        kind = "Newton " * (self.inner_lr is None) + (f"{self.solver} " if self.solver else "")
        parts = [f"{self.steps} {kind}step{'s' * (self.steps != 1)}" + (f" of {self.inner_lr:.2g}" if self.inner_lr else "")]
        parts += [f"{self.minibatch} images each"] if self.minibatch else []
        parts += [f"{self.test_steps} in test"] if self.test_steps not in (None, self.steps) else []
        parts += [f"λ = {self.regularization:g}"] if self.regularization else []
        parts += [f"{self.batch} tasks"] if self.batch else []
        return ", ".join([*parts, f"{self.updates:,} updates"] if self.updates else parts)

    def at(self, size: Size, updates: int | None = None) -> Recipe:
        """The recipe with all that it left to the size; ``updates`` instead of the size's."""
        batch, own = (None, None) if size.equal_budget else (self.batch, self.updates)
        steps = self.test_steps or self.steps
        return replace(self, test_steps=steps, batch=batch or size.batch, updates=updates or own or size.updates)

    def settings(self) -> dict[str, object]:
        """As settings of a cell: what few recipes have is left out of the others."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in ("solver", "minibatch")}


SIZES = {
    "smoke": Size(
        filters=4, query=2, batch=2, updates=3, trial_updates=2, measure_every=1, validation_tasks=10, test_tasks=10, stand_in=120
    ),
    "book": Size(updates=100, trial_updates=30, test_tasks=100, stand_in=120),
    "reduced": Size(updates=500, trial_updates=100),
    "omniglot": Size(way=20, filters=64, batch=16, updates=60_000, trials=None, large=True, gpu=True),
    "mini-imagenet": Size(data="mini-imagenet", query=15, pooled=True, updates=60_000, trials=None, large=True, gpu=True),
}
# How long the horizon is, and whether all parameters follow the flow or the linear layer alone. None is chosen.
WHOLE, HEAD = "A-MAML", "A-MAML on the head"
HORIZONS = {f"{WHOLE}, T={T:g}": Recipe(round(10 * T), 0.1) for T in (0.1, 0.5, 2.0)}
HORIZONS |= {f"{HEAD}, T={T:g}": Recipe(10, T / 10) for T in (1.0, 10.0)}
SIZES["horizons"] = Size(updates=300, rows=tuple(HORIZONS), seeds=(0, 1, 2), trials="horizons")
# The paper's tasks and networks, with updates that two cores can do.
_CPU = Size(updates=2500, equal_budget=True, trial_updates=150, measure_every=250, measured=(0, 1, 2, 3, 5, 10, 20), large=True)
SIZES |= {
    "cpu-omniglot": replace(_CPU, way=20, filters=64, trials="cpu-omniglot", again=("FOMAML",)),
    "cpu-mini-imagenet": replace(
        _CPU, data="mini-imagenet", pooled=True, updates=1500, trial_updates=100, measure_every=150, trials="cpu-mini-imagenet"
    ),
}
# The same for longer, with what was chosen there.
SIZES |= {
    f"gpu-{name}": replace(SIZES[f"cpu-{name}"], updates=10_000, trial_updates=0, measure_every=1000, gpu=True, again=())
    for name in PAPER_TASKS
}
# The sizes with the paper's task and network, the most updates first.
SIZES_OF = {name: (name, f"gpu-{name}", f"cpu-{name}") for name in PAPER_TASKS}
FULL = ("reduced", "horizons", *(size for place in (2, 1, 0) for size in (SIZES_OF[name][place] for name in PAPER_TASKS)))

# The first look: three methods that share all settings, of which none was chosen.
FIRST_ROWS = ("A-MAML", "MAML", "FOMAML")
_FIRST = Size(updates=500, rows=FIRST_ROWS, test_tasks=300, measured=(0, 1, 3, 5, 10), stand_in=1623)
FIRST_LOOK = {
    "smoke": replace(_FIRST, filters=8, updates=4, test_tasks=20, stand_in=120),
    "book": _FIRST,
    "full": replace(_FIRST, filters=64, updates=2000, test_tasks=600),
}


FIRST_RECIPE = Recipe(5)
# The trials of each row, around the setting of its own paper: as many for all rows of a size. A-MAML's horizon is given by its row,
# so it chooses how that is resolved; at the sizes for a CPU by shorter steps than MAML's, so that no two rows are one computation.
TRIALS: dict[str, dict[str, tuple[Recipe, ...]]] = {
    "reduced": {
        "MAML": (Recipe(5, 0.05), Recipe(5, 0.1), Recipe(5, 0.2)),
        "FOMAML": (Recipe(5, 0.05), Recipe(5, 0.1), Recipe(5, 0.2)),
        "Reptile": (Recipe(10, 0.05, 50), Recipe(10, 0.1, 50), Recipe(10, 0.2, 50)),
        "iMAML-GD": tuple(Recipe(16, 0.1, regularization=weight) for weight in (0.5, 2.0, 8.0)),
        "iMAML-HF": tuple(Recipe(3, None, regularization=weight) for weight in (0.5, 2.0, 8.0)),
        "A-MAML, T=0.5": tuple(Recipe(k, 0.5 / k) for k in (3, 5, 10)),
        "A-MAML, T=1.0": tuple(Recipe(k, 1.0 / k) for k in (5, 10, 20)),
    },
    "cpu-omniglot": {
        "MAML": (Recipe(5, 0.1), Recipe(5, 0.4)),
        "FOMAML": (Recipe(5, 0.1), Recipe(5, 0.4)),
        "Reptile": tuple(Recipe(10, lr, 50, solver="Adam", minibatch=20) for lr in (1e-3, 3e-3)),
        "iMAML-GD": tuple(Recipe(16, 0.1, regularization=weight) for weight in (0.1, 0.5)),
        "iMAML-HF": tuple(Recipe(3, None, regularization=weight) for weight in (0.5, 2.0)),
        "A-MAML, T=0.5": (Recipe(10, 0.05), Recipe(3, 0.5 / 3, solver="RK4")),
        "A-MAML, T=1.0": (Recipe(20, 0.05), Recipe(5, 0.2, solver="RK4")),
    },
    "cpu-mini-imagenet": {
        "MAML": (Recipe(5, 0.01, 10), Recipe(5, 0.05, 10)),
        "FOMAML": (Recipe(5, 0.01, 10), Recipe(5, 0.05, 10)),
        "Reptile": tuple(Recipe(8, lr, 50, solver="Adam", minibatch=10) for lr in (1e-3, 3e-3)),
        "iMAML-GD": tuple(Recipe(10, 0.05, regularization=weight) for weight in (0.1, 0.5)),
        "iMAML-HF": tuple(Recipe(3, None, regularization=weight) for weight in (0.5, 2.0)),
        "A-MAML, T=0.5": (Recipe(10, 0.05), Recipe(3, 0.5 / 3, solver="RK4")),
        "A-MAML, T=1.0": (Recipe(20, 0.05), Recipe(5, 0.2, solver="RK4")),
    },
}
TRIALS["horizons"] = {row: (only,) for row, only in HORIZONS.items()}
# What differs between the trials of a row.
GRIDS = {row: "regularization" if "iMAML" in row else "steps" if "A-MAML" in row else "inner_lr" for row in ROWS}
# The number of the trial with the highest validation accuracy, by the records of the choices; a test compares.
CHOSEN = {
    "horizons": dict.fromkeys(HORIZONS, 0),
    "reduced": dict(zip(ROWS, (2, 2, 2, 0, 1, 0, 0), strict=True)),
    "cpu-omniglot": dict(zip(ROWS, (1, 1, 1, 0, 0, 1, 1), strict=True)),
    "cpu-mini-imagenet": dict(zip(ROWS, (0, 0, 1, 0, 0, 0, 0), strict=True)),
}
# The settings of the rows' own papers as far as they are known and as our methods have them: gradient descent in Reptile's inner
# loop where its authors have Adam, three Newton steps, an inner rate for iMAML. A-MAML's own are not known.
PUBLISHED: dict[str, dict[str, Recipe]] = {
    "omniglot": {
        "MAML": Recipe(5), "FOMAML": Recipe(5), "Reptile": Recipe(10, test_steps=50),
        "iMAML-GD": Recipe(25, regularization=2.0, batch=32, updates=20_000),
        "iMAML-HF": Recipe(3, None, regularization=2.0, batch=32, updates=20_000),
        "A-MAML, T=0.5": Recipe(5), "A-MAML, T=1.0": Recipe(10),
    },
    "mini-imagenet": {
        "MAML": Recipe(5, 0.01, 10), "FOMAML": Recipe(5, 0.01, 10), "Reptile": Recipe(8, 0.01, 50, updates=100_000),
        "iMAML-GD": Recipe(10, 0.01, regularization=0.5), "iMAML-HF": Recipe(3, None, regularization=0.5),
        "A-MAML, T=0.5": Recipe(50, 0.01), "A-MAML, T=1.0": Recipe(100, 0.01),
    },
}  # fmt: skip


def recipe(row: str, size: Size) -> Recipe:
    """The row's recipe at a size, complete: the one chosen among the size's trials, or the one published for its data."""
    found = TRIALS[size.trials][row][CHOSEN[size.trials][row]] if size.trials else PUBLISHED[size.data][row]
    return found.at(size)


def make_method(row: str, recipe: Recipe, graphs: bool = False, mask: Tensor | None = None) -> Method:
    """The method of a row. Where A-MAML takes Euler steps, it is at T = 0.5 in 5 steps MAML by another way.

    Args:
        graphs: A-MAML keeps those of its steps, as MAML does.
        mask: (P,), true for the parameters that A-MAML adapts; ``None`` for all.
    """
    lr, steps, weight = recipe.inner_lr, recipe.steps, recipe.regularization
    if row == "iMAML-GD":
        return IMAML(GradientDescent(lr, steps), weight, cg_steps=5, on_negative_curvature="truncate")
    if row == "iMAML-HF":
        return IMAML(HessianFree(cg_steps=5, steps=steps), weight, cg_steps=5, on_negative_curvature="truncate")
    if row.startswith("A-MAML"):
        solver = {None: Euler, "RK4": RK4}[recipe.solver](steps)
        return AMAML(lr * steps, solver, Store(graphs=steps if graphs else 0), inner=InnerLoop(mask=mask))
    if recipe.solver == "Adam":
        return Reptile(lr, solver=Adam(steps, beta1=0.0), inner=InnerLoop(minibatch=recipe.minibatch))
    return {"MAML": MAML, "FOMAML": FOMAML, "Reptile": Reptile}[row](lr, steps)


def cells(size: str, seed: int | None = None) -> list[Cell]:
    """The cells of a size, the choices first, which are always made with seed 0. ``"full"`` are all of ``FULL`` that this machine
    can run: those that take a GPU only where there is one."""
    names = [name for name in FULL if torch.cuda.is_available() or not SIZES[name].gpu] if size == "full" else [size]
    return [cell for name in names for cell in _cells(name, seed)]


def _cells(name: str, seed: int | None) -> list[Cell]:
    size = SIZES[name]
    choices = [
        {"size": name, "row": row, "trial_updates": size.trial_updates, "trials": "; ".join(map(str, TRIALS[size.trials][row]))}
        for row in size.rows
        if size.trial_updates
    ]
    seeds = lambda row: (*size.seeds, *((1,) if row in size.again else ())) if seed is None else (seed,)  # noqa: E731
    # What was timed with other recipes is not taken for a measurement of these.
    recipes = f"{zlib.crc32('; '.join(str(recipe(row, size)) for row in size.rows).encode()):08x}"
    trained = [{"size": name, "row": row} | recipe(row, size).settings() for row in size.rows]
    return [
        *([Cell("images", "speed", {"size": name, "recipes": recipes}, 0)] if size.large and size.trial_updates else []),
        *(Cell("images", "choice", settings, 0) for settings in choices),
        *(Cell("images", "accuracy", settings, s) for settings in trained for s in seeds(settings["row"])),
    ]
