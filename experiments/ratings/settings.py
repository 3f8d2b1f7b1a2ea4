"""Which methods, data and shots; what each method may choose and what it chose; and the cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from amaml_core import AMAML, FOMAML, IMAML, MAML, Euler, GradientDescent, Reptile
from amaml_core.meta import Method

from ..common.cells import Cell

METHODS = ("A-MAML", "iMAML", "MAML", "FOMAML", "Reptile")
BARS = ("user mean", "item means", "item means + ridge")  # guesses that no network is needed for
DATA = ("jester-1", "ml-100k", "ml-1m")
SHOTS = {"10–15": (10, 15), "20–30": (20, 30)}  # support and query items of a user
ITEMS = 100
BATCH = 5
META_LR = 1e-3
TABLES = (1, 2)  # of the paper; the second has twice as many inner steps


@dataclass(frozen=True)
class Trial:
    """What a method may choose: the inner learning rate, and for iMAML the weight of its proximal term."""

    inner_lr: float
    regularization: float = 1.0


# Three trials for each method, whatever it has to choose.
TRIALS: dict[str, tuple[Trial, ...]] = dict.fromkeys(METHODS, (Trial(0.01), Trial(0.03), Trial(0.1))) | {
    "iMAML": (Trial(0.1, 1.0), Trial(0.1, 0.1), Trial(0.03, 0.1))
}
# What lies beyond the ends of these grids, tried afterwards: it could not be chosen.
BEYOND: dict[str, tuple[Trial, ...]] = dict.fromkeys(METHODS, (Trial(0.003), Trial(0.3))) | {
    "iMAML": (Trial(0.3, 1.0), Trial(0.1, 10.0))
}
# Where the trials are made: always with seed 0, so with its split of the users.
CHOICE_DATA, CHOICE_SHOTS = "jester-1", "10–15"
TRIAL_UPDATES, TRIAL_USERS = 300, 300
# The trial with the smallest validation error, by the ``choice`` records of the full size; a test compares the two.
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
# How long the horizon: numbers of inner steps of one size, that which A-MAML and FOMAML chose.
HORIZON_METHODS, HORIZON_STEPS = ("A-MAML", "FOMAML"), (5, 20, 50, 100, 200)
AGAIN = ("iMAML",)  # methods that are run a second time, since their results do not repeat
FIRST_LOOK = Trial(0.1)  # for all methods alike, where nothing is chosen
PICTURED = ("A-MAML", "Reptile")  # whose predictions for one user are drawn: with an exact meta-gradient, and without any


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done.

    Attributes:
        train_users: None for all who rated enough items.
        test_users: for each seed.
        updates: of meta-training.
        inner_steps: of the long methods.
        maml_steps: MAML's.
        test_steps: numbers of inner steps after which the error is taken.
        seeds: how many.
        stand_in: whether one will do for absent data.
    """

    train_users: int | None
    test_users: int
    updates: int
    inner_steps: int
    maml_steps: int
    test_steps: tuple[int, ...]
    seeds: int
    stand_in: bool = False


LONG = (0, 1, 2, 5, 10, 20, 50, 100)
SIZES = {
    "smoke": Size(
        train_users=30, test_users=20, updates=4, inner_steps=10, maml_steps=5, test_steps=(0, 1, 5, 10), seeds=1, stand_in=True
    ),
    "book": Size(
        train_users=None, test_users=100, updates=400, inner_steps=50, maml_steps=5, test_steps=LONG, seeds=1, stand_in=True
    ),
    "full": Size(train_users=None, test_users=100, updates=1000, inner_steps=50, maml_steps=5, test_steps=LONG, seeds=3),
}


def size_of(name: str, table: int = 1) -> Size:
    """A size by its name, for one of the paper's tables: Table 2 doubles all inner steps."""
    size = SIZES[name]
    if table == 1:
        return size
    inner, maml = 2 * size.inner_steps, 2 * size.maml_steps
    return replace(size, inner_steps=inner, maml_steps=maml, test_steps=tuple(sorted({*size.test_steps, maml, inner})))


