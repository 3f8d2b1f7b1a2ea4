"""Checks that the settings of solvers and methods share. They also turn numbers of other libraries into Python's own."""

from __future__ import annotations

import math
import operator
from typing import Any


def count(settings: Any, name: str) -> None:
    """Make an entry of frozen settings a Python integer that is at least 1.

    Raises:
        TypeError: it is no integer.
        ValueError: it is < 1.
    """
    value, owner = getattr(settings, name), type(settings).__name__
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner} needs an integer {name}, not {value!r}") from None
    if number < 1:
        raise ValueError(f"{owner} needs {name} >= 1, not {number}")
    object.__setattr__(settings, name, number)


def positive(settings: Any, name: str, or_zero: bool = False) -> None:
    """Make an entry of frozen settings a Python float that is finite and > 0, or >= 0.

    Raises:
        TypeError: it is no number.
        ValueError: it is too small, or not finite.
    """
    value, owner = getattr(settings, name), type(settings).__name__
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{owner} needs a number for {name}, not {value!r}") from None
    if not (number > 0 or or_zero and number == 0) or math.isinf(number):
        raise ValueError(f"{owner} needs {name} {'>=' if or_zero else '>'} 0, not {number}")
    object.__setattr__(settings, name, number)


def one_of(settings: Any, name: str, allowed: tuple) -> None:
    """Refuse an entry that is not among those allowed.

    Raises:
        ValueError: it is not.
    """
    if getattr(settings, name) not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, not {getattr(settings, name)!r}")
