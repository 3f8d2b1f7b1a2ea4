"""The outer loop, evaluation, metrics and records."""

import itertools
import math
import os
import platform
import re
import signal
import stat
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import mse_loss

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    AdamAdaptation,
    DivergenceError,
    Dopri5,
    Euler,
    Problem,
    Reptile,
    Tasks,
    checkpoints,
    evaluate,
    fit,
    metrics,
    records,
    training,
)
from amaml_core.loop import StopTraining, ended_by_sigterm
from amaml_core.meta import meta_gradient

F64 = torch.float64
METHODS = [
    MAML(0.05, 3),
    AMAML(0.15, Euler(3)),
    FOMAML(0.05, 3),
    Reptile(0.05, 3),
    IMAML(on_negative_curvature="truncate"),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def problem(chunk_size=None):
    return Problem(network(), mse_loss, chunk_size=chunk_size)


def lines(generator):
    """Tasks y = a x with random slopes: theta can only learn to adapt fast."""
    slope = torch.randn(4, 1, 1, generator=generator, dtype=F64)
    x = torch.randn(2, 4, 5, 1, generator=generator, dtype=F64)
    return Tasks(x[0], slope * x[0], x[1], slope * x[1])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_training_lowers_the_query_loss_and_repeats_to_the_bit(method):
    first, second = (fit(method, problem(), lines, 80, lambda p: torch.optim.Adam(p, 0.02), progress=False) for _ in range(2))
    assert torch.equal(first.theta, second.theta) and first.history.equals(second.history)
    assert list(first.history.meta_step) == list(range(1, 81))
    loss = first.history.query_loss
    assert loss[-20:].mean() < 0.9 * loss[:20].mean()
    other = fit(method, problem(), lines, 3, seed=1, progress=False)
    assert other.history.query_loss[0] != first.history.query_loss[0]


def test_history_holds_the_loss_and_norm_of_the_meta_gradient():
    method, p = MAML(0.05, 3), problem()
    generator = torch.Generator().manual_seed(5)
    theta, expected = p.initial_parameters(), []
    for _ in range(3):
        estimate = meta_gradient(method, p, theta, lines(generator))
        expected.append((estimate.query_loss.mean().item(), estimate.gradient.norm().item()))
        theta = theta - 0.1 * estimate.gradient
    result = fit(method, p, lines, 3, lambda params: torch.optim.SGD(params, lr=0.1), seed=5, progress=False)
    assert torch.allclose(result.theta, theta, rtol=1e-13)
    assert np.allclose(result.history[["query_loss", "gradient_norm"]], expected, rtol=1e-13)


class Interrupted:
    """Gives what ``thing`` gives, and an interrupt at the call number ``at``. What starts with an underscore is no setting."""

    def __init__(self, thing, at=None):
        self.thing, self._at, self._calls = thing, at, 0

    def __call__(self, *args):
        self._calls += 1
        result = self.thing(*args)  # the generator has moved on when the interrupt comes
        if self._calls == self._at:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.Adam(p, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
@pytest.mark.parametrize("where", ["sampler", "method"])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, optimizer, where):
    path = tmp_path / "run" / "theta.safetensors"
    method = METHODS[0]
    whole = fit(method, problem(), lines, 12, optimizer, progress=False)

    def run(at, method=method, meta_steps=12):
        loss, sampler = (mse_loss, Interrupted(lines, at)) if where == "sampler" else (Interrupted(mse_loss, at and 40), lines)
        return fit(method, Problem(network(), loss), sampler, meta_steps, optimizer, path, progress=False)

    with pytest.raises(KeyboardInterrupt):
        run(8)
    resumed = run(None)
    assert torch.equal(whole.theta, resumed.theta) and whole.history.equals(resumed.history)
    with pytest.raises(ValueError, match=r"belongs to another run:\n  method.lr: 0.05 there, 0.1 here\n"):
        run(None, MAML(0.1, 3))
    with pytest.raises(ValueError, match="12 meta steps on, beyond meta_steps=5"):
        run(None, meta_steps=5)
    assert [f.name for f in path.parent.iterdir()] == ["theta.safetensors"]


def test_an_interrupt_amid_the_update_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path, method = tmp_path / "theta.safetensors", METHODS[0]
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)

    class Interrupted(torch.optim.SGD):
        _count = 0

        def step(self):
            super().step()
            type(self)._count += 1
            if self._count == 4:
                raise KeyboardInterrupt  # theta has moved, the history has not

    whole = fit(method, problem(), lines, 6, lambda p: torch.optim.SGD(p, lr=0.1), progress=False)
    with pytest.raises(KeyboardInterrupt):
        fit(method, problem(), lines, 6, lambda p: Interrupted(p, lr=0.1), path, progress=False)
    resumed = fit(method, problem(), lines, 6, lambda p: Interrupted(p, lr=0.1), path, progress=False)
    assert torch.equal(whole.theta, resumed.theta)


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.Adam(p, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_an_interrupt_amid_a_validation_saves_all_steps_before(tmp_path, optimizer):
    path, tasks = tmp_path / "theta.safetensors", lines(torch.Generator().manual_seed(5))
    settings = {"seed": 1, "validation": tasks, "validate_every": 4, "progress": False}

    class Metric:
        _left = -1  # calls until an interrupt

        def __call__(self, prediction, target):
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
            return (prediction - target).square().mean((1, 2))

    def run(meta_steps=20, left=-1, **options):
        metric = Metric()
        metric._left = left
        return fit(METHODS[0], problem(), lines, meta_steps, optimizer, metric=metric, **settings, **options)

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(left=3, checkpoint=path)
    steps = int(re.search(r"holds (\d+) meta steps", stopped.value.__notes__[0])[1])
    assert steps % 4 == 3  # all but the one that was being judged
    assert same(run(checkpoint=path), run())


def held(path):
    """Whether there is nothing in the folder but this file."""
    return [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_is_one_runs_alone(tmp_path):
    path, second = tmp_path / "theta.safetensors", []

    def another(step):
        if step.meta_step == 2:
            with pytest.raises(BlockingIOError, match=rf"another run is using this file.*{re.escape(str(path))}"):
                fit(METHODS[0], problem(), lines, 5, checkpoint=path, progress=False, callbacks=[second.append])

    result = fit(METHODS[0], problem(), lines, 5, checkpoint=path, progress=False, callbacks=[another])
    assert torch.equal(result.theta, fit(METHODS[0], problem(), lines, 5, progress=False).theta) and not second and held(path)


def test_a_run_that_is_over_takes_away_the_lock_that_a_killed_one_left(tmp_path):
    path, lock = tmp_path / "theta.safetensors", tmp_path / ".theta.safetensors.lock"
    train(3, checkpoint=path)
    lock.touch()  # killed between the last checkpoint and the end
    train(3, checkpoint=path)
    assert list(tmp_path.iterdir()) == [path]
    with records.alone(path):
        train(3, checkpoint=path)
        assert lock.exists()  # somebody has this one


def test_the_lock_of_a_killed_run_holds_up_nobody(tmp_path):
    path, lock = tmp_path / "theta.safetensors", tmp_path / ".theta.safetensors.lock"
    hold = (
        f"import time, filelock as f; lock = f.FileLock({str(lock)!r}); lock.acquire(); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(BlockingIOError, match="another run"):
                fit(METHODS[0], problem(), lines, 3, checkpoint=path, progress=False)
        finally:
            process.kill()
    assert lock.exists()
    fit(METHODS[0], problem(), lines, 3, checkpoint=path, progress=False)
    assert held(path)


def full_disk(monkeypatch, calls):
    """A disk that is full at the writes of these numbers, from 1."""
    write, count = checkpoints.write_beside, itertools.count(1)

    def on_a_disk(path, content):
        if next(count) in calls:
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_beside", on_a_disk)


def test_a_full_disk_does_not_end_training(tmp_path, monkeypatch):
    path, told = tmp_path / "theta.safetensors", []
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    run = lambda **options: fit(METHODS[0], problem(), lines, 6, progress=False, **options)  # noqa: E731
    whole = run()
    full_disk(monkeypatch, {3, 4})
    with pytest.warns(RuntimeWarning, match=rf"No space left on device: '{re.escape(str(path))}'; training goes on") as warned:
        result = run(checkpoint=path, callbacks=[lambda step: told.append(path.stat().st_mtime_ns)])
    assert len(warned) == 2 and told[2] == told[3] == told[1] < told[5]
    assert torch.equal(result.theta, whole.theta) and torch.equal(run(checkpoint=path).theta, whole.theta)


def test_a_disk_that_is_full_to_the_end_loses_no_result(tmp_path, monkeypatch):
    path, whole = tmp_path / "theta.safetensors", fit(METHODS[0], problem(), lines, 6, progress=False)
    full_disk(monkeypatch, {2})
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(training.NotSaved, match="No space.*error's `result`.*theta.safetens") as error,
    ):
        fit(METHODS[0], problem(), lines, 6, checkpoint=path, progress=False)
    assert torch.equal(error.value.result.theta, whole.theta) and error.value.result.history.equals(whole.history)
    assert torch.equal(fit(METHODS[0], problem(), lines, 6, checkpoint=path, progress=False).theta, whole.theta) and held(path)


def test_a_full_disk_is_the_same_error_where_warnings_are_errors(tmp_path, monkeypatch):
    full_disk(monkeypatch, {2})
    with pytest.raises(training.NotSaved) as error, warnings.catch_warnings(action="error"):
        fit(METHODS[0], problem(), lines, 6, checkpoint=tmp_path / "theta.safetensors", progress=False)
    assert len(error.value.result.history) == 6


def test_a_run_that_has_ended_is_read_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path, options = tmp_path / "theta.safetensors", {"validation": HELD_OUT, "validate_every": 4}
    run = lambda meta_steps: fit(METHODS[0], problem(), lines, meta_steps, checkpoint=path, progress=False, **options)  # noqa: E731
    whole = run(6)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(checkpoints, "write_beside", read_only)
    monkeypatch.setattr(records.FileLock, "acquire", read_only)
    assert same(run(6), whole)
    with pytest.raises(OSError, match="Read-only file system"):
        run(7)


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    path, jumps, now, took = tmp_path / "theta.safetensors", itertools.cycle((0, 10**9, -(10**9))), time.time, []
    told = [lambda step: took.append(step.seconds)]
    run = lambda n, path: fit(METHODS[0], problem(), lines, n, checkpoint=path, progress=False, callbacks=told)  # noqa: E731
    whole = run(6, None)
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    assert len(run(3, path).history) == 3 and held(path)
    assert same(run(6, path), whole)
    assert len(took) == 12 and all(0 <= seconds < 10**6 for seconds in took)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, capsys):
    path, before = tmp_path / "theta.safetensors", signal.getsignal(signal.SIGTERM)

    def told(step):
        if step.meta_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    run = lambda **options: fit(METHODS[0], problem(), lines, 9, checkpoint=path, progress=False, **options)  # noqa: E731
    with pytest.raises(SystemExit) as ended:
        run(callbacks=[told])
    assert ended.value.code == 128 + 15 and signal.getsignal(signal.SIGTERM) is before and held(path)
    assert f"{path} holds 4 meta steps: call fit with the same arguments to go on" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(callbacks=[Interrupted(lambda step: None, 2)])
    assert stopped.value.__notes__ == [f"{path} holds 6 meta steps: call fit with the same arguments to go on"]
    assert torch.equal(run().theta, fit(METHODS[0], problem(), lines, 9, progress=False).theta)


def test_a_second_sigterm_does_not_break_off_the_save():
    with pytest.raises(SystemExit), ended_by_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # amid the save
            saved = True
    assert saved and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_callback_that_changes_the_folder_moves_no_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train(4, checkpoint="theta.safetensors", callbacks=[lambda step: os.chdir(tmp_path / "elsewhere")])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "theta.safetensors"]
    os.chdir(tmp_path)
    assert same(train(6, checkpoint="theta.safetensors"), train(6))


