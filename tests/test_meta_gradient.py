"""Every method's meta-gradient against closed forms, unrolled autograd and central differences, in float64."""

import gc
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from amaml_core import AMAML, FOMAML, IMAML, MAML, RK4, Euler, GradientDescent, Heun, Problem, Reptile, Tasks, meta_gradient
from amaml_core.flow import runge_kutta_step
from amaml_core.linalg import conjugate_gradients

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


@pytest.mark.parametrize(
    "case", [regression, partial(classification, "BatchNorm"), partial(classification, "BatchNorm", nn.ReLU)], ids=["mlp", "conv", "relu"]
)
def test_euler_is_maml(case):
    problem, theta, tasks = case()
    ours = meta_gradient(AMAML(horizon=0.5, solver=Euler(steps=10)), problem, theta, tasks)
    maml = meta_gradient(MAML(lr=0.05, steps=10), problem, theta, tasks)
    assert relative(ours.gradient, maml.gradient) < 1e-12
    assert torch.equal(ours.query_loss, maml.query_loss) and torch.equal(ours.adapted, maml.adapted)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", [Euler(5), Heun(3), RK4(2)], ids=["Euler", "Heun", "RK4"])
@pytest.mark.parametrize("proximal", [0.0, 0.7])
def test_adjoint_is_autograd_through_the_same_steps(case, solver, proximal):
    problem, theta, tasks = CASES[case]()
    method = AMAML(horizon=0.4, solver=solver, proximal=proximal)
    assert relative(meta_gradient(method, problem, theta, tasks).gradient, unrolled(method, problem, theta, tasks)) < 1e-12


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
    return Problem(Quadratic(size), loss), torch.ones(size, dtype=F64), Tasks(x, torch.cat([a, b], 2), x[:, :1], c), a, c[:, 0]


def test_quadratic_closed_form():
    problem, theta, tasks, a, c = quadratic()
    horizon, steps = 0.6, 7
    factor = torch.linalg.matrix_power(torch.eye(4, dtype=F64) - horizon / steps * a, steps)  # (2, P, P)
    expected = (factor @ c[..., None]).squeeze(-1).mean(0)
    estimate = meta_gradient(AMAML(horizon, Euler(steps)), problem, theta, tasks)
    assert relative(estimate.gradient, expected) < 1e-13
    implicit = meta_gradient(IMAML(GradientDescent(0.05, 1), regularization=2.0, cg_steps=4), problem, theta, tasks)
    expected = torch.linalg.solve(torch.eye(4, dtype=F64) + a / 2.0, c).mean(0)
    assert relative(implicit.gradient, expected) < 1e-12


@pytest.mark.parametrize("solver", [Euler, Heun, RK4])
def test_gradient_converges_to_the_flows_at_the_solvers_order(solver):
    problem, theta, tasks = regression()
    exact = meta_gradient(AMAML(1.0, RK4(150)), problem, theta, tasks).gradient
    steps = torch.tensor([48, 64, 96, 128] if solver is Euler else [16, 24, 32, 48])
    errors = torch.tensor([relative(meta_gradient(AMAML(1.0, solver(int(k))), problem, theta, tasks).gradient, exact) for k in steps])
    x, y = steps.log(), errors.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert abs(-slope.item() - solver.order) < 0.15


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "method",
    [MAML(0.05, 5), AMAML(0.3, Euler(5)), AMAML(0.3, Heun(3)), AMAML(0.3, RK4(2)), AMAML(0.3, RK4(2), proximal=0.7)],
    ids=["MAML", "Euler", "Heun", "RK4", "proximal"],
)
def test_exact_methods_agree_with_central_differences(case, method):
    check_against_central_differences(method, *CASES[case](), tolerance=1e-6)


def test_converged_imaml_agrees_with_central_differences_of_the_proximal_problem():
    problem, theta, tasks = regression()
    method = IMAML(GradientDescent(lr=0.1, steps=400), regularization=2.0, cg_steps=60, cg_tolerance=1e-12)
    slope = problem.support_gradient(est := meta_gradient(method, problem, theta, tasks).adapted, tasks) + 2.0 * (est - theta)
    assert slope.norm() < 1e-12  # the inner problem is solved
    check_against_central_differences(method, problem, theta, tasks, tolerance=1e-6)


