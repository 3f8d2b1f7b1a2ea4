"""The chapters, the tools that run and render them, the rendered book and the README."""

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import torch
import yaml
from bs4 import BeautifulSoup, SoupStrainer
from faults import fuzz, twice
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.exceptions import PapermillExecutionError

import amaml_core
from amaml_core import samplers
from tools import book, dist, faults, figures, notebooks, pdf, repository

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"

# ---------------------------------------------------------------------------------------------------------- chapters


@pytest.mark.parametrize("name", notebooks.names())
def test_committed_notebook_is_clean_and_says_what_its_source_says(name):
    assert notebooks.problems(name) == []


@pytest.mark.parametrize("name", notebooks.names())
def test_every_chapter_checks_its_parameters_before_it_uses_them(name):
    code = [cell for cell in notebooks.read_source(name).cells if cell.cell_type == "code"]
    (first,) = [n for n, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
    lines = ast.parse(code[first + 1].source).body
    before = lines[: [ast.unparse(line) for line in lines].index("use_style()")]  # `use_style` checks them
    assert all(isinstance(line, ast.Import | ast.ImportFrom) for line in before)


@pytest.mark.parametrize(
    ("profile", "injected", "expected"),
    [("huge", "", "no profile 'huge'.*; there are smoke, book, full"), ("smoke", "seed = -1", "a seed is a whole number .*not -1")],
)
def test_a_chapter_that_is_run_by_another_program_refuses_wrong_parameters(tmp_path, monkeypatch, profile, injected, expected):
    monkeypatch.setenv("AMAML_PROFILE", profile)
    notebook = notebooks.read_source("00_preface")  # which does not use the profile
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (first,) = [n for n, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
    notebook.cells = [*code[: first + 1], new_code_cell(injected), code[first + 1]]  # as papermill puts it in
    with pytest.raises(CellExecutionError, match=expected):
        NotebookClient(notebook, kernel_manager_class=notebooks.own_kernel(tmp_path), timeout=300).execute(cwd=str(ROOT))


def without_caption(path):
    """The beginnings of the tables that the code cells of a notebook show and that have no caption, or an empty one."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.outputs]
    tables = [table for html in shown for table in re.findall(r"<table.*?</table>", html, re.DOTALL)]
    return [table[:200] for table in tables if not re.search(r"<caption[^>]*>\s*[^\s<]", table)]


@pytest.mark.parametrize("name", notebooks.names())
def test_every_table_that_a_code_cell_shows_has_a_caption(name):
    assert without_caption(notebooks.NOTEBOOKS / f"{name}.ipynb") == []


@pytest.mark.parametrize("name", notebooks.names())
def test_no_line_of_code_is_wider_than_the_page(name):
    cells = nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    fenced = [block for cell in cells for block in re.findall(r"(?ms)^`{3,}python\n(.*?)^`{3,}", cell.source)]
    shown = [cell.source for cell in cells if cell.cell_type == "code"] + fenced
    assert [line for code in shown for line in code.splitlines() if len(line) > 96] == []  # see custom.css


@pytest.mark.parametrize("name", notebooks.names())
def test_checked_cells_print_the_same_at_every_profile_and_with_all_data(name):
    if not notebooks.run_path(name, "smoke").is_file():
        pytest.skip("the chapter has not been run; run `make notebooks`")
    assert notebooks.compare(name, "smoke") == []


REFERENCE = ("book/notation", "book/api", "book/status", "book/bibliography")  # pages without code


def toc_pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def test_contents_list_every_chapter_and_every_page_once():
    pages = [f"book/{name}" for name in notebooks.names()]
    pages += [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")]
    assert sorted(toc_pages()) == sorted(pages)


def test_the_page_of_promises_names_tests_that_exist():
    text = (ROOT / "book" / "promises.md").read_text()
    named = {name for name in re.findall(r"`((?:faults/|test_)[\w./]+)`", text)}
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "tests" / (name if name.endswith(".py") else f"{name}.py")).is_file()] == []
    assert text.count(book.COUNTS) == 1  # where the table goes


def test_every_fault_was_tried_often_and_nothing_was_lost(tmp_path):
    counts, text = faults.read(), (ROOT / "tests" / "faults" / "kills.py").read_text()
    (killed,) = re.findall(r"^WORKS = \{(.*)\}$", text, re.MULTILINE)  # to import it would take seconds
    names = re.findall(r'"(\w+)":', killed)
    (made,) = re.findall(r"^override KILLED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(made.split()) == sorted(names)
    wanted = {f"kill {name}": 30 for name in names} | {f"twice {name}": 1 for name in twice.WORKS}
    wanted |= {f"fuzz {name}": 1 for name in fuzz.kinds(tmp_path)}
    assert set(counts) == set(wanted)
    assert {name: found for name, found in counts.items() if found["tried"] < wanted[name] or found["lost"]} == {}
    assert sum(found["tried"] for name, found in counts.items() if name.startswith("fuzz ")) >= fuzz.ALL_CASES == 100_000


DAMAGED = [b"", b"\xff", b"{", b"[]", b"{}", b"3", b"[" * 100_000]


@pytest.mark.parametrize("content", [*DAMAGED, b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}'])
def test_a_damaged_notebook_is_named_with_a_way_out(chapter, content, capsys):
    chapter("print(1)")
    for path, command in ((notebooks.NOTEBOOKS / "one.ipynb", "check"), (notebooks.run_path("one", "smoke"), "publish")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        assert notebooks.main([command, "one"]) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"{path} is damaged: ") and "make " in said


@pytest.mark.parametrize("content", [b"\xff", b"---\nkernelspec: [\n---\n", b"---\njupytext: 3\n---\n"])
def test_a_damaged_source_is_named(chapter, content):
    (notebooks.SOURCES / "one.md").write_bytes(content)
    with pytest.raises(ValueError, match="one.md is damaged: .*; it begins with a header and is text in UTF-8"):
        notebooks.read_source("one")


@pytest.mark.parametrize("content", [*DAMAGED[:4], b'{"a": 1}', b'{"a": {"tried": 1}}'])
def test_damaged_counts_of_faults_are_named_and_left_as_they_are(tmp_path, content):
    path = tmp_path / "faults.json"
    path.write_bytes(content)
    for use in (faults.table, lambda path: faults.keep(path, {"kill x": {"tried": 1, "lost": 0}})):
        with pytest.raises(ValueError, match="faults.json is damaged: .*; take it again by `git restore`"):
            use(path)
    assert path.read_bytes() == content


def test_two_who_count_faults_do_not_overwrite_each_other(tmp_path):
    path = tmp_path / "faults.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: faults.keep(path, {f"kill {number}": {"tried": 1, "lost": 0}}), range(16)))
    assert len(faults.read(path)) == 16 and [p.name for p in tmp_path.iterdir()] == ["faults.json"]


def test_no_notebook_without_a_source():
    assert sorted(path.stem for path in (ROOT / "book").glob("*.ipynb")) == notebooks.names()


def test_reference_documents_every_public_name_once():
    page = (ROOT / "book" / "api.md").read_text()
    documented = re.findall(r"^\.\. auto\w+:: amaml_core\.(\w+)$", page, re.MULTILINE)
    assert sorted(documented) == sorted(amaml_core.__all__)
    drawn = re.findall(r"^\.\. auto\w+:: amaml_core\.samplers\.(\w+)$", page, re.MULTILINE)
    assert sorted(drawn) == sorted(samplers.__all__)


# ------------------------------------------------------------------------------------------------------------- tools


def executed(**metadata):
    """A notebook as papermill leaves it: timings, an injected cell, wrong numbers, a stream in two pieces."""
    language = {"name": "python", "version": "3.11.2"}
    timing = {"papermill": {"duration": 1.5}, "execution": {"iopub.status.busy": "2024-01-01"}}
    stream = [new_output("stream", name="stdout", text="a\n"), new_output("stream", name="stdout", text="b\n")]
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "x"}})
    glued = {"scrapbook": {"name": "x"}}
    result = new_output("execute_result", data={"text/plain": "3"}, metadata=glued, execution_count=17)
    return new_notebook(
        metadata={"papermill": {"duration": 2}, "widgets": {"state": {}}, "language_info": language, **metadata},
        cells=[
            new_code_cell("seed = 0", metadata={"tags": ["parameters"], **timing}, execution_count=15),
            new_code_cell('profile = "smoke"', metadata={"tags": ["injected-parameters"]}, execution_count=16),
            new_markdown_cell("Text."),
            new_code_cell("seed = 0", metadata={"tags": [], **timing}, execution_count=17, outputs=[*stream, widget, result]),
        ],
    )


def test_clean_takes_out_what_differs_between_executions():
    cleaned = notebooks.clean(executed())
    text = nbformat.writes(cleaned)
    assert not any(word in text for word in ("papermill", "iopub", "injected", "widget", "3.11"))
    assert [cell.get("execution_count") for cell in cleaned.cells] == [1, None, 2]
    first, second = cleaned.cells[2].outputs
    assert (first.text, second.execution_count) == ("a\nb\n", 2)
    assert second.metadata.scrapbook.name == "x"  # how a glued figure is found again
    nbformat.validate(cleaned)


def test_clean_takes_the_address_from_a_styled_table():
    table = new_output("display_data", data={"text/html": "<table>", "text/plain": "<pandas.Styler at 0x7f00deadbeef>"})
    notebook = notebooks.clean(new_notebook(cells=[new_code_cell("f()", outputs=[table])]))
    assert notebook.cells[0].outputs[0].data == {"text/html": "<table>", "text/plain": "<pandas.Styler>"}


def test_clean_gives_equal_notebooks_equal_bytes_and_different_ids():
    once, other = notebooks.clean(executed()), notebooks.clean(executed(papermill={"duration": 9}))
    assert nbformat.writes(once) == nbformat.writes(other)
    assert len({cell.id for cell in once.cells}) == 3
    before = nbformat.writes(once)
    assert nbformat.writes(notebooks.clean(once)) == before


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A book of one chapter in a folder of its own: ``chapter(code)`` writes its source."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "book")
    monkeypatch.setattr(notebooks, "SOURCES", tmp_path / "book" / "src")
    monkeypatch.setenv("AMAML_PROFILE", "book")
    notebooks.SOURCES.mkdir(parents=True)

    def write(*code, parameters='import os\nprofile = os.environ.get("AMAML_PROFILE", "book")\nseed = 0', end=""):
        cells = [f":tags: [parameters]\n\n{parameters}", *code]
        header = "---\nkernelspec:\n  display_name: Python 3\n  language: python\n  name: python3\n---\n\n# Title\n\n"
        text = header + "".join(f"```{{code-cell}} python3\n{cell}\n```\n\n" for cell in cells)
        (notebooks.SOURCES / "one.md").write_text(text + end)

    return write


def test_run_gives_the_profile_and_publish_makes_it_the_committed_notebook(chapter):
    chapter("print(profile, seed)")
    notebooks.run("one", "smoke")
    notebooks.publish("one", "smoke")
    made = nbformat.read(notebooks.NOTEBOOKS / "one.ipynb", as_version=4)
    assert [output.text for output in made.cells[-1].outputs] == ["smoke 0\n"]
    assert notebooks.problems("one") == []


def test_a_run_without_data_finds_none(chapter, tmp_path, monkeypatch):
    monkeypatch.setenv("AMAML_DATA", str(tmp_path))
    chapter("import os\n\nprint(bool(os.listdir(os.environ['AMAML_DATA'])))")
    for data in (False, True):
        made = nbformat.read(notebooks.run("one", "smoke", data=data), as_version=4)
        assert [output.text for output in made.cells[-1].outputs] == [f"{data}\n"]
    chapter("from amaml_core.datasets import load_ratings\n\nload_ratings('ml-100k', allow_stand_in=True)")
    notebooks.run("one", "smoke")
    with pytest.raises(ValueError, match="one reads data, and was run without: let READERS in the Makefile name it"):
        notebooks.run("one", "smoke", data=False)


def test_a_run_on_a_stand_in_does_not_take_the_place_of_one_on_real_data(chapter):
    said = "Using a stand-in: low-rank ratings (MovieLens 100K not prepared)\n"
    chapter("print(1)")

    def made(path, text):
        notebook = notebooks.clean(notebooks.read_source("one"))
        notebook.cells[-1].outputs = [new_output("stream", name="stderr", text=text)]
        notebooks.write(notebook, path)

    made(notebooks.NOTEBOOKS / "one.ipynb", "real\n")
    made(notebooks.run_path("one", "book"), said)
    before = (notebooks.NOTEBOOKS / "one.ipynb").read_bytes()
    with pytest.raises(ValueError, match="one: the run used a stand-in, .*: run `make data`, .* NB=one PROFILE=book"):
        notebooks.publish("one", "book")
    assert (notebooks.NOTEBOOKS / "one.ipynb").read_bytes() == before
    (notebooks.NOTEBOOKS / "one.ipynb").unlink()  # who means it takes the notebook away
    notebooks.publish("one", "book")
    made(notebooks.run_path("one", "book"), said + "again\n")
    notebooks.publish("one", "book")  # it was one before
    assert "again" in (notebooks.NOTEBOOKS / "one.ipynb").read_text()


def test_a_run_is_older_than_a_source_that_changed_on_the_way(chapter):
    chapter("import pathlib\npathlib.Path('src/one.md').touch()")
    notebooks.run("one", "smoke")
    assert notebooks.run_path("one", "smoke").stat().st_mtime < (notebooks.SOURCES / "one.md").stat().st_mtime


def test_a_run_says_when_where_and_with_what_and_publish_keeps_it(chapter):
    chapter("print(profile)")
    notebooks.run("one", "smoke")
    notebooks.publish("one", "smoke")
    path = notebooks.NOTEBOOKS / "one.ipynb"
    record = nbformat.read(path, as_version=4).metadata[notebooks.RUN]
    assert (record.profile, record.commit) == ("smoke", "unknown")  # of a book that is no checkout
    assert date.fromisoformat(record.date) and record.seconds >= 0 and record.machine
    assert record.versions.torch == torch.__version__
    assert notebooks.problems("one") == []
    chapter("print(profile)", end="More text.\n")
    notebooks.sync("one")
    assert nbformat.read(path, as_version=4).metadata[notebooks.RUN] == record


def test_publish_leaves_a_notebook_alone_that_shows_the_same(chapter):
    chapter("print(1)")
    notebooks.run("one", "smoke")
    notebooks.publish("one", "smoke")
    path, made = notebooks.NOTEBOOKS / "one.ipynb", notebooks.run_path("one", "smoke")
    before = path.read_bytes()
    again = nbformat.read(made, as_version=4)
    again.metadata[notebooks.RUN].date = "1999-01-01"
    notebooks.write(again, made)
    notebooks.publish("one", "smoke")
    assert path.read_bytes() == before
    again.cells[-1].outputs[0].text = "2\n"
    notebooks.write(again, made)
    notebooks.publish("one", "smoke")
    assert nbformat.read(path, as_version=4).metadata[notebooks.RUN].date == "1999-01-01"


def test_a_notebook_that_cannot_be_written_is_named_and_stays_as_it_was(chapter, monkeypatch):
    chapter("print(1)")
    committed("", "1\n")
    path = notebooks.NOTEBOOKS / "one.ipynb"
    before = path.read_bytes()

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*book/one.ipynb"):
        committed("", "2\n")
    assert path.read_bytes() == before and {p.name for p in notebooks.NOTEBOOKS.iterdir()} == {"one.ipynb", "src"}


def test_the_status_page_shows_what_the_notebooks_say_and_no_more():
    run = {"profile": "book", "date": "2024-01-31", "machine": "a computer", "commit": "abc", "seconds": 90,
           "versions": {"torch": "2.0"}}  # fmt: skip
    checked = new_code_cell("1", metadata={"tags": ["nbval-check-output"]})
    said = new_notebook(metadata={"run": run}, cells=[checked, new_code_cell("2"), new_markdown_cell("Text.")])
    lines = book.status({"04_one": said, "05_two": new_notebook()}).splitlines()
    date_shown = "2024-01-31".replace("-", "\N{NON-BREAKING HYPHEN}")
    assert f"| 4 | {{doc}}`04_one` | book | {date_shown} | 90 s | `abc` | A | 1 of 2 |" in lines
    assert "| 5 | {doc}`05_two` | – | – | – | – | – | 0 of 0 |" in lines
    assert lines[lines.index("A") + 1] == ": a computer; torch 2.0"
    assert book.STATUS in (ROOT / "book" / "status.md").read_text()


CHECKED_CELL = ":tags: [nbval-check-output]\n\nimport sys\nprint(1)\nprint('a stand-in', profile, file=sys.stderr)\n1 + 1"


def test_a_checked_cell_is_compared_but_for_its_standard_error(chapter):
    chapter(CHECKED_CELL, "print(profile)")
    notebooks.run("one", "book")
    notebooks.publish("one", "book")
    notebooks.run("one", "smoke")
    assert notebooks.compare("one", "smoke") == []
    path = notebooks.NOTEBOOKS / "one.ipynb"
    path.write_text(path.read_text().replace('"1\\n"', '"2\\n"'))
    assert notebooks.compare("one", "smoke") == [
        "one: the checked cell 3 gave ['1\\n', '2'], but ['2\\n', '2'] in the committed notebook"
    ]
    chapter("print(profile)")
    with pytest.raises(ValueError, match="the source has changed since it was run"):
        notebooks.compare("one", "smoke")


def test_two_runs_of_a_chapter_are_compared_but_for_pictures_and_cells_of_the_clock():
    def run(printed, shown, took, drawn):
        show = new_output("display_data", data={"text/plain": shown, "image/png": drawn})
        timed = new_code_cell("c", metadata={"tags": [twice.TIMED]}, outputs=[new_output("stream", text=took)])
        outputs = [new_output("stream", text=printed)], [show]
        first, second = (new_code_cell(source, outputs=found) for source, found in zip("ab", outputs, strict=True))
        return new_notebook(cells=[new_markdown_cell("Text"), first, timed, second])

    def found(*second):
        return list(twice.compared("one", run("1", "2", "3 s", "="), run(*second)))

    assert found("1", "2", "4 s", "#") == [("one, code cell 1", True), ("one, code cell 3", True)]
    assert found("0", "2", "3 s", "=") == [("one, code cell 1", False), ("one, code cell 3", True)]
    assert found("1", "0", "3 s", "=") == [("one, code cell 1", True), ("one, code cell 3", False)]


@pytest.mark.slow
@pytest.mark.parametrize(("printed", "status"), [("1\n", 0), ("2\n", 1)])
def test_nbval_compares_a_checked_cell_but_for_its_standard_error(chapter, foreign_kernel, tmp_path, printed, status):
    chapter(CHECKED_CELL.removesuffix("\n1 + 1"))
    committed("", printed)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "--nbval-lax", "--nbval-current-env", "book/one.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr


@pytest.mark.parametrize("action", ["publish", "sync", "compare"])
def test_a_chapter_that_is_refused_holds_up_no_other(monkeypatch, capsys, action):
    done = []

    def work(name, *_given):
        if name == "b":
            raise ValueError("b: its source has changed")
        done.append(name)
        return []

    monkeypatch.setattr(notebooks, "names", lambda: ["a", "b", "c"])
    monkeypatch.setattr(notebooks, action, work)
    assert notebooks.main([action]) == 1
    assert done == ["a", "c"] and capsys.readouterr().err == "b: its source has changed\n"


def test_a_chapter_runs_without_a_home_folder(chapter, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    chapter("import matplotlib.pyplot as plt\nprint(profile)")
    assert "smoke" in notebooks.run("one", "smoke").read_text()


@pytest.fixture
def foreign_kernel(tmp_path, monkeypatch):
    """Another environment's kernel named ``python3``, before all others on the search path."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": [str(tmp_path / "no" / "python"), "-f", "{connection_file}"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))


def test_a_chapter_runs_in_the_python_that_runs_it(chapter, foreign_kernel):
    chapter("import sys; print(sys.executable)")
    notebooks.run("one", "smoke")
    made = nbformat.read(notebooks.run_path("one", "smoke"), as_version=4)
    assert made.cells[-1].outputs[0].text.strip() == sys.executable


def test_a_kernel_whose_port_another_program_has_taken_is_started_again(chapter, monkeypatch):
    taken, write = [], AsyncKernelManager.write_connection_file

    def write_and_take(self, **given):
        write(self, **given)
        if not taken:
            taken.append(socket.create_server(("127.0.0.1", self.shell_port)))

    monkeypatch.setattr(AsyncKernelManager, "write_connection_file", write_and_take)
    chapter("print(1)")
    made = nbformat.read(notebooks.run("one", "smoke"), as_version=4)
    assert made.cells[-1].outputs[0].text == "1\n"
    taken.pop().close()


def test_a_failed_run_raises_and_leaves_no_run(chapter):
    chapter("print(profile)")
    made = notebooks.run_path("one", "smoke")
    made.parent.mkdir(parents=True)
    made.write_text("an earlier run")
    chapter("1 / 0")
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        notebooks.run("one", "smoke")
    assert not made.exists()
    assert "ZeroDivisionError" in made.with_name("one.failed.ipynb").read_text()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_run_that_does_not_end_says_so_in_a_line_and_leaves_the_earlier_one(chapter, monkeypatch, capsys, error):
    def stop(*_given, **_options):
        raise error

    chapter("print(profile)")
    made = notebooks.run_path("one", "smoke")
    made.parent.mkdir(parents=True)
    made.write_text("an earlier run")
    monkeypatch.setattr("papermill.execute_notebook", stop)
    status = notebooks.main(["run", "one"])
    (said,) = capsys.readouterr().err.splitlines()
    if isinstance(error, OSError):
        assert status == 1 and said.startswith("FAILED one at smoke") and str(made) in said
    else:
        assert status == 130 and "run again to go on" in said
    assert made.read_text() == "an earlier run" and {path.name for path in made.parent.iterdir()} <= {"one.ipynb", ".one.lock"}


@pytest.mark.parametrize(
    "tool, work, command",
    [
        (book, "render", ["render"]), (book, "links", ["links"]), (dist, "build", []), (dist, "attempt", ["try"]),
        (figures, "draw", None), (pdf, "pages", []),
    ],
)  # fmt: skip
def test_a_tool_that_is_interrupted_says_so_in_a_line(monkeypatch, tmp_path, capsys, tool, work, command):
    def stop(*_given):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, work, stop)
    monkeypatch.setattr(dist, "ROOT", tmp_path)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "a.whl").touch()
    monkeypatch.setattr(figures, "chromium", lambda: "")
    assert (tool.main() if command is None else tool.main(command)) == 130
    (said,) = capsys.readouterr().err.splitlines()
    assert "interrupted; what was there before is untouched, and the same command does it again" in said


