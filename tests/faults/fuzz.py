"""Damage whatever the project reads, many thousand times: ``python tests/faults/fuzz.py [--cases N] [--seed S] [--only KIND]``.

A case is a valid file with one to four mutations. What reads it must refuse it, by the one kind of error that the reader promises
and with the file's name in it, or give what was written. Anything else is wrong: another exception, a message without the name, or
other content. Tables are different in one respect: a digit may change into another and leave a table, so they must be read as they
stand, which a second, slow parser tells. The last line sums up; the exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import lzma
import math
import random
import re
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from amaml_core import Problem, checkpoints, datasets, load_initialisation, save_initialisation
from amaml_core.strict import digest, file_digest
from data_scripts import jester, mini_imagenet, movielens, omniglot
from data_scripts.archives import stream_tar
from data_scripts.common import DataError, Source
from experiments.common import records
from tools.faults import keep

ALL_CASES = 100_000
TOKENS = [
    b"NaN", b"Infinity", b"1e999", b"-1", b"0", b"null", b"true", b'""', b"{", b"[", b"]", b"}", b",", b":", b"\n", b"\r", b"\t",
    b"::", b"\0", b"\xff", b"\xc3(", b"\xef\xbb\xbf", b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"PK\1\2",
    b"PK\3\4", b"PK\5\6", b"../", b"\x93NUMPY", b"object", b"|O", b"'shape': (9999999999,)", b"\x80\4\x95", b" ", b"1_0", b"0x1",
    b"\xa0", b"1.5",
]  # fmt: skip


def mutate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """One to four small damages, and now and then a large one."""
    if rng.random() < 0.02:
        return rng.choice([b"", b"text", bytes(1000), rng.randbytes(300), *others])
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        at, size = rng.randrange(len(damaged) + 1), min(1 + int(rng.expovariate(0.1)), 4000)
        # Headers and directories are where readers go wrong, and they are small: they get half of the damage.
        at = rng.choice([at, min(at, rng.randrange(200)), max(0, len(damaged) - rng.randrange(1, 200))])
        match rng.randrange(9):
            case 0 if at < len(damaged):
                damaged[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(damaged):
                damaged[at] = rng.randrange(256)
            case 2:
                del damaged[at : at + size]
            case 3:
                damaged[at:at] = rng.randbytes(size)
            case 4:
                damaged[at:at] = damaged[at : at + size]
            case 5:
                damaged[at : at + size] = bytes(min(size, len(damaged) - at))
            case 6:
                del damaged[at:]
            case 7:
                damaged[at:at] = rng.choice(TOKENS)
            case _:
                token = rng.choice(TOKENS)
                damaged[at : at + len(token)] = token
    return bytes(damaged)


@dataclass(frozen=True)
class Kind:
    """Something that is read.

    Attributes:
        file: that is damaged.
        whole: its content.
        read: gives what is compared.
        errors: that it may be refused with.
        remedy: what each message has to say, beside the file's name.
        stands: from the damaged bytes, what they say; ``None`` where only the content that was written is right.
        parts: whether fewer of the entries are right, too: a record that is not there is a cell to run.
    """

    file: Path
    whole: bytes
    read: Callable[[], Any]
    errors: type[Exception]
    remedy: str
    stands: Callable[[bytes], Any] | None = None
    parts: bool = False


def same(a: Any, b: Any) -> bool:
    """Whether two things are equal to the bit, in shape and in kind."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and same(a.numpy(), b.numpy())
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a and b != b)


def attempt(kind: Kind, original: Any, damaged: bytes) -> tuple[str, str]:
    """What became of a case, "refused", "unchanged", "as it stands" or "wrong", and why it is wrong."""
    try:
        kind.file.write_bytes(damaged)
        try:
            found = kind.read()
        except kind.errors as error:
            told = kind.file.name in str(error) and re.search(kind.remedy, str(error)) and "pickled data" not in str(error)
            return ("refused", "") if told else ("wrong", f"the message is {error!s:.300}")
        except Exception as error:
            return "wrong", f"{type(error).__name__}: {error!s:.300}"
        if same(found, original) or kind.parts and all(entry in original for entry in found) and len(found) <= len(original):
            return "unchanged", ""
        try:
            if kind.stands is not None and same(found, kind.stands(damaged)):
                return "as it stands", ""
        except (AssertionError, ValueError) as error:
            return "wrong", f"it gave {found!r:.300}, but {error!r}"
        return "wrong", f"it gave {found!r:.300}"
    finally:
        kind.file.write_bytes(kind.whole)


