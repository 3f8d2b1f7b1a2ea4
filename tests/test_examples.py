"""Each example runs, without a warning, is short, is listed, and shows what it says it shows."""

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from groups import gloo
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def same_precision_afterwards():
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


def run(name, *arguments):
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return example, example["main"](*arguments)


def test_own_model():
    _, found = run("own_model")
    assert found["meta-trained"] < 0.5 * found["pooled"]
    assert found["file"] == 0


def test_adam_inside():
    example, found = run("adam_inside")
    exact = set(example["METHODS"]) - {"first order"}
    assert len(exact) == 3 and all(found[name] < 1e-10 for name in exact)
    assert found["first order"] > 0.1
    stored = 3 * example["STEPS"] * 73 * 8 / 1000  # u, m and v of P = 73 parameters, kB
    assert found["unrolled kB"] > 10 * stored


@pytest.mark.slow
def test_meta_sgd():
    _, found = run("meta_sgd")
    assert len(found) == 4 and found.pop("Meta-SGD") < 0.5 * min(found.values())


@pytest.mark.slow
def test_learned_regularizer():
    _, found = run("learned_regularizer")
    assert found["a weight each"] < 0.6 * min(found["no weight"], found["one weight"])
    assert found["useless"] > 20 * found["useful"]


@pytest.mark.slow
def test_transformer_in_context():
    _, found = run("transformer_in_context")
    assert found["trained 3"] > max(found["untrained 3"], found["untrained 12"]) + 0.1
    assert found["trained 12"] > 0.85


def better_and_the_same_under_a_wrapper(found):
    return found["after"] < 0.3 * found["before"] and found["wrapped"] == pytest.approx(found["after"], rel=1e-5)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.slow
def test_outer_loop_in_a_distributed_wrapper(tmp_path):
    prepare = lambda learner, *others: (DistributedDataParallel(learner), *others)  # noqa: E731
    with gloo(tmp_path / "store"):
        _, found = run("outer_loop", (prepare, torch.Tensor.backward, clip_grad_norm_))
    assert better_and_the_same_under_a_wrapper(found)


@pytest.mark.slow
def test_outer_loop_under_accelerate():
    pytest.importorskip("accelerate")
    assert better_and_the_same_under_a_wrapper(run("outer_loop")[1])


def test_several_processes():
    _, found = run("several_processes")
    assert found["after"] < 0.4 * found["before"]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_several_processes_print_what_one_does(tmp_path):
    program, torchrun = (
        str(EXAMPLES / "several_processes.py"),
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    )
    said = [
        subprocess.run(
            [sys.executable, *more, program],
            cwd=EXAMPLES.parent,
            env=os.environ | {"TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for more in ([], torchrun)
    ]
    assert said[0].replace("in 1 processes", "in 2 processes") == said[1] != said[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_short_and_can_be_run(path):
    text = path.read_text()
    assert text.count("\n") <= 60
    assert f"Run it with: python examples/{path.name}\n" in text
    assert text.endswith('if __name__ == "__main__":\n    main()\n')


def test_each_is_listed_and_tested():
    listed = {line.split("]")[0].removeprefix("| [") for line in (EXAMPLES / "README.md").read_text().splitlines() if "](" in line}
    assert {path.name for path in FILES} == listed
    assert all(any(name.startswith(f"test_{path.stem}") for name in globals()) for path in FILES)
