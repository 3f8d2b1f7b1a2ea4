"""Get an archive and make sure of its bytes: from its official host, or from a mirror with its own checksums."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_scripts.common import DataError, Source, Unreachable, archive_folder, mirror_folder


@dataclass(frozen=True)
class Archive:
    """An archive.

    Attributes:
        path: where it lies in a mirror.
        known_hash: of the official file, as ``algorithm:hex``; None if there is no official file.
        urls: where the official file is published, to be tried in this order.
    """

    path: str
    known_hash: str | None
    urls: tuple[str, ...]


def obtain_all(archives: Sequence[Archive]) -> list[Source]:
    """Verified copies of several archives, in order. Raises what :func:`obtain` raises."""
    return [obtain(archive) for archive in archives]


def obtain(archive: Archive) -> Source:
    """A verified copy of an archive: from the mirror if one is set, else from the kept downloads or the network.

    Raises:
        Unreachable: it is not in the mirror, or no host answers.
        DataError: what is there is not what it should be.
    """
    mirror = mirror_folder()
    if mirror:
        return take(archive, mirror)
    try:
        from data_scripts.download import download  # a mirror works without the packages that the network needs
    except ImportError as error:
        raise DataError(f"downloading needs the package {error.name}; install the extra 'data', or set AMAML_MIRROR") from error
    target = archive_folder() / archive.path
    try:
        download(archive.urls, archive.known_hash, target)
    except DataError as error:
        remedy = f"If you have the file, put it at DIR/{archive.path} and set AMAML_MIRROR=DIR"
        raise type(error)(f"{error}. {remedy}") from error
    return take(archive, archive_folder())


def take(archive: Archive, folder: Path) -> Source:
    """An archive from a mirror, where it lies: the official bytes, or those that the mirror's own SHA256SUMS lists.

    Raises Unreachable if it is not there, DataError if it is neither.
    """
    path = folder / archive.path
    if not path.is_file():
        raise Unreachable(f"{archive.path} is not in the mirror {folder}")
    algorithm, _, expected = (archive.known_hash or "sha256:").partition(":")
    found = digests(path, "sha256", algorithm)
    official = found[algorithm] == expected
    if not official:
        check_listed(found["sha256"], archive.path, folder)
    return Source(path, archive.path, found["sha256"], official)


def check_listed(sha256: str, path: str, folder: Path) -> None:
    """Raise DataError unless the mirror's SHA256SUMS gives this checksum for this path."""
    listed = mirror_checksums(folder).get(path)
    if listed is None:
        raise DataError(f"{folder / path} is not the official file, and {folder / 'SHA256SUMS'} does not list it")
    if listed != sha256:
        raise DataError(f"{folder / path} is damaged or altered: its SHA-256 is {sha256}, SHA256SUMS says {listed}")


def mirror_checksums(folder: Path) -> dict[str, str]:
    """The mirror's SHA256SUMS as {path: checksum}; empty if it has none. Raises DataError naming a malformed or contrary line."""
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    checksums = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if not match:
            raise DataError(f"{folder / 'SHA256SUMS'} line {number} is not 'checksum  path': {line[:80]!r}")
        path, checksum = posixpath.normpath(match[2]), match[1].lower()
        if checksums.setdefault(path, checksum) != checksum:
            raise DataError(f"{folder / 'SHA256SUMS'} line {number} gives {path[:200]!r} a second checksum; remove the wrong one")
    return checksums


def digests(path: Path, *algorithms: str) -> dict[str, str]:
    """Checksums of a file by several algorithms, in one pass."""
    states = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms}
    with open(path, "rb") as stream:
        while chunk := stream.read(2**20):
            for state in states.values():
                state.update(chunk)
    return {algorithm: state.hexdigest() for algorithm, state in states.items()}
