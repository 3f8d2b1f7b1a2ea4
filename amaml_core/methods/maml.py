r"""MAML: differentiate through the unrolled inner loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adjoint import Pullback
from ..problem import Problem
from ..tasks import Tasks
from .descent import Descent, batched, record


@dataclass(frozen=True)
class MAML(Descent):
    r"""Model-agnostic meta-learning.

    Adapts by :math:`u_{k+1} = u_k - \alpha \nabla L_\text{support}(u_k)`; its pullback is reverse-mode differentiation through
    all K steps, whose graph stays alive until the pullback is dropped. Memory grows with K.

    Args:
        lr: inner learning rate :math:`\alpha`.
        steps: inner steps K.

    Reference: Finn, Abbeel, Levine, Model-agnostic meta-learning, ICML 2017.
    """

    lr: float = 0.01
    steps: int = 5

    def __call__(
        self, problem: Problem, theta: Tensor, tasks: Tasks, stats: dict | None = None
    ) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        start = batched(theta, tasks).requires_grad_()
        with torch.enable_grad():
            u = start
            for _ in range(self.steps):
                u = u - self.lr * problem.support_gradient(u, tasks, create_graph=True)
        record(stats, steps=self.steps, gradient_evaluations=self.steps)
        return u.detach(), lambda gradient: torch.autograd.grad(u, start, gradient, retain_graph=True)[0]
