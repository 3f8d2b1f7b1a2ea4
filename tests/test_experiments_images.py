"""Few-shot images: rows, choices and their edges, accuracies with their intervals, runs that stop and go on, claims."""

import json
import platform
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from amaml_core import AMAML, IMAML, Adam, DivergenceError, InnerLoop, Problem, Reptile, meta_gradient, metrics
from amaml_core.loop import MetaStep, StopTraining
from amaml_core.samplers import ImageSampler
from amaml_core.tasks import Tasks
from experiments.common import records
from experiments.common.cells import SCRATCH, missing, run_cells
from experiments.common.choosing import chosen
from experiments.common.published import published
from experiments.common.statistics import seed_interval
from experiments.common.training import generator, image_network
from experiments.images import beside, claims, figures, horizons, settings, speed, tables, training
from experiments.images import run as running
from experiments.images.settings import (
    CHOSEN,
    EXACT,
    FIRST_LOOK,
    FIRST_RECIPE,
    FIRST_ROWS,
    GRIDS,
    PUBLISHED,
    ROWS,
    SIZES,
    TRIALS,
    Recipe,
)
from experiments.images.training import Watch, as_tested, keep_freed_memory, make_problem, samplers, train


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "none"))


@pytest.fixture(scope="module")
def reduced():
    return tables.recorded("accuracy", "reduced")


@pytest.fixture(scope="module")
def choices():
    return tables.recorded("choice", "reduced")


def cell(row, kind="accuracy"):
    (found,) = [c for c in settings.cells("smoke") if (c.settings["row"], c.kind) == (row, kind)]
    return found


# ------------------------------------------------------------------------------------------------------ cells and records


