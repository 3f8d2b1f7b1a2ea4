"""Right, or clearly refused: kinds of trouble that users bring, with the value that is right, or the error that says what to do."""

import copy
import functools
import io
import os
import pickle
import random
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import problems
import pytest
import torch
from problems import F64, relative
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

import amaml_core
from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    RK4,
    Adam,
    AdamAdaptation,
    Checkpoint,
    DivergenceError,
    Euler,
    GradientDescent,
    InnerLoop,
    Reptile,
    Tasks,
    adapt,
    checkpoints,
    evaluate,
    fit,
    identity,
    meta_gradient,
    metrics,
    training,
)
from amaml_core.adjoint import revolve_bounds

LR, K = 0.05, 4
METHODS = [AMAML(LR * K, Euler(K)), MAML(LR, K)]
draw = partial(torch.randn, dtype=F64)


Problem = partial(amaml_core.Problem, trace_after=1)  # traces whatever comes for the second time


def regression(**sizes):
    problem, *rest = problems.regression(**sizes)
    return Problem(problem.model, problem.loss), *rest


def by_hand(model, loss, theta, tasks, lr=LR, steps=K, free=None):
    """The meta-gradient of ``steps`` steps by autograd alone, one task at a time, on the module itself."""
    total = torch.zeros_like(theta)
    free = torch.ones(len(theta), dtype=torch.bool) if free is None else free
    for b in range(len(tasks)):
        start = theta.clone().requires_grad_()
        names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)

        def value(u, x, y, names=names, shapes=shapes):
            pieces = [piece.view(shape) for piece, shape in zip(u.split([s.numel() for s in shapes]), shapes, strict=True)]
            return loss(torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

        u = start
        for _ in range(steps):
            gradient = torch.autograd.grad(value(u, *(t[b] for t in tasks.support)), u, create_graph=True)[0]
            u = u - lr * torch.where(free, gradient, 0)
        total += torch.autograd.grad(value(u, *(t[b] for t in tasks.query)), start)[0]
    return total / len(tasks)


def seeded(build):
    torch.manual_seed(0)
    return build()


# ------------------------------------------------------------------------------------ A. calls share nothing that changes


def test_threads_do_not_disturb_each_other_or_the_model():
    problem, theta, tasks = regression(tasks=4)
    jobs = [(method, tasks[:n], theta + n) for method in (*METHODS, FOMAML(LR, K)) for n in (1, 2, 3, 4)]
    fresh = Problem(problem.model, mse_loss, trace=False)
    expected = [meta_gradient(method, fresh, at, some).gradient for method, some, at in jobs]
    before = {name: (p, p.clone()) for name, p in problem.model.named_parameters()}
    flags = torch.backends.cudnn.allow_tf32, torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    wrong = []

    def work(seed):
        order = random.Random(seed)
        for _ in range(60):
            i = order.randrange(len(jobs))
            method, some, at = jobs[i]
            try:
                if not torch.equal(meta_gradient(method, problem, at, some).gradient, expected[i]):
                    wrong.append(jobs[i][0])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for name, p in problem.model.named_parameters():
        assert p is before[name][0] and torch.equal(p, before[name][1])
    assert flags == (
        torch.backends.cudnn.allow_tf32, torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    )  # fmt: skip


def copies():
    yield "pickle", lambda p: pickle.loads(pickle.dumps(p))
    yield "deepcopy", copy.deepcopy
    yield "torch.save", lambda p: torch.load(_saved(p), weights_only=False)


def _saved(problem):
    buffer = io.BytesIO()
    torch.save(problem, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(("how", "made"), list(copies()), ids=lambda v: v if isinstance(v, str) else "")
def test_a_problem_that_was_used_can_be_copied_and_leaves_its_graphs_behind(how, made):
    problem, theta, tasks = regression()
    expected = [meta_gradient(METHODS[0], problem, theta, tasks).gradient for _ in range(2)]
    other = made(problem)
    assert len(problem.graphs) == 1 and len(other.graphs) == 0 and other.chunk_size == problem.chunk_size
    assert torch.equal(meta_gradient(METHODS[0], other, theta, tasks).gradient, expected[1])


def test_graphs_are_kept_by_value_and_not_without_end():
    problem, theta, tasks = regression(support=40)
    for _ in range(5):  # new settings of equal value, masks among them
        inner = InnerLoop(weight_decay=0.1, mask=torch.arange(len(theta)) > 3)
        meta_gradient(AMAML(LR, Euler(1), inner=inner), problem, theta, tasks)
    assert len(problem.graphs) == 1
    for size in range(1, 41):
        some = Tasks(tasks.support_x[:, :size], tasks.support_y[:, :size], *tasks.query)
        meta_gradient(AMAML(LR, Euler(1)), problem, theta, some)
    assert len(problem.graphs) == problem.graphs.size == 32
    assert not any(problem.graphs.get(key).graphs for key in problem.graphs.keys()[1:])  # none came twice: none was traced


def test_inference_mode_gives_the_gradient_and_leaves_no_mark():
    problem, theta, tasks = regression()
    expected = meta_gradient(METHODS[0], Problem(problem.model, mse_loss, trace=False), theta, tasks).gradient
    with torch.inference_mode():
        inside = [t.clone() for t in tasks.tensors]
        for data in (tasks, Tasks(*inside)):
            found = meta_gradient(METHODS[0], problem, theta.clone(), data)
            assert torch.equal(found.gradient, expected) and not found.gradient.is_inference()
        table = evaluate(METHODS[0], problem, theta.clone(), Tasks(*inside), metrics.rmse, steps=(K,))
    again = [meta_gradient(METHODS[0], problem, theta, tasks).gradient for _ in range(3)]
    assert all(torch.equal(g, expected) for g in again)
    assert any(problem.graphs.get(key).graphs.get("back") for key in problem.graphs.keys())
    assert np.array_equal(table["query"], evaluate(METHODS[0], problem, theta, tasks, metrics.rmse, steps=(K,))["query"])


def test_a_first_call_that_fails_is_not_held_against_the_model():
    problem, theta, tasks = regression()
    fails = [True]

    def loss(prediction, target):
        if fails[0]:
            raise RuntimeError("the disk is full")
        return mse_loss(prediction, target)

    problem = Problem(problem.model, loss)
    with pytest.raises(ValueError, match="the disk is full") as raised:
        meta_gradient(METHODS[0], problem, theta, tasks)
    assert isinstance(raised.value.__cause__, RuntimeError)
    fails[0] = False
    for _ in range(3):
        meta_gradient(METHODS[0], problem, theta, tasks)
    assert {"gradient", "step", "back"} == {
        name.split()[0] for key in problem.graphs.keys() for name in problem.graphs.get(key).graphs
    }


def test_what_a_forward_pass_leaves_behind_is_gone_with_it():
    class Keeper(nn.Sequential):
        def forward(self, x):
            self.count = getattr(self, "count", 0) + 1
            self.seen.append(x)
            self.last = super().forward(x)
            return self.last

    model = seeded(lambda: Keeper(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double())
    model.seen = []
    problem, _, tasks = regression()
    problem = Problem(model, mse_loss)
    meta_gradient(MAML(LR, K), problem, problem.initial_parameters(), tasks)
    assert model.seen == [] and not hasattr(model, "count") and not hasattr(model, "last")


# ------------------------------------------------------------------------- B. models that vmap does not compute as they are


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.layer, self.head = kind(2, 3, batch_first=True, **options), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.kind, self.head = nn.Linear(2, 4), kind, nn.Linear(4, 1)
        if kind == "encoder":
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        elif kind == "multihead":
            self.layer = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = self.embed(x)
        if self.kind == "encoder":
            h = self.layer(h)
        elif self.kind == "multihead":
            h = self.layer(h, h, h, need_weights=False)[0]
        else:
            h = nn.functional.scaled_dot_product_attention(h, h, h)
        return self.head(h[:, -1])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.words(x).mean(1).tanh())


class OldFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].exp()


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Recomputed(nn.Module):
    """Its first layers keep no activations, if so asked."""

    def __init__(self, keep):
        super().__init__()
        self.body, self.head, self.keep = (
            nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()),
            nn.Linear(4, 1),
            keep,
        )

    def forward(self, x):
        return self.head(self.body(x) if self.keep else checkpoint(self.body, x, use_reentrant=False))


def old_function():
    return nn.Sequential(nn.Linear(2, 4), Apply(OldFunction.apply), nn.Linear(4, 1))


MODELS = {
    "Embedding": Words,
    **{kind.__name__: partial(Recurrent, kind) for kind in (nn.RNN, nn.GRU, nn.LSTM)},
    **{kind: partial(Attention, kind) for kind in ("encoder", "multihead", "sdpa")},
    "Function": old_function,
    "checkpoint": partial(Recomputed, False),
}


