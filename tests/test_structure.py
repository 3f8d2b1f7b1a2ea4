"""What a reader of the package may rely on: imports run one way, every public name has an example, code is in style and typed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import amaml_core
from amaml_core import metrics, samplers

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "amaml_core"
# Each module imports only what stands before it.
ORDER = [
    "locations", "strict", "settings", "recent", "numerics", "fast_tanh", "linalg", "tasks", "checks", "flow", "optimizers",
    "inner", "twins", "probe", "problem", "kernel", "tracing", "chain", "adjoint", "meta", "methods.descent", "methods.maml",
    "methods.fomaml", "methods.reptile", "methods.imaml", "methods.amaml", "methods", "metrics", "evaluation", "records",
    "identity", "checkpoints", "initialisation", "learned", "outer", "ranks", "validation", "bridge", "loop", "training",
]  # fmt: skip
DATA = ["samplers", "datasets", "stand_ins"]  # know neither methods nor solvers
FREE_TO_IMPORT = {"locations", "strict", "tasks", *DATA}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports(name, path):
    """The modules of the package, and the other packages, that a module imports when it runs."""
    tree = ast.parse(path.read_text())
    unused = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for n in ast.walk(node)
    }
    here = name.split(".") if path.name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            if node.module:
                yield "." + ".".join([*base, node.module])
            else:
                yield from ("." + ".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if m[0] in ORDER], ids=lambda v: v if isinstance(v, str) else "")
def test_imports_run_one_way(name, path):
    own = {found[1:] for found in imports(name, path) if found.startswith(".")}
    assert own <= set(ORDER[: ORDER.index(name)])


def test_every_module_has_its_place():
    known = {*ORDER, *DATA, "__init__"}
    assert {name for name, _ in modules() if name.split(".")[0] not in DATA} <= known


@pytest.mark.parametrize(
    ("name", "path"), [m for m in modules() if m[0].split(".")[0] in DATA], ids=lambda v: v if isinstance(v, str) else ""
)
def test_samplers_and_data_know_no_methods(name, path):
    own = {found[1:].split(".")[0] for found in imports(name, path) if found.startswith(".")}
    assert own <= FREE_TO_IMPORT


def test_the_package_draws_nothing_and_knows_nothing_of_the_book():
    foreign = {found.split(".")[0] for name, path in modules() for found in imports(name, path) if not found.startswith(".")}
    assert not foreign & {"matplotlib", "seaborn", "IPython", "amaml_core", "data_scripts", "tools", "benchmarks", "experiments"}


PUBLIC = [(amaml_core, name) for name in amaml_core.__all__] + [(samplers, name) for name in samplers.__all__]
PUBLIC += [(metrics, name) for name in ("Interval", "accuracy", "interval", "nrmse", "rmse")]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_every_public_name_has_an_example_that_runs(module, name):
    assert ">>> " in getattr(module, name).__doc__  # run with the doctests


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "--no-cache"),
        ("ruff", "format", "--check", "--no-cache"),
        ("codespell_lib",),
        pytest.param(("mypy",), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_code_is_in_style_and_typed(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
