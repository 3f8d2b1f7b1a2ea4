"""Momentum and Adam as inner solvers: the steps of torch.optim, and meta-gradients of loops written out by hand, in float64."""

import copy
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from problems import F64, central_difference, check_against_central_differences, quadratic, regression, relative
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from amaml_core import (
    AMAML,
    MAML,
    Adam,
    Backsolve,
    Checkpoint,
    Euler,
    InnerLoop,
    Momentum,
    Problem,
    Store,
    Tasks,
    adapt,
    evaluate,
    meta_gradient,
)

LR = 0.03
SOLVERS = {
    "momentum": partial(Momentum, beta=0.8),
    "nesterov": partial(Momentum, beta=0.8, nesterov=True),
    "beta 0": partial(Momentum, beta=0.0),
    "Adam": Adam,
    "Adam, coupled": partial(Adam, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.1),
    "AdamW": partial(Adam, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.2, decoupled=True),
    "RMSprop": partial(Adam, beta1=0.0, beta2=0.9, eps=1e-4),
}
LOOPS = {
    "plain": InnerLoop(),
    "decay": InnerLoop(weight_decay=0.3),
    "minibatches": InnerLoop(minibatch=2, seed=3),
    "clipping": InnerLoop(clip_norm=0.5, weight_decay=0.1),
    "mask": InnerLoop(mask=torch.arange(105) >= 24, weight_decay=0.1),
}
MEMORIES = [Store(), Store(graphs=4), Checkpoint(), Checkpoint(snapshots=3)]


def rows(inner, points, steps):
    """The support points of each step: passes over the reshuffled set, without its rest."""
    if inner.minibatch is None:
        return [slice(None)] * steps
    generator, found = torch.Generator().manual_seed(inner.seed), []
    while len(found) < steps:
        whole = torch.randperm(points, generator=generator).split(inner.minibatch)
        found += [part for part in whole if len(part) == inner.minibatch]
    return found[:steps]


def torch_optim(solver, inner, problem, theta, tasks, steps):
    """Adapted parameters (B, P) of the modules themselves, by PyTorch's optimisers. A mask consists of whole tensors here."""
    found = []
    for b in range(len(tasks)):
        module = copy.deepcopy(problem.model)
        vector_to_parameters(theta.clone(), module.parameters())
        if inner.mask is not None:
            for p, part in zip(module.parameters(), inner.mask.split([p.numel() for p in module.parameters()]), strict=True):
                p.requires_grad_(p.requires_grad and bool(part.all()))
        moving = [p for p in module.parameters() if p.requires_grad]
        if isinstance(solver, Momentum):
            optimizer = torch.optim.SGD(moving, LR, solver.beta, nesterov=solver.nesterov)
        else:
            kind = torch.optim.AdamW if solver.decoupled else torch.optim.Adam
            optimizer = kind(moving, LR, (solver.beta1, solver.beta2), solver.eps, solver.weight_decay)
        for points in rows(inner, tasks.shots, steps):
            loss = problem.loss(module(tasks.support_x[b, points]), tasks.support_y[b, points])
            loss = loss + inner.weight_decay / 2 * sum(p.square().sum() for p in moving)
            optimizer.zero_grad()
            loss.backward()
            norm = parameters_to_vector([p.grad for p in moving]).norm()
            if inner.clip_norm is not None and norm > inner.clip_norm:  # PyTorch's own clipping adds 1e-6 to the norm
                for p in moving:
                    p.grad *= inner.clip_norm / norm
            optimizer.step()
        found.append(parameters_to_vector(module.parameters()).detach())
    return torch.stack(found)


