"""The outer loop, evaluation, metrics and records."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    AdamAdaptation,
    DivergenceError,
    Euler,
    Problem,
    Reptile,
    Tasks,
    evaluate,
    fit,
    metrics,
    records,
    training,
)
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


def test_records_come_back_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.0+cu130")  # with a build, which the metadata of the package may lack
    record = records.new_record("ratings", {"method": "MAML", "lr": 0.1}, 3, {"nrmse": [0.5, 0.25]}, 1.5)
    path = records.write_record(record, tmp_path / "results" / "one.json")
    assert records.read_record(path) == record
    assert record.versions["torch"] == torch.__version__ and record.seed == 3
    assert [f.name for f in path.parent.iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "3"}, "seed"),
        ({"figures": {}}, "without figures"),
        ({"duration": -1}, "duration"),
        ({"date": "yesterday"}, "yesterday"),
        ({"extra": 1}, "unknown"),
        ({"machine": None}, "machine"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, change, message):
    path = records.write_record(records.new_record("x", {}, 0, {"a": 1.0}, 0.1), tmp_path / "r.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        records.read_record(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        records.read_record(path)


def test_a_record_of_nan_is_refused_and_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = records.write_record(records.new_record("x", {}, 0, {"a": 1.0}, 0.1), tmp_path / "r.json")
    before = path.read_bytes()
    with pytest.raises(ValueError):
        records.write_record(records.new_record("x", {}, 0, {"a": math.nan}, 0.1), path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        records.write_beside(path, b"new")
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["r.json"]


def test_brief_leaves_defaults_out_and_can_be_read_back():
    for method in (AMAML(5.0, Euler(7)), AMAML(0.5, proximal=0.1), MAML(0.1, 5), IMAML(regularization=1.0)):
        assert eval(records.brief(method)) == method
    assert records.brief(AMAML(5.0, Euler(7))) == "AMAML(horizon=5.0, solver=Euler(steps=7))"
