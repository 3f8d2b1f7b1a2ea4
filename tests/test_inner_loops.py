"""One inner loop for every method: masks, freezing, weight decay, minibatches, clipping and optimisers, in float64."""

from dataclasses import replace

import pytest
import torch
from problems import F64, quadratic, regression, relative
from torch import nn
from torch.func import functional_call

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    Adam,
    Euler,
    GradientDescent,
    HessianFree,
    InnerLoop,
    Momentum,
    Problem,
    Reptile,
    Tasks,
    adapt,
    meta_gradient,
)

LR, K = 0.1, 6
SOLVERS = {
    "descent": None,
    "Momentum": Momentum(K, 0.7),
    "Adam": Adam(K, beta2=0.9, eps=1e-3),
    "AdamW": Adam(K, eps=1e-2, weight_decay=0.2, decoupled=True),
}
LOOPS = {
    "plain": InnerLoop(),
    "mask": InnerLoop(mask=torch.arange(17) >= 12),
    "decay": InnerLoop(weight_decay=0.4),
    "minibatches": InnerLoop(minibatch=4, seed=5),
    "clipping": InnerLoop(clip_norm=0.7),
    "all": InnerLoop(0.2, torch.arange(17) % 3 != 1, 2, 1, 0.5),
}


def case(frozen=False, **options):
    problem, _, tasks = regression(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), tasks=2)
    problem.model[0].bias.requires_grad_(not frozen)
    problem = Problem(problem.model, problem.loss, **options)
    return problem, problem.initial_parameters(), tasks


