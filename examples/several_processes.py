"""One training run in several processes: torchrun starts them, fit shares the tasks out, and the result is that of one process.

The baseline is the untrained model. Run it with: python examples/several_processes.py
In two processes: torchrun --nproc-per-node 2 examples/several_processes.py, with as many as there are GPUs where there are some.
"""

import os
from functools import partial

import torch
from torch import Generator, Tensor, nn

from amaml_core import AMAML, Euler, Problem, Tasks, fit, meta_gradient

METHOD = AMAML(horizon=0.5, solver=Euler(steps=5))


def curves(generator: Generator, device: str, count: int = 10) -> Tasks:  # drawn on the CPU: the same on every machine
    amplitude, phase = torch.rand(2, count, 1, 1, generator=generator, dtype=torch.float64)
    x = 6 * torch.rand(count, 25, 1, generator=generator, dtype=torch.float64) - 3  # (B, S + Q, 1)
    y = (0.5 + 1.5 * amplitude) * torch.sin(x + 3 * phase)
    return Tasks(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:]).to(device)


def loss(problem: Problem, theta: Tensor, tasks: Tasks) -> float:
    return meta_gradient(METHOD, problem, theta, tasks).query_loss.mean().item()


def main(checkpoint: str | None = None, meta_steps: int = 200) -> dict[str, float]:
    rank = int(os.environ.get("LOCAL_RANK", 0))  # among the processes of this machine
    device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)  # the same start on every rank
    model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1)).double().to(device)
    problem, sampler = Problem(model, nn.functional.mse_loss), partial(curves, device=device)
    held_out = curves(torch.Generator().manual_seed(1), device, 100)
    start = problem.initial_parameters()
    # Every rank draws the same ten tasks and solves its part of them; rank 0 alone writes the checkpoint.
    result = fit(METHOD, problem, sampler, meta_steps, partial(torch.optim.Adam, lr=0.02), checkpoint, validation=held_out)
    found = {"before": loss(problem, start, held_out), "after": loss(problem, result.theta, held_out)}
    if int(os.environ.get("RANK", 0)) == 0:  # among all processes
        print({name: round(value, 12) for name, value in found.items()}, "in", os.environ.get("WORLD_SIZE", 1), "processes")
    return found


if __name__ == "__main__":
    main()
