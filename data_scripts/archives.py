"""Read zip and tar archives member by member, without unpacking them, and trust no name in them."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from data_scripts.common import DataError

READ_ERRORS = (BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, NotImplementedError)
ENCRYPTED = 1  # bit of a zip member's flags


def check_name(archive: Path, name: str) -> None:
    """Raise DataError if a member's name leads out of the folder that it would be unpacked into."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise DataError(f"{archive} holds {name!r}, a path that leaves its folder: not an archive to trust")


@contextmanager
def damage_named(archive: Path) -> Iterator[None]:
    """Turn what zip, tar and their decompressors raise on damage into a DataError that names the archive."""
    try:
        yield
    except READ_ERRORS as error:
        raise DataError(f"{archive} is truncated or damaged ({error}); get it again") from error


@contextmanager
def open_zip(archive: Path) -> Iterator[ZipFile]:
    """A zip archive with every name in it checked.

    Raises DataError if the archive is damaged, also where that shows only when a member is read, or not to be trusted.
    """
    with damage_named(archive), ZipFile(archive) as opened:
        for member in opened.infolist():
            check_name(archive, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & ENCRYPTED:
                raise DataError(f"{archive} holds {member.filename!r}, a link or encrypted: not an archive to trust")
        yield opened


def find_member(opened: ZipFile, *basenames: str) -> ZipInfo:
    """The one member with one of these file names, in whatever folder. Raises DataError unless there is exactly one."""
    found = [member for member in opened.infolist() if PurePosixPath(member.filename).name in basenames]
    if len(found) != 1:
        held = ", ".join(member.filename for member in found or opened.infolist()[:8]) or "nothing"
        raise DataError(f"{opened.filename} must hold exactly one {' or '.join(basenames)}; it holds {held}")
    return found[0]


def stream_tar(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a tar archive, compressed or not, as (name, bytes), in one pass.

    Raises DataError if the archive is damaged or holds links, devices or paths out of its folder.
    """
    with damage_named(archive), tarfile.open(archive, "r|*") as opened:
        for member in opened:
            check_name(archive, member.name)
            if member.isdir():
                continue
            if not member.isreg():
                raise DataError(f"{archive} holds {member.name!r}, a link or device: not an archive to trust")
            yield member.name, opened.extractfile(member).read()