@pytest.mark.slow
def test_an_interrupted_run_ends_its_kernel_and_leaves_nothing(chapter, tmp_path):
    begun = tmp_path / "begun"
    chapter(f"import time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    process = in_a_process(tmp_path, "import sys; sys.exit(notebooks.main(['run', 'one']))")
    wait_for(tmp_path, "begun")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said == "run: interrupted; what was there before is untouched, run again to go on\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)
    assert [path.name for path in (tmp_path / "_runs" / "smoke").iterdir()] == [".one.lock"]


def solved(*blocks, fence="````", label="ex-one"):
    """An exercise's solution with these blocks of code."""
    inside = "".join(f"```python\n{block}\n```\n\n" for block in blocks)
    return f"{fence}{{solution}} {label}\n:label: sol-x\n:class: dropdown\n\nText.\n\n{inside}{fence}\n\n"


def test_solutions_are_found_in_nested_fences_of_any_length():
    other = "```python\nnot_in_a_solution()\n```\n\n```{solution} ex-words\nNo code.\n```\n\n"
    nested = f"`````{{admonition}} More\n{solved('d = 4', label='ex-deep')}`````\n"
    within = "`````{solution} ex-within\n````{tip}\n```python\ne = 5\n```\n````\n```bash\nmake\n```\n`````\n"
    listed = "````{solution} ex-list\n- First:\n\n  ```python\n  if True:\n      f = 6\n  ```\n````\n"
    text = other + solved("a = 1", "b = 2\n\nb += 1") + solved("c = 3", fence="`````", label="ex-five") + nested + within + listed
    assert list(notebooks.solutions(text)) == [
        ("ex-one", "a = 1"),
        ("ex-one", "b = 2\n\nb += 1"),
        ("ex-five", "c = 3"),
        ("ex-deep", "d = 4"),
        ("ex-within", "e = 5"),
        ("ex-list", "if True:\n    f = 6"),
    ]


def test_solutions_run_after_the_last_cell_in_order_and_are_not_kept(chapter, tmp_path):
    keep = f"open({str(tmp_path / 'b')!r}, 'w').write(str(b))"
    chapter("a = 1", "a += 1", end=solved("assert a == 2", "print(a); b = a + 1") + solved(keep))
    notebooks.run("one", "smoke")
    assert (tmp_path / "b").read_text() == "3"
    notebooks.publish("one", "smoke")
    made = nbformat.read(notebooks.NOTEBOOKS / "one.ipynb", as_version=4)
    assert [cell.source for cell in made.cells if cell.cell_type == "code"][1:] == ["a = 1", "a += 1"]
    assert not any(cell.get("outputs") for cell in made.cells)
    assert notebooks.problems("one") == []


def test_a_solution_that_raises_fails_the_run_and_is_named(chapter):
    wrong = solved("print(a)", "assert a == 2", label="ex-two")
    chapter("a = 1", end=solved("print(a)") + wrong + solved("1 / 0", label="ex-three"))
    made = notebooks.run_path("one", "smoke")
    with pytest.raises(RuntimeError, match=r"(?s)exercise ex-two does not run:.*AssertionError"):
        notebooks.run("one", "smoke")
    assert not made.exists()
    assert "AssertionError" in made.with_name("one.failed.ipynb").read_text()


def test_a_chapter_without_solutions_is_run_as_it_is(chapter):
    chapter("a = 1", end="```{exercise}\n:label: ex-one\n\nWhy?\n```\n\n```python\n1 / 0\n```\n")
    source = notebooks.clean(notebooks.read_source("one"))
    assert nbformat.writes(notebooks.with_solutions(source.copy())) == nbformat.writes(source)


@pytest.mark.parametrize("name", notebooks.names())
def test_the_code_of_every_solution_is_found_and_ends_in_a_number_or_a_claim(name):
    text = (notebooks.SOURCES / f"{name}.md").read_text()
    found = list(notebooks.solutions(text))
    labels = [label for label, _ in found]
    for part in re.split(r"\{solution\} *", text)[1:]:
        label = part.split()[0]
        assert labels.count(label) == len(re.findall(r"^ *(?:`{3,}|~{3,}|:{3,}) *\{?[\w -]*\}? *py", part, re.MULTILINE)), label
        for _, code in (block for block in found if block[0] == label):
            last = ast.parse(code).body[-1]
            inside = [node.id if isinstance(node, ast.Name) else type(node) for node in ast.walk(last)]
            assert "print" in inside or ast.Assert in inside, label


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("two", "smoke"), "no chapter 'two'"),
        (("../src/one", "smoke"), "no chapter"),
        (("", "smoke"), "no chapter ''"),
        (("one", "tiny"), "no profile 'tiny'"),
        (("one", "../x"), "no profile"),
        (("one", "smoke", -1), "not -1"),
        (("one", "smoke", 2**63), "a seed is a whole number"),
        (("one", "smoke", "0; touch hit"), "not '0; touch hit'"),
        (("one", "smoke", 1.5), "not 1.5"),
        (("one", "smoke", True), "not True"),
    ],
)
def test_run_refuses_other_parameters_before_it_does_anything(chapter, tmp_path, given, problem):
    chapter("print(1)")
    with pytest.raises(ValueError, match=problem):
        notebooks.run(*given)
    assert not (tmp_path / "_runs").exists()


