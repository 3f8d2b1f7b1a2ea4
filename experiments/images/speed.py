"""What an update costs on a CPU, by each of the ways that made it cheaper, beside what the core can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from amaml_core import Problem, Tasks, meta_gradient
from amaml_core.meta import Method

from ..common.claims import Claim, decide
from ..common.tables import span
from ..common.timing import medians
from ..common.training import generator
from .settings import Recipe, Size, make_method, recipe
from .training import drawn, keep_freed_memory, make_problem

TIMED = ("A-MAML, T=0.5", "MAML", "FOMAML")  # five steps of 0.1 each
AS_TRAINED = "as trained"
TOGETHER, ALONE, GRAPHS, KEPT = (
    "all tasks at once", "one task at a time", "with the graphs of the steps kept", ", and freed memory kept",
)  # fmt: skip
CHEAPER = 0.95  # of the time, and less
SQUARE = 1024  # rows of the matrices whose product shows what the core can do


def random_tasks(size: Size, row: str = "") -> Tasks:
    """A meta-batch of the shapes that a row trains on; what the images show makes no difference to the time."""
    channels, pixels = (1, 28) if size.data == "omniglot" else (3, 84)
    draws = generator("data", 0)
    shot, query = drawn(row, size)
    labels = lambda count: torch.arange(size.way).repeat_interleave(count).expand(size.batch, -1).contiguous()  # noqa: E731
    images = lambda count: torch.rand(size.batch, size.way * count, channels, pixels, pixels, generator=draws)  # noqa: E731
    return Tasks(images(shot), labels(shot), images(query), labels(query))


def flops(function: Callable[[], object]) -> float:
    """Floating-point operations of all products and convolutions, those of the derivatives included."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def speed(size: Size) -> pd.DataFrame:
    """One update of some rows, in five inner steps, and one of each row as it is trained, timed in turns on one thread.

    Returns:
        For each ``method`` and ``way``: median CPU ``seconds`` of a meta-gradient of the size's meta-batch; the ``gflop`` it takes,
        the same for all ways but the one that keeps the graphs; ``peak``, the GFLOP a second of a product of square matrices; and
        the ``steps`` in words.
    """
    tasks, together = random_tasks(size), Problem(make_problem(size, 0).model, torch.nn.functional.cross_entropy)
    alone = make_problem(size, 0)  # chunks of one task
    five = Recipe(5, 0.1)
    plain = {row: make_method(row, five) for row in TIMED}
    ways: dict[str, tuple[Problem, dict[str, Method]]] = {
        TOGETHER: (together, plain),
        ALONE: (alone, plain),
        GRAPHS: (alone, {TIMED[0]: make_method(TIMED[0], five, graphs=True)}),
    }
    work = {
        (row, way): _update(problem, method, tasks) for way, (problem, methods) in ways.items() for row, method in methods.items()
    }
    counts = {(row, way): flops(function) for (row, way), function in work.items() if way != TOGETHER}
    counts |= {(row, TOGETHER): counts[row, ALONE] for row in TIMED}  # groups are not counted right
    chosen = {row: recipe(row, size) for row in size.rows}
    trained = {
        (row, AS_TRAINED): _update(alone, make_method(row, chosen[row], graphs=True), random_tasks(size, row)) for row in size.rows
    }
    counts |= {key: flops(function) for key, function in trained.items()}

    def measured(work: dict, note: str = "") -> Iterator[dict]:
        square = torch.rand(SQUARE, SQUARE, generator=generator("data", 0))
        seconds = medians(work | {("peak", ""): lambda: square @ square}, repeats=3, clock=time.process_time)
        for row, way in work:
            yield {"method": row, "way": way + note, "seconds": seconds[row, way], "gflop": counts[row, way] / 1e9,
                   "peak": 2e-9 * SQUARE**3 / seconds["peak", ""],
                   "steps": str(chosen[row] if way == AS_TRAINED else five)}  # fmt: skip

    with one_thread():
        rows = list(measured(work))
        if keep_freed_memory():
            rows += list(measured(work, KEPT))
        rows += list(measured(trained))
    return pd.DataFrame(rows)


def conclusions(measured: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Whether each way makes an update cheaper, from the rows of :func:`speed` of each data set that has some."""
    found = []
    for claim, pairs in {
        "One task at a time is cheaper than all at once": [(ALONE, TOGETHER)],
        "Keeping the graphs of the steps is cheaper than computing the steps again": [(GRAPHS, ALONE)],
        "Keeping freed memory makes an update cheaper": [(way + KEPT, way) for way in (TOGETHER, ALONE, GRAPHS)],
    }.items():
        ratios = {name: _ratios(rows, pairs) for name, rows in measured.items() if len(rows)}
        said = "; ".join(f"{name}: {span(values)}" for name, values in ratios.items())
        decided = decide(value <= CHEAPER for values in ratios.values() for value in values)
        found.append(Claim("images", claim, f"{CHEAPER:g} times its CPU seconds, or less, by every method", "–", said, decided))
    return found


def share(measured: Mapping[str, pd.DataFrame]) -> str:
    """How many per cent of what a product of square matrices gets out of the core the rows get as they are trained."""
    trained = [rows[rows["way"].eq(AS_TRAINED)] for rows in measured.values() if len(rows)]
    return span((100 * r["gflop"] / r["seconds"] / r["peak"] for rows in trained for _, r in rows.iterrows()), "{:.0f}")


def _ratios(rows: pd.DataFrame, pairs: list[tuple[str, str]]) -> list[float]:
    """The seconds by the first way of each pair over those by the second, for each method that was timed by both."""
    wide = rows.pivot(index="way", columns="method", values="seconds")
    return [float(r) for new, old in pairs if {new, old} <= set(wide.index) for r in (wide.loc[new] / wide.loc[old]).dropna()]


def _update(problem: Problem, method: Method, tasks: Tasks) -> Callable[[], object]:
    theta = problem.initial_parameters()
    return lambda: meta_gradient(method, problem, theta, tasks)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
