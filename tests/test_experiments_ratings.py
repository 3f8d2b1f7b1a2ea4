"""Collaborative filtering at full size: cells, normalisers, the choice of hyperparameters, and the hypotheses about the gap."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from problems import regression, relative

from amaml_core import AMAML, MAML, meta_gradient, metrics
from amaml_core.experiments import cells as runs
from amaml_core.experiments import ratings, ratings_gap
from amaml_core.experiments.profiles import RATINGS
from amaml_core.experiments.published import RATINGS_COLUMNS, RATINGS_TABLES
from amaml_core.experiments.ratings_gap import GapSampler
from amaml_core.records import new_record

NAN = float("nan")


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "none"))


def find(cells, **wanted):
    (cell,) = [c for c in cells if all(c.settings.get(key) == value for key, value in wanted.items())]
    return cell


# ------------------------------------------------------------------------------------------------------------ ratings


def test_both_published_tables_have_every_cell():
    for table in RATINGS_TABLES.values():
        assert tuple(table) == ratings.METHODS
        for row in table.values():
            assert len(row) == len(RATINGS_COLUMNS) and all(0 < mean < 1 and 0 <= half < mean for mean, half in row)


def test_table_2_doubles_the_steps_and_measures_there():
    one, two = (ratings.size_of("full", table) for table in ratings.TABLES)
    assert one == RATINGS["full"]
    assert (two.inner_steps, two.maml_steps) == (100, 10) and {10, 100} <= set(two.test_steps)
    assert (two.meta_steps, two.test_users) == (one.meta_steps, one.test_users)


def test_every_cell_of_both_tables_has_a_name_of_its_own_and_the_chosen_trial():
    cells = ratings.every_cell("full")
    assert len(cells) == 10 + 3 * 2 * 3 + 2 * 5 * 3 * 2 * 3
    assert len({c.name for c in cells}) == len(cells) and max(len(c.name) for c in cells) < 240
    for c in cells:
        if "table" in c.settings:
            trial = ratings.CHOSEN[c.settings["table"]][c.settings["method"]]
            assert (c.settings["inner_lr"], c.settings["regularization"]) == (trial.inner_lr, trial.regularization)


def test_all_methods_have_the_same_number_of_trials_and_the_chosen_one_is_among_them():
    assert len({len(ratings.TRIALS[method]) for method in ratings.METHODS}) == 1
    for table in ratings.TABLES:
        assert all(ratings.CHOSEN[table][method] in ratings.TRIALS[method] for method in ratings.METHODS)


def test_the_chosen_trials_are_those_of_the_records():
    records = [r for r in runs.read_records(ratings.RECORDS) if "choice" in r.configuration]
    if not records:
        pytest.skip("no records of the choice")
    assert len(records) == len(ratings.choice_cells("full"))
    for r in records:
        c, errors = r.configuration, r.figures["validation_rmse"]
        assert r.figures["trials"] == [asdict(trial) for trial in ratings.TRIALS[c["method"]]]
        assert errors[r.figures["best"]] == min(e for e in errors if e is not None)
        assert ratings.best_trial(r) == ratings.CHOSEN[c["choice"]][c["method"]]


def test_a_choice_passes_over_trials_that_diverge(no_data, tmp_path, monkeypatch):
    monkeypatch.setitem(ratings.TRIALS, "FOMAML", (ratings.Trial(1e6), ratings.Trial(0.1), ratings.Trial(1e-6)))
    figures = ratings.run(find(ratings.choice_cells("smoke"), choice=1, method="FOMAML"), tmp_path)
    first, *others = figures["validation_rmse"]
    assert first is None and figures["best"] == 1 + int(np.argmin(others))
    monkeypatch.setitem(ratings.TRIALS, "FOMAML", (ratings.Trial(1e6),))
    with pytest.raises(ArithmeticError, match="every trial of FOMAML"):
        ratings.run(find(ratings.choice_cells("smoke"), choice=1, method="FOMAML"), tmp_path)


def test_recorded_errors_and_scales_give_every_normaliser(no_data, tmp_path):
    cell = find(ratings.bar_cells("smoke", 0), data="ml-100k", support=10)
    figures = ratings.run(cell, tmp_path)
    setting = ratings.Setting("ml-100k")
    data, splits = ratings.load(setting, RATINGS["smoke"], 0)
    tasks = ratings.test_tasks(splits, setting, 0)
    guess = tasks.support_y.mean(1, keepdim=True).expand_as(tasks.query_y)
    for normaliser in ("standard deviation", "range", "norm"):
        expected = metrics.nrmse(guess, tasks.query_y, normaliser)
        np.testing.assert_allclose(ratings.normalised(figures, normaliser, bar="user mean"), expected, rtol=1e-3)
    raw = metrics.nrmse(splits.undo(guess), splits.undo(tasks.query_y), "norm")
    np.testing.assert_allclose(ratings.normalised(figures, "norm of raw ratings", bar="user mean"), raw, rtol=1e-3)
    stars = metrics.rmse(splits.undo(guess), splits.undo(tasks.query_y)) / (data.rating.max() - data.rating.min())
    np.testing.assert_allclose(ratings.normalised(figures, "rating scale", bar="user mean"), stars, rtol=1e-3)
    np.testing.assert_allclose(ratings.normalised(figures, "none", bar="user mean"), metrics.rmse(guess, tasks.query_y), rtol=1e-4)


def test_a_scale_of_zero_has_no_normalised_error_and_unknown_requests_are_refused():
    scales = {"query": {"range": [0.0, 2.0]}, "support": {"range": [1.0, 4.0]}}
    figures = {"steps": [0, 5], "rmse": [[1, 1], [2, 3]], "support_rmse": [[1, 1], [1, 2]], "scales": scales}
    np.testing.assert_array_equal(ratings.normalised(figures, "range", 5), [NAN, 1.5])
    np.testing.assert_array_equal(ratings.normalised(figures, "range", 5, "support"), [1.0, 0.5])
    with pytest.raises(ValueError, match="normaliser must be one of"):
        ratings.normalised(figures, "variance", 5)
    with pytest.raises(ValueError, match="step 7 was not measured"):
        ratings.normalised(figures, "range", 7)


def test_a_cell_of_table_2_is_read_back_at_the_steps_it_was_trained_for(no_data, tmp_path):
    cells = ratings.cells("smoke", 0, table=2)
    records = []
    for method in ("MAML", "FOMAML"):
        cell = find(cells, method=method, data="jester-1", support=10)
        figures = ratings.run(cell, tmp_path)
        assert np.shape(figures["rmse"]) == np.shape(figures["support_rmse"]) == (len(figures["steps"]), 20)
        records.append(new_record("ratings", cell.settings, 0, figures, 1.0))
    grouped = ratings.of_table(records, 2)
    assert len(grouped) == 2 and ratings.of_table(records, 1) == {}
    for record, steps in zip(records, (10, 20), strict=True):
        row = record.figures["rmse"][record.figures["steps"].index(steps)]
        assert ratings.trained_error([record, record], "none").mean == pytest.approx(np.mean(row))
        assert ratings.trained_error([record, record], "none").count == 40


def test_both_results_stand_side_by_side_and_what_is_missing_says_so(no_data, tmp_path):
    cell = find(ratings.cells("smoke", 0), method="MAML", data="ml-1m", support=20)
    bars = find(ratings.bar_cells("smoke", 0), data="ml-1m", support=20)
    records = [new_record("ratings", c.settings, 0, ratings.run(c, tmp_path), 1.0) for c in (cell, bars)]
    table = ratings.side_by_side(records, 1)
    assert len(table) == 6 * (5 + 3)
    ours = table.loc[("ml-1m", "20–30", "MAML")]
    assert ours["paper"] == "0.059 ± 0.001" and ours["users"] == "20"
    assert ours["ours / range"] == str(metrics.interval(ratings.normalised(records[0].figures, "range", 5)))
    assert (table["ours, RMSE"] == "not run").sum() == len(table) - 4
    assert table.loc[("ml-1m", "20–30", "user mean"), "paper"] == ""
    curves = ratings.curves(records, "ml-1m", 20)
    assert len(curves) == 20 * len(RATINGS["smoke"].test_steps) and set(curves["method"]) == {"MAML"}
    at = curves[curves["step"] == 5]["query"]
    np.testing.assert_allclose(at, records[0].figures["rmse"][records[0].figures["steps"].index(5)])
    assert ratings.curves(records, "ml-1m", 10).empty


def test_an_error_that_is_no_number_is_left_out_after_the_steps_of_the_training_and_a_divergence_up_to_them():
    def table(query):
        return pd.DataFrame({"step": [0, 5, 100], "task": 0, "support": 1.0, "query": query})

    figures = ratings.errors_by_step(table([1.0, 2.0, NAN]), own=5)
    assert figures == {"steps": [0, 5, 100], "rmse": [[1.0], [2.0], [None]], "support_rmse": [[1.0], [1.0], [1.0]]}
    assert np.isnan(ratings.normalised(figures | {"scales": {}}, "none", 100)).all()
    for wrong in (NAN, float("inf"), 2 * ratings.BLOWN_UP):
        with pytest.raises(ArithmeticError, match="the test diverged for 1 users, from step 5 on"):
            ratings.errors_by_step(table([1.0, wrong, 1.0]), own=5)


def test_seeds_that_diverged_are_counted_and_left_out(no_data, tmp_path):
    cell = find(ratings.cells("smoke", 0), method="MAML", data="ml-1m", support=20)
    done = new_record("ratings", cell.settings, 0, ratings.run(cell, tmp_path), 1.0)
    lost = new_record("ratings", cell.settings, 1, {"diverged": "meta step 3"}, 1.0)
    key = ("ml-1m", "20–30", "MAML")
    alone, both, none = (ratings.side_by_side(found, 1).loc[key] for found in ([done], [done, lost], [lost]))
    assert both["users"] == "20, 1 diverged" and both["ours / range"] == alone["ours / range"]
    assert none["ours / range"] == "diverged" and none["users"] == "–, 1 diverged"


def test_maml_is_trained_by_the_adjoint_of_its_steps_which_is_the_same_gradient():
    problem, theta, tasks = regression()
    method = MAML(0.05, 5)
    quick = ratings.without_unrolling(method)
    assert isinstance(quick, AMAML) and ratings.without_unrolling(quick) is quick
    expected = meta_gradient(method, problem, theta, tasks).gradient
    assert relative(meta_gradient(quick, problem, theta, tasks).gradient, expected) < 1e-12


@pytest.mark.slow
def test_compiled_training_is_eager_training_to_rounding(no_data):
    setting, size = ratings.Setting(), ratings.size_of("smoke")
    _, splits = ratings.load(setting, size, 0)
    eager, fast = (
        ratings.train("FOMAML", setting, size, splits, 0, progress=False, compile=compile)[1] for compile in (False, True)
    )
    torch.testing.assert_close(fast, eager, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------- gap


def chosen_items(x):
    """Item numbers of one-hot inputs (B, n, d) as one set for each task."""
    return [set(row.tolist()) for row in x.argmax(2)]


def test_overlaps_are_what_their_names_say():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(8, 30, generator=generator)
    matrix[torch.rand(8, 30, generator=generator) < 0.2] = NAN
    shared = 0
    for overlap in ("disjoint", "contained", "independent", "same"):
        tasks = GapSampler(matrix, torch.eye(30), 6, 9, 8, overlap).all_tasks(generator)
        sets = list(zip(chosen_items(tasks.support_x), chosen_items(tasks.query_x), strict=True))
        assert all(len(a) == 6 and len(b) == (6 if overlap == "same" else 9) for a, b in sets)
        if overlap == "disjoint":
            assert not any(a & b for a, b in sets)
        elif overlap == "contained":
            assert all(a < b for a, b in sets)
        elif overlap == "same":
            assert all(a == b for a, b in sets)
        else:
            shared = sum(len(a & b) for a, b in sets)
        y = torch.stack([matrix[b][tasks.query_x[b].argmax(1)] for b in range(8)])
        torch.testing.assert_close(tasks.query_y[..., 0], y)
    assert 0 < shared < 8 * 6


def test_samplers_refuse_users_and_sets_that_do_not_fit():
    matrix = torch.full((3, 10), NAN)
    matrix[:, :5] = 1.0
    GapSampler(matrix, torch.eye(10), 3, 5, 2, "contained")
    with pytest.raises(ValueError, match="3 of 3 users have fewer than 8 ratings"):
        GapSampler(matrix, torch.eye(10), 3, 5, 2)
    with pytest.raises(ValueError, match="cannot contain"):
        GapSampler(matrix, torch.eye(10), 4, 3, 2, "contained")


def test_gaps_are_filled_as_named(no_data):
    _, splits = ratings.load(ratings.Setting("ml-100k"), RATINGS["smoke"], 0)
    matrix = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN]])
    item_mean = torch.tensor([0.5, 0.25, 0.125])
    expected = {
        "item mean": [[1.0, 0.25, 3.0], [0.5, 0.25, 0.125]],
        "user mean": [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]],
    }
    for fill, values in expected.items():
        torch.testing.assert_close(ratings_gap.complete(matrix, fill, item_mean, splits), torch.tensor(values))
    zero = splits.undo(ratings_gap.complete(matrix, "zero", item_mean, splits))
    torch.testing.assert_close(zero[1], torch.zeros(3), atol=1e-5, rtol=0)
    kept = ratings_gap.complete(matrix, "nothing", item_mean, splits)
    torch.testing.assert_close(kept, matrix, equal_nan=True)


def test_item_features_have_the_norm_of_one_hot_inputs_and_factors_reproduce_the_covariance(no_data):
    _, splits = ratings.load(ratings.Setting("ml-100k"), RATINGS["smoke"], 0)
    for inputs in ("one-hot", "factors", "all factors", "raters"):
        x = ratings_gap.item_features(inputs, splits)
        assert x.shape == (100, 100) and x.square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)
    number = ratings_gap.item_features("number", splits)
    assert number.shape == (100, 1) and number.min() == -1 and number.max() == 1
    assert number[splits.items.argmin()] == -1
    factors = ratings_gap.item_features("factors", splits).double()
    residual = torch.where(splits.train.isnan(), 0.0, splits.train - splits.train.nanmean(0).nan_to_num(0.0)).double()
    gram = residual.T @ residual
    torch.testing.assert_close(factors @ factors.T, gram / gram.trace() * 100, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ratings_gap.item_features("all factors", splits).double(), factors)


def test_cells_of_hypotheses_have_names_of_their_own_and_films_only_where_there_are_more_than_a_hundred():
    cells = ratings_gap.cells("full")
    assert len({c.name for c in cells}) == len(cells) and max(len(c.name) for c in cells) < 240
    for c in cells:
        first = ratings_gap.HYPOTHESES[c.settings["hypothesis"]].items == "first"
        assert not (first and c.settings["data"] == "jester-1")
    assert {c.settings["hypothesis"] for c in cells} == set(ratings_gap.HYPOTHESES)


@pytest.mark.parametrize("name", ["base", "number", "zero, first", "user mean", "adam", "contained"])
def test_a_hypothesis_gives_errors_of_every_user_and_the_share_of_filled_targets(no_data, tmp_path, name):
    cell = find(ratings_gap.cells("smoke"), hypothesis=name, data="ml-100k", support=10, method="FOMAML")
    figures = ratings_gap.run(cell, tmp_path)
    assert np.shape(figures["rmse"]) == (2, 20) and np.isfinite(figures["rmse"]).all()
    filled = ratings_gap.HYPOTHESES[name].fill != "nothing"
    assert (figures["filled"] > 0.1) == filled
    assert figures == ratings_gap.run(cell, tmp_path)
    if name == "zero, first":  # targets on the raw scale: zero stars, or one to five
        assert figures["scales"]["mean"] < 3
    if name == "base":  # the same guess as in the evaluation itself, for the same users
        bars = ratings.run(find(ratings.bar_cells("smoke", 0), data="ml-100k", support=10), tmp_path)
        assert np.mean(figures["item means"]) == pytest.approx(np.mean(bars["item means"]), rel=0.1)


def gap_records(factor):
    """Records of all cells of one hypothesis, as if every user's error were ``factor`` times the paper's number."""
    records = []
    for cell in ratings_gap.cells("full"):
        c = cell.settings
        if c["hypothesis"] == "base":
            error = factor * ratings_gap.published(c["method"], c["data"], c["support"], c["query"]).mean
            ones = {scale: [1.0, 1.0] for scale in ratings.SCALES}
            scales = {"support": ones, "query": ones, "mean": 0.0, "std": 1.0, "ends": [0.0, 2.0]}
            rmse = [[9.0, 9.0], [error, error]]
            figures = {"steps": [0, 50], "rmse": rmse, "support_rmse": rmse, "scales": scales}
            records.append(new_record("ratings_gap", c, 0, figures, 1.0))
    return records


def test_the_comparison_with_the_paper_finds_a_factor_and_the_papers_own_ratios():
    table = ratings_gap.compare(gap_records(2.0))
    assert set(table["steps"]) == {50}
    table = table.set_index(["set", "error", "scale"])
    paper = ratings_gap.paper_nearness()
    assert paper["factor"] == 1 and paper["inside"] == 1
    row = table.loc["query", "RMSE", "none"]
    assert row["factor"] == pytest.approx(2) and row["inside"] == 0
    assert row["fall"] == pytest.approx(paper["fall"]) and row["spread"] == pytest.approx(paper["spread"])
    half = table.loc["query", "RMSE", "rating scale"]  # over 2, so this is the paper's number
    assert half["factor"] == pytest.approx(1) and half["inside"] == 1
    # A root of a sum in place of a root of a mean changes with the number of points, a fixed scale does not.
    l2 = table.loc["query", "RMSE", "l2 norm"]
    assert l2["fall"] == pytest.approx(paper["fall"] * (15 / 30) ** 0.5)
    assert table.loc["query", "MSE", "none"]["spread"] == pytest.approx(paper["spread"] ** 2)
    assert len(ratings_gap.compare(gap_records(2.0)[1:])) == 0  # an incomplete hypothesis is not judged
    first, *others = gap_records(2.0)
    lost = new_record("ratings_gap", first.configuration, 0, {"diverged": "meta step 3"}, 1.0)
    partly = ratings_gap.compare([lost, *others]).set_index(["set", "error", "scale"])
    assert partly.loc["query", "RMSE", "none"]["factor"] == pytest.approx(2) and set(partly["diverged"]) == {1}


def test_a_quotient_has_the_relative_errors_of_both():
    found = ratings_gap.quotient(metrics.Interval(2.0, 0.3, 50), metrics.Interval(4.0, 0.8, 60))
    assert found.mean == 0.5 and found.half_width == pytest.approx(0.5 * 0.25) and found.count == 50
