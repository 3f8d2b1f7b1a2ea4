"""What is trained, how much of it, how new functions are fitted, and the cells. Nothing was tuned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from amaml_core import MAML
from amaml_core.evaluation import AdamAdaptation

from ..common.cells import Cell
from .switches import BARE, PAPER, RELEASED, Switches

INNER_LR = 0.01
META_LR = 1e-3
BATCH = 5
SHOTS = 50

EXACT, UNTRAINED = "exact", "untrained"
PROXIMAL = "paper + 1: proximal terms"
TRAINED: dict[str, Switches | None] = {
    EXACT: None,
    "paper": PAPER,
    PROXIMAL: replace(PAPER, inner_proximal=True, outer_proximal=True),
    "paper + 2: RK4 there, Euler back": replace(PAPER, forward="RK4", adjoint="Euler"),
    "paper + 3: n + 1 steps, rectangle, wrapped": replace(PAPER, backward_steps="n+1", quadrature="rectangle", wrapped=True),
    "released without 1": BARE,
    "released": RELEASED,
    UNTRAINED: None,
}

# Adaptation to a new function, the same for all that were trained. "inner" is what the method was trained for; "adam" is the
# released test; "sgd" is what its option of that name promises: rate 1e-3 on the mean squared error, which is twice our loss.
RULES = {"inner": MAML(INNER_LR, 1), "adam": AdamAdaptation(1e-3, weight_decay=1e-6), "sgd": MAML(2e-3, 1)}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a cell does.

    Attributes:
        steps: numbers K at which meta-gradients are compared on cosine mixtures.
        alpine_steps: the same on Alpine functions, one number.
        functions: in a pool: training functions, and as many new ones to test on.
        meta_steps, inner_steps: of a training run.
        rules: for each rule of adaptation, the steps after which the error is measured.
        memory: (B, K) of the memory cells.
        seeds: how many.
        compile: compile the inner steps.
    """

    steps: tuple[int, ...]
    alpine_steps: int
    functions: int
    meta_steps: int
    inner_steps: int
    rules: tuple[tuple[str, tuple[int, ...]], ...]
    memory: tuple[tuple[int, int], ...]
    seeds: int
    compile: bool


SIZES = {
    "smoke": Size(
        steps=(5,), alpine_steps=5, functions=6, meta_steps=3, inner_steps=5,
        rules=(("inner", (0, 5)), ("adam", (5,)), ("sgd", (5,))), memory=((2, 5),), seeds=1, compile=False,
    ),
    "book": Size(
        steps=(10, 50), alpine_steps=50, functions=50, meta_steps=40, inner_steps=50,
        rules=(("inner", (0, 50)), ("adam", (50, 200)), ("sgd", (200,))), memory=((4, 50),), seeds=1, compile=False,
    ),
    "full": Size(
        steps=(50, 500, 10, 200), alpine_steps=50, functions=100, meta_steps=200, inner_steps=50,
        rules=(("inner", (0, 50, 500)), ("adam", (50, 200, 500)), ("sgd", (500,))),
        memory=((8, 50), (2, 50), (4, 100), (2, 200)), seeds=3, compile=True,
    ),
}  # fmt: skip


def cells(size: str, seed: int | None = None) -> list[Cell]:
    """All cells of a size; those that say most come first."""
    wanted = SIZES[size]
    seeds: Iterable[int] = range(wanted.seeds) if seed is None else [seed]
    ats = ("initial", "trained")

    def cell(kind: str, seed: int, **more: object) -> Cell:
        return Cell("audit", kind, {"size": size, **more}, seed)

    found = [cell("training", s, formula="cosmixture", setting=name) for s in seeds for name in TRAINED]
    found += [cell("gradient", s, formula="cosmixture", steps=k, at=at) for k in wanted.steps for s in seeds for at in ats]
    found += [cell("functions", s) for s in seeds]
    found += [cell("memory", next(iter(seeds)), batch=b, steps=k) for b, k in wanted.memory]
    found += [cell("standardisation", s, formula="cosmixture") for s in seeds]
    found += [
        cell("training", s, formula=name, setting=setting)
        for name in ("cosmixture-released", "alpine", "alpine-released")
        for s in seeds
        for setting in (EXACT, UNTRAINED)
    ]
    # Alpine functions, where the cosine mixtures leave a question: the proximal terms, and all findings together.
    found += [cell("training", s, formula="alpine", setting=setting) for s in seeds for setting in (PROXIMAL, "released")]
    found += [cell("gradient", s, formula="alpine", steps=wanted.alpine_steps, at=at) for s in seeds for at in ats]
    return found
