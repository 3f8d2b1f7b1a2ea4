"""The figures that are taken out of notebooks."""

from nbformat.v4 import new_code_cell, new_notebook, new_output
from playwright.sync_api import Error

from tools import figures, notebooks, readme_figure


def test_figures_have_the_names_of_the_book_or_the_numbers_of_their_cells():
    first, second = (new_output("display_data", data={"image/svg+xml": text}) for text in ("<svg>1</svg>", "<svg>2</svg>"))
    named = new_code_cell("f()", outputs=[first, second], metadata={"mystnb": {"figure": {"name": "fig-a"}}})
    notebook = new_notebook(cells=[named, new_code_cell("g()", outputs=[second]), new_code_cell("h()")])
    found = {"fig-a": "<svg>1</svg>", "fig-a-2": "<svg>2</svg>", "cell-2": "<svg>2</svg>"}
    assert dict(figures.figures(notebook)) == found


def test_a_browser_that_fails_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def fail(*_given):
        raise Error("the browser did not start\nCall log:\n  - much")

    monkeypatch.setattr(figures, "chromium", lambda: "chromium")
    monkeypatch.setattr(figures, "BUILD", tmp_path)
    monkeypatch.setattr(figures, "sync_playwright", fail)
    assert figures.main() == 1
    assert capsys.readouterr().err == "the browser did not start\n"


def test_committed_figures_are_those_of_the_last_commit():
    assert figures.committed(readme_figure.CHAPTER)[readme_figure.FIGURE].startswith("<")
    assert figures.committed("no_such_chapter") == {}
    assert set(notebooks.names()) > {"04_adjoint"}
