"""What the paper claims of its meta-gradient and what the chapter concludes, each with the test that decides it; all from rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from ..common.claims import Claim, decide
from . import tables
from .candidates import BACKSOLVE, COARSE, FIRST_ORDER, REPTILE, STORE
from .facts import CLOSE, FLOW, arrows, percent, plain, power
from .tables import BFLOAT16, FEWEST, HEUN, IMAML, LIMIT, NEAR, ROUNDING, Rows

SMALL = 0.05  # a relative error


def by_seed(errors: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """Medians over meta-batches at the main case: a row for each candidate, a column for each snapshot and seed."""
    here = tables.by_batch_medians(tables.at(errors, tables.main_case(errors)))
    return here.pivot(index="candidate", columns=["updates", "seed"], values=column)


def excludes_zero(run: pd.Series) -> bool:
    """Whether the interval of a run's difference to the exact one does, of :func:`experiments.tradeoff.tables.against_exact`."""
    return bool(abs(run["difference"]) > run["difference ±"])


# ------------------------------------------------------------------------------------------------------------- the paper's


def claims(rows: Rows | None = None) -> list[Claim]:
    """What the paper claims, decided by the records (or by other rows)."""
    return list(_claims(tables.recorded() if rows is None else rows))


def _claims(rows: Rows) -> Iterator[Claim]:
    errors, runs = by_seed(rows["errors"]), tables.against_exact(rows["training"])
    ours, others = errors.loc[HEUN[1]], errors.reindex([*IMAML.values(), FIRST_ORDER, REPTILE]).dropna()
    less = (ours < others).all(axis=1)
    better = {name: runs.loc[name, "difference"] > 0 and excludes_zero(runs.loc[name]) for name in (FIRST_ORDER, *CLOSE)}
    yield Claim(
        "tradeoff", "The meta-gradient by the adjoint is accurate",
        f"Heun's scheme on every state is less than {percent(SMALL)} off the exact gradient at every initialisation, in each seed",
        "accurate", f"at most {percent(ours.max())} off", decide(ours < SMALL),
        "at the inner step size of training; on a coarser grid it diverges after training",
    )  # fmt: skip
    yield Claim(
        "tradeoff", "It is more accurate than implicit and first-order meta-gradients",
        "at each of these it is closer to the exact gradient than every setting of iMAML, than FOMAML and than Reptile",
        "others take aggressive approximations", f"closer than {less.sum()} of {len(less)}", decide(less),
        "all from the same adapted parameters; Reptile's length means nothing",
    )  # fmt: skip
    yield Claim(
        "tradeoff", "A more accurate meta-gradient gives a better initialisation",
        "held-out error with the exact one below that with FOMAML, Reptile, two truncations and iMAML, the interval without zero",
        "yes", f"lower than with {', '.join(name for name, wins in better.items() if wins) or 'none of them'}",
        decide(better.values()),
        "the same rates for all, none tuned",
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the chapter's


def conclusions(rows: Rows) -> list[Claim]:
    """The chapter's conclusions; what would refute each is that its test fails."""
    return [*_of_errors(rows), *_of_stability(rows), *_of_training(rows)]


def _conclusion(claim: str, test: str, ours: str, outcomes: Iterable[bool]) -> Claim:
    return Claim("tradeoff", claim, test, "", ours, decide(outcomes))


def _of_errors(rows: Rows) -> Iterator[Claim]:
    every, main = tables.by_batch_medians(rows["errors"]), by_seed(rows["errors"])
    start, end = main.columns.levels[0][[0, -1]]
    groups = main.index.str.split(": ").str[0]
    flow = main[groups.isin(FLOW)][start]
    exact = every.loc[every["group"].eq(STORE), "error"]
    yield _conclusion("The discrete adjoint is exact", "error below 10⁻¹² everywhere", f"at most {exact.max():g}", exact < ROUNDING)
    yield _conclusion(
        "Who solves the flow stays as far from the descent as the two are apart",
        "at initialisation, no scheme and no tolerance gets closer than 0.3 %, in any seed",
        f"the closest is {percent(flow.min().min())} off", (flow > 0.003).all(),
    )  # fmt: skip
    ratio = tables.halved(rows["errors"])
    yield _conclusion(
        "The two approach each other at first order in the step size",
        "after training, from α = 0.05 to 0.025 the errors of schemes on all states and of Dopri5 fall by a factor of 1.5 to 3",
        f"{plain(ratio.min())} to {plain(ratio.max())}", ratio.between(1.5, 3),
    )  # fmt: skip
    rounded = main.loc[BFLOAT16]
    yield _conclusion(
        "States in bfloat16 are nearly free at initialisation, and not at the end of training",
        "at initialisation closer than every scheme that solves the flow; at the end more than five times as far off; in each seed",
        f"{percent(rounded[start].median())}, then {percent(rounded[end].median())}",
        [*(rounded[start] < flow.min()), *(rounded[end] > 5 * rounded[start])],
    )  # fmt: skip
    refused = every.loc[every["group"].eq(BACKSOLVE), "refused"]
    yield _conclusion("A reversed flow is lost", "Backsolve refuses everywhere", f"{refused.sum()} of {len(refused)}", refused)


def _of_stability(rows: Rows) -> Iterator[Claim]:
    curvature, case = rows["curvature"], tables.main_case(rows["errors"])
    end = tables.at(curvature, case).query("place == 'end'").groupby(["seed", "updates"])["curvature"].median().unstack()
    yield _conclusion(
        "Meta-training raises the curvature towards the limit of the inner step",
        "step size times largest eigenvalue rises from each snapshot to the next and stays below 2, in each seed",
        arrows(end.median()), [*(np.diff(end) > 0).ravel(), *(end < LIMIT).to_numpy().ravel()],
    )  # fmt: skip
    main = by_seed(rows["errors"])
    start, middle, last = main.columns.levels[0][[0, 1, -1]]
    five, two = main.loc[HEUN[5]], main.loc[HEUN[2]]
    yield _conclusion(
        "A coarser grid that was harmless at the start diverges later",
        "Heun's method, in each seed: on every fifth state below 1 % off at the start, above 1,000 after 100 and 600 updates; on "
        "every second below 2 % after 100 updates, above 10⁶ after 600",
        f"every fifth: {percent(five[start].median())}, then {power(five[middle].median())}",
        [*(five[start] < 0.01), *(five[middle] > 1e3), *(five[last] > 1e3), *(two[middle] < 0.02), *(two[last] > 1e6)],
    )  # fmt: skip
    coarse = main[main.index.str.startswith(COARSE) | main.index.str.contains("m=(?:2|5|10)$")][last]
    yield _conclusion(
        "At the end of training every coarser grid is broken",
        "at the step size and horizon of training, on fewer states, or with fewer steps of a fixed size, no "
        "scheme is closer than a gradient of zero, in any seed",
        f"at least {percent(coarse.min().min())} off", coarse.gt(1).to_numpy().ravel(),
    )  # fmt: skip
    grid = tables.stability(rows["errors"], curvature)
    below, above = (grid.loc[which, "error"] for which in (grid["product"] < LIMIT, grid["product"] > LIMIT))
    yield _conclusion(
        "What decides is m times that curvature, with the limit 2",
        f"in every case, snapshot and seed, Euler's and Heun's method on every m-th state (in {FEWEST} steps or more) is off by "
        f"less than a tenth below {LIMIT - NEAR:g}, and by more than the gradient itself above {LIMIT + NEAR:g}",
        f"{len(below)} below: at most {percent(below.max())}; {len(above)} above: at least {percent(above.min())}",
        [*(below < 0.1), *(above > 1)],
    )  # fmt: skip


def _of_training(rows: Rows) -> Iterator[Claim]:
    cosines = by_seed(rows["errors"], "cosine")
    first = cosines.loc[FIRST_ORDER].unstack("updates").to_numpy()
    yield _conclusion(
        "FOMAML's cosine rises first and falls then", "from 0 to 100 and from 100 to 600 updates, in each seed",
        arrows(np.median(first, axis=0)), [*(first[:, 1] > first[:, 0]), *(first[:, 2] < first[:, 1])],
    )  # fmt: skip
    best = cosines.reindex(IMAML.values()).T.groupby(level="updates").median().idxmax(axis=1)
    yield _conclusion(
        "The best setting of iMAML changes along training", "another one of the nine has the largest cosine at the end",
        f"{best.iloc[0]}, then {best.iloc[-1]}", [best.iloc[0] != best.iloc[-1]],
    )  # fmt: skip
    runs, untrained = tables.against_exact(rows["training"]), tables.untrained(rows["training"])
    runs["shown"] = [f"{d:+.4f} ± {h:.4f}" for d, h in zip(runs["difference"], runs["difference ±"], strict=True)]
    accurate, broken, half = (runs.loc[n] for n in ("adjoint ODE, Heun, m=1", "adjoint ODE, Heun, m=5", "truncated, K/2"))
    yield _conclusion(
        "An accurate approximation is as good as the exact gradient",
        "on all states: the interval of the difference holds zero, and is narrower than ± 0.001",
        accurate["shown"], [not excludes_zero(accurate), accurate["difference ±"] < 1e-3],
    )  # fmt: skip
    yield _conclusion(
        "A broken one is as good as none, and nothing announces it",
        "on every fifth state: every seed comes to its end with finite errors, within a tenth of the untrained network's",
        f"{plain(broken['held_out'])} against {plain(untrained)}",
        [0.9 < broken["held_out"] / untrained < 1.1, broken["seeds"] == runs["seeds"].max(), broken["lost"] == 0],
    )  # fmt: skip
    yield _conclusion(
        "Exactness does not decide", "truncated to half of the steps, which is further off, it ends lower than the exact run, the "
        "interval without zero; and Reptile, iMAML and the other truncation within a tenth of its error",
        half["shown"], [half["difference"] < 0, excludes_zero(half), *_near(runs)],
    )  # fmt: skip
    yield _conclusion(
        "FOMAML ends higher, at these rates", "the interval of the difference is above zero", runs.loc[FIRST_ORDER, "shown"],
        [runs.loc[FIRST_ORDER, "difference"] > 0, excludes_zero(runs.loc[FIRST_ORDER])],
    )  # fmt: skip
    open_ones = [name for name in CLOSE if name != "truncated, K/2"]
    yield _conclusion(
        "Whether Reptile, iMAML and the truncation to a tenth are better or worse than exact is open", "their intervals hold zero",
        ", ".join(f"{name}: {runs.loc[name, 'shown']}" for name in open_ones),
        [not excludes_zero(runs.loc[name]) for name in open_ones],
    )  # fmt: skip


def _near(runs: pd.DataFrame) -> list[bool]:
    return [abs(runs.loc[name, "difference"]) < 0.1 * runs.loc["exact", "held_out"] for name in CLOSE]
