"""The wheel of the package holds what works from it, and nothing else."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

MODEL = """
import importlib.util
from pathlib import Path

import torch
from torch import nn

import amaml_core
from amaml_core import AMAML, Euler, Problem, Tasks, meta_gradient
from amaml_core.datasets import data_root, load_ratings

assert Path(amaml_core.__file__).is_relative_to(SITE), amaml_core.__file__
assert importlib.util.find_spec("experiments") is None

problem = Problem(nn.Linear(1, 1), nn.functional.mse_loss)
x = torch.linspace(-1, 1, 24).reshape(4, 6, 1)
tasks = Tasks(x[:, :3], 2 * x[:, :3], x[:, 3:], 2 * x[:, 3:])
estimate = meta_gradient(AMAML(0.5, Euler(5)), problem, problem.initial_parameters(), tasks)
assert estimate.gradient.isfinite().all() and estimate.gradient.norm() > 0

try:
    data_root()
except FileNotFoundError as error:
    assert "set AMAML_DATA" in str(error)
else:
    raise AssertionError("an installed package has no data of its own")
assert not load_ratings("jester-1").real
print("all is well")
"""


def tracked():
    """The files of a checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():  # what a fresh clone has: an earlier build beside the sources would get into the wheel
        if not name.startswith(("results/", "book/")):
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    subprocess.run([*pip, folder / "source"], check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_the_package_and_nothing_that_needs_a_checkout(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"amaml_core"}
    expected = {name for name in tracked() if name.startswith("amaml_core/")}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_wheel_works_where_there_is_no_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AMAML_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    # -S: without the .pth file of the editable install, which would add the checkout's modules to the installed package.
    command = [sys.executable, "-S", "-c", f"SITE = {str(site)!r}\n{MODEL}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "all is well\n", done.stderr
