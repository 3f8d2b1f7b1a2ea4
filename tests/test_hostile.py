"""Whatever comes from outside is read as it is or refused with a reason: files of every kind, and arguments of every kind."""

import ast
import dataclasses
import io
import json
import math
import random
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import save as encode
from torch import nn

import amaml_core
from amaml_core import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    AdamAdaptation,
    Backsolve,
    DivergenceError,
    Euler,
    Problem,
    Reptile,
    Tasks,
    adapt,
    checkpoints,
    evaluate,
    fit,
    load_initialisation,
    meta_gradient,
    metrics,
    save_initialisation,
)
from amaml_core.strict import digest, parse
from data_scripts import archives, mini_imagenet, movielens, omniglot, ratings
from data_scripts.common import DataError, Source
from experiments.common import records

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = {}


def claim(examples, **strategies):
    """A property and how many examples of it a normal run tries."""

    def register(check):
        CLAIMS[check.__name__] = (examples, strategies, check)
        return check

    return register


def hold(name, times):
    """Try a property, the same examples every time: no clock and no memory of earlier runs plays a part."""
    examples, strategies, check = CLAIMS[name]
    options = dict(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings(max_examples=times * examples, **options)(given(**strategies)(check))()


def folder():
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


def refused(error, *words):
    assert str(error) and all(word in str(error) for word in words)


# ---------------------------------------------------------------------------------------------------------- JSON and digests

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
CONTENT = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4))
ANY_BYTES = st.binary(max_size=60)


@claim(40, content=CONTENT)
def json_comes_back_as_it_was_written(content):
    found = parse(json.dumps(content))
    assert fuzz.same(found, content) and digest(found) == digest(content)


@claim(80, text=ANY_BYTES | st.text(alphabet='{}[]",:0123456789eE+-.NaIfinity \n', max_size=40).map(str.encode))
def what_is_read_of_any_bytes_is_json_by_the_standard(text):
    try:
        found = parse(text)
    except ValueError as error:
        refused(error)
    else:
        assert json.loads(json.dumps(found, allow_nan=False)) == found


# ------------------------------------------------------------------------------------------------------------------- tables

ENTRY = (
    st.integers(-2, 7).map(str)
    | st.floats().map(str)
    | st.text(max_size=4)
    | st.sampled_from(["", "1e400", "0x1", "1_0", "9" * 30])
)
GOOD = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)).map(lambda row: [*map(str, row)])
SEPARATORS = st.sampled_from(["\t", "::", ","])


@claim(
    50, rows=st.lists(GOOD | st.lists(ENTRY, max_size=5), max_size=6), separator=SEPARATORS, end=st.sampled_from(["\n", "\r\n", ""])
)
def a_table_is_read_as_a_person_would_or_refused_by_its_line(rows, separator, end):
    text = end.join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass") + end.encode()
    try:
        found = ratings.parse_table(text, "u.data", separator, (3, 4), rows=6)
    except DataError as error:
        refused(error, "u.data")
    else:
        assert found.tolist() == fuzz.plainly(text, separator, {3, 4})


