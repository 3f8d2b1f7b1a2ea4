"""What the chapters on adjoints and on code measure: the reversed flow, checkpoint schedules, medians, operation counts."""

import math

import numpy as np
import pytest
import torch
from problems import F64, quadratic, regression

from amaml_core import Backsolve, Checkpoint, Store
from experiments.common.reversal import reconstruct
from experiments.common.schedules import Call, Kept, calls, cost, kept
from experiments.common.timing import medians, operations


def test_a_short_flow_can_be_run_backward():
    table = reconstruct(*regression(), horizon=0.1, pieces=4)
    assert len(table) == 3 * 5 and sorted(table["time"].unique()) == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert (table.loc[table["time"] == 0.1, "distance"] == 0).all() and table["distance"].max() < 1e-5


def test_an_error_grows_backward_at_the_rate_of_the_leading_eigenvalue():
    problem, theta, tasks, a, _ = quadratic()
    table = reconstruct(problem, theta, tasks, horizon=4.0, pieces=16)
    early = table[table["time"] <= 1.0]
    for task, rows in early.groupby("task"):
        slope = np.polyfit(rows["time"], np.log(rows["distance"]), 1)[0]
        assert -slope == pytest.approx(torch.linalg.eigvalsh(a[task])[-1].item(), rel=0.03)


def test_a_flow_that_is_stuck_gives_nan_from_there_on():
    problem, theta, tasks, *_ = quadratic()
    table = reconstruct(problem, theta, tasks, horizon=2.0, pieces=4, rtol=1e-12, atol=1e-14, max_steps=2)
    assert (table["time"] < 2.0).equals(table["distance"].isna())


@pytest.mark.parametrize("bad", [{"horizon": 0.0}, {"horizon": math.nan}, {"horizon": 1.0, "pieces": 0}])
def test_reconstruct_refuses_what_it_cannot_do(bad):
    with pytest.raises(ValueError, match="needs horizon > 0"):
        reconstruct(*regression(), **bad)


def test_the_store_takes_every_step_once_and_keeps_every_state():
    log = calls(Store(), 3)
    assert log == [Call("forward", k) for k in range(3)] + [Call("backward", k) for k in (2, 1, 0)]
    # State 2 is made by the second step and read again by the fourth call, number 3.
    assert sorted(kept(log)) == [Kept(0, 0, 5), Kept(1, 1, 4), Kept(2, 2, 3)]
    assert cost(Store(), 50) == (50, 50)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_one_snapshot_starts_from_theta_every_time(steps):
    # Once to the end, then to each of the states steps - 1, ..., 1; nothing but theta is kept.
    assert cost(Checkpoint(snapshots=1), steps) == (steps + steps * (steps - 1) // 2, 1)


@pytest.mark.parametrize(("steps", "snapshots"), [(10, 2), (30, 4), (100, 5), (70, 100)])
def test_a_binomial_schedule_stays_within_its_budget_and_takes_the_fewest_steps(steps, snapshots):
    found = cost(Checkpoint(snapshots=snapshots), steps)
    assert found.states <= snapshots
    # K + 1 states are handed out, that of the query loss among them; r repetitions reach binom(s + r, s) of them.
    r = next(r for r in range(1, steps + 1) if math.comb(snapshots + r, r) > steps)
    assert found.forward_steps == r * (steps + 1) - math.comb(snapshots + r, snapshots + 1)


def test_segments_keep_their_first_states_and_one_segment():
    assert cost(Checkpoint(segments=5), 100) == (200, 5 + 20 - 1)


def test_calls_refuses_what_takes_no_steps_back():
    for memory, steps in ((Backsolve(), 3), (Store(), 0)):
        with pytest.raises(ValueError, match="Store or Checkpoint"):
            calls(memory, steps)


def test_medians_take_turns_after_one_call_that_is_not_measured():
    turns, now = [], [0.0]

    def function(name, *durations):
        durations = iter(durations)

        def call():
            turns.append(name)
            now[0] += next(durations)

        return call

    found = medians({"a": function("a", 99, 1, 5, 2), "b": function("b", 99, 7, 7, 8)}, 3, clock=lambda: now[0])
    assert found.to_dict() == {"a": 2, "b": 7} and turns == ["a", "b"] * 4
    with pytest.raises(ValueError, match="repeats"):
        medians({}, 0)


def test_operations_counts_those_of_the_derivative_too():
    u = torch.ones(3, dtype=F64, requires_grad=True)
    forward = operations(lambda: u.sin())
    assert forward == 1
    assert operations(lambda: torch.autograd.grad(u.sin(), u, torch.ones_like(u))) > forward + 1
