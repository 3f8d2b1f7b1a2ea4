"""Your own model and tasks: the meta-gradient, meta-training, adaptation to new tasks, a file of the trained initialisation.

Sine curves, ten points of each to adapt to. The baseline is the same network, trained on the points of all curves as one data
set and adapted by the same inner loop. Run it with: python examples/own_model.py
"""

import tempfile
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from amaml_core import AMAML, Euler, Problem, Tasks, evaluate, fit, load_initialisation, meta_gradient, metrics, save_initialisation


class Curve(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.wave, self.mix, self.head = nn.Linear(1, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:  # (n, 1) -> (n, 1), the points of one task
        return self.head(torch.tanh(self.mix(torch.tanh(self.wave(x)))))


def sampler(generator: Generator, count: int = 16) -> Tasks:
    amplitude, phase, x = (torch.rand(count, n, 1, generator=generator) for n in (1, 1, 20))
    x, y = 6 * x - 3, (0.5 + 1.5 * amplitude) * torch.sin(6 * x - 3 + 3 * phase)  # (B, S + Q, 1)
    return Tasks(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])  # support x and y, query x and y


def main(meta_steps: int = 200) -> dict[str, float]:
    torch.manual_seed(0)
    problem, pooled = Problem(Curve(), nn.functional.mse_loss), Problem(Curve(), nn.functional.mse_loss)
    method = AMAML(horizon=0.5, solver=Euler(steps=5))  # five steps of size 0.1
    gradient = meta_gradient(method, problem, problem.initial_parameters(), sampler(Generator().manual_seed(1))).gradient  # (P,)
    print(f"the meta-gradient of {len(gradient)} parameters has the norm {gradient.norm():.3f}")
    result = fit(method, problem, sampler, meta_steps, lambda p: torch.optim.Adam(p, lr=5e-3), progress=False)

    generator, optimizer = Generator().manual_seed(0), torch.optim.Adam(pooled.model.parameters(), lr=5e-3)
    for tasks in (sampler(generator) for _ in range(meta_steps)):
        optimizer.zero_grad()
        nn.functional.mse_loss(pooled.model(tasks.query_x), tasks.query_y).backward()
        optimizer.step()

    errors, held_out = {}, sampler(Generator().manual_seed(2), count=100)
    for name, theta in (("meta-trained", result.theta), ("pooled", pooled.initial_parameters())):
        table = evaluate(method, problem, theta, held_out, metrics.rmse, steps=(0, 1, 5, 50)).groupby("step")["query"].mean()
        print(f"{name:>12}: held-out error after", ", ".join(f"{step} steps {error:.3f}" for step, error in table.items()))
        errors[name] = float(table[5])
    with tempfile.TemporaryDirectory() as folder:
        save_initialisation(Path(folder, "curve.safetensors"), problem, result.theta)
        loaded = problem.module(load_initialisation(Path(folder, "curve.safetensors"), problem).theta)  # a plain Curve
    errors["file"] = (loaded(held_out.query_x) - problem.module(result.theta)(held_out.query_x)).abs().max().item()
    print("predictions of the module from the file differ by", errors["file"])
    return errors


if __name__ == "__main__":
    main()
