"""Collaborative filtering: cells, scores, the choice of hyperparameters, readings of the published tables, and the hypotheses."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from problems import regression, relative

from amaml_core import AMAML, MAML, DivergenceError, evaluate, meta_gradient, metrics
from amaml_core.samplers import RatingSampler
from experiments import ratings, ratings_gap
from experiments.common import records, scores
from experiments.common.cells import missing
from experiments.common.published import published
from experiments.common.scores import Score
from experiments.common.training import by_adjoint
from experiments.common.users import BLOWN_UP, error_rows, learn
from experiments.ratings import claims, first, readings, settings, tables
from experiments.ratings import run as running
from experiments.ratings_gap import run as gap_running
from experiments.ratings_gap.setup import GapSampler, complete, item_features

NAN = float("nan")
FEW, MANY = settings.SHOTS
CHAPTERS = Path(__file__).resolve().parents[1] / "book" / "src"


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "none"))


def find(cells, kind="errors", **wanted):
    (cell,) = [c for c in cells if c.kind == kind and all(c.settings.get(key) == value for key, value in wanted.items())]
    return cell


def rows_of(cell, folder):
    """The rows of a cell, with its settings, as records give them."""
    module = running if cell.evaluation == "ratings" else gap_running
    return module.run(cell, folder).assign(**cell.settings, seed=cell.seed, machine="here")


@cache
def recorded(kind):
    return tables.recorded(kind)


@cache
def full():
    """Errors, test users and lost cells of the records."""
    return recorded("errors"), recorded("users"), tables.lost()


@cache
def facts():
    return claims.facts(*full(), recorded("choice"), recorded("beyond"), second())


@cache
def second():
    return tables.second_runs(full()[0], full()[2], recorded("again"), tables.lost("again"))


for_report = cache(tables.for_report)


# ---------------------------------------------------------------------------------------------------------- cells, records


@pytest.mark.parametrize("module", [ratings, ratings_gap])
def test_every_cell_has_its_record_and_every_record_its_cell(module):
    cells = module.settings.cells("full")
    assert missing(cells) == []
    name = module.__name__.split(".")[-1]
    keys = {(r.kind, json.dumps(r.settings, sort_keys=True), r.seed) for r in records.read(name)}
    assert keys == {cell.key for cell in cells}


def test_every_published_number_has_its_column():
    for number in settings.TABLES:
        table = tables.theirs(number)
        assert set(table.index) == {(*column, method) for column in tables.COLUMNS for method in settings.METHODS}
        assert table["value"].between(0, 1, inclusive="neither").all() and (table["error"] < table["value"]).all()


def test_table_2_doubles_the_steps_and_measures_there():
    one, two = (settings.size_of("full", table) for table in settings.TABLES)
    assert one == settings.SIZES["full"]
    assert (two.inner_steps, two.maml_steps) == (100, 10) and {10, 100} <= set(two.test_steps)
    assert (two.updates, two.test_users) == (one.updates, one.test_users)


def test_every_cell_has_a_name_of_its_own_and_the_chosen_trial():
    cells = settings.cells("full")
    assert len(cells) == 10 + 10 + 3 * 2 * 3 + 2 * 5 * 3 * 2 * 3 + 2 * 3 * 2 * 3 + 2 * 5 * 3
    assert len({c.name for c in cells}) == len(cells) and max(len(c.name) for c in cells) < 240
    for c in cells:
        if c.kind == "errors":
            trial = settings.CHOSEN[c.settings["table"]][c.settings["method"]]
            assert (c.settings["inner_lr"], c.settings["regularization"]) == (trial.inner_lr, trial.regularization)


def test_recorded_errors_are_of_all_users_and_steps_and_of_the_real_data():
    errors, users, lost = full()
    size = settings.SIZES["full"]
    assert len(lost) == 7 and set(lost["method"]) == {"iMAML"}
    cells = errors.groupby(["table", "method", "data", "shots", "seed"])
    assert len(cells) == 180 - len(lost) and cells["user"].nunique().eq(size.test_users).all()
    assert set(errors["source"]) == set(users["source"]) == {"Jester-1", "MovieLens 100K", "MovieLens 1M"}
    by_method = errors.drop_duplicates(["table", "method"]).set_index(["table", "method"])["trained"]
    assert by_method.to_dict() == {
        (t, m): settings.trained_steps(m, settings.size_of("full", t)) for t in settings.TABLES for m in settings.METHODS
    }


@pytest.mark.parametrize("module", [ratings, ratings_gap])
def test_a_cell_of_the_full_size_is_refused_without_its_data(no_data, tmp_path, module):
    for cell in module.settings.cells("full", seed=0):
        with pytest.raises(FileNotFoundError, match=f"{cell.settings['data']}: run `make data` to prepare it"):
            rows_of(cell, tmp_path)


def test_recorded_hypotheses_are_those_of_the_settings():
    errors = ratings_gap.tables.recorded("errors")
    for name, mine in errors.groupby("hypothesis"):
        hypothesis = ratings_gap.settings.HYPOTHESES[name]
        assert all(set(mine[entry]) == {value} for entry, value in vars(hypothesis).items())
    largest = max(trial.inner_lr for trials in settings.TRIALS.values() for trial in trials)
    assert set(errors["inner_lr"]) == {ratings_gap.settings.TRIAL.inner_lr} == {largest}


# --------------------------------------------------------------------------------------------------------------- the choice


def test_all_methods_have_the_same_number_of_trials_and_the_chosen_one_is_among_them():
    assert len({len(settings.TRIALS[method]) for method in settings.METHODS}) == 1
    for table in settings.TABLES:
        assert all(settings.CHOSEN[table][method] in settings.TRIALS[method] for method in settings.METHODS)
    for method in settings.METHODS:
        rates = [trial.inner_lr for trial in settings.TRIALS[method]]
        beyond = {trial.inner_lr for trial in settings.BEYOND[method]}
        assert max(beyond) > max(rates) and not set(settings.BEYOND[method]) & set(settings.TRIALS[method])


def test_the_chosen_trials_are_those_of_the_records():
    choice = recorded("choice")
    for (table, method), trials in choice.groupby(["table", "method"]):
        assert [settings.Trial(t.inner_lr, t.regularization) for t in trials.itertuples()] == list(settings.TRIALS[method])
        best = trials[trials["chosen"]].iloc[0]
        assert best["score"] == trials["score"].min()
        assert settings.Trial(best["inner_lr"], best["regularization"]) == settings.CHOSEN[table][method]
    assert choice.groupby(["table", "method"]).ngroups == 10


def test_most_choices_lie_on_an_edge_and_what_lies_beyond_is_little_better():
    assert tables.edges("MAML", settings.Trial(0.03)) == "" and tables.edges("MAML", settings.Trial(0.01)) == "smallest rate"
    assert tables.edges("iMAML", settings.Trial(0.1, 1.0)) == "largest rate, largest λ"
    ends = tables.choices(recorded("choice"))["on an edge"]
    assert ends.ne("").sum() == 8 and {method for _, method in ends[ends.eq("")].index} == {"MAML"}
    gains = claims._gains(recorded("choice"), recorded("beyond"))
    assert gains.gt(0).sum() == 2 and gains.max() < 1 and gains.idxmax() == (2, "FOMAML")
    table = tables.beyond(recorded("choice"), recorded("beyond"), tables.lost("beyond"))
    long = table.drop("MAML", level=1)  # MAML has a tenth of the steps
    assert len(table) == 10 and long.drop("iMAML", level=1)["beyond 2"].eq("0.3: diverged").all()
    assert not table.drop("iMAML", level=1)["beyond 1"].str.contains("diverged|not run").any()
    nothing = tables.beyond(recorded("choice"), pd.DataFrame(), pd.DataFrame())
    assert nothing["beyond 1"].str.endswith("not run").all()


def test_a_choice_passes_over_trials_that_diverge(no_data, tmp_path, monkeypatch):
    monkeypatch.setitem(settings.TRIALS, "FOMAML", (settings.Trial(1e6), settings.Trial(0.1), settings.Trial(1e-6)))
    monkeypatch.setattr(running, "TRIAL_USERS", 20)
    cell = find(settings.cells("smoke"), "choice", table=1, method="FOMAML")
    found = running.run(cell, tmp_path)
    assert np.isnan(found["score"][0]) and found["chosen"].idxmax() == 1 + int(np.argmin(found["score"][1:]))
    monkeypatch.setitem(settings.TRIALS, "FOMAML", (settings.Trial(1e6),))
    with pytest.raises(DivergenceError, match="all 1 trials diverged"):
        running.run(cell, tmp_path)


def test_test_users_of_other_seeds_had_a_part_in_the_choice(no_data):
    seen = tables.seen_in_choice(full()[1])
    assert seen.loc[(slice(None), 0), ["train", "judge"]].eq(0).all(axis=None)
    others = seen.drop(0, level="seed")
    assert others["train"].min() == 36 and others["train"].max() == 47 and others["judge"].eq(1).all()
    assert seen.sum(axis=1).eq(100).all()
    # On the stand-in, by looking every test user up in the split of the choice.
    size = settings.SIZES["book"]
    data, choice = ratings.load("jester-1", FEW, size, 0)
    judges = set(choice.users["validation"][: settings.TRIAL_USERS].tolist())
    for seed in (0, 1):
        _, mine = ratings.load("jester-1", MANY, size, seed)
        found = ratings.data.part_in_choice(data, mine, size)
        parts = [(u in set(choice.users["train"].tolist()), u in judges) for u in mine.users["test"].tolist()]
        assert found.tolist() == ["train" if a else "judge" if b else "none" for a, b in parts]
        assert (found.eq("none").all()) == (seed == 0)


def test_some_users_are_tested_by_more_than_one_seed(no_data):
    size, earlier = settings.SIZES["book"], set()
    for seed in (0, 1, 2):
        data, mine = ratings.load("ml-100k", MANY, size, seed)
        before = ratings.data.tested_before(data, mine, MANY, size, seed)
        assert before.tolist() == [user in earlier for user in mine.users["test"].tolist()]
        earlier |= set(mine.users["test"].tolist())
    assert 0 < before.sum() < 100
    found = tables.distinct(full()[1])
    assert found["test users"].eq(300).all() and found["different ones"].idxmin() == ("ml-100k", MANY)
    assert found["different ones"].min() == 188 and found["different ones"].max() == 299


# ----------------------------------------------------------------------------------------------------------- scores, tables


def test_recorded_errors_and_scales_give_every_score(no_data, tmp_path):
    cell = find(settings.cells("smoke", 0), "users", data="ml-100k", shots=FEW)
    users = rows_of(cell, tmp_path)
    data, splits = ratings.load("ml-100k", FEW, settings.SIZES["smoke"], 0)
    tasks = ratings.make_test_tasks(splits, FEW, 0)
    guess, y = tasks.support_y.mean(1, keepdim=True).expand_as(tasks.query_y), tasks.query_y
    expected = {scale: metrics.nrmse(guess, y, scale) for scale in ("standard deviation", "range", "norm")}
    expected["norm of raw ratings"] = metrics.nrmse(splits.undo(guess), splits.undo(y), "norm")
    expected["rating scale"] = metrics.rmse(splits.undo(guess), splits.undo(y)) / (data.rating.max() - data.rating.min())
    expected["none"] = metrics.rmse(guess, y)
    for scale, values in expected.items():
        np.testing.assert_allclose(Score(scale).of(users, error="user mean"), values, rtol=1e-3)
        np.testing.assert_allclose(Score(scale, 2, 1).of(users, error="user mean"), values**2 / 15, rtol=1e-3)
    norm = splits.undo(y).flatten(1).norm(dim=1)
    root = Score("norm of raw ratings", 1, 0.5).of(users, error="user mean")
    np.testing.assert_allclose(root, metrics.rmse(splits.undo(guess), splits.undo(y)) / norm, rtol=1e-3)


def test_a_scale_of_zero_has_no_score_and_unknown_scores_are_refused():
    table = pd.DataFrame({"query": [1.0, 3.0], "support": [1.0, 2.0], "query range": [0.0, 2.0], "support range": [1.0, 4.0]})
    table = table.assign(**{"query points": 15, "support points": 10})
    np.testing.assert_array_equal(Score("range").of(table), [NAN, 1.5])
    np.testing.assert_array_equal(Score("range", 1, 1).of(table, "support"), [0.1, 0.05])
    for wrong in (("variance",), ("range", 3), ("range", 1, 2)):
        with pytest.raises(ValueError, match="a score has a scale of"):
            Score(*wrong)
    assert len(scores.BY_NAME) == len(scores.ALL) == 36 and str(scores.NEAREST) in scores.BY_NAME


def test_an_error_that_is_no_number_is_left_out_after_the_steps_of_the_training_and_a_divergence_up_to_them():
    def table(query):
        return pd.DataFrame({"step": [0, 5, 100], "task": 0, "support": 1.0, "query": query})

    found = error_rows(table([1.0, 2.0, NAN]), trained=5)
    assert found["step"].tolist() == [0, 5, 100] and found["trained"].eq(5).all() and list(found)[:2] == ["step", "user"]
    np.testing.assert_array_equal(found["query"], [1.0, 2.0, NAN])
    assert error_rows(table([1.0, 2.0, float("inf")]), trained=5)["query"].isna().tolist() == [False, False, True]
    for wrong in (NAN, float("inf"), 2 * BLOWN_UP):
        with pytest.raises(DivergenceError, match="the test diverged for 1 users, from step 5 on"):
            error_rows(table([1.0, wrong, 1.0]), trained=5)


@cache
def smoke(method, table, data, shots):
    """The rows of a smoke cell of errors on a stand-in, and of its users."""
    cells = settings.cells("smoke", 0)
    users = find(cells, "users", data=data, shots=shots)
    return rows_of(find(cells, table=table, method=method, data=data, shots=shots), None), rows_of(users, None)


def test_a_cell_of_table_2_is_read_at_the_steps_it_was_trained_for(no_data):
    for method, steps in (("MAML", 10), ("FOMAML", 20)):
        errors, users = smoke(method, 2, "jester-1", FEW)
        assert errors.groupby("step").size().eq(20).all()
        found = tables.means(tables.trained(errors, users, 2), Score("none")).loc[("jester-1", FEW, method)]
        assert found["mean"] == pytest.approx(errors.loc[errors["step"].eq(steps), "query"].mean())
        assert (found["users"], found["seeds"], found["over"]) == (20, 1, "users")
        assert not set(tables.trained(errors, users, 1)["method"]) & set(settings.METHODS)


def test_both_results_stand_side_by_side_and_what_is_missing_says_so(no_data):
    errors, users = smoke("MAML", 1, "ml-1m", MANY)
    none = pd.DataFrame()
    table = tables.side_by_side(errors, users, none, 1)
    assert len(table) == 6 * (5 + 3)
    ours = table.loc[("ml-1m", MANY, "MAML")]
    assert ours["paper"] == "0.059 ± 0.001" and ours["users"] == "20" and ours["±"] == "users"
    rows = tables.trained(errors, users, 1)
    mine = rows[rows["method"].eq("MAML")]
    for score, column in ((Score("range"), "ours, / range"), (scores.NEAREST, "ours, / (standard deviation·n)")):
        assert ours[column] == str(metrics.interval(score.of(mine)))
    assert (table["ours, RMSE"] == "not run").sum() == len(table) - 4
    assert table.loc[("ml-1m", MANY, "user mean"), "paper"] == ""
    # A seed that diverged is counted, and one that is alone says so.
    lost = pd.DataFrame([{"table": 1, "method": "MAML", "data": "ml-1m", "shots": MANY, "seed": 1, "message": "meta step 3"}])
    key = ("ml-1m", MANY, "MAML")
    both = tables.side_by_side(errors, users, lost, 1).loc[key]
    alone = tables.side_by_side(errors.assign(method="FOMAML"), users, lost, 1).loc[key]
    assert both["users"] == "20, 1 diverged" and both["ours, / range"] == ours["ours, / range"]
    assert alone["ours, / range"] == "diverged" and alone["users"] == "–, 1 diverged"


def test_an_interval_is_over_seeds_where_these_differ_more_than_users():
    draws = np.random.default_rng(0).normal(1, 0.1, (3, 50))

    def rows(shift):
        values = draws + np.array([0, shift, 2 * shift])[:, None]
        table = pd.DataFrame({"query": values.ravel(), "seed": np.repeat(range(3), 50), "user": np.tile(range(50), 3)})
        return tables.means(table.assign(data="x", shots=FEW, method="MAML", **{"query points": 1}), Score("none")).iloc[0]

    alike, apart = rows(0.0), rows(0.2)
    assert alike["over"] == "users" and alike["half"] == pytest.approx(1.96 * draws.std(ddof=1) / 150**0.5)
    means = draws.mean(1) + [0, 0.2, 0.4]
    assert apart["over"] == "seeds" and apart["mean"] == pytest.approx(means.mean())
    assert apart["half"] == pytest.approx(4.3027 * means.std(ddof=1) / 3**0.5, rel=1e-4)
    found = for_report()
    assert set(found.loc[found["over"].eq("seeds"), "method"]) == {"iMAML"} and found["over"].eq("seeds").sum() == 4


def test_the_report_gets_every_number_in_a_named_score():
    plain, nearest = for_report(), for_report(str(scores.NEAREST))
    assert len(plain) == len(nearest) == 60
    points = plain["shots"].map(lambda shots: settings.SHOTS[shots][1])
    np.testing.assert_allclose(nearest["mean"], plain["mean"] / points)
    assert plain["diverged"].sum() == 7 and (plain["seeds"] + plain["diverged"]).eq(3).all()
    assert plain["users"].le(100 * plain["seeds"]).all() and plain["users"].gt(95 * plain["seeds"]).all()
    with pytest.raises(KeyError):
        tables.for_report("RMSE/luck")
    rows = tables.report_rows()
    for line in published("ratings").itertuples(index=False):
        found = rows.loc[(line.source, line.data, line.shots, line.method)]
        assert found["mean"] > 0 and ("diverged" in found["over"]) == found["diverged"]


def test_pairs_are_compared_on_the_users_that_both_have():
    errors, users, lost = full()
    table = tables.paired(errors, users, lost, 1)
    rows = tables.trained(errors, users, 1)
    wide = rows[rows["data"].eq("jester-1") & rows["shots"].eq(MANY)].pivot(
        index=["seed", "user"], columns="method", values="query"
    )
    found = table.loc[("jester-1", MANY, "FOMAML")]
    assert found["quotient"] == pytest.approx(wide["FOMAML"].mean() / wide["A-MAML"].mean())
    by_seed = wide.groupby("seed").mean()
    logs = np.log(by_seed["FOMAML"] / by_seed["A-MAML"])
    assert found["seeds"] == pytest.approx(np.exp(logs.mean()) * 4.3027 * logs.std() / 3**0.5, rel=1e-4)
    draws = np.random.default_rng(0).integers(0, len(wide), (2000, len(wide)))
    a, b = (wide[m].to_numpy()[draws].mean(1) for m in ("FOMAML", "A-MAML"))
    assert found["users"] == pytest.approx(1.96 * (a / b).std(), rel=0.1)
    short = table.loc[("ml-100k", MANY, "iMAML")]
    assert (short["n seeds"], short["n users"], short["diverged"]) == (2, 200, 1)
    paper = tables.theirs(1)["value"]
    assert found["published"] == pytest.approx(paper["jester-1", MANY, "FOMAML"] / paper["jester-1", MANY, "A-MAML"])


def test_a_second_run_of_imaml_is_another_result():
    found, errors = second(), full()[0]
    assert found["runs"].eq(3).all() and len(found) == 12
    assert (found["first"].sum(), found["second"].sum(), found["either"].sum()) == (7, 12, 14)
    key = {"table": 2, "data": "ml-100k", "shots": MANY, "seed": 1}
    one, two = (
        t[t["method"].eq("iMAML") & t["step"].eq(t["trained"]) & (t[list(key)] == pd.Series(key)).all(axis=1)]["query"].mean()
        for t in (errors, recorded("again"))
    )
    assert found["change"].max() == pytest.approx(100 * abs(two / one - 1)) and found["change"].max() > 10


def test_first_order_is_behind_by_little_and_resolved_and_imaml_by_more_in_more_columns():
    pairs = claims.quotients(*full())
    behind = pairs.loc[1].xs("FOMAML", level="method").xs(MANY, level="shots")
    assert behind["quotient"].round(4).tolist() == [1.0105, 1.0051, 1.0058] and behind["resolved"].str.contains("users").all()
    assert (behind.loc["jester-1", "quotient"] + np.array([-1, 1]) * behind.loc["jester-1", "users"]).round(3).tolist() == [
        1.007,
        1.014,
    ]
    others = pairs.drop("iMAML", level="method")["quotient"]
    assert (others - 1).abs().max() < 0.045
    late = pairs.xs("iMAML", level="method").query("quotient > 1.02")
    assert len(late) == 5 and 0.18 < late["quotient"].max() - 1 < 0.19 and late["diverged"].gt(0).sum() == 4
    for number in settings.TABLES:
        worse = claims._over_user_mean(tables.means(tables.trained(*full()[:2], number), Score()))
        keys = worse[worse].index  # the methods that lose against the user's mean
        assert len(keys) == {1: 0, 2: 3}[number] and pairs.loc[number].reindex(keys)["diverged"].gt(0).all()
    assert facts()["ratings-imaml-columns"] == "5 of 12" and facts()["ratings-imaml-behind"] == "4 to 19"


# ------------------------------------------------------------------------------------------- readings of the published tables


def test_the_falls_of_table_1_are_one_constant_and_those_of_table_2_are_not():
    one, two = (readings.common_fall(number) for number in settings.TABLES)
    assert one.freedom == two.freedom == 11 and one.value == pytest.approx(0.391, abs=5e-4) and round(one.half_width, 3) == 0.009
    assert one.chi2 == pytest.approx(3.5, abs=0.05) and one.p > 0.95 and one.p_half > 0.05
    assert max(two.p, two.p_half) < 1e-6
    falls = readings.fall(tables.theirs(2)["value"])
    assert round(falls.min(), 2) == 0.27 and round(falls.max(), 2) == 0.64


def test_the_nearest_reading_gives_amamls_row_and_the_others_lose_against_the_users_mean():
    errors, users, lost = full()
    ours = for_report(str(scores.NEAREST)).query("table == 1 and method == 'A-MAML'")
    assert ours["mean"].round(3).tolist() == [0.067, 0.032, 0.068, 0.032, 0.068, 0.032]
    near = readings.distances(errors, users)
    row = near.loc[str(scores.NEAREST)]
    for number, factor in ((1, 1.234), (2, 1.279)):
        logs = np.log(ours["mean"].to_numpy() / tables.theirs(number)["value"].xs("A-MAML", level="method").to_numpy())
        assert row[f"Table {number}", "A-MAML"] == pytest.approx(np.exp(np.abs(logs).mean()), rel=0.01)
        assert row[f"Table {number}", "A-MAML"] == pytest.approx(factor, abs=1e-3) and row[f"Table {number}", "A-MAML nearest"]
    assert near.index[:2].tolist() == ["MSE/(standard deviation²·n)", str(scores.NEAREST)]
    plain = near.loc["RMSE/standard deviation"]
    assert plain["Table 1", "A-MAML"] > 10 and plain["Table 1", "fall"] == pytest.approx(2 * row["Table 1", "fall"])
    above = readings.over_user_mean(users).groupby("method")["above"].sum()
    assert above["A-MAML"] == 3 and above.drop("A-MAML").sum() == 47
    bars = tables.means(tables.trained(errors, users, 1), Score("none"))["mean"]
    ridge = bars.xs("item means + ridge", level="method")
    assert (ridge < bars.xs("user mean", level="method")).all()


def test_no_scale_of_a_column_closes_the_gap():
    errors, users, _ = full()
    for number in settings.TABLES:
        ours, paper = readings.of_methods(errors, users, number, Score())["mean"], tables.theirs(number)["value"]
        floor = readings.floor(errors, users, number)
        best = []  # by trying scales
        for column in tables.COLUMNS:
            logs = np.log((ours / paper.reindex(ours.index)).sort_index().loc[column].to_numpy())
            best.append(min(np.abs(logs - shift).mean() for shift in np.linspace(logs.min(), logs.max(), 2001)))
        assert 1.4 < floor == pytest.approx(np.exp(np.mean(best)), rel=1e-3)
        for score in ("range", "norm of raw ratings"):
            table = readings.of_methods(errors, users, number, Score(score))["mean"]
            assert np.exp(np.log(table / paper.reindex(table.index)).abs().mean()) > floor


def test_the_least_error_is_that_of_normal_errors():
    draws = np.random.default_rng(0).normal(size=(2000, 100, 15))
    means = np.sqrt((draws**2).mean(2)).mean(1)
    assert means.std() / means.mean() == pytest.approx(readings.least_error(15), rel=0.1)
    below = readings.relative_errors().loc["MAML"] < [readings.least_error(settings.SHOTS[s][1]) for _, s in tables.COLUMNS]
    assert below.sum() == 4


def as_published():
    """Errors with which the reading would be true for all methods: what the paper has, times each user's scale and points."""
    errors, users, _ = full()
    table = errors[errors["step"].eq(errors["trained"])].merge(users[[*tables.USER, "query standard deviation"]], on=tables.USER)
    table = table.sort_values(["table", "method", "data", "shots", "seed", "user"], ignore_index=True)
    paper = pd.concat({n: tables.theirs(n)["value"] for n in settings.TABLES}, names=["table"]).rename("value").reset_index()
    value = table.merge(paper, on=["table", *tables.KEYS], how="left")["value"]
    points = table["shots"].map(lambda shots: settings.SHOTS[shots][1])
    return table.assign(query=value * points * table.pop("query standard deviation")), users


