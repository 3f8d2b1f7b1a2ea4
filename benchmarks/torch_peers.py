"""Contenders of other libraries, and what one writes by hand, in PyTorch. ``contenders`` lists and describes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .cases import BETA1, BETA2, CG_STEPS, EPS, REGULARIZATION, Case
from .torch_networks import flat, torch_parts

Compute = Callable[[], np.ndarray]


def mean_over_tasks(one_task: Callable, data: list) -> Compute:
    """The mean over tasks of ``one_task(support_x, support_y, query_x, query_y) -> gradients``, one task after another."""

    def compute() -> np.ndarray:
        total = None
        for task in zip(*data, strict=True):
            gradients = one_task(*task)
            total = gradients if total is None else [t + g for t, g in zip(total, gradients, strict=True)]
        return flat(total) / len(data[0])

    return compute


def stepper(case: Case) -> Callable[[list, list], list]:
    """``(parameters, gradients) -> parameters`` of one inner step, to be called K times, differentiable: gradient descent, or
    Adam as ``torch.optim`` takes it."""
    if case.kind != "adam":
        return lambda u, gradients: [p - case.lr * g for p, g in zip(u, gradients, strict=True)]
    first: list = []
    second: list = []
    steps = 0

    def step(u: list, gradients: list) -> list:
        nonlocal first, second, steps
        steps += 1
        first = [BETA1 * m + (1 - BETA1) * g for m, g in zip(first or len(u) * [0.0], gradients, strict=True)]
        second = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(second or len(u) * [0.0], gradients, strict=True)]
        rate, root = case.lr / (1 - BETA1**steps), math.sqrt(1 - BETA2**steps)
        return [p - rate * m / (v.sqrt() / root + EPS) for p, m, v in zip(u, first, second, strict=True)]

    return step


def unrolled(case: Case) -> Compute:
    """Autograd through the loop, task by task."""
    model, loss, data = torch_parts(case)

    def one_task(support_x, support_y, query_x, query_y):
        start = dict(model.named_parameters())
        adapted, step = start, stepper(case)
        for _ in range(case.steps):
            inner = loss(functional_call(model, adapted, (support_x,)), support_y)
            gradients = torch.autograd.grad(inner, adapted.values(), create_graph=True)
            adapted = dict(zip(start, step(list(adapted.values()), gradients), strict=True))
        outer = loss(functional_call(model, adapted, (query_x,)), query_y)
        return torch.autograd.grad(outer, start.values())

    return mean_over_tasks(one_task, data)


def torch_func(case: Case) -> Compute:
    """All tasks at once by ``vmap``; the gradient of one task is taken inside it."""
    model, loss, data = torch_parts(case)
    start = {name: p.detach() for name, p in model.named_parameters()}

    def query_loss(adapted, support_x, support_y, query_x, query_y):
        slope = grad(lambda u: loss(functional_call(model, u, (support_x,)), support_y))
        for _ in range(case.steps):
            gradients = slope(adapted)
            adapted = {name: p - case.lr * gradients[name] for name, p in adapted.items()}
        return loss(functional_call(model, adapted, (query_x,)), query_y)

    all_tasks = vmap(grad(query_loss), in_dims=(None, 0, 0, 0, 0))
    return lambda: flat(g.mean(0) for g in all_tasks(start, *data).values())


def higher(case: Case) -> Compute:
    """``higher.innerloop_ctx``, task by task. Its Adam adds epsilon before the bias of the second moment is corrected, so it is
    given one that is scaled accordingly."""
    import higher

    model, loss, data = torch_parts(case)
    if case.kind == "adam":
        inner = torch.optim.Adam(model.parameters(), case.lr, (BETA1, BETA2), EPS)
        settings = [{"eps": [EPS * math.sqrt(1 - BETA2 ** (k + 1))]} for k in range(case.steps)]
    else:
        inner, settings = torch.optim.SGD(model.parameters(), lr=case.lr), case.steps * [None]

    def one_task(support_x, support_y, query_x, query_y):
        with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (functional, optimizer):
            for override in settings:
                optimizer.step(loss(functional(support_x), support_y), override=override)
            return torch.autograd.grad(loss(functional(query_x), query_y), tuple(model.parameters()))

    return mean_over_tasks(one_task, data)


def torchopt(case: Case) -> Compute:
    """``torchopt.MetaSGD`` or ``torchopt.MetaAdam``, task by task."""
    import torchopt

    model, loss, data = torch_parts(case)
    settings = {"lr": case.lr, "betas": (BETA1, BETA2), "eps": EPS} if case.kind == "adam" else {"lr": case.lr}
    optimizer = (torchopt.MetaAdam if case.kind == "adam" else torchopt.MetaSGD)(model, **settings)
    theta = tuple(model.parameters())
    start = torchopt.extract_state_dict(model, by="reference")
    fresh = torchopt.extract_state_dict(optimizer, by="reference")

    def one_task(support_x, support_y, query_x, query_y):
        with default_dtype(case):
            for _ in range(case.steps):
                optimizer.step(loss(model(support_x), support_y))
            gradients = torch.autograd.grad(loss(model(query_x), query_y), theta)
        torchopt.recover_state_dict(model, start)
        torchopt.recover_state_dict(optimizer, fresh)
        return gradients

    return mean_over_tasks(one_task, data)


@contextmanager
def default_dtype(case: Case) -> Iterator[None]:
    """torchopt's Adam corrects the bias of its moments in the default precision, whatever that of the parameters is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, case.dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def proximal(model, loss, case: Case) -> Callable:
    """iMAML's inner loss as a function of lists of tensors: ``(u, theta, x, y) -> scalar``."""
    names = [name for name, _ in model.named_parameters()]

    def value(u, theta, x, y):
        pull = sum((p - t).square().sum() for p, t in zip(u, theta, strict=True))
        return loss(functional_call(model, dict(zip(names, u, strict=True)), (x,)), y) + REGULARIZATION / 2 * pull

    return value


