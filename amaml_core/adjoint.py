r"""The backward ODE: the adjoint state lam, swept from the horizon back to t = 0.

The discrete adjoint of a solver is the vector-Jacobian product of its steps :math:`\Phi_k`, applied backward along the
states that the forward solve went through:

.. math:: \lambda_k = (\partial \Phi_k/\partial u)(u_k)^\top \lambda_{k+1}, \qquad \lambda_K = \nabla L_\text{query}(u_K).

For Euler's method this reads :math:`\lambda_k = (I - hH(u_k))\lambda_{k+1}`, one Hessian-vector product a step. No graph spans
more than one step. When the field also depends on theta directly (a proximal term), every step adds
:math:`(\partial \Phi_k/\partial\theta)^\top \lambda_{k+1}` to the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# step(u_k, theta) -> u_{k+1}, all (B, P); theta is the task's own copy of the initialisation
Step = Callable[[Tensor, Tensor], Tensor]
# pullback(gradient at the adapted parameters (B, P)) -> gradient at theta (B, P)
Pullback = Callable[[Tensor], Tensor]


def step_vjp(step: Step, u: Tensor, theta: Tensor, lam: Tensor, theta_enters: bool) -> tuple[Tensor, Tensor | None]:
    """``lam (B, P)`` pulled back through one step: the parts for ``u`` and, if ``theta_enters``, for ``theta``."""
    u = u.detach().requires_grad_()
    theta = theta.detach().requires_grad_(theta_enters)
    with torch.enable_grad():
        end = step(u, theta)
    grads = torch.autograd.grad(end, (u, theta) if theta_enters else (u,), lam)
    return grads[0], grads[1] if theta_enters else None


@dataclass(frozen=True)
class Store:
    """Keep every state of the trajectory: K + 1 times (B, P) numbers, and no state is computed twice."""

    def solve(self, step: Step, theta: Tensor, steps: int, theta_enters: bool) -> tuple[Tensor, Pullback]:
        """Take ``steps`` steps from ``theta (B, P)``; return the last state and the sweep that pulls a gradient back to theta."""
        trajectory = theta.new_empty((steps + 1, *theta.shape))  # (K + 1, B, P)
        trajectory[0] = theta
        for k in range(steps):
            trajectory[k + 1] = step(trajectory[k], theta)

        def sweep(lam: Tensor) -> Tensor:
            direct = torch.zeros_like(lam) if theta_enters else None
            for k in reversed(range(steps)):
                lam, part = step_vjp(step, trajectory[k], theta, lam, theta_enters)
                if theta_enters:
                    direct += part
            return lam + direct if theta_enters else lam

        return trajectory[-1], sweep
