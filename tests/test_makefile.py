"""What a person sets for `make` is text: nothing in it is run, and what makes no sense is refused before anything is done."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).resolve().parents[1]
EVIL = [
    "x; touch {}", "$(shell touch {})", "$(touch {})", "`touch {}`", "'; touch {}; '", '"; touch {}; "', "x\ntouch {}\n", "%",
    "x\n\ttouch {}", "x & touch {} #", "$(eval y:=$(shell touch {}))", "$$(touch {})", "x | touch {}", "${{shell touch {}}}",
]  # fmt: skip
evil = pytest.mark.parametrize("texts", [EVIL[:2], pytest.param(EVIL[2:], marks=pytest.mark.slow)], ids=["two", "rest"])


@pytest.fixture
def make(tmp_path):
    """``make(*arguments, **environment)`` in this checkout, with an environment whose `python` only tells what it is asked."""
    log = tmp_path / "log"
    for venv in ("venv", "venv-bench"):
        python = tmp_path / venv / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nprintf '<%s>' \"$@\" >> '{log}'\n")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        (tmp_path / venv / ".ready").touch()

    def call(*arguments, **environment):
        log.unlink(missing_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "AMAML_"))}
        given = {"VENV": str(tmp_path / "venv"), "PYTHON": sys.executable, "AMAML_DATA": str(tmp_path / "data"), **environment}
        done = subprocess.run(["make", *arguments], cwd=ROOT, env={**kept, **given}, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr, log.read_text() if log.exists() else ""

    return call


REFUSED = {"NB": "notebook", "PROFILE": "data", "JOBS": "data", "SEED": "data", "VENV": "data", "OMP_NUM_THREADS": "data",
           "AMAML_DATA": "data"}  # fmt: skip


@evil
@pytest.mark.parametrize("variable", REFUSED)
def test_what_is_no_name_or_number_is_refused_and_not_run(make, tmp_path, variable, texts):
    hit = tmp_path / "hit"
    for text in texts:
        value = text.format(hit)
        for arguments, environment in (([f"{variable}={value}"], {}), ([], {variable: value})):
            code, said, asked = make(REFUSED[variable], *arguments, **environment)
            assert code and f"{variable}=" in said and not asked and not hit.exists(), (value, said)


TAKEN = {
    "CELL": "full",
    "FORCE": "full",
    "LIST": "full",
    "BENCH": "bench",
    "LAB": "lab",
    "PAGES": "pdf",
    "SCHEDULER": "full",
    "TAG": "dist",
    "AMAML_MIRROR": "data",
    "PIP_EXTRA_INDEX_URL": "data",
}


def test_every_setting_is_tried():
    (settings,) = re.findall(r"^override SETTINGS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*settings.split()} == {*REFUSED, *TAKEN, "PYTHON"}


@evil
@pytest.mark.parametrize("variable", TAKEN)
def test_what_may_be_any_text_arrives_as_it_is_and_is_not_run(make, tmp_path, variable, texts):
    hit = tmp_path / "hit"
    for text in texts:
        value = text.format(hit)
        code, said, asked = make(TAKEN[variable], f"{variable}={value}")
        assert code == 0 and not hit.exists(), (value, said)
        assert variable not in ("CELL", "FORCE") or f"<--only={value}>" in asked
        words = "".join(f"<{word}>" for word in value.split())
        assert variable not in ("BENCH", "LAB", "PAGES") or words in asked


@evil
def test_python_is_one_program_and_not_a_line_of_commands(make, tmp_path, texts):
    hit = tmp_path / "hit"
    (tmp_path / "venv" / ".ready").unlink()
    for text in texts:
        code, said, asked = make("env", f"PYTHON={text.format(hit)}")
        assert code and "is not there, or older than 3.11" in said and not asked and not hit.exists(), said


@pytest.mark.parametrize(("target", "venv"), [("env", "venv"), ("bench", "venv-bench")])
@pytest.mark.parametrize("taken", [True, False])
def test_an_environment_of_another_checkout_is_left_to_it(make, tmp_path, target, venv, taken):
    (tmp_path / venv / ".ready").unlink()
    site, other = tmp_path / venv / "lib" / "python3.11" / "site-packages", tmp_path / "other"
    for folder in (site, other):
        folder.mkdir(parents=True)
    (other / "Makefile").touch()
    for known in [other] if taken else [ROOT, tmp_path / "gone"]:
        (site / "checkout.pth").write_text(f"{known}\n")
        code, said, asked = make(target, PYTHON="/no/python")
        stopped = f"The environment {tmp_path / venv} belongs to the checkout {other}; choose another folder" in said
        assert code and not asked and stopped == taken, said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("notebook",), "NB=: say for example make notebook NB=12_collaborative_filtering; one of 00_preface"),
        (("notebook", "NB="), "NB=: say"),
        (("notebook", "NB=04_adjoint 05_amaml"), "NB=04_adjoint 05_amaml: say"),
        (("notebook", "NB=--help"), "NB=--help: say"),
        (("data", "PROFILE=smoke book"), "PROFILE=smoke book: say one of smoke book full"),
        (("data", "PROFILE="), "PROFILE=: say"),
        (("data", "JOBS=0"), "JOBS=0: say a number from 1 to 9999"),
        (("data", "JOBS=99999999999"), "JOBS=99999999999: say"),
        (("data", "OMP_NUM_THREADS=99999999999"), "OMP_NUM_THREADS=99999999999: say"),
        (("full", "FORCE=jester", "CELL=ratings"), "FORCE=jester and CELL=ratings: say one of them"),
        (("full", "PROFILE=smoke"), "PROFILE=smoke: say PROFILE=full or nothing"),
        (("data", "JOBS=-1"), "JOBS=-1: say"),
        (("data", "JOBS=2.5"), "JOBS=2.5: say"),
        (("data", "SEED=-1"), "SEED=-1: say"),
        (("data", "VENV=my folder"), "VENV=my folder: say a path of"),
        (("data", "VENV=-x"), "VENV=-x: say"),
    ],
)
def test_settings_are_checked_before_anything_is_done(make, arguments, said):
    code, output, asked = make(*arguments)
    assert code == 2 and said in output and not asked


def test_new_data_concern_the_chapters_that_read_them_and_no_others(make, tmp_path):
    manifest = tmp_path / "data" / "ml-100k" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    _, rules, _ = make("-npq", "notebooks")
    needs = re.findall(r"^_runs/smoke/(\w+)\.ipynb: (.*)$", rules, re.MULTILINE)
    readers = {name for name, files in needs if str(manifest) in files.split()}
    loads = r"\bload_(ratings|images)\(|\bsamplers\(|\b(ratings|ratings_gap|images)\.(live|first_look)\("
    assert readers == {path.stem for path in (ROOT / "book" / "src").glob("*.md") if re.search(loads, path.read_text())}


def test_settings_arrive(make):
    assert make("notebook", "NB=04_adjoint", "PROFILE=book", "SEED=3")[2] == (
        "<-m><tools.notebooks><run><04_adjoint><--profile><book><--without-data><--seed><3>"
    )
    assert make("notebook", "NB=19_report")[2] == "<-m><tools.notebooks><run><19_report><--profile><smoke><--seed><0>"
    code, _, asked = make("full", "FORCE=jester 'one", JOBS="7")
    assert code == 0 and asked.endswith("<-m><experiments><--jobs><7><--force><--only=jester 'one>")
    assert make("full", "LIST=1")[2].endswith("<-m><experiments><--jobs><2><--list>")
    for given in (["SEED=1"], ["SEED=1", "PROFILE=full"]):
        assert make("full", *given)[2].endswith("<-m><experiments><--jobs><2><--seed=1>")
    assert make("full", "SEED=1", CELL="jester")[2].endswith("<--jobs><2><--seed=1><--only=jester>")


def test_what_is_no_setting_is_neither_taken_nor_run(make, tmp_path):
    hit, text = tmp_path / "hit", (ROOT / "Makefile").read_text()
    known = {*re.search(r"SETTINGS := (.*)", text)[1].split()}
    own = {*re.findall(r"^(?:override )?([\w-]+) [:?]?= ", text, re.MULTILINE)} - known
    assert {"NAMES", "CODE", "PY", "SUBMAKE", "PYTEST", "demand"} <= own
    given = [f"{name}=$(shell touch {hit})" for name in own]
    code, said, asked = make("notebook", "NB=04_adjoint", *given)
    assert code == 0 and not hit.exists(), said
    assert asked == "<-m><tools.notebooks><run><04_adjoint><--profile><smoke><--without-data><--seed><0>"
    code, said, _ = make("data", "-e", **dict(text.split("=", 1) for text in given))
    assert code == 0 and not hit.exists(), said


@pytest.mark.parametrize("fast", [False, True])
def test_a_run_from_a_clock_that_was_fast_is_made_again(make, tmp_path, fast):
    book = tmp_path / "book"
    texts = ["Makefile", "book/src/one.md", "amaml_core/locations.py", "experiments/x.py", "examples/x.py", "tools/notebooks.py",
             "requirements.lock", "pyproject.toml", "_runs/smoke/one.ipynb"]  # fmt: skip
    for place, name in enumerate(texts):
        path = book / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes() if name == "Makefile" else b"")
        os.utime(path, (place + 1e9,) * 2)
    (tmp_path / "venv" / ".ready").touch()
    os.utime(tmp_path / "venv" / ".ready", (1e9 + 20,) * 2)
    at = time.time() + 7200 if fast else 1e9 + 30
    os.utime(book / "_runs" / "smoke" / "one.ipynb", (at, at))
    code, said, asked = make("-C", str(book), "notebooks", f"PYTHON={tmp_path / 'no'}")
    assert code == 0, said
    assert ("<run><one>" in asked) == fast


@pytest.mark.parametrize("fails", [False, True])
def test_a_lock_file_is_written_whole_or_not_at_all(make, tmp_path, fails):
    book = tmp_path / "book"
    (book / "amaml_core").mkdir(parents=True)
    (book / "amaml_core" / "locations.py").touch()
    (book / "pyproject.toml").touch()
    (book / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (book / "requirements.lock").write_text("# said before\na==1.0\n")
    os.utime(book / "requirements.lock", (1e9,) * 2)
    os.utime(book / "pyproject.toml", (1e9,) * 2)
    python = tmp_path / "venv" / "bin" / "python"
    freeze = "echo a==2.0; exit 1" if fails else "echo a==2.0; echo torch==2.11.0+cpu"
    python.write_text(f'#!/bin/sh\nif [ "$3" = freeze ]; then {freeze}; else echo hashes; fi\n')
    code, said, _ = make("-C", str(book), "lock")
    assert (code != 0) == fails and ("hashes" in said) != fails, said
    kept = "# said before\na==1.0\n" if fails else "# said before\na==2.0\ntorch==2.11.0\n"
    assert (book / "requirements.lock").read_text() == kept
    assert {path.name for path in book.iterdir()} == {"Makefile", "amaml_core", "pyproject.toml", "requirements.lock"}


@pytest.mark.slow
def test_lab_starts_with_the_kernel_of_its_own_python_whatever_others_there_are(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / "venv" / ".ready").touch()
    for place in ("jupyter", "JUPYTER_DATA_DIR"):
        foreign = tmp_path / place / "kernels" / "python3" / "kernel.json"
        foreign.parent.mkdir(parents=True)
        foreign.write_text(json.dumps({"argv": ["/no/python"], "display_name": "x", "language": "python"}))
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    environment |= {**own, "JUPYTER_PATH": str(tmp_path / "jupyter"), "JUPYTER_TOKEN": "x", "VENV": str(tmp_path / "venv")}
    options = "LAB=--no-browser --allow-root --port=0 --ServerApp.port_retries=0"
    log = tmp_path / "log"
    with log.open("w") as file:
        lab = subprocess.Popen(["make", "lab", f"PYTHON={sys.executable}", options], cwd=ROOT, env=environment, stdout=file,
                               stderr=file, start_new_session=True)  # fmt: skip
    try:
        for _ in range(240):
            try:
                (told,) = (tmp_path / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json")
                address = f"http://127.0.0.1:{json.loads(told.read_text())['port']}"
                specs = json.load(urlopen(f"{address}/api/kernelspecs?token=x", timeout=60))
                page = urlopen(f"{address}/lab?token=x", timeout=60).read().decode()
                break
            except (OSError, ValueError):  # it has not told its port yet, or does not answer
                assert lab.poll() is None, log.read_text()
                time.sleep(0.5)
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(30)
    (kernel,) = specs["kernelspecs"].values()
    assert kernel["spec"]["argv"][0] in ("python", "python3", sys.executable)  # what Jupyter takes for its own Python
    assert "jupyterlab-myst" in page