def descended(value: Callable, theta: list[Tensor], case: Case, x: Tensor, y: Tensor) -> list[Tensor]:
    """K steps of gradient descent on the proximal loss, without a graph from step to step."""
    u = theta
    for _ in range(case.steps):
        u = [p.detach().requires_grad_() for p in u]
        u = [p.detach() - case.lr * g for p, g in zip(u, torch.autograd.grad(value(u, theta, x, y), u), strict=True)]
    return u


def torchopt_implicit(case: Case) -> Compute:
    """``torchopt.diff.implicit.custom_root`` with its conjugate gradients, task by task."""
    import torchopt

    model, loss, data = torch_parts(case)
    value, theta = proximal(model, loss, case), tuple(p.detach().requires_grad_() for p in model.parameters())
    solve = torchopt.linear_solve.solve_cg(maxiter=CG_STEPS, rtol=0.0)

    @torchopt.diff.implicit.custom_root(grad(value), argnums=1, solve=solve)
    def adapt(u, start, x, y):
        with torch.enable_grad():
            return tuple(descended(value, [p.detach() for p in start], case, x, y))

    def one_task(support_x, support_y, query_x, query_y):
        adapted = adapt(theta, theta, support_x, support_y)
        outer = loss(functional_call(model, dict(zip(dict(model.named_parameters()), adapted, strict=True)), (query_x,)), query_y)
        return torch.autograd.grad(outer, theta)

    return mean_over_tasks(one_task, data)


