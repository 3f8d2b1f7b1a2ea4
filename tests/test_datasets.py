"""Prepared data are checked as they are read; stand-ins announce themselves and have the same layout."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from amaml_core import datasets, locations
from amaml_core.datasets import data_root, load_images, load_ratings
from amaml_core.stand_ins import _distinct_glyphs, glyph_images, low_rank_ratings
from amaml_core.strict import digest, file_digest
from data_scripts import common


def prepare_ratings(folder: Path, **changes) -> Path:
    """A tiny valid ml-100k under ``folder``, with some arrays or manifest entries replaced."""
    arrays = {
        "user": np.array([0, 0, 1, 2], np.int32),
        "item": np.array([0, 3, 3, 1], np.int32),
        "rating": np.array([1, 5, 3, 4], np.float32),
    }
    manifest = {"name": "ml-100k", "format": 1, "counts": {"users": 3, "items": 4, "ratings": 4}}
    arrays |= {key: value for key, value in changes.items() if key in arrays}
    manifest |= {key: value for key, value in changes.items() if key in manifest}
    (folder / "ml-100k").mkdir()
    np.savez(folder / "ml-100k" / "ratings.npz", **arrays)
    (folder / "ml-100k" / "manifest.json").write_text(json.dumps(manifest))
    return folder


def prepare_omniglot(folder: Path, images: np.ndarray | None = None) -> Path:
    images = np.zeros((3, 20, 28, 28), np.uint8) if images is None else images
    classes = [{"alphabet": "A", "character": str(i), "split": "background"} for i in range(3)]
    (folder / "omniglot").mkdir()
    np.save(folder / "omniglot" / "images.npy", images)
    (folder / "omniglot" / "manifest.json").write_text(json.dumps({"name": "omniglot", "format": 1, "classes": classes}))
    return folder


def sign(folder: Path) -> None:
    """Complete a manifest by the digests that `make data` writes."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {file.name: file_digest(file) for file in folder.glob("*.np?")}
    path.write_text(json.dumps(manifest | {"digest": digest(manifest)}))


def npz(compression: int = zipfile.ZIP_STORED, **arrays) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, array in arrays.items():
            file.writestr(f"{name}.npy", b"no array" if array is None else npy(array))
    return buffer.getvalue()


def npy(array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def altered(whole: bytes, mark: bytes, offset: int, value: int) -> bytes:
    place = whole.index(mark) + offset
    return whole[:place] + bytes([value]) + whole[place + 1 :]


ZEROS = np.zeros(4, np.int32)
DAMAGE = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"no array at all\n" * 9,
    "cut off": lambda whole: whole[: len(whole) // 2],
    "last byte": lambda whole: whole[:-1],
    "another": lambda whole: npz(user=ZEROS),
    "objects": lambda whole: npz(user=ZEROS, item=ZEROS, rating=np.array([{}, [], (), 0], object)),
    "object array": lambda whole: npy(np.array([{}], object)),
    "other dtype": lambda whole: npy(np.zeros((3, 20, 28, 28), np.float32)),
    "no dimension": lambda whole: npy(np.uint8(0)),
    "columns of Fortran": lambda whole: npy(np.asfortranarray(np.zeros((3, 20, 28, 28), np.uint8))),
    "bomb": lambda whole: npz(zipfile.ZIP_DEFLATED, user=ZEROS, item=ZEROS, rating=np.zeros(10**7, np.float32)),
    "boundless method": lambda whole: npz(zipfile.ZIP_LZMA, **np.load(io.BytesIO(whole))),
    "encrypted": lambda whole: altered(whole, b"PK\1\2", 8, 1),
    "other method": lambda whole: altered(whole, b"PK\1\2", 10, 99),
    "no array": lambda whole: npz(user=ZEROS, item=ZEROS, rating=None),
    "no such member": lambda whole: whole.replace(b"item.npy", b"item.npz"),
}
PLACES = [("ml-100k", damage) for damage in DAMAGE] + [("omniglot", damage) for damage in [*DAMAGE][:-5]]


@pytest.mark.parametrize("signed", [False, True], ids=["before digests", "signed"])
@pytest.mark.parametrize(("name", "damage"), PLACES)
def test_every_damage_of_an_array_is_one_kind_of_error_with_path_and_remedy(tmp_path, name, damage, signed):
    load, prepare, file = {
        "ml-100k": (load_ratings, prepare_ratings, "ratings.npz"),
        "omniglot": (lambda name, root: load_images(name, root=root), prepare_omniglot, "images.npy"),
    }[name]
    path = prepare(tmp_path) / name / file
    if signed:
        sign(path.parent)
    load(name, tmp_path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert str(path) in message and "run `make data`" in message and "pickled data" not in message  # NumPy's advice to allow it
    assert ("digest" in message) == signed


def test_what_only_a_digest_can_tell_is_refused_and_data_of_before_there_were_any_are_read(tmp_path):
    path = prepare_omniglot(tmp_path) / "omniglot" / "images.npy"
    assert load_images("omniglot", root=tmp_path).images.sum() == 0
    sign(path.parent)
    load_images("omniglot", root=tmp_path)
    flipped = bytearray(path.read_bytes())
    flipped[-9] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="images.npy: it is damaged: its digest is not that of its manifest"):
        load_images("omniglot", root=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "", lambda text: text[:-1], lambda text: "[" * 10**5, lambda text: "[]", lambda text: "3",
        lambda text: text.replace('"character": "1"', '"character": "2"'), lambda text: text.replace('"0"', "NaN"),
        lambda text: text.replace('"digest"', '"name": "omniglot", "digest"'),
        lambda text: text.replace("images.npy", "images.npz"),
        lambda text: '{"name": "omniglot", "format": 1, "classes": 3}',
        lambda text: '{"name": "omniglot", "format": 1, "classes": [3]}',
        lambda text: '{"name": "omniglot", "format": 1}',
        lambda text: '{"name": "omniglot", "format": 1, "classes": []}',
        lambda text: text.replace('"A"', '"\x00"'), lambda text: text.replace('"A"', '"\udcff"'),
    ],
)  # fmt: skip
def test_every_damage_of_a_manifest_is_the_same_kind_of_error(tmp_path, damage):
    path = prepare_omniglot(tmp_path) / "omniglot" / "manifest.json"
    sign(path.parent)
    damaged = damage(path.read_text())
    path.write_bytes(damaged.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="run `make data`") as caught:
        load_images("omniglot", root=tmp_path)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize("counts", [None, 3, {}, {"users": 3, "items": 4}, {"users": 3, "items": 4, "ratings": "4"}])
