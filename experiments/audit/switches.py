"""What differs between the paper's meta-gradient and the released one: seven switches, a method that obeys them, and the exact
gradients that it is held against. All formulas are written anew, from what the code does; none of its text is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from amaml_core import AMAML, Euler, Heun, Problem, Tasks, meta_gradient
from amaml_core.chain import Chain, batched, chain
from amaml_core.flow import RungeKutta, Tableau
from amaml_core.kernel import Kernel


@dataclass(frozen=True)
class ThreeEighths(RungeKutta):
    """Kutta's 3/8 rule, of fourth order: what torchdiffeq calls ``rk4``."""

    tableau: ClassVar[Tableau] = Tableau(a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), b=(1 / 8, 3 / 8, 3 / 8, 1 / 8))
    order: ClassVar[int] = 4


SOLVERS = {"Euler": Euler, "Heun": Heun, "RK4": ThreeEighths}


@dataclass(frozen=True)
class Switches:
    """What differs between the paper and the released code, one switch each.

    Attributes:
        inner_proximal: the proximal term is in the loss that is adapted to.
        outer_proximal: the proximal term is in the loss that is judged.
        forward: the solver of the flow.
        adjoint: the solver of the adjoint, on the grid that the flow was stored on; Euler takes the Hessian at the right end.
        backward_steps: ``"n"`` steps back over the n intervals, or ``"n+1"``, with the last one starting at t = 0.
        quadrature: of the proximal term's integral, over all values that the adjoint took: ``"rectangle"`` weighs each with
            h, ``"trapezoid"`` weighs both ends with h / 2. Without the inner proximal term there is no integral.
        wrapped: the left end of Heun's step from t = 0 is the state at T, as an index of -1 gives it; otherwise it is the state
            at 0 once more. It matters for Heun with n + 1 steps alone.
    """

    inner_proximal: bool
    outer_proximal: bool
    forward: Literal["Euler", "Heun", "RK4"]
    adjoint: Literal["Euler", "Heun"]
    backward_steps: Literal["n", "n+1"]
    quadrature: Literal["rectangle", "trapezoid"]
    wrapped: bool

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            allowed = (False, True) if kind is bool else get_args(kind)
            value = getattr(self, name)
            if value not in allowed or isinstance(value, bool) != (kind is bool):
                raise ValueError(f"switch {name} must be one of {allowed}, not {value!r}")


NAMES = tuple(f.name for f in fields(Switches))
RELEASED = Switches(True, True, "RK4", "Euler", "n+1", "rectangle", wrapped=True)
PAPER = Switches(False, False, "Euler", "Heun", "n", "trapezoid", wrapped=False)


def without_proximal(switches: Switches) -> Switches:
    """The same without both proximal terms."""
    return replace(switches, inner_proximal=False, outer_proximal=False)


BARE = without_proximal(RELEASED)
INNER_ALONE = replace(RELEASED, outer_proximal=False)
OUTER_ALONE = replace(RELEASED, inner_proximal=False)


def one_at_a_time(base: Switches, other: Switches) -> dict[str, Switches]:
    """``base`` with one switch after another set as in ``other``: one entry for each switch in which they differ."""
    return {name: replace(base, **{name: getattr(other, name)}) for name in NAMES if getattr(base, name) != getattr(other, name)}


def backward_loops(base: Switches) -> dict[str, Switches]:
    """The backward loops of finding 3, from the released one to a sound one; the forward solve stays."""
    return {
        "Euler, n + 1 steps (released)": base,
        "Euler, n steps": replace(base, backward_steps="n"),
        "Heun, n + 1 steps, wrapped": replace(base, adjoint="Heun"),
        "Heun, n + 1 steps, not wrapped": replace(base, adjoint="Heun", wrapped=False),
        "Heun, n steps": replace(base, adjoint="Heun", backward_steps="n", wrapped=False),
        "Heun, n steps, trapezoid": replace(base, adjoint="Heun", backward_steps="n", quadrature="trapezoid", wrapped=False),
    }


