r"""Inner optimisers with state: momentum and Adam, as solvers beside those of the gradient flow.

The state of the inner loop is then :math:`z = (u, m)` or :math:`(u, m, v)`, laid side by side: (B, 2P) or (B, 3P). One step is
still a map :math:`z_{k+1}=\Phi_k(z_k,\theta,\varphi,h_k)`, and its discrete adjoint the vector-Jacobian product of that map; the
adjoint state has the same parts. The steps are those of ``torch.optim``, with the learning rate h = T / K.
Chapter "Beyond gradient descent" derives both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .flow import Field, FixedStep
from .settings import positive


@dataclass(frozen=True)
class HeavyBall:
    r"""One step of momentum: :math:`m' = \beta m + g`, :math:`u' = u - h m'`; Nesterov's is :math:`u' = u - h(g + \beta m')`."""

    beta: float
    nesterov: bool
    slots = 2
    evaluations = 1

    def step(self, field: Field, z: Tensor, h: Tensor, clock: Tensor, free: Tensor | None) -> Tensor:
        """``z (B, 2P) -> z (B, 2P)``."""
        u, m = z.chunk(2, dim=1)
        g = -field(u)
        m = self.beta * m + g
        return torch.cat([u - h * (g + self.beta * m if self.nesterov else m), m], dim=1)

    def clock(self, k: int) -> tuple[float, ...]:
        """Nothing."""
        return ()


@dataclass(frozen=True)
class AdaptiveMoments:
    r"""One step of Adam, number t = k + 1.

    :math:`m' = \beta_1 m + (1-\beta_1) g`, :math:`v' = \beta_2 v + (1-\beta_2) g^2`,
    :math:`u' = u - h\,\frac{m'}{1-\beta_1^t}\big/\bigl(\sqrt{v'/(1-\beta_2^t)} + \epsilon\bigr)`. Weight decay w adds :math:`wu` to
    g; decoupled, it shrinks u by the factor :math:`1 - hw` before the step.
    """

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    slots = 3
    evaluations = 1

    def step(self, field: Field, z: Tensor, h: Tensor, clock: Tensor, free: Tensor | None) -> Tensor:
        """``z (B, 3P) -> z (B, 3P)``; ``clock (1, 2)`` holds the corrections of the bias, ``free (P,)`` what may move."""
        u, m, v = z.chunk(3, dim=1)
        g = -field(u)
        if self.weight_decay:
            decay = self.weight_decay * (u if free is None else u * free)
            u, g = (u - h * decay, g) if self.decoupled else (u, g + decay)
        m = self.beta1 * m + (1 - self.beta1) * g
        v = self.beta2 * v + (1 - self.beta2) * g * g
        first, second = clock.unbind(1)
        # The root of zero has no derivative. There g and m are zero, too, and the step has the derivative h / eps all the same.
        root = torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0) * second
        return torch.cat([u - h * (first * m) / (root + self.eps), m, v], dim=1)

    def clock(self, k: int) -> tuple[float, ...]:
        """:math:`1/(1-\\beta_1^t)` and :math:`1/\\sqrt{1-\\beta_2^t}`, which in single precision would lose all but four digits."""
        return 1 / (1 - self.beta1 ** (k + 1)), (1 - self.beta2 ** (k + 1)) ** -0.5


def _share(settings: object, name: str) -> None:
    positive(settings, name, or_zero=True)
    if getattr(settings, name) >= 1:
        raise ValueError(f"{type(settings).__name__} needs {name} < 1, not {getattr(settings, name)}")


@dataclass(frozen=True)
class Momentum(FixedStep):
    r"""Gradient descent with momentum, as ``torch.optim.SGD(momentum=beta, nesterov=...)`` takes it.

    With :math:`h=\delta^2` and :math:`\beta=1-\gamma\delta` it is a discretisation of the ball that rolls with friction,
    :math:`\ddot u+\gamma\dot u=-\nabla L_\text{s}(u)`, of order 1 in the step :math:`\delta`.

    Like all solvers it has no learning rate of its own: that is T / K, so ``AMAML(horizon=50 * 0.01, solver=Momentum(50))`` takes
    steps of 0.01.

    Args:
        steps: K.
        beta: the share of the momentum that is kept.
        nesterov: look ahead.

    Raises:
        ValueError: beta outside [0, 1).

    Reference: Polyak, Some methods of speeding up the convergence of iteration methods, 1964.

    >>> Momentum(steps=50, beta=0.9)
    Momentum(steps=50, beta=0.9, nesterov=False)
    """

    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _share(self, "beta")

    @property
    def rule(self) -> HeavyBall:
        """One step."""
        return HeavyBall(self.beta, bool(self.nesterov))


@dataclass(frozen=True)
class Adam(FixedStep):
    r"""Adam, or with ``decoupled`` AdamW, as ``torch.optim`` takes it.

    The learning rate is T / K: ``AMAML(horizon=50 * 0.001, solver=Adam(50))`` takes steps of 0.001, as does
    ``MAML(lr=0.001, solver=Adam(50))``. Where a gradient is close to zero at the first steps, the derivative of a step is about
    :math:`h/\epsilon`: with PyTorch's :math:`\epsilon` meta-gradients through Adam can be huge. A larger ``eps`` tames them.

    Args:
        steps: K.
        beta1, beta2: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: of the parameters that are adapted.
        decoupled: shrink the parameters instead of adding to the gradient.

    Raises:
        ValueError: a beta outside [0, 1), an ``eps`` that is not positive, a negative weight decay.

    References: Kingma and Ba, Adam, ICLR 2015; Loshchilov and Hutter, Decoupled weight decay regularization, ICLR 2019.

    >>> Adam(steps=50).beta2
    0.999
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _share(self, "beta1")
        _share(self, "beta2")
        positive(self, "eps")  # without it a gradient of zero gives 0 / 0
        positive(self, "weight_decay", or_zero=True)

    @property
    def rule(self) -> AdaptiveMoments:
        """One step."""
        return AdaptiveMoments(self.beta1, self.beta2, self.eps, self.weight_decay, bool(self.decoupled))
