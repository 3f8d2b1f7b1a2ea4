"""The functions of finding 4, with each change of the released code a field, and pools of them to train and test on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from amaml_core import Tasks
from amaml_core.samplers import Standardisation, make_function_tasks
from amaml_core.samplers.draws import uniform

from ..common.training import generator
from .settings import SHOTS


@dataclass(frozen=True)
class CosFormula:
    r"""Cosine mixtures with finding 4's changes one by one: :math:`-c\sum_iA\cos(\omega x_i+\varphi)-\sum_ix_i^2`.

    Attributes:
        tenth: c is 0.1, as on the slides, or 1.
        swapped: :math:`\omega/\pi` in [3, 6] and :math:`\varphi` in [0.5, 2], or the other way round, as on the slides.
    """

    tenth: bool = True
    swapped: bool = False
    d: int = 2
    low: float = -1.0
    high: float = 1.0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """A, ω and φ of n functions: (n, 3), float64; one seed gives the same places within the ranges for all formulas."""
        ranges = ((0.1, 1.0), (3.0, 6.0), (0.5, 2.0)) if self.swapped else ((0.1, 1.0), (0.5, 2.0), (3.0, 6.0))
        drawn = torch.cat([uniform((n, 1), low, high, generator) for low, high in ranges], 1)
        return drawn * torch.tensor([1.0, torch.pi, 1.0], dtype=torch.float64)

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Parameters (B, 3), x (B, N, d) -> y (B, N, 1)."""
        amplitude, omega, phase = (column.view(-1, 1, 1) for column in parameters.T)  # (B, 1, 1) each
        waves = (amplitude * torch.cos(omega * x + phase)).sum(2, keepdim=True)
        return -(0.1 if self.tenth else 1.0) * waves - x.square().sum(2, keepdim=True)


@dataclass(frozen=True)
class AlpineFormula:
    r"""Alpine functions with finding 4's changes one by one: :math:`\sum_i|x_i\sin(x_i+\psi_i)+0.1x_i|`.

    Attributes:
        first_phase: every coordinate has the phase of the first one.
        shifted: all phases are larger by :math:`\pi`.
    """

    first_phase: bool = False
    shifted: bool = False
    d: int = 2
    low: float = -10.0
    high: float = 10.0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Phases of n functions: (n, d), float64."""
        return uniform((n, self.d), -5 * torch.pi / 12, 5 * torch.pi / 12, generator)

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Parameters (B, d), x (B, N, d) -> y (B, N, 1)."""
        phases = parameters[:, None]  # (B, 1, d)
        if self.first_phase:
            phases = phases[..., :1].expand(-1, -1, self.d)
        angle = x + phases + (torch.pi if self.shifted else 0.0)
        return (x * angle.sin() + x / 10).abs().sum(2, keepdim=True)


# The slides' formula of each family, its changes one by one, and all of them: the released one.
FORMULAS = {
    "cosmixture": CosFormula(),
    "cosmixture-without-tenth": CosFormula(tenth=False),
    "cosmixture-swapped": CosFormula(swapped=True),
    "cosmixture-released": CosFormula(tenth=False, swapped=True),
    "alpine": AlpineFormula(),
    "alpine-first-phase": AlpineFormula(first_phase=True),
    "alpine-shifted": AlpineFormula(shifted=True),
    "alpine-released": AlpineFormula(first_phase=True, shifted=True),
}


class Pools(NamedTuple):
    """Functions to train on, new ones to test on, and their standardisation."""

    train: Tasks
    test: Tasks
    standardisation: Standardisation


def pools(formula: str, functions: int, seed: int, fit_on: Literal["train", "all"] = "train") -> Pools:
    """Training functions and as many new ones, standardised by the training functions, or by all as the released code does.

    Raises:
        ValueError: an unknown formula.
    """
    if formula not in FORMULAS:
        raise ValueError(f"formula must be one of {tuple(FORMULAS)}, not {formula!r}")
    train, test = (
        make_function_tasks(FORMULAS[formula], functions, SHOTS, SHOTS, generator(purpose, seed), torch.float64)
        for purpose in ("audit training", "audit test")
    )
    standardisation = Standardisation.fit(*((train,) if fit_on == "train" else (train, test)))
    return Pools(standardisation.apply(train), standardisation.apply(test), standardisation)