def test_what_the_chapters_conclude_follows_from_the_records_and_would_not_from_others():
    holds = claims.conclusions(*full())
    assert holds == claims.of_readings(*full()) + claims.of_methods(*full())
    assert [c.verdict for c in holds] == ["holds"] * len(holds) and len({c.claim for c in holds}) == len(holds)
    errors, users = as_published()
    other = {c.claim: c.verdict for c in claims.conclusions(errors, users, full()[2])}
    ours = [c.claim for c in holds]
    assert other[ours[0]] == "does not hold"  # the scale alone differs
    assert other[ours[3]] == other[ours[5]] == "does not hold"  # the fall fits, and the quotients meet
    assert other[ours[6]] == "holds in part"  # resolved, and not by little
    twice = errors.assign(query=errors["query"] * errors["method"].eq("A-MAML").map({True: 2, False: 1}))
    assert {c.claim: c.verdict for c in claims.conclusions(twice, users, full()[2])}[ours[2]] == "does not hold"


def test_the_papers_claims_are_judged_on_columns_with_two_seeds_or_more():
    found = {c.claim: c for c in claims.claims()}
    assert len(found) == 8
    for rival in settings.METHODS[1:]:
        factor = found[f"Ratings: A-MAML's error is lower than {rival}'s by the published factor"]
        assert factor.verdict == "does not hold"
        assert ("diverged" in factor.note) == ("wider than ± 0.1" in factor.note) == (rival == "iMAML")
        lower = found[f"Ratings: A-MAML's error is lower than {rival}'s"]
        assert ("by chance alone" in lower.note) == (rival == "MAML") and "chance" not in factor.note
    assert found["Ratings: A-MAML's error is lower than Reptile's"].verdict == "holds in part"