def test_the_programs_own_way_with_sigterm_stands(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        told = lambda step: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        fit(METHODS[0], problem(), lines, 2, checkpoint=tmp_path / "run", progress=False, callbacks=[told])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1, 1]


def test_divergence_is_reported_with_the_step_and_the_cause():
    with pytest.raises(DivergenceError, match=r"meta step 1 of MAML: the inner loop diverged for tasks \[.*step size"):
        fit(MAML(1e200, 3), problem(), lines, 5, progress=False)

    def poisoned(generator):
        tasks = lines(generator)
        tasks.query_y[1] = math.inf
        return tasks

    with pytest.raises(DivergenceError, match=r"query loss of tasks \[1\]"):
        fit(MAML(0.05, 3), problem(), poisoned, 5, progress=False)
    with pytest.raises(ValueError, match="meta_steps"):
        fit(MAML(0.05, 3), problem(), lines, 0)


@pytest.mark.parametrize("method", [MAML(0.05, 5), AMAML(0.25, Euler(5)), IMAML(), FOMAML(0.05, 5)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_evaluation_measures_along_the_methods_own_path(method, chunk_size):
    p = problem(chunk_size)
    theta, tasks = p.initial_parameters(), lines(torch.Generator().manual_seed(1))
    steps = method.inner.steps if isinstance(method, IMAML) else 5
    table = evaluate(method, p, theta, tasks, metrics.rmse, steps=(0, steps))
    assert list(table.columns) == ["task", "step", "support", "query"] and len(table) == 8
    for k, u in ((0, theta.expand(4, -1)), (steps, meta_gradient(method, p, theta, tasks).adapted)):
        rows = table[table.step == k]
        assert list(rows.task) == [0, 1, 2, 3]
        assert np.allclose(rows["query"], p.losses(u, *tasks.query).sqrt(), rtol=1e-12)
        assert np.allclose(rows["support"], p.losses(u, *tasks.support).sqrt(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_evaluation_in_half_precision_has_a_table_in_single(dtype):
    p, tasks = Problem(network().to(dtype), mse_loss), lines(torch.Generator().manual_seed(1)).to(dtype=dtype)
    table = evaluate(MAML(0.05, 3), p, p.initial_parameters(), tasks, lambda a, b: (a - b).abs().amax((1, 2)), steps=(0,))
    predicted = p.predict(p.initial_parameters().expand(4, -1), tasks.query_x)
    assert table["query"].dtype == np.float32
    assert table["query"].tolist() == (predicted - tasks.query_y).abs().amax((1, 2)).tolist()


def test_a_metric_that_writes_to_what_it_is_given_changes_no_data():
    def writing(prediction, target):
        return (prediction.clamp_(-0.5, 0.5) - target.clamp_(-0.5, 0.5)).square().flatten(1).mean(1)

    clamped = lambda prediction, target: writing(prediction.clone(), target.clone())  # noqa: E731
    p, tasks = problem(), lines(torch.Generator().manual_seed(1))
    kept = tasks.map(torch.clone)
    one, other = (evaluate(METHODS[0], p, p.initial_parameters(), tasks, metric) for metric in (writing, clamped))
    assert one.equals(other)
    fit(METHODS[0], p, lines, 2, validation=tasks, validate_every=1, metric=writing, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(tasks.tensors, kept.tensors, strict=True))
    with pytest.raises(TypeError, match="not the class MSELoss; give an instance"):
        evaluate(METHODS[0], p, p.initial_parameters(), tasks, nn.MSELoss)


def test_adam_adaptation_is_torchs_adam_task_by_task():
    p, tasks = problem(), lines(torch.Generator().manual_seed(1))
    theta = p.initial_parameters()
    table = evaluate(AdamAdaptation(0.01, weight_decay=1e-2), p, theta, tasks, metrics.rmse, steps=(7,))
    for b in range(4):
        model = network()
        adam = torch.optim.Adam(model.parameters(), 0.01, weight_decay=1e-2)
        for _ in range(7):
            adam.zero_grad()
            mse_loss(model(tasks.support_x[b]), tasks.support_y[b]).backward()
            adam.step()
        expected = mse_loss(model(tasks.query_x[b]), tasks.query_y[b]).sqrt().item()
        assert table["query"][b] == pytest.approx(expected, rel=1e-12)


def test_evaluate_refuses_bad_steps():
    p, tasks = problem(), lines(torch.Generator())
    for steps in ((), (-1, 2)):
        with pytest.raises(ValueError, match="steps"):
            evaluate(MAML(), p, p.initial_parameters(), tasks, metrics.rmse, steps=steps)


def test_metrics_have_their_textbook_values():
    target = torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.0, 4.0]])[..., None]
    prediction = target + torch.tensor([1.0, 2.0])[:, None, None]
    assert torch.allclose(metrics.rmse(prediction, target), torch.tensor([1.0, 2.0]))
    std = torch.tensor([math.sqrt(8 / 3), math.sqrt(2)])
    assert torch.allclose(metrics.nrmse(prediction, target, "standard deviation"), torch.tensor([1.0, 2.0]) / std)
    assert torch.allclose(metrics.nrmse(prediction, target, "range"), torch.tensor([0.25, 2 / 3]))
    relative = (prediction - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)
    assert torch.allclose(metrics.nrmse(prediction, target, "norm"), relative)
    mean = target.mean(1, keepdim=True).expand_as(target)
    assert torch.allclose(metrics.nrmse(mean, target, "standard deviation"), torch.ones(2))
    logits = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    assert metrics.accuracy(logits, torch.tensor([[1, 1]])).tolist() == [0.5]
    mean, half, count = metrics.interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, count) == (2.5, 4) and half == pytest.approx(1.96 * math.sqrt(5 / 3) / 2)