@claim(30, rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6)), max_size=12))
def ratings_are_kept_only_if_every_user_and_the_last_item_has_some_and_no_pair_two(rows):
    pairs = {row[:2] for row in rows}
    whole = (
        len(rows) == len(pairs) == 6
        and {user for user, _ in pairs} == {1, 2, 3}
        and min(i for _, i in pairs) > 0
        and max(i for _, i in pairs) == 4
        and all(1 <= rating <= 5 for *_, rating in rows)
    )
    with folder() as place:
        archive = Path(place) / "ml.zip"
        archive.write_bytes(fuzz.zipped({"u.data": "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()}))
        source, counts = Source(archive, "ml.zip", None, False), {"users": 3, "items": 4, "ratings": 6}
        try:
            movielens.build([source], Path(place), counts, member="u.data", separator="\t")
        except DataError as error:
            refused(error, "u.data")
            assert not whole and not (Path(place) / "ratings.npz").exists()
        else:
            assert whole


# ----------------------------------------------------------------------------------------------------------------- archives

NAMES = st.text(alphabet="ab./\\:\0é", min_size=1, max_size=8) | st.sampled_from(
    ["u.data", "a/u.data", "../u.data", "/u.data", "c:/u.data"]
)
MEMBERS = st.lists(st.tuples(NAMES, ANY_BYTES, st.sampled_from([0, 0o100644, 0o120777, 0o060644, 0o010644])), max_size=4)


@claim(30, members=MEMBERS, method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]))
def of_a_zip_only_plain_files_within_their_folder_are_read(members, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content, mode in members:
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, method
            file.writestr(entry, content)
    with folder() as place:
        path = Path(place) / "some.zip"
        path.write_bytes(buffer.getvalue())
        try:
            with archives.open_zip(path) as opened:
                found = [(m.filename, archives.read_member(opened, m, 50)) for m in opened.infolist()]
        except DataError as error:
            refused(error, "some.zip")
        else:
            assert [content for _, content in found] == [content for _, content, _ in members]
            assert len({name for name, _ in found}) == len(found) and all(len(content) <= 50 for _, content in found)
            assert all((Path("/x") / name).resolve().is_relative_to("/x") for name, _ in found)
            assert all(mode in (0, 0o100644) for *_, mode in members)
            assert not members or method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"Z"]
)


@claim(30, members=st.lists(st.tuples(NAMES, ANY_BYTES, KINDS), max_size=4), packed=st.sampled_from(["w", "w:gz", "w:xz"]))
def of_a_tar_only_plain_files_within_their_folder_are_read(members, packed):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=packed) as file:
        for name, content, kind in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            file.addfile(entry, io.BytesIO(content))
    with folder() as place:
        path = Path(place) / "some.tar"
        path.write_bytes(buffer.getvalue())
        try:
            found = list(archives.stream_tar(path, lambda name: True))
        except DataError as error:
            refused(error, "some.tar")
        else:
            assert [content for _, content in found] == [content for _, content, kind in members if kind in (tarfile.REGTYPE, b"Z")]
            assert all((Path("/x") / name).resolve().is_relative_to("/x") for name, _ in found)


@claim(
    30,
    content=ANY_BYTES,
    said=st.integers(0, 70) | st.sampled_from([2**31 - 1, 2**32 - 2]),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    marks=st.lists(st.sampled_from([(b"PK\3\4", 22), (b"PK\1\2", 24), (b"PK\1\2", 20)]), unique=True),
)
def of_a_zip_all_of_a_file_is_read_or_nothing_whatever_its_headers_say(content, said, method, marks):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("u.data", content)
    data = bytearray(buffer.getvalue())
    for mark, place in marks:
        struct.pack_into("<I", data, (data.rindex if mark == b"PK\1\2" else data.index)(mark) + place, said)
    with folder() as place:
        path = Path(place) / "some.zip"
        path.write_bytes(data)
        try:
            with archives.open_zip(path) as opened:
                found = [archives.read_member(opened, member, 50) for member in opened.infolist()]
        except DataError as error:
            refused(error, "some.zip")
            assert marks or len(content) > 50
        else:
            assert found == [content]


# ----------------------------------------------------------------------------------------------------------------- pictures

READERS = {"here.png": lambda data, name: (omniglot.shrink(data, name), False), "here.jpg": mini_imagenet.decode}
FORMS = [
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("JPEG", mode) for mode in ("1", "L", "RGB", "CMYK", "YCbCr")),
    *((kind, "L") for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO")),
]
LENGTHS = st.sampled_from([105, 105, 105, 84, 84, 1]) | st.integers(1, 130)
SAID = st.tuples(LENGTHS, LENGTHS) | st.sampled_from([(0, 105), (60_000, 60_000), (65_000, 1_100), (12_000, 12_000)])


