"""Where cells run: in this process, in several on this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import joblib

from amaml_core.records import commit, versions

WAIT_SECONDS = 60  # for the scheduler, and for the first worker


class ClusterError(RuntimeError):
    """The cluster can't be used as it is."""


@contextmanager
def pool(jobs: int, scheduler: str = "") -> Iterator[joblib.Parallel]:
    """Something that runs ``joblib.delayed`` calls and yields their results as they come.

    Args:
        jobs: processes on this machine; 1 is this process, which compiles the steps once for all cells.
        scheduler: address of a Dask scheduler, ``tcp://HOST:PORT``; then its workers take the place of ``jobs``. A call whose
            worker dies is made again by another, up to three times. Dask's messages can make a process run anything: use a
            scheduler and workers of your own, on a network that you trust.

    Raises:
        ClusterError: no scheduler or no worker answers, or the workers have other code or other releases than this process.
    """
    if not scheduler:
        backend = "sequential" if jobs == 1 else None
        yield joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", backend=backend)
        return
    from distributed import Client

    client = None
    try:
        client = Client(scheduler, timeout=WAIT_SECONDS)
        client.wait_for_workers(1, timeout=WAIT_SECONDS)
    except (OSError, ValueError) as error:  # a time-out is an OSError, a malformed address a ValueError
        if client is not None:
            client.close()
        raise ClusterError(f"no worker of a Dask scheduler at {scheduler!r} within {WAIT_SECONDS} s: {error}") from error
    with client:
        ours = _code()
        for worker, theirs in client.run(_code).items():
            if theirs != ours:
                found = f"the worker at {worker} has {theirs}, and this process {ours}"
                raise ClusterError(f"{found}; start it from the same checkout and environment")
        with joblib.parallel_config(backend="dask", wait_for_workers_timeout=WAIT_SECONDS):
            yield joblib.Parallel(n_jobs=-1, return_as="generator_unordered")


def _code() -> tuple[str, dict[str, str]]:
    return commit(), versions()
