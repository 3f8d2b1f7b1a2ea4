"""The contenders: each turns a case into a function that computes its meta-gradient (P,), with imports of its own.

All start from the same parameters and data. Unless a contender's description says otherwise it computes the exact gradient
through K steps of gradient descent, averaged over the tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .cases import WAY, Case

Compute = Callable[[], np.ndarray]


class Contender(NamedTuple):
    """Attributes:
    build: ``case -> function``; may import what is not installed.
    compiled: it compiles at its first call.
    warm: its warm-up is a call of full length, since its first call leaves something for the next: compiled code or a trace.
    exact: it computes the gradient through the K steps, not an approximation.
    cuda: it is measured on a GPU too.
    """

    build: Callable[[Case], Compute]
    compiled: bool = False
    warm: bool = False
    exact: bool = True
    cuda: bool = False


def torch_parts(case: Case):
    """The model with the case's parameters, its loss, and the data as tensors."""
    import torch
    from torch import nn

    from amaml_core.experiments.images import network

    if case.network == "mlp":
        model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        loss = nn.functional.mse_loss
    else:
        model, loss = network(case.filters, WAY), nn.functional.cross_entropy
    model.to(case.device, getattr(torch, case.dtype))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), case.parameters(), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return model, loss, [torch.from_numpy(np.ascontiguousarray(part)).to(case.device) for part in case.data()]


def flat(gradients) -> np.ndarray:
    """Gradients of the parameter tensors -> (P,)."""
    return np.concatenate([g.detach().cpu().numpy().ravel() for g in gradients])


def mean_over_tasks(one_task: Callable, data: list) -> Compute:
    """The mean over tasks of ``one_task(support_x, support_y, query_x, query_y) -> gradients``, one task after another."""

    def compute() -> np.ndarray:
        total = None
        for task in zip(*data, strict=True):
            gradients = one_task(*task)
            total = gradients if total is None else [t + g for t, g in zip(total, gradients, strict=True)]
        return flat(total) / len(data[0])

    return compute


def amaml(memory: str = "Store", solver: str = "Euler", compile: bool = False) -> Callable[[Case], Compute]:
    """This package; with Dopri5, the horizon is that of K steps of gradient descent."""

    def build(case: Case) -> Compute:
        import amaml_core as core

        model, loss, data = torch_parts(case)
        # Convolutions on a CPU are fastest one task at a time.
        chunk = 1 if case.network == "conv" and case.device == "cpu" else None
        problem = core.Problem(model, loss, compile=compile, chunk_size=chunk, trace_after=0)
        theta, tasks = problem.initial_parameters(), core.Tasks(*data)
        stepper = core.Dopri5() if solver == "Dopri5" else core.Euler(case.steps)
        method = core.AMAML(case.lr * case.steps, stepper, getattr(core, memory)())
        return lambda: core.meta_gradient(method, problem, theta, tasks).gradient.cpu().numpy()

    return build


def unrolled(case: Case) -> Compute:
    """Autograd through the loop, task by task."""
    import torch
    from torch.func import functional_call

    model, loss, data = torch_parts(case)

    def one_task(support_x, support_y, query_x, query_y):
        start = dict(model.named_parameters())
        adapted = start
        for _ in range(case.steps):
            inner = loss(functional_call(model, adapted, (support_x,)), support_y)
            gradients = torch.autograd.grad(inner, adapted.values(), create_graph=True)
            adapted = {name: p - case.lr * g for (name, p), g in zip(adapted.items(), gradients, strict=True)}
        outer = loss(functional_call(model, adapted, (query_x,)), query_y)
        return torch.autograd.grad(outer, start.values())

    return mean_over_tasks(one_task, data)


def torch_func(case: Case) -> Compute:
    """All tasks at once by ``vmap``; the gradient of one task is taken inside it."""
    from torch.func import functional_call, grad, vmap

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
    """``higher.innerloop_ctx``, task by task."""
    import higher
    import torch

    model, loss, data = torch_parts(case)
    sgd = torch.optim.SGD(model.parameters(), lr=case.lr)

    def one_task(support_x, support_y, query_x, query_y):
        with higher.innerloop_ctx(model, sgd, copy_initial_weights=False) as (functional, optimizer):
            for _ in range(case.steps):
                optimizer.step(loss(functional(support_x), support_y))
            return torch.autograd.grad(loss(functional(query_x), query_y), tuple(model.parameters()))

    return mean_over_tasks(one_task, data)


def torchopt(case: Case) -> Compute:
    """``torchopt.MetaSGD``, task by task."""
    import torch
    import torchopt

    model, loss, data = torch_parts(case)
    optimizer = torchopt.MetaSGD(model, lr=case.lr)
    theta = tuple(model.parameters())
    start = torchopt.extract_state_dict(model, by="reference")
    fresh = torchopt.extract_state_dict(optimizer, by="reference")

    def one_task(support_x, support_y, query_x, query_y):
        for _ in range(case.steps):
            optimizer.step(loss(model(support_x), support_y))
        gradients = torch.autograd.grad(loss(model(query_x), query_y), theta)
        torchopt.recover_state_dict(model, start)
        torchopt.recover_state_dict(optimizer, fresh)
        return gradients

    return mean_over_tasks(one_task, data)


