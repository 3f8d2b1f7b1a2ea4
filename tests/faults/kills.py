"""Kill long work at random moments, and see what is left: ``python tests/faults/kills.py [--trials N] [--record FILE] [WORK ...]``.

A trial starts the work in an empty folder, kills it outright with all its children, or alone, at a random moment of the time that
it takes undisturbed, and runs it again to its end. It is lost if the second run fails, if its result is not the undisturbed one,
if a file lies in the folder, after one more run, that an undisturbed run does not leave, or if a child of the first run lives on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import psutil
import torch
import torch._dynamo  # which optimisers import when they are first made: here, once, and not in every fork
from bs4 import BeautifulSoup

PATIENCE = 300  # seconds that a run may take undisturbed
GRACE = 30  # seconds that the children of a killed run may take to see it, to save their state, and to end
CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

from hosts import Host, served  # noqa: E402
from problems import F64, mlp  # noqa: E402

import experiments.synthetic.run  # noqa: E402, F401
from amaml_core import AMAML, Euler, Problem, fit, training  # noqa: E402
from amaml_core.records import write_beside  # noqa: E402
from amaml_core.samplers import CosMixture, FunctionSampler  # noqa: E402
from data_scripts import download, movielens_100k  # noqa: E402
from data_scripts.common import prepare  # noqa: E402
from data_scripts.fetch import Archive, obtain  # noqa: E402
from experiments import __main__ as runner  # noqa: E402
from experiments.common import records  # noqa: E402
from experiments.synthetic.settings import cells as synthetic_cells  # noqa: E402
from tools import book, notebooks  # noqa: E402
from tools.faults import keep  # noqa: E402


def train(folder: Path) -> object:
    """Ten meta steps with a checkpoint after each; theta."""
    training.SAVE_EVERY_SECONDS = 0.0
    torch.manual_seed(0)
    problem = Problem(mlp().double(), torch.nn.functional.mse_loss, trace=False)
    sampler = FunctionSampler(CosMixture(), 5, 5, 4, dtype=F64)
    adam = partial(torch.optim.Adam, lr=1e-2)
    found = fit(AMAML(0.5, Euler(5)), problem, sampler, 10, adam, folder / "run.safetensors", seed=0, progress=False)
    return found.theta.tolist()


def sweep(folder: Path, jobs: int = 1) -> object:
    """Four small cells by the command that runs them all; their tables."""
    cells = [cell for cell in synthetic_cells("smoke") if cell.kind == "curves"][:4]
    runner.cells = lambda profile, seed: cells
    runner.main(["--out", str(folder), "--jobs", str(jobs)])
    found = {record.key: record.table.to_dict("list") for record in records.read("synthetic", folder)}
    return [found.get(cell.key) for cell in cells]


def two_at_once(folder: Path) -> object:
    """The same in two processes, of which a kill strikes none: they are to end by themselves."""
    return sweep(folder, jobs=2)


def data(folder: Path) -> object:
    """MovieLens 100K from the mirror; what its files hold."""
    os.environ["AMAML_DATA"] = str(folder)
    prepare(movielens_100k.DATASET)
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "ml-100k").iterdir())}


def fetch(folder: Path) -> object:
    """Download a megabyte from a slow host; its digest."""
    download.SCHEMES = ("http",)  # the server of this machine has no certificate
    os.environ |= {"AMAML_DATA": str(folder), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    os.environ.pop("AMAML_MIRROR", None)
    body = random.Random(0).randbytes(2**20)
    with served(Host(body, pause=0.005)) as host:
        archive = Archive("movielens/ml-100k.zip", f"sha256:{sha256(body).hexdigest()}", (host.url,))
        return obtain(archive).sha256


def chapter(folder: Path) -> object:
    """Run a chapter; its outputs."""
    for tool in (notebooks, book):
        tool.ROOT, tool.NOTEBOOKS = folder, folder / "book"
    notebooks.SOURCES = folder / "book" / "src"
    notebooks.SOURCES.mkdir(parents=True, exist_ok=True)
    write_beside(notebooks.SOURCES / "one.md", CHAPTER.encode())
    notebook = json.loads(notebooks.run("one", "smoke").read_text(encoding="utf-8"))
    return [cell.get("outputs") for cell in notebook["cells"]]


def pages(folder: Path) -> object:
    """Run a chapter and render the book that it makes, as ``make book`` does; what its page shows of the outputs."""
    chapter(folder)
    (folder / "examples").mkdir(exist_ok=True)
    for name in ("status.md", "promises.md"):
        (folder / "book" / name).touch()
    shutil.copy(CHECKOUT / "_config.yml", folder)
    shutil.copytree(CHECKOUT / "book" / "_static", folder / "book" / "_static", dirs_exist_ok=True)
    (folder / "book" / "references.bib").touch()
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/one\n")
    book.BUILD = folder / "_build"
    book.INDEX = book.BUILD / "html" / "index.html"
    book.render("smoke")
    page = BeautifulSoup((book.BUILD / "html" / "book" / "one.html").read_text(encoding="utf-8"), "html.parser")
    return [output.get_text() for output in page.select(".cell_output")]


CHAPTER = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# Title

```{code-cell} python3
:tags: [parameters]

import os
profile = os.environ.get("AMAML_PROFILE", "book")
seed = 0
```

```{code-cell} python3
print(sum(range(seed + 10)))
```
"""
WORKS: dict[str, Callable[[Path], object]]
WORKS = {"fit": train, "cells": sweep, "sweep": two_at_once, "data": data, "download": fetch, "chapter": chapter, "pages": pages}


