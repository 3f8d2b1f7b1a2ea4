"""N-way k-shot image classification, and class-disjoint splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..tasks import Tasks
from .draws import check_sizes, distinct


@dataclass(frozen=True, eq=False)
class ClassSplit:
    """Disjoint classes for training, validation and test: int64 indices (n,) each, ascending.

    These are characters before any rotation. :class:`ImageSampler` makes the rotations from them, so a character and
    its rotations are always on one side. ``validation`` may be empty.

    >>> split = split_classes(10, torch.Generator().manual_seed(0), train=7, validation=2)
    >>> sorted(torch.cat([split.train, split.validation, split.test]).tolist()) == list(range(10))
    True
    """

    train: Tensor
    validation: Tensor
    test: Tensor


def split_classes(classes: int, generator: torch.Generator, train: int = 1200, validation: int = 0) -> ClassSplit:
    """A random split: ``train`` classes, of which ``validation`` are held out, and all others for test.

    The defaults are the usual ones for Omniglot: 1,200 of 1,623 characters to train with, 423 to test; with
    ``validation=100``, 1,100 to train with.

    Raises:
        ValueError: sizes below 1 or that leave nothing for training or test.

    >>> split = split_classes(1623, torch.Generator().manual_seed(0), validation=100)
    >>> len(split.train), len(split.validation), len(split.test)
    (1100, 100, 423)
    """
    check_sizes(classes=classes, train=train)
    if train >= classes:
        raise ValueError(f"train={train} of {classes} classes leaves none for test; lower train")
    if not 0 <= validation < train:
        raise ValueError(f"validation={validation} must be at least 0 and below train={train}, from which it is held out")
    order = torch.randperm(classes, generator=generator, device=generator.device).cpu()
    kept, held_out, test = order.tensor_split([train - validation, train])
    return ClassSplit(kept.sort().values, held_out.sort().values, test.sort().values)


def split_alphabets(classes: Sequence[Mapping[str, str]], generator: torch.Generator, validation: int = 0) -> ClassSplit:
    """Omniglot's own split by whole alphabets: background for training, evaluation for test.

    Args:
        classes: one ``{"alphabet": ..., "split": "background" | "evaluation"}`` for each class, in order.
        generator: chooses the validation alphabets.
        validation: how many background alphabets to hold out.

    Raises:
        ValueError: ``validation`` is negative or leaves no background alphabet, or a split is unknown or empty.

    >>> known = {"Greek": "background", "Latin": "background", "Tagalog": "evaluation"}
    >>> classes = [{"alphabet": alphabet, "split": split} for alphabet, split in known.items()]
    >>> split_alphabets(classes, torch.Generator()).test
    tensor([2])
    """
    if unknown := {entry["split"] for entry in classes} ^ {"background", "evaluation"}:
        raise ValueError(f"the classes' splits must be 'background' and 'evaluation', both present; wrong or missing: {unknown}")
    background = sorted({entry["alphabet"] for entry in classes if entry["split"] == "background"})
    if not 0 <= validation < len(background):
        raise ValueError(f"validation={validation} must be at least 0 and below the {len(background)} background alphabets")
    held_out = {background[i] for i in distinct((), len(background), validation, generator).tolist()}
    part = torch.tensor([2 if e["split"] == "evaluation" else int(e["alphabet"] in held_out) for e in classes])
    return ClassSplit(*((part == number).nonzero().flatten() for number in range(3)))


@dataclass(frozen=True, eq=False)
class ImageSampler:
    """N-way k-shot tasks. Classes, their labels and their images are drawn anew for each task.

    Images become float32 in [0, 1] (value / 255, no mean subtracted), with the channel first. Support and query images
    are different images. Points come class by class: labels 0...0 1...1 and so on, and which class is 0 is random.

    Attributes:
        images: uint8 (C, n, H, W) or (C, n, H, W, 3), n images of each class; an array (memory-mapped is fine: only
            the pages of drawn images are read) or a tensor (then tasks are made on its device).
        way: classes in a task, N.
        shot, query: support and query images of each class, k and q.
        batch: tasks in a meta-batch, B.
        rotations: let every class also appear turned by 90, 180 and 270 degrees, as three more classes.
        classes: use only these classes of ``images`` (all by default).

    Raises:
        ValueError: wrong dtype or shape, fewer classes than ``way``, fewer images than shot + query, rotations of
            images that are not square, class numbers that are no integers, out of range or twice.

    >>> images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 4, 8, 8)  # 10 classes of 4 images
    >>> tasks = ImageSampler(images, way=5, shot=1, query=2, batch=3)(torch.Generator().manual_seed(0))
    >>> tasks.support_x.shape, tasks.query_y[0]
    (torch.Size([3, 5, 1, 8, 8]), tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]))
    """

    images: np.ndarray | Tensor = field(repr=False)
    way: int
    shot: int
    query: int
    batch: int
    rotations: bool = False
    classes: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_sizes(way=self.way, shot=self.shot, query=self.query, batch=self.batch)
        shape = tuple(self.images.shape)
        if str(self.images.dtype).removeprefix("torch.") != "uint8" or not (len(shape) == 4 or len(shape) == 5 and shape[4] == 3):
            raise ValueError(f"images must be uint8 (C, n, H, W) or (C, n, H, W, 3), not {self.images.dtype} {shape}")
        if self.classes is not None:
            chosen = torch.as_tensor(self.classes)
            if chosen.ndim != 1 or chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
                raise ValueError(f"classes must be integers (n,), not {chosen.dtype} {tuple(chosen.shape)}")
            chosen = chosen.long()
            if len(chosen.unique()) != len(chosen) or not ((chosen >= 0) & (chosen < shape[0])).all():
                raise ValueError(f"classes must be different numbers from 0 to {shape[0] - 1}")
        if self.way > self.class_count:
            raise ValueError(f"way={self.way}, but there are only {self.class_count} classes")
        if self.shot + self.query > shape[1]:
            raise ValueError(f"shot + query = {self.shot + self.query}, but each class has only {shape[1]} images")
        if self.rotations and shape[2] != shape[3]:
            raise ValueError(f"rotations need square images, not {shape[2]} x {shape[3]}")

    @property
    def class_count(self) -> int:
        """Number of classes that tasks are drawn from, rotations included."""
        return (self.images.shape[0] if self.classes is None else len(self.classes)) * (4 if self.rotations else 1)

    def __call__(self, generator: torch.Generator) -> Tasks:
        """support_x (B, N k, Ch, H, W), support_y (B, N k) int64, query_x (B, N q, Ch, H, W), query_y (B, N q)."""
        each = self.shot + self.query
        drawn = distinct((self.batch,), self.class_count, self.way, generator)  # (B, N)
        image = distinct((self.batch, self.way), self.images.shape[1], each, generator).cpu()  # (B, N, k + q)
        # With rotations, class c stands for image class c // 4 turned by c % 4 quarters.
        base, quarters = (drawn // 4, drawn % 4) if self.rotations else (drawn, None)
        base = base.cpu() if self.classes is None else torch.as_tensor(self.classes).cpu().long()[base.cpu()]

        pixels = self._read(base[..., None].expand_as(image), image)  # (B, N, k + q, H, W) or (B, N, k + q, H, W, 3)
        pixels = pixels[:, :, :, None] if pixels.ndim == 5 else pixels.movedim(-1, 3)  # (B, N, k + q, Ch, H, W)
        if quarters is not None:
            quarters = quarters.to(pixels.device)
            for turn in (1, 2, 3):
                pixels[quarters == turn] = pixels[quarters == turn].rot90(turn, (-2, -1))
        pixels = pixels.float() / 255
        labels = torch.arange(self.way, device=pixels.device)[None, :, None].expand(self.batch, -1, each)  # (B, N, k + q)
        support, query = slice(None, self.shot), slice(self.shot, None)
        return Tasks(
            pixels[:, :, support].flatten(1, 2),
            labels[:, :, support].flatten(1, 2),  # (B, N, k, ...) -> (B, N k, ...)
            pixels[:, :, query].flatten(1, 2),
            labels[:, :, query].flatten(1, 2),
        )

    def _read(self, base: Tensor, image: Tensor) -> Tensor:
        if isinstance(self.images, Tensor):
            return self.images[base.to(self.images.device), image.to(self.images.device)]
        return torch.from_numpy(np.ascontiguousarray(self.images[base.numpy(), image.numpy()]))
