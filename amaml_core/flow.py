r"""The forward ODE: gradient flow, solved by explicit Runge-Kutta steps.

Adaptation follows :math:`du/dt = f(u) = -\nabla L_\text{support}(u)` from :math:`u(0)=\theta` to the horizon :math:`T`. One step
of Euler's method with step size :math:`h` is one step of gradient descent with learning rate :math:`h`. Chapter "From the
Lagrangian to the adjoint" derives what this module computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

Field = Callable[[Tensor], Tensor]  # u (B, P) -> du/dt (B, P)


class Tableau(NamedTuple):
    """Butcher tableau of an explicit Runge-Kutta method for an autonomous ODE: stage weights ``a``, final weights ``b``."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


@dataclass(frozen=True)
class FixedStep:
    """A Runge-Kutta method with ``steps`` (K) equal steps. Use one of the subclasses, which name the method.

    Raises:
        ValueError: ``steps`` < 1.
    """

    steps: int
    tableau: ClassVar[Tableau]
    order: ClassVar[int]

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__} needs steps >= 1, not {self.steps}")


@dataclass(frozen=True)
class Euler(FixedStep):
    """Euler's method, order 1: gradient descent with learning rate h = T / K."""

    tableau = Tableau(a=((),), b=(1.0,))
    order = 1


@dataclass(frozen=True)
class Heun(FixedStep):
    """Heun's method (explicit trapezoid), order 2, two gradients a step."""

    tableau = Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2))
    order = 2


@dataclass(frozen=True)
class RK4(FixedStep):
    """The classical Runge-Kutta method, order 4, four gradients a step."""

    tableau = Tableau(a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6))
    order = 4


def runge_kutta_step(tableau: Tableau, field: Field, u: Tensor, h: float | Tensor) -> Tensor:
    """One step of size ``h`` from ``u (B, P)``: :math:`u + h \\sum_i b_i k_i` with :math:`k_i = f(u + h \\sum_j a_{ij} k_j)`."""
    slopes: list[Tensor] = []
    for row in tableau.a:
        slopes.append(field(_advance(u, h, row, slopes)))
    return _advance(u, h, tableau.b, slopes)


def _advance(u: Tensor, h: float | Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            u = u + (h * weight) * slope
    return u
