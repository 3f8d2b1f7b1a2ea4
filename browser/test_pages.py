"""Every page of the rendered book as a reader meets it: light, dark, wide, and on a phone. ``make test-browser`` runs this.

The browser is Debian's Chromium, or the program that ``CHROMIUM`` names.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import nbformat
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page, Response, sync_playwright

from amaml_core import AMAML, Checkpoint, Euler, Problem, Tasks, meta_gradient
from experiments.common import schedules

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "_build" / "html"
FORWARD = '<meta http-equiv="Refresh"'  # a page that is left as soon as it is there
PAGES = sorted(
    str(p.relative_to(BOOK))
    for p in BOOK.rglob("*.html")
    if "_static" not in p.parts and not p.read_text("utf-8").startswith(FORWARD)
)
CHAPTERS = [page for page in PAGES if re.match(r"book/\d\d_", page)]
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "wide": ("light", 1920), "phone": ("light", 390)}  # scheme, width
# All tests of a page in one process, which opens it once.
EACH_PAGE = pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in PAGES])
EACH_CHAPTER = pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in CHAPTERS])
PATIENCE = 120_000  # milliseconds: the machine may be busy
HEAVIEST = 3 * 2**20  # bytes of a page and all that it loads
# What axe looks at: all rules in light, and in dark the colours, which are what is different. Formulas are MathJax's own affair.
FORMULAS = {"exclude": [["mjx-container"]]}
RULES = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}
# Mathematics, tables and roles that nobody has set.
RAW = r"\$\$|\\\(|\\frac|\\begin\{|\|\s*(?:-{3,}|—)\s*\||\{(?:ref|cite|eq|numref|glue:text)\}`"
# What is folded is looked at, too.
OPEN = "document.querySelectorAll('details').forEach(fold => { fold.open = true; })"
# The formulas that have to be scrolled, or reach beyond the text.
CLIPPED = """[...document.querySelectorAll("article mjx-container")]
    .filter(formula => formula.getAttribute("display") === "true" ? formula.scrollWidth > formula.clientWidth + 1
        : formula.getBoundingClientRect().right > formula.closest("article").getBoundingClientRect().right + 1)
    .map(formula => formula.textContent)"""
# The captions that are wider than the box in which their table scrolls.
CUT = """[...document.querySelectorAll(".cell_output caption")]
    .filter(caption => caption.offsetWidth > caption.closest(".cell_output").clientWidth + 1)
    .map(caption => caption.textContent)"""


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
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=PATIENCE)
        yield started
        started.close()


@dataclass
class Visit:
    """What a page was like.

    Attributes:
        complaints: what went wrong while it was loaded.
        too_wide: by how many pixels it does not fit the window, by look.
        clipped: the formulas that do not fit the text of a window of the usual width.
        cut: the captions of tables that are wider than the place for the table, which scrolls, by look.
        serious: what shuts people out, in light and in dark.
        weight: bytes of all that was loaded.
    """

    complaints: list[str] = field(default_factory=list)
    too_wide: dict[str, int] = field(default_factory=dict)
    clipped: list[str] = field(default_factory=list)
    cut: dict[str, list[str]] = field(default_factory=dict)
    serious: list[str] = field(default_factory=list)
    weight: int = 0


@pytest.fixture(scope="session")
def visits(browser: Browser, site: str) -> Callable[[str], Visit]:
    """Each page is opened once, and then looked at in all ways."""

    @cache
    def visit(page: str) -> Visit:
        found, context = Visit(), browser.new_context(viewport={"width": 1280, "height": 900})
        say, tab = found.complaints.append, context.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("console", lambda message: message.type == "error" and say(f"console: {message.text}"))
        tab.on("pageerror", lambda error: say(f"script: {error}"))
        tab.on("requestfailed", lambda request: say(f"not loaded: {request.url}"))
        tab.on("request", lambda asked: asked.url.startswith((site, "data:", "blob:")) or say(f"asked outside: {asked.url}"))
        tab.on("response", lambda answer: answered(found, answer, site))
        tab.goto(f"{site}/{page}", wait_until="load")
        tab.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => null) : null")
        tab.add_style_tag(content="* { transition: none !important; animation: none !important }")  # or colours are on their way
        tab.evaluate(OPEN)
        for look, (scheme, width) in LOOKS.items():
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": width, "height": 900})
            wide, window = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            found.too_wide |= {look: wide - window} if wide > window + 1 else {}
            found.clipped += tab.evaluate(CLIPPED) if look == "light" else []
            cut = tab.evaluate(CUT)
            found.cut |= {look: cut} if cut else {}
            if look in RULES:
                options = {"preload": False, "resultTypes": ["violations"]} | RULES[look]
                violations = Axe().run(tab, FORMULAS, options).response["violations"]
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


@EACH_PAGE
def test_a_page_loads_from_here_alone_and_without_errors(visits, page):
    assert visits(page).complaints == []


@EACH_PAGE
def test_a_page_fits_its_window(visits, page):
    assert visits(page).too_wide == {}


@EACH_CHAPTER
def test_formulas_are_read_without_scrolling(visits, page):
    assert visits(page).clipped == []


@EACH_CHAPTER
def test_captions_of_tables_are_read_without_scrolling(visits, page):
    assert visits(page).cut == {}


@EACH_PAGE
def test_nobody_is_shut_out(visits, page):
    assert visits(page).serious == []


@EACH_CHAPTER
def test_a_page_is_light(visits, page):
    assert visits(page).weight <= HEAVIEST


def test_the_search_finds_the_adjoint(browser, site):
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto(f"{site}/search.html?q=adjoint")
    found = tab.locator("#search-results li a")
    found.nth(4).wait_for()  # they come one by one
    assert found.count() >= 5


@EACH_CHAPTER
def test_nothing_is_left_raw(page):
    article = BeautifulSoup(str(soup(page).select_one("article")), "html.parser")
    for code in article.select("pre, code, .math, script, style"):
        code.decompose()
    text = article.get_text()
    raw = re.findall(rf".{{0,40}}(?:{RAW}).{{0,40}}", text)
    assert raw == []


@EACH_CHAPTER
def test_tables_hold_no_missing_values_in_pythons_words(page):
    cells = [cell.get_text().strip() for cell in soup(page).select("article td")]
    assert [cell for cell in cells if re.fullmatch(r"nan|NaN|None|<NA>|NaT", cell)] == []


@EACH_CHAPTER
def test_figures_have_captions_and_pictures_have_words(page):
    article = soup(page).select_one("article")
    assert [str(image)[:120] for image in article.select("img") if not image.get("alt", "").strip()] == []
    without = [str(figure)[:120] for figure in article.select("figure") if not figure.select_one("figcaption")]
    assert without == []


@EACH_CHAPTER
def test_tables_that_code_shows_have_captions(page):
    tables = soup(page).select("article .cell_output table")
    assert [str(table)[:120] for table in tables if not (table.caption and table.caption.get_text().strip())] == []


@cache
def anchors(path: Path) -> set[str]:
    """What can be linked to on a page."""
    return {tag["id"] for tag in BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select("[id]")}


@EACH_PAGE
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


# ------------------------------------------------------------------------------------------------ figures with sliders

SLIDERS = {
    "05_amaml": ("there-and-back", ("horizon T", "steps K")),
    "06_discretise_optimise": ("step-factor", ("h a", "steps K")),
    "07_which_states": ("checkpoint-schedule", ("steps K", "snapshots s")),
}


@pytest.fixture(scope="module")
def from_disk(browser: Browser) -> Callable[[str], Page]:
    """Chapters as files, opened once each: no server, and no network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    context.set_default_timeout(PATIENCE)

    @cache
    def opened(chapter: str) -> Page:
        tab = context.new_page()
        tab.goto((BOOK / "book" / f"{chapter}.html").as_uri(), wait_until="load")
        return tab

    return opened


