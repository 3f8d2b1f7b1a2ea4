"""Figures published by Li et al., Meta-learning with adjoint methods, AISTATS 2023, and in its slides: to stand beside ours.

Values are (mean, half-width or standard error as published).
"""

from __future__ import annotations

RATINGS_COLUMNS = (
    ("jester-1", 10, 15), ("jester-1", 20, 30), ("ml-100k", 10, 15), ("ml-100k", 20, 30), ("ml-1m", 10, 15), ("ml-1m", 20, 30),
)  # fmt: skip

# nRMSE of collaborative filtering, in the order of RATINGS_COLUMNS. Table 1: 50 inner steps, MAML 5.
RATINGS_TABLE_1 = {
    "A-MAML": ((0.074, 0.005), (0.027, 0.002), (0.053, 0.005), (0.023, 0.003), (0.094, 0.008), (0.035, 0.004)),
    "iMAML": ((0.114, 0.007), (0.050, 0.003), (0.082, 0.004), (0.033, 0.002), (0.138, 0.010), (0.052, 0.004)),
    "MAML": ((0.120, 0.001), (0.036, 0.000), (0.123, 0.001), (0.050, 0.003), (0.140, 0.002), (0.059, 0.001)),
    "FOMAML": ((0.292, 0.012), (0.115, 0.004), (0.174, 0.008), (0.068, 0.004), (0.270, 0.011), (0.104, 0.006)),
    "Reptile": ((0.270, 0.012), (0.106, 0.004), (0.166, 0.008), (0.063, 0.003), (0.266, 0.011), (0.101, 0.006)),
}
