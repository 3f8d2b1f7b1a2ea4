"""Comparing gradients, measuring what they cost, and training with them."""

from __future__ import annotations

import os
import statistics
import time
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from amaml_core import AMAML, FOMAML, DivergenceError, Euler, Problem, Tasks, evaluate, meta_gradient, metrics
from amaml_core.chain import batched
from amaml_core.meta import Method
from amaml_core.samplers import CosMixture, PoolSampler, make_function_pools

from ..common.cells import Cell, live_rows
from ..common.memory import footprint
from ..common.timing import medians
from ..common.training import generator, loss, meta_train, network, seeded
from .candidates import candidates, training_methods
from .settings import BATCH, INPUTS, META_LR, SHOTS, SIZES, VARIANT, Size, cells


@cache
def make_problem(compile: bool, dtype: torch.dtype = torch.float32) -> Problem:
    """One problem for all cells of a process; its graphs depend on shapes alone, and are made once."""
    return Problem(network(INPUTS).to(dtype), loss, compile=compile, trace_after=0)


def initial(seed: int) -> Tensor:
    """Where training starts (P,)."""
    return Problem(seeded(network(INPUTS), seed), loss).initial_parameters()


def pools(size: Size, seed: int) -> tuple[Tasks, Tasks]:
    """Training and test functions, standardised by the training functions alone."""
    functions = CosMixture(INPUTS, VARIANT)
    made = make_function_pools(functions, size.train_tasks, size.test_tasks, SHOTS, SHOTS, generator("data", seed))
    return made.train, made.test


def meta_batches(size: Size, seed: int, batches: int) -> Tasks:
    """``batches`` meta-batches of training functions, one after the other, at which gradients are compared."""
    pool, _ = pools(size, seed)
    return PoolSampler(pool, BATCH * batches)(generator("test", seed))


def train(method: Method, size: Size, seed: int, updates: int) -> Tensor:
    """theta (P,) after so many meta updates, from the same start on the same meta-batches whatever the method.

    Raises:
        DivergenceError: training broke down.
    """
    theta = initial(seed)
    if not updates:
        return theta
    sampler = PoolSampler(pools(size, seed)[0], BATCH)
    return meta_train(method, make_problem(size.compile), sampler, updates, META_LR, seed, theta)


@cache
def snapshots(size: Size, seed: int) -> dict[int, Tensor]:
    """The initialisations along one A-MAML run, by meta updates; made once for all cells of a process."""
    lr, steps = size.training
    # Each from the start: a run of n updates is the beginning of a longer one.
    return {updates: train(AMAML(lr * steps, Euler(steps)), size, seed, updates) for updates in size.snapshots}


@torch.no_grad()
def pulled_back(method: Method, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Tensor]:
    """Adapted parameters (B, P) and each task's gradient at theta (B, P)."""
    adapted, pullback = method(problem, theta, tasks)
    return adapted, pullback(problem.gradient(adapted, *tasks.query))


def compare_gradients(lr: float, steps: int, theta: Tensor, tasks: Tasks, few: bool = False) -> pd.DataFrame:
    """Error and cosine of every candidate's meta-gradient against the unrolled one, in float64.

    Args:
        lr, steps: of the descent that all share.
        theta: initialisation (P,).
        tasks: one or more meta-batches of ``BATCH`` tasks, one after the other.
        few: compare the first setting of each group alone.

    Returns:
        A row for each ``candidate`` and meta-``batch``: ``error``, :math:`\\|\\hat g-g\\|/\\|g\\|`, and ``cosine``. Where a
        candidate gives no gradient, ``refused`` is true and the numbers are missing; if it refuses one task, it gives none for any.

    Raises:
        AssertionError: a candidate has other adapted parameters than the reference.
    """
    problem, theta, tasks = make_problem(False, torch.float64), theta.double(), tasks.to(dtype=torch.float64)
    rows: list[dict] = []
    reference = None
    for candidate in candidates(lr, steps, few):
        entry = {"candidate": candidate.name}
        try:
            adapted, gradients = pulled_back(candidate.method, problem, theta, tasks)
        except DivergenceError:
            nothing = {"error": float("nan"), "cosine": float("nan"), "refused": True}
            rows += [entry | {"batch": batch} | nothing for batch in range(len(list(tasks.split(BATCH))))]
            continue
        means = torch.stack([part.mean(0) for part in gradients.split(BATCH)])  # (B, P) -> (meta-batches, P)
        if reference is None:
            reference = candidate.name, adapted, means
        if not torch.allclose(adapted, reference[1], rtol=1e-9, atol=1e-9):
            raise AssertionError(f"{candidate.name} adapts to other parameters than {reference[0]}")
        errors = (means - reference[2]).norm(dim=1) / reference[2].norm(dim=1)
        cosines = torch.nn.functional.cosine_similarity(means, reference[2], dim=1)
        for batch, (error, cosine) in enumerate(zip(errors.tolist(), cosines.tolist(), strict=True)):
            rows.append(entry | {"batch": batch, "error": error, "cosine": cosine, "refused": False})
    return pd.DataFrame(rows)


