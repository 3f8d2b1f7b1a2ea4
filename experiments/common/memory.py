"""The memory of a meta-gradient, counted in bytes of live tensors: exact, and the same on every machine.

Two counters watch one meta-gradient. The first sees the storage of every tensor that an operation creates, and when
it is freed. The second sees which of them the autograd graph saves for its backward pass. Neither asks the allocator or
the operating system, so there is no noise, no cache and no rounding: the counts are a property of the algorithm.

They stand in chapter "MAML and its memory".
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amaml_core.checks import check_theta
from amaml_core.meta import Method, meta_gradient
from amaml_core.problem import Problem
from amaml_core.tasks import Tasks


class Footprint(NamedTuple):
    """Bytes of one meta-gradient; what existed before it (theta, the tasks) is not counted.

    Attributes:
        graph: saved by the autograd graph that is alive between adaptation and pullback.
        held: all tensors alive at that moment: the graph, or the stored trajectory, and the adapted parameters.
        peak: the largest number of bytes alive at once, from the start to the pulled-back gradient.
    """

    graph: int
    held: int
    peak: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations under this mode create and that are still alive.

    Views share their storage and count once. Storages that come in as arguments from outside are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}  # storage -> bytes; 0 for a storage from outside

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, counted=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, counted=True)
        return result

    def owns(self, tensor: Tensor) -> bool:
        """Whether the tensor's storage was created under this mode."""
        return self._sizes.get(tensor.untyped_storage()._cdata, 0) > 0

    def _meet(self, tensor: Tensor, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counted else 0
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)  # a freed address may come back as another storage

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class GraphBytes(saved_tensors_hooks):
    """Counts the bytes of the distinct storages that autograd graphs hold, among those that ``live`` owns."""

    def __init__(self, live: LiveBytes) -> None:
        super().__init__(self._pack, lambda held: held.tensor)
        self.now = 0
        self._live = live
        self._uses: dict[int, int] = {}  # storage -> how many saved tensors lie in it

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> _Held:
        held = _Held(tensor.detach())
        if self._live.owns(tensor):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._uses:
                self._uses[key] = 0
                self.now += size
            self._uses[key] += 1
            weakref.finalize(held, self._release, key, size)  # the node that saved it is gone
        return held

    def _release(self, key: int, size: int) -> None:
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._uses[key]
            self.now -= size


class _Held:
    """A saved tensor, in an object of its own that can be watched until its node frees it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _tensors(tree: object) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@torch.no_grad()
def footprint(method: Method, problem: Problem, theta: Tensor, tasks: Tasks) -> Footprint:
    """Bytes that one meta-gradient of ``method`` takes, all tasks in one chunk.

    Args:
        method: for example ``MAML(lr=0.01, steps=50)``.
        problem: model and loss, eager.
        theta: initialisation (P,).
        tasks: B tasks.

    Raises:
        ValueError: a compiled problem (its kernels hide their tensors), or theta does not fit the model.
    """
    if problem.compile:
        raise ValueError("compiled kernels hide their tensors from the counters; measure with Problem(..., compile=False)")
    check_theta(problem, theta, tasks)
    problem = _traced_at_once(problem)
    meta_gradient(method, problem, theta, tasks)  # what is made once for these shapes, the traced steps, is no part of it
    with LiveBytes() as live, GraphBytes(live) as graph:
        adapted, pullback = method(problem, theta, tasks)
        graph_bytes, held = graph.now, live.now
        gradient = problem.gradient(adapted, *tasks.query)  # (B, P)
        pullback(gradient)
    return Footprint(graph_bytes, held, live.peak)


def _traced_at_once(problem: Problem) -> Problem:
    return replace(problem, trace_after=0) if problem.trace_after else problem


def growth(
    methods: Mapping[str, Callable[[int], Method]], problem: Problem, theta: Tensor, tasks: Tasks, steps: Iterable[int]
) -> pd.DataFrame:
    """The footprint of several methods over the number of inner steps.

    Args:
        methods: for each name, a function ``K -> method``, for example ``{"MAML": lambda k: MAML(0.01, k)}``.
        problem: model and loss, eager.
        theta: initialisation (P,).
        tasks: B tasks.
        steps: the numbers K of inner steps.

    Returns:
        A tidy table with the columns ``method``, ``steps``, ``graph``, ``held`` and ``peak`` (bytes).

    Raises:
        ValueError: as :func:`footprint`.
    """
    steps, problem = list(steps), _traced_at_once(problem)  # whose traces serve all numbers of steps
    rows = [
        {"method": name, "steps": k} | footprint(build(k), problem, theta, tasks)._asdict()
        for name, build in methods.items()
        for k in steps
    ]
    return pd.DataFrame(rows)


def bytes_per_step(table: pd.DataFrame, column: str = "peak") -> pd.Series:
    """Slope of a straight line through ``column`` of :func:`growth` over the steps, in bytes per step, for each method.

    Raises:
        ValueError: fewer than two numbers of steps.
    """
    if table["steps"].nunique() < 2:
        raise ValueError("a slope needs at least two numbers of steps")
    lines = {name: np.polyfit(rows["steps"], rows[column], 1) for name, rows in table.groupby("method", sort=False)}
    return pd.Series({name: float(line[0]) for name, line in lines.items()}, name="bytes per step")
