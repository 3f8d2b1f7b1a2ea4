"""Traced and compiled steps give the model's own gradients, for every normalisation layer, and give way where they would not."""

import gc
import warnings
import weakref
from dataclasses import replace
from functools import partial

import problems
import pytest
import torch
from problems import CASES, relative
from torch import nn

import amaml_core
from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    RK4,
    AdamAdaptation,
    Backsolve,
    Checkpoint,
    Euler,
    GradientDescent,
    Heun,
    InnerLoop,
    Reptile,
    meta_gradient,
    tracing,
)
from amaml_core.fast_tanh import rational_tanh

Problem = partial(amaml_core.Problem, trace_after=1)  # whatever comes for the second time


def regression():
    problem, *rest = problems.regression()
    return Problem(problem.model, problem.loss), *rest


def plain(problem):
    return Problem(problem.model, problem.loss, chunk_size=problem.chunk_size, trace=False)


def graphs(problem):
    """Which functions of a kernel have a graph, by the name of the function."""
    seen = [problem.graphs.get(key) for key in problem.graphs.keys()]
    return {
        name for entry in seen for name, graph in entry.graphs.items() if graph is not None and name in ("field", "step", "back")
    }


def both(method, problem, theta, tasks, compile, names=("step", "back")):
    own = meta_gradient(method, plain(problem), theta, tasks)
    fast = Problem(problem.model, problem.loss, compile, problem.chunk_size)
    for _ in range(1 if compile else 2):
        found = meta_gradient(method, fast, theta, tasks)
    assert graphs(fast) == set(names)  # giving way would make this test compare the model with itself
    return own, found


@pytest.mark.parametrize("case", ["mlp", "BatchNorm"])
def test_compiled_steps_are_those_of_the_model(case):
    own, fast = both(AMAML(0.4, Euler(5)), *CASES[case](), compile=True)
    assert relative(fast.gradient, own.gradient) < 1e-11 and relative(fast.adapted, own.adapted) < 1e-12
    assert fast.stats["steps"] == 5


@pytest.mark.parametrize("case", sorted(CASES))
def test_traced_steps_are_those_of_the_model(case):
    own, fast = both(AMAML(0.4, Euler(5)), *CASES[case](), compile=False)
    assert torch.equal(fast.gradient, own.gradient) and torch.equal(fast.adapted, own.adapted)  # so any mixture is, too


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
def test_every_kind_of_step_can_be_traced(method):
    names = ("step",) if isinstance(method.memory, Backsolve) else ("step", "back")
    eager, fast = both(method, *regression(), compile=False, names=names)
    assert relative(fast.gradient, eager.gradient) < 1e-10
    for name in ("step_size_gradient", "horizon_gradient"):
        if name in eager.stats:
            assert relative(fast.stats[name], eager.stats[name]) < 1e-10


@pytest.mark.parametrize(
    "method",
    [FOMAML(0.05, 4), Reptile(0.05, 4), IMAML(GradientDescent(0.05, 4), 2.0, cg_steps=3)],
    ids=lambda m: type(m).__name__,
)
def test_the_other_methods_descend_by_traced_steps_too(method):
    own, fast = both(method, *regression(), compile=False, names=("step",))
    assert relative(fast.gradient, own.gradient) < 1e-11 and relative(fast.adapted, own.adapted) < 1e-12


@pytest.fixture
def count(monkeypatch):
    """How often a step has been traced."""
    counts = []
    original = tracing._trace
    monkeypatch.setattr(
        tracing,
        "_trace",
        lambda *given: (given[-1] in ("step", "back", "field") and counts.append(given[-1])) and None or original(*given),
    )
    return counts


def test_steps_are_traced_once_for_each_shape_and_take_new_data(count):
    problem, theta, tasks = regression()
    method, own = AMAML(0.4, Euler(5)), plain(problem)
    first = meta_gradient(method, problem, theta, tasks).gradient
    assert count == []  # a shape that comes once is not worth it
    longer = meta_gradient(replace(method, solver=Euler(9), horizon=0.5), problem, theta, tasks).gradient
    moved = meta_gradient(method, problem, theta + 0.1, tasks[[2, 0, 1]]).gradient
    assert count == ["step", "back"]
    assert relative(longer, meta_gradient(AMAML(0.5, Euler(9)), own, theta, tasks).gradient) < 1e-11
    assert relative(moved, meta_gradient(method, own, theta + 0.1, tasks[[2, 0, 1]]).gradient) < 1e-11
    for _ in range(3):
        meta_gradient(method, problem, theta, tasks[:2])
    assert len(count) == 4 and torch.equal(first, meta_gradient(method, problem, theta, tasks).gradient)


def test_a_shape_is_traced_when_it_has_taken_enough_steps(count):
    problem, theta, tasks = problems.regression()
    problem = replace(problem, trace_after=20)
    first = [meta_gradient(AMAML(0.4, Euler(5)), problem, theta, tasks).gradient for _ in range(4)]
    assert count == []
    assert torch.equal(meta_gradient(AMAML(0.4, Euler(5)), problem, theta, tasks).gradient, first[0]) and count == ["step", "back"]


