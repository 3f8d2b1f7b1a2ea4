r"""iMAML: adapt to a proximal optimum and differentiate its optimality condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import tracing
from ..chain import Chain, batched, chain, repeat
from ..flow import DivergenceError, Euler, FixedStep
from ..inner import InnerLoop
from ..kernel import Kernel
from ..linalg import conjugate_gradients
from ..meta import Diagnostics, Pullback
from ..problem import Problem
from ..settings import count, instance, one_of, positive
from ..tasks import Tasks


@dataclass(frozen=True)
class GradientDescent:
    r"""Inner solver of iMAML: steps on :math:`L_\text{s}(u) + \frac\lambda2\|u-\theta\|^2`.

    Args:
        lr: learning rate.
        steps: number of steps K.
        inner: frozen parameters and weight decay change the optimum and its condition, see :class:`IMAML`. Minibatches and clipping
            change the way there alone; the condition is that of the whole support set.
        solver: how a step is taken, for example ``Adam(steps=50)``, whose number of steps counts; gradient descent by default.

    Raises:
        ValueError: ``lr`` is not positive, ``steps`` < 1 or not the solver's, or an optimiser with a decay of its own, for which
            the optimum would not be that of the stated problem.

    >>> IMAML(inner=GradientDescent(lr=0.01, steps=50), regularization=2.0).inner.steps
    50
    """

    lr: float = 0.01
    steps: int = 50
    inner: InnerLoop = field(default=InnerLoop(), kw_only=True)
    solver: FixedStep | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        positive(self, "lr")
        count(self, "steps")
        instance(self, "inner", (InnerLoop,))
        if self.solver is not None:
            instance(self, "solver", (FixedStep,))
            if self.steps not in (50, self.solver.steps):
                raise ValueError(f"steps={self.steps} are not the solver's {self.solver.steps}; leave one of them out")
            if getattr(self.solver, "weight_decay", 0.0):
                raise ValueError(
                    "iMAML has to know of weight decay: set inner=InnerLoop(weight_decay=...), not the optimiser's own"
                )
            object.__setattr__(self, "steps", self.solver.steps)

    def step(
        self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float, phi: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """The steps ``u (B, P) -> u (B, P)`` of the proximal problem around ``theta (P,)``."""
        return repeat(lambda steps: self.chain(problem, theta, tasks, regularization, phi, steps), self.steps)

    def solve(
        self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float, phi: Tensor | None = None
    ) -> tuple[Tensor, tracing.Seen | None]:
        """The adapted parameters (B, P), and what belongs to a step that was traced."""
        steps = self.chain(problem, theta, tasks, regularization, phi, self.steps)
        return steps.adapted(steps.end()), steps.compared

    def chain(self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float, phi: Tensor | None, steps: int) -> Chain:
        """``steps`` steps."""
        kernel = Kernel(problem, (self.solver or Euler(1)).rule, self.inner, proximal=regularization)
        return chain(kernel, theta, tasks, self.lr, steps, self.inner.schedule(steps, tasks), phi)


@dataclass(frozen=True)
class HessianFree:
    r"""Inner solver of iMAML: Newton's method on the proximal problem, with conjugate gradients and a line search.

    Each step solves :math:`(H + \lambda I)d = -g` by conjugate gradients and takes the longest of the steps
    :math:`d, \tfrac12 d, \tfrac14 d, \dots` that lowers the loss by a fraction of what its slope promises (Armijo), for each
    task on its own. A task whose curvature is not positive falls back on what conjugate gradients had reached, at worst
    steepest descent; one for which no step helps stays where it is.

    Args:
        cg_steps: conjugate gradient iterations for each direction.
        steps: Newton steps.
        halvings: the largest number of halvings in the line search.
        slope_share: the fraction of the promised decrease that is asked for.
        inner: frozen parameters and weight decay. A line search needs the whole support set, and has no gradient to clip.

    Raises:
        ValueError: a count < 1, a share outside (0, 1), or minibatches or clipping.

    Reference: Martens, Deep learning via Hessian-free optimization, ICML 2010; iMAML-HF in Rajeswaran et al., 2019.

    >>> IMAML(inner=HessianFree(cg_steps=5), regularization=2.0).inner.halvings
    10
    """

    cg_steps: int = 5
    steps: int = 5
    halvings: int = 10
    slope_share: float = 1e-4
    inner: InnerLoop = field(default=InnerLoop(), kw_only=True)

    def __post_init__(self) -> None:
        for name in ("cg_steps", "steps", "halvings"):
            count(self, name)
        instance(self, "inner", (InnerLoop,))
        positive(self, "slope_share", or_zero=True)
        if not 0 < self.slope_share < 1:
            raise ValueError(f"HessianFree needs 0 < slope_share < 1, not {self.slope_share}")
        if self.inner.minibatch is not None or self.inner.clip_norm is not None:
            raise ValueError("HessianFree takes no minibatches and no clipping: its line search needs the loss of the whole set")

    def step(
        self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float, phi: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """One Newton step ``u (B, P) -> u (B, P)`` of the proximal problem around ``theta (P,)``."""
        whole = chain(Kernel(problem, inner=self.inner, proximal=regularization), theta, tasks, 1.0, 1, phi=phi)
        optimum, given = Optimum(whole.kernel), (whole.theta, whole.phi, *whole.points(0))

        def newton(u: Tensor) -> Tensor:
            at_u = optimum.linearize(u, *given)
            slope = at_u.slope.detach()
            direction = conjugate_gradients(at_u.curvature, slope, self.cg_steps).x
            start, promised = optimum.loss(u, *given), -(slope * direction).sum(1)  # (B,), (B,) negative
            slack = 10 * torch.finfo(u.dtype).eps * start.abs()  # close to the minimum, losses differ by rounding alone

            def lowers(rate: Tensor) -> Tensor:  # (B,) -> (B,)
                return optimum.loss(u + rate[:, None] * direction, *given) <= start + self.slope_share * rate * promised + slack

            rate = torch.ones_like(start)
            for _ in range(self.halvings):
                enough = lowers(rate)
                if enough.all():
                    break
                rate = torch.where(enough, rate, rate / 2)
            following = torch.where(lowers(rate)[:, None], u + rate[:, None] * direction, u)
            known = start.isfinite() & direction.isfinite().all(1)  # else it is not that no step helps: nobody knows
            return torch.where(known[:, None], following, torch.nan)

        return torch.no_grad()(newton)

    def solve(
        self, problem: Problem, theta: Tensor, tasks: Tasks, regularization: float, phi: Tensor | None = None
    ) -> tuple[Tensor, tracing.Seen | None]:
        """The adapted parameters (B, P); no step is traced."""
        step, u = self.step(problem, theta, tasks, regularization, phi), batched(theta, tasks)
        for _ in range(self.steps):
            u = step(u)
        return u, None


@dataclass(frozen=True)
class Optimum:
    r"""The problem whose minimiser iMAML differentiates, :math:`L(u,\varphi) + R(u,\theta,\varphi) + \frac w2\|u\|^2 +
    \frac\lambda2\|u-\theta\|^2`, for the points ``x, y`` and the meta-parameters ``phi (B, M)``.

    Parameters behind a mask, or frozen, stay at theta.
    """

    kernel: Kernel

    def loss(self, u: Tensor, theta: Tensor, phi: Tensor, x: Any, y: Any) -> Tensor:
        """The values (B,)."""
        kernel, given = self.kernel, (phi,) if self.kernel.to_phi(phi) else ()
        decayed = u if kernel.movable is None else u * kernel.movable
        return (
            kernel.problem.objectives(u, theta, x, y, *given)
            + kernel.inner.weight_decay / 2 * decayed.square().sum(1)
            + kernel.proximal / 2 * (u - theta).square().sum(1)
        )

    def linearize(self, u: Tensor, theta: Tensor, phi: Tensor, x: Any, y: Any) -> Linearized:
        """Its slope and curvature at ``u (B, P)``."""
        u, theta, phi = inputs = tuple(t.detach().clone().requires_grad_() for t in (u, theta, phi))
        with torch.enable_grad():
            slope = self.kernel.field(u, theta, phi, x, y)
        return Linearized(slope, inputs, self.kernel.movable)


class Linearized(NamedTuple):
    """A slope (B, P) at u, minus the gradient of the parameters that move, as a function of ``inputs``: u, theta and phi."""

    slope: Tensor
    inputs: tuple[Tensor, ...]
    movable: Tensor | None

    def transposed(self, v: Tensor) -> list[Tensor]:
        """The transposed Jacobians with respect to u (B, P), theta (B, P) and phi (B, M), applied to ``v (B, P)``."""
        return self._pull(self.inputs, v)

    def curvature(self, v: Tensor) -> Tensor:
        """The Hessian applied to ``v (B, P)``, among the parameters that move; the identity among the others."""
        if self.movable is None:
            return self._pull(self.inputs[:1], -v)[0]
        return torch.where(self.movable, self._pull(self.inputs[:1], -v * self.movable)[0], v)

    def _pull(self, inputs: tuple[Tensor, ...], v: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(self.slope, inputs, v, retain_graph=True, allow_unused=True, materialize_grads=True))


@dataclass(frozen=True)
class IMAML:
    r"""Implicit MAML.

    At the minimiser :math:`u^*` of the proximal problem, :math:`du^*/d\theta = (I + H/\lambda)^{-1}`; the pullback solves
    this symmetric system by conjugate gradients. It is exact when both the inner problem and the system are solved exactly.

    In general the optimum obeys :math:`m\odot f(u^*,\theta,\varphi)=0`, where f is the slope of all that is minimised, weight
    decay and a regularizer included, and m says which parameters move; the others stay at theta. With :math:`A=-m\odot\partial_u f`
    on the parameters that move, the implicit function theorem gives, for a query gradient g, the solution x of
    :math:`A^\top x=m\odot g`, and from it the gradients :math:`(1-m)\odot(g - \dots)+\partial_\theta f^\top x` for theta and
    :math:`\partial_\varphi f^\top x` for the meta-parameters. Weight decay w turns the matrix into :math:`I+(H+wI)/\lambda`.

    Args:
        inner: the solver of the inner problem.
        regularization: the weight :math:`\lambda > 0` of the proximal term.
        cg_steps: the largest number of conjugate gradient iterations.
        cg_tolerance: stop at this relative residual; 0 stops by count alone.
        on_negative_curvature: where :math:`I + H/\lambda` proves not to be positive definite, ``u`` is no minimum of the
            proximal problem and the formula has no meaning: ``"raise"``, or ``"truncate"``, which keeps what conjugate
            gradients had reached, as the literature does without saying so (``stats["indefinite"] (B,)`` marks the tasks).

    Raises:
        ValueError: ``regularization`` is not positive, ``cg_steps`` < 1, ``cg_tolerance`` < 0, or an unknown choice.

    Reference: Rajeswaran, Finn, Kakade, Levine, Meta-learning with implicit gradients, NeurIPS 2019.

    >>> IMAML(regularization=2.0, cg_steps=5, on_negative_curvature="truncate").cg_steps
    5
    """

    inner: GradientDescent | HessianFree = GradientDescent()
    regularization: float = 2.0
    cg_steps: int = 5
    cg_tolerance: float = 0.0
    on_negative_curvature: Literal["raise", "truncate"] = "raise"

    def __post_init__(self) -> None:
        instance(self, "inner", (GradientDescent, HessianFree))
        positive(self, "regularization")  # without it the optimum forgets theta
        count(self, "cg_steps")
        positive(self, "cg_tolerance", or_zero=True)
        one_of(self, "on_negative_curvature", ("raise", "truncate"))

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The inner solver, step by step, without a graph.

        >>> from amaml_core import GradientDescent
        >>> problem = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
        >>> theta, tasks = torch.tensor([2.0]), Tasks(*torch.ones(4, 1, 3, 1))  # the loss is (2 - 1)², its gradient 2
        >>> IMAML(inner=GradientDescent(lr=0.1, steps=5), regularization=2.0).inner_step(problem, theta, tasks)(theta[None])
        tensor([[1.8000]])
        """
        return self.inner.step(problem, theta, tasks, self.regularization, phi)

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P), which knows its ``cg_residual`` (B,)."""
        theta = theta.detach()
        u, compared = self.inner.solve(problem, theta, tasks, self.regularization, phi)
        return u, Pullback(lambda gradient: self._pull(problem, theta, tasks, phi, u, compared, gradient))

    def _pull(
        self, problem, theta, tasks, phi, u: Tensor, compared: tracing.Seen | None, gradient: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        plain = InnerLoop(weight_decay=self.inner.inner.weight_decay, mask=self.inner.inner.mask)  # what has a say in the optimum
        whole = chain(Kernel(problem, inner=plain, proximal=self.regularization), theta, tasks, 1.0, 1, phi=phi)
        given = (u, whole.theta, whole.phi, gradient, *whole.points(0))
        solve: Callable = partial(self.implicit, whole.kernel)
        if not self.cg_tolerance:
            name = f"implicit {self.regularization} {self.cg_steps}"  # the rest is the kernel's
            solve = tracing.replayed(compared, problem, partial(solve, fixed=True), given, name, problem.compile)
        to_theta, residual, indefinite, to_phi = solve(*given)
        indefinite = indefinite > 0
        if self.on_negative_curvature == "raise" and indefinite.any():
            worst = indefinite.nonzero().flatten().tolist()
            raise DivergenceError(
                f"the support loss curves down by more than regularization={self.regularization:g} for tasks {worst}: "
                "I + H/regularization is not positive definite, and the adapted parameters are no minimum of the proximal "
                'problem. Raise regularization, take more inner steps, or pass on_negative_curvature="truncate"'
            )
        found = Diagnostics(steps=self.inner.steps, cg_residual=residual, indefinite=indefinite)
        return to_theta, found if phi is None else replace(found, phi_gradient=to_phi)

    def implicit(
        self, kernel: Kernel, u: Tensor, theta: Tensor, phi: Tensor, gradient: Tensor, x: Any, y: Any, fixed: bool = False
    ) -> list[Tensor]:
        """The query gradient (B, P) pulled back to theta (B, P) and to phi (B, M); between them, how well that was solved."""
        at_u = Optimum(kernel).linearize(u, theta, phi, x, y)
        movable, weight = at_u.movable, self.regularization
        solution = conjugate_gradients(
            # divided by the weight of the proximal term: I + H / lambda, and its solution is the gradient
            lambda v: at_u.curvature(v) / weight if movable is None else torch.where(movable, at_u.curvature(v) / weight, v),
            gradient if movable is None else gradient * movable,
            self.cg_steps, self.cg_tolerance, fixed,
        )  # fmt: skip
        result, to_phi = solution.x, torch.zeros_like(phi)
        if phi.shape[1] or movable is not None or kernel.problem.regularizer is not None:
            to_u, result, to_phi = at_u.transposed(solution.x / weight)
            result = result if movable is None else torch.where(movable, result, gradient + to_u + result)
        return [result, solution.residual, solution.indefinite.to(u), to_phi]