def packed(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def say(data, kind, size):
    """A picture whose header says another size, with a right checksum."""
    data = bytearray(data)
    if kind == "PNG":
        struct.pack_into(">II", data, 16, *size)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    else:
        struct.pack_into(">HH", data, re.search(b"\xff[\xc0\xc2]", data).start() + 5, *size[::-1])
    return bytes(data)


@claim(
    120,
    name=st.sampled_from([*READERS]),
    form=st.sampled_from(FORMS),
    size=st.sampled_from([(105, 105), (105, 105), (84, 84)]) | st.tuples(LENGTHS, LENGTHS),
    profile=st.sampled_from([0, 0, 0, 100, 2**21]),
    progressive=st.booleans(),
    said=st.none() | st.none() | SAID,
    cut=st.none() | st.none() | st.floats(0, 1),
    flipped=st.none() | st.none() | st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 3),
)
def a_picture_is_read_as_it_is_or_refused_by_its_name(name, form, size, profile, progressive, said, cut, flipped, seed):
    kind, mode = form
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, size[::-1], np.uint8)).convert(mode)
    more = {"icc_profile": bytes(profile), "progressive": progressive} if profile or progressive else {}
    whole = packed(noise, kind, **(more if kind in ("PNG", "JPEG") else {}))
    data = say(whole, kind, said) if said and kind in ("PNG", "JPEG") else whole
    data = data if cut is None else data[: int(cut * len(data))]
    if flipped is not None and data:
        place = int(flipped * len(data))
        data = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
    drawn = name == "here.png"
    # A profile of 2 MiB of zeros is a bomb in a PNG, which packs it; Pillow says so.
    fits = (kind == "PNG" and mode in ("1", "L") and size == (105, 105) and profile < 2**20) if drawn else kind == "JPEG"
    try:
        found, resized = READERS[name](data, name)
    except DataError as error:
        refused(error, name)
        assert not fits or data != whole
        return
    assert found.dtype == np.uint8 and found.shape == ((28, 28) if drawn else (84, 84, 3))
    if data == whole or drawn and not said:  # a JPEG has no checksums; what says another size is another picture
        assert fits
        right = Image.open(io.BytesIO(whole)).convert("L" if drawn else "RGB")
        right = ImageOps.invert(right) if drawn else right
        assert (
            found == np.asarray(right.resize(found.shape[1::-1], Image.Resampling.LANCZOS) if drawn or resized else right)
        ).all()
        assert resized == (not drawn and size != (84, 84))


PATHS = st.sampled_from(
    [f"images_background/{a}/{c}/0{n}_0{n}.png" for a in ("Greek", "Latin") for c in "12" for n in (1, 2)]
    + ["images_background/Greek/1/7_1.png", "images_background/Greek/3_01.png", "images_evaluation/Greek/1/1_01.png", "README",
       "images_background/Greek/1/", "images_background/Greek/1/1_01.PNG", "x/images_background/Greek/1/1_01.png"]
)  # fmt: skip


TWO = [
    st.lists(st.sampled_from([f"images_background/A/{c}/0_{n}.png" for n in "1203"]), min_size=2, max_size=2, unique=True)
    for c in "12"
]


