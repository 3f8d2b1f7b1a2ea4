"""What is computed: a network, its data and its parameters, in numpy alone, so that every library gets the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SUPPORT = QUERY = 100
WAY, PIXELS = 20, 28
STEPS = {"mlp": (1, 10, 50, 100, 200, 500, 2000), "conv": (5, 20, 50)}
TASKS = {"mlp": (5, 32), "conv": (4,)}
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Case:
    """One meta-gradient to compute: the exact gradient through ``steps`` (K) steps of gradient descent on ``tasks`` (B) tasks.

    Attributes:
        network: ``"mlp"``, 2-32-32-1 with tanh, 100 support and 100 query points, mean squared error; or ``"conv"``, the
            four-block network of the image experiments, 20-way 1-shot, 100 query images, cross entropy.
        dtype: of parameters and data.
        device: ``"cpu"`` or ``"cuda"``.
        filters: of the convolutions.
    """

    network: str
    tasks: int
    steps: int
    dtype: str = "float32"
    device: str = "cpu"
    filters: int = 64

    @property
    def lr(self) -> float:
        """The size of an inner step."""
        return 0.01

    def shapes(self) -> list[tuple[int, ...]]:
        """Of the parameter tensors, in the order of torch's ``named_parameters()``."""
        if self.network == "mlp":
            return [(32, 2), (32,), (32, 32), (32,), (1, 32), (1,)]
        f = self.filters
        blocks = [[(f, channels, 3, 3), (f,), (f,), (f,)] for channels in (1, f, f, f)]
        return [*sum(blocks, []), (WAY, f), (WAY,)]

    def parameters(self) -> list[np.ndarray]:
        """Uniform within one over the root of the fan-in, as torch does it; batch norm starts at scale 1 and shift 0."""
        draw = np.random.default_rng(0)
        values: list[np.ndarray] = []
        since = fan_in = 0
        for shape in self.shapes():
            since = 0 if len(shape) > 1 else since + 1  # 0: a weight; then its bias, and a norm's scale and shift
            fan_in = math.prod(shape[1:]) if since == 0 else fan_in
            value = draw.uniform(-(fan_in**-0.5), fan_in**-0.5, shape) if since < 2 else np.full(shape, 3.0 - since)
            values.append(value.astype(self.dtype))
        return values

    def theta(self) -> np.ndarray:
        """The parameters, flat: (P,)."""
        return np.concatenate([p.ravel() for p in self.parameters()])

    def data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``support_x, support_y, query_x, query_y``, each with the leading axis B."""
        draw = np.random.default_rng(1)
        if self.network == "mlp":  # y = sin(w x + phase), the frequencies w and the phase differ between tasks
            w = draw.uniform(0.5, 2.0, (self.tasks, 2, 1))
            phase = draw.uniform(0, 2 * np.pi, (self.tasks, 1, 1))
            x = draw.uniform(-2, 2, (self.tasks, SUPPORT + QUERY, 2))
            x, y = x.astype(self.dtype), np.sin(x @ w + phase).astype(self.dtype)
            return x[:, :SUPPORT], y[:, :SUPPORT], x[:, SUPPORT:], y[:, SUPPORT:]
        # Blots, one for each class, and copies of them that are shifted and noisy
        coarse = draw.uniform(0, 1, (self.tasks, WAY, 1, PIXELS // 4, PIXELS // 4))
        blots = np.kron(coarse > 0.6, np.ones((4, 4)))  # (B, way, 1, 28, 28)
        copies = np.stack([np.roll(blots, tuple(draw.integers(-2, 3, 2)), (-2, -1)) for _ in range(1 + QUERY // WAY)], 1)
        copies = copies + 0.1 * draw.standard_normal(copies.shape)  # (B, 1 + copies, way, 1, 28, 28)
        x = copies.reshape(self.tasks, -1, 1, PIXELS, PIXELS).astype(self.dtype)
        y = np.tile(np.arange(WAY), (self.tasks, 1 + QUERY // WAY))
        return x[:, :WAY], y[:, :WAY], x[:, WAY:], y[:, WAY:]


def grid(device: str = "cpu", quick: bool = False) -> list[Case]:
    """All cases; ``quick`` leaves two small ones, without convolutions, which take long to compile."""
    if quick:
        return [Case("mlp", 5, 50, device=device), Case("mlp", 32, 10, device=device)]
    return [
        Case(network, tasks, steps, dtype, device)
        for network in STEPS
        for tasks in TASKS[network]
        for dtype in DTYPES
        for steps in STEPS[network]
    ]
