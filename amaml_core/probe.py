"""What is tried out before a model is trusted: that it is a pure function of its parameters, and that ``vmap`` computes it.

A model's class does not tell. Dropout may be a function call, attention draws its own masks, a padding row loses its meaning under
``vmap``, a closure may hold on to the original weights. So the first use of a shape compares what must be equal, and watches every
array operation of one task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from .numerics import exact
from .twins import call, part, twin

if TYPE_CHECKING:
    from .problem import Problem

Function = Callable[..., Any]  # of one task: u (P,), then points (n, ...)
aten = torch.ops.aten


def batches(problem: Problem, function: Function, u: Tensor, *points: Any) -> bool:
    """Whether ``function``, one of the problem's functions of one task, may be vmapped over tasks of these shapes.

    Args:
        u: (B, P); its dtype and device count, not its values.
        points: (B, ...), tensors or tuples and dictionaries of them, of which the first and the last task are tried.

    Raises:
        ValueError: as :func:`check_pure`.
    """
    leaves, structure = tree_flatten(points)
    key = (function.__name__, u.dtype, problem.state(u.device), structure, *[(t.shape, t.dtype) for t in leaves])
    found = problem.findings.get(key)
    if found is None:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return True  # within a transform of torch.func, values cannot be compared
        with torch.inference_mode(False), exact(problem.tf32):
            theta = problem.initial_parameters().clone().to(u)
            points = tree_map(lambda t: t.detach()[[0, -1]].clone(), points)  # (2, ...)
            padded = check_pure(problem, function, theta, *tree_map(lambda t: t[0], points))
            found = len(u) == 1 or _batched_is_right(problem, function, theta, points, padded)
        if all(t.isfinite().all() for t in (theta, *tree_leaves(points))):  # NaN shows nothing that would be worth remembering
            problem.findings.put(key, found)
    return found


def generators(device: torch.device) -> list[Tensor]:
    """The states of PyTorch's random number generators that a computation on the device may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def check_draws(used: dict[str, tuple[Any, torch.dtype, Any]]) -> None:
    """Try the functions out once more, for points (B, ...): numbers were drawn, by them or by another thread.

    Raises:
        ValueError: as :func:`check_pure`.
    """
    for function, dtype, points in used.values():
        problem = function.__self__
        with torch.inference_mode(False), exact(problem.tf32):
            one = tree_map(lambda t: t.detach()[0].clone(), points)
            check_pure(problem, function, problem.initial_parameters().clone().to(dtype), *one)


class _Watch(TorchDispatchMode):
    """Notes what a pure function does not do: draw random numbers, read what it was not given, write to what it did not make."""

    def __init__(self, forbidden: dict[int, str]) -> None:
        super().__init__()
        self.forbidden = forbidden  # address of a storage -> the name of the parameter that lies there
        self.made: set[int] = set()
        self.draws: list[str] = []
        self.reads: list[str] = []
        self.writes: list[int] = []
        self.padded = False  # an embedding has a padding row

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.draws.append(name)
        self.reads += [self.forbidden[p] for p in map(_place, tree_leaves((args, kwargs))) if p in self.forbidden]
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.writes += [p for p in map(_place, tree_leaves(value)) if p and p not in self.made]
        self.padded |= func is aten.embedding.default and len(args) > 2 and args[2] >= 0
        result = func(*args, **kwargs)
        # torch.tensor and its like lift what they have just made, which counts as a view
        fresh = func is aten.lift_fresh.default or not func.is_view
        if func not in (aten.detach.default, aten.alias.default) and fresh:
            self.made.update(p for p in map(_place, tree_leaves(result)) if p)
        return result


def _place(thing: Any) -> int:
    """Where a tensor's numbers lie; 0 for what has none."""
    return thing.untyped_storage().data_ptr() if isinstance(thing, Tensor) and thing.layout == torch.strided else 0


def check_pure(problem: Problem, function: Function, theta: Tensor, *points: Any) -> bool:
    """Refuse a model or a loss that is no pure function of the parameters ``theta (P,)`` for the points ``(n, ...)`` of one task.

    Returns:
        Whether an embedding has a padding row, which ``vmap`` forgets.

    Raises:
        ValueError: it cannot be computed for them, it draws random numbers, two equal calls differ, it changes its parameters,
            buffers or data, or it computes with other parameters than those it is given.
    """
    parameters = dict(problem.model.named_parameters())
    buffers = {name: b for name, b in problem.model.named_buffers() if b is not None}
    places = {_place(p): name for name, p in parameters.items() if _place(p)}  # one without entries has none
    kept = [v for module in problem.model.modules() for v in vars(module).values() if isinstance(v, Tensor)]
    # Nothing of the user's is written to.
    copies = {id(t): t.clone() for t in (*buffers.values(), *kept) if _place(t) not in places}
    given = tree_map(torch.clone, (theta, *points))
    try:
        with torch.enable_grad(), _Watch(places) as watch:
            first, second = (function(*given, replaced=copies) for _ in range(2))
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tree_leaves(points))
        raise ValueError(f"the model and the loss cannot be computed for the points of a task, {shapes}: {error}") from error
    changed = [name for name, b in buffers.items() if not _same(copies.get(id(b), b), b)]
    if changed:
        raise ValueError(
            f"a call of the model changes its buffers {changed}, so that each inner step would be another function; call "
            "model.eval(), or leave out what keeps running statistics"
        )
    if watch.draws or not _same(first, second):
        raise random(f" ({watch.draws[0]})" if watch.draws else "")
    if watch.reads:
        raise ValueError(
            f"the model does not compute with the parameter {watch.reads[0]!r} that it is given: something outside its modules "
            "holds on to the original (a closure, an attribute made from it, a compiled or scripted module). Pass the plain module"
        )
    if watch.writes:
        raise ValueError(
            "a call of the model or the loss writes in place to its parameters, its data or a tensor that it keeps; write to a "
            "copy (inplace=False, x = x - ... in place of x -= ...)"
        )
    if function.__name__ == "loss_one":
        _check_gradient(problem, theta, *points)
    return watch.padded


