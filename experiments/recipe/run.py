"""Training by the released recipe, and fitting new functions by Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from amaml_core import Problem, Tasks, evaluate, metrics
from amaml_core.meta import Method, Pullback
from amaml_core.samplers import PoolSampler, Standardisation, make_function_tasks

from ..common.cells import Cell, live_rows
from ..common.training import generator, loss, meta_train, network, seeded
from ..synthetic.settings import TEST_ADAM, Data
from .settings import BATCH, META_LR, POINTS, RATES, SIZES, UNTRAINED, Setting, Size, cells, make_method


def proximal(u: Tensor, theta: Tensor, phi: Tensor | None) -> Tensor:
    """Half the squared distance from theta: what the recipe adds to the support loss."""
    return 0.5 * (u - theta).square().sum()


@dataclass(frozen=True)
class WithOuterTerm:
    r"""A method whose query loss has :math:`\frac\mu2\|u-\theta\|^2` added: :math:`\mu(u-\theta)` is pulled back along with the
    query gradient, and taken away where theta enters directly."""

    method: Method
    weight: float

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        adapted, pullback = self.method(problem, theta, tasks)
        moved = self.weight * (adapted - theta)  # (B, P)
        return adapted, Pullback(lambda gradient: self._run(pullback, gradient, moved))

    @staticmethod
    def _run(pullback: Pullback, gradient: Tensor, moved: Tensor):
        pulled, stats = pullback.run(gradient + moved)
        return pulled - moved, stats

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One step of the method's own inner loop."""
        return self.method.inner_step(problem, theta, tasks)


@cache
def make_problem(weight: float, compile: bool) -> Problem:
    """The network in double precision, its loss, and the proximal term; one for all cells of a process."""
    regularizer = {0.0: None, 1.0: proximal}[weight]
    return Problem(network(2).double(), loss, regularizer=regularizer, compile=compile, trace_after=0)


@dataclass(frozen=True)
class Pools:
    """Functions to train on, each with ``POINTS`` support and query points, and new ones to test on, in standardised units."""

    train: Tasks
    test: Tasks


def load(family: str, shots: int, functions: int, seed: int) -> Pools:
    """Training and test functions, standardised by the training functions alone; they depend on the seed, not on the method."""
    formula = Data(family, "released").functions()
    train = make_function_tasks(formula, functions, POINTS, POINTS, generator("recipe training", seed), torch.float64)
    test = make_function_tasks(formula, functions, shots, shots, generator("recipe test", seed), torch.float64)
    standardisation = Standardisation.fit(train)
    return Pools(standardisation.apply(train), standardisation.apply(test))


def train(setting: Setting, size: Size, data: Pools, seed: int) -> dict[int, Tensor]:
    """The initialisations theta (P,) after so many updates; where nothing is trained, the initial one after none."""
    theta = Problem(seeded(network(2), seed).double(), loss).initial_parameters()
    if setting.method == UNTRAINED:
        return {0: theta}
    method, found = WithOuterTerm(make_method(setting), setting.weight), {}

    def keep(step) -> None:
        if step.meta_step in size.snapshots:
            found[step.meta_step] = step.theta

    # iMAML's inner loss has its own proximal term of the same weight.
    weight = 0.0 if setting.method == "iMAML" else setting.weight
    outer, lr = {"SGD": (torch.optim.SGD, META_LR), "Adam": (torch.optim.Adam, META_LR / 10)}[setting.outer]
    sampler = PoolSampler(data.train, BATCH, setting.shots, setting.shots)
    meta_train(
        method, make_problem(weight, size.compile), sampler, size.snapshots[-1], lr, seed, theta, outer=outer, callbacks=[keep]
    )
    return found


def curves(setting: Setting, size: Size, seed: int) -> pd.DataFrame:
    """Train, and follow the errors of new functions while Adam fits them.

    Returns:
        For each number of ``updates``, Adam ``rate`` (at the end of training all), ``step`` (epoch) and ``set`` (``support`` or
        ``held-out``): the ``mean`` over functions of the root mean squared error, in standard deviations of all training targets,
        and its standard error ``se``.
    """
    data = load(setting.family, setting.shots, size.functions, seed)
    steps = tuple(range(0, size.epochs + 1, size.every))
    parts = []
    for updates, theta in train(setting, size, data, seed).items():
        for rate in RATES if updates in (0, size.snapshots[-1]) else RATES[:1]:
            found = evaluate(replace(TEST_ADAM, lr=rate), make_problem(0.0, False), theta, data.test, metrics.rmse, steps)
            groups = found.rename(columns={"query": "held-out"}).groupby("step")[["support", "held-out"]].agg(["mean", "sem"])
            wide = groups.stack(0, future_stack=True).rename_axis(["step", "set"]).reset_index().rename(columns={"sem": "se"})
            parts.append(wide.assign(updates=updates, rate=rate))
    table = pd.concat(parts, ignore_index=True)[["updates", "rate", "set", "step", "mean", "se"]]
    return table.round({"mean": 5, "se": 5})


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of one cell."""
    wanted = dict(cell.settings)
    size = SIZES[wanted.pop("size")]
    return curves(Setting(**wanted), size, cell.seed)


def live(
    size: str, seed: int, methods: tuple[str, ...] = ("A-MAML", "FOMAML", UNTRAINED), family: str = "cosmixture"
) -> pd.DataFrame:
    """The curves of some methods on one family with 50 shots under the recipe, here and now."""
    chosen = [
        c
        for c in cells(size, seed)
        if c.settings["method"] in methods and (c.settings["family"], c.settings["shots"]) == (family, 50)
        if (c.settings["weight"], c.settings["steps"], c.settings["outer"]) == (1.0, 50, "SGD")
    ]
    return live_rows(chosen)["curves"]
