"""The audit of the released code: its switches against the package's own methods, and against closed forms."""

import math
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from problems import F64, quadratic, regression, relative
from torchdiffeq import odeint

from amaml_core import AMAML, MAML, Euler, Heun, meta_gradient
from amaml_core.experiments import audit
from amaml_core.experiments.audit import PAPER, RELEASED, Audited, Switches
from amaml_core.experiments.cells import run_cell
from amaml_core.records import read_record
from amaml_core.samplers import Alpine, CosMixture


def gradient(method, problem, theta, tasks):
    return meta_gradient(method, problem, theta, tasks).gradient


@pytest.mark.parametrize("proximal", [1.0, 0.3, 0.0])
def test_all_switches_at_released_give_the_released_formulas(proximal):
    """An independent transcription, one task at a time, with torchdiffeq's own rk4 and full Hessians."""
    problem, theta, tasks = regression(tasks=2)
    horizon, steps = 0.6, 6
    estimate = meta_gradient(Audited(horizon, steps, RELEASED, proximal), problem, theta, tasks)
    expected = []
    for b in range(2):
        task = tasks[b : b + 1]

        def support(u, task=task):
            return problem.losses(u[None], *task.support)[0] + proximal / 2 * (u - theta).square().sum()

        times = torch.linspace(0, horizon, steps + 1, dtype=F64)
        flow = odeint(lambda t, u, f=support: -torch.func.grad(f)(u), theta, times, method="rk4")
        lam = problem.gradient(flow[-1:], *task.query)[0] + proximal * (flow[-1] - theta)
        values = [lam]
        for k in range(steps, -1, -1):
            values.append(values[-1] - horizon / steps * torch.autograd.functional.hessian(support, flow[k]) @ values[-1])
        integral = horizon / steps * torch.stack(values).sum(0)
        expected.append(values[-1] + proximal * integral + proximal * (theta - flow[-1]))
        assert relative(estimate.adapted[b], flow[-1]) < 1e-12
    assert relative(estimate.gradient, torch.stack(expected).mean(0)) < 1e-12


def test_the_papers_switches_give_the_continuous_adjoint_on_its_own_grid():
    """Heun there and Heun back is AMAML's continuous adjoint; with the paper's Euler steps there, only the states differ."""
    problem, theta, tasks = regression()
    heun = Audited(0.8, 9, replace(PAPER, forward="Heun"))
    assert (
        relative(
            gradient(heun, problem, theta, tasks),
            gradient(AMAML(0.8, Heun(9), adjoint="continuous"), problem, theta, tasks),
        )
        < 1e-12
    )
    euler = Audited(0.8, 9, replace(PAPER, adjoint="Euler"))
    assert (
        relative(
            gradient(euler, problem, theta, tasks),
            gradient(AMAML(0.8, Euler(9), adjoint="continuous"), problem, theta, tasks),
        )
        < 1e-12
    )
    paper = meta_gradient(Audited(0.8, 9, PAPER), problem, theta, tasks)
    assert relative(paper.adapted, meta_gradient(MAML(0.8 / 9, 9), problem, theta, tasks).adapted) < 1e-12


def test_the_papers_gradient_approaches_plain_mamls_at_first_order_and_its_flows_at_second():
    problem, theta, tasks = regression()
    paper = [
        audit.distance(gradient(a, problem, theta, tasks), audit.plain_exact(a, problem, theta, tasks)).error
        for a in (Audited(0.5, k, PAPER) for k in (20, 40, 80))
    ]
    assert paper[0] / paper[1] == pytest.approx(2, abs=0.3) and paper[1] / paper[2] == pytest.approx(2, abs=0.3)
    sound = replace(PAPER, forward="RK4")
    flow = [
        audit.distance(gradient(a, problem, theta, tasks), audit.own_exact(a, problem, theta, tasks)).error
        for a in (Audited(0.5, k, sound) for k in (20, 40, 80))
    ]
    assert flow[0] / flow[1] == pytest.approx(4, abs=0.8) and flow[1] / flow[2] == pytest.approx(4, abs=0.8)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("forward", ["Euler", "Heun", "RK4"])
