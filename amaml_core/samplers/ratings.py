"""Collaborative filtering: every user is a task, an input is one item, the target is the user's rating of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..tasks import Tasks
from .draws import check_sizes, distinct

PARTS = ("train", "validation", "test")


class Ratings(Protocol):
    """One entry for each rating: user and item numbers from 0, and the rating."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray


class PartCount(NamedTuple):
    """Users of one part: allotted to it, of those left out for having too few ratings, and of the rest kept.

    >>> PartCount(allotted=10, left_out=3, kept=5)
    PartCount(allotted=10, left_out=3, kept=5)
    """

    allotted: int
    left_out: int
    kept: int


@dataclass(frozen=True, eq=False)
class RatingSplits:
    """Disjoint users as dense matrices of standardised ratings, NaN where a user has not rated an item.

    Attributes:
        train, validation, test: (users, d) float32, in units of the training ratings' standard deviation.
        items: (d,) int64, the item number in the data behind each column, the most rated first.
        users: the user numbers in the data behind the rows of ``train``, ``validation`` and ``test``.
        mean, std: of all ratings in ``train``, in the data's units.
        counts: how many users each part was allotted, left out and kept.

    >>> from types import SimpleNamespace
    >>> user, item = np.divmod(np.arange(60), 6)  # ten users, each of whom rates all six items
    >>> data = SimpleNamespace(user=user, item=item, rating=1.0 + (user + item) % 5)
    >>> every = dict(counts=(4, 1, 5), d=6, min_items=4, shares=(0.4, 0.1, 0.5))
    >>> splits = split_users(data, torch.Generator().manual_seed(0), **every)
    >>> splits.undo(splits.train).unique().round()  # on the scale of the data again
    tensor([1., 2., 3., 4., 5.])
    """

    train: Tensor = field(repr=False)
    validation: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    items: Tensor = field(repr=False)
    users: dict[str, Tensor] = field(repr=False)
    mean: float
    std: float
    counts: dict[str, PartCount]

    def undo(self, y: Tensor) -> Tensor:
        """Standardised ratings or predictions back on the data's own scale."""
        return y * self.std + self.mean


def split_users(
    ratings: Ratings,
    generator: torch.Generator,
    counts: tuple[int | None, int | None, int | None] = (None, None, 100),
    d: int = 100,
    min_items: int = 50,
    shares: tuple[float, float, float] = (0.4, 0.05, 0.55),
) -> RatingSplits:
    """Split users into training, validation and test tasks over the d most rated items.

    All users are shuffled and allotted to the three parts by ``shares``. The d items are those most rated by the users
    allotted to training. Users with fewer than ``min_items`` ratings among them are left out, and the first ``counts``
    of the rest are kept. Mean and standard deviation come from the kept training users. So nothing is learnt from
    validation or test users.

    Args:
        ratings: the data, for example of :func:`amaml_core.datasets.load_ratings`.
        generator: of the shuffle.
        counts: users to keep for training, validation and test; None keeps all.
        d: number of items, the model's input dimension (100 in the paper).
        min_items: at least support + query points.
        shares: of all users, before anybody is left out; they must sum to 1. The defaults leave 100 test users even
            of MovieLens 100K, where three in four users rated fewer than 50 of the 100 films.

    Raises:
        ValueError: fewer rated items than d, fewer users than wanted, min_items above d, a pair rated twice, bad shares, or
            users and items that are not numbers from 0, one of each for each rating.

    >>> from types import SimpleNamespace
    >>> user, item = np.divmod(np.arange(60), 6)  # ten users, each of whom rates all six items
    >>> data = SimpleNamespace(user=user, item=item, rating=1.0 + (user + item) % 5)
    >>> every = dict(counts=(4, 1, 5), d=6, min_items=4, shares=(0.4, 0.1, 0.5))
    >>> splits = split_users(data, torch.Generator().manual_seed(0), **every)
    >>> splits.train.shape, splits.test.shape, splits.counts["test"].kept
    (torch.Size([4, 6]), torch.Size([5, 6]), 5)
    """
    check_sizes(d=d, min_items=min_items, **{part: n for part, n in zip(PARTS, counts, strict=True) if n is not None})
    if min_items > d:
        raise ValueError(f"min_items={min_items}, but a user can rate only d={d} items")
    if not (min(shares) > 0 and abs(sum(shares) - 1) <= 1e-9):
        raise ValueError(f"shares must be positive and sum to 1, not {shares}")
    user, item, rating = (torch.as_tensor(np.ascontiguousarray(a)) for a in (ratings.user, ratings.item, ratings.rating))
    if not (user.ndim == 1 and user.shape == item.shape == rating.shape and len(user)):
        shapes = [tuple(column.shape) for column in (user, item, rating)]
        raise ValueError(f"user, item and rating must be of one length, (ratings,) each, not {shapes}")
    for name, column in (("user", user), ("item", item)):
        if column.is_floating_point() or column.is_complex() or column.dtype == torch.bool:
            raise ValueError(f"{name} must hold integers, not {column.dtype}")
    user, item = user.long(), item.long()
    if min(user.min(), item.min()) < 0:
        raise ValueError("users and items are numbers from 0, and one is negative")
    ids, row = user.unique(return_inverse=True)  # (users,), (ratings,)

    order = torch.randperm(len(ids), generator=generator, device=generator.device).cpu()
    ends = [round(len(ids) * share) for share in (shares[0], shares[0] + shares[1])]
    allotted = dict(zip(PARTS, order.tensor_split(ends), strict=True))

    training = torch.zeros(len(ids), dtype=torch.bool)
    training[allotted["train"]] = True
    popularity = item[training[row]].bincount()
    if (there := int((popularity > 0).sum())) < d:
        raise ValueError(f"training users rated {there} items, fewer than d={d}; lower d or give training a larger share")
    items = popularity.argsort(descending=True, stable=True)[:d]

    column = torch.full((int(item.max()) + 1,), -1)
    column[items] = torch.arange(d)
    among = column[item] >= 0
    cells = row[among] * d + column[item[among]]
    dense = torch.full((len(ids) * d,), torch.nan, dtype=torch.float64)
    dense[cells] = rating[among].double()
    if int(dense.isfinite().sum()) != len(cells):
        raise ValueError("a user rates an item twice, or a rating is not finite; each (user, item) pair may occur once")
    dense = dense.view(len(ids), d)

    enough = dense.isfinite().sum(1) >= min_items
    kept, report = {}, {}
    for part, wanted in zip(PARTS, counts, strict=True):
        eligible = allotted[part][enough[allotted[part]]]
        if len(eligible) < (1 if wanted is None else wanted):
            raise ValueError(
                f"{part}: {len(eligible)} of {len(allotted[part])} users rated {min_items} or more of {d} items, "
                f"but {wanted or 'at least 1'} are wanted; lower min_items or the count, or enlarge the share of {part}"
            )
        kept[part] = eligible[:wanted]
        report[part] = PartCount(len(allotted[part]), len(allotted[part]) - len(eligible), len(kept[part]))

    known = dense[kept["train"]]
    known = known[known.isfinite()]
    mean, std = known.mean().item(), known.std(correction=0).item()
    if std == 0:
        raise ValueError("all training ratings are equal; there is nothing to predict")
    matrices = {part: ((dense[rows] - mean) / std).float() for part, rows in kept.items()}
    return RatingSplits(**matrices, items=items, users={p: ids[r] for p, r in kept.items()}, mean=mean, std=std, counts=report)


