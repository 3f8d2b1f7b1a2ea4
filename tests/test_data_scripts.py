"""Claims about fetching and preparing the data sets, on tiny archives laid out like the official ones."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from hosts import Host, served
from PIL import Image, ImageOps

from data_scripts import __main__ as everything
from data_scripts import archives, common, download, jester, mini_imagenet, movielens_1m, movielens_100k, omniglot, ratings
from data_scripts.common import DataError, DataSet, Unreachable, command, prepare
from data_scripts.fetch import Archive, obtain_all
from tools import book

ROOT = Path(__file__).resolve().parents[1]
REAL_MIRROR = os.environ.get("AMAML_MIRROR")

# user, item, rating with ids from 1, not in order, and item 5 the last one
ROWS = [(2, 5, 4), (1, 3, 1), (3, 1, 5), (1, 2, 2), (2, 1, 3), (3, 5, 4)]
COUNTS = {"users": 3, "items": 5, "ratings": 6}
SORTED = {"user": [0, 0, 1, 1, 2, 2], "item": [1, 2, 0, 4, 0, 4], "rating": [2, 1, 3, 4, 5, 4]}

ML_100K = replace(movielens_100k.DATASET, counts=COUNTS)
ML_1M = replace(movielens_1m.DATASET, counts=COUNTS)
JESTER = replace(jester.DATASET, counts={"users": 3, "items": 4, "ratings": 7})
MATRIX = [[2, 99, -9.85, 99, 10.0], [4, 0.5, 1.25, -10.0, 3.0], [1, 99, 99, 7.82, 99]]
OMNIGLOT = replace(omniglot.DATASET, counts={"background": 3, "evaluation": 1, "drawers": 2})


# -- tiny archives


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty mirror in use, with an empty folder for prepared data."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("AMAML_MIRROR", str(folder))
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "data"))
    return folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No mirror, no proxy, and an empty folder for prepared data, which is returned."""
    monkeypatch.delenv("AMAML_MIRROR", raising=False)
    for name in ("NO_PROXY", "no_proxy"):  # requests prefers the latter
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def put(mirror: Path, path: str, data: bytes) -> Path:
    """Write a file of a mirror and sign everything in the mirror."""
    target = mirror / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    sign(mirror)
    return target


