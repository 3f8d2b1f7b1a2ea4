r"""The authors' released code, audited: every known difference from the paper is a switch, and each switch has its effect measured.

Chapter "An audit of the released code" shows these results. Also a program:
``python -m amaml_core.experiments.audit --profile full --out results/full/audit``.

Kinds of cells:

- ``audit-gradient``: the meta-gradient under many settings of the switches, against the exact one, over the number of steps;
- ``audit-training``: train with one setting of the switches, then adapt to new functions by three rules;
- ``audit-standardisation``: train and test with a standardisation that saw the test functions, and with one that did not;
- ``audit-functions``: how alike the meta-gradients of the slides' and of the released functions are;
- ``audit-memory``: bytes that stay alive, and time, when the stored solution keeps its graph.

Nothing was tuned. Test functions come from a generator of their own that no choice in this project was made on. All formulas are
written here anew, from what the code does; none of its text is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args, get_type_hints

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from .. import AMAML, MAML, Checkpoint, Euler, Heun, Problem, evaluate, fit, meta_gradient, metrics
from ..chain import Chain, batched, chain
from ..evaluation import AdamAdaptation
from ..flow import RungeKutta, Tableau
from ..kernel import Kernel
from ..samplers import PoolSampler, Standardisation, make_function_tasks
from ..samplers.draws import uniform
from ..tasks import Tasks
from .cells import Cell, program, read_records
from .memory import LiveBytes
from .profiles import check_profile
from .ratings import seeded

RECORDS = Path(__file__).resolve().parents[2] / "results" / "full" / "audit"
COMMAND = "python -m amaml_core.experiments.audit --profile full --out results/full/audit"

INNER_LR = 0.01
META_LR = 1e-3
BATCH = 5
SHOTS = 50

# ------------------------------------------------------------------------------------------------------------- the switches


@dataclass(frozen=True)
class ThreeEighths(RungeKutta):
    """Kutta's 3/8 rule, of fourth order: what torchdiffeq calls ``rk4``."""

    tableau: ClassVar[Tableau] = Tableau(a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), b=(1 / 8, 3 / 8, 3 / 8, 1 / 8))
    order: ClassVar[int] = 4


SOLVERS = {"Euler": Euler, "Heun": Heun, "RK4": ThreeEighths}


@dataclass(frozen=True)
class Switches:
    """What differs between the paper and the released code, one switch each.

    Attributes:
        inner_proximal: the proximal term is in the loss that is adapted to.
        outer_proximal: the proximal term is in the loss that is judged.
        forward: the solver of the flow.
        adjoint: the solver of the adjoint, on the grid that the flow was stored on; Euler takes the Hessian at the right end.
        backward_steps: ``"n"`` steps back over the n intervals, or ``"n+1"``, with the last one starting at t = 0.
        quadrature: of the proximal term's integral, over all values that the adjoint took: ``"rectangle"`` weighs each with
            h, ``"trapezoid"`` weighs both ends with h / 2. Without the inner proximal term there is no integral.
        wrapped: the left end of Heun's step from t = 0 is the state at T, as an index of -1 gives it; otherwise it is the state
            at 0 once more. It matters for Heun with n + 1 steps alone.
    """

    inner_proximal: bool
    outer_proximal: bool
    forward: Literal["Euler", "Heun", "RK4"]
    adjoint: Literal["Euler", "Heun"]
    backward_steps: Literal["n", "n+1"]
    quadrature: Literal["rectangle", "trapezoid"]
    wrapped: bool

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            allowed = (False, True) if kind is bool else get_args(kind)
            value = getattr(self, name)
            if value not in allowed or isinstance(value, bool) != (kind is bool):
                raise ValueError(f"switch {name} must be one of {allowed}, not {value!r}")


RELEASED = Switches(True, True, "RK4", "Euler", "n+1", "rectangle", wrapped=True)
PAPER = Switches(False, False, "Euler", "Heun", "n", "trapezoid", wrapped=False)


def one_at_a_time(base: Switches, other: Switches) -> dict[str, Switches]:
    """``base`` with one switch after another set as in ``other``: one entry for each switch in which they differ."""
    names = [f.name for f in fields(Switches)]
    return {name: replace(base, **{name: getattr(other, name)}) for name in names if getattr(base, name) != getattr(other, name)}


