"""A model, a loss or a regularizer that changes between two calls: the next call computes with what it is then, traced or not."""

from functools import partial

import pytest
import torch
from problems import regression, relative
from torch import nn
from torch.nn.functional import mse_loss

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    AdamAdaptation,
    Euler,
    GradientDescent,
    InnerLoop,
    Momentum,
    Problem,
    Reptile,
    Tasks,
    adapt,
    fit,
    meta_gradient,
)  # fmt: skip

Fast = partial(Problem, trace_after=0)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(method, make, theta, tasks, state, values, tolerance=0.0):
    """For each value of a state that the problem's functions read: a problem that is used again gives what a fresh one does."""
    used, found = make(Fast), []
    for state[0] in (*values, *values):
        one = meta_gradient(method, used, theta, tasks)
        other = meta_gradient(method, make(partial(Problem, trace=False)), theta, tasks)
        for name in ("gradient", "adapted", "query_loss"):
            assert relative(getattr(one, name).double(), getattr(other, name).double()) <= tolerance, (name, state)
        found.append(other.gradient)
        if len(found) == 1:  # or the model would be compared with itself
            assert [used.graphs.get(key).graphs["step"] is not None for key in used.graphs.keys()] == [True]
    assert not torch.equal(found[0], found[1])  # the change makes a difference
    return used


@pytest.mark.parametrize(
    "method",
    [
        AMAML(0.5, Euler(10), inner=InnerLoop(clip_norm=1e-3)), FOMAML(0.05, 10, inner=InnerLoop(clip_norm=1e-3)),
        IMAML(GradientDescent(0.05, 10, inner=InnerLoop(clip_norm=1e-3)), on_negative_curvature="truncate"),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_a_scale_that_clipping_hides(method):
    problem, theta, tasks = regression()
    scale = [1.0]
    same(method, lambda make: make(problem.model, lambda p, y: scale[0] * mse_loss(p, y)), theta, tasks, scale, (1.0, 0.5, 4.0))


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


def test_a_gradient_that_changes_where_a_mask_hides_it():
    state = [1.0]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(2, 8).double(), nn.Linear(8, 1).double()

        def forward(self, x):
            return self.head(Scaled.apply(torch.tanh(self.body(x)), state[0]))

    model = Model()
    theta, tasks = draw(33), Tasks(*(draw(4, 5, n, seed=n + 1) for n in (2, 1, 2, 1)))
    method = AMAML(0.5, Euler(10), inner=InnerLoop(mask=[False] * 24 + [True] * 9))
    same(method, lambda make: make(model, mse_loss), theta, tasks, state, (1.0, 0.1))


@pytest.mark.parametrize("large", [1e4, 1e7])
def test_a_change_for_some_tasks_beside_one_in_other_units(large):
    state, units = [1.0], torch.tensor([large, 1.0, 1.0, 1.0])[:, None, None]
    model = nn.Linear(3, 1)
    x, y = draw(4, 10, 3, dtype=torch.float32), units * draw(4, 10, 1, dtype=torch.float32, seed=1)
    tasks = Tasks(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])

    def loss(p, y):
        return (torch.where(y.abs() < 0.01 * large, state[0], 1.0) * (p - y).square()).mean()

    used = same(AMAML(0.1, Euler(5)), lambda make: make(model, loss), torch.zeros(4), tasks, state, (1.0, 2.0))
    found = [meta_gradient(AMAML(0.1, Euler(5)), p, torch.zeros(4), tasks) for p in (used, Problem(model, loss, trace=False))]
    assert torch.equal(found[0].adapted[1:], found[1].adapted[1:])


def test_a_regularizer_that_is_small_beside_the_loss():
    state, model = [0.0], nn.Linear(3, 1)
    x, y = draw(4, 10, 3, dtype=torch.float32), 1e5 * draw(4, 10, 1, dtype=torch.float32, seed=1)
    tasks = Tasks(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])
    regularizer = lambda u, theta, phi: state[0] * u.square().sum()  # noqa: E731
    make = lambda make: make(model, mse_loss, regularizer=regularizer)  # noqa: E731
    same(AMAML(5.0, Euler(50)), make, torch.zeros(4), tasks, state, (0.0, 0.02))


def test_slopes_whose_norm_is_too_large_for_half_precision():
    state, half = [100.0], torch.float16
    model = nn.Linear(64, 1, bias=False).to(half)
    x = 255 * torch.rand(32, 16, 64, generator=torch.Generator().manual_seed(0))
    y = x @ draw(32, 64, 1, dtype=torch.float32) * 0.05
    tasks = Tasks(*(part.to(half) for part in (x[:, :8], y[:, :8], x[:, 8:], y[:, 8:])))
    make = lambda make: make(model, lambda p, y: state[0] * (p - y).abs().mean())  # noqa: E731
    same(AMAML(1e-5, Euler(5)), make, draw(64).to(half) / 10, tasks, state, (100.0, 50.0))


