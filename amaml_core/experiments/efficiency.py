r"""What a meta update costs in time and memory, against the number of inner steps: six methods side by side.

Chapter "What a meta update costs" shows these results. Also a program:
``python -m amaml_core.experiments.efficiency --profile full --out results/full/efficiency``.

Two kinds of cells, both on the paper's CosMixture functions with 100 support and 100 query points, five tasks in a meta-batch:

- ``efficiency``: seconds of one meta update (meta-gradient and Adam's step). All methods of a cell take turns, so that a slow
  moment of the machine meets all of them. On a CPU these are CPU seconds, on a GPU seconds until its work is done.
- ``efficiency-memory``: the largest number of bytes in live tensors during one meta-gradient, counted, not sampled. A property of
  the algorithm, the same on every machine.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from .. import AMAML, FOMAML, IMAML, MAML, Checkpoint, Euler, GradientDescent, Problem, Reptile, meta_gradient
from ..meta import Method
from ..samplers import CosMixture, make_function_tasks
from ..tasks import Tasks
from .cells import Cell, program, read_records
from .memory import footprint
from .profiles import check_profile
from .ratings import seeded
from .synthetic import loss, network
from .timing import medians

RECORDS = Path(__file__).resolve().parents[2] / "results" / "full" / "efficiency"
COMMAND = "python -m amaml_core.experiments.efficiency --profile full --out results/full/efficiency"

INNER_LR = 0.01
BATCH = 5
SHOTS = 100
Mode = Literal["plain", "traced", "compiled"]
MODES: tuple[Mode, ...] = ("plain", "traced", "compiled")

METHODS: dict[str, Callable[[int], Method]] = {
    "MAML": lambda k: MAML(INNER_LR, k),
    "A-MAML, Store": lambda k: AMAML(INNER_LR * k, Euler(k)),
    "A-MAML, Checkpoint": lambda k: AMAML(INNER_LR * k, Euler(k), Checkpoint()),
    "iMAML": lambda k: IMAML(GradientDescent(INNER_LR, k), regularization=2.0, cg_steps=5, on_negative_curvature="truncate"),
    "FOMAML": lambda k: FOMAML(INNER_LR, k),
    "Reptile": lambda k: Reptile(INNER_LR, k),
}
LONG = ("A-MAML, Store", "A-MAML, Checkpoint")  # the methods that are also taken to thousands of steps
SETS = {"all": tuple(METHODS), "long": LONG}

# ------------------------------------------------------------------------------------------------------------- published

# Li et al., Meta-learning with adjoint methods, AISTATS 2023, read off two figures. None: no value, out of memory.
PUBLISHED_STEPS = (1, 10, 20, 50, 100, 200, 300, 500)
PUBLISHED_SECONDS: dict[str, tuple[float | None, ...]] = {
    "MAML": (0.05, 0.25, 1.15, 2.25, 3.4, 4.85, None, None),
    "A-MAML": (0.02, 0.12, 0.22, 0.33, 0.57, 0.90, 1.35, 2.35),
    "iMAML": (0.02, 0.07, 0.10, 0.18, 0.32, 0.65, 0.95, 1.68),
    "FOMAML": (0.01, 0.04, 0.07, 0.16, 0.33, 0.60, 0.90, 1.53),
    "Reptile": (0.01, 0.04, 0.07, 0.16, 0.33, 0.60, 0.90, 1.53),
}
# Share of the memory of a GPU that is not named.
PUBLISHED_SHARE: dict[str, tuple[float | None, ...]] = {
    "MAML": (0.10, 0.11, 0.16, 0.32, 0.52, 0.98, None, None),
    "A-MAML": (0.10, 0.12, 0.15, 0.17, 0.18, 0.20, 0.22, 0.255),
    "iMAML": (0.12,) * 8,
    "FOMAML": (0.10,) * 8,
    "Reptile": (0.105,) * 8,
}
FULL_AT = 200  # MAML filled their GPU at this number of steps, to
FULL_SHARE = 0.98
IDLE_SHARE = 0.10  # of which so much was taken before the first inner step


def published() -> pd.DataFrame:
    """The published values: ``method``, ``steps``, ``seconds``, ``share``; without those that ran out of memory."""
    rows = [
        (name, steps, seconds, share)
        for name in PUBLISHED_SECONDS
        for steps, seconds, share in zip(PUBLISHED_STEPS, PUBLISHED_SECONDS[name], PUBLISHED_SHARE[name], strict=True)
        if seconds is not None
    ]
    return pd.DataFrame(rows, columns=["method", "steps", "seconds", "share"])


# -------------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Size:
    """How much is measured at one profile.

    Attributes:
        steps: numbers of inner steps K for all methods.
        long_steps: further ones for ``LONG`` alone.
        modes: how the inner steps run; ``plain`` is left out of the further ones.
        turns: measured turns of every method.
    """

    steps: tuple[int, ...]
    long_steps: tuple[int, ...]
    modes: tuple[Mode, ...]
    turns: int


SIZES: dict[str, Size] = {
    "smoke": Size((1, 4), (8,), ("plain", "traced"), 1),
    "book": Size((1, 10, 50), (200,), ("plain", "traced"), 3),
    "full": Size(PUBLISHED_STEPS, (1000, 2000, 5000), MODES, 9),
}


def make_tasks(seed: int) -> Tasks:
    """A meta-batch of five CosMixture functions of two inputs."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return make_function_tasks(CosMixture(), BATCH, SHOTS, SHOTS, generator)