@dataclass(frozen=True)
class End:
    """How a run ended: its result, and the files that it left; ``error`` if it failed."""

    result: object = None
    files: frozenset[str] = frozenset()
    error: str = ""


def start(work: Callable[[Path], object], folder: Path, answer: Path) -> int:
    """Fork a process that does the work and writes how it went; its number."""
    if pid := os.fork():
        return pid
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(quiet, descriptor)
    try:
        said = {"result": work(folder)}
    except BaseException as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    answer.write_text(json.dumps(said))
    os._exit(0)


def kill(pid: int, alone: bool = False) -> None:
    """Kill a process that was started here with all its children; one that has no group of its own yet has none."""
    try:
        (os.kill if alone else os.killpg)(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def outliving(group: int) -> list[int]:
    """The processes of a group that do not end."""
    limit = time.monotonic() + GRACE
    while (left := living(group)) and time.monotonic() < limit:
        time.sleep(0.05)
    return left


def living(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def ended(pid: int) -> bool:
    """Wait for a process to end; whether it has done so by itself."""
    limit = time.monotonic() + PATIENCE
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > limit:
            kill(pid)
            return False
        time.sleep(0.01)
    return True


def finish(work: Callable[[Path], object], folder: Path) -> End:
    """Do the work undisturbed."""
    with tempfile.TemporaryDirectory() as other:
        answer = Path(other, "answer")
        said = json.loads(answer.read_text()) if ended(start(work, folder, answer)) else {"error": f"no end after {PATIENCE} s"}
    return End(said.get("result"), frozenset(str(p.relative_to(folder)) for p in folder.rglob("*")), said.get("error", ""))


def trials(work: Callable[[Path], object], count: int, draw: random.Random) -> Iterator[str]:
    """What was lost in each trial; an empty word for nothing."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        whole, took = finish(work, Path(folder)), time.monotonic() - begun
    if whole.error:
        raise RuntimeError(f"the undisturbed work failed: {whole.error}")
    for _ in range(count):
        with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other:
            folder = Path(name)
            pid = start(work, folder, Path(other, "answer"))
            time.sleep(draw.uniform(0, took))
            kill(pid, alone=work is two_at_once)
            end = finish(work, folder)
            if end.files - whole.files and not end.error:  # a kernel lives on for a moment, and may write behind that run's back
                end = finish(work, folder)
            if end.error:
                yield f"the second run failed: {end.error}"
            elif end.result != whole.result:
                yield "the second run ended otherwise"
            elif left := outliving(pid):
                os.killpg(pid, signal.SIGKILL)
                yield f"{len(left)} processes of the first run live"
            else:
                yield ", ".join(f"left {path}" for path in sorted(end.files - whole.files))


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--record", type=Path, help="a JSON file that gets the counts")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.works) - set(WORKS):
        parser.error(f"no work is called {', '.join(sorted(unknown))}; there are {', '.join(WORKS)}")
    torch.set_num_threads(1)  # no thread but this one may live when a process is forked
    counts, draw = {}, random.Random(arguments.seed)
    for name in arguments.works or WORKS:
        if name == "data" and "AMAML_MIRROR" not in os.environ:
            print("data: not tried, since AMAML_MIRROR names no folder with the archives")
            continue
        lost = [word for word in trials(WORKS[name], arguments.trials, draw) if word]
        counts[name] = {"tried": arguments.trials, "lost": len(lost)}
        print(f"{name}: {arguments.trials} kills, {len(lost)} lost", *sorted(set(lost)), sep="\n    ", flush=True)
    if arguments.record:
        keep(arguments.record, {f"kill {name}": count for name, count in counts.items()})
    total = {key: sum(count[key] for count in counts.values()) for key in ("tried", "lost")}
    print(f"{total['tried']} kills, {total['lost']} lost")
    return int(total["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
