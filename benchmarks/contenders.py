"""The contenders: each turns a case into a function that computes its meta-gradient (P,), with imports of its own.

All start from the same parameters and data. Unless a contender's description says otherwise it computes what the case asks for
exactly, averaged over the tasks: the gradient through K inner steps, or the implicit gradient with as many steps of conjugate
gradients as all others take.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from .cases import BETA1, BETA2, CG_STEPS, EPS, REGULARIZATION, STEPS, Case

Compute = Callable[[], np.ndarray]
Build = Callable[[Case], Compute]
IMPLICIT = ("implicit",)
UNROLLABLE = tuple(network for network in STEPS if network not in IMPLICIT)  # K steps, and the gradient through them
DESCENT = tuple(network for network in UNROLLABLE if network != "adam")
FIRST = ("mlp", "conv")


class Contender(NamedTuple):
    """Attributes:
    build: ``case -> function``; may import what is not installed.
    networks: the cases' networks at which it is measured.
    compiled: it compiles at its first call.
    warm: its warm-up is a call of full length, since its first call leaves something for the next: compiled code or a trace.
    exact: it computes what the case asks for, not an approximation.
    cuda: it is measured on a GPU too.
    cores: how many it runs on.
    needs: the library it is or uses, if that is not this package.
    """

    build: Build
    networks: tuple[str, ...] = DESCENT
    compiled: bool = False
    warm: bool = False
    exact: bool = True
    cuda: bool = False
    cores: int = 1
    needs: str | None = None


def peer(module: str, name: str, **options: Any) -> Build:
    """A builder that stands in another module, which is imported at its call: what that imports may not be installed."""
    return lambda case: getattr(import_module(f"{__package__}.{module}"), name)(case, **options)


def parts(case: Case, compile: bool = False):
    """The case as this package sees it: problem, initial parameters, tasks."""
    import amaml_core as core

    from .torch_networks import torch_parts

    model, loss, data = torch_parts(case)
    problem = core.Problem(model, loss, compile=compile, chunk_size=1 if case.one_by_one else None, trace_after=0)
    return problem, problem.initial_parameters(), core.Tasks(*data)


def method(case: Case, memory: str = "Store", solver: str = "Euler"):
    """This package's method for a case; with Dopri5, the horizon is that of K steps of gradient descent."""
    import amaml_core as core

    if case.kind == "implicit":
        inner = core.GradientDescent(case.lr, case.steps)
        return core.IMAML(inner, REGULARIZATION, cg_steps=CG_STEPS)
    if case.kind == "adam":
        stepper = core.Adam(case.steps, BETA1, BETA2, EPS)
    else:
        stepper = core.Dopri5() if solver == "Dopri5" else core.Euler(case.steps)
    kept = core.Store(graphs=case.steps) if memory == "graphs" else getattr(core, memory)()
    return core.AMAML(case.lr * case.steps, stepper, kept)


def amaml(memory: str = "Store", solver: str = "Euler", compile: bool = False) -> Build:
    """This package."""

    def build(case: Case) -> Compute:
        from amaml_core import meta_gradient

        problem, theta, tasks = parts(case, compile)
        wanted = method(case, memory, solver)
        return lambda: meta_gradient(wanted, problem, theta, tasks).gradient.cpu().numpy()

    return build


def two_threads(compile: bool = False) -> Build:
    """This package in two threads, each of which has half of the tasks."""

    def build(case: Case) -> Compute:
        from amaml_core import meta_gradient

        problem, theta, tasks = parts(case, compile)
        wanted, threads = method(case), ThreadPoolExecutor(2)
        halves = list(tasks.split(-(-len(tasks) // 2)))

        def total(half) -> np.ndarray:
            return len(half) * meta_gradient(wanted, problem, theta, half).gradient.cpu().numpy()

        return lambda: sum(threads.map(total, halves)) / len(tasks)

    return build


CONTENDERS: dict[str, Contender] = {
    "unrolled": Contender(peer("torch_peers", "unrolled"), UNROLLABLE, cuda=True),
    "amaml": Contender(amaml(), tuple(STEPS), warm=True, cuda=True),
    "amaml compiled": Contender(amaml(compile=True), tuple(STEPS), compiled=True, warm=True, cuda=True),
    "amaml Checkpoint": Contender(amaml("Checkpoint"), UNROLLABLE, warm=True, cuda=True),
    "amaml compiled Checkpoint": Contender(amaml("Checkpoint", compile=True), UNROLLABLE, compiled=True, warm=True, cuda=True),
    "amaml kept": Contender(amaml("graphs"), DESCENT, warm=True, cuda=True),
    "amaml two threads": Contender(two_threads(), (*FIRST, "transformer"), warm=True, cores=2),
    "amaml Backsolve": Contender(amaml("Backsolve", "Dopri5"), FIRST, warm=True, exact=False, cuda=True),
    "jax scan": Contender(peer("jax_peers", "jax_scan"), FIRST, compiled=True, warm=True, cuda=True, needs="jax"),
    "jax scan checkpoint": Contender(
        peer("jax_peers", "jax_scan", checkpoint=True), UNROLLABLE, compiled=True, warm=True, cuda=True, needs="jax"
    ),
    "jax mixed mode": Contender(
        peer("jax_peers", "jax_scan", checkpoint=True, mixed=True),
        (*FIRST, "transformer"),
        compiled=True,
        warm=True,
        cuda=True,
        needs="jax",
    ),  # fmt: skip
    "torch.func": Contender(peer("torch_peers", "torch_func"), DESCENT, cuda=True),
    "higher": Contender(peer("torch_peers", "higher"), UNROLLABLE, needs="higher"),
    "torchopt": Contender(peer("torch_peers", "torchopt"), UNROLLABLE, needs="torchopt"),
    "torchopt implicit": Contender(peer("torch_peers", "torchopt_implicit"), IMPLICIT, needs="torchopt"),
    "hypertorch recipe": Contender(peer("torch_peers", "hypertorch_recipe"), IMPLICIT),
    "odeint_adjoint": Contender(peer("torch_peers", "odeint_adjoint"), FIRST, exact=False),
    "released recipe": Contender(peer("torch_peers", "released_recipe"), FIRST, exact=False),
}
