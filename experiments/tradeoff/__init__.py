"""What an exact meta-gradient is worth: hold the adapted parameters fixed, swap the pullback.

Chapter "What an exact meta-gradient is worth" shows it. Every candidate adapts by the same K steps of gradient descent, so all have
the same adapted parameters and the same query gradient. They differ in how they pull it back to the initialisation. Kinds of cells:

- ``errors``: error and cosine of every candidate's meta-gradient against the exact one, in float64, for one step size and one
  number of steps, at the initialisations along one run of meta-training;
- ``curvature``: step size times largest eigenvalue of each task's Hessian at both ends of the descent, at the same initialisations;
- ``costs``: CPU seconds and live bytes of every candidate's meta-gradient, at the untrained network;
- ``training``: the same training run with one candidate's meta-gradient, and the error on test functions.

Nothing was tuned: every training run has the inner step size 0.05 and Adam's rate 0.001.
"""

from . import claims, facts, figures, settings, tables
from .run import live

__all__ = ["claims", "facts", "figures", "live", "settings", "tables"]