def test_first_order_methods_equal_their_definitions():
    problem, theta, tasks = regression()
    first, reptile = (meta_gradient(m(0.05, 5), problem, theta, tasks) for m in (FOMAML, Reptile))
    u = theta.expand(3, -1)
    for _ in range(5):
        u = u - 0.05 * problem.support_gradient(u, tasks)
    assert torch.equal(first.adapted, u) and torch.equal(reptile.adapted, u)
    assert torch.equal(first.gradient, problem.query_gradient(u, tasks).mean(0))
    assert torch.equal(reptile.gradient, (theta - u).mean(0))


METHODS = [MAML(0.05, 3), AMAML(0.15, Heun(3)), AMAML(0.15, proximal=1.0), FOMAML(0.05, 3), Reptile(0.05, 3), IMAML()]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_no_graph_outlives_the_call(method):
    problem, theta, tasks = regression()
    theta = theta.requires_grad_()
    gc.collect()
    before = {id(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.grad_fn is not None}
    estimate = meta_gradient(method, problem, theta, tasks)
    gc.collect()
    after = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.grad_fn is not None and id(o) not in before]
    assert not after
    tensors = [estimate.gradient, estimate.query_loss, estimate.adapted, *(v for v in estimate.stats.values() if isinstance(v, torch.Tensor))]
    assert not any(t.requires_grad for t in tensors)
    assert theta.grad is None and all(p.grad is None for p in problem.model.parameters())
    with torch.no_grad():
        assert torch.equal(meta_gradient(method, problem, theta, tasks).gradient, estimate.gradient)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_chunks_and_single_tasks_change_nothing(method):
    whole, pairs, single = (meta_gradient(method, *regression(chunk_size=size)) for size in (None, 2, 1))
    for other in (pairs, single):
        assert relative(other.gradient, whole.gradient) < 1e-12
        assert other.query_loss.shape == (3,) and relative(other.adapted, whole.adapted) < 1e-12
        assert other.stats.keys() == whole.stats.keys()


@pytest.mark.parametrize("case", CASES)
def test_hessian_vector_products_against_differences_of_gradients(case):
    problem, theta, tasks = CASES[case]()
    u = theta + 0.1 * torch.randn(len(tasks), len(theta), generator=torch.Generator().manual_seed(4), dtype=F64)
    v = torch.randn(u.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    v = v / v.norm(dim=1, keepdim=True)
    difference = (problem.support_gradient(u + 1e-5 * v, tasks) - problem.support_gradient(u - 1e-5 * v, tasks)) / 2e-5
    assert relative(problem.support_hvp(u, tasks, v), difference) < 1e-7


def test_conjugate_gradients_solve_each_system_and_leave_the_finished_alone():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 6, 6, generator=generator, dtype=F64)
    a = root @ root.mT + torch.eye(6, dtype=F64)
    a[0] = torch.eye(6, dtype=F64)  # solved after one iteration
    b = torch.randn(4, 6, generator=generator, dtype=F64)
    b[3] = 0  # solved at the start
    x, residual = conjugate_gradients(lambda v: (a @ v[..., None])[..., 0], b, steps=20, tolerance=1e-13)
    assert relative(x, torch.linalg.solve(a, b)) < 1e-10 and residual.max() < 1e-12
    assert torch.equal(x[3], torch.zeros(6, dtype=F64))
    _, early = conjugate_gradients(lambda v: (a @ v[..., None])[..., 0], b, steps=2)
    true = (b - (a @ conjugate_gradients(lambda v: (a @ v[..., None])[..., 0], b, steps=2)[0][..., None])[..., 0]).norm(dim=1)
    assert torch.allclose(early, true / b.norm(dim=1).clamp(min=1e-300), atol=1e-12)
