"""fit in several processes: the result of one, whatever goes wrong raised on all of them, and a checkpoint that stays whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import one_rank
import pytest
import torch

from amaml_core import Tasks, ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
HERE = Path(__file__).resolve().parent
DEADLINE = 400  # seconds, far more than any case takes: it guards against a hang

ALIKE = {
    "validation": {"validate": True}, "fewer tasks than ranks": {"tasks": 1, "validate": True}, "sizes": {"ragged": True},
    "phi": {"method": "A-MAML", "phi": True, "clip_norm": 0.5}, "horizon": {"method": "A-MAML", "learn": "horizon"},
    "inverse": {"method": "iMAML"}, "skipped": {"method": "skipping", "fault": "diverge"},
    "skipped and learned": {"method": "skipping", "fault": "diverge", "learn": "horizon", "tasks": 2},
    "stopped": {"fault": "stop", "at": [0, 4]},
}  # fmt: skip
OTHER = "rank 1 (here) was given another run than rank 0 (there); nothing but devices may depend on the rank:\n  "
WRONG = {  # the case, the error on the guilty rank, and that on the others
    "an error": ({"fault": "raise"}, "OSError: the disk is gone", "RuntimeError: rank 1 of {0}: OSError: the disk is gone"),
    "an error on rank 0": (
        {"fault": "raise", "at": [0, 4]}, "OSError: the disk is gone", "RuntimeError: rank 0 of {0}: OSError: the disk is gone",
    ),
    "Ctrl-C": ({"fault": "interrupt"}, "KeyboardInterrupt: ", "KeyboardInterrupt: rank 1 of {0}"),
    "divergence": (
        {"fault": "diverge"}, "DivergenceError: meta step 2 of MAML: the inner", "DivergenceError: rank {1} of {0}: meta step 2 of",
    ),
    "a further draw": ({"fault": "draw more"}, *["ValueError: the sampler has drawn otherwise"] * 2),
    "other tasks": (
        {"fault": "other tasks", "at": [1, 3]}, f"ValueError: {OTHER}tasks.query_x: ", f"ValueError: rank 1 of {{0}}: {OTHER}task",
    ),
    "another start": ({"fault": "other start"}, f"ValueError: {OTHER}theta: ", f"ValueError: rank 1 of {{0}}: {OTHER}theta: "),
    "another decay": (
        {"decay": 0.5, "other": {"decay": 1.0}},
        f"ValueError: {OTHER}scheduler.gamma: 0.5 there, 1.0 here", f"ValueError: rank 1 of {{0}}: {OTHER}scheduler.gamma: ",
    ),
    "a rate from the second step on": (
        {"rate": 1.0, "other": {"rate": 0.5}}, *["ValueError: the optimiser has another learning rate"] * 2,
    ),
    "other steps at the end": (
        {"by": 1e-9, "other": {"by": 0.0}, "steps": 1}, *["ValueError: the optimiser has made another theta"] * 2,
    ),
    "other steps": ({"by": 1e-9, "other": {"by": 0.0}}, *["ValueError: the optimiser has made another theta"] * 2),
    "another buffer": (
        {"mean": 1.0, "other": {"mean": 2.0}}, f"ValueError: {OTHER}buffers.mean: ", f"ValueError: rank 1 of {{0}}: {OTHER}",
    ),
    **{
        f"another {name}: {value}": ({"other": {name: value}}, f"ValueError: {said}", f"ValueError: rank 1 of {{0}}: {said}")
        for name, value, said in (
            ("meta_steps", 0, "meta_steps must be a whole"), ("seed", -1, "seed must be a whole"),
            ("seed", 1, f"{OTHER}seed: 0 there, 1 here"), ("save", False, f"{OTHER}checkpoint: True there, False here"),
            ("meta_steps", 5, f"{OTHER}meta_steps: 6 there, 5 here"), ("validate", True, f"{OTHER}validation"),
            ("loss", "l1_loss", f"{OTHER}loss: torch.nn.functional.mse_loss there, torch.nn.functional.l1_loss here"),
        )
    },
}  # fmt: skip


def start(folder, size, cases, *command):
    """The processes of ``size`` ranks that run the cases, one after the other."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size)}
    environment["TMPDIR"] = str(folder)  # torchrun leaves its logs there
    given = [*command, str(HERE / "one_rank.py"), str(folder), json.dumps(cases)]
    alone = [environment | {"RANK": str(rank)} for rank in range(1 if command else size)]
    return [subprocess.Popen([sys.executable, *given], env=own, stderr=subprocess.PIPE, text=True) for own in alone]


def ended(processes):
    """Their exit codes, once all have ended."""
    try:
        for process in processes:
            _, said = process.communicate(timeout=DEADLINE)
            sys.stderr.write(said)
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes]


def found(folder, rank):
    return json.loads((folder / f"found.{rank}").read_text())


def alone(folder, case):
    return one_rank.as_json(one_rank.run(folder, 0, **case))


