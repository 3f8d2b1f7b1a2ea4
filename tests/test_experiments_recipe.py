"""The released recipe: its outer term, its methods, and what is read from its curves."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from amaml_core import MAML, Euler, Problem, meta_gradient
from amaml_core.methods import AMAML
from experiments.common.published import published
from experiments.common.records import ROOT, rows
from experiments.common.training import loss, network, seeded
from experiments.recipe import claims, figures, run, settings, tables
from experiments.recipe.settings import METHODS, SIZES, UNTRAINED, Setting

SMOKE = SIZES["smoke"]


def small(method="A-MAML", **changed):
    return Setting(family="alpine", shots=50, method=method, **changed)


@pytest.fixture(scope="module")
def data():
    return run.load("alpine", 10, 6, 0)


def test_the_outer_term_is_that_of_the_query_loss(data):
    """Autograd through the loop of a loss with both proximal terms."""
    theta = Problem(seeded(network(2), 0).double(), loss).initial_parameters()
    tasks = data.test[:2]
    method = run.WithOuterTerm(settings.make_method(small(steps=4)), 1.0)
    found = meta_gradient(method, run.make_problem(1.0, False), theta, tasks).gradient
    problem, start = run.make_problem(0.0, False), theta.clone().requires_grad_()
    u = start.expand(2, -1)
    for _ in range(4):
        u = u - 0.01 * (problem.gradient(u, *tasks.support, create_graph=True) + (u - start))
    outer = (problem.losses(u, *tasks.query) + 0.5 * (u - start).square().sum(1)).mean()
    torch.testing.assert_close(found, torch.autograd.grad(outer, start)[0], rtol=1e-10, atol=1e-12)


def test_the_inner_term_is_amamls_proximal_one(data):
    theta = Problem(seeded(network(2), 0).double(), loss).initial_parameters()
    ours = meta_gradient(settings.make_method(small(steps=5)), run.make_problem(1.0, False), theta, data.test).gradient
    own = meta_gradient(AMAML(0.05, Euler(5), proximal=1.0), run.make_problem(0.0, False), theta, data.test).gradient
    torch.testing.assert_close(ours, own, rtol=1e-10, atol=1e-12)


def test_a_term_of_weight_zero_is_none(data):
    theta = Problem(seeded(network(2), 0).double(), loss).initial_parameters()
    problem = run.make_problem(0.0, False)
    found = meta_gradient(run.WithOuterTerm(settings.make_method(small("MAML")), 0.0), problem, theta, data.test).gradient
    torch.testing.assert_close(found, meta_gradient(MAML(0.01, 5), problem, theta, data.test).gradient, rtol=1e-10, atol=1e-12)


def test_maml_takes_a_tenth_of_the_steps_and_unknown_methods_are_refused():
    assert [settings.make_method(small(m, steps=200)).solver.steps for m in ("A-MAML", "MAML", "MAML-1")] == [200, 20, 1]
    with pytest.raises(ValueError, match="method must be one of"):
        settings.make_method(small("ANIL"))


def test_training_and_test_functions_are_different_and_standardised_by_the_first(data):
    assert data.train.support_x.shape == (6, 1000, 2) and data.test.support_x.shape == (6, 10, 2)
    y = torch.cat([data.train.support_y, data.train.query_y])
    assert abs(y.mean()) < 1e-12 and y.std(correction=0).item() == pytest.approx(1)
    assert not torch.isin(data.test.support_x, data.train.support_x).any()


@pytest.mark.parametrize("method", ["FOMAML", "iMAML", UNTRAINED])
def test_a_cell_gives_tidy_rows_and_repeats_to_the_bit(method):
    cell = next(c for c in settings.cells("smoke") if c.settings["method"] == method)
    table = run.run(cell, None)
    assert table.equals(run.run(cell, None))
    ends = [0] if method == UNTRAINED else list(SMOKE.snapshots)
    assert sorted(table["updates"].unique()) == ends and set(table["set"]) == {"support", "held-out"}
    assert len(table) == 2 * 3 * (len(ends) + 1) and np.isfinite(table[["mean", "se"]].to_numpy()).all()
    first = table[table["step"].eq(0) & table["updates"].eq(ends[-1])]
    assert first.groupby("set")["mean"].nunique().eq(1).all()  # before the first epoch, the rate plays no part


def test_the_cells_cover_the_recipe_and_one_change_at_a_time():
    full = [c for c in settings.cells("full")]
    assert len({c.name for c in full}) == len(full) == 4 * 5 * 7 + 2 * 6 + 2 + 5
    first = full[: 5 * 4 * 7]
    assert all((c.settings["weight"], c.settings["steps"], c.settings["outer"]) == (1.0, 50, "SGD") for c in first)


def as_if(shift=0.0, seeds=(0, 1)):
    """Rows that are the published curves, the untrained network's between them."""
    figure = tables.theirs().rename(columns={"published": "mean"})
    untrained = figure.groupby(["family", "shots", "step"], as_index=False)["mean"].mean().assign(method=UNTRAINED)
    every = pd.concat([figure, untrained], ignore_index=True)
    every["mean"] += shift
    every["updates"] = np.where(every["method"].eq(UNTRAINED), 0, 5000)
    held_out = every.assign(mean=1.0 + every["step"] / 5000, set="held-out")
    both = pd.concat([every.assign(set="support"), held_out], ignore_index=True)
    settled = both.assign(se=0.01, rate=1e-3, weight=1.0, steps=50, outer="SGD", size="full", machine="x")
    return pd.concat([settled.assign(seed=s) for s in seeds], ignore_index=True)


