"""Users as tasks: the split, the test tasks, and guesses that need no network."""

from __future__ import annotations

import pandas as pd
import torch

from amaml_core import metrics
from amaml_core.datasets import RatingData, load_ratings
from amaml_core.samplers import RatingSampler, RatingSplits, split_users
from amaml_core.tasks import Tasks

from ..common.training import generator
from .settings import BARS, BATCH, CHOICE_DATA, CHOICE_SHOTS, ITEMS, SHOTS, TRIAL_USERS, Size


def load(data: str, shots: str, size: Size, seed: int) -> tuple[RatingData, RatingSplits]:
    """The data and their :func:`split`.

    Raises:
        FileNotFoundError: the data are not prepared, and the size allows no stand-in.
    """
    found = load_ratings(data, allow_stand_in=size.stand_in)
    return found, split(found, shots, size, seed)


def split(data: RatingData, shots: str, size: Size, seed: int) -> RatingSplits:
    """Training, validation and test users, which depend on data, shots and seed alone."""
    counts = (size.train_users, None, size.test_users)
    return split_users(data, generator("data", seed), counts, d=ITEMS, min_items=sum(SHOTS[shots]))


def make_test_tasks(splits: RatingSplits, shots: str, seed: int) -> Tasks:
    """One task for each test user; the same for every method."""
    return RatingSampler(splits.test, *SHOTS[shots], BATCH).all_tasks(generator("test", seed))


def bars(splits: RatingSplits, tasks: Tasks) -> pd.DataFrame:
    """What no network is needed for: RMSE (B,) of each user by the user's mean, the items' means, and a ridge regression.

    The ridge is a linear model on the same one-hot inputs, fitted to the user's support ratings around the items' means
    and shrunk with the weight 1: it says what the support ratings alone give, without learning to learn.
    """
    item_mean = splits.train.nanmean(0)  # (d,)
    item_mean = torch.where(item_mean.isnan(), splits.train.nanmean(), item_mean)
    base_support, base_query = (x @ item_mean[:, None] for x in (tasks.support_x, tasks.query_x))  # (B, n, 1)
    residual = tasks.support_y - base_support
    # One-hot inputs leave the ridge only its intercept on items the user has not rated.
    shift = residual.sum(1, keepdim=True) / (tasks.support_x.shape[1] + 1)  # (B, 1, 1)
    guesses = (tasks.support_y.mean(1, keepdim=True).expand_as(tasks.query_y), base_query, base_query + shift)
    return pd.DataFrame({bar: metrics.rmse(guess, tasks.query_y) for bar, guess in zip(BARS, guesses, strict=True)})


def tested_before(data: RatingData, splits: RatingSplits, shots: str, size: Size, seed: int) -> pd.Series:
    """Whether each test user is one of an earlier seed too."""
    mine, earlier = splits.users["test"], [split(data, shots, size, s).users["test"] for s in range(seed)]
    return pd.Series(torch.isin(mine, torch.cat(earlier)).numpy() if earlier else False, index=range(len(mine)))


def part_in_choice(data: RatingData, splits: RatingSplits, size: Size) -> pd.Series:
    """What each test user was where the hyperparameters were chosen: ``"train"``, a trial was trained on the user; ``"judge"``, a
    trial was judged by the user; or ``"none"``."""
    mine = splits.users["test"]
    parts = pd.Series("none", index=range(len(mine)))
    if data.name == CHOICE_DATA:
        choice = split(data, CHOICE_SHOTS, size, seed=0)
        parts[torch.isin(mine, choice.users["train"]).numpy()] = "train"
        parts[torch.isin(mine, choice.users["validation"][:TRIAL_USERS]).numpy()] = "judge"
    return parts
