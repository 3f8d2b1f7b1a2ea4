r"""MAML: differentiate through the unrolled inner loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..chain import batched
from ..meta import Diagnostics, Pullback
from ..problem import Problem
from ..tasks import Tasks
from .descent import Descent


@dataclass(frozen=True)
class MAML(Descent):
    r"""Model-agnostic meta-learning.

    Adapts by :math:`u_{k+1} = u_k - \alpha \nabla L_\text{support}(u_k)`; its pullback is reverse-mode differentiation through
    all K steps, whose graph stays alive until the pullback is dropped. Memory grows with K.

    Args:
        lr: inner learning rate :math:`\alpha`.
        steps: inner steps K.

    Reference: Finn, Abbeel, Levine, Model-agnostic meta-learning, ICML 2017.

    >>> MAML(lr=0.01, steps=5)
    MAML(lr=0.01, steps=5)
    """

    lr: float = 0.01
    steps: int = 5

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        start = batched(theta, tasks).requires_grad_()
        with torch.enable_grad():
            u = start
            for _ in range(self.steps):
                u = u - self.lr * problem.gradient(u, *tasks.support, create_graph=True)

        def pullback(gradient: Tensor) -> tuple[Tensor, Diagnostics]:
            return torch.autograd.grad(u, start, gradient, retain_graph=True)[0], self.diagnostics()

        return u.detach(), Pullback(pullback)
