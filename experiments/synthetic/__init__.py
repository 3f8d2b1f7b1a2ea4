"""Synthetic regression: every random function is a task; methods are compared by their curves of fine-tuning on test functions.

Chapter "Synthetic regression" shows it; chapter "What does the published figure show?" holds it against the published curves. The
kinds of cells:

- ``choices``: try the four settings that every method has in ``TRIALS``, on validation functions that are neither training nor test
  functions, from a pool of their own;
- ``curves``: train one method (or none, ``untrained``) and follow the error on the test functions, on support and held-out points,
  while a network adapts by Adam (the released code's test) and by the method's own inner loop;
- ``nudged``: train again from initial weights that differ in their last digit, and follow the same errors by Adam;
- ``horizons``: train at one number of inner steps, test at many; A-MAML, and FOMAML with A-MAML's settings and with its own;
- ``grids`` and ``points``: the adapted prediction of one test function on a grid of inputs, and the points it was adapted to.
"""

from . import claims, facts, figures, horizons, settings, tables
from .run import instances, live, slices, without_network

__all__ = ["claims", "facts", "figures", "horizons", "instances", "live", "settings", "slices", "tables", "without_network"]