def defined(chapter: str, *names: str) -> list[object]:
    """What the cells of a chapter define under these names, each by its first definition, in an order that works."""
    cells = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4).cells
    nodes = [node for cell in cells if cell.cell_type == "code" for node in ast.parse(cell.source).body]
    first = {}
    for node in nodes:
        target = node.targets[0] if isinstance(node, ast.Assign) else node
        first.setdefault(getattr(target, "id", getattr(target, "name", None)), node)
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    scope = {}
    exec(ast.unparse(ast.Module([*imports, *(first[name] for name in names)], [])), scope)
    return [scope[name] for name in names]


def shown(tab: Page, name: str) -> tuple[list[str], str]:
    """The paths of a drawing, and its read-out."""
    figure = tab.locator(f"#try-{name}")
    paths = figure.locator("svg path").evaluate_all("all => all.map(path => path.getAttribute('d'))")
    return paths, figure.locator("[aria-live]").inner_text()


@pytest.mark.parametrize("chapter", SLIDERS)
def test_a_slider_moves_its_figure_by_the_keyboard(from_disk, chapter):
    tab, (name, labels) = from_disk(chapter), SLIDERS[chapter]
    before = shown(tab, name)
    assert any(before[0]) and re.search(r"\d", before[1]), "nothing is drawn before a slider is touched"
    for label in labels:
        tab.locator(f"#try-{name}").get_by_label(label, exact=True).press("ArrowRight")
        after = shown(tab, name)
        assert after[0] != before[0] and after[1] != before[1], label
        before = after


