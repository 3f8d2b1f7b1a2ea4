"""The meta-gradient in PyTorch's autograd: of vectors and modules, scaled, in larger losses, in distributed wrappers."""

import copy

import pytest
import torch
from groups import gloo
from problems import F64, regression, relative
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    DivergenceError,
    Euler,
    GradientDescent,
    Problem,
    Reptile,
    Tasks,
    meta_gradient,
    meta_loss,
)

METHODS = [AMAML(0.3, Euler(3)), MAML(0.1, 3), FOMAML(0.1, 3), Reptile(0.1, 3), IMAML(GradientDescent(0.1, 5), 8.0)]
PHI = torch.tensor([0.2, -0.1], dtype=F64)


def weighted(p, y, phi):
    return phi[0].exp() * (p - y).square().mean() + phi[1] * p.mean()


def case(phi=False):
    problem, theta, tasks = regression()
    return Problem(problem.model, weighted if phi else problem.loss), theta, tasks


def of_module(module):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_backward_gives_the_meta_gradient_to_a_vector_and_to_a_module(method):
    problem, theta, tasks = case()
    expected = meta_gradient(method, problem, theta, tasks)
    vector = theta.clone().requires_grad_()
    loss = meta_loss(method, problem, vector, tasks)
    assert loss.shape == () and torch.equal(loss.detach(), expected.query_loss.mean())
    loss.backward()
    assert torch.equal(vector.grad, expected.gradient)
    other = copy.deepcopy(problem.model)
    for module in (problem.model, other):
        meta_loss(method, problem, module, tasks).backward()
        assert torch.equal(of_module(module), expected.gradient)
        meta_loss(method, problem, module, tasks).backward()  # gradients add up
        assert torch.equal(of_module(module), 2 * expected.gradient)


def test_another_module_may_hold_other_values_than_the_model():
    problem, theta, tasks = case()
    other = problem.module(theta + 0.1)
    loss = meta_loss(METHODS[0], problem, other, tasks)
    loss.backward()
    expected = meta_gradient(METHODS[0], problem, theta + 0.1, tasks)
    assert torch.equal(loss.detach(), expected.query_loss.mean()) and torch.equal(of_module(other), expected.gradient)
    assert all(p.grad is None for p in problem.model.parameters())


def test_what_is_frozen_gets_no_gradient():
    problem, theta, tasks = case()
    problem.model[2].weight.requires_grad_(False)
    meta_loss(METHODS[0], problem, problem.model, tasks).backward()
    assert [p.grad is None for p in problem.model.parameters()] == [False, False, True, False, False, False]
    expected = meta_gradient(METHODS[0], problem, theta, tasks).gradient
    assert torch.equal(of_module(problem.model), expected) and not expected[24:88].any()


@pytest.mark.parametrize("wanted", ["both", "theta", "phi"])
@pytest.mark.parametrize("method", [METHODS[0], METHODS[1], METHODS[4]], ids=lambda m: type(m).__name__)
def test_phi_has_its_part(method, wanted):
    problem, theta, tasks = case(phi=True)
    theta, phi = theta.requires_grad_(wanted != "phi"), PHI.clone().requires_grad_(wanted != "theta")
    expected = meta_gradient(method, problem, theta, tasks, phi)
    meta_loss(method, problem, theta, tasks, phi).backward()
    assert theta.grad is None if wanted == "phi" else torch.equal(theta.grad, expected.gradient)
    assert phi.grad is None if wanted == "theta" else torch.equal(phi.grad, expected.phi_gradient)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_a_part_of_a_larger_loss_with_theta_and_phi_made_of_something_else(scale):
    """As a hypernetwork does it; ``scale`` is what a gradient scaler multiplies a loss by."""
    problem, theta, tasks = case(phi=True)
    latent, logit = torch.linspace(-1, 1, 3, dtype=F64).requires_grad_(), torch.tensor(0.3, dtype=F64, requires_grad=True)
    maker = torch.stack([theta, theta.cos(), theta.sin()], 1)
    made, phi = maker @ latent, torch.stack([logit.tanh(), logit**2])
    penalty = 0.5 * made.square().sum()
    loss = 2 * meta_loss(METHODS[0], problem, made, tasks, phi) + meta_loss(METHODS[1], problem, made, tasks, phi) + penalty
    (loss * scale).backward()
    parts = [meta_gradient(method, problem, made, tasks, phi) for method in METHODS[:2]]
    value = 2 * parts[0].query_loss.mean() + parts[1].query_loss.mean() + penalty
    assert relative(loss.detach(), value.detach()) < 1e-14
    to_made = 2 * parts[0].gradient + parts[1].gradient + made.detach()
    to_phi = 2 * parts[0].phi_gradient + parts[1].phi_gradient
    assert relative(latent.grad / scale, maker.T @ to_made) < 1e-13
    assert relative(logit.grad / scale, to_phi @ torch.stack([1 - logit.detach().tanh() ** 2, 2 * logit.detach()])) < 1e-13


