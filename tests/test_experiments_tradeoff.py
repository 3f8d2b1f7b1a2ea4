"""Swapped pullbacks: each against its formula, all from the same adapted parameters; tables, training runs and cells."""

import numpy as np
import pandas as pd
import pytest
import torch
from problems import regression, relative
from torch import nn

from amaml_core import AMAML, FOMAML, IMAML, MAML, Backsolve, Dopri5, Euler, Problem, meta_gradient
from amaml_core.experiments import tradeoff
from amaml_core.experiments.cells import Cell, run_cell
from amaml_core.experiments.tradeoff import EXACT, GROUPS, SIZES, Candidate, PlainDescent, Swapped, Thinned, Truncated
from amaml_core.records import read_record

SMOKE = SIZES["smoke"]
LR, K = 0.1, 6


def states(problem, theta, tasks, steps=K):
    """u_0 ... u_K of gradient descent, by hand."""
    found = [theta.expand(len(tasks), -1)]
    for _ in range(steps):
        found.append(found[-1] - LR * problem.gradient(found[-1], *tasks.support))
    return found


def pull(method, problem, theta, tasks):
    adapted, pullback = method(problem, theta, tasks)
    return adapted, pullback(problem.gradient(adapted, *tasks.query)).detach()


# ------------------------------------------------------------------------------------------------------------ pullbacks


def test_thinned_euler_takes_the_hessian_at_the_right_end_of_every_mth_step():
    problem, theta, tasks = regression()
    u = states(problem, theta, tasks)
    for every in (1, 3):
        adapted, found = pull(Thinned(LR, K, every, "Euler"), problem, theta, tasks)
        lam = problem.gradient(u[-1], *tasks.query)
        for k in range(K, 0, -every):
            lam = lam - every * LR * problem.hvp(u[k], *tasks.support, lam)
        assert relative(adapted, u[-1]) < 1e-12 and relative(found, lam) < 1e-12


def test_thinned_heun_averages_both_ends():
    problem, theta, tasks = regression()
    u, h = states(problem, theta, tasks), 2 * LR
    lam = problem.gradient(u[-1], *tasks.query)
    for k in range(K, 0, -2):
        right = problem.hvp(u[k], *tasks.support, lam)
        lam = lam - h / 2 * (right + problem.hvp(u[k - 2], *tasks.support, lam - h * right))
    assert relative(pull(Thinned(LR, K, 2, "Heun"), problem, theta, tasks)[1], lam) < 1e-12


def test_thinned_rk4_on_a_quadratic_loss_is_the_taylor_polynomial_of_the_exponential():
    # A linear model has a constant Hessian, so the adjoint is exp(-TH) of the query gradient, to fifth order in each step.
    problem, theta, tasks = regression(lambda: nn.Linear(2, 1))
    adapted, found = pull(Thinned(0.01, 50, 25, "RK4"), problem, theta, tasks)
    hessian = torch.stack([problem.hvp(adapted, *tasks.support, e.expand_as(adapted)) for e in torch.eye(3).double()], 2)
    flow = torch.linalg.matrix_exp(-0.5 * hessian)  # (B, P, P)
    expected = torch.einsum("bij,bj->bi", flow, problem.gradient(adapted, *tasks.query))
    assert relative(found, expected) < 1e-2
    halved = pull(Thinned(0.01, 50, 10, "RK4"), problem, theta, tasks)[1]
    assert relative(halved, expected) < relative(found, expected) / 2.5**4 * 2


def test_truncated_goes_back_over_the_last_steps_alone():
    problem, theta, tasks = regression()
    u = states(problem, theta, tasks)
    lam = problem.gradient(u[-1], *tasks.query)
    for last in range(1, K + 1):
        lam = lam - LR * problem.hvp(u[K - last], *tasks.support, lam)
        adapted, found = pull(Truncated(LR, K, last), problem, theta, tasks)
        assert relative(adapted, u[-1]) < 1e-12 and relative(found, lam) < 1e-12
    assert relative(found, pull(MAML(LR, K), problem, theta, tasks)[1]) < 1e-12


