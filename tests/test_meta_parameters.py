"""Gradients with respect to meta-parameters: of losses, regularizers, step sizes and running costs, in float64."""

import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from problems import F64, central_difference, regression, relative
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    RK4,
    Adam,
    AdamAdaptation,
    Backsolve,
    Checkpoint,
    DivergenceError,
    Dopri5,
    Euler,
    GradientDescent,
    HessianFree,
    Heun,
    InnerLoop,
    Momentum,
    Problem,
    Reptile,
    Store,
    Tasks,
    adapt,
    evaluate,
    meta_gradient,
    metrics,
)

PHI = torch.tensor([0.3, -0.4, 0.2], dtype=F64)


@pytest.mark.parametrize(
    "sizes",
    [
        lambda phi: phi.exp()[:1, None] if phi[0] > -9 else phi[:1, None] * 0 + 1,
        lambda phi: phi[:1, None].exp() * phi[1].abs().item(),
        lambda phi: phi.exp_()[:1, None],
    ],
    ids=["branch", "item", "in place"],
)
def test_step_sizes_may_be_any_function_and_leave_phi_as_it_is(sizes):
    problem, theta, tasks = regression()
    phi = PHI.clone() - 2
    method = AMAML(9.0, Euler(3), step_sizes=sizes)
    found = meta_gradient(method, problem, theta, tasks, phi).phi_gradient
    evaluate(method, problem, theta, tasks, metrics.rmse, phi=phi)
    assert torch.equal(phi, PHI - 2)
    up, down = (meta_gradient(method, problem, theta, tasks, phi + e * torch.eye(3, dtype=F64)[0]) for e in (1e-5, -1e-5))
    difference = (up.query_loss - down.query_loss).mean() / 2e-5
    assert found[0].item() == pytest.approx(difference.item(), rel=1e-7)


def mse(p, y):
    return (p - y).square().mean()


def weighted(p, y, phi):
    return phi[0].exp() * (p - y).square().mean() + phi[1] * p.sin().mean()


def judged(p, y, phi):
    return (p - y).abs().pow(2.5).mean() * phi[2].exp() + phi[0] * p.square().mean()


def prior(u, theta, phi):
    """Depends on u and theta in a way of its own, and on phi."""
    return phi[2].exp() * (u - theta.tanh()).square().sum() + phi[1] * (u * theta).cos().sum()


def anchor(u, theta, phi):
    return 0.3 * (u - theta.sin()).square().sum()


# Where phi enters: the support loss, the query loss, and the regularizer.
PLACES = {
    "plain": (mse, mse, None),
    "support": (weighted, mse, None),
    "query": (mse, judged, None),
    "both": (weighted, None, None),
    "regularizer": (mse, None, prior),
    "all": (weighted, judged, prior),
}


def case(place, **options):
    _, _, tasks = regression(tasks=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    loss, query_loss, regularizer = PLACES[place]
    problem = Problem(model, loss, query_loss=query_loss, regularizer=regularizer, **options)
    return problem, problem.initial_parameters(), tasks


def euler(field, u, h):
    return u + h * field(u)


def rk4(field, u, h):
    k1 = field(u)
    k2 = field(u + h / 2 * k1)
    k3 = field(u + h / 2 * k2)
    return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(u + h * k3))


class AdamSteps:
    def __init__(self):
        self.m, self.v, self.t = 0.0, 0.0, 0

    def __call__(self, field, u, h):
        g = -field(u)
        self.m, self.v, self.t = 0.9 * self.m + 0.1 * g, 0.99 * self.v + 0.01 * g**2, self.t + 1
        return u - h * self.m / (1 - 0.9**self.t) / ((self.v / (1 - 0.99**self.t)).sqrt() + 1e-3)


def predictor(model):
    """The model as a function of flat parameters."""
    names = {name: p.shape for name, p in model.named_parameters()}
    numbers = [shape.numel() for shape in names.values()]

    def predict(u, x):
        pieces = zip(names.items(), u.split(numbers), strict=True)
        return functional_call(model, {name: piece.view(shape) for (name, shape), piece in pieces}, (x,))

    return predict


