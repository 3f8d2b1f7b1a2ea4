"""What a meta update costs: published values, equal gradients in every mode, byte counts known by hand, tables and claims."""

import joblib
import pandas as pd
import pytest
import torch

from amaml_core import meta_gradient
from experiments.common.cells import attempt, deviation
from experiments.common.records import of_kind
from experiments.efficiency import claims, run, scaling, settings, tables
from experiments.efficiency.settings import LONG, METHODS, MODES, PUBLISHED_STEPS, SIZES

P = 2 * 32 + 32 + 32 * 32 + 32 + 32 + 1


@pytest.fixture(scope="module")
def recorded():
    seconds, peaks = tables.recorded("seconds"), tables.recorded("bytes")
    if seconds.empty or peaks.empty:
        pytest.skip("no records")
    return seconds[seconds["device"].eq("cpu")], tables.normalised(peaks)


def test_published_values_are_complete_and_only_maml_runs_out_of_memory():
    for measure in ("seconds", "share of memory"):
        table = tables.published_by_steps(measure)
        assert table.shape == (5, 8) and table.isna().sum().sum() == 2 and table.loc["MAML", [300, 500]].isna().all()
    assert tables.theirs("share of memory")["share of memory"].between(tables.IDLE_SHARE, tables.FULL_SHARE).all()
    longest = tables.published_by_steps("seconds")[200]
    assert longest.idxmax() == "MAML" and longest["A-MAML"] > longest["iMAML"] > longest["FOMAML"]


@pytest.mark.parametrize("name", METHODS)
def test_every_mode_computes_the_same_meta_gradient(name):
    tasks, method = run.make_tasks(0), METHODS[name](5)
    found = []
    for mode in ("plain", "traced"):
        problem = run.make_problem(mode, 0)
        found.append(meta_gradient(method, problem, problem.initial_parameters(), tasks).gradient)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert found[0].norm() > 1e-3


def test_modes_are_what_they_say_and_others_are_refused():
    assert [(p.trace, p.compile) for p in (run.make_problem(m, 0) for m in MODES)] == [(False, False), (True, False), (True, True)]
    assert run.make_problem("plain", 0).size == P
    with pytest.raises(ValueError, match="mode must be one of"):
        run.make_problem("fast", 0)


def test_times_are_medians_of_so_many_turns_with_their_range():
    found = run.seconds(("FOMAML", "MAML"), "traced", 2, seed=0, turns=3)
    assert found["method"].tolist() == ["FOMAML", "MAML"] and found["turns"].eq(3).all() and found["load"].ge(0).all()
    assert (found["low"].gt(0) & found["low"].le(found["seconds"]) & found["seconds"].le(found["high"])).all()
    assert [SIZES["full"].turns_at(k) for k in (10, 200, 5000)] == [9, 5, 3]


@pytest.mark.slow
def test_store_grows_by_one_state_a_step_maml_by_its_graph_and_first_order_by_nothing():
    few, many = (run.live_bytes(tuple(METHODS), k, 0).set_index("method")["peak"] for k in (36, 64))
    growth = (many - few) / 28
    state = settings.BATCH * P * 4  # bytes of u (B, P) in single precision
    assert growth["A-MAML, Store"] == state
    assert growth["FOMAML"] == growth["Reptile"] == growth["iMAML"] == 0
    # From 6 to 8 segments, of as many states each: 4 further states in 28 further steps.
    assert growth["A-MAML, Checkpoint"] == pytest.approx(4 * state / 28, rel=0.01)
    assert growth["MAML"] > 10 * state


def test_maml_fills_the_normalised_memory_as_it_did_the_published_one():
    table = pd.DataFrame({"method": ["MAML", "MAML", "MAML", "FOMAML"], "steps": [100, 200, 500, 500], "peak": [50, 100, 250, 0]})
    assert tables.normalised(table)["share"].tolist() == pytest.approx([0.54, 0.98, 2.3, 0.10])
    with pytest.raises(ValueError, match="MAML must be among"):
        tables.normalised(table[table["method"] == "FOMAML"])