def odeint_adjoint(case: Case) -> Compute:
    """torchdiffeq: the same Euler steps forward, and as many backward along the reversed flow; all tasks in one state."""
    import torch
    import torchdiffeq

    from amaml_core import Problem, Tasks

    model, loss, data = torch_parts(case)
    chunk = 1 if case.network == "conv" and case.device == "cpu" else None
    problem, tasks = Problem(model, loss, chunk_size=chunk, trace_after=0), Tasks(*data)
    horizon = torch.tensor([0.0, case.lr * case.steps], dtype=torch.float64, device=case.device)

    def field(t, u):
        with torch.enable_grad():
            u = u if u.requires_grad else u.detach().requires_grad_()
            return -problem.gradient(u, *tasks.support, create_graph=True)

    def compute() -> np.ndarray:
        theta = problem.initial_parameters().expand(case.tasks, -1).clone().requires_grad_()  # (P,) -> (B, P)
        end = torchdiffeq.odeint_adjoint(field, theta, horizon, method="euler", options={"step_size": case.lr}, adjoint_params=())[
            -1
        ]
        return flat([torch.autograd.grad(problem.losses(end, *tasks.query).mean(), theta)[0].sum(0)])

    return compute


def released_recipe(case: Case) -> Compute:
    """The recipe of the method's released code, without its proximal term: K steps of RK4 forward, whose states stay attached
    to each other; then K + 1 Euler steps of the adjoint ODE, each at its right end point. Written from its formulas."""
    import torch
    from torch.func import functional_call

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


def jax_scan(checkpoint: bool) -> Callable[[Case], Compute]:
    """``jit(vmap(grad(scan)))``, with or without ``jax.checkpoint`` around each step; convolutions task by task
    (``lax.map``), which on a CPU is faster than ``vmap``."""

    def build(case: Case) -> Compute:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", case.dtype == "float64")
        theta = [jnp.asarray(p) for p in case.parameters()]
        data = tuple(jnp.asarray(part) for part in case.data())

        def mlp(p, x):
            return jnp.tanh(jnp.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3]) @ p[4].T + p[5]

        def conv(p, x):
            for weight, bias, scale, shift in (p[i : i + 4] for i in range(0, 16, 4)):
                x = jax.lax.conv_general_dilated(x, weight, (2, 2), ((1, 1), (1, 1)), None, None, ("NCHW", "OIHW", "NCHW"))
                x = x + bias[:, None, None]
                mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
                x = (x - mean) / jnp.sqrt(variance + 1e-5) * scale[:, None, None] + shift[:, None, None]
                x = jax.nn.relu(x)
            return x.mean((2, 3)) @ p[16].T + p[17]

        def loss(p, x, y):
            if case.network == "mlp":
                return jnp.square(mlp(p, x) - y).mean()
            return -jnp.take_along_axis(jax.nn.log_softmax(conv(p, x)), y[:, None], 1).mean()

        def query_loss(p, support_x, support_y, query_x, query_y):
            def step(u, _):
                slopes = jax.grad(loss)(u, support_x, support_y)
                return [v - case.lr * s for v, s in zip(u, slopes, strict=True)], None

            adapted, _ = jax.lax.scan(jax.checkpoint(step) if checkpoint else step, p, None, length=case.steps)
            return loss(adapted, query_x, query_y)

        def per_task(p, d):
            one = lambda task: jax.grad(query_loss)(p, *task)  # noqa: E731
            return jax.lax.map(one, d) if case.network == "conv" else jax.vmap(one)(d)

        compute = jax.jit(lambda p, d: jnp.concatenate([g.mean(0).ravel() for g in per_task(p, d)]))
        return lambda: np.asarray(compute(theta, data))

    return build


CONTENDERS: dict[str, Contender] = {
    "unrolled": Contender(unrolled, cuda=True),
    "amaml": Contender(amaml(), warm=True, cuda=True),
    "amaml compiled": Contender(amaml(compile=True), compiled=True, warm=True, cuda=True),
    "amaml Checkpoint": Contender(amaml("Checkpoint"), warm=True, cuda=True),
    "amaml compiled Checkpoint": Contender(amaml("Checkpoint", compile=True), compiled=True, warm=True, cuda=True),
    "amaml Backsolve": Contender(amaml("Backsolve", "Dopri5"), warm=True, exact=False, cuda=True),
    "jax scan": Contender(jax_scan(checkpoint=False), compiled=True, warm=True),
    "jax scan checkpoint": Contender(jax_scan(checkpoint=True), compiled=True, warm=True),
    "torch.func": Contender(torch_func, cuda=True),
    "higher": Contender(higher),
    "torchopt": Contender(torchopt),
    "odeint_adjoint": Contender(odeint_adjoint, exact=False),
    "released recipe": Contender(released_recipe, exact=False),
}
