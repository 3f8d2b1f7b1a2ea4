"""Switches of PyTorch that decide whether a gradient is exact, set for as long as the package computes.

They belong to the process and not to a thread. So the first computation sets them, those of other threads join in, and the last one
puts back what it found.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_changed = threading.Condition(threading.RLock())
_threads: list[int] = []  # who computes, once for each nested computation
_tf32: bool = False
_restore = ExitStack()


@contextmanager
def exact(tf32: bool) -> Iterator[None]:
    """Allow TF32 on a GPU only if asked for, and compute attention by the one backend whose gradient can be differentiated.

    A thread that wants another ``tf32`` than those under way waits for them.
    """
    global _tf32, _restore
    me = threading.get_ident()
    nested = _threads.count(me)
    try:
        with _changed:
            _changed.wait_for(lambda: not _threads or me in _threads or _tf32 == tf32)
            if not _threads:
                _tf32, _restore = tf32, ExitStack()
                _restore.enter_context(_switched(tf32))
            _threads.append(me)
        yield
    finally:
        with _changed:
            if _threads.count(me) > nested:  # Ctrl-C may have come before
                _threads.remove(me)
            if not _threads:
                _restore.close()
                _changed.notify_all()


@contextmanager
def detached(tf32: bool) -> Iterator[None]:
    """:func:`exact`, without graphs, and without inference mode, under which nothing can be differentiated."""
    with torch.inference_mode(False), torch.no_grad(), exact(tf32):
        yield


@contextmanager
def _switched(tf32: bool) -> Iterator[None]:
    switches: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [switch.allow_tf32 for switch in switches]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        for switch in switches:
            switch.allow_tf32 = tf32
        torch.backends.mha.set_fastpath_enabled(False)  # a fused encoder layer that has no derivative
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
