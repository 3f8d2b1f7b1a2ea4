"""The benchmarks: every contender computes the right gradient, the committed tables are valid, the report stands on them."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call, hessian

from benchmarks import modes, report, results
from benchmarks.__main__ import main as benchmark
from benchmarks.__main__ import prediction
from benchmarks.cases import BETA1, BETA2, EPS, REGULARIZATION, STEPS, TASKS, Case
from benchmarks.contenders import CONTENDERS
from benchmarks.torch_networks import torch_parts
from benchmarks.torch_peers import descended, hypertorch_recipe, proximal, unrolled
from benchmarks.worker import explain, take_cores

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "benchmarks" / "results").glob("*.csv"))
MODES = [path for path in COMMITTED if path.name.startswith("modes-")]
TABLES = [path for path in COMMITTED if path not in MODES]
CASES = {
    "mlp": Case("mlp", 2, 3, "float64"),
    "adam": Case("adam", 2, 4, "float64"),
    "implicit": Case("implicit", 2, 4, "float64"),
    "conv": Case("conv", 2, 2, "float64", width=4),
    "conv-smooth": Case("conv-smooth", 2, 2, "float64", width=4),
    "transformer": Case("transformer", 2, 2, "float64", width=8),
}
LARGE = ("conv", "conv-smooth", "transformer")


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def computed(name, case):
    """What a contender computes, if what it needs is installed."""
    needs = CONTENDERS[name].needs
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    return CONTENDERS[name].build(case)()


def test_every_network_has_a_small_case_and_every_contender_a_look():
    assert set(CASES) == set(STEPS) == set(TASKS)
    assert set(report.LOOKS) == set(CONTENDERS)
    assert all(set(contender.networks) <= set(STEPS) for contender in CONTENDERS.values())
    assert all(case.network in CONTENDERS[case.reference()[0]].networks for case in CASES.values())


@pytest.mark.parametrize("network", CASES)
def test_shapes_are_those_of_the_torch_model(network):
    case = CASES[network]
    model, _, data = torch_parts(case)
    assert [tuple(p.shape) for p in model.parameters()] == case.shapes()
    points = {"mlp": (100, 100), "conv": (20, 100), "conv-smooth": (20, 100), "transformer": (1, 1)}[case.model]
    assert [tuple(part.shape[:2]) for part in data[::2]] == [(case.tasks, count) for count in points]


def test_the_transformer_has_about_a_million_parameters_and_sees_no_future():
    case = Case("transformer", 1, 1, "float64")
    assert 0.9e6 < case.theta().size < 1.1e6
    model, _, (x, *_) = torch_parts(case)
    x, other = x[0], x[0].clone()  # (1, 64)
    other[0, 40] = (other[0, 40] + 1) % 64
    first, second = model(x), model(other)  # (1, 64, vocabulary)
    assert torch.equal(first[:, :40], second[:, :40]) and not torch.allclose(first[:, 40:], second[:, 40:])


@pytest.fixture(scope="module")
def references():
    return {network: computed(*case.reference()) for network, case in CASES.items()}


def wanted(name, network):
    """Whether a contender is compared. What compiles takes long for large networks; JAX shows that its networks are torch's."""
    contender = CONTENDERS[name]
    small = not contender.compiled or network not in LARGE or name in ("jax scan checkpoint", "jax mixed mode")
    return network in contender.networks and contender.exact and name != CASES[network].reference()[0] and small


@pytest.mark.parametrize(
    "name, network",
    [
        pytest.param(name, network, marks=pytest.mark.slow if CONTENDERS[name].compiled else ())
        for network in CASES
        for name in CONTENDERS
        if wanted(name, network)
    ],
)
def test_exact_contenders_agree(name, network, references):
    assert relative(computed(name, CASES[network]), references[network]) < 1e-10


@pytest.mark.parametrize(
    "name, low, high",
    [("odeint_adjoint", 1e-6, 0.02), ("released recipe", 1e-6, 0.1), ("amaml Backsolve", 1e-8, 0.02)],
)
def test_approximate_contenders_are_near_and_not_exact(name, low, high, references):
    assert low < relative(computed(name, CASES["mlp"]), references["mlp"]) < high