def by_hand(solver, inner, problem, theta, tasks, free=None):
    """The meta-gradient by autograd through a loop over tasks and steps, in which what does not move has no part."""
    names = {name: p.shape for name, p in problem.model.named_parameters()}

    def loss(u, x, y):
        pieces = u.split([shape.numel() for shape in names.values()])
        return problem.loss(
            functional_call(problem.model, {n: p.view(s) for (n, s), p in zip(names.items(), pieces, strict=True)}, (x,)), y
        )

    moves = torch.ones_like(theta, dtype=torch.bool) if inner.mask is None else inner.mask
    moves = moves if free is None else moves & free
    total = torch.zeros_like(theta)
    for b in range(len(tasks)):
        start = theta.clone().requires_grad_()
        u, m, v = start[moves], 0.0, 0.0
        for k, points in enumerate(rows(inner, tasks.shots, solver.steps)):
            value = loss(start.masked_scatter(moves, u), tasks.support_x[b, points], tasks.support_y[b, points])
            g = torch.autograd.grad(value + inner.weight_decay / 2 * u.square().sum(), u, create_graph=True)[0]
            if inner.clip_norm is not None and g.norm() > inner.clip_norm:
                g = g * inner.clip_norm / g.norm()
            if isinstance(solver, Momentum):
                m = solver.beta * m + g
                u = u - LR * (g + solver.beta * m if solver.nesterov else m)
                continue
            if solver.decoupled:
                u = u * (1 - LR * solver.weight_decay)
            else:
                g = g + solver.weight_decay * u
            m = solver.beta1 * m + (1 - solver.beta1) * g
            v = solver.beta2 * v + (1 - solver.beta2) * g**2
            u = u - LR * m / (1 - solver.beta1 ** (k + 1)) / ((v / (1 - solver.beta2 ** (k + 1))).sqrt() + solver.eps)
        total += torch.autograd.grad(loss(start.masked_scatter(moves, u), tasks.query_x[b], tasks.query_y[b]), start)[0]
    total = total / len(tasks)
    return total if free is None else total * free


def case(frozen=False):
    problem, theta, tasks = regression(tasks=2)
    if frozen:
        problem.model[2].weight.requires_grad_(False)
    return problem, theta, tasks


@cache
def expected(name, steps, loop="plain", frozen=False):
    problem, theta, tasks = case(frozen)
    free = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in problem.model.parameters()])
    solver = SOLVERS[name](steps)
    adapted = torch_optim(solver, LOOPS[loop], problem, theta, tasks, steps)
    return adapted, by_hand(solver, LOOPS[loop], problem, theta, tasks, free)


def check(estimate, adapted, gradient):
    assert relative(estimate.adapted, adapted) < 1e-12
    assert relative(estimate.gradient, gradient) < 1e-10


@pytest.mark.parametrize(
    ("name", "steps"), [*((name, steps) for name in SOLVERS for steps in (1, 2, 7)), ("nesterov", 50), ("AdamW", 50)]
)
def test_steps_are_those_of_torch_and_gradients_those_of_a_loop(name, steps):
    problem, theta, tasks = case()
    for memory in MEMORIES if name in ("nesterov", "AdamW") else MEMORIES[steps % 4 :][:1]:
        estimate = meta_gradient(AMAML(LR * steps, SOLVERS[name](steps), memory), problem, theta, tasks)
        check(estimate, *expected(name, steps))


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["nesterov", "Adam, coupled", "AdamW"])
def test_options_of_the_inner_loop_go_with_every_optimiser(name, loop, frozen):
    solver, (problem, theta, tasks) = SOLVERS[name](7), case(frozen)
    for method in (AMAML(LR * 7, solver, Checkpoint(), inner=LOOPS[loop]), MAML(LR, inner=LOOPS[loop], solver=solver)):
        check(meta_gradient(method, problem, theta, tasks), *expected(name, 7, loop, frozen))


@pytest.mark.parametrize("name", ["momentum", "AdamW"])
def test_traced_steps_are_the_same(name):
    problem, theta, tasks = case()
    traced, plain = replace(problem, trace_after=0), replace(problem, trace=False)
    for memory in MEMORIES:
        method = AMAML(LR * 7, SOLVERS[name](7), memory)
        estimate = meta_gradient(method, traced, theta, tasks)
        check(estimate, *expected(name, 7))
        assert torch.equal(estimate.gradient, meta_gradient(method, plain, theta, tasks).gradient)
    assert any(graph for key in traced.graphs.keys() for graph in traced.graphs.get(key).graphs.values())


