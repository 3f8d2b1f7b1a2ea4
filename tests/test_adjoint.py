"""Solvers, adjoints and memory in every combination, in float64."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from problems import (
    F64,
    check_against_central_differences,
    classification,
    quadratic,
    regression,
    relative,
    unrolled,
)
from torch.nn.functional import mse_loss

from amaml_core import (
    AMAML,
    MAML,
    RK4,
    Backsolve,
    Checkpoint,
    DivergenceError,
    Dopri5,
    Euler,
    Heun,
    InnerLoop,
    Problem,
    Store,
    fit,
    meta_gradient,
)
from amaml_core import adjoint as adjoint_module
from amaml_core.chain import Gradients
from amaml_core.flow import adaptive_grid, runge_kutta_step
from amaml_core.kernel import hermite


def gradient(method, problem, theta, tasks):
    return meta_gradient(method, problem, theta, tasks).gradient


@cache
def of_the_flow():
    return gradient(AMAML(1.0, RK4(150)), *regression())


@pytest.mark.parametrize("solver", [Euler(9), Heun(6), RK4(5), Dopri5(1e-3, 1e-5)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("adjoint", ["discrete", "continuous"])
@pytest.mark.parametrize("proximal", [0.0, 0.7])
def test_checkpoints_change_nothing(solver, adjoint, proximal):
    problem, theta, tasks = regression()
    method = AMAML(0.8, solver, adjoint=adjoint, proximal=proximal)
    expected = meta_gradient(method, problem, theta, tasks)
    for memory in (
        Checkpoint(),
        Checkpoint(segments=3),
        Checkpoint(segments=1000),
        Checkpoint(snapshots=1),
        Checkpoint(snapshots=4),
    ):
        estimate = meta_gradient(replace(method, memory=memory), problem, theta, tasks)
        assert torch.equal(estimate.gradient, expected.gradient) and torch.equal(estimate.adapted, expected.adapted)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dtype": torch.int64}, TypeError), ({"dtype": torch.bool}, TypeError), ({"dtype": torch.complex64}, TypeError),
        ({"dtype": "float16"}, TypeError), ({"device": 1.5}, ValueError), ({"device": "gpu"}, ValueError),
    ],
)  # fmt: skip
def test_states_are_kept_in_floating_point_on_a_device_that_exists(options, error):
    with pytest.raises(error, match="Store (keeps|needs)"):
        Store(**options)


class Counter:
    """A chain of trivial steps that counts what a memory strategy does with it."""

    def __init__(self, steps):
        self.steps, self.initial = steps, torch.zeros(1, 1, dtype=F64)
        self.forwards, self.backwards = 0, []

    def __len__(self):
        return self.steps

    def start(self, lam):
        return Gradients(lam)

    def forward(self, k, u):
        assert u.item() == k  # the state of step k is the number k
        self.forwards += 1
        return u + 1

    def advance(self, start, stop, u):
        for k in range(start, stop):
            u = self.forward(k, u)
        return u

    def backward(self, k, u, u_next, gradients):
        assert u.item() == k
        self.backwards.append(k)
        return gradients


@cache
def least_advances(steps, snapshots):
    """The fewest forward steps that reverse a chain when ``snapshots`` states may be kept: dynamic programming."""
    if steps <= 1:
        return 0
    if snapshots == 1:
        return steps * (steps - 1) // 2
    return min(m + least_advances(steps - m, snapshots - 1) + least_advances(m, snapshots) for m in range(1, steps))


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 56, 90])
def test_the_binomial_schedule_is_optimal(steps, snapshots):
    counter = Counter(steps)
    _, sweep = Checkpoint(snapshots=snapshots).solve(counter)
    assert counter.forwards == steps
    sweep(torch.zeros(1, 1, dtype=F64))
    assert counter.backwards == list(reversed(range(steps)))
    # The forward solve leaves the first snapshots behind, and goes on from the last of them to the end.
    to_the_end = steps - adjoint_module.revolve_bounds(steps, snapshots)[-2]
    assert counter.forwards == least_advances(steps, snapshots) + to_the_end


@pytest.mark.parametrize("steps", [1, 10, 50, 101])
def test_square_root_checkpoints_cost_one_more_forward_solve(steps):
    counter = Counter(steps)
    _, sweep = Checkpoint().solve(counter)
    sweep(torch.zeros(1, 1, dtype=F64))
    assert counter.backwards == list(reversed(range(steps))) and counter.forwards == 2 * steps


@pytest.mark.parametrize("case", [regression, lambda: classification("BatchNorm")], ids=["mlp", "conv"])
@pytest.mark.parametrize("proximal", [0.0, 0.7])
def test_dopri5_adjoint_is_autograd_through_its_accepted_steps(case, proximal):
    problem, theta, tasks = case()
    method = AMAML(0.5, Dopri5(1e-4, 1e-6), proximal=proximal)
    estimate = meta_gradient(method, problem, theta, tasks)
    start = theta.expand(len(tasks), -1).clone().requires_grad_()

    def field(u):
        return -problem.gradient(u, *tasks.support, create_graph=True) - proximal * (u - start)

    grid = adaptive_grid(method.solver, lambda u: field(u).detach(), start.detach(), method.horizon)
    assert estimate.stats["steps"] == len(grid.step_sizes) and estimate.stats["rejected"] == grid.rejected
    assert sum(grid.step_sizes) == pytest.approx(method.horizon, rel=1e-12)
    u = start
    for h in grid.step_sizes:
        u = runge_kutta_step(Dopri5.tableau, field, u, h)
    expected = torch.autograd.grad(problem.losses(u, *tasks.query).mean(), start)[0].sum(0)
    assert relative(estimate.gradient, expected) < 1e-12


def test_dopri5_approaches_the_flow_as_its_tolerance_shrinks():
    problem, theta, tasks = regression()
    exact = of_the_flow()
    errors = [relative(gradient(AMAML(1.0, Dopri5(r, r * 1e-2)), problem, theta, tasks), exact) for r in (1e-3, 1e-5, 1e-7)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] and errors[2] < 1e-5


@pytest.mark.parametrize("tableau", [Euler.tableau, Heun.tableau, RK4.tableau, Dopri5.tableau])
def test_tableaux_are_consistent(tableau):
    nodes = [sum(row) for row in tableau.a]
    assert sum(tableau.b) == pytest.approx(1, abs=1e-15)
    if tableau is not Euler.tableau:
        assert sum(b * c for b, c in zip(tableau.b, nodes, strict=True)) == pytest.approx(1 / 2, abs=1e-15)


@pytest.mark.parametrize(("solver", "order"), [(Euler, 1), (Heun, 2), (RK4, 4)])
def test_the_continuous_adjoint_converges_at_the_solvers_order(solver, order):
    problem, theta, tasks = regression()
    exact = of_the_flow()
    steps = torch.tensor([48, 64, 96, 128] if solver is Euler else [16, 24, 32, 48])
    errors = torch.tensor(
        [relative(gradient(AMAML(1.0, solver(int(k)), adjoint="continuous"), problem, theta, tasks), exact) for k in steps]
    )
    x, y = steps.log(), errors.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert abs(-slope.item() - order) < 0.2


def test_euler_adjoints_on_a_quadratic_are_the_same_matrix_power():
    problem, theta, tasks, a, c = quadratic()
    discrete, continuous = (
        gradient(AMAML(0.6, Euler(7), adjoint=kind), problem, theta, tasks) for kind in ("discrete", "continuous")
    )
    assert relative(continuous, discrete) < 1e-13  # a constant Hessian leaves no choice of where to take it


def test_proximal_continuous_adjoint_approaches_the_discrete_one():
    problem, theta, tasks = regression()
    exact = gradient(AMAML(0.5, RK4(100), proximal=0.7), problem, theta, tasks)
    errors = [
        relative(gradient(AMAML(0.5, Heun(k), adjoint="continuous", proximal=0.7), problem, theta, tasks), exact)
        for k in (10, 20, 40)
    ]
    assert errors[0] > 3.5 * errors[1] > 12 * errors[2]


def test_hermite_reproduces_cubics():
    t = torch.linspace(0, 1, 7, dtype=F64)
    u, slope = (lambda s: 2 - s + 3 * s**2 - 5 * s**3), (lambda s: -1 + 6 * s - 15 * s**2)
    h = 0.7
    ends = [torch.tensor(f(x), dtype=F64) for f in (u, slope) for x in (0.0, h)]
    values = torch.stack([hermite(s.item(), *ends, h) for s in t])
    assert torch.allclose(values, u(h * t), rtol=1e-14)


@pytest.mark.parametrize("proximal", [0.0, 0.7])
def test_backsolve_agrees_where_the_flow_can_be_reversed(proximal):
    problem, theta, tasks = regression()
    exact = gradient(AMAML(0.5, RK4(50), proximal=proximal), problem, theta, tasks)
    assert relative(gradient(AMAML(0.5, RK4(50), memory=Backsolve(), proximal=proximal), problem, theta, tasks), exact) < 1e-5


def test_backsolve_refuses_what_it_cannot_reverse():
    problem, theta, tasks, a, c = quadratic()
    with pytest.raises(DivergenceError, match=r"horizon T=40.*Store\(\) or Checkpoint"):
        meta_gradient(AMAML(40.0, RK4(400), memory=Backsolve(max_steps=100)), problem, theta, tasks)
    with pytest.raises(DivergenceError, match="misses theta by"):  # Euler's end point is not on the exact flow
        meta_gradient(AMAML(1.0, Euler(4), memory=Backsolve()), problem, theta, tasks)


def test_states_kept_in_bfloat16_perturb_the_gradient_a_little():
    problem, theta, tasks = regression()
    exact = gradient(AMAML(0.5, Euler(20)), problem, theta, tasks)
    rough = meta_gradient(AMAML(0.5, Euler(20), memory=Store(dtype=torch.bfloat16)), problem, theta, tasks)
    assert rough.gradient.dtype == F64 and 1e-6 < relative(rough.gradient, exact) < 2e-2
    assert relative(gradient(AMAML(0.5, Euler(20), memory=Store(device="cpu")), problem, theta, tasks), exact) == 0


@pytest.mark.parametrize("solver", [Euler(6), Heun(4), RK4(3)])
@pytest.mark.parametrize("memory", [Store(), Checkpoint()])
def test_sensitivities_to_horizon_and_step_sizes_agree_with_central_differences(solver, memory):
    problem, theta, tasks = regression()
    method = AMAML(0.6, solver, memory, proximal=0.3, sensitivities=True)
    stats = meta_gradient(method, problem, theta, tasks).stats
    eps = 1e-5
    up, down = (meta_gradient(replace(method, horizon=0.6 + e), problem, theta, tasks).query_loss for e in (eps, -eps))
    assert torch.allclose(stats["horizon_gradient"], (up - down) / (2 * eps), rtol=1e-6, atol=1e-9)
    groups = len(list(problem.model.parameters()))
    sizes = 0.6 / solver.steps * torch.linspace(0.5, 1.5, solver.steps * groups, dtype=F64).view(solver.steps, groups)
    method = replace(method, step_sizes=sizes)
    by_step = meta_gradient(method, problem, theta, tasks).stats["step_size_gradient"]
    assert by_step.shape == (len(tasks), solver.steps, groups)
    for k, g in ((0, 0), (solver.steps - 1, groups - 1), (1, 3)):
        bump = torch.zeros_like(sizes)
        bump[k, g] = eps
        up, down = (meta_gradient(replace(method, step_sizes=sizes + s * bump), problem, theta, tasks).query_loss for s in (1, -1))
        assert torch.allclose(by_step[:, k, g], (up - down) / (2 * eps), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sizes", [1, 6])
def test_exactness_with_step_sizes_for_each_group(sizes):
    problem, theta, tasks = regression()
    steps = torch.linspace(0.05, 0.15, 4 * sizes, dtype=F64).view(4, sizes)
    check_against_central_differences(AMAML(0.4, Heun(4), step_sizes=steps), problem, theta, tasks, tolerance=1e-6)


OPTIONS = {
    "weight decay": InnerLoop(weight_decay=0.1),
    "mask": InnerLoop(mask=torch.arange(regression()[0].size) >= 50),
    "minibatch": InnerLoop(minibatch=2, seed=3),
    "clipped": InnerLoop(clip_norm=0.5),
    "all": InnerLoop(0.1, torch.arange(regression()[0].size) >= 20, 3, 5, 0.7),
}


@pytest.mark.parametrize("memory", [Store(), Checkpoint(), Checkpoint(snapshots=2)])
@pytest.mark.parametrize("options", OPTIONS)
def test_inner_loop_options_keep_the_gradient_exact(options, memory):
    problem, theta, tasks = regression()
    method = AMAML(0.6, Euler(7), memory, proximal=0.3, inner=OPTIONS[options])
    check_against_central_differences(method, problem, theta, tasks, tolerance=1e-6)
    assert (
        relative(gradient(method, problem, theta, tasks), gradient(replace(method, inner=InnerLoop()), problem, theta, tasks))
        > 1e-3
    )


def test_frozen_parameters_stay_and_minibatches_cover_the_set():
    problem, theta, tasks = regression()
    mask = OPTIONS["mask"].mask
    adapted = meta_gradient(
        AMAML(0.6, Euler(7), proximal=0.3, inner=InnerLoop(weight_decay=0.1, mask=mask)), problem, theta, tasks
    ).adapted
    assert torch.equal(adapted[:, ~mask], theta[~mask].expand(3, -1)) and not (adapted[:, mask] == theta[mask]).any()
    schedule = InnerLoop(minibatch=2, seed=1).schedule(7, tasks)
    assert schedule.shape == (7, 2)
    assert sorted(schedule[:3].flatten().tolist()) == sorted(schedule[3:6].flatten().tolist()) == list(range(6))


def test_weight_decay_is_the_gradient_of_its_term():
    problem, theta, tasks = regression()
    u = meta_gradient(AMAML(0.3, Euler(1), inner=InnerLoop(weight_decay=0.2)), problem, theta, tasks).adapted
    start = theta.expand(3, -1)
    assert torch.allclose(u, start - 0.3 * (problem.gradient(start, *tasks.support) + 0.2 * start), rtol=1e-13)


def steep():
    """Three tasks, the second of which has targets so large that its inner loop runs off."""
    problem, theta, tasks = regression()
    tasks.support_y[1] *= 1e300
    return problem, theta, tasks


@pytest.mark.parametrize("memory", [Store(), Checkpoint()])
def test_a_diverging_task_is_named_or_skipped(memory):
    problem, theta, tasks = steep()
    method = AMAML(5.0, Euler(10), memory)
    with pytest.raises(
        DivergenceError,
        match=r"1 of 3 tasks diverged, task 1 first, at inner step \d+ of 10; its last finite update changed parameters by up to",
    ):
        meta_gradient(method, problem, theta, tasks)
    skipped = meta_gradient(replace(method, on_divergence="skip"), problem, theta, tasks)
    assert skipped.stats["diverged"].tolist() == [False, True, False]
    others = meta_gradient(method, problem, theta, tasks[[0, 2]])
    assert relative(skipped.gradient, others.gradient) < 1e-12
    with pytest.raises(DivergenceError, match="every task diverged"):
        meta_gradient(replace(method, on_divergence="skip"), problem, theta, tasks[1:2])


def test_adaptive_steps_report_what_they_cannot_do():
    problem, theta, tasks = regression()
    with pytest.raises(DivergenceError, match="max_steps=5"):
        meta_gradient(AMAML(5.0, Dopri5(1e-9, 1e-11, max_steps=5)), problem, theta, tasks)


@pytest.mark.parametrize("learn", ["horizon", "step_sizes"])
def test_fit_learns_the_horizon_or_the_step_sizes(learn, tmp_path):
    problem, theta, tasks = regression(tasks=4)
    method = AMAML(0.01, Euler(4), step_sizes=None if learn == "horizon" else torch.full((4, 6), 0.0025, dtype=F64))
    learned = fit(method, problem, lambda g: tasks, 40, lambda p: torch.optim.Adam(p, 0.05), progress=False, learn=learn)
    once = fit(method, problem, lambda g: tasks, 1, lambda p: torch.optim.SGD(p, 0.1), progress=False, learn=learn)
    stats = meta_gradient(replace(method, sensitivities=True), problem, theta, tasks).stats
    if learn == "horizon":
        assert once.method.horizon == pytest.approx(
            0.01 * math.exp(-0.1 * 0.01 * stats["horizon_gradient"].mean().item()), rel=1e-12
        )
        assert learned.history.horizon[0] == pytest.approx(0.01)
        assert learned.history.horizon.iloc[-1] != learned.method.horizon  # the row holds what the step was taken with
    else:
        sizes = method.step_sizes
        expected = sizes * (-0.1 * sizes * stats["step_size_gradient"].mean(0)).exp()
        assert torch.allclose(once.method.step_sizes, expected, rtol=1e-12)
        assert (learned.method.step_sizes > 0).all()
    path = tmp_path / "run.npz"
    fit(method, problem, lambda g: tasks, 17, lambda p: torch.optim.Adam(p, 0.05), path, progress=False, learn=learn)
    resumed = fit(method, problem, lambda g: tasks, 40, lambda p: torch.optim.Adam(p, 0.05), path, progress=False, learn=learn)
    assert torch.equal(resumed.theta, learned.theta) and resumed.history.equals(learned.history)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AMAML(adjoint="exact"), "adjoint must be one of"),
        (lambda: AMAML(on_divergence="ignore"), "on_divergence must be one of"),
        (lambda: AMAML(adjoint="continuous", inner=InnerLoop(clip_norm=1.0)), "clipping breaks the adjoint ODE"),
        (lambda: AMAML(memory=Backsolve(), sensitivities=True), 'need adjoint="discrete"'),
        (lambda: AMAML(solver=Dopri5(), inner=InnerLoop(minibatch=2)), "minibatches change the field"),
        (lambda: AMAML(solver=Dopri5(), step_sizes=torch.ones(3, 1)), "chooses its own"),
        (lambda: AMAML(solver=Euler(3), step_sizes=torch.ones(2, 1)), r"shape \(K=3"),
        (lambda: AMAML(solver=Euler(3), step_sizes=-torch.ones(3, 1)), "must be positive"),
        (lambda: Dopri5(rtol=0.0), "positive tolerances"),
        (lambda: Checkpoint(segments=2, snapshots=2), "not both"),
        (lambda: Checkpoint(segments=0), "segments >= 1"),
        (lambda: Backsolve(drift=0.0), "drift > 0"),
        (lambda: InnerLoop(minibatch=0), "minibatch must be"),
        (lambda: InnerLoop(weight_decay=-1.0), "weight_decay"),
        (lambda: InnerLoop(clip_norm=0.0), "clip_norm"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_settings_that_do_not_fit_the_data_are_refused():
    problem, theta, tasks = regression()
    with pytest.raises(ValueError, match="larger than the support set of 6"):
        meta_gradient(AMAML(inner=InnerLoop(minibatch=7)), problem, theta, tasks)
    with pytest.raises(ValueError, match="6 parameter tensors"):
        meta_gradient(AMAML(solver=Euler(3), step_sizes=torch.ones(3, 2)), problem, theta, tasks)
    with pytest.raises(ValueError, match="none can be repeated"):
        AMAML(solver=Dopri5()).inner_step(problem, theta, tasks)


def test_revolve_split_stays_inside():
    assert all(1 <= adjoint_module.revolve_split(n, s) < n for n in range(2, 60) for s in range(1, 70))


def test_float32_agrees_with_unrolled_float32():
    problem, theta, tasks = regression()
    method = AMAML(0.5, Euler(10))
    single = gradient(method, Problem(problem.model.float(), mse_loss), theta.float(), tasks.to(dtype=torch.float32))
    assert relative(single.double(), unrolled(method, problem, theta, tasks)) < 1e-5
    assert relative(single, gradient(MAML(0.05, 10), problem, theta.float(), tasks.to(dtype=torch.float32))) < 1e-6