def by_hand(place, sizes, make=lambda: euler, weights=None, proximal=0.0, free=1.0):
    """The gradients (P,) and (M,) by autograd through a loop over tasks and steps; ``sizes(phi)`` gives the size of each step."""
    problem, theta, tasks = case(place)
    (support, query, regularizer), predict = PLACES[place], predictor(problem.model)
    given = lambda loss, p, y, phi: loss(p, y, phi) if loss in (weighted, judged) else loss(p, y)  # noqa: E731
    total = [torch.zeros_like(theta), torch.zeros_like(PHI)]
    for b in range(len(tasks)):
        start, phi = theta.clone().requires_grad_(), PHI.clone().requires_grad_()

        def field(u, b=b, start=start, phi=phi):
            value = given(support, predict(u, tasks.support_x[b]), tasks.support_y[b], phi)
            value = value + proximal / 2 * (u - start).square().sum()
            value = value if regularizer is None else value + regularizer(u, start, phi)
            return -free * torch.autograd.grad(value, u, create_graph=True)[0]

        u, step, losses = start.clone(), make(), []  # not start itself, which the regularizer takes beside u
        for h in sizes(phi):
            u = step(field, u, h)
            losses.append(given(query or support, predict(u, tasks.query_x[b]), tasks.query_y[b], phi))
        loss = losses[-1] if weights is None else (torch.stack(losses) * weights).sum()
        for i, part in enumerate(torch.autograd.grad(loss, (start, phi), allow_unused=True, materialize_grads=True)):
            total[i] += part / len(tasks)
    return total[0] * free, total[1]


def check(estimate, expected, tolerance=1e-12):
    assert relative(estimate.gradient, expected[0]) < tolerance
    assert relative(estimate.phi_gradient, expected[1]) < tolerance


