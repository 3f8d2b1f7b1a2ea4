"""Chapters: sources in ``book/src/NAME.md`` (MyST, edited by people), executed notebooks in ``book/NAME.ipynb`` (generated).

python -m tools.notebooks run NAME --profile smoke      execute a source, into _runs/smoke/NAME.ipynb (--seed 1: NAME-seed1.ipynb;
                                                        --without-data: as if none were prepared)
python -m tools.notebooks publish NAME --profile book   make that run the committed notebook
python -m tools.notebooks sync [NAME ...]               text from the sources, outputs kept where the code is the same
python -m tools.notebooks check [NAME ...]              is every notebook clean, and as its source says?
python -m tools.notebooks compare --profile smoke       do the checked cells of the runs print what they print in the notebooks?
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import jupytext
import nbformat
from filelock import FileLock, Timeout
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from traitlets import default

from experiments.common.parameters import PROFILES, check

from .repository import declared, with_setup

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "book" / "src"
NOTEBOOKS = ROOT / "book"
# What a tool says after Ctrl-C that begins anew when it is called again.
INTERRUPTED = "{}: interrupted; what was there before is untouched, and the same command does it again"
# Seconds that one cell may take. A full run may take hours.
CELL_TIMEOUT = {"smoke": 600, "book": 1800, "full": None}
# What an execution leaves in the metadata of a cell, different every time.
VOLATILE = ("papermill", "execution", "ExecuteTime", "collapsed", "scrolled", "jupyter")
CHECKED = "nbval-check-output"  # the tag of cells that print the same at every profile and on every machine
RUN = "run"  # the entry of a notebook's metadata that says when, where and with what its outputs were made
SOLUTION = "solution"  # the tag of the cells that a run adds for the exercises' solutions, and leaves out of what is kept
# A fenced block of Markdown: the fence, what stands behind it, the body up to a fence at least as long.
FENCED = re.compile(r"^ *(`{3,})([^`\n]*)\n(.*?)^ *\1`*[ \t]*$", re.MULTILINE | re.DOTALL)
SYNC = "run `make sync`, or `make refresh` if its code has changed"
PARAMETERS = ('profile = os.environ.get("AMAML_PROFILE", "book")', "seed = 0")
# An output that names these came from one machine or one process, and is different on the next.
UNREPEATABLE = {
    "a path of this machine": re.compile(rf"{re.escape(str(ROOT))}|site-packages|ipykernel_\d+|/(tmp|home|root|Users)/"),
    "a memory address": re.compile(r"\bat 0x[0-9a-f]{6,}"),
}


def names() -> list[str]:
    """The names of all chapters with code, in order."""
    return sorted(path.stem for path in SOURCES.glob("*.md"))


@contextmanager
def readable(path: Path, remedy: str) -> Iterator[None]:
    """Make one kind of error, which names the file and the way out, of all that readers of notebooks raise for a damaged one.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged: {reason[:200]}; {remedy}") from error


def read_source(name: str) -> NotebookNode:
    """The source of a chapter as a notebook without outputs; with a cell that fetches the code, if it is known from where.

    Raises:
        ValueError: it is no source of a notebook.
    """
    path = SOURCES / f"{name}.md"
    with readable(path, "it begins with a header and is text in UTF-8, as the other sources are"):
        notebook = jupytext.read(path)
    return with_setup(notebook, declared(ROOT))


def read_notebook(path: Path, remedy: str = "take the committed one again by `git restore`, or run `make refresh`") -> NotebookNode:
    """An executed notebook.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged; the error ends with the remedy.
    """
    found: dict[str, Exception] = {}
    with readable(path, remedy):
        notebook = nbformat.read(path, as_version=4, capture_validation_error=found)
        if found:
            raise found["ValidationError"]
    return notebook


def solutions(text: str, exercise: str = "") -> Iterator[tuple[str, str]]:
    """The ```python blocks in the solutions of a Markdown text, in order, each after the label of its exercise.

    A solution is a ``{solution}`` directive. Its blocks may stand in other directives within it; blocks of another language
    (```bash, ```text) are not meant to be run.
    """
    for _, said, body in FENCED.findall(text):
        directive, _, argument = said.strip().partition(" ")
        if directive == "python" and exercise:
            yield exercise, textwrap.dedent(body).strip()
        elif directive.startswith("{"):
            yield from solutions(body, argument.strip() if directive == "{solution}" else exercise)