def test_counts_that_are_none_are_refused(tmp_path, counts):
    with pytest.raises(ValueError, match="manifest.json: its counts are"):
        load_ratings("ml-100k", prepare_ratings(tmp_path, counts=counts))


def test_a_checked_cell_cannot_tell_whether_a_stand_in_was_used(tmp_path, capsys):
    load_ratings("ml-100k", tmp_path)
    load_images("omniglot", root=tmp_path, stand_in_classes=5)
    load_images("mini-imagenet", "val", root=tmp_path)
    printed, told = capsys.readouterr()
    assert printed == ""  # what is compared
    assert told.count("Using a stand-in") == 3 and str(tmp_path) not in told  # a committed page names no folder


def test_prepared_ratings_come_back_as_they_are(tmp_path, capsys):
    data = load_ratings("ml-100k", prepare_ratings(tmp_path))
    assert data.real and data.description == "MovieLens 100K" and data.name == "ml-100k"
    assert data.user.tolist() == [0, 0, 1, 2] and data.item.tolist() == [0, 3, 3, 1] and data.rating.tolist() == [1, 5, 3, 4]
    assert capsys.readouterr() == ("", "")  # nothing is announced


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": np.array([0, 0, 2, 1], np.int32)}, "not sorted"),
        ({"item": np.array([3, 3, 3, 1], np.int32)}, "twice"),
        ({"user": np.array([-1, 0, 1, 2], np.int32)}, "negative"),
        ({"rating": np.array([1, 5, 3, np.nan], np.float32)}, "not finite"),
        ({"rating": np.array([1, 5, 3, 4], np.float64)}, "rating is float64"),
        ({"item": np.array([0, 3, 3], np.int32)}, r"item is int32 \(3,\)"),
        ({"counts": {"users": 3, "items": 4, "ratings": 5}}, "manifest says"),
        ({"rating": np.float32(1)}, r"user is int32 \(4,\)"),
        ({"user": np.int32(0), "item": np.int32(0), "rating": np.float32(1)}, r"user is int32 \(\)"),
        ({"format": 2}, "manifest.json: its format is 2, and this version reads 1"),
        ({"format": None}, "its format is None"),
        ({"format": True}, "its format is True"),
        ({"name": "ml-1m"}, "does not name the data set 'ml-100k'"),
    ],
)
def test_ratings_that_contradict_their_manifest_are_refused_not_replaced(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_ratings("ml-100k", prepare_ratings(tmp_path, **changes))
    assert "make data" in str(caught.value)


def test_what_the_scripts_write_is_what_is_read():
    assert datasets.FORMAT == common.FORMAT


def test_half_prepared_data_are_refused_not_replaced(tmp_path):
    root = prepare_ratings(tmp_path)
    (root / "ml-100k" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_ratings("ml-100k", root)
    (root / "ml-100k" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="manifest.json is missing"):
        load_ratings("ml-100k", root)


def test_prepared_images_are_mapped_not_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 28, 28), np.uint8)
    data = load_images("omniglot", root=prepare_omniglot(tmp_path, images))
    assert isinstance(data.images, np.memmap) and (data.images == images).all()
    assert data.real and data.description == "Omniglot" and data.classes[2]["character"] == "2"