METHODS = {
    "MAML": (MAML(0.1, 4), euler),
    "Euler": (AMAML(0.4, Euler(4)), euler),
    "checkpoints": (AMAML(0.4, Euler(4), Checkpoint(snapshots=2)), euler),
    "graphs": (AMAML(0.4, RK4(4), Store(graphs=2)), rk4),
    "RK4": (AMAML(0.4, RK4(4)), rk4),
    "Adam": (AMAML(0.4, Adam(4, beta2=0.99, eps=1e-3)), AdamSteps),
    "MAML by Adam": (MAML(0.1, solver=Adam(4, beta2=0.99, eps=1e-3)), AdamSteps),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("place", list(PLACES)[1:])
def test_gradients_are_those_of_autograd_wherever_phi_enters(place, name):
    method, step = METHODS[name]
    expected = by_hand(place, lambda phi: [0.1] * 4, AdamSteps if step is AdamSteps else lambda: step)
    problem, theta, tasks = case(place)
    for options in ({}, {"chunk_size": 1}, {"trace_after": 0})[: 3 if place == "all" and name in ("MAML", "graphs", "Adam") else 1]:
        check(meta_gradient(method, replace(problem, **options), theta, tasks, PHI), expected)


def test_dopri5_and_the_adjoint_ode_approach_the_gradients_of_the_flow():
    problem, theta, tasks = case("all")
    flow = by_hand("all", lambda phi: [0.5 / 40] * 40, lambda: rk4)
    check(meta_gradient(AMAML(0.5, Dopri5(1e-9, 1e-11)), problem, theta, tasks, PHI), flow, 1e-7)
    for tolerance in (1e-4, 1e-6):
        method = AMAML(0.5, RK4(40), Backsolve(tolerance, tolerance / 100))
        check(meta_gradient(method, problem, theta, tasks, PHI), flow, 30 * tolerance)
    for solver, order, numbers in ((Euler, 1, (32, 64)), (Heun, 2, (16, 32)), (RK4, 4, (8, 16))):
        found = [meta_gradient(AMAML(0.5, solver(k), adjoint="continuous"), problem, theta, tasks, PHI) for k in numbers]
        for which, name in enumerate(("gradient", "phi_gradient")):
            coarse, fine = (relative(getattr(estimate, name), flow[which]) for estimate in found)
            assert math.log2(coarse / fine) > order - 0.25


def test_the_adjoint_ode_with_a_speed_for_each_tensor():
    problem, theta, tasks = case("all")
    speeds = torch.tensor([0.5, 1.0, 1.5, 0.7], dtype=F64)
    of_each = speeds.repeat_interleave(torch.tensor([p.numel() for p in problem.model.parameters()]))  # (P,)
    flow = by_hand("all", lambda phi: of_each / 60 * torch.ones(60, 1, dtype=F64), lambda: rk4)
    for memory in (Store(), Checkpoint()):
        method = AMAML(1.0, RK4(20), memory, "continuous", step_sizes=(speeds / 20)[None])
        check(meta_gradient(method, problem, theta, tasks, PHI), flow, 1e-5)


SIZES = {  # as functions of phi (3,): shapes (1, 1), (K, 1), (K, G) and (1, P)
    "one": lambda phi: 0.1 * phi[2].exp().view(1, 1),
    "each step": lambda phi: 0.1 * torch.stack([phi[0].exp(), phi[1].exp(), phi[0] ** 2])[:, None],
    "MAML++": lambda phi: 0.1 * (phi[:, None] * torch.linspace(0.5, 2, 4, dtype=F64)).exp(),
    "Meta-SGD": lambda phi: 0.1 * (phi[0] * torch.linspace(-1, 1, 17, dtype=F64)).exp()[None],
}


@pytest.mark.parametrize("memory", [Store(), Store(graphs=2), Checkpoint()])
@pytest.mark.parametrize("place", ["support", None], ids=["and the loss", "alone"])
@pytest.mark.parametrize("name", SIZES)
def test_step_sizes_as_functions_of_phi(name, place, memory):
    problem, theta, tasks = case(place or "query")
    if place is None:
        problem = replace(problem, query_loss=mse)
    numbers = torch.tensor([p.numel() for p in problem.model.parameters()])

    def rows(phi):
        sizes = SIZES[name](phi).expand(3, -1)
        return sizes.repeat_interleave(numbers, 1) if sizes.shape[1] == 4 else sizes

    for solver, make in ((Euler(3), lambda: euler), (Adam(3, beta2=0.99, eps=1e-3), AdamSteps)):
        method = AMAML(9.0, solver, memory, step_sizes=SIZES[name])
        check(meta_gradient(method, problem, theta, tasks, PHI), by_hand(place or "plain", rows, make))


def test_step_sizes_that_do_not_depend_on_phi_leave_it_to_the_loss():
    problem, theta, tasks = case("support")
    method = AMAML(9.0, Euler(3), step_sizes=lambda phi: torch.full((1, 1), 0.1, dtype=F64))
    check(meta_gradient(method, problem, theta, tasks, PHI), by_hand("support", lambda phi: [0.1] * 3))


def test_step_sizes_that_read_what_changes_are_read_anew():
    problem, theta, tasks = case("support", trace_after=0)
    scale = [0.1]
    method = AMAML(9.0, Euler(3), step_sizes=lambda phi: scale[0] * phi[:1].exp()[None])
    for scale[0] in (0.1, 0.2):
        expected = by_hand("support", lambda phi: [scale[0] * phi[0].exp()] * 3)
        check(meta_gradient(method, problem, theta, tasks, PHI), expected)


WEIGHTS = torch.tensor([0.3, 0.0, 0.6, 0.4], dtype=F64)


@pytest.mark.parametrize("memory", [Store(), Store(graphs=3), Store(graphs=9), Checkpoint(), Checkpoint(snapshots=2)])
@pytest.mark.parametrize("place", ["plain", "support", "query", "all"])
def test_the_query_loss_after_each_step(place, memory):
    problem, theta, tasks = case(place)
    for solver, make in ((Euler(4), lambda: euler), (Adam(4, beta2=0.99, eps=1e-3), AdamSteps)):
        expected = by_hand(place, lambda phi: [0.1] * 4, make, WEIGHTS)
        method = AMAML(0.4, solver, memory, query_weights=WEIGHTS)
        found = meta_gradient(method, problem, theta, tasks, None if place == "plain" else PHI)
        assert relative(found.gradient, expected[0]) < 1e-12
        assert place == "plain" or relative(found.phi_gradient, expected[1]) < 1e-12
        last = meta_gradient(replace(method, query_weights=None), problem, theta, tasks, None if place == "plain" else PHI)
        assert torch.equal(found.query_loss, last.query_loss)  # that of the last state


def test_the_query_loss_after_each_step_goes_with_learned_step_sizes_and_the_adjoint_ode():
    problem, theta, tasks = case("all")
    method = AMAML(9.0, Euler(4), step_sizes=lambda phi: 0.1 * phi[0].exp().view(1, 1), query_weights=WEIGHTS)
    check(meta_gradient(method, problem, theta, tasks, PHI), by_hand("all", lambda phi: [0.1 * phi[0].exp()] * 4, weights=WEIGHTS))
    flow = by_hand(
        "all", lambda phi: [0.4 / 40] * 40, lambda: rk4, WEIGHTS.repeat_interleave(10) * torch.tensor([0] * 9 + [1]).repeat(4)
    )
    weights = torch.zeros(20, dtype=F64)
    weights[4::5] = WEIGHTS
    check(meta_gradient(AMAML(0.4, RK4(20), adjoint="continuous", query_weights=weights), problem, theta, tasks, PHI), flow, 1e-6)


@pytest.mark.parametrize("method", [AMAML(0.3, Euler(3), proximal=0.7), AMAML(0.3, RK4(3), Store(graphs=1), proximal=0.7)])
def test_a_proximal_term_beside_a_regularizer_of_theta(method):
    problem, theta, tasks = case("all")
    step = rk4 if isinstance(method.solver, RK4) else euler
    check(meta_gradient(method, problem, theta, tasks, PHI), by_hand("all", lambda phi: [0.1] * 3, lambda: step, proximal=0.7))


@pytest.mark.parametrize(
    "method",
    [MAML(0.1, 3), AMAML(0.3, Euler(3)), AMAML(0.3, Euler(3), proximal=0.7), AMAML(0.3, RK4(3), adjoint="continuous"), IMAML()],
    ids=["MAML", "AMAML", "proximal", "continuous", "IMAML"],
)
def test_what_is_frozen_has_no_gradient_whatever_the_regularizer_says(method):
    problem, theta, tasks = case("all")
    problem.model[0].weight.requires_grad_(False)
    theta = theta + 0.1
    free = torch.arange(17) >= 8
    found = meta_gradient(method, problem, theta, tasks, PHI)
    assert torch.equal(found.adapted[:, ~free], theta[~free].expand(2, -1)) and not found.gradient[~free].any()
    assert found.gradient[free].all() and found.phi_gradient.all()


@pytest.mark.parametrize(
    "method",
    [pytest.param(MAML(0.1, 3)), AMAML(0.3, Euler(3), Checkpoint())],
    ids=["MAML", "AMAML"],
)
def test_the_others_have_the_gradient_that_they_have_without_the_frozen_ones(method):
    free = (torch.arange(17) >= 8).double()
    problem, theta, tasks = case("all")
    problem.model[0].weight.requires_grad_(False)
    check(meta_gradient(method, problem, theta, tasks, PHI), by_hand("all", lambda phi: [0.1] * 3, free=free))


# iMAML: at the optimum.


def ridge(theta, phi, tasks, query=mse):
    """The query loss at the solution of weighted ridge regression, L2 weights and the weight of the data among phi (5,)."""
    losses = []
    for b in range(len(tasks)):
        x, y = tasks.support_x[b], tasks.support_y[b, :, 0]
        weight, decay = phi[0].exp(), phi[1:].exp()
        a = weight * x.T @ x + torch.diag(decay) + 2.0 * torch.eye(4, dtype=F64)
        u = torch.linalg.solve(a, weight * x.T @ y + decay * theta.sin() + 2.0 * theta)
        losses.append(
            query(tasks.query_x[b] @ u, tasks.query_y[b, :, 0], phi)
            if query is not mse
            else mse(tasks.query_x[b] @ u, tasks.query_y[b, :, 0])
        )
    return torch.stack(losses).mean()


@pytest.mark.parametrize("query", [mse, judged])
@pytest.mark.parametrize(
    "inner",
    [HessianFree(cg_steps=4, steps=2), GradientDescent(0.03, 800), GradientDescent(0.02, solver=Momentum(400, 0.8))],
    ids=["HessianFree", "GradientDescent", "Momentum"],
)
def test_imaml_has_the_gradients_of_ridge_regression_with_learned_weights(inner, query):
    torch.manual_seed(0)
    problem = Problem(
        nn.Linear(4, 1, bias=False).double(),
        lambda p, y, phi: phi[0].exp() / 2 * (p - y).square().sum(),
        query_loss=query,
        regularizer=lambda u, theta, phi: 0.5 * (phi[1:].exp() * (u - theta.sin()).square()).sum(),
    )
    draw = partial(torch.randn, dtype=F64)
    tasks = Tasks(draw(2, 6, 4), draw(2, 6, 1), draw(2, 5, 4), draw(2, 5, 1))
    theta, phi = draw(4).requires_grad_(), (0.3 * draw(5)).requires_grad_()
    estimate = meta_gradient(IMAML(inner, 2.0, cg_steps=4), problem, theta, tasks, phi)
    loss = ridge(theta, phi, tasks, query)
    assert relative(estimate.query_loss.mean(), loss.detach()) < 1e-12
    check(estimate, torch.autograd.grad(loss, (theta, phi)), 1e-11)


@pytest.mark.parametrize("place", ["both", "all"])
def test_imaml_agrees_with_central_differences(place):
    problem, theta, tasks = case(place)
    method = IMAML(HessianFree(cg_steps=17, steps=8), 5.0, cg_steps=17)
    estimate = meta_gradient(method, problem, theta, tasks, PHI)
    value = lambda t, p: meta_gradient(method, problem, t, tasks, p).query_loss.mean()  # noqa: E731
    direction = torch.linspace(-1, 1.5, 3, dtype=F64)
    found = central_difference(lambda p: value(theta, p), PHI, direction)
    assert abs(found - estimate.phi_gradient @ direction) < 1e-7 * estimate.phi_gradient.norm()
    direction = torch.arange(17).cos().to(theta)
    found = central_difference(lambda t: value(t, PHI), theta, direction)
    assert abs(found - estimate.gradient @ direction) < 1e-7 * estimate.gradient.norm()


# Examples that hypertorch publishes (https://github.com/prolearner/hypertorch): its functions on the left, ours on the right.


@cache
def logistic():
    """A logistic regression with an L2 weight for each coordinate, and the gradients with respect to these, by autograd."""
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randn, generator=generator, dtype=F64)
    oracle, x = draw(6), draw(2, 40, 6)
    y = (x @ oracle + 0.1 * draw(2, 40) > 0).double()
    bce = functional.binary_cross_entropy_with_logits

    def loss(w, h):
        return bce(x[0] @ w, y[0]) + 0.5 * (h * w * w).sum()

    def step(params, hparams):
        return [params[0] - 0.1 * torch.autograd.grad(loss(params[0], hparams[0]), params[0], create_graph=True)[0]]

    def outer(params, hparams):
        return bce(x[1] @ params[0], y[1])

    problem = Problem(
        nn.Linear(6, 1, bias=False).double(),
        lambda p, y: bce(p, y),
        regularizer=lambda u, theta, phi: 0.5 * (phi * u * u).sum(),
    )
    tasks = Tasks(x[None, 0], y[None, 0, :, None], x[None, 1], y[None, 1, :, None])
    return problem, tasks, step, outer