def same(one, other):
    """Up to 1e-12."""
    return one.keys() == other.keys() and all(
        same(value, other[key])
        if isinstance(value, dict)
        else np.allclose(value, other[key], rtol=1e-12, atol=1e-12, equal_nan=True)
        if isinstance(value, (float, list))
        else value == other[key]
        for key, value in one.items()
    )


def several(folder, size):
    """All of ``ALIKE`` and then all of ``WRONG``, in the same processes."""
    cases = [*ALIKE.values(), *({"save": True, "steps": 6} | case for case, *_ in WRONG.values())]
    assert ended(start(folder, size, cases)) == [0] * size
    results = [found(folder, rank) for rank in range(size)]
    for number, (name, case) in enumerate(ALIKE.items()):
        expected = alone(folder, case)
        assert all(result[number] == results[0][number] for result in results), f"{name}: the ranks differ"
        assert same(expected, results[0][number]), name
    assert (folder / f"{len(ALIKE)}/told.0").exists() and not (folder / f"{len(ALIKE)}/told.1").exists()
    for number, (name, (case, guilty, others)) in enumerate(WRONG.items(), len(ALIKE)):
        own = range(size // 2, size) if name == "divergence" else case.get("at", [1])[:1]
        for rank, result in enumerate(results):
            expected = guilty if rank in own else others.format(size, size // 2)
            assert result[number].get("error", "nothing").startswith(expected), name
        early = name.startswith("another")  # noticed before the first step
        assert [path.name for path in (folder / str(number)).glob("run/*")] == ([] if early else ["theta.safetensors"]), name
        if name in ("an error", "an error on rank 0", "Ctrl-C"):
            resumed = alone(folder / str(number), {"save": True, "steps": 6})  # which is one rank now
            assert same(resumed, alone(folder, {"steps": 6})), name


@pytest.mark.slow
def test_more_ranks_than_before_go_on_from_a_checkpoint(tmp_path):
    (tmp_path / "0").mkdir()
    case = {"save": True, "validate": True, "method": "A-MAML", "phi": True}
    alone(tmp_path / "0", case | {"steps": 7})
    assert ended(start(tmp_path, 2, [case])) == [0, 0]
    for rank in range(2):
        assert same(found(tmp_path, rank)[0], alone(tmp_path, case | {"save": False}))


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "size"), [("SIGKILL", 4), ("SIGSTOP", 2)])
def test_the_death_or_the_silence_of_a_rank_ends_all_others_and_leaves_the_checkpoint(fault, size, tmp_path):
    # A death is noticed long before the time-out, which is later than the deadline of this test.
    case = {"save": True, "fault": fault, "at": [1, 5], "timeout": 2 * DEADLINE if fault == "SIGKILL" else 20}
    processes = start(tmp_path, size, [case])
    try:
        assert ended(processes[:1] + processes[2:]) == [0] * (size - 1)
    finally:
        processes[1].kill()
        processes[1].communicate()
    for rank in {*range(size)} - {1}:
        (one,) = found(tmp_path, rank)
        assert one["error"].startswith(f"RuntimeError: rank {rank} of {size} has lost touch with the others")
    resumed = alone(tmp_path / "0", {"save": True})
    assert same(resumed, alone(tmp_path, {}))


@pytest.mark.slow
def test_torchrun_alone_makes_a_program_share_its_run(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert ended(start(tmp_path, 2, [{}, {"distributed": False}, {}], *torchrun)) == [0]
    for rank in range(2):
        shared, by_itself, again = found(tmp_path, rank)
        assert same(shared, again) and same(shared, by_itself) and shared["theta"] != by_itself["theta"]  # to the bit


def test_parts_of_a_meta_batch_are_even_and_in_order():
    several = Tasks(*torch.arange(7.0).expand(4, 7).reshape(4, 7, 1))
    for given in (several, [several[:2], several[2:3], several[3:]]):
        for size in range(1, 10):
            parts = []
            for rank in range(size):
                one = ranks.Ranks()
                one.rank, one.size = rank, size
                part = one.part(given)
                parts.append([int(n) for group in part for n in group.support_x])
            assert sum(parts, []) == list(range(7))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_rank_that_waits_in_vain_for_another_says_so(monkeypatch):
    def timed_out(**_):
        raise RuntimeError("Wait timeout")

    given = {"is_initialized": lambda: True, "get_world_size": lambda: 2, "get_rank": lambda: 0, "new_group": timed_out}
    for name, function in given.items():
        monkeypatch.setattr(ranks.dist, name, function)
    with pytest.raises(RuntimeError, match="rank 0 of 2 has waited for the others in vain.*each must call fit"), ranks.joined(True):
        pass


def test_two_ranks_give_the_result_of_one_and_an_error_on_one_is_raised_on_both(tmp_path):
    several(tmp_path, 2)


@pytest.mark.slow
def test_so_do_four_ranks_also_where_most_have_no_task(tmp_path):
    several(tmp_path, 4)
