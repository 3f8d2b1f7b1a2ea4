"""Why are the published errors of collaborative filtering so small? Each hypothesis changes one thing about the tasks.

Chapter "What could give the published ratings?" shows the records. Kinds of cells:

- ``users``: scales of each test user's ratings under a hypothesis, and the errors of two guesses.
- ``errors``: of each test user after so many inner steps of a method that was trained under the hypothesis.

Ways to write an error as one number need no cells of their own: :class:`experiments.common.scores.Score`.
"""

from . import claims, figures, settings, tables
from .run import live

__all__ = ["claims", "figures", "live", "settings", "tables"]
