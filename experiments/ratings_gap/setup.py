"""The tasks under a hypothesis: what is filled in, what the inputs are, and which items are support and query."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from amaml_core.datasets import RatingData, load_ratings
from amaml_core.samplers import RatingSplits, split_users
from amaml_core.tasks import Tasks

from ..common.training import generator
from ..ratings.settings import BATCH, SHOTS
from .settings import HYPOTHESES, INPUTS, Fill, Inputs, Overlap, Size


@dataclass(frozen=True, eq=False)
class GapSampler:
    """Users as tasks under a hypothesis.

    Attributes:
        matrix: (users, d) ratings, NaN where a user has none.
        features: (d, f), the input of each item.
        support, query: numbers of points.
        batch: users in a meta-batch, B.
        overlap: as in :class:`Hypothesis`.

    Raises:
        ValueError: a user has too few ratings, or a query set that is to contain the support set is smaller than it.
    """

    matrix: Tensor
    features: Tensor
    support: int
    query: int
    batch: int
    overlap: Overlap = "disjoint"

    def __post_init__(self) -> None:
        if self.overlap == "contained" and self.query < self.support:
            raise ValueError(f"{self.query} query points cannot contain {self.support} support points")
        needed = {"disjoint": self.support + self.query, "same": self.support}.get(self.overlap, max(self.support, self.query))
        few = int((self.matrix.isfinite().sum(1) < needed).sum())
        if few:
            raise ValueError(f"{few} of {len(self.matrix)} users have fewer than {needed} ratings")

    def __call__(self, generator: torch.Generator) -> Tasks:
        """B random users: x (B, S or Q, f), y (B, S or Q, 1); if the sets are the same, Q is S."""
        rows = torch.rand(len(self.matrix), generator=generator, dtype=torch.float64).topk(self.batch).indices
        return self._tasks(rows, generator)

    def all_tasks(self, generator: torch.Generator) -> Tasks:
        """One task for each user, in order."""
        return self._tasks(torch.arange(len(self.matrix)), generator)

    def _tasks(self, rows: Tensor, generator: torch.Generator) -> Tasks:
        matrix = self.matrix[rows]  # (B, d)
        order = self._order(matrix, generator)  # (B, d), rated items first
        support = order[:, : self.support]  # (B, S)
        if self.overlap == "disjoint":
            query = order[:, self.support : self.support + self.query]  # (B, Q)
        elif self.overlap == "contained":
            query = order[:, : self.query]
        elif self.overlap == "same":
            query = support
        else:
            query = self._order(matrix, generator)[:, : self.query]
        (support_x, support_y), (query_x, query_y) = (
            (self.features[chosen], matrix.gather(1, chosen)[..., None]) for chosen in (support, query)
        )
        return Tasks(support_x, support_y, query_x, query_y)

    @staticmethod
    def _order(matrix: Tensor, generator: torch.Generator) -> Tensor:
        """The items of each row in random order, those without a rating last: (B, d)."""
        scores = torch.rand(matrix.shape, generator=generator, dtype=torch.float64)
        return scores.masked_fill(matrix.isnan(), -1.0).argsort(1, descending=True)


@dataclass(frozen=True, eq=False)
class Setup:
    """Data under a hypothesis: samplers of training and of test tasks, and where the standardised ratings come from."""

    data: RatingData
    train: GapSampler
    test: GapSampler
    mean: float
    std: float
    filled: float  # share of the test users' matrix that is no rating


def prepare(name: str, data: str, shots: str, size: Size, seed: int) -> Setup:
    """The data under a hypothesis; which users are in which part depends on the seed and on who has enough ratings.

    A completed matrix leaves no user out. Its training part is standardised anew.

    Raises:
        FileNotFoundError: the data are not prepared, and the size allows no stand-in.
    """
    hypothesis, (support, query) = HYPOTHESES[name], SHOTS[shots]
    loaded = load_ratings(data, allow_stand_in=size.stand_in)
    kept = _first_items(loaded) if hypothesis.items == "first" else loaded
    least = support + query if hypothesis.fill == "nothing" else 1
    counts = (size.train_users, None, size.test_users)
    splits = split_users(kept, generator("data", seed), counts, d=INPUTS, min_items=least)
    item_mean = splits.train.nanmean(0).nan_to_num(0.0)  # (d,); 0 is the mean of all ratings
    train, test = (complete(matrix, hypothesis.fill, item_mean, splits) for matrix in (splits.train, splits.test))
    known = train[train.isfinite()].double()
    shift, factor = known.mean().item(), known.std(correction=0).item()
    features = item_features(hypothesis.inputs, splits)
    make = partial(GapSampler, features=features, support=support, query=query, overlap=hypothesis.overlap)
    return Setup(
        loaded,
        make((train - shift) / factor, batch=BATCH),
        make((test - shift) / factor, batch=len(test)),
        splits.mean + splits.std * shift,
        splits.std * factor,
        0.0 if hypothesis.fill == "nothing" else splits.test.isnan().double().mean().item(),
    )


def _first_items(data: RatingData) -> RatingData:
    """Only the ratings of the first 100 items that anybody rated."""
    kept = np.isin(data.item, np.unique(data.item)[:INPUTS])
    return replace(data, user=data.user[kept], item=data.item[kept], rating=data.rating[kept])


def complete(matrix: Tensor, fill: Fill, item_mean: Tensor, splits: RatingSplits) -> Tensor:
    """The matrix (users, d) with its gaps filled as :class:`Hypothesis` says; a user without ratings has the mean 0."""
    values = {
        "nothing": torch.tensor(torch.nan),
        "item mean": item_mean,
        "user mean": matrix.nanmean(1, keepdim=True).nan_to_num(0.0),
        "zero": torch.tensor(-splits.mean / splits.std),
    }
    return torch.where(matrix.isnan(), values[fill].to(matrix), matrix)


def item_features(inputs: Inputs, splits: RatingSplits) -> Tensor:
    """The input of each item (d, f); but for the number, scaled to the norm 1 on average, which one-hot inputs have."""
    d = len(splits.items)
    if inputs == "one-hot":
        return torch.eye(d)
    if inputs == "number":
        rank = splits.items.argsort().argsort()
        return (2 * rank.float() / (d - 1) - 1)[:, None]  # (d, 1) in [-1, 1]
    users = torch.cat([splits.train, splits.test]) if inputs == "all factors" else splits.train
    mean = splits.train.nanmean(0).nan_to_num(0.0)  # (d,)
    centred = torch.where(users.isnan(), torch.zeros_like(users), users - mean)  # (users, d)
    if inputs == "raters":
        found = torch.where(users.isnan(), mean, users)[:INPUTS].T  # (d, 100)
        if found.shape[1] < INPUTS:
            found = torch.nn.functional.pad(found, (0, INPUTS - found.shape[1]))
    else:
        # Right singular vectors and values of the centred matrix, by its Gram matrix (d, d): d factors of each item.
        values, vectors = torch.linalg.eigh((centred.double().T @ centred.double()) / len(centred))
        found = (vectors * values.clamp(min=0).sqrt()).flip(1).float()  # (d, d), the largest first
    return found / found.square().sum(1).mean().sqrt()