def sequences(name, tasks=3, dtype=F64):
    """A model that vmap does not take, or takes wrongly, and tasks of points that are sequences of length 4."""
    model, g = seeded(MODELS[name]).to(dtype), torch.Generator().manual_seed(1)
    if name == "Embedding":
        x = torch.randint(0, 5, (tasks, 11, 4), generator=g)
    else:
        x = draw(tasks, 11, 4, 2, generator=g) if name not in ("Function", "checkpoint") else draw(tasks, 11, 2, generator=g)
    y = draw(tasks, 11, 1, generator=g)
    data = Tasks(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:]).to(dtype=dtype)
    problem = Problem(model, mse_loss)
    return problem, problem.initial_parameters() + 0.1, data


@pytest.mark.filterwarnings("ignore:the model cannot be batched")
@pytest.mark.parametrize("tasks", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", MODELS)
def test_models_that_vmap_does_not_take_have_their_own_gradient(name, tasks):
    problem, theta, data = sequences(name, tasks)
    reference = seeded(partial(Recomputed, True)).double() if name == "checkpoint" else problem.model
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = by_hand(reference, mse_loss, theta, data)
    for method in METHODS:
        for _ in range(3):
            assert relative(meta_gradient(method, problem, theta, data).gradient, expected) < 1e-11
    u = adapt(METHODS[1], problem, theta, data, K)
    losses = [problem.losses(u[b : b + 1], *(t[b : b + 1] for t in data.query)) for b in range(tasks)]
    assert torch.allclose(problem.losses(u, *data.query), torch.cat(losses), rtol=1e-12)
    v = draw(u.shape, generator=torch.Generator().manual_seed(3))
    if name == "Embedding":
        v[:, :3] = 0  # the padding's row is a constant
    difference = (problem.gradient(u + 1e-5 * v, *data.support) - problem.gradient(u - 1e-5 * v, *data.support)) / 2e-5
    assert relative(problem.hvp(u, *data.support, v), difference) < 1e-6


def test_that_tasks_are_run_one_by_one_is_said_once_with_the_reason():
    problem, theta, data = sequences("Embedding")
    with pytest.warns(UserWarning, match="run one by one: .*padding row.*gradients are not those of the tasks alone") as caught:
        for n in (3, 2, 3):
            meta_gradient(METHODS[0], problem, theta, data[:n])
    assert len(caught) == 1
    rows = problem.gradient(theta.expand(3, -1), *data.support)[:, :15].view(3, 5, 3)
    assert (rows[:, 0] == 0).all() and (rows[:, 1:] != 0).any()  # the padding's row does not move


@pytest.mark.parametrize("name", ["encoder", "multihead", "sdpa"])
def test_attention_is_batched(name):
    problem, theta, data = sequences(name)
    assert problem.batches(theta, data)


# ---------------------------------------------------------------------------------- C. pure is what acts so, not what is called so


class Noisy(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.layer, self.noise = nn.Linear(2, 1), noise

    def forward(self, x):
        return self.noise(self.layer(x))


def dropping_attention(h):
    return nn.functional.scaled_dot_product_attention(h, h, h, dropout_p=0.5)


RANDOM = {
    "functional dropout": lambda: Noisy(nn.functional.dropout),
    "rare dropout": lambda: Noisy(partial(nn.functional.dropout, p=1e-9)),
    "RReLU": lambda: nn.Sequential(nn.Linear(2, 1), nn.RReLU()),
    "torch.rand": lambda: Noisy(lambda x: x + torch.rand(1)),
    "numpy": lambda: Noisy(lambda x: x * np.random.default_rng().random()),
    "random": lambda: Noisy(lambda x: x * random.random()),
    "attention dropout": lambda: nn.Sequential(nn.Linear(2, 4), Apply(dropping_attention), nn.Linear(4, 1)),
    "LSTM dropout": lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.5),
}  # fmt: skip


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("name", RANDOM)
def test_a_random_model_is_refused(name, chunk_size):
    _, _, tasks = regression()
    if name == "LSTM dropout":
        tasks = sequences("LSTM")[2]
    problem = Problem(seeded(RANDOM[name]).double(), mse_loss, chunk_size=chunk_size)
    for method in (*METHODS, FOMAML(), IMAML()):
        with pytest.raises(ValueError, match="is random.*model.eval()"):
            meta_gradient(method, problem, problem.initial_parameters(), tasks)
    with pytest.raises(ValueError, match="is random"):
        problem.predict(problem.initial_parameters()[None], tasks.support_x[:1])


def test_a_random_loss_is_refused():
    problem, theta, tasks = regression()
    with pytest.raises(ValueError, match="the model or the loss is random"):
        meta_gradient(METHODS[0], Problem(problem.model, lambda p, y: mse_loss(p, y) * torch.rand(())), theta, tasks)


def test_training_mode_after_construction_is_noticed():
    _, _, tasks = regression()
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double().eval()
    problem = Problem(model, mse_loss)
    theta = problem.initial_parameters()
    for _ in range(3):  # eagerly, then traced
        assert relative(meta_gradient(METHODS[0], problem, theta, tasks).gradient, by_hand(model, mse_loss, theta, tasks)) < 1e-11
    model.train()
    with pytest.raises(ValueError, match="is random"):
        meta_gradient(METHODS[0], problem, theta, tasks)


def test_a_call_that_changes_buffers_is_refused_and_changes_none():
    _, _, tasks = regression()
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3))).double()
    before = {name: b.clone() for name, b in model.named_buffers()}
    with pytest.raises(ValueError, match=r"changes its buffers \['0.parametrizations.weight.0._u'"):
        meta_gradient(METHODS[0], Problem(model, mse_loss), Problem(model, mse_loss).initial_parameters(), tasks)
    assert before and all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    with pytest.raises(ValueError, match="track_running_stats=False"):
        Problem(nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)), mse_loss)


def norms():
    yield "BatchNorm", nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))
    yield "spectral norm", nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 1))
    yield "weight norm", nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 1))


@pytest.mark.parametrize(("name", "model"), list(norms()), ids=lambda v: v if isinstance(v, str) else "")
def test_running_statistics_that_stand_still_are_as_good_as_constants(name, model):
    _, _, tasks = regression()
    model = model.double()
    model(tasks.support_x[0])  # statistics that are not those of a new layer
    model.eval()
    problem = Problem(model, mse_loss)
    theta = problem.initial_parameters() + 0.1
    for method in METHODS:
        for _ in range(3):
            assert relative(meta_gradient(method, problem, theta, tasks).gradient, by_hand(model, mse_loss, theta, tasks)) < 1e-11


def test_weights_that_are_held_elsewhere_are_followed_or_refused():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)
            self.layers, self.named, self.run = [self.a, nn.Tanh(), self.b], {"w": self.b.weight}, self.through

        def through(self, x):
            for layer in self.layers:
                x = layer(x)
            return x * self.named["w"].sum()

        def forward(self, x):
            return self.run(x)

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 1)
            self.run = lambda x: self.a(x)

        def forward(self, x):
            return self.run(x)

    _, _, tasks = regression()
    listed, plain = seeded(Listed).double(), seeded(Listed).double()
    plain.layers = plain.named = plain.run = None
    plain.forward = lambda x: plain.b(plain.a(x).tanh()) * plain.b.weight.sum()
    problem = Problem(listed, mse_loss)
    theta = problem.initial_parameters() + 0.1
    assert relative(meta_gradient(METHODS[0], problem, theta, tasks).gradient, by_hand(plain, mse_loss, theta, tasks)) < 1e-11
    for closed in (Closed(), torch.compile(nn.Linear(2, 1), backend="eager")):
        problem = Problem(closed.double(), mse_loss)
        with pytest.raises(ValueError, match=r"does not compute with the parameter '.*weight'.*Pass the plain module"):
            meta_gradient(METHODS[0], problem, problem.initial_parameters(), tasks)


ALL = [*METHODS, AMAML(LR * K, RK4(K), Checkpoint(), proximal=0.5), FOMAML(LR, K), Reptile(LR, K), IMAML(GradientDescent(LR, K))]


@pytest.mark.parametrize("method", ALL, ids=lambda m: type(m).__name__)
def test_frozen_is_frozen_everywhere(method):
    problem, theta, tasks = regression(tasks=4)
    problem.model[0].requires_grad_(False)
    frozen = torch.arange(len(theta)) < 24
    estimate = meta_gradient(method, problem, theta, tasks)
    assert (estimate.gradient[frozen] == 0).all() and (estimate.gradient[~frozen] != 0).all()
    assert torch.equal(estimate.adapted[:, frozen], theta[frozen].expand(4, -1))
    if method in METHODS:
        expected = by_hand(problem.model, mse_loss, theta, tasks, free=~frozen)
        assert relative(estimate.gradient[~frozen], expected[~frozen]) < 1e-11
    for make in (
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    ):
        trained = fit(method, problem, lambda g: tasks, 3, make, progress=False).theta
        assert torch.equal(trained[frozen], theta[frozen]) and (trained[~frozen] != theta[~frozen]).all()
    decayed = AMAML(LR * K, Euler(K), inner=InnerLoop(weight_decay=0.3))
    for other in (decayed, AdamAdaptation(LR, weight_decay=0.3)):
        assert torch.equal(adapt(other, problem, theta, tasks, 3)[:, frozen], theta[frozen].expand(4, -1))
    problem.model[0].requires_grad_(True)  # and thawed again, it moves
    assert (meta_gradient(method, problem, theta, tasks).gradient != 0).all()


