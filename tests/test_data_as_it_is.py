"""Tasks of different sizes, inputs of several tensors, sequences with padding, and modules made of theta, in float64."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from problems import F64, regression, relative
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils import vector_to_parameters

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
    Dopri5,
    Euler,
    GradientDescent,
    HessianFree,
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
from amaml_core.samplers import PoolSampler

draw = partial(torch.randn, dtype=F64)
METHODS = {
    "Euler": AMAML(0.3, Euler(3)),
    "Adam": AMAML(0.3, Adam(3, eps=1e-3), Checkpoint(), inner=InnerLoop(0.1, minibatch=2, clip_norm=1.0)),
    "Momentum": AMAML(0.3, Momentum(3), Store(graphs=1), query_weights=torch.tensor([0.2, 0.3, 0.5])),
    "continuous": AMAML(0.3, RK4(3), adjoint="continuous", sensitivities=False),
    "sensitivities": AMAML(0.3, Euler(3), sensitivities=True),
    "Dopri5": AMAML(0.1, Dopri5(1e-7, 1e-9)),
    "Backsolve": AMAML(0.05, RK4(6), Backsolve(1e-7, 1e-9)),
    "MAML": MAML(0.1, 3),
    "FOMAML": FOMAML(0.1, 3),
    "Reptile": Reptile(0.1, solver=Adam(3)),
    "IMAML": IMAML(GradientDescent(0.1, 5), 5.0, on_negative_curvature="truncate"),
    "Newton": IMAML(HessianFree(steps=2), 5.0),
}
LOSSES = {
    "mean": mse_loss,
    "sum": lambda p, y: (p - y).square().sum(),
    "max": lambda p, y: (p - y).square().amax(),
    "phi": lambda p, y, phi: (phi[0].exp() * (p - y).square()).sum() + phi[1] * p.mean(),
}


def tasks_of(tasks, support, query, inputs=2):
    return Tasks(*(draw(tasks, n, d) for n in (support, query) for d in (inputs, 1)))


def ragged():
    torch.manual_seed(3)
    return [tasks_of(b, s, q) for b, s, q in ((2, 5, 3), (1, 3, 4), (1, 5, 3), (2, 3, 6), (1, 5, 3))]


def singles(tasks):
    return [part[b : b + 1] for part in tasks for b in range(len(part))]


@pytest.mark.parametrize(
    ("name", "loss", "chunk_size"),
    [(name, "sum", size) for name in METHODS for size in (None, 1)]
    + [(name, loss, None) for name in ("Adam", "MAML", "IMAML") for loss in ("mean", "max", "phi")],
)
def test_tasks_of_different_sizes_count_like_each_alone(name, loss, chunk_size):
    method, tasks = METHODS[name], ragged()
    phi = torch.tensor([0.1, -0.2], dtype=F64) if loss == "phi" else None
    problem = Problem(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), LOSSES[loss], chunk_size=chunk_size)
    theta = problem.initial_parameters()
    found = meta_gradient(method, problem, theta, tasks, phi)
    alone = [meta_gradient(method, problem, theta, task, phi) for task in singles(tasks)]
    mean = lambda field: torch.stack([getattr(estimate, field) for estimate in alone]).mean(0)  # noqa: E731
    # Where tasks share their steps or a tolerance, they differ by as much as that.
    tolerance = {"Dopri5": 1e-5, "Backsolve": 1e-5}.get(name, 1e-10)
    assert relative(found.gradient, mean("gradient")) < tolerance
    assert relative(found.query_loss, torch.cat([estimate.query_loss for estimate in alone])) < tolerance
    assert relative(found.adapted, torch.cat([estimate.adapted for estimate in alone])) < tolerance
    if phi is not None:
        assert relative(found.phi_gradient, mean("phi_gradient")) < tolerance
    for key, value in found.stats.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            own = torch.cat([estimate.stats[key] for estimate in alone])
            assert (value - own).norm() < tolerance + tolerance * own.norm()  # residuals are rounding


def test_dopri5_takes_different_numbers_of_steps_for_different_chunks():
    problem, theta, tasks = regression(chunk_size=1)
    meta_gradient(AMAML(3.0, Dopri5(1e-6, 1e-8), sensitivities=True), problem, theta, tasks)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("method", [METHODS["Adam"], METHODS["MAML"], METHODS["Newton"], AdamAdaptation(0.1)])
def test_adaptation_and_evaluation_keep_the_order(method, chunk_size):
    tasks, problem = ragged(), regression(chunk_size=chunk_size)[0]
    theta = problem.initial_parameters()
    alone = [adapt(method, problem, theta, task, 7) for task in singles(tasks)]
    u = adapt(method, problem, theta, tasks, 7)
    assert relative(u, torch.cat(alone)) < 1e-11
    assert torch.equal(adapt(method, problem, theta, tasks, 0), theta.expand(7, -1))
    table = evaluate(method, problem, theta, tasks, metrics.rmse, steps=(7, 0, 7))
    assert table["task"].tolist() == sorted([*range(7)] * 2) and table["step"].tolist() == [0, 7] * 7
    for field, (x, y) in (("support", (0, 1)), ("query", (2, 3))):
        expected = [
            mse_loss(problem.module(u[b])(task.tensors[x][0]), task.tensors[y][0]).sqrt().item()
            for b, task in enumerate(singles(tasks))
        ]
        assert table[table["step"] == 7][field].tolist() == pytest.approx(expected, rel=1e-11)


def test_a_list_of_one_size_is_one_batch():
    problem, theta, _ = regression()
    torch.manual_seed(0)
    tasks = [tasks_of(1, 4, 3) for _ in range(3)]
    joined = Tasks(*(torch.cat(parts) for parts in zip(*(t.tensors for t in tasks), strict=True)))
    found, expected = (meta_gradient(AMAML(0.3, Euler(3)), problem, theta, t) for t in (tasks, joined))
    assert torch.equal(found.gradient, expected.gradient) and torch.equal(found.adapted, expected.adapted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda tasks: [], ValueError, "an empty list of tasks"),
        (lambda tasks: [tasks, None], TypeError, "a list of Tasks"),
        (lambda tasks: iter([tasks]), TypeError, "a list of Tasks"),
        (lambda tasks: [tasks, tasks.to(dtype=torch.float32)], ValueError, "tasks.support_x is torch.float32"),
    ],
)
def test_lists_that_do_not_fit_are_refused(change, error, message):
    problem, theta, tasks = regression()
    with pytest.raises(error, match=message):
        meta_gradient(MAML(0.1, 2), problem, theta, change(tasks))


# Inputs of several tensors.


class Several(nn.Module):
    """Of floats, integers and a mask; without these two, of the floats alone."""

    def __init__(self):
        super().__init__()
        self.words, self.body = nn.Embedding(5, 3), nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x, word, keep):
        return self.body(torch.cat([x, self.words(word) * keep[..., None]], -1))


def several(tasks=2, support=5, query=4):
    def points(n):
        return {"keep": torch.rand(tasks, n) > 0.4, "x": draw(tasks, n, 2), "word": torch.randint(5, (tasks, n))}

    torch.manual_seed(0)
    problem = Problem(Several().double(), mse_loss)
    return (
        problem,
        problem.initial_parameters(),
        Tasks(points(support), draw(tasks, support, 1), points(query), draw(tasks, query, 1)),
    )


def by_modules(problem, theta, tasks, steps=3, lr=0.1):
    """MAML by plain autograd through calls of the module, task by task: gradient and query losses."""
    names = {name: p.shape for name, p in problem.model.named_parameters()}
    total, losses = torch.zeros_like(theta), []

    def loss(u, x, y):
        pieces = zip(names.items(), u.split([s.numel() for s in names.values()]), strict=True)
        given = {name: piece.view(shape) for (name, shape), piece in pieces}
        return problem.loss(torch.func.functional_call(problem.model, given, (), kwargs=x), y)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for b in range(len(tasks)):
            task = [{name: t[b] for name, t in part.items()} if isinstance(part, dict) else part[b] for part in tasks.tensors]
            start = theta.clone().requires_grad_()
            u = start
            for _ in range(steps):
                u = u - lr * torch.autograd.grad(loss(u, *task[:2]), u, create_graph=True)[0]
            losses.append(loss(u, *task[2:]))
            total += torch.autograd.grad(losses[-1], start)[0] / len(tasks)
    return total, torch.stack(losses).detach()


def as_tuples(tasks):
    order = ("x", "word", "keep")
    return Tasks(*(tuple(part[name] for name in order) if isinstance(part, dict) else part for part in tasks.tensors))


@pytest.mark.parametrize("form", [lambda tasks: tasks, as_tuples], ids=["dict", "tuple"])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"trace_after": 0}], ids=["eager", "one by one", "traced"])
def test_a_model_may_take_several_tensors(form, options):
    problem, theta, tasks = several()
    gradient, losses = by_modules(problem, theta, tasks)
    problem = replace(problem, **options)
    for method in (MAML(0.1, 3), AMAML(0.3, Euler(3), Checkpoint())):
        found = meta_gradient(method, problem, theta, form(tasks))
        assert relative(found.gradient, gradient) < 1e-12 and relative(found.query_loss, losses) < 1e-12
    assert "trace_after" not in options or graphs(problem) >= {"step", "back"}
    table = evaluate(MAML(0.1, 3), problem, theta, form(tasks), metrics.rmse, steps=(3,))
    assert table["query"].tolist() == pytest.approx(losses.sqrt().tolist(), rel=1e-12)


def graphs(problem):
    entries = [problem.graphs.get(key) for key in problem.graphs.keys()]
    return {name for entry in entries for name, graph in entry.graphs.items() if graph is not None}


@pytest.mark.parametrize("metric", [metrics.rmse, metrics.accuracy, partial(metrics.nrmse, normaliser="range")])
def test_the_packages_metrics_say_that_they_take_tensors_alone(metric):
    x = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"not a tuple: write one of your own, metric\(prediction, target\)"):
        metric(x, (x, x))


def test_a_metric_may_look_at_targets_of_several_tensors():
    problem, theta, tasks = regression()
    weights = torch.rand(3, 4, 1, dtype=F64)
    problem = replace(problem, loss=lambda p, y: (y["weight"] * (p - y["value"]).square()).mean())
    weighted = lambda y, w: {"value": y, "weight": w}  # noqa: E731
    tasks = Tasks(
        tasks.support_x[:, :4], weighted(tasks.support_y[:, :4], weights), tasks.query_x, weighted(tasks.query_y, weights)
    )
    estimate = meta_gradient(MAML(0.1, 2), problem, theta, tasks)
    table = evaluate(MAML(0.1), problem, theta, tasks, lambda p, y: (y["weight"] * (p - y["value"]) ** 2).mean((1, 2)), steps=(2,))
    assert table["query"].tolist() == pytest.approx(estimate.query_loss.tolist(), rel=1e-13)


@pytest.mark.filterwarnings("error:the inner step cannot be compiled")
def test_a_model_of_several_tensors_can_be_compiled():
    problem, theta, tasks = several()
    gradient, _ = by_modules(problem, theta, tasks)
    found = meta_gradient(AMAML(0.3, Euler(3)), replace(problem, compile=True), theta, tasks)
    assert relative(found.gradient, gradient) < 1e-11


@pytest.mark.parametrize("x", [lambda t: {"input": t}, lambda t: (t,)], ids=["dict", "tuple"])
def test_a_dictionary_of_one_tensor_can_be_traced(x):
    problem, theta, tasks = regression(lambda: nn.Sequential(nn.Linear(2, 1)))
    problem = replace(problem, trace_after=0)
    meta_gradient(AMAML(0.3, Euler(3)), problem, theta, Tasks(x(tasks.support_x), tasks.support_y, x(tasks.query_x), tasks.query_y))
    assert graphs(problem) >= {"step", "back"}


def test_the_order_of_a_dictionary_is_no_part_of_the_data():
    class Two(nn.Linear):
        def forward(self, a, b):
            return super().forward(a) * torch.sigmoid(b.sum(-1, keepdim=True))

    torch.manual_seed(0)
    problem = Problem(Two(2, 1).double(), mse_loss, trace_after=0)
    a, b, y = draw(2, 4, 2), draw(2, 4, 2), draw(2, 4, 1)
    found = [
        meta_gradient(AMAML(0.3, Euler(3)), problem, torch.ones(3, dtype=F64), Tasks({"a": a, "b": b}, y, query, y))
        for query in ({"a": a, "b": b}, {"b": b, "a": a})
    ]
    assert torch.equal(found[0].query_loss, found[1].query_loss) and torch.equal(found[0].gradient, found[1].gradient)


@pytest.mark.parametrize("options", [{}, {"trace_after": 0}], ids=["eager", "traced"])
def test_several_tensors_in_tasks_of_different_sizes(options):
    problem, theta, _ = several()
    problem = replace(problem, **options)
    tasks = [several(2, 5, 4)[2], several(1, 3, 4)[2], several(1, 5, 4)[2]]
    found = meta_gradient(AMAML(0.3, Euler(3)), problem, theta, tasks)
    own = [by_modules(problem, theta, part) for part in tasks]
    assert relative(found.query_loss, torch.cat([losses for _, losses in own])) < 1e-12
    assert relative(found.gradient, (2 * own[0][0] + own[1][0] + own[2][0]) / 4) < 1e-12


# Sequences: each point is one of up to seven steps, and a mask tells which are padding.


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x, padding):
        states, _ = self.body(x)
        last = (~padding).sum(1) - 1
        return self.head(states.gather(1, last[:, None, None].expand(-1, 1, 3))[:, 0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.body, self.head = nn.Linear(2, 4), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

    def forward(self, x, padding):
        lifted = self.lift(x)
        attended, _ = self.body(lifted, lifted, lifted, key_padding_mask=padding, need_weights=False)
        return self.head((attended * ~padding[..., None]).sum(1))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.body = (
            nn.Linear(2, 4),
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu", batch_first=True),
        )
        self.head = nn.Linear(4, 1)

    def forward(self, x, padding):
        return self.head((self.body(self.lift(x), src_key_padding_mask=padding) * ~padding[..., None]).sum(1))


def sequences(tasks, points):
    lengths = torch.randint(1, 8, (tasks, points))
    padding = torch.arange(7) >= lengths[..., None]  # (B, n, 7)
    return {"x": draw(tasks, points, 7, 2).masked_fill(padding[..., None], 0), "padding": padding}


@pytest.mark.filterwarnings("ignore:the model cannot be batched")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", [Recurrent, Attention, Transformer])
def test_sequences_with_padding(kind, training):
    torch.manual_seed(0)
    problem = Problem(kind().double().train(training), mse_loss)
    theta = problem.initial_parameters()
    tasks = Tasks(sequences(2, 4), draw(2, 4, 1), sequences(2, 3), draw(2, 3, 1))
    gradient, losses = by_modules(problem, theta, tasks)
    for method in (AMAML(0.3, Euler(3)), MAML(0.1, 3)):
        found = meta_gradient(method, problem, theta, tasks)
        assert relative(found.gradient, gradient) < 1e-11 and relative(found.query_loss, losses) < 1e-12
    # What stands where the padding is does not matter.
    other = {
        "x": tasks.support_x["x"].masked_fill(tasks.support_x["padding"][..., None], 7.0),
        "padding": tasks.support_x["padding"],
    }
    assert relative(meta_gradient(method, problem, theta, replace(tasks, support_x=other)).gradient, gradient) < 1e-11


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: [x], TypeError, "a tuple or dictionary"),
        (lambda x: {"x": x, "n": 3}, TypeError, r"support_x\['n'\] must be a torch.Tensor"),
        (lambda x: {}, TypeError, "support_x must be"),
        (lambda x: (x, x[:, :2]), ValueError, "the number of support points differs"),
        (lambda x: {"x": x, "m": x[:1]}, ValueError, "the number of tasks differs"),
        (lambda x: (x, torch.zeros(3)), ValueError, "task axis and a point axis"),
        (lambda x: (x, x.to("meta")), ValueError, "different devices"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, error, message):
    x, y = torch.zeros(3, 4, 2), torch.zeros(3, 4, 1)
    with pytest.raises(error, match=message):
        Tasks(change(x), y, x, y)


# A module made of theta.


def test_a_module_holds_theta_and_nothing_of_the_model():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 1)).double().eval()
    model[3].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(3, 2, dtype=F64)
    problem = Problem(model, mse_loss)
    before, theta = copy.deepcopy(model.state_dict()), draw(problem.size).requires_grad_()
    module, x = problem.module(theta), draw(5, 2)
    own = copy.deepcopy(model)
    vector_to_parameters(theta.detach().clone(), own.parameters())
    assert torch.equal(module(x), own(x)) and type(module) is type(model)
    assert torch.equal(problem.predict(theta[None], x[None])[0], module(x)) and not module.training
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.is_leaf and p.grad is None for p in module.parameters())
    module.train()(x).sum().backward()
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and theta.abs().sum() > 0
    for wrong in (theta[:-1], theta[None]):
        with pytest.raises(ValueError, match="theta has shape"):
            problem.module(wrong)


def test_a_module_made_in_inference_mode_can_be_trained():
    problem, theta, tasks = regression()
    with torch.inference_mode():
        module = problem.module(theta)
    module(tasks.support_x).sum().backward()


def test_a_module_of_tied_parameters_stays_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    problem = Problem(model, mse_loss)
    theta = draw(problem.size)
    module = problem.module(theta)
    assert module[0].weight is module[2].weight and torch.equal(torch.cat([p.flatten() for p in module.parameters()]), theta)


@pytest.mark.parametrize(
    "index", [3, np.int64(3), torch.tensor(3), True, None, (slice(2), 1), np.zeros((2, 2), int), [[0, 1]]], ids=repr
)
def test_an_index_that_would_not_keep_the_task_axis_is_refused(index):
    tasks = tasks_of(8, 5, 5)
    with pytest.raises(TypeError, match="would not keep the task axis"):
        tasks[index]
    for kept in (slice(3, 4), [3], torch.tensor([3]), np.array([3])):
        assert torch.equal(tasks[kept].query_x, tasks.query_x[3:4])


def test_a_pool_of_dictionaries_keeps_the_points_of_all_entries_together():
    x = torch.arange(24.0).reshape(4, 6, 1)
    pool = Tasks({"a": x, "b": (2 * x, -x)}, x, {"a": x, "b": (2 * x, -x)}, x)
    drawn = PoolSampler(pool, np.int64(3), support=2, query=np.int64(5))(torch.Generator().manual_seed(0))
    assert drawn.support_y.shape == (3, 2, 1) and drawn.query_y.shape == (3, 5, 1)
    for part, y in ((drawn.support_x, drawn.support_y), (drawn.query_x, drawn.query_y)):
        assert torch.equal(part["a"], y) and torch.equal(part["b"][0], 2 * y) and torch.equal(part["b"][1], -y)
    with pytest.raises(ValueError, match="only 6 support points"):
        PoolSampler(pool, 1, support=7)