def test_metrics_refuse_what_has_no_meaning():
    flat = torch.ones(2, 3, 1)
    with pytest.raises(ValueError, match=r"standard deviation of the targets is zero for tasks \[0, 1\]"):
        metrics.nrmse(flat, flat, "standard deviation")
    with pytest.raises(ValueError, match="normaliser"):
        metrics.nrmse(flat, flat, "variance")
    with pytest.raises(ValueError, match="same shape"):
        metrics.rmse(flat, flat[..., 0])
    with pytest.raises(ValueError, match="do not fit"):
        metrics.accuracy(flat, flat)
    for values in ([1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="two finite"):
            metrics.interval(values)


def test_versions_name_the_build_of_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.0+cu130")  # which the metadata of the package may lack
    assert records.versions()["torch"] == "2.99.0+cu130"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    records.write_beside(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        records.write_beside(path, b"new")
    assert path.read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["file.json"]


def test_what_killed_writers_left_goes_with_the_next_write(tmp_path):
    path, other = tmp_path / "a[1].npz", tmp_path / "a[1].npz.more"
    write = """
import os, signal, sys
from pathlib import Path
from amaml_core import records
records.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
records.write_beside(Path(sys.argv[1]), b"new")
"""
    for target in (path, other):
        records.write_beside(target, b"old")
        done = subprocess.run([sys.executable, "-c", write, str(target)], cwd=Path(__file__).parents[1])
        assert done.returncode == -signal.SIGKILL and target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 4
    living = tmp_path / f".a[1].npz.{platform.node().replace('.', '-')}.{os.getpid()}.1.tmp"
    living.write_bytes(b"under way")
    records.write_beside(path, b"newer")
    records.write_beside(other, b"newer")
    assert sorted(file.name for file in tmp_path.iterdir()) == [living.name, path.name, other.name]
    assert path.read_bytes() == other.read_bytes() == b"newer"


def test_what_a_run_left_that_was_killed_elsewhere_goes_with_the_next_run(tmp_path):
    path, other = tmp_path / "theta", tmp_path / ".theta.more.node-a.4711.4711.tmp"  # a writer's of another file
    for left in (tmp_path / ".theta.node-a.4711.4711.tmp", tmp_path / ".theta..1.1.tmp", other):
        left.write_bytes(b"under way")
    train(2, checkpoint=path)
    assert sorted(tmp_path.iterdir()) == [other, path]


def test_a_file_is_on_the_disk_before_it_takes_its_targets_place(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        records.os,
        "fsync",
        lambda handle: done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file") or fsync(handle),
    )
    monkeypatch.setattr(records.os, "replace", lambda *paths: done.append("rename") or replace(*paths))
    records.write_beside(tmp_path / "new" / "file.json", b"content")
    assert done == ["file", "rename", "folder"]


def test_brief_leaves_defaults_out_and_can_be_read_back():
    for method in (AMAML(5.0, Euler(7)), AMAML(0.5, proximal=0.1), MAML(0.1, 5), IMAML(regularization=1.0)):
        assert eval(records.brief(method)) == method
    assert records.brief(AMAML(5.0, Euler(7))) == "AMAML(horizon=5.0, solver=Euler(steps=7))"


# ----------------------------------------------- schedulers, clipping, validation, callbacks, the multi-step loss, meta-parameters

METHOD = MAML(0.05, 3)
HELD_OUT = lines(torch.Generator().manual_seed(99))
schedulers = torch.optim.lr_scheduler


def spoilt(**change):
    return Tasks(**{name: change.get(name, value) for name, value in vars(HELD_OUT).items()})


def sgd(lr=0.2):
    return lambda p: torch.optim.SGD(p, lr=lr)


def train(meta_steps=6, method=METHOD, loss=mse_loss, sampler=lines, optimizer=None, **options):
    return fit(method, Problem(network(), loss), sampler, meta_steps, optimizer or sgd(), progress=False, **options)


def descent(rate, meta_steps=6, method=METHOD):
    """theta after each step of gradient descent along the meta-gradient, from the first on, and the gradients' norms."""
    p, generator = problem(), torch.Generator().manual_seed(0)
    path, norms = [p.initial_parameters()], []
    for k in range(meta_steps):
        gradient = meta_gradient(method, p, path[-1], lines(generator)).gradient
        norms.append(gradient.norm().item())
        path.append(path[-1] - rate(k, norms[-1]) * gradient)
    return path[1:], norms


def held_out_loss(theta, method=METHOD):
    return meta_gradient(method, problem(), theta, HELD_OUT).query_loss.mean().item()


def same(one, other):
    vectors = [[getattr(result, name) for name in ("theta", "phi", "last_theta", "last_phi")] for result in (one, other)]
    return (
        all(a is b or torch.equal(a, b) for a, b in zip(*vectors, strict=True))
        and one.history.equals(other.history)
        and one.best_step == other.best_step
        and repr((one.method, one.last_method)) == repr((other.method, other.last_method))
    )


def test_a_scheduler_steps_once_in_each_meta_step():
    result = train(scheduler=lambda o: schedulers.StepLR(o, step_size=2, gamma=0.5))
    path, _ = descent(lambda k, norm: 0.2 * 0.5 ** (k // 2))
    assert torch.allclose(result.theta, path[-1], rtol=1e-12)
    assert torch.equal(result.theta, result.last_theta) and result.best_step is None


def test_a_gradient_is_shrunk_to_the_clipping_norm_and_the_history_tells_what_it_was():
    bound = np.median(train().history.gradient_norm)
    path, norms = descent(lambda k, norm: 0.2 * min(1.0, bound / norm))
    assert min(norms) < bound < max(norms)
    result = train(clip_norm=bound)
    assert torch.allclose(result.theta, path[-1], rtol=1e-12) and np.allclose(result.history.gradient_norm, norms, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_validation_is_the_query_loss_after_the_methods_own_adaptation(method):
    result, alone = train(7, method, validation=HELD_OUT, validate_every=3), train(7, method)
    path, _ = descent(lambda k, norm: 0.2, 7, method)
    measured = [2, 5, 6]  # every third, and the last
    expected = [held_out_loss(path[k], method) for k in measured]
    assert result.history.validation.notna().to_numpy().nonzero()[0].tolist() == measured
    assert np.allclose(result.history.validation[measured], expected, rtol=1e-9)
    assert torch.equal(result.last_theta, alone.theta)  # measuring changes nothing
    assert result.history.drop(columns="validation").equals(alone.history)


@pytest.mark.parametrize("options", [{}, {"metric": metrics.rmse, "lower_is_better": False}], ids=["least", "most"])
def test_the_best_theta_is_kept(options):
    up_and_down = dict(optimizer=sgd(1.0), validation=HELD_OUT, validate_every=1)
    result = train(12, **up_and_down, **options)
    column, path = result.history.validation, []
    train(12, optimizer=sgd(1.0), callbacks=[lambda step: path.append(step.theta)])
    assert result.best_step == 1 + (column.argmax() if options else column.argmin()) != 12
    assert torch.equal(result.theta, path[result.best_step - 1]) and torch.equal(result.last_theta, path[-1])


def test_a_metric_is_measured_as_evaluate_does():
    result = train(4, validation=HELD_OUT, metric=metrics.rmse)
    table = evaluate(METHOD, problem(), result.theta, HELD_OUT, metrics.rmse, steps=(3,))
    assert result.history.validation[3] == pytest.approx(table["query"].mean(), rel=1e-12)


def masked(prediction, target):
    return ((prediction - target.nan_to_num()).square() * target.isfinite()).mean()


@pytest.mark.parametrize("metric", [None, lambda p, y: torch.stack([masked(a, b) for a, b in zip(p, y, strict=True)])])
def test_what_the_loss_masks_may_be_missing_in_a_validation(metric):
    missing = torch.where(torch.arange(5)[:, None] > 2, HELD_OUT.query_y, math.nan)
    result = train(2, loss=masked, validation=spoilt(query_y=missing, support_y=missing), metric=metric)
    assert 0 < result.history.validation[1] < math.inf
    with pytest.raises(ValueError, match="validation cannot be measured: tasks.query_y holds NaN"):
        train(2, loss=masked, validation=spoilt(query_y=missing), metric=metrics.rmse)


@pytest.mark.parametrize("start", [None, torch.zeros(25, dtype=F64)], ids=["model", "theta"])
def test_training_is_the_same_in_inference_mode(start, tmp_path):
    options = {"checkpoint": tmp_path / "run", "callbacks": [lambda step: step.theta + 1], "progress": False}
    expected, p = train(4, validation=HELD_OUT, theta=start), problem()
    with torch.inference_mode():
        start = None if start is None else start.clone()
        for meta_steps in (2, 4):
            result = fit(METHOD, p, lines, meta_steps, sgd(), theta=start, validation=HELD_OUT.map(torch.clone), **options)
        with pytest.raises(ValueError, match="'0.weight' was made in inference mode.*build the model outside of it"):
            problem()
    assert same(result, expected) and not result.theta.is_inference()


class Uphill(torch.optim.SGD):
    """Makes it worse and worse."""

    def step(self):
        for p in self.param_groups[0]["params"]:
            p.grad = -p.grad
        super().step()


WORSE = dict(
    sampler=lambda generator: HELD_OUT, optimizer=lambda p: Uphill(p, lr=0.02), validation=HELD_OUT, validate_every=2
)  # fmt: skip


def test_training_stops_when_patience_is_at_its_end(tmp_path):
    path = tmp_path / "theta.safetensors"
    result = train(40, **WORSE, patience=3, checkpoint=path)
    assert len(result.history) == 8 and result.best_step == 2
    assert same(train(50, **WORSE, patience=3, checkpoint=path), result)  # where it stays
    assert len(train(12, **WORSE).history) == 12


def test_a_plateau_scheduler_follows_the_validation():
    steps = []
    result = train(
        10, **WORSE, scheduler=lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1), callbacks=[steps.append]
    )
    values = [step.validation for step in steps if step.validation is not None]
    assert values == sorted(values) == result.history.validation.dropna().tolist()
    assert [step.lr for step in steps] == [0.02] * 6 + [0.01] * 4  # the third validation is the second in vain


@pytest.mark.parametrize(
    "method", [METHOD, AMAML(0.15, Euler(3)), AMAML(0.15, Euler(3), on_divergence="skip")], ids=["MAML", "raise", "skip"]
)
def test_a_task_that_diverges_makes_a_validation_the_worst(method):
    far = spoilt(support_y=HELD_OUT.support_y * torch.tensor([1.0, 1.0, 1e200, 1.0], dtype=F64)[:, None, None])
    for options, worst in (({}, math.inf), ({"metric": metrics.rmse, "lower_is_better": False}, -math.inf)):
        result = train(3, method, validation=far, validate_every=2, **options)
        assert result.history.validation[1:].tolist() == [worst, worst]
        assert result.best_step is None and torch.equal(result.theta, result.last_theta)


def test_callbacks_are_told_what_the_history_holds():
    told, other = [], []
    result = train(5, validation=HELD_OUT, validate_every=2, callbacks=[told.append, other.append])
    path, _ = descent(lambda k, norm: 0.2, 5)
    assert [step.meta_step for step in told] == [1, 2, 3, 4, 5] and told == other
    for step, theta, row in zip(told, path, result.history.itertuples(), strict=True):
        assert torch.allclose(step.theta, theta, rtol=1e-12) and step.phi is None and step.lr == 0.2 and step.seconds > 0
        assert (step.query_loss, step.gradient_norm) == (row.query_loss, row.gradient_norm)
        assert step.validation == row.validation if step.meta_step in (2, 4, 5) else step.validation is None


def test_a_callback_stops_training_and_what_it_raises_else_leaves_a_checkpoint(tmp_path):
    def stop(step):
        if step.meta_step == 4:
            raise StopTraining

    def fail(step):
        if step.meta_step == 6:
            raise OSError("no space for the log")

    told, path = [], tmp_path / "theta.safetensors"
    options = dict(validation=HELD_OUT, validate_every=3)
    stopped = train(9, **options, callbacks=[stop, told.append], checkpoint=path)
    assert len(stopped.history) == len(told) == 4 and stopped.history.validation.count() == 2
    assert same(stopped, train(4, **options))
    with pytest.raises(OSError, match="no space"):
        train(9, **options, callbacks=[fail], checkpoint=path)
    assert same(train(6, **options, checkpoint=path), train(6, **options))
    assert same(train(9, **options, checkpoint=path), train(9, **options))


SCHEDULES = {
    "StepLR": lambda o: schedulers.StepLR(o, 2), "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5]),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda k: 1 / (1 + k)), "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.3, 20),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.3, 3), "LinearLR": lambda o: schedulers.LinearLR(o),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "warm-up": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=4), schedulers.CosineAnnealingLR(o, 8)], [4]
    ),
    "chained": lambda o: schedulers.ChainedScheduler([schedulers.ConstantLR(o, 0.5, 3), schedulers.ExponentialLR(o, 0.9)], o),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("lr", [0.1, pytest.param(torch.tensor(0.1), marks=pytest.mark.slow)], ids=["number", "tensor"])