def sign(mirror: Path) -> None:
    files = sorted(path for path in mirror.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(mirror).as_posix()}" for path in files]
    (mirror / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def lines_100k(rows: list[tuple] = ROWS) -> bytes:
    return "".join("\t".join(map(str, (*row, 881250949))) + "\n" for row in rows).encode()


def put_100k(mirror: Path, data: bytes | None = None) -> Path:
    members = {"ml-100k/README": b"terms", "ml-100k/u.data": lines_100k() if data is None else data}
    return put(mirror, "movielens/ml-100k.zip", zipped(members))


def put_jester(mirror: Path, matrix: list[list[float]] = MATRIX) -> Path:
    text = "\n".join(",".join(f"{value:g}" for value in row) for row in matrix) + "\n"
    return put(mirror, "jester/jester_dataset_1_1.zip", zipped({"jester-data-1.csv": text.encode()}))


def biff2(matrix: list[list[float | str]]) -> bytes:
    """A sheet in the oldest Excel format: begin, a record per cell, end."""
    records = [struct.pack("<HHHH", 0x0009, 4, 7, 0x0010)]
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            place = struct.pack("<HH3x", row, column)
            if isinstance(value, str):
                body, kind = place + bytes([len(value)]) + value.encode("ascii"), 0x0004
            else:
                body, kind = place + struct.pack("<d", value), 0x0003
            records.append(struct.pack("<HH", kind, len(body)) + body)
    return b"".join(records) + struct.pack("<HH", 0x000A, 0)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def headed_png(width: int, height: int) -> bytes:
    """A PNG that says to be of a size, and holds next to nothing."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(10**6))),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def flipped(data: bytes) -> bytes:
    """With a bit of the pixels changed: decoders need not notice."""
    place = data.index(b"IDAT") + 200
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def paper() -> np.ndarray:
    return np.full((105, 105), 255, np.uint8)


def drawings() -> dict[str, np.ndarray]:
    """Path in the archives -> 105 x 105 pixels, ink 0: three background characters, one for evaluation, two drawers."""
    generator = np.random.default_rng(3)
    names = ["Latin/character02/0002", "Latin/character01/0001", "Greek/character01/0003"]
    names = [f"images_background/{name}" for name in names] + ["images_evaluation/Tengwar/character01/0004"]
    return {
        f"{name}_{drawer:02d}.png": np.where(generator.random((105, 105)) < 0.3, 0, 255).astype(np.uint8)
        for name in names
        for drawer in (1, 2)
    }


def put_omniglot(mirror: Path, pictures: Mapping[str, bytes] | None = None) -> None:
    pictures = pictures or {name: png(pixels) for name, pixels in drawings().items()}
    for split in omniglot.SPLITS:
        members = {"images_" + split + "/": b""}  # the official archives hold entries for folders too
        members |= {name: data for name, data in pictures.items() if name.startswith(f"images_{split}/")}
        put(mirror, f"omniglot/images_{split}.zip", zipped(members))


WNIDS = {"train": ["n00000002", "n00000001"], "val": ["n00000003"], "test": ["n00000004"]}


def mini(digests: Mapping[str, str] | None = None) -> DataSet:
    found = {split: hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest() for split, names in WNIDS.items()}
    return replace(
        mini_imagenet.DATASET,
        counts={"train": 2, "val": 1, "test": 1, "images_per_class": 3},
        build=partial(mini_imagenet.build, class_digests=digests or found),
    )


def jpegs(side: int = 84) -> dict[str, bytes]:
    generator = np.random.default_rng(5)
    found = {}
    for wnid in sum(WNIDS.values(), []):
        for number in range(3):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "JPEG")
            found[f"{wnid}{number:08d}.jpg"] = buffer.getvalue()
    return found


def put_mini(mirror: Path, images: Mapping[str, bytes], folder: bool = False) -> None:
    for split, wnids in WNIDS.items():
        names = [(name, wnid) for wnid in wnids for name in jpegs() if name.startswith(wnid)]
        text = "filename,label\n" + "".join(f"{name},{wnid}\n" for name, wnid in reversed(names))
        put(mirror, f"mini-imagenet/{split}.csv", text.encode())
    parts = {
        "train_a": ["n00000001"],
        "train_b": ["n00000002"],
        "val": ["n00000003"],
        "test": ["n00000004"],
    }
    for part, (wnid,) in parts.items():
        chosen = {f"images/{name}": data for name, data in images.items() if name.startswith(wnid)}
        if folder:
            for name, data in chosen.items():
                put(mirror, f"mini-imagenet/{name}", data)
        else:
            put(mirror, f"mini-imagenet/images_{part}.tar.xz", tarred(chosen))


def tarred(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def arrays(dataset: DataSet) -> dict[str, list]:
    with np.load(common.data_folder() / dataset.name / "ratings.npz", allow_pickle=False) as found:
        return {name: found[name].tolist() for name in found.files}


def manifest(dataset: DataSet) -> dict:
    return json.loads((common.data_folder() / dataset.name / "manifest.json").read_text(encoding="utf-8"))


def nothing_half_made() -> bool:
    """Whether the data folder holds neither a temporary folder nor a data set without its manifest."""
    entries = [entry for entry in common.data_folder().iterdir() if entry.is_dir() and entry.name != "archives"]
    return all(not entry.name.startswith(".") and (entry / "manifest.json").is_file() for entry in entries)


# -- what the arrays hold


def test_movielens_arrays_are_the_rows_sorted_by_user_and_item(mirror: Path) -> None:
    archive = put_100k(mirror)
    assert prepare(ML_100K)
    assert arrays(ML_100K) == SORTED
    with np.load(common.data_folder() / "ml-100k/ratings.npz") as found:
        assert [found[name].dtype.name for name in ("user", "item", "rating")] == ["int32", "int32", "float32"]
    entries = manifest(ML_100K)
    assert entries["counts"] == COUNTS
    assert entries["sha256"] == {"movielens/ml-100k.zip": hashlib.sha256(archive.read_bytes()).hexdigest()}
    assert entries["official"] is False
    assert entries["rated_items"] == 4
    assert "no redistribution" in entries["licence"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("timestamp", ["", "::978300760"])
def test_movielens_1m_reads_rows_with_and_without_timestamps(mirror: Path, timestamp: str, ending: str) -> None:
    text = ending.join("::".join(map(str, row)) + timestamp for row in ROWS)
    put(mirror, "movielens/ml-1m.zip", zipped({"ml-1m/ratings.dat": text.encode()}))
    prepare(ML_1M)
    assert arrays(ML_1M) == SORTED


def jester_arrays() -> dict[str, list]:
    rating = np.array([-9.85, 10, 0.5, 1.25, -10, 3, 7.82], np.float32).tolist()
    return {"user": [0, 0, 1, 1, 1, 1, 2], "item": [1, 3, 0, 1, 2, 3, 2], "rating": rating}


def test_jester_reads_the_matrix_from_a_table(mirror: Path) -> None:
    put_jester(mirror)
    prepare(JESTER)
    assert arrays(JESTER) == jester_arrays()


def put_spreadsheet(mirror: Path, data: bytes) -> DataSet:
    """Jester with a spreadsheet in the official archive."""
    path = put(mirror, "jester/jester_dataset_1_1.zip", zipped({"jester-data-1.xls": data}))
    known = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return replace(JESTER, obtain=partial(obtain_all, [replace(archive, known_hash=known) for archive in jester.ARCHIVES]))


def test_jester_reads_the_matrix_from_a_spreadsheet(mirror: Path) -> None:
    prepare(put_spreadsheet(mirror, biff2(MATRIX)))
    assert arrays(JESTER) == jester_arrays()


def test_a_spreadsheet_of_unknown_origin_is_refused_unread(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_spreadsheet(mirror, biff2([[1.0]]))
    monkeypatch.setattr(jester, "read_spreadsheet", None)
    with pytest.raises(DataError, match=r"jester-data-1\.xls: a spreadsheet is read from the official .* as jester-data-1\.csv"):
        prepare(JESTER)


def test_omniglot_is_inverted_scaled_down_smoothly_and_in_order_of_names(mirror: Path) -> None:
    put_omniglot(mirror)
    prepare(OMNIGLOT)
    images = np.load(common.data_folder() / "omniglot/images.npy", allow_pickle=False)
    keys = [
        "background/Greek/character01/0003",
        "background/Latin/character01/0001",
        "background/Latin/character02/0002",
    ]
    keys.append("evaluation/Tengwar/character01/0004")
    assert images.shape == (4, 2, 28, 28) and images.dtype == np.uint8
    for row, key in enumerate(keys):
        for drawer in (1, 2):
            ink = ImageOps.invert(Image.fromarray(drawings()[f"images_{key}_{drawer:02d}.png"]))
            assert np.array_equal(images[row, drawer - 1], np.asarray(ink.resize((28, 28), Image.Resampling.LANCZOS)))
    # Every pixel counts: three tenths of ink stay three tenths, in greys.
    assert abs(images.mean() / 255 - 0.3) < 0.02 and len(np.unique(images)) > 50
    parts = [key.split("/") for key in keys]
    assert manifest(OMNIGLOT)["classes"] == [
        {"alphabet": alphabet, "character": character, "split": split} for split, alphabet, character, _ in parts
    ]


def test_omniglot_ink_is_255_and_paper_0(mirror: Path) -> None:
    left = paper()
    left[:, :53] = 0
    put_omniglot(mirror, dict.fromkeys(drawings(), png(left)))
    prepare(OMNIGLOT)
    image = np.load(common.data_folder() / "omniglot/images.npy")[3, 1]
    assert (image[:, :12] == 255).all() and (image[:, 17:] == 0).all()


@pytest.mark.parametrize("folder", [False, True], ids=["tar archives", "plain folder"])
def test_mini_imagenet_holds_each_image_at_its_place(mirror: Path, folder: bool) -> None:
    put_mini(mirror, jpegs(), folder=folder)
    prepare(mini())
    assert manifest(mini())["classes"] == {split: sorted(names) for split, names in WNIDS.items()}
    assert manifest(mini())["resized_images"] == 0
    for split, wnids in WNIDS.items():
        found = np.load(common.data_folder() / f"mini-imagenet/{split}.npy", mmap_mode="r", allow_pickle=False)
        assert found.shape == (len(wnids), 3, 84, 84, 3) and found.dtype == np.uint8
        for row, wnid in enumerate(sorted(wnids)):
            for number in range(3):
                picture = Image.open(io.BytesIO(jpegs()[f"{wnid}{number:08d}.jpg"]))
                assert np.array_equal(found[row, number], np.asarray(picture))


def test_mini_imagenet_scales_pictures_of_other_sizes_and_says_so(mirror: Path) -> None:
    put_mini(mirror, jpegs(side=120), folder=True)
    prepare(mini())
    picture = Image.open(io.BytesIO(jpegs(side=120)["n0000000300000001.jpg"]))
    found = np.load(common.data_folder() / "mini-imagenet/val.npy")[0, 1]
    assert np.array_equal(found, np.asarray(picture.resize((84, 84), Image.Resampling.LANCZOS)))
    assert manifest(mini())["resized_images"] == 12


# -- bad input


def test_official_bytes_need_no_checksum_file(mirror: Path) -> None:
    archive = put_100k(mirror)
    (mirror / "SHA256SUMS").unlink()
    for algorithm in ("sha256", "md5"):
        known = f"{algorithm}:{hashlib.new(algorithm, archive.read_bytes()).hexdigest()}"
        official = replace(
            ML_100K,
            name=f"by-{algorithm}",
            obtain=partial(obtain_all, [Archive("movielens/ml-100k.zip", known, ())]),
        )
        prepare(official)
        assert manifest(official)["official"] is True


def test_other_bytes_need_the_mirrors_own_checksum(mirror: Path) -> None:
    put_100k(mirror)
    (mirror / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match=r"ml-100k\.zip is not the official file, and .*SHA256SUMS does not list it"):
        prepare(ML_100K)


def test_one_altered_byte_is_noticed_and_the_next_run_recovers(mirror: Path) -> None:
    archive = put_100k(mirror)
    good = archive.read_bytes()
    archive.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])
    with pytest.raises(DataError, match=r"damaged or altered: its SHA-256 is [0-9a-f]{64}, SHA256SUMS says [0-9a-f]{64}"):
        prepare(ML_100K)
    assert nothing_half_made()
    archive.write_bytes(good)
    assert prepare(ML_100K)
    assert arrays(ML_100K) == SORTED


def test_a_malformed_line_of_checksums_is_named(mirror: Path) -> None:
    put_100k(mirror)
    with open(mirror / "SHA256SUMS", "a") as stream:
        stream.write("what is this?\n")
    with pytest.raises(DataError, match=r"SHA256SUMS line 2 is not 'checksum  path': 'what is this\?'"):
        prepare(ML_100K)


def test_a_file_of_two_checksums_is_refused_and_of_one_twice_is_not(mirror: Path) -> None:
    put_100k(mirror)
    listed = (mirror / "SHA256SUMS").read_text()
    (mirror / "SHA256SUMS").write_text(f"{'0' * 64}  movielens/ml-100k.zip\n{listed}")
    with pytest.raises(
        DataError, match=r"SHA256SUMS line 2 gives 'movielens/ml-100k\.zip' a second checksum; remove the wrong one"
    ):
        prepare(ML_100K)
    (mirror / "SHA256SUMS").write_text(listed + listed.upper().replace("./MOVIELENS/ML-100K.ZIP", "movielens/ml-100k.zip"))
    assert prepare(ML_100K)


def test_a_truncated_zip_is_named_even_if_its_checksum_is_listed(mirror: Path) -> None:
    archive = put_100k(mirror)
    put(mirror, "movielens/ml-100k.zip", archive.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"ml-100k\.zip is truncated or damaged \("):
        prepare(ML_100K)
    assert nothing_half_made()


def test_a_zip_with_damaged_contents_is_named_even_if_its_checksum_is_listed(mirror: Path) -> None:
    with zipfile.ZipFile(put_100k(mirror)) as archive:
        member = archive.getinfo("ml-100k/u.data")
    data = bytearray((mirror / "movielens/ml-100k.zip").read_bytes())
    data[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 0xFF
    put(mirror, "movielens/ml-100k.zip", bytes(data))
    with pytest.raises(DataError, match=r"ml-100k\.zip is truncated or damaged \("):
        prepare(ML_100K)
    assert nothing_half_made()


def test_a_truncated_tar_is_named_even_if_its_checksum_is_listed(mirror: Path) -> None:
    put_mini(mirror, jpegs())
    path = "mini-imagenet/images_val.tar.xz"
    put(mirror, path, (mirror / path).read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"images_val\.tar\.xz is truncated or damaged \("):
        prepare(mini())
    assert nothing_half_made()


@pytest.mark.parametrize("name", ["../u.data", "/etc/u.data", "a/../../u.data", "C:/u.data", "..\\u.data"])
def test_a_zip_member_outside_its_folder_is_refused(mirror: Path, name: str) -> None:
    put(mirror, "movielens/ml-100k.zip", zipped({"ml-100k/u.data": lines_100k(), name: b"x"}))
    with pytest.raises(DataError, match="a path that leaves its folder"):
        prepare(ML_100K)
    assert nothing_half_made()


@pytest.mark.parametrize("name", ["\x1b[2J/README", "a\nb", "\x9b31m", "\u202etxt.exe", "u.data\0.exe"])
def test_a_name_that_a_terminal_would_obey_is_refused_and_shown_escaped(mirror: Path, name: str) -> None:
    data = zipped({"ml-100k/u.data": lines_100k(), name.replace("\0", "#"): b"x"})
    put(mirror, "movielens/ml-100k.zip", data.replace(b"u.data#", b"u.data\0"))
    with pytest.raises(DataError, match=re.escape(f"{name!r}, a name with characters that cannot be shown")) as caught:
        prepare(ML_100K)
    assert str(caught.value).isprintable()
    if "\0" not in name:  # a tar's names end there
        (mirror / "a.tar.xz").write_bytes(tarred({name: b"x"}))
        with pytest.raises(DataError, match=re.escape(f"{name!r}, a name with characters that cannot be shown")):
            list(archives.stream_tar(mirror / "a.tar.xz", lambda name: True))


def test_a_link_in_a_zip_is_refused(mirror: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("ml-100k/u.data")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    put(mirror, "movielens/ml-100k.zip", buffer.getvalue())
    with pytest.raises(DataError, match=r"ml-100k/u\.data', a link"):
        prepare(ML_100K)


@pytest.mark.parametrize(
    "kind", [0o020000, 0o060000, 0o010000, 0o140000], ids=["character device", "block device", "pipe", "socket"]
)
def test_a_device_in_a_zip_is_refused(mirror: Path, kind: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        device = zipfile.ZipInfo("ml-100k/u.data")
        device.external_attr = (kind | 0o666) << 16
        archive.writestr(device, lines_100k())
    put(mirror, "movielens/ml-100k.zip", buffer.getvalue())
    with pytest.raises(DataError, match=r"u\.data', a link or device"):
        prepare(ML_100K)


def zipped_twice(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            archive.writestr(name, lines_100k())
    return buffer.getvalue()


def refused_in(megabytes: float, dataset: DataSet, message: str) -> None:
    """Preparing is refused, and takes no more than so much memory at any time."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            prepare(dataset)
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()
    assert nothing_half_made()


def test_a_file_twice_or_encrypted_or_of_an_unknown_compression_or_with_a_name_that_is_no_text_is_refused(mirror: Path) -> None:
    whole = zipped({"ml-100k/ü.data": b"", "ml-100k/u.data": lines_100k()})
    encrypted, method, name = bytearray(whole), bytearray(whole), whole.replace("ü".encode(), b"\xff\xff")
    for entry in re.finditer(b"PK\1\2", whole):
        encrypted[entry.start() + 8] |= 1
        method[entry.start() + 10] = 99
    for data, message in (
        (zipped_twice("ml-100k/u.data"), r"u\.data' twice"),
        (bytes(encrypted), "or encrypted"),
        (bytes(method), r"u\.data', compressed by method 99"),
        (name, "is truncated or damaged"),
        (b"", "is truncated or damaged"),
        (b"no archive", "is truncated or damaged"),
    ):
        put(mirror, "movielens/ml-100k.zip", data)
        refused_in(10, ML_100K, message)


def test_more_than_a_table_can_have_is_refused_unread(mirror: Path) -> None:
    bomb = zipped({"ml-100k/u.data": b"1\t1\t1\n" * 2**23})
    assert len(bomb) < 200_000
    put(mirror, "movielens/ml-100k.zip", bomb)
    refused_in(10, ML_100K, r"'ml-100k/u\.data' of 50,331,648 bytes, more than the 4,480 that it can have")
    put(mirror, "jester/jester_dataset_1_1.zip", zipped({"jester-data-1.csv": b"0," * 2**24}))
    refused_in(10, JESTER, r"'jester-data-1\.csv' of 33,554,432 bytes, more than")
    put_omniglot(mirror, {**{name: png(pixels) for name, pixels in drawings().items()}, GREEK: bytes(2**25)})
    refused_in(10, OMNIGLOT, r"0003_02\.png' of 33,554,432 bytes, more than")


def test_a_size_that_is_not_the_files_is_found_out(mirror: Path) -> None:
    bomb = bytearray(zipped({"ml-100k/u.data": b"1\t1\t1\n" * 2**23}))
    for mark, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = bomb.index(mark) + place
        bomb[start : start + 4] = struct.pack("<I", 4000)
    put(mirror, "movielens/ml-100k.zip", bytes(bomb))
    refused_in(10, ML_100K, r"is truncated or damaged \(ml-100k/u\.data: ")


def test_more_files_than_an_archive_can_have_are_refused(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 50)
    put(mirror, "movielens/ml-100k.zip", zipped({f"{i}": b"" for i in range(51)}))
    refused_in(10, ML_100K, r"ml-100k\.zip holds more than 50 files")
    put_mini(mirror, jpegs())
    put(mirror, "mini-imagenet/images_val.tar.xz", tarred({f"images/{i}": b"" for i in range(51)}))
    refused_in(30, mini(), r"images_val\.tar\.xz holds more than 50 files")
    put_mini(mirror, jpegs())
    monkeypatch.setattr(archives, "LARGEST_ZIP", 100)
    put_100k(mirror)
    refused_in(10, ML_100K, r"'ml-100k\.zip' of \d+ bytes, more than the 100")


@pytest.mark.slow
def test_a_hundred_thousand_files_are_refused_within_bounded_memory(mirror: Path) -> None:
    put(mirror, "movielens/ml-100k.zip", zipped({f"ml-100k/{i}": b"" for i in range(10**5)}))
    refused_in(200, ML_100K, "holds more than 50,000 files")
    put_mini(mirror, jpegs())
    put(mirror, "mini-imagenet/images_val.tar.xz", tarred({f"images/{i}": b"" for i in range(10**5)}))
    refused_in(40, mini(), "holds more than 50,000 files")


HUGE = 6 * 10**9


class Zeros(io.RawIOBase):
    """So many bytes of nothing."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(self.left, len(buffer))
        buffer[:size] = bytes(size)
        self.left -= size
        return size


def tar_with(kind: bytes, size: int, held: int) -> bytes:
    """A tar with one entry that says to be of a size, and holds so many bytes."""
    buffer = io.BytesIO()
    entry = tarfile.TarInfo("images/README")
    entry.type, entry.size = kind, size
    with lzma.open(buffer, "wb", preset=0) as stream:
        stream.write(entry.tobuf(tarfile.GNU_FORMAT))
        shutil.copyfileobj(Zeros(held), stream)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind",
    [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, b"?"],
    ids=["unneeded file", "extended header", "long name", "sparse", "unknown"],
)
def test_a_larger_file_than_a_tar_can_have_is_refused_unread(mirror: Path, kind: bytes) -> None:
    put_mini(mirror, jpegs())
    put(mirror, "mini-imagenet/images_val.tar.xz", tar_with(kind, HUGE, 10**8))
    refused_in(40, mini(), r"'images/README' of 6,000,000,000 bytes, more than")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_device_in_a_tar_is_refused(mirror: Path, kind: bytes) -> None:
    put_mini(mirror, jpegs())
    put(mirror, "mini-imagenet/images_val.tar.xz", tar_with(kind, 0, 2048))
    with pytest.raises(DataError, match=r"images/README', a link or device"):
        prepare(mini())


def test_an_archive_that_asks_for_much_memory_is_refused(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mini(mirror, jpegs())
    monkeypatch.setattr(archives, "XZ_MEMORY", 2**20)  # the usual preset has a dictionary of 8 MiB
    with pytest.raises(DataError, match=r"images_train_a\.tar\.xz is truncated or damaged \(Memory usage limit exceeded\)"):
        prepare(mini())


def test_an_archive_of_the_strongest_preset_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("a", "b"):
            member = tarfile.TarInfo(name)
            member.size = 10**6
            archive.addfile(member, io.BytesIO(name.encode() * 10**6))
    path = tmp_path / "a.tar.xz"
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    assert dict(archives.stream_tar(path, "b".__eq__)) == {"b": b"b" * 10**6}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="truncated or damaged"):
        dict(archives.stream_tar(path, "b".__eq__))


def test_endless_extensions_of_a_header_are_damage(mirror: Path) -> None:
    put_mini(mirror, jpegs())
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 2
    chain = (entry.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * 5000
    put(mirror, "mini-imagenet/images_val.tar.xz", lzma.compress(chain, preset=0))
    with pytest.raises(DataError, match=r"images_val\.tar\.xz is truncated or damaged"):
        prepare(mini())


def header(kind: bytes, content: bytes = b"", extended: bool = False) -> bytes:
    """A tar's header and what it announces; an old sparse one may say that its map goes on."""
    entry = tarfile.TarInfo("images/x.jpg")
    entry.type, entry.size = kind, len(content)
    block = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    block[482] = extended
    block[148:156] = b" " * 8  # the checksum counts itself as blanks
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512)


