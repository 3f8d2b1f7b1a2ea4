"""What one inner step does besides plain gradient descent: minibatches, weight decay, frozen parameters, clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Problem
from .tasks import Tasks


@dataclass(frozen=True, eq=False)
class InnerLoop:
    r"""Options of the inner loop. The adapted model follows :math:`-m\odot(\nabla L_\text{support}(u) + w u)`.

    Args:
        weight_decay: w, the weight of :math:`\frac w2\|u\|^2` in the support loss.
        mask: (P,), true where a parameter is adapted; the others keep theta's values (ANIL adapts the head alone).
        minibatch: support points in each step; ``None`` for all S. Step k uses row k of a schedule that is drawn once from
            ``seed``, the same for every task, so that the backward sweep replays exactly what the forward solve did.
        seed: of the minibatch schedule.
        clip_norm: shrink a task's gradient to at most this norm. Differentiable almost everywhere, so the discrete
            adjoint stays exact; the adjoint ODE of a clipped field has no symmetric Jacobian, and is refused.

    Raises:
        ValueError: a negative weight decay, a minibatch < 1 or a clipping norm that is not positive.
    """

    weight_decay: float = 0.0
    mask: Tensor | None = None
    minibatch: int | None = None
    seed: int = 0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, not {self.weight_decay}")
        if self.minibatch is not None and self.minibatch < 1:
            raise ValueError(f"minibatch must be at least 1 or None, not {self.minibatch}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None, not {self.clip_norm}")

    def slope(self, problem: Problem, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """du/dt (B, P) at ``u (B, P)`` for the points ``x, y (B, n, ...)``; differentiable where gradients are enabled."""
        slope = -problem.gradient(u, x, y, create_graph=torch.is_grad_enabled())[1]
        if self.weight_decay:
            slope = slope - self.weight_decay * u
        if self.mask is not None:
            slope = slope * self.mask
        if self.clip_norm is not None:
            norm = slope.square().sum(1, keepdim=True)  # (B, 1); the root of a zero gradient has no derivative
            slope = torch.where(
                norm > self.clip_norm**2, self.clip_norm * slope * norm.clamp(min=1e-300).rsqrt(), slope
            )
        return slope

    def schedule(self, steps: int, tasks: Tasks) -> Tensor | None:
        """Indices (K, minibatch) of the support points of each step, in reshuffled passes over the set; ``None`` for all.

        Raises:
            ValueError: the minibatch is larger than the support set.
        """
        if self.minibatch is None:
            return None
        points = tasks.support_x.shape[1]
        if self.minibatch > points:
            raise ValueError(f"a minibatch of {self.minibatch} is larger than the support set of {points} points")
        generator = torch.Generator().manual_seed(self.seed)
        per_pass = points // self.minibatch
        passes = [
            torch.randperm(points, generator=generator)[: per_pass * self.minibatch]
            for _ in range(math.ceil(steps / per_pass))
        ]
        return torch.cat(passes).view(-1, self.minibatch)[:steps].to(tasks.support_x.device)
