"""Where cells run: in this process, in several on this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

ATTEMPTS = 3  # at a call whose process is killed
GRACE_SECONDS = 10  # for calls that are under way to save their state, when the pool is left or killed before its end
WATCH_SECONDS = 0.2  # between a process's looks at whether the one that started it lives
WAIT_SECONDS = 60  # for the scheduler, and for the first worker
T = TypeVar("T")
R = TypeVar("R")


class ClusterError(RuntimeError):
    """The cluster can't be used as it is."""


@dataclass(frozen=True)
class Failure:
    """What a call gave instead of a result.

    Attributes:
        error: in the words of the exception.
        trace: where it was raised; empty where the words say enough, as with files.
    """

    error: str
    trace: str = ""


@contextmanager
def pool(jobs: int, scheduler: str = "") -> Iterator[Callable[[Callable[[T], R], Iterable[T]], Iterator[tuple[T, R | Failure]]]]:
    """A function that calls another with each of some arguments, and yields each argument and what came of it, as they come.

    A call that fails ends no other. One whose process dies, for want of memory or by a kill, is made again by another process, up
    to three times. If this process is killed, the others end too.

    Args:
        jobs: processes on this machine; 1 is this process, which compiles the steps once for all cells.
        scheduler: address of a Dask scheduler, ``tcp://HOST:PORT``; then its workers take the place of ``jobs``. Dask's messages
            can make a process run anything: use a scheduler and workers of your own, on a network that you trust.

    Raises:
        ClusterError: no scheduler or no worker answers, or one is gone, or the workers have other code or other releases than this
            process; also from the function that is given.
    """
    if scheduler:
        with _cluster(scheduler) as client:
            yield partial(_on_cluster, client)
    else:
        yield _here if jobs == 1 else partial(_in_processes, jobs)


def tried(function: Callable[[T], R], argument: T) -> R | Failure:
    """The result of a call, or its failure."""
    try:
        return function(argument)
    except Exception as error:
        words = "".join(traceback.format_exception_only(error)).strip()
        return Failure(words, "" if isinstance(error, OSError) else traceback.format_exc())


def _here(function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[tuple[T, R | Failure]]:
    for argument in arguments:
        yield argument, tried(function, argument)


def _in_processes(jobs: int, function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[tuple[T, R | Failure]]:
    """Each process has an executor of its own, so that its death is that of one call."""
    threads = str(max(joblib.cpu_count() // jobs, 1))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = {name: os.environ.get(name, threads) for name in names}
    new = partial(ProcessPoolExecutor, 1, initializer=_begin, initargs=(os.getpid(),), env=env)
    running: dict[Future, tuple[ProcessPoolExecutor, T, int]] = {}

    def start(executor: ProcessPoolExecutor, argument: T, attempt: int = 1) -> None:
        try:
            future = executor.submit(_ended_by_sigterm, function, argument)
        except BrokenProcessPool:  # killed after its last call
            executor = new()
            future = executor.submit(_ended_by_sigterm, function, argument)
        running[future] = executor, argument, attempt

    waiting = iter(arguments)
    try:
        for argument in islice(waiting, jobs):
            start(new(), argument)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                executor, argument, attempt = running[future]
                error = future.exception()
                if isinstance(error, (BrokenProcessPool, KeyboardInterrupt)):  # by SIGKILL, or by SIGTERM
                    executor.shutdown(kill_workers=True)
                    executor = new()
                    if attempt < ATTEMPTS:
                        start(executor, argument, attempt + 1)
                        del running[future]
                        continue
                    found: Any = Failure(f"the process that ran it was killed, {ATTEMPTS} times: is there too little memory?")
                else:
                    found = future.result()
                del running[future]
                for following in islice(waiting, 1):
                    start(executor, following)
                if not any(executor is busy for busy, *_ in running.values()):
                    executor.shutdown()
                yield argument, found
    finally:
        _stop(running)


def _begin(parent: int) -> None:
    """What a process of the pool does first: Ctrl-C is for its parent, which then ends it by SIGTERM, and it outlives that for no
    longer than a call needs to save its state."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # ends a call if one is under way, or else the process
    limit = time.monotonic() + GRACE_SECONDS
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL and time.monotonic() < limit:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _ended_by_sigterm(function: Callable[[T], R], argument: T) -> R | Failure:
    """A call that SIGTERM ends as Ctrl-C would: training saves its state then, which another SIGTERM does not break off."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        return tried(function, argument)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(running: dict[Future, tuple[ProcessPoolExecutor, Any, int]]) -> None:
    executors = [executor for executor, *_ in running.values()]
    try:
        for executor in executors:
            for process in list((executor._processes or {}).values()):
                process.terminate()
        wait(running, timeout=GRACE_SECONDS)
    finally:
        for executor in executors:
            executor.shutdown(kill_workers=True)


@contextmanager
def _cluster(scheduler: str) -> Iterator[Any]:
    """A client of a Dask scheduler whose workers are like this process."""
    from distributed import Client

    client = None
    try:
        client = Client(scheduler, timeout=WAIT_SECONDS)
        client.wait_for_workers(1, timeout=WAIT_SECONDS)
    except (OSError, ValueError) as error:  # a time-out is an OSError, a malformed address a ValueError
        if client is not None:
            client.close()
        raise ClusterError(f"no worker of a Dask scheduler at {scheduler!r} within {WAIT_SECONDS} s: {error}") from error
    log = logging.getLogger("distributed.client")
    level = log.level
    try:
        with client:
            ours = _code()
            for worker, theirs in client.run(_own_code).items():
                if theirs != ours:
                    raise ClusterError(_refusal(worker, theirs, ours))
            yield client
    finally:
        log.setLevel(level)


def _refusal(worker: str, theirs: object, ours: object) -> str:
    found = f"the worker at {worker} has {theirs}, and this process {ours}"
    return f"{found}; start it again, from the same checkout and environment"


def _tried_with(code: object, function: Callable[[T], R], argument: T) -> R | Failure:
    """A call on a worker, which may be one that came after those that were asked for their code."""
    from distributed import get_worker

    if (own := _own_code()) != code:
        raise ClusterError(_refusal(get_worker().address, own, code))
    return tried(function, argument)


def _on_cluster(client: Any, function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[tuple[T, R | Failure]]:
    from distributed import CancelledError, KilledWorker, as_completed

    call = partial(_tried_with, _code(), function)
    running = {client.submit(call, argument, pure=False): argument for argument in arguments}
    for future in as_completed(list(running)):
        argument = running.pop(future)
        try:
            found: R | Failure = future.result()
        except KilledWorker as error:
            found = Failure(f"its workers were killed: {error}")
        except CancelledError as error:  # all calls are, when the connection is lost
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it would show how it tries to connect again
            raise ClusterError("the scheduler is gone; start it again, and workers: the same command goes on") from error
        yield argument, found


def _code() -> tuple[str, dict[str, str]]:
    from amaml_core import records  # here, since it loads torch, which a process that is being started has no need of yet

    return f"code {digest(Path(records.__file__).parent, Path(__file__).parents[1])}", records.versions()


def digest(*folders: Path) -> str:
    """Of the Python files of the folders: of what runs, whatever else a commit holds."""
    from amaml_core import strict

    files = [(folder, path) for folder in folders for path in sorted(folder.rglob("*.py"))]
    return strict.digest([[str(path.relative_to(folder)), strict.file_digest(path)] for folder, path in files])[:8]


@cache
def _own_code() -> tuple[str, dict[str, str]]:
    """A worker's code as it was at first: what is changed in its checkout later is not what it has loaded."""
    return _code()
