"""Swapped pullbacks: each against its formula, all from the same adapted parameters; tables, training runs, cells, conclusions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from problems import regression, relative
from torch import nn

from amaml_core import AMAML, FOMAML, IMAML, MAML, Backsolve, DivergenceError, Dopri5, Euler, meta_gradient
from experiments import tradeoff
from experiments.common import records
from experiments.common.cells import Cell, attempt, missing
from experiments.common.claims import table as show_claims
from experiments.tradeoff import claims, facts, figures, run, settings, tables
from experiments.tradeoff.candidates import (
    EXACT,
    FIRST_ORDER,
    GROUPS,
    UNROLLED,
    Candidate,
    PlainDescent,
    Swapped,
    Thinned,
    Truncated,
    candidates,
)
from experiments.tradeoff.settings import SIZES
from experiments.tradeoff.tables import BFLOAT16, HEUN
from experiments.tradeoff.tables import IMAML as IMPLICIT

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
        names = [c.name for c in candidates(*case, few)]
        assert len(set(names)) == len(names)
        assert {c.group for c in candidates(*case, few)} == set(GROUPS)
        assert names[0] == UNROLLED
    assert len(names) == len(GROUPS)


def test_the_adjoint_is_exact_and_the_others_are_as_far_off_as_their_formulas_say():
    theta, tasks = run.initial(0), run.pools(SMOKE, 0)[0][:3]
    found = run.compare_gradients(0.05, 10, theta, tasks, few=True).set_index("candidate")
    assert found.loc[UNROLLED, ["error", "cosine"]].tolist() == [0.0, pytest.approx(1.0)]
    assert found.loc["A-MAML, discrete: Store", "error"] < 1e-12
    double, problem = tasks.to(dtype=torch.float64), run.make_problem(False, torch.float64)
    exact, first = (meta_gradient(m, problem, theta.double(), double).gradient for m in (MAML(0.05, 10), FOMAML(0.05, 10)))
    assert found.loc["FOMAML", "error"] == pytest.approx(relative(first, exact), rel=1e-9)
    assert found.loc["FOMAML", "error"] > 1e-3


def test_a_refused_gradient_is_a_row_without_numbers(monkeypatch):
    made = [
        Candidate("MAML, unrolled", "", MAML(LR, K)),
        Candidate("A-MAML, Backsolve", "strict", AMAML(LR * K, Euler(K), Backsolve(drift=1e-12))),
    ]
    monkeypatch.setattr(run, "candidates", lambda *settings: made)
    found = run.compare_gradients(LR, K, run.initial(0), run.pools(SMOKE, 0)[0][:7])
    assert found["batch"].tolist() == [0, 1, 0, 1] and found["refused"].tolist() == [False, False, True, True]
    assert found["error"].isna().tolist() == found["cosine"].isna().tolist() == found["refused"].tolist()
    medians = tables.by_batch_medians(found.assign(updates=0, inner_lr=LR, steps=K, seed=0))
    assert medians["refused"].tolist() == [False, True] and medians["setting"].tolist() == ["", "strict"]


def test_a_candidate_with_other_adapted_parameters_is_an_error(monkeypatch):
    made = [Candidate("MAML, unrolled", "", MAML(LR, K)), Candidate("FOMAML", "", FOMAML(LR, K + 1))]
    monkeypatch.setattr(run, "candidates", lambda *settings: made)
    with pytest.raises(AssertionError, match="FOMAML adapts to other parameters"):
        run.compare_gradients(LR, K, run.initial(0), run.pools(SMOKE, 0)[0][:2])


# -------------------------------------------------------------------------------------------------------- tables and runs


def test_pareto_keeps_what_nothing_beats():
    table = pd.DataFrame({"seconds": [1, 2, 3, 2, 5], "error": [3.0, 1.0, 1.0, 2.0, np.nan]})
    assert tables.pareto(table, "seconds").tolist() == [True, True, False, False, False]


def trained_rows(method, seed, values):
    return pd.DataFrame({"method": method, "seed": seed, "task": range(len(values)), "held_out": values, "seconds": 2.0})


def test_differences_are_taken_function_by_function():
    parts = [
        trained_rows(EXACT, 0, [1.0, 2, 6]), trained_rows(EXACT, 1, [0.0, 0, 0]),
        trained_rows("FOMAML", 0, [2.0, 3, 7.1]), trained_rows("FOMAML", 1, [1.0, 1, 1]),
    ]  # fmt: skip
    found = tables.against_exact(pd.concat(parts))
    assert found.loc["FOMAML", "difference"] == pytest.approx(1 + 0.1 / 6) and found.loc["FOMAML", "difference ±"] < 0.04
    assert found.loc["FOMAML", "held_out"] == pytest.approx(15.1 / 6) and found.loc["FOMAML", "seeds"] == 2
    assert np.isnan(found.loc[EXACT, "difference"])


def test_intervals_are_over_seeds_where_these_differ_and_over_functions_where_not():
    noise = np.sin(np.arange(20))
    apart, alike = (
        pd.concat(
            [trained_rows(EXACT, s, 1 + noise) for s in range(3)]
            + [trained_rows("FOMAML", s, 2 + noise + 0.01 * np.cos(np.arange(20) + s) + shift * s) for s in range(3)]
        )
        for shift in (1.0, 0.0)
    )
    far, near = (tables.against_exact(table).loc["FOMAML"] for table in (apart, alike))
    assert far["difference over"] == "seeds" and far["difference ±"] == pytest.approx(4.303 / 3**0.5, rel=1e-2)
    assert near["difference over"] == "functions" and near["difference ±"] < 0.01
    one = tables.against_exact(apart[apart["seed"].eq(0)])
    assert one.loc["FOMAML", "difference over"] == "functions"


def test_a_run_that_diverged_counts_no_seed_and_leaves_the_others_alone():
    found = tables.against_exact(trained_rows(EXACT, 0, [1.0, 2.0]).assign(untrained=3.0))
    assert found.loc[[EXACT, "FOMAML"], "seeds"].tolist() == [1, 0]
    assert found.loc[EXACT, "held_out"] == 1.5 and np.isnan(found.loc["FOMAML", "held_out"])


def test_a_function_on_which_the_descent_diverges_is_lost_and_counted():
    table = pd.concat([trained_rows(EXACT, 0, [1.0, 2.0, 3.0]), trained_rows("FOMAML", 0, [2.0, np.nan, 4.0])])
    assert tables.against_exact(table).loc["FOMAML", ["lost", "difference"]].tolist() == [1, 1.0]


def test_a_meta_gradient_that_overflows_ends_the_run_with_a_reason(monkeypatch):
    monkeypatch.setattr(run, "training_methods", lambda lr, steps: {"wild": FOMAML(1e30, 10)})
    with pytest.raises(DivergenceError, match="meta step 1"):
        run.trained("wild", SMOKE, 0)
    record = attempt(Cell("tradeoff", "training", {"size": "smoke", "method": "wild"}, 0), Path())
    assert "meta step 1" in record.diverged and not record.rows


def test_the_power_method_finds_the_largest_eigenvalue():
    problem, theta, tasks = regression()
    u = theta.expand(len(tasks), -1)
    columns = [problem.hvp(u, *tasks.support, e.expand_as(u)) for e in torch.eye(theta.numel(), dtype=theta.dtype)]
    eigenvalues = torch.linalg.eigvalsh(torch.stack(columns, 2))  # (B, P)
    largest = eigenvalues.gather(1, eigenvalues.abs().argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(run.largest_curvature(problem, u, tasks, 300), largest, rtol=1e-3, atol=0)


def test_training_runs_start_alike_and_the_meta_gradient_alone_differs():
    exact, first = (run.trained(name, SMOKE, 0) for name in (EXACT, "FOMAML"))
    assert exact["untrained_held_out"].equals(first["untrained_held_out"]) and len(exact) == SMOKE.test_tasks
    assert not exact["held_out"].equals(first["held_out"]) and not first["held_out"].equals(first["untrained_held_out"])
    with pytest.raises(ValueError, match="name must be one of"):
        run.trained("ANIL", SMOKE, 0)


def test_a_longer_run_begins_like_a_shorter_one():
    found = run.snapshots(SMOKE, 0)
    torch.testing.assert_close(found[0], run.initial(0))
    assert list(found) == [0, 2] and (found[2] - found[0]).abs().max() > 1e-4
    lr, steps = SMOKE.training
    torch.testing.assert_close(run.train(AMAML(lr * steps, Euler(steps)), SMOKE, 0, 2), found[2])


@pytest.mark.slow
def test_a_small_comparison_fills_all_tables():
    found = tradeoff.live("smoke", 0)
    assert set(found) == set(settings.KINDS)
    assert set(found["errors"]["candidate"].str.split(": ").str[0]) == set(GROUPS)
    assert set(found["errors"]["updates"]) == set(SMOKE.snapshots)
    assert set(found["curvature"]["place"]) == {"start", "end"} and (found["curvature"]["curvature"] > 0).all()
    costs = found["costs"].set_index("candidate")
    assert (costs["low"] <= costs["seconds"]).all() and (costs["seconds"] <= costs["high"]).all()
    assert costs.loc["MAML, unrolled", "peak"] > costs.loc["A-MAML, discrete: Store", "peak"] > costs.loc["FOMAML", "peak"]
    results = tables.against_exact(found["training"])
    assert tuple(results.index) == settings.TRAINED and results["held_out"].notna().all() and results["seeds"].eq(1).all()
    assert tables.live_errors(found["errors"]).shape == (len(GROUPS), 2)
    assert tables.cost_map(found["errors"], found["costs"])["best by MiB"].any()


# ---------------------------------------------------------------------------------------------------- cells and records


@pytest.fixture(scope="module")
def recorded():
    return tables.recorded()


def test_every_cell_of_the_full_size_has_a_record_and_every_record_its_cell():
    cells = settings.cells("full")
    assert len({c.name for c in cells}) == len(cells) and not missing(cells)
    found = [(r.kind, json.dumps(r.settings, sort_keys=True), r.seed) for r in records.read("tradeoff")]
    assert sorted(found) == sorted(c.key for c in cells)
    assert all(r.diverged is None for r in records.read("tradeoff"))


def test_full_cells_have_three_seeds_at_the_main_case_and_one_elsewhere(recorded):
    seeds = recorded["errors"].groupby(["inner_lr", "steps"])["seed"].nunique()
    assert seeds.pop((0.05, 50)) == 3 and seeds.eq(1).all() and len(seeds) == 4
    assert recorded["training"].groupby("method")["seed"].nunique().eq(3).all()
    assert sorted(recorded["errors"]["updates"].unique()) == [0, 100, 600]  # three initialisations
    assert tables.source(recorded["errors"]).startswith("3 seeds at α = 0.05 and K = 50, 1 elsewhere")
    for seed in (0, 1, 7):
        assert {c.seed for c in settings.cells("full", seed)} == {seed}
    assert len(settings.cells("full", 7)) == len(settings.cells("full", 0)) > len(settings.cells("full", 1))
    assert {c.key for c in settings.cells("full", 1)} < {c.key for c in settings.cells("full")}


def test_missing_records_are_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "rows", lambda *names, **wanted: records.rows(*names, tmp_path, **wanted))
    with pytest.raises(FileNotFoundError, match="no records of errors"):
        tables.recorded()


@pytest.mark.slow
def test_recorded_gradients_of_the_untrained_network_come_out_again(recorded):
    size = SIZES["full"]
    lr, steps = size.cases[0]
    found = run.compare_gradients(lr, steps, run.initial(0), run.meta_batches(size, 0, size.batches), few=True)
    old = tables.at(recorded["errors"], (lr, steps)).query("seed == 0 and updates == 0").set_index(["candidate", "batch"])
    new = found.set_index(["candidate", "batch"])
    old = old.loc[new.index]
    assert (old["refused"] == new["refused"]).all()
    np.testing.assert_allclose(new["error"], old["error"], rtol=1e-2, atol=1e-12)  # below are errors of rounding
    np.testing.assert_allclose(new["cosine"], old["cosine"], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- conclusions


def test_every_conclusion_holds(recorded):
    found = claims.conclusions(recorded)
    assert len(found) == 16 and [c.claim for c in found if c.verdict != "holds"] == []
    assert show_claims(found)["ours"].str.len().gt(0).all()


def test_the_paper_s_claims_are_decided(recorded):
    assert [c.verdict for c in claims.claims(recorded)] == ["holds", "holds", "holds in part"]
    assert claims.claims() == claims.claims(recorded)


def worse(recorded, kind, column, factor, **where):
    """The records with one column multiplied where others have these values."""
    table = recorded[kind].copy()
    rows = np.logical_and.reduce([table[name].eq(value) for name, value in where.items()])
    table[column] = table[column].astype(float)
    table.loc[rows, column] *= factor
    return recorded | {kind: table}


@pytest.mark.parametrize(
    ("claim", "kind", "column", "factor", "where"),
    [
        ("A coarser grid", "errors", "error", 1e-9, {"candidate": HEUN[5], "updates": 100, "seed": 0}),
        ("At the end of training", "errors", "error", 1e-30, {"candidate": "A-MAML, coarser solve: RK4, K/5 steps, discrete"}),
        ("What decides is m", "errors", "error", 1e-30, {"candidate": HEUN[5], "updates": 600, "seed": 2}),
        ("Meta-training raises", "curvature", "curvature", 0.1, {"updates": 600, "seed": 1}),
        ("FOMAML's cosine", "errors", "cosine", 0.5, {"candidate": FIRST_ORDER, "updates": 100}),
        ("States in bfloat16", "errors", "error", 0.1, {"candidate": BFLOAT16, "updates": 600}),
        ("The two approach", "errors", "error", 2, {"candidate": HEUN[1], "updates": 600, "inner_lr": 0.025}),
        ("The best setting of iMAML", "errors", "cosine", 1.1, {"candidate": IMPLICIT[1, 5], "updates": 600}),
        ("An accurate approximation", "training", "held_out", 1.05, {"method": "adjoint ODE, Heun, m=1"}),
        ("A broken one", "training", "held_out", 0.5, {"method": "adjoint ODE, Heun, m=5"}),
        ("Exactness does not decide", "training", "held_out", 1.1, {"method": "truncated, K/2"}),
        ("FOMAML ends higher", "training", "held_out", 0.5, {"method": "FOMAML"}),
        ("Whether Reptile", "training", "held_out", 2, {"method": "Reptile"}),
        ("The discrete adjoint", "errors", "error", np.nan, {"candidate": "A-MAML, discrete: Store", "updates": 100}),
    ],
)
def test_a_conclusion_falls_with_other_records(recorded, claim, kind, column, factor, where):
    (found,) = (c for c in claims.conclusions(worse(recorded, kind, column, factor, **where)) if c.claim.startswith(claim))
    assert found.verdict != "holds"


def test_the_text_quotes_what_the_records_say(recorded):
    found = facts.facts(recorded)
    here = tables.by_batch_medians(tables.at(recorded["errors"], (0.05, 50)))

    def medians(candidate, column="error"):
        return tables.spread(here, candidate, "updates", column)["median"]

    assert 5e5 < medians(HEUN[5])[100] < 7e5 and found["tradeoff-m5-middle"] == "6.8·10⁵"
    assert medians(HEUN[1]).idxmax() == 100 and 0.02 < medians(HEUN[1]).max() < 0.025
    assert found["tradeoff-m1-largest"] == "2.4 %" and found["tradeoff-bfloat16-end"] == "1.2 %"
    assert medians(BFLOAT16)[600] == pytest.approx(medians(HEUN[1])[600], rel=0.1)  # "as far off as the adjoint ODE"
    sharp = tables.sharpness(recorded["curvature"], (0.05, 50))["median"]
    assert sharp[600] == pytest.approx(1.51, abs=0.005) and found["tradeoff-sharp-end"] == "1.51"
    assert found["tradeoff-fomaml-cosines"] == "0.44 → 0.62 → 0.26" and not medians(FIRST_ORDER, "cosine").is_monotonic_decreasing
    assert medians(IMPLICIT[0.5, 10])[0] == max(medians(name)[0] for name in IMPLICIT.values())  # the worst at the start
    # "with 10 they buy nothing", and "within a tenth of the exact run's error"
    assert medians(IMPLICIT[1, 10])[0] > medians(IMPLICIT[1, 5])[0] > 0.1 * medians(IMPLICIT[1, 1])[0]
    assert float(found["tradeoff-close"].split()[0]) < 10
    for label, text in found.items():
        assert text and "nan" not in text, label


def test_text_and_numbers_have_the_same_labels(recorded):
    source = (Path(__file__).parents[1] / "book" / "src" / "15_tradeoff.md").read_text()
    quoted = {part.split("`")[1] for part in source.split("{glue:text}")[1:]}
    assert quoted == set(facts.facts(recorded))


def test_numbers_are_written_as_in_the_text():
    assert [facts.plain(v) for v in (0.4449, 12.04, 6.0)] == ["0.44", "12", "6"]
    assert facts.percent(0.02373) == "2.4 %" and facts.power(676100) == "6.8·10⁵" and facts.power(2e-14) == "2.0·10⁻¹⁴"
    assert facts.arrows([0.444, 0.62]) == "0.44 → 0.62"


def test_cases_are_compared_by_the_seeds_that_all_have(recorded):
    steps = tables.step_sizes(recorded["errors"])
    assert steps.index.name == "T = 2.5, after 600 updates, seed 0" and list(steps) == [(0.025, 100), (0.05, 50), (0.1, 25)]
    one = tables.at(recorded["errors"], (0.05, 50)).query("seed == 0 and updates == 600")
    assert steps.loc[HEUN[1], (0.05, 50)] == one.loc[one["candidate"].eq(HEUN[1]), "error"].median()


def test_figures_show_all_candidates_and_runs(recorded):
    field = tables.cost_map(recorded["errors"], recorded["costs"])
    points = sum(len(line.get_xdata()) for line in figures.cost_map(field).axes[0].lines)
    assert points == len(field) + field["best by ms"].sum()
    left, right = figures.horizons(recorded["errors"]).axes
    assert len(left.lines) == len(right.lines) == 7 and all(len(line.get_xdata()) == 3 for line in left.lines)
    error, cosine, sharp, _ = figures.along_training(recorded["errors"], recorded["curvature"]).axes
    assert (len(error.lines), len(cosine.lines), len(sharp.lines)) == (6, 7, 4)
    results = tables.against_exact(recorded["training"])
    shown = figures.accuracy(results).axes[0]
    assert [text.get_text() for text in shown.get_yticklabels()] == list(results.index[:0:-1])