@pytest.mark.filterwarnings("error:the inner step cannot be compiled")
def test_compiled_steps_are_the_same():
    problem, theta, tasks = case()
    problem = replace(problem, compile=True)
    check(meta_gradient(AMAML(LR * 7, SOLVERS["AdamW"](7)), problem, theta, tasks), *expected("AdamW", 7))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("loop", ["plain", "minibatches", "mask"])
@pytest.mark.parametrize("name", ["nesterov", "Adam, coupled"])
def test_the_inner_loop_goes_on_as_torch_would(name, loop, steps):
    problem, theta, tasks = case()
    solver = SOLVERS[name](steps)
    own = torch_optim(solver, LOOPS[loop], problem, theta, tasks, 11)
    error = [mse_loss(problem.module(u)(x), y).item() for u, x, y in zip(own, *tasks.query, strict=True)]
    for method in (AMAML(LR * steps, solver, inner=LOOPS[loop]), MAML(LR, inner=LOOPS[loop], solver=solver)):
        assert relative(adapt(method, problem, theta, tasks, 11), own) < 1e-12
        table = evaluate(method, problem, theta, tasks, lambda p, y: (p - y).square().mean((1, 2)), steps=(0, steps, 11))
        assert table["query"][table["step"] == 11].tolist() == pytest.approx(error, rel=1e-12)


