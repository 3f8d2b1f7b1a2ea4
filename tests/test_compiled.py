"""Compiled steps give the eager gradients, for every normalisation layer, and fall back where they cannot be compiled."""

import warnings
from dataclasses import replace

import pytest
import torch
from problems import CASES, regression, relative
from torch import nn

from amaml_core import AMAML, RK4, Backsolve, Checkpoint, Euler, Heun, InnerLoop, Problem, compiled, meta_gradient


def both(method, problem, theta, tasks):
    eager = meta_gradient(method, problem, theta, tasks)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the inner step")  # falling back would make this test compare eager with eager
        fast = meta_gradient(method, Problem(problem.model, problem.loss, compile=True), theta, tasks)
    return eager, fast


@pytest.fixture
def traced_alone(monkeypatch):
    """Run the traced graphs as they are: the compiler takes seconds for each, and what could go wrong is the trace."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)


@pytest.mark.parametrize("case", ["mlp", "BatchNorm"])
def test_compiled_steps_equal_eager_ones(case):
    eager, fast = both(AMAML(0.4, Euler(5)), *CASES[case]())
    assert relative(fast.gradient, eager.gradient) < 1e-11 and relative(fast.adapted, eager.adapted) < 1e-12
    assert fast.stats["steps"] == 5


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"BatchNorm"}))
def test_traced_steps_equal_eager_ones(case, traced_alone):
    eager, fast = both(AMAML(0.4, Euler(5)), *CASES[case]())
    assert relative(fast.gradient, eager.gradient) < 1e-11 and relative(fast.adapted, eager.adapted) < 1e-12


@pytest.mark.parametrize(
    "method",
    [
        AMAML(0.4, Heun(3), Checkpoint(), proximal=0.7, inner=InnerLoop(0.1, minibatch=3, clip_norm=1.0)),
        AMAML(0.4, RK4(3), adjoint="continuous"),
        AMAML(0.4, RK4(10), Backsolve()),
        AMAML(0.4, Euler(3), sensitivities=True, step_sizes=torch.linspace(0.05, 0.2, 18, dtype=torch.float64).view(3, 6)),
    ],
    ids=["options", "continuous", "backsolve", "sensitivities"],
)
def test_every_kind_of_step_can_be_traced(method, traced_alone):
    eager, fast = both(method, *regression())
    assert relative(fast.gradient, eager.gradient) < 1e-10
    for name in ("step_size_gradient", "horizon_gradient"):
        if name in eager.stats:
            assert relative(fast.stats[name], eager.stats[name]) < 1e-10


def test_compiled_steps_are_compiled_once_for_each_shape_and_take_new_data(traced_alone, monkeypatch):
    count = 0
    original = compiled._compile

    def counting(*arguments):
        nonlocal count
        count += 1
        return original(*arguments)

    monkeypatch.setattr(compiled, "_compile", counting)
    problem, theta, tasks = regression()
    problem = Problem(problem.model, problem.loss, compile=True)
    method = AMAML(0.4, Euler(5))
    first = meta_gradient(method, problem, theta, tasks).gradient
    longer = meta_gradient(replace(method, solver=Euler(9), horizon=0.5), problem, theta, tasks).gradient
    moved = meta_gradient(method, problem, theta + 0.1, tasks[[2, 0, 1]]).gradient
    assert count == 1
    eager = Problem(problem.model, problem.loss)
    assert relative(longer, meta_gradient(AMAML(0.5, Euler(9)), eager, theta, tasks).gradient) < 1e-11
    assert relative(moved, meta_gradient(method, eager, theta + 0.1, tasks).gradient) < 1e-11
    meta_gradient(method, problem, theta, tasks[:2])
    assert count == 2 and torch.equal(first, meta_gradient(method, problem, theta, tasks).gradient)


class Branching(nn.Module):
    """A model whose computation depends on its data: it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x) if x.sum().item() > 0 else -self.layer(x)


def test_a_model_that_cannot_be_traced_runs_eagerly_after_a_warning():
    _, _, tasks = regression()
    problem = Problem(Branching(), nn.functional.mse_loss, compile=True, chunk_size=1)
    theta, method = problem.initial_parameters(), AMAML(0.4, Euler(3))
    with pytest.warns(UserWarning, match="cannot be compiled and runs eagerly"):
        estimate = meta_gradient(method, problem, theta, tasks)
    expected = meta_gradient(method, Problem(problem.model, problem.loss, chunk_size=1), theta, tasks)
    assert torch.equal(estimate.gradient, expected.gradient)