@dataclass(frozen=True)
class Audited:
    r"""A-MAML under given switches; a method like all others.

    With :math:`h=T/K`, the states :math:`u_0=\theta,\dots,u_K` of the forward solve, and the weights
    :math:`\mu_\text{in}` and :math:`\mu_\text{out}`, which are ``weight`` or 0, the adjoint starts from
    :math:`\lambda_K=\nabla L_\text{q}(u_K)+\mu_\text{out}(u_K-\theta)` and goes back by

    .. math::
        E_k\lambda = \lambda - h(H(u_k)+\mu_\text{in}I)\lambda \quad\text{(Euler)},\qquad
        \tfrac12(\lambda + E_{k-1}E_k\lambda) \quad\text{(Heun)},

    for :math:`k=K,\dots,1` or :math:`k=K,\dots,0`. The meta-gradient is the last value, plus :math:`\mu_\text{in}` times the
    quadrature of all values, plus :math:`\mu_\text{out}(\theta-u_K)`.

    Heun's step is usually written :math:`\lambda-\frac h2(H_k\lambda+H_{k-1}E_k\lambda)`; that is the mean of the old value and
    of two steps of Euler's method.

    Args:
        horizon: T.
        steps: K, called n in the names of the switches.
        switches: what is computed.
        weight: of the proximal terms that are on; 1 in the released code.
    """

    horizon: float
    steps: int
    switches: Switches
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.horizon > 0 and self.steps >= 1 and self.weight >= 0):
            raise ValueError(f"an audit needs horizon > 0, steps >= 1 and weight >= 0, not {self}")

    @property
    def proximal(self) -> tuple[float, float]:
        """The weights of the inner and the outer proximal term."""
        return self.weight * self.switches.inner_proximal, self.weight * self.switches.outer_proximal

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks) -> Callable[[Tensor], Tensor]:
        """One step of the forward solve, without a graph."""
        flow = self._chain(problem, theta, tasks, SOLVERS[self.switches.forward].tableau)
        return lambda u: flow.forward(0, u)

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Adapted parameters (B, P), and the pullback (B, P) -> (B, P)."""
        step, states = self.inner_step(problem, theta, tasks), [batched(theta, tasks)]
        for _ in range(self.steps):
            states.append(step(states[-1]))
        start, end = states[0], states[-1]
        # The vector-Jacobian product of a step of gradient descent from u is the step of Euler's adjoint with the Hessian at u.
        descent = self._chain(problem, theta, tasks, Euler.tableau)
        inner, outer = self.proximal

        def euler(k: int, lam: Tensor) -> Tensor:
            u = states[k]
            return descent.backward(0, u, u, descent.start(lam)).lam

        def back(k: int, lam: Tensor) -> Tensor:
            if self.switches.adjoint == "Euler":
                return euler(k, lam)
            left = k - 1 if k else self.steps if self.switches.wrapped else 0
            return (lam + euler(left, euler(k, lam))) / 2

        def pullback(gradient: Tensor) -> Tensor:
            values = [gradient + outer * (end - start)]
            last = 0 if self.switches.backward_steps == "n+1" else 1
            for k in range(self.steps, last - 1, -1):
                values.append(back(k, values[-1]))
            integral = torch.stack(values).sum(0)  # (B, P)
            if self.switches.quadrature == "trapezoid":
                integral = integral - (values[0] + values[-1]) / 2
            return values[-1] + inner * (self.horizon / self.steps) * integral + outer * (start - end)

        return end, pullback

    def _chain(self, problem: Problem, theta: Tensor, tasks: Tasks, tableau: Tableau) -> Chain:
        """One step from any state, by any tableau, on the support loss with the inner proximal term."""
        inner, _ = self.proximal
        return chain(Kernel(problem, tableau, proximal=float(inner)), theta, tasks, self.horizon / self.steps, 1)


@torch.no_grad()
def own_exact(audited: Audited, problem: Problem, theta: Tensor, tasks: Tasks) -> Tensor:
    """The exact gradient (P,) of what the switches adapt by and judge by: what ``audited`` approximates.

    It is the discrete adjoint of the same forward solve with the same proximal terms.
    """
    inner, outer = audited.proximal
    solver = SOLVERS[audited.switches.forward](audited.steps)
    adapted, pullback = AMAML(audited.horizon, solver, proximal=inner)(problem, theta, tasks)
    moved = adapted - theta  # (B, P)
    return (pullback(problem.gradient(adapted, *tasks.query) + outer * moved) - outer * moved).mean(0)


def plain_exact(audited: Audited, problem: Problem, theta: Tensor, tasks: Tasks) -> Tensor:
    """The exact gradient (P,) of plain MAML with as many steps of the same size: what the paper says is computed."""
    return meta_gradient(AMAML(audited.horizon, Euler(audited.steps)), problem, theta, tasks).gradient


class Distance(NamedTuple):
    """How far a gradient is from a reference: the norm of the difference over the reference's, and the cosine between them."""

    error: float
    cosine: float