class Words(nn.Module):
    """Has units that never fire, and rows that no task or no support set asks for."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(6, 3), nn.Linear(3, 5), nn.Linear(5, 1)
        nn.init.constant_(self.hidden.bias[2:4], -100.0)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(self.words(x))))


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_parameters_without_a_gradient_have_the_right_one_through_adam(name, eps):
    torch.manual_seed(0)
    problem = Problem(Words().double(), mse_loss)
    theta = problem.initial_parameters()
    support, query = torch.tensor([[0, 1, 1, 0, 1], [2, 1, 2, 1, 0]]), torch.tensor([[3, 1, 2], [2, 2, 0]])
    tasks = Tasks(support, torch.randn(2, 5, 1, dtype=F64), query, torch.randn(2, 3, 1, dtype=F64))
    method = AMAML(0.05 * 4, SOLVERS[name](4, eps=eps))
    estimate = meta_gradient(method, problem, theta, tasks)
    words = estimate.gradient[:18].view(6, 3)
    assert estimate.gradient.isfinite().all() and not words[4:].any()  # asked for by no task
    # The query set of the first task alone asks for word 3, which decay alone moves.
    left = (1 - 0.05 * 0.2) ** 4 if name == "AdamW" else 1.0
    module = problem.module(estimate.adapted[0])
    mse_loss(module(query[0]), tasks.query_y[0]).backward()
    assert relative(words[3], left * module.words.weight.grad[3] / 2) < 1e-12
    check_against_central_differences(method, problem, theta, tasks, tolerance=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_at_a_minimum_a_step_of_adam_has_the_derivative_h_over_eps(steps):
    problem, _, tasks, a, c = quadratic()
    tasks = Tasks(tasks.support_x, torch.cat([a, torch.zeros(2, 4, 1, dtype=F64)], 2), *tasks.query)  # minimal at zero
    beta1, beta2, eps, h = 0.6, 0.9, 1e-2, 1e-3
    solver = Adam(steps, beta1, beta2, eps)
    eye = torch.eye(4, dtype=F64)
    u, m = [eye] * 2, [torch.zeros_like(eye)] * 2  # their derivatives with respect to theta; that of v is zero
    for k in range(steps):
        m = [beta1 * m[b] + (1 - beta1) * a[b] @ u[b] for b in (0, 1)]
        u = [u[b] - h / eps * m[b] / (1 - beta1 ** (k + 1)) for b in (0, 1)]
    expected = (u[0].T @ c[0] + u[1].T @ c[1]) / 2
    zero = torch.zeros(4, dtype=F64)
    for memory in (Store(), Store(graphs=2), Checkpoint(snapshots=1)):
        assert relative(meta_gradient(AMAML(h * steps, solver, memory), problem, zero, tasks).gradient, expected) < 1e-13
    direction = torch.linspace(-1, 1, 4, dtype=F64)
    method = AMAML(h * steps, solver)
    found = central_difference(lambda t: meta_gradient(method, problem, t, tasks).query_loss.mean(), zero, direction, eps=1e-7)
    assert abs(found - expected @ direction) < 1e-4 * expected.norm()


def rolling_ball(friction, horizon, theta, tasks, problem, steps=30):
    """u(T) and the meta-gradient, by RK4, of u'' + friction u' = -grad L from rest, or without a friction of u' = -grad L."""
    total, ends = torch.zeros_like(theta), []
    for b in range(len(tasks)):
        start = theta.clone().requires_grad_()

        def slope(u, v, b=b):
            loss = problem.losses(u[None], *(t[b : b + 1] for t in tasks.support)).sum()
            force = -torch.autograd.grad(loss, u, create_graph=True)[0]
            return (force, v) if v is None else (v, force - friction * v)

        u, v, h = start, None if friction is None else torch.zeros_like(start), horizon / steps
        move = lambda z, k, f: tuple(None if x is None else x + f * d for x, d in zip(z, k, strict=True))  # noqa: E731
        for _ in range(steps):
            k1 = slope(u, v)
            k2 = slope(*move((u, v), k1, h / 2))
            k3 = slope(*move((u, v), k2, h / 2))
            k4 = slope(*move((u, v), k3, h))
            for k, weight in ((k1, 1), (k2, 2), (k3, 2), (k4, 1)):
                u, v = move((u, v), k, weight * h / 6)
        loss = problem.query_losses(u[None], *(t[b : b + 1] for t in tasks.query)).sum()
        total += torch.autograd.grad(loss, start)[0]
        ends.append(u.detach())
    return torch.stack(ends), total / len(tasks)


def order(steps, errors):
    """The slope of the errors over the step sizes."""
    x, y = (torch.as_tensor(t, dtype=F64).log() for t in (steps, errors))
    return -(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("limit", ["ball", "flow"])
def test_momentum_approaches_its_flow_at_order_one(limit, nesterov):
    problem, theta, tasks = regression(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), tasks=2)
    friction, horizon, beta = 0.7, 1.5, 0.6
    own = partial(rolling_ball, theta=theta, tasks=tasks, problem=problem)
    ends, gradient = own(friction, horizon) if limit == "ball" else own(None, horizon / (1 - beta))
    numbers, errors = [30, 60, 120, 240], []
    for steps in numbers:
        delta = horizon / steps
        if limit == "ball":  # h = delta^2, beta = 1 - friction delta
            method = AMAML(steps * delta**2, Momentum(steps, 1 - friction * delta, nesterov))
        else:  # h = delta, beta fixed: the flow in the time T / (1 - beta)
            method = AMAML(horizon, Momentum(steps, beta, nesterov))
        estimate = meta_gradient(method, problem, theta, tasks)
        errors.append((relative(estimate.adapted, ends), relative(estimate.gradient, gradient)))
    for which in (0, 1):
        assert abs(order(numbers, [e[which] for e in errors]) - 1) < 0.1
        assert errors[-1][which] < 0.02


@pytest.mark.parametrize("name", ["nesterov", "Adam, coupled", "AdamW"])
def test_sensitivities_to_step_sizes_and_to_the_horizon(name):
    problem, theta, tasks = case()
    solver = replace(SOLVERS[name](4), **({} if name == "nesterov" else {"eps": 1e-2}))
    sizes, direction = 0.1 + 0.02 * torch.arange(24.0, dtype=F64).cos().view(4, 6), torch.arange(24, dtype=F64).sin().view(4, 6)
    value = lambda h: meta_gradient(AMAML(0.4, solver, step_sizes=h), problem, theta, tasks).query_loss.mean()  # noqa: E731
    stats = meta_gradient(AMAML(0.4, solver, step_sizes=sizes, sensitivities=True), problem, theta, tasks).stats
    found = (stats["step_size_gradient"].mean(0) * direction).sum()
    assert abs(central_difference(value, sizes, direction, eps=1e-6) - found) < 1e-7 * abs(found)
    value = lambda t: meta_gradient(AMAML(t.item(), solver), problem, theta, tasks).query_loss.mean()  # noqa: E731
    found = meta_gradient(AMAML(0.4, solver, sensitivities=True), problem, theta, tasks).stats["horizon_gradient"].mean()
    assert abs(central_difference(value, torch.tensor(0.4, dtype=F64), 1.0, eps=1e-6) - found) < 1e-7 * abs(found)


def test_given_step_sizes_have_the_horizon_that_they_fill():
    problem, theta, tasks = case()
    sizes = torch.full((3, 1), 0.1, dtype=F64)
    methods = [AMAML(0.3, Euler(3), sensitivities=True), AMAML(9.0, Euler(3), step_sizes=sizes, sensitivities=True)]
    own, given = (meta_gradient(method, problem, theta, tasks).stats["horizon_gradient"] for method in methods)
    assert relative(given, own) < 1e-13


class Vector(nn.Module):
    """Its prediction is its many parameters."""

    def __init__(self):
        super().__init__()
        self.u = nn.Parameter(torch.ones(5000))

    def forward(self, x):
        return self.u


@pytest.mark.parametrize(
    "solver",
    [
        Euler(3),
        Momentum(3),
        Adam(3),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_change_of_the_loss_in_one_of_many_parameters_is_noticed(solver):
    """In single precision; the slope of the others is hundreds of times as small, and a step of Adam as long."""
    weight = [1.0]

    def loss(u, y):
        return 1e-2 * weight[0] * (u[0] - 0.5) ** 2 + 1e-6 * u.square().sum()

    model = Vector()
    problem, plain = Problem(model, loss, trace_after=0), Problem(model, loss, trace=False)
    theta, tasks = problem.initial_parameters(), Tasks(*torch.zeros(4, 2, 1, 1))
    for weight[0] in (1.0, 1.2, 1.44):
        for _ in range(2):
            found = meta_gradient(AMAML(0.3, solver), problem, theta, tasks)
        expected = meta_gradient(AMAML(0.3, solver), plain, theta, tasks)
        assert relative(found.gradient, expected.gradient) < 1e-5


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        pytest.param(
            lambda: AMAML(0.5, Adam(5), Store(dtype=torch.float16)),
            ValueError,
            "float16",
        ),
        (lambda: Momentum(0), ValueError, "steps >= 1"),
        (lambda: Momentum(5, beta=1.0), ValueError, "beta < 1"),
        (lambda: Momentum(5, beta=-0.1), ValueError, "beta >= 0"),
        (lambda: Adam(5, beta1=1.0), ValueError, "beta1 < 1"),
        (lambda: Adam(5, beta2=float("nan")), ValueError, "beta2 >= 0"),
        (lambda: Adam(5, eps=0.0), ValueError, "eps > 0"),
        (lambda: Adam(5, weight_decay=-1.0), ValueError, "weight_decay >= 0"),
        (lambda: Adam(5, beta1="0.9x"), TypeError, "a number for beta1"),
        (lambda: AMAML(0.5, Momentum(5), adjoint="continuous"), ValueError, "Momentum discretises no gradient flow"),
        (lambda: AMAML(0.5, Adam(5), Backsolve()), ValueError, "Adam discretises no gradient flow"),
        (lambda: AMAML(0.5, Adam), TypeError, "Adam"),
        (lambda: MAML(0.1, 3, solver=Adam(5)), ValueError, "steps=3 are not the solver's 5"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
