"""What all evaluations share: cells and their records, choices, intervals, published numbers, and the structure of the house."""

import ast
import io
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.numpy import load_file
from scipy import stats

from amaml_core import DivergenceError
from experiments import __main__ as runner
from experiments.common import cells, plots, pools, records
from experiments.common.cells import Cell, deviation, durations, missing, only_sweep, run_cells
from experiments.common.choosing import choose, chosen
from experiments.common.claims import decide
from experiments.common.pools import Failure, pool
from experiments.common.published import published
from experiments.common.records import new_record
from experiments.common.statistics import over_seeds, paired_quotient, quotient, seed_interval
from experiments.common.tables import as_html, captioned, text

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "experiments"


def table(**columns):
    return pd.DataFrame(columns)


# --------------------------------------------------------------------------------------------------------------- records


def test_a_record_comes_back_as_it_was_written(tmp_path):
    rows = table(
        step=[0, 0, 1, 1],
        user=[0, 1, 0, 1],
        error=[0.123456789012, float("nan"), 1e-30, 4.0],
        data="Jester-1",
        chosen=[True, False] * 2,
    )
    file = records.write(new_record("errors", {"size": "full", "rate": 0.1}, 3, rows, 1.5), "ratings", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ratings.jsonl"] and file.read_text().count("\n") == 1
    found = records.rows("ratings", "errors", tmp_path, size="full")
    assert found[list(rows)].equals(rows.assign(error=[0.123456789, float("nan"), 1e-30, 4.0]))
    assert set(found["rate"]) == {0.1} and set(found["seed"]) == {3} and found["machine"].str.len().min() > 0
    assert records.rows("ratings", "errors", tmp_path, size="book").empty and records.rows("images", "errors", tmp_path).empty


def test_a_column_of_keys_is_written_once():
    keys = table(step=np.repeat(range(8), 100), user=list(range(100)) * 8, data="x", error=np.arange(800) / 7)
    record = new_record("errors", {}, 0, keys, 1.0)
    assert record.columns["data"] == "x" and len(json.dumps(record.columns["step"])) < 100
    assert len(json.dumps(record.columns["user"])) < 1000 and isinstance(record.columns["error"], list)
    assert record.table.equals(keys.assign(error=[float(f"{e:.10g}") for e in keys["error"]]))


def test_a_new_record_of_a_cell_takes_the_place_of_the_old_one(tmp_path):
    for seed, value in ((0, 1.0), (1, 2.0), (0, 3.0)):
        records.write(new_record("a", {"x": 1}, seed, table(value=[value]), 1.0), "some", tmp_path)
    found = records.rows("some", "a", tmp_path)
    assert found[["seed", "value"]].to_dict("list") == {"seed": [0, 1], "value": [3.0, 2.0]}


def test_a_line_that_was_cut_off_is_not_read_and_is_taken_away(tmp_path):
    file = records.write(new_record("a", {}, 0, table(value=[1.0]), 1.0), "some", tmp_path)
    whole = file.read_text()
    file.write_text(whole + whole[: len(whole) // 2])
    assert len(records.read("some", tmp_path)) == 1
    records.write(new_record("a", {}, 1, table(value=[2.0]), 1.0), "some", tmp_path)
    assert [r.seed for r in records.read("some", tmp_path)] == [0, 1] and file.read_text().startswith(whole)


def test_damaged_records_are_refused_with_their_line(tmp_path):
    file = records.write(new_record("a", {}, 0, table(value=[1.0, 2.0]), 1.0), "some", tmp_path)
    content = json.loads(file.read_text())
    for bad in ({"rows": 3}, {"duration": -1}, {"seed": "0"}, {"extra": 1}, {"date": "yesterday"}, {"diverged": "so"}):
        file.write_text(json.dumps(content) + "\n" + json.dumps(content | bad) + "\n")
        with pytest.raises(ValueError, match=r"some.jsonl, line 2, is not a record"):
            records.read("some", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"get the records back with git, or make them with `make full`"):
        records.read("some", tmp_path / "none")


WRONG = {
    "a byte that is no text": lambda line: line.replace(b"seed", b"se\xffd"),
    "text": lambda line: b"no record",
    "nothing": lambda line: b"",
    "a list": lambda line: b"[]",
    "deep": lambda line: b"[" * 10**5,
    "deep within": lambda line: line.replace(b'"settings": {', b'"settings": {"x": ' + b"[" * 10**5 + b"]" * 10**5 + b", "),
    "NaN": lambda line: line.replace(b"2.5", b"NaN"),
    "beyond all": lambda line: line.replace(b"2.5", b"1e999"),
    "a key twice": lambda line: line.replace(b'"seed"', b'"rows": 2, "seed"'),
    "another digit": lambda line: line.replace(b"2.5", b"2.6"),
    "another digest": lambda line: line.replace(b'"digest": "', b'"digest": "0'),
    "the same again": lambda line: line,
    "another cell": lambda line: line.replace(b'"seed": 0', b'"seed": 1'),
}
OLDER = [  # what lines without a digest may say
    {"columns": {"value": {"values": 3, "each": 1}}}, {"columns": {"value": {"values": [], "each": 1}}},
    {"columns": {"value": {"values": [1], "each": 0}}}, {"columns": {"value": {"values": [1], "each": "1"}}},
    {"columns": {"value": 1}, "rows": 10**12}, {"rows": -2, "diverged": "so"}, {"columns": {}, "rows": True},
    {"settings": {"x": [40, 50]}}, {"settings": {"x": {}}}, {"columns": {"value": [[1], [2]]}},
    {"columns": {"value": [10**400, None]}}, {"columns": {str(n): 1 for n in range(9)}, "rows": 2 * 10**6},
]  # fmt: skip


@pytest.mark.parametrize("wrong", [*WRONG, *map(str, range(len(OLDER)))])
def test_every_damage_of_a_record_is_one_kind_of_error_and_loses_nothing(tmp_path, wrong):
    file = records.write(new_record("a", {"x": 1}, 0, table(value=[1.0, 2.5]), 1.0), "some", tmp_path)
    whole = file.read_bytes()
    older = {name: value for name, value in json.loads(whole).items() if name != "digest"}
    line = WRONG[wrong](whole[:-1]) if wrong in WRONG else json.dumps(older | OLDER[int(wrong)]).encode()
    file.write_bytes(whole + line + b"\n")
    with pytest.raises(ValueError) as caught:
        records.read("some", tmp_path)
    assert str(caught.value).startswith(f"{file}, line 2, is not a record: ") and records.REMEDY in str(caught.value)
    records.write(new_record("a", {"x": 1}, 5, table(value=[7.0, 8.0]), 1.0), "some", tmp_path)  # hours of work, say
    first, second, third = file.read_bytes().splitlines(keepends=True)
    assert (first, second) == (whole, line + b"\n")
    file.write_bytes(first + third)
    assert [record.seed for record in records.read("some", tmp_path)] == [0, 5]


@pytest.mark.parametrize(
    ("settings", "value"), [({}, pd.Timestamp("2026-01-01")), ({}, math.inf), ({"x": math.nan}, 1.0), ({"x": [1, 2]}, 1.0)]
)
def test_what_no_record_can_hold_is_refused_where_the_cell_runs(settings, value):
    with pytest.raises((TypeError, ValueError)):
        new_record("a", settings, 0, table(value=[value, 1.0]), 1.0)


def test_a_record_of_before_there_were_digests_is_read(tmp_path):
    file = records.write(new_record("a", {"x": 1}, 0, table(value=[1.0, 2.5]), 1.0), "some", tmp_path)
    (with_one,) = records.read("some", tmp_path)
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "digest"}) + "\n")
    assert records.read("some", tmp_path) == [with_one]


