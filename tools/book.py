"""Render the book with Jupyter Book, strictly: a warning is an error.

python -m tools.book render                   the committed notebooks
python -m tools.book render --profile smoke   the runs of that profile in place of the committed notebooks
python -m tools.book links                    which links to other hosts lead nowhere
python -m tools.book report                   which data are real, and where the book is
"""

from __future__ import annotations

import argparse
import copy
import html
import os
import shutil
import string
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from amaml_core import strict
from amaml_core.datasets import RATINGS
from data_scripts.__main__ import LARGE, SMALL
from data_scripts.common import DataError, data_folder, defect

from . import faults
from .notebooks import CHECKED, INTERRUPTED, NOTEBOOKS, PROFILES, ROOT, RUN, alone, names, put_in_place, read_notebook, read_run
from .repository import building, with_buttons, with_setup
from .weight import round_off, trim_icons

BUILD = ROOT / "_build"
INDEX = BUILD / "html" / "index.html"
MATHJAX = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0]) / "static" / "mathjax"
MATHJAX_PARTS = ("startup.js", "core.js", "input/tex.js", "input/tex", "output/chtml.js", "output/chtml", "a11y/assistive-mml.js")
STATUS = "<!-- the runs: tools/book.py writes them here when the book is rendered -->"
COUNTS = "<!-- the counts: tools/book.py writes them here when the book is rendered -->"
DATA = {**RATINGS, "omniglot": "Omniglot", "mini-imagenet": "mini-ImageNet"}


def render(profile: str | None) -> None:
    """Render a copy of the book's tree into ``_build/html``.

    The copy holds nothing but what is rendered, so no cache, environment or source beside a notebook can get into the book.
    Nothing of an earlier build is used: a page that once had a warning would be taken from the cache without it.
    Until all pages are done, the earlier ones stay; a second process that renders waits for the first.

    Raises:
        FileNotFoundError, ValueError: a chapter has no run at this profile that is of its source, or no committed notebook.
        OSError: the pages cannot be written; the error names a path.
        subprocess.CalledProcessError: Jupyter Book found an error or a warning.
    """
    with alone(BUILD / "work", "rendering the book") as work:
        began = time.time()
        copy_tree(work / "tree", profile)
        program = Path(sys.executable).with_name("jupyter-book")
        command = [str(program), "build", str(work / "tree"), "--path-output", str(work), "-W", "-n", "--keep-going", "-q"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # names the folder of the work
        trim_icons(work / "_build" / "html")
        for drawing in (work / "_build" / "html" / "_images").glob("*.svg"):
            drawing.write_text(round_off(drawing.read_text(encoding="utf-8")), encoding="utf-8")
        for stamp in BUILD.glob(".rendered-*"):  # says to make what the pages show, so it goes before and comes after them
            stamp.unlink()
        put_in_place(work / "_build" / "html", INDEX.parent)
        if profile is not None:
            stamp = BUILD / f".rendered-{profile}"
            stamp.touch()
            os.utime(stamp, (began, began))  # as old as what it was made from, or make would miss a change on the way


def links() -> None:
    """Follow every link of the committed notebooks and pages to another host.

    Raises:
        subprocess.CalledProcessError: one leads nowhere.
    """
    with alone(BUILD / "work", "rendering the book") as work:
        copy_tree(work / "tree", None)
        program = Path(sys.executable).with_name("jupyter-book")
        command = [str(program), "build", str(work / "tree"), "--path-output", str(work), "--builder", "linkcheck", "-q"]
        subprocess.run(command, cwd=ROOT, check=True)


def copy_tree(tree: Path, profile: str | None) -> None:
    """Copy what is rendered: the runs of a profile or the committed notebooks, the pages, and the status filled in.

    If the repository's address is known, the pages get buttons that lead to it, and the notebooks a cell that fetches the code.

    Raises:
        FileNotFoundError: a chapter has no run at this profile, or no committed notebook.
        ValueError: the source of a chapter has changed since the run.
    """
    address = building(ROOT)
    shutil.copytree(ROOT / "book", tree / "book", ignore=shutil.ignore_patterns("src", "*.ipynb", ".*"))
    copy_mathjax(tree / "book" / "_static" / "mathjax")
    shutil.copytree(ROOT / "examples", tree / "examples", ignore=shutil.ignore_patterns("[!a-z]*", "*.md"))  # for download
    rendered = {}
    for name in names():
        rendered[name] = read_run(name, profile) if profile else read_committed(name)
        shown = with_setup(with_watermark(copy.deepcopy(rendered[name])), address)
        nbformat.write(shown, tree / "book" / f"{name}.ipynb")
    for page, place, text in (("status", STATUS, status(rendered)), ("promises", COUNTS, faults.table())):
        path = tree / "book" / f"{page}.md"
        path.write_text(path.read_text(encoding="utf-8").replace(place, text), encoding="utf-8")
    for file in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / file, tree / file)
    if address:
        config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        (tree / "_config.yml").write_text(yaml.safe_dump(with_buttons(config, address, ROOT)), encoding="utf-8")