def test_every_published_row_has_a_cell_at_every_size_and_those_for_a_gpu_are_left_to_one(monkeypatch):
    for data, task in settings.PAPER_TASKS.items():
        assert set(published("images", source="table", data=data, shots=task)["method"]) == set(ROWS) == set(PUBLISHED[data])
    for gpu, count in ((True, 3 * 14 + 2 + 4 * 7 + 15 + 1), (False, 3 * 14 + 2 + 15 + 1)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        cells = settings.cells("full")
        assert len(cells) == count and len({c.name for c in cells}) == count
        assert all(len(c.name) < 220 for c in cells)  # the name of a checkpoint, with its ending


def test_every_cell_of_the_full_size_has_a_record_and_every_record_its_cell(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # what a machine without a GPU can run
    cells = settings.cells("full")
    assert {c.settings["size"] for c in missing(cells) if not SIZES[c.settings["size"]].large} == set()
    found = {(r.kind, json.dumps(r.settings, sort_keys=True), r.seed) for r in records.read("images")}
    assert found <= {c.key for c in cells}


def test_a_size_says_its_rows_seeds_and_updates_and_takes_the_recipes_of_its_data(monkeypatch):
    size = replace(SIZES["omniglot"], rows=("MAML", "iMAML-GD"), seeds=(0, 1, 2), updates=1000, gpu=False)
    monkeypatch.setitem(SIZES, "other", size)
    assert [(c.settings["row"], c.settings["updates"], c.seed) for c in settings.cells("other")] == [
        *(("MAML", 1000, s) for s in range(3)),
        *(("iMAML-GD", 20_000, s) for s in range(3)),  # as its own paper says
    ]
    assert [c.seed for c in settings.cells("other", seed=7)] == [7, 7]
    assert settings.recipe("MAML", size) == Recipe(5, 0.1, 5, None, 16, 1000)
    equal = replace(size, equal_budget=True)
    assert {(r.batch, r.updates) for r in (settings.recipe(row, equal) for row in ROWS)} == {(16, 1000)}


def test_the_longer_sizes_take_what_was_chosen_at_the_shorter_ones():
    for data in settings.PAPER_TASKS:
        short, long = SIZES[f"cpu-{data}"], SIZES[f"gpu-{data}"]
        assert (long.updates, long.gpu, short.gpu) == (10_000, True, False) and long.updates > short.updates
        for row in ROWS:
            assert replace(settings.recipe(row, long), updates=short.updates) == settings.recipe(row, short)
        assert {c.kind for c in settings.cells(f"gpu-{data}")} == {"accuracy"}


def test_the_chapters_say_how_many_updates_the_shorter_sizes_take():
    counts = [f"{SIZES[f'cpu-{data}'].updates:,}" for data in ("omniglot", "mini-imagenet")]
    text = {name: (records.ROOT / "book" / "src" / f"{name}.md").read_text() for name in ("13_few_shot_images", "19_report")}
    assert "{} of 4 tasks; mini-ImageNet {} of 4".format(*counts) in text["13_few_shot_images"]
    assert "with {} and {} updates".format(*counts) in text["19_report"]
    assert {SIZES[f"cpu-{data}"].batch for data in settings.PAPER_TASKS} == {4}
    chosen = settings.recipe("MAML", SIZES["cpu-omniglot"])  # whose horizon is set beside that of a row
    assert "MAML's five steps of 0.4 go four times as far as T = 0.5" in text["13_few_shot_images"]
    assert (chosen.steps, chosen.inner_lr, chosen.steps * chosen.inner_lr) == (5, 0.4, 4 * 0.5)


def test_a_measurement_of_speed_belongs_to_the_recipes_that_were_timed(monkeypatch):
    timed = lambda: next(c for c in settings.cells("cpu-omniglot") if c.kind == "speed").key  # noqa: E731
    before = timed()
    monkeypatch.setitem(settings.CHOSEN["cpu-omniglot"], "MAML", 1 - settings.CHOSEN["cpu-omniglot"]["MAML"])
    assert timed() != before


def test_all_rows_have_as_many_trials_and_a_horizon_is_that_of_its_row():
    for size, count in (("reduced", 3), ("cpu-omniglot", 2), ("cpu-mini-imagenet", 2)):
        assert {len(trials) for trials in TRIALS[size].values()} == {count} and set(TRIALS[size]) == set(ROWS)
    for horizon in (0.5, 1.0):
        row = f"A-MAML, T={horizon}"
        trials = [trial for table in TRIALS.values() for trial in table.get(row, ())]
        for recipe in (*trials, *(table[row] for table in PUBLISHED.values())):
            method = settings.make_method(row, recipe)
            assert isinstance(method, AMAML) and method.horizon == pytest.approx(horizon)
            assert method.solver.steps == recipe.steps
    for row in ("iMAML-GD", "iMAML-HF"):
        method = settings.make_method(row, PUBLISHED["omniglot"][row])
        assert isinstance(method, IMAML) and method.regularization == 2.0


@pytest.mark.parametrize("size", ["cpu-omniglot", "cpu-mini-imagenet"])
def test_at_the_sizes_for_a_cpu_no_two_rows_are_one_computation(size):
    recipes = [recipe for row in EXACT for recipe in TRIALS[size][row]]
    assert len({(r.steps, r.inner_lr, r.solver) for r in recipes}) == len(recipes) == 6


def test_reptile_as_its_authors_have_it_takes_adam_and_minibatches_and_a_meta_step_that_falls(no_data, tmp_path):
    recipe = Recipe(4, 1e-3, 8, solver="Adam", minibatch=3)
    method = settings.make_method("Reptile", recipe)
    assert method == Reptile(1e-3, solver=Adam(4, beta1=0.0), inner=InnerLoop(minibatch=3))
    size = replace(SIZES["smoke"], updates=4, measure_every=0)
    data = samplers("Reptile", size, recipe.at(size), 0)
    problem, draws = make_problem(size, 0), torch.Generator().manual_seed(0)
    start = theta = problem.initial_parameters()
    for share in (1.0, 0.75, 0.5, 0.25):
        theta = theta - share * meta_gradient(method, problem, theta, data.train(draws)).gradient
    found, _ = train("Reptile", problem, size, recipe.at(size), data, 0)
    # Before a batch norm the gradient of a bias is nothing but rounding, which Adam makes as large as any other.
    assert (found.theta - theta).norm() < 0.1 * (theta - start).norm()
    assert as_tested("Reptile", recipe, problem.model).inner.minibatch is None  # a test task may have fewer images than a minibatch


def test_an_update_is_timed_by_every_way_and_its_operations_are_counted():
    tiny, threads = replace(SIZES["cpu-omniglot"], way=4, query=4, filters=4, batch=1), torch.get_num_threads()
    found = speed.speed(tiny).set_index(["method", "way"])
    assert (found[["seconds", "gflop", "peak"]] > 0).all().all() and len(found) in (14, 21) and torch.get_num_threads() == threads
    trained = found.xs(speed.AS_TRAINED, level="way")
    assert list(trained.index) == list(ROWS) and trained["steps"]["FOMAML"] == str(settings.recipe("FOMAML", tiny))
    assert trained["gflop"]["FOMAML"] < trained["gflop"]["MAML"] < trained["gflop"]["A-MAML, T=1.0"]
    shown = tables.speed(found.reset_index())
    share = shown["share of the core (%)"] / 100 * found["peak"].to_numpy() * shown["CPU seconds"]
    assert share.to_numpy() == pytest.approx(shown["GFLOP"].to_numpy()) and tables.speed(pd.DataFrame()).empty
    assert beside.cost(found.reset_index()).equals(trained["seconds"]) and beside.cost(pd.DataFrame()).empty
    gflop = found["gflop"].xs("one task at a time", level="way")
    # An exact gradient takes the derivative of each step, and without its graph the step itself once more.
    assert gflop["FOMAML"] < gflop["MAML"] < gflop["A-MAML, T=0.5"]
    kept = found["gflop"]["A-MAML, T=0.5", "with the graphs of the steps kept"]
    assert kept == pytest.approx(gflop["MAML"], rel=0.02)


def test_what_is_concluded_of_speed_follows_from_its_rows():
    seconds = {speed.TOGETHER: 2.0, speed.ALONE: 1.0, speed.GRAPHS: 0.9, speed.ALONE + speed.KEPT: 1.2}
    rows = pd.DataFrame([{"method": "MAML", "way": way, "seconds": s} for way, s in seconds.items()])
    slow = rows.assign(seconds=[2.0, 1.99, 1.0, 1.0])
    assert [c.verdict for c in speed.conclusions({"a": rows})] == ["holds", "holds", "does not hold"]
    assert [c.verdict for c in speed.conclusions({"a": rows, "b": slow})] == ["holds in part", "holds", "holds in part"]
    assert [c.verdict for c in speed.conclusions({"a": pd.DataFrame()})] == ["not run"] * 3
    trained = pd.DataFrame(
        {"way": [speed.AS_TRAINED, speed.ALONE], "gflop": [30.0, 9.0], "seconds": [2.0, 1.0], "peak": [60.0, 60.0]}
    )
    assert speed.share({"a": trained, "b": pd.DataFrame()}) == "25" and speed.share({"b": pd.DataFrame()}) == "–"


def test_freed_memory_is_kept_where_the_library_can_be_told():
    assert keep_freed_memory() in (True, False)  # musl and macOS have no such setting
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_recipes_in_words():
    assert str(Recipe(5, 0.05)) == "5 steps of 0.05"
    assert str(Recipe(3, 0.5 / 3, solver="RK4")) == "3 RK4 steps of 0.17"
    assert str(Recipe(8, 1e-3, 50, solver="Adam", minibatch=10)) == "8 Adam steps of 0.001, 10 images each, 50 in test"
    assert str(Recipe(10, 0.1, 50)) == "10 steps of 0.1, 50 in test"
    assert str(Recipe(3, None, regularization=2.0, batch=32, updates=20_000)) == "3 Newton steps, λ = 2, 32 tasks, 20,000 updates"
    assert len(tables.recipes()) == len(ROWS)


def test_records_are_of_the_settings_that_stand_here(reduced, choices):
    assert not reduced["data"].str.contains("stand-in").any()
    assert set(reduced["of"]) == {25} and set(reduced["task"]) == set(range(SIZES["reduced"].test_tasks))
    assert reduced["right"].between(0, 25).all()
    assert set(choices["validation_tasks"]) == {SIZES["reduced"].validation_tasks}
    for row, mine in choices.groupby("row"):
        trials = [trial.at(SIZES["reduced"], SIZES["reduced"].trial_updates) for trial in TRIALS["reduced"][row]]
        expected = pd.DataFrame([trial.settings() for trial in trials])
        pd.testing.assert_frame_equal(mine[expected.columns].reset_index(drop=True).astype(float), expected.astype(float))


@pytest.mark.parametrize("size", TRIALS)
def test_the_chosen_trials_are_those_of_the_records(size):
    choices = tables.recorded("choice", size)
    assert size != "reduced" or set(choices["row"]) == set(ROWS)
    for row, found in (chosen(choices, Recipe, ["row"]) if len(choices) else {}).items():
        expected = TRIALS[size][row][CHOSEN[size][row]].at(SIZES[size], SIZES[size].trial_updates)
        assert {k: v for k, v in asdict(found).items() if k not in ("solver",)} == pytest.approx(
            {k: v for k, v in asdict(expected).items() if k not in ("solver",)}
        )  # records have ten digits
        assert found.solver == expected.solver
        mine = choices[choices["row"].eq(row)]
        assert mine.loc[mine["chosen"].astype(bool), "score"].item() == mine["score"].max()


# ---------------------------------------------------------------------------------------------------------- edges, claims


def test_a_table_of_choices_marks_those_at_the_edge_of_their_grid(choices):
    found = tables.edges(choices).set_index("row")
    for row in ROWS:
        grid = sorted(getattr(trial, GRIDS[row]) for trial in TRIALS["reduced"][row])
        best = getattr(TRIALS["reduced"][row][CHOSEN["reduced"][row]], GRIDS[row])
        assert found.chosen[row] == pytest.approx(best)
        assert found.edge[row] == ("lowest" if best == grid[0] else "highest" if best == grid[-1] else "")
    shown = tables.trials(choices)["edge of the grid"]
    assert shown["iMAML-GD"] == "lowest λ" and shown["iMAML-HF"] == "–"
    inner = choices.assign(chosen=choices.groupby("row").cumcount().eq(1))  # as if every row had chosen its second trial
    assert set(tables.edges(inner)["edge"]) == {""} and set(tables.trials(inner)["edge of the grid"]) == {"–"}


def test_what_the_chapter_says_of_edges_is_so(choices, reduced):
    facts = claims.facts(reduced, choices)
    assert facts["images-edge-weight"] == "iMAML-GD"
    assert facts["images-edge-rate"] == "MAML, FOMAML and Reptile"
    assert facts["images-edge-steps"] == "A-MAML, T=0.5 and A-MAML, T=1.0"


def test_the_conclusions_of_the_chapter_hold_in_the_records(reduced):
    found = claims.conclusions(reduced)
    assert len(found) == 8 and {c.verdict for c in found} == {"holds"}
    assert {c.note for c in found} == {"600 tasks of 1 training seed"}


@pytest.mark.parametrize(
    ("row", "change", "lost"),
    [
        ("A-MAML, T=1.0", lambda m: m["right"].mask(m["task"].eq(3), 0), "A-MAML at T = 1.0 and MAML are one computation"),
        ("A-MAML, T=0.5", lambda m: m["right"] + 1, "A-MAML at T = 0.5 is behind MAML"),
        ("FOMAML", lambda m: m["right"] + 3, "FOMAML is behind MAML after as many updates"),
        ("Reptile", lambda m: m["right"] + 8, "Reptile and both iMAML rows are behind FOMAML"),
        ("iMAML-HF", lambda m: m["right"] + m["alone"], "Transduction adds to every row"),
        ("iMAML-HF", lambda m: m["right"] + m["alone"], "The order of the rows is the same without transduction"),
        (
            "MAML",
            lambda m: m["right"].mask(m["step"].eq(1), 6),
            "With an exact meta-gradient most of the accuracy comes with the first",
        ),
        ("MAML", lambda m: m["right"] - 2 * m["step"].eq(50), "With an exact meta-gradient, steps beyond those of the training"),
    ],
)
def test_other_records_would_refute_a_conclusion(reduced, row, change, lost):
    other = reduced.copy()
    mine = other["row"].eq(row)
    other.loc[mine, "right"] = change(other[mine].astype({"alone": int})).astype(int)
    (found,) = [c for c in claims.conclusions(other) if c.claim.startswith(lost)]
    assert found.verdict in ("does not hold", "holds in part")


def test_numbers_in_the_prose_come_from_the_records(reduced, choices):
    facts = claims.facts(reduced, choices)
    own = {row: tables.final(reduced, row).groupby("seed").mean().item() for row in ROWS}
    assert facts["images-fomaml"].startswith(f"{own['FOMAML'] - own['MAML']:+.1f} ± ")
    slow = sorted(own["MAML"] - own[row] for row in claims.SLOW)
    assert facts["images-slow"] == f"{slow[0]:.1f} to {slow[-1]:.1f}"
    assert facts["images-differing"] == "0 of 600" and facts["images-longer"] == "40"
    assert claims.facts(reduced[reduced["row"].ne("MAML")], choices) == {} == claims.facts(pd.DataFrame(), choices)
    theirs = claims.published_facts()
    assert theirs["images-omniglot-a-maml-t-1-0"] == "96.79 ± 0.34" and theirs["images-five-way-least"] == "97.68"


NOTHING = dict.fromkeys([size for sizes in settings.SIZES_OF.values() for size in sizes], pd.DataFrame())


def as_at_a_cpu_size(reduced):
    """Rows as of a size for a CPU: those of the reduced size, with a learning curve of three points."""
    curve = reduced[reduced["step"].eq(reduced["test_steps"]) & ~reduced["alone"].astype(bool)]
    return pd.concat([reduced, *(curve.assign(set="validation", update=100 * n) for n in (1, 2, 3))], ignore_index=True)


def test_claims_of_the_paper_are_decided_after_the_most_updates_that_there_are_and_say_how_many(reduced):
    found = beside.claims(NOTHING)
    assert {c.verdict for c in found} == {"not run"} and len(found) == 3 and {c.note for c in found} == {""}
    assert found[0].published == "+0.99 ± 0.45 %"
    full = beside.claims(NOTHING | {"omniglot": reduced})
    assert [c.verdict for c in full] == ["does not hold", "holds", "not run"]
    assert full[0].note == "undecided, since the interval holds 0; 600 tasks of 1 training seed"
    for size, count in (("gpu-omniglot", "10,000"), ("cpu-omniglot", "2,500")):
        fewer = beside.claims(NOTHING | {size: reduced})
        assert [c.verdict for c in fewer] == [c.verdict for c in full]
        assert f"; after {count} updates, where the paper has 60,000; " in fewer[0].note
    some = reduced[reduced["row"].eq("MAML")]
    assert beside.best_size(NOTHING | {"omniglot": some, "cpu-omniglot": reduced}, "omniglot", "MAML", "FOMAML") == "cpu-omniglot"


def test_what_is_concluded_of_the_shortened_trainings_follows_from_their_rows(reduced):
    found = beside.conclusions(NOTHING)
    assert len(found) == 8 and {c.verdict for c in found} == {"not run"}
    exact = reduced["row"].isin(settings.EXACT)
    noise = np.random.default_rng(0).integers(-1, 2, len(reduced))
    table = reduced.assign(right=np.where(exact, 20, np.where(reduced["row"].isin(beside.IMPLICIT), 5, 10)) + noise)
    assert [c.verdict for c in beside.conclusions(NOTHING | {"cpu-omniglot": table})][:3] == ["holds"] * 3
    raised = table["row"].map({"FOMAML": 15, "MAML": 1, "iMAML-HF": 7}).fillna(0)
    better = table.assign(right=table["right"] + raised)
    assert [c.verdict for c in beside.conclusions(NOTHING | {"cpu-omniglot": better})][:3] == ["holds in part"] * 3
    for apart, verdict in ((3, "holds"), (-3, "does not hold")):
        other = table.assign(right=table["right"] + table["row"].map({"A-MAML, T=1.0": apart}).fillna(0))
        assert beside.conclusions(NOTHING | {"cpu-omniglot": other})[3].verdict == verdict


def test_the_table_beside_the_papers_says_how_many_updates_a_number_has(reduced, monkeypatch):
    found = beside.at_paper_size(NOTHING | {"cpu-omniglot": reduced})
    assert found["omniglot", "ours"]["MAML"] == tables.said(tables.accuracy(reduced, "MAML"))
    assert found["omniglot", "updates"]["iMAML-GD"] == "2,500 of 20,000"
    assert set(found["mini-imagenet", "ours"]) == {"not run"} and set(found["mini-imagenet", "updates"]) == {"–"}
    monkeypatch.setattr(beside, "everything", lambda: NOTHING | {"cpu-omniglot": reduced})
    rows = beside.report_rows()
    assert rows.loc[[("omniglot", "Reptile")]]["note"].item() == "the same task and network, 2,500 updates instead of 60,000"
    assert rows.loc[[("omniglot", "MAML")]]["mean"].item() == tables.accuracy(reduced, "MAML").mean


def test_sizes_are_told_in_words():
    found = tables.sizes(("cpu-omniglot", "omniglot", "mini-imagenet"))
    assert found.loc["max-pooling"].tolist() == ["no", "no", "yes"] and found.loc["meta updates", "mini-imagenet"] == "60,000"
    assert found.loc["rows with a second seed", "omniglot"] == found.loc["meta updates of a trial", "omniglot"] == "–"
    assert not found.index.str.contains("_").any()  # no name of a field is left


def test_at_equal_work_fomaml_is_ahead_of_the_rows_of_amaml_and_behind_maml():  # what the chapter says of the records
    for data in beside.NAMES:
        size = f"cpu-{data}"
        found = beside.at_equal_cost(tables.recorded("accuracy", size), beside.cost(tables.recorded("speed", size)))
        there = found["accuracy after these"]
        assert there["MAML"] > there["FOMAML"] > there[[row for row in ROWS if row.startswith("A-MAML")]].max()


def test_rows_are_compared_at_equal_updates_and_at_equal_work(reduced):
    seconds = pd.Series(1.2, ROWS)
    seconds["FOMAML"] = 0.6
    found = beside.at_equal_cost(as_at_a_cpu_size(reduced), seconds)
    assert found["updates"].eq(300).all() and found["seconds an update"]["FOMAML"] == pytest.approx(0.6)
    then = found["updates in 3 min"]
    assert found["updates"].dtype == then.dtype == int  # shown without a decimal point
    assert then["FOMAML"] == 300 and then.drop("FOMAML").eq(100).all() and list(found.index) == list(ROWS)
    assert found["accuracy after them"]["MAML"] == pytest.approx(tables.accuracy(reduced, "MAML").mean)
    again = as_at_a_cpu_size(reduced).query("row == 'FOMAML' and update <= 100").assign(seed=1)
    with pytest.raises(ValueError, match="the seeds of FOMAML have different numbers"):
        beside.at_equal_cost(pd.concat([as_at_a_cpu_size(reduced), again]), seconds)
    assert beside.at_equal_cost(pd.DataFrame(), seconds).empty
    assert beside.at_equal_cost(as_at_a_cpu_size(reduced), pd.Series(dtype=float)).empty
    left, right = figures.learning({"Omniglot": as_at_a_cpu_size(reduced)}, {"Omniglot": seconds}).axes
    assert [line.get_label() for line in left.lines] == list(ROWS)
    assert right.lines[1].get_xdata() == pytest.approx([1, 2, 3])  # FOMAML, at 0.6 s an update
    assert figures.learning({"Omniglot": pd.DataFrame()}, {"Omniglot": seconds}).axes


# ------------------------------------------------------------------------------------------------------------- intervals


def test_an_interval_is_over_tasks_for_one_seed_and_over_seeds_for_more(reduced):
    one = tables.accuracy(reduced, "FOMAML")
    values = tables.final(reduced, "FOMAML")
    assert one == metrics.interval(values) and one.count == 600
    assert tables.over(reduced, "FOMAML") == "600 tasks of 1 training seed"
    assert "not over training seeds" in tables.cautious({"reduced": reduced})
    assert set(tables.reduced(reduced)["intervals over"]) == {"600 tasks of 1 training seed"}

    seeds = [reduced.assign(seed=seed, right=reduced["right"] - seed) for seed in range(3)]
    several = pd.concat(seeds)
    assert tables.accuracy(several, "FOMAML") == seed_interval([values.mean() - 4 * seed for seed in range(3)])
    assert tables.over(several, "FOMAML") == "3 training seeds"
    assert "not over" not in tables.cautious({"reduced": several})
    assert tables.difference(several, "FOMAML", "MAML").half_width == pytest.approx(0, abs=1e-9)  # paired, seed by seed
    assert tables.accuracy(pd.DataFrame(), "MAML") is None and tables.cautious({}) == "not run"


def test_tables_without_records_say_so():
    nothing = pd.DataFrame()
    assert (tables.reduced(nothing)["with transduction"] == "not run").all()
    assert tables.edges(nothing).empty and tables.trials(nothing).empty and tables.curve(nothing).empty
    assert figures.reduced(nothing).axes


def test_a_lost_task_is_not_left_out_of_a_mean(reduced):
    some = reduced[reduced["row"].eq("MAML")].astype({"right": float}).reset_index(drop=True)
    some.loc[some["step"].eq(50) & some["task"].eq(5), "right"] = np.nan
    wide = tables.curve(some)
    assert np.isnan(wide.loc[50, "MAML"]) and np.isfinite(wide.loc[20, "MAML"])


# -------------------------------------------------------------------------------------------------- networks and accuracy


def test_max_pooling_leaves_five_by_five_places_of_an_84_by_84_image():
    network = image_network(4, 5, channels=3, pooled=True)
    assert network(torch.zeros(2, 3, 84, 84)).shape == (2, 5)
    assert sum(p.numel() for p in network[-1].parameters()) == (25 * 4 + 1) * 5


def some_tasks(generator):
    x = torch.randn(3, 4 + 6, 1, 28, 28, generator=generator)
    y = torch.randint(4, (3, 10), generator=generator)
    return Tasks(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])


def test_without_batch_norm_one_at_a_time_is_the_usual_accuracy():
    draws = torch.Generator().manual_seed(0)
    tasks = some_tasks(draws)
    problem = Problem(nn.Sequential(nn.Flatten(), nn.Linear(784, 4)), nn.functional.cross_entropy)
    u = torch.randn(3, problem.size, generator=draws)
    usual = (problem.predict(u, tasks.query_x).argmax(-1) == tasks.query_y).float().mean(1)
    torch.testing.assert_close(running.one_at_a_time(problem, u, tasks), usual)


def test_one_at_a_time_does_not_depend_on_the_other_query_images():
    draws = torch.Generator().manual_seed(1)
    tasks = some_tasks(draws)
    problem = Problem(image_network(4, 4), nn.functional.cross_entropy)
    u = problem.initial_parameters() + torch.randn(3, problem.size, generator=draws)

    def alone(order):
        shown = replace(tasks, query_x=tasks.query_x[:, order], query_y=tasks.query_y[:, order])
        return running.one_at_a_time(problem, u, shown)

    torch.testing.assert_close(alone(range(6)), torch.stack([alone([q]) for q in range(6)], 1).mean(1))
    together, first = problem.predict(u, tasks.query_x)[:, :1], problem.predict(u, tasks.query_x[:, :1])
    assert not torch.allclose(together, first, rtol=0.1)  # among the others, an image has other batch statistics


# ----------------------------------------------------------------------------------------------------------------- tasks


def test_figures_of_the_full_sizes_are_never_of_a_stand_in(no_data):
    for name in settings.FULL:
        with pytest.raises(FileNotFoundError):
            samplers("A-MAML, T=0.5", SIZES[name], settings.recipe("A-MAML, T=0.5", SIZES[name]), 0)


def test_reptile_sees_all_drawings_in_its_support_set(no_data):
    size = SIZES["smoke"]
    data = samplers("Reptile", size, settings.recipe("Reptile", size), 0)
    assert data.train(generator("data", 0)).support_x.shape[1] == size.way * (1 + size.query)
    assert data.test(generator("test", 0)).support_x.shape[1] == size.way


def test_validation_characters_are_held_out_where_they_are_needed(no_data):
    size = SIZES["smoke"]
    without = replace(size, trial_updates=0, measure_every=0)
    parts = {s: samplers("MAML", s, Recipe(5), 0) for s in (size, without, replace(without, measure_every=1))}
    assert parts[without].validation is None
    for held in (part for part in parts.values() if part.validation):
        characters = [set(s.classes.tolist()) for s in (held.train, held.validation, held.test)]
        assert not any(a & b for a, b in (*pairwise(characters), (characters[0], characters[2])))
        assert characters[0] | characters[1] == set(parts[without].train.classes.tolist())


# -------------------------------------------------------------------------------------------------------------- training


def step(number, seconds=1.0):
    return MetaStep(number, torch.full((2,), float(number)), None, 0.0, 0.0, None, 1e-3, seconds)


def test_a_watch_measures_every_so_many_updates_and_at_the_end(tmp_path):
    size = replace(SIZES["smoke"], measure_every=2)
    watch = Watch(size, 5, lambda theta: theta, tmp_path / "watch.json")
    for number in range(1, 6):
        watch(step(number))
    assert [point[::2] for point in watch.points] == [(2, 2.0), (4, 4.0), (5, 5.0)] and watch.points[0][1] == [2.0, 2.0]
    again = Watch(
        size, 5, lambda theta: theta + 1, tmp_path / "watch.json"
    )  # the process was cut off, and fit goes on from update 3
    assert again.seconds == 5 and len(again.points) == 3
    again(step(4))
    assert [tuple(p) for p in again.points] == [(2, [2.0, 2.0], 2.0), (4, [5.0, 5.0], 6.0)]


def test_a_watch_ends_the_training_when_its_time_is_up_also_over_several_calls(tmp_path):
    size = replace(SIZES["smoke"], measure_every=0, seconds=3.5)
    watch = Watch(size, 100, None, tmp_path / "watch.json")
    watch(step(1))
    watch(step(2))
    watch.save()
    other = Watch(size, 100, None, tmp_path / "watch.json")
    other(step(3))
    with pytest.raises(StopTraining):
        other(step(4))
    assert Watch(size, 100, None, tmp_path / "watch.json").updates == 4


@pytest.mark.slow
def test_a_row_gives_an_accuracy_of_each_test_task_also_after_an_interrupt(no_data, tmp_path, monkeypatch):
    wanted = cell("FOMAML")
    whole = running.run(wanted, tmp_path / "whole")
    tested = whole[whole["set"].eq("test")]
    assert len(tested) == 10 * (len(SIZES["smoke"].measured) + 1) and len(tested[tested["alone"]]) == 10
    assert set(tested["update"]) == {3} and set(tested.loc[tested["alone"], "step"]) == {5}
    curve = whole[whole["set"].eq("validation")]
    assert sorted(set(curve["update"])) == [1, 2, 3] and len(curve) == 3 * SIZES["smoke"].validation_tasks
    assert whole["data"].str.contains("stand-in").all()

    sample, calls = ImageSampler.__call__, []

    def limited(sampler, draws):
        calls.append(1)
        if len(calls) > 3:  # of validation tasks, and of two updates
            raise KeyboardInterrupt
        return sample(sampler, draws)

    monkeypatch.setattr(ImageSampler, "__call__", limited)
    scratch = tmp_path / "records" / SCRATCH
    with pytest.raises(KeyboardInterrupt):
        running.run(wanted, scratch)
    monkeypatch.setattr(ImageSampler, "__call__", sample)
    assert len(list(scratch.glob("*.safetensors"))) == len(list(scratch.glob("*.json"))) == 1
    run_cells([wanted], tmp_path / "records")
    assert not list(scratch.iterdir())
    finished = records.rows("images", "accuracy", tmp_path / "records")
    times = ["training_seconds", "seconds"]
    pd.testing.assert_frame_equal(finished[whole.columns].drop(columns=times), whole.drop(columns=times), check_dtype=False)

    own = tested[tested["step"].eq(5) & ~tested["alone"]]
    found = tables.accuracy(finished, "FOMAML")
    assert found.mean == pytest.approx(100 * (own["right"] / own["of"]).mean()) and found.count == 10
    alone = tables.accuracy(finished, "FOMAML", alone=True)
    assert alone.mean == pytest.approx(100 * (tested.loc[tested["alone"], "right"] / 10).mean())
    assert tables.accuracy(finished, "MAML") is None
    assert tables.learning(finished).index.tolist() == [1, 2, 3]


def test_a_row_stops_by_itself_when_its_time_is_up_and_is_tested_with_what_it_has(no_data, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "smoke", replace(SIZES["smoke"], seconds=0.0, measured=(0, 1)))
    for _ in range(2):  # a second call adds no update
        found = running.run(cell("FOMAML"), tmp_path)
        assert set(found["update"]) == {1} and (found["training_seconds"] > 0).all()


def test_a_choice_takes_the_best_on_validation_characters_and_passes_over_what_diverges(no_data, tmp_path, monkeypatch):
    wild = replace(TRIALS["reduced"]["MAML"][0], inner_lr=1e30)
    monkeypatch.setitem(TRIALS["reduced"], "MAML", (wild, *TRIALS["reduced"]["MAML"][1:]))
    wanted = cell("MAML", "choice")
    found = running.run(wanted, tmp_path)
    assert np.isnan(found["score"][0]) and found.loc[found["chosen"], "score"].item() == found["score"].max()
    assert found["updates"].eq(SIZES["smoke"].trial_updates).all()
    monkeypatch.setitem(TRIALS["reduced"], "MAML", (wild,))
    with pytest.raises(DivergenceError, match="all 1 trials diverged"):
        running.run(wanted, tmp_path)


# ------------------------------------------------------------------------------------------------------------ first look


@pytest.mark.slow
def test_the_first_look_learns_more_than_chance_from_one_drawing(no_data, capsys):
    found = running.first_look("smoke", 0)
    table, history = found.tests, found.history
    assert "stand-in" in capsys.readouterr().err
    size = FIRST_LOOK["smoke"]
    assert len(history) == size.updates * len(FIRST_ROWS)
    accuracy = tables.percent(table)
    final = accuracy[accuracy["step"].eq(FIRST_RECIPE.steps)].groupby("row")["accuracy"].mean()
    assert (final > 100 / size.way + 5).all()
    exact, unrolled = (accuracy.loc[accuracy["row"].eq(row), "accuracy"].to_numpy() for row in ("A-MAML", "MAML"))
    assert np.abs(exact - unrolled).mean() < 2
    shown = tables.first_look(table, FIRST_RECIPE.steps)
    assert shown.loc["MAML", "after 5 steps"].startswith(f"{final['MAML']:.1f} ± ") and set(shown["intervals over"]) == {
        "20 tasks of 1 training seed"
    }
    assert figures.first_look(table, history, size.way).axes
    assert abs(float(claims.first_facts(table, 5)["images-first-apart"])) < 2

    recipe = FIRST_RECIPE.at(size)
    tasks = samplers("MAML", size, recipe, 0).test(generator("test", 0))
    said = running.answers(found, tasks, recipe)
    for row in FIRST_ROWS:  # the answers are those that the accuracies count
        right = table[table["row"].eq(row) & table["step"].eq(5)].sort_values("task")["right"].tolist()
        assert (said[row] == tasks.query_y).sum(1).tolist() == right
    fig = figures.predictions(tasks[:2], said, size.way, shown=4)
    assert len(fig.axes) == 2 * (size.way + 1 + 4)
    for b in range(2):
        written = [text for axis in fig.axes[b * 10 + 6 : b * 10 + 10] for text in axis.texts]
        errors = sum(text.get_weight() == "bold" for text in written)
        wrong = torch.stack([answer[b] != tasks.query_y[b] for answer in said.values()]).sum(0)
        assert len(written) == 3 * 4 and errors == wrong.sort(descending=True).values[:4].sum()


def test_figures_draw_every_row(reduced):
    fig = figures.reduced(reduced)
    left, right = fig.axes
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(ROWS)
    drawn = {line.get_label(): line.get_ydata() for line in left.lines}
    assert drawn["MAML"].tolist() == tables.curve(reduced)["MAML"].dropna().tolist()
    assert len(right.containers) == 2 * len(ROWS)
    data = samplers("MAML", FIRST_LOOK["smoke"], FIRST_RECIPE, 0)
    assert len(figures.tasks(data.train(generator("data", 0))[:2], 5).axes) == 2


def test_the_head_alone_moves_in_the_rows_that_say_so():
    size = SIZES["horizons"]
    problem = make_problem(size, 0)
    head = 32 * size.way + size.way
    for row in size.rows:
        mask = training.adapted(row, problem.model)
        assert (mask is None) == (settings.HEAD not in row)
        assert mask is None or (mask.sum() == head and mask[-head:].all() and len(mask) == problem.size)
        method = as_tested(row, settings.recipe(row, size), problem.model)
        assert method.horizon == pytest.approx(float(row.rsplit("=")[-1]))


def test_what_is_concluded_of_horizons_follows_from_their_rows(reduced):
    size = SIZES["horizons"]
    assert {c.verdict for c in horizons.conclusions(pd.DataFrame())} == {"not run"}
    one = reduced[reduced["row"].eq("MAML")]
    rank = {row: n for n, row in enumerate([horizons.SHORT, *horizons.HEADS, horizons.USUAL, horizons.LONG])}
    assert set(rank) == set(size.rows)
    runs = [one.assign(row=row, seed=seed, right=one["right"] + rank[row] + 0.1 * seed) for row in rank for seed in size.seeds]
    table = pd.concat(runs)
    assert [c.verdict for c in horizons.conclusions(table)] == ["holds"] * 4
    assert horizons.conclusions(table)[1].ours == "+4.0 ± 0.0" and horizons.conclusions(table)[1].note == "3 training seeds"
    lower = table.assign(right=table["right"] - 20 * table["row"].isin([horizons.USUAL, horizons.HEADS[0]]))
    assert [c.verdict for c in horizons.conclusions(lower)] == ["does not hold", "holds", "holds", "holds in part"]
    said = horizons.facts(table)
    assert said["images-horizon-gain"] == "4.0 ± 0.0" and said["images-horizon-whole"].count(" to ") == 1
    assert set(horizons.facts(pd.DataFrame()).values()) == {"–"}
    shown = horizons.by_horizon(table)
    assert list(shown.index) == list(size.rows) and shown["less that at T = 0.5"][horizons.SHORT] == "-12.0 ± 0.0"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, []]", b"[1, [], NaN]", b"3", b"\xff", b'"abc"', b'{"a": 1, "b": 2, "c": 3}', b'["a", 1, null]',
     b"[1.0, [], 9]", b"[1.0, [], 0]", b"[-1.0, [], 3]", b"[1.0, [3], 3]", b"[1.0, [[1, 0.5, 2.0]], 3]", b'[1.0, [], 3, "digest"]'],
)  # fmt: skip
def test_what_a_watch_has_seen_is_refused_when_it_is_damaged(tmp_path, content):
    path = tmp_path / "cell.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cell\.json is damaged: .*; delete it and the checkpoint beside it"):
        Watch(SIZES["smoke"], 3, None, path)


def test_a_learning_curve_that_cannot_be_written_ends_no_training(tmp_path):
    (tmp_path / "file").touch()
    watch = Watch(SIZES["smoke"], 3, None, tmp_path / "file" / "cell.json")
    with pytest.warns(RuntimeWarning, match=r"could not be written: .*cell\.json.*; training goes on and tries again"):
        watch.save()
    (tmp_path / "file").unlink()
    watch.save()
    assert Watch(SIZES["smoke"], 3, None, tmp_path / "file" / "cell.json").updates == 3
