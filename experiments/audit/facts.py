"""What the chapter says in numbers; all from rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..common.statistics import Effect
from ..common.tables import span
from .settings import EXACT, PROXIMAL, SIZES, UNTRAINED
from .switches import BARE, INNER_ALONE, OUTER_ALONE, PAPER, RELEASED, Switches, backward_loops, one_at_a_time
from .tables import ADAM, INNER, UNROLLED, by_cell, effect, held_out, level, one_each, spelled, trained_on

Rows = Mapping[str, pd.DataFrame]  # of every kind, see experiments.audit.tables.read
BOTH = ("cosmixture", "alpine")
TWO_AND_THREE = ("paper + 2: RK4 there, Euler back", "paper + 3: n + 1 steps, rectangle, wrapped")
MOMENTS = [(rule, step) for rule, steps in SIZES["full"].rules for step in steps]  # the first of them is before adaptation
PROXIMAL_SWITCHES = ("inner_proximal", "outer_proximal")
BARE_LOOPS, LOOPS = (list(backward_loops(base).values()) for base in (BARE, RELEASED))
COPIED = "released, without graph, copied"


def others(base: Switches, other: Switches) -> dict[str, Switches]:
    """``base`` with one switch turned, those of the proximal terms aside."""
    return {name: wanted for name, wanted in one_at_a_time(base, other).items() if name not in PROXIMAL_SWITCHES}


def geometric(values: pd.Series) -> float:
    """The geometric mean."""
    return float(np.exp(np.log(values).mean()))


def outer_part(gradient: pd.DataFrame, formula: str, steps: int) -> pd.Series:
    """How long the difference is that the outer term makes, over what it is at the initial network, by seed."""
    error, norm = (one_each(gradient, OUTER_ALONE, column)[formula] for column in ("plain_error", "plain_norm"))
    part = error * norm
    return part["trained", steps] / part["initial", steps]


def gradient_facts(gradient: pd.DataFrame) -> dict[str, str]:
    """Of finding 1: the numbers of the prose about two references and about the proximal terms."""
    at_50 = {formula: (formula, "trained", 50) for formula in BOTH}
    cosine = {s: by_cell(gradient, s, "plain_cosine") for s in (RELEASED, INNER_ALONE, OUTER_ALONE)}
    one = {s: one_each(gradient, s, "plain_cosine") for s in (RELEASED, INNER_ALONE, OUTER_ALONE)}
    turned = others(RELEASED, PAPER).values()
    moved = [one_each(gradient, s, "plain_cosine") - one[RELEASED] for s in turned]
    plain = [by_cell(gradient, s, "plain_error") for s in (PAPER, *others(PAPER, RELEASED).values())]
    norm = {formula: one_each(gradient, RELEASED, "plain_norm")[formula] for formula in BOTH}
    found = {
        "others": f"{max(abs(by_seed[key].mean()) for by_seed in moved for key in at_50.values()):.3f}",
        "others-seed": f"{max(by_seed[key].abs().max() for by_seed in moved for key in at_50.values()):.3f}",
        "inner-takes": span(1 - cosine[INNER_ALONE][key] for key in at_50.values()),
        "alpine-outer-least": f"{one[OUTER_ALONE][at_50['alpine']].min():.2f}",
        "alpine-outer-most": f"{one[OUTER_ALONE][at_50['alpine']].max():.2f}",
        "added-alpine-seeds": span(outer_part(gradient, "alpine", 50), "{:.1f}"),
        "outer-over-plain": f"{by_cell(gradient, OUTER_ALONE, 'plain_error')[at_50['cosmixture']]:.1f}",
        "against": f"{cosine[OUTER_ALONE]['cosmixture', 'initial', 500]:.2f}",
        "own-50": span(by_cell(gradient, RELEASED, "own_error").xs(50, level="steps"), "{:.1%}"),
    }  # fmt: skip
    for formula in BOTH:
        initial = [one[s][formula, "initial", 50] for s in (INNER_ALONE, OUTER_ALONE)]
        found |= {
            f"paper-{formula}": f"{max(error[at_50[formula]] for error in plain):.1%}",
            f"shrunk-{formula}": f"{geometric(norm[formula]['trained', 50] / norm[formula]['initial', 50]):.2f}",
            f"added-{formula}": f"{geometric(outer_part(gradient, formula, 50)):.1f}",
            f"inner-seeds-{formula}": f"{(initial[0] < initial[1]).sum()} of {len(initial[0])} seeds",
        }
    return found


def loop_facts(gradient: pd.DataFrame) -> dict[str, str]:
    """Of findings 2 and 3: the numbers of the prose about loops that cancel."""
    released, _, wrapped, unwrapped, heun, sound = (by_cell(gradient, s, "own_error") for s in LOOPS)
    bare, _, bare_wrapped, bare_unwrapped, bare_heun, _ = (by_cell(gradient, s, "own_error") for s in BARE_LOOPS)
    turned = {name: by_cell(gradient, s, "own_error") / released for name, s in others(RELEASED, PAPER).items()}
    trapezoid, steps = turned["quadrature"], released.index.get_level_values("steps")
    pair, mended = (
        {c: by_cell(gradient, s, f"{c}_error") for c in ("own", "plain")} for s in (PAPER, others(PAPER, RELEASED)["forward"])
    )
    at_50, initial, trained = steps == 50, ("cosmixture", "initial"), ("cosmixture", "trained")
    gain, network = bare / bare_heun, released.index.get_level_values("at")
    return {
        "euler-50": span(bare[at_50], "{:.1%}"),
        "heun-initial": span(gain[at_50 & (network == "initial")], "{:.0f}"),
        "heun-trained": span(gain[at_50 & (network == "trained")], "{:.0f}"),
        "heun-extra": span(pd.concat([bare_wrapped / bare, bare_unwrapped / bare])),
        "bare-10": f"{bare[(*trained, 10)]:.0%}",
        "bare-500": span((bare[(*at, 500)] for at in (initial, trained)), "{:.1%}"),
        "mended-50": span((heun / released)[at_50], "{:.1f}"),
        **{f"mended-500-{at[1]}": f"{(heun / released)[(*at, 500)]:.0f}" for at in (initial, trained)},
        **{f"rectangle-500-{at[1]}": f"{heun[(*at, 500)]:.1%}" for at in (initial, trained)},
        **{f"sound-500-{at[1]}": f"{(sound / released)[(*at, 500)]:.2g}" for at in (initial, trained)},
        "sound-200-trained": f"{(sound / released)[(*trained, 200)]:.1f}",
        "trapezoid-50": span(trapezoid[steps <= 50], "{:.1f}"),
        "trapezoid-200": span(trapezoid[steps == 200], "{:.0f}"),
        "trapezoid-500": span(trapezoid[steps == 500], "{:.0f}"),
        "fewer": span(1 - turned["backward_steps"][steps >= 50], "{:.0%}"),
        "pair-50": span(pair["own"][at_50], "{:.1%}"),
        "pair-over-released": span((pair["own"] / bare)[at_50]),
        "pair-mended": span((pair["own"] / mended["own"])[at_50], "{:.0f}"),
        "pair-plain": span((mended["plain"] / pair["plain"])[at_50]),
    }  # fmt: skip


def change(training: pd.DataFrame, formula: str, setting: str, moment: tuple[str, int], against: str = EXACT) -> Effect:
    """The effect of training with one setting and not with another, after so many steps of a rule."""
    return effect(*(trained_on(training, formula, s, *moment) for s in (setting, against)))


def training_facts(training: pd.DataFrame) -> dict[str, str]:
    """Of what the meta-gradients are good for, of the functions, and of the test."""
    cos, alpine = BOTH
    small = ("paper", *TWO_AND_THREE, "released without 1")
    before = {setting: level(trained_on(training, cos, setting, "inner", 0)).mean for setting in (EXACT, "released")}
    foreign = {m: trained_on(training, "cosmixture-released", EXACT, *m, "slides") for m in (INNER, ADAM)}
    home = {m: trained_on(training, cos, EXACT, *m) for m in (INNER, ADAM)}
    there, here = (trained_on(training, f, EXACT, *INNER) for f in ("alpine-released", alpine))
    untrained = [level(trained_on(training, f, UNTRAINED, *INNER)).mean for f in (cos, "cosmixture-released")]
    found = {
        "meta-steps": f"{SIZES['full'].meta_steps}",
        "after": f"{max(abs(change(training, cos, s, m).mean) for s in small for m in MOMENTS[1:]):.3f}",
        "before-alone": span((change(training, cos, s, MOMENTS[0]).mean for s in ("paper", *TWO_AND_THREE)), "{:.3f}"),
        "before-both": spelled(change(training, cos, "released without 1", MOMENTS[0])),
        "all-less-one": f"{max(abs(change(training, f, 'released', m, PROXIMAL).mean) for f in BOTH for m in MOMENTS):.4f}",
        "before-ratio": f"{before['released'] / before[EXACT]:.2f}",
        "lead": spelled(change(training, cos, EXACT, ADAM, "released")),
        "lead-one": spelled(change(training, cos, EXACT, ADAM, PROXIMAL)),
        "lead-two-three": spelled(change(training, cos, EXACT, ADAM, "released without 1"), 4),
        "alpine-before": spelled(change(training, alpine, "released", MOMENTS[0]), 2, "+"),
        "alpine-after": spelled(change(training, alpine, "released", ADAM), 2, "+"),
        "functions-untrained": span(untrained),
        "functions-easy": f"{level(home[INNER]).mean:.2f}",
        "functions-hard": f"{level(trained_on(training, 'cosmixture-released', EXACT, *INNER)).mean:.2f}",
        "functions-foreign": f"{level(foreign[INNER]).mean / level(home[INNER]).mean:.1f}",
        "functions-foreign-adam": spelled(effect(foreign[ADAM], home[ADAM]), 3, "+"),
        "alpine-harder": spelled(effect(there, here), 3, "+"),
        "alpine-foreign": spelled(effect(trained_on(training, "alpine-released", EXACT, *INNER, "slides"), here), 3, "+"),
    }
    for formula in BOTH:
        found[f"one-{formula}"] = spelled(change(training, formula, PROXIMAL, INNER), 4, "+")
        for name, moment in (("inner", INNER), ("adam", ADAM)):
            found[f"worth-{name}-{formula}"] = spelled(change(training, formula, UNTRAINED, moment), 2)
    return found


def other_facts(rows: Rows) -> dict[str, str]:
    """Of the functions' meta-gradients, of memory and of the standardisation."""
    cosine = rows["functions"].pivot(index="formula", columns="seed", values="cosine")
    peak, seconds = (rows["memory"].pivot(index="way", columns=["batch", "steps"], values=v) for v in ("peak", "seconds"))
    saved = 1 - peak.loc[COPIED] / peak.loc["released"]
    after = [standardisation_effect(rows["standardisation"], moment) for moment in MOMENTS[1:]]
    return {
        **{f"functions-{f}": f"{cosine.loc[f'{f}-released'].mean():.2f}" for f in BOTH},
        "functions-alpine-seeds": span(cosine.loc["alpine-released"]),
        "peak-8": f"{peak.loc['released', (8, 50)] / peak.loc[UNROLLED, (8, 50)]:.2f}",
        "peak-2": f"{peak.loc['released', (2, 200)] / peak.loc[UNROLLED, (2, 200)]:.2f}",
        "copy-8": f"{saved[8, 50]:.0%}",
        "copy-2": span(saved[2], "{:.1%}"),
        "time": span(seconds.loc["released"] / seconds.loc[UNROLLED], "{:.1f}"),
        "standard-gradient": span(rows["standardisation"].groupby("seed")["gradient_error"].first(), "{:.1%}"),
        "standard-width": f"{max(found.half_width for found in after):.4f}",
        "standard-before": spelled(standardisation_effect(rows["standardisation"], MOMENTS[0])),
    }  # fmt: skip


def standardisation_effect(standardisation: pd.DataFrame, moment: tuple[str, int]) -> Effect:
    """The effect of test functions among those that the standardisation was fitted on."""
    return effect(*(held_out(standardisation, *moment, fit_on=f) for f in ("all", "train")))


def facts(rows: Rows) -> dict[str, str]:
    """All numbers of the chapter's prose that come from records, by label: ``audit-meta-steps`` and so on."""
    found = gradient_facts(rows["gradient"]) | loop_facts(rows["gradient"]) | training_facts(rows["training"]) | other_facts(rows)
    return {f"audit-{name}": text.replace("%", " %") for name, text in found.items()}
