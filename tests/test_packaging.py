"""The wheel and the source archive: they hold what works from them, an index would take them, and a stranger can install them."""

import ast
import io
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tools import dist, hashes
from tools.repository import declared

ROOT = Path(__file__).resolve().parents[1]
MODEL = """
import importlib.util
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

import amaml_core
from amaml_core import AMAML, Euler, Problem, Tasks, meta_gradient
from amaml_core.datasets import data_root, load_ratings

assert Path(amaml_core.__file__).is_relative_to(SITE), amaml_core.__file__
assert importlib.util.find_spec("experiments") is None
assert amaml_core.__version__ == metadata.version("amaml_core")

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


def test_all_files_give_the_same_version():
    assert len(set(dist.versions(ROOT).values())) == 1, dist.versions(ROOT)


def test_an_address_is_given_everywhere_or_nowhere():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    cited = re.findall(r"^repository-code: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == [urls["Repository"]] if "Repository" in urls else not cited


def test_the_package_asks_for_what_it_imports_and_for_nothing_else():
    imported = set()
    for path in (ROOT / "amaml_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):  # in functions, too
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module)
    foreign = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"amaml_core"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {"PIL": "pillow"}  # the distributions whose module has another name
    assert {named.get(name, name) for name in foreign} == {Requirement(text).name.lower() for text in project["dependencies"]}


def test_every_package_of_the_lock_but_torch_has_its_hashes():
    entries = (ROOT / "requirements.hashes").read_text().replace(" \\\n", "").splitlines()
    entries = [line.split() for line in entries if not line.startswith("#")]
    assert [line for line, *_ in entries] == [*hashes.pinned((ROOT / "requirements.lock").read_text()).values()]
    assert [found for found in entries if len(found) < 2] == []
    wrong = [word for _, *found in entries for word in found if not re.fullmatch("--hash=sha256:[0-9a-f]{64}", word)]
    assert wrong == []


def test_every_package_of_the_lock_takes_the_oldest_python_that_is_promised():
    with open(ROOT / "pyproject.toml", "rb") as file:
        oldest = tomllib.load(file)["project"]["requires-python"].removeprefix(">=") + ".0"
    lock = hashes.pinned((ROOT / "requirements.lock").read_text()).values()
    here = [found for found in metadata.distributions() if f"{found.name}=={found.version}" in lock]  # not all, where all is newer
    assert [found.name for found in here if oldest not in SpecifierSet(found.metadata["Requires-Python"] or "")] == []


def test_hashes_are_those_of_the_files_that_pip_would_take_from_an_index():
    def told(name, sha256, url="https://x.org/a.whl"):
        return {
            "metadata": {"name": name},
            "download_info": {"url": url, "archive_info": {"hashes": {"sha256": sha256} if sha256 else {}}},
        }

    lock = "# said before\na_b==1.0\nc==2.0\ntorch==3.0\n"
    reports = [{"install": [told("A.B", "11"), told("c", "33")]}, {"install": [told("A.B", "00"), told("c", "33")]}]
    text = re.sub("^#.*\n", "", hashes.listing(lock, reports), flags=re.MULTILINE)
    assert text == "a_b==1.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nc==2.0 \\\n    --hash=sha256:33\n"
    for last, said in (
        (told("c", "33", "file:///c.whl"), "no file of an index"),
        (told("c", None), "no file of an index"),
        (None, "nothing of c"),
    ):
        with pytest.raises(ValueError, match=said):
            hashes.listing(lock, [{"install": [told("a-b", "11"), *([last] if last else [])]}])


@pytest.fixture
def checkout(tmp_path):
    """The files that give a version, of a version 1.2.3."""
    (tmp_path / "amaml_core").mkdir()
    (tmp_path / "amaml_core" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("version: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 1.2.3 (2026-01-31)\n\n## 1.2.2 (unreleased)\n")
    return tmp_path


def test_a_release_is_a_tag_of_the_version_whose_changes_have_a_date(checkout):
    assert list(dist.unreleased(checkout, "v1.2.3")) == []
    assert list(dist.unreleased(checkout, "v1.2.2")) == ["the tag is v1.2.2, and the version 1.2.3"]
    (checkout / "CHANGELOG.md").write_text("## 1.2.3 (unreleased)\n")
    assert list(dist.unreleased(checkout, "v1.2.3")) == ["CHANGELOG.md has no entry `## 1.2.3 (YYYY-MM-DD)`"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("CITATION.cff", "title: x\n"), ("CITATION.cff", "- 3\n"), ("CITATION.cff", "version: 0.1\n"), ("CITATION.cff", "a: [\n"),
        ("CITATION.cff", "version: one\n"), ("CHANGELOG.md", "# Changes\n"), ("pyproject.toml", "[project]\n"),
        ("pyproject.toml", "["), ("amaml_core/__init__.py", ""), ("amaml_core/__init__.py", "x ="),
    ],
)  # fmt: skip
def test_a_file_that_gives_no_version_is_named(checkout, name, content):
    (checkout / name).write_text(content)
    with pytest.raises(ValueError, match="gives no version: write one there such as 1.2.3") as caught:
        dist.versions(checkout)
    assert str(caught.value).startswith(str(checkout / name))


@pytest.mark.parametrize("failing", ["address", "version", "program"])
def test_what_stops_a_build_is_told_in_a_line(checkout, monkeypatch, capsys, failing):
    monkeypatch.setattr(dist, "ROOT", checkout)
    monkeypatch.setattr(dist, "tracked", lambda root: [])
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    if failing == "address":
        monkeypatch.setenv("GITHUB_REPOSITORY", "a b")
        said = "GITHUB_SERVER_URL/GITHUB_REPOSITORY is 'https://github.com/a b'; the address of a repository looks like"
    elif failing == "version":
        (checkout / "CITATION.cff").write_text("title: x\n")
        monkeypatch.setattr(dist, "build", lambda root, work: [*dist.versions(root)])
        said = "CITATION.cff gives no version"
    else:
        monkeypatch.setattr(sys, "executable", "false")
        said = "no package was built: false -m build "
    assert dist.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (checkout / "dist").exists()


METADATA = """\
Metadata-Version: 2.4
Name: amaml_core
Version: 1.2.3
License-Expression: MIT
License-File: LICENSE
Classifier: Operating System :: OS Independent
Classifier: Programming Language :: Python :: 3
Classifier: Typing :: Typed
Project-URL: Repository, https://github.com/someone/book
Description-Content-Type: text/markdown

