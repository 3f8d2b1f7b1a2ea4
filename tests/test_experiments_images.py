"""Few-shot images at full size: rows, choices, what an accuracy without transduction is, and runs that go on after an interrupt."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from amaml_core import AMAML, IMAML, Problem, metrics
from amaml_core.experiments import images, images_full
from amaml_core.experiments.cells import SCRATCH, read_records, run_cell
from amaml_core.experiments.published import IMAGES_TABLE
from amaml_core.records import new_record, read_record
from amaml_core.samplers import ImageSampler
from amaml_core.tasks import Tasks


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "none"))


def cell(row, **more):
    (found,) = [c for c in images_full.cells("smoke") if c.settings == {"profile": "smoke", "size": "tiny", "row": row} | more]
    return found


def test_every_published_row_has_a_cell_at_every_size_and_those_for_a_gpu_are_left_to_one():
    for (data, _), rows in IMAGES_TABLE.items():
        assert tuple(rows) == images_full.ROWS == tuple(images_full.PUBLISHED[data])
    cells = images_full.cells("full")
    assert len(cells) == 7 * 3 + 7 and len({c.name for c in cells}) == len(cells)
    here = images_full.every_cell("full")
    assert len(here) == (28 if torch.cuda.is_available() else 14)


def test_all_rows_have_as_many_trials_and_a_horizon_is_that_of_its_row():
    assert {len(trials) for trials in images_full.TRIALS.values()} == {3}
    for horizon in (0.5, 1.0):
        row = f"A-MAML, T={horizon}"
        for recipe in (*images_full.TRIALS[row], *(table[row] for table in images_full.PUBLISHED.values())):
            method = images_full.make_method(row, recipe)
            assert isinstance(method, AMAML) and method.horizon == pytest.approx(horizon)
            assert method.solver.steps == recipe.steps
    for row in ("iMAML-GD", "iMAML-HF"):
        method = images_full.make_method(row, images_full.PUBLISHED["omniglot"][row])
        assert isinstance(method, IMAML) and method.regularization == 2.0


def test_the_chosen_trials_are_those_of_the_records():
    records = [r for r in read_records(images_full.RECORDS) if "choice" in r.configuration]
    if not records:
        pytest.skip("no records of the choice")
    assert {r.configuration["row"] for r in records} == set(images_full.ROWS)
    for r in records:
        row, found = r.configuration["row"], r.figures["validation_accuracy"]
        assert r.figures["trials"] == [asdict(trial) for trial in images_full.TRIALS[row]]
        assert found.index(max(found)) == r.figures["best"] == images_full.CHOSEN[row]


def test_the_records_are_of_the_settings_that_stand_here():
    for r in read_records(images_full.RECORDS):
        settings, size = r.configuration, images_full.SIZES["full"][r.configuration["size"]]
        if "choice" in settings:
            assert (r.figures["updates"], r.figures["tasks"]) == (size.trial_updates, 100)
        else:
            assert r.figures["recipe"] == asdict(images_full.recipe(settings["row"], settings["size"]))
            assert r.figures["size"] == asdict(size) and "stand-in" not in r.figures["data"]


def test_max_pooling_leaves_five_by_five_places_of_an_84_by_84_image():
    network = images.network(4, 5, channels=3, pooled=True)
    assert network(torch.zeros(2, 3, 84, 84)).shape == (2, 5)
    assert sum(p.numel() for p in network[-1].parameters()) == (25 * 4 + 1) * 5


def some_tasks(generator):
    x = torch.randn(3, 4 + 6, 1, 28, 28, generator=generator)
    y = torch.randint(4, (3, 10), generator=generator)
    return Tasks(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])


def test_without_batch_norm_one_at_a_time_is_the_usual_accuracy():
    generator = torch.Generator().manual_seed(0)
    tasks = some_tasks(generator)
    problem = Problem(nn.Sequential(nn.Flatten(), nn.Linear(784, 4)), nn.functional.cross_entropy)
    u = torch.randn(3, problem.size, generator=generator)
    usual = (problem.predict(u, tasks.query_x).argmax(-1) == tasks.query_y).float().mean(1)
    torch.testing.assert_close(images_full.one_at_a_time(problem, u, tasks), usual)


def test_one_at_a_time_does_not_depend_on_the_other_query_images():
    generator = torch.Generator().manual_seed(1)
    tasks = some_tasks(generator)
    network = images.network(4, 4)
    problem = Problem(network, nn.functional.cross_entropy)
    u = problem.initial_parameters() + torch.randn(3, problem.size, generator=generator)

    def alone(order):
        shown = replace(tasks, query_x=tasks.query_x[:, order], query_y=tasks.query_y[:, order])
        return images_full.one_at_a_time(problem, u, shown)

    torch.testing.assert_close(alone(range(6)), torch.stack([alone([q]) for q in range(6)], 1).mean(1))
    together, first = problem.predict(u, tasks.query_x)[:, :1], problem.predict(u, tasks.query_x[:, :1])
    assert not torch.allclose(together, first, rtol=0.1)  # among the others, an image has other batch statistics


@pytest.mark.slow
def test_a_row_gives_an_accuracy_of_each_test_task_also_after_an_interrupt(tmp_path, monkeypatch):
    chosen = cell("FOMAML")
    whole = images_full.run(chosen, tmp_path / "whole")
    assert np.shape(whole["accuracy"]) == (len(whole["steps"]), 10) and len(whole["one_at_a_time"]) == 10
    assert "stand-in" in whole["data"]

    sample, calls = ImageSampler.__call__, []

    def limited(sampler, generator):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return sample(sampler, generator)

    monkeypatch.setattr(ImageSampler, "__call__", limited)
    with pytest.raises(KeyboardInterrupt):
        images_full.run(chosen, tmp_path / "parts")
    monkeypatch.setattr(ImageSampler, "__call__", sample)
    (left,) = (tmp_path / "parts").glob("*.safetensors")
    (tmp_path / "records" / SCRATCH).mkdir(parents=True)
    shutil.copy(left, tmp_path / "records" / SCRATCH)
    finished = read_record(run_cell(chosen, images_full.run, tmp_path / "records")).figures
    assert finished["accuracy"] == whole["accuracy"] and not list((tmp_path / "records" / SCRATCH).iterdir())
    again = images_full.run(chosen, tmp_path / "parts")
    assert again | {"training_seconds": 0} == whole | {"training_seconds": 0}

    record = new_record("images_full", chosen.settings, 0, whole, 1.0)
    own = np.array(whole["accuracy"])[whole["steps"].index(whole["own_steps"])]
    found = images_full.accuracy([record], "tiny", "FOMAML")
    assert found == metrics.interval(100 * own) and found.count == 10
    alone = images_full.accuracy([record], "tiny", "FOMAML", transductive=False)
    assert alone.mean == pytest.approx(100 * np.mean(whole["one_at_a_time"]))
    assert images_full.accuracy([record], "tiny", "MAML") is None


def test_figures_of_the_full_profile_are_never_of_a_stand_in():
    for name, size in images_full.SIZES["full"].items():
        with pytest.raises(FileNotFoundError):
            images_full.samplers("MAML", size, images_full.recipe("MAML", name), 0, torch.device("cpu"))


def test_reptile_sees_all_drawings_in_its_support_set(monkeypatch):
    size, recipe = images_full.SIZES["smoke"]["tiny"], images_full.recipe("Reptile", "tiny")
    data = images_full.samplers("Reptile", size, recipe, 0, torch.device("cpu"))
    assert data.train(torch.Generator().manual_seed(0)).support_x.shape[1] == size.way * (1 + size.query)
    assert data.test(torch.Generator().manual_seed(0)).support_x.shape[1] == size.way


def test_a_choice_takes_the_best_on_validation_characters_and_passes_over_what_diverges(tmp_path, monkeypatch):
    wild = replace(images_full.TRIALS["MAML"][0], inner_lr=1e30)
    monkeypatch.setitem(images_full.TRIALS, "MAML", (wild, *images_full.TRIALS["MAML"][1:]))
    figures = images_full.run(cell("MAML", choice=3), tmp_path)
    first, *others = figures["validation_accuracy"]
    assert first is None and others[figures["best"] - 1] == max(others)
    monkeypatch.setitem(images_full.TRIALS, "MAML", (wild,))
    with pytest.raises(ArithmeticError, match="every trial of MAML diverged"):
        images_full.run(cell("MAML", choice=1), tmp_path)