def test_a_run_with_another_seed_is_kept_apart(chapter, capsys):
    chapter("print(seed)")
    assert notebooks.main(["run", "one", "--seed", "7"]) == 0
    made = notebooks.run_path("one", "smoke", 7)
    assert nbformat.read(made, as_version=4).cells[-1].outputs[0].text == "7\n"
    assert "one-seed7.ipynb" in capsys.readouterr().out and not notebooks.run_path("one", "smoke").exists()
    with pytest.raises(SystemExit):
        notebooks.main(["publish", "one", "--seed", "7"])
    assert "publish takes no seed" in capsys.readouterr().err


def in_a_process(tmp_path, code):
    """Start `code` in a process whose book is that of the fixture `chapter`."""
    setting = f"from pathlib import Path\nfrom tools import book, notebooks\nnotebooks.ROOT = Path({str(tmp_path)!r})\n"
    setting += "notebooks.NOTEBOOKS = notebooks.ROOT / 'book'\nnotebooks.SOURCES = notebooks.NOTEBOOKS / 'src'\n"
    setting += "book.ROOT, book.NOTEBOOKS, book.BUILD = notebooks.ROOT, notebooks.NOTEBOOKS, notebooks.ROOT / '_build'\n"
    setting += "book.INDEX = book.BUILD / 'html' / 'index.html'\n"
    return subprocess.Popen([sys.executable, "-c", setting + code], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(folder, pattern):
    for _ in range(1200):
        if any(folder.glob(pattern)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} comes in {folder}")


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_stays(chapter, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    chapter(f"import time\nopen({str(tmp_path / 'begun')!r}, 'w')\ntime.sleep(60)")
    killed = in_a_process(tmp_path, "notebooks.run('one', 'smoke')")
    wait_for(tmp_path, "begun")
    killed.kill()
    killed.communicate()
    assert not notebooks.run_path("one", "smoke").exists()
    chapter("print(1)")
    notebooks.run("one", "smoke")
    assert [path.name for path in (tmp_path / "_runs" / "smoke").iterdir() if path.suffix != ".lock"] == ["one.ipynb"]
    assert list(temporary.iterdir()) == []


# A book of one page, whose builder writes its process's number, waits for a file, and writes it again.
BUILDER = """#!{python}
import os, sys, time
from pathlib import Path
_, action, tree, option, out, *rest = sys.argv
html = Path(out, "_build", "html")
html.mkdir(parents=True)
(html / "index.html").write_text(tree)
(html / "_static" / "scripts").mkdir(parents=True)
(html / "_static" / "scripts" / "fontawesome.js").write_text('a={{sun:[5,5,[],"f1","M1"]}}')
(html / "icon.html").write_text("fa-sun")
(html / "first").write_text(str(os.getpid()))
for _ in range(1200):
    if not {wait!r} or Path({wait!r}).exists():
        break
    time.sleep(0.05)
(html / "last").write_text(str(os.getpid()))
sys.exit({status})
"""


@pytest.fixture
def builder(chapter, tmp_path):
    """``start(wait, status)``: render a book of one chapter in a process, by a stand-in of Jupyter Book."""
    chapter("print(1)")
    committed("", "")
    (tmp_path / "examples").mkdir()
    for file in ("_config.yml", "_toc.yml", "book/status.md", "book/promises.md"):
        (tmp_path / file).write_text("{}")

    def start(wait=None, status=0, name="builder"):
        program = tmp_path / name / "jupyter-book"
        program.parent.mkdir()
        program.write_text(BUILDER.format(python=sys.executable, wait=str(wait or ""), status=status))
        program.chmod(0o755)
        code = f"import sys\nsys.executable = {str(program.with_name('python'))!r}\nsys.exit(book.main(['render']))"
        return in_a_process(tmp_path, code)

    return start


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_while_a_folder_takes_the_place_of_another_one_of_them_is_there(tmp_path, monkeypatch, renamed):
    made, target = tmp_path / "work" / "made", tmp_path / "html"
    for folder in (made, target):
        folder.mkdir(parents=True)
        (folder / "page").write_text(folder.name)
    rename, count = Path.rename, iter(range(9))

    def failing(path, place):
        if next(count) == renamed:
            raise OSError(28, "No space left on device", str(path))
        return rename(path, place)

    monkeypatch.setattr(Path, "rename", failing)
    if renamed < 2:
        with pytest.raises(OSError):
            notebooks.put_in_place(made, target)
    else:
        notebooks.put_in_place(made, target)
    assert (target / "page").read_text() == ("html" if renamed < 2 else "made")
    assert {path.name for path in tmp_path.iterdir()} == {"html", "work"}
    monkeypatch.undo()
    target.rename(tmp_path / ".html.earlier")  # what a kill between the renames leaves goes next time
    made.mkdir(exist_ok=True)
    notebooks.put_in_place(made, target)
    assert {path.name for path in tmp_path.iterdir()} == {"html", "work"}


@pytest.mark.parametrize("error", [(28, "No space left on device"), (13, "Permission denied", "/a/place")])
@pytest.mark.parametrize(
    ("module", "part", "arguments"), [(book, "copy_tree", ["render"]), (dist, "build", []), (figures, "sync_playwright", None)]
)
def test_a_tool_that_cannot_write_says_so_in_one_line_with_a_path(tmp_path, monkeypatch, capsys, module, part, arguments, error):
    def stop(*_given):
        raise OSError(*error)

    for place in (book, dist, figures):
        monkeypatch.setattr(place, "ROOT", tmp_path)
    for place in (book, figures):
        monkeypatch.setattr(place, "BUILD", tmp_path / "_build")
    monkeypatch.setattr(figures, "chromium", lambda: "chromium")
    monkeypatch.setattr(module, part, stop)
    assert (module.main() if arguments is None else module.main(arguments)) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert error[1] in said and ("/a/place" in said or str(tmp_path / "_build") in said)


@pytest.mark.slow
def test_two_renders_at_once_do_not_mix(builder, tmp_path):
    one = builder(wait=tmp_path / "go", name="one")
    wait_for(tmp_path, "_build/work~*/_build/html/first")
    two = builder(name="two")
    assert "Another process is at it (rendering the book)" in two.stderr.readline()
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60)[1] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), said
    html = tmp_path / "_build" / "html"
    assert (html / "first").read_text() == (html / "last").read_text()
    assert sorted(path.name for path in (tmp_path / "_build").iterdir()) == ["html", "work.lock"]