def test_own_exact_is_the_gradient_of_what_is_adapted_by_and_judged_by(inner, outer, forward):
    problem, theta, tasks = regression()
    switches = replace(PAPER, inner_proximal=inner, outer_proximal=outer, forward=forward)
    audited = Audited(0.6, 5, switches, weight=0.7)
    found = audit.own_exact(audited, problem, theta, tasks)

    def objective(at):
        u, step = at.expand(len(tasks), -1), audited.inner_step(problem, at, tasks)
        for _ in range(audited.steps):
            u = step(u)
        return (problem.losses(u, *tasks.query) + 0.35 * outer * (u - at).square().sum(1)).mean().item()

    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    direction /= direction.norm()
    slope = (objective(theta + 1e-5 * direction) - objective(theta - 1e-5 * direction)) / 2e-5
    assert (found @ direction).item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_a_sound_loop_with_proximal_terms_converges_at_second_order():
    """Where the inner proximal term is on, Heun with n steps and the trapezoid rule is what approaches the exact gradient."""
    problem, theta, tasks = regression()
    sound = replace(RELEASED, adjoint="Heun", backward_steps="n", quadrature="trapezoid")
    found = [
        audit.distance(gradient(a, problem, theta, tasks), audit.own_exact(a, problem, theta, tasks)).error
        for a in (Audited(0.5, k, sound) for k in (10, 20, 40))
    ]
    assert found[0] > 3 * found[1] > 9 * found[2]


def test_every_backward_loop_on_a_quadratic_is_its_matrix_polynomial():
    """Constant Hessians A: one step back is a matrix, and loops of n or n + 1 steps are its powers, wrapped or not."""
    problem, theta, tasks, a, c = quadratic()
    h, steps = 0.05, 6
    eye = torch.eye(4, dtype=F64)
    factor = {"Euler": eye - h * a, "Heun": eye - h * a + h * h / 2 * a @ a}
    bare = audit.without_proximal(RELEASED)
    for switches in audit.backward_loops(bare).values():
        power = steps + (switches.backward_steps == "n+1")
        expected = torch.stack([torch.linalg.matrix_power(factor[switches.adjoint][b], power) @ c[b] for b in range(2)]).mean(0)
        assert relative(gradient(Audited(h * steps, steps, switches), problem, theta, tasks), expected) < 1e-12


def test_without_a_support_gradient_the_proximal_parts_are_sums_one_can_write_down():
    """A flat support loss: u stays theta, so lam decays by 1 - h mu a step and only the quadrature tells the settings apart."""
    problem, theta, tasks, a, c = quadratic()
    tasks.support_y.zero_()
    h, steps, mu = 0.1, 5, 1.0
    decay = [(1 - h * mu) ** j for j in range(steps + 2)]
    released = decay[-1] + mu * h * sum(decay)
    trapezoid = decay[-2] + mu * h * (sum(decay[:-1]) - (decay[0] + decay[-2]) / 2)
    for switches, factor in (
        (RELEASED, released),
        (replace(RELEASED, backward_steps="n", quadrature="trapezoid"), trapezoid),
        (replace(RELEASED, backward_steps="n"), decay[-2] + mu * h * sum(decay[:-1])),
    ):
        found = gradient(Audited(h * steps, steps, switches), problem, theta, tasks)
        assert relative(found, factor * c.mean(0)) < 1e-12
    # The exact gradient is the query gradient itself: whatever theta is, u is there too.
    assert relative(audit.own_exact(Audited(h * steps, steps, RELEASED), problem, theta, tasks), c.mean(0)) < 1e-12


def test_the_wrap_matters_for_heun_with_one_step_too_many_alone():
    problem, theta, tasks = regression()
    for base in (RELEASED, PAPER, replace(RELEASED, adjoint="Heun")):
        found = [gradient(Audited(0.6, 4, replace(base, wrapped=w)), problem, theta, tasks) for w in (True, False)]
        matters = base.adjoint == "Heun" and base.backward_steps == "n+1"
        assert (relative(*found) > 1e-5) if matters else torch.equal(*found)