def test_every_number_in_the_text_is_a_fact_and_every_fact_is_in_the_text():
    errors, gap = ratings_gap.tables.recorded("errors"), compared()
    trained_there = ("ratings-data", "ratings-first-factor", "ratings-helped-a-maml", "ratings-helped-reptile")
    live = dict.fromkeys(trained_there, "")
    chapters = {
        "12_collaborative_filtering": facts() | live,
        "17_published_ratings": claims.reading_facts(*full()[:2]) | ratings_gap.claims.facts(errors, gap),
    }
    for name, known in chapters.items():
        text = (CHAPTERS / f"{name}.md").read_text()
        assert set(re.findall(r"\{glue:text\}`([^`]+)`", text)) == set(known)
        assert not [fact for fact, value in known.items() if re.search(r"nan|inf|not run", value)]


# ------------------------------------------------------------------------------------------------------------- the first look


def test_the_first_look_compares_all_methods_on_the_same_users(no_data, capsys):
    found = ratings.first_look("smoke", 0)
    assert "stand-in" in capsys.readouterr().err
    errors, users, size = found["errors"], found["users"], settings.SIZES["smoke"]
    assert errors.groupby("method").size().to_dict() == dict.fromkeys(settings.METHODS, size.test_users * len(size.test_steps))
    assert np.isfinite(errors[["support", "query"]].to_numpy()).all() and len(users) == size.test_users
    cells = settings.first_look("smoke", 0)
    assert {c.settings["inner_lr"] for c in cells if c.kind == "errors"} == {settings.FIRST_LOOK.inner_lr}
    cell = find(cells, method="FOMAML")
    again, other = running.run(cell, None), running.run(find(settings.first_look("smoke", 1), method="FOMAML"), None)
    mine = errors[errors["method"].eq("FOMAML")].reset_index(drop=True)
    assert again["query"].equals(mine["query"]) and not other["query"].equals(mine["query"])
    table = first.summary(errors, users, "smoke")
    mean, half, count = metrics.interval(mine.loc[mine["step"].eq(10), "query"])
    assert table.loc["FOMAML", "RMSE after K"] == f"{mean:.3f} ± {half:.3f}" and count == size.test_users
    scale = first.over_scales(errors, users)
    assert scale["scale"].iloc[2] == pytest.approx(users["query range"].mean()) and scale["scale"].iloc[0] == 1
    assert first.over_published(errors) == pytest.approx(first.own_error(errors)["query"].mean() / 0.074)