@pytest.mark.filterwarnings("error")
def test_runs_with_any_scheduler_resume_to_the_bit(name, lr, tmp_path):
    path = tmp_path / "theta.safetensors"
    adam = lambda p: torch.optim.Adam(p, lr=lr)  # noqa: E731
    options = dict(optimizer=adam, scheduler=SCHEDULES[name], validation=HELD_OUT, validate_every=2, patience=9)
    whole, rates = train(11, **options), []
    for meta_steps in (3, 7, 11):  # two of which end with a validation out of turn
        resumed = train(meta_steps, **options, checkpoint=path, callbacks=[lambda step: rates.append(step.lr)])
        assert same(resumed, train(meta_steps, **options))
    assert same(resumed, whole) and len(set(rates)) > 1


def test_a_rate_that_is_given_as_a_tensor_is_nobody_elses():
    rate, steps = torch.tensor(0.2, dtype=F64), []
    result = train(optimizer=sgd(rate), scheduler=lambda o: schedulers.ExponentialLR(o, 0.5), callbacks=[steps.append])
    assert [step.lr for step in steps] == [0.2 * 0.5**k for k in range(6)] and rate == 0.2
    assert torch.allclose(result.theta, descent(lambda k, norm: 0.2 * 0.5**k)[0][-1], rtol=1e-12)


