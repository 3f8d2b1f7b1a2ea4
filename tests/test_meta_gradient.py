"""Every method's meta-gradient against closed forms, unrolled autograd and central differences, in float64."""

import gc
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from problems import (
    CASES,
    F64,
    check_against_central_differences,
    classification,
    quadratic,
    regression,
    relative,
    unrolled,
)
from torch import nn

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    RK4,
    DivergenceError,
    Dopri5,
    Euler,
    GradientDescent,
    HessianFree,
    Heun,
    Problem,
    Reptile,
    adapt,
    evaluate,
    meta_gradient,
)
from amaml_core.linalg import conjugate_gradients
from amaml_core.metrics import rmse


@pytest.mark.parametrize(
    "case",
    [regression, partial(classification, "BatchNorm"), partial(classification, "BatchNorm", nn.ReLU)],
    ids=["mlp", "conv", "relu"],
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


@cache
def of_the_flow():
    return meta_gradient(AMAML(1.0, RK4(150)), *regression()).gradient


@pytest.mark.parametrize("solver", [Euler, Heun, RK4])
def test_gradient_converges_to_the_flows_at_the_solvers_order(solver):
    problem, theta, tasks = regression()
    exact = of_the_flow()
    steps = torch.tensor([48, 64, 96, 128] if solver is Euler else [16, 24, 32, 48])
    errors = torch.tensor(
        [relative(meta_gradient(AMAML(1.0, solver(int(k))), problem, theta, tasks).gradient, exact) for k in steps]
    )
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


def test_first_order_methods_equal_their_definitions():
    problem, theta, tasks = regression()
    first, reptile = (meta_gradient(m(0.05, 5), problem, theta, tasks) for m in (FOMAML, Reptile))
    u = theta.expand(3, -1)
    for _ in range(5):
        u = u - 0.05 * problem.gradient(u, *tasks.support)
    assert torch.equal(first.adapted, u) and torch.equal(reptile.adapted, u)
    assert torch.equal(first.gradient, problem.gradient(u, *tasks.query).mean(0))
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
    tensors = [
        estimate.gradient,
        estimate.query_loss,
        estimate.adapted,
        *(v for v in estimate.stats.values() if isinstance(v, torch.Tensor)),
    ]
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
    difference = (problem.gradient(u + 1e-5 * v, *tasks.support) - problem.gradient(u - 1e-5 * v, *tasks.support)) / 2e-5
    assert relative(problem.hvp(u, *tasks.support, v), difference) < 1e-7


def test_conjugate_gradients_solve_each_system_and_leave_the_finished_alone():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 6, 6, generator=generator, dtype=F64)
    a = root @ root.mT + torch.eye(6, dtype=F64)
    a[0] = torch.eye(6, dtype=F64)  # solved after one iteration
    b = torch.randn(4, 6, generator=generator, dtype=F64)
    b[3] = 0  # solved at the start
    product = lambda v: (a @ v[..., None])[..., 0]  # noqa: E731
    x, residual, indefinite = conjugate_gradients(product, b, steps=20, tolerance=1e-13)
    assert relative(x, torch.linalg.solve(a, b)) < 1e-10 and residual.max() < 1e-12 and not indefinite.any()
    assert torch.equal(x[3], torch.zeros(6, dtype=F64))
    early = conjugate_gradients(product, b, steps=2)
    true = (b - product(early.x)).norm(dim=1) / b.norm(dim=1).clamp(min=1e-300)
    assert torch.allclose(early.residual, true, atol=1e-12)


def test_conjugate_gradients_stop_where_the_curvature_is_not_positive():
    a = torch.diag_embed(torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0], [-1.0, -1.0, -1.0]], dtype=F64))
    b = torch.ones(3, 3, dtype=F64)
    solution = conjugate_gradients(lambda v: (a @ v[..., None])[..., 0], b, steps=3)
    assert solution.indefinite.tolist() == [False, True, True] and solution.x.isfinite().all()
    assert torch.allclose(solution.x[0], 1 / torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    assert torch.equal(solution.x[2], b[2])


@pytest.mark.parametrize(
    "inner", [pytest.param(GradientDescent(0.1, 400), marks=pytest.mark.slow), HessianFree(cg_steps=50, steps=20)], ids=["GD", "HF"]
)
def test_converged_imaml_agrees_with_central_differences_of_the_proximal_problem(inner):
    problem, theta, tasks = regression()
    method = IMAML(inner, regularization=2.0, cg_steps=60, cg_tolerance=1e-12)
    estimate = meta_gradient(method, problem, theta, tasks)
    slope = problem.gradient(estimate.adapted, *tasks.support) + 2.0 * (estimate.adapted - theta)
    assert slope.norm() < 1e-12  # the inner problem is solved
    assert estimate.stats["cg_residual"].max() < 1e-11
    check_against_central_differences(method, problem, theta, tasks, tolerance=1e-6)


def test_hessian_free_solves_a_quadratic_in_one_step_and_never_climbs():
    problem, theta, tasks, a, _ = quadratic()
    adapted = meta_gradient(IMAML(HessianFree(4, 1), 2.0, 4), problem, theta, tasks).adapted
    expected = torch.linalg.solve(a + 2 * torch.eye(4, dtype=F64), tasks.support_y[:, :, -1] + 2 * theta)
    assert relative(adapted, expected) < 1e-12
    problem, theta, tasks = regression()
    step, u = HessianFree(2, 1).step(problem, 10 * theta, tasks, 0.1), (10 * theta).expand(3, -1)
    losses = []
    for _ in range(6):
        losses.append(problem.losses(u, *tasks.support) + 0.05 * (u - 10 * theta).square().sum(1))
        u = step(u)
    assert (torch.stack(losses).diff(dim=0) <= 1e-13).all() and (losses[-1] < losses[0]).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])  # the square of the last is beyond double precision
