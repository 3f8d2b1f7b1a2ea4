"""A training run as it goes: its rows, the file that holds its state, and what its callbacks are told."""

from __future__ import annotations

import math
import re
import signal
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from . import checkpoints
from .identity import describe, standing_still, stateful
from .outer import OuterLoop
from .problem import Problem
from .ranks import Ranks
from .records import alone, tidy
from .tasks import Ragged, batches_of
from .validation import Best


class StopTraining(Exception):
    """Raised by a callback of :func:`amaml_core.fit`: training ends after this meta step, as if there were no more to take.

    >>> def good_enough(step):
    ...     if step.query_loss < 0.01:
    ...         raise StopTraining
    """


@dataclass(frozen=True, eq=False)
class MetaStep:
    """What the callbacks of :func:`amaml_core.fit` are told after each meta step.

    Attributes:
        meta_step: its number, from 1.
        theta, phi: copies of the parameters (P,) and (M,) after it; phi is ``None`` if there is none.
        query_loss, gradient_norm: as in the history.
        validation: measured after this step; ``None`` if it was not.
        lr: the learning rate that the step was taken with, of the optimiser's first group.
        seconds: that the step took, the drawing of tasks included, the validation not.

    >>> MetaStep(1, torch.zeros(3), None, 0.5, 2.0, None, 1e-3, 0.1).lr
    0.001
    """

    meta_step: int
    theta: Tensor
    phi: Tensor | None
    query_loss: float
    gradient_norm: float
    validation: float | None
    lr: float
    seconds: float


Callback = Callable[[MetaStep], object]


def check_functions(callbacks: Sequence[Callback], **functions: Callable | None) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: it cannot.
    """
    if not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"callbacks must be a list of functions, not {type(callbacks).__name__}")
    for name, function in (*functions.items(), *((f"callbacks[{i}]", callback) for i, callback in enumerate(callbacks))):
        if not callable(function) and not (function is None and name in functions):
            raise TypeError(f"{name} must be a function, not {type(function).__name__}")


FUNCTIONS = ("model", "loss", "query_loss", "regularizer")  # of a problem
OWN = "optimizer's own"  # entry of an identity


def identity_of(problem: Problem, sampler: Callable, outer: OuterLoop, settings: dict[str, Any]) -> dict[str, str]:
    """All that the result of a run depends on, the number of meta steps and the callbacks aside."""
    own, torchs = sys.modules[__package__].__version__, str(torch.__version__).partition("+")[0]  # +cpu, +cu130: the same code
    settings = settings | {checkpoints.VERSIONS: {"amaml_core": own, "torch": torchs}, OWN: outer.attributes()}
    functions = {name: getattr(problem, name) for name in FUNCTIONS}
    # The sampler by itself, so that it reads the same alone: what it shares with the loss is spelled out in both.
    return _described(problem, settings | functions | outer.description()) | _described(problem, sampler, "sampler")


def _described(problem: Problem, thing: Any, name: str = "") -> dict[str, str]:
    """It in words, in which the values of the model's own parameters do not count: theta has them."""
    return describe(thing, name, free={id(p) for p in problem.model.parameters()})


def description(problem: Problem, outer: OuterLoop, settings: dict[str, Any]) -> dict[str, str]:
    """What all ranks of a run must have been given alike, wherever their devices are."""
    found = _described(problem, settings | outer.description() | {"buffers": dict(problem.model.named_buffers())})
    functions = {name: getattr(problem, name) for name in FUNCTIONS}
    schedule = None if outer.scheduler is None else outer.scheduler.state_dict()
    for name, thing in (functions | {"scheduler": schedule, OWN: outer.attributes()}).items():
        with suppress(TypeError):  # nothing tells whether it is the same
            found |= _described(problem, thing, name)
    return {key: re.sub(r"cuda:\d+|device\(type='cuda', index=\d+\)", "cuda", value) for key, value in found.items()}


def try_sampler(problem: Problem, sampler: Callable[[torch.Generator], Ragged], seed: int, identity: dict[str, str]) -> Ragged:
    """A draw, and another like it, to see that nothing but the generator moves on.

    Raises:
        ValueError: the sampler has a state of its own, or draws from a generator that all share: a run could not be resumed.
    """
    remedy = "draw from the given generator alone, and let names of caches start with an underscore"
    drawn = []
    with standing_still("the sampler", remedy):
        for _ in range(2):
            tasks = sampler(torch.Generator().manual_seed(seed))
            drawn.append([describe(batch) for batch, _ in batches_of(tasks)])  # now: the next draw may write to the same memory
    changed = [key for key, value in _described(problem, sampler, "sampler").items() if identity.get(key) != value]
    if drawn[0] != drawn[1]:
        changed.append("what it draws for the same state of the given generator")
    if changed:
        raise ValueError(stateful("the sampler", changed[0], remedy))
    return tasks