class WarmUp(torch.optim.SGD):
    """Counts its steps, and how many there are to warm up, on itself, where no state dict looks."""

    def __init__(self, parameters, steps, counts=False):
        super().__init__(parameters, lr=0.2)
        self.steps, self.counts, self.count = steps, counts, 0

    def step(self):
        self.count += self.counts
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad * min(1.0, (1 + self.count) / self.steps)
        super().step()


class Restless:
    """A metric that is worse each time."""

    def __init__(self):
        self._calls = 0

    def __call__(self, prediction, target):
        self._calls += 1
        return metrics.rmse(prediction, target) + self._calls


def counting():
    count = itertools.count()
    rates = [next(count)]
    return lambda o: schedulers.LambdaLR(o, lambda k: rates.append(next(count)) or 1 / len(rates))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": lambda p: WarmUp(p, 4, counts=True)},
            "the optimiser or its scheduler has a state .*optimizer.count moved on",
        ),
        ({"scheduler": counting()}, "the optimiser or its scheduler has a state"),
        ({"validation": HELD_OUT, "metric": Restless()}, "the metric has a state .*what it gives for the same"),
    ],
)
def test_what_keeps_a_state_to_itself_trains_and_has_no_checkpoint(options, message, tmp_path):
    assert len(train(**options).history) == 6
    with pytest.raises(ValueError, match=message):
        train(**options, checkpoint=tmp_path / "theta.safetensors")
    assert not list(tmp_path.iterdir())