@pytest.mark.slow
def test_a_render_that_fails_or_is_killed_leaves_the_earlier_pages_whole(builder, tmp_path):
    assert builder(name="first").wait(60) == 0
    page = (tmp_path / "_build" / "html" / "last").read_text()
    failed = builder(status=1, name="fails")
    assert "errors or warnings" in failed.communicate(timeout=60)[1] and failed.returncode == 1
    assert (tmp_path / "_build" / "html" / "last").read_text() == page
    killed = builder(wait=tmp_path / "go", name="killed")
    wait_for(tmp_path, "_build/work~*/_build/html/first")
    killed.kill()
    killed.wait()
    assert (tmp_path / "_build" / "html" / "last").read_text() == page
    assert builder(name="again").wait(60) == 0
    (tmp_path / "go").touch()  # what the killed process had started goes on
    killed.communicate(timeout=60)
    html = tmp_path / "_build" / "html"
    assert page != (html / "first").read_text() == (html / "last").read_text()
    assert sorted(path.name for path in (tmp_path / "_build").iterdir()) == ["html", "work.lock"]


@pytest.mark.slow
def test_the_stamp_says_what_the_pages_show_and_is_as_old_as_what_they_were_made_from(builder, tmp_path, monkeypatch):
    for name, value in {"ROOT": tmp_path, "NOTEBOOKS": notebooks.NOTEBOOKS, "BUILD": tmp_path / "_build"}.items():
        monkeypatch.setattr(book, name, value)
    monkeypatch.setattr(book, "INDEX", tmp_path / "_build" / "html" / "index.html")
    assert builder(name="program").wait(60) == 0
    monkeypatch.setattr(sys, "executable", str(tmp_path / "program" / "python"))
    (tmp_path / "_runs" / "smoke").mkdir(parents=True)
    shutil.copy(notebooks.NOTEBOOKS / "one.ipynb", notebooks.run_path("one", "smoke"))
    earlier = book.BUILD / ".rendered-book"
    earlier.touch()
    before = time.time()
    book.render("smoke")
    stamp = book.BUILD / ".rendered-smoke"
    assert not earlier.exists() and before - 0.1 < stamp.stat().st_mtime <= (book.INDEX.stat().st_mtime + 0.1)
    book.render(None)
    assert not stamp.exists()


