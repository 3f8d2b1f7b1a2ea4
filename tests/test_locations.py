"""One rule says where the data lie, whoever asks and from wherever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amaml_core import locations, records
from amaml_core.datasets import load_images, load_ratings
from data_scripts import __main__ as everything
from data_scripts import common
from data_scripts.movielens_100k import DATASET
from tools import book

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("AMAML_DATA", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ROOT / "data"),
        ("", ROOT / "data"),
        ("elsewhere/data", ROOT / "elsewhere" / "data"),
        ("~/data", "HOME"),
        ("/srv/data", Path("/srv/data")),
    ],
)
def test_everyone_finds_the_same_folder_from_everywhere(home, monkeypatch, tmp_path, value, expected):
    if value is not None:
        monkeypatch.setenv("AMAML_DATA", value)
    expected = home / "data" if expected == "HOME" else expected
    for place in (ROOT, ROOT / "book", tmp_path):  # of the scripts, of the chapters, of somebody else
        monkeypatch.chdir(place)
        assert locations.data_root() == expected
        assert common.data_folder() == expected and common.archive_folder() == expected / "archives"


def test_without_a_home_folder_whoever_needs_it_is_told(home, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # nor does the system know one
    assert locations.data_root() == ROOT / "data"
    monkeypatch.setenv("AMAML_DATA", "~/data")
    with pytest.raises(ValueError, match="AMAML_DATA=~/data starts in a home folder, and there is none: name the whole path"):
        locations.data_root()


NOBODY = "~no-such-user-here/data"


@pytest.mark.parametrize("value", [NOBODY, "FILE"])
def test_a_place_that_cannot_be_is_told_in_a_line_by_whoever_asks(home, tmp_path, monkeypatch, capsys, value):
    (tmp_path / "file").touch()
    said = {
        NOBODY: "starts in a home folder, and there is none: name the whole path",
        "FILE": "file is not a folder; move it away, or",
    }
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "file") if value == "FILE" else value)
    asked = (lambda: everything.run(["--status"]), lambda: everything.run([]), lambda: common.command(DATASET, []))
    for ask in (*asked, lambda: book.main(["report"])):
        assert ask() == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said[value] in line


def test_a_mirror_that_cannot_be_is_told_in_a_line(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("AMAML_MIRROR", NOBODY)
    assert common.command(DATASET, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: AMAML_MIRROR={NOBODY} starts in a home folder, and there is none")


def test_the_makefile_stops_at_a_place_that_cannot_be():
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "help", f"PYTHON={sys.executable}", f"AMAML_DATA={NOBODY}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    why, stopped = done.stderr.splitlines()
    assert why == f"AMAML_DATA={NOBODY} starts in a home folder, and there is none: name the whole path"
    assert done.returncode == 2 and f"AMAML_DATA={NOBODY}: say a folder that there can be" in stopped


def test_the_makefile_asks_the_same_rule(home):
    # The manifests that a run of the chapters depends on, as make sees them, for a value as a person writes it.
    (home / "data" / "ml-100k").mkdir(parents=True)
    (home / "data" / "ml-100k" / "manifest.json").touch()
    show = "show:\n\t@echo $(DATA) $(MANIFESTS)\n"
    command = ["make", "-f", "Makefile", "-f", "-", "show", f"PYTHON={sys.executable}", "AMAML_DATA=~/data"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    environment["HOME"] = str(home)
    done = subprocess.run(command, cwd=ROOT, input=show, capture_output=True, text=True, env=environment)
    folder, *manifests = done.stdout.split()
    assert folder == str(home / "data"), done.stderr
    assert f"{folder}/ml-100k/manifest.json" in manifests


def test_a_mirror_follows_the_rule_too(home, monkeypatch, tmp_path):
    (home / "mirror").mkdir(parents=True)
    monkeypatch.setenv("AMAML_MIRROR", "~/mirror")
    assert common.mirror_folder() == home / "mirror"
    monkeypatch.setenv("AMAML_MIRROR", "data_scripts")
    monkeypatch.chdir(tmp_path)
    assert common.mirror_folder() == ROOT / "data_scripts"
    monkeypatch.delenv("AMAML_MIRROR")
    assert common.mirror_folder() is None


@pytest.fixture
def installed(home, monkeypatch, tmp_path):
    """The package in a folder that is no checkout."""
    monkeypatch.setattr(locations, "__file__", str(tmp_path / "site-packages" / "amaml_core" / "locations.py"))


def test_an_installed_package_has_no_folder_of_its_own(installed, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="set AMAML_DATA"):
        locations.data_root()
    with pytest.raises(FileNotFoundError, match="set AMAML_DATA"):
        load_ratings("ml-1m", allow_stand_in=False)
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "mine"))
    assert locations.data_root() == tmp_path / "mine"
    monkeypatch.setenv("AMAML_DATA", "mine")
    with pytest.raises(ValueError, match="AMAML_DATA=mine must be an absolute path"):
        load_ratings("ml-1m")


def test_an_installed_package_knows_no_commit(installed):
    assert records.commit() == "unknown"


def test_an_installed_package_loads_stand_ins(installed, capsys):
    assert not load_ratings("ml-1m").real and not load_images("omniglot", stand_in_classes=5).real
    assert capsys.readouterr().err.count("Using a stand-in") == 2


def test_the_data_scripts_do_not_wait_for_torch():
    code = "import sys, data_scripts.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_asking_for_the_commit_writes_nothing_that_a_kill_could_leave_half_done(tmp_path, monkeypatch):
    file = tmp_path / "amaml_core" / "records.py"
    file.parent.mkdir()
    file.write_text("")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    monkeypatch.setattr(records, "__file__", str(file))
    os.utime(file, (1, 1))  # so that git would write the index anew, under a lock
    assert len(records.commit()) == 40 and index.read_bytes() == before
    subprocess.run(["git", "status"], cwd=tmp_path, check=True, capture_output=True)
    assert index.read_bytes() != before  # as it does here