def test_swapped_has_the_descent_s_parameters_and_the_other_s_pullback():
    problem, theta, tasks = regression()
    other = AMAML(LR * K, Dopri5(1e-6, 1e-8))
    adapted, pullback = Swapped(LR, K, other)(problem, theta, tasks)
    assert relative(adapted, states(problem, theta, tasks)[-1]) < 1e-12
    v = torch.sin(torch.arange(adapted.numel(), dtype=adapted.dtype)).view_as(adapted)
    assert relative(pullback(v), other(problem, theta, tasks)[1](v)) < 1e-12
    assert relative(pullback(v), v) > 1e-3


def test_implicit_pullback_solves_its_system_at_the_end_of_the_plain_descent():
    problem, theta, tasks = regression(lambda: nn.Linear(2, 1))
    adapted, found = pull(IMAML(PlainDescent(LR, K), 0.7, cg_steps=3), problem, theta, tasks)
    assert relative(adapted, states(problem, theta, tasks)[-1]) < 1e-12
    back = found + problem.hvp(adapted, *tasks.support, found) / 0.7
    assert relative(back, problem.gradient(adapted, *tasks.query)) < 1e-8


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="every to divide steps"):
        Thinned(LR, 6, 4)
    with pytest.raises(ValueError, match="adjoint must be one of"):
        Thinned(LR, 6, 2, "Dopri5")
    with pytest.raises(ValueError, match="1 <= last"):
        Truncated(LR, 6, 7)


# ----------------------------------------------------------------------------------------------------------- candidates


@pytest.mark.parametrize("case", sorted({*SIZES["full"].cases, *SIZES["smoke"].cases, *SIZES["book"].cases}))
def test_every_case_has_every_group_and_no_name_twice(case):
    for few in (False, True):
        names = [c.name for c in tradeoff.candidates(*case, few)]
        assert len(set(names)) == len(names)
        assert {c.group for c in tradeoff.candidates(*case, few)} == set(GROUPS)
        assert names[0] == tradeoff.UNROLLED
    assert len(names) == len(GROUPS)


def test_the_adjoint_is_exact_and_the_others_are_as_far_off_as_their_formulas_say():
    pool, _ = tradeoff.pools(SMOKE, 0)
    theta, tasks = tradeoff.initial(0), pool[:3]
    found = tradeoff.compare_gradients(0.05, 10, theta, tasks, few=True)
    assert found["MAML, unrolled"] == {"error": [0.0], "cosine": [1.0]}
    assert found["A-MAML, discrete: Store"]["error"][0] < 1e-12
    double = tasks.to(dtype=torch.float64)
    problem = Problem(tradeoff.network(2).double(), tradeoff.loss)
    exact, first = (meta_gradient(m, problem, theta.double(), double).gradient for m in (MAML(0.05, 10), FOMAML(0.05, 10)))
    assert found["FOMAML"]["error"][0] == pytest.approx(relative(first, exact), rel=1e-3)
    assert found["FOMAML"]["error"][0] > 1e-3


def test_a_refused_gradient_is_recorded_with_its_reason(monkeypatch):
    made = [
        Candidate("MAML, unrolled", "", MAML(LR, K)),
        Candidate("A-MAML, Backsolve", "strict", AMAML(LR * K, Euler(K), Backsolve(drift=1e-12))),
    ]
    monkeypatch.setattr(tradeoff, "candidates", lambda *settings: made)
    found = tradeoff.compare_gradients(LR, K, tradeoff.initial(0), tradeoff.pools(SMOKE, 0)[0][:2])
    assert "misses theta" in found["A-MAML, Backsolve: strict"]["refused"]
    table = tradeoff.tidy_errors({"snapshots": {"0": found}})
    assert table["refused"].tolist() == [False, True] and table["error"].isna().tolist() == [False, True]