def test_a_mask_keeps_parameters_from_adapting_and_not_from_being_trained():
    problem, theta, tasks = regression()
    mask = torch.arange(len(theta)) >= 24
    found = meta_gradient(AMAML(LR * K, Euler(K), inner=InnerLoop(mask=mask.tolist())), problem, theta, tasks)
    assert torch.equal(found.adapted[:, ~mask], theta[~mask].expand(3, -1))
    assert relative(found.gradient, by_hand(problem.model, mse_loss, theta, tasks, free=mask)) < 1e-11
    assert (found.gradient != 0).all()
    with pytest.raises(ValueError, match="a mask of 3 entries does not fit the model's P=105 parameters"):
        meta_gradient(AMAML(inner=InnerLoop(mask=[True] * 3)), problem, theta, tasks)
    with pytest.raises(ValueError, match="true or false for each parameter"):
        InnerLoop(mask=[0.5, 1.0])


def test_a_model_without_a_free_parameter_is_refused():
    problem, theta, tasks = regression()
    problem.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to adapt"):
        meta_gradient(METHODS[0], problem, theta, tasks)


# ------------------------------------------------------------------------------------------ D. a trace that has become wrong


def drifting(change):
    """A problem whose loss has a parameter that a closure holds, and the gradient of a plain problem with the same loss."""
    problem, theta, tasks = regression()
    held = [1.0]
    loss = change(held, theta)
    return Problem(problem.model, loss), Problem(problem.model, loss, trace=False), theta, tasks, held


def scaled(held, theta):
    return lambda p, y: held[0] * mse_loss(p, y)


def barrier(held, theta):
    return lambda p, y: mse_loss(p, y) + held[0] * (p - 0.4).relu().pow(3).sum()


@pytest.mark.parametrize(("lr", "factor"), [(1e-4, 1.1), (1e-5, 2.0), (1e-9, 1.01), (0.05, 1.01)])
@pytest.mark.parametrize("change", [scaled, barrier])
@pytest.mark.parametrize("solver", [Euler(3), pytest.param(RK4(3), marks=pytest.mark.slow)])
def test_a_loss_that_changes_between_calls_is_noticed_at_any_step_size(change, lr, factor, solver):
    problem, plain, theta, tasks, held = drifting(change)
    method = AMAML(3 * lr, solver)
    for _ in range(3):
        meta_gradient(method, problem, theta, tasks)
    held[0] = factor
    for _ in range(3):
        found, right = (meta_gradient(method, p, theta, tasks) for p in (problem, plain))
        assert torch.equal(found.gradient, right.gradient) and torch.equal(found.adapted, right.adapted)


def test_a_penalty_that_is_flat_at_theta_is_noticed():
    problem, theta, tasks = regression()
    model = Quadratic2(theta.clone())
    weight = [1.0]
    loss = lambda u, y: (u.sum() - y.sum()) ** 2 + weight[0] * (u - theta).square().sum()  # noqa: E731
    fast, plain = Problem(model, loss), Problem(model, loss, trace=False)
    for weight[0] in (1.0, 1.0, 1.0, 50.0, 50.0, 50.0):
        found, right = (meta_gradient(AMAML(1e-3, Euler(5)), p, theta, tasks) for p in (fast, plain))
        assert torch.equal(found.gradient, right.gradient)


class OneSided(nn.Module):
    """A line, and a small number that is nowhere below zero."""

    def __init__(self):
        super().__init__()
        self.slope, self.place = nn.Parameter(torch.tensor([1.0, -1.0], dtype=F64)), nn.Parameter(torch.tensor([0.02], dtype=F64))

    def forward(self, x):
        return (x @ self.slope)[:, None], self.place


@pytest.mark.parametrize("where", ["apart", "everywhere"])
def test_a_change_is_noticed_near_the_edge_of_what_is_defined(where):
    _, _, tasks = regression()
    held = [1.0]
    factor = lambda p: 1 + 0.01 * p.sqrt() if where == "everywhere" else 1  # noqa: E731
    loss = lambda p, y: held[0] * mse_loss(p[0] * factor(p[1]), y) + 1e-3 * p[1].rsqrt().sum()  # noqa: E731
    fast, plain = Problem(OneSided(), loss), Problem(OneSided(), loss, trace=False)
    theta = fast.initial_parameters()
    for held[0] in (1.0, 1.0, 1.0, 5.0, 5.0):
        found, right = (meta_gradient(AMAML(0.1, Euler(4)), p, theta, tasks) for p in (fast, plain))
        assert torch.equal(found.gradient, right.gradient)


class WrongIfBatched(nn.Module):
    """A model near whose own parameters all is a number, and that vmap computes as another one."""

    def __init__(self):
        super().__init__()
        self.slope, self.place = nn.Parameter(torch.ones(2, dtype=F64)), nn.Parameter(torch.tensor([0.02], dtype=F64))

    def forward(self, x):
        batched = torch._C._functorch.is_batchedtensor(x)
        return (x @ self.slope)[:, None] * self.place.sqrt() * (2 if batched else 1)


def test_what_vmap_makes_of_a_model_is_seen_where_the_model_is_defined():
    _, _, tasks = regression()
    model = WrongIfBatched()
    model.place.requires_grad = False  # it stays where it is a number
    problem, free = Problem(model, mse_loss), torch.tensor([True, True, False])
    with pytest.warns(UserWarning, match="not those of the tasks alone"):
        found = meta_gradient(METHODS[0], problem, problem.initial_parameters(), tasks).gradient
    assert relative(found, by_hand(model, mse_loss, problem.initial_parameters(), tasks, free=free) * free) < 1e-11


@pytest.mark.parametrize(
    ("dtype", "factor", "solver"),
    [
        (torch.bfloat16, 1.25, Euler(4)),
        (torch.bfloat16, 1.25, Adam(4, eps=1e-3)),
        (torch.float16, 1.05, RK4(2)),
        (torch.float32, 1.0005, Euler(4)),
        (torch.float32, 1.0005, Adam(4)),
    ],
    ids=str,
)
def test_a_small_change_is_noticed_in_any_precision(dtype, factor, solver):
    problem, theta, tasks, held = [change for i, change in enumerate(drifting(scaled)) if i != 1]
    theta, tasks = theta.to(dtype), tasks.to(dtype=dtype)
    fast = Problem(problem.model.to(dtype), problem.loss)
    plain = Problem(fast.model, problem.loss, trace=False)
    for held[0] in (1.0, 1.0, 1.0, factor, factor):
        found, right = (meta_gradient(AMAML(0.02, solver), p, theta, tasks) for p in (fast, plain))
        assert torch.equal(found.gradient, right.gradient)
    assert [fast.graphs.get(key).changes for key in fast.graphs.keys()] == [1]  # found changed once


