"""Decode pictures whose format, mode and number of pixels are known beforehand, and no others."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection

from PIL import Image

from data_scripts.common import DataError

SCAN = b"\xff\xda"  # begins one of a JPEG's passes over all of its pixels; the pixels' own bytes cannot hold it
MOST_SCANS = 100  # a thumbnail's count too; mini-ImageNet's pictures have 1, progressive ones about 10


def open_picture(data: bytes, name: str, kind: str, mode: str, *, modes: Collection[str], pixels: int) -> Image.Image:
    """A picture, decoded.

    Args:
        data: the file's bytes.
        name: the file's name, for errors.
        kind: "PNG" or "JPEG"; the name's ending counts for nothing.
        mode: to convert it to, as Pillow names it.
        modes: that it may have.
        pixels: how many it may have.
    Raises:
        DataError: it is none of that, before a pixel is decoded, or it is damaged.
    """
    try:
        if kind == "JPEG" and (scans := data.count(SCAN)) > MOST_SCANS:  # each may take a few bytes and a tenth of a second
            raise ValueError(f"its {scans:,} scans are more than {MOST_SCANS}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the smaller limit
            Image.open(io.BytesIO(data), formats=[kind]).verify()  # a PNG's checksums, which decoding skips
            picture = Image.open(io.BytesIO(data), formats=[kind])
        if picture.width * picture.height > pixels:
            raise ValueError(f"{picture.width} x {picture.height} pixels are more than {pixels:,}")
        if picture.mode not in modes:
            raise ValueError(f"its mode is {picture.mode}, not {' or '.join(modes)}")
        return picture.convert(mode)
    except Exception as error:  # decoders stumble over a damaged file with errors of every kind
        raise DataError(f"{name} is not a readable {kind} ({error}); get its archive again") from error
