"""Compiled steps: trace a kernel once for each shape, hand the graph to torch's inductor, and keep it.

A step calls ``torch.autograd.grad`` and ``vmap`` inside, which a compiler of Python code does not see through. Tracing does:
``make_fx`` runs the step on tensors without data and records the plain array operations that remain, derivative included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .chain import Kernel
from .problem import Problem

_compiled: WeakKeyDictionary[Problem, dict] = WeakKeyDictionary()


class CompiledKernel(NamedTuple):
    """A kernel whose step and adjoint are compiled; it stands in for the :class:`Kernel` in a chain."""

    step: Callable[..., Tensor]
    back: Callable[..., list[Tensor]]
    groups: Tensor | None
    theta_enters: bool
    sensitivities: bool
    continuous: bool
    field: Callable[..., Tensor]
    field_vjp: Callable[..., list[Tensor]]


def compile_kernel(
    problem: Problem, key: tuple, kernel: Kernel, theta: Tensor, h: Tensor, x: Tensor, y: Tensor
) -> Kernel | CompiledKernel:
    """The kernel compiled for the shapes of these inputs, from the cache if it was compiled before.

    Args:
        problem: whose model the kernel runs; compiled kernels live as long as it does.
        key: what else the kernel depends on, hashable.
        kernel: what to compile.
        theta: (B, P). h: (1, G). x, y: (B, n, ...).

    Returns:
        The compiled kernel, or after a warning the kernel itself, where the model cannot be traced or compiled.
    """
    shapes = tuple((t.shape, t.dtype, t.device) for t in (theta, h, x, y))
    cache = _compiled.setdefault(problem, {})
    if (key, shapes) not in cache:
        try:
            cache[key, shapes] = _compile(kernel, theta, h, x, y)
        except Exception as error:  # tracing runs the user's model, and the compiler may fail in its own ways
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"the inner step cannot be compiled and runs eagerly: {reason}", stacklevel=2)
            cache[key, shapes] = kernel
    return cache[key, shapes]


def _compile(kernel: Kernel, theta: Tensor, h: Tensor, x: Tensor, y: Tensor) -> CompiledKernel:
    sizes = h.expand(len(theta), -1) if kernel.sensitivities else h
    step = _inductor(kernel.step, theta, theta, h, x, y)
    back = _inductor(kernel.back, theta, theta, theta, sizes, x, y, theta)

    def wrap_step(u: Tensor, *rest: Tensor) -> Tensor:
        return step(*_contiguous(u, *rest))[0]

    def wrap_back(u: Tensor, *rest: Tensor) -> list[Tensor]:
        return list(back(*_contiguous(u, *rest)))

    flags = (kernel.groups, kernel.theta_enters, kernel.sensitivities, kernel.continuous)
    return CompiledKernel(wrap_step, wrap_back, *flags, kernel.field, kernel.field_vjp)


def _inductor(function: Callable, *inputs: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    def listed(*arguments: Tensor) -> list[Tensor]:
        result = function(*arguments)
        return result if isinstance(result, list) else [result]

    inputs = _contiguous(*(t.detach().clone() for t in inputs))
    with torch.no_grad():
        graph = make_fx(listed, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        # On a GPU the kernels of one step are launched together, as a CUDA graph.
        options = {"triton.cudagraphs": True} if inputs[0].is_cuda else None
        return torch._inductor.compile(graph, list(inputs), options)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    """Compiled code is made for one memory layout; a tensor that has it already is not copied."""
    return [t.contiguous() for t in tensors]