@cache
def make_problem(mode: Mode, seed: int, device: str = "cpu") -> Problem:
    """The 2-32-32-1 network; one problem for all cells of a process, since its graphs depend on shapes alone.

    Args:
        mode: ``"plain"`` runs every step through all layers of Python; ``"traced"``, the package's default, replays its array
            operations; ``"compiled"`` compiles them.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, not {mode!r}")
    model = seeded(network(2), torch.Generator().manual_seed(seed)).to(device)
    return Problem(model, loss, compile=mode == "compiled", trace=mode != "plain", trace_after=0)


def seconds(names: tuple[str, ...], mode: Mode, steps: int, seed: int, turns: int, device: str = "cpu") -> dict:
    """Time of one meta update: the meta-gradient and one step of Adam.

    Returns:
        For each method ``seconds``, the median over the turns, and ``low`` and ``high``, the smallest and the largest; beside
        them the number of ``turns``, of ``threads``, and the machine's ``load`` before and after (see ``os.getloadavg``).
    """
    problem, tasks = make_problem(mode, seed, device), make_tasks(seed).to(device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    durations: dict[str, list[float]] = {name: [] for name in names}

    def updater(name: str) -> Callable[[], None]:
        method, theta = METHODS[name](steps), problem.initial_parameters().requires_grad_()
        adam = torch.optim.Adam([theta], lr=1e-3)

        def update() -> None:
            start = clock()
            theta.grad = meta_gradient(method, problem, theta.detach(), tasks).gradient
            adam.step()
            if device != "cpu":
                torch.cuda.synchronize()
            durations[name].append(clock() - start)

        return update

    before = os.getloadavg()
    medians({name: updater(name) for name in names}, turns, clock)  # takes care of the turns
    measured = {name: values[1:] for name, values in durations.items()}  # the first call is not measured: it compiles
    return {
        "turns": turns,
        "threads": torch.get_num_threads(),
        "load": {"before": list(before), "after": list(os.getloadavg())},
        "methods": {
            name: {"seconds": statistics.median(values), "low": min(values), "high": max(values)}
            for name, values in measured.items()
        },
    }


def live_bytes(names: tuple[str, ...], steps: int, seed: int) -> dict:
    """For each method the ``peak`` of live bytes during one meta-gradient, and those ``held`` between its two halves."""
    problem, tasks = make_problem("traced", seed), make_tasks(seed)
    theta = problem.initial_parameters()
    found = {name: footprint(METHODS[name](steps), problem, theta, tasks) for name in names}
    return {"methods": {name: {"peak": f.peak, "held": f.held} for name, f in found.items()}}


def normalised(table: pd.DataFrame) -> pd.Series:
    """Each ``peak`` as a share of a GPU's memory, the way the paper shows it.

    Their GPU is not named. So ours is one that MAML would fill as it filled theirs, to 98 % at 200 steps (or at the largest
    number that was measured), with the same 10 % taken before the first step.

    Raises:
        ValueError: the table has no row of MAML.
    """
    maml = table[table["method"].eq("MAML") & table["steps"].le(FULL_AT)]
    if maml.empty:
        raise ValueError("to normalise as the paper does, MAML must be among the methods")
    full = maml.loc[maml["steps"].idxmax(), "peak"]
    return IDLE_SHARE + (FULL_SHARE - IDLE_SHARE) * table["peak"] / full


# ----------------------------------------------------------------------------------------------------------------- tables


def _tidy(figures: dict, **settings: object) -> pd.DataFrame:
    return pd.DataFrame([settings | {"method": name} | entry for name, entry in figures["methods"].items()])


def compare(profile: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure here and now: tables like those of :func:`read_seconds` and :func:`read_memory`."""
    tables: dict[str, list[pd.DataFrame]] = {"efficiency": [], "efficiency-memory": []}
    for cell in cells(profile, seed):
        tables[cell.experiment].append(_tidy(run(cell, Path()), **_columns(cell.settings)))
    return pd.concat(tables["efficiency"], ignore_index=True), pd.concat(tables["efficiency-memory"], ignore_index=True)


