"""Decode pictures whose format, mode and number of pixels are known beforehand, and no others."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection

from PIL import Image

from data_scripts.common import DataError


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