LONG, PAX = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE
SPARSE_10 = header(PAX, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + header(b"0", b"999999999\n" + b"1\n" * 2**20)


@pytest.mark.parametrize(
    ("begin", "again", "message"),
    [
        (b"", header(LONG, bytes(2**20)), "of 1,048,576 bytes, more than the 2,048 "),
        (b"", header(PAX, b"1" * 4096), "of 4,096 bytes, more than the 2,048 "),
        (b"", header(PAX, b"9 path=x\n") + header(b"0"), "of 200,[0-9]+ bytes, more than the 200,000 "),
        (header(tarfile.GNUTYPE_SPARSE, extended=True), b"\1" * 512, "or sparse"),
        (SPARSE_10, b"1\n" * 256, "or sparse"),
        (b"", header(tarfile.XGLTYPE, b"8 abc=x\n" * 100), "or a header for all files"),
    ],
    ids=["long names", "digits", "many", "an old sparse file", "a sparse file", "fields for all files"],
)
def test_a_tar_whose_headers_take_more_than_its_files_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes, again: bytes, message: str
) -> None:
    monkeypatch.setattr(archives, "LARGEST_EXTENSIONS", 200_000)
    path = tmp_path / "a.tar"
    path.write_bytes(begin + again * (2**22 // len(again)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"a\.tar holds 'images/x\.jpg'.* {message}"):
            list(archives.stream_tar(path, lambda name: False))
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_long_names_and_the_times_of_ordinary_tars_are_read(tmp_path: Path, kind: int) -> None:
    name = "é" * 300 + "/x.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        entry = tarfile.TarInfo(name)
        entry.mtime, entry.size = 0.5, 4
        archive.addfile(entry, io.BytesIO(b"data"))
    assert list(archives.stream_tar(tmp_path / "a.tar", lambda name: True)) == [(name, b"data")]


@pytest.mark.parametrize("name", ["../../n0000000300000000.jpg", "/n0000000300000000.jpg"])
def test_a_tar_member_outside_its_folder_is_refused(mirror: Path, name: str) -> None:
    put_mini(mirror, jpegs())
    put(mirror, "mini-imagenet/images_val.tar.xz", tarred({name: jpegs()["n0000000300000000.jpg"]}))
    with pytest.raises(DataError, match="a path that leaves its folder"):
        prepare(mini())
    assert nothing_half_made()


def test_a_link_in_a_tar_is_refused(mirror: Path) -> None:
    put_mini(mirror, jpegs())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        link = tarfile.TarInfo("images/n0000000300000000.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    put(mirror, "mini-imagenet/images_val.tar.xz", buffer.getvalue())
    with pytest.raises(DataError, match=r"n0000000300000000\.jpg', a link or device"):
        prepare(mini())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\t4", r"line 3 has 2 fields, not 4: '2\\t4'"),
        ("2\t4\t5", "line 3 has 3 fields, not 4"),
        ("2\t4\t5\t6\t7", "line 3 has 5 fields, not 4"),
        ("", "line 3 has 1 fields, not 4"),
        ("2\tfour\t5\t0", "line 3 has 'four' where a number should be"),
        ("2\t\t5\t0", "line 3 has '' where a number should be"),
        ("2\tnan\t5\t0", "line 3 has 'nan' where a number should be"),
        ("2\t4\t1_0\t0", "line 3 has '1_0' where a number should be"),
        ("2\t4\t6\t0", "line 3: the rating must be from 1 to 5"),
        ("2\t4\t0\t0", "line 3: the rating must be from 1 to 5"),
        ("2\t4\t3.5\t0", "line 3: user, item and rating must be whole numbers"),
        ("0\t4\t3\t0", "line 3: the user id must be from 1 to 3"),
        ("4\t4\t3\t0", "line 3: the user id must be from 1 to 3"),
        ("2\t6\t3\t0", "line 3: the item id must be from 1 to 5"),
    ],
)
def test_a_malformed_movielens_row_is_named_by_file_and_line(mirror: Path, line: str, message: str) -> None:
    rows = lines_100k().decode().splitlines()
    rows[2] = line
    put_100k(mirror, "\n".join(rows).encode())
    with pytest.raises(DataError, match=r"ml-100k/u\.data " + message):
        prepare(ML_100K)
    assert nothing_half_made()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1\n" * 2**20, "line 1 has 1 fields, not 3 or 4"),
        (b"1\t1\t1\n" * 2**19, "has more than 1,000 lines"),
        (b"1\t" * 2**20, "line 1 has 1048577 fields, not 3 or 4"),
        (b"1\t1\t1\n" + b"1\t" * 2**20, "line 2 has 1048577 fields, not 3"),
    ],
    ids=["narrow", "long", "wide", "wide later"],
)
def test_a_table_of_more_lines_or_fields_than_there_can_be_is_refused_within_bounded_memory(data: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"^u.data {message}"):
            ratings.parse_table(data, "u.data", "\t", (3, 4), rows=1000)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()


