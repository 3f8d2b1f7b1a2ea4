"""Batched conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Solve ``A x = b`` for B independent symmetric positive definite systems at once, starting from zero.

    A system that has reached its tolerance, or that is solved exactly, is left alone while the others go on.

    Args:
        operator: ``v (B, P) -> A v (B, P)``; row b of the result depends on row b of ``v`` alone.
        b: right-hand sides (B, P).
        steps: the largest number of iterations, each with one product ``A v``.
        tolerance: stop a system at a relative residual ``|b - A x| / |b|`` of this size or less.

    Returns:
        ``x (B, P)`` and the relative residuals ``(B,)``.

    Reference: Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
    """
    x = torch.zeros_like(b)
    residual, direction = b, b
    size = b.square().sum(1)  # (B,)
    goal = tolerance**2 * size
    for _ in range(steps):
        active = size > goal  # (B,)
        if not active.any():
            break
        product = operator(direction)
        curvature = (direction * product).sum(1)  # (B,)
        # A zero where a system is done or its direction has vanished: no division 0/0, and no further change.
        rate = torch.where(active, size / torch.where(active, curvature, 1), 0)[:, None]
        x = x + rate * direction
        residual = residual - rate * product
        new_size = residual.square().sum(1)
        direction = residual + (new_size / torch.where(active, size, 1))[:, None] * direction
        size = new_size
    norm = b.square().sum(1)
    return x, torch.where(norm > 0, size / torch.where(norm > 0, norm, 1), 0).sqrt()
