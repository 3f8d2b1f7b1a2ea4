"""The method as meta-training goes on: what of it is learned, and MAML++'s weights of the query loss."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .meta import Method


class Learned:
    """An entry of a method that is learned beside theta: its logarithm () or (K, G), on the CPU in double precision.

    Raises:
        ValueError: the method cannot learn it, or has no value to start from.
    """

    def __init__(self, method: Any, name: str) -> None:
        learnable = getattr(method, "learnable", {})
        if name not in learnable:
            raise ValueError(f"learn must be one of {tuple(learnable)} for {type(method).__name__}, not {name!r}")
        if method.fixed(name) or getattr(method, name) is None or callable(getattr(method, name)):
            raise ValueError(f"learn={name!r} needs a value to start from, and nothing that stands in its place: {method!r}")
        self.start, self.name, self.gradient = method, name, learnable[name]
        self.logarithm = torch.as_tensor(getattr(method, name), dtype=torch.float64).detach().cpu().log()

    def method(self, logarithm: Tensor | None = None, **more: Any) -> Method:
        """The method at the present value, or at another one."""
        logarithm = self.logarithm if logarithm is None else logarithm
        return replace(self.start, **{self.name: logarithm.detach().exp()}, **more)

    @property
    def number(self) -> dict[str, float]:
        """The present value for the history, if it is one number."""
        return {self.name: self.logarithm.exp().item()} if self.logarithm.ndim == 0 else {}

    def take(self, gradient: Tensor) -> None:
        """Take the gradient with respect to the entry, of any shape."""
        value = self.logarithm.detach().exp()
        self.logarithm.grad = value * gradient.to(value).view_as(value)  # d/d(log x) = x d/dx


def methods(method: Any, learned: Learned | None, multi_step: int) -> Callable[[int], Method]:
    """The method that a meta step, from 1, is taken with.

    Args:
        method: where all begins.
        learned: what of it is learned.
        multi_step: over how many meta steps the query loss counts after each inner step, see :func:`multi_step_weights`.

    Raises:
        TypeError: ``multi_step`` is no integer.
        ValueError: it is negative, or the method has no weights to set, has set them, or knows no number of steps beforehand.
    """
    try:
        multi_step = operator.index(multi_step)
    except TypeError:
        raise TypeError(f"multi_step must be a whole number of meta steps, not {multi_step!r}") from None
    if multi_step < 0:
        raise ValueError(f"multi_step must be a number of meta steps >= 0, not {multi_step}")
    steps: Any = getattr(getattr(method, "solver", None), "steps", None) or getattr(method, "steps", None)
    if multi_step and (steps is None or getattr(method, "query_weights", method) is not None):
        raise ValueError(
            "multi_step sets the query_weights of a method that has a fixed number of inner steps and no weights yet, not of "
            f"{method!r}"
        )

    def at(number: int) -> Method:
        now: Any = method if learned is None else learned.method(sensitivities=True)
        if number > multi_step:
            return now
        return replace(now, query_weights=multi_step_weights(steps, (number - 1) / multi_step))

    at(1)  # what does not go together is refused here
    return at


def multi_step_weights(steps: int, progress: float) -> Tensor:
    """The weights (K,) of the query loss after each of K inner steps: 1/K each at ``progress`` 0, (0, ..., 0, 1) at 1.

    Reference: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019.

    >>> multi_step_weights(2, 0.0), multi_step_weights(2, 0.5)
    (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([0.2500, 0.7500], dtype=torch.float64))
    """
    weights = torch.full((steps,), (1 - progress) / steps, dtype=torch.float64)
    weights[-1] += progress
    return weights
