"""Batched conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Solution(NamedTuple):
    """What conjugate gradients reached.

    Attributes:
        x: (B, P).
        residual: relative residuals ``|b - A x| / |b|`` (B,).
        indefinite: (B,), true where a direction of zero or negative curvature was met, so that A is not positive definite;
            ``x`` is then what had been reached before (for the first direction: b itself, steepest descent).
    """

    x: Tensor
    residual: Tensor
    indefinite: Tensor


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float = 0.0, fixed: bool = False
) -> Solution:
    """Solve ``A x = b`` for B independent symmetric positive definite systems at once, starting from zero.

    A system that has reached its tolerance, that is solved exactly, or that proves indefinite is left alone while the
    others go on. One that meets a number that is none, or whose right-hand side is too large to be squared, gives NaN.

    Args:
        operator: ``v (B, P) -> A v (B, P)``; row b of the result depends on row b of ``v`` alone.
        b: right-hand sides (B, P).
        steps: the largest number of iterations, each with one product ``A v``.
        tolerance: stop a system at a relative residual of this size or less.
        fixed: make all iterations, even when nothing is left to do; so the operations depend on no value.

    References: Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952; Steihaug, The conjugate
    gradient method and trust regions in large scale optimization, 1983 (the stop at negative curvature).

    >>> a = torch.tensor([2.0, 4.0])  # a diagonal matrix
    >>> conjugate_gradients(lambda v: a * v, torch.ones(1, 2), steps=2).x
    tensor([[0.5000, 0.2500]])
    """
    x = torch.zeros_like(b)
    residual, direction = b, b
    size = norm = b.square().sum(1)  # (B,)
    indefinite, lost = torch.zeros_like(size, dtype=torch.bool), ~norm.isfinite()
    for iteration in range(steps):
        active = (size > tolerance**2 * norm) & ~indefinite & ~lost  # (B,)
        if not (fixed or active.any()):
            break
        product = operator(direction)
        curvature = (direction * product).sum(1)  # (B,)
        bad, unknown = active & (curvature <= 0), active & curvature.isnan()
        indefinite, lost, active = indefinite | bad, lost | unknown, active & ~bad & ~unknown
        if iteration == 0:
            x = torch.where(bad[:, None], b, x)
        # A zero where a system is done or its direction has vanished: no division 0/0, and no further change.
        rate = torch.where(active, size / torch.where(active, curvature, 1), 0)[:, None]
        x = x + rate * direction
        residual = torch.where(active[:, None], residual - rate * product, residual)
        new_size = residual.square().sum(1)
        direction = residual + (new_size / torch.where(active, size, 1))[:, None] * direction
        size = new_size
    left = torch.where(norm > 0, size / torch.where(norm > 0, norm, 1), 0).sqrt()  # (B,)
    return Solution(torch.where(lost[:, None], torch.nan, x), torch.where(lost, torch.nan, left), indefinite)