# ------------------------------------------------------------------------------------------------------------- what is read

ROWS = [(2, 5, 4), (1, 3, 1), (3, 1, 5), (1, 2, 2), (2, 1, 3), (3, 5, 4)]
COUNTS = {"users": 3, "items": 5, "ratings": 6}


def kinds(folder: Path) -> dict[str, Kind]:
    """All of them, with valid files in a folder."""
    found = {**tables(folder), **archived(folder), **pictures(folder), **recorded(folder), **saved(folder), **prepared(folder)}
    for kind in found.values():
        kind.file.write_bytes(kind.whole)
    return found


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def arrays(build: Callable, archive: Path, folder: Path, counts: dict[str, int]) -> list[np.ndarray]:
    build([Source(archive, archive.name, None, False)], folder, counts)
    with np.load(folder / "ratings.npz", allow_pickle=False) as file:
        return [file[name] for name in ("user", "item", "rating")]


def plainly(text: bytes, separator: str, widths: set[int]) -> list[list[float]]:
    """A table as a person would read it."""
    lines = [line.rstrip("\r").split(separator) for line in text.decode("latin-1").rstrip("\r\n").split("\n")]
    assert {len(line) for line in lines} in [{width} for width in widths]
    numbers = [[float(entry) for entry in line] for line in lines]
    assert all(math.isfinite(entry) for line in numbers for entry in line)
    return numbers


def triples(found: list[tuple[float, float, float]]) -> list[np.ndarray]:
    user, item, rating = zip(*sorted(found), strict=True)
    return [np.array(user, np.int32), np.array(item, np.int32), np.array(rating, np.float32)]


def tables(folder: Path) -> dict[str, Kind]:
    """The text in an archive whose own checksums are right."""
    found = {}
    for name, member, separator in (("MovieLens 100K", "u.data", "\t"), ("MovieLens 1M", "ratings.dat", "::")):
        text = "".join(separator.join(map(str, (*row, 881250949))) + "\n" for row in ROWS).encode()
        build = partial(movielens.build, member=member, separator=separator)
        read = partial(in_archive, build, folder / member, folder, COUNTS)
        stands = partial(as_movielens, separator)
        found[f"table of {name}"] = Kind(folder / member, text, read, DataError, "", stands)
    text = b"2,99,-9.85,99,10\n4,0.5,1.25,-10,3\n1,99,99,7.82,99\n"
    counts = {"users": 3, "items": 4, "ratings": 7}
    member = folder / "jester-data-1.csv"
    found["table of Jester"] = Kind(
        member, text, partial(in_archive, jester.build, member, folder, counts), DataError, "", as_jester
    )
    return found


def in_archive(build: Callable, member: Path, folder: Path, counts: dict[str, int]) -> list[np.ndarray]:
    archive = folder / "table.zip"
    archive.write_bytes(zipped({member.name: member.read_bytes()}))
    return arrays(build, archive, folder, counts)


def as_movielens(separator: str, text: bytes) -> list[np.ndarray]:
    return triples([(line[0] - 1, line[1] - 1, line[2]) for line in plainly(text, separator, {3, 4})])


def as_jester(text: bytes) -> list[np.ndarray]:
    rows = plainly(text, ",", {5})
    return triples([(i, j, value) for i, row in enumerate(rows) for j, value in enumerate(row[1:]) if value != 99])