def with_solutions(notebook: NotebookNode) -> NotebookNode:
    """The notebook with a cell for each block of its solutions after the last one, which ``clean`` takes out again."""
    for cell in [cell for cell in notebook.cells if cell.cell_type == "markdown"]:
        for exercise, code in solutions(cell.source):
            notebook.cells.append(new_code_cell(code, metadata={"tags": [SOLUTION], "exercise": exercise}))
    return notebook


def run_path(name: str, profile: str, seed: int = 0) -> Path:
    """Where the executed notebook of a run lies. One with another seed than the chapter's is neither rendered nor published."""
    return ROOT / "_runs" / profile / f"{name}{f'-seed{seed}' * bool(seed)}.ipynb"


@contextmanager
def alone(place: Path, work: str) -> Iterator[Path]:
    """An empty folder ``PLACE~...`` for work that only one process does at a time: another one waits.

    What processes left there that were killed goes before the work, and the folder goes after it. Its name is new each time,
    since a program that a killed process had started may still write.

    Raises:
        OSError: what is written there cannot be, as on a full disk; the error names a path.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f"{place.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"Another process is at it ({work}); waiting until it is done.", file=sys.stderr, flush=True)
        lock.acquire()
    folder = None
    try:
        for left in place.parent.glob(f"{place.name}~*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{place.name}~", dir=place.parent))
        yield folder
    except OSError as error:
        if error.errno is not None:  # others, as those of shutil, have names in their text
            error.filename = error.filename or str(place)
        raise
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def put_in_place(made: Path, target: Path) -> None:
    """Let a folder take the place of an earlier one by renames. A kill between them leaves the earlier one as ``.NAME.earlier``."""
    earlier = target.with_name(f".{target.name}.earlier")
    if target.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        target.rename(earlier)  # no folder can be renamed over one that holds files
    try:
        made.rename(target)
    except BaseException:
        if earlier.exists():
            earlier.rename(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Take out of an executed notebook all that differs from one execution to the next.

    Timings, injected parameters, solutions, widget states and addresses of tables go; code cells are numbered 1, 2, ...;
    neighbouring pieces of one stream are joined; the id of a cell is made from its text. The notebook is changed in place and
    returned.
    """
    notebook.metadata = NotebookNode(
        {key: value for key, value in notebook.metadata.items() if key not in ("papermill", "jupytext", "widgets")},
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    notebook.cells = [cell for cell in notebook.cells if not {"injected-parameters", SOLUTION} & set(cell.metadata.get("tags", []))]
    seen: set[str] = set()
    count = 0
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: value for key, value in cell.metadata.items() if key not in VOLATILE})
        if "tags" in cell.metadata and not cell.metadata.tags:
            del cell.metadata["tags"]
        cell.id = _cell_id(cell, seen)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = _clean_outputs(cell.outputs, count)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _cell_id(cell: NotebookNode, seen: set[str]) -> str:
    repeat = 0
    while True:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}\n{repeat}".encode()).hexdigest()[:8]
        if digest not in seen:
            seen.add(digest)
            return digest
        repeat += 1


def _clean_outputs(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    cleaned: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if cleaned and cleaned[-1].output_type == "stream" and cleaned[-1].name == output.name:
                cleaned[-1].text += output.text
                continue
        elif output.output_type in ("execute_result", "display_data"):
            output.data.pop("application/vnd.jupyter.widget-view+json", None)
            if not output.data:
                continue
            if {"text/html", "text/plain"} <= set(output.data):  # a styled table names its address beside the table
                output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", output.data["text/plain"])
        if "execution_count" in output:
            output.execution_count = count
        cleaned.append(output)
    return cleaned


def problems(name: str) -> list[str]:
    """What is wrong with the committed notebook of a chapter; empty if nothing is."""
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.is_file():
        return [f"{name}: there is no {path.relative_to(ROOT)}; run `make refresh`"]
    notebook, source = read_notebook(path), clean(read_source(name))
    found = [f"it {reason}; {SYNC}" for reason in _differences(notebook, source)]
    found += [f"{reason}" for reason in _bad_parameters(source)]
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"cell {number} ended in {output.ename}: {output.evalue}")
            text = output.get("text", "") + "".join(
                str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")
            )
            found += [f"the output of cell {number} names {what}" for what, seen in UNREPEATABLE.items() if seen.search(text)]
    before = nbformat.writes(notebook)
    if nbformat.writes(clean(notebook)) != before:
        found.append("it holds what an execution left behind; run `make sync`")
    return [f"{name}: {reason}" for reason in found]


