"""Stand-ins for data sets that are not at hand: glyphs of the DejaVu fonts for images, low-rank matrices for ratings.

They need no download and have the layout of the real data, so every chapter runs; their results say nothing about the
real data.
"""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFont
from torch import Tensor
from torch.nn import functional

# Unicode blocks of the font, each taken as an alphabet. Like Omniglot's, the split is by whole alphabets, 60 to 40 %.
BACKGROUND = {
    "Basic Latin": (0x0021, 0x007E),
    "Latin Extended": (0x00A1, 0x024F),
    "IPA Extensions": (0x0250, 0x02AF),
    "Greek": (0x0370, 0x03FF),
    "Cyrillic": (0x0400, 0x052F),
    "Armenian": (0x0530, 0x058F),
    "Hebrew": (0x0590, 0x05FF),
    "Lao": (0x0E80, 0x0EFF),
    "Canadian Aboriginal Syllabics": (0x1400, 0x167F),
    "Ogham": (0x1680, 0x169F),
    "Currency Symbols": (0x20A0, 0x20CF),
    "Arrows": (0x2190, 0x21FF),
    "Mathematical Operators": (0x2200, 0x22FF),
    "Latin Extended-C": (0x2C60, 0x2C7F),
}
EVALUATION = {
    "Arabic": (0x0600, 0x06FF),
    "NKo": (0x07C0, 0x07FF),
    "Georgian": (0x10A0, 0x10FF),
    "Phonetic Extensions": (0x1D00, 0x1DBF),
    "Letterlike Symbols": (0x2100, 0x214F),
    "Technical": (0x2300, 0x23FF),
    "Geometric Shapes": (0x25A0, 0x25FF),
    "Miscellaneous Symbols": (0x2600, 0x26FF),
    "Dingbats": (0x2700, 0x27BF),
    "Supplemental Operators": (0x2A00, 0x2AFF),
    "Georgian Supplement": (0x2D00, 0x2D2F),
    "Tifinagh": (0x2D30, 0x2D7F),
    "Latin Extended-D": (0xA720, 0xA7FF),
    "Old Italic": (0x10300, 0x1032F),
}

FONT_PIXELS = 56
LONG_SIDE = 44  # of a glyph, centred in its master bitmap
MASTER = 64  # side of a master bitmap
SMALLEST = 14  # glyphs smaller than this at FONT_PIXELS are dots and commas
SIGNATURE = 16  # glyphs are compared on a grid of this side ...
NEAR = 14  # ... and count as the same if at most this many of its cells differ, in any of four rotations
WARP = 0.03  # standard deviation of each wave of the smooth warp, in half image sides
CHUNK = 64  # classes drawn at a time