def unrolled(steps, hparams):
    _, _, step, outer = logistic()
    history = [[torch.zeros(6, dtype=F64, requires_grad=True)]]
    for _ in range(steps):
        history.append(step(history[-1], [hparams]))
    return history, torch.autograd.grad(outer(history[-1], None), hparams)[0]


def test_hypertorchs_logistic_regression_unrolled_and_at_its_optimum():
    problem, tasks, _, _ = logistic()
    zero, ones = torch.zeros(6, dtype=F64), torch.ones(6, dtype=F64)
    _, expected = unrolled(100, ones.clone().requires_grad_())
    for method in (MAML(0.1, 100), AMAML(10.0, Euler(100), Checkpoint())):
        assert relative(meta_gradient(method, problem, zero, tasks, ones).phi_gradient, expected) < 1e-12
    # With theta = 0 the proximal term is one more L2 weight.
    _, limit = unrolled(400, ones.clone().requires_grad_())
    for inner in (GradientDescent(0.1, 400), HessianFree(cg_steps=6, steps=8)):
        estimate = meta_gradient(IMAML(inner, 0.25, cg_steps=6), problem, zero, tasks, ones - 0.25)
        assert relative(estimate.phi_gradient, limit) < 1e-10


def test_hypertorch_itself_gives_the_same():
    hypergrad = pytest.importorskip("hypergrad.hypergradients")
    problem, tasks, step, outer = logistic()
    hparams = torch.ones(6, dtype=F64, requires_grad=True)
    zero = torch.zeros(6, dtype=F64)
    history, _ = unrolled(100, hparams)
    (reverse,) = hypergrad.reverse(history, [hparams], [step] * 100, outer, set_grad=False)
    estimate = meta_gradient(AMAML(10.0, Euler(100)), problem, zero, tasks, hparams)
    assert relative(estimate.phi_gradient, reverse) < 1e-12
    history, _ = unrolled(400, hparams)
    (fixed,) = hypergrad.fixed_point(history[-1], [hparams], 600, step, outer, tol=0.0, set_grad=False)
    implicit = meta_gradient(IMAML(GradientDescent(0.1, 400), 0.25, cg_steps=6), problem, zero, tasks, hparams - 0.25)
    assert relative(implicit.phi_gradient, fixed) < 1e-10