def test_a_tab_is_no_separator_of_movielens_1m(mirror: Path) -> None:
    put(mirror, "movielens/ml-1m.zip", zipped({"ml-1m/ratings.dat": b"1::2::3\n1\t3\t4\n"}))
    with pytest.raises(DataError, match=r"ratings\.dat line 2 has 1 fields, not 3"):
        prepare(ML_1M)


def test_an_item_rated_twice_is_named_by_both_lines(mirror: Path) -> None:
    put_100k(mirror, lines_100k([*ROWS[:5], (1, 3, 5)]))
    counts = {**COUNTS, "items": 5}
    with pytest.raises(DataError, match="lines 2 and 6 rate the same item for the same user"):
        prepare(replace(ML_100K, counts=counts))


@pytest.mark.parametrize("counts", [{"users": 4}, {"items": 6}, {"ratings": 7}])
def test_counts_other_than_the_official_ones_are_refused(mirror: Path, counts: dict) -> None:
    put_100k(mirror)
    with pytest.raises(DataError, match="but the official counts are"):
        prepare(replace(ML_100K, counts={**COUNTS, **counts}))


def test_an_empty_table_and_a_missing_member_are_named(mirror: Path) -> None:
    put_100k(mirror, b"\n")
    with pytest.raises(DataError, match=r"ml-100k/u\.data is empty"):
        prepare(ML_100K)
    put(mirror, "movielens/ml-100k.zip", zipped({"ml-100k/README": b"x"}))
    with pytest.raises(DataError, match=r"must hold exactly one u\.data; it holds ml-100k/README"):
        prepare(ML_100K)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([3, 0.5, 1.25, -10, 3], "line 2: the first column, the number of ratings, does not agree with the row"),
        ([4, 0.5, 10.01, -10, 3], "line 2: a rating is neither from -10 to 10 nor 99"),
        ([4, 0.5, 1.25, -10], "line 2 has 4 fields, not 5"),
    ],
)
def test_a_malformed_jester_row_is_named_by_file_and_line(mirror: Path, row: list[float], message: str) -> None:
    put_jester(mirror, [MATRIX[0], row, MATRIX[2]])
    with pytest.raises(DataError, match=r"jester-data-1\.csv " + message):
        prepare(JESTER)


def test_a_jester_row_too_few_is_noticed(mirror: Path) -> None:
    put_jester(mirror, MATRIX[:2])
    with pytest.raises(DataError, match="has 2 rows, but there are 3 users"):
        prepare(JESTER)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (biff2([MATRIX[0], [4, "funny", 1, 1, 1], MATRIX[2]]), "line 2: a cell is not a number"),
        (biff2([row[:4] for row in MATRIX]), "has 4 columns, not 5"),
        (biff2(MATRIX)[:50], "is not a readable Excel file"),
        (b"<html>moved</html>", "is not a readable Excel file"),
    ],
    ids=["text", "narrow", "truncated", "not Excel"],
)
def test_a_malformed_spreadsheet_is_named(mirror: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"jester-data-1\.xls " + message):
        prepare(put_spreadsheet(mirror, data))


