"""Data of a meta-batch: B tasks, each with a support set and a query set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map


@dataclass(frozen=True)
class Tasks:
    """B tasks of equal size. Tasks of different sizes are a list of these, which ``DataLoader(..., collate_fn=list)`` gives.

    A task asks for a model that was adapted on its S support points and is judged on its Q query points.

    Shapes: support_x (B, S, ...), support_y (B, S, ...), query_x (B, Q, ...), query_y (B, Q, ...). An entry may be a tuple of such
    tensors, or a dictionary: a model with several inputs is called as ``model(*x)`` or ``model(**x)``.

    Raises:
        TypeError: an entry is neither a tensor nor a tuple or dictionary of tensors.
        ValueError: the leading axes disagree, a set is empty, or the tensors live on different devices.

    >>> tasks = Tasks(torch.zeros(8, 5, 2), torch.zeros(8, 5, 1), torch.zeros(8, 9, 2), torch.zeros(8, 9, 1))
    >>> len(tasks), len(tasks[:3]), tasks.query[0].shape
    (8, 3, torch.Size([8, 9, 2]))
    """

    support_x: Any
    support_y: Any
    query_x: Any
    query_y: Any

    def __post_init__(self) -> None:
        for name, entry in vars(self).items():
            if not isinstance(entry, (Tensor, tuple, dict)) or not tree_leaves(entry):
                raise TypeError(
                    f"Tasks.{name} must be a torch.Tensor, or a tuple or dictionary of them, not {type(entry).__name__}"
                )
        named = self.named()
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"Tasks.{name} must be a torch.Tensor, not {type(tensor).__name__}")
            if tensor.ndim < 2 or 0 in tensor.shape[:2]:
                raise ValueError(
                    f"Tasks.{name} has shape {tuple(tensor.shape)}; it needs a task axis and a point axis, both non-empty"
                )
        for axis, kind, prefix in ((0, "tasks", ""), (1, "support points", "support"), (1, "query points", "query")):
            sizes = {name: tensor.shape[axis] for name, tensor in named.items() if name.startswith(prefix)}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"the number of {kind} differs: {sizes}")
        devices = {name: str(tensor.device) for name, tensor in named.items()}
        if len(set(devices.values())) > 1:
            raise ValueError(f"the tensors of Tasks live on different devices: {devices}")

    def named(self) -> dict[str, Tensor]:
        """All tensors by name: ``support_x``, or ``support_x[0]`` and ``support_x['mask']`` where an entry has several.

        >>> x = {"text": torch.zeros(2, 5, 7), "mask": torch.ones(2, 5, 7)}
        >>> list(Tasks(x, torch.zeros(2, 5), x, torch.zeros(2, 5)).named())[:3]
        ["support_x['text']", "support_x['mask']", 'support_y']
        """
        return {name + keystr(path): leaf for name, entry in vars(self).items() for path, leaf in tree_flatten_with_path(entry)[0]}

    @property
    def support(self) -> tuple[Any, Any]:
        """``(support_x, support_y)``, the points to adapt to."""
        return self.support_x, self.support_y

    @property
    def query(self) -> tuple[Any, Any]:
        """``(query_x, query_y)``, the points to judge by."""
        return self.query_x, self.query_y

    @property
    def tensors(self) -> tuple[Any, Any, Any, Any]:
        """``(support_x, support_y, query_x, query_y)``."""
        return *self.support, *self.query

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return tree_leaves(self.support_x)[0].device

    @property
    def shots(self) -> int:
        """S, the number of support points."""
        return tree_leaves(self.support_x)[0].shape[1]

    def __len__(self) -> int:
        return tree_leaves(self.support_x)[0].shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Tasks:
        """These tasks with ``function`` applied to each tensor.

        >>> tasks = Tasks(*torch.zeros(4, 8, 5, 1))
        >>> tasks.map(lambda t: t + 1).query_y.mean()
        tensor(1.)
        """
        return Tasks(*(tree_map(function, entry) for entry in self.tensors))

    def __getitem__(self, index: slice | list[int] | Tensor) -> Tasks:
        """The tasks that a slice, a list or an index tensor (n,) selects (an integer would drop the task axis: use ``[i:i+1]``).

        >>> tasks = Tasks(*torch.zeros(4, 8, 5, 1))
        >>> len(tasks[:3]), len(tasks[[0, 5]])
        (3, 2)
        """
        axes = torch.as_tensor(index).ndim if isinstance(index, list) else getattr(index, "ndim", 0)
        if not isinstance(index, slice) and axes != 1:
            raise TypeError(f"tasks[{index!r:.50}] would not keep the task axis; write tasks[i : i + 1], or tasks[[i, j]]")
        return self.map(lambda tensor: tensor[index])

    def split(self, size: int | None) -> Iterator[Tasks]:
        """Consecutive chunks of at most ``size`` tasks (all at once for ``None``).

        >>> tasks = Tasks(*torch.zeros(4, 8, 5, 1))
        >>> [len(chunk) for chunk in tasks.split(3)]
        [3, 3, 2]
        """
        size = len(self) if size is None else size
        if size >= len(self):
            return iter([self])
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Tasks:
        """A copy on another device; ``dtype`` touches the floating-point tensors only, class labels stay integers.

        >>> tasks = Tasks(*torch.zeros(4, 8, 5, 1))
        >>> tasks.to(dtype=torch.float64).support_x.dtype
        torch.float64
        """
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else None, non_blocking))

    def pin_memory(self) -> Tasks:
        """A copy in pinned memory: what ``DataLoader(pin_memory=True)`` asks for."""
        return self.map(Tensor.pin_memory)


Ragged = Tasks | Sequence[Tasks]  # tasks of one size, or a list of tasks of several


def batches_of(tasks: Ragged) -> list[tuple[Tasks, list[int]]]:
    """Tasks of one size each, as large batches as there are, and the place of each task in the given order.

    Raises:
        TypeError: what was given are no :class:`Tasks`.
        ValueError: the list is empty.

    >>> three, two = (Tasks(*torch.zeros(4, b, n, 1)) for b, n in ((3, 5), (2, 9)))
    >>> [(len(batch), places) for batch, places in batches_of([three, two, three])]
    [(6, [0, 1, 2, 5, 6, 7]), (2, [3, 4])]
    """
    if isinstance(tasks, Tasks):
        return [(tasks, list(range(len(tasks))))]
    if not isinstance(tasks, (list, tuple)) or not all(isinstance(part, Tasks) for part in tasks):
        raise TypeError(f"tasks must be a Tasks, or a list of Tasks of different sizes, not {type(tasks).__name__}")
    if not tasks:
        raise ValueError("an empty list of tasks has no meta-gradient")
    alike: dict[tuple, tuple[list[Tasks], list[int]]] = {}
    place = 0
    for part in tasks:
        key = tuple((name, t.shape[1:], t.dtype, t.device) for name, t in part.named().items())
        parts, places = alike.setdefault(key, ([], []))
        parts.append(part)
        places.extend(range(place, place := place + len(part)))
    return [(_joined(parts), places) for parts, places in alike.values()]


def between(groups: Sequence[Tasks], start: int, stop: int) -> list[Tasks]:
    """The tasks from number ``start`` to before ``stop``, in the given order.

    >>> three, two = (Tasks(*torch.zeros(4, b, n, 1)) for b, n in ((3, 5), (2, 9)))
    >>> [len(part) for part in between([three, two], 1, 4)], between([three], 2, 2)
    ([2, 1], [])
    """
    found, place = [], 0
    for part in groups:
        low, high = max(start - place, 0), min(stop - place, len(part))
        if low < high:
            found.append(part[low:high])
        place += len(part)
    return found


def _joined(parts: list[Tasks]) -> Tasks:
    if len(parts) == 1:
        return parts[0]
    return Tasks(
        *(tree_map(lambda *tensors: torch.cat(tensors), *entries) for entries in zip(*(p.tensors for p in parts), strict=True))
    )


def in_order(parts: Sequence[Tensor], places: Sequence[list[int]]) -> Tensor:
    """One row for each task, in the given order, from the rows of the chunks of all batches, one after the other."""
    rows = torch.cat(list(parts))
    if len(places) == 1:
        return rows
    order = torch.tensor([place for batch in places for place in batch], device=rows.device)
    return torch.empty_like(rows).index_copy_(0, order, rows)
