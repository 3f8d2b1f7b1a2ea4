"""What is worth keeping between calls: the entries used last, safe under threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """A dictionary of the ``size`` entries that were used last.

    >>> squares = Recent(2)
    >>> for number in (1, 2, 3):
    ...     squares.put(number, number**2)
    >>> squares.get(1), squares.get(3)
    (None, 9)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.RLock()  # an interrupt may leave it held, which is to stop no later call of this thread

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> list[Hashable]:
        """All keys, the one used last at the end."""
        with self._lock:
            return list(self._entries)

    def get(self, key: Hashable) -> Value | None:
        """The entry, or ``None``."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: Hashable, value: Value) -> None:
        """Keep an entry, and drop the one that was not used for longest if there are too many."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self.size:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._entries.clear()