GREEK = "images_background/Greek/character01/0003_02.png"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (GREEK, None, r"Greek/character01 must have drawers 1 to 2, not \[1\]"),
        (GREEK, png(paper())[:60], r"0003_02\.png is not a readable PNG"),
        (GREEK, png(paper()[:100]), r"0003_02\.png is 105 x 100 pixels, not 105 x 105"),
        (
            "images_background/Greek/0005_01.png",
            png(paper()),
            r"not images_background/ALPHABET/CHARACTER/ID_DRAWER\.png",
        ),
        ("images_background/Greek/character01/9_1.png", png(paper()), "two drawings by the drawer of"),
        (f"images_background/Greek/character01/9_{'1' * 5000}.png", png(paper()), r"not images_background/ALPHABET/"),
        (GREEK, picture(np.zeros((105, 105, 3), np.uint8)), r"0003_02\.png is not a readable PNG \(its mode is RGB, not 1 or L\)"),
        (GREEK, picture(np.zeros((105, 105), np.uint16)), r"0003_02\.png is not a readable PNG \(its mode is I;16, not 1 or L\)"),
        (GREEK, flipped(png(drawings()[GREEK])), r"0003_02\.png is not a readable PNG"),
        (GREEK, picture(paper(), "JPEG"), r"0003_02\.png is not a readable PNG"),
        (GREEK, headed_png(60_000, 60_000), r"0003_02\.png is not a readable PNG \(.*60000 x 60000|decompression bomb"),
        (GREEK, headed_png(12_000, 12_000), r"0003_02\.png is not a readable PNG \(12000 x 12000 pixels are more than 11,025\)"),
        ("images_background/Greek/character02/0006_01.png", png(paper()), "must have drawers 1 to 2"),
    ],
)
def test_a_defect_in_omniglot_is_named(mirror: Path, name: str, data: bytes | None, message: str) -> None:
    pictures = {key: png(pixels) for key, pixels in drawings().items()} | ({name: data} if data else {})
    if data is None:
        del pictures[name]
    put_omniglot(mirror, pictures)
    with pytest.raises(DataError, match=message):
        prepare(OMNIGLOT)
    assert nothing_half_made()


def test_a_missing_character_of_omniglot_is_noticed(mirror: Path) -> None:
    put_omniglot(mirror)
    with pytest.raises(DataError, match="holds 3 characters, not 4"):
        prepare(replace(OMNIGLOT, counts={**OMNIGLOT.counts, "background": 4}))


@pytest.mark.parametrize("folder", [False, True], ids=["tar archives", "plain folder"])
@pytest.mark.parametrize(
    ("data", "message"),
    [(None, r"missing"), (b"\xff\xd8\xff\xe0 no picture", r"n0000000300000001\.jpg is not a readable JPEG")],
)
def test_a_missing_or_damaged_image_is_named(mirror: Path, folder: bool, data: bytes | None, message: str) -> None:
    images = jpegs()
    images["n0000000300000001.jpg"] = data or b""
    if data is None:
        del images["n0000000300000001.jpg"]
    put_mini(mirror, images, folder=folder)
    with pytest.raises(DataError, match=message) as caught:
        prepare(mini())
    assert "n0000000300000001.jpg" in str(caught.value)
    assert nothing_half_made()


def test_a_truncated_image_is_named(mirror: Path) -> None:
    images = jpegs()
    images["n0000000300000001.jpg"] = images["n0000000300000001.jpg"][:-2000]
    put_mini(mirror, images)
    with pytest.raises(DataError, match=r"n0000000300000001\.jpg is not a readable JPEG"):
        prepare(mini())


@pytest.mark.parametrize("folder", [False, True], ids=["tar archives", "plain folder"])
def test_a_picture_of_another_kind_or_of_too_many_pixels_is_refused_undecoded(mirror: Path, folder: bool) -> None:
    name = "n0000000300000001.jpg"
    jpeg = bytearray(jpegs()[name])
    start = jpeg.index(b"\xff\xc0")  # the frame: length, precision, height, width
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 13_000, 13_000)
    for data, message in (
        (bytes(jpeg), r"\(13000 x 13000 pixels are more than 67,108,864\)"),
        (picture(np.zeros((84, 84, 3), np.uint8), "PNG"), "is not a readable JPEG"),
        (picture(np.zeros((84, 84, 3), np.uint8), "GIF"), "is not a readable JPEG"),
    ):
        put_mini(mirror, {**jpegs(), name: data}, folder)
        refused_in(40, mini(), rf"{name} is not a readable JPEG .*{message}|{name} {message}")


