"""Checks that the settings of solvers and methods share. They also turn numbers of other libraries into Python's own."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor


def count(settings: Any, name: str, least: int = 1) -> None:
    """Make an entry of frozen settings a Python integer that is at least 1, or ``least``.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small, or does not fit 64 bits.
    """
    value, owner = getattr(settings, name), type(settings).__name__
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner} needs an integer {name}, not {value!r}") from None
    if number < least:
        raise ValueError(f"{owner} needs {name} >= {least}, not {number}")
    if number >= 2**63:
        raise ValueError(f"{owner} needs {name} < 2**63, not {number}")
    object.__setattr__(settings, name, number)


def whole(value: Any, name: str, least: int) -> int:
    """An argument as a Python integer that is at least so large, and fits 64 bits.

    Raises:
        ValueError: it is none.
    """
    try:
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number < 2**63:
        raise ValueError(f"{name} must be a whole number of at least {least} and below 2**63, not {value!r:.80}")
    return number


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
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not (number > 0 or or_zero and number == 0) or math.isinf(number):
        raise ValueError(f"{owner} needs {name} {'>=' if or_zero else '>'} 0, not {number}")
    object.__setattr__(settings, name, number)


def tensor(settings: Any, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """An entry of settings, numbers in a list among them, as a tensor of its own.

    Raises:
        TypeError: it is none.
    """
    value = getattr(settings, name)
    try:
        return torch.as_tensor(value, dtype=dtype).detach().clone()
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{type(settings).__name__} needs numbers for {name}, not {value!r:.100} ({error})") from None


def one_of(settings: Any, name: str, allowed: tuple) -> None:
    """Refuse an entry that is not among those allowed.

    Raises:
        ValueError: it is not.
    """
    if getattr(settings, name) not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, not {getattr(settings, name)!r}")


def instance(settings: Any, name: str, kinds: tuple[type, ...]) -> None:
    """Refuse an entry that is of another kind, a class in place of its instance among them.

    Raises:
        TypeError: it is.
    """
    value = getattr(settings, name)
    if not isinstance(value, kinds):
        known = " or ".join(f"{kind.__name__}(...)" for kind in kinds)
        raise TypeError(f"{type(settings).__name__} needs {known} for {name}, not {value!r}")
