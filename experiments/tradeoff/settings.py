"""Which functions, step sizes, horizons and training runs, and the cells."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.cells import Cell
from .candidates import training_methods

INPUTS, VARIANT, SHOTS = 2, "slides", 50  # of the cosine mixtures: input dimension, formula, support points (and query points)
BATCH = 5
META_LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done.

    Attributes:
        cases: (inner learning rate, inner steps) at which gradients are compared: the first with every seed, the others with the
            first seed alone.
        cost_cases: those of them at which time and memory are measured too.
        few: compare one setting of each group alone.
        snapshots: meta updates after which the initialisation is kept.
        batches: meta-batches at each initialisation.
        turns: measured turns of every candidate.
        training: (inner learning rate, inner steps) of the training runs.
        meta_steps: of the training runs.
        train_tasks, test_tasks: functions.
        seeds: how many seeds.
        compile: compile the inner steps of the training runs.
    """

    cases: tuple[tuple[float, int], ...]
    cost_cases: tuple[tuple[float, int], ...]
    few: bool
    snapshots: tuple[int, ...]
    batches: int
    turns: int
    training: tuple[float, int]
    meta_steps: int
    train_tasks: int
    test_tasks: int
    seeds: int
    compile: bool


SIZES = {
    "smoke": Size(
        cases=((0.05, 10),), cost_cases=((0.05, 10),), few=True, snapshots=(0, 2), batches=1, turns=1,
        training=(0.05, 10), meta_steps=2, train_tasks=10, test_tasks=10, seeds=1, compile=False,
    ),
    "book": Size(
        cases=((0.05, 50),), cost_cases=((0.05, 50),), few=True, snapshots=(0, 50), batches=2, turns=3,
        training=(0.05, 50), meta_steps=50, train_tasks=100, test_tasks=50, seeds=1, compile=False,
    ),
    "full": Size(
        cases=((0.05, 50), (0.05, 10), (0.05, 100), (0.1, 25), (0.025, 100)), cost_cases=((0.05, 50),), few=False,
        snapshots=(0, 100, 600), batches=4, turns=3,
        training=(0.05, 50), meta_steps=600, train_tasks=100, test_tasks=100, seeds=3, compile=True,
    ),
}  # fmt: skip
TRAINED = tuple(training_methods(*SIZES["full"].training))  # the names of the training runs, the exact one first
KINDS = ("errors", "curvature", "costs", "training")


def cells(size: str, seed: int | None = None) -> list[Cell]:
    """All cells of a size, or those of a seed. One that the size does not have is treated as the first: it gets all cases."""
    wanted = SIZES[size]
    seeds = list(range(wanted.seeds)) if seed is None else [seed]
    first = 0 if seed is None or seed < wanted.seeds else seed

    def at(kind: str, s: int, cases: tuple[tuple[float, int], ...]) -> list[Cell]:
        return [Cell("tradeoff", kind, {"size": size, "inner_lr": lr, "steps": k}, s) for lr, k in cases]

    found = [Cell("tradeoff", "training", {"size": size, "method": name}, s) for s in seeds for name in TRAINED]
    for kind in ("errors", "curvature"):
        for s in seeds:
            found += at(kind, s, wanted.cases if s == first else wanted.cases[:1])
    return found + (at("costs", first, wanted.cost_cases) if first in seeds else [])
