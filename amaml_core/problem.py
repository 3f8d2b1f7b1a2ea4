"""A model and its loss as functions of flat parameters, batched over tasks.

Everything in this package sees a model through four functions of the parameters ``u (B, P)`` of B tasks and of points ``x, y (B, n,
...)``: the prediction, the loss, its gradient, and a Hessian-vector product. ``theta (P,)`` is the shared initialisation.

Where the derivative is taken matters. The loss of **one** task is vmapped over tasks, and ``torch.autograd`` differentiates
the vmapped loss. ``torch.func.vjp`` or ``jvp`` *outside* ``vmap(grad(loss))`` return silently wrong Hessian-vector products
for normalisation layers (PyTorch issue 186256); the tests hold every normalisation layer against finite differences.

The model itself is never called, but a twin of it that holds the parameters ``u``, see :mod:`amaml_core.twins`.
"""

from __future__ import annotations

import copy
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from . import probe
from .checks import check_loss, check_model, takes_phi
from .numerics import exact
from .recent import Recent
from .settings import count
from .tasks import Tasks
from .twins import SHARED, call, parameters_of, part, settings_of, twin

Loss = Callable[..., Tensor]  # (prediction, target), or (prediction, target, phi)
Regularizer = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (u, theta, phi)


_unchanging = threading.local()  # while a call of the package is under way in this thread: states of problems, functions used