@claim(40, paths=st.lists(PATHS, unique=True, max_size=9) | st.tuples(*TWO).map(lambda pair: sum(pair, [])))
def drawings_are_of_whole_characters_or_the_archive_is_refused(paths):
    pixels = {path: np.full((105, 105), n * 20, np.uint8) for n, path in enumerate(paths)}
    by_drawer = lambda path: (path.rpartition("/")[0], int(path[:-4].rpartition("_")[2]))  # noqa: E731
    listed = sorted((path for path in paths if path.endswith(".png")), key=by_drawer)
    placed = all(re.fullmatch("images_background(/[^/]*){3}", path) for path in listed)
    whole = placed and len({by_drawer(path)[0] for path in listed}) == 2 and [by_drawer(path)[1] for path in listed] == [1, 2, 1, 2]
    with folder() as place:
        archive, empty = Path(place) / "drawings.zip", Path(place) / "empty.zip"
        archive.write_bytes(fuzz.zipped({path: packed(Image.fromarray(array), "PNG") for path, array in pixels.items()}))
        empty.write_bytes(fuzz.zipped({}))
        sources = [Source(path, path.name, None, False) for path in (archive, empty)]
        try:
            classes = omniglot.build(sources, Path(place), {"background": 2, "evaluation": 0, "drawers": 2})["classes"]
        except DataError as error:
            refused(error, "drawings.zip")
            assert not whole and not (Path(place) / "images.npy").exists()
            return
        assert whole
        assert [f"{c['alphabet']}/{c['character']}" for c in classes] == ["/".join(p.split("/")[1:3]) for p in listed[::2]]
        found = np.load(Path(place) / "images.npy", allow_pickle=False).reshape(4, 28, 28)
        assert [image[14, 14] for image in found] == [255 - pixels[path][0, 0] for path in listed]


# -------------------------------------------------------------------------------------------- records, checkpoints, thetas

FIELDS = [entry.name for entry in dataclasses.fields(records.Record)]
RECORD = dict(kind="a", settings={"x": 1}, seed=0, rows=2, columns={"y": [1, 2]}, diverged=None, duration=1.0,
              versions={}, machine="m", date="2026-01-01", commit="0")  # fmt: skip


CHANGES = st.dictionaries(st.sampled_from([*FIELDS, "more", "digest"]), CONTENT, max_size=3)


@claim(60, changes=CHANGES, cut=st.integers(0, 400) | st.none())
def a_line_of_records_is_one_or_an_error_with_its_place(changes, cut):
    line = json.dumps(RECORD | changes).encode()[:cut] + b"\n"
    with folder() as place:
        (Path(place) / "some.jsonl").write_bytes(json.dumps(RECORD | {"seed": 7}).encode() + b"\n" + line)
        records._read.cache_clear()
        try:
            found = records.read("some", Path(place))
        except ValueError as error:
            refused(error, "some.jsonl, line 2, is not a record", records.REMEDY)
        else:
            assert len(found) == 2 and all(len(record.table) == record.rows and record.key for record in found)


