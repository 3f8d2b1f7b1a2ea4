"""Processes that share a training run under torch.distributed: who takes which tasks, sums over all, and errors that reach all.

Every exchange begins with a word from each rank on whether it is well. So an error on one is raised on all, and nobody waits for
what will not come. These words go over a Gloo group of their own, which notices at once that a process has died.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .checkpoints import flatten, unflatten
from .flow import DivergenceError
from .identity import differences
from .tasks import Ragged, Tasks, between

TIMEOUT = timedelta(minutes=10)  # for a rank that lives and does not answer: longer than any meta step
# Numbers that are the same on all ranks of a run that is well, and what each tells where they are not.
TOKENS = (
    "the sampler has drawn otherwise",
    "the optimiser has another learning rate, or another setting,",
    "the optimiser has made another theta, or other values of what else is trained,",
)
NO_TOKENS = (0,) * len(TOKENS)
KINDS = {kind.__name__: kind for kind in (DivergenceError, KeyboardInterrupt, TypeError, ValueError)}  # as which others raise them


class Ranks:
    """The processes of a run, of which ``rank`` is this one's number and ``size`` is how many there are; it alone by default."""

    def __init__(self, group: Any = None) -> None:
        self._group, self._in_touch = group, group is not None
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(), dist.get_world_size())

    def part(self, tasks: Ragged) -> list[Tasks]:
        """This rank's share of the tasks, about as many as another's; it may be empty."""
        groups = [tasks] if isinstance(tasks, Tasks) else list(tasks)
        count = sum(map(len, groups))
        return between(groups, self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: Tensor, tokens: tuple[int, ...] = NO_TOKENS) -> Tensor:
        """The sum over all ranks, the same bits on each, in the place of the tensor.

        Args:
            tensor: of the same shape and kind on all ranks; on a GPU it goes over the default group, and so over NCCL.
            tokens: what must be the same on all ranks, too: one for each of ``TOKENS``.

        Raises:
            RuntimeError: a rank has failed or is gone; where its error was one of ``KINDS``, that one.
            ValueError: a rank has another token.
        """
        group = None if tensor.is_cuda else self._group
        self._exchange(lambda: dist.all_reduce(tensor, group=group), tokens)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return bool(self.sum(torch.tensor([int(flag)])))

    def share(self, state: Any) -> Any:
        """Rank 0's state, of what :func:`amaml_core.checkpoints.flatten` takes, on all ranks."""
        if self.size == 1:
            return state
        from safetensors.torch import load, save

        tensors: dict[str, Tensor] = {}
        content = [json.dumps(flatten(state, tensors)).encode(), save(tensors)]
        self._exchange(lambda: content.__setitem__(slice(None), map(self._broadcast, content)))
        return unflatten(json.loads(content[0]), load(content[1])) if self.rank else state

    def same(self, description: Callable[[], dict[str, str]]) -> None:
        """See that all ranks were given the same, in the words of :func:`amaml_core.identity.describe`.

        Raises:
            ValueError: one was not.
        """
        if self.size == 1:
            return
        mine = description()
        if found := differences(self.share(mine), mine):
            lines = "\n  ".join(found[:20])
            alike = "nothing but devices may depend on the rank"
            raise ValueError(f"rank {self.rank} (here) was given another run than rank 0 (there); {alike}:\n  {lines}")
        self.agree()

    def agree(self, tokens: tuple[int, ...] = NO_TOKENS) -> None:
        """Wait for all ranks, and see that all are well and have the same tokens."""
        self._exchange(lambda: None, tokens)

    def tell(self, error: BaseException) -> None:
        """Raise this rank's error on all others, unless they know of it or are out of reach."""
        if self._in_touch:
            with suppress(Exception):
                self._exchange(lambda: None, word=f"{type(error).__name__}: {error}")

    def _exchange(self, then: Callable[[], object], tokens: tuple[int, ...] = NO_TOKENS, word: str = "") -> None:
        """See that all are well and have the same tokens, and then exchange what they will."""
        if self.size == 1:
            return
        self._in_touch = False  # whoever is interrupted amid an exchange says nothing more: others would take it for something else
        try:
            words, differ = self._words(word, tokens)
            if not any(words) and not any(differ):
                then()
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.rank} of {self.size} has lost touch with the others: one has ended without a word, or does not answer"
            ) from error
        if word:
            return
        for rank, said in enumerate(words):
            if said:
                kind, _, text = said.partition(": ")
                raise KINDS.get(kind, RuntimeError)(f"rank {rank} of {self.size}: {text if kind in KINDS and text else said}")
        self._in_touch = True
        for what, differs in zip(TOKENS, differ, strict=True):
            if differs:
                raise ValueError(f"{what} on one rank than on another: let it be alike on all of them")

    def _words(self, word: str, tokens: tuple[int, ...]) -> tuple[list[str], list[bool]]:
        """What each rank has to say, where any has something to say; and whether each token differs from rank to rank."""
        said = torch.tensor(list(word.encode()), dtype=torch.uint8)
        most = torch.tensor([[len(said), *tokens], [-len(said), *(-token for token in tokens)]])
        dist.all_reduce(most, dist.ReduceOp.MAX, self._group)
        length, differ = int(most[0, 0]), (most[0] != -most[1])[1:].tolist()
        heard = [torch.zeros(length, dtype=torch.uint8) for _ in range(self.size)]
        if length:
            dist.all_gather(heard, torch.cat([said, said.new_zeros(length - len(said))]), self._group)
        return [bytes(text.tolist()).rstrip(b"\0").decode() for text in heard], differ

    def _broadcast(self, content: bytes) -> bytes:
        size = torch.tensor([len(content)])
        dist.broadcast(size, 0, self._group)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == 0:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.broadcast(buffer, 0, self._group)
        return buffer.numpy().tobytes()


@contextmanager
def joined(wanted: bool) -> Iterator[Ranks]:
    """The ranks of torch.distributed, if it is wanted and there are several; started where torchrun has started the process.

    What is raised within is raised on all ranks.

    Raises:
        RuntimeError: another rank does not come, as where it has failed before or is to train by itself.
    """
    launched = wanted and dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())
    if launched and not dist.is_initialized() and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group(timeout=TIMEOUT)
        atexit.register(_leave)
    if not launched or not dist.is_initialized() or dist.get_world_size() == 1:
        yield Ranks()
        return
    try:
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {dist.get_rank()} of {dist.get_world_size()} has waited for the others in vain ({error}): each must call fit, "
            "as often as the others and with the same arguments, or all of them with distributed=False"
        ) from error
    ranks = Ranks(group)
    try:
        yield ranks
        ranks.agree()
    except BaseException as error:
        ranks.tell(error)
        raise
    finally:
        dist.destroy_process_group(group)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
