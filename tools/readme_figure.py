"""The figure of the README: one of the committed notebooks' figures, taken out as it is.

python -m tools.readme_figure
"""

from __future__ import annotations

from amaml_core.records import write_beside
from tools.notebooks import NOTEBOOKS, read_notebook

CHAPTER, FIGURE = "02_maml_memory", "fig-graph-growth"
TARGET = NOTEBOOKS / "_static" / "readme.svg"


def figure(chapter: str = CHAPTER, name: str = FIGURE) -> bytes:
    """The drawing that the cell with this figure name shows in the committed notebook."""
    notebook = read_notebook(NOTEBOOKS / f"{chapter}.ipynb")
    cell = next(c for c in notebook.cells if c.metadata.get("mystnb", {}).get("figure", {}).get("name") == name)
    return next(o.data["image/svg+xml"] for o in cell.outputs if "image/svg+xml" in o.get("data", {})).encode()


if __name__ == "__main__":
    write_beside(TARGET, figure())
