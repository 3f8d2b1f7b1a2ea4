"""Every page of the rendered book as a reader meets it: light, dark, wide, and on a phone. ``make test-browser`` runs this.

The browser is Debian's Chromium, or the program that ``CHROMIUM`` names.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Response, sync_playwright

BOOK = Path(__file__).resolve().parents[1] / "_build" / "html"
PAGES = sorted(str(p.relative_to(BOOK)) for p in BOOK.rglob("*.html") if "_static" not in p.parts)
CHAPTERS = [page for page in PAGES if re.match(r"book/\d\d_", page)]
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "wide": ("light", 1920), "phone": ("light", 390)}  # scheme, width
MIB = 2**20


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and does not log."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address of the book."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(BOOK))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser that has nothing in its cache."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium: install one, or name its program in the variable CHROMIUM")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@dataclass
class Visit:
    """What a page was like.

    Attributes:
        complaints: what went wrong while it was loaded.
        too_wide: by how many pixels it does not fit the window, by look.
        serious: what shuts people out, in light and in dark.
        weight: bytes of all that was loaded.
    """

    complaints: list[str] = field(default_factory=list)
    too_wide: dict[str, int] = field(default_factory=dict)
    serious: list[str] = field(default_factory=list)
    weight: int = 0


@pytest.fixture(scope="session")
def visits(browser: Browser, site: str) -> Callable[[str], Visit]:
    """Each page is opened once, and then looked at in all ways."""

    @cache
    def visit(page: str) -> Visit:
        found, context = Visit(), browser.new_context(viewport={"width": 1280, "height": 900})
        say, tab = found.complaints.append, context.new_page()
        tab.on("console", lambda message: message.type == "error" and say(f"console: {message.text}"))
        tab.on("pageerror", lambda error: say(f"script: {error}"))
        tab.on("requestfailed", lambda request: say(f"not loaded: {request.url}"))
        tab.on("request", lambda asked: asked.url.startswith((site, "data:", "blob:")) or say(f"asked outside: {asked.url}"))
        tab.on("response", lambda answer: answered(found, answer, site))
        tab.goto(f"{site}/{page}", wait_until="load")
        tab.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => null) : null")
        for look, (scheme, width) in LOOKS.items():
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": width, "height": 900})
            wide, window = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            found.too_wide |= {look: wide - window} if wide > window + 1 else {}
            if look in ("light", "dark"):
                violations = Axe().run(tab, options={"preload": False}).response["violations"]
                found.serious += [
                    f"{look}: {v['id']} at {node['target']}"
                    for v in violations
                    if v["impact"] in ("serious", "critical")
                    for node in v["nodes"]
                ]
        context.close()
        return found

    return visit


def answered(found: Visit, answer: Response, site: str) -> None:
    """Take note of an answer of the server."""
    if answer.status >= 400:
        found.complaints.append(f"{answer.status}: {answer.url}")
    path = BOOK / unquote(urldefrag(answer.url).url.split("?")[0].removeprefix(f"{site}/"))
    found.weight += path.stat().st_size if path.is_file() else 0


@cache
def soup(page: str) -> BeautifulSoup:
    """The page's HTML."""
    return BeautifulSoup((BOOK / page).read_text(encoding="utf-8"), "html.parser")


def test_there_is_a_book():
    assert len(CHAPTERS) >= 15, f"{BOOK} holds no book: run `make html` first"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_from_here_alone_and_without_errors(visits, page):
    assert visits(page).complaints == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_its_window(visits, page):
    assert visits(page).too_wide == {}


@pytest.mark.parametrize("page", PAGES)
def test_nobody_is_shut_out(visits, page):
    assert visits(page).serious == []


def test_pages_are_light(visits):
    weights = {page: visits(page).weight / MIB for page in CHAPTERS}
    assert max(weights.values()) <= 3, weights
    assert statistics.median(weights.values()) <= 1.5, weights


def test_the_search_finds_the_adjoint(browser, site):
    tab = browser.new_page()
    tab.goto(f"{site}/search.html?q=adjoint")
    tab.wait_for_selector("#search-results li a", timeout=60_000)
    assert tab.locator("#search-results li a").count() >= 5


@pytest.mark.parametrize("page", CHAPTERS)
def test_nothing_is_left_raw(page):
    article = BeautifulSoup(str(soup(page).select_one("article")), "html.parser")
    for code in article.select("pre, code, .math, script, style"):
        code.decompose()
    text = article.get_text()
    raw = re.findall(r".{0,40}(?:\$\$|\\\(|\\frac|\\begin\{|\|\s*-{3,}\s*\||\{(?:ref|cite|eq|numref|glue:text)\}`).{0,40}", text)
    assert raw == []


@pytest.mark.parametrize("page", CHAPTERS)
def test_tables_hold_no_missing_values_in_pythons_words(page):
    cells = [cell.get_text().strip() for cell in soup(page).select("article td")]
    assert [cell for cell in cells if re.fullmatch(r"(?i)nan|none|<na>|nat", cell)] == []


@pytest.mark.parametrize("page", CHAPTERS)
def test_figures_have_captions_and_pictures_have_words(page):
    article = soup(page).select_one("article")
    assert [str(image)[:120] for image in article.select("img") if not image.get("alt", "").strip()] == []
    without = [str(figure)[:120] for figure in article.select("figure") if not figure.select_one("figcaption")]
    assert without == []


@cache
def anchors(path: Path) -> set[str]:
    """What can be linked to on a page."""
    return {tag["id"] for tag in BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select("[id]")}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_fragments_are_alive(page):
    dead = []
    for link in soup(page).select("a[href]"):
        href = link["href"]
        if re.match(r"[a-z]+:", href) or href == "#":
            continue
        target, fragment = urldefrag(urljoin(page, href))
        path = BOOK / unquote(target)
        if not path.is_file() or (fragment and path.suffix == ".html" and unquote(fragment) not in anchors(path)):
            dead.append(href)
    assert dead == []