def test_run_refuses_a_chapter_without_parameters(chapter):
    chapter("print(1)", parameters="seed = 1")
    with pytest.raises(ValueError, match="lacks the line profile"):
        notebooks.run("one", "smoke")


def committed(*outputs):
    """Commit the notebook of a chapter whose code cells had these printed outputs."""
    notebook = notebooks.clean(notebooks.read_source("one"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, text in zip(code, outputs, strict=True):
        cell.outputs = [new_output("stream", name="stdout", text=text)] if text else []
    notebooks.write(notebook, notebooks.NOTEBOOKS / "one.ipynb")


def test_a_table_without_a_caption_is_found(chapter):
    chapter(
        "import pandas as pd\nfrom experiments.common.plots import use_style\nfrom experiments.common.tables import captioned\n"
        "use_style()\ntable = pd.DataFrame({'a': [1.5]})",
        "captioned(table, 'A frame.')",
        "captioned(table.style.hide(), 'A styled one.')",
        "captioned(table, 'Lost on the way.').style",
        "table",
    )
    notebooks.run("one", "smoke")
    found = without_caption(notebooks.run_path("one", "smoke"))
    assert len(found) == 2 and all(table.startswith("<table") for table in found)


def test_sync_keeps_outputs_of_equal_code_only(chapter):
    chapter("print(1)", "print(2)")
    committed("", "1\n", "2\n")
    chapter("print(1)", "print(3)")
    assert any("differs from its source" in problem for problem in notebooks.problems("one"))
    notebooks.sync("one")
    synced = nbformat.read(notebooks.NOTEBOOKS / "one.ipynb", as_version=4)
    assert [[output.text for output in cell.outputs] for cell in synced.cells[2:]] == [["1\n"], []]
    assert notebooks.problems("one") == []


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("<object at 0x7f00deadbeef>", "a memory address"),
        ("/usr/lib/python3/site-packages/x.py:1: UserWarning", "a path of this machine"),
    ],
)
def test_problems_name_outputs_that_no_other_machine_repeats(chapter, output, problem):
    chapter("f()")
    committed("", output)
    assert notebooks.problems("one") == [f"one: the output of cell 3 names {problem}"]


