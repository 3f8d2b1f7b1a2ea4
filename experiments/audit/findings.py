"""The findings in one table; all from rows."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from ..common.tables import span
from .facts import BARE_LOOPS, BOTH, COPIED, TWO_AND_THREE, Rows, change, standardisation_effect
from .settings import EXACT, PROXIMAL
from .switches import BARE, RELEASED, Switches
from .tables import ADAM, INNER, UNROLLED, cell, level, number, select, trained_on, typical


def table(rows: Rows) -> pd.DataFrame:
    """The findings in one table, in words: a row for each."""
    gradient, training = rows["gradient"], rows["training"]

    def cosines(switches: Switches, steps: int, formula: str = "cosmixture") -> str:
        return f"{span(select(cell(gradient, formula, 'trained', steps), switches)['plain_cosine'])} at K = {steps}"

    def own(switches: Switches, steps: int) -> str:
        return number(typical(cell(gradient, "cosmixture", "initial", steps), switches, "own_error"))

    def both(setting: str, formula: str = "cosmixture") -> str:
        return f"{change(training, formula, setting, INNER)}; Adam {change(training, formula, setting, ADAM)}"

    def mean(formula: str, rule: str, step: int) -> str:
        return f"{level(trained_on(training, formula, EXACT, rule, step)).mean:.2f}"

    def peaks(batch: int, steps: int) -> str:
        mine = rows["memory"].query("batch == @batch and steps == @steps").set_index("way")["peak"] / 1e6
        names = {"released": "as it is", COPIED: "copied", UNROLLED: "unrolled", "ours, Checkpoint": "our Checkpoint"}
        return f"peak in MB at B = {batch}, K = {steps}: " + ", ".join(f"{short} {mine[name]:.1f}" for name, short in names.items())

    right = replace(BARE, backward_steps="n")
    cosine = rows["functions"].groupby("formula")["cosine"].mean()
    errors = [f"{mean(f, *INNER)} → {mean(f'{f}-released', *INNER)}" for f in BOTH]
    moved = rows["standardisation"].groupby("seed")["gradient_error"].first().mean()
    lines = [
        ("finding", "the paper", "the code", "effect on the meta-gradient",
         "effect on the held-out error: 50 inner steps; 500 epochs of Adam"),
        ("1 Proximal terms", "no proximal regulariser", "always on, weight 1, in both losses",
         f"cosine with plain MAML at the trained network: {cosines(RELEASED, 50)}, {cosines(RELEASED, 500)}; "
         f"Alpine {cosines(RELEASED, 50, 'alpine')}", f"{both(PROXIMAL)}; Alpine {both(PROXIMAL, 'alpine')}"),
        ("2 Solvers", "Euler forward, Heun back", "RK4 (3/8 rule) forward, Euler at the right end back",
         f"error with n steps {own(right, 50)} at K = 50, {own(right, 500)} at K = 500; "
         f"as released {own(BARE, 50)} and {own(BARE, 500)}", both(TWO_AND_THREE[0])),
        ("3 Loop", "n steps over n intervals", "n + 1 steps, n + 2 nodes, Heun wraps to the last state",
         f"error at K = 50: wrapped Heun {own(BARE_LOOPS[2], 50)}, sound Heun {own(BARE_LOOPS[5], 50)}", both(TWO_AND_THREE[1])),
        ("1 to 3 together", "", "",
         f"error against its own objective {own(RELEASED, 50)} at K = 50, {own(RELEASED, 500)} at K = 500",
         f"{both('released')}; Alpine {both('released', 'alpine')}"),
        ("4 Functions", "0.1 A cos, ω to 2π; two phases", "A cos, ω from 3π to 6π; one phase, plus π",
         f"cosine {cosine['cosmixture-released']:.2f} (cosine mixtures), {cosine['alpine-released']:.2f} (Alpine)",
         f"error of the exact method {errors[0]} and {errors[1]}"),
        ("5 Memory", "memory-efficient", "stored solutions stay alive until the batch is done", "none",
         "; ".join(peaks(*shape) for shape in ((8, 50), (2, 200)))),
        ("6a Test adaptation", "fine-tuning epochs", "Adam, also for the option sgd", "none",
         f"exact method, 500 epochs: Adam {mean('cosmixture', *ADAM)}, sgd {mean('cosmixture', 'sgd', 500)}, "
         f"inner loop {mean('cosmixture', 'inner', 500)}"),
        ("6b Standardisation", "not said", "test functions included", f"error {number(moved)}",
         str(standardisation_effect(rows["standardisation"], INNER))),
        ("6c imaml_reg", "", "stored, never read", "that of finding 1, which it cannot turn off", "as finding 1"),
    ]  # fmt: skip
    header, *body = lines
    return pd.DataFrame(body, columns=list(header)).set_index("finding")
