"""Meta-SGD: a learned step size for each parameter, as meta-parameters phi that are trained along with the initialisation.

Linear regression on features in different units: the largest one bounds a common step size, and the small ones are then never
learned. The baselines are fixed step sizes, each with an initialisation of its own. Run it with: python examples/meta_sgd.py
"""

import torch
from torch import Generator, Tensor, nn

from amaml_core import AMAML, Euler, Problem, Tasks, evaluate, fit, metrics

STEPS = 5
SCALE = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.3])  # of the features; each counts alike for the target


def sampler(generator: Generator, count: int = 16) -> Tasks:
    weight = 1 + torch.randn(count, 1, len(SCALE), generator=generator)  # (B, 1, D), what a task has to learn
    z = torch.randn(count, 30, len(SCALE), generator=generator)
    y = (weight * z).sum(2, keepdim=True) + 0.1 * torch.randn(count, 30, 1, generator=generator)
    x = SCALE * z
    return Tasks(x[:, :20], y[:, :20], x[:, 20:], y[:, 20:])


def step_sizes(phi: Tensor) -> Tensor:
    return phi.exp()[None]  # (P,) -> (1, P): the same in all steps, one for each parameter


def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)  # [theta, phi]


def main(meta_steps: int = 150) -> dict[str, float]:
    torch.manual_seed(0)
    problem = Problem(nn.Linear(len(SCALE), 1, bias=False), nn.functional.mse_loss)
    held_out, errors = sampler(Generator().manual_seed(1), count=200), {}

    def judge(name: str, method: AMAML, theta: Tensor, phi: Tensor | None = None) -> None:
        table = evaluate(method, problem, theta, held_out, metrics.rmse, steps=(0, STEPS), phi=phi)
        errors[name] = float(table.loc[table["step"] == STEPS, "query"].mean())
        print(f"{name:>10}: held-out error {errors[name]:.3f} after {STEPS} steps")

    for size in (0.02, 0.05, 0.1):
        fixed = AMAML(horizon=STEPS * size, solver=Euler(STEPS))
        judge(f"fixed {size}", fixed, fit(fixed, problem, sampler, meta_steps, optimizer, progress=False).theta)

    learned = AMAML(solver=Euler(STEPS), step_sizes=step_sizes)
    start = torch.full((problem.size,), 0.05).log()  # (P,)
    result = fit(learned, problem, sampler, meta_steps, optimizer, progress=False, phi=start)
    judge("Meta-SGD", learned, result.theta, result.phi)
    assert result.phi is not None  # as there was one to start from
    print("scales of the features:", *(f"{scale:.2f}" for scale in SCALE))
    print("learned step sizes:    ", *(f"{size:.2f}" for size in result.phi.exp()))
    return errors


if __name__ == "__main__":
    main()
