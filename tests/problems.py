"""Small test problems in float64, and the independent computations that gradients are held against."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from amaml_core import Problem, Tasks, meta_gradient
from amaml_core.flow import runge_kutta_step

F64 = torch.float64


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def mlp():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def conv(norm, activation=nn.Softplus):
    """A small conv net; a smooth activation where finite differences are taken."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm(), activation(), nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), norm(), activation(), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


NORMS = {
    "BatchNorm": partial(nn.BatchNorm2d, 4, track_running_stats=False),
    "InstanceNorm": partial(nn.InstanceNorm2d, 4, affine=True),
    "GroupNorm": partial(nn.GroupNorm, 2, 4),
}


def layer_norm_mlp():
    return nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))


def regression(model=mlp, tasks=3, support=6, query=4, chunk_size=None):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=F64)
    data = Tasks(*(draw(tasks, n, d) for n in (support, query) for d in (2, 1)))
    problem = Problem(model().double(), mse_loss, chunk_size=chunk_size)
    return problem, problem.initial_parameters(), data


def classification(norm, activation=nn.Softplus, tasks=2):
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(0)
    images = [torch.randn(tasks, n, 1, 8, 8, generator=generator, dtype=F64) for n in (6, 5)]
    labels = [torch.randint(3, (tasks, n), generator=generator) for n in (6, 5)]
    problem = Problem(conv(NORMS[norm], activation).double(), cross_entropy)
    return problem, problem.initial_parameters(), Tasks(images[0], labels[0], images[1], labels[1])


CASES = {
    "mlp": regression,
    "LayerNorm": partial(regression, layer_norm_mlp),
    **{name: partial(classification, name) for name in NORMS},
}


def central_difference(objective, theta, direction, eps=1e-5):
    return (objective(theta + eps * direction) - objective(theta - eps * direction)).item() / (2 * eps)


def check_against_central_differences(method, problem, theta, tasks, tolerance, solved=None):
    """The directional derivative of the mean query loss along random directions."""
    gradient = meta_gradient(method, problem, theta, tasks).gradient
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(theta.shape, generator=generator, dtype=F64)
        expected = central_difference(
            lambda t: meta_gradient(method, problem, t, tasks).query_loss.mean(), theta, direction / direction.norm()
        )
        scale = max(abs(expected), 0.1 * gradient.norm().item())
        assert abs((gradient @ direction).item() / direction.norm().item() - expected) < tolerance * scale


def unrolled(method, problem, theta, tasks):
    """The meta-gradient by autograd through the same steps, written out here on its own, one task at a time."""
    total = torch.zeros_like(theta)
    for b in range(len(tasks)):
        start = theta.clone().requires_grad_()
        shapes = [(name, p.shape) for name, p in problem.model.named_parameters()]

        def loss(u, x, y, shapes=shapes):
            pieces = u.split([shape.numel() for _, shape in shapes])
            parameters = {name: piece.view(shape) for (name, shape), piece in zip(shapes, pieces, strict=True)}
            return problem.loss(torch.func.functional_call(problem.model, parameters, (x,)), y)

        def field(u, b=b, start=start, loss=loss):
            inner = loss(u, tasks.support_x[b], tasks.support_y[b]) + method.proximal / 2 * (u - start).square().sum()
            return -torch.autograd.grad(inner, u, create_graph=True)[0]

        u = start
        for _ in range(method.solver.steps):
            u = runge_kutta_step(method.solver.tableau, field, u, method.horizon / method.solver.steps)
        total += torch.autograd.grad(loss(u, tasks.query_x[b], tasks.query_y[b]), start)[0]
    return total / len(tasks)


class Quadratic(nn.Module):
    """Its prediction is the parameter vector itself, so that a loss can be any function of u."""

    def __init__(self, size):
        super().__init__()
        self.u = nn.Parameter(torch.zeros(size, dtype=F64))

    def forward(self, x):
        return self.u


def quadratic(size=4, query="linear"):
    """Support loss u'Au/2 - b'u and query loss c'u: the meta-gradient is (I - hA)^K c."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, size, size, generator=generator, dtype=F64)
    a = root @ root.mT / size + torch.eye(size, dtype=F64)  # (2, P, P)
    c = torch.randn(2, 1, size, generator=generator, dtype=F64)
    x = torch.zeros(2, size, 1, dtype=F64)

    def loss(u, y):
        # A support set of P rows of A and b is told from a query set of one row c by its number of rows.
        return 0.5 * u @ y[:, :-1] @ u - y[:, -1] @ u if y.shape[0] > 1 else y[0] @ u

    b = torch.randn(2, size, 1, generator=generator, dtype=F64)
    return (
        Problem(Quadratic(size), loss),
        torch.ones(size, dtype=F64),
        Tasks(x, torch.cat([a, b], 2), x[:, :1], c),
        a,
        c[:, 0],
    )