def test_a_step_traced_without_its_way_back_is_not_taken_for_one_with_it():
    problem, theta, tasks = regression()
    fast = Problem(problem.model, problem.loss)
    for _ in range(2):
        meta_gradient(AMAML(0.05, Euler(200), Backsolve()), fast, theta, tasks)
    method = AMAML(0.05, Euler(200), adjoint="continuous")
    expected = meta_gradient(method, plain(problem), theta, tasks).gradient
    assert relative(meta_gradient(method, fast, theta, tasks).gradient, expected) < 1e-11


def test_a_loss_that_has_changed_is_noticed_and_traced_anew(count):
    problem, theta, tasks = regression()
    scale = [1.0]
    changing = Problem(problem.model, lambda p, y: scale[0] * nn.functional.mse_loss(p, y))
    method = AMAML(0.4, Euler(5))
    for scale[0] in (1.0, 1.0, 0.99, 0.99, 0.99, 0.5, *range(1, 20)):
        expected = meta_gradient(method, plain(changing), theta, tasks).gradient
        assert relative(meta_gradient(method, changing, theta, tasks).gradient, expected) < 1e-11
    # what keeps changing is not traced for ever
    assert count.count("step") <= tracing.CHANGES + 1


@pytest.mark.parametrize("traceable", [("gradient", "step", "back"), ("gradient", "back")], ids="-".join)
def test_the_way_back_is_traced_only_beside_a_step_that_was_compared(traceable, monkeypatch):
    # What is traced beside a step that was not, no later comparison would find changed.
    problem, theta, tasks = regression()
    scale, trace = [1.0], tracing._trace
    monkeypatch.setattr(tracing, "_trace", lambda *given: trace(*given) if given[-1] in traceable else None)
    changing = Problem(problem.model, lambda p, y: scale[0] * nn.functional.mse_loss(p, y), trace_after=0)
    method = AMAML(0.4, Euler(5))
    for scale[0] in (1.0, 1.1, 1.0, 1.0, 1.2):
        expected = meta_gradient(method, plain(changing), theta, tasks).gradient
        assert relative(meta_gradient(method, changing, theta, tasks).gradient, expected) < 1e-11
        assert graphs(changing) == ({"step", "back"} if scale[0] == 1.0 and "step" in traceable else set())


def test_adam_notices_that_the_loss_has_changed_also_where_the_slope_is_small():
    problem, theta, tasks = regression()
    scale = [1e-3]
    changing = Problem(problem.model, lambda p, y: scale[0] * nn.functional.mse_loss(p, y))
    for scale[0] in (1e-3, 1.5e-3):
        step = AdamAdaptation(1e-2).inner_step(changing, theta, tasks)
        u = theta.expand(len(tasks), -1)
        for _ in range(3):
            u = step(u)
        slow = AdamAdaptation(1e-2).inner_step(plain(changing), theta, tasks)
        expected = theta.expand(len(tasks), -1)
        for _ in range(3):
            expected = slow(expected)
        assert relative(u, expected) < 1e-11


def test_a_problem_takes_its_graphs_with_it():
    problem, theta, tasks = regression()
    problem = Problem(problem.model, problem.loss)
    meta_gradient(AMAML(0.4, Euler(2)), problem, theta, tasks)
    gone = weakref.ref(problem)
    del problem
    gc.collect()
    assert gone() is None


def test_rational_tanh_is_tanh_to_single_precision():
    x = torch.cat([torch.logspace(-8, 1.2, 20_001), torch.zeros(1)])
    x = torch.cat([x, -x, torch.tensor([torch.inf, -torch.inf, torch.nan])])
    exact = x.double().tanh()
    error = (rational_tanh(x).double() - exact).abs() / exact.abs().clamp(min=1e-30)
    assert error[:-1].max() < 5e-7 and rational_tanh(x)[-1].isnan()
    assert rational_tanh(torch.linspace(-10, 10, 200_001)).abs().max() == 1  # so that 1 - tanh² is never negative


class Branching(nn.Module):
    """A model whose computation depends on its data: it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x) if x.sum().item() > 0 else -self.layer(x)


@pytest.mark.parametrize("compile", [False, True])
def test_a_model_that_cannot_be_traced_runs_as_it_is(compile):
    _, _, tasks = regression()
    problem = Problem(Branching(), nn.functional.mse_loss, compile=compile, chunk_size=1)
    theta, method = problem.initial_parameters(), AMAML(0.4, Euler(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimate = meta_gradient(method, problem, theta, tasks)
    assert ["cannot be compiled and runs eagerly" in str(w.message) for w in caught] == [True] * compile
    assert torch.equal(estimate.gradient, meta_gradient(method, plain(problem), theta, tasks).gradient)