def read_committed(name: str) -> NotebookNode:
    """The committed notebook of a chapter.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    notebook = NOTEBOOKS / f"{name}.ipynb"
    if not notebook.is_file():
        raise FileNotFoundError(f"there is no {notebook.relative_to(ROOT)}; run `make refresh`")
    return read_notebook(notebook)


def copy_mathjax(into: Path) -> None:
    """Copy the parts of MathJax that the pages load, each in its place; they are named in ``_config.yml``, too."""
    for part in MATHJAX_PARTS:
        (into / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (MATHJAX / part).is_dir() else shutil.copy)(MATHJAX / part, into / part)


def with_watermark(notebook: NotebookNode) -> NotebookNode:
    """The notebook with a last line that says when, where and with what it was run; as it is, if it does not know."""
    run = notebook.metadata.get(RUN)
    if run:
        made = ", ".join(f"{package} {version}" for package, version in run.versions.items())
        said = (
            f"Run on {run.date} at the profile {run.profile} in {run.seconds} s, commit {run.commit}, with {made}; {run.machine}."
        )
        notebook.cells.append(new_markdown_cell(f"<small>{html.escape(said, quote=False)}</small>"))
    return notebook


def status(notebooks: dict[str, NotebookNode]) -> str:
    """Where the outputs of the notebooks come from, as Markdown: a table of the runs, and the machines and versions below it.

    Nothing is taken from the machine that renders: what a notebook does not say about its run is not known.
    """
    lines = ["| | chapter | profile | date | run time | commit | made with | checked |", "|---|---|---|---|---|---|---|---|"]
    places: dict[str, str] = {}  # what it was made with -> the letter of it
    total = 0
    for name, notebook in notebooks.items():
        run, told = notebook.metadata.get(RUN), ["–"] * 5
        if run:
            versions = ", ".join(f"{package} {version}" for package, version in run.versions.items())
            letter = places.setdefault(f"{run.machine}; {versions}", string.ascii_uppercase[len(places) % 26])
            told = [run.profile, run.date.replace("-", "\N{NON-BREAKING HYPHEN}"), f"{run.seconds} s", f"`{run.commit}`", letter]
            total += run.seconds
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        checked = sum(CHECKED in cell.metadata.get("tags", []) for cell in code)
        number = name.split("_")[0].lstrip("0") if name[0].isdigit() else ""
        lines.append(f"| {number} | {{doc}}`{name}` | {' | '.join(told)} | {checked} of {len(code)} |")
    if total:
        lines += ["", f"The runs that are recorded took {total / 60:.0f} minutes in all."]
    return "\n".join([*lines, "", *(f"{letter}\n: {place}\n" for place, letter in places.items())])


def data_report() -> str:
    """One line for each data set: real, and from whose bytes, or a stand-in, or why the chapters refuse it.

    Raises:
        DataError: there is no place where the data could be.
    """
    lines = ["Data in the chapters:"]
    for dataset in SMALL + LARGE:
        folder = data_folder() / dataset.name
        reason = defect(dataset, folder)
        if reason is None:
            official = strict.parse((folder / "manifest.json").read_bytes()).get("official")
            state = "real (the official archive)" if official else "real (from a mirror, checked against the official counts)"
        elif (folder / "manifest.json").is_file():
            state = f"refused: {folder}: {reason}; run `make data`"
        else:
            state = "a stand-in"
        lines.append(f"  {DATA[dataset.name]:<15} {state}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("render", "links", "report"))
    parser.add_argument("--profile", choices=PROFILES, help="render runs instead of the committed notebooks")
    args = parser.parse_args(arguments)
    try:
        if args.action == "links":
            links()
            return 0
        if args.action == "render":
            render(args.profile)
        else:
            print(data_report())
    except KeyboardInterrupt:
        print(INTERRUPTED.format(args.action), file=sys.stderr)
        return 130
    except (OSError, ValueError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError:
        print("The book has errors or warnings, or dead links; see above.", file=sys.stderr)
        return 1
    print(f"The book is at {INDEX}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
