"""Tasks, networks and the meta-training of a row: with a learning curve, a limit of time, and a checkpoint to go on from."""

from __future__ import annotations

import ctypes
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amaml_core import DivergenceError, Problem, StopTraining, adapt, fit, metrics
from amaml_core.datasets import load_images
from amaml_core.loop import MetaStep
from amaml_core.meta import Method
from amaml_core.records import write_beside
from amaml_core.samplers import ImageSampler, split_classes
from amaml_core.strict import digest, parse
from amaml_core.tasks import Tasks
from amaml_core.training import FitResult

from ..common.training import by_adjoint, generator, image_network, seeded
from .settings import HEAD, META_LR, Recipe, Size, make_method

SAVE_EVERY_SECONDS = 30.0  # as fit saves its checkpoint


@dataclass(frozen=True)
class Samplers:
    """Tasks for training, validation and test, of classes that do not overlap, and what the data are."""

    train: ImageSampler
    validation: ImageSampler | None  # where it is needed
    test: ImageSampler
    description: str


def drawn(row: str, size: Size) -> tuple[int, int]:
    """Images of a class in the support and in the query set of a row's training; Reptile has no query loss, and as many in all."""
    return (1 + size.query, 1) if row == "Reptile" else (1, size.query)


def samplers(row: str, size: Size, recipe: Recipe, seed: int, device: torch.device | str = "cpu") -> Samplers:
    """The samplers of a row.

    Omniglot: 1,200 characters to train with, of which 100 are for validation where that is needed, 423 to test with,
    alphabets mixed, and every character also turned by 90, 180 and 270 degrees. mini-ImageNet: its own three parts. Reptile has
    no query loss; it trains on as many drawings as the others have in both sets, all of them in the support set, as its authors do.

    Raises:
        FileNotFoundError: the data are not prepared, and the size allows no stand-in.
    """
    if size.data == "omniglot":
        found = load_images("omniglot", allow_stand_in=size.stand_in > 0, stand_in_classes=size.stand_in)
        classes = len(found.images)
        held_out = classes * 100 // 1623 if size.validates else 0
        split = split_classes(classes, generator("data", seed), classes * 1200 // 1623, held_out)
        images = torch.from_numpy(found.images.copy()).to(device)
        parts = [(images, chosen) for chosen in (split.train, split.validation, split.test)]
    else:
        loaded = [load_images(size.data, part, allow_stand_in=size.stand_in > 0) for part in ("train", "val", "test")]
        found = loaded[0]
        parts = [(torch.from_numpy(part.images.copy()).to(device), None) for part in loaded]
    turned = size.data == "omniglot"

    def make(part: int, shot: int, query: int, batch: int) -> ImageSampler:
        images, classes = parts[part]
        return ImageSampler(images, size.way, shot, query, batch, rotations=turned, classes=classes)

    return Samplers(
        make(0, *drawn(row, size), recipe.batch or size.batch),
        make(1, 1, size.query, size.validation_tasks) if size.validates else None,
        make(2, 1, size.query, size.test_tasks),
        found.description,
    )


def make_problem(size: Size, seed: int, device: torch.device | str = "cpu") -> Problem:
    """The network of a size with cross entropy. On a GPU, where its steps are captured and replayed, as many tasks are handled at
    once as fit any memory; on a CPU, where a network is large, one."""
    device = torch.device(device)
    model = seeded(image_network(size.filters, size.way, 1 if size.data == "omniglot" else 3, size.pooled), seed)
    chunk = 1 if size.large and device.type == "cpu" else 25
    return Problem(model.to(device), nn.functional.cross_entropy, chunk_size=chunk)


@cache
def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the rest of the process. By default it gives large tensors back to the system, and
    convolutions spend much of their time on getting them anew. Says whether the library could be told (glibc alone can)."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    no_mapping, never_trim = set_option(-4, 0), set_option(-1, 2**31 - 1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
    return bool(no_mapping and never_trim)


def adapt_all(method: Method, problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> Tensor:
    """What :func:`amaml_core.adapt` gives, refused where it is not finite.

    Raises:
        DivergenceError: the parameters of a task are not finite.
    """
    u = adapt(method, problem, theta, tasks, steps)
    if lost := int((~u.isfinite().all(1)).sum()):
        raise DivergenceError(f"the inner loop diverged on {lost} of {len(tasks)} tasks within {steps} steps")
    return u


@torch.no_grad()
def validate(method: Method, problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> Tensor:
    """Accuracy (B,) after so many inner steps, with transduction.

    Raises:
        DivergenceError: as :func:`adapt_all`.
    """
    u = adapt_all(method, problem, theta, tasks, steps)
    return metrics.accuracy(problem.predict(u, tasks.query_x), tasks.query_y)


class Watch:
    """Called after each meta update: it measures the points of the learning curve, and ends the training when its time is up.

    What it has seen stands in a file beside the checkpoint, so that the seconds and the points of an interrupted training count.

    Raises:
        ValueError: that file is damaged.

    Attributes:
        seconds: of training so far.
        points: ``(meta update, accuracies of the validation tasks, seconds of training until then)``.
        updates: after how many the training ends.
    """

    def __init__(self, size: Size, updates: int, measure: Callable[[Tensor], Tensor] | None, path: Path | None) -> None:
        self.seconds, self.points, self.updates = 0.0, [], updates
        self._size, self._measure, self._path = size, measure, path
        self._saved = time.monotonic()
        if path is not None and path.exists():
            try:
                self.seconds, self.points, self.updates = _seen(parse(path.read_bytes()), updates)
            except ValueError as error:
                raise ValueError(f"{path} is damaged: {error}; delete it and the checkpoint beside it") from None

    def __call__(self, step: MetaStep) -> None:
        """Take note of a meta update.

        Raises:
            StopTraining: the time is up.
        """
        number = step.meta_step
        self.seconds += step.seconds
        over = self._size.seconds is not None and self.seconds >= self._size.seconds
        if over:
            self.updates = number
        every = self._size.measure_every
        if due := every and (number % every == 0 or number == self.updates):
            earlier = [point for point in self.points if point[0] < number]  # after an interrupt some updates are taken again
            self.points = [*earlier, (number, self._measure(step.theta).tolist(), round(self.seconds, 3))]
        if due or over or time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
            self.save()
        if over:
            raise StopTraining

    def save(self) -> None:
        """Write what was seen. Points are written as they come: one that ``fit`` has passed is not measured again.

        A failure is a warning: there is a next time.
        """
        if self._path is not None:
            seen = [self.seconds, self.points, self.updates]
            self._saved = time.monotonic()
            try:
                write_beside(self._path, json.dumps([*seen, digest(seen)]).encode())
            except OSError as error:
                remedy = "training goes on and tries again; make room, or see to the folder"
                warnings.warn(f"the learning curve could not be written: {error}; {remedy}", RuntimeWarning, stacklevel=3)


def _seen(content: Any, updates: int) -> tuple[float, list, int]:
    """Seconds, points and the last update of a watch's file, whose digest is missing where it is of before there were any.

    Raises:
        ValueError: it holds anything else.
    """
    if not isinstance(content, list) or len(content) not in (3, 4):
        raise ValueError("it does not list seconds, points and updates")
    seen, written = content[:3], content[3:]
    if written not in ([], [digest(seen)]):
        raise ValueError("its digest is not that of its content")
    seconds, points, last = seen
    whole = type(last) is int and 0 < last <= updates and isinstance(points, list) and all(map(_is_point, points))
    if not whole or type(seconds) not in (int, float) or seconds < 0:
        raise ValueError("its seconds, points or updates are none")
    return seconds, points, last


def _is_point(point: Any) -> bool:
    """Whether it is a meta update, the accuracies then, and the seconds until then."""
    if not isinstance(point, list) or len(point) != 3 or type(point[0]) is not int or not isinstance(point[1], list):
        return False
    return all(type(number) in (int, float) for number in (*point[1], point[2]))


def train(
    row: str, problem: Problem, size: Size, recipe: Recipe, data: Samplers, seed: int, checkpoint: Path | None = None
) -> tuple[FitResult, Watch]:
    """Meta-train a row by its complete recipe.

    Args:
        checkpoint: where :func:`amaml_core.fit` keeps its state; a ``.json`` beside it is the watch's.

    Raises:
        DivergenceError: an update is not finite, or the inner loop on a validation task.
    """
    # On a GPU the steps of an adjoint are captured and replayed, and those that are unrolled are not.
    on_gpu, measure = next(problem.model.parameters()).is_cuda, None
    mask = adapted(row, problem.model)
    method = by_adjoint(make_method(row, recipe, mask=mask)) if on_gpu else make_method(row, recipe, size.large, mask)
    if size.measure_every:
        tasks, tested = data.validation(generator("validation", seed)), as_tested(row, recipe, problem.model)
        measure = lambda theta: validate(tested, problem, theta, tasks, recipe.test_steps)  # noqa: E731
    watch = Watch(size, recipe.updates, measure, checkpoint and checkpoint.with_suffix(".json"))
    optimizer, scheduler = partial(torch.optim.Adam, lr=META_LR), None
    if recipe.solver == "Adam":
        optimizer = partial(torch.optim.SGD, lr=1.0)
        scheduler = partial(torch.optim.lr_scheduler.PolynomialLR, total_iters=recipe.updates)
    try:
        found = fit(
            method, problem, data.train, watch.updates, optimizer, checkpoint, seed, progress=False, callbacks=[watch],
            scheduler=scheduler,
        )  # fmt: skip
    finally:
        watch.save()
    return found, watch


def adapted(row: str, model: nn.Module) -> Tensor | None:
    """The mask (P,) of what a row adapts: the linear layer, which comes last, where its name says so; ``None`` for all."""
    if not row.startswith(HEAD):
        return None
    *_, linear = model
    return torch.cat([torch.full((p.numel(),), p is linear.weight or p is linear.bias) for p in model.parameters()])


def as_tested(row: str, recipe: Recipe, model: nn.Module) -> Method:
    """The method as it adapts in tests: to all support images in every step."""
    return make_method(row, replace(recipe, minibatch=None), mask=adapted(row, model))
