"""Measure the contenders: ``python -m benchmarks [--quick] [--device cuda] [--only REGEX] [--force]``."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from amaml_core.records import commit, machine

from . import report, results
from .cases import Case, grid
from .contenders import CONTENDERS

ROOT = Path(__file__).parents[1]
START_LIMIT = 900.0  # seconds that a process may take to build, compile and warm up
LONG = 30.0  # seconds of a call that is not repeated


class Worker:
    """A contender at a case in a process of its own (:mod:`benchmarks.worker`)."""

    def __init__(self, task: dict, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.figures: list[dict] = []
        self.result = self.ask(task, START_LIMIT)

    @property
    def alive(self) -> bool:
        return "status" not in self.result

    def ask(self, message: object, limit: float) -> dict:
        """Send a message and wait for the answer, at most ``limit`` seconds."""
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        in_time = timer.is_alive()
        timer.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        return {
            "status": "failed",
            "reason": f"ended by signal {-code}" if in_time else f"no answer in {limit:g} seconds",
        }

    def turn(self, seconds: float, limit: float) -> None:
        """Let the contender run for about ``seconds``."""
        answer = self.ask(seconds, limit)
        if "status" in answer:
            self.result = answer
        else:
            self.figures.append(answer)

    def wants_more(self, seconds: float) -> bool:
        """Whether it has not used its time, or was called only once though a call does not take long."""
        if not self.alive:
            return False
        used = sum(f["wall_seconds"] * f["calls"] for f in self.figures)
        return used < seconds or (len(self.figures) < 2 and used < LONG)

    def close(self) -> dict:
        """End the process; the entries of its row."""
        self.process.kill()
        self.process.communicate()
        if not self.alive:
            return {"status": self.result["status"], "reason": self.result["reason"]}
        # The error is not a number where the gradient is not finite.
        medians = {n: statistics.median(f[n] for f in self.figures) for n in ("cpu_seconds", "wall_seconds")}
        return medians | {
            "status": "ok",
            "memory_mb": max(f["memory_mb"] for f in self.figures),
            "error": self.figures[-1].get("error"),
            "calls": sum(f["calls"] for f in self.figures),
            "compile_seconds": self.result.get("compile_seconds"),
            "versions": " ".join(f"{name}={version}" for name, version in self.result["versions"].items()),
        }


def measure(case: Case, names: list[str], seconds: float, limit: float, environment: dict[str, str]) -> dict[str, dict]:
    """Rows of several contenders at one case. All are made ready first, and then take turns, so that whatever else the
    machine does hits all alike."""
    memory = available_mb() * 0.9 if case.device == "cpu" else None
    with tempfile.TemporaryDirectory() as folder:
        name, exact_case = case.reference()
        task = {
            "case": asdict(exact_case), "contender": name, "memory_limit_mb": memory,
            "reference": f"{folder}/reference.npy", "is_reference": True,
        }  # fmt: skip
        reference = Worker(task, environment)
        if reference.alive:
            reference.turn(0, limit)
        reference.close()
        task |= {"case": asdict(case), "is_reference": False}
        workers = {name: Worker(task | {"contender": name}, environment) for name in names}
        while any(worker.wants_more(seconds) for worker in workers.values()):
            for worker in workers.values():
                if worker.wants_more(seconds):
                    worker.turn(seconds / 5, limit)
        return {name: worker.close() for name, worker in workers.items()}


def available_mb() -> float | None:
    """Memory that a process may take without pushing others out."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20 / 2
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def prediction(table: pd.DataFrame, case: Case, name: str, limit: float) -> str | None:
    """Why a contender is not run at a case, from how it did with fewer steps; ``None`` if nothing speaks against it."""
    like = (table[["device", "network", "tasks", "dtype"]] == [case.device, case.network, case.tasks, case.dtype]).all(axis=1)
    rows = table[like & (table.contender == name) & (table.steps < case.steps)].sort_values("steps")
    if rows.empty:
        return None
    last = rows.iloc[-1]
    if last.status in ("skipped", "out of memory") or "no answer" in str(last.reason):
        return f"K={last.steps} was too much already: {last.reason}"
    factor = case.steps / last.steps
    if last.wall_seconds * factor > limit:
        return f"predicted to take {last.wall_seconds * factor:.0f} s, more than {limit:g} s"
    if case.device == "cpu" and last.memory_mb * factor > 0.9 * available_mb():
        return f"predicted to take {last.memory_mb * factor / 1024:.0f} GB, more than is free"
    return None


def main(argv: list[str] | None = None) -> None:
    """Measure what has no row yet, write each case's rows as they come, and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small cases, about two minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="REGEX", help="for example 'mlp B=32 K=50 float32 (amaml|unrolled)$'")
    parser.add_argument("--force", action="store_true", help="measure again what has a row")
    parser.add_argument("--seconds", type=float, default=5.0, help="of repeated calls for each contender and case")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one call may take")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results by default, _build/bench with --quick")
    arguments = parser.parse_args(argv)

    out = arguments.out or ROOT / ("_build/bench" if arguments.quick else "benchmarks/results")
    path = out / f"{results.slug(machine())}.csv"
    table = results.read(path) if path.exists() else pd.DataFrame(columns=results.COLUMNS)
    progress = tqdm(grid(arguments.device, arguments.quick), disable=None)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
            "JAX_PLATFORMS": arguments.device, "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the GPU's memory is for all
            "NVIDIA_TF32_OVERRIDE": "0",  # or convolutions on a GPU would round their factors to 10 bits
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
            "MALLOC_ARENA_MAX": "1",  # malloc_trim reaches the main arena alone
            "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }  # fmt: skip
        for case in progress:
            label = f"{case.network} B={case.tasks} K={case.steps} {case.dtype}"
            progress.set_description(label)
            here = (table[list(results.KEY[:-1])] == [getattr(case, k) for k in results.KEY[:-1]]).all(axis=1)
            done = set() if arguments.force else set(table[here & (table.status != "not installed")].contender)
            names = [
                name
                for name, contender in CONTENDERS.items()
                if case.network in contender.networks and (case.device == "cpu" or contender.cuda)
                if name not in done and re.search(arguments.only, f"{label} {name}")
            ]
            if not names:
                continue
            load = os.getloadavg()[0]
            reasons = {name: prediction(table, case, name, arguments.limit) for name in names}
            rows = {name: {"status": "skipped", "reason": reason} for name, reason in reasons.items() if reason}
            possible = [name for name in names if name not in rows]
            rows |= measure(case, possible, arguments.seconds, arguments.limit, environment) if possible else {}
            shared = {k: getattr(case, k) for k in results.KEY[:-1]} | {
                "load_average": round(load, 2), "machine": machine(), "commit": commit(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
            new = pd.DataFrame([shared | {"contender": name} | row for name, row in rows.items()], columns=results.COLUMNS)
            kept = table[~(here & table.contender.isin(names))]
            table = pd.concat([part for part in (kept, new) if len(part)], ignore_index=True)
            results.write(table, path)
            for name, row in rows.items():
                detail = f"{row['cpu_seconds']:9.4f} s {row['memory_mb']:8.1f} MB" if row["status"] == "ok" else row["reason"]
                tqdm.write(f"{label:28} {name:26} {row['status']:8} {detail}")
    report.main([str(path)])


if __name__ == "__main__":
    main()