def test_one_at_a_time_turns_each_switch_once():
    turned = audit.one_at_a_time(RELEASED, PAPER)
    assert list(turned) == [f.name for f in fields(Switches)]
    for name, switches in turned.items():
        assert getattr(switches, name) == getattr(PAPER, name)
        assert audit.one_at_a_time(switches, RELEASED) == {name: RELEASED}
    settings = audit.settings_to_compare()
    assert {RELEASED, PAPER, *turned.values()} <= set(settings) and len(settings) == len(set(settings))


@pytest.mark.parametrize(
    ("name", "value"), [("forward", "RK5"), ("inner_proximal", 1), ("wrapped", "no"), ("backward_steps", "n+2")]
)
def test_unknown_positions_of_a_switch_are_refused(name, value):
    with pytest.raises(ValueError, match=f"switch {name} must be one of"):
        replace(RELEASED, **{name: value})


@pytest.mark.parametrize("bad", [{"horizon": 0.0}, {"steps": 0}, {"weight": -1.0}])
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(ValueError, match="an audit needs"):
        Audited(**({"horizon": 1.0, "steps": 2, "switches": PAPER} | bad))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("cosmixture", CosMixture()),
        ("cosmixture-released", CosMixture(variant="released")),
        ("alpine", Alpine()),
        ("alpine-released", Alpine(variant="released")),
    ],
)
def test_the_formulas_ends_are_the_samplers_variants(name, family):
    mine = audit.FORMULAS[name]
    drawn, expected = (f.draw(5, torch.Generator().manual_seed(0)) for f in (mine, family))
    torch.testing.assert_close(drawn, expected, rtol=1e-14, atol=0)
    x = torch.rand(5, 7, 2, generator=torch.Generator().manual_seed(1), dtype=F64) * (mine.high - mine.low) + mine.low
    torch.testing.assert_close(mine(drawn, x), family(expected, x), rtol=1e-13, atol=1e-13)
    assert (mine.low, mine.high) == (family.low, family.high)


def test_each_change_of_a_formula_is_what_its_name_says():
    x = torch.tensor([[[0.3, -0.8]]], dtype=F64)
    p = torch.tensor([[0.5, 2.0, 1.0]], dtype=F64)
    waves, squares = math.cos(0.6 + 1) + math.cos(-1.6 + 1), 0.09 + 0.64
    assert audit.CosFormula()(p, x).item() == pytest.approx(-0.05 * waves - squares)
    assert audit.CosFormula(tenth=False)(p, x).item() == pytest.approx(-0.5 * waves - squares)
    many = audit.CosFormula(swapped=True).draw(1000, torch.Generator().manual_seed(0))
    assert 3 * math.pi <= many[:, 1].min() and many[:, 1].max() <= 6 * math.pi and many[:, 2].max() <= 2
    q = torch.tensor([[0.4, -1.0]], dtype=F64)
    for formula, phases in (
        (audit.AlpineFormula(first_phase=True), (0.4, 0.4)),
        (audit.AlpineFormula(shifted=True), (0.4 + math.pi, math.pi - 1)),
    ):
        terms = [abs(v * math.sin(v + phase) + 0.1 * v) for v, phase in zip((0.3, -0.8), phases, strict=True)]
        assert formula(q, x).item() == pytest.approx(sum(terms))


def test_task_by_task_is_the_released_recipe_whatever_it_keeps():
    problem, theta, tasks = regression()
    expected = meta_gradient(Audited(0.05, 5, RELEASED), problem, theta, tasks)
    for graph in (True, False):
        for view in (True, False):
            adapted, found = audit.by_task(problem, theta, tasks, 5, graph, view)
            assert relative(adapted.detach(), expected.adapted) < 1e-12 and relative(found, expected.gradient) < 1e-12
            assert adapted.requires_grad == graph
    plain = meta_gradient(MAML(audit.INNER_LR, 5), problem, theta, tasks)
    adapted, found = audit.unrolled_by_task(problem, theta, tasks, 5)
    assert relative(adapted, plain.adapted) < 1e-12 and relative(found, plain.gradient) < 1e-12


@pytest.mark.slow
def test_the_kept_view_keeps_every_tasks_solution_alive():
    found = {b: audit.memory_figures(b, 12, seed=0) for b in (2, 4)}
    parameters = audit.make_problem().size
    solution = 13 * parameters * 8  # bytes of one task's stored solution
    growth = {name: (found[4][name]["peak"] - found[2][name]["peak"]) / 2 for name in found[2]}
    assert growth["released"] > solution and growth["released, without graph"] > solution
    assert growth["released, without graph, copied"] < solution / 2
    assert found[4]["released"]["nodes"] > 4 * 12 and found[4]["released, without graph"]["nodes"] == 0