def hypertorch_recipe(case: Case) -> Compute:
    r"""What the iMAML example of the library hypertorch computes, task by task, written from its formulas.

    A step of size 1, :math:`u - \nabla L(u) - \lambda(u-\theta)`, is taken once at the adapted parameters and its graph kept. With
    its Jacobian J, conjugate gradients solve :math:`(I - J)v = \nabla L_\text{query}`, and one more product takes v to theta.
    """
    model, loss, data = torch_parts(case)
    value, names = proximal(model, loss, case), [name for name, _ in model.named_parameters()]
    theta = [p.detach().requires_grad_() for p in model.parameters()]

    def one_task(support_x, support_y, query_x, query_y):
        u = [p.requires_grad_() for p in descended(value, theta, case, support_x, support_y)]
        outer = loss(functional_call(model, dict(zip(names, u, strict=True)), (query_x,)), query_y)
        right = torch.autograd.grad(outer, u)
        slopes = torch.autograd.grad(value(u, theta, support_x, support_y), u, create_graph=True)
        mapped = [p - s for p, s in zip(u, slopes, strict=True)]

        def operator(v: list) -> list:
            product = torch.autograd.grad(mapped, u, v, retain_graph=True)
            return [a - b for a, b in zip(v, product, strict=True)]

        return torch.autograd.grad(mapped, theta, conjugate_gradients(operator, right))

    return mean_over_tasks(one_task, data)


def conjugate_gradients(operator: Callable[[list], list], b: list) -> list:
    """``CG_STEPS`` steps towards the solution of ``operator(x) = b``, of lists of tensors."""
    dot = lambda v, w: sum((p * q).sum() for p, q in zip(v, w, strict=True))  # noqa: E731
    add = lambda v, rate, w: [p + rate * q for p, q in zip(v, w, strict=True)]  # noqa: E731
    x, residual, direction = [torch.zeros_like(p) for p in b], b, b
    size = dot(b, b)
    for _ in range(CG_STEPS):
        product = operator(direction)
        rate = size / dot(direction, product)
        x, residual = add(x, rate, direction), add(residual, -rate, product)
        size, before = dot(residual, residual), size
        direction = add(residual, size / before, direction)
    return x


def odeint_adjoint(case: Case) -> Compute:
    """torchdiffeq: the same Euler steps forward, and as many backward along the reversed flow; all tasks in one state."""
    import torchdiffeq

    from amaml_core import Problem, Tasks

    model, loss, data = torch_parts(case)
    problem, tasks = Problem(model, loss, chunk_size=1 if case.one_by_one else None, trace_after=0), Tasks(*data)
    horizon = torch.tensor([0.0, case.lr * case.steps], dtype=torch.float64, device=case.device)

    def field(t, u):
        with torch.enable_grad():
            u = u if u.requires_grad else u.detach().requires_grad_()
            return -problem.gradient(u, *tasks.support, create_graph=True)

    def compute() -> np.ndarray:
        theta = problem.initial_parameters().expand(case.tasks, -1).clone().requires_grad_()  # (P,) -> (B, P)
        options = {"step_size": case.lr}
        end = torchdiffeq.odeint_adjoint(field, theta, horizon, method="euler", options=options, adjoint_params=())[-1]
        return flat([torch.autograd.grad(problem.losses(end, *tasks.query).mean(), theta)[0].sum(0)])

    return compute


def released_recipe(case: Case) -> Compute:
    """The recipe of the method's released code, without its proximal term: K steps of RK4 forward, whose states stay attached
    to each other; then K + 1 Euler steps of the adjoint ODE, each at its right end point. Written from its formulas."""
    model, loss, data = torch_parts(case)
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def value(u, x, y):
        pieces = [p.view(shape) for p, shape in zip(u.split([s.numel() for s in shapes]), shapes, strict=True)]
        return loss(functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

    def one_task(support_x, support_y, query_x, query_y):
        def slope(u):
            return -torch.autograd.grad(value(u, support_x, support_y), u)[0]

        h, states = case.lr, [theta.clone().requires_grad_()]
        for _ in range(case.steps):
            u = states[-1]
            k1 = slope(u)
            k2 = slope(u + h / 2 * k1)
            k3 = slope(u + h / 2 * k2)
            k4 = slope(u + h * k3)
            states.append(u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        lam = torch.autograd.grad(value(states[-1], query_x, query_y), states[-1])[0]
        for state in reversed(states):
            u = state.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(value(u, support_x, support_y), u, create_graph=True)
            lam = lam - h * torch.autograd.grad(gradient, u, lam)[0]
        return [lam]

    return mean_over_tasks(one_task, data)