def test_problems_name_errors_and_remains_of_an_execution(chapter):
    chapter("f()")
    committed("", "")
    path = notebooks.NOTEBOOKS / "one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["papermill"] = {"duration": 1}
    notebook.cells[-1].outputs = [new_output("error", ename="NameError", evalue="f", traceback=[])]
    path.write_text(nbformat.writes(notebook))
    found = " ".join(notebooks.problems("one"))
    assert "ended in NameError" in found and "what an execution left behind" in found


# ----------------------------------------------------------------------------------- the repository, if its address is known

ADDRESS = "https://github.com/someone/a.book"


@pytest.fixture
def nowhere(monkeypatch):
    for name in ("GITHUB_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_SHA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tree(chapter, tmp_path, monkeypatch, nowhere):
    """``tree(pyproject)``: the copy of a book of one chapter that would be rendered, its configuration and its notebook."""
    chapter("print(1)")
    (tmp_path / "examples").mkdir()
    for page in ("status", "promises"):
        (tmp_path / "book" / f"{page}.md").touch()
    shutil.copy(ROOT / "_config.yml", tmp_path)
    shutil.copy(ROOT / "_toc.yml", tmp_path)
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book, "NOTEBOOKS", notebooks.NOTEBOOKS)

    def copy(pyproject="[project]\n"):
        (tmp_path / "pyproject.toml").write_text(pyproject)
        notebooks.sync("one")
        copied = tmp_path / "tree"
        shutil.rmtree(copied, ignore_errors=True)
        book.copy_tree(copied, None)
        return copied / "_config.yml", nbformat.read(copied / "book" / "one.ipynb", as_version=4)

    return copy


