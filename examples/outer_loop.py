"""An outer loop of your own: meta_loss is a loss like any other, for PyTorch's loaders, optimisers and distributed wrappers.

It runs plain and, if installed, under Accelerate. The baseline is the untrained model. Run it with: python examples/outer_loop.py
"""

from importlib import import_module, util
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from amaml_core import AMAML, Euler, Problem, Tasks, meta_loss


class Learner(nn.Module):  # its forward is the loss, so that what wraps the module sees the parameters used
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1))
        self.problem, self.method = Problem(self.model, nn.functional.mse_loss), AMAML(horizon=0.5, solver=Euler(steps=5))

    def forward(self, tasks: list[Tasks]) -> Tensor:
        return meta_loss(self.method, self.problem, self.model, tasks)


def curve(generator: Generator, shots: int) -> Tasks:
    amplitude, phase, x = (torch.rand(1, n, 1, generator=generator) for n in (1, 1, 20))
    x, y = 6 * x - 3, (0.5 + 1.5 * amplitude) * torch.sin(6 * x - 3 + 3 * phase)  # (1, S + Q, 1), one task
    return Tasks(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def train(prepare: Any = lambda *parts: parts, backward: Any = Tensor.backward, clip: Any = nn.utils.clip_grad_norm_) -> nn.Module:
    generator, learner = torch.manual_seed(0), Learner()
    data: Any = [curve(generator, shots) for shots in (5, 10) * 512]
    loader = DataLoader(data, batch_size=16, shuffle=True, collate_fn=list, generator=generator)  # of lists of Tasks
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(loader))
    learner, optimizer, scheduler, loader = prepare(learner, optimizer, scheduler, loader)
    for tasks in loader:
        optimizer.zero_grad()
        backward(learner(tasks))
        clip(learner.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return learner


def main(wrapped: tuple[Any, ...] = ()) -> dict[str, float]:
    if not wrapped and util.find_spec("accelerate"):
        accelerator = import_module("accelerate").Accelerator(cpu=True)
        wrapped = accelerator.prepare, accelerator.backward, accelerator.clip_grad_norm_
    held_out = [curve(generator, shots) for generator in [torch.manual_seed(1)] for shots in (5, 10) * 50]
    learners = {"before": Learner(), "after": train()} | ({"wrapped": train(*wrapped)} if wrapped else {})
    found = {name: learner(held_out).item() for name, learner in learners.items()}
    print({name: round(loss, 5) for name, loss in found.items()}, "" if wrapped else "(Accelerate is not installed)")
    return found


if __name__ == "__main__":
    main()
