"""The synthetic functions have the stated formulas and ranges; pools and standardisation leak nothing."""

import math

import pytest
import torch

from amaml_core.samplers import (
    Alpine,
    CosMixture,
    FunctionSampler,
    PoolSampler,
    Standardisation,
    make_function_pools,
    make_function_tasks,
)

FAMILIES = [CosMixture(), CosMixture(1, "released"), Alpine(), Alpine(3, "released")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def points(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float64)  # one task


def test_cosmixture_of_the_slides_at_known_points():
    parameters = torch.tensor([[0.5, math.pi, math.pi]], dtype=torch.float64)  # A, omega, phi
    y = CosMixture()(parameters, points([0.0, 0.0], [1.0, 0.5], [-1.0, 1.0]))
    # cos(pi) = -1; cos(2 pi) = 1 and cos(1.5 pi) = 0; cos(0) = cos(2 pi) = 1
    expected = points([0.1], [-0.05 - 1.25], [-0.1 - 2.0])
    torch.testing.assert_close(y, expected)


def test_released_cosmixture_lacks_the_factor_of_a_tenth():
    parameters = torch.tensor([[0.5, math.pi, math.pi]], dtype=torch.float64)
    x = points([0.3, -0.7], [0.9, 0.2])
    squares = x.square().sum(-1, keepdim=True)
    slides, released = CosMixture()(parameters, x) + squares, CosMixture(variant="released")(parameters, x) + squares
    torch.testing.assert_close(released, 10 * slides)


def test_alpine_of_the_slides_at_known_points():
    phases = torch.tensor([[math.pi / 6, -math.pi / 6]], dtype=torch.float64)
    y = Alpine()(phases, points([0.0, 0.0], [math.pi / 3, 0.0], [0.0, -math.pi / 3]))
    # x1 = pi/3: sin(pi/3 + pi/6) = 1, so |x + 0.1 x|; x2 = -pi/3: sin(-pi/3 - pi/6) = -1, so |-x + 0.1 x| = 0.9 |x|
    torch.testing.assert_close(y, points([0.0], [1.1 * math.pi / 3], [0.9 * math.pi / 3]))


def test_released_alpine_uses_the_first_phase_everywhere_shifted_by_pi():
    phases = torch.tensor([[0.3, -1.1]], dtype=torch.float64)
    x = points([2.0, -5.0], [7.5, 1.0])
    as_slides = torch.tensor([[0.3 + math.pi, 0.3 + math.pi]], dtype=torch.float64)
    torch.testing.assert_close(Alpine(variant="released")(phases, x), Alpine()(as_slides, x))
    other_second = torch.tensor([[0.3, 0.9]], dtype=torch.float64)
    assert torch.equal(Alpine(variant="released")(phases, x), Alpine(variant="released")(other_second, x))


@pytest.mark.parametrize(
    ("family", "ranges"),
    [
        (CosMixture(), [(0.1, 1), (0.5 * math.pi, 2 * math.pi), (3, 6)]),
        (CosMixture(variant="released"), [(0.1, 1), (3 * math.pi, 6 * math.pi), (0.5, 2)]),
        (Alpine(3), [(-5 * math.pi / 12, 5 * math.pi / 12)] * 3),
    ],
)
def test_parameters_fill_their_ranges_and_never_leave_them(family, ranges):
    parameters = family.draw(4000, seeded())
    for column, (low, high) in zip(parameters.T, ranges, strict=True):
        unit = (column - low) / (high - low)
        assert unit.min() >= 0 and unit.max() <= 1
        cells = (unit * 10).long().clamp(max=9).bincount(minlength=10)
        assert ((cells - 400) ** 2 / 400).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001
    assert torch.corrcoef(parameters.T).triu(1).abs().max() < 0.06  # about 4 standard errors


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_tasks_lie_on_their_function_and_in_the_domain(family):
    tasks = make_function_tasks(family, 7, 4, 6, seeded(), torch.float64)
    assert tasks.support_x.shape == (7, 4, family.d) and tasks.query_y.shape == (7, 6, 1)
    parameters = family.draw(7, seeded())  # the tasks' first draws
    assert torch.equal(family(parameters, tasks.support_x), tasks.support_y)
    assert torch.equal(family(parameters, tasks.query_x), tasks.query_y)
    x = torch.cat([tasks.support_x, tasks.query_x], 1)
    assert family.low <= x.min() < 0.8 * family.low and 0.8 * family.high < x.max() < family.high
    assert len(x.flatten(0, 1).unique(dim=0)) == 70  # no point twice, so support and query are disjoint


def test_a_seed_gives_the_same_tasks_and_another_seed_others():
    one, again, other = (make_function_tasks(Alpine(), 5, 3, 3, seeded(s)) for s in (1, 1, 2))
    assert equal(one, again) and not torch.equal(one.support_x, other.support_x)
    double = make_function_tasks(Alpine(), 5, 3, 3, seeded(1), torch.float64)
    assert equal(one, double.to(dtype=torch.float32))


def test_standardisation_gives_mean_zero_and_deviation_one_and_is_undone():
    tasks = make_function_tasks(Alpine(), 20, 9, 11, seeded(), torch.float64)
    standardisation = Standardisation.fit(tasks)
    standardised = standardisation.apply(tasks)
    for support, query in (
        (standardised.support_x, standardised.query_x),
        (standardised.support_y, standardised.query_y),
    ):
        values = torch.cat([support, query], 1).flatten(0, 1)
        torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), atol=1e-12, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones_like(values[0]))
    torch.testing.assert_close(standardisation.undo_y(standardised.query_y), tasks.query_y)


