"""Prepared data sets, checked as they are read, and stand-ins where they are absent.

``make data`` prepares them in :func:`~amaml_core.locations.data_root`. Their manifest holds digests of the arrays, and one of
itself, so what is read is what was written; data that were prepared before there were any are held to their counts, shapes and
dtypes. That a stand-in is used is said on the standard error, like everything that differs between one machine and the next: what a
chapter prints is compared, what it says there is not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np

from .locations import data_root
from .stand_ins import glyph_images, low_rank_ratings
from .strict import digest, file_digest, parse

REMEDY = "delete the data set's folder and run `make data`"
FORMAT = 1  # of the prepared arrays, as `data_scripts` writes it
RATINGS = {"jester-1": "Jester-1", "ml-100k": "MovieLens 100K", "ml-1m": "MovieLens 1M"}
# Smaller than the real data, and like it in scale and sparsity as far as the chapters notice.
STAND_IN_RATINGS: dict[str, dict[str, Any]] = {
    "jester-1": dict(users=2000, items=100, mean=0.8, std=5.2, low=-10, high=10, step=0.01, rated=1.5),
    "ml-100k": dict(users=943, items=500, mean=3.5, std=1.1, low=1, high=5, step=1, rated=-1.5),
    "ml-1m": dict(users=2000, items=600, mean=3.6, std=1.1, low=1, high=5, step=1, rated=-1.3),
}
# Number of classes of each part, in the order in which they take the stand-in's classes.
MINI_IMAGENET = {"train": 64, "val": 16, "test": 20}


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images by class.

    Attributes:
        images: uint8 (C, n, H, W) or (C, n, H, W, 3), perhaps memory-mapped.
        classes: C entries: for Omniglot ``{"alphabet", "character", "split"}``, for mini-ImageNet ``{"character",
            "split"}``.
        name: "omniglot" or "mini-imagenet".
        real: False for a stand-in.
        description: for figure captions; a stand-in says that it is one.
    """

    images: np.ndarray = field(repr=False)
    classes: list[dict[str, str]] = field(repr=False)
    name: str
    real: bool
    description: str


@dataclass(frozen=True, eq=False)
class RatingData:
    """One entry for each rating, sorted by user, then item.

    Attributes:
        user, item: int32, numbers from 0.
        rating: float32.
        name: "jester-1", "ml-100k" or "ml-1m".
        real, description: as in :class:`ImageData`.
    """

    user: np.ndarray = field(repr=False)
    item: np.ndarray = field(repr=False)
    rating: np.ndarray = field(repr=False)
    name: str
    real: bool
    description: str


def load_ratings(name: str, root: str | Path | None = None, allow_stand_in: bool = True) -> RatingData:
    """Ratings of Jester-1, MovieLens 100K or MovieLens 1M.

    Args:
        name: "jester-1", "ml-100k" or "ml-1m".
        root: folder of the prepared data, :func:`data_root` by default.
        allow_stand_in: if the data are absent, make a low-rank matrix and say so in one line.

    Raises:
        FileNotFoundError: the data are absent and no stand-in is allowed, or AMAML_DATA names no folder.
        ValueError: an unknown name, or prepared data that contradict their manifest; these are never replaced by a
            stand-in.
    """
    if name not in RATINGS:
        raise ValueError(f"unknown ratings {name!r}; there are {sorted(RATINGS)}")
    folder = _folder(name, root, allow_stand_in)
    if folder is None:
        description = _announce(f"low-rank ratings ({RATINGS[name]} not prepared)")
        return RatingData(*low_rank_ratings(**STAND_IN_RATINGS[name]), name, False, description)
    manifest, path = _manifest(folder, name), folder / "ratings.npz"
    counts: Any = manifest.get("counts")
    _require(_are_counts(counts), folder / "manifest.json", f"its counts are {counts!r:.100}, not numbers of users, items, ratings")
    _verify(path, manifest)
    user, item, rating = _columns(path, counts["ratings"])
    for column, values, dtype in (("user", user, np.int32), ("item", item, np.int32), ("rating", rating, np.float32)):
        _require(values.dtype == dtype and values.shape == (rating.size,), path, f"{column} is {values.dtype} {values.shape}")
    _require(len(rating) > 0 and min(user.min(), item.min()) >= 0, path, "it is empty or has negative numbers")
    pair = user.astype(np.int64) * (int(item.max()) + 1) + item
    _require(bool((np.diff(pair) > 0).all()), path, "its ratings are not sorted by user and item, or a pair occurs twice")
    _require(bool(np.isfinite(rating).all()), path, "a rating is not finite")
    found = {"users": int(user.max()) + 1, "items": int(item.max()) + 1, "ratings": len(rating)}
    _require(counts == found, path, f"it holds {found}, but the manifest says {counts}")
    return RatingData(user, item, rating, name, True, RATINGS[name])