def settings_to_compare() -> list[Switches]:
    """The released and the paper's settings, with each switch of either set as in the other, and all ways through finding 3."""
    found = [RELEASED, *one_at_a_time(RELEASED, PAPER).values(), BARE, *one_at_a_time(BARE, PAPER).values()]
    found += [PAPER, *one_at_a_time(PAPER, RELEASED).values()]
    found += [setting for base in (RELEASED, BARE) for setting in backward_loops(base).values()]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Audited:
    r"""A-MAML under given switches; a method like all others.

    With :math:`h=T/K`, the states :math:`u_0=\theta,\dots,u_K` of the forward solve, and the weights
    :math:`\mu_\text{in}` and :math:`\mu_\text{out}`, which are ``weight`` or 0, the adjoint starts from
    :math:`\lambda_K=\nabla L_\text{q}(u_K)+\mu_\text{out}(u_K-\theta)` and goes back by

    .. math::
        E_k\lambda = \lambda - h(H(u_k)+\mu_\text{in}I)\lambda \quad\text{(Euler)},\qquad
        \tfrac12(\lambda + E_{k-1}E_k\lambda) \quad\text{(Heun)},

    for :math:`k=K,\dots,1` or :math:`k=K,\dots,0`. The meta-gradient is the last value, plus :math:`\mu_\text{in}` times the
    quadrature of all values, plus :math:`\mu_\text{out}(\theta-u_K)`.

    Heun's step is usually written :math:`\lambda-\frac h2(H_k\lambda+H_{k-1}E_k\lambda)`; that is the mean of the old value and
    of two steps of Euler's method.

    Args:
        horizon: T.
        steps: K, called n in the names of the switches.
        switches: what is computed.
        weight: of the proximal terms that are on; 1 in the released code.
    """

    horizon: float
    steps: int
    switches: Switches
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.horizon > 0 and self.steps >= 1 and self.weight >= 0):
            raise ValueError(f"an audit needs horizon > 0, steps >= 1 and weight >= 0, not {self}")

    @property
    def proximal(self) -> tuple[float, float]:
        """The weights of the inner and the outer proximal term."""
        return self.weight * self.switches.inner_proximal, self.weight * self.switches.outer_proximal

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One step of the forward solve, without a graph."""
        flow = self._chain(problem, theta, tasks, SOLVERS[self.switches.forward].tableau)
        return lambda u: flow.forward(0, u)

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        step, states = self.inner_step(problem, theta, tasks), [batched(theta, tasks)]
        for _ in range(self.steps):
            states.append(step(states[-1]))
        start, end = states[0], states[-1]
        # The vector-Jacobian product of a step of gradient descent from u is the step of Euler's adjoint with the Hessian at u.
        descent = self._chain(problem, theta, tasks, Euler.tableau)
        inner, outer = self.proximal

        def euler(k: int, lam: Tensor) -> Tensor:
            u = states[k]
            return descent.backward(0, u, u, descent.start(lam)).lam

        def back(k: int, lam: Tensor) -> Tensor:
            if self.switches.adjoint == "Euler":
                return euler(k, lam)
            left = k - 1 if k else self.steps if self.switches.wrapped else 0
            return (lam + euler(left, euler(k, lam))) / 2

        def pullback(gradient: Tensor) -> Tensor:
            values = [gradient + outer * (end - start)]
            last = 0 if self.switches.backward_steps == "n+1" else 1
            for k in range(self.steps, last - 1, -1):
                values.append(back(k, values[-1]))
            integral = torch.stack(values).sum(0)  # (B, P)
            if self.switches.quadrature == "trapezoid":
                integral = integral - (values[0] + values[-1]) / 2
            return values[-1] + inner * (self.horizon / self.steps) * integral + outer * (start - end)

        return end, pullback

    def _chain(self, problem: Problem, theta: Tensor, tasks: Tasks, tableau: Tableau) -> Chain:
        """One step from any state, by any tableau, on the support loss with the inner proximal term."""
        inner, _ = self.proximal
        return chain(Kernel(problem, tableau, proximal=float(inner)), theta, tasks, self.horizon / self.steps, 1)


@torch.no_grad()
def own_exact(audited: Audited, problem: Problem, theta: Tensor, tasks: Tasks) -> Tensor:
    """The exact gradient (P,) of what the switches adapt by and judge by: what ``audited`` approximates.

    It is the discrete adjoint of the same forward solve with the same proximal terms.
    """
    inner, outer = audited.proximal
    solver = SOLVERS[audited.switches.forward](audited.steps)
    adapted, pullback = AMAML(audited.horizon, solver, proximal=inner)(problem, theta, tasks)
    moved = adapted - theta  # (B, P)
    return (pullback(problem.gradient(adapted, *tasks.query) + outer * moved) - outer * moved).mean(0)


def plain_exact(audited: Audited, problem: Problem, theta: Tensor, tasks: Tasks) -> Tensor:
    """The exact gradient (P,) of plain MAML with as many steps of the same size: what the paper says is computed."""
    return meta_gradient(AMAML(audited.horizon, Euler(audited.steps)), problem, theta, tasks).gradient


class Distance(NamedTuple):
    """How far a gradient is from a reference: the norm of the difference over the reference's, and the cosine between them."""

    error: float
    cosine: float


def distance(found: Tensor, reference: Tensor) -> Distance:
    """The distance of one gradient (P,) from another."""
    error = (found - reference).norm() / reference.norm()
    return Distance(error.item(), torch.cosine_similarity(found, reference, dim=0).item())