def test_an_infinite_number_is_no_result():
    with pytest.raises(ValueError, match="infinite"):
        new_record("a", {}, 0, table(value=[1.0, float("inf")]), 1.0)


@pytest.mark.parametrize("name", ["rate", "seed", "machine"])
def test_a_column_does_not_hide_behind_a_setting_of_its_name(name):
    with pytest.raises(ValueError, match=rf"\['{name}'\] both as settings and as columns"):
        new_record("a", {"rate": 0.1}, 0, pd.DataFrame({name: [1.0], "error": [2.0]}), 1.0)


# ----------------------------------------------------------------------------------------------------------------- cells


@pytest.fixture
def fake(monkeypatch):
    """An evaluation whose cells of seed 2 diverge; it notes which cells ran."""
    ran = []

    def run(cell, scratch):
        ran.append(cell.seed)
        if cell.seed == 2:
            raise DivergenceError("meta step 3")
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / f"{cell.name}.half").write_text("under way")
        (scratch / f".{cell.name}.half.1.tmp").write_text("of a writer that was killed")
        return table(error=[0.5 * cell.seed, 1.0])

    monkeypatch.setitem(sys.modules, "experiments.fake.run", SimpleNamespace(run=run))
    return ran


def test_a_cell_leaves_a_record_and_is_not_run_again(fake, tmp_path):
    todo = [Cell("fake", "a", {"size": "full"}, seed) for seed in range(4)]
    for _ in range(2):
        run_cells(missing(todo, tmp_path), tmp_path)
    assert fake == [0, 1, 2, 3] and missing(todo, tmp_path) == []
    assert records.rows("fake", "a", tmp_path)["seed"].tolist() == [0, 0, 1, 1, 3, 3]
    assert records.diverged("fake", "a", tmp_path)[["seed", "message"]].to_dict("list") == {"seed": [2], "message": ["meta step 3"]}
    assert list((tmp_path / ".scratch").iterdir()) == []