def load_images(
    name: str,
    part: Literal["train", "val", "test"] | None = None,
    root: str | Path | None = None,
    allow_stand_in: bool = True,
    stand_in_classes: int = 1623,
) -> ImageData:
    """Omniglot, all 1,623 characters, or one part of mini-ImageNet, memory-mapped.

    Args:
        name: "omniglot" or "mini-imagenet".
        part: of mini-ImageNet, "train" (64 classes), "val" (16) or "test" (20); none for Omniglot.
        root: folder of the prepared data, :func:`data_root` by default.
        allow_stand_in: if the data are absent, draw font glyphs and say so in one line. For mini-ImageNet they
            are in colour, 84 x 84, 20 of each class.
        stand_in_classes: for a quick run, how many classes the stand-in for Omniglot has.

    Raises:
        FileNotFoundError: the data are absent and no stand-in is allowed, or AMAML_DATA names no folder.
        ValueError: an unknown name or part, or prepared data that contradict their manifest.
    """
    parts = {"omniglot": (None,), "mini-imagenet": tuple(MINI_IMAGENET)}
    if name not in parts:
        raise ValueError(f"unknown images {name!r}; there are {sorted(parts)}")
    if part not in parts[name]:
        raise ValueError(f"part of {name} must be one of {parts[name]}, not {part!r}")
    folder = _folder(name, root, allow_stand_in)
    if part is None:
        if folder is None:
            description = _announce("glyphs of the DejaVu fonts (Omniglot not prepared)")
            return ImageData(*glyph_images(stand_in_classes), name, False, description)
        manifest = _manifest(folder, name)
        classes: Any = manifest.get("classes")
        _require(_are_drawn(classes), folder / "manifest.json", "a class lacks its alphabet, character or split")
        images = _map(folder / "images.npy", manifest, (len(classes), 20, 28, 28))
        return ImageData(images, classes, name, True, "Omniglot")
    if folder is None:
        description = _announce("coloured glyphs of the DejaVu fonts (mini-ImageNet not prepared)")
        first = {"train": 0, "val": 64, "test": 80}[part]
        only = slice(first, first + MINI_IMAGENET[part])
        images, classes = glyph_images(sum(MINI_IMAGENET.values()), 20, 84, colour=True, seed=first, only=only)
        return ImageData(images, [{**entry, "split": part} for entry in classes], name, False, description)
    manifest = _manifest(folder, name)
    listed: Any = manifest["classes"].get(part) if isinstance(manifest.get("classes"), dict) else None
    _require(_are_words(listed), folder / "manifest.json", f"it does not list the classes of {part!r}")
    images = _map(folder / f"{part}.npy", manifest, (len(listed), 600, 84, 84, 3))
    return ImageData(images, [{"character": wnid, "split": part} for wnid in listed], name, True, "mini-ImageNet")


def _folder(name: str, root: str | Path | None, allow_stand_in: bool) -> Path | None:
    """Where a data set lies; None for a stand-in."""
    try:
        place = data_root() if root is None else Path(root)
    except FileNotFoundError:
        if allow_stand_in:
            return None
        raise
    if root is None and os.environ.get("AMAML_DATA") and not place.is_dir():  # an unmounted disk, or a typing mistake
        raise FileNotFoundError(
            f"AMAML_DATA={place} is not a folder: mount it, let `make data` make and fill it,"
            " or unset AMAML_DATA or name an empty folder to go on with stand-ins"
        )
    folder = place / name
    if folder.exists():
        return folder
    if not allow_stand_in:
        raise FileNotFoundError(f"there is no {folder}: run `make data` to prepare it, or set AMAML_DATA to where it is")
    return None