STATE = st.recursive(
    PLAIN
    | st.floats()
    | st.lists(st.floats(width=32), max_size=4).map(torch.tensor)
    | st.just(torch.zeros(2, 0, dtype=torch.float64)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
)


@claim(30, state=st.dictionaries(st.text(max_size=4), STATE, max_size=3), junk=ANY_BYTES, other=st.text(max_size=4))
def a_state_comes_back_to_the_bit_and_nothing_else_does(state, junk, other):
    with folder() as place:
        path = Path(place) / "run"
        checkpoints.save(path, {"seed": "0"}, state)
        assert fuzz.same(checkpoints.load(path, {"seed": "0"}), state)
        with pytest.raises(ValueError, match="belongs to another run"):
            checkpoints.load(path, {"seed": "1" + other})
        path.write_bytes(junk)
        with pytest.raises(ValueError, match="run is no checkpoint that can be read.*Delete it or choose another file"):
            checkpoints.load(path, {"seed": "0"})


def test_two_tensors_of_one_name_are_refused():
    one, other = torch.zeros(1), torch.ones(1)
    with pytest.raises(TypeError, match="a checkpoint cannot hold two entries of the name state.a.b"):
        checkpoints.flatten({"a.b": one, "a": {"b": other}}, {})


STATES = [
    '{"tensor": "x"}',
    '{"dict": [[1]]}',
    '{"list": 3}',
    '{"other": [1]}',
    '{"list": [], "dict": []}',
    "[" * 10**5 + "]" * 10**5,
]


@pytest.mark.parametrize(
    "content", ["null", "{}", '{"identity": 1, "state": 1}', *('{"identity": {}, "state": ' + state + "}" for state in STATES)]
)
def test_a_checkpoint_of_other_content_with_a_digest_that_is_right_is_refused_too(tmp_path, content):
    header = {"format": checkpoints.FORMAT, "content": content, "digest": digest([content, {"": "dict"}])}
    (tmp_path / "run").write_bytes(encode({}, metadata=header))
    with pytest.raises(
        ValueError, match="run is no checkpoint that can be read: (?!it is damaged).*Delete it or choose another file"
    ):
        checkpoints.load(tmp_path / "run", {})


PROBLEM = Problem(nn.Linear(2, 1), nn.functional.mse_loss)


SINGLE = st.lists(st.floats(width=32), max_size=4)


@claim(30, theta=SINGLE, phi=st.none() | SINGLE, junk=ANY_BYTES)
def an_initialisation_comes_back_to_the_bit_or_is_refused(theta, phi, junk):
    with folder() as place:
        path = Path(place) / "theta"
        given_phi = None if phi is None else torch.tensor(phi)
        try:
            save_initialisation(path, PROBLEM, torch.tensor(theta), given_phi)
        except ValueError as error:
            refused(error)
            assert not path.exists() and (len(theta) != 3 or not all(map(math.isfinite, [*theta, *(phi or [])])))
        else:
            found = load_initialisation(path, PROBLEM)
            assert fuzz.same([found.theta, found.phi], [torch.tensor(theta), given_phi])
        path.write_bytes(junk)
        with pytest.raises(ValueError, match="theta is no initialisation that can be read.*Save the initialisation again"):
            load_initialisation(path, PROBLEM)


# --------------------------------------------------------------------------------------------------------- the public interface

THINGS = [
    None, True, False, 0, 1, 2, -1, 2.5, 0.1, math.nan, math.inf, -math.inf, 10**400, "", "abc", b"x", (), [], {}, [1.0], {"a": 1},
    object(), torch.tensor(0.1), torch.zeros(0), torch.ones(2, 3), torch.tensor([math.nan]), np.float32(0.5), np.zeros(2),
    np.int64(3), 1j, len, int, Euler,
    Euler(steps=2), Backsolve(), nn.Linear(2, 1), MAML(), lambda *_: None, torch.float32, slice(2),
]  # fmt: skip
JUNK = st.sampled_from(THINGS)
CONSTRUCTED = [
    getattr(amaml_core, name)
    for name in ("AMAML", "FOMAML", "IMAML", "MAML", "RK4", "Adam", "AdamAdaptation", "Backsolve", "Checkpoint", "Dopri5", "Euler",
                 "GradientDescent", "HessianFree", "Heun", "InnerLoop", "Momentum", "Problem", "Reptile", "Store", "Tasks")
]  # fmt: skip


def works_or_says_why(call):
    try:
        return call()
    except (ValueError, TypeError, DivergenceError) as error:
        refused(error)
        assert "\n" not in str(error) or len(str(error)) < 2000
        return None


HALVES = Tasks(*(torch.full((2, 3, size), 0.5) for size in (2, 1, 2, 1)))
NEEDED = {Problem: dict(model=nn.Linear(2, 1), loss=nn.functional.mse_loss), Tasks: vars(HALVES)}


@pytest.mark.parametrize("kind", CONSTRUCTED, ids=lambda kind: kind.__name__)
def test_every_setting_is_taken_or_refused_with_a_reason(kind):
    for name in (entry.name for entry in dataclasses.fields(kind) if entry.init):
        for thing in THINGS:
            works_or_says_why(lambda: kind(**(NEEDED.get(kind, {}) | {name: thing})))  # noqa: B023


@claim(100, kind=st.sampled_from(CONSTRUCTED), data=st.data())
def settings_that_do_not_go_together_say_why(kind, data):
    names = [entry.name for entry in dataclasses.fields(kind) if entry.init]
    chosen = data.draw(st.lists(st.sampled_from(names), max_size=3))
    works_or_says_why(lambda: kind(**(NEEDED.get(kind, {}) | {name: data.draw(JUNK) for name in chosen})))


SHAPES = st.lists(st.integers(0, 4), max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64])
VALUES = st.sampled_from([0.0, 1.0, 1.0, -1.0, math.nan, math.inf, 1e30])


