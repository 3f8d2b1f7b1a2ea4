r"""The trade-off of the meta-gradients: hold the adapted parameters fixed, swap the pullback.

Chapter "What an exact meta-gradient is worth" shows these results. Also a program:
``python -m amaml_core.experiments.tradeoff --profile full --out results/full/tradeoff``.

Every candidate here adapts by the same K steps of gradient descent, so all have the same adapted parameters and the same query
gradient. They differ in how they pull it back to the initialisation. Three kinds of cells:

- ``tradeoff``: error and cosine of every candidate's meta-gradient against the exact one, in float64, for one step size and one
  number of steps, at several initialisations along one run of meta-training;
- ``tradeoff-cost``: CPU seconds and live bytes of every candidate's meta-gradient;
- ``tradeoff-training``: the same training run with one candidate's meta-gradient, and the error on test functions.

Nothing was tuned: the learning rates are those that evaluation 1 starts from, and every candidate gets the same.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    RK4,
    Backsolve,
    Checkpoint,
    Dopri5,
    Euler,
    GradientDescent,
    Heun,
    Problem,
    Reptile,
    Store,
    Tasks,
    evaluate,
    fit,
    meta_gradient,
    metrics,
)  # fmt: skip
from ..chain import Chain, batched, chain
from ..flow import DivergenceError, FixedStep
from ..kernel import Kernel
from ..meta import Method
from ..methods.descent import Descent
from ..samplers import PoolSampler, make_function_pools
from .cells import Cell, program, read_records
from .memory import footprint
from .profiles import check_profile
from .ratings import seeded
from .synthetic import Data, loss, network
from .timing import medians

RECORDS = Path(__file__).resolve().parents[2] / "results" / "full" / "tradeoff"
COMMAND = "python -m amaml_core.experiments.tradeoff --profile full --out results/full/tradeoff"

DATA = Data("cosmixture", "slides", d=2, shots=50)
BATCH = 5
META_LR = 1e-3

# ------------------------------------------------------------------------------------------------------------- candidates

SOLVERS: dict[str, type[FixedStep]] = {"Heun": Heun, "Euler": Euler, "RK4": RK4}


@dataclass(frozen=True)
class Thinned(Descent):
    r"""Gradient descent; its pullback solves the adjoint ODE on every m-th of the states.

    :math:`d\lambda/dt = H(u(t))\lambda` is solved backward in K / m steps of size :math:`m\alpha`; between two stored states
    :math:`u(t)` is their cubic interpolant. So the sweep costs an m-th of the Hessian-vector products and of the memory. With
    Heun's method and m = 1 this is the scheme of the authors' slides.

    Args:
        lr, steps: of the descent, :math:`\alpha` and K.
        every: m, a divisor of K.
        adjoint: the name of the adjoint's Runge-Kutta method.

    Raises:
        ValueError: ``every`` does not divide ``steps``, or an unknown solver.
    """

    every: int = 1
    adjoint: str = "Heun"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adjoint not in SOLVERS:
            raise ValueError(f"adjoint must be one of {tuple(SOLVERS)}, not {self.adjoint!r}")
        if self.every < 1 or self.steps % self.every:
            raise ValueError(f"Thinned needs every to divide steps={self.steps}, not {self.every}")

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        descent = self.chain(problem, theta, tasks)
        u = descent.theta
        kept = u.new_empty((self.steps // self.every, *u.shape))  # (K / m, B, P)
        for k in range(self.steps):
            if k % self.every == 0:
                kept[k // self.every] = u
            u = descent.forward(k, u)
        kernel = Kernel(problem, SOLVERS[self.adjoint].tableau, continuous=True)
        flow = chain(kernel, theta, tasks, self.lr * self.every, self.steps // self.every)

        def pullback(gradient: Tensor) -> Tensor:
            gradients, u_next = flow.start(gradient), u
            for k in reversed(range(len(flow))):
                gradients = flow.backward(k, kept[k], u_next, gradients)
                u_next = kept[k]
            return gradients.lam

        return u, pullback


@dataclass(frozen=True)
class Truncated(Descent):
    """Gradient descent; its pullback goes back over the last steps alone, as if the earlier ones did not depend on theta.

    Args:
        lr, steps: of the descent.
        last: how many steps are gone back; 0 would be FOMAML, K is exact.

    Raises:
        ValueError: ``last`` is not between 1 and ``steps``.

    Reference: Shaban et al., Truncated back-propagation for bilevel optimization, 2019.
    """

    last: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.last <= self.steps:
            raise ValueError(f"Truncated needs 1 <= last <= steps={self.steps}, not {self.last}")

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        descent = self.chain(problem, theta, tasks)
        u = descent.advance(0, self.steps - self.last, descent.theta)
        last = replace(descent, theta=u, step_sizes=descent.step_sizes[: self.last])
        end, sweep = Store().solve(last)
        return end, lambda gradient: sweep(gradient).lam


@dataclass(frozen=True)
class Swapped(Descent):
    """Gradient descent, with the pullback of an A-MAML that solves the flow once more in its own way.

    Args:
        lr, steps: of the descent.
        method: whose pullback is applied to the query gradient at the end of the descent.
    """

    method: AMAML = AMAML()

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P) of the descent, and the other's pullback (B, P) -> (B, P)."""
        return self.chain(problem, theta, tasks).end(), self.method(problem, theta, tasks)[1]


