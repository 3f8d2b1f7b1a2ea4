"""Cells on a Dask cluster: a scheduler and workers of their own, on this machine."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import amaml_core.records
from experiments.common import pools, records
from experiments.common.cells import Cell, deviation, run_cells
from experiments.common.pools import ClusterError, pool

PATIENCE = 120  # seconds until a test gives up on a process


def started(*arguments, log, env=None):
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, cwd=records.ROOT, stdout=log, stderr=log, env=os.environ | (env or {}), start_new_session=True)


@contextmanager
def cluster(folder, workers, **env):
    """The address of a scheduler with so many workers of one thread."""
    with open(folder / "scheduler.log", "w+") as log, open(folder / "workers.log", "w") as other:
        run = [started("distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard", log=log)]
        try:
            until = time.monotonic() + PATIENCE
            while not (found := re.search(r"tcp://127\.0\.0\.1:\d+", (folder / "scheduler.log").read_text())):
                assert time.monotonic() < until and run[0].poll() is None, (folder / "scheduler.log").read_text()
                time.sleep(0.1)
            worker = ("distributed.cli.dask_worker", found[0], "--nthreads", "1", "--no-dashboard")
            run += [started(*worker, log=other, env=env) for _ in range(workers)]
            yield found[0]
        finally:
            for process in reversed(run):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_an_address_where_nobody_answers_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(pools, "WAIT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "no address"):
        with pytest.raises(ClusterError, match=f"no worker of a Dask scheduler at '{address}' within 1 s"), pool(2, address):
            pass


@pytest.mark.slow
def test_a_cluster_leaves_the_records_of_one_process_though_a_worker_is_killed_on_the_way(tmp_path):
    from distributed import Client

    cells = [
        Cell("efficiency", "bytes", {"size": "smoke", "methods": "long", "steps": steps}, 0) for steps in (1, 2, 3, 4, 5, 6, 8, 10)
    ]
    run_cells(cells, tmp_path / "one")
    with cluster(tmp_path, 2) as address:
        script = (
            "import os, signal, sys, time\n"
            "from distributed import Client\n"
            "with Client(sys.argv[1]) as client:\n"
            "    client.wait_for_workers(2)\n"
            "    pids = client.run(os.getpid)\n"
            "    print('ready', flush=True)\n"
            "    while not (busy := [worker for worker, calls in client.processing().items() if calls]):\n"
            "        time.sleep(0.01)\n"
            "    os.kill(pids[busy[0]], signal.SIGKILL)\n"
            "    print('killed', flush=True)\n"
        )
        with Client(address) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
        killer = subprocess.Popen([sys.executable, "-c", script, address], stdout=subprocess.PIPE, text=True)
        try:
            assert killer.stdout.readline() == "ready\n"  # or all cells might be over before it looks for one
            run_cells(cells, tmp_path / "two", scheduler=address)
            assert killer.communicate(timeout=PATIENCE)[0] == "killed\n"
        finally:
            killer.kill()
            killer.communicate()
    one, two = (records.read("efficiency", tmp_path / name) for name in ("one", "two"))
    assert sorted(r.key for r in one) == sorted(r.key for r in two) == sorted(c.key for c in cells)
    by_key = {r.key: r for r in two}
    assert [deviation(r, by_key[r.key]) for r in one] == [0] * len(cells)


@pytest.mark.slow
def test_workers_with_other_code_are_refused_before_any_cell_is_run(tmp_path, monkeypatch):
    with cluster(tmp_path, 1) as address:
        monkeypatch.setattr(pools, "digest", lambda *folders: "another")
        with pytest.raises(ClusterError, match="start it again, from the same checkout and environment"), pool(1, address):
            pass


@pytest.mark.slow
def test_a_worker_that_joins_after_the_start_is_refused_too(tmp_path, monkeypatch):
    from distributed import Client

    with cluster(tmp_path, 1) as address, Client(address) as client:
        monkeypatch.setattr(pools, "digest", lambda *folders: "another")
        with pytest.raises(ClusterError, match="this process .'code another', .* start it again, from the same checkout"):
            list(pools._on_cluster(client, time.sleep, [0.0]))


def test_what_runs_is_the_code_of_a_worker_and_not_its_commit(tmp_path, monkeypatch):
    ours = pools._code()
    monkeypatch.setattr(amaml_core.records, "commit", lambda: "another")  # of records alone, say
    assert pools._code() == ours
    (tmp_path / "run.py").write_text("1")
    one = pools.digest(tmp_path)
    (tmp_path / "run.py").write_text("2")
    assert pools.digest(tmp_path) != one


@pytest.mark.slow
def test_a_scheduler_that_is_killed_is_an_error_that_says_how_to_go_on(tmp_path, caplog):
    from distributed import Client

    with cluster(tmp_path, 1) as address, pytest.raises(ClusterError, match="the scheduler is gone; .* the same command goes on"):
        with pool(1, address) as each:
            with Client(address) as client:
                scheduler = client.run_on_scheduler(os.getpid)
            found = each(time.sleep, [0.0, 600.0])
            next(found)
            os.kill(scheduler, signal.SIGKILL)
            next(found)
    assert "Traceback" not in caplog.text