# Title

| a |
|---|
| 1 |
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", None),
        ("Version: 1.2.3", "Version: 1.2.4", "the version is 1.2.4, but 1.2.3 in amaml_core.__version__"),
        ("Version: 1.2.3", "Version: one", "is invalid"),
        ("text/markdown", "text/x-rst", "not shown as Markdown"),
        ("|---|", "", "not shown as Markdown"),
        ("License-Expression: MIT\n", "", "the licence is None"),
        ("License-File: LICENSE\n", "", "the licence is MIT in"),
        ("Classifier: Typing :: Typed\n", "", "no classifier says Typing :: Typed"),
        ("https://github.com/someone/book", "http://github.com/someone/book", "the URL Repository is"),
        ("https://github.com/someone/book", "https://github.com/someone", "the URL Repository is"),
        ("Name: amaml_core\n", "Name: amaml core!\n", "is invalid"),
        ("Metadata-Version: 2.4\n", "", "metadata version"),
    ],
)
def test_metadata_that_an_index_would_refuse_are_found(checkout, old, new, problem):
    assert old in METADATA
    found = list(dist.bad_metadata(METADATA.replace(old, new, 1).encode(), checkout))
    assert found == [] if problem is None else problem in " ".join(found)


def test_an_archive_with_tests_that_cannot_run_from_it_is_found(checkout, monkeypatch):
    monkeypatch.setattr(dist, "tracked", lambda root: [])
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    with tarfile.open(checkout / "a-1.tar.gz", "w:gz") as archive:
        for name in ("PKG-INFO", "README.md", "LICENSE", "pyproject.toml", "tests/test_a.py"):
            entry = tarfile.TarInfo(f"a-1/{name}")
            entry.size = len(METADATA)
            archive.addfile(entry, io.BytesIO(METADATA.encode()))
    found = list(dist.problems([checkout / "a-1.tar.gz"], checkout))
    assert found[0] == "a-1.tar.gz holds tests/test_a.py" and "one wheel and one archive" in found[1] and len(found) == 2