def random(drawn: str = "") -> ValueError:
    """The refusal of what is random."""
    return ValueError(
        f"the model or the loss is random{drawn}: two equal calls differ, and the inner loop could not be replayed "
        "backward. Call model.eval(), set its dropout to 0, or draw the noise once, as part of the data"
    )


def _check_gradient(problem: Problem, theta: Tensor, x: Any, y: Any, *phi: Tensor) -> None:
    """At the model's own parameters, the gradient by way of flat parameters is the one that the modules themselves have."""
    parameters = dict(problem.model.named_parameters())
    own = {name: p for name, p in parameters.items() if p.requires_grad}
    flat = theta.clone().requires_grad_()

    def slope() -> Tensor:
        loss = problem.loss_one(flat, x, y, *phi)
        if not loss.requires_grad:
            raise ValueError("the loss depends on no parameter that is free to move: there is nothing to adapt")
        return torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True)[0]

    with torch.enable_grad():
        found = slope()
        pieces = dict(zip(parameters, found.split([p.numel() for p in parameters.values()]), strict=True))
        if any(p.dtype != theta.dtype or p.device != theta.device for p in own.values()):
            return  # the modules cannot be called with these points
        value = problem.loss_of(call(twin(problem.model), x), y, *phi)
        gradients = torch.autograd.grad(value, list(own.values()), allow_unused=True, materialize_grads=True)
    noise = 100 * torch.finfo(theta.dtype).eps * found.norm()
    for name, gradient in zip(own, gradients, strict=True):
        if (pieces[name] - gradient.flatten()).norm() > _tolerance(theta) * gradient.norm() + noise:
            with torch.enable_grad():
                if not torch.equal(slope(), found):  # two losses of few digits can be equal by chance
                    raise random()
            if own[name]._backward_hooks:
                raise ValueError(
                    f"the parameter {name!r} has a tensor hook (register_hook) that changes its gradient, and that parameters "
                    "that are adapted do not have: remove it. requires_grad=False freezes it, InnerLoop(mask=...) a part of it"
                )
            raise ValueError(
                f"the model does not compute with the parameter {name!r} that it is given: something outside its modules holds on "
                "to the original (a compiled module). Pass the plain module"
            )


def _batched_is_right(problem: Problem, function: Function, theta: Tensor, points: tuple[Any, ...], padded: bool) -> bool:
    """Compare two tasks in a batch with the same tasks alone; where they differ, say so once."""
    scale = theta.square().mean().sqrt()
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
    theta, right, reason = theta.nan_to_num(0.0, 0.0, 0.0), True, "its gradients are not those of the tasks alone"
    try:
        for size in (scale.expand_as(theta), theta):  # a model may be defined on one side of zero alone
            w = theta + 0.1 * size * torch.stack([_direction(theta, s) for s in (1.0, 2.0)])  # (2, P)
            alone = [_values(function, w[b : b + 1], part(points, b, b + 1), batched=False) for b in (0, 1)]
            together = _values(function, w, points, batched=True)
            right &= len(together) >= len(alone[0]) and all(
                _close(t, torch.cat(parts)) for t, *parts in zip(together, *alone, strict=False)
            )
            if all(t.isfinite().all() for t in together):
                break
    except Exception as error:  # whatever a batching rule fails with
        right, reason = False, (str(error).strip() or type(error).__name__).splitlines()[0]
    if padded:  # seen or not in these two tasks
        right, reason = False, "vmap forgets the padding row of an embedding, and its gradients are not those of the tasks alone"
    if not right:
        problem.warn_once("batch", f"the model cannot be batched over tasks, which are run one by one: {reason}")
    return right


def _values(function: Function, w: Tensor, points: tuple[Any, ...], batched: bool) -> list[Tensor]:
    """The results of the tasks ``w (n, P)``; of a loss also the gradients and, where there is one, a second derivative."""
    w = w.clone().requires_grad_()
    with torch.enable_grad():
        result = vmap(function)(w, *points) if batched else function(w[0], *tree_map(lambda t: t[0], points))
        found = [leaf if batched else leaf[None] for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if function.__name__ != "predict_one" and found[0].requires_grad:
            (gradient,) = torch.autograd.grad(found[0].sum(), w, create_graph=True)
            found.append(gradient)
            if gradient.requires_grad:
                direction = _direction(w[0], 3.0).expand_as(w)
                try:
                    found.append(torch.autograd.grad(gradient, w, direction, materialize_grads=True)[0])
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


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, and finite in the same entries."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite, tolerance = b.isfinite(), _tolerance(a)
    error, size = ((t.where(finite, 0.0)).double().norm() for t in (a - b, b))  # half precision overflows in a norm
    return torch.equal(a.isfinite(), finite) and not error > tolerance * size


def _same(a: Any, b: Any) -> bool:
    """Whether two results are equal, to the bit on a CPU; a GPU may sum in any order."""
    pairs = [(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True) if isinstance(x, Tensor)]
    dense = [(x.detach().to_dense().nan_to_num(), y.detach().to_dense().nan_to_num()) for x, y in pairs]
    return all(torch.equal(x, y) or (x.is_cuda and _close(x, y)) for x, y in dense)