@pytest.mark.parametrize("policy", ["raise", "truncate"])
def test_hessian_free_calls_what_cannot_be_computed_no_minimum(value, policy):
    problem, theta, tasks = regression()
    tasks.support_y[1, 2] = value
    method = IMAML(HessianFree(2, 2), on_negative_curvature=policy)
    moved = (adapt(method, problem, theta, tasks, 2) - theta).norm(dim=1)
    assert moved.isnan().tolist() == [False, True, False] and (moved[[0, 2]] > 0).all()
    assert evaluate(method, problem, theta, tasks, rmse, steps=(2,))["query"].isna().tolist() == [False, True, False]
    reason = "" if value == 1e200 else " of the batch, because tasks.support_y"
    with pytest.raises(DivergenceError, match=rf"diverged for tasks \[1\]{reason}"):
        meta_gradient(method, problem, theta, tasks)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_conjugate_gradients_give_no_number_where_a_product_is_none(bad):
    a = torch.ones(2, 3, dtype=F64)
    for fixed in (False, True):
        solution = conjugate_gradients(lambda v: torch.tensor([[1.0], [bad * 0]], dtype=F64) * v, a, steps=2, fixed=fixed)
        assert solution.x.isnan().all(1).tolist() == [False, True] and not solution.indefinite.any()
        solution = conjugate_gradients(lambda v: v, torch.tensor([[1.0, 2.0], [1.0, bad]], dtype=F64), steps=2, fixed=fixed)
        assert solution.x.isnan().all(1).tolist() == solution.residual.isnan().tolist() == [False, True]


def test_an_adaptive_solver_blames_data_that_are_not_finite_and_not_the_flow():
    problem, theta, tasks = regression()
    tasks.support_x[2, 0] = torch.nan
    with pytest.raises(DivergenceError, match=r"because tasks.support_x holds NaN or infinity for tasks \[2\]"):
        meta_gradient(AMAML(0.5, Dopri5()), problem, theta, tasks)


def test_a_pullback_of_another_shape_is_refused():
    problem, theta, tasks = regression()

    def method(problem, theta, tasks):
        return theta.expand(len(tasks), -1), lambda gradient: gradient.mean(0, keepdim=True)

    with pytest.raises(ValueError, match=r"gives \(1, \d+\) in place of \(3, \d+\)"):
        meta_gradient(method, problem, theta, tasks)


def test_imaml_says_when_the_curvature_is_too_negative():
    problem, theta, tasks, _, _ = quadratic()
    tasks.support_y[1, :, :-1] -= 9 * torch.eye(4, dtype=F64)  # the Hessian of task 1 is now negative
    with pytest.raises(DivergenceError, match=r"curves down by more than regularization=2 for tasks \[1\]"):
        meta_gradient(IMAML(GradientDescent(0.01, 1), 2.0, 4), problem, theta, tasks)
    method = IMAML(GradientDescent(0.01, 1), 2.0, 4, on_negative_curvature="truncate")
    assert meta_gradient(method, problem, theta, tasks).stats["indefinite"].tolist() == [False, True]


def test_where_memory_is_short_the_chunks_are_halved_and_remembered():
    problem, theta, tasks = regression()
    problem = Problem(problem.model, problem.loss)
    seen = []

    @dataclass(frozen=True)
    class Hungry(FOMAML):
        def __call__(self, problem, theta, tasks):
            seen.append(len(tasks))
            if len(tasks) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(problem, theta, tasks)

    expected = meta_gradient(FOMAML(0.1, 2), problem, theta, tasks)
    found = [meta_gradient(Hungry(0.1, 2), problem, theta, tasks) for _ in range(2)]
    assert seen == [3, 1, 1, 1, 1, 1, 1]
    for estimate in found:
        torch.testing.assert_close(estimate.gradient, expected.gradient)
        torch.testing.assert_close(estimate.adapted, expected.adapted)
    with pytest.raises(torch.OutOfMemoryError):
        meta_gradient(Hungry(0.1, 2), Problem(problem.model, problem.loss, chunk_size=2), theta, tasks)


@pytest.mark.parametrize("asked", [False, True])
def test_tf32_is_off_unless_asked_for_and_put_back(asked):
    problem, theta, tasks = regression()
    during = []

    def loss(prediction, target):
        during.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return nn.functional.mse_loss(prediction, target)

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    meta_gradient(FOMAML(0.1, 1), Problem(problem.model, loss, tf32=asked), theta, tasks)
    assert set(during) == {(asked, asked)}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
