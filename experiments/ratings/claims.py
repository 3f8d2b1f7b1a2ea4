"""What the paper says of ratings and what the chapters conclude, each with the test that decides it; the numbers in the text."""

from __future__ import annotations

import pandas as pd

from ..common import scores
from ..common.claims import Claim, decide
from ..common.tables import NOT_RUN, span
from .readings import common_fall, distances, floor, least_error, over_user_mean, relative_errors, spread
from .settings import AGAIN, BARS, METHODS, SHOTS, SIZES, TABLES
from .tables import COLUMNS, KEYS, choices, distinct, lost, means, paired, recorded, seen_in_choice, theirs, trained

MANY = list(SHOTS)[1]
APART = 1.2  # tables that differ by a larger factor are apart: the published ± are near a tenth
NEAR = 1.5  # a reading whose factor is below it is called near
WIDE = 0.1  # a quotient whose half width is larger decides nothing
BEHIND = 0.02  # so much above A-MAML's error counts as behind it


def quotients(errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """:func:`paired` of both tables, with the larger of its two half widths as ``half``, and whether ours and the published
    quotient ``meet``."""
    found = pd.concat({number: paired(errors, users, lost, number) for number in TABLES}, names=["table"])
    half = found[["seeds", "users"]].max(axis=1)
    return found.assign(half=half, meet=(found["quotient"] - found["published"]).abs() <= half + found["error"])


def claims() -> list[Claim]:
    """That A-MAML's error is lower than each rival's, and by the published factor; from the records."""
    pairs, made = quotients(recorded("errors"), recorded("users"), lost()), []
    for rival in METHODS[1:]:
        mine = pairs.xs(rival, level="method")
        whole = mine[mine["n seeds"].gt(1)]
        short, away = mine["diverged"].gt(0).sum(), len(mine) - len(whole)
        notes = []
        if short:
            notes.append(f"in {short} of {len(mine)} columns seeds of {rival} diverged; {away}, with one seed left, count not")
        if rival in AGAIN:
            notes.append("its results do not repeat")
        if wide := whole["seeds"].gt(WIDE).sum():
            notes.append(f"in {wide} its seeds differ so much that the interval is wider than ± {WIDE:g}")
        ahead, meet = list(whole["quotient"] - whole["half"] > 1), list(whole["meet"])
        chance = (
            f"by chance alone at least one of {len(ahead)} independent intervals of 95 % would lie above 1 with a probability of "
            f"{1 - 0.975 ** len(ahead):.2f}; ours share users, so this is a rough figure"
        )
        for claim, test, outcomes, note in (
            ("", "the quotient on the same users lies above 1, by its intervals over users and over seeds", ahead,
             [chance] if sum(ahead) == 1 else []),
            (" by the published factor", "our quotient on the same users and the published one meet", meet, []),
        ):  # fmt: skip
            ours = f"{span(mine['quotient'], '{:.3f}', NOT_RUN)}; so in {sum(outcomes)} of {len(outcomes)} columns"
            published = span(mine["published"], "{:.2f}", NOT_RUN)
            made.append(
                Claim(
                    "ratings",
                    f"Ratings: A-MAML's error is lower than {rival}'s{claim}",
                    test,
                    published,
                    ours,
                    decide(outcomes),
                    "; ".join(notes + note),
                )
            )
    return made


def conclusions(errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame) -> list[Claim]:
    """What both chapters conclude, each with the test that would refute it: :func:`of_readings` and :func:`of_methods`."""
    return [*of_readings(errors, users, lost), *of_methods(errors, users, lost)]


def of_readings(errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame) -> list[Claim]:
    """What the published numbers can and cannot be."""
    pairs, near, one, two = quotients(errors, users, lost), distances(errors, users), common_fall(1), common_fall(2)
    score, floors = str(scores.NEAREST), [floor(errors, users, number) for number in TABLES]
    row = near.loc[score]
    factors, falls, nearest = ([row[f"Table {n}", what] for n in TABLES] for what in ("A-MAML", "fall", "A-MAML nearest"))
    above = over_user_mean(users).groupby("method")["above"].agg(["sum", "count"])
    rivals, own = above.drop("A-MAML").sum(), above.loc["A-MAML"]
    return _made(
        ("No scale that all methods share turns our numbers into the published ones",
         f"with a scale of its own in every column the tables stay apart by more than {APART}, and most quotients of two "
         "methods do not meet",
         f"{span(spread(theirs(1)['value']), '{:.1f}', NOT_RUN)} for FOMAML over A-MAML in Table 1",
         f"apart by factors of {floors[0]:.2f} and {floors[1]:.2f}; {pairs['meet'].sum()} of {len(pairs)} quotients meet",
         [min(floors) > APART, pairs["meet"].mean() < 0.5]),
        ("In Table 1 all methods but MAML have one fall, in Table 2 they do not",
         "one value is enough in Table 1 (p above 0.05, whatever kind of interval ± is), and in Table 2 it is not",
         f"Table 1: {one}; Table 2: {two}", "", [min(one.p, one.p_half) > 0.05, max(two.p, two.p_half) < 0.05]),
        (f"A-MAML's rows have the size of {score}, without a free constant",
         f"its factor is below {NEAR} in both tables, and A-MAML's is the nearest of the five rows",
         "", f"factors of {factors[0]:.2f} and {factors[1]:.2f}", [max(factors) < NEAR, all(nearest)]),
        ("That reading is not the whole answer: it does not give the fall of Table 1",
         "our fall and the published one are more than twice the published ± apart",
         f"{one.value:.3f} ± {one.half_width:.3f}", f"{falls[0]:.3f}", [abs(falls[0] - one.value) > 2 * one.half_width]),
        ("If it is right, the published rivals of A-MAML are worse than the user's mean, and A-MAML is not",
         "nine in ten of the rivals' numbers lie above that of the user's mean, and less than half of A-MAML's",
         f"{rivals['sum']} of {rivals['count']} of the rivals', {own['sum']} of {own['count']} of A-MAML's", "",
         [rivals["sum"] >= 0.9 * rivals["count"], own["sum"] < own["count"] / 2]),
    )  # fmt: skip


def of_methods(errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame) -> list[Claim]:
    """How far the methods are apart on the users that both were tested on."""
    pairs = quotients(errors, users, lost)
    whole = pairs[pairs["n seeds"].gt(1)]
    ahead = pairs.xs("FOMAML", level="method").xs(MANY, level="shots")
    by_users, by_seeds = (ahead["resolved"].str.contains(over).sum() for over in ("users", "seeds"))
    return _made(
        ("No rival that came to an end with two seeds or more is behind A-MAML as the paper says",
         "none of our quotients on the same users meets the published one",
         span(whole["published"], "{:.2f}", NOT_RUN), f"{span(whole['quotient'], '{:.3f}', NOT_RUN)}, {len(whole)} quotients",
         ~whole["meet"]),
        (f"At {MANY} shots A-MAML is ahead of FOMAML, by little",
         f"the quotient is between 1 and {1 + BEHIND}, and resolved over users in two thirds of the columns",
         span(ahead["published"], "{:.2f}", NOT_RUN),
         f"{span(ahead['quotient'], '{:.4f}', NOT_RUN)}, resolved in {by_users} of {len(ahead)} over users, in {by_seeds} over "
         "seeds",
         [ahead["quotient"].between(1, 1 + BEHIND).all(), by_users >= 2 / 3 * len(ahead)],
         "the rates of both are the smallest of their grids; a smaller one would have served FOMAML in Table 2 better"),
    )  # fmt: skip


def _made(*drawn: tuple) -> list[Claim]:
    return [
        Claim("ratings", said, test, paper, ours, decide(bool(o) for o in outcomes), *note)
        for said, test, paper, ours, outcomes, *note in drawn
    ]


def facts(
    errors: pd.DataFrame, users: pd.DataFrame, lost: pd.DataFrame, choice: pd.DataFrame, beyond: pd.DataFrame, second: pd.DataFrame
) -> dict[str, str]:
    """Every number that the chapter on the evaluation says of the records in its text, by name."""
    pairs, seen = quotients(errors, users, lost), seen_in_choice(users)
    others, imaml = pairs.drop("iMAML", level="method"), pairs.xs("iMAML", level="method")
    ahead = pairs.xs("FOMAML", level="method").xs(MANY, level="shots")
    different = distinct(users)["different ones"]
    late = imaml[imaml["quotient"].gt(1 + BEHIND)]
    ours = {n: means(trained(errors, users, n), scores.PLAIN[0]) for n in TABLES}
    seeded = pd.concat([found[found["over"].eq("seeds")] for found in ours.values()]).index.get_level_values("method")
    strangers = seen[seen["train"].gt(0)]
    ends = choices(choice)["on an edge"]
    gains = _gains(choice, beyond)
    return {
        "ratings-trials-apart": f"{_trials_apart(choice):.1f}",
        "ratings-beyond-better": f"{gains.gt(0).sum()} of {len(gains)}",
        "ratings-beyond-gain": f"{gains.max():.1f}",
        "ratings-beyond-who": f"{gains.idxmax()[1]} in Table {gains.idxmax()[0]}",
        "ratings-distinct": span(different, "{:.0f}", NOT_RUN),
        "ratings-distinct-least": different.idxmin()[0],
        "ratings-seed-rows": f"{(~seeded.isin(BARS)).sum()}",
        "ratings-seed-methods": " and ".join(dict.fromkeys(seeded[~seeded.isin(BARS)])),
        "ratings-seed-bars": " and ".join(dict.fromkeys(seeded[seeded.isin(BARS)])) or "none",
        "ratings-edges": f"{ends.ne('').sum()} of {len(ends)}",
        "ratings-inside": " and ".join(sorted({method for _, method in ends[ends.eq("")].index})),
        "ratings-seen": f"{strangers['train'].min()} to {strangers['train'].max()}",
        "ratings-judged": str(strangers["judge"].max()),
        "ratings-seen-seeds": " and ".join(str(s) for s in sorted(set(strangers.index.get_level_values("seed")))),
        "ratings-lower": _lower(errors, users),
        "ratings-close": f"{100 * (others['quotient'] - 1).abs().max():.1f}",
        "ratings-behind-best": f"{100 * (1 / pairs['quotient'].min() - 1):.1f}",
        "ratings-imaml-columns": f"{len(late)} of {len(imaml)}",
        "ratings-imaml-behind": f"{100 * (late['quotient'].min() - 1):.0f} to {100 * (late['quotient'].max() - 1):.0f}",
        "ratings-imaml-seed": f"{100 * (imaml['largest'].max() - 1):.0f}",
        "ratings-fomaml-behind": span(100 * (ahead["quotient"] - 1), "{:.1f}", NOT_RUN),
        "ratings-diverged-second": f"{lost['table'].eq(2).sum()}",
        "ratings-diverged-data": ", ".join(dict.fromkeys(lost["data"].sort_values())),
        "ratings-diverged": f"{len(lost)} of {len(imaml) * SIZES['full'].seeds}",
        "ratings-again": f"{second['second'].sum()} of {second['runs'].sum()}",
        "ratings-again-either": f"{second['either'].sum()}",
        "ratings-again-change": f"{second['change'].max():.0f}",
    }


def reading_facts(errors: pd.DataFrame, users: pd.DataFrame) -> dict[str, str]:
    """Every number that the chapter on the published tables says in its text of these records, by name."""
    both = distances(errors, users).xs("A-MAML", axis=1, level=1).lt(NEAR).all(axis=1)
    ours = [means(trained(errors, users, n), scores.PLAIN[0]) for n in TABLES]
    worse = pd.concat([_over_user_mean(found) for found in ours])
    fitted = errors[errors["step"].eq(errors["trained"])].groupby(["method", "table", *KEYS[:2]])["support"].mean()
    bound = relative_errors() / [least_error(SHOTS[shots][1]) for _, shots in COLUMNS]
    published = pd.concat([theirs(n)["value"] for n in TABLES])
    return {
        "ratings-published": span(published, "{:.2f}", NOT_RUN),
        "ratings-lower": _lower(errors, users),
        "ratings-worse": f"{worse.sum()} of {len(worse)}",
        "ratings-worse-methods": " and ".join(dict.fromkeys(worse[worse].index.get_level_values("method"))) or "none",
        "ratings-near": f"{both.sum()} of {len(both)}",
        "ratings-fit-low": span(fitted.drop(["Reptile", "iMAML"]), "{:.2f}", NOT_RUN),
        "ratings-fit-imaml": span(fitted["iMAML"], "{:.2f}", NOT_RUN),
        "ratings-fit-reptile": span(fitted["Reptile"], "{:.3f}", NOT_RUN),
        "ratings-maml-below": f"{bound.loc['MAML'].lt(1).sum()} of {bound.shape[1]}",
        "ratings-amaml-above": f"{bound.loc['A-MAML'].min():.0f} to {bound.loc['A-MAML'].max():.0f}",
    }


def _lower(errors: pd.DataFrame, users: pd.DataFrame) -> str:
    """How many times our errors over the standard deviation are the published ones, the least and the most."""
    ours = {n: means(trained(errors, users, n), scores.PLAIN[0])["mean"] for n in TABLES}
    quotient = pd.concat([ours[n] / theirs(n)["value"] for n in TABLES])
    return f"{quotient.min():.1f} to {quotient.max():.0f}"


def _over_user_mean(found: pd.DataFrame) -> pd.Series:
    """Whether each method's mean is above that of the user's mean, by data, shots and method."""
    wide = found["mean"].unstack("method")
    return wide[list(METHODS)].gt(wide["user mean"], axis=0).stack()


def _trials_apart(choice: pd.DataFrame) -> float:
    """By how much, in per cent, the scores of a method's trials differ at most."""
    scores_of = choice.groupby(["table", "method"])["score"]
    return float(100 * (scores_of.max() / scores_of.min() - 1).max())


def _gains(choice: pd.DataFrame, beyond: pd.DataFrame) -> pd.Series:
    """By how much, in per cent, the best trial beyond a grid is better than the best of the grid; for each table and method."""
    best, further = (table.groupby(["table", "method"])["score"].min() for table in (choice, beyond))
    return 100 * (1 - further.reindex(best.index) / best)
