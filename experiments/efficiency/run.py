"""Measuring one meta update."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from amaml_core import Problem, Tasks, meta_gradient
from amaml_core.samplers import CosMixture, make_function_tasks

from ..common.cells import Cell, live_rows
from ..common.memory import footprint
from ..common.records import ROOT
from ..common.timing import medians
from ..common.training import generator, loss, network, seeded
from .settings import BATCH, METHODS, MODES, SETS, SHOTS, SIZES, Load, Mode, cells


def make_tasks(seed: int) -> Tasks:
    """A meta-batch of five CosMixture functions of two inputs."""
    return make_function_tasks(CosMixture(), BATCH, SHOTS, SHOTS, generator("data", seed))


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
    return Problem(seeded(network(2), seed).to(device), loss, compile=mode == "compiled", trace=mode != "plain", trace_after=0)


def seconds(names: tuple[str, ...], mode: Mode, steps: int, seed: int, turns: int, device: str = "cpu") -> pd.DataFrame:
    """Time of one meta update: the meta-gradient and one step of Adam.

    Returns:
        For each ``method`` the ``seconds``, their median over the turns, and ``low`` and ``high``, the smallest and the largest;
        the number of ``turns`` and of ``threads``; and the machine's ``load``, the larger one-minute average of those before and
        after.
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

    before = os.getloadavg()[0]
    medians({name: updater(name) for name in names}, turns, clock)  # takes care of the turns
    measured = {name: values[1:] for name, values in durations.items()}  # the first call is not measured: it compiles
    table = pd.DataFrame(
        [{"method": n, "seconds": statistics.median(v), "low": min(v), "high": max(v)} for n, v in measured.items()]
    )
    return table.assign(turns=turns, threads=torch.get_num_threads(), load=max(before, os.getloadavg()[0]))


def live_bytes(names: tuple[str, ...], steps: int, seed: int) -> pd.DataFrame:
    """For each ``method`` the ``peak`` of live bytes during one meta-gradient, and those ``held`` between its two halves."""
    problem, tasks = make_problem("traced", seed), make_tasks(seed)
    theta = problem.initial_parameters()
    found = {name: footprint(METHODS[name](steps), problem, theta, tasks) for name in names}
    return pd.DataFrame([{"method": name, "peak": f.peak, "held": f.held} for name, f in found.items()])


def timed(loads: tuple[Load, ...], ranks: int, turns: int, device: str, seed: int) -> pd.DataFrame:
    """The ``seconds`` of each load in so many processes of one thread each: rank 0's clock, which waits for all the others.

    Returns:
        A row for each load, with its ``tasks``, ``steps``, ``width`` and ``parameters``.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A program of its own: a cell may run in a worker of joblib or Dask, which can have no children by multiprocessing.
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        job = {"loads": [asdict(load) for load in loads], "turns": turns, "device": device, "seed": seed}
        program = ["-m", "experiments.efficiency.ranks", folder, json.dumps(job)]
        # torchrun leaves a folder of logs wherever temporary ones are made.
        subprocess.run([*command, *program], check=True, cwd=ROOT, env=os.environ | {"TMPDIR": folder})
        return pd.read_csv(Path(folder) / "seconds.csv")


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of one cell."""
    settings = cell.settings
    if cell.kind == "scaling":
        size = SIZES[settings["size"]]
        return timed(size.fitted + size.held_out, settings["ranks"], size.turns, settings["device"], cell.seed)
    names, steps = SETS[settings["methods"]], settings["steps"]
    if cell.kind == "bytes":
        return live_bytes(names, steps, cell.seed)
    return seconds(names, settings["mode"], steps, cell.seed, SIZES[settings["size"]].turns_at(steps), settings["device"])


def live(size: str, seed: int, *kinds: str) -> dict[str, pd.DataFrame]:
    """The cells of a size and of these kinds, all by default, measured here and now on the CPU: the rows of each kind."""
    on_cpu = (cell for cell in cells(size, seed) if cell.settings.get("device", "cpu") == "cpu")
    return live_rows(cell for cell in on_cpu if cell.kind in kinds or not kinds)
