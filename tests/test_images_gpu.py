"""What travels to a machine with a GPU, and what comes back."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from experiments.common import records
from experiments.common.records import new_record
from tools import images_gpu


@pytest.fixture
def prepared(tmp_path):
    """A data set of two files, packed in parts of 1 KiB."""
    data = tmp_path / "data" / "omniglot"
    data.mkdir(parents=True)
    (data / "manifest.json").write_text("{}")
    (data / "images.npy").write_bytes(bytes(range(256)) * 10)
    parts = images_gpu.pack(tmp_path / "data", tmp_path / "gpu", part_mib=1 / 1024, wheels=())
    assert len(parts) == 4 and max(part.stat().st_size for part in parts) == 1024
    return tmp_path


def there(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_come_one_by_one_and_make_the_same_files(prepared):
    last = prepared / "gpu" / "omniglot.003"
    kept = last.read_bytes()
    last.unlink()
    other = prepared / "other"
    assert images_gpu.join(other, prepared / "gpu") == {"omniglot": 1} and not other.exists()
    last.write_bytes(kept)
    assert images_gpu.join(other, prepared / "gpu") == {"omniglot": 0}
    assert there(other / "omniglot") == there(prepared / "data" / "omniglot")
    for part in (prepared / "gpu").glob("omniglot.0*"):
        part.unlink()
    assert images_gpu.join(other, prepared / "gpu") == {"omniglot": 0}  # made once, it needs no parts


def test_a_damaged_part_is_refused_and_nothing_is_left(prepared):
    (prepared / "gpu" / "omniglot.001").write_bytes(bytes(1024))
    with pytest.raises(ValueError, match=r"omniglot/images.npy is not what was packed"):
        images_gpu.join(prepared / "other", prepared / "gpu")
    assert [path.name for path in (prepared / "other").iterdir()] == [".omniglot.lock"]


def test_what_is_joined_has_the_usual_rights_and_takes_the_place_of_what_a_kill_left(prepared):
    other = prepared / "other"
    (other / ".omniglot-dead1234").mkdir(parents=True)
    (other / ".omniglot-dead1234" / "images.npy").touch()
    (other / "omniglot").mkdir()  # empty: nothing is lost
    (other / "omniglot").chmod(0o700)
    images_gpu.join(other, prepared / "gpu")
    assert {path.name for path in other.iterdir()} == {"omniglot", ".omniglot.lock"}
    assert (other / "omniglot").stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("file", [True, False])
def test_what_lies_where_a_data_set_goes_is_left_there(prepared, file):
    place = prepared / "other" / "omniglot"
    (place.parent if file else place).mkdir(parents=True)
    mine = place if file else place / "train.npy"
    mine.write_text("mine")
    with pytest.raises(ValueError, match="other/omniglot is in the way, and no data set: move it away and join again"):
        images_gpu.join(place.parent, prepared / "gpu")
    assert mine.read_text() == "mine" and [path.name for path in place.parent.iterdir()] == ["omniglot"]


def test_wheels_that_are_installed_in_part_are_installed_again(tmp_path, monkeypatch):
    def pip(command, check):
        place = Path(command[command.index("--target") + 1])
        place.mkdir()
        (place / f"{len(calls)}.py").touch()
        calls.append(command)
        if len(calls) == 1:
            raise KeyboardInterrupt

    calls = []
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(KeyboardInterrupt):
        images_gpu.install([tmp_path / "a.whl"], tmp_path / "site")
    assert not (tmp_path / "site").exists()
    images_gpu.install([tmp_path / "a.whl"], tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["1.py"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("omniglot", '[{"name": "../../hit", "parts": 1, "sha256": ""}]', "'../../hit' is no plain name of a file"),
        ("omniglot", '[{"name": "/hit", "parts": 1, "sha256": ""}]', "'/hit' is no plain name"),
        ("omniglot", '[{"name": "..", "parts": 1, "sha256": ""}]', "'..' is no plain name"),
        ("omniglot", '[{"name": 1, "parts": 1, "sha256": ""}]', "'1' is no plain name"),
        ("omniglot", '[{"name": "manifest.json", "parts": 1e9, "sha256": ""}]', "cannot have"),
        ("omniglot", '[{"name": "a", "parts": 1, "sha256": ""}, {"name": "a", "parts": 0, "sha256": ""}]', "stands there twice"),
        ("omniglot", '[{"name": "a", "parts": 1, "sha256": ""}]', "lists no manifest.json"),
        ("omniglot", '[{"name": "a"}]', "an entry is not a name"),
        ("omniglot", "{}", "no list of files"),
        ("omniglot", "{", "Expecting property name"),
        ("..", "[]", "no data set is called '..'"),
    ],
)
def test_a_listing_that_pack_does_not_write_is_refused_by_name_and_nothing_is_written(tmp_path, name, text, said):
    gpu = tmp_path / "gpu"
    gpu.mkdir()
    (gpu / f"{name}.json").write_text(text)
    (gpu / "omniglot.000").touch()
    with pytest.raises(ValueError, match="send it again") as error:
        images_gpu.join(tmp_path / "deep" / "data", gpu)
    assert f"{gpu / name}.json is no listing of parts: " in str(error.value) and said in str(error.value)
    assert {path.name for path in tmp_path.rglob("*")} == {"gpu", f"{name}.json", "omniglot.000"}


def test_parts_are_written_beside_and_renamed(prepared, monkeypatch):
    before = there(prepared / "gpu")
    (prepared / "data" / "omniglot" / "images.npy").write_bytes(bytes(2560))

    def full(file, beside):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="gpu/README"):
        images_gpu.pack(prepared / "data", prepared / "gpu", part_mib=1 / 1024, wheels=())
    assert there(prepared / "gpu") == before


def test_without_data_there_is_nothing_to_pack(tmp_path):
    with pytest.raises(FileNotFoundError, match="make data-images"):
        images_gpu.pack(tmp_path, tmp_path / "gpu")
    assert not (tmp_path / "gpu").exists()


SAVES = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
try:
    Path(sys.argv[1], "begun").touch()
    time.sleep(60)
except KeyboardInterrupt:
    Path(sys.argv[1], "saved").touch()
"""