def test_a_cell_that_is_run_again_says_how_far_it_is_from_its_record(fake, tmp_path, capsys):
    cell = Cell("fake", "a", {}, 1)
    records.write(new_record("a", {}, 1, table(error=[0.5, 1.25]), 1.0), "fake", tmp_path)
    run_cells([cell], tmp_path)
    assert "2.0e-01 from the record that stood (NOT within 0.01)" in capsys.readouterr().out
    run_cells([cell], tmp_path)
    assert "0.0e+00 from the record that stood (within 0.01)" in capsys.readouterr().out


def test_two_processes_leave_the_records_that_one_leaves(tmp_path):
    todo = [Cell("efficiency", "bytes", {"size": "smoke", "methods": "long", "steps": k}, 0) for k in (1, 2, 3)]
    for jobs in (1, 2):
        run_cells(todo, tmp_path / str(jobs), jobs=jobs)
    one, two = (records.read("efficiency", tmp_path / str(jobs)) for jobs in (1, 2))
    assert len(one) == 3 and [deviation(a, b) for a, b in zip(one, two, strict=True)] == [0, 0, 0]


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_process_costs_one_attempt_at_its_call_and_no_other_call_anything(tmp_path, monkeypatch, end):
    monkeypatch.setattr(pools, "ATTEMPTS", 2)
    die = f"__import__('os').kill(__import__('os').getpid(), {int(end)})"
    once = f"__import__('os').path.exists({str(tmp_path / 'x')!r}) or (open({str(tmp_path / 'x')!r}, 'w').close(), {die})"
    with pool(2) as each:
        found = dict(each(eval, [once, die, "1 + 1", "1 / 0", "open('/none')"]))
    assert found[once] is True and found["1 + 1"] == 2 and "killed, 2 times" in found[die].error
    assert found["1 / 0"].error == "ZeroDivisionError: division by zero" and "Traceback" in found["1 / 0"].trace
    assert found["open('/none')"] == Failure("FileNotFoundError: [Errno 2] No such file or directory: '/none'")


