"""Errors, costs and trained errors as the chapter shows them; all from rows, recorded or live."""

from __future__ import annotations

import numpy as np
import pandas as pd

from amaml_core.records import brief

from ..common.records import rows
from ..common.statistics import pooled
from .candidates import ADAPTIVE, EXACT, FIRST_ORDER, IMPLICIT, REPTILE, ROUNDED, THINNED, TRUNCATION, candidates
from .settings import KINDS, SIZES, TRAINED

ERRORS = ["held_out", "held_out ±", "difference", "difference ±", "low", "high"]  # columns of `against_exact`
Rows = dict[str, pd.DataFrame]  # the rows of each kind of cells
Case = tuple[float, int]
LIMIT, NEAR = 2.0, 0.2  # of the stability of a step times an eigenvalue, Euler's and Heun's; and what is near it
FEWEST = 5  # solver steps
ROUNDING = 1e-12  # two exact gradients differ by rounding alone, and that is no reason to prefer one
HEUN = {m: f"{THINNED}: Heun, m={m}" for m in (1, 2, 5)}
BFLOAT16 = f"{ROUNDED}: bfloat16"
IMAML = {(w, cg): f"{IMPLICIT}: λT={w:g}, {cg} CG" for w in (0.5, 1, 2) for cg in (1, 5, 10)}


def recorded() -> Rows:
    """All rows of full size, by kind.

    Raises:
        FileNotFoundError: a kind has no records.
    """
    found = {kind: rows("tradeoff", kind, size="full") for kind in KINDS}
    if without := [kind for kind, table in found.items() if table.empty]:
        raise FileNotFoundError(f"no records of {', '.join(without)}: get them back with git, or make them with `make full`")
    return found


def main_case(table: pd.DataFrame) -> Case:
    """Step size and number of steps that all seeds have, at the size of these rows."""
    return SIZES[table["size"].iloc[0]].cases[0]


def at(table: pd.DataFrame, case: Case) -> pd.DataFrame:
    """The rows of one step size and number of steps."""
    return table[table["inner_lr"].eq(case[0]) & table["steps"].eq(case[1])]


def source(errors: pd.DataFrame) -> str:
    """How many seeds stand behind the numbers, and where they come from."""
    counts = errors.groupby(["inner_lr", "steps"])["seed"].nunique()
    lr, steps = main_case(errors)
    others = set(counts.drop((lr, steps)))
    elsewhere = f", {'–'.join(map(str, sorted(others)))} elsewhere" if others else ""
    return f"{counts[lr, steps]} seeds at α = {lr:g} and K = {steps}{elsewhere}; records in results/full/tradeoff.jsonl"


def methods(lr: float, steps: int) -> pd.DataFrame:
    """The first candidate of each group, as one would write it, and how many the group has."""
    found = candidates(lr, steps)
    table = pd.DataFrame([{"group": c.group, "method": brief(c.method)} for c in found])
    return table.groupby("group", sort=False)["method"].agg(["count", "first"]).rename(columns={"first": "the first of them"})


# ----------------------------------------------------------------------------------------------------------------- errors


def by_batch_medians(errors: pd.DataFrame) -> pd.DataFrame:
    """A row for each case, seed, snapshot and candidate: medians of ``error`` and ``cosine`` over the meta-batches, ``refused``,
    and beside them ``group``, ``setting`` and the horizon ``T``."""
    keys = ["inner_lr", "steps", "seed", "updates", "candidate"]
    found = errors.groupby(keys, sort=False).agg(error=("error", "median"), cosine=("cosine", "median"), refused=("refused", "max"))
    found = found.reset_index()
    names = found["candidate"].str.partition(": ")
    return found.assign(group=names[0], setting=names[2], T=(found["inner_lr"] * found["steps"]).round(6))