def test_an_optimiser_and_its_gradient_scaler_take_the_same_step():
    problem, theta, tasks = case()
    own = meta_gradient(METHODS[0], problem, theta, tasks).gradient
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    scaler.scale(meta_loss(METHODS[0], problem, problem.model, tasks)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert relative(parameters_to_vector(problem.model.parameters()).detach(), theta - 0.1 * own) < 1e-14


def test_tasks_that_diverge_are_left_out_of_the_loss_too():
    problem, theta, tasks = case()
    tasks = Tasks(tasks.support_x, tasks.support_y.clone(), *tasks.query)
    tasks.support_y[1] = 1e200
    method = AMAML(0.3, Euler(3), on_divergence="skip")
    vector = theta.requires_grad_()
    loss = meta_loss(method, problem, vector, tasks)
    loss.backward()
    others = meta_gradient(method, problem, theta, tasks[[0, 2]])
    assert torch.equal(loss.detach(), others.query_loss.mean()) and relative(vector.grad, others.gradient) < 1e-14
    with pytest.raises(DivergenceError):
        meta_loss(METHODS[0], problem, vector, tasks)


def test_tasks_of_different_sizes():
    problem, theta, tasks = case()
    ragged = [tasks[:1], Tasks(*(t[1:, :3] for t in tasks.tensors))]
    vector = theta.requires_grad_()
    meta_loss(METHODS[0], problem, vector, ragged).backward()
    assert torch.equal(vector.grad, meta_gradient(METHODS[0], problem, theta, ragged).gradient)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_a_number(context):
    problem, theta, tasks = case()
    with context():
        loss = meta_loss(METHODS[0], problem, problem.model, tasks)
    assert not loss.requires_grad and torch.equal(loss, meta_gradient(METHODS[0], problem, theta, tasks).query_loss.mean())


@pytest.mark.parametrize("penalty", [lambda g: g.sum(), lambda g: (g**2).sum() + 1.0])
def test_a_penalty_on_the_meta_gradient_is_refused(penalty):
    problem, theta, tasks = case()
    vector = theta.requires_grad_()
    loss = meta_loss(METHODS[0], problem, vector, tasks)
    with pytest.raises(RuntimeError, match="differentiate"):
        (gradient,) = torch.autograd.grad(loss, vector, create_graph=True)
        (loss + penalty(gradient)).backward()


def test_a_loss_goes_backward_as_often_as_its_graph_is_kept():
    problem, theta, tasks = case()
    vector = theta.requires_grad_()
    loss = meta_loss(METHODS[0], problem, vector, tasks)
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.equal(vector.grad, 2 * meta_gradient(METHODS[0], problem, theta, tasks).gradient)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda theta: nn.Linear(2, 1).double(), ValueError, "parameters are not those of problem.model"),
        (lambda theta: nn.Sequential(*reversed(regression()[0].model)), ValueError, "parameters are not those"),
        (lambda theta: nn.Tanh(), ValueError, "parameters are not those"),
        (lambda theta: copy.deepcopy(regression()[0].model).float(), ValueError, "theta is torch.float32"),
        (lambda theta: theta[:-1], ValueError, "theta has shape"),
        pytest.param(
            lambda theta: list(theta),
            TypeError,
            "theta must be a tensor",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given, error, message):
    problem, theta, tasks = case()
    with pytest.raises(error, match=message):
        meta_loss(METHODS[0], problem, given(theta), tasks)


class Outer(nn.Module):
    """A module whose forward pass is the meta-loss, as distributed wrappers want it."""

    def __init__(self, problem):
        super().__init__()
        self.model, self.phi = problem.model, nn.Parameter(PHI.clone())
        self.problem = problem

    def forward(self, *tensors):
        return meta_loss(METHODS[0], self.problem, self.model, Tasks(*tensors), self.phi)


def averaged(rank, size):
    """The gradient by a wrapper, which ends here, before the group does."""
    problem, _, tasks = case(phi=True)
    outer = Outer(problem)
    own = tasks if size == 1 else tasks[rank : rank + 1]
    wrapped = DistributedDataParallel(outer)
    wrapped(*own.tensors).backward()
    return torch.cat([of_module(outer.model), outer.phi.grad])


def work(rank, size, store, results):
    torch.set_num_threads(1)
    with gloo(store, rank, size):
        results[rank] = averaged(rank, size).tolist()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_a_distributed_wrapper_in_the_place_of_theta_is_refused(tmp_path):
    """It averages the gradients of what its own forward pass returns."""
    problem, _, tasks = case()
    with gloo(tmp_path / "store"), pytest.raises(ValueError, match="forward"):
        meta_loss(METHODS[0], problem, DistributedDataParallel(problem.model), tasks)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_distributed_data_parallel_averages_over_processes(size, tmp_path):
    problem, theta, tasks = case(phi=True)
    expected = meta_gradient(METHODS[0], problem, theta, tasks[: 3 if size == 1 else 2], PHI)
    expected = torch.cat([expected.gradient, expected.phi_gradient])
    if size == 1:
        work(0, 1, tmp_path / "store", results := {})
        assert torch.equal(torch.tensor(results[0], dtype=F64), expected)
        return
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(work, (2, tmp_path / "store", results), nprocs=2)
        found = [torch.tensor(results[rank], dtype=F64) for rank in (0, 1)]
    assert torch.equal(found[0], found[1]) and relative(found[0], expected) < 1e-14
