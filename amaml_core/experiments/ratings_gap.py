"""Why are the published errors of collaborative filtering so small? Each hypothesis is tried, one at a time.

A hypothesis changes one thing about the tasks: what the inputs are, which items occur, what stands where a user gave no
rating, whether support and query may share items, how the test adapts, how long training takes. Normalisers need no runs of
their own: :func:`amaml_core.experiments.ratings.normalised` applies them to the recorded errors.

Chapter "Collaborative filtering at full size" shows the records. Also a program:
``python -m amaml_core.experiments.ratings_gap --profile full --out results/full/ratings_gap``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import evaluate, metrics
from ..datasets import RatingData, load_ratings
from ..evaluation import AdamAdaptation
from ..records import Record
from ..samplers import RatingSplits, split_users
from ..tasks import Tasks
from . import ratings
from .cells import Cell, program
from .profiles import RatingsSize, check_profile
from .published import RATINGS_COLUMNS, RATINGS_TABLES

METHODS = ("A-MAML", "FOMAML")
DATA = ("jester-1", "ml-100k")
RECORDS = ratings.RECORDS.parent / "ratings_gap"
INPUTS = 100  # the paper's input dimension
INNER_LR = 0.1  # the largest of the trials, with which a task is learnt by heart the soonest


@dataclass(frozen=True)
class Hypothesis:
    """A guess at the published protocol; the defaults are the protocol of this book.

    Attributes:
        says: the guess in words.
        inputs: ``"one-hot"`` items; the item's ``"number"``; ``"factors"`` of the training users' ratings, or ``"all factors"``,
            of the test users' ratings too; the ratings of an item by 100 ``"raters"``, who are training users.
        items: the 100 ``"most rated"`` or the ``"first"`` 100 of the catalogue.
        fill: what stands where a user gave no rating: nothing, the ``"item mean"``, the ``"user mean"``, or ``"zero"`` stars.
        overlap: query items are ``"disjoint"`` from the support items, ``"independent"`` of them, or ``"contained"``: all
            support items are also query items; or both sets are the ``"same"``.
        adapt: by the method's ``"own"`` inner loop at test time, or by ``"Adam"``, as the released code.
        updates: of meta-training, as a multiple of the usual number.
    """

    says: str
    inputs: Literal["one-hot", "number", "factors", "all factors", "raters"] = "one-hot"
    items: Literal["most rated", "first"] = "most rated"
    fill: Literal["nothing", "item mean", "user mean", "zero"] = "nothing"
    overlap: Literal["disjoint", "independent", "contained", "same"] = "disjoint"
    adapt: Literal["own", "Adam"] = "own"
    updates: int = 1


HYPOTHESES: dict[str, Hypothesis] = {
    "base": Hypothesis("nothing: one-hot items, disjoint sets, known ratings"),
    "longer": Hypothesis("meta-training is four times as long", updates=4),
    "number": Hypothesis("the input is the item's number", inputs="number"),
    "factors": Hypothesis("the inputs are factors of the training users' ratings", inputs="factors"),
    "leak": Hypothesis("the factors know the test users' ratings", inputs="all factors"),
    "raters": Hypothesis("the inputs are the ratings by 100 other users", inputs="raters"),
    "independent": Hypothesis("query items are drawn without regard to the support items", overlap="independent"),
    "contained": Hypothesis("the query set contains the support set", overlap="contained"),
    "same": Hypothesis("query set and support set are the same", overlap="same"),
    "adam": Hypothesis("the test adapts by 1,000 epochs of Adam", adapt="Adam"),
    "item mean": Hypothesis("gaps are filled with the item's mean", fill="item mean"),
    "user mean": Hypothesis("gaps are filled with the user's mean", fill="user mean"),
    "zero": Hypothesis("gaps are filled with zero", fill="zero"),
    "item mean, first": Hypothesis("the same, with the first 100 films", items="first", fill="item mean"),
    "user mean, first": Hypothesis("the same, with the first 100 films", items="first", fill="user mean"),
    "zero, first": Hypothesis("the same, with the first 100 films", items="first", fill="zero"),
}


@dataclass(frozen=True)
class Size:
    """How much a profile does: see :class:`amaml_core.experiments.profiles.RatingsSize`."""

    train_users: int | None
    test_users: int
    meta_steps: int
    inner_steps: int
    test_steps: tuple[int, ...]
    adam_steps: tuple[int, ...]


SIZES = {
    "smoke": Size(30, 20, 4, 10, (0, 10), (0, 10)),
    "book": Size(None, 100, 150, 50, (0, 5, 50), (0, 100, 1000)),
    "full": Size(None, 100, 500, 50, (0, 1, 5, 10, 50, 100, 500), (0, 100, 200, 500, 1000)),
}


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
    overlap: Literal["disjoint", "independent", "contained", "same"] = "disjoint"

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


def prepare(name: str, data: str, support: int, query: int, size: Size, seed: int) -> Setup:
    """The data under a hypothesis; which users are in which part depends on the seed and on who has enough ratings.

    A completed matrix leaves no user out. Its training part is standardised anew.
    """
    hypothesis = HYPOTHESES[name]
    loaded = load_ratings(data)
    kept = _first_items(loaded) if hypothesis.items == "first" else loaded
    least = support + query if hypothesis.fill == "nothing" else 1
    counts = (size.train_users, None, size.test_users)
    splits = split_users(kept, torch.Generator().manual_seed(1000 + seed), counts, d=INPUTS, min_items=least)
    item_mean = splits.train.nanmean(0).nan_to_num(0.0)  # (d,); 0 is the mean of all ratings
    train, test = (complete(matrix, hypothesis.fill, item_mean, splits) for matrix in (splits.train, splits.test))
    known = train[train.isfinite()].double()
    shift, factor = known.mean().item(), known.std(correction=0).item()
    features = item_features(hypothesis.inputs, splits)
    make = partial(GapSampler, features=features, support=support, query=query, overlap=hypothesis.overlap)
    return Setup(
        loaded,
        make((train - shift) / factor, batch=ratings.BATCH),
        make((test - shift) / factor, batch=len(test)),
        splits.mean + splits.std * shift,
        splits.std * factor,
        0.0 if hypothesis.fill == "nothing" else splits.test.isnan().double().mean().item(),
    )


def _first_items(data: RatingData) -> RatingData:
    """Only the ratings of the first 100 items that anybody rated."""
    kept = np.isin(data.item, np.unique(data.item)[:INPUTS])
    return replace(data, user=data.user[kept], item=data.item[kept], rating=data.rating[kept])


def complete(matrix: Tensor, fill: str, item_mean: Tensor, splits: RatingSplits) -> Tensor:
    """The matrix (users, d) with its gaps filled as :class:`Hypothesis` says; a user without ratings has the mean 0."""
    values = {
        "nothing": torch.tensor(torch.nan),
        "item mean": item_mean,
        "user mean": matrix.nanmean(1, keepdim=True).nan_to_num(0.0),
        "zero": torch.tensor(-splits.mean / splits.std),
    }
    return torch.where(matrix.isnan(), values[fill].to(matrix), matrix)


def item_features(inputs: str, splits: RatingSplits) -> Tensor:
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


def cells(profile: str, seed: int | None = None) -> list[Cell]:
    """Hypothesis × data × shots × method. One seed: the question is one of orders of magnitude."""
    check_profile(profile)
    return [
        Cell(
            "ratings_gap",
            {"profile": profile, "hypothesis": name, "data": data, "support": k, "query": m, "method": method},
            seed or 0,
        )
        for name, hypothesis in HYPOTHESES.items()
        for data in DATA
        if data != "jester-1" or hypothesis.items == "most rated"  # Jester-1 has 100 items in all
        for k, m in ratings.SHOTS
        for method in METHODS
    ]


def run(cell: Cell, scratch: Path) -> dict:
    """The figures of one cell: as in :mod:`amaml_core.experiments.ratings`, and the errors of two guesses."""
    c = cell.settings
    size, hypothesis = SIZES[c["profile"]], HYPOTHESES[c["hypothesis"]]
    setup = prepare(c["hypothesis"], c["data"], c["support"], c["query"], size, cell.seed)
    setting = ratings.Setting(c["data"], c["support"], c["query"], INNER_LR)
    sizes = RatingsSize(None, size.test_users, size.meta_steps, size.inner_steps, 5, size.test_steps, 1)
    method = ratings.make_method(c["method"], setting, sizes)
    tasks = setup.test.all_tasks(torch.Generator().manual_seed(2000 + cell.seed))
    problem, theta = ratings.meta_train(
        method, setup.train, setting.meta_lr, size.meta_steps * hypothesis.updates, cell.seed, progress=False,
        compile=c["profile"] == "full",
    )  # fmt: skip
    own = hypothesis.adapt == "own"
    adapts, steps = (method, size.test_steps) if own else (AdamAdaptation(1e-3, 1e-6), size.adam_steps)
    table = evaluate(adapts, problem, theta, tasks, metrics.rmse, steps)
    mean = setup.train.matrix.nanmean(0)  # (d,)
    guesses = {
        "user mean": tasks.support_y.mean(1, keepdim=True).expand_as(tasks.query_y),
        "item means": _query_items(setup, tasks, mean),
    }
    return (
        ratings.errors_by_step(table, size.inner_steps if own else steps[-1])
        | {
            "data": setup.data.description,
            "hypothesis": asdict(hypothesis),
            "inner_lr": setting.inner_lr,
            "filled": setup.filled,
            "train_users": len(setup.train.matrix),
            "scales": ratings.scales(tasks, setup.mean, setup.std, setup.data),
        }
        | {name: ratings.rounded(metrics.rmse(guess, tasks.query_y)) for name, guess in guesses.items()}
    )


def _query_items(setup: Setup, tasks: Tasks, mean: Tensor) -> Tensor:
    """The mean over training users of each query item (B, Q, 1): an item is known by its features."""
    distances = torch.cdist(tasks.query_x.flatten(0, 1), setup.test.features)  # (B Q, d)
    return mean[distances.argmin(1)].view_as(tasks.query_y)


# ------------------------------------------------------------------------------------------------- what the records say

# Ways to write an error as one number: powers of the RMSE over scales. "norm of raw ratings" is a root mean square, "l2 norm" is
# the same without the mean: the root of the sum of squares.
SCORES = (
    *(("RMSE", scale) for scale in ratings.NORMALISERS),
    ("RMSE", "l2 norm"),
    *(("MSE", scale) for scale in ("standard deviation", "norm of raw ratings", "rating scale", "none")),
)


def score(
    record: Record, error: str = "RMSE", scale: str = "none", part: str = "query", step: int | None = None
) -> metrics.Interval:
    """Mean and 95 % interval over test users of one of ``SCORES``; users whose scale is zero are left out.

    Args:
        record: of a cell of this module.
        error, scale: one of ``SCORES``.
        part: ``"query"`` or ``"support"``.
        step: number of inner steps; by default as many as the method was trained for, or the last of Adam's.

    Raises:
        ValueError: fewer than two users have a scale, or the step was not measured.
    """
    figures, c = record.figures, record.configuration
    if step is None:
        own = HYPOTHESES[c["hypothesis"]].adapt == "own"
        step = SIZES[c["profile"]].inner_steps if own else figures["steps"][-1]
    if scale == "l2 norm":
        values = ratings.normalised(figures, "norm of raw ratings", step, part)
        values = values / c["support" if HYPOTHESES[c["hypothesis"]].overlap == "same" else part] ** 0.5
    else:
        values = ratings.normalised(figures, scale, step, part)
    values = values[np.isfinite(values)]
    return metrics.interval(values**2 if error == "MSE" else values)


def quotient(above: metrics.Interval, below: metrics.Interval) -> metrics.Interval:
    """The quotient of two means, with an interval by linear propagation as if the two were independent."""
    value = above.mean / below.mean
    relative = np.hypot(above.half_width / above.mean, below.half_width / below.mean)
    return metrics.Interval(value, abs(value) * relative, min(above.count, below.count))


def published(method: str, data: str, support: int, query: int, table: int = 1) -> metrics.Interval:
    """The paper's number, with its ± as half-width."""
    column = RATINGS_COLUMNS.index((data, support, query))
    return metrics.Interval(*RATINGS_TABLES[table][method][column], 100)


