"""mini-ImageNet: ``python -m data_scripts.mini_imagenet`` writes ``mini-imagenet/{train,val,test}.npy`` (1.3 GB)."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_scripts.archives import LARGEST_PICTURE, check_size, stream_tar
from data_scripts.common import DataError, DataSet, Layout, Source, Unreachable, archive_folder, command, mirror_folder
from data_scripts.fetch import Archive, digests, mirror_checksums, take
from data_scripts.pictures import open_picture

FOLDER = "mini-imagenet"
SPLITS = ("train", "val", "test")
PARTS = ("train_a", "train_b", "val", "test")
SIDE = 84
MOST_PIXELS = 2**26  # of a picture; the largest of ImageNet has 61 million
LARGEST_TABLE = 2**24  # bytes; the CSV of the 38,400 training images has 1.3 MB

# SHA-256 of each split's class names, sorted and joined by blanks: the split of Ravi and Larochelle (2017), no other.
CLASS_DIGESTS = {
    "train": "be048a0de45b4bc493bb43459c8a214ce74b47d5736e869f0becb6b066d38077",
    "val": "5124b4fddbb708d8b142c6875b4a0d7a14922fb8be48dd98365cddf586c4c83c",
    "test": "460d8d798f59aaa1c070ee42079465aec99c0c2bd96c66487432d82faaef5c1b",
}

HOW_TO = """mini-ImageNet has no official host: its images are ImageNet's, under ImageNet's terms.
  1. Accept the terms at https://image-net.org/download and get the training images of ILSVRC 2012.
  2. Get train.csv, val.csv and test.csv (filename,label) of the Ravi and Larochelle split, published with "Optimization
     as a model for few-shot learning" at https://github.com/twitter-research/meta-learning-lstm, data/miniImagenet.
     There n0153282900000005.jpg is the fifth of ILSVRC's images of n01532829, in the order of their numbers.
  3. Put the three CSVs and a folder images/ with the 60,000 JPEGs that they name into {folder},
     or set AMAML_MIRROR to a folder whose mini-imagenet/ holds them (or, instead of images/, the four archives
     images_{{train_a,train_b,val,test}}.tar.xz, with the checksums of archives and CSVs in SHA256SUMS)."""

Slots = dict[str, tuple[str, int, int]]  # file name -> split, class, image


def layout(counts: Mapping[str, int]) -> Layout:
    """``train.npy``, ``val.npy``, ``test.npy``: classes x images x 84 x 84 x 3."""
    return {f"{split}.npy": ((counts[split], counts["images_per_class"], SIDE, SIDE, 3), "uint8") for split in SPLITS}


def obtain() -> list[Source]:
    """The three CSVs, then a plain folder of images or four verified tar archives. Raises Unreachable or DataError."""
    root = mirror_folder() or archive_folder()
    folder = root / FOLDER
    tables = [folder / f"{split}.csv" for split in SPLITS]
    if not all(table.is_file() for table in tables):
        raise Unreachable(HOW_TO.format(folder=folder))
    if (folder / "images").is_dir():
        # Nobody publishes checksums of single images, so the pictures are checked by name, number and contents alone.
        listed = mirror_checksums(root)
        sources = []
        for table in tables:
            path, sha256 = f"{FOLDER}/{table.name}", digests(table, "sha256")["sha256"]
            if listed.get(path, sha256) != sha256:
                wrong = f"its SHA-256 is {sha256}, SHA256SUMS says {listed[path]}"
                raise DataError(f"{table} is damaged or altered: {wrong}")
            sources.append(Source(table, path, sha256, official=False))
        return [*sources, Source(folder / "images", f"{FOLDER}/images", None, official=False)]
    names = [table.name for table in tables] + [f"images_{part}.tar.xz" for part in PARTS]
    try:
        return [take(Archive(f"{FOLDER}/{name}", None, ()), root) for name in names]
    except Unreachable as error:
        raise Unreachable(f"{error}. {HOW_TO.format(folder=folder)}") from error


def read_split(table: Path) -> dict[str, list[str]]:
    """{class: its file names}, both sorted, from a ``filename,label`` CSV. Raises DataError naming a malformed line."""
    classes: dict[str, set[str]] = {}
    check_size(table.parent, table.name, table.stat().st_size, LARGEST_TABLE)
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "filename,label":
        raise DataError(f"{table} line 1 is not 'filename,label': {lines[:1]}")
    for number, line in enumerate(lines[1:], start=2):
        match = re.fullmatch(r"([\w-][\w.-]*\.jpe?g),(n\d{8})", line, flags=re.IGNORECASE)
        if not match:
            raise DataError(f"{table} line {number} is not an image name and a class: {line[:80]!r}")
        names = classes.setdefault(match[2], set())
        if match[1] in names:
            raise DataError(f"{table} line {number} lists {match[1]} a second time")
        names.add(match[1])
    return {label: sorted(classes[label]) for label in sorted(classes)}


def assign_slots(
    tables: Sequence[Path], counts: Mapping[str, int], digests_of: Mapping[str, str]
) -> tuple[Slots, dict[str, list[str]]]:
    """Where each image goes, and the classes of each split. Raises DataError for another split."""
    slots: Slots = {}
    labels: dict[str, list[str]] = {}
    for split, table in zip(SPLITS, tables, strict=True):
        classes = read_split(table)
        labels[split] = list(classes)
        sizes = {len(names) for names in classes.values()}
        if len(classes) != counts[split] or sizes != {counts["images_per_class"]}:
            raise DataError(
                f"{table} must list {counts[split]} classes of {counts['images_per_class']} images;"
                f" it lists {len(classes)} classes of {' or '.join(map(str, sorted(sizes)))}"
            )
        if hashlib.sha256(" ".join(classes).encode()).hexdigest() != digests_of[split]:
            raise DataError(f"{table} lists other classes than the split of Ravi and Larochelle; get its CSVs")
        for row, names in enumerate(classes.values()):
            for column, name in enumerate(names):
                if name in slots:
                    raise DataError(f"{table} lists {name}, which {slots[name][0]}.csv lists too")
                slots[name] = (split, row, column)
    return slots, labels


def stream_images(sources: Sequence[Source], slots: Slots) -> Iterator[tuple[str, str, bytes]]:
    """(source, file name, bytes) of every image that has a slot, from a folder or from tar archives."""
    for source in sources:
        if source.path.is_dir():
            for name in slots:
                path = source.path / name
                if not path.is_file():
                    raise DataError(f"{path} is missing")
                check_size(source.path, name, path.stat().st_size, LARGEST_PICTURE)
                yield str(source.path), name, path.read_bytes()
        else:
            for member, data in stream_tar(source.path, lambda member: PurePosixPath(member).name in slots):
                yield str(source.path), PurePosixPath(member).name, data


def decode(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    """A JPEG as uint8 (84, 84, 3), and whether it had to be resized. Raises DataError."""
    picture = open_picture(data, name, "JPEG", "RGB", modes=("L", "RGB", "CMYK"), pixels=MOST_PIXELS)
    resized = picture.size != (SIDE, SIDE)
    if resized:
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture), resized


def create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file of zeros, written through memory mapping. Raises OSError if the disk has no room for it."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # Without its blocks reserved, writing to a mapped file on a full disk kills the process.
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.posix_fallocate(descriptor, 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot reserve
                raise
        finally:
            os.close(descriptor)
    return array


def build(sources: Sequence[Source], folder: Path, counts: Mapping[str, int], *, class_digests: Mapping[str, str]) -> dict:
    """Write the three arrays, one image at a time, straight to disk.

    Args:
        sources: the CSVs of train, val and test, then what holds the images.
        folder: where to write.
        counts: classes in each split, and images_per_class.
        class_digests: SHA-256 of each split's class names, sorted and joined by blanks.
    Returns: manifest entries: the classes of each split in array order; how many images had another size than 84 x 84.
    Raises:
        DataError: CSVs of another split, an image missing, doubled or damaged.
    """
    slots, labels = assign_slots([source.path for source in sources[: len(SPLITS)]], counts, class_digests)
    arrays = {split: create(folder / f"{split}.npy", layout(counts)[f"{split}.npy"][0]) for split in SPLITS}
    waiting = set(slots)
    resized = 0
    with tqdm(total=len(slots), desc="mini-ImageNet", unit="image", disable=None) as progress:
        for origin, name, data in stream_images(sources[len(SPLITS) :], slots):
            if name not in waiting:
                raise DataError(f"{origin} holds {name}, which was there before")
            waiting.remove(name)
            split, row, column = slots[name]
            arrays[split][row, column], changed = decode(data, f"{origin}, {name}")
            resized += changed
            progress.update()
    if waiting:
        raise DataError(f"{len(waiting)} of {len(slots)} images are missing, the first of them {min(waiting)}")
    for array in arrays.values():
        array.flush()
    return {"classes": labels, "resized_images": resized}


DATASET = DataSet(
    name=FOLDER,
    title="mini-ImageNet, split of Ravi and Larochelle",
    page="https://github.com/twitter-research/meta-learning-lstm",
    licence=(
        "ImageNet terms of access: non-commercial research and education only, no redistribution (https://image-net.org/download)"
    ),
    counts={"train": 64, "val": 16, "test": 20, "images_per_class": 600},
    layout=layout,
    obtain=obtain,
    build=partial(build, class_digests=CLASS_DIGESTS),
)

if __name__ == "__main__":
    raise SystemExit(command(DATASET))
