"""Ways to write a user's error as one number: a power of the RMSE over a scale of the user's ratings, and over their number.

They need no runs of their own: errors and scales of each user are recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import pandas as pd

# "norm" is the root mean square of the ratings; "rating scale" its whole length, 20 for Jester and 4 for MovieLens. "none" leaves
# the error in standard deviations of the training ratings.
SCALES = ("standard deviation", "range", "norm", "norm of raw ratings", "rating scale", "none")
Part = Literal["query", "support"]


@dataclass(frozen=True)
class Score:
    r"""The error of a user as :math:`(\mathrm{RMSE}/s)^p/n^q`, for ``n`` ratings of which the scale is ``s``.

    Attributes:
        scale: one of ``SCALES``, or ``"none"``.
        power: ``p``; 2 makes a mean square of the root.
        points: ``q``. One half divides by the norm of all ratings in place of their root mean square; one divides a mean by the
            number of points once more.

    >>> print(Score("range"), "|", Score("standard deviation", 2, 1), "|", Score("none"))
    RMSE/range | MSE/(standard deviation²·n) | RMSE
    """

    scale: str = "standard deviation"
    power: Literal[1, 2] = 1
    points: Literal[0, 0.5, 1] = 0

    def __post_init__(self) -> None:
        if self.scale not in SCALES or self.power not in (1, 2) or self.points not in (0, 0.5, 1):
            raise ValueError(f"a score has a scale of {SCALES}, a power of 1 or 2 and points of 0, 0.5 or 1, not {self!r}")

    def __str__(self) -> str:
        below = [] if self.scale == "none" else [self.scale + ("²" if self.power == 2 else "")]
        below += {0: [], 0.5: ["√n"], 1: ["n"]}[self.points]
        over = below[0] if len(below) == 1 else f"({'·'.join(below)})"
        return ("RMSE", "MSE")[self.power - 1] + (f"/{over}" if below else "")

    def of(self, table: pd.DataFrame, part: Part = "query", error: str | None = None) -> pd.Series:
        """Each row's score; missing where the scale is zero, as it is of a user who gave the same rating throughout.

        Args:
            table: rows of errors and scales: ``{part} {scale}``, in units of ``std``; ``std``; ``low`` and ``high``, the ends of
                the rating scale; and ``{part} points``, the number of ratings.
            part: the set of points.
            error: the column of the RMSE; by default it is named after the part.
        """
        rmse = table[error or part]
        if self.scale == "rating scale":
            rmse = rmse * table["std"] / (table["high"] - table["low"])
        elif self.scale != "none":
            scale = table[f"{part} {self.scale}"]
            rmse = rmse / scale.where(scale > 1e-6)
        return rmse**self.power / table[f"{part} points"] ** self.points


PLAIN = tuple(Score(scale) for scale in SCALES)
ALL = tuple(Score(scale, power, points) for power, points, scale in product((1, 2), (0, 0.5, 1), SCALES))
BY_NAME = {str(score): score for score in ALL}
NEAREST = Score("standard deviation", 1, 1)  # the reading of the published tables that comes nearest without a free constant