def test_a_cell_that_fails_is_named_and_ends_no_other(fake, tmp_path, monkeypatch, capsys):
    def run(cell, scratch):
        if cell.seed < 2:
            raise KeyError("row")
        return table(error=[1.0])

    monkeypatch.setitem(sys.modules, "experiments.fake.run", SimpleNamespace(run=run))
    monkeypatch.setattr(runner, "cells", lambda profile, seed: [Cell("fake", "a", {}, seed) for seed in range(4)])
    with pytest.raises(SystemExit) as caught:
        runner.main(["--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert caught.value.code == 1 and "2 of 4 cells failed" in said
    assert "fake-a-seed=0 failed: KeyError: 'row'" in said and "fake-a-seed=1 failed: KeyError: 'row'" in said
    assert said.count("Traceback") == 1 and 'raise KeyError("row")' in said
    assert [record.seed for record in records.read("fake", tmp_path)] == [2, 3]


def test_a_second_sweep_waits_for_the_first_and_runs_what_that_has_left(fake, tmp_path, monkeypatch):
    said = io.StringIO()  # unlike capsys, it loses nothing that another thread writes while it is read
    monkeypatch.setattr(sys, "stderr", said)
    cells = [Cell("fake", "a", {}, seed) for seed in (0, 1)]
    monkeypatch.setattr(runner, "cells", lambda profile, seed: cells)
    with ThreadPoolExecutor(1) as other:
        with only_sweep(cells, tmp_path):
            second = other.submit(runner.main, ["--out", str(tmp_path)])
            while "another sweep is at work on" not in said.getvalue() and not second.done():
                time.sleep(0.01)
            run_cells(cells[:1], tmp_path)
            assert fake == [0]
        second.result()
    assert fake == [0, 1] and missing(cells, tmp_path) == []
    for left in (".fake.sweep.lock", ".fake.jsonl.lock"):  # by a kill after the last record
        (tmp_path / left).touch()
    runner.main(["--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scratch", "fake.jsonl"]


def test_a_sweep_for_which_another_has_left_nothing_but_its_lock_removes_that(fake, tmp_path, monkeypatch):
    cells = [Cell("fake", "a", {}, 0)]
    looks = iter([cells, []])  # before it waits, and after
    monkeypatch.setattr(runner, "cells", lambda profile, seed: cells)
    monkeypatch.setattr(runner, "missing", lambda *_: next(looks))
    (tmp_path / ".fake.jsonl.lock").touch()
    runner.main(["--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == [] and fake == []


def test_an_interrupted_sweep_says_in_a_line_how_to_go_on(fake, tmp_path, monkeypatch, capsys):
    def run(cell, scratch):
        if cell.seed == 1:
            raise KeyboardInterrupt
        return table(error=[1.0])

    monkeypatch.setitem(sys.modules, "experiments.fake.run", SimpleNamespace(run=run))
    monkeypatch.setattr(runner, "cells", lambda profile, seed: [Cell("fake", "a", {}, seed) for seed in range(3)])
    with pytest.raises(SystemExit) as caught:
        runner.main(["--out", str(tmp_path)])
    assert caught.value.code == 130
    assert "interrupted: 1 of 3 cells have a record; the same command goes on" in capsys.readouterr().err


def test_a_record_that_cannot_be_written_is_tried_again_and_then_named(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "cells", lambda profile, seed: [Cell("fake", "a", {}, seed) for seed in range(3)])
    before, tried = resource.getrlimit(resource.RLIMIT_FSIZE), []
    runner.main(["--out", str(tmp_path), "--only", "seed=0"])
    monkeypatch.setattr(cells.time, "sleep", lambda pause: tried.append(pause))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "fake.jsonl").stat().st_size + 100, before[1]))
        with pytest.raises(SystemExit) as caught:
            runner.main(["--out", str(tmp_path), "--only", "seed=1"])
        assert (
            f"'{tmp_path / 'fake.jsonl'}'; make room" in caught.value.code and "then the same command goes on" in caught.value.code
        )
        assert tuple(tried) == cells.PAUSES and "the record of fake-a-seed=1 could not be written" in capsys.readouterr().err
        monkeypatch.setattr(cells.time, "sleep", lambda pause: resource.setrlimit(resource.RLIMIT_FSIZE, before))
        runner.main(["--out", str(tmp_path), "--only", "seed=1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [record.seed for record in records.read("fake", tmp_path)] == [0, 1] and fake == [0, 1, 1]


def test_a_folder_that_cannot_be_written_to_is_named_before_any_cell_runs(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "cells", lambda profile, seed: [Cell("fake", "a", {}, 0)])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        runner.main(["--out", str(tmp_path / "file")])
    assert str(tmp_path / "file") in caught.value.code and "see to the folder" in caught.value.code and fake == []


def test_a_pool_that_is_left_ends_its_processes_at_once_and_silently(tmp_path, capfd):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    call = f"""try:
    open({str(begun)!r}, "w").close()
    __import__("time").sleep(600)
finally:
    open({str(ended)!r}, "w").close()"""
    with pool(2) as each, closing(each(exec, ["1", call, *["1"] * 5])) as found:
        next(found)  # and no more: with all others done, it would wait for this call's end
        while not begun.exists():
            time.sleep(0.01)
        started = time.monotonic()
    assert ended.exists() and time.monotonic() - started < pools.GRACE_SECONDS and capfd.readouterr().err == ""


# An evaluation of cells that take some seconds, with checkpoints that are written when a cell begins and when it ends.
LONG = """
import os, sys, time
from types import SimpleNamespace

def run(cell, scratch):
    from functools import partial
    import pandas as pd, torch
    from amaml_core import AMAML, Euler, Problem, fit
    from amaml_core.samplers import CosMixture, FunctionSampler
    class Slow(FunctionSampler):
        def __call__(self, generator):
            time.sleep(0.03)
            with open(scratch.parent / f"{cell.seed}.drawn", "a") as file:
                print(os.getpid(), file=file)
            drawn = lambda: {path.stem: len(path.read_text().split()) for path in scratch.parent.glob("*.drawn")}
            held = lambda: (scratch.parent / "hold").exists() or len(drawn()) < 2 or min(drawn().values()) < 5
            while drawn()[str(cell.seed)] >= 5 and held():
                time.sleep(0.01)  # for the other process, which may start late, and for the test, which may be slow to kill
            return super().__call__(generator)
    torch.manual_seed(0)
    problem = Problem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, trace=False)
    file, adam = scratch / f"{cell.name}.safetensors", partial(torch.optim.Adam, lr=1e-2)
    sampler = Slow(CosMixture(), 5, 5, 1)
    found = fit(AMAML(0.5, Euler(1)), problem, sampler, 60, adam, file, seed=cell.seed, progress=False)
    return pd.DataFrame({"theta": found.theta.tolist()})

sys.modules["experiments.long.run"] = SimpleNamespace(run=run)
"""
LONG_SWEEP = """
import sys
from experiments import __main__ as runner
from experiments.common.cells import Cell
runner.cells = lambda profile, seed: [Cell("long", "a", {}, seed) for seed in (0, 1)]
runner.main(["--out", sys.argv[1], "--jobs", "2"])
"""


def long_sweep(folder, out):
    (folder / "sitecustomize.py").write_text(LONG)  # which the processes of the pool import, too
    env = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"}
    command = [sys.executable, "-c", LONG_SWEEP, str(out)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_processes_of_a_sweep_save_their_state_and_end_when_the_sweep_alone_is_killed(tmp_path, end):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert long_sweep(tmp_path, whole).wait(timeout=120) == 0
    out.mkdir()
    (out / "hold").touch()
    first = long_sweep(tmp_path, out)
    while len(drawn := [path.read_text().split() for path in out.glob("*.drawn")]) < 2 or min(map(len, drawn)) < 5:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(end)
    said = first.communicate(timeout=60)[1] if end == signal.SIGTERM else ""
    until, pids = time.monotonic() + 60, [int(pid) for pid, *_ in drawn]  # far more than they take
    while any(lives(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    left = [pid for pid in pids if lives(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [] and first.wait() == (143 if end == signal.SIGTERM else -9)
    if end == signal.SIGTERM:
        assert "interrupted: 0 of 2 cells have a record; the same command goes on" in said and "Traceback" not in said
    saved = [len(load_file(path)["state.rows"]) for path in out.glob(".scratch/[!.]*.safetensors")]
    assert len(saved) == 2 and 0 < min(saved) <= max(saved) < 60
    (out / "hold").unlink()
    assert long_sweep(tmp_path, out).wait(timeout=120) == 0
    one, two = (records.read("long", folder) for folder in (whole, out))
    assert len(one) == 2 and [deviation(a, b) for a, b in zip(one, two, strict=True)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_a_sweep_and_leaves_no_half_written_file(tmp_path, jobs):
    command = ["-m", "experiments", "--profile", "smoke", "--only", "ratings-errors", "--out", str(tmp_path), "--jobs", str(jobs)]
    run = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "ratings.jsonl").exists() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    done = len(records.read("ratings", tmp_path))
    assert run.returncode == 130 and "Traceback" not in said
    assert f"interrupted: {done} of 60 cells have a record; the same command goes on" in said
    assert not [path.name for path in tmp_path.rglob("*") if path.name.startswith(".") and path.is_file()]


def test_the_deviation_of_two_runs_is_relative_to_the_largest_number_of_a_column():
    def of(**columns):
        return new_record("a", {}, 0, table(**({"error": [1.0, 4.0], "seconds": [1.0, 2.0], "data": ["x", "y"]} | columns)), 1.0)

    assert deviation(of(), of(seconds=[5.0, 9.0])) == 0
    assert deviation(of(), of(error=[1.1, 4.0])) == pytest.approx(0.025)
    for changed in ({"data": ["x", "z"]}, {"error": [1.0, float("nan")]}, {"more": [1, 2]}):
        assert deviation(of(), of(**changed)) == np.inf
    lost = new_record("a", {}, 0, None, 1.0, "meta step 3")
    assert deviation(of(), lost) == np.inf and deviation(lost, lost) == 0


def test_the_remaining_time_is_that_of_cells_of_the_same_kind(tmp_path):
    for seed, duration in enumerate((1.0, 2.0, 9.0)):
        records.write(new_record("a", {}, seed, table(x=[1]), duration), "fake", tmp_path)
    wanted = [Cell("fake", "a", {}, 7), Cell("fake", "b", {}, 0), Cell("other", "a", {}, 0)]
    assert durations(tmp_path, wanted) == {("fake", "a"): 2.0, ("fake", "b"): 2.0, ("other", "a"): 60.0}


def test_the_command_line_lists_cells_and_refuses_words_that_fit_none(tmp_path, capsys):
    runner.main(["--list", "--out", str(tmp_path), "--only", "efficiency bytes methods=long"])
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 3 and all(line.startswith("     efficiency-bytes-size=full-methods=long") for line in listed)
    with pytest.raises(SystemExit):
        runner.main(["--only", "no such cell"])


REFUSED = {
    "jobs": ("0", "-1", "two", "1.5", ""),
    "threads": ("0", "-2"),
    "seed": ("-1", "x", "9" * 30),
    "scheduler": ("foo", "tcp://host"),
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in REFUSED.items() for value in values])
def test_the_command_line_refuses_what_it_cannot_use_and_says_what_it_can(option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        runner.main([f"--{option}={value}", "--list"])
    said = capsys.readouterr().err.splitlines()[-1]
    form = "of the form tcp://HOST:PORT" if option == "scheduler" else f"a whole number from {int(option != 'seed')} to"
    assert caught.value.code == 2 and f"--{option}: must be {form}" in said and repr(value) in said


@pytest.mark.parametrize("option", ["--list", "--jobs=1"])
def test_records_of_other_versions_of_torch_stand_and_are_counted(fake, tmp_path, monkeypatch, capsys, option):
    monkeypatch.setattr(runner, "cells", lambda profile, seed: [Cell("fake", "a", {}, seed) for seed in (0, 1)])
    runner.main(["--out", str(tmp_path)])
    runner.main([option, "--out", str(tmp_path)])
    assert "made with" not in capsys.readouterr().err  # all by the torch that is here
    old = records.read("fake", tmp_path)[0]
    records.write(replace(old, versions=old.versions | {"torch": "1.0"}), "fake", tmp_path)
    runner.main([option, "--out", str(tmp_path)])
    here = torch.__version__
    assert f"made with torch 1.0 (1 records) and {here} (1 records), and this is torch {here}" in capsys.readouterr().err
    assert fake == [0, 1]


def test_an_evaluation_with_damaged_records_is_left_out_and_the_others_go_on(fake, tmp_path, monkeypatch, capsys):
    cells = [Cell("fake", "a", {}, 0), Cell("other", "a", {}, 0)]
    monkeypatch.setattr(runner, "cells", lambda profile, seed: cells)
    (tmp_path / "other.jsonl").write_bytes(b"\xff\n")
    for arguments in ([], ["--list"]):
        with pytest.raises(SystemExit) as caught:
            runner.main(["--out", str(tmp_path), *arguments])
        assert caught.value.code == 1
        assert f"{tmp_path / 'other.jsonl'}, line 1, is not a record" in capsys.readouterr().err
    assert [record.seed for record in records.read("fake", tmp_path)] == [0]
    runner.main(["--out", str(tmp_path), "--only", "fake"])
    assert (tmp_path / "other.jsonl").read_bytes() == b"\xff\n"


def test_all_cells_have_names_of_their_own_and_every_name_makes_a_file():
    names = [cell.name for profile in ("smoke", "book", "full") for cell in runner.cells(profile)]
    assert len(set(names)) == len(names) > 900 and max(map(len, names)) < 240


def test_nothing_is_left_to_run_and_every_record_has_its_cell():
    """``make full`` on a clean checkout runs nothing."""
    assert [cell.name for cell in missing(runner.cells("full"))] == []
    keys = {(cell.evaluation, *cell.key) for cell in runner.cells("full")}
    found = {(name, *record.key) for name in runner.EVALUATIONS for record in records.read(name)}
    assert {key for key in found - keys if '"device": "cuda"' not in key[2]} == set()


def test_no_record_of_the_full_size_is_of_stand_in_data():
    found = [record for name in runner.EVALUATIONS for record in records.read(name) if record.settings.get("size") == "full"]
    assert len(found) > 500 and not [record.key for record in found if "stand-in: " in json.dumps(record.columns)]


# ------------------------------------------------------------------------------------------------------- choices, intervals


@dataclass(frozen=True)
class Trial:
    rate: float
    weight: float | None = None


def test_two_records_are_as_far_apart_as_their_numbers_and_where_rows_are_tasks_as_their_means():
    def apart(before, after):
        tables = (SimpleNamespace(rows=len(t), columns=list(t), diverged=None, table=t) for t in (before, after))
        return deviation(*tables)

    rows = table(step=[1, 2], error=[2.0, 1.0], seconds=[1.0, 1.0])
    assert apart(rows, rows.assign(seconds=9.0)) == 0
    assert apart(rows, rows.assign(error=[2.0, 1.5])) == pytest.approx(0.25)
    assert apart(rows, rows.assign(error=[2.0, np.nan])) == np.inf == apart(rows, rows.drop(columns="error"))
    tasks = table(step=[1, 1, 2, 2], task=[0, 1, 0, 1], right=[3, 5, 4, 4])
    assert apart(tasks, tasks.assign(right=[5, 3, 4, 4])) == 0
    assert apart(tasks, tasks.assign(right=[5, 5, 4, 4])) == pytest.approx(0.2)
    assert apart(tasks.drop(columns="step"), tasks.assign(right=[5, 5, 4, 4]).drop(columns="step")) == pytest.approx(1 / 9)


def test_the_best_trial_is_chosen_and_one_that_diverges_is_not():
    def score(trial):
        if trial.rate > 1:
            raise DivergenceError("too large")
        return abs(trial.rate - 0.3)

    trials = (Trial(5.0), Trial(0.1), Trial(0.5), Trial(0.9))
    found = choose(trials, score)
    assert found["score"].isna().tolist() == [True, False, False, False] and found["chosen"].tolist() == [False, True, False, False]
    assert choose(trials, score, "highest")["rate"][lambda r: r.index[3]] == 0.9
    assert chosen(found.assign(method="MAML"), Trial, ["method"]) == {"MAML": Trial(0.1)}
    with pytest.raises(DivergenceError, match="all 1 trials diverged"):
        choose(trials[:1], score)


def test_an_interval_over_seeds_is_students():
    mean, half, count = seed_interval([1.0, 2.0, 4.0])
    assert (mean, count) == (pytest.approx(7 / 3), 3)
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert half == pytest.approx((high - low) / 2)
    with pytest.raises(ValueError, match="at least 2"):
        seed_interval([1.0])
    rows = table(method=list("aaab"), seed=[0, 1, 2, 0], error=[1.0, 2.0, 4.0, 5.0])
    found = over_seeds(rows, "error").set_index("method")
    assert found.loc["a", "half"] == pytest.approx(half) and np.isnan(found.loc["b", "half"])
    assert found.loc["a", ["low", "high", "seeds"]].tolist() == [1, 4, 3]


def test_pairs_resolve_what_separate_intervals_do_not():
    draws = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([[0], range(200)], names=["seed", "task"])
    below = pd.Series(draws.uniform(0.2, 2, 200), index)
    above = 1.02 * below + pd.Series(draws.normal(0, 0.01, 200), index)
    pairs = paired_quotient(above, below)
    assert abs(pairs.mean - 1.02) < pairs.half_width < 0.005
    apart = quotient(*[SimpleNamespace(mean=s.mean(), half_width=1.96 * s.sem(), count=200) for s in (above, below)])
    assert apart.half_width > 10 * pairs.half_width
    with pytest.raises(ValueError, match="at least two"):
        paired_quotient(above, below.rename(lambda task: task + 500, level="task"))


def test_a_verdict_follows_from_the_outcomes_of_a_test():
    assert [decide(o) for o in ([True, True], [True, False], [False], [])] == ["holds", "holds in part", "does not hold", "not run"]


def test_numbers_read_as_they_are():
    assert [text(0.1142, 0.007), text(1234.0), text(float("nan")), text(None, none="not run")] == [
        "0.114 ± 0.007",
        "1.23e+03",
        "–",
        "not run",
    ]


# --------------------------------------------------------------------------------------------------------------- published


def test_every_published_number_has_its_row():
    counts = {name: len(published(name)) for name in ("synthetic", "ratings", "images", "efficiency")}
    # 24 curves at 4 epochs less one beyond the edge; 2 tables of 5 methods and 6 columns; 7 methods twice and 5 quoted; 38 times
    # and as many shares
    assert counts == {"synthetic": 95, "ratings": 60, "images": 19, "efficiency": 76}
    for name in counts:
        rows = published(name)
        assert not rows.duplicated([c for c in rows if c not in ("value", "error")]).any() and rows["value"].gt(0).all()
    assert published("ratings", source="table 1", data="jester-1", shots="10–15", method="A-MAML")["value"].tolist() == [0.074]
    with pytest.raises(KeyError):
        published("tradeoff")


# --------------------------------------------------------------------------------------------------------------- structure

EVALUATIONS = sorted(path.name for path in HOUSE.iterdir() if (path / "run.py").exists())
KNOWS = {
    "settings": set(),
    "run": {"settings"},
    "tables": {"settings"},
    "claims": {"settings", "tables"},
    "figures": {"settings", "tables"},
}


def neighbours(path):
    """The modules of the same package, and the other evaluations' modules, that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from ([node.module] if node.module else [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom) and node.level == 2 and not node.module.startswith("common"):
            yield f"..{node.module}"


@pytest.mark.parametrize("name", EVALUATIONS)
def test_each_evaluation_has_the_same_rooms(name):
    for room in ("__init__", "settings", "run", "tables", "figures"):
        assert (HOUSE / name / f"{room}.py").is_file()
    for room, known in KNOWS.items():
        path = HOUSE / name / f"{room}.py"
        if path.exists():
            found = set(neighbours(path))
            assert not found & {"run", "figures"} - known, f"{room} knows {found}"
            assert all(other.endswith(".settings") for other in found if other.startswith(".."))
    if name in runner.EVALUATIONS:
        assert all(cell.evaluation == name for cell in runner.cells("smoke") if cell.evaluation == name)


def test_every_evaluation_is_on_the_command_line():
    assert sorted(runner.EVALUATIONS) == EVALUATIONS


def test_no_module_is_long():
    lengths = {str(path.relative_to(HOUSE)): len(path.read_text().splitlines()) for path in HOUSE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 300} == {}


# ---------------------------------------------------------------------------------------------------- tables and figures


def test_a_table_shows_a_dash_where_a_value_is_missing_and_its_caption():
    shown = as_html(captioned(pd.DataFrame({"a": [1.5, None], "b": ["x < y", None]}), "Ours & theirs"))
    assert shown.count("<td>–</td>") == 2 and "NaN" not in shown and "x &lt; y" in shown
    assert shown.index("<caption>Ours &amp; theirs</caption>") < shown.index("<thead>")
    assert "<caption>" not in as_html(pd.DataFrame({"a": [1]}))


@pytest.mark.parametrize("shown", [as_html, lambda table: table.style.to_html()])
def test_a_caption_stays_off_the_table_that_it_was_given_for(shown):
    table = pd.DataFrame({"a": [1.5]})
    captioned(table, "Ours")
    assert "<caption>" not in shown(table)


def test_a_styled_table_has_its_caption_too():
    plain = pd.DataFrame({"a": [1.5]}).style.format("{:.2f}")
    shown = captioned(plain, "Ours < theirs").to_html()
    assert "<caption>Ours &lt; theirs</caption>" in shown and "1.50" in shown and "<caption>" not in plain.to_html()


def test_a_styled_table_is_the_same_text_each_time_and_two_tables_do_not_share_a_style():
    def shown(value, caption="Ours"):
        return captioned(pd.DataFrame({"a": [value]}).style.set_properties(**{"text-align": "left"}), caption).to_html()

    assert shown(1.5) == shown(1.5)
    names = {re.search(r'table id="(\w+)"', html)[1] for html in (shown(1.5), shown(2.5), shown(1.5, "Theirs"))}
    assert len(names) == 3


@pytest.mark.parametrize("table", [pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}).style])
def test_a_caption_says_something(table):
    with pytest.raises(ValueError, match="caption is empty"):
        captioned(table, " ")


def test_panels_are_as_wide_as_the_text_and_leave_a_place_for_the_legend():
    fig, axes = plots.panels(3, sharex=True)
    assert len(axes) == 3 and fig.get_size_inches().tolist() == [plots.WIDTH, 5.4]
    axes[0].plot([1, 2], label="one")
    plots.below(fig, *axes[0].get_legend_handles_labels())
    assert [text.get_text() for text in fig.axes[3].get_legend().get_texts()] == ["one"] and not fig.legends
    assert len(plots.panels(1)[1]) == 1
    full, (left, _) = plots.panels(2)
    for n in range(7):
        left.plot([1, 2], label=f"method {n}")
    plots.below(full, *left.get_legend_handles_labels())
    (legend,) = full.legends
    assert 1 < legend._ncols < 7 and len(legend.get_texts()) == 7


def test_a_logarithmic_axis_of_few_decades_has_plain_numbers():
    _, (left, _) = plots.panels(2)
    left.loglog([30, 300], [1, 2])
    plots.plain_numbers(left.xaxis)
    shown = [left.xaxis.get_major_formatter()(x) for x in left.get_xticks() if 30 <= x <= 300]
    assert shown == ["50", "100", "200"] and len(left.get_xticks(minor=True)) == 0


@pytest.mark.parametrize(
    ("profile", "seed", "expected"),
    [
        ("huge", 0, "no profile 'huge'.*AMAML_PROFILE.*; there are smoke, book, full"),
        ("", 0, "no profile ''"),
        (None, 0, "no profile None"),
    ]
    + [("book", seed, "a seed is a whole number from 0 .*, not ") for seed in (-1, 1.5, "1", None, True, 2**63)],
)
def test_the_style_of_a_chapter_is_set_for_proper_parameters_alone(monkeypatch, profile, seed, expected):
    given = {"profile": profile, "seed": seed}
    monkeypatch.setattr(plots, "shell", lambda: SimpleNamespace(user_ns=given))
    monkeypatch.setattr("matplotlib_inline.backend_inline.set_matplotlib_formats", lambda *_, **__: None)
    with pytest.raises(ValueError, match=expected):
        plots.use_style()
    given.update(profile="smoke", seed=7)
    plots.use_style()
    del given["seed"]  # no chapter, but a notebook of somebody's own
    given["profile"] = "mine"
    plots.use_style()


def test_a_figure_is_the_same_file_every_time(tmp_path):
    plots.use_style()  # outside a notebook it leaves the display alone
    for name in ("a.svg", "b.svg"):
        fig, (left, _) = plots.panels(2)
        left.plot([1, 2], label="x")
        fig.savefig(tmp_path / name, metadata={"Date": None})
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
