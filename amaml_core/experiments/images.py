"""Few-shot images: N-way 1-shot characters, classified by a small convolutional network that adapts in a few steps.

Chapter "Few-shot characters, first look" shows these results; module ``images_full`` has all methods and the paper's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from .. import AMAML, FOMAML, MAML, Euler, Problem, evaluate, fit, metrics
from ..datasets import ImageData, load_images
from ..meta import Method
from ..samplers import ImageSampler, split_classes
from ..tasks import Tasks
from ..training import FitResult
from .profiles import IMAGES, ImagesSize, check_profile
from .ratings import seeded

METHODS = ("A-MAML", "MAML", "FOMAML")
TEST_STEPS = (0, 1, 3, 5, 10)


@dataclass(frozen=True)
class Setting:
    """What all methods of a comparison share."""

    inner_lr: float = 0.1
    inner_steps: int = 5
    meta_lr: float = 1e-3
    batch: int = 4
    query: int = 5


def network(filters: int, way: int, channels: int = 1, pooled: bool = False) -> nn.Module:
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


def make_method(name: str, setting: Setting) -> Method:
    """A-MAML at the horizon that MAML's steps reach, with Euler steps of MAML's size."""
    lr, steps = setting.inner_lr, setting.inner_steps
    return {"A-MAML": AMAML(lr * steps, Euler(steps)), "MAML": MAML(lr, steps), "FOMAML": FOMAML(lr, steps)}[name]


def samplers(setting: Setting, size: ImagesSize, seed: int) -> tuple[ImageData, ImageSampler, ImageSampler]:
    """The data, the sampler of training tasks, and that of test tasks with characters never seen in training.

    Omniglot's usual split: 1,200 characters to train with, each also turned by 90, 180 and 270 degrees as further classes,
    and 423 to test with.
    """
    data = load_images("omniglot", stand_in_classes=size.stand_in_classes)
    classes = len(data.images)
    split = split_classes(classes, torch.Generator().manual_seed(1000 + seed), train=classes * 1200 // 1623)
    make = partial(ImageSampler, data.images, size.way, 1, setting.query, rotations=True)
    return data, make(batch=setting.batch, classes=split.train), make(batch=size.test_tasks, classes=split.test)


def test_tasks(sampler: ImageSampler, seed: int) -> Tasks:
    """The test tasks, the same for every method."""
    return sampler(torch.Generator().manual_seed(2000 + seed))


def train(
    name: str,
    setting: Setting,
    size: ImagesSize,
    sampler: ImageSampler,
    seed: int,
) -> tuple[Problem, FitResult]:
    """Meta-train one method."""
    model = seeded(network(size.filters, size.way), torch.Generator().manual_seed(seed))
    problem = Problem(model, nn.functional.cross_entropy)
    adam = partial(torch.optim.Adam, lr=setting.meta_lr)
    return problem, fit(make_method(name, setting), problem, sampler, size.meta_steps, adam, seed=seed)


def test(name: str, setting: Setting, problem: Problem, theta: Tensor, tasks: Tasks) -> pd.DataFrame:
    """Accuracy on each test task after each number of inner steps; in chunks of tasks, which bounds the memory."""
    problem = Problem(problem.model, problem.loss, chunk_size=25)
    table = evaluate(make_method(name, setting), problem, theta, tasks, metrics.accuracy, TEST_STEPS)
    table.insert(0, "method", name)
    return table


def compare(
    profile: str, seed: int, setting: Setting = Setting(), methods: tuple[str, ...] = METHODS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test the methods one after another.

    Returns:
        A tidy table of accuracies (``method``, ``task``, ``step``, ``support``, ``query``), and the training histories
        (``method``, ``meta_step``, ``query_loss``, ``gradient_norm``).
    """
    size = IMAGES[check_profile(profile)]
    _, training, testing = samplers(setting, size, seed)
    tasks = test_tasks(testing, seed)
    tables, histories = [], []
    for name in methods:
        problem, result = train(name, setting, size, training, seed)
        tables.append(test(name, setting, problem, result.theta, tasks))
        histories.append(result.history.assign(method=name))
    return pd.concat(tables, ignore_index=True), pd.concat(histories, ignore_index=True)