@dataclass(frozen=True)
class PlainDescent(GradientDescent):
    """Gradient descent for iMAML's pullback, without iMAML's proximal term: it ends where the other candidates end."""

    def chain(self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float, phi: Tensor | None, steps: int) -> Chain:
        return super().chain(problem, theta, tasks, 0.0, phi, steps)


@dataclass(frozen=True)
class Candidate:
    """A way to pull back: the ``group`` it is shown in, its ``setting`` within the group, and the method that does it."""

    group: str
    setting: str
    method: Method

    @property
    def name(self) -> str:
        """Group and setting."""
        return f"{self.group}: {self.setting}" if self.setting else self.group


UNROLLED, STORE = "MAML, unrolled", "A-MAML, discrete"
FIRST_ORDER, REPTILE, IMPLICIT, TRUNCATION = "FOMAML", "Reptile", "iMAML", "truncated"
THINNED, COARSE, ADAPTIVE, BACKSOLVE, ROUNDED = (
    "adjoint ODE on stored states", "A-MAML, coarser solve", "A-MAML, Dopri5", "A-MAML, Backsolve", "A-MAML, rounded states",
)  # fmt: skip
GROUPS = (
    UNROLLED, STORE, ROUNDED, THINNED, COARSE, ADAPTIVE, BACKSOLVE, TRUNCATION, IMPLICIT, FIRST_ORDER, REPTILE,
)  # fmt: skip


