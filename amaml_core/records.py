"""A result with its provenance, as JSON: what was run, with what, where, when, and what came out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .locations import checkout

PACKAGES = ("torchdiffeq", "numpy", "pandas")


@dataclass(frozen=True)
class Record:
    """One result.

    Attributes:
        experiment: its name, for example ``"ratings"``.
        configuration: every setting that the result depends on.
        seed: the seed of all its draws.
        figures: what was measured: numbers, lists or tables of numbers.
        duration: seconds.
        versions, machine, date, commit: filled by :func:`new_record`.
    """

    experiment: str
    configuration: dict
    seed: int
    figures: dict
    duration: float
    versions: dict
    machine: str
    date: str
    commit: str

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            kinds: dict[str, Any] = {"dict": dict, "int": int, "float": (int, float), "str": str}
            expected = kinds[str(entry.type)]
            if not isinstance(value, expected) or isinstance(value, bool):
                raise ValueError(f"record entry {entry.name!r} must be {entry.type}, not {value!r}")
        if not self.figures:
            raise ValueError("a record without figures records nothing")
        if self.duration < 0:
            raise ValueError(f"a record's duration is in seconds, not {self.duration}")
        datetime.fromisoformat(self.date)


def new_record(experiment: str, configuration: Mapping, seed: int, figures: Mapping, duration: float) -> Record:
    """A record of a result made here and now."""
    return Record(
        experiment, dict(configuration), seed, dict(figures), float(duration),
        versions=versions(),
        machine=machine(), date=datetime.now(UTC).isoformat(timespec="seconds"), commit=commit(),
    )  # fmt: skip


def write_record(record: Record, path: str | Path) -> Path:
    """Write a record as JSON, beside its target first and then renamed. Refuses NaN, which JSON does not have."""
    path = Path(path)
    write_beside(path, (json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    return path


def read_record(path: str | Path) -> Record:
    """Read and validate a record.

    Raises:
        ValueError: not JSON, entries missing or unknown, or of the wrong type.
    """
    try:
        content = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    known = {entry.name for entry in fields(Record)}
    if not isinstance(content, dict) or set(content) != known:
        found = set(content) if isinstance(content, dict) else set()
        raise ValueError(f"{path} is not a record: missing {sorted(known - found)}, unknown {sorted(found - known)}")
    try:
        return Record(**content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
    """Write a file beside its target and rename it, so that an interrupt or a full disk leaves the target untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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
        name, changed = (
            subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")
