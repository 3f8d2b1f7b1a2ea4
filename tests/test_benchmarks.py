"""The benchmarks: every contender computes the right gradient, the committed tables are valid, the report stands on them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import report, results
from benchmarks.__main__ import main as benchmark
from benchmarks.__main__ import prediction
from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, torch_parts, unrolled
from benchmarks.worker import explain

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "benchmarks" / "results").glob("*.csv"))
NEEDS = {"higher": "higher", "torchopt": "torchopt", "jax scan": "jax", "jax scan checkpoint": "jax"}
CASES = {"mlp": Case("mlp", 2, 3, "float64"), "conv": Case("conv", 2, 2, "float64", filters=4)}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("network", CASES)
def test_shapes_are_those_of_the_torch_model(network):
    case = CASES[network]
    model, _, data = torch_parts(case)
    assert [tuple(p.shape) for p in model.parameters()] == case.shapes()
    assert [tuple(part.shape[:2]) for part in data[::2]] == [
        (case.tasks, 100 if network == "mlp" else 20),
        (case.tasks, 100),
    ]


@pytest.fixture(scope="module")
def references():
    return {network: unrolled(case)() for network, case in CASES.items()}


EXACT = [name for name, contender in CONTENDERS.items() if contender.exact and name != "unrolled"]
# What compiles takes long over convolutions; one of JAX's two shows that its network is torch's.
CONV = [name for name in EXACT if not CONTENDERS[name].compiled or name == "jax scan checkpoint"]


PAIRS = [(name, "mlp") for name in EXACT] + [(name, "conv") for name in CONV]


@pytest.mark.parametrize(
    "name, network",
    [pytest.param(*pair, marks=pytest.mark.slow if CONTENDERS[pair[0]].compiled else ()) for pair in PAIRS],
)
def test_exact_contenders_agree_with_unrolled_autograd(name, network, references):
    if importlib.util.find_spec(NEEDS.get(name, "torch")) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    assert relative(CONTENDERS[name].build(CASES[network])(), references[network]) < 1e-10


@pytest.mark.parametrize(
    "name, low, high",
    [("odeint_adjoint", 1e-6, 0.02), ("released recipe", 1e-6, 0.05), ("amaml Backsolve", 1e-8, 0.02)],
)
def test_approximate_contenders_are_near_and_not_exact(name, low, high, references):
    assert low < relative(CONTENDERS[name].build(CASES["mlp"])(), references["mlp"]) < high


def test_the_gradient_is_that_of_the_mean_query_loss():
    case = replace(CASES["mlp"], tasks=2)
    model, loss, data = torch_parts(case)

    def objective(shift):
        total = 0.0
        for sx, sy, qx, qy in zip(*data, strict=True):
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), case.parameters(), strict=True):
                    parameter.copy_(torch.from_numpy(value))
                next(model.parameters())[0, 0] += shift
            for _ in range(case.steps):
                gradients = torch.autograd.grad(loss(model(sx), sy), tuple(model.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter -= case.lr * gradient
            total += loss(model(qx), qy).item()
        return total / case.tasks

    difference = (objective(1e-5) - objective(-1e-5)) / 2e-5
    assert unrolled(case)()[0] == pytest.approx(difference, rel=1e-6)


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


def test_the_verdict_is_that_of_the_worst_case():
    seconds = {"amaml": {10: 9.0, 50: 0.4, 100: 1.2}, "unrolled": {10: 1.0, 50: 1.0, 100: 2.0}}
    rows = [row(steps=k, contender=name, cpu_seconds=s) for name, own in seconds.items() for k, s in own.items()]
    verdict = report.judge(pd.DataFrame(rows)).set_index("target").loc["mlp, B=5: amaml, CPU time / unrolled, K >= 50"]
    assert verdict.worst == 0.6 and verdict["at K"] == 100 and verdict.verdict == "missed by 20%"


@pytest.mark.skipif(not COMMITTED, reason="no table is committed yet")
@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_committed_tables_are_valid_and_their_reports_up_to_date(path):
    table = results.read(path)
    assert path.with_suffix(".md").read_text() == report.text(table)
    exact = table[(table.status == "ok") & (table.dtype == "float64") & table.contender.map(lambda n: CONTENDERS[n].exact)]
    assert (exact.error < 1e-6).all()