def distance(found: Tensor, reference: Tensor) -> Distance:
    """The distance of one gradient (P,) from another."""
    error = (found - reference).norm() / reference.norm()
    return Distance(error.item(), torch.cosine_similarity(found, reference, dim=0).item())


def settings_to_compare() -> list[Switches]:
    """The released and the paper's settings, with each switch of either set as in the other, and all ways through finding 3."""
    bare = without_proximal(RELEASED)
    found = [RELEASED, *one_at_a_time(RELEASED, PAPER).values(), bare, *one_at_a_time(bare, PAPER).values()]
    found += [PAPER, *one_at_a_time(PAPER, RELEASED).values()]
    found += [setting for base in (RELEASED, bare) for setting in backward_loops(base).values()]
    return list(dict.fromkeys(found))


def without_proximal(switches: Switches) -> Switches:
    """The same without both proximal terms."""
    return replace(switches, inner_proximal=False, outer_proximal=False)


def backward_loops(base: Switches) -> dict[str, Switches]:
    """The backward loops of finding 3, from the released one to a sound one; the forward solve stays."""
    return {
        "Euler, n + 1 steps (released)": base,
        "Euler, n steps": replace(base, backward_steps="n"),
        "Heun, n + 1 steps, wrapped": replace(base, adjoint="Heun"),
        "Heun, n + 1 steps, not wrapped": replace(base, adjoint="Heun", wrapped=False),
        "Heun, n steps": replace(base, adjoint="Heun", backward_steps="n", wrapped=False),
        "Heun, n steps, trapezoid": replace(base, adjoint="Heun", backward_steps="n", quadrature="trapezoid", wrapped=False),
    }


# ------------------------------------------------------------------------------------------------------------- the functions


