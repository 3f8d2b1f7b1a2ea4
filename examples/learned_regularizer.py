"""A learned regulariser: an L2 weight for each coordinate of the adapted parameters, as meta-parameters phi.

Linear regression from 10 points on 20 features, of which only the first 4 play a part. The baselines are no regulariser, and one
learned weight for all coordinates. Run it with: python examples/learned_regularizer.py
"""

import torch
from torch import Generator, Tensor, nn

from amaml_core import AMAML, Euler, Problem, Tasks, evaluate, fit, metrics

FEATURES, USEFUL, SHOTS, STEPS = 20, 4, 10, 20


def sampler(generator: Generator, count: int = 16) -> Tasks:
    weight, x, noise = (torch.randn(count, *size, generator=generator) for size in ((USEFUL, 1), (40, FEATURES), (40, 1)))
    y = x[:, :, :USEFUL] @ weight + 0.3 * noise  # (B, S + Q, 1)
    return Tasks(x[:, :SHOTS], y[:, :SHOTS], x[:, SHOTS:], y[:, SHOTS:])


def penalty(u: Tensor, theta: Tensor, phi: Tensor | None) -> Tensor:
    """Added to the support loss of every task: adapted parameters u (P,), initialisation theta (P,), phi (1,) or (P,)."""
    assert phi is not None
    return (phi.exp() * (u - theta).square()).sum()


def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1)  # of [theta, phi]


def main(meta_steps: int = 50) -> dict[str, float]:
    torch.manual_seed(0)
    model, method = nn.Linear(FEATURES, 1, bias=False), AMAML(horizon=2.0, solver=Euler(steps=STEPS))
    held_out, found, phi = sampler(Generator().manual_seed(1), count=200), {}, None
    for name, count in (("no weight", 0), ("one weight", 1), ("a weight each", FEATURES)):
        problem = Problem(model, nn.functional.mse_loss, regularizer=penalty if count else None)
        start = torch.full((count,), 0.1).log() if count else None
        result = fit(method, problem, sampler, meta_steps, optimizer, progress=False, phi=start)
        table = evaluate(method, problem, result.theta, held_out, metrics.rmse, steps=(STEPS,), phi=result.phi)
        found[name], phi = float(table["query"].mean()), result.phi
        print(f"{name}: held-out error {found[name]:.3f}")
    assert phi is not None
    useful, useless = phi.exp().split((USEFUL, FEATURES - USEFUL))
    print(f"learned weights: {useful.mean():.3f} for the useful features, {useless.mean():.3f} for the others")
    return {**found, "useful": useful.max().item(), "useless": useless.min().item()}


if __name__ == "__main__":
    main()