def hooked(p):
    optimizer = torch.optim.SGD(p, lr=0.2)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


@pytest.mark.parametrize("other", [lambda p: WarmUp(p, 3), hooked])
def test_what_an_optimiser_has_beside_its_groups_belongs_to_a_run(other, tmp_path):
    first = sgd() if other is hooked else lambda p: WarmUp(p, 4)
    train(3, optimizer=first, checkpoint=tmp_path / "theta.safetensors")
    with pytest.raises(ValueError, match="belongs to another run:\n.*optimizer's own"):
        train(6, optimizer=other, checkpoint=tmp_path / "theta.safetensors")


class Sums(torch.optim.SGD):
    """Keeps sums of higher precision than theta's in a list, and the number of its steps under a name."""

    def step(self):
        self.state["all"]["steps"] = count = self.state["all"].get("steps", 0) + 1
        for p in self.param_groups[0]["params"]:
            sums = self.state[p].setdefault("sums", [torch.zeros_like(p, dtype=F64)])
            sums[0].mul_(0.9).add_(p.grad.double() / 3)
            p.data.sub_((0.1 * sums[0] / count).to(p))


def test_any_state_of_an_optimiser_comes_back_to_the_bit(tmp_path):
    single = Problem(network().float(), mse_loss)
    sampler = lambda generator: lines(generator).to(dtype=torch.float32)  # noqa: E731
    run = lambda n, path=None: fit(METHOD, single, sampler, n, Sums, checkpoint=path, progress=False)  # noqa: E731
    run(8, tmp_path / "theta.safetensors")
    assert same(run(16, tmp_path / "theta.safetensors"), run(16))


@pytest.mark.parametrize("make", [partial(torch.optim.Adam, differentiable=True), torch.optim.SparseAdam, torch.optim.LBFGS])
def test_an_optimiser_that_cannot_step_on_one_gradient_is_refused(make):
    with pytest.raises(TypeError, match="cannot be used here: fit gives an optimiser one gradient"):
        train(optimizer=make)


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        (
            2,
            {"scheduler": lambda o: schedulers.LambdaLR(o, lambda k: math.nan if k else 1.0)},
            "MAML: SGD at the learning rate nan",
        ),
        (1, {"optimizer": sgd(math.inf)}, "MAML: SGD at the learning rate inf leads to numbers that are not finite"),
        (1, {"method": AMAML(0.15, Euler(3)), "learn": "horizon", "optimizer": sgd(1e9)}, "AMAML: SGD at .*horizon"),
    ],
)
def test_a_theta_that_is_not_finite_is_no_result(steps, options, message, tmp_path):
    path = tmp_path / "theta.safetensors"
    with pytest.raises(DivergenceError, match=f"meta step {steps} of {message}"):
        train(steps, **options, checkpoint=path)
    assert len(load_file(path)["state.rows"]) == steps - 1  # of before that step


def test_autocast_belongs_to_a_run(tmp_path):
    single = Problem(network().float(), mse_loss)
    sampler = lambda generator: lines(generator).to(dtype=torch.float32)  # noqa: E731
    run = lambda n: fit(METHOD, single, sampler, n, checkpoint=tmp_path / "theta.safetensors", progress=False)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        run(2)
    with pytest.raises(ValueError, match="autocast: torch.bfloat16 there, None here"):
        run(4)