@pytest.fixture(scope="module")
def landscape() -> tuple[Problem, torch.Tensor, Tasks]:
    """The problem of the first figure of chapter 5, theta, and its one task, as the chapter defines them."""
    names = ("Point", "bent_valley", "round_bowl", "landscape", "nothing", "place", "left")
    *_, problem, _, tasks, theta = defined("05_amaml", *names)
    return problem, theta, tasks


@pytest.mark.parametrize(("horizon", "steps"), [(1.2, 16), (1.2, 3), (0.1, 1), (3.0, 64)])
def test_the_arrow_with_sliders_is_the_packages_meta_gradient(from_disk, landscape, horizon, steps):
    found = from_disk("05_amaml").evaluate("([T, K]) => amaml.thereAndBack.metaGradient(T, K)", [horizon, steps])
    problem, theta, tasks = landscape
    wanted = meta_gradient(AMAML(horizon, Euler(steps)), problem, theta, tasks)
    ends = (found["gradient"], found["u"][-1], found["loss"])
    for number, same in zip(ends, (wanted.gradient, wanted.adapted[0], wanted.query_loss[0]), strict=True):
        torch.testing.assert_close(torch.tensor(number, dtype=torch.float64), same, rtol=1e-10, atol=1e-10)
    difference = from_disk("05_amaml").evaluate("([T, K]) => amaml.thereAndBack.finiteDifference(T, K)", [horizon, steps])
    torch.testing.assert_close(torch.tensor(difference, dtype=torch.float64), wanted.gradient, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("ha", [-0.3, 0.5, 1.0, 1.7, 2.3])
def test_the_factor_with_sliders_is_the_packages_meta_gradient_of_a_parabola(from_disk, ha):
    (point,) = defined("05_amaml", "Point")
    parabola = Problem(point(1), lambda u, y: (2 * ha * u**2).sum(), query_loss=lambda u, y: u.sum())  # a = 4 ha, h = 1/4
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    wanted = meta_gradient(AMAML(2.0, Euler(8)), parabola, one[0, 0], Tasks(one, one, one, one)).gradient.item()
    found = from_disk("06_discretise_optimise").evaluate("ha => amaml.stepFactor.over(ha, 8)", ha)
    assert found["descent"] == pytest.approx(wanted, rel=1e-10)
    assert found["flow"] * found["flowBack"] == pytest.approx(1)
    assert ha == 1 or found["descent"] * found["descentBack"] == pytest.approx(1)


@pytest.mark.parametrize(("steps", "snapshots"), [(1, 1), (2, 1), (12, 1), (24, 3), (35, 4), (40, 2), (60, 5), (5, 10), (60, 10)])
def test_the_schedule_with_sliders_is_the_packages(from_disk, steps, snapshots):
    log, kept, cost, form = from_disk("07_which_states").evaluate(
        """([K, s]) => {
            const { calls, kept, cost, closedForm } = amaml.checkpointSchedule;
            return [calls(K, s), kept(calls(K, s)), cost(K, s), closedForm(K, s)];
        }""",
        [steps, snapshots],
    )
    memory = Checkpoint(snapshots=snapshots)
    wanted = schedules.calls(memory, steps)
    assert [(call["kind"], call["step"]) for call in log] == wanted
    assert [(entry["state"], entry["made"], entry["read"]) for entry in kept] == schedules.kept(wanted)
    assert (cost["forwardSteps"], cost["states"]) == schedules.cost(memory, steps)
    assert (cost["forwardSteps"], cost["repetitions"]) == (form["forwardSteps"], form["r"])
