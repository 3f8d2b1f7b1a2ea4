"""Errors of each task, and their mean with an interval over tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Normaliser = Literal["standard deviation", "range", "norm"]


def _tensors(*values: object) -> None:
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"this metric compares a tensor with a tensor, not a {type(value).__name__}: write one of your own, "
                "metric(prediction, target) -> (B,), that takes what it needs from it"
            )


def rmse(prediction: Tensor, target: Tensor) -> Tensor:
    """Root mean squared error of each task: ``(B, n, ...)`` twice -> ``(B,)``.

    Raises:
        TypeError: a tuple or a dictionary of tensors: a metric gets predictions and targets as the model gives and the tasks have
            them, and for these :func:`amaml_core.evaluate` needs one of your own.
        ValueError: the shapes differ (broadcasting would silently compare every point with every other).

    >>> rmse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([2.2361])
    """
    _tensors(prediction, target)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have the same shape")
    return (prediction - target).square().flatten(1).mean(1).sqrt()


def nrmse(prediction: Tensor, target: Tensor, normaliser: Normaliser) -> Tensor:
    r"""RMSE of each task over a scale of its targets ``(B,)``. Papers mean different scales, so there is no default.

    Args:
        prediction: (B, n, ...).
        target: (B, n, ...).
        normaliser: ``"standard deviation"`` (of the n targets around their mean, divisor n: a constant prediction of the mean
            scores 1), ``"range"`` (max - min), or ``"norm"`` (root mean square: the score is :math:`\|\hat y-y\|_2/\|y\|_2`).

    Raises:
        TypeError: as :func:`rmse`.
        ValueError: an unknown normaliser, or targets whose scale is zero.

    >>> target = torch.tensor([[0.0, 2.0]])
    >>> nrmse(torch.ones(1, 2), target, "standard deviation"), nrmse(torch.ones(1, 2), target, "range")
    (tensor([1.]), tensor([0.5000]))
    """
    _tensors(prediction, target)
    y = target.flatten(1)  # (B, n)
    scales = {
        "standard deviation": lambda: y.std(1, correction=0),
        "range": lambda: y.amax(1) - y.amin(1),
        "norm": lambda: y.square().mean(1).sqrt(),
    }
    if normaliser not in scales:
        raise ValueError(f"normaliser must be one of {sorted(scales)}, not {normaliser!r}")
    scale = scales[normaliser]()
    if (scale == 0).any():
        tasks = (scale == 0).nonzero().flatten().tolist()
        raise ValueError(f"the {normaliser} of the targets is zero for tasks {tasks}; their normalised error is undefined")
    return rmse(prediction, target) / scale


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of points whose largest logit is the target class: ``(B, n, classes)`` and ``(B, n)`` -> ``(B,)``; NaN if a logit is.

    Raises:
        TypeError: as :func:`rmse`.
        ValueError: the shapes do not fit.

    >>> accuracy(torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]), torch.tensor([[1, 1]]))
    tensor([0.5000], dtype=torch.float64)
    """
    _tensors(prediction, target)
    if prediction.shape[:-1] != target.shape:
        raise ValueError(f"logits {tuple(prediction.shape)} do not fit class labels {tuple(target.shape)}")
    lost = prediction.flatten(1).isnan().any(1)  # (B,); the largest of what is no number would be class 0
    return (prediction.argmax(-1) == target).double().mean(1).masked_fill(lost, torch.nan)


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % interval, over ``count`` tasks.

    >>> print(Interval(0.5, 0.02, 100))
    0.500 ± 0.020
    """

    mean: float
    half_width: float
    count: int  # type: ignore[assignment]  # in place of the tuple's own

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def interval(values: Iterable[float]) -> Interval:
    r"""Mean over tasks with its normal 95 % interval, :math:`1.96\,s/\sqrt n` (the convention of few-shot papers).

    Raises:
        ValueError: fewer than two values, or values that are not finite.

    >>> print(interval([1.0, 2.0, 3.0]))
    2.000 ± 1.132
    """
    x = torch.as_tensor(list(values), dtype=torch.float64)
    if len(x) < 2 or not x.isfinite().all():
        raise ValueError(f"an interval needs at least two finite values, got {len(x)} with {int((~x.isfinite()).sum())} not finite")
    return Interval(x.mean().item(), 1.96 * x.std().item() / math.sqrt(len(x)), len(x))