@dataclass(frozen=True, eq=False)
class RatingSampler:
    """Users as tasks: k rated items to adapt to, m others to predict.

    An input is the one-hot vector of an item, the target the rating in the matrix. Support and query items are
    disjoint, and every choice among a user's rated items is equally likely.

    Attributes:
        matrix: (users, d) ratings, NaN where there is none; tasks are made on its device.
        support, query: k and m.
        batch: users in a meta-batch, B; each at most once.

    Raises:
        ValueError: sizes below 1, a matrix that is not (users, d), fewer users than ``batch``, or a user with fewer
            than k + m ratings.

    >>> matrix = torch.arange(24.0).reshape(4, 6)  # four users, six items
    >>> tasks = RatingSampler(matrix, support=2, query=3, batch=4)(torch.Generator().manual_seed(0))
    >>> tasks.support_x.shape, tasks.query_y.shape  # inputs are one-hot items
    (torch.Size([4, 2, 6]), torch.Size([4, 3, 1]))
    """

    matrix: Tensor = field(repr=False)
    support: int
    query: int
    batch: int

    def __post_init__(self) -> None:
        check_sizes(support=self.support, query=self.query, batch=self.batch)
        if self.matrix.ndim != 2 or not self.matrix.is_floating_point():
            raise ValueError(f"the matrix must be (users, d) of floats, not {tuple(self.matrix.shape)} {self.matrix.dtype}")
        if self.batch > len(self.matrix):
            raise ValueError(f"batch={self.batch}, but the matrix has only {len(self.matrix)} users")
        few = (~self.matrix.isnan()).sum(1) < self.support + self.query
        if few.any():
            raise ValueError(
                f"{int(few.sum())} of {len(self.matrix)} users rated fewer items than "
                f"support + query = {self.support + self.query}; raise min_items in split_users or ask for fewer points"
            )

    def __call__(self, generator: torch.Generator) -> Tasks:
        """B random users: x (B, k or m, d) one-hot, y (B, k or m, 1)."""
        return self._tasks(distinct((), len(self.matrix), self.batch, generator), generator)

    def all_tasks(self, generator: torch.Generator, users: slice | Sequence[int] | Tensor | None = None) -> Tasks:
        """One task for each user (or each of ``users``, rows of the matrix), in order: a fixed list for evaluation."""
        rows = torch.arange(len(self.matrix))
        return self._tasks(rows if users is None else rows[users], generator)

    def _tasks(self, rows: Tensor, generator: torch.Generator) -> Tasks:
        matrix = self.matrix[rows.to(self.matrix.device)]  # (B, d)
        scores = torch.rand(matrix.shape, generator=generator, device=generator.device, dtype=torch.float64).to(matrix.device)
        # An unrated item scores below every rated one, and each user has enough rated ones.
        items = scores.masked_fill(matrix.isnan(), -1.0).topk(self.support + self.query).indices  # (B, k + m)
        x = torch.nn.functional.one_hot(items, matrix.shape[1]).to(matrix.dtype)  # (B, k + m, d)
        y = matrix.gather(1, items)[..., None]  # (B, k + m, 1)
        k = self.support
        return Tasks(x[:, :k], y[:, :k], x[:, k:], y[:, k:])