def _differences(notebook: NotebookNode, source: NotebookNode) -> list[str]:
    if len(notebook.cells) != len(source.cells):
        return [f"has {len(notebook.cells)} cells, its source {len(source.cells)}"]
    return [
        f"differs from its source in cell {number} ({what})"
        for number, (cell, wanted) in enumerate(zip(notebook.cells, source.cells, strict=True), start=1)
        for what in ("cell_type", "source", "metadata")
        if cell[what] != wanted[what]
    ]


def _bad_parameters(source: NotebookNode) -> list[str]:
    tagged = [cell for cell in source.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged `parameters`; there must be exactly one"]
    lines = tagged[0].source.splitlines()
    return [f"its `parameters` cell lacks the line {line}" for line in PARAMETERS if line not in lines]


def own_kernel(folder: Path) -> type[AsyncKernelManager]:
    """What starts a kernel of the Python that runs this, whatever kernels named ``python3`` are installed on the machine.

    The file with the kernel's ports lies in the folder, since a process that is killed would leave it among the machine's
    temporary ones.
    """

    class OwnKernel(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _own_specs(self) -> KernelSpecManager:
            return KernelSpecManager(parent=self, kernel_dirs=[])  # with no folder to look in, that of sys.executable is left

        @default("connection_file")
        def _in_folder(self) -> str:
            return str(folder / "kernel.json")

    return OwnKernel


def run(name: str, profile: str, seed: int = 0, data: bool = True) -> Path:
    """Execute a source from a fresh kernel and keep the cleaned notebook in ``_runs/PROFILE``, only if every cell succeeded.

    An earlier run stays until this one is there, and goes if a cell fails: the chapter then has no run.
    Its metadata say when, where and with what it was run, and how long that took; the page of the status shows them.
    The solutions of its exercises are executed in the same kernel after the last cell. Nothing of them is kept.
    Without ``data`` none are found, so that the run cannot depend on what is prepared.

    Raises:
        papermill.exceptions.PapermillExecutionError: a cell failed; ``_runs/PROFILE/NAME.failed.ipynb`` shows where.
        RuntimeError: the solution of an exercise failed; the same file shows where.
        OSError: the run cannot be written; the error names it.
        ValueError: no such chapter or profile, a seed below 0, the notebook has no proper `parameters` cell, or it reads data that
            it was to be run without.
    """
    if name not in names():
        raise ValueError(f"no chapter {name!r} in {SOURCES}; there are {', '.join(names())}")
    check(profile, seed)
    target = run_path(name, profile, seed)
    with alone(target.with_name(f".{target.stem}"), f"a run of {name} at {profile}") as scratch:
        try:
            _run(name, profile, seed, data, target, scratch)
        except OSError as error:
            error.filename = error.filename or str(target)
            raise
    return target


def _run(name: str, profile: str, seed: int, data: bool, target: Path, scratch: Path) -> None:
    import papermill

    failed = target.with_name(f"{target.stem}.failed.ipynb")
    given, made = scratch / "given.ipynb", scratch / "made.ipynb"
    began, clock, source = time.time(), time.monotonic(), read_source(name)  # files have dates, and dates may jump
    if bad := _bad_parameters(source):
        raise ValueError(f"{name}: " + "; ".join(bad))
    settings = {"AMAML_PROFILE": profile}
    if not data:
        settings["AMAML_DATA"] = str(scratch / "none")
        (scratch / "none").mkdir()  # one that does not exist is an error
    record = _here_and_now(name, profile)
    nbformat.write(with_solutions(clean(source)), given)
    try:
        with patch.dict(os.environ, settings):  # for this run alone: the next one may be with data
            execute = partial(
                papermill.execute_notebook,
                given,
                made,
                parameters={"profile": profile} | ({"seed": seed} if seed else {}),
                kernel_name="python3",
                kernel_manager_class=own_kernel(scratch),
                cwd=NOTEBOOKS,
                progress_bar=False,
                execution_timeout=CELL_TIMEOUT[profile],
                extra_arguments=["--IPKernelApp.log_level=50"],  # an error in a cell is reported below
            )
            try:
                execute()
            except RuntimeError as error:
                if "died before replying" not in str(error):
                    raise
                execute()  # its ports are chosen here and opened there: another program may have taken one in between
    except papermill.exceptions.PapermillExecutionError as error:
        executed = nbformat.read(made, as_version=4)
        made.replace(failed)
        target.unlink(missing_ok=True)
        for cell in executed.cells:
            if "exercise" in cell.metadata and any(output.output_type == "error" for output in cell.outputs):
                raise RuntimeError(f"the solution of the exercise {cell.metadata.exercise} does not run: {error}") from error
        raise
    notebook = nbformat.read(made, as_version=4)
    if not data and used_stand_in(notebook):
        raise ValueError(f"{name} reads data, and was run without: let READERS in the Makefile name it")
    notebook = clean(notebook)
    notebook.metadata[RUN] = NotebookNode(record, seconds=round(time.monotonic() - clock))
    write(notebook, made)
    os.utime(made, (began, began))  # as old as what it was made from, or make would miss a change on the way
    made.replace(target)
    failed.unlink(missing_ok=True)


def _here_and_now(name: str, profile: str) -> dict:
    """What is kept of a run beside its outputs: the profile, the date, the machine, versions, and the commit.

    The commit has a ``+`` if the package, the evaluations or the chapter's source were changed since.
    """
    from amaml_core.records import machine, versions

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *command], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "amaml_core", "experiments", f"book/src/{name}.md")
        commit = git("rev-parse", "--short=7", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "profile": profile, "date": datetime.now(UTC).date().isoformat(), "machine": machine(), "commit": commit,
        "versions": {**versions(), "matplotlib": metadata.version("matplotlib")},
    }  # fmt: skip


