"""Users are disjoint tasks; targets are the very ratings; nothing is learnt from test users."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amaml_core.datasets import data_root, load_ratings
from amaml_core.samplers import RatingSampler, split_users
from amaml_core.stand_ins import low_rank_ratings


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


@pytest.fixture(scope="module")
def ratings():
    user, item, rating = low_rank_ratings(300, 60, 3.5, 1.1, 1, 5, 1, rated=0.0)
    return SimpleNamespace(user=user, item=item, rating=rating)


@pytest.fixture(scope="module")
def splits(ratings):
    return split_users(ratings, seeded(), counts=(None, None, 40), d=20, min_items=12)


def matrix(users: int = 30, items: int = 12, rated: float = 0.75) -> torch.Tensor:
    """Every entry is different, so that a rating tells its user and item; at least 6 in each row."""
    values = torch.arange(users * items, dtype=torch.float64).view(users, items)
    unrated = torch.rand(users, items, generator=seeded(9)) > rated
    unrated[:, :6] = False
    return values.masked_fill(unrated, torch.nan)


def test_users_are_disjoint_across_parts_and_the_count_adds_up(ratings, splits):
    parts = list(splits.users.values())
    together = torch.cat(parts)
    assert len(together.unique()) == len(together)
    assert sum(count.allotted for count in splits.counts.values()) == len(np.unique(ratings.user))
    for part, count in splits.counts.items():
        assert count.kept == len(splits.users[part]) == len(getattr(splits, part)) > 0
    assert splits.counts["test"].kept == 40
    assert splits.counts["train"].kept == splits.counts["train"].allotted - splits.counts["train"].left_out
    assert sum(count.left_out for count in splits.counts.values()) > 0


def test_matrices_hold_exactly_the_standardised_ratings(ratings, splits):
    known = {(u, i): r for u, i, r in zip(ratings.user.tolist(), ratings.item.tolist(), ratings.rating.tolist(), strict=True)}
    for part in ("train", "validation", "test"):
        dense = getattr(splits, part)
        expected = torch.tensor(
            [[known.get((u, i), torch.nan) for i in splits.items.tolist()] for u in splits.users[part].tolist()]
        )
        torch.testing.assert_close(splits.undo(dense), expected, equal_nan=True, atol=1e-5, rtol=0)
        assert (dense.isfinite().sum(1) >= 12).all()
    assert abs(splits.train.nanmean()) < 1e-6 and abs(splits.train[splits.train.isfinite()].std(correction=0) - 1) < 1e-6


def test_items_are_the_most_rated_among_users_allotted_to_training(ratings):
    # With no user left out, the training matrix holds all of them.
    splits = split_users(ratings, seeded(), (None, None, None), d=20, min_items=1)
    assert splits.counts["train"].left_out == 0
    training = np.isin(ratings.user, splits.users["train"].numpy())
    counts = np.bincount(ratings.item[training], minlength=60)
    assert splits.items.tolist() == sorted(range(60), key=lambda i: (-counts[i], i))[:20]


def test_items_and_scale_ignore_the_ratings_of_validation_and_test_users(ratings, splits):
    elsewhere = ~np.isin(ratings.user, splits.users["train"].numpy())
    shifted = SimpleNamespace(user=ratings.user, item=ratings.item, rating=np.where(elsewhere, ratings.rating + 7, ratings.rating))
    again = split_users(shifted, seeded(), counts=(None, None, 40), d=20, min_items=12)
    assert (again.mean, again.std) == (splits.mean, splits.std) and torch.equal(again.items, splits.items)
    assert torch.equal(again.train.nan_to_num(), splits.train.nan_to_num())
    assert not torch.equal(again.test.nan_to_num(), splits.test.nan_to_num())


def test_user_and_item_numbers_may_have_gaps(ratings, splits):
    gaps = SimpleNamespace(user=ratings.user * 3 + 5, item=ratings.item * 2 + 1, rating=ratings.rating)
    other = split_users(gaps, seeded(), counts=(None, None, 40), d=20, min_items=12)
    assert torch.equal(other.items, splits.items * 2 + 1) and torch.equal(other.users["test"], splits.users["test"] * 3 + 5)
    assert torch.equal(other.test.nan_to_num(), splits.test.nan_to_num())


def test_a_seed_gives_the_same_split_and_another_seed_another(ratings, splits):
    again, other = (split_users(ratings, seeded(s), counts=(None, None, 40), d=20, min_items=12) for s in (0, 1))
    assert torch.equal(again.users["test"], splits.users["test"])
    assert not torch.equal(other.users["test"], splits.users["test"])


def test_inputs_are_one_hot_and_targets_the_rating_of_that_item_by_that_user():
    ratings = matrix()
    tasks = RatingSampler(ratings, support=4, query=2, batch=30).all_tasks(seeded())
    assert tasks.support_x.shape == (30, 4, 12) and tasks.query_y.shape == (30, 2, 1)
    for x, y in ((tasks.support_x, tasks.support_y), (tasks.query_x, tasks.query_y)):
        assert torch.equal(x.sum(2), torch.ones_like(x[..., 0])) and torch.equal(x.amax(2), torch.ones_like(x[..., 0]))
        assert torch.equal(y[..., 0], ratings.gather(1, x.argmax(2)))  # row b is user b; no NaN equals itself


def test_no_item_is_both_support_and_query():
    tasks = RatingSampler(matrix(), 3, 3, batch=30).all_tasks(seeded())
    assert torch.cat([tasks.support_x, tasks.query_x], 1).sum(1).max() == 1


def test_a_meta_batch_holds_different_users():
    ratings, generator = matrix(), seeded()
    for _ in range(20):
        tasks = RatingSampler(ratings, 3, 3, batch=25)(generator)
        users = tasks.support_y[:, :, 0] // 12  # the entries count up through the rows
        assert torch.equal(users, users[:, :1].expand_as(users)) and len(users[:, 0].unique()) == 25


def test_users_and_rated_items_are_drawn_uniformly():
    ratings = torch.full((8, 10), torch.nan)
    ratings[:, :6] = 1.0
    sampler, generator = RatingSampler(ratings + torch.arange(8)[:, None], 2, 1, batch=4), seeded(3)
    users, support, query = torch.zeros(8), torch.zeros(10), torch.zeros(10)
    for _ in range(600):
        tasks = sampler(generator)
        users[tasks.support_y[:, 0, 0].long() - 1] += 1
        support += tasks.support_x.sum((0, 1))
        query += tasks.query_x.sum((0, 1))
    assert support[6:].sum() == query[6:].sum() == 0  # never an unrated item
    assert ((users - 300) ** 2 / 300).sum() < 24.4  # chi-square with 7 degrees of freedom, p = 0.001
    assert ((support[:6] - 800) ** 2 / 800).sum() < 20.6 and ((query[:6] - 400) ** 2 / 400).sum() < 20.6  # 5 degrees


def test_evaluation_tasks_are_fixed_by_the_generator():
    sampler = RatingSampler(matrix().float(), 3, 2, batch=5)
    one, again, other = (sampler.all_tasks(seeded(s)) for s in (0, 0, 1))
    assert equal(one, again) and not equal(one, other) and len(one) == 30 and one.support_x.dtype == torch.float32
    some = sampler.all_tasks(seeded(), users=[4, 2])
    assert torch.equal(some.support_y[:, 0, 0] // 12, torch.tensor([4.0, 2.0]))
    assert equal(sampler(seeded(7)), sampler(seeded(7))) and not equal(sampler(seeded(7)), sampler(seeded(8)))


def test_too_little_data_is_refused(ratings):
    with pytest.raises(ValueError, match=r"rated fewer items than support \+ query = 10"):
        RatingSampler(matrix(), 5, 5, batch=2)
    with pytest.raises(ValueError, match="only 30 users"):
        RatingSampler(matrix(), 2, 2, batch=31)
    with pytest.raises(ValueError, match="floats"):
        RatingSampler(torch.zeros(3, 4, dtype=torch.int64), 1, 1, 1)
    with pytest.raises(ValueError, match=r"test: .* but 1000 are wanted"):
        split_users(ratings, seeded(), (None, None, 1000), d=20, min_items=10)
    with pytest.raises(ValueError, match="fewer than d=61"):
        split_users(ratings, seeded(), d=61, min_items=10)
    with pytest.raises(ValueError, match="can rate only d=20"):
        split_users(ratings, seeded(), d=20, min_items=21)
    with pytest.raises(ValueError, match="sum to 1"):
        split_users(ratings, seeded(), d=20, min_items=10, shares=(0.5, 0.5, 0.5))


def test_broken_ratings_are_refused(ratings):
    kwargs = dict(generator=seeded(), counts=(None, None, None), d=20, min_items=5)
    doubled = SimpleNamespace(**{k: np.concatenate([v, v]) for k, v in vars(ratings).items()})
    with pytest.raises(ValueError, match="twice"):
        split_users(doubled, **kwargs)
    flat = SimpleNamespace(user=ratings.user, item=ratings.item, rating=np.ones_like(ratings.rating))
    with pytest.raises(ValueError, match="all training ratings are equal"):
        split_users(flat, **kwargs)


def of_a_test_user(item, user, splits, value):
    changed = item.copy()
    changed[np.argmax(user == splits.users["test"][0].item())] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, s: {"item": of_a_test_user(r.item, r.user, s, -1)}, "numbers from 0, and one is negative"),
        (lambda r, s: {"user": r.user - 1}, "numbers from 0"),
        (lambda r, s: {"item": r.item + 0.7}, "item must hold integers, not torch.float64"),
        (lambda r, s: {"user": r.user > 5}, "user must hold integers, not torch.bool"),
        (lambda r, s: {"user": r.user[:-1]}, "one length"),
        (lambda r, s: {"rating": r.rating[:-1]}, "one length"),
        (lambda r, s: {name: column[:0] for name, column in vars(r).items()}, "one length"),
        (lambda r, s: {name: column[None] for name, column in vars(r).items()}, "one length"),
    ],
)
def test_what_is_no_number_of_a_user_or_an_item_is_refused(ratings, splits, change, message):
    changed = SimpleNamespace(**vars(ratings) | change(ratings, splits))
    with pytest.raises(ValueError, match=message):
        split_users(changed, seeded(), counts=(None, None, 40), d=20, min_items=12)


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_shares_that_are_not_finite_are_refused(ratings, share):
    with pytest.raises(ValueError, match="sum to 1"):
        split_users(ratings, seeded(), d=20, min_items=10, shares=(share, 0.5, 0.5))


@pytest.mark.parametrize("name", ["jester-1", "ml-100k", "ml-1m"])
def test_the_real_ratings_give_100_test_tasks_of_50_items(name):
    if not (data_root() / name).exists():
        pytest.skip(f"{name} is not prepared")
    splits = split_users(load_ratings(name), seeded())
    assert splits.counts["test"].kept == 100 and splits.train.shape[1] == 100
    tasks = RatingSampler(splits.test, 20, 30, batch=100).all_tasks(seeded())
    assert tasks.query_x.shape == (100, 30, 100) and tasks.query_y.isfinite().all()