def test_one_users_predictions_have_the_errors_of_the_evaluation_and_the_figure_shows_each(no_data):
    found = ratings.first_look("smoke", 0)
    predictions, errors, users = found["predictions"], found["errors"], found["users"]
    assert set(predictions["method"]) == set(settings.PICTURED) and first.same_guess(predictions)
    assert not first.same_guess(predictions.assign(before=predictions["rating"]))
    for name, rows in predictions.groupby("method"):
        mine = errors[errors["method"].eq(name)]
        for column, step in (("before", 0), ("after", mine["trained"].iloc[0])):
            at = mine[mine["step"].eq(step)].set_index("user")
            for part in ("support", "query"):
                of_part = rows[rows["set"].eq(part)]
                squares = ((of_part[column] - of_part["rating"]) / users["std"].iloc[0]).pow(2)
                ours = squares.groupby(of_part["user"]).mean().pow(0.5)
                np.testing.assert_allclose(ours, at.loc[ours.index, part], rtol=1e-3)
    one = first.typical(predictions)
    assert one["user"].nunique() == 1 and len(one) == len(settings.PICTURED) * sum(settings.SHOTS[FEW])
    mine = errors[errors["method"].eq("A-MAML")].set_index(["user", "step"])["query"].unstack("step")
    change = mine[10] - mine[0]
    assert change.rank()[one["user"].iloc[0]] == len(change) // 2
    better = first.changes(predictions)["A-MAML"].lt(0)
    assert better.equals(change.lt(0).rename("A-MAML"))
    fig = ratings.figures.one_user(one)
    titles = [axis.get_title() for axis in fig.axes]
    table = first.of_one_user(one)
    assert titles[0] == "A-MAML, seen: RMSE {before:.1f} → {after:.1f}".format(**table.loc[("A-MAML", "support")])
    assert [axis.get_yticks().size for axis in fig.axes] == [10, 10, 15, 15]


