r"""Running a gradient flow backward, and how far it strays from the way it came.

Forward, an error in an eigenvector of the Hessian with eigenvalue a shrinks like :math:`e^{-at}`; backward it grows like
:math:`e^{+at}`. Chapter "Discretise, then optimise?" shows what that does to a method that stores no states.
"""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor

from amaml_core.checks import check_theta
from amaml_core.flow import RK4, Field, Stuck, adaptive_solve, runge_kutta_step
from amaml_core.problem import Problem
from amaml_core.tasks import Tasks


@torch.no_grad()
def reconstruct(
    problem: Problem,
    theta: Tensor,
    tasks: Tasks,
    horizon: float,
    pieces: int = 20,
    steps: int = 10,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100,
) -> pd.DataFrame:
    """Follow the gradient flow to the horizon, then solve it backward from u(T), and compare along the way.

    Args:
        problem: model and loss.
        theta: initialisation (P,).
        tasks: B tasks.
        horizon: T > 0.
        pieces: the two ways are compared at this many equal distances in time.
        steps: RK4 steps of the forward solve in each piece.
        rtol, atol: tolerances of torchdiffeq's dopri5 for the way back.
        max_steps: the reversed flow is stuck if it needs more steps for one piece.

    Returns:
        A tidy table with the columns ``horizon``, ``task``, ``time`` (from T down to 0) and ``distance``: between the
        reconstructed u(t) and the one of the forward solve, over the distance travelled from theta to u(T). NaN where the
        reversed flow is stuck.

    Raises:
        ValueError: a horizon that is not positive, fewer than one piece or step, or theta does not fit the model.
    """
    check_theta(problem, theta, tasks)
    if not horizon > 0 or pieces < 1 or steps < 1:
        raise ValueError(f"reconstruct needs horizon > 0, pieces >= 1 and steps >= 1, not {horizon}, {pieces}, {steps}")

    def field(u: Tensor) -> Tensor:
        return -problem.gradient(u, *tasks.support)

    path = [theta.expand(len(tasks), -1)]  # (B, P) at the ends of the pieces
    for _ in range(pieces):
        u = path[-1]
        for _ in range(steps):
            u = runge_kutta_step(RK4.tableau, field, u, horizon / (pieces * steps))
        path.append(u)
    travelled = (path[-1] - path[0]).norm(dim=1)  # (B,)
    rows, u = [], path[-1]
    for piece in reversed(range(pieces + 1)):
        if piece < pieces:
            u = _backward(field, u, horizon / pieces, rtol, atol, max_steps)
        for task, distance in enumerate(((u - path[piece]).norm(dim=1) / travelled).tolist()):
            rows.append({"horizon": horizon, "task": task, "time": horizon * piece / pieces, "distance": distance})
    return pd.DataFrame(rows)


def _backward(field: Field, u: Tensor, span: float, rtol: float, atol: float, max_steps: int) -> Tensor:
    """The state (B, P) a time ``span`` earlier, or NaN where torchdiffeq cannot get there."""
    try:
        return adaptive_solve(lambda v: -field(v), u, span, rtol, atol, max_steps)[0]
    except Stuck:
        return torch.full_like(u, math.nan)