def test_all_methods_meet_at_the_published_steps_and_ours_go_on():
    cells = [c for c in settings.cells("full") if c.kind != "scaling" and c.settings.get("device", "cpu") == "cpu"]
    kinds = {(c.kind, c.settings.get("mode"), c.settings["methods"], c.settings["steps"]) for c in cells}
    assert len(kinds) == len(cells)
    for k in PUBLISHED_STEPS:
        assert {("seconds", mode, "all", k) for mode in MODES} | {("bytes", None, "all", k)} <= kinds
    assert {("seconds", "compiled", "long", 5000), ("bytes", None, "long", 5000)} <= kinds
    assert not any(mode == "plain" and names == "long" for _, mode, names, _ in kinds)
    assert set(LONG) < set(METHODS)


@pytest.mark.slow  # chapter 14 makes these tables, too
def test_a_live_comparison_gives_every_table_of_the_chapter():
    live = run.live("smoke", 0)
    for kind in ("seconds", "bytes"):
        table = live[kind]
        assert set(table.loc[table["steps"].isin(SIZES["smoke"].steps), "method"]) == set(METHODS)
        assert set(table.loc[table["steps"].isin(SIZES["smoke"].long_steps), "method"]) == set(LONG)
    seconds, peaks = live["seconds"], tables.normalised(live["bytes"])
    assert tables.prices(seconds).shape == (6, 3) and "no records yet" in tables.source(seconds)
    assert tables.maml_over_amaml(seconds).gt(0).all() and set(tables.at_the_end(seconds, peaks)) >= {"steps", "saved"}
    assert {c.verdict for c in claims.claims(seconds, peaks)} <= {"holds", "holds in part", "does not hold", "not run"}


def test_a_live_comparison_is_of_the_cpu_also_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(run, "live_rows", list)
    assert {cell.settings.get("device") for cell in settings.cells("smoke")} == {None, "cpu", "cuda"}
    assert {(cell.kind, cell.settings["device"]) for cell in run.live("smoke", 0, "seconds")} == {("seconds", "cpu")}


def test_a_price_is_the_slope_of_time_over_steps():
    table = pd.DataFrame({"method": "MAML", "steps": [100, 200, 500, 1000], "seconds": [0.3, 0.5, 1.1, 99.0]})
    assert tables.price(table)["MAML"] == pytest.approx(2.0)  # ms; beyond 500 steps it does not count
    assert tables.price(table.head(1)).isna().all()


def test_every_published_number_stands_beside_ours_in_a_unit_that_machines_share(recorded):
    found = tables.numbers(*recorded)
    assert len(found) == 76 and found["ours"].notna().all() and found["given"].sum() == 8 + 5 + 1
    fomaml = found[found["method"].eq("FOMAML") & found["measure"].str.startswith("seconds")]
    assert (fomaml[["published", "ours"]] == 1).all(axis=None)
    at = found.set_index(["measure", "method", "steps"])["published"]
    assert at["seconds over FOMAML's", "A-MAML", 200] == pytest.approx(0.90 / 0.60)
    assert at["rise of memory over MAML's to 200 steps", "A-MAML", 500] == pytest.approx(0.155 / 0.88)


def test_the_conclusions_of_the_chapter_follow_from_the_records(recorded):
    verdict = {c.claim: c.verdict for c in claims.claims(*recorded)}
    assert verdict["MAML's memory grows in proportion to K"] == "holds"
    assert verdict["A-MAML's memory grows far more slowly"] == "holds"
    assert verdict["The memory of iMAML, FOMAML and Reptile does not grow"] == "holds"
    assert verdict["FOMAML and Reptile are the fastest, then iMAML, then A-MAML"] == "holds"
    assert verdict["A-MAML costs half as much again as FOMAML"] == "does not hold"
    assert verdict["MAML cannot take 300 steps"] == "does not hold"
    # On the same ground unrolling is faster, compiled the adjoint is: "depends on the implementation, not on the algorithm".
    ratio = tables.maml_over_amaml(recorded[0])
    assert ratio["plain"] < 1 < ratio["traced"] < ratio["compiled"]
    # The two curves of A-MAML's memory meet at 500 steps and nowhere else: "a single number would have been a coincidence".
    shares = tables.shares_side_by_side(recorded[1]).loc["A-MAML"]
    apart = (shares.loc["Store"] / shares.loc["published"] - 1).abs()
    assert apart[500] < 0.02 and apart.loc[20:300].min() > 0.08


