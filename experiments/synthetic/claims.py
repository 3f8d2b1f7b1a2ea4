"""What the paper claims of horizons, what the chapter concludes, and how the published figure can be read, each with the test that
decides it; all from rows. :mod:`experiments.recipe.claims` has what the figure claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from ..common.claims import Claim, decide
from ..common.tables import span
from . import horizons
from .facts import final_support, hard, of_curves, of_horizons, of_ladder, share
from .settings import METHODS, UNTRAINED
from .tables import (
    above_untrained,
    by_normaliser,
    guesses,
    learned,
    over_seeds,
    paired,
    reading_error,
    readings,
    recorded,
    seed_variance,
    select,
    signs,
    theirs,
)

NAME = "synthetic regression"
NEAR = 0.05  # of the spread of the targets: as much as meta-training gives on the hard functions at least


def claims(table: pd.DataFrame | None = None) -> list[Claim]:
    """The paper's, of rows of horizons, by default the recorded ones."""
    table = recorded("horizons") if table is None else table
    if table.empty:
        return []
    said = of_horizons(table)
    above = select(horizons.above_lowest(table).reset_index(), method="A-MAML")
    early = select(horizons.too_early(table)["mean"].reset_index(), method="A-MAML")[table["trained_steps"].max()]
    return [
        Claim(NAME, "A-MAML adapts to trajectories longer than those it was trained for",
              f"on every function, beyond its own horizon a line is at most {NEAR:g} above the lowest", "stated, without a test",
              f"at most {said['beyond-a-maml']} above", decide(above["beyond"].le(NEAR)),
              f"so does FOMAML with the same inner steps: at most {said['beyond-fomaml']} above"),
        Claim(NAME, "A-MAML adapts to trajectories shorter than those it was trained for",
              f"on every function, trained with {said['most']} steps and tested after ten, its error is at most {NEAR:g} above "
              "that of training with ten", "stated, without a test", f"{said['early-a-maml']} above", decide(early.le(NEAR)),
              f"FOMAML with the same inner steps: {said['early-fomaml']} above"),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- conclusions


def conclusions(table: pd.DataFrame, lines: pd.DataFrame, ladder: pd.DataFrame) -> list[Claim]:
    """What chapter "Synthetic regression" concludes; what would refute each is that its test fails.

    Args:
        table: rows of curves; nothing is concluded from those of a small size.
        lines: rows of horizons.
        ladder: of :func:`experiments.synthetic.tables.ladder`.
    """
    if table["size"].ne("full").any():
        return []
    return [*_of_methods(table, ladder), *_of_protocol(table), *_of_horizons(lines)]


def _conclusion(claim: str, test: str, ours: str, outcomes: Iterable[bool]) -> Claim:
    return Claim(NAME, claim, test, "", ours, decide(outcomes))


def _of_methods(table: pd.DataFrame, ladder: pd.DataFrame) -> Iterator[Claim]:
    said, gain, keys = of_curves(table), learned(table), ["family", "variant"]
    yield _conclusion(
        "Every method learns from other functions",
        "after 50 own steps its held-out error is below the untrained network's best, by more than the interval, on every function",
        f"{said['learned']} are", gain["resolved"] & gain["mean"].lt(0),
    )  # fmt: skip
    three = hard(gain).groupby(keys)["mean"].agg(["max", "min"])
    apart = three["max"] - three["min"]
    yield _conclusion(
        "Meta-training gives more than the choice of the method",
        "on each of the three hard functions the least gain of the methods is larger than the distance from the best to the worst",
        f"gains {said['gain']}, distances {span(apart)}", (-three["max"]).gt(apart),
    )  # fmt: skip
    best = gain.loc[gain.groupby(keys)["mean"].idxmin(), "method"]
    yield _conclusion(
        "No method is ahead throughout", "not the same method has the lowest mean on all four functions", said["winners"],
        [best.nunique() > 1],
    )  # fmt: skip
    three = hard(ladder.reset_index())
    yield _conclusion(
        "What is learned is mostly what the functions have in common",
        f"on each hard function, the best adapted network is less than {NEAR:g} below the best that is not adapted at all",
        f"{of_ladder(ladder)['adapting']} below", (three["not adapted"] - three["adapted"]).lt(NEAR),
    )  # fmt: skip

    yield _conclusion(
        "On hard functions the mean of the family is not beaten",
        "on each of them its error is below that of the best adapted network",
        f"{of_ladder(ladder)['family-mean']}; the best adapted network is {of_ladder(ladder)['above-mean']} above",
        three["family mean"].lt(three["adapted"]),
    )  # fmt: skip


def _of_protocol(table: pd.DataFrame) -> Iterator[Claim]:
    here = over_seeds(select(table, protocol="adam", set="held-out", d=2, shots=50))
    trained = hard(here[here["method"].ne(UNTRAINED)]).groupby(["family", "variant", "method"])
    ends = trained.apply(lambda one: one.loc[one["step"].idxmax(), "mean"], include_groups=False) - trained["mean"].min()
    yield _conclusion(
        "Adam for 1,000 epochs undoes what was learned, on hard functions of two inputs with 50 shots",
        f"every method's held-out error ends more than {NEAR:g} above its lowest", f"{span(ends)} above", ends.gt(NEAR),
    )  # fmt: skip
    quotient = seed_variance(table)["quotient"].xs("adam", level="protocol")
    yield _conclusion(
        "An interval over test functions would be too narrow",
        "by Adam, for one and two inputs, on both sets, the variance between training seeds is larger than test functions explain",
        f"{span(quotient, '{:.1f}')} times", quotient.gt(1),
    )  # fmt: skip


def _of_horizons(table: pd.DataFrame) -> Iterator[Claim]:
    said, above, cost = of_horizons(table), horizons.above_lowest(table)["beyond"], horizons.fomaml_less_amaml(table)
    yield _conclusion(
        "A network can be adapted for longer than it was trained for, whatever the pullback",
        f"on every function, by A-MAML and by FOMAML, beyond its own horizon a line is at most {NEAR:g} above the lowest",
        f"at most {span([above.max()], '{:.3f}')} above", above.le(NEAR),
    )  # fmt: skip
    yield _conclusion(
        "To be adapted for much less costs FOMAML more than A-MAML",
        "with equal inner steps, after ten of them, in the mean over seeds, for every function and number of training steps",
        f"in {said['fomaml-more']}", cost["mean"].gt(0),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- readings

READINGS = {
    ("held-out", 2): "held-out errors, two inputs",
    ("held-out", 1): "held-out errors, one input",
    ("support", 1): "errors on the support points, one input",
    ("support", 2): "errors on the support points, two inputs",
}


def of_readings(table: pd.DataFrame) -> list[Claim]:
    """Each answer to what the published figure shows, as far as methods trained by our protocol, and the network that was not
    trained, can decide it; from rows of curves."""
    if table["size"].ne("full").any():
        return []
    return [*_of_functions(table), *_of_sets(table), *_of_the_rest(table)]


def _of_functions(table: pd.DataFrame) -> Iterator[Claim]:
    count, total = above_untrained(table, "slides", "cosmixture")
    said, later = of_curves(table), theirs().query("step > 0 and family == 'cosmixture'")["published"]
    yield Claim(
        NAME, "It shows the slides' mixture", "no published value after epoch 0 lies above the held-out error of a network of two "
        "inputs that was not trained", span(later), f"untrained: {said['dome-200']} at epoch 200, {said['dome-1000']} at 1,000; "
        f"{share([True] * count + [False] * (total - count))} lie above", decide([False] * count + [True] * (total - count)),
    )  # fmt: skip


def _of_sets(table: pd.DataFrame) -> Iterator[Claim]:
    at = theirs().query("step == 1000").pivot(index=["family", "method"], columns="shots", values="published")
    published, found = at[100] / at[50], signs(table)
    for (of, d), words in READINGS.items():
        here = found.xs((of, d), level=("set", "d"))
        more = here[list(METHODS)].stack()
        yield Claim(
            NAME, f"It shows {words}, of the released functions",
            "at epoch 1,000 the untrained network's error is the lowest of its curve, within 0.01, for both families; and with 100 "
            "shots the error is larger than with 50, for most methods",
            f"falls; larger for {share(published.gt(1))}",
            f"the last is {span(here['last'])} times the lowest; larger for {share(more.gt(1))}",
            decide([here["last"].max() < 1.01, more.gt(1).mean() > 0.5]),
        )  # fmt: skip


def _of_the_rest(table: pd.DataFrame) -> Iterator[Claim]:
    both = by_normaliser(table)
    apart = (both["training"] - both["task"]).abs()
    yield Claim(
        NAME, "The normaliser decides",
        f"it moves the distance of a reading by more than {reading_error():g}, the error of reading the figure off", "",
        f"by {span(apart, '{:.3f}')}", decide(apart.gt(reading_error())),
    )  # fmt: skip
    _, falling = guesses()
    means = readings(table).mean(axis=1)
    yield Claim(
        NAME, "Methods trained by our protocol give the figure",
        "under some reading their curves are nearer to the published ones than one curve that only falls", f"{falling:.2f}",
        f"at least {means.min():.2f}", decide([means.min() < falling]),
    )  # fmt: skip
    end = final_support(table)
    less = paired(end[end["method"].ne(UNTRAINED)], "A-MAML")
    yield Claim(
        NAME, "Trained by our protocol, A-MAML ends lowest on the support points of two inputs",
        "at epoch 1,000, below each other method on each of the functions (the slides' mixture aside)", "in all 4 panels",
        f"it is lower in {share(less['mean'].gt(0))} comparisons", decide(less["mean"].gt(0)),
    )  # fmt: skip
