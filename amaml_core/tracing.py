"""Traced steps: the array operations of a solver step and of its adjoint, without the layers of Python above them.

A step runs a model through ``vmap`` and ``torch.autograd.grad``. For a small network these layers cost more than the arithmetic.
Tracing runs through them once for each shape, on tensors without data, and records the plain operations that come out, derivatives
included. From then on the recorded graph runs in place of the step, without autograd, or its compiled form does
(``Problem(compile=True)``). Chapter "From equations to code" measures what both are worth. A trace costs far more
than a step, so a shape is traced when it has taken ``trace_after`` of them before; compiled, at once.

A model that decides by the values of its data cannot be traced, and runs as it is. What a trace cannot see is that the model or
the loss is *changed* afterwards. So the gradient of the support loss is traced, too, and every solve compares it with the model's
own, away from theta: to the bit on a CPU, to a thousandth in single precision on a GPU. Where they differ, all that was traced for
this shape is dropped. That gradient is the user's part of a step, before decay, masks, clipping and step sizes, which might hide a
change. A change that shows at no such point, or for no point of the first minibatch where there are several, needs
``problem.forget()``.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .fast_tanh import rational_tanh
from .numerics import exact

if TYPE_CHECKING:
    from .kernel import Kernel
    from .problem import Problem

aten = torch.ops.aten
_tracing = threading.RLock()  # the tracer and the compiler are not made for several threads
SHAPES = 16  # of query sets beside one shape of support sets, of which traces are kept
CHANGES = 3  # a function that was found changed so often is not traced any more


@dataclass
class Seen:
    """What is known of a kernel for one shape: its steps before the present solve, the graphs of its functions (``None``
    for one that cannot be traced), and how often it was found changed."""

    before: int = 0
    steps: int = 0
    graphs: dict[str, Callable[..., list[Tensor]] | None] = field(default_factory=dict)
    changes: int = 0
    uses: dict[str, int] = field(default_factory=dict)


def fast(
    kernel: Kernel, name: str, steps: int, compared: Seen | None,
    theta: Tensor, phi: Tensor, h: Tensor, clock: Tensor, x: Any, y: Any,
) -> tuple[Callable, Seen | None]:  # fmt: skip
    """A function of the kernel, for one solve: traced if the shape is worth it and can be traced, else as it is; and, where it is
    traced, what else is known of the kernel.

    Args:
        kernel: whose problem keeps the graphs.
        name: ``"field"``, ``"step"`` or ``"back"``, the last only beside a step that is traced in the same solve.
        steps: that this solve takes.
        compared: what this solve has found to be the model's already.
        theta: (B, P). phi: (B, M). h: (1, G). clock: (1, C). x, y: (B, n, ...).
    """
    kernel = replace(kernel)  # one that has not looked up yet what is frozen, as the key below does
    problem, own = kernel.problem, getattr(kernel, name)
    if not (problem.trace or problem.compile):
        return own, None
    key = (kernel, _shapes(theta, phi, h, clock, x, y), problem.state(theta.device), torch.is_inference_mode_enabled())
    seen: Seen = problem.graphs.get(key) or Seen()
    if not seen.steps:
        problem.graphs.put(key, seen)
    if name != "back":
        seen.before, seen.steps = seen.steps, seen.steps + steps
    elif compared is not seen:
        return own, None
    if (seen.before < problem.trace_after and not problem.compile) or seen.changes >= CHANGES or seen.graphs.get(name, own) is None:
        return own, None
    with torch.no_grad(), exact(problem.tf32):
        trials: list[_Trial] = []
        if compared is not seen or name not in seen.graphs:
            trials, standing = _trials(kernel, theta, phi, x, y), seen.graphs.get("gradient")
            if standing is not None and not all([trial.agrees(standing) for trial in trials]):
                seen = Seen(0, steps, changes=seen.changes + 1)
                problem.graphs.put(key, seen)
                if problem.compile and seen.changes >= CHANGES:
                    problem.warn_once("compile", f"the loss has changed {CHANGES} times; the inner step is not compiled any more")
                if not problem.compile or seen.changes >= CHANGES:
                    return own, None
        for wanted in ("gradient", name) if name not in seen.graphs else ():
            with _tracing:
                if wanted not in seen.graphs:
                    function, given = getattr(kernel, wanted), trials[-1].inputs(wanted, h, clock)
                    seen.graphs[wanted] = _trace(problem, problem.compile and wanted == name, function, given, wanted)
            if seen.graphs[wanted] is None:
                seen.graphs[name] = None
                break
        graph = seen.graphs[name]
    if graph is None:
        return own, None
    return graph if name == "back" else lambda *given: graph(*given)[0], seen


def replayed(
    seen: Seen | None, problem: Problem, function: Callable, given: tuple[Any, ...], name: str, compiled: bool = False
) -> Callable[..., list[Tensor]]:
    """A function beside the steps: replayed if its shape has come up often enough, else as it is.

    Args:
        seen: what belongs to a step that is traced in this solve, so that the support loss has been compared; ``None`` if none is.
            The trace of this function stands beside that step's, and goes with it when the loss is found changed. So it may use the
            support loss, and nothing else of the user's.
        name: of the function, which has one meaning for a kernel.
        compiled: compile it, which pays for what takes longer than a step.
    """
    if seen is None or not problem.unchanging:
        return function
    key = f"{name} {_shapes(given)}"
    if key not in seen.uses and len(seen.uses) >= SHAPES:
        return function
    seen.uses[key] = seen.uses.get(key, 0) + 1
    if (seen.uses[key] <= problem.trace_after and not problem.compile) or seen.graphs.get(key, function) is None:
        return function
    if (graph := seen.graphs.get(key)) is None:
        with torch.no_grad(), exact(problem.tf32), _tracing:
            graph = seen.graphs[key] = _trace(problem, compiled, function, given, name)
    return function if graph is None else lambda *given: graph(*tree_map(Tensor.contiguous, given))


def _shapes(*given: Any) -> tuple:
    leaves, structure = tree_flatten(given)
    return structure, *[(t.shape, t.dtype, t.device) for t in leaves]


def _trials(kernel: Kernel, theta: Tensor, *given: Any) -> list[_Trial]:
    """Trials ever closer to theta, until one has a gradient: a model may be defined on one side of zero, or at theta alone."""
    scale = theta.square().mean().sqrt()
    trials: list[_Trial] = []
    for sizes in (torch.where(scale > 0, scale, 1.0), theta, torch.zeros_like(theta)):
        trials.append(_Trial(kernel, 0.1 * sizes, theta, *given))
        if trials[-1].gradient.isfinite().all():
            break
    return trials


class _Trial:
    """Where a graph and the kernel's own gradient are compared: away from theta, where a term may be flat."""

    def __init__(self, kernel: Kernel, distance: Tensor, theta: Tensor, phi: Tensor, x: Any, y: Any) -> None:
        self.kernel = kernel
        number = torch.arange(theta.shape[1], device=theta.device) + 1.0
        u = theta + distance * number.cos().to(theta)  # (B, P)
        # What theta and phi do may be flat where they are, too. But it may be defined nowhere else.
        elsewhere = theta + distance * number.sin().to(theta) if kernel.to_theta else theta
        moved = phi + 0.1 * (torch.arange(phi.shape[1], device=phi.device) + 1.0).sin().to(phi)
        self.given = tree_map(Tensor.contiguous, (u, elsewhere, moved, x, y))  # a graph is made for one memory layout
        self.gradient = kernel.gradient(*self.given)  # (B, P)
        if (kernel.to_theta or kernel.to_phi(phi)) and not self.gradient.isfinite().all():
            self.given = tree_map(Tensor.contiguous, (u, theta, phi, x, y))
            self.gradient = kernel.gradient(*self.given)

    def agrees(self, graph: Callable[..., list[Tensor]]) -> bool:
        """Whether the graph of the gradient gives every task what the kernel gives it."""
        found = graph(*self.given)[0]
        if _to_the_bit(False, found):
            return _equal(found, self.gradient)
        return _agree(found, self.gradient, torch.zeros_like(found))

    def inputs(self, name: str, h: Tensor, clock: Tensor) -> tuple[Any, ...]:
        """All inputs of a function of the kernel; a step of them is neither lost in rounding nor far from where it starts."""
        if name in ("gradient", "field"):
            return self.given
        u, theta, phi, x, y = self.given
        slope = self.kernel.field(*self.given)
        size = max(0.03, 30 * torch.finfo(u.dtype).eps) * u.double().norm() / slope.double().norm()
        size = torch.where(size.isfinite(), size, 1.0).to(h).expand_as(h).contiguous()
        memory = [slope, slope.square()][: self.kernel.rule.slots - 1]  # of the size that momenta have
        z = torch.cat([u, *memory], 1) if memory else u
        if name == "step":
            return z, theta, phi, size, clock, x, y
        end = self.kernel.step(z, theta, phi, size, clock, x, y)
        sizes = size.expand(len(z), -1) if self.kernel.sensitivities else size
        return z, end, theta, phi, sizes, clock, x, y, z.sin()  # any direction does