def errors(lr: float, steps: int, size: Size, seed: int) -> pd.DataFrame:
    """What :func:`compare_gradients` gives at every snapshot of one A-MAML run, after so many ``updates``."""
    tasks = meta_batches(size, seed, size.batches)
    parts = [
        compare_gradients(lr, steps, theta, tasks, size.few).assign(updates=updates)
        for updates, theta in snapshots(size, seed).items()
    ]
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def curvature(lr: float, steps: int, size: Size, seed: int) -> pd.DataFrame:
    """How close the descent is to its limit of stability, which is 2.

    Returns:
        A row for each snapshot (``updates``), ``place`` and ``task``: the ``curvature``, :math:`\\alpha` times the eigenvalue of
        largest magnitude of the support loss's Hessian, at the ``start`` of the descent and at its ``end``.
    """
    problem, tasks = make_problem(False, torch.float64), meta_batches(size, seed, size.batches).to(dtype=torch.float64)
    parts = []
    for updates, theta in snapshots(size, seed).items():
        theta = theta.double()
        ends = {"start": batched(theta, tasks), "end": FOMAML(lr, steps).chain(problem, theta, tasks).end()}
        for place, u in ends.items():
            values = lr * largest_curvature(problem, u, tasks)
            parts.append(
                pd.DataFrame({"task": range(len(tasks)), "curvature": values.tolist(), "updates": updates, "place": place})
            )
    return pd.concat(parts, ignore_index=True)


def largest_curvature(problem: Problem, u: Tensor, tasks: Tasks, iterations: int = 100) -> Tensor:
    """The eigenvalue of largest magnitude (B,) of each support loss's Hessian at ``u (B, P)``, by the power method."""
    v = torch.randn(u.shape, generator=torch.Generator().manual_seed(0), dtype=u.dtype)
    for _ in range(iterations):
        v = v / v.norm(dim=1, keepdim=True)
        product = problem.hvp(u, *tasks.support, v)
        value, v = (v * product).sum(1), product
    return value


def costs(lr: float, steps: int, size: Size, seed: int) -> pd.DataFrame:
    """A row for each ``candidate`` that is not refused: CPU ``seconds`` of its meta-gradient at the untrained network, in float64
    (median over the ``turns``), ``low`` and ``high``, and the ``peak`` of live bytes. ``load`` is the machine's, the larger
    one-minute average of those before and after."""
    tasks = meta_batches(size, seed, 1).to(dtype=torch.float64)
    problem, theta = make_problem(False, torch.float64), initial(seed).double()
    durations: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}

    def measured(name: str, method: Method) -> None:
        start = time.process_time()
        meta_gradient(method, problem, theta, tasks)
        durations.setdefault(name, []).append(time.process_time() - start)

    functions = {}
    for candidate in candidates(lr, steps, size.few):
        name, method = candidate.name, candidate.method
        try:
            peaks[name] = footprint(method, problem, theta, tasks).peak
        except DivergenceError:
            continue
        functions[name] = lambda name=name, method=method: measured(name, method)
    before = os.getloadavg()[0]
    medians(functions, size.turns, time.process_time)  # takes care of the turns
    kept = {name: values[1:] for name, values in durations.items()}  # the first call is not measured
    table = pd.DataFrame(
        [
            {"candidate": n, "seconds": statistics.median(v), "low": min(v), "high": max(v), "peak": peaks[n]}
            for n, v in kept.items()
        ]
    )
    return table.assign(turns=size.turns, load=max(before, os.getloadavg()[0]))


def trained(name: str, size: Size, seed: int) -> pd.DataFrame:
    """Train with one meta-gradient, then adapt to the test functions by the same descent that training used.

    Returns:
        A row for each test function (``task``): ``held_out`` and ``support`` RMSE after K steps, in standard deviations of the
        targets, and ``untrained_held_out`` and ``untrained_support``, the same from the initial parameters, all missing where the
        descent diverges; ``seconds`` of CPU time that training took, and the machine's ``load`` after it.

    Raises:
        ValueError: an unknown name.
        DivergenceError: training broke down.
    """
    lr, steps = size.training
    methods = training_methods(lr, steps)
    if name not in methods:
        raise ValueError(f"name must be one of {tuple(methods)}, not {name!r}")
    train(methods[name], size, seed, 1)  # compiles, unmeasured
    start = time.process_time()
    theta = train(methods[name], size, seed, size.meta_steps)
    found: dict = {"seconds": time.process_time() - start, "load": os.getloadavg()[0]}
    _, test = pools(size, seed)
    for prefix, where in (("", theta), ("untrained_", initial(seed))):
        table = evaluate(FOMAML(lr, steps), make_problem(False), where, test, metrics.rmse, (steps,))
        for column, error in ((f"{prefix}held_out", table["query"]), (f"{prefix}support", table["support"])):
            found[column] = error.where(error.abs().lt(float("inf"))).to_numpy()  # JSON has no infinite numbers
    return pd.DataFrame({"task": range(len(test))} | found)


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of one cell."""
    settings = cell.settings
    size = SIZES[settings["size"]]
    if cell.kind == "training":
        return trained(settings["method"], size, cell.seed)
    measure = {"errors": errors, "curvature": curvature, "costs": costs}[cell.kind]
    return measure(settings["inner_lr"], settings["steps"], size, cell.seed)


def live(size: str, seed: int) -> dict[str, pd.DataFrame]:
    """All cells of a size for one seed, run here and now: the rows of each kind, like those of the records."""
    return live_rows(cells(size, seed))
