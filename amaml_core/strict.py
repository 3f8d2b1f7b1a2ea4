"""Files that may be damaged are read strictly or not at all: JSON as the standard has it, and digests of what was written."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any


def parse(text: str | bytes) -> Any:
    """JSON in UTF-8, with no more than the standard allows: Python's own reader also takes NaN, and the last of two equal keys.

    Raises:
        ValueError: it is none, or nested too deeply, or has a number that is not finite, or a key twice.

    >>> parse('{"rows": [1, 2.5]}')
    {'rows': [1, 2.5]}
    >>> parse('{"rows": 1, "rows": 2}')
    Traceback (most recent call last):
        ...
    ValueError: the key 'rows' stands there twice
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def digest(content: Any) -> str:
    """SHA-256 of what JSON can hold; the order of keys plays no part.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key[:80]!r} stands there twice")
        content[key] = value
    return content
