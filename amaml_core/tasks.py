"""Data of a meta-batch: B tasks, each with a support set and a query set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tasks:
    """B tasks of equal size.

    A task asks for a model that was adapted on its S support points and is judged on its Q query points.

    Shapes: support_x (B, S, ...), support_y (B, S, ...), query_x (B, Q, ...), query_y (B, Q, ...).

    Raises:
        TypeError: an entry is not a tensor.
        ValueError: the leading axes disagree, a set is empty, or the tensors live on different devices.

    >>> tasks = Tasks(torch.zeros(8, 5, 2), torch.zeros(8, 5, 1), torch.zeros(8, 9, 2), torch.zeros(8, 9, 1))
    >>> len(tasks), len(tasks[:3]), tasks.query[0].shape
    (8, 3, torch.Size([8, 9, 2]))
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __post_init__(self) -> None:
        named = vars(self)
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"Tasks.{name} must be a torch.Tensor, not {type(tensor).__name__}")
            if tensor.ndim < 2 or 0 in tensor.shape[:2]:
                raise ValueError(
                    f"Tasks.{name} has shape {tuple(tensor.shape)}; it needs a task axis and a point axis, both non-empty"
                )
        for axis, kind, names in (
            (0, "tasks", named),
            (1, "support points", ("support_x", "support_y")),
            (1, "query points", ("query_x", "query_y")),
        ):
            sizes = {name: named[name].shape[axis] for name in names}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"the number of {kind} differs: {sizes}")
        devices = {name: str(tensor.device) for name, tensor in named.items()}
        if len(set(devices.values())) > 1:
            raise ValueError(f"the tensors of Tasks live on different devices: {devices}")

    @property
    def support(self) -> tuple[Tensor, Tensor]:
        """``(support_x, support_y)``, the points to adapt to."""
        return self.support_x, self.support_y

    @property
    def query(self) -> tuple[Tensor, Tensor]:
        """``(query_x, query_y)``, the points to judge by."""
        return self.query_x, self.query_y

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(support_x, support_y, query_x, query_y)``."""
        return *self.support, *self.query

    def __len__(self) -> int:
        return self.support_x.shape[0]

    def __getitem__(self, index: slice | list[int] | Tensor) -> Tasks:
        """The tasks that a slice, a list or an index tensor selects (an integer would drop the task axis: use ``[i:i+1]``)."""
        if isinstance(index, int):
            raise TypeError(f"tasks[{index}] would drop the task axis; write tasks[{index}:{index + 1}]")
        return Tasks(*(tensor[index] for tensor in self.tensors))

    def split(self, size: int | None) -> Iterator[Tasks]:
        """Consecutive chunks of at most ``size`` tasks (all at once for ``None``)."""
        size = len(self) if size is None else size
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tasks:
        """A copy on another device; ``dtype`` touches the floating-point tensors only, class labels stay integers."""
        return Tasks(*(tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None) for tensor in self.tensors))