def test_a_candidate_with_other_adapted_parameters_is_an_error(monkeypatch):
    made = [Candidate("MAML, unrolled", "", MAML(LR, K)), Candidate("FOMAML", "", FOMAML(LR, K + 1))]
    monkeypatch.setattr(tradeoff, "candidates", lambda *settings: made)
    with pytest.raises(AssertionError, match="FOMAML adapts to other parameters"):
        tradeoff.compare_gradients(LR, K, tradeoff.initial(0), tradeoff.pools(SMOKE, 0)[0][:2])


# ------------------------------------------------------------------------------------------------------- tables and runs


def test_pareto_keeps_what_nothing_beats():
    table = pd.DataFrame({"seconds": [1, 2, 3, 2, 5], "error": [3.0, 1.0, 1.0, 2.0, np.nan]})
    assert tradeoff.pareto(table, "seconds").tolist() == [True, True, False, False, False]


def test_differences_are_taken_function_by_function():
    def of(method, seed, values):
        return pd.DataFrame({"method": method, "seed": seed, "task": range(3), "held_out": values, "seconds": 2.0})

    table = pd.concat(
        [
            of(EXACT, 0, [1.0, 2, 6]),
            of(EXACT, 1, [0.0, 0, 0]),
            of("FOMAML", 0, [2.0, 3, 7]),
            of("FOMAML", 1, [1.0, 1, 1]),
        ]
    )
    found = tradeoff.against_exact(table)
    assert found.loc["FOMAML", "difference"] == 1 and found.loc["FOMAML", "difference ±"] == 0
    assert found.loc[EXACT, "difference"] == 0 and found.loc["FOMAML", "held_out"] == pytest.approx(2.5)
    assert found.loc["FOMAML", "seeds"] == 2 and found.loc["FOMAML", "diverged"] == 0


def test_a_run_that_diverged_is_counted_and_leaves_the_others_alone():
    figures = {
        "trained": {"held_out": [1.0, 2.0], "support": [1.0, 1.0]},
        "untrained": {"held_out": [3.0, 3.0]},
        "seconds": 1.0,
    }
    table = pd.concat(
        [
            tradeoff.tidy_training(figures, method=EXACT, seed=0),
            tradeoff.tidy_training({"diverged": "meta step 7"}, method="FOMAML", seed=0),
        ]
    )
    found = tradeoff.against_exact(table)
    assert found["diverged"].tolist() == [0, 1] and found["seeds"].tolist() == [1, 0]
    assert found.loc[EXACT, "held_out"] == 1.5 and np.isnan(found.loc["FOMAML", "held_out"])


def test_a_meta_gradient_that_overflows_ends_the_run_with_a_reason(monkeypatch):
    monkeypatch.setattr(tradeoff, "training_methods", lambda lr, steps: {"wild": FOMAML(1e30, 10)})
    assert "meta step 1" in tradeoff.trained_error("wild", SMOKE, 0)["diverged"]


