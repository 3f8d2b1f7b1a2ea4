"""The fine-tuning curves of synthetic regression in a figure of Li et al., Meta-learning with adjoint methods, AISTATS 2023.

The values are read off the figure by eye, to about ``READING_ERROR``. The figure's axes say "epochs" and "nRMSE"; it does not say
which points the error is measured on, nor what it is divided by. Chapter "Synthetic regression" asks that of our own curves.
"""

from __future__ import annotations

import pandas as pd

READING_ERROR = 0.02
EPOCHS = (0, 200, 500, 1000)

# (family, shots): method: nRMSE at EPOCHS. None: beyond the figure's upper edge.
CURVES: dict[tuple[str, int], dict[str, tuple[float | None, ...]]] = {
    ("cosmixture", 50): {
        "A-MAML": (0.65, 0.56, 0.40, 0.15),
        "MAML": (0.95, 0.70, 0.55, 0.35),
        "MAML-1": (0.92, 0.73, 0.57, 0.40),
        "iMAML": (1.44, 0.62, 0.57, 0.42),
        "FOMAML": (0.91, 0.86, 0.73, 0.50),
        "Reptile": (0.90, 0.87, 0.75, 0.52),
    },
    ("cosmixture", 100): {
        "A-MAML": (0.66, 0.61, 0.51, 0.28),
        "MAML": (None, 0.68, 0.65, 0.61),
        "MAML-1": (1.0, 0.87, 0.73, 0.54),
        "iMAML": (1.06, 0.63, 0.60, 0.51),
        "FOMAML": (0.95, 0.66, 0.58, 0.36),
        "Reptile": (0.90, 0.88, 0.75, 0.58),
    },
    ("alpine", 50): {
        "A-MAML": (0.70, 0.55, 0.41, 0.19),
        "MAML": (0.98, 0.76, 0.60, 0.39),
        "MAML-1": (0.98, 0.78, 0.61, 0.43),
        "iMAML": (0.98, 0.60, 0.54, 0.39),
        "FOMAML": (0.99, 0.92, 0.78, 0.52),
        "Reptile": (0.99, 0.94, 0.79, 0.52),
    },
    ("alpine", 100): {
        "A-MAML": (0.70, 0.62, 0.54, 0.36),
        "MAML": (1.28, 0.68, 0.64, 0.58),
        "MAML-1": (0.97, 0.87, 0.76, 0.57),
        "iMAML": (0.97, 0.65, 0.62, 0.54),
        "FOMAML": (1.05, 0.67, 0.59, 0.47),
        "Reptile": (0.99, 0.96, 0.83, 0.61),
    },
}


def table() -> pd.DataFrame:
    """One row for each value that the figure shows: ``family``, ``shots``, ``method``, ``step``, ``published``."""
    rows = [
        (family, shots, method, epoch, value)
        for (family, shots), curves in CURVES.items()
        for method, values in curves.items()
        for epoch, value in zip(EPOCHS, values, strict=True)
        if value is not None
    ]
    return pd.DataFrame(rows, columns=["family", "shots", "method", "step", "published"])
