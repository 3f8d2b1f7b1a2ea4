"""Comparing the speed of functions on a machine that does other things too, and counting what they ask of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode


def medians(
    functions: Mapping[str, Callable[[], object]], repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> pd.Series:
    """Median seconds of each function. The functions take turns, so that a slow moment of the machine meets all of them.

    Each is called once before, unmeasured. Work on a GPU is waited for.

    Args:
        functions: by name.
        repeats: measured calls of each.
        clock: seconds.

    Raises:
        ValueError: ``repeats`` < 1.
    """
    if repeats < 1:
        raise ValueError(f"medians needs repeats >= 1, not {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return pd.Series({name: statistics.median(values) for name, values in seconds.items()}, name="seconds")


def operations(function: Callable[[], object]) -> int:
    """How many array operations a function hands to PyTorch's backends, those of its derivatives included."""
    with _Counter() as counter:
        function()
    return counter.count


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))