@pytest.mark.parametrize("network", ["mlp", "conv", "conv-smooth", "transformer"])
def test_networks_are_the_same_functions_in_jax(network):
    jax = pytest.importorskip("jax")
    from benchmarks.jax_peers import jax_loss

    case = CASES[network]
    model, loss, data = torch_parts(case)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        value = jax_loss(case)([jax.numpy.asarray(p) for p in case.parameters()], *(part[0].numpy() for part in data[2:]))
    finally:
        jax.config.update("jax_enable_x64", before)
    assert float(value) == pytest.approx(loss(model(data[2][0]), data[3][0]).item(), rel=1e-12)


@pytest.mark.parametrize("network", ["mlp", "adam"])
def test_the_gradient_is_that_of_the_mean_query_loss(network):
    case = CASES[network]
    model, loss, data = torch_parts(case)

    def objective(shift):
        total = 0.0
        for sx, sy, qx, qy in zip(*data, strict=True):
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), case.parameters(), strict=True):
                    parameter.copy_(torch.from_numpy(value))
                next(model.parameters())[0, 0] += shift
            if network == "adam":
                optimizer = torch.optim.Adam(model.parameters(), case.lr, (BETA1, BETA2), EPS)
            else:
                optimizer = torch.optim.SGD(model.parameters(), case.lr)
            for _ in range(case.steps):
                optimizer.zero_grad()
                loss(model(sx), sy).backward()
                optimizer.step()
            total += loss(model(qx), qy).item()
        return total / case.tasks

    difference = (objective(1e-5) - objective(-1e-5)) / 2e-5
    assert unrolled(case)()[0] == pytest.approx(difference, rel=1e-6)


