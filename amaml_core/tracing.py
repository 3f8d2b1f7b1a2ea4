"""Traced steps: the array operations of a solver step and of its adjoint, without the layers of Python above them.

A step runs a model through ``functional_call``, ``vmap`` and ``torch.autograd.grad``. For a small network these layers cost more
than the arithmetic. Tracing runs through them once for each shape, on tensors without data, and records the plain operations that
come out, derivatives included. From then on the recorded graph runs in place of the step, without autograd, or its compiled
form does (``Problem(compile=True)``). Chapter "From equations to GPU code" measures what both are worth.

A model that decides by the values of its data cannot be traced, and runs as it is. What a trace cannot see is that the model or
the loss is *changed* afterwards. So every solve compares the first traced step of one task with the model's own, and traces anew if
they differ.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from .chain import Kernel, Traced
from .problem import Problem

aten = torch.ops.aten


def trace(
    problem: Problem, key: tuple, kernel: Kernel, theta: Tensor, h: Tensor, x: Tensor, y: Tensor, back: bool = True
) -> Traced | None:
    """The kernel traced, and compiled if ``problem.compile``, for the shapes of these inputs; from the cache if it is still true.

    Args:
        problem: whose model the kernel runs; it keeps the graphs.
        key: what else the kernel depends on, hashable.
        kernel: what to trace.
        theta: (B, P). h: (1, G). x, y: (B, n, ...).
        back: trace the way back too.

    Returns:
        The traced step and adjoint, or ``None`` where the model cannot be traced or compiled (with a warning if it was to be
        compiled).
    """
    key = (key, back, *((t.shape, t.dtype, t.device) for t in (theta, h, x, y)))
    if key in problem.traces and problem.traces[key] is None:
        return None
    with torch.no_grad():
        found = problem.traces.get(key)
        if found is None or not _still_true(found, kernel, theta, h, x, y):
            try:
                found = _trace(problem, kernel, theta, h, x, y, back)
            except Exception as error:  # tracing runs the user's model, and the compiler may fail in its own ways
                found = None
                if problem.compile:
                    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                    warnings.warn(f"the inner step cannot be compiled and runs eagerly: {reason}", stacklevel=2)
            problem.traces[key] = found
    return found


def _still_true(found: Traced, kernel: Kernel, theta: Tensor, h: Tensor, x: Tensor, y: Tensor) -> bool:
    one = slice(0, 1)
    expected = kernel.step(theta[one], theta[one], h, x[one], y[one])  # (1, P)
    return _agree(found.step(theta, theta, h, x, y)[one], expected, kernel.rest(theta[one]))


class _Different(ArithmeticError):
    """A traced step does not compute what the model computes."""


def _trace(problem: Problem, kernel: Kernel, theta: Tensor, h: Tensor, x: Tensor, y: Tensor, back: bool) -> Traced:
    make = _compile if problem.compile else _interpret
    if theta.is_cuda:
        make = partial(_capture, make)
    step = make(kernel.step, theta, theta, h, x, y)
    step_back = None
    end, lam = kernel.step(theta, theta, h, x, y), theta.sin()  # any direction does
    if back:
        sizes = h.expand(len(theta), -1) if kernel.sensitivities else h
        inputs = (theta, end, theta, sizes, x, y, lam)
        step_back = make(kernel.back, *inputs)
    same = [_agree(step(theta, theta, h, x, y)[0], end, kernel.rest(theta))]
    if back:
        same += [
            _agree(mine, own, lam if own.shape == lam.shape else torch.zeros_like(own))
            for mine, own in zip(step_back(*inputs), kernel.back(*inputs), strict=True)
        ]
    if not all(same):
        raise _Different("the traced step does not give what the model gives")
    return Traced(lambda *given: step(*given)[0], step_back)


def _agree(found: Tensor, expected: Tensor, start: Tensor) -> bool:
    """Whether two changes from ``start`` are the same but for rounding; what is not finite says nothing."""
    eps = torch.finfo(expected.dtype).eps
    bound = 3 * eps**0.5 * (expected - start).norm() + 100 * eps * expected.norm()
    return not ((found - expected).norm() > bound)


def _graph(function: Callable, inputs: list[Tensor], decompositions: dict | None = None) -> GraphModule:
    def listed(*arguments: Tensor) -> list[Tensor]:
        result = function(*arguments)
        return result if isinstance(result, list) else [result]

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
    inputs = _contiguous(*(t.detach().clone() for t in inputs))
    on_gpu, single = inputs[0].is_cuda, inputs[0].dtype == torch.float32
    graph = _graph(function, inputs, None if on_gpu or not single else {aten.tanh.default: rational_tanh})
    run = torch._inductor.compile(graph, inputs, None if on_gpu else {"cpp_wrapper": True})
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
    with torch.cuda.graph(graph):
        results = run(*held)
    copied: list[tuple] = [(lambda: None, 0)] * len(held)  # theta and the data stay the same for all steps of a solve

    def replay(*given: Tensor) -> list[Tensor]:
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
        target, source = node.target, node.args[0] if node.args else None
        same = target is aten.detach.default or (target is aten.mul.Scalar and node.args[1] == 1)
        if target in (aten.view.default, aten._unsafe_view.default, aten.expand.default):
            same = node.meta["val"].shape == source.meta["val"].shape
        if target is aten.transpose.int and source.target is target and source.args[1:] == node.args[1:]:
            same, source = True, source.args[0]
        if same:
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def rational_tanh(x: Tensor) -> Tensor:
    r"""tanh to single precision, by 28 products and sums that a processor does for many numbers at once.

    The convergent of depth 13 of :math:`\tanh x=\cfrac{x}{1+\cfrac{x^2}{3+\cfrac{x^2}{5+\dots}}}`, whose relative error is below
    5e-7 for :math:`|x|\le9`, where tanh is 1 in single precision.

    Reference: Lambert's continued fraction; Abramowitz and Stegun, Handbook of mathematical functions, 4.5.70.
    """
    x = x.clamp(-9, 9)
    z = x * x
    above, below = (sum_of_powers(coefficients, z) for coefficients in TANH)
    return x * above / below


def sum_of_powers(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    """:math:`c_0 + c_1 z + c_2 z^2 + \\dots` by Horner's rule."""
    value = torch.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * z + coefficient
    return value


def _convergent(depth: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients in :math:`x^2` of numerator (over x) and denominator of the continued fraction of tanh, scaled to start at 1."""
    above, below = [1], [2 * depth - 1]  # 1 / (2 depth - 1), the innermost fraction
    for odd in range(2 * depth - 3, 0, -2):  # f -> 1 / (odd + z f)
        shifted = [0, *above]
        length = max(len(below), len(shifted))
        pad = [p + [0] * (length - len(p)) for p in (below, shifted)]
        above, below = below, [odd * b + s for b, s in zip(*pad, strict=True)]
    return tuple(c / above[0] for c in above), tuple(c / below[0] for c in below)


TANH = _convergent(13)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    """A graph is made for one memory layout; a tensor that has it already is not copied."""
    return [t.contiguous() for t in tensors]