def test_the_readme_on_an_index_links_to_the_repository(checkout, monkeypatch):
    readme = "![f](book/f.svg) [a](A.md#b), [arXiv](https://arxiv.org), [here](#here)\n"
    at = "https://github.com/someone/book"
    shown = dist.absolute(readme, at, "v1.2.3")
    assert shown == f"![f]({at}/raw/v1.2.3/book/f.svg) [a]({at}/blob/v1.2.3/A.md#b), [arXiv](https://arxiv.org), [here](#here)\n"
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/book")
    assert list(dist.bad_metadata((METADATA + shown).encode(), checkout)) == []
    assert "links to, book/f.svg, A.md#b" in " ".join(dist.bad_metadata((METADATA + readme).encode(), checkout))
    lacking = re.sub("Project-URL.*\n", "", METADATA)
    assert list(dist.bad_metadata((lacking + shown).encode(), checkout)) == ["no URL leads to the repository"]
    monkeypatch.delenv("GITHUB_REPOSITORY")
    assert list(dist.bad_metadata(lacking.encode(), checkout)) == []
    assert list(dist.bad_metadata((METADATA + readme).encode(), checkout)) == []  # nobody knows yet where they would lead


@pytest.mark.parametrize("urls", ['urls = { Paper = "https://x.org" }', '[project.urls]\nPaper = "https://x.org"'])
def test_a_build_that_knows_the_repository_writes_it_among_the_urls(urls):
    text = dist.with_repository(f"[project]\n{urls}\n", "https://github.com/someone/book")
    assert tomllib.loads(text)["project"]["urls"] == {"Paper": "https://x.org", "Repository": "https://github.com/someone/book"}


@pytest.mark.slow
def test_the_metadata_of_a_release_give_the_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/book")
    files = dist.build(ROOT, tmp_path)
    assert list(dist.problems(files, ROOT)) == []
    (wheel,) = (file for file in files if file.suffix == ".whl")
    with zipfile.ZipFile(wheel) as opened:
        (text,) = (opened.read(name).decode() for name in opened.namelist() if name.endswith("/METADATA"))
    assert f"\nProject-URL: Repository, {declared(ROOT) or 'https://github.com/someone/book'}\n" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("needs", "code", "well"), [("", "import tiny", True), ("absent", "import tiny", False), ("", "import yaml", False)]
)
def test_a_wheel_is_tried_with_what_it_asks_for_and_nothing_of_this_environment(tmp_path, monkeypatch, needs, code, well):
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as new:
        new.writestr("tiny.py", "")
        new.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n{needs and f'Requires-Dist: {needs}'}\n"
        )
        new.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        new.writestr(f"{info}/RECORD", "")
    (tmp_path / "README.md").write_text(f"```python\n{code}\n```\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PYTHONPATH", sysconfig.get_path("purelib"))
    assert dist.attempt(wheel, tmp_path) is well


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return dist.build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_wheel_and_archive_hold_the_package_and_are_in_order(built):
    assert list(dist.problems(built, ROOT)) == []
    (wheel,) = (file for file in built if file.suffix == ".whl")
    assert "amaml_core/py.typed" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_what_is_missing_or_too_much_in_a_wheel_is_found(built, tmp_path):
    (wheel,) = (file for file in built if file.suffix == ".whl")
    spoiled = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(spoiled, "w") as new:
        for name in old.namelist():
            if not name.endswith(("py.typed", "LICENSE")):
                new.writestr(name, old.read(name))
        new.writestr("experiments/__init__.py", "")
    found = " ".join(dist.problems([spoiled], ROOT))
    assert "amaml_core/py.typed, experiments/__init__.py should be in both" in found
    assert "lacks the licence" in found and "there should be one wheel and one archive" in found


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".whl", ".tar.gz"])
def test_what_a_stranger_installs_runs_the_example_of_the_readme(built, tmp_path, kind):
    (file,) = (file for file in built if file.name.endswith(kind))
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    report = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(report, capture_output=True, text=True, check=True).stdout.strip())
    # What the package needs, from here; a path in a .pth file does not bring the .pth file of the editable install with it.
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--ignore-installed", file], check=True)
    for code in (f"SITE = {str(site)!r}\n{MODEL}", dist.example(ROOT)):
        done = subprocess.run([python, "-c", code], cwd=tmp_path, env=dist.elsewhere(), capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, done.stderr