class Quadratic2(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.u = nn.Parameter(start)

    def forward(self, x):
        return self.u


def test_forget_drops_what_was_traced_and_found_out():
    problem, theta, tasks = regression()
    for _ in range(3):
        meta_gradient(METHODS[0], problem, theta, tasks)
    assert len(problem.graphs) and len(problem.findings)
    problem.forget()
    assert not len(problem.graphs) and not len(problem.findings)
    assert torch.equal(*(meta_gradient(METHODS[0], problem, theta, tasks).gradient for _ in range(2)))


def test_a_first_call_under_autocast_is_not_taken_for_a_plain_one():
    problem, theta, tasks = regression()
    single = Problem(problem.model.float(), mse_loss)
    theta, tasks = theta.float(), tasks.to(dtype=torch.float32)
    expected = meta_gradient(METHODS[0], Problem(single.model, mse_loss, trace=False), theta, tasks).gradient
    with torch.autocast("cpu", torch.bfloat16):
        rough = [meta_gradient(METHODS[0], single, theta, tasks).gradient for _ in range(3)]
    assert all(1e-4 < relative(g, expected) < 0.1 and torch.equal(g, rough[0]) for g in rough)
    for _ in range(3):
        assert torch.equal(meta_gradient(METHODS[0], single, theta, tasks).gradient, expected)


# ----------------------------------------------------------------------------------------------------- E. guards that guard


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_clipping_a_slope_of_zero_or_beyond_the_range_of_its_square(dtype):
    problem, theta, tasks = regression()
    problem, theta, tasks = Problem(problem.model.to(dtype), mse_loss), theta.to(dtype), tasks.to(dtype=dtype)
    flat = Tasks(
        tasks.support_x, problem.predict(theta.expand(3, -1), tasks.support_x), *tasks.query
    )  # the support loss is at its minimum
    method = AMAML(LR * K, Euler(K), inner=InnerLoop(clip_norm=1.0))
    found = meta_gradient(method, problem, theta, flat)
    right = meta_gradient(AMAML(LR * K, Euler(K)), problem, theta, flat)
    assert found.gradient.isfinite().all() and torch.equal(found.gradient, right.gradient)
    steep = Tasks(tasks.support_x, tasks.support_y * 1e19, *tasks.query)
    moved = meta_gradient(AMAML(LR, Euler(1), inner=InnerLoop(clip_norm=1.0)), problem, theta, steep).adapted - theta
    assert torch.allclose(moved.norm(dim=1).double(), torch.full((3,), LR, dtype=F64), rtol=20 * torch.finfo(dtype).eps)


OPTIMISED = """
import torch
from amaml_core import AMAML, RK4, Backsolve, DivergenceError, Dopri5, Problem, Tasks, meta_gradient
assert False, "this is not python -O"
class Free(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.u = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    def forward(self, x):
        return self.u
x = torch.arange(1.0, 5.0).double().expand(1, 1, 4)
tasks = Tasks(x, x, x, x)
stiff = Problem(Free(), lambda u, y: (y.flatten() * u.square()).sum())
steep = Problem(Free(), lambda u, y: -(u.pow(4)).sum())
for problem, method in (
    (stiff, AMAML(1.0, RK4(10), Backsolve(max_steps=5))),
    (stiff, AMAML(4.0, RK4(20), Backsolve(1e-3, 1e-4, max_steps=10**6))),
    (steep, AMAML(5.0, Dopri5())),
    (stiff, AMAML(5.0, Dopri5(1e-9, 1e-11, max_steps=5))),
):
    try:
        meta_gradient(method, problem, problem.initial_parameters(), tasks)
    except DivergenceError as error:
        print(type(method.solver).__name__, type(method.memory).__name__, "refused:", error)
"""


@pytest.mark.slow
def test_adaptive_solves_do_not_rely_on_assert():
    done = subprocess.run(
        [sys.executable, "-O", "-W", "ignore", "-c", OPTIMISED], capture_output=True, text=True, timeout=100, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split(" refused")[0] for line in lines] == ["RK4 Backsolve", "RK4 Backsolve", "Dopri5 Store", "Dopri5 Store"]
    assert "max_steps=5" in lines[0] and "misses theta" in lines[1] and "max_steps=5" in lines[3]


@pytest.mark.parametrize("method", [*METHODS, FOMAML(LR, K), IMAML(GradientDescent(LR, K)), AMAML(0.2, Euler(4), Checkpoint())])
@pytest.mark.parametrize("name", ["support_x", "support_y", "query_x", "query_y"])
def test_numbers_in_the_data_that_are_none_are_named(method, name):
    problem, theta, tasks = regression()
    getattr(tasks, name)[1, 2] = torch.nan
    with pytest.raises(DivergenceError, match=rf"because tasks.{name} holds NaN or infinity for tasks \[1\]") as caught:
        meta_gradient(method, problem, theta, tasks)
    assert "step size" not in str(caught.value).partition("(")[0]
    with pytest.raises(DivergenceError, match="theta is not finite"):
        meta_gradient(method, problem, theta * torch.inf, regression()[2])


def test_what_is_no_number_has_no_accuracy():
    logits = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[torch.nan, 2.0], [3.0, 0.0]], [[torch.inf, 1.0], [-torch.inf, 0.0]]])
    accuracy = metrics.accuracy(logits, torch.tensor([[1, 0], [1, 0], [0, 1]]))
    assert accuracy[0] == 1 and accuracy[1].isnan() and accuracy[2] == 1


@pytest.mark.parametrize("metric", [metrics.accuracy, lambda p, y: (p.argmax(-1) == y).double().mean(1)])
def test_evaluation_after_a_divergence_measures_nothing(metric):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Softmax(-1)).double()
    problem, (_, _, tasks) = Problem(model, lambda p, y: 1e300 * cross_entropy(p, y)), regression()
    labels = [torch.zeros(y.shape[:2], dtype=torch.int64) for y in (tasks.support_y, tasks.query_y)]
    tasks = Tasks(tasks.support_x, labels[0], tasks.query_x, labels[1])
    table = evaluate(MAML(1e300), problem, problem.initial_parameters(), tasks, metric, steps=(0, 3))
    assert table[table.step == 0][["support", "query"]].notna().all(None)
    assert table[table.step == 3][["support", "query"]].isna().all(None)


def test_thousands_of_snapshots_need_no_recursion():
    class Steps:
        initial, kept = torch.zeros(1), []

        def __len__(self):
            return 5000

        def start(self, lam):
            return lam

        def advance(self, start, stop, u):
            assert u == start
            return torch.tensor([float(stop)])

        def backward(self, k, u, u_next, gradients):
            assert u == k and (not self.kept or self.kept[-1] == k + 1)
            self.kept.append(k)
            return gradients

    for snapshots in (1200, 4999, 6000):
        Steps.kept.clear()
        end, sweep = Checkpoint(snapshots=snapshots).solve(Steps())
        sweep(torch.zeros(1))
        assert end == 5000 and len(Steps.kept) == 5000 and len(revolve_bounds(5000, snapshots)) <= snapshots + 2


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda p, y: {"loss": mse_loss(p, y)}, TypeError, "returned a dict; pick the entry"),
        (lambda p, y: (mse_loss(p, y), p), TypeError, "returned a tuple; pick the entry"),
        (lambda p, y: mse_loss(p, y).item(), TypeError, "returned a float"),
        (lambda p, y: (p - y).square().mean(0), ValueError, "must return a scalar"),
        (lambda p, y: (p > y).sum(), TypeError, "floating-point tensor, but returned torch.int64"),
        (lambda p, y: y.square().mean(), ValueError, "depends on no parameter"),
    ],
)  # fmt: skip
def test_losses_without_a_gradient_are_refused(loss, error, message):
    problem, theta, tasks = regression()
    for method in (*METHODS, FOMAML()):
        with pytest.raises(error, match=message):
            meta_gradient(method, Problem(problem.model, loss), theta, tasks)


def test_a_model_may_return_a_dictionary():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            h = self.layer(x)
            return {"mean": h[:, :1], "logarithm": h[:, 1:]}

    _, _, tasks = regression()
    loss = lambda p, y: ((y - p["mean"]) * p["logarithm"].exp()).square().mean() - p["logarithm"].mean()  # noqa: E731
    model = seeded(Heads).double()
    for chunk_size in (None, 1, 2):
        problem = Problem(model, loss, chunk_size=chunk_size)
        theta = problem.initial_parameters()
        assert relative(meta_gradient(METHODS[0], problem, theta, tasks).gradient, by_hand(model, loss, theta, tasks)) < 1e-11
        found = problem.predict(theta.expand(3, -1), tasks.query_x)
        assert {k: tuple(v.shape) for k, v in found.items()} == {"mean": (3, 4, 1), "logarithm": (3, 4, 1)}


def test_numbers_of_other_libraries_are_numbers():
    problem, theta, tasks = regression()
    expected = meta_gradient(AMAML(0.5, Euler(5)), problem, theta, tasks).gradient
    for five in (np.int64(5), torch.tensor(5)):
        method = AMAML(np.float64(0.5), Euler(five), Checkpoint(segments=five))
        assert method == AMAML(0.5, Euler(5), Checkpoint(segments=5)) and repr(method) == repr(
            AMAML(0.5, Euler(5), Checkpoint(segments=5))
        )
        assert torch.equal(meta_gradient(method, problem, theta, tasks).gradient, expected)
    table = evaluate(MAML(np.float32(0.5), np.int32(5)), problem, theta, tasks, metrics.rmse, steps=np.array([0, 2]))
    assert table["step"].tolist() == [0, 2] * 3
    for build in (lambda: Euler(5.0), lambda: MAML(0.1, "5"), lambda: Checkpoint(snapshots=2.5), lambda: IMAML(cg_steps=1.5)):
        with pytest.raises(TypeError, match="needs an integer"):
            build()
    with pytest.raises(TypeError, match="needs a number for lr"):
        MAML("fast")
    with pytest.raises(TypeError, match="whole numbers"):
        evaluate(MAML(), problem, theta, tasks, metrics.rmse, steps=(0, 2.5))
    for given, message in (((theta.tolist(), tasks), "theta must be a tensor"), ((theta, tasks.tensors), "tasks must be a Tasks")):
        with pytest.raises(TypeError, match=message):
            meta_gradient(MAML(), problem, *given)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        Problem(lambda x: x, mse_loss)


# ------------------------------------------------------------------------------------- F. checkpoints of this run and no other