def test_test_tasks_do_not_touch_a_standardisation_fitted_on_training_tasks():
    train, test = (make_function_tasks(CosMixture(), 30, 5, 5, seeded(s), torch.float64) for s in (0, 1))
    mine, released = (make_function_pools(CosMixture(), 30, 20, 5, 5, seeded(), fit_on) for fit_on in ("train", "all"))
    more = make_function_pools(CosMixture(), 30, 21, 5, 5, seeded(), "all")
    assert abs(torch.cat([mine.train.support_y, mine.train.query_y]).mean()) < 1e-6
    assert abs(torch.cat([mine.test.support_y, mine.test.query_y]).mean()) > 1e-3
    assert abs(torch.cat([part for pool in released[:2] for part in (pool.support_y, pool.query_y)]).mean()) < 1e-6
    assert not torch.equal(released.standardisation.y_mean, more.standardisation.y_mean)
    # The same functions and points either way.
    torch.testing.assert_close(
        mine.standardisation.undo_y(mine.test.query_y), released.standardisation.undo_y(released.test.query_y)
    )
    alone, both = Standardisation.fit(train), Standardisation.fit(train, test)
    torch.testing.assert_close(alone.y_mean, torch.cat([train.support_y, train.query_y], 1).flatten(0, 1).mean(0))
    # Equally many points in both.
    torch.testing.assert_close(both.y_mean, (alone.y_mean + Standardisation.fit(test).y_mean) / 2)


def test_constant_targets_cannot_be_standardised():
    tasks = make_function_tasks(Alpine(), 3, 4, 4, seeded())
    flat = type(tasks)(tasks.support_x, tasks.support_y * 0, tasks.query_x, tasks.query_y * 0)
    with pytest.raises(ValueError, match=r"target coordinates \[0\] do not vary"):
        Standardisation.fit(flat)


def test_a_pool_sampler_draws_different_whole_tasks_uniformly():
    pool = make_function_tasks(Alpine(), 10, 3, 3, seeded())
    sampler, generator = PoolSampler(pool, 4), seeded(5)
    seen = torch.zeros(10)
    for _ in range(500):
        batch = sampler(generator)
        which = (batch.support_x[:, None] == pool.support_x).flatten(2).all(2).nonzero()[:, 1]  # (4,)
        assert len(which.unique()) == 4 and equal(batch, pool[which])
        seen[which] += 1
    assert ((seen - 200) ** 2 / 200).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001
    assert equal(sampler(seeded(1)), sampler(seeded(1))) and not equal(sampler(seeded(1)), sampler(seeded(2)))


def test_a_pool_sampler_can_thin_out_the_points_of_each_task():
    pool = make_function_tasks(CosMixture(), 6, 20, 10, seeded())
    batch = PoolSampler(pool, 6, support=5, query=10)(seeded(1))
    assert batch.support_x.shape == (6, 5, 2) and batch.query_y.shape == (6, 10, 1)
    pairs = torch.cat([pool.support_x, pool.support_y], 2).flatten(0, 1)  # (120, 3)
    drawn = torch.cat([batch.support_x, batch.support_y], 2).flatten(0, 1)  # (30, 3)
    matches = (drawn[:, None] == pairs).all(2)
    assert (matches.sum(1) == 1).all() and matches.any(0).sum() == 30  # each is a point of the pool, none twice
    tasks = matches.nonzero()[:, 1].view(6, 5) // 20
    assert (tasks == tasks[:, :1]).all()  # and the five of a task come from one function


def test_fresh_functions_never_repeat():
    sampler, generator = FunctionSampler(CosMixture(), 4, 5, batch=8, dtype=torch.float64), seeded()
    first, second = sampler(generator), sampler(generator)
    assert first.support_x.shape == (8, 4, 2) and first.query_y.dtype == torch.float64
    assert not torch.isin(first.support_x, second.support_x).any()
    standardisation = Standardisation.fit(first)
    standardised = FunctionSampler(CosMixture(), 4, 5, 8, standardisation, torch.float64)(seeded())
    assert equal(standardised, standardisation.apply(sampler(seeded())))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: CosMixture(variant="paper"), "variant must be one of"),
        (lambda: Alpine(d=0), "d must be an integer of at least 1"),
        (lambda: Alpine(d=torch.tensor([1, 2])), "d must be an integer of at least 1"),
        (lambda: Alpine(low=3, high=3), "low must be below high"),
        (lambda: make_function_tasks(Alpine(), 2, 0, 3, seeded()), "support must be"),
        (lambda: make_function_pools(Alpine(), 2, 2, 3, 3, seeded(), fit_on="test"), "fit_on must be"),
        (lambda: PoolSampler(make_function_tasks(Alpine(), 2, 3, 3, seeded()), 3), "only 2 tasks"),
        (lambda: PoolSampler(make_function_tasks(Alpine(), 2, 3, 3, seeded()), 1, support=4), "only 3 support points"),
        (lambda: FunctionSampler(Alpine(), 3, 3, batch=0), "batch must be"),
        (lambda: Standardisation.fit(), "at least one pool"),
    ],
)
def test_bad_input_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
