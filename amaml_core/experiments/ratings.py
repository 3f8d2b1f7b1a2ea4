"""Collaborative filtering: every user is a task, every method predicts held-out ratings after adapting to a few.

Chapter "Collaborative filtering, first look" shows these results. Also a program:
``python -m amaml_core.experiments.ratings --profile full --out results/full/ratings``.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from .. import AMAML, FOMAML, IMAML, MAML, Euler, GradientDescent, Problem, Reptile, evaluate, fit, metrics
from ..datasets import RatingData, load_ratings
from ..meta import Method
from ..profiles import RATINGS, RatingsSize, check_profile
from ..samplers import RatingSampler, RatingSplits, split_users
from ..tasks import Tasks
from .cells import Cell, program

METHODS = ("A-MAML", "iMAML", "MAML", "FOMAML", "Reptile")
SHOTS = ((10, 15), (20, 30))
BATCH = 5


@dataclass(frozen=True)
class Setting:
    """What all methods of a comparison share: the data, the sizes, and the learning rates of both loops."""

    data: str = "jester-1"
    support: int = 10
    query: int = 15
    inner_lr: float = 0.1
    meta_lr: float = 1e-3
    regularization: float = 1.0


def network(items: int) -> nn.Module:
    """The paper's network: ``items`` inputs, two hidden layers of 40 tanh units, one output."""
    return nn.Sequential(nn.Linear(items, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


def make_method(name: str, setting: Setting, size: RatingsSize) -> Method:
    """One of the five methods at the paper's number of inner steps: MAML takes a tenth of the others'."""
    lr, steps = setting.inner_lr, size.inner_steps
    return {
        "A-MAML": AMAML(horizon=lr * steps, solver=Euler(steps)),
        "iMAML": IMAML(
            GradientDescent(lr, steps), setting.regularization, cg_steps=5, on_negative_curvature="truncate"
        ),
        "MAML": MAML(lr, size.maml_steps),
        "FOMAML": FOMAML(lr, steps),
        "Reptile": Reptile(lr, steps),
    }[name]


def load(setting: Setting, size: RatingsSize, seed: int) -> tuple[RatingData, RatingSplits]:
    """The data and their split into training, validation and test users, which depends on the seed alone."""
    data = load_ratings(setting.data)
    generator = torch.Generator().manual_seed(1000 + seed)
    counts = (size.train_users, None, size.test_users)
    return data, split_users(data, generator, counts, d=100, min_items=setting.support + setting.query)


def test_tasks(splits: RatingSplits, setting: Setting, seed: int) -> Tasks:
    """One task for each test user; the same for every method."""
    sampler = RatingSampler(splits.test, setting.support, setting.query, BATCH)
    return sampler.all_tasks(torch.Generator().manual_seed(2000 + seed))


def train(
    name: str, setting: Setting, size: RatingsSize, splits: RatingSplits, seed: int, progress: bool = True
) -> tuple[Problem, Tensor]:
    """Meta-train one method on the training users: the problem and the trained initialisation."""
    torch_seeded = torch.Generator().manual_seed(seed)
    problem = Problem(seeded(network(splits.train.shape[1]), torch_seeded), nn.functional.mse_loss)
    sampler = RatingSampler(splits.train, setting.support, setting.query, BATCH)
    adam = partial(torch.optim.Adam, lr=setting.meta_lr)
    return problem, fit(
        make_method(name, setting, size), problem, sampler, size.meta_steps, adam, seed=seed, progress=progress
    ).theta


def seeded(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """PyTorch's default initialisation of linear and convolutional layers, drawn from a generator of our own."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return model


def bars(splits: RatingSplits, tasks: Tasks) -> pd.DataFrame:
    """What no network is needed for: RMSE (B,) of each user by the user's mean, the items' means, and a ridge regression.

    The ridge is a linear model on the same one-hot inputs, fitted to the user's support ratings around the items' means
    and shrunk with the weight 1: it says what the support ratings alone give, without learning to learn.
    """
    item_mean = splits.train.nanmean(0)  # (d,)
    item_mean = torch.where(item_mean.isnan(), splits.train.nanmean(), item_mean)
    base_support, base_query = (x @ item_mean[:, None] for x in (tasks.support_x, tasks.query_x))  # (B, n, 1)
    residual = tasks.support_y - base_support
    # One-hot inputs leave the ridge only its intercept on items the user has not rated.
    shift = residual.sum(1, keepdim=True) / (tasks.support_x.shape[1] + 1)  # (B, 1, 1)
    return pd.DataFrame(
        {
            "user mean": metrics.rmse(tasks.support_y.mean(1, keepdim=True).expand_as(tasks.query_y), tasks.query_y),
            "item means": metrics.rmse(base_query, tasks.query_y),
            "item means + ridge": metrics.rmse(base_query + shift, tasks.query_y),
        }
    )


def compare(profile: str, seed: int, setting: Setting = Setting(), methods: tuple[str, ...] = METHODS) -> pd.DataFrame:
    """Train and test the methods one after another: a tidy table of ``method``, ``task``, ``step``, ``support``, ``query``.

    Errors are root mean squared errors of standardised ratings, so 1 is the standard deviation of the training ratings.
    """
    size = RATINGS[check_profile(profile)]
    _, splits = load(setting, size, seed)
    tasks = test_tasks(splits, setting, seed)
    return pd.concat([_test(name, setting, size, splits, tasks, seed) for name in methods], ignore_index=True)


def _test(
    name: str, setting: Setting, size: RatingsSize, splits: RatingSplits, tasks: Tasks, seed: int, progress: bool = True
) -> pd.DataFrame:
    problem, theta = train(name, setting, size, splits, seed, progress)
    table = evaluate(make_method(name, setting, size), problem, theta, tasks, metrics.rmse, size.test_steps)
    table.insert(0, "method", name)
    return table


def trained_steps(method: str, size: RatingsSize) -> int:
    """The number of inner steps that a method was trained for."""
    return size.maml_steps if method == "MAML" else size.inner_steps


def cells(profile: str, seed: int | None = None) -> list[Cell]:
    """Method × data × shots × seed at a profile."""
    size = RATINGS[check_profile(profile)]
    return [
        Cell("ratings", {"profile": profile, "method": method, **asdict(Setting(data, k, m))}, s)
        for data in ("jester-1", "ml-100k", "ml-1m")
        for k, m in SHOTS
        for method in METHODS
        for s in (range(size.seeds) if seed is None else [seed])
    ]


def run(cell: Cell, scratch: Path) -> dict:
    """The figures of one cell: errors of each test user after each number of inner steps, and the simple bars."""
    settings = dict(cell.settings)
    size, name = RATINGS[settings.pop("profile")], settings.pop("method")
    setting = Setting(**settings)
    data, splits = load(setting, size, cell.seed)
    tasks = test_tasks(splits, setting, cell.seed)
    started = time.perf_counter()
    table = _test(name, setting, size, splits, tasks, cell.seed, progress=False)
    wide = table.pivot(index="step", columns="task", values="query")
    return {
        "data": data.description,
        "left_out": {part: count.left_out for part, count in splits.counts.items()},
        "steps": wide.index.tolist(),
        "rmse": wide.to_numpy().tolist(),
        "bars": {name: column.tolist() for name, column in bars(splits, tasks).items()},
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    program(__doc__, cells, run)