def over_seeds(table: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Of :func:`by_batch_medians` a row for each of ``keys`` and candidate: ``error`` and ``cosine``, their medians over seeds,
    and whether any seed ``refused``."""
    groups = table.groupby([*keys, "group", "setting", "candidate"], sort=False)
    return groups.agg(error=("error", "median"), cosine=("cosine", "median"), refused=("refused", "max")).reset_index()


def spread(table: pd.DataFrame, candidate: str, by: str, column: str = "error") -> pd.DataFrame:
    """Of :func:`by_batch_medians`, for one candidate and each value of ``by``: ``median``, ``min`` and ``max`` over seeds."""
    mine = table[table["candidate"].eq(candidate)]
    return mine.groupby(by)[column].agg(["median", "min", "max"])


def live_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Relative errors: a row for each candidate, a column for each snapshot."""
    table = by_batch_medians(errors)
    wide = table.pivot(index="candidate", columns="updates", values="error").reindex(table["candidate"].unique())
    return wide.rename_axis(columns="relative error after so many meta updates")


def shared_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seeds that all cases have, so that cases are compared on the same functions and networks."""
    each = table.groupby(["inner_lr", "steps"])["seed"].agg(set)
    return table[table["seed"].isin(set.intersection(*each))]


def step_sizes(errors: pd.DataFrame) -> pd.DataFrame:
    """Errors at the end of training over one horizon in steps of different sizes, for the seeds that all of them have."""
    table = by_batch_medians(errors)
    lr, steps = main_case(errors)
    last = table[table["updates"].eq(table["updates"].max()) & table["T"].eq(round(lr * steps, 6))]
    wanted = [f"{THINNED}: {s}" for s in ("Euler, m=1", "RK4, m=1", "Heun, m=1", "Heun, m=2", "Heun, m=5")]
    wanted += [f"{ADAPTIVE}: rtol=1e-06, continuous", BFLOAT16, IMAML[1, 5], FIRST_ORDER]
    last = shared_seeds(last)
    wide = over_seeds(last, "inner_lr", "steps").pivot(index="candidate", columns=["inner_lr", "steps"], values="error")
    title = f"T = {lr * steps:g}, after {table['updates'].max()} updates, seed {', '.join(map(str, last['seed'].unique()))}"
    return wide.reindex(wanted).rename_axis(index=title)


def following(errors: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`step_sizes` the schemes that stay close to the flow: those on all states, and Dopri5."""
    table = step_sizes(errors)
    return table[[name.endswith("m=1") or name.startswith(ADAPTIVE) for name in table.index]]


def halved(errors: pd.DataFrame) -> pd.Series:
    """By which factor the errors of :func:`following` fall at half the main case's step size."""
    (lr, steps), close = main_case(errors), following(errors)
    return close[lr, steps] / close[lr / 2, 2 * steps]


def along_training(errors: pd.DataFrame) -> pd.DataFrame:
    """Error and cosine of some candidates at each snapshot, medians over meta-batches and seeds, at the main case."""
    table = over_seeds(by_batch_medians(at(errors, main_case(errors))), "updates")
    wide = table.pivot(index="candidate", columns="updates", values=["error", "cosine"])
    return wide.reindex(followed(main_case(errors)))


def followed(case: Case) -> list[str]:
    """The candidates whose way along training is shown."""
    implicit = [IMAML[setting] for setting in ((1, 5), (1, 10), (0.5, 10))]
    half = f"{TRUNCATION}: last {case[1] // 2} of {case[1]}"
    return [BFLOAT16, *HEUN.values(), f"{ADAPTIVE}: rtol=1e-04, discrete", half, *implicit, FIRST_ORDER, REPTILE]


def sharpness(curvature: pd.DataFrame, case: Case, place: str = "end") -> pd.DataFrame:
    """Step size times largest eigenvalue at one end of the descent, by snapshot: ``median``, ``min`` and ``max`` over tasks and
    seeds."""
    here = at(curvature, case)
    return here[here["place"].eq(place)].groupby("updates")["curvature"].agg(["median", "min", "max"])


def stability(errors: pd.DataFrame, curvature: pd.DataFrame) -> pd.DataFrame:
    """Whether m times the curvature says which of Euler's and Heun's sweeps on every m-th state are stable.

    Returns:
        For each case, seed, snapshot, m and method the ``error``, and ``product``, m times the larger of the median curvatures at
        both ends of the descent. Left out is what is near the limit of 2, and what takes fewer than five steps, in which an
        instability has no time to grow.
    """
    keys = ["inner_lr", "steps", "seed", "updates"]
    sharp = curvature.groupby([*keys, "place"])["curvature"].median().groupby(level=keys).max().rename("curvature")
    table = by_batch_medians(errors).join(sharp, on=keys)
    parts = []
    for m in (1, 2, 5, 10):
        mine = table[table["candidate"].isin([f"{THINNED}: {solver}, m={m}" for solver in ("Euler", "Heun")])]
        parts.append(mine[mine["steps"] >= FEWEST * m].assign(m=m, product=m * mine["curvature"]))
    found = pd.concat(parts, ignore_index=True)
    return found[(found["product"] - LIMIT).abs() > NEAR]


# ------------------------------------------------------------------------------------------------------------------- map


def cost_map(errors: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Every candidate that gives a gradient at initialisation, at the main case: ``error`` and ``cosine`` (medians), ``rounded``,
    the error with those below rounding made equal, ``ms`` and ``MiB``, and whether it is ``best by`` each: no other beats it."""
    case = main_case(errors)
    start = by_batch_medians(at(errors, case))
    start = over_seeds(start[start["updates"].eq(start["updates"].min())])
    table = start.merge(at(costs, case)[["candidate", "seconds", "low", "high", "peak"]], on="candidate")
    table = table.assign(ms=1e3 * table["seconds"], MiB=table["peak"] / 2**20, rounded=table["error"].clip(lower=ROUNDING))
    for cost in ("ms", "MiB"):
        table[f"best by {cost}"] = pareto(table, cost, "rounded")
    return table


def pareto(table: pd.DataFrame, cost: str, error: str = "error") -> pd.Series:
    """Which rows no other row beats: none is as good in both columns and better in one."""
    values = table[[cost, error]].to_numpy(dtype=float)
    beaten = [
        any((other <= mine).all() and (other < mine).any() for other in values) or not np.isfinite(mine).all() for mine in values
    ]
    return ~pd.Series(beaten, index=table.index, dtype=bool)


def unbeaten(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`cost_map` that no other beats by time or by memory, from the smallest error."""
    best = table[table["best by ms"] | table["best by MiB"]].sort_values("rounded")
    return best[["candidate", "error", "cosine", "ms", "MiB", "best by ms", "best by MiB"]]


# -------------------------------------------------------------------------------------------------------------- training


def against_exact(training: pd.DataFrame) -> pd.DataFrame:
    """The training runs against the exact one, function by function.

    Returns:
        For each method ``held_out`` and ``difference`` (to the exact run, on the same test function and seed), both with the
        half-width of a 95 % interval, and what that is ``over``: training seeds, by Student's t, where these differ more than their
        test functions explain, else test functions, paired for the difference (see :func:`experiments.common.statistics.pooled`);
        ``low`` and ``high`` seed means of the difference, ``seeds`` that finished, test functions ``lost`` because the descent
        diverged on them, and median ``seconds``. Numbers are missing where no run finished.
    """
    exact = training[training["method"].eq(EXACT)].set_index(["seed", "task"])["held_out"]
    found = {}
    for name in TRAINED:
        mine = training[training["method"].eq(name)]
        errors = mine.set_index(["seed", "task"])["held_out"]
        found[name] = {"seeds": mine["seed"].nunique(), "lost": int(errors.isna().sum())}
        if errors.notna().sum() < 2:
            continue
        found[name] |= _pooled("held_out", errors) | {"seconds": mine.groupby("seed")["seconds"].first().median()}
        if name != EXACT:
            by_seed = (errors - exact).groupby(level="seed").mean()
            found[name] |= _pooled("difference", errors - exact) | {"low": by_seed.min(), "high": by_seed.max()}
    columns = [f"{name}{part}" for name in ("held_out", "difference") for part in ("", " ±", " over")]
    return pd.DataFrame.from_dict(found, orient="index").reindex(columns=[*columns, "low", "high", "seeds", "lost", "seconds"])


def _pooled(name: str, values: pd.Series) -> dict:
    (mean, half, _), over = pooled(values)
    return {name: mean, f"{name} ±": half, f"{name} over": {"seeds": "seeds", "tasks": "functions"}[over]}


def untrained(training: pd.DataFrame) -> float:
    """Mean held-out error after adaptation from the untrained networks."""
    return float(training["untrained_held_out"].mean())
