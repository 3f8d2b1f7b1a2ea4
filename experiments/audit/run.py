"""Meta-gradients under many settings of the switches, and training under some of them."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import pandas as pd
from torch import Tensor

from amaml_core import AMAML, Euler, Problem, Tasks, evaluate, meta_gradient, metrics
from amaml_core.samplers import PoolSampler

from ..common.cells import Cell, live_rows
from ..common.training import loss, meta_train, network, seeded
from . import memory
from .formulas import FORMULAS, pools
from .settings import BATCH, EXACT, INNER_LR, META_LR, RULES, SIZES, TRAINED, UNTRAINED, Size, cells
from .switches import PAPER, Audited, distance, own_exact, plain_exact, settings_to_compare

DIGITS = {"held_out": 4, "mean_support": 5}  # decimals that are recorded of the errors


@cache
def make_problem(compile: bool = False) -> Problem:
    """The network and its loss in double precision, as in the released code; one for all cells, so its steps are compiled once."""
    return Problem(network(2).double(), loss, compile=compile, trace_after=0)


def initial(seed: int) -> Tensor:
    """The network's parameters (P,) before any training, in double precision."""
    return Problem(seeded(network(2), seed).double(), loss).initial_parameters()


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
    return meta_train(method, problem, PoolSampler(pool, BATCH), size.meta_steps, META_LR, seed, initial(seed))


@cache
def _plainly_trained(formula: str, size: Size, seed: int) -> Tensor:
    """Theta (P,) after a training with plain A-MAML; one for the cells of all K that run in one process."""
    return train(EXACT, make_problem(size.compile), pools(formula, size.functions, seed).train, size, seed)


def errors(problem: Problem, theta: Tensor, tasks: Tasks, size: Size) -> pd.DataFrame:
    """Adapt to each function by each rule, and measure on the way.

    Returns:
        For each ``rule``, ``step`` and ``task``: the ``held_out`` error, in standard deviations of the function's own values, and
        ``mean_support``, the mean over all functions of the error on their support points.
    """
    error = partial(metrics.nrmse, normaliser="standard deviation")
    parts = []
    for rule, steps in size.rules:
        table = evaluate(RULES[rule], problem, theta, tasks, error, steps).sort_values(["step", "task"])
        means = table.groupby("step")["support"].transform("mean")
        parts.append(table.assign(rule=rule, held_out=table["query"], mean_support=means))
    return pd.concat(parts, ignore_index=True)[["rule", "step", "task", "held_out", "mean_support"]].round(DIGITS)


def gradient(formula: str, steps: int, at: str, size: Size, seed: int) -> pd.DataFrame:
    """Findings 1 to 3: every setting's distance from the exact gradient of what it computes itself, and from plain MAML's.

    Args:
        formula: of the functions.
        steps: K; the horizon is ``INNER_LR * K``.
        at: ``"initial"``, or ``"trained"`` by plain A-MAML.
        size, seed: how much, of what draws.

    Returns:
        For each setting of the switches, with a column for each of them: ``own_error``, ``own_cosine``, ``plain_error`` and
        ``plain_cosine``; the ``norm`` of the meta-gradient, and ``plain_norm``, that of plain MAML's.
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
        row = asdict(switches)
        for name, reference in (("own", own[key]), ("plain", plain)):
            row |= {f"{name}_{k}": v for k, v in distance(found, reference)._asdict().items()}
        rows.append(row | {"norm": found.norm().item()})
    return pd.DataFrame(rows).assign(plain_norm=plain.norm().item())


def training(formula: str, setting: str, size: Size, seed: int) -> pd.DataFrame:
    """Train with one setting and test on new functions.

    Returns:
        :func:`errors`, where ``tested_on`` is ``"own"``, and ``"slides"`` on functions of the slides' formula, where the
        network was trained on another one.
    """
    data = pools(formula, size.functions, seed)
    theta = train(setting, make_problem(size.compile), data.train, size, seed)
    tests, slides = {"own": data.test}, formula.split("-")[0]
    if slides != formula:
        tests["slides"] = pools(slides, size.functions, seed).test
    return _labelled("tested_on", {name: errors(make_problem(), theta, tasks, size) for name, tasks in tests.items()})


def standardisation(formula: str, size: Size, seed: int) -> pd.DataFrame:
    """Finding 6: the same functions, standardised by the training functions alone and by test functions too.

    Returns:
        :func:`errors`, where ``fit_on`` is ``"train"`` or ``"all"``; and the ``gradient_error`` and ``gradient_cosine`` of the
        second's meta-gradient at the initial network, against the first's.
    """
    fast = make_problem(size.compile)
    method = AMAML(INNER_LR * size.inner_steps, Euler(size.inner_steps))
    found, gradients = {}, []
    for fit_on in ("train", "all"):
        data = pools(formula, size.functions, seed, fit_on)
        gradients.append(meta_gradient(method, fast, initial(seed), data.train[:BATCH]).gradient)
        found[fit_on] = errors(make_problem(), train(EXACT, fast, data.train, size, seed), data.test, size)
    apart = distance(gradients[1], gradients[0])
    return _labelled("fit_on", found).assign(gradient_error=apart.error, gradient_cosine=apart.cosine)


def _labelled(label: str, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(**{label: name}) for name, table in tables.items()], ignore_index=True)


def functions(size: Size, seed: int) -> pd.DataFrame:
    """Finding 4: plain MAML's meta-gradient on each formula against that on the slides' formula, at the initial network.

    Both have the same inputs, and their parameters lie at the same places within their ranges.

    Returns:
        For each ``formula``: ``error``, ``cosine`` and ``norm``.
    """
    problem = make_problem(size.compile)
    method = AMAML(INNER_LR * size.inner_steps, Euler(size.inner_steps))
    gradients = {name: meta_gradient(method, problem, initial(seed), pools(name, BATCH, seed).test).gradient for name in FORMULAS}
    return pd.DataFrame(
        [
            {"formula": name} | distance(found, gradients[name.split("-")[0]])._asdict() | {"norm": found.norm().item()}
            for name, found in gradients.items()
        ]
    )


KINDS = {"gradient": gradient, "training": training, "standardisation": standardisation, "functions": functions}


def run(cell: Cell, scratch: Path) -> pd.DataFrame:
    """The rows of one cell."""
    wanted = dict(cell.settings)
    size = SIZES[wanted.pop("size")]
    if cell.kind == "memory":
        tasks = pools("cosmixture", wanted["batch"], cell.seed).train
        return memory.measure(make_problem(), initial(cell.seed), tasks, wanted["steps"])
    return KINDS[cell.kind](size=size, seed=cell.seed, **wanted)


def live(size: str, kind: str, seed: int, **only: object) -> pd.DataFrame:
    """The rows of the cells of one kind that have these settings, run here and now; like those of the records.

    Raises:
        ValueError: there is no such cell.
    """
    chosen = [c for c in cells(size, seed) if c.kind == kind and all(c.settings.get(k) == v for k, v in only.items())]
    if not chosen:
        raise ValueError(f"no cell of kind {kind!r} and size {size!r} has {only}")
    return live_rows(chosen)[kind]
