"""Which methods, how many inner steps, how the steps run, and the cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

from amaml_core import AMAML, FOMAML, IMAML, MAML, Checkpoint, Euler, GradientDescent, Reptile
from amaml_core.meta import Method

from ..common.cells import Cell

INNER_LR = 0.01
BATCH = 5
SHOTS = 100
Mode = Literal["plain", "traced", "compiled"]
MODES: tuple[Mode, ...] = ("plain", "traced", "compiled")

METHODS: dict[str, Callable[[int], Method]] = {
    "MAML": lambda k: MAML(INNER_LR, k),
    "A-MAML, Store": lambda k: AMAML(INNER_LR * k, Euler(k)),
    "A-MAML, Checkpoint": lambda k: AMAML(INNER_LR * k, Euler(k), Checkpoint()),
    "iMAML": lambda k: IMAML(GradientDescent(INNER_LR, k), regularization=2.0, cg_steps=5, on_negative_curvature="truncate"),
    "FOMAML": lambda k: FOMAML(INNER_LR, k),
    "Reptile": lambda k: Reptile(INNER_LR, k),
}
LONG = ("A-MAML, Store", "A-MAML, Checkpoint")  # the methods that are also taken to thousands of steps
SETS = {"all": tuple(METHODS), "long": LONG}
PUBLISHED_STEPS = (1, 10, 20, 50, 100, 200, 300, 500)


@dataclass(frozen=True, kw_only=True)
class Load:
    """A meta step of B ``tasks`` in K inner ``steps``, of a network with two hidden layers of ``width`` units."""

    tasks: int
    steps: int
    width: int

    @property
    def parameters(self) -> int:
        """P of the network."""
        return self.width**2 + 5 * self.width + 1


LARGE = Load(tasks=16, steps=40, width=128)  # in which the ranks are compared: so many tasks for each, or four times as many in all
MANY = (1, 2, 4, 8, 16, 32, 64)  # ranks for which the cost model is asked


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        steps: numbers of inner steps K for all methods.
        long_steps: further ones for ``LONG`` alone.
        modes: how the inner steps run; ``plain`` is left out of the further ones.
        turns: measured turns of every method.
        fitted, held_out: tasks, inner steps and width of the meta steps of which the cost model is made, and of those that test it.
        ranks: in how many processes each of these is measured.
    """

    steps: tuple[int, ...]
    long_steps: tuple[int, ...]
    modes: tuple[Mode, ...]
    turns: int
    fitted: tuple[Load, ...]
    held_out: tuple[Load, ...]
    ranks: tuple[int, ...] = (1, 2)

    def turns_at(self, steps: int) -> int:
        """Measured turns at so many steps: fewer where they take long."""
        return min(self.turns, 9 if steps <= 50 else 5 if steps <= 200 else 3)


def loads(tasks: tuple[int, ...], steps: tuple[int, ...], widths: tuple[int, ...]) -> tuple[Load, ...]:
    """All combinations."""
    return tuple(Load(tasks=b, steps=k, width=w) for b, k, w in product(tasks, steps, widths))


SIZES = {
    "smoke": Size(steps=(1, 4), long_steps=(8,), modes=("plain", "traced"), turns=1,
                  fitted=loads((2, 8), (2, 8), (8, 32)), held_out=loads((4,), (16,), (32,))),
    "book": Size(steps=(1, 10, 50), long_steps=(200,), modes=("plain", "traced"), turns=3,
                 fitted=loads((4, 16), (5, 20), (16, 64)), held_out=loads((8, 32), (10,), (32, 64))),
    "full": Size(steps=PUBLISHED_STEPS, long_steps=(1000, 2000, 5000), modes=MODES, turns=9,
                 fitted=loads((4, 16, 64), (10, 40), (32, 128)),
                 held_out=loads((32,), (20,), (32, 64)) + loads((32,), (40,), (128,)) + loads((128,), (10,), (32,))
                 + loads((16,), (80,), (128,)) + loads((8,), (20,), (256,))),
}  # fmt: skip


def cells(size: str, seed: int | None = None) -> list[Cell]:
    """All cells of a size: those on a CPU, and those on a GPU if this machine has one."""
    wanted, seed = SIZES[size], seed or 0
    counts = [("all", k) for k in wanted.steps] + [("long", k) for k in wanted.long_steps]
    found = [Cell("efficiency", "bytes", {"size": size, "methods": names, "steps": k}, seed) for names, k in counts]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        found += [
            Cell("efficiency", "seconds", {"size": size, "device": device, "mode": mode, "methods": names, "steps": k}, seed)
            for mode in wanted.modes
            for names, k in counts
            if (names, mode) != ("long", "plain")
        ]
        found += [
            Cell("efficiency", "scaling", {"size": size, "device": device, "ranks": ranks}, seed)
            for ranks in wanted.ranks
            if device == "cpu" or ranks <= torch.cuda.device_count()
        ]
    return found
