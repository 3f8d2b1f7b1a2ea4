"""What the paper claims and what the chapter concludes, each with the test that decides it; all from rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pandas as pd

from amaml_core.metrics import Interval

from ..common.claims import Claim, decide
from ..common.statistics import Effect, below
from ..common.tables import span
from .facts import BARE_LOOPS, BOTH, COPIED, LOOPS, MOMENTS, TWO_AND_THREE, Rows, change, others, standardisation_effect
from .settings import EXACT, PROXIMAL, UNTRAINED
from .switches import INNER_ALONE, OUTER_ALONE, PAPER, RELEASED
from .tables import ADAM, INNER, UNROLLED, by_cell, effect, one_each, read, spelled, trained_on

ACCURATE = 0.02  # relative error of a meta-gradient
SAME = 0.99  # cosine of two meta-gradients


def holds_zero(found: Interval | Effect) -> bool:
    """Whether an interval holds zero."""
    return abs(found.mean) <= found.half_width


# ------------------------------------------------------------------------------------------------------------- the paper's


SCHEME = "Euler's method forward and Heun's back trace the gradient of the trajectory"


def claims(rows: Rows | None = None) -> list[Claim]:
    """What the paper claims of its method, decided by the records (or by other rows)."""
    return list(_claims(read() if rows is None else rows))


def _claims(rows: Rows) -> Iterator[Claim]:
    name = "audit of the released code"
    pair, cosine = by_cell(rows["gradient"], PAPER, "plain_error"), one_each(rows["gradient"], RELEASED, "plain_cosine")
    yield Claim(
        name, SCHEME,
        f"less than {ACCURATE:.0%} off plain MAML's meta-gradient at each K, network and formula, in the mean over seeds",
        "traced", f"{span(pair, '{:.1%}')} off", decide(pair < ACCURATE), "further off at a trained network with K = 10",
    )  # fmt: skip
    # Without the proximal terms, against training with them.
    without = {(f, m): change(rows["training"], f, "paper", m, PROXIMAL) for f in BOTH[:1] for m in (INNER, ADAM)}
    without |= {(f, m): change(rows["training"], f, EXACT, m, PROXIMAL) for f in BOTH[1:] for m in (INNER, ADAM)}
    yield Claim(
        name, "The method needs no proximal regulariser",
        "without it the held-out error is not higher by an interval above zero, after 50 inner steps and after 500 epochs of Adam, "
        "on either formula", "none is used",
        "higher by " + ", ".join(f"{spelled(found, 3, '+')} ({f}, {rule})" for (f, (rule, _)), found in without.items()),
        decide(found.mean - found.half_width <= 0 for found in without.values()),
        "the released code has it always on; without it is the paper's recipe, on Alpine functions the exact meta-gradient",
    )  # fmt: skip
    yield Claim(
        name, "The released code computes the method of the paper",
        f"its meta-gradient has a cosine above {SAME} with plain MAML's at the trained network, at each K, for both formulas, in "
        "each seed", "released with the paper", f"{span(_trained(cosine))}", decide(_trained(cosine) > SAME),
        "without its proximal terms it does",
    )  # fmt: skip
    peak = rows["memory"].pivot(index="way", columns=["batch", "steps"], values="peak")
    share = peak.loc["released"] / peak.loc[UNROLLED]
    yield Claim(
        name, "The released code is memory-efficient",
        "its order of work has a lower peak than plain unrolling task by task, for each B and K that was measured",
        "memory-efficient", f"{span(share)} times that", decide(share < 1),
        "the solutions of all tasks stay alive until the meta-batch is done",
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the chapter's


def conclusions(rows: Rows) -> list[Claim]:
    """The chapter's conclusions; what would refute each is that its test fails."""
    return [*_of_gradients(rows["gradient"]), *_of_loops(rows["gradient"]), *_of_training(rows["training"]), *_of_the_rest(rows)]


def _conclusion(claim: str, test: str, ours: str, outcomes: Iterable[bool]) -> Claim:
    return Claim("audit of the released code", claim, test, "", ours, decide(outcomes))


def _trained(table: pd.Series) -> pd.Series:
    return table.xs("trained", level="at")


def _of_gradients(gradient: pd.DataFrame) -> Iterator[Claim]:
    released, inner, outer = (one_each(gradient, s, "plain_cosine") for s in (RELEASED, INNER_ALONE, OUTER_ALONE))
    at_50, own = ({"level": ["at", "steps"], "key": ("trained", 50)}, one_each(gradient, RELEASED, "own_error"))
    objective = released.xs(**at_50), own.xs(**at_50)
    yield _conclusion(
        "The proximal terms make another objective, whose gradient is computed accurately and points elsewhere",
        "with the released setting at the trained network and K = 50, in each seed and for both formulas: cosine with plain MAML "
        f"below 0.9, error against its own exact gradient below {ACCURATE:.0%}",
        f"{span(objective[0])}; {span(objective[1], '{:.1%}')}", [*(objective[0] < 0.9), *(objective[1] < ACCURATE)],
    )  # fmt: skip
    falls = released["cosmixture"].unstack("steps").diff(axis=1).iloc[:, 1:].stack()
    yield _conclusion(
        "The longer the horizon, the more they turn the meta-gradient",
        "on cosine mixtures that cosine falls from each K to the next, in each seed, at both networks",
        " and then ".join(f"{span(released['cosmixture'].xs(k, level='steps'))} at K = {k}" for k in (10, 500)), falls < 0,
    )  # fmt: skip
    apart = _trained(inner - outer)
    yield _conclusion(
        "At a trained network it is the outer term that turns it more",
        "a lower cosine with the outer term alone than with the inner one alone, in each seed, at each K, for both formulas",
        f"lower by {span(apart)}", apart > 0,
    )  # fmt: skip
    turned = [one_each(gradient, s, "plain_cosine") - released for s in others(RELEASED, PAPER).values()]
    moved = [d.groupby(level=["formula", "at", "steps"]).mean().xs(**at_50).abs().max() for d in turned]
    yield _conclusion(
        "Solvers and loops hardly turn it",
        "each of their five switches, turned away from the released setting, changes the mean cosine with plain MAML by less than "
        "0.01 at the trained network with K = 50", f"by at most {max(moved):.3f}", [d < 0.01 for d in moved],
    )  # fmt: skip