def _announce(what: str) -> str:
    """The description of a stand-in, which is told to the user."""
    description = f"stand-in: {what}"
    print(f"Using a {description}; `make data` prepares the real data", file=sys.stderr)
    return description


def _manifest(folder: Path, name: str) -> dict:
    """What a folder holds, by its manifest."""
    path = folder / "manifest.json"
    _require(path.is_file(), folder, "manifest.json is missing")
    try:
        manifest = parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}; {REMEDY}") from None
    _require(isinstance(manifest, dict) and manifest.get("name") == name, path, f"it does not name the data set {name!r}")
    given = manifest.get("format")
    _require(type(given) is int and given == FORMAT, path, f"its format is {given!r:.100}, and this version reads {FORMAT}")
    written = manifest.pop("digest", None)
    _require(
        written == (digest(manifest) if "files" in manifest else None), path, "it is damaged: its digest is not that of its content"
    )
    return manifest


def _verify(path: Path, manifest: Mapping) -> None:
    """Hold a file against its digest, once while it stays as it is. A large one, still to be mapped, is read for this."""
    _require(path.is_file(), path.parent, f"{path.name} is missing")
    files = manifest.get("files", {path.name: None})
    _require(isinstance(files, dict) and path.name in files, path.parent / "manifest.json", f"it does not name {path.name}")
    if files[path.name] is not None:
        state = path.stat()
        found = _digest_of(path, state.st_mtime_ns, state.st_size)
        _require(found == files[path.name], path, "it is damaged: its digest is not that of its manifest")


@lru_cache(maxsize=32)
def _digest_of(path: Path, changed: int, size: int) -> str:
    return file_digest(path)


def _columns(path: Path, ratings: int) -> list[np.ndarray]:
    """User, item and rating of a file that has just been checked, or that has no digest: then it may be anything."""
    try:
        with ZipFile(path) as file:
            sizes = {entry.filename: entry.file_size for entry in file.infolist()}
            if sorted(sizes) != ["item.npy", "rating.npy", "user.npy"] or max(sizes.values()) > 4 * ratings + 1024:
                raise ValueError(f"it holds {str(sizes)[:200]} bytes instead of user, item and rating")
            if not {entry.compress_type for entry in file.infolist()} <= {ZIP_STORED, ZIP_DEFLATED}:
                raise ValueError("it is compressed by a method that unpacks without a bound")  # whatever the sizes say
            members = (file.open(f"{column}.npy") for column in ("user", "item", "rating"))
            return [np.lib.format.read_array(member, allow_pickle=False) for member in members]
    except Exception as error:  # NumPy and zipfile stumble over a damaged file with errors of every kind
        raise ValueError(f"{path} is not a whole table of arrays: {error}; {REMEDY}") from None


def _map(path: Path, manifest: Mapping, shape: tuple[int, ...]) -> np.ndarray:
    _verify(path, manifest)
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # as above
        raise ValueError(f"{path} is not a whole array: {error}; {REMEDY}") from None
    fits = images.dtype == np.uint8 and images.shape == shape and images.flags.c_contiguous
    _require(fits, path, f"it is {images.dtype} {images.shape}, but its manifest calls for uint8 {shape}")
    return images


def _are_counts(counts: object) -> bool:
    return isinstance(counts, dict) and {*counts} == {"users", "items", "ratings"} and {*map(type, counts.values())} == {int}


def _are_words(listed: object) -> bool:
    return isinstance(listed, list) and all(isinstance(word, str) for word in listed)


def _are_drawn(classes: object) -> bool:
    keys = {"alphabet", "character", "split"}
    return isinstance(classes, list) and all(isinstance(c, dict) and keys <= {*c} and _are_words([*c.values()]) for c in classes)


def _require(condition: bool, where: Path, problem: str) -> None:
    if not condition:
        raise ValueError(f"{where}: {problem}; {REMEDY}")
