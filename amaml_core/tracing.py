"""Traced steps: the array operations of a solver step and of its adjoint, without the layers of Python above them.

A step runs a model through ``vmap`` and ``torch.autograd.grad``. For a small network these layers cost more than the arithmetic.
Tracing runs through them once for each shape, on tensors without data, and records the plain operations that come out, derivatives
included. From then on the recorded graph runs in place of the step, without autograd, or its compiled form does
(``Problem(compile=True)``). Chapter "From equations to GPU code" measures what both are worth. A trace costs far more
than a step, so a shape is traced when it has taken ``trace_after`` of them before; compiled, at once.

A model that decides by the values of its data cannot be traced, and runs as it is. What a trace cannot see is that the model or
the loss is *changed* afterwards. So every solve compares the slope that the trace gives with the model's own, away from theta.
Where they differ, the trace is dropped. A change that this slope does not show needs ``problem.forget()``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from .fast_tanh import rational_tanh
from .numerics import exact

if TYPE_CHECKING:
    from .chain import Kernel

aten = torch.ops.aten
_tracing = threading.RLock()  # the tracer and the compiler are not made for several threads
CHANGES = 3  # a function that was found changed so often is not traced any more


@dataclass
class Seen:
    """What is known of a kernel for one shape: its steps before the present solve, the graphs of its functions (``None``
    for one that cannot be traced), and how often it was found changed."""

    before: int = 0
    steps: int = 0
    graphs: dict[str, Callable[..., list[Tensor]] | None] = field(default_factory=dict)
    changes: int = 0


def fast(kernel: Kernel, name: str, steps: int, theta: Tensor, h: Tensor, x: Tensor, y: Tensor) -> Callable:
    """A function of the kernel, for one solve: traced if the shape is worth it and can be traced, else as it is.

    Args:
        kernel: whose problem keeps the graphs.
        name: ``"field"``, ``"step"`` or ``"back"``, the last after one of the others in the same solve, whose trace is compared.
        steps: that this solve takes.
        theta: (B, P). h: (1, G). x, y: (B, n, ...).
    """
    problem, own = kernel.problem, getattr(kernel, name)
    if not (problem.trace or problem.compile):
        return own
    tensors = tuple((t.shape, t.dtype, t.device) for t in (theta, h, x, y))
    key = (kernel, tensors, problem.state(theta.device), torch.is_inference_mode_enabled())
    if (seen := problem.graphs.get(key)) is None:
        problem.graphs.put(key, seen := Seen())
    if name != "back":
        seen.before, seen.steps = seen.steps, seen.steps + steps
    if (seen.before < problem.trace_after and not problem.compile) or seen.changes >= CHANGES or seen.graphs.get(name, own) is None:
        return own
    with torch.no_grad(), exact(problem.tf32):
        graph = seen.graphs.get(name)
        if graph is None or name != "back":
            trial = _Trial(kernel, theta, h, x, y)
        if graph is not None and name != "back" and not trial.agrees(name, graph):
            problem.graphs.put(key, seen := Seen(0, steps, changes=seen.changes + 1))
            if not problem.compile:
                return own
            graph = None
        if graph is None:
            with _tracing:
                graph = seen.graphs[name] = _trace(problem.compile, trial, name)
    if graph is None:
        return own
    return graph if name == "back" else lambda *given: graph(*given)[0]


class _Trial:
    """Inputs at which a graph and the kernel's own functions are compared: away from theta, where a term may be flat, and with a
    step that is neither lost in rounding nor far from where it starts."""

    def __init__(self, kernel: Kernel, theta: Tensor, h: Tensor, x: Tensor, y: Tensor) -> None:
        self.kernel = kernel
        scale = theta.square().mean().sqrt()
        away = (torch.arange(theta.shape[1], device=theta.device) + 1.0).cos().to(theta)  # (P,)
        self.u = theta + 0.1 * torch.where(scale > 0, scale, 1.0) * away  # (B, P)
        self.slope = kernel.field(self.u, theta, x, y)  # (B, P)
        size = 0.03 * self.u.norm() / self.slope.norm()
        self.h = torch.where(size.isfinite(), size, 1.0).to(h).expand_as(h)
        self.given = {
            "field": (self.u, theta, x, y),
            "step": (self.u, theta, self.h, x, y),
        }

    def agrees(self, name: str, graph: Callable[..., list[Tensor]]) -> bool:
        """Whether the graph gives every task what the kernel gives it; for Euler's step the slope tells, which is at hand."""
        found = graph(*self.given[name])[0]
        if name == "field":
            return _agree(found, self.slope, torch.zeros_like(found))
        own = self.u + self.h[:, :1] * self.slope if len(self.kernel.tableau.b) == 1 else self.kernel.step(*self.given["step"])
        return _agree(found, own, self.u)

    def inputs(self, name: str) -> tuple[Tensor, ...]:
        """All inputs of the function."""
        if name != "back":
            return self.given[name]
        u, theta, h, x, y = self.given["step"]
        end = self.kernel.step(u, theta, h, x, y)
        sizes = h.expand(len(u), -1) if self.kernel.sensitivities else h
        return u, end, theta, sizes, x, y, u.sin()  # any direction does