def publish(name: str, profile: str) -> None:
    """Make the run at a profile the committed notebook.

    A committed notebook that shows the same already, and says when it was made, stays as it is.

    Raises:
        ValueError: the source has changed since the run; or the run used a stand-in, and the committed notebook did not.
    """
    made, path = read_run(name, profile), NOTEBOOKS / f"{name}.ipynb"
    if path.is_file():
        stands = read_notebook(path)
        if RUN in stands.metadata and stands.metadata[RUN].profile == profile and _shown(stands) == _shown(made):
            return
        if used_stand_in(made) and not used_stand_in(stands):
            raise ValueError(
                f"{name}: the run used a stand-in, and the committed notebook real data: run `make data`,"
                f" then `make notebook NB={name} PROFILE={profile}`, and publish again; who means it deletes {path.name} first"
            )
    write(made, path)


def used_stand_in(notebook: NotebookNode) -> bool:
    """Did a cell announce that it used a stand-in?"""
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    return any("Using a stand-in" in text for text in texts)


def _shown(notebook: NotebookNode) -> str:
    """A notebook without the record of its run, as text."""
    bare = NotebookNode(notebook, metadata={key: value for key, value in notebook.metadata.items() if key != RUN})
    return nbformat.writes(bare)


def compare(name: str, profile: str) -> list[str]:
    """Where the checked cells of a run print something else than in the committed notebook; empty if nowhere.

    Neither pictures are compared nor the standard error, where a stand-in announces itself.

    Raises:
        ValueError: the source has changed since the run, or since the committed notebook was made.
    """
    made, committed = read_run(name, profile), read_notebook(NOTEBOOKS / f"{name}.ipynb")
    if changed := _differences(committed, made):
        raise ValueError(f"{name}: the committed notebook {changed[0]}; {SYNC}")
    return [
        f"{name}: the checked cell {number} gave {told(cell)}, but {told(wanted)} in the committed notebook"
        for number, (cell, wanted) in enumerate(zip(made.cells, committed.cells, strict=True), start=1)
        if CHECKED in cell.metadata.get("tags", []) and told(cell) != told(wanted)
    ]


