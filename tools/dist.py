"""Build the wheel and the source archive into ``dist``, and check them as an index and a stranger would: ``python -m tools.dist``.

Nothing is fetched for that: the build's own needs are those of requirements.lock. ``python -m tools.dist try`` then installs the
wheel as a stranger would, with what its metadata ask for, from the index, and runs the example of the README.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import yaml
from markdown_it import MarkdownIt
from packaging.metadata import Metadata
from packaging.version import Version

from .notebooks import INTERRUPTED, ROOT, alone, put_in_place
from .repository import ADDRESS, building, declared

# What an index needs to show the package, and does not refuse.
CLASSIFIERS = {"Operating System :: OS Independent", "Programming Language :: Python :: 3", "Typing :: Typed"}


def tracked(root: Path) -> list[str]:
    """The files that git knows and that are there: an earlier build beside the sources would get into the wheel."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


RELATIVE = re.compile(r"(!?)(\[[^\]]*\]\()(?!https://|#)([^)]+\))")


def absolute(readme: str, address: str, ref: str) -> str:
    """The README as an index shows it, far from the files beside it: links lead to the repository, as it was at ``ref``."""
    return RELATIVE.sub(lambda m: f"{m[1]}{m[2]}{address}/{'raw' if m[1] else 'blob'}/{ref}/{m[3]}", readme)


def with_repository(pyproject: str, address: str) -> str:
    """The text of pyproject.toml with the repository's address among the URLs, which are a line or a table."""
    entry = f'Repository = "{address}"'
    text = re.sub(r"^urls = \{", rf"\g<0> {entry},", pyproject, flags=re.MULTILINE)
    return re.sub(r"^\[project\.urls\]\n", rf"\g<0>{entry}\n", text, flags=re.MULTILINE)


def build(root: Path, work: Path) -> list[Path]:
    """Build what git knows of the package, in a copy; the wheel and the archive."""
    source = work / "source"
    for name in tracked(root):
        if not name.startswith(("results/", "book/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, source / name)
    if address := building(root):
        readme = (source / "README.md").read_text(encoding="utf-8")
        tag = f"v{versions(root)['pyproject.toml']}"
        (source / "README.md").write_text(absolute(readme, address, tag), encoding="utf-8")
        if not declared(source):
            project = source / "pyproject.toml"
            project.write_text(with_repository(project.read_text(encoding="utf-8"), address), encoding="utf-8")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(work / "dist"), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sorted((work / "dist").iterdir())


def problems(files: Iterable[Path], root: Path) -> Iterator[str]:
    """What is wrong with a wheel and an archive that were built of a checkout; nothing if nothing is."""
    package = {name for name in tracked(root) if name.startswith("amaml_core/")}
    kinds = {"wheel": 0, "archive": 0}
    for file in files:
        if file.suffix == ".whl":
            kinds["wheel"] += 1
            with zipfile.ZipFile(file) as opened:
                names = {name for name in opened.namelist() if ".dist-info/" not in name}
                own = {PurePosixPath(name).name: name for name in opened.namelist() if ".dist-info/" in name}
                text = opened.read(own["METADATA"]) if "METADATA" in own else b""
                licence = own.get("LICENSE")
            if names != package:
                yield f"{file.name}: {', '.join(sorted(names ^ package))} should be in both it and the package, or in neither"
        else:
            kinds["archive"] += 1
            with tarfile.open(file) as archive:
                names = {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])) for m in archive if m.isfile()}
                member = archive.extractfile(f"{file.name.removesuffix('.tar.gz')}/PKG-INFO")
                text = member.read() if member else b""
                licence = "LICENSE" if "LICENSE" in names else None
            if lacking := sorted((package | {"README.md", "LICENSE", "pyproject.toml"}) - names):
                yield f"{file.name} lacks {', '.join(lacking)}"
            if foreign := sorted(name for name in names if name.startswith(("data/", "results/", "book/", "tests/", "_"))):
                yield f"{file.name} holds {', '.join(foreign)}"
        if licence is None:
            yield f"{file.name} lacks the licence"
        yield from (f"{file.name}: {problem}" for problem in bad_metadata(text, root))
    if set(kinds.values()) != {1}:
        yield f"there should be one wheel and one archive, and there are {kinds}"


