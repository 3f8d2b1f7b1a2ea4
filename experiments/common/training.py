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
    "model": 0, "data": 1000, "test": 2000, "validation": 3000, "audit training": 7000, "audit test": 8000,
    "recipe training": 5000, "recipe test": 6000,
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


def image_network(filters: int, way: int, channels: int = 1, pooled: bool = False) -> nn.Module:
    """Four blocks of a 3 × 3 convolution, batch norm and ReLU that halve the image, and a linear layer.

    The blocks halve by a stride of 2, and the linear layer sees the mean over space, as MAML does for Omniglot; or
    ``pooled``, by max-pooling, and the linear layer sees all 5 × 5 places, as MAML does for mini-ImageNet's 84 × 84 pixels.

    Batch norm uses the statistics of the batch it is given, in training and in test alike: a running average would carry
    information from one task to the next.
    """
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [
            nn.Conv2d(channels, filters, 3, stride=1 if pooled else 2, padding=1),
            nn.BatchNorm2d(filters, track_running_stats=False),
            nn.ReLU(),
            *([nn.MaxPool2d(2)] if pooled else []),
        ]
        channels = filters
    if pooled:
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(25 * filters, way))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, way))


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
