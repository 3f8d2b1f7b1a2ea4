"""Where, when and with what something was run, and files that are never half-written."""

from __future__ import annotations

import errno
import glob
import os
import platform
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from .locations import checkout

PACKAGES = ("torchdiffeq", "numpy", "pandas")


def brief(settings: Any) -> str:
    """A frozen dataclass as one would write it: ``AMAML(horizon=5.0, solver=Euler(steps=50))``, defaults left out."""
    entries = ((entry, getattr(settings, entry.name)) for entry in fields(settings))
    shown = [
        f"{entry.name}={brief(value) if is_dataclass(value) else repr(value)}"
        for entry, value in entries
        if entry.default is MISSING or value is not entry.default and value != entry.default
    ]
    return f"{type(settings).__name__}({', '.join(shown)})"


def write_beside(path: Path, content: bytes) -> None:
    """Write a file beside its target and rename it, so that a kill, a full disk or a power cut leaves the target as it was.

    What writers left that were killed on this machine is removed.

    Raises:
        OSError: it cannot be written; the error names the target.
    """
    own = path.with_name(f".{path.name}.{_node()}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left, node, pid in _begun(path):
            if node == _node() and not _alive(pid):
                left.unlink(missing_ok=True)
        try:
            with open(own, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(own, path)
        except BaseException:
            own.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _node() -> str:
    return platform.node().replace(".", "-")


def _begun(path: Path) -> Iterator[tuple[Path, str, str]]:
    """What writers of a file have begun to write, each with its machine and its process."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if found := re.fullmatch(r"([^.]*)\.(\d+)\.\d+\.tmp", file.name.removeprefix(f".{path.name}.")):
            yield file, found[1], found[2]


def _alive(pid: str) -> bool:
    """Whether a process of this machine may still be there."""
    if os.name != "posix":
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def alone(path: Path, wait: bool = True) -> Iterator[None]:
    """Keep others who ask for the same off a file, by a lock beside it. The system takes it from a process that is killed.

    What writers left that were killed is removed, wherever they ran: those of a file that is locked write under its lock.

    Raises:
        BlockingIOError: somebody has it, and ``wait`` is false.
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), blocking=wait)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            errno.EAGAIN, "another run is using this file; wait until it has ended, or choose another file", str(path)
        ) from None
    try:
        for left, _, _ in _begun(path):
            left.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)  # before it is released: whoever waits for this very file sees that, and makes a new one
        lock.release()


def tidy(path: Path) -> None:
    """Remove the lock file that a killed process has left beside a file, unless somebody holds it; for those who need no lock."""
    if path.with_name(f".{path.name}.lock").exists():
        with suppress(OSError), alone(path, wait=False):
            pass


def versions() -> dict[str, str]:
    """The versions of Python and of what results depend on; torch's with its build, which its metadata may leave out."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **packages}


def machine() -> str:
    """The processor, its cores, and the accelerator if there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {os.cpu_count()} cores{gpu}"


def commit() -> str:
    """The git commit of the code, with ``+`` if files were changed since; ``unknown`` outside a checkout."""
    if checkout() is None:  # installed, perhaps into an environment within somebody else's repository
        return "unknown"
    here = Path(__file__).parent
    try:
        # Without optional locks, of which a kill would leave one that holds up git.
        name, changed = (
            subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["git", "rev-parse", "HEAD"], ["git", "--no-optional-locks", "status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")