def bad_metadata(text: bytes, root: Path) -> Iterator[str]:
    """What an index would refuse or not show in metadata, or what differs from the checkout."""
    try:
        given = Metadata.from_email(text, validate=True)
    except ExceptionGroup as errors:
        yield from (str(error) for error in errors.exceptions)
        return
    shown = MarkdownIt("commonmark").enable("table").render(given.description or "")
    if given.description_content_type != "text/markdown" or "<h1>" not in shown or "<table>" not in shown:
        yield "the README is not shown as Markdown with its title and its tables"
    if building(root) and (dead := re.findall(r'(?:href|src)="(?!https://|#)([^"]*)"', shown)):
        yield f"an index does not have what the README links to, {', '.join(dead)}"
    if given.license_expression != "MIT" or given.license_files != ["LICENSE"]:
        yield f"the licence is {given.license_expression} in {given.license_files}"
    if missing := sorted(CLASSIFIERS - set(given.classifiers or [])):
        yield f"no classifier says {', '.join(missing)}"
    if building(root) and "Repository" not in (given.project_urls or {}):
        yield "no URL leads to the repository"
    for label, address in (given.project_urls or {}).items():
        if not re.match("https://[^/ ]+/[^ ]+", address) or (label == "Repository" and not ADDRESS.fullmatch(address)):
            yield f"the URL {label} is {address!r}"
    for where, version in versions(root).items():
        if Version(version) != given.version:
            yield f"the version is {given.version}, but {version} in {where}"


def versions(root: Path) -> dict[str, str]:
    """The version that each file of a checkout gives.

    Raises:
        ValueError: a file gives none; it is named.
    """
    found = {}
    for where, (name, read) in VERSIONS.items():
        try:
            found[where] = read((root / name).read_text(encoding="utf-8"))
            Version(found[where])
        except (LookupError, TypeError, ValueError, SyntaxError, yaml.YAMLError) as error:  # as each reader has it
            raise ValueError(f"{root / name} gives no version: write one there such as 1.2.3") from error
    return found


def assigned_version(code: str) -> str:
    """What a module's ``__version__`` is."""
    tree = ast.parse(code)
    assigned = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    return ast.literal_eval(assigned["__version__"])


VERSIONS = {
    "amaml_core.__version__": ("amaml_core/__init__.py", assigned_version),
    "pyproject.toml": ("pyproject.toml", lambda text: tomllib.loads(text)["project"]["version"]),
    "CITATION.cff": ("CITATION.cff", lambda text: yaml.safe_load(text)["version"]),
    "CHANGELOG.md": ("CHANGELOG.md", lambda text: re.findall(r"^## (\d\S*)", text, re.MULTILINE)[0]),
}


def unreleased(root: Path, tag: str) -> Iterator[str]:
    """Why a tag is no release: it is not the version, or the changes of that version have no date yet."""
    version = versions(root)["pyproject.toml"]
    if tag != f"v{version}":
        yield f"the tag is {tag}, and the version {version}"
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE):
        yield f"CHANGELOG.md has no entry `## {version} (YYYY-MM-DD)`"


def example(root: Path) -> str:
    """The code of the README."""
    (code,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return code


def elsewhere() -> dict[str, str]:
    """The environment of a process, with nothing in it that leads to this checkout or to its data."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AMAML_", "PYTHON"))}


def attempt(wheel: Path, root: Path) -> bool:
    """Install a wheel, with what its metadata ask for, and run the README's example in an empty folder; did both go well?"""
    with tempfile.TemporaryDirectory() as work:
        venv.create(Path(work) / "venv", with_pip=True, symlinks=os.name == "posix")  # as by `python -m venv`
        (empty := Path(work) / "empty").mkdir()
        python = Path(work) / "venv" / "bin" / "python"
        for command in (["-m", "pip", "install", "--quiet", wheel.resolve()], ["-c", example(root)]):
            if subprocess.run([python, *command], cwd=empty, env=elsewhere()).returncode:
                return False
    return True


def main(arguments: list[str] | None = None) -> int:
    tag = (sys.argv[1:] if arguments is None else arguments)[:1]
    try:
        if tag == ["try"]:
            wheels = [*(ROOT / "dist").glob("*.whl")]
            if len(wheels) != 1:
                print(f"`make dist` leaves one wheel in dist, and there are {len(wheels)}", file=sys.stderr)
            return 0 if len(wheels) == 1 and attempt(wheels[0], ROOT) else 1
        with alone(ROOT / "_build" / "dist", "building the package") as work:
            files = build(ROOT, work)
            found = [*problems(files, ROOT), *(unreleased(ROOT, tag[0]) if tag else [])]
            for problem in found:
                print(problem, file=sys.stderr)
            if not found:
                put_in_place(work / "dist", ROOT / "dist")
                print("\n".join(f"dist/{file.name}" for file in files))
    except KeyboardInterrupt:
        print(INTERRUPTED.format("dist"), file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"no package was built: {shlex.join(map(str, error.cmd))} ended with status {error.returncode}", file=sys.stderr)
        return 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
