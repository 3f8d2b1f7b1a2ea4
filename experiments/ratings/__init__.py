"""Collaborative filtering: every user is a task, every method predicts held-out ratings after adapting to a few.

Chapter "Collaborative filtering" shows a first comparison, and the records of all cells beside both published tables; chapter "What
could give the published ratings?" reads these tables. Kinds of cells:

- ``choice``: the score of each trial of a method on validation users of Jester-1. Always with seed 0.
- ``beyond``: the same of trials beyond the ends of the grids, which could not be chosen.
- ``users``: scales of each test user's ratings, and the errors of guesses that need no network. They depend on no method.
- ``errors``: of each test user after so many inner steps of a method that was trained with a seed.
- ``again``: the same, run a second time with a later version of the package, which rounds otherwise; of iMAML alone.
- ``horizons``: as ``errors``, of two methods with the same step size and more and more inner steps.
"""

from . import claims, figures, first, horizons, readings, settings, tables
from .data import bars, load, make_test_tasks
from .run import first_look, live

__all__ = [
    "bars",
    "claims",
    "figures",
    "first",
    "first_look",
    "horizons",
    "live",
    "load",
    "make_test_tasks",
    "readings",
    "settings",
    "tables",
]
