"""The experiments at the smoke profile, on stand-ins, and their cells."""

import json

import numpy as np
import pytest
import torch

from amaml_core import metrics
from amaml_core.experiments import cells, images, ratings
from amaml_core.experiments.profiles import IMAGES, RATINGS, check_profile
from amaml_core.records import read_record


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "none"))


def test_ratings_compare_all_methods_on_the_same_users(no_data, capsys):
    table = ratings.compare("smoke", 0)
    assert "stand-in" in capsys.readouterr().err
    size = RATINGS["smoke"]
    assert set(table["method"]) == set(ratings.METHODS)
    assert len(table) == len(ratings.METHODS) * size.test_users * len(size.test_steps)
    assert np.isfinite(table[["support", "query"]].to_numpy()).all()
    few = ("MAML", "FOMAML")
    again, other = (ratings.compare("smoke", seed, methods=few).set_index("method") for seed in (0, 1))
    assert again.equals(table.set_index("method").loc[list(few)]) and not again.equals(other)


def test_the_simple_bars_are_what_they_say(no_data):
    setting, size = ratings.Setting(), RATINGS["smoke"]
    _, splits = ratings.load(setting, size, 0)
    tasks = ratings.test_tasks(splits, setting, 0)
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


@pytest.mark.slow
def test_images_learn_more_than_chance_from_one_drawing(no_data, capsys):
    table, history = images.compare("smoke", 0)
    assert "stand-in" in capsys.readouterr().err
    size = IMAGES["smoke"]
    assert len(history) == size.meta_steps * len(images.METHODS)
    final = table[table["step"] == images.Setting().inner_steps].groupby("method")["query"].mean()
    assert (final > 1 / size.way + 0.05).all()
    exact = table[table["method"] == "A-MAML"]["query"].to_numpy()
    assert np.abs(exact - table[table["method"] == "MAML"]["query"].to_numpy()).mean() < 0.02


def test_a_cell_leaves_a_record_and_is_not_run_again(no_data, tmp_path, capsys):
    chosen = [c for c in ratings.cells("smoke", 0) if c.settings["method"] == "FOMAML" and c.settings["data"] == "jester-1"]
    assert len(chosen) == 2 and len({c.name for c in chosen}) == 2
    todo = [(cell, ratings.run, tmp_path / "out") for cell in chosen]
    paths = cells.run_cells(todo)
    before = [p.read_bytes() for p in paths]
    record = read_record(paths[0])
    assert np.shape(record.figures["rmse"]) == (len(RATINGS["smoke"].test_steps), RATINGS["smoke"].test_users)
    assert [p.read_bytes() for p in cells.run_cells(todo)] == before
    again = read_record(cells.run_cell(chosen[0], ratings.run, tmp_path / "out", force=True))
    assert cells.deviation(again.figures, record.figures) == 0
    assert "0.0e+00 from the record that stood (within" in capsys.readouterr().out
    other = json.loads(paths[0].read_text()) | {"seed": 5}
    paths[0].write_text(json.dumps(other))
    with pytest.raises(ValueError, match="another configuration"):
        cells.run_cell(chosen[0], ratings.run, tmp_path / "out")


def test_the_deviation_of_two_runs_is_relative_to_the_largest_number_of_a_table():
    before = {"rmse": [[1.0, 2.0], [0.5, 4.0]], "steps": [0, 1], "data": "x", "seconds": 3.0, "best": None}
    assert cells.deviation(before, before | {"seconds": 7.0}) == 0
    assert cells.deviation(before, before | {"rmse": [[1.0, 2.0], [0.6, 4.0]]}) == pytest.approx(0.025)
    assert cells.deviation({"a": [before]}, {"a": [before | {"steps": [0, 2]}]}) == pytest.approx(0.5)
    for changed in ({"data": "y"}, {"best": 1.0}, {"rmse": [[1.0, 2.0]]}, {"rmse": [[1.0, 2.0], [0.5, None]]}):
        assert cells.deviation(before, before | changed) == np.inf
    assert cells.deviation(before, {"rmse": before["rmse"]}) == np.inf


def test_all_cells_of_the_full_profile_have_names_of_their_own():
    names = {c.name for c in ratings.cells("full")}
    assert len(names) == 90 and all(len(name) < 240 for name in names)


def test_unknown_profiles_are_refused():
    with pytest.raises(ValueError, match="profile must be one of"):
        check_profile("fast")


def test_the_interval_of_a_table_is_that_of_its_column(no_data):
    table = ratings.compare("smoke", 0, methods=("FOMAML",))
    mean, half, count = metrics.interval(table[table["step"] == 10]["query"])
    assert count == RATINGS["smoke"].test_users and 0 < half < mean