def lines(generator):
    slope = draw(4, 1, 1, generator=generator)
    x = draw(2, 4, 5, 1, generator=generator)
    return Tasks(x[0], slope * x[0], x[1], slope * x[1])


def noisy_lines(generator, noise=0.1):
    tasks = lines(generator)
    return Tasks(tasks.support_x, tasks.support_y + noise, *tasks.query)


def net(activation=nn.Tanh, width=8):
    return seeded(lambda: nn.Sequential(nn.Linear(1, width), activation(), nn.Linear(width, 1)).double())


class Scaled(nn.Module):
    """Prints as another of its kind does; what it computes stands in its code and attributes."""

    def __init__(self, factor):
        super().__init__()
        self.layer, self.factor = nn.Linear(1, 1), factor

    def forward(self, x):
        return self.factor * self.layer(x)


class Squared(Scaled):
    def forward(self, x):
        return self.factor * self.layer(x) ** 2


Squared.__qualname__ = Squared.__name__ = "Scaled"


@dataclass(frozen=True)
class Pool:
    """A sampler with data of its own."""

    tasks: Tasks

    def __call__(self, generator):
        return self.tasks[torch.randperm(len(self.tasks), generator=generator)[:2]]


def pool(seed):
    return Pool(lines(torch.Generator().manual_seed(seed)))


def sgd(**settings):
    return lambda p: torch.optim.SGD(p, **settings)


def closing_over(value):
    return lambda p, y: mse_loss(p, y) * value


def noisy(noise):
    return partial(noisy_lines, noise=noise)


def half_frozen():
    model = net()
    model[0].requires_grad_(False)
    return model


class Weighing(nn.Module):
    """Of a weight of its own, as a loss, or as a teacher in a sampler."""

    def __init__(self, weight, kind=nn.Parameter):
        super().__init__()
        self.weight = kind(torch.tensor(weight, dtype=F64))

    def forward(self, prediction, target):
        return self.weight.detach() * mse_loss(prediction, target)

    def lines(self, generator):
        return noisy_lines(generator, self.weight.detach())


PAIRS = {
    "learning rate": ({"optimizer": sgd(lr=0.5)}, {"optimizer": sgd(lr=1e-9)}, r"optimizer.settings.0.lr: 0.5 there, 1e-09 here"),
    "momentum": ({"optimizer": sgd(lr=0.5)}, {"optimizer": sgd(lr=0.5, momentum=0.9)}, "optimizer.settings.0.momentum"),
    "optimizer": ({}, {"optimizer": lambda p: torch.optim.AdamW(p, 1e-3)}, "optimizer.class: torch.optim.adam.Adam there"),
    "loss": ({"loss": mse_loss}, {"loss": nn.functional.l1_loss}, "loss: torch.nn.functional.mse_loss there"),
    "closure": ({"loss": closing_over(1.0)}, {"loss": closing_over(2.0)}, "loss.closure.value: 1.0 there, 2.0 here"),
    "code": ({"loss": lambda p, y: (p - y).square().mean()}, {"loss": lambda p, y: (p - y).abs().mean()}, "loss.code"),
    "architecture": ({"model": net()}, {"model": net(nn.ReLU)}, r"model: .*Tanh.* there, .*ReLU.* here"),
    "attribute": ({"model": Scaled(2.0).double()}, {"model": Scaled(3.0).double()}, "attributes..factor: 2.0 there, 3.0 here"),
    "forward": ({"model": Scaled(2.0).double()}, {"model": Squared(2.0).double()}, "model.classes.*Scaled.forward"),
    "sampler": ({"sampler": lines}, {"sampler": noisy_lines}, "sampler: .*noisy_lines here"),
    "its settings": ({"sampler": noisy(0.1)}, {"sampler": noisy(0.2)}, "noise: 0.1 there, 0.2 here"),
    "its data": ({"sampler": pool(0)}, {"sampler": pool(1)}, r"sampler.tasks.support_y: torch.float64 \(4, 5, 1\)"),
    "seed": ({"seed": 0}, {"seed": 1}, "seed: 0 there, 1 here"),
    "precision": ({"tf32": False}, {"tf32": True}, "tf32: False there, True here"),
    "start": ({"theta": None}, {"theta": torch.zeros(25, dtype=F64)}, "theta: torch.float64"),
    "weight of a loss": (
        {"loss": Weighing(1.0)}, {"loss": Weighing(7.0)}, r"loss.parameters.weight: torch.float64 \(\) \w+ there",
    ),
    "buffer of a loss": ({"loss": Weighing(1.0, nn.Buffer)}, {"loss": Weighing(7.0, nn.Buffer)}, "loss.buffers.weight: torch"),
    "weight of a teacher": (
        {"sampler": Weighing(1.0).lines}, {"sampler": Weighing(7.0).lines}, "sampler.of.parameters.weight: torch",
    ),
    "frozen": ({"model": net()}, {"model": half_frozen()}, r"model.parameters.0.weight: .* True' there, .* False' here"),
}  # fmt: skip


def run(path, meta_steps=3, method=METHODS[1], model=None, loss=mse_loss, sampler=lines, tf32=False, **options):
    return fit(method, Problem(model or net(), loss, tf32=tf32), sampler, meta_steps, checkpoint=path, progress=False, **options)


@pytest.mark.parametrize("name", PAIRS)
def test_a_checkpoint_of_another_run_is_refused_field_by_field(name, tmp_path):
    first, other, message = PAIRS[name]
    path = tmp_path / "theta.safetensors"
    run(path, **first)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"belongs to another run(.|\n)*{message}"):
        run(path, 5, **other)
    assert path.read_bytes() == before
    whole, resumed = run(None, 5, **first), run(path, 5, **first)
    assert torch.equal(whole.theta, resumed.theta) and whole.history.equals(resumed.history)


@pytest.mark.parametrize("package", [amaml_core, torch], ids=lambda package: package.__name__)
def test_a_checkpoint_of_another_version_is_refused_by_name(package, tmp_path, monkeypatch):
    path, release = tmp_path / "theta.safetensors", str(package.__version__).partition("+")[0]
    run(path)
    monkeypatch.setattr(package, "__version__", "9.9.9")
    told = rf"other versions:\n  versions.{package.__name__}: '{release}' there, '9.9.9' here\nGo on with those there, or"
    with pytest.raises(ValueError, match=told):
        run(path, 5)
    monkeypatch.setattr(package, "__version__", f"{release}+another.build")
    if package is torch:
        assert torch.equal(run(path, 5).theta, run(None, 5).theta)


def test_a_checkpoint_from_before_versions_were_kept_is_read(tmp_path, monkeypatch):
    path, save = tmp_path / "theta.safetensors", checkpoints.save
    older = lambda identity: {key: value for key, value in identity.items() if not key.startswith("versions")}  # noqa: E731
    monkeypatch.setattr(checkpoints, "save", lambda path, identity, state: save(path, older(identity), state))
    run(path)
    assert torch.equal(run(path, 5).theta, run(None, 5).theta)


def test_the_models_own_values_do_not_count_wherever_it_is_reached(tmp_path):
    """They are theta's."""

    def settings(model):
        loss = lambda p, y: mse_loss(p, y) + 0 * len(list(model))  # noqa: E731
        sampler = lambda generator: noisy_lines(generator, 0 * len(list(model[0].parameters())))  # noqa: E731
        return {"model": model, "loss": loss, "sampler": sampler, "theta": torch.ones(25, dtype=F64)}

    other = net()
    nn.init.zeros_(other[0].weight)
    run(tmp_path / "theta", 3, **settings(net()))
    assert torch.equal(run(tmp_path / "theta", 5, **settings(other)).theta, run(None, 5, **settings(net())).theta)


def test_settings_too_long_to_be_printed_count_in_full(tmp_path):
    model = lambda: seeded(lambda: nn.Linear(1100, 1)).double()  # noqa: E731
    wide = lambda generator: Tasks(*(draw(2, 3, n, generator=generator) for n in (1100, 1, 1100, 1)))  # noqa: E731
    places = torch.arange(1101)
    masks = [AMAML(1e-3, Euler(2), inner=InnerLoop(mask=places != k)) for k in (500, 501)]
    sizes = [AMAML(1e-3, Euler(1101), step_sizes=1e-6 + 1e-7 * (places == k).double()[:, None]) for k in (500, 501)]
    for (one, other), message in ((masks, "method.inner.mask"), (sizes, "method.step_sizes")):
        path = tmp_path / f"{message}.safetensors"
        assert repr(one) == repr(other)
        run(path, 1, one, model(), sampler=wide)
        with pytest.raises(ValueError, match=message):
            run(path, 2, other, model(), sampler=wide)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)), sgd(lr=np.float32(0.1), momentum=np.float64(0.9)),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True), lambda p: torch.optim.Rprop(p), lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.NAdam(p), lambda p: torch.optim.ASGD(p),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_runs_of_any_optimiser_and_precision_resume_to_the_bit(optimizer, dtype, tmp_path):
    settings = {"model": net().to(dtype), "sampler": lambda g: lines(g).to(dtype=dtype), "optimizer": optimizer}
    whole = run(None, 6, **settings)
    path = tmp_path / "theta.safetensors"
    run(path, 2, **settings)
    resumed = run(path, 6, **settings)
    assert resumed.theta.dtype == dtype
    assert torch.equal(whole.theta, resumed.theta) and whole.history.equals(resumed.history)