def test_the_implicit_gradient_solves_the_linear_system_of_the_optimality_condition(monkeypatch):
    monkeypatch.setattr("benchmarks.torch_peers.CG_STEPS", 60)
    case = replace(CASES["implicit"], tasks=1)
    model, loss, data = torch_parts(case)
    sx, sy, qx, qy = (part[0] for part in data)
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    theta = [p.detach() for p in model.parameters()]
    adapted = torch.cat([p.flatten() for p in descended(proximal(model, loss, case), theta, case, sx, sy)])

    def value(u, x, y):
        pieces = [p.view(shape) for p, shape in zip(u.split([s.numel() for s in shapes]), shapes, strict=True)]
        return loss(functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

    system = torch.eye(len(adapted)) + hessian(value)(adapted, sx, sy) / REGULARIZATION
    solution = torch.linalg.solve(system, torch.func.grad(value)(adapted, qx, qy)).numpy()
    assert relative(hypertorch_recipe(case)(), solution) < 1e-10


@pytest.mark.parametrize("execution", ["eager", *(pytest.param(name, marks=pytest.mark.slow) for name in ("traced", "compiled"))])
@pytest.mark.parametrize("mode", modes.MODES)
@pytest.mark.parametrize("network", ["mlp", *LARGE])
def test_both_modes_give_the_derivative_of_the_gradient(network, mode, execution):
    if execution == "compiled" and network != "mlp":
        pytest.skip("takes minutes")
    loss, (u, x, y, v) = modes.parts(CASES[network])
    slope = lambda w: modes.over_tasks(torch.func.grad(loss), w, x, y)  # noqa: E731
    with torch.no_grad():
        product = modes.EXECUTIONS[execution](modes.MODES[mode](loss), (u, x, y, v))(u, x, y, v)
        shift = 1e-6 * v
        expected = (slope(u + shift) - slope(u - shift)) / 2e-6
        other = modes.reverse_over_reverse(loss)(u, x, y, v)
    assert relative(product.numpy(), other.numpy()) < 1e-10
    if network != "conv":  # whose ReLU has kinks
        assert relative(product.numpy(), expected.numpy()) < 1e-5


@pytest.mark.slow
def test_modes_are_measured_into_a_table(tmp_path):
    modes.main(["--only", "mlp B=5", "--seconds", "0", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("modes-*.csv")
    table = pd.read_csv(path)
    assert tuple(table.columns) == modes.COLUMNS
    assert len(table) == len(modes.MODES) * len(modes.EXECUTIONS) and (table.error < 1e-5).all()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be bound to cores here")
def test_a_contender_for_which_there_are_too_few_cores_says_so():
    with pytest.raises(RuntimeError, match="runs on 10000 cores"):
        take_cores(10_000)


@pytest.mark.slow
def test_a_measurement_makes_valid_rows_is_resumed_and_reported(tmp_path):
    arguments = ["--quick", "--seconds", "0", "--out", str(tmp_path), "--only", "B=5.* amaml$"]
    benchmark(arguments)
    (path,) = tmp_path.glob("*.csv")
    table = results.read(path)
    assert list(table.contender) == ["amaml"] and list(table.status) == ["ok"] and 0 < table.error[0] < 1e-4
    assert f"torch={torch.__version__}" in table.versions[0].split()
    benchmark(arguments)
    assert results.read(path).equals(table)
    assert path.with_suffix(".md").exists() and list(tmp_path.glob("*.svg"))


@pytest.mark.parametrize(
    "rows, steps, reason",
    [
        ([], 2000, None),
        ([(50, 2.0, 10.0)], 100, None),
        ([(50, 2.0, 10.0), (500, 20.0, 10.0)], 2000, "predicted to take 80 s"),
        ([(50, 0.1, 1e9)], 100, "GB"),
        ([(50, 2.0, 10.0), (500, None, None)], 2000, "K=500 was too much"),
    ],
)
def test_what_would_take_too_much_is_skipped_with_a_reason(rows, steps, reason):
    table = [row(steps=k, wall_seconds=s, memory_mb=m, status="ok" if s else "skipped", reason="long") for k, s, m in rows]
    found = prediction(pd.DataFrame(table, columns=results.COLUMNS), Case("mlp", 5, steps), "amaml", limit=60)
    assert found is None if reason is None else reason in found


def test_a_contender_that_fails_or_is_missing_says_why():
    assert explain(ModuleNotFoundError("No module named 'jax'"))["status"] == "not installed"
    assert explain(RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 GB"))["status"] == "out of memory"
    assert explain(ValueError("no"))["status"] == "failed"


def row(**entries):
    base = dict.fromkeys(results.COLUMNS) | {
        "device": "cpu", "network": "mlp", "tasks": 5, "steps": 50, "dtype": "float32", "contender": "amaml",
        "status": "ok", "cpu_seconds": 1.0, "wall_seconds": 1.0, "memory_mb": 1.0, "calls": 1, "load_average": 1.0,
        "machine": "m", "versions": "torch=2", "date": "2026-01-01T00:00:00+00:00", "commit": "c",
    }  # fmt: skip
    return base | entries


@pytest.mark.parametrize(
    "rows, message",
    [
        ([row(status="fine")], "unknown status"),
        ([row(), row()], "two rows"),
        ([row(cpu_seconds=None)], "no figures"),
        ([row(status="failed")], "was not measured"),
        ([{"tasks": 1}], "columns"),
    ],
)
def test_a_broken_table_is_refused(rows, message, tmp_path):
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=message):
        results.read(tmp_path / "t.csv")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1\n1,2,3\n"])
def test_a_table_that_cannot_be_read_is_named(content, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match="t.csv is no table: .*; take it again by `git restore`"):
        results.read(tmp_path / "t.csv")


def verdict(seconds, words):
    """What the report says of a target, from the CPU seconds by contender and K."""
    rows = [row(steps=k, contender=name, cpu_seconds=s) for name, own in seconds.items() for k, s in own.items()]
    return report.judge(pd.DataFrame(rows)).set_index("target").loc[words]


def test_the_verdict_is_that_of_the_worst_case():
    seconds = {"amaml": {10: 9.0, 50: 0.4, 100: 1.2}, "unrolled": {10: 1.0, 50: 1.0, 100: 2.0}}
    found = verdict(seconds, "mlp, B=5: amaml, CPU time / unrolled, K >= 50")
    assert found[["worst", "at K", "verdict"]].tolist() == [0.6, 100, "missed by 20%"]


def test_a_median_may_have_a_bound_of_its_own():
    seconds = {"amaml compiled": {50: 0.95, 100: 0.7, 200: 0.8}, "jax scan checkpoint": {50: 1.0, 100: 1.0, 200: 1.0}}
    words = "mlp, B=5: amaml compiled, CPU time / jax scan checkpoint, K >= 50"
    assert verdict(seconds, words)[["worst", "verdict"]].tolist() == [0.95, "met"]
    assert verdict(seconds, f"{words}, median")[["at most", "median", "verdict"]].tolist() == [0.9, 0.8, "met"]


def test_the_first_call_is_judged_where_little_else_than_compilation_is_in_it():
    rows = [
        row(network="adam", tasks=32, steps=k, contender="amaml compiled", compile_seconds=s) for k, s in ((10, 4.0), (500, 9.0))
    ]
    judged = report.judge(pd.DataFrame(rows)).set_index("target")
    found = judged.loc["adam, B=32: amaml compiled, seconds of the first call at the least K"]
    assert found["worst"] == 4.0 and found["at K"] == 10 and found["verdict"] == "met"


@pytest.mark.skipif(not TABLES, reason="no table is committed yet")
@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_committed_tables_are_valid_and_their_reports_up_to_date(path):
    table = results.read(path)
    assert path.with_suffix(".md").read_text() == report.text(table)
    exact = table[(table.status == "ok") & (table.dtype == "float64") & table.contender.map(lambda n: CONTENDERS[n].exact)]
    assert (exact.error < 1e-6).all()


def test_the_readme_has_the_table_of_the_measurements():
    readme, table = report.README.read_text(), results.read(report.IN_README)
    assert report.with_table(readme, table) == readme
    slower = table.assign(cpu_seconds=table.cpu_seconds.where(table.contender != "amaml compiled", 2 * table.cpu_seconds))
    assert report.with_table(readme, slower) != readme
    ratio = report.beside_ours(table).set_index(["network", "B", "K"])
    rows = table[(table.network == "mlp") & (table.tasks == 32) & (table.steps == 50) & (table.dtype == "float32")]
    cost = rows.set_index("contender")["cpu_seconds"]
    assert float(ratio.loc[("mlp", 32, 50), "unrolled"]) == pytest.approx(cost["unrolled"] / cost["amaml compiled"], rel=0.05)
    assert float(ratio.loc[("mlp", 32, 50), "JAX"]) == pytest.approx(
        cost[["jax scan", "jax scan checkpoint", "jax mixed mode"]].min() / cost["amaml compiled"], rel=0.05
    )


def test_what_the_readme_says_of_peers_is_so():
    ratio = report.beside_ours(results.read(report.IN_README)).replace("–", float("nan"))
    large, few = ratio["network"].isin(["conv", "transformer"]), ratio["network"].eq("mlp") & ratio["B"].eq(5)
    ratio = ratio.drop(columns=["network", "B", "K"]).astype(float)
    level = ratio.loc[~few, "JAX"].drop(ratio.index[large][:1]).dropna()
    assert (ratio.loc[few, "JAX"] < 0.9).all() and level.between(0.9, 1.15).all() and ratio["JAX"][large].iloc[0] > 5
    assert ratio.loc[large, "unrolled"].between(0.9, 1.5).all()
    assert ratio.loc[~large].drop(columns="JAX").min(axis=None) > 3  # all but JAX take several times as long


def test_what_is_said_of_a_gpu_is_so():
    found = [table for table in map(results.read, TABLES) if table.device.eq("cuda").any()]
    if not found:
        pytest.skip("no table of a GPU")
    rows = pd.concat(found).query("network == 'mlp' and tasks == 5 and steps == 500")
    seconds = rows.set_index("contender")["wall_seconds"] / rows.set_index("contender")["wall_seconds"]["amaml compiled"]
    assert 80 < seconds["unrolled"] < 125 and 0.4 < seconds.filter(like="jax").min() < 0.6


@pytest.mark.skipif(not MODES, reason="no table is committed yet")
@pytest.mark.parametrize("path", MODES, ids=lambda p: p.stem)
def test_committed_tables_of_the_modes_are_valid(path):
    table = pd.read_csv(path)
    assert tuple(table.columns) == modes.COLUMNS
    ok = table[table.status == "ok"]
    assert (ok[["cpu_seconds", "wall_seconds", "memory_mb", "calls"]] >= 0).all(axis=None) and (ok.error < 1e-4).all()
    assert table[table.status != "ok"].reason.notna().all()


def test_reverse_over_reverse_takes_less_time_but_for_the_compiled_transformer():
    """What the README says, and why the package's steps are as they are."""
    for path in (Path(results.__file__).parent / "results").glob("modes-*.csv"):
        wide = pd.read_csv(path).pivot(index=["network", "tasks", "execution"], columns="mode", values=["cpu_seconds", "memory_mb"])
        time, memory = (wide[c]["forward over reverse"] / wide[c]["reverse over reverse"] for c in ("cpu_seconds", "memory_mb"))
        other = ("transformer", 1, "compiled")
        assert (time.drop(other) > 1).all()
        assert 0.8 < time[other] < 1 and 0.5 < memory[other] < 0.7