@pytest.mark.parametrize("where", ["sampler", "metric", "callback"])
def test_an_interrupt_anywhere_resumes_to_the_bit(where, tmp_path):
    path = tmp_path / "theta.safetensors"
    options = dict(validation=HELD_OUT, validate_every=2, patience=5, clip_norm=0.5, scheduler=SCHEDULES["warm-up"])

    def run(at=None, **more):
        sampler = Interrupted(lines, at if where == "sampler" else None)
        metric = Interrupted(metrics.rmse, at if where == "metric" else None)
        callbacks = [Interrupted(lambda step: None, at if where == "callback" else None)]
        return train(9, **options, sampler=sampler, metric=metric, callbacks=callbacks, **more)

    whole = run()
    for at in (2, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            run(at, checkpoint=path)
    assert same(run(checkpoint=path), whole)


def test_what_is_learned_of_a_method_belongs_to_the_best_theta(tmp_path):
    method = AMAML(0.05, Euler(3))
    options = dict(learn="horizon", validation=HELD_OUT, validate_every=1, metric=metrics.rmse, lower_is_better=False)
    result = train(12, method, **options)
    assert result.best_step < 12
    horizons = [*result.history.horizon[1:], result.last_method.horizon]  # after each step
    assert result.method.horizon == pytest.approx(horizons[result.best_step - 1], rel=1e-15)
    errors = evaluate(result.method, problem(), result.theta, HELD_OUT, metrics.rmse, steps=(3,))["query"]
    assert errors.mean() == pytest.approx(result.history.validation.max(), rel=1e-12)
    train(5, method, **options, checkpoint=tmp_path / "run")
    assert same(train(12, method, **options, checkpoint=tmp_path / "run"), result)


OTHERS = {
    "scheduler": ({"scheduler": SCHEDULES["StepLR"]}, {"scheduler": lambda o: schedulers.StepLR(o, 3)}, "scheduler.*code"),
    "no scheduler": ({}, {"scheduler": SCHEDULES["StepLR"]}, "scheduler: None there"),
    "clipping": ({"clip_norm": 1.0}, {"clip_norm": 2}, "clip_norm: 1.0 there, 2.0 here"),
    "turn": ({"validation": HELD_OUT}, {"validation": HELD_OUT, "validate_every": 9}, "validate_every: 100 there, 9 here"),
    "tasks": ({"validation": HELD_OUT}, {"validation": HELD_OUT[:2]}, r"validation.0.support_x: torch.float64 \(4, 5, 1\)"),
    "metric": ({"validation": HELD_OUT}, {"validation": HELD_OUT, "metric": metrics.rmse}, "metric: None there, .*rmse"),
    "patience": ({"validation": HELD_OUT}, {"validation": HELD_OUT, "patience": 2}, "patience: None there, 2 here"),
    "groups": (
        {"optimizer": lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}]), "learn": "horizon"},
        {"optimizer": lambda p: torch.optim.SGD([{"params": p[1:], "lr": 0.1}, {"params": p[:1], "lr": 0.2}]), "learn": "horizon"},
        r"optimizer.settings.0.params.0: 0 there, 1 here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_other_settings_is_refused(name, tmp_path):
    first, other, message = OTHERS[name]
    path = tmp_path / "theta.safetensors"
    train(2, METHODS[1], checkpoint=path, **first)
    with pytest.raises(ValueError, match=f"belongs to another run(.|\n)*{message}"):
        train(4, METHODS[1], checkpoint=path, **other)
    assert same(train(4, METHODS[1], checkpoint=path, **first), train(4, METHODS[1], **first))