def archived(folder: Path) -> dict[str, Kind]:
    """Archives, whose members have checksums."""
    text = "".join("\t".join(map(str, row)) + "\n" for row in ROWS).encode()
    build = partial(movielens.build, member="u.data", separator="\t")
    zip_file, tar_file = folder / "ml.zip", folder / "images.tar.xz"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(4):
            entry = tarfile.TarInfo(f"images/{'ü' * number}{number}.jpg")
            entry.size = 600
            archive.addfile(entry, io.BytesIO(bytes([number]) * 600))
    tar = buffer.getvalue()
    wanted = lambda name: name.endswith(".jpg")  # noqa: E731
    whole = zipped({"ml/README": b"terms", "ml/u.data": text})
    return {
        "zip": Kind(zip_file, whole, partial(arrays, build, zip_file, folder, COUNTS), DataError, ""),
        "tar.xz": Kind(
            tar_file, lzma.compress(tar), lambda: list(stream_tar(tar_file, wanted)), DataError, "", parts=True
        ),
        # Without xz around it only headers have checksums: what matters is that nothing else is raised.
        "tar": Kind(
            folder / "plain.tar", tar, lambda: len(list(stream_tar(folder / "plain.tar", wanted))) * 0, DataError, ""
        ),
    }  # fmt: skip


def pictures(folder: Path) -> dict[str, Kind]:
    rng = np.random.default_rng(0)
    drawing, photo = io.BytesIO(), io.BytesIO()
    Image.fromarray(rng.random((105, 105)) < 0.3).convert("1").save(drawing, "PNG")
    Image.fromarray(rng.integers(0, 256, (84, 84, 3), np.uint8)).save(photo, "JPEG", quality=30)
    png, jpeg = folder / "a.png", folder / "a.jpg"
    return {
        "drawing": Kind(png, drawing.getvalue(), lambda: omniglot.shrink(png.read_bytes(), str(png)), DataError, ""),
        # A JPEG has no checksums, so only its shape is promised.
        "photograph": Kind(
            jpeg, photo.getvalue(), lambda: mini_imagenet.decode(jpeg.read_bytes(), str(jpeg))[0].shape, DataError, ""
        ),
    }  # fmt: skip


def recorded(folder: Path) -> dict[str, Kind]:
    settings, where = (
        {"size": "full", "rate": 0.1, "name": "a, b"},
        ({"torch": "2.13"}, "2 cores", "2026-01-01T00:00:00", "0a1b+"),
    )
    columns = {"step": {"values": [0, 1], "each": 2}, "error": [0.5, None, 1e-30, 4.0], "data": "Jester-1"}
    for seed in (1, 0):
        records.write(records.Record("errors", settings, seed, 4, columns, None, 1.5, *where), "some", folder)
    file = records.write(records.Record("errors", {}, 2, 0, {}, "meta step 3: not finite", 1.5, *where), "some", folder)

    def read() -> list:
        records._read.cache_clear()  # two cases within a tick of the clock look alike
        return records.read("some", folder)

    return {
        "records": Kind(file, file.read_bytes(), read, ValueError, r"line \d+, is not a record: .*" + records.REMEDY, parts=True)
    }