@dataclass(frozen=True)
class CosFormula:
    r"""Cosine mixtures with finding 4's changes one by one: :math:`-c\sum_iA\cos(\omega x_i+\varphi)-\sum_ix_i^2`.

    Attributes:
        tenth: c is 0.1, as on the slides, or 1.
        swapped: :math:`\omega/\pi` in [3, 6] and :math:`\varphi` in [0.5, 2], or the other way round, as on the slides.
    """

    tenth: bool = True
    swapped: bool = False
    d: int = 2
    low: float = -1.0
    high: float = 1.0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """A, ω and φ of n functions: (n, 3), float64; one seed gives the same places within the ranges for all formulas."""
        ranges = ((0.1, 1.0), (3.0, 6.0), (0.5, 2.0)) if self.swapped else ((0.1, 1.0), (0.5, 2.0), (3.0, 6.0))
        drawn = torch.cat([uniform((n, 1), low, high, generator) for low, high in ranges], 1)
        return drawn * torch.tensor([1.0, torch.pi, 1.0], dtype=torch.float64)

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Parameters (B, 3), x (B, N, d) -> y (B, N, 1)."""
        amplitude, omega, phase = (column.view(-1, 1, 1) for column in parameters.T)  # (B, 1, 1) each
        waves = (amplitude * torch.cos(omega * x + phase)).sum(2, keepdim=True)
        return -(0.1 if self.tenth else 1.0) * waves - x.square().sum(2, keepdim=True)


@dataclass(frozen=True)
class AlpineFormula:
    r"""Alpine functions with finding 4's changes one by one: :math:`\sum_i|x_i\sin(x_i+\psi_i)+0.1x_i|`.

    Attributes:
        first_phase: every coordinate has the phase of the first one.
        shifted: all phases are larger by :math:`\pi`.
    """

    first_phase: bool = False
    shifted: bool = False
    d: int = 2
    low: float = -10.0
    high: float = 10.0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Phases of n functions: (n, d), float64."""
        return uniform((n, self.d), -5 * torch.pi / 12, 5 * torch.pi / 12, generator)

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Parameters (B, d), x (B, N, d) -> y (B, N, 1)."""
        phases = parameters[:, None]  # (B, 1, d)
        if self.first_phase:
            phases = phases[..., :1].expand(-1, -1, self.d)
        angle = x + phases + (torch.pi if self.shifted else 0.0)
        return (x * angle.sin() + x / 10).abs().sum(2, keepdim=True)


# The slides' formula of each family, its changes one by one, and all of them: the released one.
FORMULAS = {
    "cosmixture": CosFormula(),
    "cosmixture-without-tenth": CosFormula(tenth=False),
    "cosmixture-swapped": CosFormula(swapped=True),
    "cosmixture-released": CosFormula(tenth=False, swapped=True),
    "alpine": AlpineFormula(),
    "alpine-first-phase": AlpineFormula(first_phase=True),
    "alpine-shifted": AlpineFormula(shifted=True),
    "alpine-released": AlpineFormula(first_phase=True, shifted=True),
}


# --------------------------------------------------------------------------------------------------------- sizes and problem


@dataclass(frozen=True)
class Size:
    """How much a cell does at one profile.

    Attributes:
        steps: numbers K at which meta-gradients are compared on cosine mixtures.
        alpine_steps: the same on Alpine functions, one number.
        functions: in a pool: training functions, and as many new ones to test on.
        meta_steps, inner_steps: of a training run.
        rules: for each rule of adaptation, the steps after which the error is measured.
        memory: (B, K) of the memory cells.
        seeds: how many.
        compile: compile the inner steps.
    """

    steps: tuple[int, ...]
    alpine_steps: int
    functions: int
    meta_steps: int
    inner_steps: int
    rules: tuple[tuple[str, tuple[int, ...]], ...]
    memory: tuple[tuple[int, int], ...]
    seeds: int
    compile: bool


SIZES: dict[str, Size] = {
    "smoke": Size((5,), 5, 6, 3, 5, (("inner", (0, 5)), ("adam", (5,)), ("sgd", (5,))), ((2, 5),), 1, False),
    "book": Size((10, 50), 50, 50, 40, 50, (("inner", (0, 50)), ("adam", (50, 200)), ("sgd", (200,))), ((4, 50),), 1, False),
    "full": Size(
        (50, 500, 10, 200), 50, 100, 200, 50,
        (("inner", (0, 50, 500)), ("adam", (50, 200, 500)), ("sgd", (500,))),
        ((8, 50), (2, 50), (4, 100), (2, 200)), 3, True,
    ),
}  # fmt: skip


def network() -> nn.Module:
    """The released code's network for two inputs: two hidden layers of 32 tanh units, one output."""
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error, as in the released code."""
    return 0.5 * (prediction - target).square().mean()


@cache
def make_problem(compile: bool = False) -> Problem:
    """The network and its loss in double precision, as in the released code; one for all cells, so its steps are compiled once."""
    return Problem(network().double(), loss, compile=compile, trace_after=0)


def initial(seed: int) -> Tensor:
    """The network's parameters (P,) before any training."""
    model = seeded(network(), torch.Generator().manual_seed(seed))
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()


class Pools(NamedTuple):
    """Functions to train on, new ones to test on, and their standardisation."""

    train: Tasks
    test: Tasks
    standardisation: Standardisation


def pools(formula: str, functions: int, seed: int, fit_on: Literal["train", "all"] = "train") -> Pools:
    """Training functions and as many new ones, standardised by the training functions, or by all as the released code does.

    Raises:
        ValueError: an unknown formula.
    """
    if formula not in FORMULAS:
        raise ValueError(f"formula must be one of {tuple(FORMULAS)}, not {formula!r}")
    train, test = (
        make_function_tasks(FORMULAS[formula], functions, SHOTS, SHOTS, torch.Generator().manual_seed(first + seed), torch.float64)
        for first in (7000, 8000)  # numbers that no other experiment of this project seeds with
    )
    standardisation = Standardisation.fit(*((train,) if fit_on == "train" else (train, test)))
    return Pools(standardisation.apply(train), standardisation.apply(test), standardisation)


# ------------------------------------------------------------------------------------------------- training and its settings

EXACT, UNTRAINED = "exact", "untrained"
PROXIMAL_ON = dict(inner_proximal=True, outer_proximal=True)
TRAINED: dict[str, Switches | None] = {
    EXACT: None,
    "paper": PAPER,
    "paper + 1: proximal terms": replace(PAPER, **PROXIMAL_ON),
    "paper + 2: RK4 there, Euler back": replace(PAPER, forward="RK4", adjoint="Euler"),
    "paper + 3: n + 1 steps, rectangle, wrapped": replace(PAPER, backward_steps="n+1", quadrature="rectangle", wrapped=True),
    "released without 1": without_proximal(RELEASED),
    "released": RELEASED,
    UNTRAINED: None,
}


