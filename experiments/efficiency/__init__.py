"""What a meta update costs in time and memory, against the number of inner steps: six methods side by side.

Chapter "What a meta update costs" shows it. Kinds of cells, all on the paper's CosMixture functions with 100 support and 100 query
points, five tasks in a meta-batch:

- ``seconds``: of one meta update (meta-gradient and Adam's step). All methods of a cell take turns, so that a slow moment of the
  machine meets all of them. On a CPU these are CPU seconds, on a GPU seconds until its work is done.
- ``bytes``: the largest number of bytes in live tensors during one meta-gradient, counted, not sampled. A property of the
  algorithm, the same on every machine.
"""

from . import claims, figures, settings, tables
from .run import live

__all__ = ["claims", "figures", "live", "settings", "tables"]