def glyph_images(
    classes: int = 1623,
    drawings: int = 20,
    size: int = 28,
    colour: bool = False,
    seed: int = 0,
    only: slice = slice(None),
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Font glyphs under random distortions, in Omniglot's layout: ink 255 on paper 0.

    Each drawing has its own rotation, shear, scale, shift, stroke width and smooth warp. Glyphs that look
    alike in any of four rotations are one class, as far as a coarse comparison can tell.

    Args:
        classes: how many, spread evenly over the alphabets; as many as Omniglot has by default.
        drawings: of each class.
        size: side of an image in pixels.
        colour: random ink and paper colours, with a last axis of 3.
        seed: of the distortions; the classes do not depend on it.
        only: draw only these of the classes, for example ``slice(64, 80)``.

    Returns:
        uint8 (classes, drawings, size, size) or (..., 3), and for each class its alphabet, character and split.

    Raises:
        FileNotFoundError: matplotlib, whose fonts are used, is not installed.
        ValueError: a size below 1, or more classes than glyphs.
    """
    names, masters = _distinct_glyphs()
    if not 1 <= classes <= len(names) or drawings < 1 or size < 1:
        raise ValueError(
            f"there are 1 to {len(names)} classes, and drawings and size must be positive; "
            f"got classes={classes}, drawings={drawings}, size={size}"
        )
    chosen = np.linspace(0, len(names) - 1, classes).round().astype(int)[only]
    generator = torch.Generator().manual_seed(seed)
    images = np.empty((len(chosen), drawings, size, size) + ((3,) if colour else ()), np.uint8)
    for start in range(0, len(chosen), CHUNK):
        master = torch.from_numpy(masters[chosen[start : start + CHUNK]]).float() / 255  # (c, 64, 64)
        ink = _distort(master[:, None], drawings, size, generator)  # (c drawings, size, size)
        if colour:
            pair = torch.rand(2, len(ink), 1, 1, 3, generator=generator)
            paper, pen = 0.45 * pair[0], 0.55 + 0.45 * pair[1]
            ink = torch.lerp(paper, pen, ink[..., None])  # (c drawings, size, size, 3)
        images[start : start + CHUNK] = (255 * ink).round().byte().unflatten(0, (-1, drawings)).numpy()
    return images, [names[i] for i in chosen]


def _distort(master: Tensor, drawings: int, size: int, generator: torch.Generator) -> Tensor:
    """Random stroke widths, affine maps and warps: (c, 1, 64, 64) in [0, 1] -> (c drawings, size, size) in [0, 1]."""
    n = len(master) * drawings

    def spread(width: float) -> Tensor:
        return width * (2 * torch.rand(n, generator=generator) - 1)

    def each(bitmap: Tensor) -> Tensor:
        return bitmap.repeat_interleave(drawings, 0)  # (c, 1, 64, 64) -> (n, 1, 64, 64)

    thicker = functional.max_pool2d(master, 3, 1, 1) - master
    thinner = -functional.max_pool2d(-master, 3, 1, 1) - master
    width = spread(1.0)[:, None, None, None]
    drawn = each(master) + width.clamp(min=0) * each(thicker) + 0.4 * (-width).clamp(min=0) * each(thinner)

    angle, shear, shift_x, shift_y = spread(0.2), spread(0.2), spread(0.12), spread(0.12)
    scale_x, scale_y = 1 + spread(0.15), 1 + spread(0.15)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * scale_x, -sin * scale_y + shear, shift_x, sin * scale_x, cos * scale_y, shift_y]
    oversample = 2 if size < MASTER // 2 else 1
    side = size * oversample
    grid = functional.affine_grid(torch.stack(rows, 1).view(n, 2, 3), [n, 1, side, side], align_corners=False)
    # A smooth warp: a cosine series of three waves along each axis.
    waves = torch.cos(torch.pi * torch.outer(torch.arange(side) + 0.5, torch.arange(4)) / side)  # (side, 4)
    warp = waves @ (WARP * torch.randn(2, n, 4, 4, generator=generator)) @ waves.T  # (2, n, side, side)
    drawn = functional.grid_sample(drawn, grid + warp.movedim(0, -1), align_corners=False)  # (n, 1, side, side)
    return functional.avg_pool2d(drawn, oversample)[:, 0].clamp(0, 1)


@functools.cache
def _distinct_glyphs() -> tuple[list[dict[str, str]], np.ndarray]:
    """Names and master bitmaps uint8 (glyphs, 64, 64) of the font's glyphs, one of each group of look-alikes."""
    names, drawn = [], []
    for split, blocks in (("background", BACKGROUND), ("evaluation", EVALUATION)):
        for alphabet, (first, last) in blocks.items():
            for code, master in _glyphs(first, last):
                names.append({"alphabet": alphabet, "character": f"U+{code:04X}", "split": split})
                drawn.append(master)
    masters = np.stack(drawn)
    edge = (MASTER - LONG_SIDE) // 2
    box, shape = (edge, edge, MASTER - edge, MASTER - edge), (SIGNATURE, SIGNATURE)
    small = [np.asarray(Image.fromarray(master).resize(shape, Image.Resampling.BOX, box)) for master in masters]
    cells = (np.stack(small) > 100).astype(np.float32)  # (glyphs, 16, 16)
    flat = cells.reshape(len(cells), -1)
    ink = flat.sum(1)
    nearest = np.full((len(flat), len(flat)), np.inf, np.float32)
    for turn in range(4):
        turned = np.rot90(cells, turn, (1, 2)).reshape(len(cells), -1)
        nearest = np.minimum(nearest, ink[:, None] + ink - 2 * flat @ turned.T)  # number of differing cells
    keep = np.ones(len(flat), bool)
    for i in range(len(flat)):
        if keep[i]:
            keep[i + 1 :] &= nearest[i, i + 1 :] > NEAR
    return [name for name, kept in zip(names, keep, strict=True) if kept], masters[keep]


def _glyphs(first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
    """Code points of a block that the font really draws, with their master bitmaps, but for accented letters."""
    font = _font()
    missing = _ink(font, 0x10FFFE)  # a code point that no font has: the box for missing glyphs
    for code in range(first, last + 1):
        if unicodedata.decomposition(chr(code)):
            continue
        ink = _ink(font, code)
        if ink is None or max(ink.shape) < SMALLEST or (missing is not None and np.array_equal(ink, missing)):
            continue
        scale = LONG_SIDE / max(ink.shape)
        width, height = (max(1, round(scale * side)) for side in ink.shape[::-1])
        master = Image.new("L", (MASTER, MASTER))
        resized = Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR)
        master.paste(resized, ((MASTER - width) // 2, (MASTER - height) // 2))
        yield code, np.asarray(master)


def _ink(font: ImageFont.FreeTypeFont, code: int) -> np.ndarray | None:
    """The glyph's bitmap cropped to its ink, or None if it has none."""
    mask = font.getmask(chr(code), mode="L")
    bitmap = np.array(mask, np.uint8).reshape(mask.size[::-1])
    rows, columns = np.flatnonzero((bitmap > 40).any(1)), np.flatnonzero((bitmap > 40).any(0))
    return bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else None


def _font() -> ImageFont.FreeTypeFont:
    spec = importlib.util.find_spec("matplotlib")  # found, not imported: importing it takes longer than drawing
    path = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError("the glyph stand-in needs the DejaVu fonts of matplotlib: install matplotlib, or run `make data`")
    return ImageFont.truetype(str(path), FONT_PIXELS, layout_engine=ImageFont.Layout.BASIC)


def low_rank_ratings(
    users: int, items: int, mean: float, std: float, low: float, high: float, step: float, rated: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratings of a rank-5 matrix with biases and noise, of which popular items and active users have more.

    Args:
        users, items: size of the matrix.
        mean, std: of the ratings before they are rounded to multiples of ``step`` and clipped to [low, high].
        rated: log-odds that a median user rated a median item.
        seed: of all draws.

    Returns:
        user (int32), item (int32), rating (float32), sorted by user, then item.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    taste = normal(users, 5) @ normal(5, items) / 5**0.5  # (users, items), variance 1
    # The weights' squares sum to 1: user bias, item bias, taste, noise.
    score = 0.45 * normal(users, 1) + 0.35 * normal(items) + 0.5 * taste + 0.6519 * normal(users, items)
    rating = (((mean + std * score) / step).round() * step).clamp(low, high)
    odds = rated + 0.8 * normal(users, 1) + 1.6 * normal(items)
    chosen = torch.rand(users, items, generator=generator, dtype=torch.float64) < odds.sigmoid()
    user, item = chosen.nonzero().unbind(1)
    return user.int().numpy(), item.int().numpy(), rating[chosen].float().numpy()
