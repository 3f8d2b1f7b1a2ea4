"""Batched random draws: everything random in the samplers comes through here, from an explicit generator."""

from __future__ import annotations

import operator

import torch
from torch import Tensor


def distinct(shape: tuple[int, ...], n: int, k: int, generator: torch.Generator) -> Tensor:
    """``k`` different numbers out of ``0 ... n-1``, in random order, for each entry of ``shape``: ``(*shape, k)``.

    The k largest of n random scores are a uniform draw without replacement, and so is their order.
    """
    return torch.rand(*shape, n, generator=generator, device=generator.device, dtype=torch.float64).topk(k).indices


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform draws from [low, high), always in float64, so that the same seed gives the same points in every dtype."""
    unit = torch.rand(*shape, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * unit


def check_sizes(**sizes: int) -> None:
    """Raises ValueError unless every named size is an integer of at least 1."""
    for name, size in sizes.items():
        try:
            number = 0 if isinstance(size, bool) else operator.index(size)
        except TypeError:
            number = 0
        if number < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {size!r}")
