"""Meta-batches from a fixed pool of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from ..tasks import Tasks
from .draws import check_sizes, distinct


@dataclass(frozen=True, eq=False)
class PoolSampler:
    """Meta-batches from a fixed pool of tasks: ``batch`` different tasks each time, on the pool's device.

    With ``support`` and ``query`` each task that is drawn keeps only so many of its points, drawn anew each time
    without replacement: support points from the pool's support points, query points from its query points. (The
    released code trains like this, on 50 or 100 of 1,000 points.) By default all points stay, in their order.

    Raises:
        ValueError: sizes below 1, or more tasks or points wanted than the pool has.

    >>> pool = Tasks(*torch.zeros(4, 20, 10, 1))  # 20 tasks of 10 and 10 points
    >>> tasks = PoolSampler(pool, batch=5, support=3)(torch.Generator().manual_seed(0))
    >>> tasks.support_x.shape, tasks.query_x.shape
    (torch.Size([5, 3, 1]), torch.Size([5, 10, 1]))
    """

    pool: Tasks
    batch: int
    support: int | None = None
    query: int | None = None

    def __post_init__(self) -> None:
        check_sizes(batch=self.batch)
        for name, wanted, there in (
            ("batch", self.batch, len(self.pool)),
            ("support", self.support, self.pool.shots),
            ("query", self.query, tree_leaves(self.pool.query_x)[0].shape[1]),
        ):
            if wanted is None:
                continue
            check_sizes(**{name: wanted})
            if wanted > there:
                what = "tasks" if name == "batch" else f"{name} points for each task"
                raise ValueError(f"{name}={wanted}, but the pool has only {there} {what}")

    def __call__(self, generator: torch.Generator) -> Tasks:
        """B tasks without replacement."""
        tasks = self.pool[distinct((), len(self.pool), self.batch, generator).to(self.pool.device)]
        support_x, support_y = _some_points(tasks.support_x, tasks.support_y, self.support, generator)
        query_x, query_y = _some_points(tasks.query_x, tasks.query_y, self.query, generator)
        return Tasks(support_x, support_y, query_x, query_y)


def _some_points(x: Any, y: Any, k: int | None, generator: torch.Generator) -> tuple[Any, Any]:
    """k random points of each task: tensors x (B, N, ...), y (B, N, ...) -> (B, k, ...) twice."""
    if k is None:
        return x, y
    b, n = tree_leaves(x)[0].shape[:2]
    points = distinct((b,), n, k, generator).to(tree_leaves(x)[0].device)  # (B, k)
    rows = torch.arange(b, device=points.device)[:, None]  # (B, 1)
    return tree_map(lambda t: t[rows, points], (x, y))