def saved(folder: Path) -> dict[str, Kind]:
    """Checkpoints and initialisations."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    problem = Problem(model.eval(), nn.functional.mse_loss)
    run, theta = folder / "run.safetensors", folder / "theta.safetensors"
    state = {
        "rows": np.arange(6.0).reshape(3, 2), "columns": ["query_loss", "gradient_norm"],
        "generator": torch.Generator().get_state()[:64],
        "outer": {"parameters": [torch.randn(17)], "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "lr": [{"lr": 0.1}]}},
        "best": {"step": None, "value": math.inf, "empty": np.array([])},
    }  # fmt: skip
    identity = {"theta": "torch.float32 (17,) 0123", "seed": "0"}
    checkpoints.save(run, identity, state)
    save_initialisation(theta, problem, torch.randn(problem.size), torch.randn(2))
    load = lambda: (lambda found: [found.theta, found.phi])(load_initialisation(theta, problem))  # noqa: E731
    return {
        "checkpoint": Kind(
            run, run.read_bytes(), lambda: checkpoints.load(run, identity), ValueError, "Delete it or choose another file"
        ),
        "initialisation": Kind(
            theta, theta.read_bytes(), load, ValueError, "Save the initialisation again|belongs to another model"
        ),
    }


def prepared(folder: Path) -> dict[str, Kind]:
    """Prepared arrays and their manifests, with digests; and ratings of before there were any, whose file has checksums."""
    found = {}
    for root, signed in (("signed", True), ("older", False)):
        ratings, images = folder / root / "ml-100k", folder / root / "omniglot"
        ratings.mkdir(parents=True)
        images.mkdir()
        user, item, rating = triples([(a - 1, b - 1, c) for a, b, c in ROWS])
        np.savez(ratings / "ratings.npz", user=user, item=item, rating=rating)
        np.save(images / "images.npy", np.random.default_rng(0).integers(0, 256, (2, 20, 28, 28), np.uint8))
        classes = [{"alphabet": "Latin", "character": f"character0{i}", "split": "background"} for i in range(2)]
        for place, manifest in (
            (ratings, {"name": "ml-100k", "format": 1, "counts": COUNTS}),
            (images, {"name": "omniglot", "format": 1, "classes": classes}),
        ):
            if signed:
                manifest["files"] = {file.name: file_digest(file) for file in place.iterdir()}
                manifest["digest"] = digest(manifest)
            (place / "manifest.json").write_text(json.dumps(manifest, indent=1))
        label = "" if signed else " of before digests"
        for place, read in ((ratings, read_ratings), (images, read_images)):
            array = next(place.glob("*.np?"))
            if signed or place is ratings:
                found[array.name + label] = Kind(
                    array, array.read_bytes(), partial(read, place.parent), ValueError, "run `make data`"
                )
            if signed:
                path = place / "manifest.json"
                found[f"manifest of {place.name}"] = Kind(
                    path, path.read_bytes(), partial(read, place.parent), ValueError, "run `make data`"
                )
    return found


def read_ratings(root: Path) -> list:
    datasets._digest_of.cache_clear()
    data = datasets.load_ratings("ml-100k", root)
    return [data.user, data.item, data.rating]


def read_images(root: Path) -> list:
    datasets._digest_of.cache_clear()
    data = datasets.load_images("omniglot", root=root)
    return [np.array(data.images), data.classes]


# --------------------------------------------------------------------------------------------------------------- the run


@dataclass
class Report:
    """What became of all cases: how many of each kind ended how, and the first few that went wrong."""

    counts: dict[str, Counter] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def total(self) -> Counter:
        return sum(self.counts.values(), Counter())


def fuzz(cases: int, seed: int = 0, only: str = "", tell: Callable[[str], object] = lambda line: None) -> Report:
    """So many cases, shared out evenly. The case of a number is the same in every run of its kind and seed."""
    report = Report()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        chosen = {name: kind for name, kind in kinds(Path(folder)).items() if only in name}
        others = [kind.whole for kind in chosen.values()]
        for place, (name, kind) in enumerate(chosen.items()):
            counts, original, began = Counter(), kind.read(), time.monotonic()
            report.counts[name] = counts
            for number in range(cases * place // len(chosen), cases * (place + 1) // len(chosen)):
                number -= cases * place // len(chosen)
                rng = random.Random(f"{seed} {name} {number}")
                damaged = mutate(kind.whole, rng, others)
                with redirect_stderr(io.StringIO()):
                    outcome, why = ("unchanged", "") if damaged == kind.whole else attempt(kind, original, damaged)
                counts[outcome] += 1
                if why:
                    report.wrong.append(f"{name}, seed {seed}, case {number}: {why}")
            tell(f"{name:35} {summary(counts)}, {time.monotonic() - began:.1f} s")
    return report


def summary(counts: Counter) -> str:
    words = ("refused", "unchanged", "as it stands", "wrong")
    return f"{counts.total():7,} tried: " + ", ".join(
        f"{counts[word]:,} {word}" for word in words if counts[word] or word == "wrong"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=ALL_CASES, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--only", default="", metavar="KIND", help="only kinds whose name contains this")
    parser.add_argument("--record", type=Path, help="a JSON file that gets the counts")
    arguments = parser.parse_args(argv)
    report = fuzz(arguments.cases, arguments.seed, arguments.only, print)
    if not report.counts:
        parser.error(f"no kind's name contains {arguments.only!r}")
    for line in itertools.islice(report.wrong, 50):
        print(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"fuzz: {summary(report.total).strip()}; {peak:.0f} MB at most")
    if arguments.record:
        counts = {f"fuzz {name}": {"tried": c.total(), "lost": c["wrong"]} for name, c in report.counts.items()}
        keep(arguments.record, counts)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
