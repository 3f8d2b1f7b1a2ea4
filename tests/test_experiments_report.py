"""The report: its verdicts, its completeness, and that the committed file is what the records give."""

import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from amaml_core.experiments import __main__ as runner
from amaml_core.experiments import ratings, report
from amaml_core.experiments.cells import Cell, read_records
from amaml_core.flow import DivergenceError


@pytest.mark.parametrize(
    ("published", "error", "ours", "half", "verdict"),
    [
        (0.5, 0.02, 0.525, 0.01, "reproduced"),
        (0.5, 0.02, 0.54, 0.01, "same order"),
        (0.5, None, 0.26, None, "same order"),
        (0.5, 0.02, 1.1, 0.01, "not reproduced"),
        (0.5, 0.02, None, None, "not run"),
    ],
)
def test_verdicts(published, error, ours, half, verdict):
    assert report.judge(published, error, ours, half) == verdict


def test_what_diverged_in_all_runs_is_not_reproduced():
    assert report.judge(0.5, 0.02, None, None, diverged=True) == "not reproduced"
    assert report.judge(0.5, 0.02, 0.51, 0.01, diverged=True) == "reproduced"  # by the runs that finished


def test_the_committed_report_is_what_the_records_give():
    assert report.REPORT.read_text() == report.content(report.rows())


def test_an_evaluation_may_have_no_records_but_not_all_of_them(tmp_path):
    folder = tmp_path / "results" / "full" / "ratings"
    with pytest.raises(FileNotFoundError, match=r"there is no .*full: get the records back with git, or .*`make full`"):
        read_records(folder)
    folder.parent.mkdir(parents=True)
    assert read_records(folder) == []


@pytest.mark.slow
def test_without_the_records_no_report_is_written(tmp_path):
    shutil.copytree(report.ROOT / "amaml_core", tmp_path / "amaml_core", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "amaml_core.experiments.report"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and f"there is no {tmp_path / 'results' / 'full'}" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["amaml_core"]


def test_every_published_number_has_one_row():
    rows = report.rows()
    counts = Counter(row.evaluation for row in rows)
    # 24 curves at 4 epochs less one beyond the edge; 2 tables of 5 methods and 6 columns; 7 methods twice; 38 times and shares
    assert counts == {"synthetic regression": 95, "collaborative filtering": 60, "images": 14, "efficiency": 76}
    assert len({(r.evaluation, r.setting, r.method, r.measure) for r in rows}) == len(rows)
    assert {r.verdict for r in rows} <= set(report.VERDICTS)


def test_the_runner_lists_all_cells_and_estimates_what_is_missing(tmp_path, capsys):
    runner.main(["--list", "--out", str(tmp_path), "--only", "ratings method=bars seed=0"])
    printed = capsys.readouterr().out
    assert "ratings: 0 of 6 cells have a record" in printed and printed.count("method=bars") == 6
    with pytest.raises(SystemExit):
        runner.main(["--only", "no such cell"])


def test_the_estimate_is_the_median_duration_times_the_missing_cells(tmp_path):
    from amaml_core.records import new_record, write_record

    for seed, duration in enumerate((1.0, 2.0, 9.0)):
        write_record(new_record("x", {}, seed, {"a": 1}, duration), tmp_path / "x" / f"{seed}.json")
    missing = {"x": [Cell("x", {}, 7), Cell("x", {}, 8)], "y": [Cell("y", {}, 0)], "z": []}
    assert runner.remaining_seconds(missing, tmp_path) == (4.0, ["y"])


def test_that_a_cell_diverged_is_its_record_and_it_is_not_run_again(tmp_path, monkeypatch):
    ran = []

    def run(cell, scratch):
        ran.append(cell)
        if cell.settings["data"] == "ml-100k":
            raise DivergenceError("meta step 3")
        return {"rmse": 1.0}

    monkeypatch.setattr(ratings, "run", run)
    for _ in range(2):
        runner.main(["--out", str(tmp_path), "--only", "ratings method=bars support=10 seed=0"])
    assert len(ran) == 3
    (lost,) = read_records(tmp_path / "ratings", diverged=True)
    assert lost.configuration["data"] == "ml-100k" and lost.figures == {"diverged": "meta step 3"}
    assert {r.configuration["data"] for r in read_records(tmp_path / "ratings")} == {"jester-1", "ml-1m"}
