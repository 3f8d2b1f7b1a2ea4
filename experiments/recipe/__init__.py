"""Fine-tuning curves under the released recipe: what does the published figure of synthetic regression show?

The recipe differs from the protocol of :mod:`experiments.synthetic` in what surrounds the methods: plain gradient steps outside,
proximal terms in both losses, points that are drawn anew for each update, double precision. Chapter "What does the published figure
show?" has what it gives. One kind of cells, ``curves``: train by one method, and follow the errors on support and held-out points
while new functions are fitted by Adam, from several moments of the training and at several rates.
"""

from . import claims, figures, settings, tables
from .run import live

__all__ = ["claims", "figures", "live", "settings", "tables"]