def _columns(settings: dict) -> dict:
    return {key: value for key, value in settings.items() if key not in ("profile", "methods")}


def read_seconds(folder: Path = RECORDS) -> pd.DataFrame:
    """All full-scale times that have a record: ``device``, ``mode``, ``steps``, ``method``, ``seconds``, ``low``, ``high``,
    ``machine``, ``load`` (the larger one-minute average, before or after); empty if there are none."""
    tables = []
    for record in read_records(folder, "efficiency-profile=full-*.json"):
        load = max(record.figures["load"][when][0] for when in ("before", "after"))
        tables.append(_tidy(record.figures, **_columns(record.configuration), machine=record.machine, load=load))
    return _sorted(tables)


def read_memory(folder: Path = RECORDS) -> pd.DataFrame:
    """All full-scale byte counts that have a record: ``steps``, ``method``, ``peak``, ``held``; empty if there are none."""
    records = read_records(folder, "efficiency-memory-profile=full-*.json")
    return _sorted([_tidy(r.figures, **_columns(r.configuration)) for r in records])


def _sorted(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables).sort_values("steps", kind="stable", ignore_index=True) if tables else pd.DataFrame()


# ------------------------------------------------------------------------------------------------------------------ cells


def cells(profile: str, seed: int | None = None) -> list[Cell]:
    """All cells of a profile: those on a CPU, and those on a GPU if this machine has one."""
    size, seed = SIZES[check_profile(profile)], seed or 0
    counts = [("all", k) for k in size.steps] + [("long", k) for k in size.long_steps]
    found = [Cell("efficiency-memory", {"profile": profile, "methods": names, "steps": k}, seed) for names, k in counts]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        found += [
            Cell("efficiency", {"profile": profile, "device": device, "mode": mode, "methods": names, "steps": k}, seed)
            for mode in size.modes
            for names, k in counts
            if (names, mode) != ("long", "plain")
        ]
    return found


def run(cell: Cell, scratch: Path) -> dict:
    """The figures of one cell."""
    settings = cell.settings
    names, steps = SETS[settings["methods"]], settings["steps"]
    if cell.experiment == "efficiency-memory":
        return live_bytes(names, steps, cell.seed)
    turns = SIZES[settings["profile"]].turns
    turns = min(turns, 9 if steps <= 50 else 5 if steps <= 200 else 3)
    return seconds(names, settings["mode"], steps, cell.seed, turns, settings["device"])


if __name__ == "__main__":
    program(__doc__, cells, run)