def test_other_records_would_refute_them(recorded):
    seconds, peaks = recorded
    adjoint = peaks["method"].str.startswith("A-MAML")
    grown = peaks.assign(MiB=peaks["MiB"] * peaks["steps"], peak=peaks["peak"].where(~adjoint, peaks["peak"] * peaks["steps"]))
    slower = seconds.assign(seconds=seconds["seconds"] * seconds["method"].map(lambda m: 5.0 if m == "FOMAML" else 1.0))
    verdict = {c.claim: c.verdict for c in claims.claims(slower, grown)}
    assert verdict["A-MAML's memory grows far more slowly"] != "holds"
    assert verdict["The memory of iMAML, FOMAML and Reptile does not grow"] == "does not hold"
    assert verdict["FOMAML and Reptile are the fastest, then iMAML, then A-MAML"] == "does not hold"


@pytest.fixture(scope="module")
def on_gpu():
    seconds, steps = tables.recorded("seconds"), tables.recorded("scaling")
    if not all(len(table) and table["device"].eq("cuda").any() for table in (seconds, steps)):
        pytest.skip("no records of a GPU")
    return seconds[seconds["device"].eq("cuda")], scaling.compared(steps[steps["device"].eq("cuda")])


def test_what_the_chapter_says_of_a_gpu_follows_from_the_records(recorded, on_gpu):
    seconds, steps = on_gpu
    verdict = {claim.claim: claim.verdict for claim in claims.of_time(seconds)}
    assert verdict["MAML takes five times the time of A-MAML"] == "does not hold"  # "in no mode"
    assert verdict["FOMAML and Reptile are the fastest, then iMAML, then A-MAML"] == "holds"
    ours, on_cpu = tables.prices(seconds), tables.prices(recorded[0])
    assert (ours["plain"] > 2 * on_cpu["plain"]).all()  # "the GPU is slower than a CPU core"
    assert (ours["plain"] > 10 * ours["traced"]).drop("MAML").all()  # "more than ten times as fast"
    assert (ours["traced"] > 1.5 * ours["compiled"]).drop("MAML").all()
    ratio = tables.maml_over_amaml(seconds)
    assert ratio["plain"] < 1 < tables.published_maml_over_amaml() < ratio["traced"] < ratio["compiled"]
    cpu = tables.recorded("scaling").query("device == 'cpu'")
    gpu, cpu = scaling.fitted(steps), scaling.fitted(scaling.compared(cpu))
    cheaper = cpu / gpu
    assert cheaper["a product"] > 100 and 1 < cheaper["an inner step"] < 3  # "only"
    assert 24 < scaling.even_share(gpu, settings.LARGE) < 100 and scaling.even_share(cpu, settings.LARGE) < 3
    assert scaling.conclusions(steps)[0].verdict == "holds" and scaling.outlook(steps).loc[64, ("strong", "predicted")] < 0.1


def test_the_share_at_which_arithmetic_and_overhead_are_even():
    load = settings.LARGE
    table = pd.DataFrame([vars(load) | {"parameters": load.parameters, "ranks": 1}])
    a_step = load.tasks * 100 * (2 * load.width * 3e-9 + load.parameters * 5e-11)
    prices = pd.Series([0, a_step, 3e-9, 5e-11, 0, 0], scaling.PRICES)
    assert scaling.even_share(prices, load) == pytest.approx(load.tasks)
    costs = scaling.amounts(table).iloc[0] * prices
    assert costs["an activation"] + costs["a product"] == pytest.approx(costs["an inner step"], rel=1e-9)


