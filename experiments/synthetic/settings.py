"""Which functions, methods and settings, how much is done, and the cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from amaml_core import AMAML, FOMAML, IMAML, MAML, Euler, GradientDescent, Reptile
from amaml_core.evaluation import AdamAdaptation
from amaml_core.meta import Method
from amaml_core.samplers import Alpine, CosMixture
from amaml_core.samplers.functions import Family

from ..common.cells import Cell

FAMILIES = {"cosmixture": CosMixture, "alpine": Alpine}
VARIANTS = ("slides", "released")
METHODS = ("A-MAML", "MAML", "MAML-1", "FOMAML", "Reptile", "iMAML")
UNTRAINED = "untrained"
DRAWN = ("A-MAML", "FOMAML", UNTRAINED)  # whose predictions are taken on a grid of inputs
BATCH = 5
NUDGE = 2.0**-22  # of each initial weight, relative: a change in the last digit of a float32
NUDGED_SEED = 1  # for which that is done
CHOICE_SEED = 100  # a training pool of its own, so that no seed of the results was seen when the choice was made
TEST_ADAM = AdamAdaptation(lr=1e-3, weight_decay=1e-6)  # as in the released code


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a cell does.

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

    @property
    def figure_epochs(self) -> tuple[int, ...]:
        """The epochs at which the published figure was read."""
        return (0, self.epochs // 5, self.epochs // 2, self.epochs)

    @property
    def drawn_epochs(self) -> tuple[int, ...]:
        """The epochs after which a prediction is taken on a grid."""
        return (0, self.epochs // 5, self.epochs)


SIZES = {
    "smoke": Size(
        train_tasks=10, test_tasks=10, validation_tasks=10, meta_steps=3, inner_steps=5, maml_steps=2, epochs=10, every=5,
        own_steps=(0, 1, 5, 10), trial_meta_steps=2, trial_epochs=5, horizons=(2, 5), grid=5, seeds=1, compile=False,
    ),
    "book": Size(
        train_tasks=100, test_tasks=50, validation_tasks=50, meta_steps=150, inner_steps=50, maml_steps=5, epochs=400, every=50,
        own_steps=(0, 1, 5, 10, 20, 50, 100, 200), trial_meta_steps=50, trial_epochs=200, horizons=(10, 50), grid=21, seeds=1,
        compile=False,
    ),
    "full": Size(
        train_tasks=100, test_tasks=100, validation_tasks=50, meta_steps=600, inner_steps=50, maml_steps=5, epochs=1000, every=25,
        own_steps=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), trial_meta_steps=150, trial_epochs=500,
        horizons=(10, 50, 100, 200), grid=25, seeds=3, compile=True,
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
TRIALS: dict[str, tuple[Choice, ...]] = {
    name: tuple(
        Choice(0.01, meta_lr, reach) if name == "iMAML" else Choice(reach, meta_lr)
        for reach in ((0.5, 2.0) if name == "iMAML" else (0.01, 0.05))
        for meta_lr in (1e-3, 3e-3)
    )
    for name in METHODS
}

# (family, variant): method: the best of its four trials. A copy of what the records of the choices say (a test compares them), so
# that a cell's settings say all that it depends on. Chosen with two inputs and 50 shots, used for all dimensions and shots.
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


def rates_differ() -> list[tuple[str, str]]:
    """The functions for which FOMAML chose another inner learning rate than A-MAML: (family, variant)."""
    return [key for key, names in CHOSEN.items() if names["A-MAML"].inner_lr != names["FOMAML"].inner_lr]


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


def horizon_choices(data: Data) -> list[tuple[str, Choice]]:
    """What the horizon test trains: A-MAML, FOMAML with the same settings, and FOMAML with its own where these differ."""
    same, own = chosen(data, "A-MAML"), chosen(data, "FOMAML")
    return [("A-MAML", same), ("FOMAML", same), *([("FOMAML", own)] if own != same else [])]


def cells(size: str, seed: int | None = None) -> list[Cell]:
    """All cells of a size, those that the others stand on or that say most first."""
    wanted = SIZES[size]
    seeds = range(wanted.seeds) if seed is None else [seed]
    every = [Data(family, variant) for variant in VARIANTS for family in FAMILIES]

    def cell(kind: str, data: Data, seed: int, **more: object) -> Cell:
        return Cell("synthetic", kind, {"size": size, **asdict(data), **more}, seed)

    def trained(kind: str, data: Data, method: str, seed: int) -> Cell:
        return cell(kind, data, seed, method=method, **asdict(chosen(data, method)))

    found = [cell("choices", data, CHOICE_SEED, method=method) for data in every for method in METHODS]
    for s in seeds:
        for d, shots in ((2, 50), (1, 50), (2, 100), (1, 100)):
            tasks = [replace(data, d=d, shots=shots) for data in every]
            found += [trained("curves", data, method, s) for data in tasks for method in (*METHODS, UNTRAINED)]
            if s == NUDGED_SEED % wanted.seeds:
                found += [trained("nudged", data, method, s) for data in tasks for method in METHODS]
        found += [
            cell("horizons", data, s, method=method, **asdict(choice), trained_steps=steps)
            for data in every
            for method, choice in horizon_choices(data)
            for steps in wanted.horizons
        ]
    found += [cell("points", data, seeds[0]) for data in every]
    found += [trained("grids", data, method, seeds[0]) for data in every for method in DRAWN]
    return found
