r"""tanh for compiled steps in single precision on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def rational_tanh(x: Tensor) -> Tensor:
    r"""tanh to single precision, by 28 products and sums that a processor does for many numbers at once.

    The convergent of depth 13 of :math:`\tanh x=\cfrac{x}{1+\cfrac{x^2}{3+\cfrac{x^2}{5+\dots}}}`, whose relative error is below
    5e-7 for :math:`|x|\le9`, where tanh is 1 in single precision.

    >>> rational_tanh(torch.tensor([0.0, 0.5, 20.0]))
    tensor([0.0000, 0.4621, 1.0000])

    Reference: Lambert's continued fraction; Abramowitz and Stegun, Handbook of mathematical functions, 4.5.70.
    """
    x = x.clamp(-9, 9)
    z = x * x
    above, below = (sum_of_powers(coefficients, z) for coefficients in TANH)
    return (x * above / below).clamp(-1, 1)  # rounding may not exceed what tanh does not


def sum_of_powers(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    """:math:`c_0 + c_1 z + c_2 z^2 + \\dots` by Horner's rule."""
    value = torch.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * z + coefficient
    return value


def _convergent(depth: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients in :math:`x^2` of numerator (over x) and denominator of the continued fraction of tanh, scaled to start at 1."""
    above, below = [1], [2 * depth - 1]  # 1 / (2 depth - 1), the innermost fraction
    for odd in range(2 * depth - 3, 0, -2):  # f -> 1 / (odd + z f)
        shifted = [0, *above]
        length = max(len(below), len(shifted))
        pad = [p + [0] * (length - len(p)) for p in (below, shifted)]
        above, below = below, [odd * b + s for b, s in zip(*pad, strict=True)]
    return tuple(c / above[0] for c in above), tuple(c / below[0] for c in below)


TANH = _convergent(13)
