"""What a memory strategy does with a chain of steps: which step it takes when, which states it keeps, and what that costs.

Nothing is computed: the strategy is handed a chain that takes notes. Chapter "Which states to keep" draws them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from amaml_core.adjoint import Checkpoint, Store
from amaml_core.chain import Gradients


class Call(NamedTuple):
    """One step forward, from state ``step`` to the next, or one step of the backward sweep, which needs state ``step``."""

    kind: Literal["forward", "backward"]
    step: int


class Kept(NamedTuple):
    """A state that lies in memory while other steps are taken: ``made`` after this many calls, last ``read`` by call number."""

    state: int
    made: int
    read: int


@dataclass(frozen=True)
class _NoteTaker:
    """A chain whose states are their own numbers, and which writes down its calls."""

    steps: int
    initial: Tensor = field(default_factory=lambda: torch.zeros(1, 1))
    calls: list[Call] = field(default_factory=list)

    def __len__(self) -> int:
        return self.steps

    def start(self, lam: Tensor) -> Gradients:
        return Gradients(lam)

    def forward(self, k: int, u: Tensor) -> Tensor:
        self.calls.append(Call("forward", int(u)))
        return u + 1

    def advance(self, start: int, stop: int, u: Tensor) -> Tensor:
        for k in range(start, stop):
            u = self.forward(k, u)
        return u

    def backward(self, k: int, u: Tensor, u_next: Tensor | None, gradients: Gradients) -> Gradients:
        self.calls.append(Call("backward", int(u)))
        return gradients


def calls(memory: Store | Checkpoint, steps: int) -> list[Call]:
    """All steps that the strategy takes, forward and backward, for a trajectory of ``steps`` (K) steps with discrete adjoint.

    Raises:
        ValueError: ``steps`` < 1, or a strategy that takes no steps backward (``Backsolve``).
    """
    if steps < 1 or not isinstance(memory, (Store, Checkpoint)):
        raise ValueError(f"calls needs Store or Checkpoint and steps >= 1, not {memory} and {steps}")
    chain = _NoteTaker(steps)
    _, sweep = memory.solve(chain)
    sweep(chain.initial)
    return chain.calls


def kept(calls: list[Call]) -> list[Kept]:
    """The states that lie in memory: those read by a call other than the one right after they were made."""
    made, last = {0: 0}, {}
    for time, call in enumerate(calls):
        at_hand = time == 0 or calls[time - 1] == Call("forward", call.step - 1)
        if not at_hand:
            last[call.step, made[call.step]] = time
        if call.kind == "forward":
            made[call.step + 1] = time + 1
    return [Kept(state, start, read) for (state, start), read in last.items()]


class Cost(NamedTuple):
    """Forward steps in all, and the largest number of states kept at once."""

    forward_steps: int
    states: int


def cost(memory: Store | Checkpoint, steps: int) -> Cost:
    """What reversing ``steps`` (K) steps costs with this strategy, see :func:`calls`."""
    log = calls(memory, steps)
    change = [0] * (len(log) + 1)
    for entry in kept(log):
        change[entry.made] += 1
        change[entry.read + 1] -= 1
    return Cost(sum(call.kind == "forward" for call in log), max(accumulate(change)))