def compare(records: list[Record]) -> pd.DataFrame:
    """How near each hypothesis comes to the paper's numbers, on either set, after any number of steps, in each of ``SCORES``.

    One row for each combination of a hypothesis of which all cells have a record; those that diverged are left out:

    - ``factor``: by what factor ours and the paper's differ, as a geometric mean over data sets, shots and methods; 1 is perfect;
    - ``fall``: the error with 20 to 30 shots over that with 10 to 15; the paper's is near 0.4 throughout;
    - ``spread``: FOMAML's error over A-MAML's; the paper's is near 3 to 4 throughout;
    - ``inside``: the share of the numbers whose interval meets the paper's;
    - ``diverged``: how many cells are left out.

    Args:
        records: of this module's cells, also of those that diverged.
    """
    found = {
        (c["hypothesis"], c["data"], c["support"], c["query"], c["method"]): record
        for record in records
        for c in [record.configuration]
    }
    rows = []
    for name in HYPOTHESES:
        names = ("data", "support", "query", "method")
        wanted = [tuple(c.settings[n] for n in names) for c in cells("full") if c.settings["hypothesis"] == name]
        if not all((name, *key) in found for key in wanted):
            continue
        finished = [key for key in wanted if "diverged" not in found[name, *key].figures]
        if not finished:
            continue
        steps = [step for step in found[name, *finished[0]].figures["steps"] if step]
        for part, step, (error, scale) in product(("query", "support"), steps, SCORES):
            try:
                ours = {key: score(found[name, *key], error, scale, part, step) for key in finished}
            except ValueError:  # constant targets have no standard deviation
                continue
            what = {"hypothesis": name, "set": part, "steps": step, "error": error, "scale": scale}
            rows.append(what | _nearness(ours) | {"diverged": len(wanted) - len(finished)})
    columns = ["hypothesis", "set", "steps", "error", "scale", "factor", "fall", "spread", "inside", "diverged"]
    return pd.DataFrame(rows, columns=columns)