@dataclass(frozen=True, eq=False)
class Problem:
    """A learning problem: any ``nn.Module`` and a loss, as functions of flat parameters.

    The model and the loss must be pure: equal inputs give equal results, and buffers stay as they are. That is tried out at the
    first use of a shape, as is whether ``vmap`` over tasks computes what the tasks alone do; where it does not, tasks are run one
    by one, with a warning. A parameter with ``requires_grad=False`` is frozen: it is never adapted, and its meta-gradient is zero.

    Args:
        model: the network. It is read at every call, and never changed.
        loss: ``loss(prediction (n, ...), target (n, ...)) -> scalar`` of one task. One with a third argument is given the
            meta-parameters ``phi (M,)``: loss weights, a learned loss.
        compile: compile the solver's steps (PyTorch's inductor); eager by default. In single precision on a CPU, tanh is then
            computed by ``amaml_core.fast_tanh.rational_tanh``.
        chunk_size: how many tasks are handled at once; ``None`` for all. Small chunks save memory; for convolutions on a
            CPU a chunk of 1 is also the fastest.
        trace: replay the array operations of a solver's step instead of running the model, see ``amaml_core.tracing``.
        trace_after: how many steps a shape must have taken before its step is traced, which costs far more than a step.
        tf32: let a GPU round the factors of float32 products to 10 bits, which is faster and less exact.
        query_loss: judges the adapted parameters in its place, likewise; the loss itself by default.
        regularizer: ``regularizer(u (P,), theta (P,), phi (M,) or None) -> scalar``, added to the support loss of every task: a
            learned weight decay, a prior, any part of the inner field that depends on theta.

    Raises:
        TypeError: ``model`` is no module, or ``loss`` cannot be called or is a class.
        ValueError: the model has no parameters, parameters that are not floating-point or that differ in dtype or device,
            running batch statistics in training mode, or active dropout; or ``chunk_size`` < 1. At the first use of a shape: the
            model or the loss is random, or changes buffers, or computes with other parameters than those it is given.

    >>> problem = Problem(nn.Linear(2, 1), nn.functional.mse_loss)
    >>> problem.initial_parameters().shape
    torch.Size([3])
    """

    model: nn.Module
    loss: Loss
    compile: bool = False
    chunk_size: int | None = None
    trace: bool = True
    tf32: bool = False
    trace_after: int = 100
    query_loss: Loss | None = field(default=None, kw_only=True)
    regularizer: Regularizer | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(self.model).__name__}")
        if not callable(self.loss):
            raise TypeError(f"loss must be a function of (prediction, target), not {type(self.loss).__name__}")
        for name in ("loss", "query_loss", "regularizer"):
            if isinstance(given := getattr(self, name), type):
                raise TypeError(f"{name} is the class {given.__name__}; give an instance of it, {given.__name__}(), or a function")
        for name in ("query_loss", "regularizer"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise TypeError(f"{name} must be a function or None, not {type(getattr(self, name)).__name__}")
        for name in ("compile", "trace", "tf32"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, not {getattr(self, name)!r}; a query loss is given by its name")
        if self.chunk_size is not None:
            count(self, "chunk_size")
        count(self, "trace_after", least=0)
        check_model(self.model)

    def __getstate__(self) -> dict:  # what was found out stays here, and is found out anew elsewhere
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @cached_property
    def graphs(self) -> Recent:
        """The traced steps; see ``amaml_core.tracing``."""
        return Recent(32)

    @cached_property
    def findings(self) -> Recent[bool]:
        """For shapes that were tried out, whether tasks may be batched; see ``amaml_core.probe``."""
        return Recent(1024)

    @cached_property
    def fitting(self) -> Recent[int]:
        """For a number of tasks, the size of the chunks that a GPU's memory was found to hold."""
        return Recent(1024)

    def warn_once(self, topic: str, message: str) -> None:
        """A warning that comes once in the life of a problem."""
        if self.findings.get(topic) is None:
            self.findings.put(topic, True)
            warnings.warn(message, stacklevel=2)

    def forget(self) -> None:
        """Drop what was traced and found out, after a change that no gradient of the support loss shows."""
        for memory in (self.graphs, self.findings, self.fitting):
            memory.clear()

    @property
    def size(self) -> int:
        """P, the number of parameters.

        >>> Problem(nn.Linear(3, 2), nn.functional.mse_loss).size
        8
        """
        return sum(p.numel() for p in self.model.parameters())

    def state(self, device: torch.device) -> tuple:
        """What else than tensors and shapes a call depends on: kinds and plain settings of the modules, hooks, frozen parameters,
        autocast."""
        known = _unchanging.states.get((id(self), device)) if hasattr(_unchanging, "states") else None
        return self._state(device) if known is None else known

    def _state(self, device: torch.device) -> tuple:
        kind, modules = device.type, list(self.model.modules())
        return (
            device,
            tuple([settings_of(module) for module in modules]),
            tuple([p.requires_grad for p in parameters_of(modules)]),
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        )

    @property
    def unchanging(self) -> bool:
        """Whether a call of the package is under way in this thread, which takes the model for unchanged while it lasts."""
        return any(key == id(self) for key, _ in getattr(_unchanging, "states", {}))

    def groups(self, count: int) -> Tensor | None:
        """The group (P,) of each parameter: its tensor's number in ``named_parameters()`` order; ``None`` for one
        group, or one for each parameter.

        Raises:
            ValueError: ``count`` is neither 1 nor the number of parameter tensors nor that of parameters.
        """
        if count in (1, self.size):
            return None
        parameters = list(self.model.parameters())
        if count != len(parameters):
            raise ValueError(
                f"{count} groups of step sizes do not fit the model's {len(parameters)} parameter tensors, nor its P={self.size} "
                "parameters"
            )
        return torch.cat([torch.full((p.numel(),), group, device=p.device) for group, p in enumerate(parameters)])

    def free(self) -> Tensor | None:
        """(P,), true where a parameter is not frozen; ``None`` where none is."""
        parameters = parameters_of(self.model.modules())
        if all([p.requires_grad for p in parameters]):
            return None
        return torch.cat([torch.full((p.numel(),), p.requires_grad, device=p.device) for p in parameters])

    def initial_parameters(self) -> Tensor:
        """The model's own parameters, flat, detached: ``theta (P,)`` in ``named_parameters()`` order.

        >>> model = nn.Linear(1, 1)
        >>> theta = Problem(model, nn.functional.mse_loss).initial_parameters()
        >>> torch.equal(theta, torch.cat([model.weight.flatten(), model.bias]))
        True
        """
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def module(self, theta: Tensor) -> nn.Module:
        """A copy of the model that holds ``theta (P,)``, with parameters of its own.

        Raises:
            ValueError: theta is not ``(P,)``.

        >>> problem = Problem(nn.Linear(1, 1), nn.functional.mse_loss)
        >>> problem.module(torch.tensor([3.0, 1.0]))(torch.tensor([[2.0]])).item()
        7.0
        """
        if theta.shape != (self.size,):
            raise ValueError(f"theta has shape {tuple(theta.shape)}, but the model has P={self.size} parameters: it must be (P,)")
        with torch.inference_mode(False), torch.no_grad():
            attributes = tree_leaves([[v for k, v in vars(m).items() if k not in SHARED] for m in self.model.modules()])
            # deepcopy refuses what a forward pass has computed
            computed = {id(t): t.detach().clone() for t in attributes if isinstance(t, Tensor) and not t.is_leaf}
            module = copy.deepcopy(self.model, computed)
            parameters = list(module.parameters())
            for p, piece in zip(parameters, theta.detach().split([p.numel() for p in parameters]), strict=True):
                p.copy_(piece.view(p.shape))
        return module

    @cached_property
    def _given_phi(self) -> tuple[bool, bool]:
        own = takes_phi(self.loss)
        return own, own if self.query_loss is None else takes_phi(self.query_loss)

    @property
    def inner_phi(self) -> bool:
        """Whether phi may enter what the inner loop minimises."""
        return self._given_phi[0] or self.regularizer is not None

    @property
    def query_phi(self) -> bool:
        """Whether phi enters the query loss itself."""
        return self._given_phi[1]

    def predict(self, u: Tensor, x: Any) -> Tensor:
        """Predictions ``(B, n, ...)`` of B models ``u (B, P)`` at inputs ``x (B, n, ...)``.

        >>> problem = Problem(nn.Linear(1, 1, bias=False), nn.functional.mse_loss)
        >>> u, x, y = torch.tensor([[2.0]]), torch.ones(1, 4, 1), torch.ones(1, 4, 1)  # one task: (2 - 1)² at each of four points
        >>> problem.predict(u, 3 * x).flatten()
        tensor([6., 6., 6., 6.])
        """
        return self._map(self.predict_one, u, x)

    def losses(self, u: Tensor, x: Any, y: Any, *phi: Tensor) -> Tensor:
        """Losses ``(B,)`` of the points ``x, y (B, n, ...)`` at ``u (B, P)``; differentiable. ``phi`` is nothing, or (B, M).

        >>> problem = Problem(nn.Linear(1, 1, bias=False), nn.functional.mse_loss)
        >>> u, x, y = torch.tensor([[2.0]]), torch.ones(1, 4, 1), torch.ones(1, 4, 1)  # one task: (2 - 1)² at each of four points
        >>> problem.losses(u, x, y)
        tensor([1.])
        """
        return self._map(self.loss_one, u, x, y, *phi)

    def query_losses(self, u: Tensor, x: Any, y: Any, *phi: Tensor) -> Tensor:
        """Query losses ``(B,)``, likewise.

        >>> problem = Problem(nn.Linear(1, 1, bias=False), nn.functional.mse_loss, query_loss=nn.functional.l1_loss)
        >>> problem.query_losses(torch.tensor([[3.0]]), torch.ones(1, 4, 1), torch.ones(1, 4, 1))  # |3 - 1|, where the loss is 4
        tensor([2.])
        """
        return self._map(self.query_one, u, x, y, *phi)

    def objectives(self, u: Tensor, theta: Tensor, x: Any, y: Any, *phi: Tensor) -> Tensor:
        """What the inner loop minimises: support losses ``(B,)`` with their regularizer; ``theta (B, P)``."""
        return (
            self._map(self.loss_one, u, x, y, *phi)
            if self.regularizer is None
            else self._map(self.objective_one, u, theta, x, y, *phi)
        )

    def gradient(self, u: Tensor, x: Any, y: Any, *phi: Tensor, create_graph: bool = False) -> Tensor:
        """Gradients ``(B, P)`` of the losses; differentiable in ``u`` if ``create_graph``.

        >>> problem = Problem(nn.Linear(1, 1, bias=False), nn.functional.mse_loss)
        >>> u, x, y = torch.tensor([[2.0]]), torch.ones(1, 4, 1), torch.ones(1, 4, 1)  # one task: (2 - 1)² at each of four points
        >>> problem.gradient(u, x, y)  # 2 (2 - 1)
        tensor([[2.]])
        """
        return self.losses_and_gradient(u, x, y, *phi, create_graph=create_graph)[1]

    def losses_and_gradient(self, u: Tensor, x: Any, y: Any, *phi: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """Losses ``(B,)``, detached, and their gradients ``(B, P)``, from one forward pass.

        >>> problem = Problem(nn.Linear(1, 1, bias=False), nn.functional.mse_loss)
        >>> u, x, y = torch.tensor([[2.0]]), torch.ones(1, 4, 1), torch.ones(1, 4, 1)  # one task: (2 - 1)² at each of four points
        >>> problem.losses_and_gradient(u, x, y)
        (tensor([1.]), tensor([[2.]]))
        """
        values, gradient = slopes(lambda v: self.losses(v, x, y, *phi), u, create_graph)
        return values.detach(), gradient

    def hvp(self, u: Tensor, x: Any, y: Any, v: Tensor) -> Tensor:
        """Hessian-vector products ``(B, P)``: row b is the Hessian of task b's loss at ``u[b]``, times ``v[b]``.

        >>> problem = Problem(nn.Linear(1, 1, bias=False), nn.functional.mse_loss)
        >>> u, x, y = torch.tensor([[2.0]]), torch.ones(1, 4, 1), torch.ones(1, 4, 1)  # one task: (2 - 1)² at each of four points
        >>> problem.hvp(u, x, y, torch.tensor([[3.0]]))  # the second derivative is 2
        tensor([[6.]])
        """
        u = u.detach().requires_grad_()
        gradient = self.gradient(u, x, y, create_graph=True)
        if not gradient.requires_grad:  # a loss linear in u has a constant gradient and no graph
            return torch.zeros_like(v)
        return torch.autograd.grad(gradient, u, v, materialize_grads=True)[0]

    def predict_one(self, u: Tensor, x: Any, replaced: dict[int, Any] | None = None) -> Any:
        """The prediction of one model ``u (P,)`` for ``x (n, ...)``; ``replaced`` maps ids of other tensors to their stand-ins."""
        parameters = parameters_of(self.model.modules())
        pieces = u.split([p.numel() for p in parameters])  # (P,) -> one piece for each parameter
        held = {
            id(p): (piece if p.requires_grad else piece.detach()).view(p.shape) for p, piece in zip(parameters, pieces, strict=True)
        }
        return call(twin(self.model, held | (replaced or {})), x)

    def loss_one(self, u: Tensor, x: Any, y: Any, *phi: Tensor, replaced: dict[int, Any] | None = None) -> Tensor:
        """The support loss of one model ``u (P,)`` for ``x, y (n, ...)``, without the regularizer; ``phi`` is nothing, or (M,)."""
        return self.loss_of(self.predict_one(u, x, replaced), y, *phi)

    def query_one(self, u: Tensor, x: Any, y: Any, *phi: Tensor, replaced: dict[int, Any] | None = None) -> Tensor:
        """The query loss of one model, likewise."""
        return self.loss_of(self.predict_one(u, x, replaced), y, *phi, query=True)

    def objective_one(
        self, u: Tensor, theta: Tensor, x: Any, y: Any, *phi: Tensor, replaced: dict[int, Any] | None = None
    ) -> Tensor:
        """The support loss of one model with the regularizer; ``theta (P,)`` is where its inner loop started."""
        assert self.regularizer is not None
        penalty = check_loss(self.regularizer(u, theta, *(phi or (None,))), "regularizer(u, theta, phi)")
        return self.loss_one(u, x, y, *phi, replaced=replaced) + penalty

    def loss_of(self, prediction: Any, y: Any, *phi: Tensor, query: bool = False) -> Tensor:
        """The value () of the support or the query loss, which may or may not take phi."""
        loss = self.query_loss if query and self.query_loss is not None else self.loss
        return check_loss(loss(prediction, y, *(phi if self._given_phi[query] else ())))

    def batches(self, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> bool:
        """Whether these tasks may be run as a batch, for parameters like ``theta (P,)``; tried out at the first use of a shape.

        Raises:
            ValueError: as :class:`Problem` says.

        >>> problem = Problem(nn.Linear(1, 1), nn.functional.mse_loss)
        >>> problem.batches(problem.initial_parameters(), Tasks(*torch.ones(4, 3, 2, 1)))
        True
        """
        u = theta.expand(len(tasks), -1)  # (P,) -> (B, P)
        given = () if phi is None else (phi.expand(len(tasks), -1),)  # (M,) -> (B, M)
        pairs = [(self.loss_one, tasks.support), (self.query_one, tasks.query)]
        return all([probe.batches(self, function, u, *points, *given) for function, points in pairs])

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Put back the buffers, and refuse, if a computation has changed them, or draws; its settings are read once for all.

        Raises:
            ValueError: it has changed them, or draws random numbers though it drew none when it was tried out, or an operation has
                no second derivative where one is needed.
        """
        before = [(name, b, b._version, b.clone()) for name, b in self.model.named_buffers() if not b.is_inference()]
        device = next(self.model.parameters()).device
        drawn = probe.generators(device)
        used: dict[str, tuple[Any, torch.dtype, Any]] = {}
        outer = getattr(_unchanging, "states", {}), getattr(_unchanging, "used", None)
        _unchanging.states, _unchanging.used = outer[0] | {(id(self), device): self._state(device)}, used
        try:
            yield
            if not all(map(torch.equal, drawn, probe.generators(device))):
                probe.check_draws(used)
        except RuntimeError as error:
            if "random operation" in str(error):  # vmap's words
                raise probe.random() from error
            if re.search("derivative for .* not implemented|differentiate twice", str(error)):
                raise ValueError(
                    f"an operation of the model or the loss has no derivative of the order that this method needs ({error}). "
                    "FOMAML and Reptile need none but the first; or use another operation"
                ) from error
            raise
        finally:
            _unchanging.states, _unchanging.used = outer
            changed = [entry for entry in before if entry[1]._version != entry[2]]
            for _, buffer, _, copy in changed:
                buffer.copy_(copy)
        if changed:
            raise ValueError(
                f"the model changes its buffers {[entry[0] for entry in changed]} for some data, so that each inner step is "
                "another function; call model.eval(), or leave out what keeps running statistics"
            )

    def _map(self, function: Callable[..., Any], u: Tensor, *points: Any) -> Any:
        """``function`` of one task, over the task axis, at most ``chunk_size`` tasks at once."""
        given = (u, *points)
        _note(function, *given)
        tried = part(given, 0, 1) if self.chunk_size == 1 else given
        size = (self.chunk_size or len(u)) if probe.batches(self, function, *tried) else 1
        with exact(self.tf32):
            if size >= len(u):
                return _chunk(function, given)
            return tree_map(_joined, *(_chunk(function, part(given, i, i + size)) for i in range(0, len(u), size)))


def _note(function: Callable[..., Any], u: Tensor, *points: Any) -> None:
    """Keep what a call of the package computes with last: if numbers were drawn meanwhile, it is asked whether this draws them."""
    used = getattr(_unchanging, "used", None)
    if used is not None and type(u) is Tensor and torch._C._functorch.peek_interpreter_stack() is None:  # not of a trace
        used[function.__name__] = function, u.dtype, points


def slopes(losses: Callable[[Tensor], Tensor], u: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Losses (B,) of ``u (B, P)`` and their gradients (B, P), differentiable in ``u`` and all else if ``create_graph``."""
    with torch.enable_grad():
        if not (create_graph and u.requires_grad):
            u = u.detach().requires_grad_()
        values = losses(u)
        # Task b's loss depends on u[b] alone, so the gradient of the sum holds every task's own gradient.
        (gradient,) = torch.autograd.grad(values.sum(), u, create_graph=create_graph)  # (B, P)
    return values, gradient


def _joined(*parts: Any) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]


def _chunk(function: Callable[..., Any], chunk: tuple[Any, ...]) -> Any:
    if len(chunk[0]) > 1:
        return vmap(function)(*chunk)
    # One task alone needs no batching rules: faster, and any module works.
    result = function(*tree_map(lambda t: t[0], chunk))
    return result[None] if isinstance(result, Tensor) else tree_map(lambda t: t[None] if isinstance(t, Tensor) else t, result)
