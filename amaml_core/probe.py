"""What is tried out before a model is trusted: that it is a pure function of its parameters, and that ``vmap`` computes it.

A model's class does not tell. Dropout may be a function call, attention draws its own masks, a padding row loses its meaning under
``vmap``, a closure may hold on to the original weights. So the first use of a shape compares what must be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .numerics import exact

if TYPE_CHECKING:
    from .problem import Problem

Function = Callable[..., Any]  # of one task: u (P,), then points (n, ...)


def batches(problem: Problem, function: Function, u: Tensor, *points: Tensor) -> bool:
    """Whether ``function``, the problem's ``predict_one`` or ``loss_one``, may be vmapped over tasks of these shapes.

    Args:
        u: (B, P); its dtype and device count, not its values.
        points: (B, n, ...), of which the first and the last task are tried.

    Raises:
        ValueError: as :func:`check_pure`.
    """
    state = (function.__name__, u.dtype, u.device, problem.state(u.device))
    shapes = tuple((t.shape, t.dtype) for t in points)
    found = problem.findings.get((state, shapes))
    if found is None:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return True  # within a transform of torch.func, values cannot be compared
        with torch.inference_mode(False), exact(problem.tf32):
            theta = problem.initial_parameters().clone().to(u)
            points = tuple(t[[0, -1]].clone() for t in points)  # (2, n, ...)
            telling = all(t.isfinite().all() for t in points)  # data of NaN show nothing that would be worth remembering
            purity = (state, tuple((t.shape[2:], t.dtype) for t in points))
            if problem.findings.get(purity) is None:
                check_pure(problem, function, theta, *(t[0] for t in points))
                if telling:
                    problem.findings.put(purity, True)
            found = len(u) == 1 or _batched_is_right(problem, function, theta, points)
        if telling:
            problem.findings.put((state, shapes), found)
    return found


class _Draws(TorchDispatchMode):
    """Notes which operations draw random numbers, in this thread alone."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def check_pure(problem: Problem, function: Function, theta: Tensor, *points: Tensor) -> None:
    """Refuse a model or a loss that is no pure function of the parameters ``theta (P,)`` for the points ``(n, ...)`` of one task.

    Raises:
        ValueError: it draws random numbers, two equal calls differ, it changes buffers, or it computes with other parameters
            than those it is given.
    """
    buffers = dict(problem.model.named_buffers())
    copies = {id(b): b.clone() for b in buffers.values()}
    with torch.no_grad(), _Draws() as draws:
        first, second = (function(theta, *points, replaced=copies) for _ in range(2))
    changed = [name for name, b in buffers.items() if not torch.equal(copies[id(b)].nan_to_num(), b.nan_to_num())]
    if changed:
        raise ValueError(
            f"a call of the model changes its buffers {changed}, so that each inner step would be another function; call "
            "model.eval(), or leave out what keeps running statistics"
        )
    if draws.names or not _all_close(first, second, 1e3 * torch.finfo(theta.dtype).eps):
        drawn = f" ({draws.names[0]})" if draws.names else ""
        raise ValueError(
            f"the model or the loss is random{drawn}: two equal calls differ, and the inner loop could not be replayed "
            "backward. Call model.eval(), set its dropout to 0, or draw the noise once, as part of the data"
        )
    if function.__name__ == "loss_one":
        _check_reached(problem, theta, *points)


def _check_reached(problem: Problem, theta: Tensor, x: Tensor, y: Tensor) -> None:
    """At the model's own parameters, the gradient by way of flat parameters is the one that the modules themselves have."""
    parameters = dict(problem.model.named_parameters())
    own = {name: p for name, p in parameters.items() if p.requires_grad}
    flat = theta.clone().requires_grad_()
    with torch.enable_grad():
        loss = problem.loss_one(flat, x, y)
        if not loss.requires_grad:
            raise ValueError("the loss depends on no parameter that is free to move: there is nothing to adapt")
        (found,) = torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True)
        pieces = dict(zip(parameters, found.split([p.numel() for p in parameters.values()]), strict=True))
        if any(p.dtype != theta.dtype or p.device != theta.device for p in own.values()):
            return  # the modules cannot be called with these points
        value = problem.loss(problem.twin()(x), y)
        gradients = torch.autograd.grad(value, list(own.values()), allow_unused=True, materialize_grads=True)
    noise = 100 * torch.finfo(theta.dtype).eps * found.norm()
    for name, gradient in zip(own, gradients, strict=True):
        if (pieces[name] - gradient.flatten()).norm() > _tolerance(theta) * gradient.norm() + noise:
            raise ValueError(
                f"the model does not compute with the parameter {name!r} that it is given: something outside its modules holds on "
                "to the original (a closure, a compiled or scripted module). Pass the plain module"
            )


def _batched_is_right(problem: Problem, function: Function, theta: Tensor, points: tuple[Tensor, ...]) -> bool:
    """Compare two tasks in a batch with the same tasks alone; where they differ, say so once."""
    scale = theta.square().mean().sqrt()
    w = theta + 0.1 * torch.where(scale > 0, scale, 1.0) * torch.stack([_direction(theta, s) for s in (1.0, 2.0)])  # (2, P)
    alone = [_values(function, w[b : b + 1], tuple(t[b : b + 1] for t in points), batched=False) for b in (0, 1)]
    try:
        together = _values(function, w, points, batched=True)
        right = len(together) >= len(alone[0]) and all(
            _all_close(t, torch.cat(parts)) for t, *parts in zip(together, *alone, strict=False)
        )
        reason = "its gradients are not those of the tasks alone"
    except Exception as error:  # whatever a batching rule fails with
        right, reason = False, (str(error).strip() or type(error).__name__).splitlines()[0]
    if not right:
        problem.warn_once("batch", f"the model cannot be batched over tasks, which are run one by one: {reason}")
    return right


def _values(function: Function, w: Tensor, points: tuple[Tensor, ...], batched: bool) -> list[Tensor]:
    """The results of the tasks ``w (n, P)``; of a loss also the gradients and, where there is one, a second derivative."""
    w = w.clone().requires_grad_()
    with torch.enable_grad():
        result = vmap(function)(w, *points) if batched else function(w[0], *(t[0] for t in points))
        found = [leaf if batched else leaf[None] for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if function.__name__ == "loss_one":
            (gradient,) = torch.autograd.grad(found[0].sum(), w, create_graph=True)
            found.append(gradient)
            if gradient.requires_grad:
                try:
                    found.append(torch.autograd.grad(gradient, w, _direction(w[0], 3.0).expand_as(w), materialize_grads=True)[0])
                except RuntimeError:  # methods of first order need no second derivative
                    if batched:
                        raise
    return [t.detach() for t in found]


def _direction(theta: Tensor, speed: float) -> Tensor:
    """A fixed vector (P,) that has nothing to do with the model."""
    return (speed * torch.arange(1, len(theta) + 1, device=theta.device)).cos().to(theta.dtype)


def _tolerance(t: Tensor) -> float:
    dtype = torch.get_autocast_dtype(t.device.type) if torch.is_autocast_enabled(t.device.type) else t.dtype
    return max(torch.finfo(dtype).eps, torch.finfo(t.dtype).eps) ** (1 / 3)


def _all_close(a: Any, b: Any, tolerance: float | None = None) -> bool:
    """Whether two results are equal but for rounding; what is not finite in either says nothing."""
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        if isinstance(x, Tensor) and x.is_floating_point():
            if (x - y).norm() > (tolerance or _tolerance(x)) * y.norm():
                return False
        elif isinstance(x, Tensor) and not torch.equal(x, y):
            return False
    return True