def test_recorded_bytes_are_counted_again_to_the_byte():
    cell = next(c for c in settings.cells("full") if c.kind == "bytes" and c.settings["steps"] == 10)
    stood = [r for r in of_kind("efficiency", "bytes") if r.settings == cell.settings]
    if not stood:
        pytest.skip("no record")
    assert deviation(stood[0], attempt(cell, None)) == 0


def meta_steps(prices, size="full"):
    """Rows of kind ``scaling`` as these prices would make them."""
    loads = [vars(load) | {"parameters": load.parameters} for load in SIZES[size].fitted + SIZES[size].held_out]
    table = pd.DataFrame([load | {"ranks": ranks, "size": size} for load in loads for ranks in (1, 2)])
    return table.assign(seconds=scaling.amounts(table) @ pd.Series(prices, scaling.PRICES))


def test_the_amounts_of_a_meta_step_are_those_of_the_largest_share_of_the_tasks():
    table = pd.DataFrame({"tasks": [5, 5], "steps": [10, 10], "width": [32, 32], "parameters": [P, P], "ranks": [1, 4]})
    assert settings.Load(tasks=5, steps=10, width=32).parameters == P
    found = scaling.amounts(table).to_numpy().tolist()
    assert found[0] == [1, 10, 5 * 100 * 10 * 64, 5 * 100 * 10 * P, 0, 0]
    assert found[1] == [1, 10, 2 * 100 * 10 * 64, 2 * 100 * 10 * P, 2, 1.5 * P]


def test_the_cost_model_finds_the_prices_that_made_the_seconds_and_is_judged_by_sizes_that_it_did_not_see():
    prices = [2e-3, 4e-4, 3e-9, 5e-11, 1e-4, 2e-9]
    table = scaling.compared(meta_steps(prices))
    assert scaling.fitted(table).tolist() == pytest.approx(prices, rel=1e-6)
    assert table["held out"].sum() == 2 * len(SIZES["full"].held_out) and table["ratio"].tolist() == pytest.approx([1] * len(table))
    assert scaling.conclusions(table)[0].verdict == "holds"
    slow = meta_steps(prices)
    apart = scaling.compared(slow)["held out"]
    refuted = scaling.compared(slow.assign(seconds=slow["seconds"].where(~apart, 2 * slow["seconds"])))
    assert scaling.fitted(refuted).tolist() == pytest.approx(prices, rel=1e-6)
    assert scaling.conclusions(refuted)[0].verdict == "does not hold"
    assert scaling.conclusions(table[table["ranks"].eq(1)])[1].verdict == "not run"


def test_many_ranks_are_ideal_where_only_arithmetic_costs_and_not_where_words_do():
    arithmetic = scaling.outlook(scaling.compared(meta_steps([0, 0, 0, 5e-11, 0, 0])))
    assert arithmetic.loc[:, (["strong", "weak"], "predicted")].to_numpy().flatten().tolist() == pytest.approx([1] * 14)
    assert arithmetic.loc[2].tolist() == pytest.approx([1] * 4) and arithmetic.loc[64, [("strong", "measured")]].isna().all()
    words = scaling.outlook(scaling.compared(meta_steps([0, 0, 0, 5e-11, 1e-2, 0])))
    assert words["weak", "predicted"].is_monotonic_decreasing and words.loc[64, ("strong", "predicted")] < 0.5


@pytest.mark.slow
def test_a_meta_step_in_two_processes_is_measured_on_the_same_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    loads = SIZES["smoke"].held_out
    # In a worker of joblib, where cells may run: it can have no children by multiprocessing.
    (table,) = joblib.Parallel(n_jobs=2)([joblib.delayed(run.timed)(loads, 2, 1, "cpu", 0)])
    assert table["seconds"].gt(0).all() and table["tasks"].tolist() == [load.tasks for load in loads]
    assert list(tmp_path.iterdir()) == []
    assert {(c.settings["ranks"], c.settings["device"]) for c in settings.cells("full") if c.kind == "scaling"} >= {(1, "cpu")}
