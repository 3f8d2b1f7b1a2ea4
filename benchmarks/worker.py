"""One contender at one case, in a process and on cores of its own; takes turns with the others, as its parent says.

Reads lines of JSON from standard input and answers each with one: first the task, then a number of seconds for each turn.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from .cases import Case
from .contenders import CONTENDERS

PACKAGES = ("torch", "torchdiffeq", "higher", "torchopt", "jax")


def megabytes(entry: str) -> float:
    """An entry of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry + ":"))
    return int(line.split()[1]) / 1024


def peak_growth(call: Callable[[], object], device: str) -> float:
    """Megabytes by which the memory rises above where it stood, at the highest, during one call."""
    gc.collect()
    if device == "cuda" and "jax" in sys.modules:
        gpu = sys.modules["jax"].local_devices()[0]
        before = gpu.memory_stats()["bytes_in_use"]
        call()
        return (gpu.memory_stats()["peak_bytes_in_use"] - before) / 2**20  # since the start: JAX's mark cannot be lowered
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not sys.platform.startswith("linux"):  # the high-water mark of the process cannot be lowered
        unit = 2**20 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
    release_memory()
    Path("/proc/self/clear_refs").write_text("5")  # lowers the high-water mark to where the memory stands
    before = megabytes("VmRSS")
    call()
    return max(megabytes("VmHWM") - before, 0.0)


def release_memory() -> None:
    """Give freed memory back to the system, or the allocator would serve the next call from it unseen."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return  # not glibc


def turn(compute: Callable[[], np.ndarray], device: str, seconds: float) -> tuple[dict, np.ndarray]:
    """Call until ``seconds`` have passed, at least once: medians of the times, the memory growth of the first call, and the
    gradient. A gradient comes as a numpy array, so that nothing is left running on a GPU when a call returns."""
    times: list[tuple[float, float]] = []
    gradient = None

    def call() -> None:
        nonlocal gradient
        wall, cpu = time.perf_counter(), time.process_time()  # of all threads
        gradient = compute()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))

    growth = peak_growth(call, device)
    while sum(wall for _, wall in times) < seconds:
        call()
    release_memory()  # for the others
    cpu, wall = (statistics.median(column) for column in zip(*(times[1:] or times), strict=True))
    return {"cpu_seconds": cpu, "wall_seconds": wall, "memory_mb": growth, "calls": len(times)}, gradient


def take_cores(count: int) -> None:
    """Keep this process to ``count`` of the cores it may run on.

    Raises:
        RuntimeError: there are fewer.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if count > len(cores):
            raise RuntimeError(f"it runs on {count} cores, and there are {len(cores)}")
        os.sched_setaffinity(0, cores[-count:])


def prepare(task: dict) -> tuple[Callable[[], np.ndarray], dict]:
    """Build the contender and warm it up: by a call of full length if that leaves something behind, by three steps otherwise."""
    case, contender = Case(**task["case"]), CONTENDERS[task["contender"]]
    compute = contender.build(case)
    if task["memory_limit_mb"]:
        limit = int((megabytes("VmSize") + task["memory_limit_mb"]) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    started, answer = time.perf_counter(), {}
    if contender.warm:
        compute()
        if contender.compiled:
            answer["compile_seconds"] = time.perf_counter() - started
    else:
        contender.build(replace(case, steps=min(case.steps, 3)))()
    loaded = {name: sys.modules[name] for name in PACKAGES if name in sys.modules}
    answer["versions"] = {  # a package's own word first: its metadata may leave out the build
        name: str(getattr(module, "__version__", None) or importlib.metadata.version(name)) for name, module in loaded.items()
    }
    return compute, answer


def relative_error(gradient: np.ndarray, reference: Path) -> float:
    """Of a gradient (P,), against the one in a file."""
    expected = np.load(reference, allow_pickle=False)
    return float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))


def explain(error: BaseException) -> dict:
    """The status and reason that a row gives for a contender that did not run."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if isinstance(error, ModuleNotFoundError):
        return {"status": "not installed", "reason": reason}
    starved = isinstance(error, MemoryError) or any(w in str(error).lower() for w in ("out of memory", "allocate memory"))
    return {"status": "out of memory" if starved else "failed", "reason": reason}


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    task: dict = {}
    for line in sys.stdin:
        try:
            if not task:
                task = json.loads(line)
                if task["case"]["device"] == "cpu":
                    take_cores(CONTENDERS[task["contender"]].cores)
                compute, answer = prepare(task)
            else:
                answer, gradient = turn(compute, task["case"]["device"], json.loads(line))
                reference = Path(task["reference"])
                if task["is_reference"]:
                    np.save(reference, gradient)
                elif reference.exists():
                    answer["error"] = relative_error(gradient, reference)
        except Exception as error:
            answer = explain(error)
        answers.write(json.dumps(answer) + "\n")
        if "status" in answer:
            return


if __name__ == "__main__":
    main()
