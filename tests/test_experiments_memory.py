"""The byte counters, against graphs whose size is known by hand, and the growth of each method's memory."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from amaml_core import AMAML, FOMAML, MAML, RK4, Euler, Heun, Problem, Reptile, Tasks, meta_gradient
from experiments.common.memory import Footprint, GraphBytes, LiveBytes, bytes_per_step, footprint, growth

F64 = torch.float64
B, P = 3, 2 * 8 + 8 + 8 + 1


def setting(points=6):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = Tasks(*(torch.randn(B, n, d, generator=generator, dtype=F64) for n in (points, 4) for d in (2, 1)))
    problem = Problem(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double(), mse_loss)
    return problem, problem.initial_parameters(), data


def test_live_bytes_counts_storages_once_and_forgets_the_freed():
    outside = torch.zeros(500, dtype=F64)
    with LiveBytes() as live:
        a = torch.zeros(100, dtype=F64)
        assert live.now == 800
        view = a.view(10, 10)[1:]
        foreign = outside[::2]
        assert live.now == 800 and live.owns(view) and not live.owns(foreign)
        b = a + 1
        assert live.now == 1600
        del a, b
        assert live.now == 800  # the view keeps its storage
        del view
        assert (live.now, live.peak) == (0, 1600)


def test_graph_bytes_counts_what_exp_saves():
    x = torch.zeros(100, dtype=F64, requires_grad=True)
    with LiveBytes() as live, GraphBytes(live) as graph:
        y = x.exp()  # saves its result
        assert graph.now == 800
        z = y.exp()
        assert graph.now == 1600
        w = z * x  # saves z, which is counted, and x, which comes from outside
        assert graph.now == 1600
        (gradient,) = torch.autograd.grad(w.sum(), x)
        assert graph.now == 0  # the backward pass has freed its graph
        del y, z, w
        assert live.now == 800
    assert torch.allclose(gradient, torch.full_like(gradient, torch.e), rtol=1e-12)  # d(x exp(exp x))/dx at 0


def test_watching_does_not_change_the_meta_gradient():
    problem, theta, tasks = setting()
    for method in (MAML(0.05, 4), AMAML(0.2, Heun(4))):
        expected = meta_gradient(method, problem, theta, tasks).gradient
        with LiveBytes() as live, GraphBytes(live):
            watched = meta_gradient(method, problem, theta, tasks).gradient
        assert torch.equal(watched, expected)


def test_amaml_grows_by_its_trajectory_and_maml_by_its_graph():
    table = growth(
        {
            "MAML": lambda k: MAML(0.05, k),
            "A-MAML": lambda k: AMAML(0.05 * k, Euler(k)),
            "RK4": lambda k: AMAML(0.05 * k, RK4(k)),
            "FOMAML": lambda k: FOMAML(0.05, k),
            "Reptile": lambda k: Reptile(0.05, k),
        },
        *setting(),
        steps=(4, 8, 12, 16),
    )
    assert list(table.columns) == ["method", "steps", "graph", "held", "peak"] and len(table) == 20
    state = B * P * 8  # bytes of u (B, P) in float64
    rows = dict(list(table.groupby("method")))
    for name in ("A-MAML", "RK4"):
        assert (rows[name]["graph"] == 0).all()
        for column in ("held", "peak"):  # a state for each step, and its size, one number
            assert rows[name][column].diff().dropna().between(4 * state, 4 * (state + 8)).all()
    for name in ("FOMAML", "Reptile"):
        assert rows[name]["peak"].nunique() == 1 and (rows[name]["graph"] == 0).all()
    maml = rows["MAML"]
    increments = maml["graph"].diff().dropna()
    assert increments.nunique() == 1 and increments.iloc[0] > 2 * 4 * state  # linear, and steeper than the trajectory
    assert (maml["held"] >= maml["graph"]).all() and (maml["peak"] >= maml["held"]).all()
    slopes = bytes_per_step(table)
    assert state <= round(slopes["A-MAML"]) <= state + 8
    assert slopes["FOMAML"] == pytest.approx(0, abs=1e-6)


def test_the_graph_grows_with_the_support_set_and_the_trajectory_does_not():
    build = {"MAML": lambda k: MAML(0.05, k), "A-MAML": lambda k: AMAML(0.05 * k, Euler(k))}
    few, many = (bytes_per_step(growth(build, *setting(points), steps=(4, 8))) for points in (6, 60))
    assert many["MAML"] > 2 * few["MAML"]
    assert many["A-MAML"] == pytest.approx(few["A-MAML"], rel=1e-9)


def test_what_cannot_be_measured_is_refused():
    problem, theta, tasks = setting()
    with pytest.raises(ValueError, match="compile=False"):
        footprint(MAML(), Problem(problem.model, mse_loss, compile=True), theta, tasks)
    with pytest.raises(ValueError, match="P=33"):
        footprint(MAML(), problem, theta[:-1], tasks)
    with pytest.raises(ValueError, match="two numbers"):
        bytes_per_step(growth({"MAML": lambda k: MAML(0.05, k)}, problem, theta, tasks, steps=[3]))
    assert isinstance(footprint(MAML(), problem, theta, tasks), Footprint)
