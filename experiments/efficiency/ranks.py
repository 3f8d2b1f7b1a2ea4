"""One of the processes that share a meta step; torchrun starts them, see :func:`experiments.efficiency.run.timed`."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import distributed as dist

from amaml_core import AMAML, Euler, Problem, fit
from amaml_core.samplers import CosMixture, make_function_tasks

from ..common.training import generator, loss, network, seeded
from .settings import INNER_LR, SHOTS, Load


def measure(load: Load, turns: int, device: str, seed: int) -> float:
    """Median seconds of a meta step of fit with A-MAML, the first one left out; to be called in all ranks at once."""
    tasks = make_function_tasks(CosMixture(), load.tasks, SHOTS, SHOTS, generator("data", seed)).to(device)
    problem = Problem(seeded(network(2, load.width), seed).to(device), loss, trace_after=0)
    seconds: list[float] = []
    method = AMAML(INNER_LR * load.steps, Euler(load.steps))
    fit(method, problem, lambda _: tasks, turns + 1, progress=False, callbacks=[lambda step: seconds.append(step.seconds)])
    return statistics.median(seconds[1:] or [math.nan])  # rank 0 alone is told


def main(folder: str, job: str) -> None:
    """Measure the loads of a job, and let rank 0 write ``seconds.csv`` into a folder."""
    given = json.loads(job)
    torch.set_num_threads(1)
    device = f"cuda:{os.environ['LOCAL_RANK']}" if given["device"] == "cuda" else given["device"]
    dist.init_process_group()
    loads = [Load(**load) for load in given["loads"]]
    seconds = [measure(load, given["turns"], device, given["seed"]) for load in loads]
    if dist.get_rank() == 0:
        rows = [asdict(load) | {"parameters": load.parameters, "seconds": s} for load, s in zip(loads, seconds, strict=True)]
        pd.DataFrame(rows).to_csv(Path(folder) / "seconds.csv", index=False)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