def test_the_power_method_finds_the_largest_eigenvalue():
    problem, theta, tasks = regression()
    u = theta.expand(len(tasks), -1)
    columns = [problem.hvp(u, *tasks.support, e.expand_as(u)) for e in torch.eye(theta.numel(), dtype=theta.dtype)]
    eigenvalues = torch.linalg.eigvalsh(torch.stack(columns, 2))  # (B, P)
    largest = eigenvalues.gather(1, eigenvalues.abs().argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(tradeoff.largest_curvature(problem, u, tasks, 300), largest, rtol=1e-3, atol=0)


def test_training_runs_start_alike_and_the_meta_gradient_alone_differs():
    runs = {name: tradeoff.trained_error(name, SMOKE, 0) for name in (EXACT, "FOMAML")}
    assert runs[EXACT]["untrained"] == runs["FOMAML"]["untrained"]
    assert len(runs[EXACT]["trained"]["held_out"]) == SMOKE.test_tasks
    assert runs[EXACT]["trained"] != runs["FOMAML"]["trained"] != runs["FOMAML"]["untrained"]
    with pytest.raises(ValueError, match="name must be one of"):
        tradeoff.trained_error("ANIL", SMOKE, 0)


def test_a_longer_run_begins_like_a_shorter_one():
    pool, _ = tradeoff.pools(SMOKE, 0)
    found = tradeoff.train(FOMAML(0.05, 3), SMOKE, pool, 0, (0, 2))
    torch.testing.assert_close(found[0], tradeoff.initial(0))
    assert (found[2] - found[0]).abs().max() > 1e-4
    torch.testing.assert_close(tradeoff.train(FOMAML(0.05, 3), SMOKE, pool, 0, (2,))[2], found[2])


@pytest.mark.slow
def test_a_small_comparison_fills_all_tables_and_cells_leave_records(tmp_path):
    found = tradeoff.compare("smoke", 0)
    assert set(found["errors"]["group"]) == set(GROUPS)
    assert set(found["errors"]["updates"]) == set(SMOKE.snapshots)
    assert set(found["curvature"]["place"]) == {"start", "end"} and (found["curvature"]["curvature"] > 0).all()
    costs = found["costs"].set_index("name")
    assert (costs["low"] <= costs["seconds"]).all() and (costs["seconds"] <= costs["high"]).all()
    assert costs.loc["MAML, unrolled", "peak"] > costs.loc["A-MAML, discrete: Store", "peak"] > costs.loc["FOMAML", "peak"]
    assert set(found["training"]["method"]) == set(tradeoff.training_methods(*SMOKE.training))
    assert not tradeoff.against_exact(found["training"]).isna().any().any()
    assert (found["training"]["task"] >= 0).all()
    cell = next(c for c in tradeoff.cells("smoke") if c.experiment == "tradeoff")
    record = read_record(run_cell(cell, tradeoff.run, tmp_path))
    assert record.figures["data"]["family"] == "cosmixture" and set(record.figures["snapshots"]) == {"0", "2"}


def test_unknown_tables_are_refused_and_missing_records_give_empty_ones(tmp_path):
    assert tradeoff.read("costs", tmp_path).empty
    with pytest.raises(ValueError, match="table must be one of"):
        tradeoff.read("speed", tmp_path)


def test_full_cells_have_names_of_their_own_and_three_seeds():
    cells = tradeoff.cells("full")
    assert len({c.name for c in cells}) == len(cells)
    for kind in ("tradeoff", "tradeoff-training"):
        assert {c.seed for c in cells if c.experiment == kind} == {0, 1, 2}
    assert Cell("tradeoff-training", {"profile": "full", "method": EXACT}, 2) in cells


@pytest.mark.slow
def test_recorded_gradients_of_the_untrained_network_come_out_again():
    lr, steps = SIZES["full"].cases[0]
    path = Cell("tradeoff", {"profile": "full", "inner_lr": lr, "steps": steps}, 0).path(tradeoff.RECORDS)
    if not path.exists():
        pytest.skip("no record")
    size = SIZES["full"]
    pool, _ = tradeoff.pools(size, 0)
    tasks = tradeoff.PoolSampler(pool, tradeoff.BATCH * size.batches)(torch.Generator().manual_seed(2000))
    found = tradeoff.compare_gradients(lr, steps, tradeoff.initial(0), tasks, few=True)
    recorded = read_record(path).figures["snapshots"]["0"]
    for name, entry in found.items():
        if "refused" not in entry and name != "A-MAML, discrete: Store":  # whose error is rounding
            assert entry["error"] == pytest.approx(recorded[name]["error"], rel=1e-2)
            assert entry["cosine"] == pytest.approx(recorded[name]["cosine"], abs=1e-4)
