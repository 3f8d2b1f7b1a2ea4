"""What an update costs on a CPU, by each of the ways that made it cheaper, beside what the core can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from amaml_core import Problem, Tasks, meta_gradient
from amaml_core.meta import Method

from ..common.timing import medians
from ..common.training import generator
from .settings import Recipe, Size, make_method
from .training import keep_freed_memory, make_problem

TIMED = ("A-MAML, T=0.5", "MAML", "FOMAML")  # five steps of 0.1 each
SQUARE = 1024  # rows of the matrices whose product shows what the core can do


def random_tasks(size: Size) -> Tasks:
    """A meta-batch of the size's shapes; what the images show makes no difference to the time."""
    channels, pixels = (1, 28) if size.data == "omniglot" else (3, 84)
    draws = generator("data", 0)
    labels = torch.arange(size.way).expand(size.batch, -1)
    images = lambda count: torch.rand(size.batch, count, channels, pixels, pixels, generator=draws)  # noqa: E731
    queries = labels.repeat_interleave(size.query, dim=1)
    return Tasks(images(size.way), labels.contiguous(), images(size.way * size.query), queries.contiguous())


def flops(function: Callable[[], object]) -> float:
    """Floating-point operations of all products and convolutions, those of the derivatives included."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def speed(size: Size) -> pd.DataFrame:
    """One update of some rows, in five inner steps, timed in turns on one thread.

    Returns:
        For each ``method`` and ``way``: median CPU ``seconds`` of a meta-gradient of the size's meta-batch; the ``gflop`` it takes,
        the same for all ways but the one that keeps the graphs; and ``peak``, the GFLOP a second of a product of square matrices.
    """
    tasks, together = random_tasks(size), Problem(make_problem(size, 0).model, torch.nn.functional.cross_entropy)
    alone = make_problem(size, 0)  # chunks of one task
    recipe = Recipe(5, 0.1)
    plain = {row: make_method(row, recipe) for row in TIMED}
    ways: dict[str, tuple[Problem, dict[str, Method]]] = {
        "all tasks at once": (together, plain),
        "one task at a time": (alone, plain),
        "with the graphs of the steps kept": (alone, {TIMED[0]: make_method(TIMED[0], recipe, graphs=True)}),
    }

    work = {
        (row, way): lambda problem=problem, method=method: meta_gradient(method, problem, problem.initial_parameters(), tasks)
        for way, (problem, methods) in ways.items()
        for row, method in methods.items()
    }
    counted = {(row, way): flops(function) for (row, way), function in work.items() if way != "all tasks at once"}

    def measured(note: str) -> Iterator[dict]:
        square = torch.rand(SQUARE, SQUARE, generator=generator("data", 0))
        seconds = medians(work | {("peak", ""): lambda: square @ square}, repeats=3, clock=time.process_time)
        for row, way in work:
            count = counted.get((row, way), counted[row, "one task at a time"])
            yield {"method": row, "way": way + note, "seconds": seconds[row, way], "gflop": count / 1e9,
                   "peak": 2e-9 * SQUARE**3 / seconds["peak", ""]}  # fmt: skip

    with one_thread():
        rows = list(measured(""))
        if keep_freed_memory():
            rows += list(measured(", and freed memory kept"))
    return pd.DataFrame(rows)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
