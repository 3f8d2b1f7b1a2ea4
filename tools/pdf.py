"""The rendered pages as PDF, one file for each, by headless Chromium: ``python -m tools.pdf [PAGE ...]``.

A page is named like ``04_adjoint``. The browser is Debian's Chromium, or the program that ``CHROMIUM`` names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Error, PdfMargins, sync_playwright

from .book import BUILD, INDEX
from .notebooks import INTERRUPTED, alone, put_in_place

SET = "async () => { if (window.MathJax) await MathJax.startup.promise; await document.fonts.ready; }"  # mathematics and fonts


def chromium() -> str:
    """The program.

    Raises:
        FileNotFoundError: it is not there.
    """
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if found is None:
        raise FileNotFoundError("no Chromium: install one, or name its program in the variable CHROMIUM")
    return found


def pages(html: Path) -> dict[str, Path]:
    """The rendered pages of the book by name, in the order of their files.

    Raises:
        FileNotFoundError: nothing is rendered.
    """
    found = {path.stem: path for path in sorted((html / "book").glob("*.html"))}
    if not found:
        raise FileNotFoundError(f"the book is not rendered in {html}; run `make html`")
    return found


def print_pages(chosen: dict[str, Path], target: Path) -> None:
    """Print each page into ``target/NAME.pdf``. What was there goes when all are done."""
    program = chromium()
    with alone(target.with_name(f"{target.name}-work"), "printing the book") as work, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        made, margin = work / "pdf", PdfMargins(top="18mm", bottom="18mm", left="15mm", right="15mm")
        for name, path in chosen.items():
            page.goto(path.as_uri())
            page.evaluate(SET)
            page.pdf(path=made / f"{name}.pdf", format="A4", margin=margin, print_background=True, outline=True, tagged=True)
            print(f"{name}.pdf", flush=True)
        browser.close()
        put_in_place(made, target)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="all by default")
    chosen = parser.parse_args(arguments).pages
    try:
        there = pages(INDEX.parent)
        if unknown := sorted(set(chosen) - set(there)):
            parser.error(f"no page {', '.join(unknown)}; there are {', '.join(there)}")
        print_pages({name: path for name, path in there.items() if not chosen or name in chosen}, BUILD / "pdf")
    except KeyboardInterrupt:
        print(INTERRUPTED.format("pdf"), file=sys.stderr)
        return 130
    except (OSError, Error) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The pages are in {BUILD / 'pdf'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
