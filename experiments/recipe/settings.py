"""The released recipe: data, methods, sizes, and the cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from amaml_core import AMAML, FOMAML, IMAML, Euler, GradientDescent, Reptile
from amaml_core.meta import Method

from ..common.cells import Cell
from ..synthetic.settings import FAMILIES, METHODS, UNTRAINED

SHOTS = (50, 100)
INNER_LR = META_LR = 0.01
POINTS = 1000  # of a training function, of which each update draws as many as there are shots
BATCH = 5
RATES = (1e-3, 5e-4)  # of the test's Adam: the released one, and half of it


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one training depends on.

    Attributes:
        family: of the released functions of two inputs.
        shots: S = Q points.
        method: one of ``METHODS``, or ``UNTRAINED``.
        steps: K, of the long methods; MAML takes a tenth, MAML-1 one.
        weight: of the proximal terms in both losses, :math:`\\mu`.
        outer: the meta update, ``"SGD"`` of ``META_LR`` or ``"Adam"`` of a tenth of it.
    """

    family: str
    shots: int
    method: str
    steps: int = 50
    weight: float = 1.0
    outer: str = "SGD"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a cell does.

    Attributes:
        functions: to train on, and as many new ones to test on.
        snapshots: meta updates after which the initialisation is tested; the last is the end.
        epochs, every: Adam epochs of the test, and how often the error is measured.
        seeds: of the recipe, and of what differs from it in one way.
        compile: compile the inner steps.
    """

    functions: int
    snapshots: tuple[int, ...]
    epochs: int
    every: int
    seeds: tuple[int, int]
    compile: bool


SIZES = {
    "smoke": Size(functions=6, snapshots=(2, 4), epochs=10, every=5, seeds=(1, 1), compile=False),
    "book": Size(functions=50, snapshots=(200,), epochs=1000, every=100, seeds=(1, 1), compile=True),
    "full": Size(functions=100, snapshots=(500, 1500, 5000), epochs=1000, every=50, seeds=(5, 1), compile=True),
}


# What is changed in the recipe, one at a time and with the fewer shots alone; for which families, and which methods. More steps are
# nothing to MAML with one, and cost the others four times as much: one family has to do.
CHANGES: tuple[tuple[dict, tuple[str, ...], tuple[str, ...]], ...] = (
    ({"weight": 0.0}, FAMILIES, METHODS),
    ({"outer": "Adam"}, FAMILIES, ("A-MAML",)),
    ({"steps": 200}, ("alpine",), tuple(method for method in METHODS if method != "MAML-1")),
)


def make_method(setting: Setting) -> Method:
    """The method with its inner steps. The proximal term of the inner loss is the problem's; iMAML's own is the same."""
    steps = {"MAML": max(1, setting.steps // 10), "MAML-1": 1}.get(setting.method, setting.steps)
    if setting.method == "iMAML":
        return IMAML(GradientDescent(INNER_LR, steps), 1.0, cg_steps=5, on_negative_curvature="truncate")
    if setting.method in ("FOMAML", "Reptile"):
        return {"FOMAML": FOMAML, "Reptile": Reptile}[setting.method](INNER_LR, steps)
    if setting.method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, not {setting.method!r}")
    return AMAML(INNER_LR * steps, Euler(steps))  # MAML too: the same gradient to rounding


def settings(size: str) -> list[tuple[Setting, int]]:
    """All trainings of a size with their seeds, those that say most first: the recipe; then ``CHANGES``."""
    many, some = SIZES[size].seeds
    recipe = [
        (Setting(family=family, shots=shots, method=method), seed)
        for seed in range(many) for shots in SHOTS for family in FAMILIES for method in (*METHODS, UNTRAINED)
    ]  # fmt: skip
    changed = [
        (Setting(family=family, shots=SHOTS[0], method=method, **change), seed)
        for change, families, methods in CHANGES for seed in range(some) for family in families for method in methods
    ]  # fmt: skip
    return recipe + changed


def cells(size: str, seed: int | None = None) -> list[Cell]:
    """All cells of a size."""
    return [
        Cell("recipe", "curves", {"size": size, **asdict(setting)}, s) for setting, s in settings(size) if seed is None or s == seed
    ]
