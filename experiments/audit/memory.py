"""Finding 5: what stays alive while the released recipe works through a meta-batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torchdiffeq import odeint

from amaml_core import AMAML, Checkpoint, Euler, Problem, Tasks, meta_gradient

from ..common.memory import LiveBytes
from .settings import INNER_LR


@torch.enable_grad()
def by_task(problem: Problem, theta: Tensor, tasks: Tasks, steps: int, graph: bool, view: bool) -> tuple[Tensor, Tensor]:
    """The released recipe's order of work: one task after another, torchdiffeq forward, Euler back; the adapted parameters of
    all tasks are kept until the end.

    Args:
        problem, theta, tasks: as everywhere.
        steps: K.
        graph: theta requires a gradient, so the stored solution remembers how it came from theta, though nobody asks.
        view: the adapted parameters are kept as the last row of the stored solution, which keeps all of it alive, not as a copy.

    Returns:
        The adapted parameters (B, P) and the meta-gradient (P,), both as ``Audited`` has them with all switches at released.
    """
    horizon = INNER_LR * steps
    start = theta.detach().clone().requires_grad_(graph)
    fixed = start.detach()
    times = torch.linspace(0, horizon, steps + 1, dtype=theta.dtype)
    h, ends, gradients = horizon / steps, [], []
    for b in range(len(tasks)):
        task = tasks[b : b + 1]

        def slope(t: Tensor, u: Tensor, task: Tasks = task) -> Tensor:
            return -problem.gradient(u.detach()[None], *task.support)[0] - (u.detach() - fixed)

        path = odeint(slope, start, times, method="rk4")  # (K + 1, P)
        end = path[-1] if view else path[-1].clone()
        lam = problem.gradient(end.detach()[None], *task.query)[0] + end.detach() - fixed
        total = lam.clone()
        for k in range(steps, -1, -1):
            lam = lam - h * (problem.hvp(path[k].detach()[None], *task.support, lam[None])[0] + lam)
            total += lam
        ends.append(end)
        gradients.append(lam + h * total + fixed - end.detach())
    return torch.stack(ends), torch.stack(gradients).mean(0)


@torch.enable_grad()
def unrolled_by_task(problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> tuple[Tensor, Tensor]:
    """Plain unrolling, one task after another, each graph freed before the next: adapted (B, P) and meta-gradient (P,)."""
    ends, gradients = [], []
    for b in range(len(tasks)):
        task, start = tasks[b : b + 1], theta.detach().clone().requires_grad_()
        u = start[None]
        for _ in range(steps):
            u = u - INNER_LR * problem.gradient(u, *task.support, create_graph=True)
        gradients.append(torch.autograd.grad(problem.losses(u, *task.query).sum(), start)[0])
        ends.append(u[0].detach())
    return torch.stack(ends), torch.stack(gradients).mean(0)


def nodes(tensor: Tensor) -> int:
    """How many nodes of an autograd graph a tensor keeps alive."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return len(seen)


def ways(problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> dict[str, Callable[[], object]]:
    """What the memory cells compare: each gives adapted parameters and a meta-gradient."""
    ours = AMAML(INNER_LR * steps, Euler(steps))

    def meta(method: AMAML) -> tuple[Tensor, Tensor]:
        estimate = meta_gradient(method, problem, theta, tasks)
        return estimate.adapted, estimate.gradient

    recipe = partial(by_task, problem, theta, tasks, steps)
    return {
        "released": partial(recipe, graph=True, view=True),
        "released, without graph": partial(recipe, graph=False, view=True),
        "released, adapted parameters copied": partial(recipe, graph=True, view=False),
        "released, without graph, copied": partial(recipe, graph=False, view=False),
        "unrolled task by task": partial(unrolled_by_task, problem, theta, tasks, steps),
        "ours, Store": partial(meta, ours),
        "ours, Checkpoint": partial(meta, replace(ours, memory=Checkpoint())),
    }


def measure(problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> pd.DataFrame:
    """What each way of working needs for one meta-gradient.

    Returns:
        For each ``way``: ``peak``, the live bytes at their most; ``nodes`` of the graph kept alive at the end; and ``seconds`` of
        one call without the counters.
    """
    rows = []
    for name, work in ways(problem, theta, tasks, steps).items():
        if name.startswith("ours"):
            work()  # what is made once, the traced steps, does not count
        started = time.perf_counter()
        adapted, _ = work()
        seconds = time.perf_counter() - started
        alive = nodes(adapted)
        del adapted
        with LiveBytes() as live:
            work()
        rows.append({"way": name, "peak": live.peak, "nodes": alive, "seconds": seconds})
    return pd.DataFrame(rows)