def test_a_picture_of_many_scans_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (84, 84), (10, 200, 30)).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    last = whole[whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda")) : -2]  # the last scan with its table
    assert mini_imagenet.decode(whole, "x.jpg")[0].shape == (84, 84, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened all the same"))
    with pytest.raises(DataError, match=r"x\.jpg is not a readable JPEG \(its 110 scans are more than 100\)"):
        mini_imagenet.decode(whole[:-2] + last * 100 + whole[-2:], "x.jpg")


def test_a_file_too_large_for_a_picture_or_a_table_is_refused_unread(mirror: Path) -> None:
    put_mini(mirror, jpegs(), folder=True)
    with open(mirror / "mini-imagenet/images/n0000000300000001.jpg", "ab") as file:
        file.truncate(HUGE)
    refused_in(40, mini(), r"n0000000300000001\.jpg' of 6,000,000,000 bytes, more than")
    (mirror / "mini-imagenet/images/n0000000300000001.jpg").write_bytes(b"")
    table = mirror / "mini-imagenet/val.csv"
    table.write_bytes(table.read_bytes().ljust(2**24 + 1, b"\n"))
    sign(mirror)
    refused_in(40, mini(), r"'val\.csv' of 16,777,217 bytes, more than")


def test_an_image_in_two_archives_is_noticed(mirror: Path) -> None:
    put_mini(mirror, jpegs())
    again = {f"images/{name}": data for name, data in jpegs().items() if name.startswith("n00000003")}
    put(mirror, "mini-imagenet/images_test.tar.xz", tarred(again))
    with pytest.raises(DataError, match=r"images_test\.tar\.xz holds n0000000300000000\.jpg, which was there before"):
        prepare(mini())


def test_another_split_of_the_classes_is_refused(mirror: Path) -> None:
    put_mini(mirror, jpegs())
    with pytest.raises(DataError, match=r"train\.csv lists other classes than the split of Ravi and Larochelle"):
        prepare(mini(digests=mini_imagenet.CLASS_DIGESTS))


@pytest.mark.parametrize(
    ("split", "edit", "message"),
    [
        ("val", lambda text: text.replace("filename,", "file,"), r"val\.csv line 1 is not 'filename,label'"),
        ("val", lambda text: text + "../x.jpg,n00000003\n", r"val\.csv line 5 is not an image name and a class"),
        ("val", lambda text: text + text.splitlines()[1], r"val\.csv line 5 lists n\d+\.jpg a second time"),
        (
            "val",
            lambda text: text + "n9.jpg,n00000003\n",
            r"val\.csv must list 1 classes of 3 images; it lists 1 classes of 4",
        ),
        ("test", lambda text: text.replace("n0000000400000001", "n0000000300000001"), r"which val\.csv lists too"),
    ],
)
def test_a_malformed_split_is_named(mirror: Path, split: str, edit: Callable[[str], str], message: str) -> None:
    put_mini(mirror, jpegs())
    path = f"mini-imagenet/{split}.csv"
    put(mirror, path, edit((mirror / path).read_text()).encode())
    with pytest.raises(DataError, match=message):
        prepare(mini())
    assert nothing_half_made()


def test_an_altered_split_beside_a_plain_folder_is_noticed(mirror: Path) -> None:
    put_mini(mirror, jpegs(), folder=True)
    with open(mirror / "mini-imagenet/val.csv", "a") as stream:
        stream.write("\n")
    with pytest.raises(DataError, match=r"val\.csv is damaged or altered"):
        prepare(mini())


# -- full disks, interrupts, kills, what was there


def outdated_target() -> dict[str, bytes]:
    """Put arrays of an older format in place; returns what the folder holds."""
    prepare(ML_100K)
    folder = common.data_folder() / "ml-100k"
    (folder / "manifest.json").write_text(json.dumps({**manifest(ML_100K), "format": 0}))
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing_savez(error: BaseException) -> Callable[..., None]:
    def savez(path: Path, **_arrays: np.ndarray) -> None:
        Path(path).write_bytes(b"half of it")
        raise error

    return savez


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DataError, "the disk of .* is full; free some space"),
        (OSError(errno.EACCES, "Permission denied"), DataError, "cannot read or write .*: Permission denied"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["full disk", "no permission", "interrupt"],
)
def test_after_a_failure_the_target_is_as_it_was_and_the_next_run_recovers(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type, message: str | None
) -> None:
    put_100k(mirror)
    before = outdated_target()
    with monkeypatch.context() as patch:
        patch.setattr(ratings.np, "savez", failing_savez(error))
        with pytest.raises(raised, match=message):
            prepare(ML_100K)
    assert contents(common.data_folder() / "ml-100k") == before
    assert nothing_half_made()
    assert prepare(ML_100K)
    assert arrays(ML_100K) == SORTED and manifest(ML_100K)["format"] == common.FORMAT


def test_if_the_new_arrays_cannot_take_their_place_the_old_ones_come_back(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_100k(mirror)
    before = outdated_target()
    rename = Path.rename

    def failing_rename(path: Path, target: Path) -> Path:
        if path.name.startswith(".ml-100k.tmp-") and not path.name.endswith("-old"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(DataError, match="is full"):
        prepare(ML_100K)
    assert contents(common.data_folder() / "ml-100k") == before
    assert nothing_half_made()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve space for a file")
def test_a_disk_too_full_for_the_images_is_noticed_before_they_are_written(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_mini(mirror, jpegs())

    def full(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mini_imagenet.os, "posix_fallocate", full)
        with pytest.raises(DataError, match="is full"):
            prepare(mini())
    assert nothing_half_made()
    assert prepare(mini())


def test_free_space_is_checked_before_anything_is_read(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1_000_000_000))
    untouched = replace(mini_imagenet.DATASET, obtain=lambda: pytest.fail("it was fetched all the same"))
    with pytest.raises(DataError, match=r"needs 1\.30 GB in .*, but the disk has 1\.00 GB left"):
        prepare(untouched)


def test_what_is_prepared_is_not_prepared_again(mirror: Path) -> None:
    put_100k(mirror)
    prepare(ML_100K)
    (mirror / "movielens/ml-100k.zip").unlink()
    assert not prepare(replace(ML_100K, obtain=lambda: pytest.fail("it was fetched again")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "ratings.npz").unlink(),
        lambda folder: os.truncate(folder / "ratings.npz", 300),
        lambda folder: np.savez(folder / "ratings.npz", user=np.zeros(6, np.int32)),
        lambda folder: np.savez(folder / "ratings.npz", **{key: np.zeros(5, np.int32) for key in SORTED}),
    ],
    ids=["no manifest", "broken manifest", "no array", "truncated array", "array missing", "wrong shape"],
)
def test_what_is_damaged_is_prepared_again(mirror: Path, damage: Callable[[Path], object]) -> None:
    put_100k(mirror)
    prepare(ML_100K)
    damage(common.data_folder() / "ml-100k")
    assert prepare(ML_100K)
    assert arrays(ML_100K) == SORTED


def test_files_that_are_not_prepared_data_are_never_deleted(mirror: Path) -> None:
    put_100k(mirror)
    precious = common.data_folder() / "ml-100k" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(DataError, match=r"holds files that are not prepared data \(thesis\.txt\); move them away"):
        prepare(ML_100K)
    assert precious.read_text() == "years of work"


def test_a_folder_that_is_a_link_is_filled_where_it_leads(mirror: Path, tmp_path: Path) -> None:
    put_100k(mirror)
    link, disk = common.data_folder() / "ml-100k", tmp_path / "disk"
    link.parent.mkdir()
    link.symlink_to(disk / "films")
    with pytest.raises(DataError, match=r"ml-100k is a link that leads nowhere; make the folder .*films, or remove the link$"):
        prepare(ML_100K)
    (disk / "films").mkdir(parents=True)
    for _ in range(2):
        assert prepare(ML_100K) and not prepare(ML_100K)
        assert link.is_symlink() and arrays(ML_100K) == SORTED
        assert set(contents(disk / "films")) == {"manifest.json", "ratings.npz"}
        assert {path.name for path in (*link.parent.iterdir(), *disk.iterdir())} - {".films.lock"} == {"ml-100k", "films"}
        (disk / "films" / "manifest.json").unlink()


KILLED = """
import sys, time
from dataclasses import replace
from data_scripts import common, movielens_100k

def build(sources, folder, counts):
    (folder / "ratings.npz").write_bytes(b"half of it")
    print("half made", flush=True)
    time.sleep(60)

common.prepare(replace(movielens_100k.DATASET, build=build))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill outright")
def test_a_killed_run_leaves_nothing_that_the_next_one_does_not_clear_away(mirror: Path) -> None:
    put_100k(mirror)
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line == "half made\n" for line in process.stdout)
        assert not nothing_half_made() and not (common.data_folder() / "ml-100k").exists()
    finally:
        process.kill()
        process.communicate()
    assert prepare(ML_100K)
    assert arrays(ML_100K) == SORTED and nothing_half_made()


def test_what_a_kill_left_beside_whole_data_goes_unless_another_run_is_at_work(mirror: Path) -> None:
    put_100k(mirror)
    prepare(ML_100K)
    left = common.data_folder() / ".ml-100k.tmp-99999-old"
    left.mkdir()
    with common.lock(common.data_folder() / "ml-100k"):
        assert not prepare(ML_100K) and left.is_dir()
    assert not prepare(ML_100K) and not left.exists() and arrays(ML_100K) == SORTED


def test_two_runs_at_once_prepare_a_data_set_once(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_100k(mirror)
    built: list[Path] = []
    said = io.StringIO()  # unlike capsys, it loses nothing that another thread writes while it is read
    monkeypatch.setattr(sys, "stdout", said)

    def slow_build(sources, folder, counts):
        built.append(folder)
        while "another run is preparing it" not in said.getvalue():
            time.sleep(0.01)
        return ML_100K.build(sources, folder, counts)

    outcomes: list[bool] = []
    runs = [
        threading.Thread(target=lambda: outcomes.append(prepare(replace(ML_100K, build=slow_build))), daemon=True) for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(timeout=20)
    assert sorted(outcomes) == [False, True] and len(built) == 1
    assert arrays(ML_100K) == SORTED


# -- network


@pytest.fixture
def host(offline: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(download, "SCHEMES", ("http",))  # the server of this machine has no certificate
    noise = np.random.default_rng(0).bytes(400_000)
    with served(Host(zipped({"ml-100k/u.data": lines_100k(), "ml-100k/noise": noise}))) as serving:
        yield serving


def hosted(host: Host, *urls: str) -> DataSet:
    known = f"sha256:{hashlib.sha256(host.body).hexdigest()}"
    return replace(
        ML_100K,
        obtain=partial(obtain_all, [Archive("movielens/ml-100k.zip", known, urls or (host.url,))]),
    )


def part() -> Path:
    return common.archive_folder() / "movielens/ml-100k.zip.part"


def test_a_download_is_verified_prepared_and_kept(host: Host) -> None:
    prepare(hosted(host))
    assert arrays(ML_100K) == SORTED and manifest(ML_100K)["official"] is True
    assert (common.archive_folder() / "movielens/ml-100k.zip").read_bytes() == host.body
    (common.data_folder() / "ml-100k/manifest.json").unlink()
    prepare(hosted(host))
    assert host.asked == [None]


def test_what_a_kill_left_of_a_download_goes_with_the_next_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = common.archive_folder() / "movielens"
    begin = download.ResumingDownloader.append

    def append(*given: Any) -> None:
        for name in (path.name for path in folder.rglob("tmp*")):  # what stands there if it is killed now
            seen.append(name)
        begin(*given)

    seen: list[str] = []
    monkeypatch.setattr(download.ResumingDownloader, "append", append)
    left = folder / ".ml-100k.zip.fetching" / "tmp123"
    left.parent.mkdir(parents=True)
    left.touch()
    prepare(hosted(host))
    assert seen and left.name not in seen
    assert [path.name for path in folder.iterdir()] == ["ml-100k.zip"] and arrays(ML_100K) == SORTED


def test_what_a_kill_left_goes_where_nothing_is_left_to_download(host: Host) -> None:
    prepare(hosted(host))
    folder = common.archive_folder() / "movielens"
    (folder / ".ml-100k.zip.fetching").mkdir()  # the archive was in its place already
    (common.data_folder() / "ml-100k/manifest.json").unlink()
    prepare(hosted(host))
    assert host.asked == [None] and [path.name for path in folder.iterdir()] == ["ml-100k.zip"]


def test_a_download_that_was_cut_short_goes_on_where_it_stopped(host: Host) -> None:
    host.cut_after = 150_000
    with pytest.raises(Unreachable, match="run again to resume"):
        prepare(hosted(host))
    have = part().stat().st_size
    assert 100_000 < have <= 150_000 and part().read_bytes() == host.body[:have] and nothing_half_made()
    host.cut_after = None
    prepare(hosted(host))
    assert host.asked == [None, f"bytes={have}-"]
    assert arrays(ML_100K) == SORTED and not part().exists()


def test_a_download_starts_again_where_the_host_cannot_go_on(host: Host) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(host.body[:1000])
    host.ranges = False
    prepare(hosted(host))
    assert arrays(ML_100K) == SORTED


def test_a_part_that_is_whole_is_taken_as_it_is(host: Host) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(host.body)
    prepare(hosted(host))
    assert host.asked == [f"bytes={len(host.body)}-"] and arrays(ML_100K) == SORTED


def test_a_part_that_is_too_long_is_thrown_away(host: Host) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(host.body + b"more")
    with pytest.raises(Unreachable, match="did not fit and was removed"):
        prepare(hosted(host))
    prepare(hosted(host))
    assert arrays(ML_100K) == SORTED


def test_a_part_of_another_file_is_found_out_and_the_next_run_recovers(host: Host) -> None:
    part().parent.mkdir(parents=True)
    part().write_bytes(b"something else")
    with pytest.raises(DataError, match="serves a file that is not the official one") as caught:
        prepare(hosted(host))
    assert not isinstance(caught.value, Unreachable)
    assert not part().exists() and not (common.archive_folder() / "movielens/ml-100k.zip").exists()
    prepare(hosted(host))
    assert arrays(ML_100K) == SORTED


def test_a_download_without_an_end_is_given_up_and_nothing_of_it_is_kept(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "LARGEST_ZIP", 100_000)
        with pytest.raises(DataError, match="sends more than 100,000 bytes, which is no archive of these data") as caught:
            prepare(hosted(host))
    assert not isinstance(caught.value, Unreachable) and not part().exists() and nothing_half_made()
    prepare(hosted(host))
    assert arrays(ML_100K) == SORTED


def test_an_interrupted_download_keeps_what_has_arrived(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(download.tqdm):
        def update(self, n: float | None = 1) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(hosted(host))
    have = part().stat().st_size
    assert 0 < have < len(host.body)
    prepare(hosted(host))
    assert host.asked[1] == f"bytes={have}-" and arrays(ML_100K) == SORTED


def test_prepared_data_are_taken_from_a_folder_that_cannot_be_written(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_100k(mirror)
    prepare(ML_100K)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(common.data_folder()))

    monkeypatch.setattr(common.FileLock, "acquire", read_only)
    assert prepare(ML_100K) is False and arrays(ML_100K) == SORTED
    (common.data_folder() / "ml-100k" / "manifest.json").unlink()
    with pytest.raises(DataError, match="cannot read or write .*: Read-only file system"):
        prepare(ML_100K)


def test_a_full_disk_during_a_download_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download.ResumingDownloader, "append", full)
        with pytest.raises(DataError, match="is full; free some space"):
            prepare(hosted(host))
    prepare(hosted(host))
    assert arrays(ML_100K) == SORTED


@pytest.mark.parametrize(
    ("location", "taken"),
    [
        ("https://a.example/elsewhere/ml-100k.zip", True),
        ("https://b.example/ml-100k.zip", True),
        ("/elsewhere/ml-100k.zip", True),
        ("http://a.example/ml-100k.zip", False),
        ("https://c.example/ml-100k.zip", False),
        ("//c.example/ml-100k.zip", False),
        ("https://a.example:8443/ml-100k.zip", False),
        ("https://a.example@c.example/ml-100k.zip", False),
        ("file:///etc/hostname", False),
    ],
)
def test_a_redirect_is_followed_to_listed_hosts_over_https_alone(
    offline: Path, monkeypatch: pytest.MonkeyPatch, location: str, taken: bool
) -> None:
    asked, body = [], zipped({"ml-100k/u.data": lines_100k()})

    def send(_adapter: object, request: requests.PreparedRequest, **_options: object) -> requests.Response:
        asked.append(request.url)
        response = requests.Response()
        response.request, response.url, response.raw = request, request.url, io.BytesIO(b"" if len(asked) == 1 else body)
        response.status_code = 302 if len(asked) == 1 else 200
        response.headers["Location"] = location
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "close", lambda _adapter: None)
    dataset = hosted(Host(body), "https://a.example/ml-100k.zip", *(["https://b.example/x.zip"] if taken else []))
    if taken:
        assert prepare(dataset) and len(asked) == 2
    else:
        with pytest.raises(Unreachable, match=r"://\S* was not asked.*: archives come from a.example by https alone"):
            prepare(dataset)
        assert asked == ["https://a.example/ml-100k.zip"] and nothing_half_made()


def test_no_host_is_asked_without_encryption(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SCHEMES", ("https",))
    with pytest.raises(Unreachable, match="http://127.0.0.1:[0-9]+ was not asked"):
        prepare(hosted(host))
    assert host.asked == []


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens at, and that nobody else can take while the test runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_an_unreachable_host_is_named_with_a_way_out_and_asked_once(
    offline: Path, closed_port: int, capsys: pytest.CaptureFixture
) -> None:
    address = f"127.0.0.1:{closed_port}"
    urls = (f"https://{address}/ml-100k.zip", f"https://{address}/archive/ml-100k.zip")
    expected = rf"^{address} cannot be reached \(no connection\)\. .*movielens/ml-100k\.zip and set AMAML_MIRROR=DIR$"
    with pytest.raises(Unreachable, match=expected):
        prepare(hosted(Host(b"x"), *urls))
    assert capsys.readouterr().out.count("fetching") == 1
    assert nothing_half_made()
    assert common.data_folder().is_dir()  # else the chapters that follow `make data` would miss it, and not use stand-ins


def test_the_next_host_is_asked_when_one_is_silent_or_lost_the_file(host: Host, closed_port: int) -> None:
    prepare(hosted(host, f"http://127.0.0.1:{closed_port}/ml-100k.zip", host.url))
    assert arrays(ML_100K) == SORTED


def test_an_answer_without_the_file_is_told_with_its_status(host: Host) -> None:
    host.status = 404
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:\d+/ml-100k\.zip answers 404 Not Found"):
        prepare(hosted(host))


@contextmanager
def answering(answer: bytes, drop: bytes = b"") -> Iterator[str]:
    """The address of a host that gives whoever comes first an answer, and then a drop twenty times a second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def serve() -> None:
            with server.accept()[0] as connection, suppress(OSError):
                connection.recv(2**16)
                connection.sendall(answer)
                while drop and not over.wait(0.05):
                    connection.sendall(drop)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/ml-100k.zip"
        finally:
            over.set()
            thread.join(timeout=5)


@pytest.mark.parametrize(
    ("head", "drop"), [("", b"X: y\r\n"), ("Content-Length: 400000\r\n\r\n", b"x")], ids=["its headers", "its file"]
)
def test_a_host_that_sends_drop_by_drop_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch, head: str, drop: bytes) -> None:
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(download, "READ_SECONDS", 2)
    with answering(f"HTTP/1.1 200 OK\r\n{head}".encode(), drop) as url:
        with pytest.raises(Unreachable, match=r"ml-100k\.zip sent 0 bytes in 0\.2 seconds and was given up"):
            prepare(hosted(host, url))
    assert nothing_half_made()


def test_a_download_that_was_given_up_writes_no_more_and_is_resumed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.pause = 0.7
    with monkeypatch.context() as patch:
        patch.setattr(download, "SLOW_SECONDS", 1)
        with pytest.raises(Unreachable, match=r"sent [0-9,]+ bytes in 1 seconds"):
            prepare(hosted(host))
    have = part().stat().st_size
    time.sleep(0.8)
    assert part().stat().st_size == have > 0
    host.pause = 0
    prepare(hosted(host))
    assert host.asked == [None, f"bytes={have}-"] and arrays(ML_100K) == SORTED


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("416 \x1b[2J", r"ml-100k\.zip answers 416 (Requested )?Range Not Satisfiable"),
        ("200 OK\r\nContent-Length: 12abc", r"ml-100k\.zip says that it is '12abc' bytes long"),
        ("200 OK\r\nContent-Length: 100000, 5", r"127\.0\.0\.1:\d+ gives no answer that can be used \(Content-Length contained"),
        ("302 Found\r\nLocation: http://[::1", r"127\.0\.0\.1:\d+ gives no answer that can be used \(Invalid IPv6 URL"),
    ],
    ids=["no range", "no number", "two numbers", "no address"],
)
def test_an_answer_that_is_none_is_told_as_it_is(host: Host, answer: str, message: str) -> None:
    with answering(f"HTTP/1.1 {answer}\r\n\r\n".encode()) as url, pytest.raises(Unreachable, match=message):
        prepare(hosted(host, url))
    assert nothing_half_made()