def _of_loops(gradient: pd.DataFrame) -> Iterator[Claim]:
    bare, heun = (by_cell(gradient, BARE_LOOPS[place], "own_error") for place in (0, 4))
    own = one_each(gradient, RELEASED, "own_error")
    trapezoid, sound = (one_each(gradient, s, "own_error") / own for s in (replace(RELEASED, quadrature="trapezoid"), LOOPS[5]))
    last = sound.xs(500, level="steps")
    yield _conclusion(
        "What spoils a loop without proximal terms is the step too many",
        "Heun's method with n steps is at least 25 times as accurate as the released loop, at each K, network and formula",
        f"{span(bare / heun, '{:.0f}')} times", bare > 25 * heun,
    )  # fmt: skip
    yield _conclusion(
        "With proximal terms two errors cancel: mending the sum alone does harm",
        "the trapezoid rule in the place of the rectangle rule raises the error in each seed, at each K, network and formula",
        f"{span(trapezoid, '{:,.1f}')} times", trapezoid > 1,
    )  # fmt: skip
    yield _conclusion(
        "On the longest horizon the released loop is more accurate than a sound one",
        "a smaller error at K = 500 in each seed, at both networks", f"{span(last, '{:.2g}')} times as accurate", last > 1,
    )  # fmt: skip


def _of_training(training: pd.DataFrame) -> Iterator[Claim]:
    cos, alpine = BOTH
    small = {s: [change(training, cos, s, m).mean for m in MOMENTS[1:]] for s in ("paper", *TWO_AND_THREE, "released without 1")}
    largest = [max(map(abs, means)) for means in small.values()]
    yield _conclusion(
        "Findings 2 and 3 are nothing to worry about once the network is adapted",
        "on cosine mixtures they, and the paper's own recipe, change the held-out error by less than 0.0025 standard deviations, "
        "by any rule", f"by at most {max(largest):.4f}", [d < 0.0025 for d in largest],
    )  # fmt: skip
    start, kept, lead = (change(training, cos, "released", moment) for moment in (MOMENTS[0], INNER, ADAM))
    yield _conclusion(
        "On cosine mixtures the proximal terms make a start that is good before adaptation and pays in a test by Adam",
        "the released recipe's error less that of the exact one: an interval below zero before adaptation and after 500 epochs of "
        "Adam, one that holds zero after the 50 inner steps that were trained for",
        f"{spelled(start)}, {spelled(lead)}, {spelled(kept)}", [below(start), below(lead), holds_zero(kept)],
    )  # fmt: skip
    gains = [change(training, alpine, s, ADAM) for s in (PROXIMAL, "released")]
    yield _conclusion(
        "On Alpine functions no such gain was found",
        "after 500 epochs of Adam no interval below zero, neither with finding 1 nor with all findings",
        " and ".join(spelled(found, 3, "+") for found in gains), [not below(found) for found in gains],
    )  # fmt: skip
    harder = [effect(*(trained_on(training, f, EXACT, *INNER) for f in (f"{base}-released", base))) for base in BOTH]
    yield _conclusion(
        "The released cosine mixtures are harder; of the released Alpine functions that cannot be said",
        "the exact method's error on them less that on the slides', after 50 inner steps: an interval above zero; one that holds "
        "zero",
        " and ".join(spelled(found, 3, "+") for found in harder), [harder[0].mean > harder[0].half_width, holds_zero(harder[1])],
    )  # fmt: skip
    worth = [[change(training, f, UNTRAINED, m).mean for m in (INNER, ADAM)] for f in BOTH]
    yield _conclusion(
        "A test by Adam hides most of what training is worth",
        "less than a tenth of what it is worth after 50 inner steps, on both formulas",
        " and ".join(f"{adam:.2f} of {inner:.2f}" for inner, adam in worth), [adam < inner / 10 for inner, adam in worth],
    )  # fmt: skip


def _of_the_rest(rows: Rows) -> Iterator[Claim]:
    peak = rows["memory"].pivot(index="way", columns=["batch", "steps"], values="peak")
    graph, copy = peak.loc["released"] / peak.loc["released, without graph"], peak.loc[COPIED] / peak.loc["released"]
    yield _conclusion(
        "It is the view that keeps memory, not the graph",
        "the same peak to the byte with the graph and without it; with a copy and B = 8 less than half of it",
        f"{span(graph, '{:g}')} and {copy[8, 50]:.2f} times", [*(graph == 1), copy[8, 50] < 0.5],
    )  # fmt: skip
    seen = [standardisation_effect(rows["standardisation"], moment) for moment in MOMENTS]
    yield _conclusion(
        "A standardisation that saw the test functions has no effect that three seeds can show",
        "an interval that holds zero before adaptation and after each rule",
        f"in {sum(map(holds_zero, seen))} of {len(seen)}", map(holds_zero, seen),
    )  # fmt: skip