@pytest.mark.parametrize("method", [MAML(0.2, 10), AMAML(2.0, Euler(10), Checkpoint())], ids=["MAML", "AMAML"])
def test_hypertorchs_data_cleaning_weighs_each_example(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    nll = functional.cross_entropy
    problem = Problem(model, lambda p, y, phi: (phi.sigmoid() * nll(p, y, reduction="none")).mean(), query_loss=nll)
    x, y = torch.randn(2, 12, 3, dtype=F64), torch.randint(4, (2, 12))
    tasks, weights = Tasks(x[:1], y[:1], x[1:], y[1:]), torch.randn(12, dtype=F64).requires_grad_()
    predict, u = predictor(model), problem.initial_parameters().requires_grad_()
    start = u
    for _ in range(10):
        loss = (weights.sigmoid() * nll(predict(u, x[0]), y[0], reduction="none")).mean()
        u = u - 0.2 * torch.autograd.grad(loss, u, create_graph=True)[0]
    expected = torch.autograd.grad(nll(predict(u, x[1]), y[1]), (start, weights))
    check(meta_gradient(method, problem, start, tasks, weights), expected)


def test_minibatches_take_their_own_weights_along():
    """Each target comes with its number, so that a loss weighs the points it is given."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    loss = lambda p, y, phi: (phi[y[1]].exp() * (p[:, 0] - y[0]).square()).mean()  # noqa: E731
    problem = Problem(model, loss, query_loss=lambda p, y: mse(p[:, 0], y[0]))
    x, y, numbers = torch.randn(2, 2, 8, 3, dtype=F64), torch.randn(2, 2, 8, dtype=F64), torch.arange(8).expand(2, -1)
    tasks, weights = Tasks(x[0], (y[0], numbers), x[1], (y[1], numbers)), torch.randn(8, dtype=F64)
    inner = InnerLoop(minibatch=3, seed=1)
    generator = torch.Generator().manual_seed(1)
    passes = [torch.randperm(8, generator=generator)[:6].view(2, 3) for _ in range(2)]
    total = [torch.zeros(4, dtype=F64), torch.zeros(8, dtype=F64)]
    for b in (0, 1):
        start, phi = problem.initial_parameters().requires_grad_(), weights.clone().requires_grad_()
        u = start
        for points in torch.cat(passes)[:3]:
            value = (phi[points].exp() * (x[0, b, points] @ u[:3] + u[3] - y[0, b, points]).square()).mean()
            u = u - 0.1 * torch.autograd.grad(value, u, create_graph=True)[0]
        for i, part in enumerate(torch.autograd.grad(mse(x[1, b] @ u[:3] + u[3], y[1, b]), (start, phi))):
            total[i] += part / 2
    for method in (MAML(0.1, 3, inner=inner), AMAML(0.3, Euler(3), Checkpoint(), inner=inner)):
        check(meta_gradient(method, problem, problem.initial_parameters(), tasks, weights), total)


# What is refused, and what is given phi.


@pytest.mark.parametrize(
    ("place", "method", "phi", "error", "message"),
    [
        ("plain", MAML(), PHI, ValueError, "phi enters nothing"),
        ("plain", AMAML(step_sizes=torch.ones(1, 1)), PHI, ValueError, "phi enters nothing"),
        ("both", FOMAML(), PHI, ValueError, "FOMAML has no gradient with respect to phi"),
        ("both", Reptile(), PHI, ValueError, "Reptile has no gradient with respect to phi"),
        ("both", MAML(), PHI[None], ValueError, "phi has shape"),
        ("both", MAML(), PHI[:0], ValueError, "phi has shape"),
        ("both", MAML(), PHI.float(), ValueError, "phi is torch.float32"),
        ("both", MAML(), PHI.to("meta"), ValueError, "on meta but theta"),
        ("both", MAML(), [0.3, 0.4, 0.2], TypeError, "phi must be a tensor"),
        ("plain", AMAML(step_sizes=lambda phi: phi[:1, None].exp()), None, ValueError, "step_sizes are a function of phi"),
        ("both", AMAML(step_sizes=lambda phi: phi.exp()), PHI, ValueError, "step_sizes must be of shape"),
        ("both", AMAML(step_sizes=lambda phi: phi.exp()[:, None]), PHI, ValueError, "step_sizes must be of shape"),
        ("both", AMAML(step_sizes=lambda phi: -phi[None, :1].exp()), PHI, ValueError, "step_sizes must be positive"),
        ("both", AMAML(step_sizes=lambda phi: phi[None].exp()), PHI, ValueError, "3 groups of step sizes do not fit"),
        ("both", AMAML(step_sizes=lambda phi: 0.1), PHI, TypeError, "must return a tensor"),
    ],
)
def test_meta_parameters_that_do_not_fit_are_refused(place, method, phi, error, message):
    problem, theta, tasks = case(place)
    with pytest.raises(error, match=message):
        meta_gradient(method, problem, theta, tasks, phi)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Problem(nn.Linear(2, 1), mse, judged), "compile must be"),
        (lambda: AMAML(query_weights=torch.ones(3)), "query_weights must be"),
        (lambda: AMAML(query_weights=torch.zeros(50)), "not all zero"),
        (lambda: AMAML(query_weights=-torch.ones(50)), ">= 0"),
        (lambda: AMAML(solver=Dopri5(), query_weights=torch.ones(50)), "fixed-step solver"),
        (lambda: AMAML(memory=Backsolve(), query_weights=torch.ones(50)), "stored states"),
        (lambda: AMAML(adjoint="continuous", step_sizes=lambda phi: phi), 'adjoint="discrete"'),
        (lambda: AMAML(solver=Dopri5(), step_sizes=lambda phi: phi), "Dopri5 chooses its own"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()


@pytest.mark.parametrize(
    "loss", [functional.mse_loss, functional.smooth_l1_loss, nn.HuberLoss(), partial(functional.l1_loss, reduction="sum")]
)
def test_options_of_pytorchs_losses_are_not_given_phi(loss):
    """Phi enters by the regularizer, and changes nothing where its weight is zero."""
    problem, theta, tasks = case("plain")
    problem = replace(problem, loss=loss, query_loss=None)
    with_phi = replace(problem, regularizer=lambda u, theta, phi: 0.0 * phi[0] * u.sum())
    plain, found = meta_gradient(MAML(0.1, 2), problem, theta, tasks), meta_gradient(MAML(0.1, 2), with_phi, theta, tasks, PHI)
    assert torch.equal(plain.gradient, found.gradient) and not found.phi_gradient[1:].any()


def test_maml_by_gradient_descent_is_amaml_by_euler_with_any_regularizer():
    """In closed form: u = theta - h theta for the regularizer u theta, whose slope at u is theta."""
    _, theta, tasks = case("plain")
    problem = replace(case("plain")[0], loss=lambda p, y: 0.0 * mse(p, y), regularizer=lambda u, theta, phi: u @ theta)
    for method in (FOMAML(0.1, 1), AMAML(0.1, Euler(1)), MAML(0.1, 1)):
        assert relative(meta_gradient(method, problem, theta, tasks).adapted, (0.9 * theta).expand(2, -1)) < 1e-12


def test_adaptation_takes_phi():
    problem, theta, tasks = case("all")
    expected = meta_gradient(AMAML(0.3, Euler(3)), problem, theta, tasks, PHI).adapted
    for method in (MAML(0.1, 3), AMAML(0.3, Euler(3)), AMAML(9.0, Euler(3), step_sizes=lambda phi: 0.1 + 0 * phi[:1, None])):
        assert relative(adapt(method, problem, theta, tasks, 3, PHI), expected) < 1e-14
        table = evaluate(method, problem, theta, tasks, metrics.rmse, (0, 3), PHI)
        assert len(table) == 4 and table["query"].notna().all()
    optimum = meta_gradient(IMAML(HessianFree(17, 8)), problem, theta, tasks, PHI).adapted
    assert relative(adapt(IMAML(HessianFree(17)), problem, theta, tasks, 8, PHI), optimum) < 1e-14


@pytest.mark.parametrize("method", [FOMAML(0.1, 3), Reptile(0.1, 3), AdamAdaptation(0.1)], ids=lambda m: type(m).__name__)
def test_adaptation_takes_phi_where_no_gradient_is_asked_for(method):
    problem, theta, tasks = case("all")
    assert adapt(method, problem, theta, tasks, 3, PHI).isfinite().all()


class Custom:
    """A method of one's own, as an object with a method."""

    def run(self, problem, theta, tasks, phi=None):
        return MAML(0.1, 2)(problem, theta, tasks, phi)


@pytest.mark.parametrize("method", [Custom().run, partial(Custom.run, None)], ids=["bound", "partial"])
def test_methods_of_ones_own_may_take_phi(method):
    problem, theta, tasks = case("both")
    expected = meta_gradient(MAML(0.1, 2), problem, theta, tasks, PHI).phi_gradient
    assert torch.equal(meta_gradient(method, problem, theta, tasks, PHI).phi_gradient, expected)


def test_a_phi_that_is_no_number_is_named():
    with pytest.raises(DivergenceError, match="phi is not finite"):
        meta_gradient(AMAML(0.3, Euler(3)), *case("both"), PHI * torch.nan)


def test_settings_do_not_change_with_the_tensors_that_they_were_made_from():
    problem, theta, tasks = case("plain")
    sizes, weights = torch.full((3, 1), 0.1, dtype=F64), torch.ones(3, dtype=F64)
    method = AMAML(0.3, Euler(3), step_sizes=sizes, query_weights=weights)
    before = meta_gradient(method, problem, theta, tasks).gradient
    sizes.mul_(-1)
    weights.zero_()
    assert torch.equal(meta_gradient(method, problem, theta, tasks).gradient, before)