def _to_the_bit(compiled: bool, given: Tensor) -> bool:
    """Whether a graph gives the numbers of its function to the bit; the compiler and a GPU may sum in another order."""
    return not (compiled or given.is_cuda)


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are equal, and NaN in the same entries."""
    return torch.equal(found, expected) or bool(((found == expected) | (found.isnan() & expected.isnan())).all())


def _agree(found: Tensor, expected: Tensor, start: Tensor) -> bool:
    """Whether two changes from ``start`` are the same but for rounding, and finite in the same entries."""
    eps = torch.finfo(expected.dtype).eps
    rounding = 100 * eps if eps < 1e-5 else eps  # a hundred would be all that half precision has
    found, expected, start = (t.reshape(len(t), -1).double() for t in (found, expected, start))
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return False
    error, change, end = (t.where(finite, 0.0).norm(dim=1) for t in (found - expected, expected - start, expected))  # (B,)
    return not (error > min(3 * eps**0.5, 0.05) * change + rounding * end).any()


def _trace(
    problem: Problem, compiled: bool, function: Callable, given: tuple[Any, ...], name: str
) -> Callable[..., list[Tensor]] | None:
    """The graph of a function, or ``None`` where there can be none (with a warning if it was to be compiled).

    The result of a ``"step"`` is compared as a change of its first input.
    """
    expected = _listed(function(*given))  # first, so that the model's own errors are the caller's
    flat, structure = tree_flatten(given)
    make, on_gpu = _compile if compiled else _interpret, flat[0].is_cuda
    if name == "gradient" and problem.compile:
        make = partial(_interpret, copied=True)
    if on_gpu and name != "gradient":  # which runs once in a solve
        make = partial(_capture, make)
    try:
        given = tree_map(Tensor.contiguous, given)  # a graph is made for one memory layout
        with warnings.catch_warnings():
            if compiled:
                warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
            graph = make(lambda *leaves: function(*tree_unflatten(leaves, structure)), *flat)
        if any(not isinstance(entry, Tensor) for entry in given):  # several inputs to the model
            flat_graph = graph
            graph = lambda *entries: flat_graph(*tree_leaves(entries))  # noqa: E731
        pairs = list(zip(graph(*given), expected, strict=True))
        if _to_the_bit(compiled, flat[0]):  # so that it does not matter to a result which of its steps were traced
            same = all(_equal(found, own) for found, own in pairs)
        else:
            # a number for each task may be a residual that is rounding alone
            start = lambda own: given[0] if name == "step" else torch.full_like(own, own.ndim == 1)  # noqa: E731
            same = all(_agree(found, own, start(own)) for found, own in pairs)
        reason = "" if same else "the traced step does not give what the model gives"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tracing runs the user's model, and the compiler may fail in its own ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not reason:
        return graph
    if problem.compile:
        problem.warn_once("compile", f"the inner step cannot be compiled and runs eagerly: {reason}")
    return None


def _listed(result: Tensor | list[Tensor]) -> list[Tensor]:
    return result if isinstance(result, list) else [result]


def _graph(function: Callable, inputs: list[Tensor], decompositions: dict | None = None) -> GraphModule:
    listed = lambda *arguments: _listed(function(*arguments))  # noqa: E731
    graph = make_fx(listed, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    _simplify(graph)
    return graph


def _interpret(function: Callable, *inputs: Tensor, copied: bool = False) -> Callable[..., list[Tensor]]:
    """The graph as Python.

    Args:
        copied: with buffers and weights of the loss as they are now. The compiler has copies of its own, which do not follow when
            one of them is written to; what is to show that must not follow either.
    """
    graph = _graph(function, _contiguous(*(t.detach() for t in inputs)))
    for name in {node.target for node in graph.graph.nodes if copied and node.op == "get_attr"}:
        constant = getattr(graph, name)
        delattr(graph, name)
        graph.register_buffer(name, constant.detach().clone())
    for node in graph.graph.nodes:  # some kernels lay out their results in another way than they tell the tracer
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    graph.recompile()
    return graph.forward


def _compile(function: Callable, *inputs: Tensor) -> Callable[..., list[Tensor]]:
    given: list[Any] = _contiguous(*(t.detach().clone() for t in inputs))
    if given[0].is_cuda:
        run = torch._inductor.compile(_graph(function, given), given)
        return lambda *arguments: list(run(*arguments))
    # Straight to inductor's core: the layers above it prepare for autograd and cost as much as a small step.
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    table = dict(select_decomp_table())
    if given[0].dtype == torch.float32:
        table[aten.tanh.default] = rational_tanh
    graph = _graph(function, given, table)
    if any(
        node.op == "call_function" and getattr(node.target, "_schema", None) and node.target._schema.is_mutable
        for node in graph.graph.nodes
    ):
        graph = _graph(functionalize(graph), given, table)  # the derivatives of some layers write in place
    places = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    settings: dict[str, Any] = {} if config.cpp.vec_isa_ok is not None else {"cpp.vec_isa_ok": True}  # the compiler knows this CPU
    if given[0].dtype == torch.float32:
        settings["layout_optimization"] = False  # as measured, convolutions are faster as they lie
    with tracing(TracingContext(places[0].fake_mode)), config.patch(settings):
        core: Any = compile_fx_inner(graph, places)
    run = core.current_callable  # without its bookkeeping
    return lambda *arguments: list(run(list(arguments)))


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
    for node in graph.graph.nodes:  # gradients of inputs and weights that nobody uses are not computed
        if node.target in (aten.convolution_backward.default, aten.native_batch_norm_backward.default):
            used = {user.args[1] for user in node.users}
            node.args = (*node.args[:-1], [wanted and i in used for i, wanted in enumerate(node.args[-1])])
    graph.recompile()


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    """A graph is made for one memory layout; a tensor that has it already is not copied."""
    return [t.contiguous() for t in tensors]