def told(cell: NotebookNode) -> list[str]:
    """What a cell printed and showed, but for pictures."""
    printed = [output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
    return printed + [
        str(value)
        for output in cell.outputs
        for kind, value in sorted(output.get("data", {}).items())
        if not kind.startswith("image/")
    ]


def read_run(name: str, profile: str) -> NotebookNode:
    """The run of a chapter at a profile. Dates of files do not tell whether it is of today's source: a clock may have jumped.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the source has changed since the run, or the run is damaged.
    """
    path, again = run_path(name, profile), f"make notebook NB={name} PROFILE={profile}"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path.relative_to(ROOT)}; run `{again}`, or `make notebooks PROFILE={profile}` for all"
        )
    made = read_notebook(path, f"run it again by `{again}`")
    if changed := _differences(made, clean(read_source(name))):
        raise ValueError(f"{name}: the source has changed since it was run: the run {changed[0]}; run it again by `{again}`")
    return made


def sync(name: str) -> None:
    """Text from the source into the committed notebook; outputs stay where the code is the same, and go where it is not.

    What is said of the run that made the outputs stays, too.
    """
    path = NOTEBOOKS / f"{name}.ipynb"
    fresh = read_source(name)
    outputs = defaultdict(list)  # code -> the outputs of the cells with this code, in order
    if path.is_file():
        stands = read_notebook(path)
        if RUN in stands.metadata:
            fresh.metadata[RUN] = stands.metadata[RUN]
        for cell in stands.cells:
            if cell.cell_type == "code":
                outputs[cell.source].append(cell.outputs)
    lost = 0
    for cell in fresh.cells:
        if cell.cell_type == "code":
            if outputs[cell.source]:
                cell.outputs = outputs[cell.source].pop(0)
            else:
                lost += 1
    if lost:
        print(f"{name}: the code of {lost} cells is new, and they have no outputs; run `make refresh` when the code is done")
    write(clean(fresh), path)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write beside and rename, so that an interruption never leaves half a notebook; leave an equal file alone.

    Raises:
        OSError: it cannot be written; the error names the notebook.
    """
    from amaml_core.records import write_beside

    text = nbformat.writes(notebook) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    write_beside(path, text.encode())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "publish", "sync", "check", "compare"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters; all by default")
    parser.add_argument("--profile", choices=PROFILES, default="smoke")
    parser.add_argument("--seed", type=int, default=0, help="of a run, from 0; those with another than 0 are for reading alone")
    parser.add_argument("--without-data", action="store_true", help="of a run: as if no data were prepared")
    args = parser.parse_args(arguments)
    if args.seed and args.action != "run":
        parser.error(f"{args.action} takes no seed: what is committed is made with the chapters' own")
    if unknown := sorted(set(args.names) - set(names())):
        parser.error(f"no chapter {', '.join(unknown)} in {SOURCES.relative_to(ROOT)}; there are {', '.join(names())}")
    try:
        return act(args)
    except KeyboardInterrupt:
        print(f"{args.action}: interrupted; what was there before is untouched, run again to go on", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def act(args: argparse.Namespace) -> int:
    """Do what the command line asks for; 1 if anything is wrong with a chapter."""
    status = 0
    for name in args.names or names():
        started = time.perf_counter()
        try:
            if args.action == "sync":
                sync(name)
            elif args.action == "publish":
                publish(name, args.profile)
            elif args.action in ("check", "compare"):
                for problem in problems(name) if args.action == "check" else compare(name, args.profile):
                    print(problem)
                    status = 1
            else:
                made = run(name, args.profile, args.seed, not args.without_data)
                spent = f"{time.perf_counter() - started:.0f} s"
                print(f"{name}: run at {args.profile} in {spent}, {made.relative_to(ROOT)}", flush=True)
        except Exception as error:  # the next chapter may be well
            if args.action != "run" and not isinstance(error, (OSError, ValueError)):
                raise
            print(f"FAILED {name} at {args.profile}: {error}" if args.action == "run" else error, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
