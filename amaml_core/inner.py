"""What one inner step does besides plain gradient descent: minibatches, weight decay, frozen parameters, clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .settings import count, positive, tensor
from .tasks import Tasks


@dataclass(frozen=True, eq=False)
class InnerLoop:
    r"""Options of the inner loop. The adapted model follows :math:`-m\odot(\nabla L_\text{s}(u) + w u)`.

    Two of them are equal if their values are, masks included.

    Args:
        weight_decay: w, the weight of :math:`\frac w2\|u\|^2` in the support loss.
        mask: (P,), true where a parameter is adapted; the others keep theta's values, and still have a meta-gradient (ANIL adapts
            the head alone, and trains all). What must not be trained either is frozen in the model, by ``requires_grad=False``.
        minibatch: support points in each step; ``None`` for all S. Step k uses row k of a schedule that is drawn once from
            ``seed``, the same for every task, so that the backward sweep replays exactly what the forward solve did.
        seed: of the minibatch schedule.
        clip_norm: shrink a task's gradient to at most this norm. Differentiable almost everywhere, so the discrete
            adjoint stays exact; the adjoint ODE of a clipped field has no symmetric Jacobian, and is refused.

    Raises:
        ValueError: a negative weight decay, a mask that is not (P,) of true and false, a minibatch < 1 or a clipping norm that is
            not positive.

    >>> InnerLoop(mask=[True, False]) == InnerLoop(mask=torch.tensor([1, 0]))
    True
    """

    weight_decay: float = 0.0
    mask: Any = None  # kept as a boolean tensor
    minibatch: int | None = None
    seed: int = 0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        positive(self, "weight_decay", or_zero=True)
        count(self, "seed", least=0)
        if self.mask is not None:
            mask = tensor(self, "mask")
            if mask.ndim != 1 or not ((mask == 0) | (mask == 1)).all():
                raise ValueError(f"mask must be (P,), true or false for each parameter, not {tuple(mask.shape)} of {mask.dtype}")
            object.__setattr__(self, "mask", mask.bool())
        if self.minibatch is not None:
            if isinstance(self.minibatch, int) and self.minibatch < 1:
                raise ValueError(f"minibatch must be at least 1 or None, not {self.minibatch}")
            count(self, "minibatch")
        if self.clip_norm is not None:
            positive(self, "clip_norm")

    def _value(self) -> tuple:
        mask = None if self.mask is None else self.mask.cpu().numpy().tobytes()
        return self.weight_decay, mask, self.minibatch, self.seed, self.clip_norm

    def __eq__(self, other: object) -> bool:
        return self._value() == other._value() if isinstance(other, InnerLoop) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value())

    def slope(self, u: Tensor, gradient: Tensor, free: Tensor | None) -> Tensor:
        """du/dt (B, P) at ``u (B, P)``, from the gradient (B, P) of the support loss.

        Args:
            free: (P,), false where the model's parameters are frozen; ``None`` where none is.
        """
        slope = -gradient
        if self.weight_decay:
            slope = slope - self.weight_decay * (u if free is None else u * free)
        if self.mask is not None:
            slope = slope * self.mask.to(u.device)
        if self.clip_norm is not None:
            square = slope.double().square().sum(1, keepdim=True)  # (B, 1); in double precision, where it cannot overflow
            longer = square > self.clip_norm**2
            # The root of a zero gradient has no derivative, so it is not taken there, not even where it is not used.
            shrunk = (self.clip_norm * torch.where(longer, square, 1.0).rsqrt()).to(slope.dtype) * slope
            slope = torch.where(longer, shrunk, slope)
        return slope

    def schedule(self, steps: int, tasks: Tasks) -> Tensor | None:
        """Indices (K, minibatch) of the support points of each step, in reshuffled passes over the set; ``None`` for all.

        Raises:
            ValueError: the minibatch is larger than the support set.
        """
        if self.minibatch is None:
            return None
        points = tasks.shots
        if self.minibatch > points:
            raise ValueError(f"a minibatch of {self.minibatch} is larger than the support set of {points} points")
        generator = torch.Generator().manual_seed(self.seed)
        per_pass = points // self.minibatch
        passes = [
            torch.randperm(points, generator=generator)[: per_pass * self.minibatch] for _ in range(math.ceil(steps / per_pass))
        ]
        return torch.cat(passes).view(-1, self.minibatch)[:steps].to(tasks.device)
