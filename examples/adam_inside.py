"""Adam as the inner optimiser: the gradient of the unrolled loop without its graph, and what the ways of keeping states cost.

The baselines are torch's own Adam(differentiable=True), unrolled by autograd, and the first-order gradient, which takes the inner
loop for the identity. Run it with: python examples/adam_inside.py
"""

from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from amaml_core import AMAML, FOMAML, Adam, Checkpoint, Problem, Tasks, meta_gradient

STEPS, LR = 64, 0.01  # the learning rate is horizon / steps
ADAM = Adam(steps=STEPS)
METHODS: dict[str, tuple[Any, int]] = {  # and how many states (u, m, v) each keeps at a time
    "store all states": (AMAML(horizon=STEPS * LR, solver=ADAM), STEPS),
    "the first of 8 segments, and one segment": (AMAML(horizon=STEPS * LR, solver=ADAM, memory=Checkpoint()), 8 + 8),
    "5 snapshots": (AMAML(horizon=STEPS * LR, solver=ADAM, memory=Checkpoint(snapshots=5)), 5),
    "first order": (FOMAML(lr=LR, steps=STEPS, solver=ADAM), 1),
}


def unrolled(problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, int]:
    """The meta-gradient (P,) by autograd, one task after the other, and the bytes that the graph of a task keeps."""
    gradient, kept = torch.zeros_like(theta), dict[int, int]()
    for support_x, support_y, query_x, query_y in zip(*tasks.tensors, strict=True):
        start = theta.clone().requires_grad_()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
            u = start.clone()  # (P,)
            adam = torch.optim.Adam([u], lr=LR, differentiable=True)
            for _ in range(STEPS):
                (u.grad,) = torch.autograd.grad(problem.loss_one(u.clone(), support_x, support_y), u, create_graph=True)
                adam.step()
            gradient += torch.autograd.grad(problem.loss_one(u, query_x, query_y), start)[0] / len(tasks)
    return gradient, sum(kept.values())


def main() -> dict[str, float]:
    torch.set_default_dtype(torch.float64)  # in which torch.optim.Adam corrects its biases, whatever the parameters are
    torch.manual_seed(0)
    problem = Problem(nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1)), nn.functional.mse_loss, trace=False)
    x, phase = torch.rand(4, 100, 1), torch.rand(4, 1, 1)  # 4 tasks, 50 points to adapt to and 50 to judge by
    y, theta = torch.sin(8 * x + 3 * phase), problem.initial_parameters()
    tasks, began = Tasks(x[:, :50], y[:, :50], x[:, 50:], y[:, 50:]), perf_counter()
    reference, size = unrolled(problem, theta, tasks)
    print(f"unrolled by autograd: {size / 1000:.0f} kB a task, {perf_counter() - began:.1f} s")
    found = {"unrolled kB": size / 1000}
    for name, (method, states) in METHODS.items():
        began, gradient = perf_counter(), meta_gradient(method, problem, theta, tasks).gradient
        found[name], size = ((gradient - reference).norm() / reference.norm()).item(), 3 * states * theta.nbytes
        print(f"{name}: {size / 1000:.1f} kB a task, {perf_counter() - began:.1f} s, relative difference {found[name]:.1e}")
    return found


if __name__ == "__main__":
    main()