def candidates(lr: float, steps: int, few: bool = False) -> list[Candidate]:
    """All ways to pull back over ``steps`` steps of size ``lr``; the first is the exact gradient by unrolling.

    Args:
        lr, steps: of the descent that all share.
        few: the first setting of each group alone.
    """
    horizon = lr * steps
    implicit = partial(IMAML, PlainDescent(lr, steps), on_negative_curvature="truncate")
    found = [
        Candidate(UNROLLED, "", MAML(lr, steps)),
        Candidate(STORE, "Store", AMAML(horizon, Euler(steps))),
        Candidate(STORE, "Checkpoint", AMAML(horizon, Euler(steps), Checkpoint())),
    ]
    found += [
        Candidate(ROUNDED, str(dtype).removeprefix("torch."), AMAML(horizon, Euler(steps), Store(dtype)))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for every in (m for m in (1, 2, 5, 10) if steps % m == 0):
        for solver in SOLVERS:
            found.append(Candidate(THINNED, f"{solver}, m={every}", Thinned(lr, steps, every, solver)))
    for solver, rule in SOLVERS.items():
        for adjoint in ("discrete", "continuous"):
            method = AMAML(horizon, rule(steps // 5), adjoint=adjoint)
            setting = f"{solver}, K/5 steps, {adjoint}"
            found.append(Candidate(COARSE, setting, Swapped(lr, steps, method)))
    for rtol in (1e-4, 1e-2, 1e-6):
        for adjoint in ("discrete", "continuous"):
            method = AMAML(horizon, Dopri5(rtol, rtol / 100), adjoint=adjoint)
            found.append(Candidate(ADAPTIVE, f"rtol={rtol:.0e}, {adjoint}", Swapped(lr, steps, method)))
    backsolve = AMAML(horizon, Euler(steps), Backsolve(1e-6, 1e-8, max_steps=100))
    found.append(Candidate(BACKSOLVE, "rtol=1e-06", backsolve))
    for last in sorted({max(1, steps // part) for part in (10, 4, 2)}):
        found.append(Candidate(TRUNCATION, f"last {last} of {steps}", Truncated(lr, steps, last)))
    for weight in (1.0, 0.5, 2.0):
        for cg in (5, 1, 10):
            method = implicit(regularization=weight / horizon, cg_steps=cg)
            found.append(Candidate(IMPLICIT, f"λT={weight:g}, {cg} CG", method))
    found += [Candidate(FIRST_ORDER, "", FOMAML(lr, steps)), Candidate(REPTILE, "", Reptile(lr, steps))]
    return list({c.group: c for c in reversed(found)}.values())[::-1] if few else found


# -------------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Size:
    """How much a cell does at one profile.

    Attributes:
        cases: (inner learning rate, inner steps) at which gradients are compared: the first with every seed, the others with the
            first seed alone.
        cost_cases: those of them at which time and memory are measured too.
        few: compare one setting of each group alone.
        snapshots: meta updates after which the initialisation is kept.
        batches: meta-batches at each initialisation.
        turns: measured turns of every candidate.
        training: (inner learning rate, inner steps) of the training runs.
        meta_steps: of the training runs.
        train_tasks, test_tasks: functions.
        seeds: how many seeds.
        compile: compile the inner steps of the training runs.
    """

    cases: tuple[tuple[float, int], ...]
    cost_cases: tuple[tuple[float, int], ...]
    few: bool
    snapshots: tuple[int, ...]
    batches: int
    turns: int
    training: tuple[float, int]
    meta_steps: int
    train_tasks: int
    test_tasks: int
    seeds: int
    compile: bool


SIZES: dict[str, Size] = {
    "smoke": Size(((0.05, 10),), ((0.05, 10),), True, (0, 2), 1, 1, (0.05, 10), 2, 10, 10, 1, False),
    "book": Size(((0.05, 50),), ((0.05, 50),), True, (0, 50), 2, 3, (0.05, 50), 50, 100, 50, 1, False),
    "full": Size(
        ((0.05, 50), (0.05, 10), (0.05, 100), (0.1, 25), (0.025, 100)),
        ((0.05, 50),), False, (0, 100, 600), 4, 3, (0.05, 50), 600, 100, 100, 3, True,
    ),
}  # fmt: skip


@cache
def make_problem(compile: bool, dtype: torch.dtype = torch.float32) -> Problem:
    """One problem for all cells of a process; its graphs depend on shapes alone, and are made once."""
    return Problem(network(DATA.d).to(dtype), loss, compile=compile, trace_after=0)


def initial(seed: int) -> Tensor:
    """Where training starts (P,)."""
    return Problem(seeded(network(DATA.d), torch.Generator().manual_seed(seed)), loss).initial_parameters()


def pools(size: Size, seed: int) -> tuple[Tasks, Tasks]:
    """Training and test functions, standardised by the training functions alone."""
    generator = torch.Generator().manual_seed(1000 + seed)
    made = make_function_pools(DATA.functions(), size.train_tasks, size.test_tasks, DATA.shots, DATA.shots, generator)
    return made.train, made.test


def train(method: Method, size: Size, pool: Tasks, seed: int, snapshots: Iterable[int]) -> dict[int, Tensor]:
    """Meta-train from the same start on the same meta-batches, whatever the method; theta (P,) after so many updates."""
    problem, theta = make_problem(size.compile), initial(seed)
    found, adam = {}, partial(torch.optim.Adam, lr=META_LR)
    for count in snapshots:
        # Each from the start: a run of n updates is the beginning of a longer one.
        found[count] = theta
        if count:
            run = fit(method, problem, PoolSampler(pool, BATCH), count, adam, seed=seed, theta=theta, progress=False)
            found[count] = run.theta
    return found


@cache
def trained_snapshots(size: Size, seed: int) -> dict[int, Tensor]:
    """The initialisations along one A-MAML run; made once for all cells of a process."""
    lr, steps = size.training
    return train(AMAML(lr * steps, Euler(steps)), size, pools(size, seed)[0], seed, size.snapshots)


@torch.no_grad()
def pulled_back(method: Method, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Tensor]:
    """Adapted parameters (B, P) and each task's gradient at theta (B, P)."""
    adapted, pullback = method(problem, theta, tasks)
    return adapted, pullback(problem.gradient(adapted, *tasks.query))


def compare_gradients(lr: float, steps: int, theta: Tensor, tasks: Tasks, few: bool = False) -> dict:
    """Error and cosine of every candidate's meta-gradient against the unrolled one, in float64.

    Args:
        lr, steps: of the descent that all share.
        theta: initialisation (P,).
        tasks: one or more meta-batches of ``BATCH`` tasks, one after the other.
        few: compare the first setting of each group alone.

    Returns:
        For each candidate's name ``error``, :math:`\\|\\hat g-g\\|/\\|g\\|`, and ``cosine``, one number for each meta-batch, or
        ``refused``, why it gives no gradient.

    Raises:
        AssertionError: a candidate has other adapted parameters than the reference.
    """
    problem, theta, tasks = make_problem(False, torch.float64), theta.double(), tasks.to(dtype=torch.float64)
    found: dict[str, dict] = {}
    reference = None
    for candidate in candidates(lr, steps, few):
        try:
            adapted, gradients = pulled_back(candidate.method, problem, theta, tasks)
        except DivergenceError as error:
            found[candidate.name] = {"refused": str(error)}
            continue
        means = torch.stack([part.mean(0) for part in gradients.split(BATCH)])  # (B, P) -> (meta-batches, P)
        if reference is None:
            reference = candidate.name, adapted, means
        if not torch.allclose(adapted, reference[1], rtol=1e-9, atol=1e-9):
            raise AssertionError(f"{candidate.name} adapts to other parameters than {reference[0]}")
        gap = means - reference[2]
        error = gap.norm(dim=1) / reference[2].norm(dim=1)
        cosine = torch.nn.functional.cosine_similarity(means, reference[2], dim=1)
        found[candidate.name] = {
            "error": [_significant(e) for e in error.tolist()],
            "cosine": [_significant(c, 10) for c in cosine.tolist()],
        }
    return found


def _significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def errors(lr: float, steps: int, size: Size, seed: int) -> dict:
    """What :func:`compare_gradients` gives at every snapshot of one A-MAML run: ``{"snapshots": {meta updates: figures}}``.

    Beside it ``curvature``: at every snapshot ``start`` and ``end``, :math:`\\alpha` times the largest eigenvalue (in magnitude)
    of each task's Hessian at theta and at the adapted parameters. Gradient descent is stable below 2.
    """
    pool, _ = pools(size, seed)
    tasks = PoolSampler(pool, BATCH * size.batches)(torch.Generator().manual_seed(2000 + seed))
    found: dict[str, dict] = {"snapshots": {}, "curvature": {}}
    for count, theta in trained_snapshots(size, seed).items():
        found["snapshots"][str(count)] = compare_gradients(lr, steps, theta, tasks, size.few)
        found["curvature"][str(count)] = {
            place: [_significant(lr * c) for c in curvatures]
            for place, curvatures in along_descent(lr, steps, theta, tasks).items()
        }
    return found


@torch.no_grad()
def along_descent(lr: float, steps: int, theta: Tensor, tasks: Tasks) -> dict[str, list[float]]:
    """The largest eigenvalue of each task's Hessian where the descent starts and where it ends."""
    problem, theta, tasks = make_problem(False, torch.float64), theta.double(), tasks.to(dtype=torch.float64)
    end = FOMAML(lr, steps).chain(problem, theta, tasks).end()
    return {
        "start": largest_curvature(problem, batched(theta, tasks), tasks).tolist(),
        "end": largest_curvature(problem, end, tasks).tolist(),
    }


def largest_curvature(problem: Problem, u: Tensor, tasks: Tasks, iterations: int = 100) -> Tensor:
    """The eigenvalue of largest magnitude (B,) of each support loss's Hessian at ``u (B, P)``, by the power method."""
    v = torch.randn(u.shape, generator=torch.Generator().manual_seed(0), dtype=u.dtype)
    for _ in range(iterations):
        v = v / v.norm(dim=1, keepdim=True)
        product = problem.hvp(u, *tasks.support, v)
        value, v = (v * product).sum(1), product
    return value


def costs(lr: float, steps: int, size: Size, seed: int) -> dict:
    """CPU seconds (median, ``low``, ``high``) and ``peak`` live bytes of every candidate's meta-gradient, in float64."""
    pool, _ = pools(size, seed)
    tasks = PoolSampler(pool, BATCH)(torch.Generator().manual_seed(2000 + seed)).to(dtype=torch.float64)
    problem, theta = make_problem(False, torch.float64), initial(seed).double()
    durations: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    functions = {}
    for candidate in candidates(lr, steps, size.few):
        try:
            peaks[candidate.name] = footprint(candidate.method, problem, theta, tasks).peak
        except DivergenceError:
            continue

        def measured(candidate: Candidate = candidate) -> None:
            start = time.process_time()
            meta_gradient(candidate.method, problem, theta, tasks)
            durations.setdefault(candidate.name, []).append(time.process_time() - start)

        functions[candidate.name] = measured
    before = os.getloadavg()
    medians(functions, size.turns, time.process_time)
    kept = {name: values[1:] for name, values in durations.items()}
    return {
        "turns": size.turns,
        "load": {"before": list(before), "after": list(os.getloadavg())},
        "methods": {
            name: {
                "seconds": _significant(statistics.median(v)),
                "low": _significant(min(v)),
                "high": _significant(max(v)),
                "peak": peaks[name],
            }
            for name, v in kept.items()
        },
    }


# --------------------------------------------------------------------------------------------------------------- training

EXACT = "exact"


def training_methods(lr: float, steps: int) -> dict[str, Method]:
    """What the training runs compare: the exact gradient, and one or two settings of the ways to approximate it."""
    horizon = lr * steps
    implicit = partial(IMAML, PlainDescent(lr, steps), cg_steps=5, on_negative_curvature="truncate")
    return {
        EXACT: AMAML(horizon, Euler(steps)),
        "adjoint ODE, Heun, m=1": Thinned(lr, steps, 1),
        "adjoint ODE, Heun, m=5": Thinned(lr, steps, 5),
        "truncated, K/2": Truncated(lr, steps, steps // 2),
        "truncated, K/10": Truncated(lr, steps, max(1, steps // 10)),
        "iMAML, λT=1": implicit(regularization=1 / horizon),
        "FOMAML": FOMAML(lr, steps),
        "Reptile": Reptile(lr, steps),
    }


def trained_error(name: str, size: Size, seed: int) -> dict:
    """Train with one meta-gradient, then adapt to the test functions by the same descent that training used.

    Returns:
        ``trained``: ``held_out`` and ``support`` RMSE of every test function after K steps, in standard deviations of the targets;
        ``untrained``: the same from the initial parameters; ``seconds`` of CPU time that training took. If training broke down,
        ``diverged``, how. An error is ``None`` where the descent diverges.

    Raises:
        ValueError: an unknown name.
    """
    lr, steps = size.training
    methods = training_methods(lr, steps)
    if name not in methods:
        raise ValueError(f"name must be one of {tuple(methods)}, not {name!r}")
    pool, test = pools(size, seed)
    try:
        train(methods[name], size, pool, seed, (1,))  # compiles, unmeasured
        start = time.process_time()
        theta = train(methods[name], size, pool, seed, (size.meta_steps,))[size.meta_steps]
    except DivergenceError as error:
        return {"diverged": str(error)}
    duration = time.process_time() - start
    figures: dict = {"seconds": _significant(duration), "load": list(os.getloadavg())}
    descent = FOMAML(lr, steps)
    for label, where in (("trained", theta), ("untrained", initial(seed))):
        table = evaluate(descent, make_problem(False), where, test, metrics.rmse, (steps,))
        figures[label] = {
            "held_out": [_significant(v) if math.isfinite(v) else None for v in table["query"]],
            "support": [_significant(v) if math.isfinite(v) else None for v in table["support"]],
        }
    return figures


# ----------------------------------------------------------------------------------------------------------------- tables


def tidy_errors(figures: dict, **settings: object) -> pd.DataFrame:
    """A row for each snapshot and candidate: ``group``, ``setting``, ``name``, ``error`` (median over meta-batches), ``cosine``
    (median), ``refused``."""
    rows = []
    for count, entries in figures["snapshots"].items():
        for name, entry in entries.items():
            group, _, setting = name.partition(": ")
            rows.append(
                settings
                | {
                    "updates": int(count),
                    "group": group,
                    "setting": setting,
                    "name": name,
                    "refused": "refused" in entry,
                }
                | {key: float(np.median(entry[key])) if key in entry else np.nan for key in ("error", "cosine")}
            )
    return pd.DataFrame(rows)


def tidy_costs(figures: dict, **settings: object) -> pd.DataFrame:
    """A row for each candidate: ``name``, ``seconds``, ``low``, ``high``, ``peak``."""
    return pd.DataFrame([settings | {"name": name} | entry for name, entry in figures["methods"].items()])


def tidy_training(figures: dict, **settings: object) -> pd.DataFrame:
    """A row for each test function: ``held_out``, ``support``, ``untrained`` (held-out error), ``seconds`` of the run.

    A run that diverged has one row with these missing, of task -1.
    """
    if "diverged" in figures:
        missing = dict.fromkeys(("held_out", "support", "untrained", "seconds"), np.nan)
        return pd.DataFrame([settings | {"task": -1} | missing])
    trained = figures["trained"]
    columns = {"task": range(len(trained["held_out"])), "held_out": trained["held_out"], "support": trained["support"]}
    return pd.DataFrame(settings | columns | {"untrained": figures["untrained"]["held_out"], "seconds": figures["seconds"]})


def tidy_curvature(figures: dict, **settings: object) -> pd.DataFrame:
    """A row for each snapshot, place (``start`` or ``end`` of the descent) and task: ``curvature``, step size times eigenvalue."""
    rows = [
        settings | {"updates": int(count), "place": place, "curvature": value}
        for count, places in figures["curvature"].items()
        for place, values in places.items()
        for value in values
    ]
    return pd.DataFrame(rows)


# table: the cells that it is made from, and how
TABLES: dict[str, tuple[str, Callable[..., pd.DataFrame]]] = {
    "errors": ("tradeoff", tidy_errors),
    "curvature": ("tradeoff", tidy_curvature),
    "costs": ("tradeoff-cost", tidy_costs),
    "training": ("tradeoff-training", tidy_training),
}


def read(table: str, folder: Path = RECORDS) -> pd.DataFrame:
    """One of ``TABLES`` from all full-scale records, with the cells' settings and seeds; empty if there are none.

    Raises:
        ValueError: an unknown table.
    """
    if table not in TABLES:
        raise ValueError(f"table must be one of {tuple(TABLES)}, not {table!r}")
    kind, tidy = TABLES[table]
    records = read_records(folder, f"{kind}-profile=full-*.json")
    parts = [tidy(r.figures, **_columns(r.configuration), seed=r.seed) for r in records]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def compare(profile: str, seed: int) -> dict[str, pd.DataFrame]:
    """Run all cells of a profile for one seed, here and now: every one of ``TABLES``."""
    parts: dict[str, list[pd.DataFrame]] = {table: [] for table in TABLES}
    for cell in cells(profile, seed):
        figures = run(cell, Path())
        for table, (kind, tidy) in TABLES.items():
            if kind == cell.experiment:
                parts[table].append(tidy(figures, **_columns(cell.settings), seed=cell.seed))
    return {table: pd.concat(found, ignore_index=True) for table, found in parts.items()}


def _columns(settings: dict) -> dict:
    return {key: value for key, value in settings.items() if key != "profile"}


def against_exact(table: pd.DataFrame) -> pd.DataFrame:
    """The training runs against the exact one, function by function.

    Args:
        table: ``training``.

    Returns:
        For each method ``held_out`` and ``difference`` (to the exact run, on the same test function and seed), both with their
        95 % half-widths over all functions of all seeds, ``low`` and ``high`` seed means of the difference, ``seeds`` that
        finished, ``diverged`` seeds, test functions ``lost`` because the descent diverged on them, and ``seconds``. Numbers are
        missing where no run finished.
    """
    exact = table[table["method"] == EXACT].set_index(["seed", "task"])["held_out"]
    rows = {}
    for name, mine in table.groupby("method", sort=False):
        lost = mine["held_out"].isna() & mine["task"].ge(0)
        rows[name] = {"diverged": int(mine["task"].eq(-1).sum()), "lost": int(lost.sum()), "seeds": 0}
        mine = mine[mine["held_out"].notna()].set_index(["seed", "task"])
        gap = (mine["held_out"] - exact).dropna()
        if gap.empty:
            continue
        by_seed = gap.groupby("seed").mean()
        error, difference = metrics.interval(mine["held_out"]), metrics.interval(gap)
        rows[name] |= {
            "held_out": error.mean, "held_out ±": error.half_width, "difference": difference.mean,
            "difference ±": difference.half_width, "low": by_seed.min(), "high": by_seed.max(), "seeds": len(by_seed),
            "seconds": mine["seconds"].groupby("seed").first().median(),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def pareto(table: pd.DataFrame, cost: str, error: str = "error") -> pd.Series:
    """Which rows no other row beats: none is as good in both columns and better in one."""
    values = table[[cost, error]].to_numpy(dtype=float)
    beaten = [
        any((other <= mine).all() and (other < mine).any() for other in values) or not np.isfinite(mine).all() for mine in values
    ]
    return ~pd.Series(beaten, index=table.index, dtype=bool)


# ------------------------------------------------------------------------------------------------------------------ cells


def cells(profile: str, seed: int | None = None) -> list[Cell]:
    """All cells of a profile."""
    size = SIZES[check_profile(profile)]
    seeds = list(range(size.seeds)) if seed is None else [seed]
    found = []
    for s in seeds:
        found += [Cell("tradeoff-training", {"profile": profile, "method": name}, s) for name in training_methods(*size.training)]
    for s in seeds:
        cases = size.cases if s == seeds[0] else size.cases[:1]
        found += [Cell("tradeoff", {"profile": profile, "inner_lr": lr, "steps": k}, s) for lr, k in cases]
    found += [Cell("tradeoff-cost", {"profile": profile, "inner_lr": lr, "steps": k}, seeds[0]) for lr, k in size.cost_cases]
    return found


def run(cell: Cell, scratch: Path) -> dict:
    """The figures of one cell."""
    settings = cell.settings
    size = SIZES[settings["profile"]]
    if cell.experiment == "tradeoff-training":
        return trained_error(settings["method"], size, cell.seed)
    measure = costs if cell.experiment == "tradeoff-cost" else errors
    return {"data": asdict(DATA)} | measure(settings["inner_lr"], settings["steps"], size, cell.seed)


if __name__ == "__main__":
    program(__doc__, cells, run)
