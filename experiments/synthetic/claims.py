"""What the paper claims of horizons, and what our records say; :mod:`experiments.recipe.claims` has its figure."""

from __future__ import annotations

import pandas as pd

from ..common.claims import Claim, decide
from . import horizons
from .facts import of_horizons
from .tables import recorded, select

NEAR = 0.05  # of the spread of the targets: as much as meta-training gives on the hard functions at least


def claims(table: pd.DataFrame | None = None) -> list[Claim]:
    """Of rows of horizons, by default the recorded ones."""
    table = recorded("horizons") if table is None else table
    if table.empty:
        return []
    said = of_horizons(table)
    above = select(horizons.above_lowest(table).reset_index(), method="A-MAML")
    early = select(horizons.too_early(table)["mean"].reset_index(), method="A-MAML")[table["trained_steps"].max()]
    name = "synthetic regression"
    return [
        Claim(name, "A-MAML adapts to trajectories longer than those it was trained for",
              f"on every function, beyond its own horizon a line is at most {NEAR:g} above the lowest", "stated, without a test",
              f"at most {said['beyond-a-maml']} above", decide(above["beyond"].le(NEAR)),
              f"so does FOMAML with the same inner steps: at most {said['beyond-fomaml']} above"),
        Claim(name, "A-MAML adapts to trajectories shorter than those it was trained for",
              f"on every function, trained with {said['most']} steps and tested after ten, its error is at most {NEAR:g} above "
              "that of training with ten", "stated, without a test", f"{said['early-a-maml']} above", decide(early.le(NEAR)),
              f"FOMAML with the same inner steps: {said['early-fomaml']} above"),
    ]  # fmt: skip
