"""On a GPU: the same gradients as on the CPU, with graphs captured and replayed, compiled, with states in host
memory, and shared by ranks."""

import one_rank
import pytest
import torch
from problems import CASES, regression, relative
from test_distributed import alone, ended, found, same, start

from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    Checkpoint,
    Euler,
    GradientDescent,
    Heun,
    Problem,
    Store,
    meta_gradient,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def moved(problem, theta, tasks, **options):
    return Problem(problem.model.cuda(), problem.loss, **options), theta.cuda(), tasks.to("cuda")


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("case", sorted(CASES))
def test_gradients_are_those_of_the_cpu(case, compile):
    problem, theta, tasks = CASES[case]()
    method = AMAML(0.4, Euler(5))
    expected = meta_gradient(method, problem, theta, tasks).gradient
    fast, *inputs = moved(problem, theta, tasks, compile=compile, trace_after=0)
    for _ in range(2):  # the second call replays what the first one captured
        assert relative(meta_gradient(method, fast, *inputs).gradient.cpu(), expected) < 1e-9
    kept = [fast.graphs.get(key).graphs for key in fast.graphs.keys()]
    assert any(entry.get(name) is not None for entry in kept for name in ("step", "back")) and None not in kept[0].values()


@pytest.mark.parametrize(
    "method",
    [
        AMAML(0.4, Heun(6), Checkpoint(), proximal=0.5), AMAML(0.4, Euler(6), Store(device="cpu")), MAML(0.1, 4), FOMAML(0.1, 4),
        IMAML(GradientDescent(0.1, 20), 2.0, cg_steps=10),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_every_method_gives_what_it_gives_on_the_cpu_for_new_data_too(method):
    problem, theta, tasks = regression()
    expected = [meta_gradient(method, problem, theta + shift, tasks).gradient for shift in (0.0, 0.1)]
    on_gpu, theta, tasks = moved(problem, theta, tasks)
    for shift, gradient in zip((0.0, 0.1), expected, strict=True):
        assert relative(meta_gradient(method, on_gpu, theta + shift, tasks).gradient.cpu(), gradient) < 1e-9


def test_data_that_were_changed_in_place_are_copied_again():
    problem, theta, tasks = moved(*regression())
    method = AMAML(0.4, Euler(5))
    meta_gradient(method, problem, theta, tasks)
    tasks.support_y.mul_(2)
    plain = Problem(problem.model, problem.loss, trace=False)
    expected = meta_gradient(method, plain, theta, tasks).gradient
    assert relative(meta_gradient(method, problem, theta, tasks).gradient, expected) < 1e-9


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loss_that_changes_after_the_capture_is_noticed(dtype, compile):
    problem, theta, tasks = regression()
    weight = [1.0]
    loss = lambda prediction, target: weight[0] * (prediction - target).square().mean()  # noqa: E731
    model, theta, tasks = problem.model.to("cuda", dtype), theta.to("cuda", dtype), tasks.to("cuda", dtype)
    captured, plain = Problem(model, loss, compile=compile, trace_after=0), Problem(model, loss, trace=False)
    method = AMAML(0.4, Euler(5))
    for weight[0] in (1.0, 1.1, 1.0):
        expected = meta_gradient(method, plain, theta, tasks).gradient
        assert relative(meta_gradient(method, captured, theta, tasks).gradient, expected) < (
            1e-9 if dtype == torch.float64 else 1e-4
        )


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_been_interrupted_and_as_on_the_cpu(tmp_path):
    case = {"validate": True, "phi": True, "method": "A-MAML", "device": "cuda"}
    expected = one_rank.run(tmp_path, 0, **case | {"device": "cpu"})
    one_rank.run(tmp_path, 0, **case, save=True, steps=7)
    found = one_rank.run(tmp_path, 0, **case, save=True)
    assert relative(found.theta.cpu(), expected.theta) < 1e-9 and relative(found.phi.cpu(), expected.phi) < 1e-9
    assert found.best_step == expected.best_step


def test_two_ranks_that_share_a_gpu_give_the_result_of_one(tmp_path):
    # over Gloo: NCCL wants a GPU for each rank
    case = {"validate": True, "method": "A-MAML", "device": "cuda"}
    assert ended(start(tmp_path, 2, [case])) == [0, 0]
    for rank in range(2):
        assert same(found(tmp_path, rank)[0], alone(tmp_path, case))
