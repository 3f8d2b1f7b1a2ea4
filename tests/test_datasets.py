"""Prepared data are checked as they are read; stand-ins announce themselves and have the same layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from amaml_core import datasets
from amaml_core.datasets import data_root, load_images, load_ratings
from amaml_core.stand_ins import _distinct_glyphs, glyph_images, low_rank_ratings


def prepare_ratings(folder: Path, **changes) -> Path:
    """A tiny valid ml-100k under ``folder``, with some arrays or manifest entries replaced."""
    arrays = {
        "user": np.array([0, 0, 1, 2], np.int32),
        "item": np.array([0, 3, 3, 1], np.int32),
        "rating": np.array([1, 5, 3, 4], np.float32),
    }
    manifest = {"name": "ml-100k", "counts": {"users": 3, "items": 4, "ratings": 4}}
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
    (folder / "omniglot" / "manifest.json").write_text(json.dumps({"name": "omniglot", "classes": classes}))
    return folder


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
        ({"name": "ml-1m"}, "does not name the data set 'ml-100k'"),
    ],
)
def test_ratings_that_contradict_their_manifest_are_refused_not_replaced(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_ratings("ml-100k", prepare_ratings(tmp_path, **changes))
    assert "make data" in str(caught.value)


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
    (folder / "manifest.json").write_text(json.dumps({"name": "mini-imagenet", "classes": {"val": ["n01"], "test": ["n02"]}}))
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
