r"""MAML: differentiate through the unrolled inner loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..meta import Diagnostics, Pullback
from ..problem import Problem
from ..tasks import Tasks
from .descent import Descent


@dataclass(frozen=True)
class MAML(Descent):
    r"""Model-agnostic meta-learning.

    Adapts by :math:`u_{k+1} = u_k - \alpha \nabla L_\text{s}(u_k)`, or by an optimiser's steps; its pullback is reverse-mode
    differentiation through all K steps, momenta, clipping and weight decay included, whose graph stays alive until the pullback is
    dropped. Memory grows with K. The pullback of parameters behind a mask is not the identity: what they do to the others counts.

    Learned step sizes (Meta-SGD, MAML++) are those of ``AMAML(solver=Euler(K), step_sizes=...)``, whose gradient is the same.

    Args:
        lr: inner learning rate :math:`\alpha`.
        steps: inner steps K.
        inner: minibatches, weight decay, frozen parameters, clipping.
        solver: how a step is taken, for example ``Adam(steps=5)``, whose number of steps counts; gradient descent by default.

    Reference: Finn, Abbeel, Levine, Model-agnostic meta-learning, ICML 2017.

    >>> MAML(lr=0.01, steps=5).steps
    5
    """

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        steps = self.chain(problem, theta, tasks, phi)
        wanted = [steps.theta.requires_grad_(), *([steps.phi.requires_grad_()] if phi is not None else [])]
        with torch.enable_grad():
            z = steps.initial.view_as(steps.initial)  # another variable than the theta that a regularizer knows
            for k in range(len(steps)):
                z = steps.unrolled(k, z)
            u = steps.adapted(z)

        def pullback(gradient: Tensor) -> tuple[Tensor, Diagnostics]:
            found = torch.autograd.grad(u, wanted, gradient, retain_graph=True, allow_unused=True, materialize_grads=True)
            return found[0], replace(self.diagnostics(), phi_gradient=found[1] if phi is not None else None)

        return u.detach(), Pullback(pullback)