def test_pages_get_the_parts_of_mathjax_that_they_load(tree):
    config, _ = tree()
    loaded = yaml.safe_load(config.read_text())["sphinx"]["config"]
    parts = [loaded["mathjax_path"], *(f"mathjax/{part}.js" for part in loaded["mathjax3_config"]["loader"]["load"])]
    assert [part for part in parts if not (config.parent / "book" / "_static" / part).is_file()] == []


def test_without_an_address_the_book_is_rendered_as_it_is(tree, tmp_path):
    config, notebook = tree()
    assert config.read_bytes() == (ROOT / "_config.yml").read_bytes()
    assert notebook == nbformat.read(tmp_path / "book/one.ipynb", as_version=4)
    assert not any("git" in cell.source for cell in notebook.cells)


def test_every_page_of_a_run_ends_with_when_where_and_with_what(tree, tmp_path):
    tree()
    notebooks.run("one", "smoke")
    notebooks.publish("one", "smoke")
    _, notebook = tree()
    run = notebook.metadata[notebooks.RUN]
    last = notebook.cells[-1].source
    assert all(str(part) in last for part in (run.date, run.profile, run.commit, torch.__version__, run.versions.numpy))
    assert len(notebook.cells) == 1 + len(nbformat.read(tmp_path / "book/one.ipynb", as_version=4).cells)


def test_a_run_of_another_text_than_the_source_is_not_rendered(tree, chapter, tmp_path):
    tree()
    notebooks.run("one", "smoke")
    later = time.time() + 7200  # the clock stood two hours fast
    os.utime(notebooks.run_path("one", "smoke"), (later, later))
    chapter("print(1)", end="More text.\n")
    with pytest.raises(ValueError, match=r"has 3 cells, its source 4; run it again by `make notebook NB=one PROFILE=smoke`"):
        book.copy_tree(tmp_path / "again", "smoke")
    with pytest.raises(FileNotFoundError, match="there is no _runs/book/one.ipynb; run `make notebook NB=one PROFILE=book`"):
        book.copy_tree(tmp_path / "more", "book")


def test_where_a_build_knows_the_address_pages_have_buttons_and_notebooks_fetch_the_code(tree, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/a.book")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_SHA", "0" * 40)
    path, notebook = tree()
    config = yaml.safe_load(path.read_text())
    assert config["repository"] == {"url": ADDRESS, "branch": "0" * 40} and config["html"]["use_repository_button"]
    assert config["launch_buttons"]["binderhub_url"] and "colab_url" not in config["launch_buttons"]
    (link,) = config["sphinx"]["config"]["html_theme_options"]["icon_links"]
    assert link["url"] == "https://codespaces.new/someone/a.book"
    assert config["sphinx"]["recursive_update"] is True  # or the buttons would not appear
    assert ADDRESS in notebook.cells[0].source and "remove-cell" in notebook.cells[0].metadata.tags
    committed_one = nbformat.read(tmp_path / "book/one.ipynb", as_version=4)
    assert [c.source for c in notebook.cells[1:]] == [c.source for c in committed_one.cells]


def test_notebooks_are_committed_with_the_declared_address_and_then_open_on_colab(tree):
    path, notebook = tree(f'[project]\n[project.urls]\nRepository = "{ADDRESS}"\n')
    assert yaml.safe_load(path.read_text())["launch_buttons"]["colab_url"]
    assert [ADDRESS in cell.source for cell in notebook.cells] == [True] + [False] * (len(notebook.cells) - 1)
    assert notebooks.problems("one") == []
    notebooks.run("one", "smoke")  # in a checkout that cell does nothing
    notebooks.publish("one", "smoke")
    assert notebooks.problems("one") == []


@pytest.mark.parametrize(("server", "name"), [("https://github.com", "a/b c"), ("http://github.com", "a/b"), ("", "a"),
                                              ("", "a/b/c"), ("", "../b\n"), ("https://x y", "a/b"), ("", '"a"/b')])  # fmt: skip
def test_what_is_no_address_of_a_repository_is_refused(monkeypatch, server, name):
    monkeypatch.setenv("GITHUB_SERVER_URL", server)
    monkeypatch.setenv("GITHUB_REPOSITORY", name)
    with pytest.raises(ValueError, match="the address of a repository looks like"):
        repository.building(ROOT)


def test_other_hosts_get_no_buttons_of_services_that_only_know_github(nowhere):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert repository.with_buttons(config, "https://git.example.org/a/b", ROOT) == yaml.safe_load(
        (ROOT / "_config.yml").read_text()
    )


@pytest.mark.parametrize("there", [True, False])
def test_the_first_cell_fetches_the_code_only_where_it_is_missing(monkeypatch, tmp_path, there):
    commands = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there or None)

    def record(command, check):
        commands.append(command)
        (tmp_path / "book-code" / "book").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(subprocess, "run", record)
    exec(repository.FETCH.format(address=ADDRESS), {})
    if there:
        assert not commands and Path.cwd() == tmp_path
    else:
        clone, install = commands
        assert clone[:2] == ["git", "clone"] and clone[-2:] == [ADDRESS, "book-code"]
        assert install[1:4] == ["-m", "pip", "install"] and install[-1] == "./book-code[book]"
        assert Path.cwd() == tmp_path / "book-code" / "book" and sys.path[0] == str(tmp_path / "book-code")


def test_binder_and_codespaces_set_up_what_is_locked():
    assert (ROOT / ".binder" / "requirements.txt").read_text().split() == ["-r", "../requirements.lock"]
    assert os.access(ROOT / ".binder" / "postBuild", os.X_OK)
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).is_file()
    assert container["postCreateCommand"] == "make env"