def test_a_mirror_needs_none_of_the_packages_that_the_network_needs(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_100k(mirror)
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.delitem(sys.modules, "data_scripts.download")
    prepare(ML_100K)
    assert arrays(ML_100K) == SORTED
    monkeypatch.delenv("AMAML_MIRROR")
    with pytest.raises(DataError, match="downloading needs the package pooch; install the extra 'data'"):
        prepare(ML_1M)


def test_a_spreadsheet_without_the_package_that_reads_it_is_an_error(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xlrd", None)
    with pytest.raises(DataError, match="needs the package xlrd; install the extra 'data'"):
        prepare(put_spreadsheet(mirror, biff2(MATRIX)))


def test_mini_imagenet_tells_where_to_get_it(offline: Path) -> None:
    with pytest.raises(Unreachable) as caught:
        prepare(mini_imagenet.DATASET)
    message = str(caught.value)
    assert all(word in message for word in ("image-net.org", "terms", "train.csv", "images/", "AMAML_MIRROR"))
    assert str(offline / "archives" / "mini-imagenet") in message


# -- command lines


def test_a_script_ends_with_status_0_if_all_is_well(mirror: Path, capsys: pytest.CaptureFixture) -> None:
    put_100k(mirror)
    assert command(ML_100K, []) == 0
    first = capsys.readouterr().out
    assert first.count("licence: GroupLens terms") == 1 and "prepared 3 users, 5 items, 6 ratings" in first
    assert command(ML_100K, []) == 0
    assert "already prepared" in capsys.readouterr().out


def test_a_script_ends_with_one_line_and_status_1_after_an_error(mirror: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(ML_100K, []) == 1
    assert capsys.readouterr().err == f"error: movielens/ml-100k.zip is not in the mirror {mirror}\n"


def test_a_script_ends_with_status_130_after_an_interrupt(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    put_100k(mirror)
    monkeypatch.setattr(ratings.np, "savez", failing_savez(KeyboardInterrupt()))
    assert command(ML_100K, []) == 130
    assert capsys.readouterr().err.count("\n") == 1 and nothing_half_made()


def test_an_array_that_stands_there_twice_is_a_defect(mirror: Path) -> None:
    put_100k(mirror)
    prepare(ML_100K)
    folder = common.data_folder() / "ml-100k"
    with zipfile.ZipFile(folder / "ratings.npz", "a") as more, pytest.warns(UserWarning, match="Duplicate name"):
        more.writestr("user.npy", more.read("user.npy"))
    reason = common.array_defect(ML_100K, folder)
    assert reason == "ratings.npz cannot be read: it holds ['user', 'item', 'rating', 'user'], not ['user', 'item', 'rating']"


def test_other_values_in_a_whole_array_are_a_defect_to_whoever_asks(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    put_100k(mirror)
    prepare(ML_100K)
    folder = common.data_folder() / "ml-100k"
    monkeypatch.setattr(everything, "SMALL", (ML_100K,))
    monkeypatch.setattr(book, "SMALL", (ML_100K,))
    assert common.defect(ML_100K, folder) is None and "MovieLens 100K  real (from a mirror" in book.data_report()
    with np.load(folder / "ratings.npz") as found:
        np.savez(folder / "ratings.npz", **{**found, "rating": np.ones(6, np.float32)})
    reason = "ratings.npz is damaged: its digest is not that of its manifest"
    assert common.defect(ML_100K, folder) == reason
    assert f"MovieLens 100K  refused: {folder}: {reason}; run `make data`" in book.data_report()
    assert everything.run(["--status"]) == 0 and reason in capsys.readouterr().out
    assert command(ML_100K, []) == 0 and f"preparing it again, because {reason}" in capsys.readouterr().out
    assert arrays(ML_100K) == SORTED
    (folder / "manifest.json").write_text("{}")
    assert "refused" in book.data_report()
    shutil.rmtree(folder)
    assert "MovieLens 100K  a stand-in" in book.data_report()


@pytest.mark.parametrize("files", [{}, 3, {"other.npz": ""}])
def test_a_manifest_that_does_not_name_its_files_is_a_defect(mirror: Path, files: object) -> None:
    put_100k(mirror)
    prepare(ML_100K)
    folder = common.data_folder() / "ml-100k"
    content = manifest(ML_100K) | {"files": files}
    del content["digest"]
    (folder / "manifest.json").write_text(json.dumps(content | {"digest": common.strict.digest(content)}))
    assert common.defect(ML_100K, folder) == "its manifest.json does not name its files"


@pytest.mark.parametrize(
    ("method", "understate"), [(zipfile.ZIP_DEFLATED, False), (zipfile.ZIP_LZMA, False), (zipfile.ZIP_LZMA, True)]
)
def test_prepared_arrays_that_swell_are_defects_and_are_not_unpacked(mirror: Path, method: int, understate: bool) -> None:
    put_100k(mirror)
    prepare(ML_100K)
    path = common.data_folder() / "ml-100k" / "ratings.npz"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as new:
        for name in ("user", "item", "rating"):
            with new.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, {"descr": "<i4", "fortran_order": False, "shape": (10**6,)})
                member.write(bytes(4 * 10**6))
    whole = buffer.getvalue()
    place = whole.index(b"PK\1\2") + 24
    path.write_bytes(whole[:place] + struct.pack("<I", 150) + whole[place + 4 :] if understate else whole)
    tracemalloc.start()
    reason = common.array_defect(ML_100K, path.parent)
    assert reason is not None and reason.startswith("ratings.npz cannot be read: 'user' has ")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_a_mirror_that_is_no_folder_is_an_error(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMAML_MIRROR", str(mirror / "nowhere"))
    with pytest.raises(DataError, match=r"AMAML_MIRROR=.*nowhere is not a folder"):
        prepare(ML_100K)


def test_all_together_goes_on_past_what_cannot_be_reached(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    put_100k(mirror)
    monkeypatch.setattr(everything, "SMALL", (JESTER, ML_100K))
    assert everything.run([]) == 0
    table = capsys.readouterr().out.split("prepared data in")[1].splitlines()[2:]
    cells = {line.split()[0]: line for line in table}
    assert "missing" in cells["jester-1"] and "jester_dataset_1_1.zip is not in the mirror" in cells["jester-1"]
    assert "prepared" in cells["ml-100k"] and "3 users, 5 items, 6 ratings" in cells["ml-100k"]
    assert "--images prepares it" in cells["mini-imagenet"]


def test_all_together_ends_with_status_1_after_an_error_and_shows_it(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    put_jester(mirror)
    put_100k(mirror).write_bytes(b"altered")
    monkeypatch.setattr(everything, "SMALL", (ML_100K, JESTER))
    assert everything.run([]) == 1
    table = capsys.readouterr().out.split("prepared data in")[1]
    assert "error:" in table and "damaged or altered" in table and "3 users, 4 items, 7 ratings" in table


def test_images_are_prepared_when_asked_for(mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    put_mini(mirror, jpegs())
    monkeypatch.setattr(everything, "SMALL", ())
    monkeypatch.setattr(everything, "LARGE", (mini(),))
    assert everything.run([]) == 0 and not (common.data_folder() / "mini-imagenet").exists()
    assert everything.run(["--images"]) == 0
    assert "2 train, 1 val, 1 test, 3 images per class" in capsys.readouterr().out


def test_the_status_alone_touches_nothing(mirror: Path) -> None:
    command_line = [sys.executable, "-m", "data_scripts", "--status"]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split()[:2] for line in done.stdout.splitlines()[3:]] == [
        [name, "missing"] for name in ("jester-1", "ml-100k", "ml-1m", "omniglot", "mini-imagenet")
    ]
    assert not common.data_folder().exists()


@pytest.mark.parametrize("script", ["jester", "movielens_100k", "movielens_1m", "omniglot", "mini_imagenet"])
def test_every_script_runs_and_shows_no_traceback(mirror: Path, script: str) -> None:
    command_line = [sys.executable, "-m", f"data_scripts.{script}"]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


# -- the real thing


@pytest.mark.skipif(not REAL_MIRROR, reason="AMAML_MIRROR names no folder with the real archives")
def test_the_real_movielens_100k_has_its_published_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMAML_DATA", str(tmp_path))
    prepare(movielens_100k.DATASET)
    with np.load(tmp_path / "ml-100k/ratings.npz", allow_pickle=False) as found:
        user, item, rating = found["user"], found["item"], found["rating"]
    assert (len(np.unique(user)), len(np.unique(item)), len(rating)) == (943, 1682, 100_000)
    assert np.bincount(rating.astype(int)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert np.bincount(user).min() == 20  # every user of this data set has rated 20 films or more
    assert rating[(user == 195) & (item == 241)].tolist() == [3]  # the first line of the official file