def train(setting: str, problem: Problem, pool: Tasks, size: Size, seed: int) -> Tensor:
    """Meta-train by Adam from the initial parameters of the seed: theta (P,).

    Raises:
        ValueError: a setting that is not in ``TRAINED``.
    """
    if setting not in TRAINED:
        raise ValueError(f"setting must be one of {tuple(TRAINED)}, not {setting!r}")
    if setting == UNTRAINED:
        return initial(seed)
    horizon, switches = INNER_LR * size.inner_steps, TRAINED[setting]
    method = AMAML(horizon, Euler(size.inner_steps)) if switches is None else Audited(horizon, size.inner_steps, switches)
    adam = partial(torch.optim.Adam, lr=META_LR)
    sampler = PoolSampler(pool, BATCH)
    return fit(method, problem, sampler, size.meta_steps, adam, seed=seed, theta=initial(seed), progress=False).theta


# Adaptation to a new function, the same for all that were trained. "inner" is what the method was trained for; "adam" is the
# released test; "sgd" is what its option of that name promises: rate 1e-3 on the mean squared error, which is twice our loss.
RULES = {"inner": MAML(INNER_LR, 1), "adam": AdamAdaptation(1e-3, weight_decay=1e-6), "sgd": MAML(2e-3, 1)}


def errors(problem: Problem, theta: Tensor, tasks: Tasks, size: Size) -> dict:
    """Adapt to each function by each rule: the held-out error of each, in standard deviations of the function's own values.

    Returns:
        For each rule: ``steps``; ``held_out``, a list of B errors for each of them; ``support``, the mean error on the support.
    """
    found = {}
    error = partial(metrics.nrmse, normaliser="standard deviation")
    for rule, steps in size.rules:
        table = evaluate(RULES[rule], problem, theta, tasks, error, steps)
        wide = table.pivot(index="step", columns="task", values="query")
        found[rule] = {
            "steps": wide.index.tolist(),
            "held_out": wide.round(4).to_numpy().tolist(),
            "support": table.groupby("step")["support"].mean().round(5).tolist(),
        }
    return found


# ----------------------------------------------------------------------------------------------------------------- the cells


def gradient_figures(formula: str, steps: int, at: str, size: Size, seed: int) -> dict:
    """Finding 1 to 3: every setting's distance from the exact gradient of what it computes itself, and from plain MAML's.

    Args:
        formula: of the functions.
        steps: K; the horizon is ``INNER_LR * K``.
        at: ``"initial"``, or ``"trained"`` by plain A-MAML.
    """
    data = pools(formula, size.functions, seed)
    problem = make_problem(size.compile)
    theta = _plainly_trained(formula, size, seed) if at == "trained" else initial(seed)
    tasks = data.test[:BATCH]
    own: dict[tuple, Tensor] = {}
    plain = plain_exact(Audited(INNER_LR * steps, steps, PAPER), problem, theta, tasks)
    rows = []
    for switches in settings_to_compare():
        audited = Audited(INNER_LR * steps, steps, switches)
        key = (switches.inner_proximal, switches.outer_proximal, switches.forward)
        if key not in own:
            own[key] = own_exact(audited, problem, theta, tasks)
        found = meta_gradient(audited, problem, theta, tasks).gradient
        row = asdict(switches) | {"norm": found.norm().item()}
        for name, reference in (("own", own[key]), ("plain", plain)):
            row |= {f"{name}_{k}": v for k, v in distance(found, reference)._asdict().items()}
        rows.append(row)
    return {"rows": rows, "parameters": problem.size, "plain_norm": plain.norm().item()}


@cache
def _plainly_trained(formula: str, size: Size, seed: int) -> Tensor:
    """Theta (P,) after a training with plain A-MAML; one for the cells of all K that run in one process."""
    return train(EXACT, make_problem(size.compile), pools(formula, size.functions, seed).train, size, seed)