@st.composite
def tensors(draw, usual):
    """A tensor of the usual shape, or of another one, or with another entry, or something else."""
    if draw(st.integers(0, 19)) == 0:
        return draw(JUNK)
    shape = usual if draw(st.integers(0, 4)) else draw(SHAPES)
    filled = torch.full(tuple(shape), draw(VALUES) if draw(st.integers(0, 4)) == 0 else 0.5)
    return filled.to(draw(DTYPES)) if draw(st.integers(0, 4)) == 0 else filled


@st.composite
def some_tasks(draw):
    if draw(st.integers(0, 19)) == 0:
        return draw(JUNK)
    entries = [draw(tensors([2, 3, size])) for size in (2, 1, 2, 1)]
    found = works_or_says_why(lambda: Tasks(*entries))
    if found is None:
        return None
    return [found] * draw(st.integers(0, 2)) if draw(st.integers(0, 4)) == 0 else found


PROBLEMS = [
    PROBLEM,
    Problem(nn.Linear(2, 1), lambda prediction, target, phi: nn.functional.mse_loss(prediction, target) * phi.exp().sum()),
    Problem(nn.Linear(2, 1), nn.functional.cross_entropy),
    Problem(nn.Linear(2, 1), nn.functional.mse_loss, chunk_size=1),
]
METHODS = [
    AMAML(horizon=0.1, solver=Euler(steps=2)), AMAML(horizon=0.1, solver=Euler(steps=2), memory=Backsolve()), MAML(steps=2),
    FOMAML(steps=2), Reptile(steps=2), IMAML(), AMAML(solver=amaml_core.Dopri5()), AMAML(solver=amaml_core.Adam(steps=2)),
]  # fmt: skip
METHOD = st.sampled_from(METHODS) | st.sampled_from(METHODS) | JUNK
CALL = dict(
    method=METHOD,
    problem=st.sampled_from([*PROBLEMS, PROBLEM, PROBLEM, PROBLEM]) | st.just(None),
    theta=tensors([3]),
    tasks=some_tasks(),
    phi=st.none() | st.none() | tensors([2]),
)


@claim(60, **CALL)
def a_meta_gradient_is_one_or_an_error_that_says_why(method, problem, theta, tasks, phi):
    found = works_or_says_why(lambda: meta_gradient(method, problem, theta, tasks, phi))
    if found is not None:
        assert found.gradient.shape == theta.shape and found.gradient.isfinite().all()


@claim(40, **CALL, steps=st.integers(-1, 3) | JUNK)
def adaptation_works_or_says_why(method, problem, theta, tasks, phi, steps):
    works_or_says_why(lambda: adapt(method, problem, theta, tasks, steps, phi))


@claim(40, **CALL, metric=st.just(metrics.rmse) | JUNK, steps=st.just((0, 2)) | JUNK | st.lists(st.integers(-1, 2), max_size=3))
def evaluation_works_or_says_why(method, problem, theta, tasks, phi, metric, steps):
    method = AdamAdaptation() if method is None else method
    works_or_says_why(lambda: evaluate(method, problem, theta, tasks, metric, steps, phi))


OPTIONS = ("optimizer", "theta", "learn", "phi", "scheduler", "clip_norm", "validation", "validate_every", "metric",
           "lower_is_better", "patience", "callbacks", "multi_step", "seed")  # fmt: skip


