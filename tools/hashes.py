"""The files of requirements.lock, by their hashes, into requirements.hashes: ``python -m tools.hashes``, as ``make lock`` ends.

pip is asked which file it would take, and says the hash that the index gives; nothing is installed. Files are those for Linux on
x86-64 and the Pythons that the workflows test. torch is left out: which build of it is taken, a person chooses.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from amaml_core.records import write_beside

from .notebooks import ROOT

# With a third number, as packages may ask for more than 3.11.0.
PYTHONS = ("3.11.9", "3.12.9", "3.13.9")
OLD = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64")
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)), *OLD)
HEADER = """\
# Hashes of the files of requirements.lock, written by `python -m tools.hashes`: those for Linux on x86-64, Python {}.
# pip install --require-hashes --no-deps -r requirements.hashes && pip install -r requirements.lock
# The second command adds torch, whose build you choose, and what that build needs.
"""


def pinned(lock: str) -> dict[str, str]:
    """The line of each package of a lock file, but for torch."""
    lines = [line for line in lock.splitlines() if line and not line.startswith("#")]
    named = {canonicalize_name(line.partition("==")[0]): line for line in lines}
    return {name: line for name, line in named.items() if name != "torch"}


def report(lines: Iterable[str], python: str) -> dict[str, Any]:
    """What pip says it would install in this Python.

    Raises:
        subprocess.CalledProcessError: it finds no file for one of the lines, or no index.
    """
    choice = ["--only-binary", ":all:", "--python-version", python, *(f"--platform={name}" for name in PLATFORMS)]
    with tempfile.TemporaryDirectory() as work:
        wanted, told = Path(work) / "wanted.txt", Path(work) / "told.json"
        wanted.write_text("\n".join(lines), encoding="utf-8")
        quiet = ["-q", "--disable-pip-version-check", "--dry-run", "--ignore-installed", "--no-deps", "--target", work]
        command = [sys.executable, "-m", "pip", "install", *quiet, *choice, "--report", told, "-r", wanted]
        subprocess.run(command, check=True)
        return json.loads(told.read_text(encoding="utf-8"))


def listing(lock: str, reports: Iterable[dict[str, Any]]) -> str:
    """The text of requirements.hashes.

    Raises:
        ValueError: a file is one of this machine's, which others do not get, or it has no hash.
    """
    found: dict[str, set[str]] = {name: set() for name in pinned(lock)}
    for entry in (entry for told in reports for entry in told["install"]):
        file = entry["download_info"]
        digest = file.get("archive_info", {}).get("hashes", {}).get("sha256")
        if not file["url"].startswith("https://") or not digest:
            raise ValueError(
                f"{file['url']} is no file of an index that gives its SHA-256; PIP_CONFIG_FILE=/dev/null leaves settings out"
            )
        found[canonicalize_name(entry["metadata"]["name"])].add(digest)
    if lacking := [name for name, digests in found.items() if not digests]:
        raise ValueError(f"pip says nothing of {', '.join(lacking)}")
    hashes = {name: "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(digests)) for name, digests in found.items()}
    versions = ", ".join(python.rpartition(".")[0] for python in PYTHONS)
    return HEADER.format(versions) + "".join(f"{line}{hashes[name]}\n" for name, line in pinned(lock).items())


def main() -> int:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    try:
        text = listing(lock, [report(pinned(lock).values(), python) for python in PYTHONS])
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"requirements.hashes stays as it is: {error}", file=sys.stderr)
        return 1
    write_beside(ROOT / "requirements.hashes", text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