def paper_nearness() -> dict[str, float]:
    """The paper's own ``fall`` and ``spread``, as geometric means over the cells that :func:`compare` compares with."""
    return _nearness({(d, k, m, method): published(method, d, k, m) for d in DATA for k, m in ratings.SHOTS for method in METHODS})


def _nearness(ours: dict[tuple[str, int, int, str], metrics.Interval]) -> dict[str, float]:
    """The comparisons of :func:`compare` of scores by (data, support, query, method)."""
    logs, inside, falls, spreads = [], [], [], []
    for (data, support, query, method), mine in ours.items():
        theirs = published(method, data, support, query)
        logs.append(abs(np.log(max(mine.mean, 1e-12) / theirs.mean)))
        inside.append(abs(mine.mean - theirs.mean) <= mine.half_width + theirs.half_width)
        more_shots, other = (data, *ratings.SHOTS[1], method), (data, support, query, "FOMAML")
        if (support, query) == ratings.SHOTS[0] and more_shots in ours:
            falls.append(np.log(ours[more_shots].mean / mine.mean))
        if method == "A-MAML" and other in ours:
            spreads.append(np.log(ours[other].mean / mine.mean))
    return {
        "factor": float(np.exp(np.mean(logs))),
        "fall": float(np.exp(np.mean(falls))),
        "spread": float(np.exp(np.mean(spreads))),
        "inside": float(np.mean(inside)),
    }


if __name__ == "__main__":
    program(__doc__, cells, run)
