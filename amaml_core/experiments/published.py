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

# The same from the slides. Table 2: 100 inner steps, MAML 10.
RATINGS_TABLE_2 = {
    "A-MAML": ((0.069, 0.005), (0.044, 0.003), (0.057, 0.006), (0.021, 0.002), (0.105, 0.009), (0.035, 0.004)),
    "iMAML": ((0.190, 0.010), (0.103, 0.005), (0.168, 0.007), (0.046, 0.002), (0.130, 0.007), (0.045, 0.004)),
    "MAML": ((0.154, 0.001), (0.061, 0.002), (0.123, 0.001), (0.050, 0.002), (0.197, 0.002), (0.083, 0.001)),
    "FOMAML": ((0.273, 0.012), (0.077, 0.004), (0.191, 0.007), (0.071, 0.004), (0.395, 0.010), (0.119, 0.005)),
    "Reptile": ((0.290, 0.012), (0.100, 0.004), (0.171, 0.008), (0.066, 0.004), (0.408, 0.011), (0.128, 0.006)),
}
RATINGS_TABLES = {1: RATINGS_TABLE_1, 2: RATINGS_TABLE_2}

# Accuracy in per cent, with its interval. The baselines' Omniglot rows equal those of iMAML's own paper.
IMAGES_TABLE = {
    ("omniglot", "20-way 1-shot"): {
        "MAML": (95.8, 0.3), "FOMAML": (89.4, 0.5), "Reptile": (89.43, 0.14), "iMAML-GD": (94.46, 0.42),
        "iMAML-HF": (96.18, 0.36), "A-MAML, T=0.5": (96.36, 0.39), "A-MAML, T=1.0": (96.79, 0.34),
    },
    ("mini-imagenet", "5-way 1-shot"): {
        "MAML": (48.70, 1.84), "FOMAML": (48.07, 1.75), "Reptile": (49.97, 0.32), "iMAML-GD": (48.96, 1.84),
        "iMAML-HF": (49.30, 1.88), "A-MAML, T=0.5": (49.43, 1.64), "A-MAML, T=1.0": (49.47, 1.77),
    },
}  # fmt: skip

# Omniglot, 5-way 1-shot, from iMAML's own paper (Rajeswaran et al., 2019, Table 2), which also quotes the other rows.
IMAGES_FIVE_WAY = {
    "MAML": (98.7, 0.4), "FOMAML": (98.3, 0.5), "Reptile": (97.68, 0.04), "iMAML-GD": (99.16, 0.35), "iMAML-HF": (99.50, 0.26),
}  # fmt: skip