@claim(
    40,
    meta_steps=st.just(2) | st.sampled_from(THINGS),
    options=st.dictionaries(st.sampled_from(OPTIONS), JUNK, max_size=2),
    method=METHOD,
    tasks=st.just(HALVES) | some_tasks(),
    kept=st.booleans(),
)
def training_works_or_says_why(meta_steps, options, method, tasks, kept):
    with folder() as place:
        path = Path(place) / "run" if kept else None
        works_or_says_why(
            lambda: fit(method, PROBLEM, lambda generator: tasks, meta_steps, checkpoint=path, progress=False, **options)
        )


# ---------------------------------------------------------------------------------------------------------------- no pickles

LOADERS = {"pickle", "_pickle", "cPickle", "pickle5", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle", "copyreg"}
CALLS = {"eval", "exec", "read_pickle", "to_pickle", "joblib.load", "joblib.dump", "torch.load", "torch.save", "torch.jit.load",
         "torch.hub.load", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}  # fmt: skip
FOLDERS = ("amaml_core", "experiments", "tools", "data_scripts", "examples", "benchmarks")
FENCE = re.compile(r"^(`{3,})(?:\{code-cell\}|\{code-block\} *python|python)[^\n]*\n(.*?)^\1 *$", re.DOTALL | re.MULTILINE)


def pickled(source):
    """What in a source would load a pickle, or run a text, or give one to a shell."""
    tree = ast.parse(source)
    names = {}  # as the source calls it -> what it is
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0] for a in node.names}
            yield from (a.name for a in node.names if a.name.partition(".")[0] in LOADERS)
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            if (node.module or "").partition(".")[0] in LOADERS and not node.level:
                yield str(node.module)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition(".")
        called = names.get(first, first) + ("." + rest if rest else "")
        if called in CALLS or called.rpartition(".")[2] in ("read_pickle", "to_pickle"):
            yield called
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            yield f"{called}({given})"


