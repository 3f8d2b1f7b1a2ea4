"""Where, when and with what something was run, and files that are never half-written."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from dataclasses import MISSING, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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
