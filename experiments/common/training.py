"""How the evaluations train: generators for every purpose, initial networks, and meta-training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amaml_core import AMAML, MAML, Euler, Problem, fit
from amaml_core.meta import Method

# What a seed is added to, so that no two purposes share their draws.
OFFSETS = {
    "model": 0, "data": 1000, "test": 2000, "validation": 3000, "audit training": 7000, "audit test": 8000, "recipe training": 5000, "recipe test": 6000,
}  # fmt: skip


def generator(purpose: str, seed: int) -> torch.Generator:
    """The generator of all draws for one of ``OFFSETS``."""
    return torch.Generator().manual_seed(OFFSETS[purpose] + seed)


def seeded(model: nn.Module, seed: int) -> nn.Module:
    """PyTorch's default initialisation of linear and convolutional layers, drawn from a generator of our own."""
    draws = generator("model", seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=draws)
    return model


def network(inputs: int, width: int = 32) -> nn.Module:
    """The paper's network: two hidden layers of tanh units, 32 for functions and 40 for ratings, one output."""
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error, as in the released code."""
    return 0.5 * (prediction - target).square().mean()


def by_adjoint(method: Method) -> Method:
    """MAML by the adjoint of its steps: the same meta-gradient to rounding, and compiled where unrolling is not."""
    return AMAML(method.lr * method.steps, Euler(method.steps)) if isinstance(method, MAML) else method


def meta_train(
    method: Method, problem: Problem, sampler: Any, updates: int, lr: float, seed: int, theta: Tensor,
    checkpoint: Path | None = None, progress: bool = False, outer: type[torch.optim.Optimizer] = torch.optim.Adam, **options: Any,
) -> Tensor:  # fmt: skip
    """The trained theta (P,), after so many updates of the outer optimiser on the sampler's tasks; ``options`` are those of
    :func:`amaml_core.fit`.

    Raises:
        DivergenceError: an update is not finite.
    """
    optimiser = partial(outer, lr=lr)
    return fit(
        by_adjoint(method), problem, sampler, updates, optimiser, checkpoint, seed, theta=theta, progress=progress, **options
    ).theta
