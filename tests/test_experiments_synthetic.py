"""Synthetic regression: published values, methods, choices, curves, distances, grids, cells."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from amaml_core import metrics
from amaml_core.experiments import cells, published_curves, synthetic
from amaml_core.experiments.synthetic import GRID, METHODS, SIZES, UNTRAINED, Choice, Data
from amaml_core.records import read_record

SMOKE = SIZES["smoke"]
RELEASED = Data("cosmixture", "released")


# ------------------------------------------------------------------------------------------------------ published curves


def test_every_panel_shows_every_method_at_every_epoch_but_one_off_the_figure():
    table = published_curves.table()
    assert len(table) == 4 * 6 * 4 - 1
    assert {tuple(key) for key in table[["family", "shots"]].drop_duplicates().to_numpy()} == set(published_curves.CURVES)
    assert set(table["method"]) == set(METHODS) and set(table["step"]) == set(published_curves.EPOCHS)
    assert table["published"].between(0.1, 1.5).all()


def test_in_the_published_figure_a_maml_ends_lowest_in_every_panel():
    for panel in published_curves.CURVES.values():
        last = {method: values[-1] for method, values in panel.items()}
        assert min(last, key=last.get) == "A-MAML"


# --------------------------------------------------------------------------------------------------------------- methods


def test_maml_takes_few_steps_and_maml_1_one():
    made = {name: synthetic.make_method(name, Choice(inner_lr=0.02), SIZES["full"]) for name in METHODS}
    assert (made["MAML"].steps, made["MAML-1"].steps, made["FOMAML"].steps) == (5, 1, 50)
    assert made["A-MAML"].horizon == pytest.approx(0.02 * 50) and made["iMAML"].inner.steps == 50
    assert synthetic.make_method("A-MAML", Choice(), SIZES["full"], inner_steps=200).solver.steps == 200
    with pytest.raises(ValueError, match="method must be one of"):
        synthetic.make_method("ANIL", Choice(), SMOKE)


def test_unknown_families_are_refused():
    with pytest.raises(ValueError, match="family must be one of"):
        Data("ackley").functions()


# -------------------------------------------------------------------------------------------------------------- choosing


def test_every_method_may_try_equally_often():
    assert {len(trials) for trials in GRID.values()} == {4} and set(GRID) == set(METHODS)
    assert all(len(set(trials)) == 4 for trials in GRID.values())


def test_validation_functions_are_neither_training_nor_test_functions():
    pools = synthetic.load(RELEASED, SMOKE, 0)
    validation = synthetic.validation_tasks(RELEASED, SMOKE, pools.standardisation, 0)
    for pool in (pools.train, pools.test):
        shared = (validation.support_x[:, None] == pool.support_x[None]).flatten(2).all(2)
        assert not shared.any()
    # The same distribution and the same units: standardised targets spread by about 1.
    assert validation.query_y.std().item() == pytest.approx(1, abs=0.3)


def test_the_trial_with_the_lowest_validation_error_is_chosen():
    found = synthetic.choose("MAML", RELEASED, SMOKE, 5)
    scores = [trial["score"] for trial in found["trials"]]
    assert len(set(scores)) > 1 and found["best"] == int(np.argmin(scores))
    tried = [Choice(**{k: v for k, v in trial.items() if k != "score"}) for trial in found["trials"]]
    assert tuple(tried) == GRID["MAML"]


def test_a_trial_that_diverges_scores_nothing_and_is_not_chosen(monkeypatch):
    trials = (Choice(inner_lr=1e30), Choice(inner_lr=0.01))
    monkeypatch.setitem(GRID, "MAML", trials)
    found = synthetic.choose("MAML", RELEASED, SMOKE, 5)
    assert found["trials"][0]["score"] is None and found["best"] == 1
    monkeypatch.setitem(GRID, "MAML", trials[:1])
    with pytest.raises(ArithmeticError, match="all 1 trials of MAML diverged"):
        synthetic.choose("MAML", RELEASED, SMOKE, 5)


def test_the_table_of_chosen_settings_is_what_the_records_chose():
    paths = sorted(synthetic.RECORDS.glob("synthetic-choice-profile=full-*.json"))
    if not paths:
        pytest.skip("no records of choices")
    found: dict = {}
    for path in paths:
        record = read_record(path)
        trial = record.figures["trials"][record.figures["best"]]
        choice = Choice(**{k: v for k, v in trial.items() if k != "score"})
        settings = record.configuration
        found.setdefault((settings["family"], settings["variant"]), {})[settings["method"]] = choice
    assert found == synthetic.CHOSEN


# ---------------------------------------------------------------------------------------------------------------- curves


def test_the_untrained_row_starts_at_the_error_of_the_initial_network():
    figures = synthetic.curves(UNTRAINED, RELEASED, SMOKE, Choice(), seed=3)
    model = synthetic.seeded(synthetic.network(2), torch.Generator().manual_seed(3))
    tasks = synthetic.load(RELEASED, SMOKE, 3).test
    with torch.no_grad():
        held_out = metrics.rmse(model(tasks.query_x), tasks.query_y)  # (B,)
        support = metrics.nrmse(model(tasks.support_x), tasks.support_y, "standard deviation")
    for protocol in ("adam", "own"):
        found = figures[protocol]
        assert found["held-out"]["training"]["mean"][0] == pytest.approx(held_out.mean().item(), abs=2e-5)
        assert found["support"]["task"]["mean"][0] == pytest.approx(support.mean().item(), abs=2e-5)
        assert found["held-out"]["training"]["se"][0] == pytest.approx(held_out.std().item() / len(tasks) ** 0.5, abs=2e-5)


def test_adaptation_lowers_the_error_on_the_support_set():
    size = replace(SMOKE, epochs=200, every=50)
    mean = synthetic.curves(UNTRAINED, Data(), size, Choice(), 0)["adam"]["support"]["training"]["mean"]
    assert len(mean) == 5 and mean[-1] < 0.6 * mean[0]


def test_training_lowers_the_error_after_adaptation():
    size, data = replace(SMOKE, train_tasks=50, meta_steps=60, inner_steps=10), Data()
    trained, untrained = (
        synthetic.curves(name, data, size, Choice(0.05, 3e-3), 0)["own"]["held-out"]["training"]["mean"]
        for name in ("A-MAML", UNTRAINED)
    )
    assert trained[-1] < 0.7 * untrained[-1]


@pytest.mark.slow
def test_the_live_comparison_is_a_table_like_that_of_the_records():
    table = synthetic.compare("smoke", 0, (Data(shots=5), Data("alpine", d=1, shots=5)), ("MAML-1", UNTRAINED))
    assert set(table["protocol"]) == {"adam", "own"} and set(table["normaliser"]) == {"training", "task"}
    steps = len(SMOKE.adam_epochs) + len(SMOKE.own_steps)
    assert len(table) == 2 * 2 * 2 * 2 * steps and np.isfinite(table[["mean", "se"]].to_numpy()).all()
    assert table.equals(synthetic.compare("smoke", 0, (Data(shots=5), Data("alpine", d=1, shots=5)), ("MAML-1", UNTRAINED)))


def test_over_seeds_averages_and_shrinks_the_standard_error():
    figures = synthetic.curves(UNTRAINED, Data(shots=5), SMOKE, Choice(), 0)
    one = synthetic.tidy(figures, method="x", seed=0)
    pooled = synthetic.over_seeds(synthetic.pd.concat([one, one.assign(seed=1, mean=one["mean"] + 0.2)], ignore_index=True))
    np.testing.assert_allclose(pooled["mean"], one["mean"] + 0.1)
    np.testing.assert_allclose(pooled["se"], one["se"] / 2**0.5)
    np.testing.assert_allclose(pooled["high"] - pooled["low"], 0.2)
    assert (pooled["seeds"] == 2).all() and len(pooled) == len(one)


# ------------------------------------------------------------------------------------------------------------- distances


def published_as_ours(shift=0.0, **settings):
    table = published_curves.table().rename(columns={"published": "mean"})
    table["mean"] += shift
    return table.assign(
        **{
            "variant": "slides",
            "d": 2,
            "protocol": "adam",
            "set": "held-out",
            "normaliser": "task",
            "seed": 0,
            "se": 0.0,
        }
        | settings
    )


def test_the_distance_of_the_published_curves_to_themselves_is_zero():
    ours = synthetic.pd.concat([published_as_ours(), published_as_ours(0.1, set="support")])
    found = synthetic.distances(ours)
    assert found["distance"].tolist() == pytest.approx([0] * 4 + [0.1] * 4)
    assert found["set"].tolist() == ["held-out"] * 4 + ["support"] * 4
    assert found["correlation"].tolist() == pytest.approx([1] * 8)
    assert sorted(found["points"].unique()) == [23, 24]
    assert len(synthetic.distances(ours, by_method=True)) == 2 * 4 * 6


def test_a_stand_in_is_compared_with_the_curves_of_every_method():
    ours = published_as_ours()
    found = synthetic.distances(ours[ours["method"] == "Reptile"].assign(method=UNTRAINED), stand_in=UNTRAINED)
    panel = np.array([published_curves.CURVES["alpine", 50][m] for m in METHODS])  # (6, 4)
    expected = np.sqrt(((panel - panel[METHODS.index("Reptile")]) ** 2).mean())
    here = found[found["family"].eq("alpine") & found["shots"].eq(50)]
    assert here["distance"].item() == pytest.approx(expected) and here["points"].item() == 24


def test_no_common_epoch_gives_no_distance():
    assert synthetic.distances(published_as_ours(step=7)).empty


# ----------------------------------------------------------------------------------------------------- surfaces and grids


def test_an_instance_is_the_function_at_every_grid_point():
    line, f = synthetic.instance(Data("alpine", "slides"), 5, seed=4)
    family = Data("alpine", "slides").functions()
    parameters = family.draw(1, torch.Generator().manual_seed(4))
    assert f.shape == (5, 5) and line[0] == family.low and line[-1] == family.high
    for i, j in ((0, 3), (2, 1)):
        at = family(parameters, torch.stack([line[i], line[j]])[None, None])
        assert f[i, j].item() == pytest.approx(at.item(), rel=1e-12)


@pytest.mark.parametrize("family", synthetic.FAMILIES)
def test_the_grid_shows_the_function_that_the_network_was_adapted_to(family):
    size, data = replace(SMOKE, epochs=20, grid=9), Data(family, "released", shots=30)
    found = synthetic.predictions(UNTRAINED, data, size, Choice(), seed=1, task=2)
    pools = synthetic.load(data, size, 1)
    # Its truth is the test function: it gives the support targets where the support inputs are.
    functions = data.functions()
    parameters = functions.draw(20, torch.Generator().manual_seed(1001))[12][None]
    x = torch.tensor(found["support"], dtype=torch.float64)[None]
    targets = pools.standardisation.undo_y(pools.test.support_y[2])
    np.testing.assert_allclose(functions(parameters, x)[0], targets, atol=5e-3)
    line = torch.tensor(found["line"], dtype=torch.float64)
    at = functions(parameters, torch.stack([line[2], line[7]])[None, None]).item()
    assert found["truth"][2][7] == pytest.approx(at, abs=2e-5)
    assert np.shape(found["predictions"]) == (3, 9, 9) and found["epochs"] == [0, 4, 20]
    model = synthetic.seeded(synthetic.network(2), torch.Generator().manual_seed(1))
    point = (torch.stack([line[2], line[7]])[None].float() - pools.standardisation.x_mean) / pools.standardisation.x_std
    with torch.no_grad():
        expected = pools.standardisation.undo_y(model(point)).item()
    assert found["predictions"][0][2][7] == pytest.approx(expected, abs=2e-4)
    assert not np.allclose(found["predictions"][2], found["predictions"][0], atol=1e-3)


def test_a_grid_needs_two_inputs():
    with pytest.raises(ValueError, match="two inputs"):
        synthetic.predictions(UNTRAINED, Data(d=1), SMOKE, Choice(), 0)


# ----------------------------------------------------------------------------------------------------------------- cells


def test_all_full_cells_have_names_of_their_own_and_cover_the_plan():
    full = synthetic.cells("full")
    names = {c.name for c in full}
    assert len(names) == len(full) and all(len(name) < 240 for name in names)
    count = {kind: sum(c.experiment == kind for c in full) for kind in {c.experiment for c in full}}
    assert count == {
        "synthetic-choice": 4 * 6,
        "synthetic": 2 * 2 * 2 * 2 * 7 * 3,
        "synthetic-grid": 4 * 3,
        "synthetic-horizon": 4 * 2 * 4,
    }
    assert len(synthetic.cells("full", seed=0)) < len(full)


@pytest.mark.slow
def test_cells_of_every_kind_run_repeat_and_are_read_back(tmp_path):
    chosen = {}
    for cell in synthetic.cells("smoke", 0):
        if cell.settings["method"] in ("FOMAML", "MAML") and cell.settings["family"] == "alpine":
            chosen.setdefault(cell.experiment, cell)
    assert len(chosen) == 4
    for cell in chosen.values():
        path = cells.run_cell(cell, synthetic.run, tmp_path)
        before = read_record(path).figures
        assert read_record(cells.run_cell(cell, synthetic.run, tmp_path, force=True)).figures == before
    assert synthetic.read(tmp_path).empty  # only full-scale records count
    for cell in chosen.values():
        path = cell.path(tmp_path)
        content = json.loads(path.read_text())
        content["configuration"]["profile"] = "full"
        path.with_name(path.name.replace("profile=smoke", "profile=full")).write_text(json.dumps(content))
    table = synthetic.read(tmp_path)
    assert set(table["protocol"]) == {"adam", "own"}
    assert table.loc[0, list(asdict(Data()))].to_dict() == {
        "family": "alpine",
        "variant": "slides",
        "d": 2,
        "shots": 50,
    }
    horizons = synthetic.read(tmp_path, "synthetic-horizon")
    assert set(horizons["protocol"]) == {"own"} and set(horizons["trained_steps"]) == {SMOKE.horizons[0]}


def test_the_horizon_that_a_method_is_trained_for_changes_what_it_learns():
    short, long = (synthetic.curves("A-MAML", Data(), SMOKE, Choice(0.05), 0, k, adam=False) for k in (1, 20))
    assert set(short) == {"own"} and short["own"]["held-out"] != long["own"]["held-out"]


def test_the_network_is_the_papers():
    shapes = [tuple(p.shape) for p in synthetic.network(2).parameters()]
    assert shapes == [(32, 2), (32,), (32, 32), (32,), (1, 32), (1,)]
    assert sum(isinstance(m, nn.Tanh) for m in synthetic.network(2)) == 2