PLATEAU = lambda o: schedulers.ReduceLROnPlateau(o)  # noqa: E731


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_norm": 0}, ValueError, "clip_norm > 0"), ({"clip_norm": "a"}, TypeError, "number for clip_norm"),
        ({"validate_every": 0}, ValueError, "validate_every >= 1"), ({"validate_every": 1.5}, TypeError, "integer validate_every"),
        ({"patience": 3}, ValueError, "need a validation"), ({"metric": metrics.rmse}, ValueError, "need a validation"),
        ({"validation": HELD_OUT, "patience": 0}, ValueError, "patience >= 1"),
        ({"validation": HELD_OUT, "lower_is_better": False}, ValueError, "without a metric the query loss"),
        ({"validation": HELD_OUT, "metric": 3}, TypeError, "metric must be a function"),
        ({"validation": HELD_OUT, "metric": nn.MSELoss}, TypeError, "not the class MSELoss; give an instance"),
        ({"validation": HELD_OUT, "metric": mse_loss}, ValueError, "a metric must return the error of each of B=4 tasks"),
        ({"validation": []}, ValueError, "holds no tasks"), ({"validation": 3}, TypeError, "Tasks or a list of Tasks, not 3"),
        ({"validation": [HELD_OUT, 3]}, TypeError, "Tasks or a list of Tasks"),
        ({"validation": HELD_OUT.to(dtype=torch.float32)}, ValueError, "float32"),
        ({"validation": spoilt(query_y=torch.full((4, 5, 1), math.nan, dtype=F64))}, ValueError, "query_y holds NaN"),
        ({"scheduler": PLATEAU}, ValueError, "ReduceLROnPlateau follows the validation"),
        (
            {"scheduler": PLATEAU, "validation": HELD_OUT, "metric": metrics.rmse, "lower_is_better": False},
            ValueError, r"mode='min'\) goes against lower_is_better=False",
        ),
        ({"scheduler": lambda o: None}, TypeError, "scheduler must be a function that gives a torch LRScheduler, not NoneType"),
        ({"scheduler": 0.5}, TypeError, "scheduler must be a function"), ({"callbacks": print}, TypeError, "a list of functions"),
        ({"callbacks": [None]}, TypeError, r"callbacks\[0\] must be a function"),
        ({"sampler": HELD_OUT}, TypeError, "sampler must be a function"),
        ({"optimizer": lambda p: p}, TypeError, "optimizer must be a function that gives a torch Optimizer, not list"),
        ({"optimizer": lambda p: torch.optim.SGD(network().parameters(), 0.1)}, ValueError, "not among those it is given, theta"),
        ({"optimizer": lambda p: torch.optim.SGD([*p, torch.zeros(1)], 0.1)}, ValueError, "not among those it is given, theta"),
        (
            {"optimizer": lambda p: torch.optim.SGD(p[:1], 0.1), "phi": torch.ones(2, dtype=F64)}, ValueError,
            "leaves out some of those it is given.*lr=0 to what is not to move",
        ),
        ({"theta": torch.zeros(3, dtype=F64)}, ValueError, r"P=25 parameters: it must be \(P,\)"),
        ({"theta": 3}, TypeError, "theta must be a floating"), ({"phi": torch.tensor([1])}, TypeError, "phi must be a floating"),
        ({"phi": torch.zeros(2, 2)}, ValueError, r"phi must be \(M"), ({"phi": torch.zeros(0)}, ValueError, r"phi must be \(M"),
        ({"phi": torch.tensor([math.nan])}, ValueError, "phi must be .* finite"),
        ({"phi": torch.ones(2)}, ValueError, r"phi is torch.float32 .* use phi.to\(theta\)"),
        ({"multi_step": -1}, ValueError, "multi_step must be"), ({"multi_step": 0.5}, TypeError, "multi_step must be"),
        ({"multi_step": 2, "method": Reptile(0.05, 3)}, ValueError, "multi_step sets the query_weights"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_work_are_refused_before_any_work(options, error, message, tmp_path):
    drawn = []
    with pytest.raises(error, match=message):
        train(checkpoint=tmp_path / "run", **{"sampler": lambda g: drawn.append(1) or lines(g)} | options)
    assert drawn == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"phi": torch.ones(2, dtype=F64)}, ValueError, "phi enters nothing"),
        ({"phi": torch.ones(2, dtype=F64), "method": Reptile(0.05, 3)}, ValueError, "no gradient with respect to phi"),
        ({"sampler": lambda generator: (1, 2)}, TypeError, "tasks must be a Tasks"),
        ({"sampler": lambda generator: lines(generator).to(dtype=torch.float32)}, ValueError, "float32"),
    ],
)
def test_what_the_first_draw_shows_is_refused_before_a_file_is_written(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        train(checkpoint=tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


def weighted(prediction, target, phi):
    return (phi[0].exp() * (prediction - target).square() + phi[1] * prediction).mean()


def with_phi():
    return Problem(network(), weighted, query_loss=mse_loss)


def two_rates(p):
    return torch.optim.SGD([{"params": p[:1], "lr": 0.2}, {"params": p[1:], "lr": 0.5}])


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_phi_is_trained_along_with_theta(clip_norm, tmp_path):
    start, generator = torch.tensor([0.3, -0.2], dtype=F64), torch.Generator().manual_seed(0)
    p, told = with_phi(), []
    options = dict(phi=start, clip_norm=clip_norm, validation=HELD_OUT, validate_every=2, progress=False)
    result = fit(METHOD, p, lines, 7, two_rates, callbacks=[told.append], **options)
    theta, phi = p.initial_parameters(), start
    for step in told:
        estimate = meta_gradient(METHOD, p, theta, lines(generator), phi=phi)
        norm = math.hypot(estimate.gradient.norm(), estimate.phi_gradient.norm())
        shrink = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
        theta, phi = theta - 0.2 * shrink * estimate.gradient, phi - 0.5 * shrink * estimate.phi_gradient
        assert torch.allclose(step.theta, theta, rtol=1e-10) and torch.allclose(step.phi, phi, rtol=1e-10)
        assert step.gradient_norm == pytest.approx(norm, rel=1e-10)
        if step.validation is not None:
            expected = meta_gradient(METHOD, p, theta, HELD_OUT, phi=phi).query_loss.mean().item()
            assert step.validation == pytest.approx(expected, rel=1e-10)
    assert torch.equal(result.last_phi, told[-1].phi) and torch.equal(result.phi, told[result.best_step - 1].phi)
    assert torch.equal(start, torch.tensor([0.3, -0.2], dtype=F64)) and (result.phi != start).all()
    for meta_steps in (3, 7):
        resumed = fit(METHOD, with_phi(), lines, meta_steps, two_rates, tmp_path / "run", **options)
    assert same(resumed, result)
    with pytest.raises(ValueError, match="belongs to another run:\n  phi: torch.float64"):
        fit(METHOD, with_phi(), lines, 9, two_rates, tmp_path / "run", **options | {"phi": start + 1})


def test_step_sizes_are_trained_as_meta_parameters():
    method, p = AMAML(0.15, Euler(3), step_sizes=lambda phi: phi.exp()[None]), problem()
    start = torch.full((p.size,), math.log(0.05), dtype=F64)  # Meta-SGD: one for each parameter
    result = fit(method, p, lines, 1, sgd(), phi=start, validation=HELD_OUT, progress=False)
    expected = meta_gradient(method, p, p.initial_parameters(), lines(torch.Generator().manual_seed(0)), phi=start)
    assert torch.allclose(result.phi, start - 0.2 * expected.phi_gradient, rtol=1e-12)
    after = meta_gradient(method, p, result.theta, HELD_OUT, phi=result.phi).query_loss.mean().item()
    assert result.history.validation[0] == pytest.approx(after, rel=1e-12)
    with pytest.raises(ValueError, match="learn='step_sizes' needs a value to start from"):
        train(1, method, learn="step_sizes")


def test_phi_goes_with_what_is_learned_of_the_method():
    start, method, p = torch.tensor([0.3, -0.2], dtype=F64), AMAML(0.15, Euler(3), sensitivities=True), with_phi()
    result = fit(method, p, lines, 1, sgd(), phi=start, learn="horizon", progress=False)
    estimate = meta_gradient(method, p, p.initial_parameters(), lines(torch.Generator().manual_seed(0)), phi=start)
    assert torch.allclose(result.phi, start - 0.2 * estimate.phi_gradient, rtol=1e-12)
    rise = 0.2 * 0.15 * estimate.stats["horizon_gradient"].mean().item()
    assert result.method.horizon == pytest.approx(0.15 * math.exp(-rise), rel=1e-12)


def ragged(generator):
    tasks = lines(generator)
    return [Tasks(*(t[:1, :3] for t in tasks.tensors)), tasks[1:]]


def test_tasks_of_different_sizes_count_alike(tmp_path):
    groups = ragged(torch.Generator().manual_seed(5))
    for options in ({}, {"metric": metrics.rmse}):
        result = train(4, sampler=ragged, validation=groups, **options)
        p = problem()
        found = [meta_gradient(METHOD, p, result.last_theta, group) for group in groups]
        errors = torch.cat([e.query_loss.sqrt() if options else e.query_loss for e in found])
        assert result.history.validation[3] == pytest.approx(errors.mean().item(), rel=1e-10)
        train(2, sampler=ragged, validation=groups, checkpoint=tmp_path / f"run{len(options)}", **options)
        assert same(train(4, sampler=ragged, validation=groups, checkpoint=tmp_path / f"run{len(options)}", **options), result)


def test_the_multi_step_loss_moves_to_the_last_step(tmp_path):
    method, p, generator = AMAML(0.2, Euler(4)), problem(), torch.Generator().manual_seed(0)
    result = train(5, method, multi_step=3)
    theta = p.initial_parameters()
    for weights in ([1 / 4] * 4, [1 / 6] * 3 + [1 / 2], [1 / 12] * 3 + [3 / 4], None, None):
        weights = None if weights is None else torch.tensor(weights, dtype=F64)
        theta = theta - 0.2 * meta_gradient(replace(method, query_weights=weights), p, theta, lines(generator)).gradient
    assert torch.allclose(result.theta, theta, rtol=1e-11) and repr(result.method) == repr(method)
    train(2, method, multi_step=3, checkpoint=tmp_path / "run")
    assert same(train(5, method, multi_step=3, checkpoint=tmp_path / "run"), result)
    with pytest.raises(ValueError, match="multi_step: 3 there, 4 here"):
        train(5, method, multi_step=4, checkpoint=tmp_path / "run")
    for other in (replace(method, query_weights=torch.ones(4) / 4), AMAML(0.2, Dopri5())):
        with pytest.raises(ValueError, match="multi_step sets the query_weights"):
            train(5, other, multi_step=3)