def tell(callbacks: Sequence[Callback], step: MetaStep) -> bool:
    """Call all of them, and say whether one of them has stopped the training."""
    stopped = False
    for callback in callbacks:
        try:
            callback(step)
        except StopTraining:
            stopped = True
    return stopped


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit, unless the program has its own way with it or this is not the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one would break off the save
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Run:
    """All that the next meta steps depend on, and the file that holds it.

    Attributes:
        rows: of each meta step ``query_loss``, ``gradient_norm``, what is learned of the method if it is one number, and
            ``validation`` if there is one.
        generator: that tasks are drawn from.
    """

    def __init__(self, outer: OuterLoop, best: Best, seed: int, path: Path | None, identity: dict[str, str]) -> None:
        self.outer, self.best, self.path, self.identity = outer, best, path, identity
        self.rows: list[dict[str, float]] = []
        self.generator = torch.Generator().manual_seed(seed)
        self.unsaved: OSError | None = None  # why the last save failed
        self._saved_at, self._saved = time.monotonic(), -1  # when, and how many meta steps
        self._mark = self.generator.get_state()  # that belongs to the rows
        self._kept: tuple[int, dict[str, Any]] | None = None  # amid an update: how many rows there were before, and the state

    def over(self, meta_steps: int) -> bool:
        """Whether there is nothing left to do."""
        return len(self.rows) >= meta_steps or self.best.in_vain

    @contextmanager
    def opened(self, meta_steps: int, ranks: Ranks) -> Iterator[None]:
        """Within it the run goes on from its file, which nobody else may use; it is saved at the end, however that comes.

        Raises:
            OSError: another run uses the file, or it cannot be written; one that is over is not.
            ValueError: as :meth:`load`.
        """
        self.load(meta_steps, ranks)
        with ExitStack() as stack:
            if self.path is not None and not self.over(meta_steps):
                stack.enter_context(alone(self.path, wait=False))
                stack.enter_context(ended_by_sigterm())
            elif self.path is not None:
                tidy(self.path)
            if not self.over(meta_steps):
                self.load(meta_steps, ranks)  # another run may have ended in between
                self._write()  # what cannot be written is better known now
            try:
                try:
                    yield
                finally:
                    # Where warnings are errors, one would take the place of the result, or of an error.
                    with suppress(RuntimeWarning):
                        self.save()
            except (KeyboardInterrupt, SystemExit) as stop:
                if self.path is not None:
                    note = f"{self.path} holds {self._saved} meta steps: call fit with the same arguments to go on"
                    stop.add_note(note)
                    if isinstance(stop, SystemExit):  # which Python shows without its notes
                        print(note, file=sys.stderr)
                raise

    def tokens(self) -> tuple[int, ...]:
        """Small numbers that tell where the generator is, the settings of the optimiser, and all that is trained."""
        settings = self.outer.description()["optimizer"]["settings"]
        parts = [self.generator.get_state(), settings, self.outer.parameters]
        return tuple(zlib.crc32(repr(describe(part)).encode()) for part in parts)

    def load(self, meta_steps: int, ranks: Ranks) -> None:
        """Go on from the file, if there is one: all ranks from that of rank 0.

        Raises:
            ValueError: it belongs to another run, or is beyond ``meta_steps``.
        """
        state: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            state = checkpoints.load(self.path, self.identity)
            if len(state["rows"]) > meta_steps:
                raise ValueError(
                    f"{self.path} is {len(state['rows'])} meta steps on, beyond meta_steps={meta_steps}; "
                    "delete it or choose another file"
                )
        if not (state := ranks.share(state)):
            return
        self.rows = [dict(zip(state["columns"], row, strict=True)) for row in state["rows"].tolist()]
        self._saved = len(self.rows)
        self.outer.restore(state["outer"])
        self.best.restore(state["best"])
        self._mark = state["generator"]
        self.generator.set_state(self._mark)

    def save(self, every: float = 0.0) -> None:
        """Write the file if it is ``every`` seconds old and there is more to write. A failure is a warning: there is a next time.

        If an update was broken off, what is written is of before it.
        """
        done = len(self.rows) if self._kept is None else self._kept[0]
        if self.path is None or done <= self._saved or time.monotonic() - self._saved_at < every:
            return
        try:
            self._write()
        except OSError as error:
            self.unsaved, self._saved_at = error, time.monotonic()
            remedy = "training goes on and tries again; make room, or see to the folder"
            warnings.warn(f"the checkpoint could not be written: {error}; {remedy}", RuntimeWarning, stacklevel=3)

    def _write(self) -> None:
        if self.path is not None:
            done, state = self._kept or (len(self.rows), self._state())
            rows = self.rows[:done]
            table = {"rows": np.array([list(row.values()) for row in rows]), "columns": list(rows[0]) if rows else []}
            checkpoints.save(self.path, self.identity, table | state)
            self.unsaved, self._saved_at, self._saved = None, time.monotonic(), done

    def _state(self) -> dict[str, Any]:
        return {"generator": self._mark, "outer": self.outer.state(), "best": self.best.state()}

    def take(self, row: dict[str, float], value: float | None) -> None:
        """Take a meta step into account, and its validation if there was one."""
        if value is not None:
            self.best.take(len(self.rows) + 1, value, self.outer.copies())
            self.outer.validated(value)
        watched = {"validation": math.nan if value is None else value} if self.best.validation else {}
        self.rows.append(row | watched)

    @contextmanager
    def update(self) -> Iterator[None]:
        """Within it one meta step changes the state, all of it or, in the file, nothing."""
        if self.path is not None:
            state = self._state()
            for name in ("optimizer", "scheduler"):  # the rest are copies, or replaced and never written to
                state["outer"][name] = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, state["outer"][name])
            self._kept = len(self.rows), state
        yield
        self._mark = self.generator.get_state()
        self._kept = None

    def history(self) -> pd.DataFrame:
        """The rows as a table."""
        table = pd.DataFrame(self.rows)
        table.insert(0, "meta_step", np.arange(1, len(self.rows) + 1))
        return table