# ------------------------------------------------------------------------------------------------ figures with sliders

STATIC = ROOT / "book" / "_static"


def test_every_script_is_loaded_and_none_asks_for_anything():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    scripts = {path.name: path.read_text() for path in STATIC.glob("*.js")}
    assert sorted(config["html_js_files"]) == sorted(scripts)
    foreign = r"https?://(?!www\.w3\.org/2000/svg)|\b(?:fetch|import|require|XMLHttpRequest|eval|localStorage)\b"
    assert {name: re.findall(foreign, text) for name, text in scripts.items()} == dict.fromkeys(scripts, [])


def test_every_figure_with_sliders_has_a_script_a_caption_and_words_for_pages_without_scripts():
    defined = {name for path in STATIC.glob("*.js") for name in re.findall(r"^  amaml\.(\w+) = \{", path.read_text(), re.MULTILINE)}
    used = []
    for name in notebooks.names():
        for figure in re.findall(
            r'<figure class="interactive".*?</figure>', (notebooks.SOURCES / f"{name}.md").read_text(), re.DOTALL
        ):
            used += re.findall(r'data-figure="(\w+)"', figure)
            assert re.search(r'<noscript>.*<a href="#fig-[\w-]+">.*</noscript>', figure) and "<figcaption>" in figure, name
            assert "\n\n" not in figure, f"{name}: an empty line ends the HTML in a page"
    assert sorted(used) == sorted(defined) and used


# ----------------------------------------------------------------------------------------------------- rendered book


class Page(HTMLParser):
    """What a page names: the ids of its elements, where its links go, and what a browser loads with it."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given.get("id"), given.get("name")} - {None}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("next", "prev", "index", "search", "canonical", "author"):
            self.loaded.append(given["href"])
        elif tag in ("script", "img", "iframe", "source", "video", "audio", "embed") and given.get("src"):
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def rendered():
    if not (HTML / "index.html").is_file():
        pytest.skip("the book is not rendered; run `make html`")
    return {path: Page(path) for path in HTML.rglob("*.html") if "_static" not in path.relative_to(HTML).parts}


def test_every_page_of_the_contents_is_rendered(rendered):
    assert {HTML / f"{page}.html" for page in toc_pages()} <= set(rendered)


def test_the_page_of_promises_shows_these_counts(rendered):
    soup = BeautifulSoup((HTML / "book" / "promises.html").read_text(encoding="utf-8"), "html.parser")
    tables = [
        [[cell.get_text(strip=True) for cell in row.select("th, td")] for row in table.select("tr")]
        for table in soup.select("table")
    ]
    lines = faults.table().replace("`", "").splitlines()
    assert [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if not line.startswith("|-")] in tables


def test_every_link_within_the_book_arrives(rendered):
    broken = []
    for path, page in rendered.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            missing = not target.is_file()
            if missing or (fragment and target in rendered and fragment not in rendered[target].ids):
                broken.append(f"{path.relative_to(HTML)} -> {link}")
    assert broken == []


def test_chapters_have_the_numbers_of_their_files(rendered):
    chapters = [page for page in toc_pages() if re.match(r"book/\d\d_", page) and page != "book/00_preface"]
    numbers = [int(Path(page).name[:2]) for page in chapters]
    assert numbers == sorted(numbers)
    if numbers != list(range(1, len(toc_pages()) - len(REFERENCE))):
        pytest.skip("chapters are missing")
    for page, number in zip(chapters, numbers, strict=True):
        text = (HTML / f"{page}.html").read_text(encoding="utf-8")
        assert re.search(r'<h1><span class="section-number">(\d+)\. ', text)[1] == str(number), page
        figures = re.findall(r'class="caption-number">Fig\. ([\d.]+)', text)
        assert figures == [f"{number}.{count}" for count in range(1, len(figures) + 1)], page


def test_every_page_has_a_title_a_description_and_a_picture_for_those_who_share_it(rendered):
    for page in toc_pages():
        head = (HTML / f"{page}.html").read_text(encoding="utf-8").partition("</head>")[0]
        assert len(re.search(r'name="description" content="([^"]*)"', head)[1]) > 50
        assert head.count("Adjoint Meta-Learning</title>") == head.count('name="description"') == head.count('"og:image"') == 1
        assert (HTML / page).parent.joinpath(re.search(r'"og:image" content="([^"]+)"', head)[1]).resolve().is_file()


def test_the_bibliography_has_the_labels_that_the_text_cites_and_no_entry_without_a_reader(rendered):
    soup = BeautifulSoup((HTML / "book" / "bibliography.html").read_text(encoding="utf-8"), "html.parser")
    labels = {entry["id"]: entry.select_one(".label").get_text().strip("[]") for entry in soup.select("div.citation")}
    assert len(set(labels.values())) == len(labels) > 50
    first = [re.split(r" et al\.| and |, ", label)[0].lower() for label in labels.values()]
    assert first == sorted(first)
    cited = set()
    for path in rendered.keys() - {HTML / "book" / "bibliography.html"}:
        links = SoupStrainer("a", href=re.compile(r"bibliography\.html#"))
        for link in BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser", parse_only=links).find_all("a"):
            number = link["href"].partition("#")[2]
            cited.add(number)
            label = labels[number]
            assert link.get_text() in (label, label.rpartition(", ")[2])  # or the year, after the names in the text
    assert cited == set(labels)


def test_no_page_loads_anything_from_another_host(rendered):
    foreign = [(path.name, url) for path, page in rendered.items() for url in page.loaded if urlsplit(url).netloc]
    assert foreign == []


# ------------------------------------------------------------------------------------------- README and environment


def test_readme_example_gives_the_gradient_it_promises():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    estimate, tasks, problem, theta = (names[key] for key in ("estimate", "tasks", "problem", "theta"))
    unrolled = amaml_core.meta_gradient(amaml_core.MAML(lr=0.01, steps=50), problem, theta, tasks)
    torch.testing.assert_close(estimate.gradient, unrolled.gradient)
    assert float(estimate.gradient.norm()) > 0


def test_readme_links_arrive_and_its_commands_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if not urlsplit(link).scheme]
    assert [link for link in links if not (ROOT / link).exists()] == []
    targets = set(re.findall(r"\bmake ([a-z-]+)", readme))
    assert {"book", "test"} <= targets <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_lock_pins_every_direct_dependency_for_any_build_and_index():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["data"], *extras["book"], *extras["dev"]]
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    direct = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", name)[0]).lower() for name in wanted}
    assert direct - pinned == {"amaml-core"}


def test_the_figure_of_the_readme_is_that_of_its_chapter():
    from tools import readme_figure

    assert readme_figure.TARGET.read_bytes() == readme_figure.figure()
