"""Synthetic regression: families of random functions, pools of tasks, and their standardisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from ..tasks import Tasks
from .draws import check_sizes, uniform

Variant = Literal["slides", "released"]


class Family(Protocol):
    """A family of random functions on the box [low, high]^d.

    ``draw`` gives the parameters of n functions, one row each, float64; a call evaluates function b at its own inputs,
    parameters (B, ...) and x (B, N, d) -> y (B, N, 1).
    """

    d: int
    low: float
    high: float

    def draw(self, n: int, generator: torch.Generator) -> Tensor: ...

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CosMixture:
    r"""Cosine mixtures, one amplitude A, frequency ω and phase φ for all coordinates.

    ``variant="slides"``, as the authors' slides print it, with A in [0.1, 1], ω in [0.5π, 2π], φ in [3, 6]:

    .. math:: f(x) = -0.1 \sum_i A \cos(\omega x_i + \varphi) - \sum_i x_i^2

    ``variant="released"``, our reading of the released code: no factor 0.1, and the ranges change places, ω in [3π,
    6π], φ in [0.5, 2]; so up to ten times the amplitude at three times the frequency:

    .. math:: f(x) = -\sum_i A \cos(\omega x_i + \varphi) - \sum_i x_i^2

    The slides state no domain. [-1, 1]^d is the usual one of this function, and the released code's.

    Attributes:
        d: number of inputs (2 on the slides).
        variant: which formula.
        low, high: inputs are uniform on [low, high]^d.

    Raises:
        ValueError: an unknown variant, d < 1, or low >= high.

    >>> parameters = torch.tensor([[1.0, 0.0, 0.0]])  # A, ω and φ of one function: a constant cosine
    >>> CosMixture()(parameters, torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))  # -0.1 * 2, and 1 less
    tensor([[[-0.2000],
             [-1.2000]]])
    """

    d: int = 2
    variant: Variant = "slides"
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_family(self)

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of A, ω and φ."""
        if self.variant == "slides":
            return (0.1, 1.0), (0.5 * math.pi, 2 * math.pi), (3.0, 6.0)
        return (0.1, 1.0), (3 * math.pi, 6 * math.pi), (0.5, 2.0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """A, ω and φ of ``n`` functions: (n, 3), float64."""
        return torch.cat([uniform((n, 1), low, high, generator) for low, high in self.ranges], 1)

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Parameters (B, 3), x (B, N, d) -> y (B, N, 1)."""
        amplitude, frequency, phase = parameters[:, :, None, None].unbind(1)  # (B, 1, 1) each
        scale = 0.1 if self.variant == "slides" else 1.0
        return -(scale * amplitude * torch.cos(frequency * x + phase) + x.square()).sum(-1, keepdim=True)


@dataclass(frozen=True)
class Alpine:
    r"""Alpine functions with a phase φ_i in [-5π/12, 5π/12] for each coordinate.

    ``variant="slides"``, as the authors' slides print it:

    .. math:: f(x) = \sum_i |x_i \sin(x_i + \varphi_i) + 0.1 x_i|

    ``variant="released"``, our reading of the released code: every coordinate uses the first phase, shifted by π:

    .. math:: f(x) = \sum_i |x_i \sin(x_i + \pi + \varphi_1) + 0.1 x_i|

    The slides state no domain. [-10, 10]^d is the usual one of this function, and the released code's.
    Both variants draw all d phases, so one seed gives both the same φ_1.

    Attributes and errors: as for :class:`CosMixture`.

    >>> Alpine(d=1)(torch.zeros(1, 1), torch.tensor([[[0.0], [torch.pi / 2]]]))  # 1.1 * π / 2
    tensor([[[0.0000],
             [1.7279]]])
    """

    d: int = 2
    variant: Variant = "slides"
    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        _check_family(self)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """The phases of ``n`` functions: (n, d), float64."""
        return uniform((n, self.d), -5 * math.pi / 12, 5 * math.pi / 12, generator)

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Parameters (B, d), x (B, N, d) -> y (B, N, 1)."""
        phases = parameters[:, None, :] if self.variant == "slides" else parameters[:, None, :1] + math.pi
        return (x * torch.sin(x + phases) + 0.1 * x).abs().sum(-1, keepdim=True)


def _check_family(family: CosMixture | Alpine) -> None:
    check_sizes(d=family.d)
    if family.variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {get_args(Variant)}, not {family.variant!r}")
    if not family.low < family.high:
        raise ValueError(f"the input domain [{family.low}, {family.high}] is empty: low must be below high")


def make_function_tasks(
    family: Family, tasks: int, support: int, query: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tasks:
    """Random functions of a family, each with its own uniform inputs; no noise.

    Args:
        family: which functions.
        tasks: how many functions, B.
        support, query: points of each, S and Q.
        generator: of all draws; they are in float64, so a seed gives the same functions in every dtype.
        dtype: of the result.

    Returns:
        support_x (B, S, d), support_y (B, S, 1), query_x (B, Q, d), query_y (B, Q, 1).

    Raises:
        ValueError: a size below 1.

    >>> tasks = make_function_tasks(Alpine(d=2), 8, 5, 9, torch.Generator().manual_seed(0))
    >>> len(tasks), tasks.support_x.shape, tasks.query_y.shape
    (8, torch.Size([8, 5, 2]), torch.Size([8, 9, 1]))
    """
    check_sizes(tasks=tasks, support=support, query=query)
    parameters = family.draw(tasks, generator)
    x = uniform((tasks, support + query, family.d), family.low, family.high, generator)  # (B, S + Q, d)
    y = family(parameters, x)  # (B, S + Q, 1)
    return Tasks(x[:, :support], y[:, :support], x[:, support:], y[:, support:]).to(dtype=dtype)


@dataclass(frozen=True, eq=False)
class Standardisation:
    """Shift and scale of inputs and targets to mean 0 and standard deviation 1, coordinate by coordinate.

    Attributes:
        x_mean, x_std: (d,).
        y_mean, y_std: (1,).

    >>> tasks = make_function_tasks(CosMixture(), 20, 10, 10, torch.Generator().manual_seed(0))
    >>> units = Standardisation.fit(tasks)
    >>> torch.allclose(units.undo_y(units.apply(tasks).query_y), tasks.query_y, atol=1e-6)
    True
    """

    x_mean: Tensor
    x_std: Tensor
    y_mean: Tensor
    y_std: Tensor

    @classmethod
    def fit(cls, *pools: Tasks) -> Standardisation:
        """Means and standard deviations (divisor n) over all support and query points of all the given tasks.

        ``fit(train)`` is what a learner can know; ``fit(train, test)`` is what the released code does.

        Raises:
            ValueError: nothing to fit on, or a coordinate is constant.
        """
        if not pools:
            raise ValueError("fit needs at least one pool of tasks")
        x = torch.cat([part.flatten(0, 1) for pool in pools for part in (pool.support_x, pool.query_x)])  # (n, d)
        y = torch.cat([part.flatten(0, 1) for pool in pools for part in (pool.support_y, pool.query_y)])  # (n, 1)
        x_std, y_std = x.std(0, correction=0), y.std(0, correction=0)
        for name, std in (("input", x_std), ("target", y_std)):
            if not (std > 0).all():
                constant = (~(std > 0)).nonzero().flatten().tolist()
                raise ValueError(f"{name} coordinates {constant} do not vary (or are not finite), so they cannot be standardised")
        return cls(x.mean(0), x_std, y.mean(0), y_std)

    def apply(self, tasks: Tasks) -> Tasks:
        """The tasks in standardised units."""
        return Tasks(
            (tasks.support_x - self.x_mean) / self.x_std,
            (tasks.support_y - self.y_mean) / self.y_std,
            (tasks.query_x - self.x_mean) / self.x_std,
            (tasks.query_y - self.y_mean) / self.y_std,
        )

    def undo_y(self, y: Tensor) -> Tensor:
        """Standardised targets or predictions back in the function's own units."""
        return y * self.y_std + self.y_mean


class FunctionPools(NamedTuple):
    """Standardised training and test tasks, and the standardisation that made them so.

    >>> pools = make_function_pools(CosMixture(), 6, 4, 10, 10, torch.Generator().manual_seed(0))
    >>> pools._fields
    ('train', 'test', 'standardisation')
    """

    train: Tasks
    test: Tasks
    standardisation: Standardisation


def make_function_pools(
    family: Family,
    train: int,
    test: int,
    support: int,
    query: int,
    generator: torch.Generator,
    fit_on: Literal["train", "all"] = "train",
    dtype: torch.dtype = torch.float32,
) -> FunctionPools:
    """Fixed, standardised tasks for the synthetic evaluation: ``train`` and ``test`` functions, 100 each in the paper.

    Args:
        fit_on: ``"train"`` fits the standardisation on training tasks alone; ``"all"`` on test tasks too, as the
            released code does. The functions and the points are the same either way.

    Raises:
        ValueError: a size below 1, or an unknown ``fit_on``.

    >>> pools = make_function_pools(CosMixture(), 6, 4, 10, 10, torch.Generator().manual_seed(0))
    >>> len(pools.train), len(pools.test)
    (6, 4)
    >>> y = torch.cat([pools.train.support_y, pools.train.query_y])
    >>> bool(y.mean().abs() < 1e-6), bool((y.std(correction=0) - 1).abs() < 1e-6)
    (True, True)
    """
    check_sizes(train=train, test=test)
    if fit_on not in ("train", "all"):
        raise ValueError(f"fit_on must be 'train' or 'all', not {fit_on!r}")
    tasks = make_function_tasks(family, train + test, support, query, generator, torch.float64)
    standardisation = Standardisation.fit(tasks[:train] if fit_on == "train" else tasks)
    standardised = standardisation.apply(tasks).to(dtype=dtype)
    cast = Standardisation(*(value.to(dtype) for value in vars(standardisation).values()))
    return FunctionPools(standardised[:train], standardised[train:], cast)


@dataclass(frozen=True, eq=False)
class FunctionSampler:
    """Meta-batches of functions that were never seen before: every call draws ``batch`` new ones.

    Attributes:
        family: which functions.
        support, query, batch: S, Q and B.
        standardisation: applied to every task, if given (fit it on tasks of the same family).
        dtype: of the tasks.

    Raises:
        ValueError: a size below 1.

    >>> sampler = FunctionSampler(CosMixture(), support=5, query=9, batch=8)
    >>> tasks = sampler(torch.Generator().manual_seed(0))
    >>> tasks.support_x.shape, tasks.query_y.shape
    (torch.Size([8, 5, 2]), torch.Size([8, 9, 1]))
    """

    family: Family
    support: int
    query: int
    batch: int
    standardisation: Standardisation | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_sizes(support=self.support, query=self.query, batch=self.batch)

    def __call__(self, generator: torch.Generator) -> Tasks:
        """B new tasks."""
        tasks = make_function_tasks(self.family, self.batch, self.support, self.query, generator, torch.float64)
        return (self.standardisation.apply(tasks) if self.standardisation else tasks).to(dtype=self.dtype)
