"""Two ways to one Hessian-vector product, side by side: ``python -m benchmarks.modes [--only REGEX] [--out FOLDER]``.

A step of the backward sweep multiplies the adjoint state with the Hessian of the support loss. ``reverse over reverse``, as this
package does it, differentiates the gradient's own graph backward; ``forward over reverse`` is a directional derivative of the
gradient (``jvp`` of ``grad``), taken for one task inside ``vmap``. Both as they are, as a replayed trace, and compiled.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from amaml_core.fast_tanh import rational_tanh
from amaml_core.records import commit, machine, write_beside

from . import results
from .cases import Case
from .torch_networks import torch_parts
from .worker import relative_error, take_cores, turn

ROOT = Path(__file__).parents[1]
# One task where tasks run one after another anyway.
CASES = [Case("mlp", 5, 1), Case("mlp", 32, 1), Case("conv", 1, 1), Case("conv-smooth", 1, 1), Case("transformer", 1, 1)]
COLUMNS = (
    "network", "tasks", "dtype", "mode", "execution", "status", "reason", "cpu_seconds", "wall_seconds", "memory_mb", "error",
    "calls", "build_seconds", "load_average", "machine", "versions", "date", "commit",
)  # fmt: skip
aten = torch.ops.aten
Product = Callable[..., Tensor]  # u (B, P), x, y (B, n, ...), v (B, P) -> H v (B, P)


class Parts(NamedTuple):
    """Attributes:
    loss: of one task, ``u (P,), x, y (n, ...) -> scalar``.
    inputs: ``u (B, P), x, y (B, n, ...), v (B, P)``, away from where all tasks start.
    """

    loss: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def parts(case: Case) -> Parts:
    """The loss of a case as a function of flat parameters, and inputs for its product."""
    model, loss, (x, y, *_) = torch_parts(case)
    if case.model == "mlp":  # the backward of torch's mse_loss has no forward-mode derivative
        loss = lambda prediction, target: (prediction - target).square().mean()  # noqa: E731
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def one(u: Tensor, x: Tensor, y: Tensor) -> Tensor:
        pieces = [p.view(shape) for p, shape in zip(u.split([s.numel() for s in shapes]), shapes, strict=True)]
        return loss(functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

    draw = np.random.default_rng(2)
    theta = case.theta()
    u = theta + 0.01 * draw.standard_normal((case.tasks, theta.size))
    v = draw.standard_normal((case.tasks, theta.size))
    return Parts(one, (torch.from_numpy(u.astype(case.dtype)), x, y, torch.from_numpy(v.astype(case.dtype))))


def over_tasks(function: Callable, *arguments: Tensor) -> Tensor:
    """``function`` of one task, over the leading axis; a task alone is not batched."""
    return vmap(function)(*arguments) if len(arguments[0]) > 1 else function(*(a[0] for a in arguments))[None]


def reverse_over_reverse(loss: Callable[..., Tensor]) -> Product:
    """The vector-Jacobian product of the gradient, which autograd takes outside ``vmap``."""

    def product(u: Tensor, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(over_tasks(loss, u, x, y).sum(), u, create_graph=True)
            return torch.autograd.grad(gradient, u, v)[0]

    return product


def forward_over_reverse(loss: Callable[..., Tensor]) -> Product:
    """The directional derivative of the gradient, for one task inside ``vmap``."""

    def one(u: Tensor, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return jvp(lambda w: grad(loss)(w, x, y), (u,), (v,))[1]

    return partial(over_tasks, one)


def eager(product: Product, inputs: tuple[Tensor, ...]) -> Product:
    return product


def traced(product: Product, inputs: tuple[Tensor, ...]) -> GraphModule:
    """The array operations of a call, recorded once and replayed without the layers of Python above them."""
    return make_fx(product, tracing_mode="real")(*inputs)  # some forward-mode rules fail on tensors without data


def compiled(product: Product, inputs: tuple[Tensor, ...]) -> Product:
    """The trace, compiled by PyTorch's inductor, as this package compiles its steps."""
    trace, fast = traced(product, inputs), {aten.tanh.default: rational_tanh} if inputs[0].dtype == torch.float32 else None
    graph = make_fx(lambda *given: [trace(*given)], fast, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    run = torch._inductor.compile(graph, list(inputs), {"cpp_wrapper": True})
    return lambda *given: run(*given)[0]


MODES = {"reverse over reverse": reverse_over_reverse, "forward over reverse": forward_over_reverse}
EXECUTIONS = {"eager": eager, "traced": traced, "compiled": compiled}


def measure(case: Case, seconds: float, turns: int = 5) -> list[dict]:
    """The rows of a case: all products are made ready first, and then take turns."""
    exact = parts(replace(case, dtype="float64"))
    loss, inputs = parts(case)
    calls: dict[tuple[str, str], Callable[[], np.ndarray]] = {}
    rows: dict[tuple[str, str], dict] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        reference = Path(folder) / "reference.npy"
        np.save(reference, reverse_over_reverse(exact.loss)(*exact.inputs).numpy())
        for mode, make in MODES.items():
            for execution, prepare in EXECUTIONS.items():
                rows[mode, execution] = {"status": "ok"}
                started = perf_counter()
                try:
                    product = prepare(make(loss), inputs)
                    product(*inputs)
                except Exception as error:  # a mode that a library does not have for some operation
                    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                    rows[mode, execution] |= {"status": "failed", "reason": reason}
                    continue
                rows[mode, execution]["build_seconds"] = perf_counter() - started
                calls[mode, execution] = lambda product=product: product(*inputs).numpy()
        figures: dict[tuple[str, str], list[dict]] = {name: [] for name in calls}
        for _ in range(turns):
            for name, call in calls.items():
                answer, product = turn(call, "cpu", seconds / turns)
                figures[name].append(answer | {"error": relative_error(product, reference)})
    for name, answers in figures.items():
        rows[name] |= {entry: statistics.median(a[entry] for a in answers) for entry in ("cpu_seconds", "wall_seconds")}
        rows[name] |= {entry: max(a[entry] for a in answers) for entry in ("memory_mb", "error")}
        rows[name]["calls"] = sum(a["calls"] for a in answers)
    return [{"mode": mode, "execution": execution} | row for (mode, execution), row in rows.items()]


def main(argv: list[str] | None = None) -> None:
    """Measure all cases and write ``modes-MACHINE.csv``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modes", description=__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="for example 'mlp B=32'")
    parser.add_argument("--seconds", type=float, default=5.0, help="of repeated calls for each product and case")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder")
    arguments = parser.parse_args(argv)
    take_cores(1)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for case in CASES:
            if not re.search(arguments.only, f"{case.network} B={case.tasks}"):
                continue
            shared = {
                "network": case.network, "tasks": case.tasks, "dtype": case.dtype, "machine": machine(), "commit": commit(),
                "load_average": round(os.getloadavg()[0], 2), "versions": f"torch={torch.__version__}",
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
            rows += [shared | row for row in measure(case, arguments.seconds)]
            table = pd.DataFrame(rows, columns=COLUMNS)
            shown = table[table.network.eq(case.network) & table.tasks.eq(case.tasks)]
            print(
                shown[["network", "tasks", "mode", "execution", "status", "cpu_seconds", "memory_mb", "error"]].to_string(
                    index=False
                )
            )
    content = table.to_csv(index=False, float_format="%.5g", lineterminator="\n").encode()
    write_beside(arguments.out / f"modes-{results.slug(machine())}.csv", content)


if __name__ == "__main__":
    main()
