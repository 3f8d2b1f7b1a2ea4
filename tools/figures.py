"""The notebooks' figures as SVG and PNG, in ``_build/figures``, and which are not as committed: ``python -m tools.figures``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from playwright.sync_api import Error, sync_playwright

from .book import BUILD
from .notebooks import INTERRUPTED, NOTEBOOKS, ROOT, alone, names, put_in_place, read_notebook
from .pdf import chromium


def figures(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """The drawings of a notebook, each after its name, or after the number of its cell if it has none."""
    for number, cell in enumerate(notebook.cells, start=1):
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name", f"cell-{number}")
        drawings = [output.data["image/svg+xml"] for output in cell.get("outputs", []) if "image/svg+xml" in output.get("data", {})]
        for count, drawing in enumerate(drawings, start=1):
            yield (name if count == 1 else f"{name}-{count}"), drawing


def committed(name: str) -> dict[str, str]:
    """The figures of a chapter's notebook in the last commit; none if it has no such notebook."""
    done = subprocess.run(["git", "show", f"HEAD:book/{name}.ipynb"], cwd=ROOT, capture_output=True, text=True)
    return dict(figures(nbformat.reads(done.stdout, as_version=4))) if done.returncode == 0 else {}


def draw(program: str, target: Path) -> None:
    """Write the figures of all chapters into a folder, in the place of earlier ones, and say which are not as committed.

    Raises:
        OSError: they cannot be written, or a chapter has no notebook.
        ValueError: a notebook is damaged.
        playwright.sync_api.Error: the browser does not start, or fails.
    """
    with alone(target.with_name(f"{target.name}-work"), "taking out the figures") as work, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(device_scale_factor=2)
        for name in names():
            before = committed(name)
            for figure, drawing in figures(read_notebook(NOTEBOOKS / f"{name}.ipynb")):
                path = work / "made" / f"{name}-{figure}.svg"
                path.parent.mkdir(exist_ok=True)
                path.write_text(drawing, encoding="utf-8")
                page.set_content(drawing)
                page.locator("svg").first.screenshot(path=path.with_suffix(".png"))
                state = "new" if figure not in before else "as committed" if before[figure] == drawing else "differs"
                print(f"- {state}: {name}, {figure}", flush=True)
        browser.close()
        put_in_place(work / "made", target)


def main() -> int:
    try:
        draw(chromium(), BUILD / "figures")
    except KeyboardInterrupt:
        print(INTERRUPTED.format("figures"), file=sys.stderr)
        return 130
    except (OSError, ValueError, Error) as error:
        print(str(error).partition("\n")[0], file=sys.stderr)  # the browser's log is in the rest
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