def test_the_published_curves_are_at_no_distance_from_themselves():
    found = tables.curves(as_if())
    pairs = tables.compared(found[found["set"].eq("support")])
    assert len(pairs) == len(published("synthetic"))
    assert tables.distances(pairs, ["method"]).to_numpy().max() == pytest.approx(0, abs=1e-12)
    moved = tables.curves(as_if(0.1))
    far = tables.distances(tables.compared(moved[moved["set"].eq("support")]), ["method"])
    assert far.to_numpy() == pytest.approx(0.1)


def test_claims_follow_the_curves_and_change_with_them():
    verdicts = [c.verdict for c in claims.claims(as_if())]
    assert verdicts[:4] == ["holds"] * 4
    assert claims.claims(as_if(0.1))[0].verdict == "holds in part"
    same = as_if()
    same["mean"] = same.groupby(["family", "shots", "set", "step", "seed"])["mean"].transform("mean")
    assert [c.verdict for c in claims.claims(same)][1:4] == ["does not hold"] * 3
    assert verdicts[4] == "not run"  # no change was tried
    for changed, verdict in ((as_if(), "holds"), (same, "does not hold")):
        assert claims.claims(pd.concat([as_if(), changed.assign(weight=0.0)]))[4].verdict == verdict
    assert claims.claims(as_if()[lambda t: t["method"] != "iMAML"]) == [] == claims.claims(pd.DataFrame())
    three = as_if()[lambda t: t["method"].ne("iMAML") | t["shots"].eq(50) | t["family"].eq("alpine")]
    assert claims.claims(three)[1].ours == "in 3 of 3 panels"  # a panel counts when all its curves are there


def test_the_nearest_curve_of_a_published_one_is_itself():
    found = tables.stand_ins(as_if())
    assert (found["distance"] < 1e-12).all() and len(found) == 4 * len(METHODS)
    assert all(name.startswith(method + ",") for (_, _, method), name in found["nearest"].items())


def test_changes_stand_beside_the_recipe_with_their_seeds():
    table = as_if()
    table = table[table["shots"].eq(50)]
    moved = table[table["method"].eq("A-MAML") & table["seed"].eq(0)].assign(weight=0.0)
    found = tables.changed(pd.concat([table, moved.assign(mean=moved["mean"] + 0.1)]))
    assert list(found.index.unique(0)) == ["the recipe", "without proximal terms"]
    alone = found.loc["without proximal terms"]
    assert alone["support"].tolist() == pytest.approx([0.1, 0.1]) and alone["methods"].eq(1).all() and alone["apart"].isna().all()
    assert alone["seeds"].eq("1").all() and found.loc["the recipe", "seeds"].eq("2").all()
    said = tables.facts(pd.concat([table, moved.assign(mean=moved["mean"] + 0.1)]))
    assert (said["changes-farther"], said["changes-cases"], said["changes-seeds"], said["seeds"]) == ("2", "2", "1", "2")
    assert tables.facts(table)["changes-cases"] == "0" and tables.facts(table)["explained"] == "10"


def test_every_number_that_the_chapter_glues_is_made_by_code():
    chapters = sorted((ROOT / "book" / "src").glob("*.md"))
    said = {name for path in chapters for name in re.findall(r"\{glue:text\}`recipe-([\w-]+)", path.read_text())}
    assert said == set(tables.facts(as_if()))


def test_the_published_baselines_are_drawn_beside_two_rates():
    both = pd.concat([as_if(), as_if(0.1).assign(rate=5e-4)])
    fig = figures.baselines(both)
    assert len(fig.axes) == 4 and all(len(axes.lines) == 4 + 5 for axes in fig.axes)
    plt.close(fig)


def test_the_records_hold_the_recipe():
    table = rows("recipe", "curves", size="full")
    if table.empty:
        pytest.skip("no records")
    assert np.isfinite(table["mean"]).all() and set(table["method"]) <= {*METHODS, UNTRAINED}