def sources():
    """All code that runs outside of tests, the code of chapters and of their exercises included."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "book").rglob("*.md")):
        for number, match in enumerate(FENCE.finditer(path.read_text(encoding="utf-8"))):
            lines = [line for line in match[2].splitlines() if not line.startswith((":", "---"))]
            code = textwrap.dedent("\n".join(lines))
            try:
                ast.parse(code)
            except SyntaxError:  # an excerpt, or options of the cell in YAML
                code = code.partition("---\n")[2]
            yield path.with_suffix(f".{number}"), code


def test_nothing_loads_a_pickle_or_runs_a_text():
    found, seen = {}, 0
    for path, code in sources():
        seen += 1
        if wrong := list(pickled(code)):
            found[path.relative_to(ROOT).as_posix()] = wrong
    assert seen > 200
    # It only makes the bytes of one, to compare things of foreign classes by.
    assert found == {"amaml_core/identity.py": ["pickle"]}
    assert set(re.findall(r"pickle\.(\w+)", (ROOT / "amaml_core/identity.py").read_text())) == {"dumps"}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "import pickle as p", "from dill import loads", "import joblib\njoblib.load(f)",
        "from joblib import load\nload(f)",
        "import torch as t\nt.load(f)", "import numpy as np\nnp.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)",
        "pd.read_pickle(f)", "eval(text)", "subprocess.run(text, shell=True)", "import os\nos.system(text)",
        "from torch import load as l\nl(f)",
    ],
)  # fmt: skip
def test_the_walk_finds_each_way_to_load_a_pickle(code):
    assert list(pickled(code))
    assert not list(pickled("import json, numpy as np\nmodel.eval()\nnp.load(f, allow_pickle=False)\nsafetensors.torch.load(f)"))


def test_no_file_is_a_pickle():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True).stdout.decode().split("\0")
    paths = [ROOT / name for name in listed if name] or [
        p for folder in (*FOLDERS, "book", "results") for p in (ROOT / folder).rglob("*")
    ]
    files = [path for path in paths if path.is_file()]
    endings = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz"}
    assert len(files) > 200 and [path for path in files if path.suffix in endings or path.read_bytes()[:1] == b"\x80"] == []


# ------------------------------------------------------------------------------------------------------------------ all of it


@pytest.mark.parametrize("name", CLAIMS)
def test_claim(name):
    hold(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_claim_in_depth(name):
    hold(name, 30)


def test_a_short_fuzz_run_finds_nothing_wrong():
    report = fuzz.fuzz(640, seed=14)
    assert report.wrong == [] and report.total.total() == 640 and len(report.counts) == 16
    assert all(counts["refused"] > 10 for counts in report.counts.values())
    assert fuzz.fuzz(32, seed=14, only="manifest").counts == fuzz.fuzz(32, seed=14, only="manifest").counts


def test_the_fuzz_script_knows_what_is_wrong(tmp_path):
    path = tmp_path / "file"
    whole = fuzz.Kind(path, b"abc", path.read_bytes, ValueError, "")
    assert fuzz.attempt(whole, b"abc", b"xyz")[0] == "wrong"  # other content
    assert fuzz.attempt(whole, b"abc", b"abc")[0] == "unchanged" and path.read_bytes() == b"abc"
    for error, remedy, outcome in (
        (ValueError("file: no; delete it"), "delete it", "refused"),
        (ValueError("no; delete it"), "delete it", "wrong"),
        (ValueError("file: no"), "delete it", "wrong"),
        (KeyError("file: delete it"), "delete it", "wrong"),
    ):
        kind = dataclasses.replace(whole, read=lambda error=error: (_ for _ in ()).throw(error), remedy=remedy)
        assert fuzz.attempt(kind, b"abc", b"x")[0] == outcome
    assert len({fuzz.mutate(b"abc" * 100, random.Random(n), [b"z"]) for n in range(100)}) > 90


@pytest.mark.slow
def test_the_fuzz_script_sums_up_in_its_last_line():
    command = [sys.executable, "tests/faults/fuzz.py", "--cases", "320", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("fuzz: 320 tried: ") and "0 wrong" in done.stdout


def test_work_that_is_killed_is_made_as_if_nothing_had_happened():
    command = [sys.executable, "tests/faults/kills.py", "fit", "download", "--trials", "1", "--seed", "14"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "2 kills, 0 lost", done.stdout + done.stderr


CARELESS = """
import random, subprocess, sys, time
sys.path.insert(0, "tests/faults")
import kills

def writes_in_place(folder):
    path = folder / "result"
    if not path.exists():
        with open(path, "w") as file:
            for half in "ab":
                print(half, file=file, flush=True)
                time.sleep(0.5)
    return path.read_text()

def forgets(folder):
    own = folder / f"temporary-{time.time_ns()}"
    own.touch()
    time.sleep(0.5)
    own.unlink()

def fails(folder):
    assert not any(folder.iterdir())
    (folder / "begun").touch()
    time.sleep(0.5)

def deserts(folder):
    subprocess.Popen(["sleep", "5"])
    time.sleep(0.5)

kills.two_at_once, kills.GRACE = deserts, 0.5  # which is killed alone, and whose children have no time to end
# By this seed all moments come early: where the undisturbed work is slow, they come later, and still within it.
for work in (writes_in_place, forgets, fails, deserts):
    print([word.split()[:3] for word in kills.trials(work, 3, random.Random(690))])
"""


@pytest.mark.slow
def test_the_kill_script_sees_what_careless_work_loses():
    done = subprocess.run([sys.executable, "-c", CARELESS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    in_place, forgotten, failed, deserted = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert ["the", "second", "run"] in in_place and ["the", "second", "run"] in failed
    assert any(words[:1] == ["left"] for words in forgotten) and ["1", "processes", "of"] in deserted
