"""What is computed: a network, its data and its parameters, in numpy alone, so that every library gets the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

SUPPORT = QUERY = 100
WAY, PIXELS = 20, 28
TOKENS, VOCABULARY, LAYERS, HEADS = 64, 64, 3, 4
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam
REGULARIZATION, CG_STEPS = 2.0, 10  # of the implicit gradient
STEPS = {
    "mlp": (1, 10, 50, 100, 200, 500, 2000),
    "adam": (10, 50, 100, 500),
    "implicit": (10, 50, 200),
    "conv": (5, 20, 50),
    "conv-smooth": (5, 20, 50),
    "transformer": (5, 50),
}
TASKS = {"mlp": (5, 32), "adam": (5, 32), "implicit": (5, 32), "conv": (4,), "conv-smooth": (4,), "transformer": (4,)}
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Case:
    """One meta-gradient to compute, of the mean query loss over ``tasks`` (B) tasks.

    Attributes:
        network: what is adapted, and how. By ``steps`` (K) steps of gradient descent, through which the exact gradient is
            wanted: ``"mlp"``, 2-32-32-1 with tanh, 100 support and 100 query points, mean squared error; ``"conv"``, the
            four-block network of the image experiments, 20-way 1-shot, 100 query images, cross entropy; ``"conv-smooth"``, the
            same with GELU in place of ReLU; ``"transformer"``, a causal one of three pre-norm layers, which predicts the next
            token of one sequence of 64. Two more adapt the mlp: ``"adam"`` by K steps of Adam, ``"implicit"`` by K steps of
            gradient descent on the proximal problem of iMAML, whose optimality condition is differentiated with ``CG_STEPS``
            steps of conjugate gradients.
        dtype: of parameters and data.
        device: ``"cpu"`` or ``"cuda"``.
        width: filters of the convolutions, or features of a token.
    """

    network: str
    tasks: int
    steps: int
    dtype: str = "float32"
    device: str = "cpu"
    width: int | None = None

    def __post_init__(self) -> None:
        if self.width is None:
            object.__setattr__(self, "width", {"transformer": 160}.get(self.network, 64))

    @property
    def kind(self) -> str:
        """``"descent"``, ``"adam"`` or ``"implicit"``: how the network is adapted and what is differentiated."""
        return self.network if self.network in ("adam", "implicit") else "descent"

    @property
    def model(self) -> str:
        """``"mlp"``, ``"conv"``, ``"conv-smooth"`` or ``"transformer"``."""
        return self.network if self.kind == "descent" else "mlp"

    @property
    def convolves(self) -> bool:
        """Whether the network is one of convolutions."""
        return self.model.startswith("conv")

    @property
    def one_by_one(self) -> bool:
        """Whether one task after another is faster than all at once: large networks on a CPU."""
        return self.model != "mlp" and self.device == "cpu"

    @property
    def lr(self) -> float:
        """The size of an inner step. Through many steps of 0.01, Adam's gradient explodes, and float32 has no digit of it."""
        return 0.001 if self.kind == "adam" else 0.01

    def reference(self) -> tuple[str, Case]:
        """The contender, and the case, whose gradient is taken for the truth."""
        return "hypertorch recipe" if self.kind == "implicit" else "unrolled", replace(self, dtype="float64")

    def layout(self) -> list[tuple[str, tuple[int, ...]]]:
        """What the parameter tensors are, and their shapes, in the order of torch's ``named_parameters()``."""
        linear = lambda out, into: [("weight", (out, into)), ("bias", (out,))]  # noqa: E731
        if self.model == "mlp":
            return [*linear(32, 2), *linear(32, 32), *linear(1, 32)]
        w = self.width
        norm = [("scale", (w,)), ("shift", (w,))]
        if self.convolves:
            blocks = [[("weight", (w, channels, 3, 3)), ("bias", (w,)), *norm] for channels in (1, w, w, w)]
            return [*sum(blocks, []), *linear(WAY, w)]
        layer = [*norm, *linear(3 * w, w), *linear(w, w), *norm, *linear(4 * w, w), *linear(w, 4 * w)]
        return [("weight", (VOCABULARY, w)), ("weight", (TOKENS, w)), *LAYERS * layer, *norm, *linear(VOCABULARY, w)]

    def shapes(self) -> list[tuple[int, ...]]:
        """Of the parameter tensors."""
        return [shape for _, shape in self.layout()]

    def parameters(self) -> list[np.ndarray]:
        """Uniform within one over the root of the fan-in, as torch does it; norms start at scale 1 and shift 0."""
        draw = np.random.default_rng(0)
        values: list[np.ndarray] = []
        fan_in = 0
        for role, shape in self.layout():
            fan_in = math.prod(shape[1:]) if role == "weight" else fan_in  # a bias has its weight's
            drawn = draw.uniform(-(fan_in**-0.5), fan_in**-0.5, shape) if role in ("weight", "bias") else None
            value = np.full(shape, float(role == "scale")) if drawn is None else drawn
            values.append(value.astype(self.dtype))
        return values

    def theta(self) -> np.ndarray:
        """The parameters, flat: (P,)."""
        return np.concatenate([p.ravel() for p in self.parameters()])

    def data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``support_x, support_y, query_x, query_y``, each with the leading axis B."""
        draw = np.random.default_rng(1)
        if self.model == "mlp":  # y = sin(w x + phase), the frequencies w and the phase differ between tasks
            w = draw.uniform(0.5, 2.0, (self.tasks, 2, 1))
            phase = draw.uniform(0, 2 * np.pi, (self.tasks, 1, 1))
            x = draw.uniform(-2, 2, (self.tasks, SUPPORT + QUERY, 2))
            x, y = x.astype(self.dtype), np.sin(x @ w + phase).astype(self.dtype)
            return x[:, :SUPPORT], y[:, :SUPPORT], x[:, SUPPORT:], y[:, SUPPORT:]
        if self.model == "transformer":  # a task's sequences follow a permutation of its own, with one leap in eight tokens
            follower = np.stack([draw.permutation(VOCABULARY) for _ in range(self.tasks)])  # (B, vocabulary)
            sequence = draw.integers(VOCABULARY, size=(self.tasks, 2, TOKENS + 1))
            leap = draw.uniform(size=sequence.shape) < 1 / 8
            for t in range(TOKENS):
                following = np.take_along_axis(follower, sequence[:, :, t], 1)  # (B, 2)
                sequence[:, :, t + 1] = np.where(leap[:, :, t + 1], sequence[:, :, t + 1], following)
            x, y = sequence[:, :, :-1], sequence[:, :, 1:]  # (B, 2, tokens)
            return x[:, :1], y[:, :1], x[:, 1:], y[:, 1:]
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
