"""How much each experiment does at each profile: ``smoke`` for tests, ``book`` for a laptop, ``full`` for the paper's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Profile = Literal["smoke", "book", "full"]


@dataclass(frozen=True)
class RatingsSize:
    """Collaborative filtering: users, meta updates, inner steps of the long methods and of MAML, steps of the test."""

    train_users: int | None  # None for all who rated enough items
    test_users: int
    meta_steps: int
    inner_steps: int
    maml_steps: int
    test_steps: tuple[int, ...]
    seeds: int


@dataclass(frozen=True)
class ImagesSize:
    """Few-shot images: classes in a task, filters, meta updates, test tasks."""

    way: int
    filters: int
    meta_steps: int
    test_tasks: int
    stand_in_classes: int


RATINGS: dict[str, RatingsSize] = {
    "smoke": RatingsSize(30, 20, 4, 10, 5, (0, 1, 5, 10), 1),
    "book": RatingsSize(None, 100, 400, 50, 5, (0, 1, 2, 5, 10, 20, 50, 100), 1),
    "full": RatingsSize(None, 100, 1000, 50, 5, (0, 1, 2, 5, 10, 20, 50, 100), 3),
}
IMAGES: dict[str, ImagesSize] = {
    "smoke": ImagesSize(5, 8, 4, 20, 120),
    "book": ImagesSize(5, 32, 500, 300, 1623),
    "full": ImagesSize(20, 64, 60_000, 600, 1623),
}


def check_profile(profile: str) -> Profile:
    """The profile itself.

    Raises:
        ValueError: it is not one of smoke, book and full.
    """
    if profile not in get_args(Profile):
        raise ValueError(f"profile must be one of {get_args(Profile)}, not {profile!r}")
    return profile