def training_figures(formula: str, setting: str, size: Size, seed: int) -> dict:
    """Train with one setting, test on new functions of the same formula and, where it is another one, of the slides' formula."""
    data = pools(formula, size.functions, seed)
    started = time.perf_counter()
    theta = train(setting, make_problem(size.compile), data.train, size, seed)
    seconds = time.perf_counter() - started
    problem = make_problem()
    found = {"own": errors(problem, theta, data.test, size)}
    slides = formula.split("-")[0]
    if slides != formula:
        found["slides"] = errors(problem, theta, pools(slides, size.functions, seed).test, size)
    return {"tested_on": found, "training_seconds": seconds}


def standardisation_figures(formula: str, size: Size, seed: int) -> dict:
    """Finding 6: the same functions, standardised by the training functions alone and by test functions too."""
    found, gradients, scales = {}, [], {}
    for fit_on in ("train", "all"):
        data = pools(formula, size.functions, seed, fit_on)
        fast = make_problem(size.compile)
        method = AMAML(INNER_LR * size.inner_steps, Euler(size.inner_steps))
        gradients.append(meta_gradient(method, fast, initial(seed), data.train[:BATCH]).gradient)
        theta = train(EXACT, fast, data.train, size, seed)
        found[fit_on] = errors(make_problem(), theta, data.test, size)
        scales[fit_on] = {k: v.tolist() for k, v in vars(data.standardisation).items()}
    return {"fit_on": found, "scales": scales} | distance(gradients[1], gradients[0])._asdict()


def functions_figures(size: Size, seed: int) -> dict:
    """Finding 4: plain MAML's meta-gradient on each formula against that on the slides' formula, at the initial network.

    Both have the same inputs, and their parameters lie at the same places within their ranges.
    """
    problem = make_problem(size.compile)
    method = AMAML(INNER_LR * size.inner_steps, Euler(size.inner_steps))
    gradients = {name: meta_gradient(method, problem, initial(seed), pools(name, BATCH, seed).test).gradient for name in FORMULAS}
    return {
        name: distance(found, gradients[name.split("-")[0]])._asdict() | {"norm": found.norm().item()}
        for name, found in gradients.items()
    }


# -------------------------------------------------------------------------------------------------------------------- memory


@torch.enable_grad()
def by_task(problem: Problem, theta: Tensor, tasks: Tasks, steps: int, graph: bool, view: bool) -> tuple[Tensor, Tensor]:
    """The released recipe's order of work: one task after another, torchdiffeq forward, Euler back; the adapted parameters of
    all tasks are kept until the end.

    Args:
        problem, theta, tasks: as everywhere.
        steps: K.
        graph: theta requires a gradient, so the stored solution remembers how it came from theta, though nobody asks.
        view: the adapted parameters are kept as the last row of the stored solution, which keeps all of it alive, not as a copy.

    Returns:
        The adapted parameters (B, P) and the meta-gradient (P,), both as ``Audited`` has them with all switches at released.
    """
    horizon = INNER_LR * steps
    start = theta.detach().clone().requires_grad_(graph)
    fixed = start.detach()
    times = torch.linspace(0, horizon, steps + 1, dtype=theta.dtype)
    h, ends, gradients = horizon / steps, [], []
    for b in range(len(tasks)):
        task = tasks[b : b + 1]

        def slope(t: Tensor, u: Tensor, task: Tasks = task) -> Tensor:
            return -problem.gradient(u.detach()[None], *task.support)[0] - (u.detach() - fixed)

        path = odeint(slope, start, times, method="rk4")  # (K + 1, P)
        end = path[-1] if view else path[-1].clone()
        lam = problem.gradient(end.detach()[None], *task.query)[0] + end.detach() - fixed
        total = lam.clone()
        for k in range(steps, -1, -1):
            lam = lam - h * (problem.hvp(path[k].detach()[None], *task.support, lam[None])[0] + lam)
            total += lam
        ends.append(end)
        gradients.append(lam + h * total + fixed - end.detach())
    return torch.stack(ends), torch.stack(gradients).mean(0)


