"""The meta-gradient as part of PyTorch's autograd, for outer loops of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .meta import MetaGradient, Method, checked, meta_gradient
from .problem import Problem
from .tasks import Ragged
from .validation import ForwardOnly


def meta_loss(method: Method, problem: Problem, theta: Tensor | nn.Module, tasks: Ragged, phi: Tensor | None = None) -> Tensor:
    """The mean query loss () at the adapted parameters, whose ``backward()`` gives the method's meta-gradient.

    So trainers, gradient scalers and distributed wrappers fit around it; what they wrap is a module whose forward returns it. The
    gradient is computed along with the value, unless autograd is off; no graph of the inner loop is kept, and it cannot be
    differentiated once more.

    Args:
        theta: the initialisation (P,), or a module like ``problem.model`` whose own parameters hold it; ``problem.model`` itself
            will do.
        method, problem, tasks, phi: as for :func:`amaml_core.meta_gradient`, which also says what is raised.

    >>> from amaml_core import AMAML, Tasks
    >>> model = nn.Linear(1, 1)
    >>> loss = meta_loss(AMAML(), Problem(model, nn.functional.mse_loss), model, Tasks(*torch.ones(4, 3, 2, 1)))
    >>> loss.backward()
    >>> model.weight.grad.shape
    torch.Size([1, 1])
    """
    if isinstance(theta, (DataParallel, DistributedDataParallel)):
        raise ValueError(
            f"{type(theta).__name__} acts when it is called, which meta_loss does not do: wrap a module whose forward returns "
            "meta_loss"
        )
    if not isinstance(theta, (Tensor, nn.Module)):
        raise TypeError(f"theta must be a tensor (P,) or a module that holds it, not {type(theta).__name__}")
    if isinstance(theta, nn.Module):
        shapes = [[p.shape for p in module.parameters()] for module in (theta, problem.model)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "the module's parameters are not those of problem.model: they must be alike in number, order and shape"
            )
        theta = torch.cat([p.reshape(-1) for p in theta.parameters()])
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (theta, phi))
    if not wanted and getattr(method, "on_divergence", "raise") == "raise":  # else the way back says which tasks to skip
        checked(method, problem, theta, tasks, phi)
        return _mean_loss(meta_gradient(ForwardOnly(method), problem, theta, tasks, phi))
    return _MetaLoss.apply(theta, phi, method, problem, tasks)


def _mean_loss(estimate: MetaGradient) -> Tensor:
    """The mean over the tasks that did not diverge."""
    diverged = estimate.stats.diverged
    return (estimate.query_loss if diverged is None else estimate.query_loss[~diverged]).mean()


class _MetaLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, phi: Tensor | None, method: Method, problem: Problem, tasks: Ragged) -> Tensor:
        estimate = meta_gradient(method, problem, theta, tasks, phi)
        ctx.save_for_backward(estimate.gradient, *([] if phi is None else [estimate.phi_gradient]))
        return _mean_loss(estimate)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("the meta-gradient of meta_loss cannot be differentiated once more; leave out create_graph=True")
        gradients = [weight * gradient for gradient in ctx.saved_tensors]
        return (*gradients, *[None] * (5 - len(gradients)))