def trained_steps(method: str, size: Size) -> int:
    """The number of inner steps that a method is trained for: MAML takes a tenth of the others'."""
    return size.maml_steps if method == "MAML" else size.inner_steps


def make_method(name: str, trial: Trial, steps: int) -> Method:
    """One of the five methods with so many inner steps."""
    lr = trial.inner_lr
    return {
        "A-MAML": AMAML(horizon=lr * steps, solver=Euler(steps)),
        "iMAML": IMAML(GradientDescent(lr, steps), trial.regularization, cg_steps=5, on_negative_curvature="truncate"),
        "MAML": MAML(lr, steps),
        "FOMAML": FOMAML(lr, steps),
        "Reptile": Reptile(lr, steps),
    }[name]


def cells(size: str, seed: int | None = None) -> list[Cell]:
    """All cells of a size: the choices and what lies beyond, the test users with their bars, the errors of both tables, some of
    them a second time, and the horizons."""
    errors = [c for table in TABLES for c in error_cells(size, seed, table)]
    again = [c for table in TABLES for c in error_cells(size, seed, table, AGAIN, "again")]
    return [
        *choice_cells(size),
        *choice_cells(size, "beyond"),
        *user_cells(size, seed),
        *errors,
        *again,
        *horizon_cells(size, seed),
    ]


def choice_cells(size: str, kind: str = "choice") -> list[Cell]:
    """Table × method: which trial is best on validation users, of ``TRIALS`` or, ``"beyond"`` them, of ``BEYOND``."""
    return [
        Cell("ratings", kind, {"size": size, "table": t, "method": m, "data": CHOICE_DATA, "shots": CHOICE_SHOTS}, 0)
        for t in TABLES
        for m in METHODS
    ]


def user_cells(size: str, seed: int | None = None) -> list[Cell]:
    """Data × shots × seed: what depends on no method."""
    return [
        Cell("ratings", "users", {"size": size, "data": data, "shots": shots}, s)
        for data in DATA
        for shots in SHOTS
        for s in _seeds(size, seed)
    ]


def error_cells(
    size: str, seed: int | None = None, table: int = 1, methods: tuple[str, ...] = METHODS, kind: str = "errors"
) -> list[Cell]:
    """Data × shots × method × seed, with what each method chose for the table."""
    return [
        _error_cell(size, table, method, data, shots, CHOSEN[table][method], s, kind)
        for data in DATA
        for shots in SHOTS
        for method in methods
        for s in _seeds(size, seed)
    ]


def horizon_cells(size: str, seed: int | None = None) -> list[Cell]:
    """Method × number of inner steps × seed, where the trials are made."""
    return [
        Cell("ratings", "horizons", cell.settings | {"steps": steps}, cell.seed)
        for steps in HORIZON_STEPS
        for cell in error_cells(size, seed, 1, HORIZON_METHODS)
        if (cell.settings["data"], cell.settings["shots"]) == (CHOICE_DATA, CHOICE_SHOTS)
    ]


def first_look(size: str, seed: int) -> list[Cell]:
    """The first comparison: one data set, 10 to 15 shots, all methods with the same inner learning rate."""
    data, shots = CHOICE_DATA, CHOICE_SHOTS
    users = Cell("ratings", "users", {"size": size, "data": data, "shots": shots}, seed)
    return [users, *(_error_cell(size, 1, method, data, shots, FIRST_LOOK, seed) for method in METHODS)]


def _error_cell(size: str, table: int, method: str, data: str, shots: str, trial: Trial, seed: int, kind: str = "errors") -> Cell:
    what = {"size": size, "table": table, "method": method, "data": data, "shots": shots}
    return Cell("ratings", kind, what | {"meta_lr": META_LR} | asdict(trial), seed)


def _seeds(size: str, seed: int | None) -> Iterable[int]:
    return range(SIZES[size].seeds) if seed is None else [seed]