def test_the_simple_bars_are_what_they_say(no_data):
    _, splits = ratings.load("jester-1", FEW, settings.SIZES["smoke"], 0)
    tasks = ratings.make_test_tasks(splits, FEW, 0)
    table = ratings.bars(splits, tasks)
    item_mean = splits.train.nanmean(0).double()
    for b in (0, 7):
        support, query = (x[b].argmax(1) for x in (tasks.support_x, tasks.query_x))
        y, z = tasks.support_y[b, :, 0].double(), tasks.query_y[b, :, 0].double()
        # Ridge regression by its normal equations: one-hot inputs and an intercept, all with weight 1.
        design = torch.cat([tasks.support_x[b].double(), torch.ones(len(y), 1, dtype=torch.float64)], 1)
        design[:, :-1] = 0  # items outside the support set get the weight 0, so the intercept alone reaches the query
        weights = torch.linalg.solve(design.T @ design + torch.eye(101), design.T @ (y - item_mean[support]))
        for name, prediction in (
            ("user mean", y.mean().expand(len(z))),
            ("item means", item_mean[query]),
            ("item means + ridge", item_mean[query] + weights[-1]),
        ):
            assert table[name][b] == pytest.approx((prediction - z).square().mean().sqrt().item(), rel=1e-5)


def test_maml_is_trained_by_the_adjoint_of_its_steps_which_is_the_same_gradient():
    problem, theta, tasks = regression()
    method = MAML(0.05, 5)
    quick = by_adjoint(method)
    assert isinstance(quick, AMAML) and by_adjoint(quick) is quick
    expected = meta_gradient(method, problem, theta, tasks).gradient
    assert relative(meta_gradient(quick, problem, theta, tasks).gradient, expected) < 1e-12


