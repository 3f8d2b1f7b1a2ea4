"""What a meta update costs: published values, equal gradients in every mode, byte counts known by hand, cells and tables."""

import pandas as pd
import pytest
import torch

from amaml_core import meta_gradient
from amaml_core.experiments import efficiency
from amaml_core.experiments.cells import Cell, run_cell
from amaml_core.experiments.efficiency import (
    LONG,
    METHODS,
    MODES,
    PUBLISHED_SECONDS,
    PUBLISHED_SHARE,
    PUBLISHED_STEPS,
    SIZES,
)
from amaml_core.records import read_record

P = 2 * 32 + 32 + 32 * 32 + 32 + 32 + 1


def test_published_values_are_complete_and_only_maml_runs_out_of_memory():
    table = efficiency.published()
    assert len(table) == 5 * 8 - 2
    for values in (PUBLISHED_SECONDS, PUBLISHED_SHARE):
        missing = {(name, k) for name, row in values.items() for k, v in zip(PUBLISHED_STEPS, row, strict=True) if v is None}
        assert missing == {("MAML", 300), ("MAML", 500)}
    assert table["share"].between(efficiency.IDLE_SHARE, efficiency.FULL_SHARE).all()
    longest = table[table["steps"] == 200].set_index("method")["seconds"]
    assert longest.idxmax() == "MAML" and longest["A-MAML"] > longest["iMAML"] > longest["FOMAML"]


@pytest.mark.parametrize("name", METHODS)
def test_every_mode_computes_the_same_meta_gradient(name):
    tasks, method = efficiency.make_tasks(0), METHODS[name](5)
    found = []
    for mode in ("plain", "traced"):
        problem = efficiency.make_problem(mode, 0)
        found.append(meta_gradient(method, problem, problem.initial_parameters(), tasks).gradient)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert found[0].norm() > 1e-3


def test_modes_are_what_they_say_and_others_are_refused():
    assert [(p.trace, p.compile) for p in (efficiency.make_problem(m, 0) for m in MODES)] == [
        (False, False), (True, False), (True, True),
    ]  # fmt: skip
    assert efficiency.make_problem("plain", 0).size == P
    with pytest.raises(ValueError, match="mode must be one of"):
        efficiency.make_problem("fast", 0)


def test_times_are_medians_of_so_many_turns_with_their_range():
    found = efficiency.seconds(("FOMAML", "MAML"), "traced", 2, seed=0, turns=3)
    assert set(found["methods"]) == {"FOMAML", "MAML"} and found["turns"] == 3
    for entry in found["methods"].values():
        assert 0 < entry["low"] <= entry["seconds"] <= entry["high"]
    assert len(found["load"]["before"]) == len(found["load"]["after"]) == 3


@pytest.mark.slow
def test_store_grows_by_one_state_a_step_maml_by_its_graph_and_first_order_by_nothing():
    few, many = (efficiency.live_bytes(tuple(METHODS), k, 0)["methods"] for k in (36, 64))
    growth = {name: (many[name]["peak"] - few[name]["peak"]) / 28 for name in METHODS}
    state = efficiency.BATCH * P * 4  # bytes of u (B, P) in single precision
    assert growth["A-MAML, Store"] == state
    assert growth["FOMAML"] == growth["Reptile"] == growth["iMAML"] == 0
    # From 6 to 8 segments, of as many states each: 4 further states in 28 further steps.
    assert growth["A-MAML, Checkpoint"] == pytest.approx(4 * state / 28, rel=0.01)
    assert growth["MAML"] > 10 * state


def test_maml_fills_the_normalised_memory_as_it_did_the_published_one():
    table = pd.DataFrame({"method": ["MAML", "MAML", "MAML", "FOMAML"], "steps": [100, 200, 500, 500], "peak": [50, 100, 250, 0]})
    assert efficiency.normalised(table).tolist() == pytest.approx([0.54, 0.98, 2.3, 0.10])
    with pytest.raises(ValueError, match="MAML must be among"):
        efficiency.normalised(table[table["method"] == "FOMAML"])


def test_all_methods_meet_at_the_published_steps_and_ours_go_on():
    cells = [c for c in efficiency.cells("full") if c.settings.get("device", "cpu") == "cpu"]
    names = [c.name for c in cells]
    assert len(set(names)) == len(names)
    kinds = {(c.experiment, c.settings.get("mode"), c.settings["methods"], c.settings["steps"]) for c in cells}
    for k in PUBLISHED_STEPS:
        assert {("efficiency", mode, "all", k) for mode in MODES} | {("efficiency-memory", None, "all", k)} <= kinds
    assert {("efficiency", "compiled", "long", 5000), ("efficiency-memory", None, "long", 5000)} <= kinds
    assert not any(mode == "plain" and names == "long" for _, mode, names, _ in kinds)
    assert set(LONG) < set(METHODS)


def test_records_come_back_as_tables(tmp_path):
    common = {"profile": "full", "methods": "long", "steps": 3}
    run_cell(Cell("efficiency-memory", common, 0), efficiency.run, tmp_path)
    run_cell(Cell("efficiency", common | {"device": "cpu", "mode": "traced"}, 0), efficiency.run, tmp_path)
    memory, seconds = efficiency.read_memory(tmp_path), efficiency.read_seconds(tmp_path)
    assert sorted(memory["method"]) == sorted(LONG) and (memory["peak"] >= memory["held"]).all()
    assert set(seconds["mode"]) == {"traced"} and (seconds["load"] >= 0).all() and seconds["machine"].str.len().min() > 0
    empty = tmp_path / "none"
    assert efficiency.read_memory(empty).empty and efficiency.read_seconds(empty).empty


def test_a_small_comparison_holds_every_method():
    seconds, memory = efficiency.compare("smoke", 0)
    for table in (seconds, memory):
        assert set(table.loc[table["steps"].isin(SIZES["smoke"].steps), "method"]) == set(METHODS)
        assert set(table.loc[table["steps"].isin(SIZES["smoke"].long_steps), "method"]) == set(LONG)


def test_recorded_bytes_are_counted_again_to_the_byte():
    path = next(c for c in efficiency.cells("full") if c.experiment == "efficiency-memory" and c.settings["steps"] == 10).path(
        efficiency.RECORDS
    )
    if not path.exists():
        pytest.skip("no record")
    assert efficiency.live_bytes(tuple(METHODS), 10, 0) == read_record(path).figures
