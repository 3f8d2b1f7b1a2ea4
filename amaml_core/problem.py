"""A model and its loss as functions of flat parameters, batched over tasks.

Everything in this package sees a model through four functions of the parameters ``u (B, P)`` of B tasks: the loss, its
gradient, a Hessian-vector product, and the prediction. ``theta (P,)`` is the shared initialisation.

Where the derivative is taken matters. The loss of **one** task is vmapped over tasks, and ``torch.autograd`` differentiates
the vmapped loss. ``torch.func.vjp`` or ``jvp`` *outside* ``vmap(grad(loss))`` return silently wrong Hessian-vector products
for normalisation layers (PyTorch issue 186256); the tests hold every normalisation layer against finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .tasks import Tasks

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """A learning problem: any ``nn.Module`` and a loss, as functions of flat parameters.

    Args:
        model: the network. Its own parameters are only read, never changed.
        loss: ``loss(prediction (n, ...), target (n, ...)) -> scalar`` of one task.
        compile: compile the solver's steps (PyTorch's inductor); eager by default.
        chunk_size: how many tasks are handled at once; ``None`` for all. Small chunks save memory; for convolutions on a
            CPU a chunk of 1 is also the fastest.
        trace: record the array operations of a solver's step once and replay them, see ``amaml_core.tracing``. The model and
            the loss should be pure functions: what else they do (count, print) happens while they are traced, not at each step.
        tf32: let a GPU round the factors of float32 products to 10 bits, which is faster and less exact.

    Raises:
        ValueError: the model has no parameters, parameters that are not floating-point or that differ in dtype or device,
            running batch statistics, or active dropout; or ``chunk_size`` < 1.
    """

    model: nn.Module
    loss: Loss
    compile: bool = False
    chunk_size: int | None = None
    trace: bool = True
    tf32: bool = False

    def __post_init__(self) -> None:
        check_model(self.model)
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 or None, not {self.chunk_size}")

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: p.shape for name, p in self.model.named_parameters()}

    @cached_property
    def traces(self) -> dict:
        """The graphs made so far; they live as long as the problem does."""
        return {}

    @cached_property
    def fitting(self) -> dict[int, int]:
        """For a number of tasks, the size of the chunks that a GPU's memory was found to hold."""
        return {}

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def groups(self, count: int) -> Tensor | None:
        """The group (P,) of each parameter: its tensor's number in ``named_parameters()`` order; ``None`` for one group.

        Raises:
            ValueError: ``count`` is neither 1 nor the number of parameter tensors.
        """
        if count == 1:
            return None
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        if count != len(sizes):
            raise ValueError(f"{count} groups of step sizes do not fit the model's {len(sizes)} parameter tensors")
        return torch.repeat_interleave(torch.arange(count), torch.tensor(sizes)).to(
            next(self.model.parameters()).device
        )

    def initial_parameters(self) -> Tensor:
        """The model's own parameters, flat, detached: ``theta (P,)`` in ``named_parameters()`` order."""
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def predict(self, u: Tensor, x: Tensor) -> Tensor:
        """Predictions ``(B, n, ...)`` of B models ``u (B, P)`` at inputs ``x (B, n, ...)``."""
        return self._map(self._predict_one, u, x)

    def support_loss(self, u: Tensor, tasks: Tasks) -> Tensor:
        """Support losses ``(B,)`` at ``u (B, P)``; differentiable."""
        return self._map(self._loss_one, u, tasks.support_x, tasks.support_y)

    def query_loss(self, u: Tensor, tasks: Tasks) -> Tensor:
        """Query losses ``(B,)`` at ``u (B, P)``; differentiable."""
        return self._map(self._loss_one, u, tasks.query_x, tasks.query_y)

    def support_gradient(self, u: Tensor, tasks: Tasks, create_graph: bool = False) -> Tensor:
        """Gradients ``(B, P)`` of the support losses; differentiable in ``u`` if ``create_graph``."""
        return self.gradient(u, tasks.support_x, tasks.support_y, create_graph)[1]

    def gradient(self, u: Tensor, x: Tensor, y: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """Losses ``(B,)`` of the points ``x, y (B, n, ...)`` and their gradients ``(B, P)``, from one forward pass."""
        with torch.enable_grad():
            if not (create_graph and u.requires_grad):
                u = u.detach().requires_grad_()
            values = self._map(self._loss_one, u, x, y)  # (B,)
            # Task b's loss depends on u[b] alone, so the gradient of the sum holds every task's own gradient.
            (gradient,) = torch.autograd.grad(values.sum(), u, create_graph=create_graph)  # (B, P)
        return values.detach(), gradient

    def query_gradient(self, u: Tensor, tasks: Tasks) -> Tensor:
        """Gradients ``(B, P)`` of the query losses."""
        return self.query_loss_and_gradient(u, tasks)[1]

    def query_loss_and_gradient(self, u: Tensor, tasks: Tasks) -> tuple[Tensor, Tensor]:
        """Query losses ``(B,)`` and their gradients ``(B, P)``, from one forward pass."""
        return self.gradient(u, tasks.query_x, tasks.query_y)

    def support_hvp(self, u: Tensor, tasks: Tasks, v: Tensor) -> Tensor:
        """Hessian-vector products ``(B, P)``: row b is the Hessian of task b's support loss at ``u[b]``, times ``v[b]``."""
        u = u.detach().requires_grad_()
        gradient = self.support_gradient(u, tasks, create_graph=True)
        if not gradient.requires_grad:  # a loss linear in u has a constant gradient and no graph
            return torch.zeros_like(u)
        return torch.autograd.grad(gradient, u, v, materialize_grads=True)[0]

    def _predict_one(self, u: Tensor, x: Tensor) -> Tensor:
        return functional_call(self.model, self._unflatten(u), (x,))

    def _loss_one(self, u: Tensor, x: Tensor, y: Tensor) -> Tensor:
        value = self.loss(self._predict_one(u, x), y)
        if value.ndim:
            raise ValueError(
                f"loss(prediction, target) must return a scalar, but returned shape {tuple(value.shape)}; "
                "average or sum over the points of the task"
            )
        return value

    def _unflatten(self, u: Tensor) -> dict[str, Tensor]:
        pieces = u.split([math.prod(shape) for shape in self._shapes.values()])  # (P,) -> one piece for each parameter
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def _map(self, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        """``function`` of one task, over the task axis, at most ``chunk_size`` tasks at once."""
        size = self.chunk_size or arguments[0].shape[0]
        chunks = zip(*(argument.split(size) for argument in arguments), strict=True)
        results = [
            # One task alone needs no batching rules: faster, and any module works.
            function(*(a[0] for a in chunk)).unsqueeze(0) if len(chunk[0]) == 1 else vmap(function)(*chunk)
            for chunk in chunks
        ]
        return results[0] if len(results) == 1 else torch.cat(results)


@contextmanager
def precision(problem: Problem) -> Iterator[None]:
    """Allow TF32 on a GPU for as long as this lasts if ``problem.tf32``, forbid it otherwise (PyTorch allows it in places)."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = problem.tf32
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def check_model(model: nn.Module) -> None:
    """Refuse, with a reason and a way out, what flat batched parameters cannot represent (see :class:`Problem`)."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError("the model has no parameters to adapt")
    for name, p in parameters.items():
        if not p.is_floating_point():
            raise ValueError(
                f"parameter {name!r} is {p.dtype}; only floating-point parameters can follow a gradient flow"
            )
    for what in ("dtype", "device"):
        seen = {str(getattr(p, what)) for p in parameters.values()}
        if len(seen) > 1:
            raise ValueError(
                f"the model's parameters differ in {what} ({', '.join(sorted(seen))}); move them with model.to(...)"
            )
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise ValueError(
                f"layer {name or 'model'!r} ({type(module).__name__}) keeps running statistics, which every inner step would "
                "change; build it with track_running_stats=False, so that each task uses the statistics of its own batch"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) draws a new mask at every call, so the inner loop could not be "
                "replayed backward; call model.eval() or set p=0"
            )


def check_theta(problem: Problem, theta: Tensor, tasks: Tasks) -> None:
    """Refuse an initialisation that does not fit the model, or tasks in another precision or on another device.

    Raises:
        ValueError: ``theta`` is not ``(P,)``, or dtypes or devices of theta and tasks differ.
    """
    if theta.shape != (problem.size,):
        raise ValueError(
            f"theta has shape {tuple(theta.shape)}, but the model has P={problem.size} parameters: it must be (P,)"
        )
    if theta.device != tasks.support_x.device:
        raise ValueError(
            f"theta is on {theta.device}, the tasks are on {tasks.support_x.device}; use tasks.to(theta.device)"
        )
    for name in ("support_x", "support_y", "query_x", "query_y"):
        tensor = getattr(tasks, name)
        if tensor.is_floating_point() and tensor.dtype != theta.dtype:
            raise ValueError(
                f"theta is {theta.dtype} but tasks.{name} is {tensor.dtype}; use tasks.to(dtype=theta.dtype)"
            )
