"""What is refused at once, with a reason and a way out: models, losses, initialisations and data that do not fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .tasks import Tasks

if TYPE_CHECKING:
    from .problem import Problem


def takes_phi(loss: Callable) -> bool:
    """Whether a loss is given phi: it has a third argument without a default, one named ``phi``, or takes any number of them.

    A third argument with a default is an option, like those of PyTorch's own losses.
    """
    try:
        parameters = list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values())
    except (TypeError, ValueError):  # built-in functions may have none
        return False
    if any(p.name == "phi" or p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 2 and places[2].default is inspect.Parameter.empty


def check_loss(value: Any, name: str = "loss(prediction, target)") -> Tensor:
    """Refuse a loss that has no gradient."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must return a scalar tensor, but returned a {type(value).__name__}; "
            "pick the entry to minimise, and do not convert it to a number"
        )
    if value.ndim:
        raise ValueError(
            f"{name} must return a scalar, but returned shape {tuple(value.shape)}; average or sum over the points of the task"
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} must return a floating-point tensor, but returned {value.dtype}")
    return value


def check_model(model: nn.Module) -> None:
    """Refuse, with a reason and a way out, what is plainly no pure function of flat parameters (see :class:`Problem`)."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError("the model has no parameters to adapt")
    for name, p in parameters.items():
        if not p.is_floating_point():
            raise ValueError(f"parameter {name!r} is {p.dtype}; only floating-point parameters can follow a gradient flow")
        if p.is_inference():
            raise ValueError(
                f"parameter {name!r} was made in inference mode, which rules out derivatives; build the model outside of it"
            )
    for what in ("dtype", "device"):
        seen = {str(getattr(p, what)) for p in parameters.values()}
        if len(seen) > 1:
            raise ValueError(f"the model's parameters differ in {what} ({', '.join(sorted(seen))}); move them with model.to(...)")
    for name, module in model.named_modules():
        if module.training and getattr(module, "running_mean", None) is not None:
            raise ValueError(
                f"layer {name or 'model'!r} ({type(module).__name__}) keeps running statistics, which every inner step would "
                "change; build it with track_running_stats=False, so that each task uses the statistics of its own batch, or "
                "call model.eval() to use those it has"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) draws a new mask at every call, so the inner loop could not be "
                "replayed backward; call model.eval() or set p=0"
            )


def check_theta(problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> None:
    """Refuse an initialisation that does not fit the model, or tasks in another precision or on another device.

    Raises:
        TypeError: ``theta`` or ``phi`` is no tensor, ``tasks`` are no :class:`Tasks`.
        ValueError: ``theta`` is not ``(P,)``, ``phi`` is not ``(M,)``, or dtypes or devices differ.
    """
    if not isinstance(theta, Tensor) or not isinstance(tasks, Tasks):
        raise TypeError(f"theta must be a tensor and tasks a Tasks, not {type(theta).__name__} and {type(tasks).__name__}")
    if theta.shape != (problem.size,):
        raise ValueError(f"theta has shape {tuple(theta.shape)}, but the model has P={problem.size} parameters: it must be (P,)")
    if theta.device != tasks.device:
        raise ValueError(f"theta is on {theta.device}, the tasks are on {tasks.device}; use tasks.to(theta.device)")
    if torch.nn.utils.parametrize._cache_enabled:
        raise ValueError("parametrize.cached() keeps the weights of other parameters; compute outside of it")
    for name, tensor in tasks.named().items():
        if tensor.is_floating_point() and tensor.dtype != theta.dtype:
            raise ValueError(f"theta is {theta.dtype} but tasks.{name} is {tensor.dtype}; use tasks.to(dtype=theta.dtype)")
    if phi is None:
        return
    if not isinstance(phi, Tensor):
        raise TypeError(f"phi must be a tensor (M,) or None, not {type(phi).__name__}")
    if phi.ndim != 1 or not phi.numel():
        raise ValueError(f"phi has shape {tuple(phi.shape)}; they are one flat tensor (M,), not empty: use phi.reshape(-1)")
    if (phi.dtype, phi.device) != (theta.dtype, theta.device):
        raise ValueError(f"phi is {phi.dtype} on {phi.device} but theta is {theta.dtype} on {theta.device}; use phi.to(theta)")


def not_finite(theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> str | None:
    """Which of the given tensors holds NaN or infinity, in words; ``None`` if none does."""
    for name, given in (("theta", theta), ("phi", phi)):
        if given is not None and not given.isfinite().all():
            return f"{name} is not finite"
    for name, tensor in tasks.named().items():
        lost = ~tensor.isfinite().flatten(1).all(1)  # (B,)
        if lost.any():
            return f"tasks.{name} holds NaN or infinity for tasks {lost.nonzero().flatten().tolist()}"
    return None