def test_nodes_counts_each_once():
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    assert audit.nodes(y + y) == 3  # the sum, the product, and the place where x gathers its gradient
    assert audit.nodes(x.detach()) == 0


def test_distance_of_known_vectors():
    error, cosine = audit.distance(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
    assert error == pytest.approx(4 / 3) and cosine == pytest.approx(0.6)


def test_effects_pair_functions_and_widen_for_few_seeds():
    def side(shift):
        return pd.DataFrame({"seed": [0, 1, 2], "held_out": [np.array([1.0, 2.0]) + s for s in shift]})

    found = audit.effect(side((0.1, 0.2, 0.3)), side((0.0, 0.0, 0.0)))
    assert found.mean == pytest.approx(0.2) and found.seeds == 3
    assert found.half_width == pytest.approx(4.303 * 0.1 / 3**0.5)
    with pytest.raises(ValueError, match="one row for each seed"):
        audit.effect(pd.concat([side((0, 0, 0))] * 2), side((0, 0, 0)))
    with pytest.raises(ValueError, match="2 to 10 values"):
        audit.seed_interval([1.0])


def test_pools_standardise_by_what_they_say():
    mine, theirs = (audit.pools("alpine", 20, 0, fit_on) for fit_on in ("train", "all"))
    y = torch.cat([mine.train.support_y, mine.train.query_y], 1)
    assert abs(y.mean()) < 1e-12 and y.std(correction=0) == pytest.approx(1)
    assert relative(theirs.standardisation.undo_y(theirs.test.query_y), mine.standardisation.undo_y(mine.test.query_y)) < 1e-12
    assert theirs.standardisation.y_mean != mine.standardisation.y_mean
    with pytest.raises(ValueError, match="formula must be"):
        audit.pools("cosines", 2, 0)


def test_all_cells_have_names_of_their_own():
    full = audit.cells("full")
    assert len({c.name for c in full}) == len(full)


@pytest.mark.slow
def test_each_kind_of_cell_runs_again_to_the_same_figures(tmp_path):
    smoke = audit.cells("smoke")
    kinds = {c.experiment: c for c in smoke if c.settings.get("at") != "initial"}
    assert len(kinds) == 5
    for kind, cell in kinds.items():
        figures = read_record(run_cell(cell, audit.run, tmp_path)).figures
        again = audit.run(cell, tmp_path)
        if kind == "audit-memory":
            assert {n: f["nodes"] for n, f in again.items()} == {n: f["nodes"] for n, f in figures.items()}
        else:
            for entries in (figures, again):
                entries.pop("training_seconds", None)
            assert again == figures
        assert len(audit.rows(kind.removeprefix("audit-"), figures)) > 2
    assert audit.read("training", tmp_path).empty  # smoke records are not those of the full profile


def test_an_unknown_training_setting_is_refused():
    with pytest.raises(ValueError, match="setting must be one of"):
        audit.train("mine", audit.make_problem(), None, audit.SIZES["smoke"], 0)


@pytest.mark.slow
def test_here_gives_the_table_that_records_would(tmp_path):
    live = audit.here("gradient", "smoke", 0, formula="alpine", at="initial")
    (cell,) = (c for c in audit.cells("smoke", 0) if c.settings.get("formula") == "alpine" and c.settings.get("at") == "initial")
    path = run_cell(cell, audit.run, tmp_path)
    path.rename(tmp_path / path.name.replace("profile=smoke", "profile=full"))
    assert audit.read("gradient", tmp_path)[live.columns].equals(live)  # JSON sorts the columns
    (row,) = audit.select(live, PAPER).to_dict("records")
    assert row["own_error"] == row["plain_error"]  # the forward solve is plain MAML's, so both references are one
    found = audit.over_seeds(pd.concat([audit.select(live, PAPER)] * 2), "own")
    assert found["error"] == pytest.approx(row["own_error"]) and found["least"] == found["largest"]