def test_mini_imagenet_comes_in_parts(tmp_path):
    folder = tmp_path / "mini-imagenet"
    folder.mkdir()
    np.save(folder / "val.npy", np.ones((1, 600, 84, 84, 3), np.uint8))
    manifest = {"name": "mini-imagenet", "format": 1, "classes": {"val": ["n01"], "test": ["n02"]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    data = load_images("mini-imagenet", "val", root=tmp_path)
    assert data.images.shape == (1, 600, 84, 84, 3) and data.classes == [{"character": "n01", "split": "val"}]
    with pytest.raises(ValueError, match="test.npy is missing"):
        load_images("mini-imagenet", "test", root=tmp_path)


@pytest.mark.parametrize("images", [np.zeros((2, 20, 28, 28), np.uint8), np.zeros((3, 20, 28, 28), np.float32)])
def test_images_that_contradict_their_manifest_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match=r"manifest calls for uint8 \(3, 20, 28, 28\)"):
        load_images("omniglot", root=prepare_omniglot(tmp_path, images))


def test_a_truncated_image_file_is_refused(tmp_path):
    path = prepare_omniglot(tmp_path) / "omniglot" / "images.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a whole array"):
        load_images("omniglot", root=tmp_path)


def test_absent_data_name_the_remedy_when_stand_ins_are_not_allowed(tmp_path):
    for load in (load_ratings, load_images):
        name = "jester-1" if load is load_ratings else "omniglot"
        with pytest.raises(FileNotFoundError, match="make data"):
            load(name, root=tmp_path, allow_stand_in=False)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_data_folder_that_vanished_is_no_reason_for_a_stand_in(tmp_path, monkeypatch, allowed):
    monkeypatch.setenv("AMAML_DATA", str(tmp_path / "disk"))
    for load in (lambda: load_ratings("ml-100k", allow_stand_in=allowed), lambda: load_images("omniglot", None, None, allowed, 5)):
        with pytest.raises(FileNotFoundError, match=r"AMAML_DATA=.*disk is not a folder: mount it, .*`make data`.*unset AMAML"):
            load()
    (tmp_path / "disk").touch()
    with pytest.raises(FileNotFoundError, match="AMAML_DATA=.*disk is not a folder"):
        load_ratings("ml-100k")


def test_an_empty_data_folder_and_none_at_all_give_stand_ins(tmp_path, monkeypatch):
    monkeypatch.setenv("AMAML_DATA", str(tmp_path))
    assert not load_ratings("ml-100k").real
    monkeypatch.delenv("AMAML_DATA")
    monkeypatch.setattr(locations, "checkout", lambda: tmp_path)
    assert not load_ratings("ml-100k").real


def test_unknown_names_and_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown ratings"):
        load_ratings("netflix", tmp_path)
    with pytest.raises(ValueError, match="unknown images"):
        load_images("cifar", root=tmp_path)
    with pytest.raises(ValueError, match="part of mini-imagenet"):
        load_images("mini-imagenet", root=tmp_path)
    with pytest.raises(ValueError, match="part of omniglot"):
        load_images("omniglot", "train", root=tmp_path)


def test_the_glyph_stand_in_announces_itself_and_has_omniglots_layout(tmp_path, capsys):
    data = load_images("omniglot", root=tmp_path, stand_in_classes=60)
    assert "stand-in: glyphs of the DejaVu fonts (Omniglot not prepared)" in capsys.readouterr().err
    assert not data.real and data.description.startswith("stand-in")
    assert data.images.shape == (60, 20, 28, 28) and data.images.dtype == np.uint8 and len(data.classes) == 60
    assert {entry["split"] for entry in data.classes} == {"background", "evaluation"}
    splits = [entry["split"] for entry in data.classes]
    assert splits == sorted(splits)  # background first
    alphabets = {(entry["alphabet"], entry["split"]) for entry in data.classes}
    assert len(alphabets) == len({alphabet for alphabet, _ in alphabets}) > 15  # each alphabet on one side


def test_the_mini_imagenet_stand_in_has_disjoint_parts_of_the_usual_size(tmp_path, capsys):
    parts = [load_images("mini-imagenet", part, root=tmp_path) for part in ("train", "val", "test")]
    assert [part.images.shape for part in parts] == [(n, 20, 84, 84, 3) for n in (64, 16, 20)]
    characters = [entry["character"] for part in parts for entry in part.classes]
    assert len(set(characters)) == 100 and all("stand-in" in part.description for part in parts)
    assert capsys.readouterr().err.count("stand-in") == 3