def by_hand(inner, solver, problem, theta, tasks, query=None):
    """For each task the adapted parameters as a function of where they start, and its query loss, with all graphs."""
    names = {name: p.shape for name, p in problem.model.named_parameters()}
    moves = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in problem.model.parameters()])
    moves = moves if inner.mask is None else moves & inner.mask

    def loss(u, x, y):
        pieces = zip(names.items(), u.split([s.numel() for s in names.values()]), strict=True)
        return problem.loss(functional_call(problem.model, {n: piece.view(s) for (n, s), piece in pieces}, (x,)), y)

    generator = torch.Generator().manual_seed(inner.seed)
    size = inner.minibatch or tasks.shots
    points = [torch.arange(size)] * K
    if inner.minibatch:
        passes = [torch.randperm(tasks.shots, generator=generator)[: tasks.shots // size * size] for _ in range(K)]
        points = torch.cat(passes).view(-1, size)
    for b in range(len(tasks)):
        start = theta.clone().requires_grad_()
        u, m, v = start[moves], 0.0, 0.0
        for k in range(K):
            value = loss(start.masked_scatter(moves, u), tasks.support_x[b, points[k]], tasks.support_y[b, points[k]])
            g = torch.autograd.grad(value + inner.weight_decay / 2 * u.square().sum(), u, create_graph=True)[0]
            if inner.clip_norm is not None and g.norm() > inner.clip_norm:
                g = g * inner.clip_norm / g.norm()
            if solver is None:
                u = u - LR * g
            elif isinstance(solver, Momentum):
                m = solver.beta * m + g
                u = u - LR * m
            else:
                m, v = solver.beta1 * m + (1 - solver.beta1) * g, solver.beta2 * v + (1 - solver.beta2) * g**2
                first, second = m / (1 - solver.beta1 ** (k + 1)), v / (1 - solver.beta2 ** (k + 1))
                u = u * (1 - LR * solver.weight_decay) - LR * first / (second.sqrt() + solver.eps)
        end = start.masked_scatter(moves, u)
        yield start, end, loss(end, tasks.query_x[b], tasks.query_y[b])


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", SOLVERS)
def test_adaptation_and_pullback_are_those_of_a_loop(name, loop, frozen):
    problem, theta, tasks = case(frozen)
    inner, solver = LOOPS[loop], SOLVERS[name]
    found = list(by_hand(inner, solver, problem, theta, tasks))
    adapted = torch.stack([end.detach() for _, end, _ in found])
    free = torch.ones(17, dtype=F64).index_fill(0, torch.arange(8, 12), float(not frozen))
    expected = {
        MAML: sum(torch.autograd.grad(loss, start, retain_graph=True)[0] for start, _, loss in found) / 2 * free,
        FOMAML: sum(torch.autograd.grad(loss, end)[0] for _, end, loss in found) / 2 * free,
        Reptile: (theta - adapted).mean(0),
    }
    for kind, gradient in expected.items():
        method = kind(LR, inner=inner, solver=solver) if solver else kind(LR, K, inner=inner)
        estimate = meta_gradient(method, problem, theta, tasks)
        assert relative(estimate.adapted, adapted) < 1e-13 and relative(estimate.gradient, gradient) < 1e-11
        assert relative(adapt(method, problem, theta, tasks, K), adapted) < 1e-13
    amaml = AMAML(LR * K, solver or Euler(K), inner=inner)
    assert relative(meta_gradient(amaml, problem, theta, tasks).gradient, expected[MAML]) < 1e-11


@pytest.mark.parametrize("solver", [None, Adam(4, eps=1e-3)], ids=["descent", "Adam"])
@pytest.mark.parametrize("kind", [FOMAML, Reptile])
def test_traced_loops_are_the_same(kind, solver):
    options = {"inner": LOOPS["all"], "solver": solver}
    own = meta_gradient(kind(LR, **options), *case(trace=False))
    fast = case(trace_after=0)
    found = meta_gradient(kind(LR, **options), *fast)
    assert torch.equal(own.gradient, found.gradient) and torch.equal(own.adapted, found.adapted)
    assert any(entry.graphs.get("step") for entry in map(fast[0].graphs.get, fast[0].graphs.keys()))


CHANGING = [
    MAML(LR, 3), FOMAML(LR, 3), AMAML(0.3, Adam(3)), IMAML(GradientDescent(1e-3, 3), 900.0), IMAML(HessianFree(steps=2), 900.0),
]  # fmt: skip


@pytest.mark.parametrize("method", CHANGING, ids=lambda m: type(m).__name__)
def test_a_loss_that_changes_again_and_again_is_noticed(method):
    scale = [1.0]
    plain, theta, tasks = case(trace=False)
    plain = replace(plain, loss=lambda p, y: scale[0] * (p - y).square().mean())
    problem = replace(plain, trace=True, trace_after=1)
    for scale[0] in (1.0, 2.0, 3.0, 4.0, 5.0):
        for _ in range(3):
            found = meta_gradient(method, problem, theta, tasks)
        expected = meta_gradient(method, plain, theta, tasks)
        assert torch.equal(found.query_loss, expected.query_loss) and relative(found.gradient, expected.gradient) < 1e-14


def test_loops_that_differ_in_one_setting_share_no_trace():
    problem, theta, tasks, _, _ = quadratic()
    mask = torch.tensor([True, True, False, True])
    loops = [{}, {"weight_decay": 0.1}, {"mask": mask}, {"mask": ~mask}, {"clip_norm": 0.1}, {"clip_norm": 0.2}]
    rules = [
        Momentum(3, 0.8), Momentum(3, 0.9), Momentum(3, 0.8, True), Adam(3), Adam(3, 0.8), Adam(3, 0.9, 0.9), Adam(3, eps=0.1),
        Adam(3, weight_decay=0.3), Adam(3, weight_decay=0.3, decoupled=True),
    ]  # fmt: skip
    methods = [FOMAML(0.1, 3, inner=InnerLoop(**loop)) for loop in loops] + [FOMAML(0.1, solver=rule) for rule in rules]
    methods += [AMAML(0.3, Euler(3), proximal=0.5), AMAML(0.3, Euler(3))]
    plain, traced = replace(problem, trace=False), replace(problem, trace_after=0)
    for _ in range(2):
        for method in methods:
            found, expected = meta_gradient(method, traced, theta, tasks), meta_gradient(method, plain, theta, tasks)
            assert torch.equal(found.gradient, expected.gradient) and torch.equal(found.adapted, expected.adapted)


def test_a_query_loss_that_was_traced_beside_other_steps_before_a_change_is_not_used():
    scale = [1.0]
    plain, theta, few = case(trace=False)
    plain = replace(plain, loss=lambda p, y: scale[0] * (p - y).square().mean())
    problem, many = replace(plain, trace=True, trace_after=1), Tasks(*(torch.cat([t, t], 1) for t in few.support), *few.query)
    for scale[0], tasks in ((1.0, few), (2.0, many), (1.0, few), (2.0, many)):
        for _ in range(4):
            found = meta_gradient(AMAML(0.3, Euler(3)), problem, theta, tasks)
        assert torch.equal(found.query_loss, meta_gradient(AMAML(0.3, Euler(3)), plain, theta, tasks).query_loss)


HERE = {  # regularizers or losses that are flat in theta or phi where these are, or know no other side of zero
    "theta": lambda u, theta, phi, start: ((theta - start) * u).sum(),
    "phi": lambda u, theta, phi, start: phi[0] * u.sum(),
    "roots": lambda u, theta, phi, start: (phi + 0.01).sqrt().sum() * u.square().sum(),
}


@pytest.mark.parametrize(
    ("where", "inside"),
    [
        ("theta", "regularizer"),
        ("phi", "regularizer"),
        ("phi", "loss"),
        ("roots", "regularizer"),
    ],
)
def test_a_change_in_what_theta_or_phi_do_is_noticed_where_it_does_not_show_yet(where, inside):
    scale = [1.0]
    plain, theta, tasks = case(trace=False)
    start, phi = theta.clone(), torch.zeros(5, dtype=F64)
    if inside == "loss":
        plain = replace(plain, loss=lambda p, y, phi: ((p - y).square() + scale[0] * phi[0] * p).mean())
    else:
        plain = replace(plain, regularizer=lambda u, theta, phi: scale[0] * HERE[where](u, theta, phi, start))
    problem = replace(plain, trace=True, trace_after=0)
    for scale[0] in (1.0, 2.0):
        for _ in range(2):
            found = meta_gradient(AMAML(0.3, Euler(3)), problem, theta, tasks, phi)
        expected = meta_gradient(AMAML(0.3, Euler(3)), plain, theta, tasks, phi)
        name = "gradient" if where == "theta" else "phi_gradient"
        assert relative(getattr(found, name), getattr(expected, name)) < 1e-12


def test_a_change_is_noticed_where_theta_knows_no_other_side_of_zero():
    scale = [1.0]
    plain, theta, tasks = case(trace=False)
    theta = theta.abs().index_fill(0, torch.arange(8), 1e-3)
    plain = replace(plain, regularizer=lambda u, theta, phi: scale[0] * (theta.sqrt() * u.square()).sum())
    problem = replace(plain, trace=True, trace_after=0)
    for scale[0] in (1.0, 2.0):
        for _ in range(2):
            found = meta_gradient(AMAML(0.3, Euler(3)), problem, theta, tasks)
        assert relative(found.gradient, meta_gradient(AMAML(0.3, Euler(3)), plain, theta, tasks).gradient) < 1e-12


# iMAML on quadratics u'Au/2 - b'u, whose optimum and meta-gradients have closed forms.

WEIGHT, DECAY = 2.0, 0.5
MASK = torch.tensor([True, False, True, True])
MIX = torch.linspace(-1, 1, 16, dtype=F64).view(4, 4)


def prior(u, theta, phi):
    """With the Hessian 0.6, and the mixed derivative -0.6 MIX."""
    return 0.3 * (u - MIX @ theta).square().sum()


class Parts(nn.Module):
    """Its prediction is its four parameters, the first of which has a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Parameter(torch.zeros(1, dtype=F64)), nn.Parameter(torch.zeros(3, dtype=F64))

    def forward(self, x):
        return torch.cat([self.first, self.rest])


def solvers(inner):
    """Inner solvers that reach the optimum; clipping changes the way there alone."""
    clipped = InnerLoop(inner.weight_decay, inner.mask, clip_norm=0.8)
    yield GradientDescent(0.2, 50, inner=clipped)
    yield GradientDescent(0.2, inner=inner, solver=Momentum(40, 0.2))
    yield GradientDescent(0.3, inner=inner, solver=Adam(80, 0.2, 0.5, eps=1.0))
    yield HessianFree(cg_steps=4, steps=2, inner=inner)


@pytest.mark.parametrize("regularizer", [None, prior], ids=["", "regularizer"])
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize(
    "inner", [InnerLoop(), InnerLoop(DECAY), InnerLoop(mask=MASK), InnerLoop(DECAY, MASK)], ids=["plain", "decay", "mask", "both"]
)
def test_imaml_differentiates_the_optimum_that_its_inner_loop_reaches(inner, frozen, regularizer):
    problem, theta, tasks, a, c = quadratic()
    problem, theta = Problem(Parts(), problem.loss, regularizer=regularizer), theta * torch.linspace(0.5, 2, 4, dtype=F64)
    problem.model.first.requires_grad_(not frozen)
    m = torch.tensor([not frozen, True, True, True]) & (MASK if inner.mask is not None else True)
    # What moves obeys (S u - b - T theta) = 0, the rest is theta.
    s = a + (WEIGHT + inner.weight_decay + (0.6 if regularizer else 0.0)) * torch.eye(4, dtype=F64)
    t = WEIGHT * torch.eye(4, dtype=F64) + (0.6 * MIX if regularizer else 0.0)
    b = tasks.support_y[:, :, -1]
    adapted, gradient = theta.expand(2, -1).clone(), torch.zeros(2, 4, dtype=F64)
    for i in (0, 1):
        adapted[i, m] = torch.linalg.solve(s[i][m][:, m], b[i, m] + t[m] @ theta - s[i][m][:, ~m] @ theta[~m])
        solved = torch.linalg.solve(s[i][m][:, m], c[i, m])
        gradient[i, m] = t[m][:, m].T @ solved
        gradient[i, ~m] = c[i, ~m] - s[i][~m][:, m] @ solved + t[m][:, ~m].T @ solved  # g_f - H_fa A^-1 g_a
    if frozen:
        gradient[:, 0] = 0
    for solver in solvers(inner):
        estimate = meta_gradient(IMAML(solver, WEIGHT, cg_steps=4), problem, theta, tasks)
        assert relative(estimate.adapted, adapted) < 1e-10, solver
        assert relative(estimate.gradient, gradient.mean(0)) < 1e-10, solver


def test_minibatches_of_imaml_follow_their_schedule():
    """One pass of gradient descent on the proximal problem, the closed form being that of the steps themselves."""
    problem, theta, tasks = case()
    generator = torch.Generator().manual_seed(5)
    u = theta.expand(2, -1)
    for points in torch.randperm(6, generator=generator).view(3, 2):
        losses = problem.losses(v := u.clone().requires_grad_(), tasks.support_x[:, points], tasks.support_y[:, points]).sum()
        u = u - LR * (torch.autograd.grad(losses, v)[0] + 2.0 * (u - theta))
    inner = InnerLoop(minibatch=2, seed=5)
    method = IMAML(GradientDescent(LR, 3, inner=inner), 2.0, on_negative_curvature="truncate")
    assert relative(meta_gradient(method, problem, theta, tasks).adapted, u) < 1e-14


@pytest.mark.slow
@pytest.mark.filterwarnings("error:the inner step cannot be compiled")
@pytest.mark.parametrize(
    "cg_steps",
    [3, 17],
)
def test_the_implicit_gradient_can_be_compiled(cg_steps):
    problem, theta, tasks = case()
    method = IMAML(GradientDescent(0.1, 3), 5.0, cg_steps=cg_steps)
    found = meta_gradient(method, replace(problem, compile=True), theta, tasks)
    assert relative(found.gradient, meta_gradient(method, replace(problem, trace=False), theta, tasks).gradient) < 1e-12


@pytest.mark.parametrize(
    "method",
    [MAML(LR, K, inner=InnerLoop(mask=torch.zeros(17))), FOMAML(LR, K, inner=InnerLoop(mask=torch.zeros(17))),
     AMAML(0.5, Adam(4), inner=InnerLoop(mask=torch.zeros(17))), Reptile(LR, K, inner=InnerLoop(mask=torch.zeros(17))),
     IMAML(GradientDescent(inner=InnerLoop(mask=torch.zeros(17)))), IMAML(HessianFree(inner=InnerLoop(mask=torch.zeros(17))))],
    ids=["MAML", "FOMAML", "AMAML", "Reptile", "IMAML", "Newton"],
)  # fmt: skip
def test_without_anything_to_adapt_the_pullback_is_the_identity(method):
    problem, theta, tasks = case()
    direct = problem.gradient(theta.expand(2, -1), *tasks.query).mean(0)
    estimate = meta_gradient(method, problem, theta, tasks)
    assert torch.equal(estimate.adapted, theta.expand(2, -1))
    assert torch.equal(estimate.gradient, torch.zeros(17, dtype=F64) if isinstance(method, Reptile) else direct)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: MAML(LR, 3, solver=Adam(4)), ValueError, "steps=3 are not the solver's 4"),
        (lambda: GradientDescent(LR, 3, solver=Adam(4)), ValueError, "steps=3 are not the solver's 4"),
        (lambda: MAML(LR, solver=Adam), TypeError, "MAML needs FixedStep"),
        (lambda: Reptile(LR, inner={"minibatch": 3}), TypeError, "Reptile needs InnerLoop"),
        (lambda: GradientDescent(LR, solver=SOLVERS["AdamW"]), ValueError, "iMAML has to know of weight decay"),
        (lambda: HessianFree(inner=InnerLoop(minibatch=2)), ValueError, "HessianFree takes no minibatches"),
        (lambda: HessianFree(inner=InnerLoop(clip_norm=1.0)), ValueError, "no clipping"),
        (lambda: InnerLoop(mask=torch.tensor([[True]])), ValueError, "mask must be"),
        (lambda: InnerLoop(mask=torch.tensor([0.5])), ValueError, "mask must be"),
        (lambda: InnerLoop(weight_decay=-0.1), ValueError, "weight_decay >= 0"),
        (lambda: InnerLoop(minibatch=0), ValueError, "minibatch must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("inner", [InnerLoop(mask=torch.ones(5)), InnerLoop(minibatch=7)], ids=["mask", "minibatch"])
@pytest.mark.parametrize("kind", [MAML, FOMAML, Reptile, lambda lr, steps, inner: IMAML(GradientDescent(lr, steps, inner=inner))])
def test_options_that_do_not_fit_the_data_are_refused(kind, inner):
    with pytest.raises(ValueError, match="a mask of 5 entries|a minibatch of 7 is larger"):
        meta_gradient(kind(LR, 3, inner=inner), *case())
