"""Read zip and tar archives member by member, without unpacking them, and trust no name and no size in them."""

from __future__ import annotations

import io
import lzma
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from data_scripts.common import DataError

ENCRYPTED = 1  # bit of a zip member's flags
MOST_MEMBERS = 50_000  # of one archive; the official ones have up to 20,300
LARGEST_ZIP = 2**26  # bytes; its list of members is read at once
LARGEST_PICTURE = 2**25  # bytes; ImageNet's have up to 15 MB
LARGEST_TAR = 2**33  # bytes of all members
EXTENSIONS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # of the next header
LARGEST_EXTENSION = 2**11  # bytes; Python before 3.11.10 takes their number's square of steps, 12 ms for digits alone
LARGEST_EXTENSIONS = 2**26  # bytes of all of them, with their headers
XZ_MEMORY = 2**27  # bytes that unpacking xz may take; its strongest preset needs half of them, a header may ask for 4 GiB
NOT_ONE = "not an archive to trust; get the official one"


def check_name(archive: Path, name: str) -> None:
    """Raise DataError if a member's name leads out of the folder that it would be unpacked into, or cannot be shown as it is."""
    if not name.isprintable():  # what it holds, a terminal would obey
        raise DataError(f"{archive} holds {name[:200]!r}, a name with characters that cannot be shown: {NOT_ONE}")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise DataError(f"{archive} holds {name[:200]!r}, a path that leaves its folder: {NOT_ONE}")


def check_size(archive: Path, name: str, size: int, limit: int) -> None:
    """Raise DataError if a member is larger than any that is needed."""
    if size > limit:
        raise DataError(f"{archive} holds {name[:200]!r} of {size:,} bytes, more than the {limit:,} that it can have: {NOT_ONE}")


@contextmanager
def damage_named(archive: Path, member: str = "") -> Iterator[None]:
    """Turn what zip, tar and their decompressors raise on damage, errors of every kind, into a DataError that says where."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:  # it could not even be opened
            raise
        what = f"{member[:200]}: {error}" if member else error
        raise DataError(f"{archive} is truncated or damaged ({what}); get it again") from error


@contextmanager
def open_zip(archive: Path) -> Iterator[ZipFile]:
    """A zip archive with every entry of its list checked. Raises DataError if it is damaged or not to be trusted."""
    check_size(archive.parent, archive.name, archive.stat().st_size, LARGEST_ZIP)
    with damage_named(archive):
        opened = ZipFile(archive)
    with opened:
        check_count(archive, len(opened.infolist()))
        names = set()
        for member in opened.infolist():
            name = member.filename
            check_name(archive, name)
            check_name(archive, member.orig_filename)  # as it is in the list: zipfile ends the other at the first NUL
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR) or member.flag_bits & ENCRYPTED:
                raise DataError(f"{archive} holds {name[:200]!r}, a link or device, or encrypted: {NOT_ONE}")
            if name in names:
                raise DataError(f"{archive} holds {name[:200]!r} twice: {NOT_ONE}")
            names.add(name)
        yield opened


def check_count(archive: Path, count: int) -> None:
    """Raise DataError if an archive has more members than any that is needed."""
    if count > MOST_MEMBERS:
        raise DataError(f"{archive} holds more than {MOST_MEMBERS:,} files: {NOT_ONE}")


def read_member(opened: ZipFile, member: ZipInfo, limit: int) -> bytes:
    """A member's bytes. Raises DataError before any of them is read if they are more than `limit`, or if they are damaged."""
    archive = Path(str(opened.filename))
    check_size(archive, member.filename, member.file_size, limit)
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # others decompress without a bound
        raise DataError(f"{archive} holds {member.filename[:200]!r}, compressed by method {member.compress_type}: {NOT_ONE}")
    with damage_named(archive, member.filename), opened.open(member) as file:
        return file.read(member.file_size + 1)  # ZipFile.read would decompress all there is, whatever size the list says


def find_member(opened: ZipFile, *basenames: str) -> ZipInfo:
    """The one member with one of these file names, in whatever folder. Raises DataError unless there is exactly one."""
    found = [member for member in opened.infolist() if PurePosixPath(member.filename).name in basenames]
    if len(found) != 1:
        held = ", ".join(member.filename[:200] for member in (found or opened.infolist())[:8]) or "nothing"
        raise DataError(f"{opened.filename} must hold exactly one {' or '.join(basenames)}; it holds {held}")
    return found[0]


class XZ(io.RawIOBase):
    """The content of an xz file, of one stream, unpacked as it is read, with a bound on the memory that this takes.

    Raises (when it is read): lzma.LZMAError if it is damaged or needs more memory, EOFError if it is cut off.
    """

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._unpack = packed, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Fill a part of the buffer, and say how much."""
        while not self._unpack.eof:
            more = self._packed.read(io.DEFAULT_BUFFER_SIZE) if self._unpack.needs_input else b""
            if self._unpack.needs_input and not more:
                raise EOFError("it ends before its time")
            if found := self._unpack.decompress(more, len(buffer)):
                buffer[: len(found)] = found
                return len(found)
        return 0


def stream_tar(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of a tar archive, compressed by xz or not at all, as (name, bytes), in one pass; others are passed over.

    Raises DataError if the archive is damaged or holds links, devices, paths out of its folder, or more or larger files than it can
    have.
    """
    count = total = extensions = 0

    def unfit(name: str) -> DataError:
        return DataError(f"{archive} holds {name[:200]!r}, a link or device, or sparse, or a header for all files: {NOT_ONE}")

    class Entry(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes, encoding: str, errors: str) -> Entry:
            """Every header comes by here, also those that extend the next one, before what they announce is read."""
            nonlocal extensions
            entry = super().frombuf(buf, encoding, errors)
            check_size(archive, entry.name, entry.size, LARGEST_EXTENSION if entry.type in EXTENSIONS else LARGEST_PICTURE)
            if entry.type in (tarfile.GNUTYPE_SPARSE, tarfile.XGLTYPE):  # their maps, and the fields for all files, have no end
                raise unfit(entry.name)
            if entry.type in EXTENSIONS:
                extensions += tarfile.BLOCKSIZE + max(entry.size, 0)
                check_size(archive, entry.name, extensions, LARGEST_EXTENSIONS)
            return entry

        def _proc_gnusparse_10(self, following: tarfile.TarInfo, *_: object) -> None:
            """What an extension makes a sparse file of the newest kind comes by here, before its map, without an end, is read."""
            raise unfit(following.name)

    with damage_named(archive), open(archive, "rb") as file:
        packed = file.peek(6).startswith(b"\xfd7zXZ\0")
        opened = tarfile.open(fileobj=XZ(file) if packed else file, mode="r|", tarinfo=Entry)
        for member in opened:
            opened.members = []  # which it keeps, of all
            count, total = count + 1, total + member.size
            check_count(archive, count)
            check_size(archive, member.name, member.size, LARGEST_PICTURE)
            check_size(archive, member.name, total, LARGEST_TAR)
            check_name(archive, member.name)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise unfit(member.name)
            if wanted(member.name):
                yield member.name, opened.extractfile(member).read()