@torch.enable_grad()
def unrolled_by_task(problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> tuple[Tensor, Tensor]:
    """Plain unrolling, one task after another, each graph freed before the next: adapted (B, P) and meta-gradient (P,)."""
    ends, gradients = [], []
    for b in range(len(tasks)):
        task, start = tasks[b : b + 1], theta.detach().clone().requires_grad_()
        u = start[None]
        for _ in range(steps):
            u = u - INNER_LR * problem.gradient(u, *task.support, create_graph=True)
        gradients.append(torch.autograd.grad(problem.losses(u, *task.query).sum(), start)[0])
        ends.append(u[0].detach())
    return torch.stack(ends), torch.stack(gradients).mean(0)


def nodes(tensor: Tensor) -> int:
    """How many nodes of an autograd graph a tensor keeps alive."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return len(seen)


def memory_runs(problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> dict[str, Callable[[], object]]:
    """What the memory cells compare: each gives adapted parameters and a meta-gradient."""
    ours = AMAML(INNER_LR * steps, Euler(steps))

    def meta(method: AMAML) -> tuple[Tensor, Tensor]:
        estimate = meta_gradient(method, problem, theta, tasks)
        return estimate.adapted, estimate.gradient

    recipe = partial(by_task, problem, theta, tasks, steps)
    return {
        "released": partial(recipe, graph=True, view=True),
        "released, without graph": partial(recipe, graph=False, view=True),
        "released, adapted parameters copied": partial(recipe, graph=True, view=False),
        "released, without graph, copied": partial(recipe, graph=False, view=False),
        "unrolled task by task": partial(unrolled_by_task, problem, theta, tasks, steps),
        "ours, Store": partial(meta, ours),
        "ours, Checkpoint": partial(meta, replace(ours, memory=Checkpoint())),
    }


def memory_figures(batch: int, steps: int, seed: int) -> dict:
    """Finding 5: live bytes at the peak, nodes of the graph kept alive, and seconds without the counters, of each run."""
    tasks = pools("cosmixture", batch, seed).train
    problem, theta = make_problem(), initial(seed)
    found = {}
    for name, run in memory_runs(problem, theta, tasks, steps).items():
        if name.startswith("ours"):
            run()  # what is made once, the traced steps, does not count
        started = time.perf_counter()
        adapted, _ = run()
        seconds = time.perf_counter() - started
        alive = nodes(adapted)
        del adapted
        with LiveBytes() as live:
            run()
        found[name] = {"peak": live.peak, "nodes": alive, "seconds": seconds}
    return found


# --------------------------------------------------------------------------------------------------------------------- cells


def cells(profile: str, seed: int | None = None) -> list[Cell]:
    """All cells of a profile; those that say most come first."""
    size = SIZES[check_profile(profile)]
    seeds = range(size.seeds) if seed is None else [seed]

    def cell(kind: str, seed: int, **more: object) -> Cell:
        return Cell(f"audit-{kind}", {"profile": profile, **more}, seed)

    found = [cell("training", s, formula="cosmixture", setting=name) for s in seeds for name in TRAINED]
    found += [
        cell("gradient", s, formula="cosmixture", steps=k, at=at)
        for k in size.steps
        for s in seeds
        for at in ("initial", "trained")
    ]
    found += [cell("functions", s) for s in seeds]
    found += [cell("memory", seeds[0], batch=b, steps=k) for b, k in size.memory]
    found += [cell("standardisation", s, formula="cosmixture") for s in seeds]
    found += [
        cell("training", s, formula=name, setting=setting)
        for name in ("cosmixture-released", "alpine", "alpine-released")
        for s in seeds
        for setting in (EXACT, UNTRAINED)
    ]
    # Alpine functions, where the cosine mixtures leave a question: the proximal terms, and all findings together.
    found += [
        cell("training", s, formula="alpine", setting=setting)
        for s in seeds
        for setting in ("paper + 1: proximal terms", "released")
    ]
    found += [cell("gradient", s, formula="alpine", steps=size.alpine_steps, at=at) for s in seeds for at in ("initial", "trained")]
    return found


def run(cell: Cell, scratch: Path) -> dict:
    """The figures of one cell."""
    settings = dict(cell.settings)
    size = SIZES[settings.pop("profile")]
    kind = cell.experiment.removeprefix("audit-")
    if kind == "memory":
        return memory_figures(seed=cell.seed, **settings)
    figures = {
        "gradient": gradient_figures,
        "training": training_figures,
        "standardisation": standardisation_figures,
        "functions": functions_figures,
    }[kind]
    return figures(size=size, seed=cell.seed, **settings)


# ------------------------------------------------------------------------------------------------------------------- reading


def read(kind: str, folder: Path = RECORDS) -> pd.DataFrame:
    """The full-scale records of a kind, tidy; empty if there are none.

    Returns:
        One row for each setting of the switches (``gradient``), each way to keep the solution (``memory``), each formula
        (``functions``), or each rule of adaptation and step (``training``, ``standardisation``), with the settings of the cell
        and its ``seed``. Errors of single functions are in the column ``held_out``, arrays of B numbers.
    """
    found = []
    for entry in read_records(folder, f"audit-{kind}-profile=full-*.json"):
        settings = {k: v for k, v in entry.configuration.items() if k != "profile"} | {"seed": entry.seed}
        found += [settings | row for row in rows(kind, entry.figures)]
    return pd.DataFrame(found)


def here(kind: str, profile: str, seed: int, **only: object) -> pd.DataFrame:
    """Run the cells of a kind here and now, of one seed and with these settings alone; a table like that of :func:`read`."""
    found = []
    for cell in cells(profile, seed):
        settings = {k: v for k, v in cell.settings.items() if k != "profile"}
        if cell.experiment == f"audit-{kind}" and all(settings.get(k) == v for k, v in only.items()):
            found += [settings | {"seed": cell.seed} | row for row in rows(kind, run(cell, Path()))]
    return pd.DataFrame(found)


def rows(kind: str, figures: dict) -> list[dict]:
    """The rows of one cell's figures (see :func:`read`)."""
    if kind == "gradient":
        return figures["rows"]
    if kind in ("memory", "functions"):
        return [{"name": name} | row for name, row in figures.items()]
    label = {"training": "tested_on", "standardisation": "fit_on"}[kind]
    groups = figures[label]
    more = {k: figures[k] for k in ("error", "cosine") if k in figures}  # of the meta-gradient, the standardisation changed
    return [
        more | {label: group, "rule": rule, "step": step, "held_out": np.array(held_out), "support": support}
        for group, rules in groups.items()
        for rule, found in rules.items()
        for step, held_out, support in zip(found["steps"], found["held_out"], found["support"], strict=True)
    ]


def select(table: pd.DataFrame, switches: Switches) -> pd.DataFrame:
    """The rows of a table of meta-gradients that have these switches."""
    keep = pd.Series(True, index=table.index)
    for name, value in asdict(switches).items():
        keep &= table[name] == value
    return table[keep]


# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def seed_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95 % interval, by Student's t: a few seeds make it wide.

    Raises:
        ValueError: fewer than 2 or more than 10 values.
    """
    x = np.array(list(values), dtype=float)
    if not 2 <= len(x) <= len(STUDENT) + 1:
        raise ValueError(f"an interval over seeds needs 2 to {len(STUDENT) + 1} values, not {len(x)}")
    return float(x.mean()), float(STUDENT[len(x) - 2] * x.std(ddof=1) / len(x) ** 0.5)


def over_seeds(table: pd.DataFrame, reference: Literal["own", "plain"]) -> pd.Series:
    """A table of meta-gradients, one row for each seed, in one: the geometric mean of the relative error and the mean cosine."""
    error, cosine = table[f"{reference}_error"], table[f"{reference}_cosine"]
    return pd.Series(
        {
            "error": float(np.exp(np.log(error).mean())), "least": error.min(), "largest": error.max(),
            "cosine": cosine.mean(), "least cosine": cosine.min(), "largest cosine": cosine.max(),
        }
    )  # fmt: skip


class Effect(NamedTuple):
    """Held-out error of one run less that of another, on the same functions.

    Attributes:
        mean: over seeds and functions.
        half_width: of the 95 % interval over seeds (Student's t).
        over_functions: half-width over functions, the seeds' trained networks given (normal, as in few-shot papers).
        seeds: how many.
    """

    mean: float
    half_width: float
    over_functions: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"


def effect(with_it: pd.DataFrame, without: pd.DataFrame) -> Effect:
    """The effect of something on the held-out error, function by function, over the seeds that both tables have.

    Args:
        with_it, without: rows of :func:`read`, one for each seed.

    Raises:
        ValueError: a seed occurs twice in one table, or fewer than two seeds are in both.
    """
    sides = []
    for table in (with_it, without):
        if table["seed"].duplicated().any():
            raise ValueError("one row for each seed is needed; select a rule, a step and a setting first")
        sides.append(table.set_index("seed")["held_out"])
    seeds = sorted(set(sides[0].index) & set(sides[1].index))
    differences = [sides[0][s] - sides[1][s] for s in seeds]
    mean, half_width = seed_interval([d.mean() for d in differences])
    return Effect(mean, half_width, metrics.interval(np.concatenate(differences)).half_width, len(seeds))


if __name__ == "__main__":
    program(__doc__, cells, run)