@pytest.mark.slow
def test_compiled_training_is_eager_training_to_rounding(no_data):
    _, splits = ratings.load("jester-1", FEW, settings.SIZES["smoke"], 0)
    sampler = RatingSampler(splits.train, 10, 15, 5)
    method = settings.make_method("FOMAML", settings.FIRST_LOOK, 10)
    eager, fast = (learn(method, sampler, 100, 4, 1e-3, 0, compiled)[1] for compiled in (False, True))
    torch.testing.assert_close(fast, eager, rtol=1e-3, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------------- hypotheses


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
    _, splits = ratings.load("ml-100k", FEW, settings.SIZES["smoke"], 0)
    matrix = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN]])
    item_mean = torch.tensor([0.5, 0.25, 0.125])
    expected = {
        "item mean": [[1.0, 0.25, 3.0], [0.5, 0.25, 0.125]],
        "user mean": [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]],
    }
    for fill, values in expected.items():
        torch.testing.assert_close(complete(matrix, fill, item_mean, splits), torch.tensor(values))
    zero = splits.undo(complete(matrix, "zero", item_mean, splits))
    torch.testing.assert_close(zero[1], torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(complete(matrix, "nothing", item_mean, splits), matrix, equal_nan=True)


def test_item_features_have_the_norm_of_one_hot_inputs_and_factors_reproduce_the_covariance(no_data):
    _, splits = ratings.load("ml-100k", FEW, settings.SIZES["smoke"], 0)
    for inputs in ("one-hot", "factors", "all factors", "raters"):
        x = item_features(inputs, splits)
        assert x.shape == (100, 100) and x.square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)
    number = item_features("number", splits)
    assert number.shape == (100, 1) and number.min() == -1 and number.max() == 1
    assert number[splits.items.argmin()] == -1
    factors = item_features("factors", splits).double()
    residual = torch.where(splits.train.isnan(), 0.0, splits.train - splits.train.nanmean(0).nan_to_num(0.0)).double()
    gram = residual.T @ residual
    torch.testing.assert_close(factors @ factors.T, gram / gram.trace() * 100, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(item_features("all factors", splits).double(), factors)


def test_cells_of_hypotheses_have_names_of_their_own_and_films_only_where_there_are_more_than_a_hundred():
    cells = ratings_gap.settings.cells("full")
    assert len({c.name for c in cells}) == len(cells) == 58 * 3 and max(len(c.name) for c in cells) < 240
    for c in cells:
        first_films = ratings_gap.settings.HYPOTHESES[c.settings["hypothesis"]].items == "first"
        assert not (first_films and c.settings["data"] == "jester-1")
    assert {c.settings["hypothesis"] for c in cells} == set(ratings_gap.settings.HYPOTHESES)


@pytest.mark.parametrize("name", ["base", "number", "zero, first", "user mean", "adam", "contained"])
def test_a_hypothesis_gives_errors_of_every_user_and_the_share_of_filled_targets(no_data, tmp_path, name):
    cells = ratings_gap.settings.cells("smoke")
    wanted = {"hypothesis": name, "data": "ml-100k", "shots": FEW}
    cell, users = find(cells, method="FOMAML", **wanted), gap_running.run(find(cells, "users", **wanted), tmp_path)
    errors = gap_running.run(cell, tmp_path)
    assert errors.groupby("step")["user"].nunique().tolist() == [20, 20] and np.isfinite(errors[["query", "support"]]).all(
        axis=None
    )
    filled = ratings_gap.settings.HYPOTHESES[name].fill != "nothing"
    assert (users["filled"].iloc[0] > 0.1) == filled
    assert errors.equals(gap_running.run(cell, tmp_path))
    if name == "zero, first":  # targets on the raw scale: zero stars, or one to five
        assert users["mean"].iloc[0] < 3
    if name == "base":  # the same guess as in the evaluation itself, for the same users
        bars = running.run(find(settings.cells("smoke", 0), "users", data="ml-100k", shots=FEW), tmp_path)
        assert users["item means"].mean() == pytest.approx(bars["item means"].mean(), rel=0.1)


def gap_rows(factor, cells=None):
    """Rows of all cells of one hypothesis, as if every user's error were ``factor`` times the paper's number."""
    errors, users = [], []
    paper = ratings_gap.tables.theirs()["value"]
    for cell in cells or [c for c in ratings_gap.settings.cells("full") if c.settings["hypothesis"] == "base"]:
        c = cell.settings
        facts = c | {"seed": 0, "source": "none", "machine": "here"}
        if cell.kind == "users":
            ones = {f"{part} {scale}": 1.0 for part in ("query", "support") for scale in scores.SCALES[:4]}
            support, query = settings.SHOTS[c["shots"]]
            points = {"query points": query, "support points": support}
            users += [facts | ones | points | {"user": u, "mean": 0.0, "std": 1.0, "low": 0.0, "high": 2.0} for u in (0, 1)]
        else:
            for step, error in ((0, 9.0), (50, factor * paper[c["data"], c["shots"], c["method"]])):
                errors += [facts | {"step": step, "user": u, "query": error, "support": error, "trained": 50} for u in (0, 1)]
    return pd.DataFrame(errors), pd.DataFrame(users)


def test_the_comparison_with_the_paper_finds_a_factor_and_the_papers_own_ratios():
    none = pd.DataFrame()
    compare = ratings_gap.tables.compare
    table = compare(*gap_rows(2.0), none)
    assert set(table["steps"]) == {50} and len(table) == 2 * 36
    table = table.set_index(["set", "score"])
    paper = ratings_gap.tables.paper()
    assert paper["factor"] == 1 and paper["inside"] == 1
    row = table.loc["query", "RMSE"]
    assert row["factor"] == pytest.approx(2) and row["inside"] == 0
    assert row["fall"] == pytest.approx(paper["fall"]) and row["spread"] == pytest.approx(paper["spread"])
    half = table.loc["query", "RMSE/rating scale"]  # over 2, so this is the paper's number
    assert half["factor"] == pytest.approx(1) and half["inside"] == 1
    # A root of a sum in place of a root of a mean changes with the number of points, a fixed scale does not.
    l2 = table.loc["query", "RMSE/(norm of raw ratings·√n)"]
    assert l2["fall"] == pytest.approx(paper["fall"] * (15 / 30) ** 0.5)
    assert table.loc["support", "RMSE/(norm·n)"]["fall"] == pytest.approx(paper["fall"] * 10 / 20)
    assert table.loc["query", "MSE"]["spread"] == pytest.approx(paper["spread"] ** 2)
    errors, users = gap_rows(2.0)
    gone = errors["data"].eq("ml-100k") & errors["shots"].eq(FEW) & errors["method"].eq("FOMAML")
    assert len(compare(errors[~gone], users, none)) == 0  # an incomplete hypothesis is not judged
    lost = errors[gone].head(1)[["hypothesis", "data", "shots", "method", "seed"]]
    partly = compare(errors[~gone], users, lost).set_index(["set", "score"])
    assert partly.loc["query", "RMSE"]["factor"] == pytest.approx(2) and set(partly["diverged"]) == {1}


@cache
def compared():
    return ratings_gap.tables.compare(
        *(ratings_gap.tables.recorded(kind) for kind in ("errors", "users")), ratings_gap.tables.lost()
    )


def test_no_combination_has_the_papers_size_fall_and_spread_at_once_and_support_errors_rise():
    table, errors = compared(), ratings_gap.tables.recorded("errors")
    assert len(table) == 6768 and table["hypothesis"].nunique() == 16
    both = ratings_gap.tables.with_both(table)
    assert len(both) == 2 and set(both["hypothesis"]) == {"user mean, first"} and set(both["set"]) == {"support"}
    assert both["factor"].min() > 1.8 and set(both["steps"]) == {5} and both["score"].str.startswith("MSE").all()
    assert [c.verdict for c in ratings_gap.claims.conclusions(errors, table)] == ["holds"] * 3
    patterns = ratings_gap.tables.patterns(table)
    assert patterns["support"]["fall"].gt(1).all() and len(patterns) == 16
    verdicts = ratings_gap.tables.verdicts(table)
    assert list(verdicts.index) == list(ratings_gap.settings.HYPOTHESES)
    assert verdicts["spread, unseen"].astype(float).between(0.75, 1.25).all()
    assert verdicts["with both"].to_dict() == dict.fromkeys(verdicts.index, 0) | {"user mean, first": 2}
    least = table.loc[table["factor"].idxmin()]
    assert verdicts.loc[least["hypothesis"], "nearest"] == f"{least['factor']:.2f}" == verdicts["nearest"].min()
    assert verdicts.loc[least["hypothesis"], "where"] == f"{least['set']} set, {least['steps']} step, {least['score']}"
    near = table.assign(fall=ratings_gap.tables.paper()["fall"], spread=3.5, factor=1.1)
    assert {c.verdict for c in ratings_gap.claims.conclusions(errors, near)} == {"holds", "does not hold"}


def test_the_support_set_is_fitted_at_the_large_rate_alone():
    fit = ratings_gap.tables.support_fit(ratings_gap.tables.recorded("errors"))
    assert 0.02 < fit.loc["base", "min"] < 0.04 and 0.3 < fit.loc["base", "max"] < 0.32
    errors = full()[0]
    mine = errors[errors["step"].eq(errors["trained"])].groupby(["inner_lr", "method", "table", "data", "shots"])["support"].mean()
    assert mine.loc[[0.01, 0.03]].min() > 0.35 and mine.loc[0.1].loc["Reptile"].max() < 0.1
    assert mine.loc[0.1].loc["iMAML"].min() > 0.45


def test_a_live_run_gives_rows_like_the_records(no_data):
    table = ratings_gap.live("smoke", 0, "errors", hypothesis="same", data="jester-1", method="A-MAML", shots=FEW)
    assert set(table) == set(ratings_gap.tables.recorded("errors"))
    last = tables.last(table, smoke("MAML", 1, "ml-1m", MANY)[0])
    assert list(last.index) == [("same", "jester-1", "A-MAML"), ("Table 1", "ml-1m", "MAML")]
    assert last["RMSE"].iloc[0] == last["RMSE on the support set"].iloc[0] == f"{table[table['step'].eq(10)]['query'].mean():.3f}"
    assert set(smoke("MAML", 1, "ml-1m", MANY)[0]) == set(recorded("errors"))


def test_the_first_exercise_has_the_numbers_it_names():
    errors, users, _ = full()
    found = tables.means(tables.trained(errors, users, 1), Score("rating scale", power=2)).xs("jester-1")["mean"]
    mine = found[[(FEW, "A-MAML"), (MANY, "A-MAML"), (FEW, "FOMAML")]]
    assert mine.between(0.044, 0.05).all()


def test_evaluation_and_learning_use_the_same_network(no_data):
    _, splits = ratings.load("jester-1", FEW, settings.SIZES["smoke"], 0)
    method = settings.make_method("MAML", settings.FIRST_LOOK, 5)
    problem, theta = learn(method, RatingSampler(splits.train, 10, 15, 5), 100, 2, 1e-3, 0, fast=False)
    assert theta.shape == (100 * 40 + 40 + 40 * 40 + 40 + 40 + 1,) and (theta - problem.initial_parameters()).norm() > 0
    found = evaluate(method, problem, theta, ratings.make_test_tasks(splits, FEW, 0), metrics.rmse, (0, 5))
    assert len(found) == 2 * 20


# ---------------------------------------------------------------------------------------------------------------- horizons


def test_what_is_concluded_of_horizons_follows_from_their_rows():
    steps = settings.HORIZON_STEPS
    rows = [
        {"method": method, "trained": k, "step": step, "user": user, "seed": seed}
        | {"query": 1 - 0.1 * n + (0.01 * k / 5 if method == "FOMAML" else 0) + 0.001 * seed + (user - 0.5) * 0.2 + (step != k)}
        for n, k in enumerate(steps)
        for method in settings.HORIZON_METHODS
        for seed in range(3)
        for user in range(2)
        for step in (0, k)
    ]
    table = pd.DataFrame(rows)
    shown = ratings.horizons.by_horizon(table)
    assert list(shown.index) == [(k, pytest.approx(k / 100)) for k in steps]
    assert shown["A-MAML"].iloc[0] == "1.001 ± 0.002" and shown["FOMAML − A-MAML"].iloc[-1] == "0.400 ± 0.000"
    found = ratings.horizons.conclusions(table)
    assert [c.verdict for c in found] == ["holds"] * 3 and found[1].ours == "-0.200 ± 0.000"
    level = table.assign(query=1 + 0.1 * table["seed"])
    assert [c.verdict for c in ratings.horizons.conclusions(level)] == ["does not hold"] * 3
    assert ratings.horizons.conclusions(pd.DataFrame()) == [] and ratings.horizons.by_horizon(pd.DataFrame()).empty
    assert {c.settings["inner_lr"] for c in settings.horizon_cells("full")} == {settings.CHOSEN[1]["A-MAML"].inner_lr}


def test_a_cell_of_a_horizon_trains_and_tests_with_its_own_number_of_steps():
    cell = next(c for c in settings.horizon_cells("smoke") if c.settings["steps"] == 20)
    table = running.run(cell, Path())
    assert set(table["trained"]) == {20} and {0, 20} <= set(table["step"])