@pytest.mark.parametrize("change", ["a constant", "a part of phi alone", "targets of the query sets"])
def test_what_the_query_loss_alone_shows(change):
    state, model = [0.0], nn.Linear(2, 1).double()

    def loss(p, y, phi):
        own = {"a constant": 1.0, "a part of phi alone": phi.square().sum(), "targets of the query sets": (y > 50).double().mean()}
        return phi.square().sum() * mse_loss(p, y) + state[0] * own[change]

    x, y = draw(4, 10, 2), draw(4, 10, 1, seed=1)
    tasks = Tasks(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:] + 100.0)
    used = Fast(model, loss)
    for state[0] in (0.0, 1.0, 0.0, 1.0):
        one, other = (
            meta_gradient(AMAML(0.1, Euler(5)), p, draw(3), tasks, phi=draw(2)) for p in (used, Problem(model, loss, trace=False))
        )
        assert torch.equal(one.query_loss, other.query_loss) and torch.equal(one.phi_gradient, other.phi_gradient)


@pytest.mark.parametrize(
    "method",
    [
        MAML(0.05, 60), Reptile(0.05, 60), AMAML(3.0, Euler(60)), IMAML(GradientDescent(0.05, 60)), AMAML(3.0, Momentum(60)),
        AdamAdaptation(0.05),
    ],
    ids=lambda m: type(m).__name__ + type(getattr(m, "solver", None)).__name__,
)  # fmt: skip
def test_inner_steps_that_are_taken_one_by_one(method):
    problem, theta, tasks = regression()
    scale = [1.0]

    def steps(make):
        scale[0] = 1.0
        used = make(problem.model, lambda p, y: scale[0] * mse_loss(p, y))
        adapt(method, used, theta, tasks, 60)
        step, u = method.inner_step(used, theta, tasks), theta.expand(len(tasks), -1)
        for scale[0] in (1.0, 10.0, 10.0, 1.0):
            u = step(u)
        return u

    assert relative(steps(Fast), steps(partial(Problem, trace=False))) < 1e-12


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("entries", [0, 3, 20])
def test_a_weight_of_the_loss_that_is_written_to(entries, compile):
    problem, theta, tasks = regression()
    weight = torch.ones((1,) * bool(entries) + (entries,) * bool(entries)).double()
    used, plain = (
        Problem(problem.model, lambda p, y: (weight * (p - y).square()).mean(), **options)
        for options in ({"compile": compile, "trace_after": 0}, {"trace": False})
    )
    for value in (1.0, 2.0, 0.5):
        weight.fill_(value)
        found = [meta_gradient(AMAML(0.5, Euler(10)), p, theta, tasks).gradient for p in (used, plain)]
        assert relative(*found) < 1e-12


@pytest.mark.parametrize(
    "method", [AMAML(0.5, Euler(10)), IMAML(GradientDescent(0.05, 10), on_negative_curvature="truncate")],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_the_way_back_after_a_change_and_its_return(method):
    problem, theta, tasks = regression()
    scale = [1.0]
    used = Fast(problem.model, lambda p, y: scale[0] * mse_loss(p, y))
    u, back = method(used, theta, tasks)
    scale[0] = 3.0
    back(torch.ones_like(u))
    scale[0] = 1.0
    expected = meta_gradient(method, Problem(problem.model, mse_loss, trace=False), theta, tasks).gradient
    assert torch.equal(meta_gradient(method, used, theta, tasks).gradient, expected)


def test_a_parameter_that_is_frozen_between_two_steps_or_before_the_way_back():
    problem, theta, tasks = regression()
    method, weight = AMAML(0.5, Euler(10), inner=InnerLoop(weight_decay=0.1)), next(problem.model.parameters())
    used, plain = Fast(problem.model, mse_loss), Problem(problem.model, mse_loss, trace=False)
    step, u = method.inner_step(used, theta, tasks), theta.expand(len(tasks), -1)
    first = step(u)
    end, back = method(used, theta, tasks)
    weight.requires_grad_(False)
    assert torch.equal(step(first)[:, : weight.numel()], first[:, : weight.numel()])
    back(torch.ones_like(end))
    found = [meta_gradient(method, p, theta, tasks) for p in (used, plain)]
    assert torch.equal(found[0].adapted, found[1].adapted) and torch.equal(found[0].gradient, found[1].gradient)
    assert torch.equal(found[0].adapted[:, : weight.numel()], theta[: weight.numel()].expand(len(tasks), -1))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_parameter_that_is_frozen_or_freed_in_the_middle_of_a_training(frozen):
    problem, _, tasks = regression()
    weight, seen = next(problem.model.parameters()), []
    weight.requires_grad_(not frozen)

    def then(step):
        seen.append(step.theta[: weight.numel()].clone())
        if step.meta_step == 3:
            weight.requires_grad_(frozen)

    fit(FOMAML(0.05, 3), problem, lambda _: tasks, 6, lambda p: torch.optim.Adam(p, 0.01), progress=False, callbacks=[then])
    moved = [not torch.equal(one, other) for one, other in zip(seen, seen[1:], strict=False)]
    assert moved == [not frozen] * 2 + [frozen] * 3