def test_a_run_is_interrupted_when_its_minutes_are_over(tmp_path, monkeypatch):
    wait = subprocess.Popen.wait

    def until_it_has_begun(process, timeout=None):  # which may take longer than any limit, on a busy machine
        if timeout is None:
            return wait(process)
        assert timeout == 60 * 0.15
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", until_it_has_begun)
        assert not images_gpu.run(0.15, [sys.executable, "-c", SAVES, str(tmp_path)])
    assert (tmp_path / "saved").exists()
    assert images_gpu.run(1, [sys.executable, "-c", ""])
    with pytest.raises(subprocess.CalledProcessError):
        images_gpu.run(1, [sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.parametrize("verb", ["run", "join"])
def test_a_program_that_fails_is_named_in_one_line(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setattr(images_gpu, "FOLDER", tmp_path / "gpu")
    monkeypatch.setattr(sys, "executable", "false")
    (tmp_path / "gpu" / "wheels").mkdir(parents=True)
    (tmp_path / "gpu" / "wheels" / "a.whl").write_text("no wheel")
    assert images_gpu.main([verb]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("false -m ") and said.endswith(" ended with status 1; see above")


def test_records_that_come_back_are_added_to_ours(tmp_path):
    for seed, folder in ((0, "ours"), (0, "back"), (1, "back")):
        records.write(
            new_record("accuracy", {"size": folder}, seed, pd.DataFrame({"right": [1]}), 1.0), "images", tmp_path / folder
        )
    assert images_gpu.merge(tmp_path / "back", tmp_path / "ours") == 2
    assert [(r.settings["size"], r.seed) for r in records.read("images", tmp_path / "ours")] == [
        ("back", 0),
        ("back", 1),
        ("ours", 0),
    ]
    known = {r.commit for r in records.read("images", tmp_path / "ours")}
    records.write(replace(records.read("images", tmp_path / "back")[0], seed=2, commit="unknown"), "images", tmp_path / "back")
    images_gpu.merge(tmp_path / "back", tmp_path / "ours", commit="abc+")  # of those that do not know theirs
    assert {r.commit for r in records.read("images", tmp_path / "ours")} == known | {"abc+"}
    with pytest.raises(FileNotFoundError):
        images_gpu.merge(tmp_path / "none", tmp_path / "ours")
