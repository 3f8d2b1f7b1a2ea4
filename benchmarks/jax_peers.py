"""Contenders in JAX, with the networks of ``torch_networks`` written again."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from .cases import BETA1, BETA2, EPS, HEADS, LAYERS, Case

Compute = Callable[[], np.ndarray]


def mlp(p: list, x):
    return jnp.tanh(jnp.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3]) @ p[4].T + p[5]


def conv(p: list, x, activation: Callable):
    for weight, bias, scale, shift in (p[i : i + 4] for i in range(0, 16, 4)):
        x = jax.lax.conv_general_dilated(x, weight, (2, 2), ((1, 1), (1, 1)), None, None, ("NCHW", "OIHW", "NCHW"))
        x = x + bias[:, None, None]
        mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        x = (x - mean) / jnp.sqrt(variance + 1e-5) * scale[:, None, None] + shift[:, None, None]
        x = activation(x)
    return x.mean((2, 3)) @ p[16].T + p[17]


def layer_norm(x, scale, shift):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift


def transformer(p: list, x):
    """Tokens (n, tokens) -> scores (n, tokens, vocabulary)."""
    n, tokens = x.shape
    future = jnp.triu(jnp.full((tokens, tokens), -1e9, p[0].dtype), 1)
    hidden = p[0][x] + p[1]
    width = hidden.shape[-1]
    for i in range(2, 2 + 12 * LAYERS, 12):
        heads = layer_norm(hidden, p[i], p[i + 1]) @ p[i + 2].T + p[i + 3]
        q, k, v = heads.reshape(n, tokens, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
        weights = jax.nn.softmax(q @ k.swapaxes(-2, -1) / (width // HEADS) ** 0.5 + future)
        hidden = hidden + (weights @ v).swapaxes(1, 2).reshape(n, tokens, width) @ p[i + 4].T + p[i + 5]
        wide = jax.nn.gelu(layer_norm(hidden, p[i + 6], p[i + 7]) @ p[i + 8].T + p[i + 9], approximate=True)
        hidden = hidden + wide @ p[i + 10].T + p[i + 11]
    return layer_norm(hidden, p[-4], p[-3]) @ p[-2].T + p[-1]


def jax_loss(case: Case) -> Callable:
    """``(parameters, x, y) -> loss`` of one task."""
    if case.model == "mlp":
        return lambda p, x, y: jnp.square(mlp(p, x) - y).mean()
    smooth = case.model == "conv-smooth"

    def loss(p, x, y):
        scores = transformer(p, x) if case.model == "transformer" else conv(p, x, jax.nn.gelu if smooth else jax.nn.relu)
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[..., None], -1).mean()

    return loss


def mixed_mode(loss: Callable) -> Callable:
    """``jax.grad(loss)`` whose own derivative is taken forward over reverse: a Hessian is symmetric, so the product of a cotangent
    with it is a ``jvp`` of the gradient, which keeps nothing of the gradient's evaluation (Kemaev et al., ICML 2025)."""
    slope = jax.custom_vjp(jax.grad(loss))

    def back(kept, cotangent):
        p, x, y = kept
        return jax.jvp(lambda u: jax.grad(loss)(u, x, y), (p,), (cotangent,))[1], None, None

    slope.defvjp(lambda p, x, y: (jax.grad(loss)(p, x, y), (p, x, y)), back)
    return slope


def adam(case: Case) -> tuple[Callable, Callable]:
    """``(state, gradients) -> state`` of one step of Adam, and the state of given parameters."""

    def step(state, gradients):
        u, first, second, steps = state
        steps = steps + 1
        first = [BETA1 * m + (1 - BETA1) * g for m, g in zip(first, gradients, strict=True)]
        second = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(second, gradients, strict=True)]
        rate, root = case.lr / (1 - BETA1**steps), jnp.sqrt(1 - BETA2**steps)
        return [p - rate * m / (jnp.sqrt(v) / root + EPS) for p, m, v in zip(u, first, second, strict=True)], first, second, steps

    zeros = lambda p: [jnp.zeros_like(v) for v in p]  # noqa: E731
    return step, lambda p: (p, zeros(p), zeros(p), jnp.zeros((), p[0].dtype))


def descent(case: Case) -> tuple[Callable, Callable]:
    """The same of gradient descent."""
    return lambda state, g: ([p - case.lr * s for p, s in zip(state[0], g, strict=True)],), lambda p: (p,)


def jax_scan(case: Case, checkpoint: bool = False, mixed: bool = False) -> Compute:
    """``jit(vmap(grad(scan)))``, with or without ``jax.checkpoint`` around each step; large networks task by task (``lax.map``),
    which on a CPU is faster than ``vmap``."""
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "float32")  # on a GPU it would round the factors of a product to 10 bits
    theta = [jnp.asarray(p) for p in case.parameters()]
    data = tuple(jnp.asarray(part) for part in case.data())
    loss = jax_loss(case)
    slope = mixed_mode(loss) if mixed else jax.grad(loss)
    update, start = (adam if case.kind == "adam" else descent)(case)

    def query_loss(p, support_x, support_y, query_x, query_y):
        def step(state, _):
            return update(state, slope(state[0], support_x, support_y)), None

        adapted, _ = jax.lax.scan(jax.checkpoint(step) if checkpoint else step, start(p), None, length=case.steps)
        return loss(adapted[0], query_x, query_y)

    def per_task(p, d):
        one = lambda task: jax.grad(query_loss)(p, *task)  # noqa: E731
        return jax.lax.map(one, d) if case.one_by_one else jax.vmap(one)(d)

    compute = jax.jit(lambda p, d: jnp.concatenate([g.mean(0).ravel() for g in per_task(p, d)]))
    return lambda: np.asarray(compute(theta, data))