class Hoarder(torch.optim.SGD):
    """Keeps something in its state that no checkpoint can hold."""

    def step(self):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["open"] = object()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS cannot be used here: fit gives an optimiser one gradient"),
        (lambda p: Hoarder(p, lr=0.1), "a checkpoint cannot hold Hoarder.state.0.open, a object"),
    ],
)
def test_an_optimiser_that_cannot_be_used_is_refused_before_any_work(optimizer, message, tmp_path):
    drawn = []
    with pytest.raises(TypeError, match=message):
        run(tmp_path / "theta.safetensors", sampler=lambda g: drawn.append(1) or lines(g), optimizer=optimizer)
    assert drawn == [] and list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_checkpoint_is_refused_and_stays(tmp_path):
    path = tmp_path / "theta.safetensors"
    run(path)
    whole = path.read_bytes()
    buffer = io.BytesIO()
    np.savez(buffer, rows=np.zeros(3))
    for content in (b"", b"text", whole[:100], whole[:-8], buffer.getvalue(), pickle.dumps({"theta": 1})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no checkpoint that can be read.*Delete it or choose another file"):
            run(path)
        assert path.read_bytes() == content
    path.write_bytes(whole)
    assert run(path, 4).history["meta_step"].tolist() == [1, 2, 3, 4]


# ------------------------------------------------------------------------------- further trouble, found by somebody who tried


def bag(x, weight):
    return nn.functional.embedding(x, weight, padding_idx=0).mean(1)


class Bag(Words):
    """The padding row is named in a call."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 3)

    def forward(self, x):
        return self.head(bag(x, self.words.weight).tanh())


@pytest.mark.filterwarnings("ignore:the model cannot be batched")
@pytest.mark.parametrize("kind", [Words, Bag])
@pytest.mark.parametrize("where", [1, None])
def test_a_padding_row_stands_still_whichever_task_has_it_and_when(kind, where):
    model, g = seeded(kind).double(), torch.Generator().manual_seed(0)
    x, y = torch.randint(1, 5, (3, 6, 4), generator=g), draw(3, 6, 1, generator=g)
    problem = Problem(model, mse_loss)
    theta = problem.initial_parameters()
    if where is None:  # a first batch without padding
        meta_gradient(METHODS[0], problem, theta, Tasks(x, y, x, y))
    x = x.clone()
    x[where or 0, :, 0] = 0
    found = meta_gradient(METHODS[0], problem, theta, Tasks(x, y, x, y)).gradient
    assert (found[:3] == 0).all() and relative(found, by_hand(model, mse_loss, theta, Tasks(x, y, x, y))) < 1e-11


class Lora(nn.Module):
    """At its own parameters the gradient of ``a`` is zero, whichever ``a`` is used."""

    def __init__(self):
        super().__init__()
        self.w, self.a, self.b = nn.Linear(2, 1), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(1, 2))
        self.held = lambda: self.a

    def forward(self, x):
        return self.w(x) + x @ self.held().T @ self.b.T


class Target(nn.Module):
    """No gradient comes through what its closure computes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.target = lambda x: self.net(x)

    def forward(self, x):
        with torch.no_grad():
            y = self.target(x)
        return self.net(x) * y.tanh()


class Anchored(nn.Linear):
    def __init__(self):
        super().__init__(2, 1, dtype=F64)
        self.anchor = self.weight.detach()

    def forward(self, x):
        return super().forward(x) * self.anchor.sum()


@pytest.mark.parametrize("build", [Lora, Target, Anchored, lambda: torch.jit.script(nn.Linear(2, 1))])
def test_original_weights_are_seen_wherever_they_are_used(build):
    _, _, tasks = regression()
    problem = Problem(build().double(), mse_loss)
    with pytest.raises(ValueError, match="does not compute with the parameter"):
        meta_gradient(METHODS[0], problem, problem.initial_parameters(), tasks)


class Observer(nn.Module):
    """Changes a buffer for large inputs alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("top", torch.ones(()))

    def forward(self, x):
        if x.abs().max().item() > self.top.item():
            with torch.no_grad():
                self.top.copy_(x.abs().max())
        return self.layer(x) / self.top


@pytest.mark.filterwarnings("ignore:the model cannot be batched")
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_buffer_that_changes_for_some_data_is_put_back_and_refused(chunk_size):
    _, _, tasks = regression()
    for t in (tasks.support_x, tasks.query_x):
        t.mul_(torch.tensor([0.01, 1.0, 0.01])[:, None, None])
    model = Observer().double()
    problem = Problem(model, mse_loss, chunk_size=chunk_size)
    theta = problem.initial_parameters()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"changes its buffers \[.top.\] for some data"):
            meta_gradient(METHODS[0], problem, theta, tasks)
        assert model.top == 1
    with pytest.raises(ValueError, match=r"changes its buffers \[.top.\] for some data"):
        evaluate(METHODS[0], problem, theta, tasks, metrics.rmse)
    assert model.top == 1


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_randomness_that_comes_later_is_refused(chunk_size):
    random.seed(0)  # in half precision two losses, and their gradients, are equal by chance once in some thousands
    _, _, tasks = regression()
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.0), nn.Linear(4, 1)).double()
    problem = Problem(model, mse_loss, chunk_size=chunk_size)
    theta = problem.initial_parameters()
    for _ in range(3):
        meta_gradient(METHODS[0], problem, theta, tasks)
    model[1].p = 0.5
    with pytest.raises(ValueError, match="is random"):
        meta_gradient(METHODS[0], problem, theta, tasks)
    sized = Problem(Noisy(lambda x: nn.functional.dropout(x) if len(x) > 5 else x).double(), mse_loss, chunk_size=chunk_size)
    few = Tasks(tasks.support_x[:, :4], tasks.support_y[:, :4], *tasks.query)
    meta_gradient(METHODS[0], sized, sized.initial_parameters(), few)
    with pytest.raises(ValueError, match="is random"):
        meta_gradient(METHODS[0], sized, sized.initial_parameters(), tasks)
    for dtype in (torch.bfloat16, torch.float16):
        rough = Problem(Noisy(lambda x: x * (1 + 0.5 * random.random())).to(dtype), mse_loss)
        with pytest.raises(ValueError, match="is random"):
            meta_gradient(METHODS[0], rough, rough.initial_parameters(), tasks.to(dtype=dtype))


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("use", [meta_gradient, lambda *given: evaluate(*given, metrics.rmse)])
def test_a_loss_that_becomes_random_is_refused(chunk_size, use):
    problem, theta, tasks = regression()
    on = [False]
    loss = lambda p, y: mse_loss(nn.functional.dropout(p, 0.3) if on[0] else p, y)  # noqa: E731
    problem = Problem(problem.model, loss, chunk_size=chunk_size)
    use(METHODS[0], problem, theta, tasks)
    on[0] = True
    with pytest.raises(ValueError, match="is random"):
        use(METHODS[0], problem, theta, tasks)


def test_numbers_that_another_thread_draws_are_not_held_against_a_model():
    problem, theta, tasks = regression()
    problem = Problem(problem.model, lambda p, y: draw_elsewhere() or mse_loss(p, y))
    assert meta_gradient(METHODS[0], problem, theta, tasks).gradient.isfinite().all()


def draw_elsewhere():
    thread = threading.Thread(target=torch.rand, args=(1,))
    thread.start()
    thread.join()


WRITES = {
    "ReLU in place": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 1)), mse_loss),
    "shifted data": (lambda: nn.Sequential(Apply(lambda x: x.sub_(x.mean(0))), nn.Linear(2, 1)), mse_loss),
    "targets": (lambda: nn.Linear(2, 1), lambda p, y: (p - y.clamp_(-1, 1)).square().mean()),
    "weights": (lambda: Clamped(), mse_loss),
    "max_norm": (lambda: nn.Sequential(Apply(lambda x: (x[..., 0] > 0).long()), nn.Embedding(2, 1, max_norm=0.1)), mse_loss),
    "counter": (lambda: Counting(), mse_loss),
}  # fmt: skip


class Clamped(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)

    def forward(self, x):
        self.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)
        self.count = torch.zeros(())

    def forward(self, x):
        self.count += 1
        return super().forward(x)


@pytest.mark.parametrize("name", WRITES)
def test_what_writes_to_what_it_was_given_is_refused_and_nothing_is_written(name):
    build, loss = WRITES[name]
    _, _, tasks = regression()
    before = [t.clone() for t in tasks.tensors]
    model = seeded(build).double()
    weights = [p.clone() for p in model.parameters()]
    problem = Problem(model, loss)
    for use in (meta_gradient, lambda *a: evaluate(*a, metrics.rmse), lambda *a: adapt(*a, 2)):
        with pytest.raises(ValueError, match="writes in place"):
            use(METHODS[1], problem, problem.initial_parameters(), tasks)
    assert all(torch.equal(*pair) for pair in zip(before, tasks.tensors, strict=True))
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    assert getattr(model, "count", 0) == 0


@pytest.mark.parametrize("make", [lambda: torch.tensor([1.0, 2.0], dtype=F64), lambda: torch.from_numpy(np.ones(2))])
def test_a_loss_may_write_to_a_constant_of_its_own(make):
    problem, theta, tasks = regression()

    def weighted(p, y):
        w = make()
        w[0] = 3.0
        return (w.sum() * (p - y) ** 2).mean()

    found = meta_gradient(METHODS[1], Problem(problem.model, weighted), theta, tasks).gradient
    right = by_hand(problem.model, lambda p, y: make().add(torch.tensor([2.0, 0.0])).sum() * mse_loss(p, y), theta, tasks)
    assert make()[0] == 1 and relative(found, right) < 1e-11


class Hoarding(nn.Module):
    """Keeps what it has seen in all kinds of places, by hooks and methods that are bound to it."""

    def __init__(self, keep=True):
        super().__init__()
        self.body, self.head, self.keep = nn.Linear(2, 3), nn.Linear(3, 1), keep
        if keep:
            self.body.register_forward_hook(self.note)
        self.feature, self.places = None, {"list": [], "deque": deque(maxlen=3), "dict": {}}
        self.ways = [self.through], (self.head,), {"k": [self.head]}

    def note(self, module, args, output):
        self.feature = output

    def through(self, x):
        return self.ways[1][0](x) + self.ways[2]["k"][0](x)

    def forward(self, x):
        h = self.body(x)
        if self.keep:
            h = self.feature
            self.places["list"].append(h)
            self.places["deque"].append(h)
            self.places["dict"]["last"] = h
            return self.ways[0][0](h.tanh())
        return 2 * self.head(h.tanh())


def test_hooks_and_containers_belong_to_the_twin():
    _, _, tasks = regression()
    model, plain = seeded(Hoarding).double(), seeded(lambda: Hoarding(False)).double()
    problem = Problem(model, mse_loss)
    theta = problem.initial_parameters() + 0.1
    for method in METHODS:
        assert relative(meta_gradient(method, problem, theta, tasks).gradient, by_hand(plain, mse_loss, theta, tasks)) < 1e-11
    assert model.feature is None and model.places == {"list": [], "deque": deque(maxlen=3), "dict": {}}


class Attributes(dict):
    """Entries that are attributes, and no others."""

    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__ = self


class Doubling(dict):
    __getitem__ = lambda self, key: 2 * super().__getitem__(key)  # noqa: E731


class Sealed(OrderedDict):
    def __setitem__(self, key, value):
        raise TypeError("this cannot be changed")


class Last(list):
    def __init__(self, entry, name):
        super().__init__([entry])
        self.name = name
        self.append(self)  # which holds itself

    last = property(lambda self: self[0])


class Pair(NamedTuple):
    one: nn.Module
    other: float


def sealed(**entries):
    made = Sealed()
    for key, value in entries.items():
        OrderedDict.__setitem__(made, key, value)
    return made


CONFIGURED = {
    "attributes": (lambda layer: Attributes(layer=layer, scale=2.0), lambda c, x: c.layer(x) * c.scale),
    "own getter": (lambda layer: Doubling(scale=1.0), lambda c, x: x.sum(1, keepdim=True) * c["scale"]),
    "sealed": (lambda layer: sealed(layer=layer, scale=2.0), lambda c, x: c["layer"](x) * c["scale"]),
    "in itself": (lambda layer: Last(layer, "it"), lambda c, x: c.last(x) * len(c) if c[1].name == "it" else None),
    "named tuple": (lambda layer: Pair(layer, 2.0), lambda c, x: c.one(x) * c.other),
    "by default": (lambda layer: defaultdict(lambda: 2.0, layer=layer), lambda c, x: c["layer"](x) * c["scale"]),
}


class Configured(nn.Module):
    def __init__(self, name):
        super().__init__()
        (make, self.use), self.layer = CONFIGURED[name], nn.Linear(2, 1)
        self.held = make(self.layer)

    def forward(self, x):
        return self.layer(x) + self.use(self.held, x)


class Tripled(nn.Module):
    """What all of them compute."""

    def __init__(self, name):
        super().__init__()
        self.layer, self.doubled = nn.Linear(2, 1), name == "own getter"

    def forward(self, x):
        return self.layer(x) + 2 * x.sum(1, keepdim=True) if self.doubled else 3 * self.layer(x)


@pytest.mark.parametrize("name", CONFIGURED)
def test_containers_of_any_kind_keep_it(name):
    _, _, tasks = regression()
    model = seeded(lambda: Configured(name)).double()
    problem, bare = Problem(model, mse_loss), Tripled(name).double()
    bare.load_state_dict(model.state_dict())
    theta, before = problem.initial_parameters(), list(model.held)
    found = meta_gradient(METHODS[1], problem, theta + 0.1, tasks).gradient
    assert relative(found, by_hand(bare, mse_loss, theta + 0.1, tasks)) < 1e-11
    assert list(model.held) == before


def test_a_model_may_differentiate_within():
    class Hamiltonian(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0].sum(1, keepdim=True)

    _, _, tasks = regression()
    model = seeded(Hamiltonian).double()
    problem = Problem(model, mse_loss, chunk_size=1)
    theta = problem.initial_parameters()
    found = meta_gradient(METHODS[1], problem, theta, tasks).gradient
    assert relative(found, by_hand(model, mse_loss, theta, tasks)) < 1e-10


def test_weights_that_are_cached_elsewhere_are_refused():
    _, _, tasks = regression()
    problem = Problem(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))).double(), mse_loss)
    with torch.nn.utils.parametrize.cached(), pytest.raises(ValueError, match="parametrize.cached"):
        meta_gradient(METHODS[0], problem, problem.initial_parameters(), tasks)


def test_a_change_that_later_tasks_alone_show_is_noticed():
    g = torch.Generator().manual_seed(0)
    x, y = draw(3, 6, 2, generator=g), torch.tensor([[0] * 6, [1] * 6, [0, 1] * 3])
    loss = nn.CrossEntropyLoss(weight=torch.ones(2, dtype=F64), reduction="sum")
    model = seeded(lambda: nn.Linear(2, 2)).double()
    problem, plain = Problem(model, loss), Problem(model, loss, trace=False)
    theta, tasks = problem.initial_parameters(), Tasks(x, y, x, y)
    for weight in (1.0, 1.0, 1.0, 3.0, 3.0, 3.0):
        loss.weight = torch.tensor([1.0, weight], dtype=F64)
        found, right = (meta_gradient(METHODS[0], p, theta, tasks).gradient for p in (problem, plain))
        assert torch.equal(found, right)


def test_a_metric_gives_an_error_for_each_task():
    problem, theta, tasks = regression()
    for metric in (mse_loss, lambda p, y: (p - y).square(), lambda p, y: 0.5, lambda p, y: metrics.rmse(p, y)[:, None]):
        with pytest.raises(ValueError, match=r"a metric must return the error of each of B=3 tasks"):
            evaluate(METHODS[1], problem, theta, tasks, metric, steps=(0,))
    counts = evaluate(METHODS[1], problem, theta, tasks, lambda p, y: torch.ones(3, dtype=torch.int64), steps=(0,))
    assert (counts["query"] == 1).all()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: AMAML(0.5, 50), TypeError, r"AMAML needs FixedStep\(...\) or Dopri5\(...\) for solver, not 50"),
        (lambda: AMAML(0.5, Euler), TypeError, "for solver"), (lambda: AMAML(memory=Checkpoint), TypeError, "for memory"),
        (lambda: AMAML(inner=None), TypeError, "for inner"), (lambda: IMAML(5), TypeError, "for inner"),
        (lambda: InnerLoop(weight_decay="a"), TypeError, "number for weight_decay"),
        (lambda: InnerLoop(minibatch=2.5), TypeError, "integer minibatch"),
        (lambda: AMAML(0.5, Euler(2), step_sizes=[[0.1], [float("inf")]]), ValueError, "must be positive"),
        (lambda: Problem(nn.Linear(1, 1), mse_loss, chunk_size=2.5), TypeError, "integer chunk_size"),
        (lambda: run(None, 2.5), ValueError, "whole number"),
    ],
)  # fmt: skip
def test_settings_of_another_kind_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


class Colour(Enum):
    RED, BLUE = 1, 2


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Kind:
    setting = 1

    @staticmethod
    def by():
        return 2


class Kind2:
    setting = 1

    @staticmethod
    def by():
        return 3


def hooked(factor):
    model = net()
    model.register_forward_hook(lambda module, args, output: factor * output)
    return model


class Attending(nn.MultiheadAttention):
    pass


class Base:
    __slots__ = ("first",)


class Derived(Base):
    def __init__(self, first):
        self.first, self.second = first, 0


class Named(list):
    def __init__(self, name):
        super().__init__([1, 2])
        self.name = name


@dataclass
class Settings:
    size: int = 1


def with_more(value):
    settings = Settings()
    settings.more = value
    return settings


DIFFERENT = {
    "reduction": (nn.MSELoss(), nn.MSELoss(reduction="sum")),
    "smoothing": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "delta": (nn.HuberLoss(), nn.HuberLoss(delta=0.5)),
    "heads": (nn.MultiheadAttention(4, 1), nn.MultiheadAttention(4, 2)),
    "norm first": (nn.TransformerEncoderLayer(4, 2, 8), nn.TransformerEncoderLayer(4, 2, 8, norm_first=True)),
    "hook": (hooked(1.0), hooked(2.0)),
    "static method": (Kind(), Kind2()),
    "enum": (Colour.RED, Colour.BLUE),
    "path": (Path("a"), Path("b")),
    "range": (range(3), range(4)),
    "fraction": (Fraction(1, 3), Fraction(2, 3)),
    "deque": (deque([1, 2]), deque([1, 3])),
    "frame": (pd.DataFrame({"a": [1.0]}), pd.DataFrame({"a": [2.0]})),
    "numpy generator": (np.random.default_rng(0), np.random.default_rng(1)),
    "slots": (Slotted(1), Slotted(2)),
    "slots of a base": (Derived(torch.zeros(2)), Derived(torch.ones(2))),
    "list with a name": (Named("a"), Named("b")),
    "dataclass with more": (with_more(1), with_more(2)),
    "default": (defaultdict(int), defaultdict(float)),
    "Python's generator": (random.Random(0), random.Random(1)),
    "NumPy's older generator": (np.random.RandomState(0), np.random.RandomState(1)),
    "keys": ({1: "a"}, {"1": "a"}),
    "sparse": (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
    "objects": (np.array([1, "a"], dtype=object), np.array([2, "a"], dtype=object)),
    "long": (list(range(100)), [*range(99), 7]),
    "cached": (functools.lru_cache(noisy(0.1).func), functools.lru_cache(lines)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_things_that_differ_have_descriptions_that_do(name):
    one, other = DIFFERENT[name]
    assert identity.describe(one) != identity.describe(other)
    assert identity.describe(one) == identity.describe(copy.deepcopy(one))


SETTINGS = {"levels": [1, 2]}


def test_globals_of_any_kind_count_and_who_shares_what_does_not(monkeypatch):
    def sampler(generator):
        return SETTINGS["levels"][0]

    first = identity.describe(sampler)
    monkeypatch.setitem(SETTINGS, "levels", [1, 3])
    assert identity.describe(sampler) != first
    shared = (1.5, 2.5)
    assert identity.describe([shared, shared]) == identity.describe([shared, (1.5, 2.0 + 0.5)])
    with pytest.raises(TypeError, match="nothing tells whether , a generator, is the same in another run"):
        identity.describe(n for n in range(3))


class Named(nn.Linear):
    """Shows its activation as Python shows functions and objects, with its address."""

    def __init__(self):
        super().__init__(1, 1)
        self.activation = lambda x: x

    def extra_repr(self):
        return f"{self.activation}, {object()}"


def test_a_description_holds_no_addresses():
    assert "Named(<function Named" in identity.describe(Named())[""]
    assert "0x" not in str(identity.describe(Named()))


ELSEWHERE = """
from amaml_core.identity import describe
def loss(prediction, target, mode="a"):
    if mode in {"abs", "square", "root", "cube"}:
        return prediction
    return {loss: 1, "x": {"p", "q", "r"}}
print(sorted(describe(loss).items()), sorted(describe({loss: 1, "s": frozenset("abcdef")}).items()))
"""


@pytest.mark.slow
def test_a_description_is_the_same_in_every_process():
    command, options = [sys.executable, "-c", ELSEWHERE], {"capture_output": True, "text": True, "check": True}
    one, other = (subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, **options).stdout for seed in ("1", "2"))
    assert one == other and "loss" in one


class Counted:
    def __init__(self):
        self.calls = 0

    def __call__(self, generator):
        self.calls += 1
        return lines(generator)


def own_generator():
    own = torch.Generator().manual_seed(3)
    return lambda generator: lines(own)


def globally(generator):
    torch.randn(1)
    return lines(generator)


class Seeded:
    """A sampler with a generator of its own, of another library."""

    def __init__(self, seed, kind=random.Random, name="rng"):
        self.name = name
        setattr(self, name, kind(seed))

    def __call__(self, generator):
        rng = getattr(self, self.name)
        return lines(torch.Generator().manual_seed(int(rng.random() * 2**30)))


def sampled_by(draw):
    return lambda generator: lines(torch.Generator().manual_seed(int(draw() * 2**30)))


STATEFUL = {
    "counter": Counted(), "generator": own_generator(), "global": globally, "Python's": Seeded(0),
    "NumPy's": Seeded(0, np.random.default_rng), "NumPy's older": Seeded(0, np.random.RandomState),
    "hidden": Seeded(0, name="_rng"), "random": sampled_by(random.random), "numpy.random": sampled_by(np.random.random_sample),
}  # fmt: skip


@pytest.mark.parametrize("sampler", STATEFUL.values(), ids=STATEFUL)
def test_a_sampler_with_a_state_of_its_own_cannot_be_resumed_and_is_refused(sampler, tmp_path):
    run(None, 2, sampler=sampler)
    with pytest.raises(ValueError, match="the sampler has a state that a checkpoint does not hold"):
        run(tmp_path / "theta.safetensors", 2, sampler=sampler)
    assert list(tmp_path.iterdir()) == []


class Langevin(torch.optim.SGD):
    """Adds noise to its steps."""

    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]:
            p.data += 1e-3 * torch.randn_like(p)


def bootstrapped(prediction, target):
    return metrics.rmse(prediction, target) * random.random()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"optimizer": lambda p: Langevin(p, lr=0.1)}, "the optimiser or its scheduler has a state.*PyTorch's own generator"),
        (
            {"optimizer": sgd(lr=0.1), "scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: random.random())},
            "scheduler has a state.*Python's",
        ),
        ({"metric": bootstrapped, "validation": lines(torch.Generator())}, "the metric has a state.*Python's own generator"),
    ],
)  # fmt: skip
def test_what_draws_from_a_generator_that_no_checkpoint_holds_is_refused_one(options, what, tmp_path):
    run(None, 2, **options)
    with pytest.raises(ValueError, match=what):
        run(tmp_path / "theta.safetensors", 2, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_sampler_and_loss_have_in_common_is_no_state(tmp_path):
    def scaled_lines(generator):
        return noisy_lines(generator)

    def loss(prediction, target):
        return mse_loss(prediction, target) + 0 * len(noisy_lines.__name__)

    path = tmp_path / "theta.safetensors"
    run(path, 2, loss=loss, sampler=scaled_lines)
    resumed = run(path, 4, loss=loss, sampler=scaled_lines)
    assert torch.equal(resumed.theta, run(None, 4, loss=loss, sampler=scaled_lines).theta)


def test_a_checkpoint_that_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    steps = []
    monkeypatch.setattr(training, "of_each", lambda *given: steps.append(given))
    for path in (tmp_path / "file" / "theta", tmp_path):
        with pytest.raises((OSError, ValueError)):
            run(path)
    assert steps == [] and (tmp_path / "file").read_text() == ""


def test_a_diverging_loop_in_single_precision_says_how_far_it_went_and_when_a_step_is_stable():
    problem = Problem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
    tasks = Tasks(*torch.ones(4, 1, 2, 1))
    with pytest.raises(
        DivergenceError, match=r"last finite update changed parameters by up to [\d.]+e\+\d+\..*stable below 2 / the largest"
    ):
        meta_gradient(AMAML(5000.0, Euler(50)), problem, torch.full((2,), 3.0), tasks)


def test_randomness_is_named_though_two_calls_happen_to_agree():
    """In half precision one pair of losses in some hundreds is equal."""
    factors = iter([1.0, 1.0, 1.3, 0.8, 1.1, 0.9, 1.2, 0.7])
    _, _, tasks = regression()
    problem = Problem(Noisy(lambda x: x * next(factors)).double(), mse_loss)
    with pytest.raises(ValueError, match="is random"):
        meta_gradient(METHODS[0], problem, problem.initial_parameters(), tasks)
