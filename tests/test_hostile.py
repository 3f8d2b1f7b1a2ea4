"""Whatever comes from outside is read as it is or refused with a reason: files of every kind, and arguments of every kind."""

import dataclasses
import io
import json
import math
import random
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
from data_scripts import archives, movielens, ratings
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


@claim(150, content=CONTENT)
def json_comes_back_as_it_was_written(content):
    found = parse(json.dumps(content))
    assert fuzz.same(found, content) and digest(found) == digest(content)


@claim(150, text=ANY_BYTES | st.text(alphabet='{}[]",:0123456789eE+-.NaIfinity \n', max_size=40).map(str.encode))
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
    80, rows=st.lists(GOOD | st.lists(ENTRY, max_size=5), max_size=6), separator=SEPARATORS, end=st.sampled_from(["\n", "\r\n", ""])
)
def a_table_is_read_as_a_person_would_or_refused_by_its_line(rows, separator, end):
    text = end.join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass") + end.encode()
    try:
        found = ratings.parse_table(text, "u.data", separator, (3, 4))
    except DataError as error:
        refused(error, "u.data")
    else:
        assert found.tolist() == fuzz.plainly(text, separator, {3, 4})


@claim(60, rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6)), max_size=12))
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


@claim(60, members=MEMBERS, method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]))
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


@claim(60, members=st.lists(st.tuples(NAMES, ANY_BYTES, KINDS), max_size=4), packed=st.sampled_from(["w", "w:gz", "w:xz"]))
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


# -------------------------------------------------------------------------------------------- records, checkpoints, thetas

FIELDS = [entry.name for entry in dataclasses.fields(records.Record)]
RECORD = dict(kind="a", settings={"x": 1}, seed=0, rows=2, columns={"y": [1, 2]}, diverged=None, duration=1.0,
              versions={}, machine="m", date="2026-01-01", commit="0")  # fmt: skip


@claim(
    150,
    changes=st.dictionaries(st.sampled_from([*FIELDS, "more", "digest"]), CONTENT, max_size=3),
    cut=st.integers(0, 400) | st.none(),
)
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


@claim(60, state=st.dictionaries(st.text(max_size=4), STATE, max_size=3), junk=ANY_BYTES, other=st.text(max_size=4))
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


PROBLEM = Problem(nn.Linear(2, 1), nn.functional.mse_loss)


@claim(
    40,
    theta=st.lists(st.floats(width=32), min_size=2, max_size=4),
    phi=st.none() | st.lists(st.floats(width=32), max_size=2),
    junk=ANY_BYTES,
)
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

JUNK = st.sampled_from([
    None, True, False, 0, 1, 2, -1, 2.5, 0.1, math.nan, math.inf, -math.inf, 10**400, "", "abc", b"x", (), [], {}, [1.0], {"a": 1}, object(),
    torch.tensor(0.1), torch.zeros(0), torch.ones(2, 3), torch.tensor([math.nan]), np.float32(0.5), np.zeros(2), np.int64(3), 1j, len, int, Euler,
    Euler(steps=2), Backsolve(), nn.Linear(2, 1), MAML(), lambda *_: None, torch.float32, slice(2),
])  # fmt: skip
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


@claim(1200, kind=st.sampled_from(CONSTRUCTED), data=st.data())
def every_constructor_works_or_says_why(kind, data):
    names = [entry.name for entry in dataclasses.fields(kind) if entry.init]
    needed = [
        e.name for e in dataclasses.fields(kind) if e.default is dataclasses.MISSING and e.default_factory is dataclasses.MISSING
    ]
    chosen = [*needed, *data.draw(st.lists(st.sampled_from(names), max_size=2))]
    arguments = {name: data.draw(JUNK) for name in chosen if name in names}
    works_or_says_why(lambda: kind(**arguments))


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
    AMAML(horizon=0.1, solver=Euler(steps=2)), AMAML(horizon=0.1, solver=Euler(steps=2), memory=Backsolve()), MAML(steps=2), FOMAML(steps=2),
    Reptile(steps=2), IMAML(), AMAML(solver=amaml_core.Dopri5()), AMAML(solver=amaml_core.Adam(steps=2)),
]  # fmt: skip
METHOD = st.sampled_from(METHODS) | st.sampled_from(METHODS) | JUNK
CALL = dict(
    method=METHOD,
    problem=st.sampled_from([*PROBLEMS, PROBLEM, PROBLEM, PROBLEM]) | st.just(None),
    theta=tensors([3]),
    tasks=some_tasks(),
    phi=st.none() | st.none() | tensors([2]),
)


@claim(150, **CALL)
def a_meta_gradient_is_one_or_an_error_that_says_why(method, problem, theta, tasks, phi):
    found = works_or_says_why(lambda: meta_gradient(method, problem, theta, tasks, phi))
    if found is not None:
        assert found.gradient.shape == theta.shape and found.gradient.isfinite().all()


@claim(100, **CALL, steps=st.integers(-1, 3) | JUNK)
def adaptation_works_or_says_why(method, problem, theta, tasks, phi, steps):
    works_or_says_why(lambda: adapt(method, problem, theta, tasks, steps, phi))


@claim(100, **CALL, metric=st.just(metrics.rmse) | JUNK, steps=st.just((0, 2)) | JUNK | st.lists(st.integers(-1, 2), max_size=3))
def evaluation_works_or_says_why(method, problem, theta, tasks, phi, metric, steps):
    method = AdamAdaptation() if method is None else method
    works_or_says_why(lambda: evaluate(method, problem, theta, tasks, metric, steps, phi))


OPTIONS = ("optimizer", "seed", "theta", "learn", "phi", "scheduler", "clip_norm", "validation", "validate_every", "metric",
           "lower_is_better", "patience", "callbacks", "multi_step")  # fmt: skip
HALVES = Tasks(*(torch.full((2, 3, size), 0.5) for size in (2, 1, 2, 1)))


@claim(80, meta_steps=st.just(2) | JUNK.filter(lambda value: value != 10**400), options=st.dictionaries(st.sampled_from(OPTIONS), JUNK, max_size=2),
       method=METHOD, tasks=st.just(HALVES) | some_tasks(), kept=st.booleans())  # fmt: skip
def training_works_or_says_why(meta_steps, options, method, tasks, kept):
    with folder() as place:
        path = Path(place) / "run" if kept else None
        works_or_says_why(
            lambda: fit(method, PROBLEM, lambda generator: tasks, meta_steps, checkpoint=path, progress=False, **options)
        )


# ------------------------------------------------------------------------------------------------------------------ all of it


@pytest.mark.parametrize("name", CLAIMS)
def test_claim(name):
    hold(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_claim_in_depth(name):
    hold(name, 20)


def test_a_short_fuzz_run_finds_nothing_wrong():
    report = fuzz.fuzz(640, seed=14)
    assert report.wrong == [] and report.total.total() == 640 and len(report.counts) == 16
    assert all(counts["refused"] > 10 for counts in report.counts.values())
    assert fuzz.fuzz(32, seed=14, only="manifest").counts == fuzz.fuzz(32, seed=14, only="manifest").counts


def test_the_fuzz_script_knows_what_is_wrong(tmp_path):
    path = tmp_path / "file"
    whole = fuzz.Kind(path, b"abc", path.read_bytes, ValueError, "")
    assert fuzz.attempt(whole, b"abc", b"abd")[0] == "wrong"  # other content
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