def test_glyphs_are_deterministic_distinct_and_inked():
    one, classes = glyph_images(classes=80, drawings=4)
    again, _ = glyph_images(classes=80, drawings=4)
    other, same_classes = glyph_images(classes=80, drawings=4, seed=1)
    assert (one == again).all() and (one != other).any() and classes == same_classes
    assert (one.max((2, 3)) > 80).all() and (one[:, :, 0, 0] < 128).mean() > 0.95  # ink on paper 0
    assert len({image.tobytes() for image in one.reshape(-1, 28, 28)}) == 320
    # Drawings of a class resemble each other more than drawings of different classes.
    flat = one.reshape(80, 4, -1).astype(float)
    flat /= np.linalg.norm(flat, axis=-1, keepdims=True)
    likeness = np.einsum("aid,bjd->abij", flat, flat)
    within = likeness[np.arange(80), np.arange(80), 0, 1].mean()
    between = likeness[~np.eye(80, dtype=bool)].mean()
    assert within > between + 0.1


def test_there_are_as_many_glyph_classes_as_omniglot_has():
    images, classes = glyph_images(classes=1623, drawings=1)
    assert len(images) == len({entry["character"] for entry in classes}) == 1623
    with pytest.raises(ValueError, match="there are 1 to"):
        glyph_images(classes=100_000)


@pytest.mark.parametrize("look_alikes", [(0x41, 0x391, 0x410), (0x58, 0x3A7, 0x425), (0x142F, 0x1431, 0x1433, 0x1438)])
def test_look_alikes_and_rotations_are_one_glyph_class(look_alikes):
    characters = [entry["character"] for entry in _distinct_glyphs()[0]]
    assert sum(f"U+{code:04X}" in characters for code in look_alikes) == 1


@pytest.mark.parametrize("name", sorted(datasets.STAND_IN_RATINGS))
def test_the_ratings_stand_in_announces_itself_and_has_the_layout(tmp_path, capsys, name):
    data = load_ratings(name, tmp_path)
    assert f"stand-in: low-rank ratings ({datasets.RATINGS[name]} not prepared)" in capsys.readouterr().err
    settings = datasets.STAND_IN_RATINGS[name]
    assert not data.real and data.user.dtype == data.item.dtype == np.int32 and data.rating.dtype == np.float32
    assert data.user.max() < settings["users"] and data.item.max() < settings["items"]
    assert (np.diff(data.user.astype(np.int64) * settings["items"] + data.item) > 0).all()
    assert settings["low"] <= data.rating.min() and data.rating.max() <= settings["high"]
    assert np.allclose(data.rating / settings["step"], np.round(data.rating / settings["step"]), atol=1e-3)


def test_ratings_stand_ins_are_deterministic_and_predictable():
    one, again, other = (low_rank_ratings(200, 50, 3, 1, -9, 9, 0.01, 8.0, seed=s) for s in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(one, again, strict=True)) and len(one[2]) != len(other[2])
    dense = np.zeros((200, 50))
    dense[one[0], one[1]] = one[2]  # nearly all pairs are rated at these odds
    centred = dense - dense.mean(0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    # The 6 leading directions (5 of taste, 1 of user bias) explain far more than 6 of 50 directions of noise would.
    assert values[:6].sum() / values.sum() > 0.5


@pytest.mark.parametrize(
    ("name", "users", "items", "ratings"),
    [
        ("jester-1", 24_983, 100, 1_810_455),
        ("ml-100k", 943, 1_682, 100_000),
        ("ml-1m", 6_040, 3_706, 1_000_209),
    ],
)
def test_the_real_ratings_have_their_published_size(name, users, items, ratings):
    if not (data_root() / name).exists():
        pytest.skip(f"{name} is not prepared")
    data = load_ratings(name, allow_stand_in=False)
    assert (len(np.unique(data.user)), len(np.unique(data.item)), len(data.rating)) == (users, items, ratings)
    assert data.real


def test_the_real_omniglot_has_its_published_size():
    if not (data_root() / "omniglot").exists():
        pytest.skip("omniglot is not prepared")
    data = load_images("omniglot", allow_stand_in=False)
    assert data.images.shape == (1623, 20, 28, 28)
    assert sum(entry["split"] == "background" for entry in data.classes) == 964
    assert len({entry["alphabet"] for entry in data.classes}) == 50
    assert 5 < data.images[::50].mean() < 60 and data.images[::50].max() == 255  # ink on paper 0


@pytest.mark.parametrize(("part", "classes"), [("train", 64), ("val", 16), ("test", 20)])
def test_the_real_mini_imagenet_has_its_published_size(part, classes):
    if not (data_root() / "mini-imagenet").exists():
        pytest.skip("mini-imagenet is not prepared")
    assert load_images("mini-imagenet", part, allow_stand_in=False).images.shape == (classes, 600, 84, 84, 3)
