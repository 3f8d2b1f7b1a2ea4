"""The networks in PyTorch, with a case's parameters and data; ``jax_peers`` has the same in JAX."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.common.training import image_network

from .cases import HEADS, LAYERS, TOKENS, VOCABULARY, WAY, Case


class Layer(nn.Module):
    """Causal attention and a feed-forward network, each behind a layer norm and beside a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.heads, self.mixed = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.before_feed, self.wide, self.narrow = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, future: Tensor) -> Tensor:
        """``x (n, tokens, width)``; ``future (tokens, tokens)`` is added to the scores."""
        n, tokens, width = x.shape
        heads = self.heads(self.before_attention(x)).view(n, tokens, 3, HEADS, width // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (n, heads, tokens, width / heads)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // HEADS) + future).softmax(-1)
        x = x + self.mixed((weights @ v).transpose(1, 2).reshape(n, tokens, width))
        return x + self.narrow(functional.gelu(self.wide(self.before_feed(x)), approximate="tanh"))


class Transformer(nn.Module):
    """A causal transformer in plain operations: tokens (n, tokens) -> scores of the next token (n, tokens, vocabulary)."""

    future: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(VOCABULARY, width))
        self.places = nn.Parameter(torch.empty(TOKENS, width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)
        self.register_buffer("future", torch.full((TOKENS, TOKENS), -1e9).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.embedding(x, self.embedding) + self.places
        for layer in self.layers:
            hidden = layer(hidden, self.future)
        return self.head(self.norm(hidden))


def token_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean cross entropy of all tokens: scores (n, tokens, vocabulary), tokens (n, tokens)."""
    return functional.cross_entropy(prediction.flatten(0, 1), target.flatten())


def torch_parts(case: Case):
    """The model with the case's parameters, its loss, and the data as tensors."""
    if case.model == "mlp":
        model, loss = (
            nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)),
            functional.mse_loss,
        )
    elif case.model == "transformer":
        model, loss = Transformer(case.width), token_loss
    else:
        model, loss = image_network(case.width, WAY), functional.cross_entropy
    if case.model == "conv-smooth":
        model = nn.Sequential(*(nn.GELU("tanh") if isinstance(part, nn.ReLU) else part for part in model))
    model.to(case.device, getattr(torch, case.dtype))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), case.parameters(), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return model, loss, [torch.from_numpy(np.ascontiguousarray(part)).to(case.device) for part in case.data()]


def flat(gradients) -> np.ndarray:
    """Gradients of the parameter tensors -> (P,)."""
    return np.concatenate([g.detach().cpu().numpy().ravel() for g in gradients])
