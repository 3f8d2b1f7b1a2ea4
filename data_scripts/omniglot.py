"""Omniglot: ``python -m data_scripts.omniglot`` writes ``omniglot/images.npy``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from data_scripts.archives import open_zip, read_member
from data_scripts.common import DataError, DataSet, Layout, Source, command
from data_scripts.fetch import Archive, obtain_all
from data_scripts.pictures import open_picture

SPLITS = ("background", "evaluation")
SIDE, SMALL_SIDE = 105, 28
DRAWING_BYTES = 2**16  # the most that a drawing may have

HOST = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
ARCHIVES = (
    Archive("omniglot/images_background.zip", "md5:68d2efa1b9178cc56df9314c21c6e718", (f"{HOST}images_background.zip",)),
    Archive("omniglot/images_evaluation.zip", "md5:6b91aef0f799c5bb55b94e3f2daec811", (f"{HOST}images_evaluation.zip",)),
)


def layout(counts: Mapping[str, int]) -> Layout:
    """``images.npy``: characters x drawers x 28 x 28, ink 255 on paper 0."""
    characters = sum(counts[split] for split in SPLITS)
    return {"images.npy": ((characters, counts["drawers"], SMALL_SIDE, SMALL_SIDE), "uint8")}


def list_characters(archive: ZipFile, split: str, drawers: int) -> dict[tuple[str, str], list[str]]:
    """{(alphabet, character): its drawings, drawer 1 first}, sorted by name.

    Raises DataError for a PNG that is not ``images_SPLIT/ALPHABET/CHARACTER/ID_DRAWER.png``, and unless every character
    has the drawers 1, 2, ... once each.
    """
    found: dict[tuple[str, str], dict[int, str]] = {}
    for name in sorted(archive.namelist()):
        if not name.endswith(".png"):
            continue
        match = re.fullmatch(rf"images_{split}/([^/]+)/([^/]+)/[0-9]+_([0-9]{{1,3}})\.png", name)
        if not match:
            raise DataError(f"{archive.filename} holds {name[:200]}, not images_{split}/ALPHABET/CHARACTER/ID_DRAWER.png")
        drawings = found.setdefault((match[1], match[2]), {})
        if int(match[3]) in drawings:
            raise DataError(f"{archive.filename} holds two drawings by the drawer of {name}")
        drawings[int(match[3])] = name
    for (alphabet, character), drawings in found.items():
        if sorted(drawings) != list(range(1, drawers + 1)):
            place = f"{archive.filename}: {alphabet}/{character}"
            raise DataError(f"{place} must have drawers 1 to {drawers}, not {sorted(drawings)}")
    return {key: [found[key][drawer] for drawer in sorted(found[key])] for key in sorted(found)}


def shrink(data: bytes, name: str) -> np.ndarray:
    """A 105 x 105 drawing as uint8 (28, 28), ink 255 on paper 0, with grey edges. Raises DataError."""
    drawing = open_picture(data, name, "PNG", "L", modes=("1", "L"), pixels=SIDE * SIDE)
    if drawing.size != (SIDE, SIDE):
        raise DataError(f"{name} is {drawing.width} x {drawing.height} pixels, not {SIDE} x {SIDE}")
    # Pillow widens the filter when it scales down, so that every pixel of a thin stroke counts.
    return np.asarray(ImageOps.invert(drawing).resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS))


def build(sources: Sequence[Source], folder: Path, counts: Mapping[str, int]) -> dict:
    """Write ``images.npy`` from the two archives.

    Args:
        sources: the background and the evaluation archive.
        folder: where to write.
        counts: characters in each split, and drawers of each character.
    Returns: manifest entries: the classes in array order, background first, sorted by alphabet and character.
    Raises:
        DataError: a damaged archive or drawing, a character missing.
    """
    ((shape, dtype),) = layout(counts).values()
    images = np.empty(shape, dtype)  # (characters, drawers, 28, 28)
    classes: list[dict[str, str]] = []
    with tqdm(total=shape[0] * shape[1], desc="Omniglot", unit="image", disable=None) as progress:
        for split, source in zip(SPLITS, sources, strict=True):
            with open_zip(source.path) as archive:
                characters = list_characters(archive, split, counts["drawers"])
                if len(characters) != counts[split]:
                    raise DataError(f"{source.path} holds {len(characters)} characters, not {counts[split]}")
                for (alphabet, character), names in characters.items():
                    for drawer, name in enumerate(names):
                        images[len(classes), drawer] = shrink(
                            read_member(archive, archive.getinfo(name), DRAWING_BYTES), f"{source.path}, {name}"
                        )
                    classes.append({"alphabet": alphabet, "character": character, "split": split})
                    progress.update(len(names))
    np.save(folder / "images.npy", images, allow_pickle=False)
    return {"classes": classes}


DATASET = DataSet(
    name="omniglot",
    title="Omniglot",
    page="https://github.com/brendenlake/omniglot",
    licence=(
        "MIT; cite B. Lake, R. Salakhutdinov, J. Tenenbaum, Human-level concept learning through probabilistic program"
        " induction, Science 350, 1332-1338, 2015"
    ),
    counts={"background": 964, "evaluation": 659, "drawers": 20},
    layout=layout,
    obtain=partial(obtain_all, ARCHIVES),
    build=build,
)

if __name__ == "__main__":
    raise SystemExit(command(DATASET))