def _agree(found: Tensor, expected: Tensor, start: Tensor) -> bool:
    """Whether two changes from ``start`` are the same but for rounding; what is not finite says nothing."""
    eps = torch.finfo(expected.dtype).eps
    bound = 3 * eps**0.5 * (expected - start).norm(dim=1) + 100 * eps * expected.norm(dim=1)  # (B,)
    return not ((found - expected).norm(dim=1) > bound).any()


def _trace(compiled: bool, trial: _Trial, name: str) -> Callable[..., list[Tensor]] | None:
    """The graph of a function, or ``None`` where there can be none (with a warning if it was to be compiled)."""
    given, function = trial.inputs(name), getattr(trial.kernel, name)
    expected = _listed(function(*given))  # first, so that the model's own errors are the caller's
    make, on_gpu = _compile if compiled else _interpret, given[0].is_cuda
    if on_gpu:
        make = partial(_capture, make)
    try:
        graph = make(function, *given)
        pairs = list(zip(graph(*given), expected, strict=True))
        if compiled or on_gpu:
            same = all(_agree(found, own, given[0] if name == "step" else torch.zeros_like(own)) for found, own in pairs)
        else:  # to the bit, so that it does not matter to a result which of its steps were traced
            same = all(torch.equal(found.nan_to_num(), own.nan_to_num()) for found, own in pairs)
        reason = "" if same else "the traced step does not give what the model gives"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tracing runs the user's model, and the compiler may fail in its own ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not reason:
        return graph
    if compiled:
        trial.kernel.problem.warn_once("compile", f"the inner step cannot be compiled and runs eagerly: {reason}")
    return None


def _listed(result: Tensor | list[Tensor]) -> list[Tensor]:
    return result if isinstance(result, list) else [result]


def _graph(function: Callable, inputs: list[Tensor], decompositions: dict | None = None) -> GraphModule:
    listed = lambda *arguments: _listed(function(*arguments))  # noqa: E731
    graph = make_fx(listed, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    _simplify(graph)
    return graph


def _interpret(function: Callable, *inputs: Tensor) -> Callable[..., list[Tensor]]:
    graph = _graph(function, _contiguous(*(t.detach() for t in inputs)))
    for node in graph.graph.nodes:  # some kernels lay out their results in another way than they tell the tracer
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    graph.recompile()
    return lambda *given: graph.forward(*_contiguous(*given))


def _compile(function: Callable, *inputs: Tensor) -> Callable[..., list[Tensor]]:
    given: list[Any] = _contiguous(*(t.detach().clone() for t in inputs))
    on_gpu, single = given[0].is_cuda, given[0].dtype == torch.float32
    graph = _graph(function, given, None if on_gpu or not single else {aten.tanh.default: rational_tanh})
    run = torch._inductor.compile(graph, given, None if on_gpu else {"cpp_wrapper": True})
    return lambda *given: list(run(*_contiguous(*given)))


def _capture(make: Callable, function: Callable, *inputs: Tensor) -> Callable[..., list[Tensor]]:
    """The function that ``make`` gives, as a CUDA graph: all its kernels are launched at once, from and to fixed addresses."""
    run = make(function, *inputs)
    held = [t.detach().contiguous().clone() for t in inputs]
    stream = torch.cuda.Stream(inputs[0].device)
    stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
    with torch.cuda.stream(stream):  # libraries allocate their workspaces before the capture
        for _ in range(3):
            run(*held)
    torch.cuda.current_stream(inputs[0].device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = run(*held)
    copied: list[tuple] = [(lambda: None, 0)] * len(held)  # theta and the data stay the same for all steps of a solve
    alone = threading.Lock()  # the addresses are shared by all threads

    def replay(*given: Tensor) -> list[Tensor]:
        with alone:
            for i, (place, tensor) in enumerate(zip(held, given, strict=True)):
                if copied[i][0]() is not tensor or copied[i][1] != tensor._version:
                    place.copy_(tensor)
                    copied[i] = weakref.ref(tensor), tensor._version
            graph.replay()
            return [result.clone() for result in results]

    return replay


def _simplify(graph: GraphModule) -> None:
    """Take out what batching and differentiation leave behind and what changes no bit: factors of one, views to the same shape,
    transposes of transposes, results that nobody uses."""
    for node in list(graph.graph.nodes):
        target, source = node.target, cast(Node, node.args[0] if node.args else None)
        same = target is aten.detach.default or (target is aten.mul.Scalar and node.args[1] == 1)
        if target in (aten.view.default, aten._unsafe_view.default, aten.expand.default):
            same = node.meta["val"].shape == source.meta["val"].shape
        if target is aten.transpose.int and source.target is target and source.args[1:] == node.args[1:]:
            same, source = True, cast(Node, source.args[0])
        if same:
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    """A graph is made for one memory layout; a tensor that has it already is not copied."""
    return [t.contiguous() for t in tensors]
