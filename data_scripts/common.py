"""What a data set is, where it lives, and how it gets there whole or not at all."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
from filelock import FileLock, Timeout

FORMAT = 1  # of the prepared arrays; a higher number makes every folder of a lower one be prepared again
HEADER_BYTES = 1024  # the most that stands before an array in its file
HASHED_BYTES = 2**26  # the most that is hashed to say that a file is prepared; all but mini-ImageNet's have less
SPARE_BYTES = 32 * 2**20  # left over on the disk beside the arrays themselves

INTERRUPTED = "{}: interrupted; what was there before is untouched, run again to go on"

Layout = dict[str, Any]  # file name -> (shape, dtype) for .npy, or {array name: (shape, dtype)} for .npz


class DataError(Exception):
    """A data set cannot be prepared; the message says why and what to do."""


class Unreachable(DataError):
    """The archives are neither on the reachable network nor in the mirror: nothing is wrong, but nothing is there."""


@dataclass(frozen=True)
class Source:
    """A verified archive: where it lies, its name, its SHA-256 (None for a folder), whether it is the official file."""

    path: Path
    name: str
    sha256: str | None
    official: bool


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: its folder under ``AMAML_DATA``.
        title, page, licence: for people.
        counts: the official counts; the prepared arrays have to agree with them.
        layout: counts -> files with shapes and dtypes.
        obtain: -> verified sources, from the mirror or the network.
        build: (sources, folder, counts) -> further manifest entries; writes the arrays into the folder.
    """

    name: str
    title: str
    page: str
    licence: str
    counts: Mapping[str, int]
    layout: Callable[[Mapping[str, int]], Layout]
    obtain: Callable[[], Sequence[Source]]
    build: Callable[[Sequence[Source], Path, Mapping[str, int]], dict]


def _of_the_package(name: str) -> ModuleType:
    """A module of ``amaml_core`` that needs nothing else, without the package around it, which would import torch."""
    path = Path(__file__).resolve().parents[1] / "amaml_core" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"amaml_core_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


locations, strict = _of_the_package("locations"), _of_the_package("strict")


def data_folder() -> Path:
    """The folder of prepared data, as the package finds it: ``amaml_core.locations.data_root()``.

    Raises DataError if there can be none, such as a ``~`` without a home folder, or if something else lies there.
    """
    try:
        folder = locations.data_root()
    except (FileNotFoundError, ValueError) as error:
        raise DataError(str(error)) from error
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is not a folder; move it away, or set AMAML_DATA to a folder for the arrays")
    return folder


def mirror_folder() -> Path | None:
    """The folder of archives to use instead of the network: ``AMAML_MIRROR`` or None. Raises DataError if missing."""
    try:
        folder = locations.folder_in("AMAML_MIRROR")
    except ValueError as error:
        raise DataError(str(error)) from error
    if folder is not None and not folder.is_dir():
        raise DataError(f"AMAML_MIRROR={folder} is not a folder; point it at one with archives, or unset it to download")
    return folder


def archive_folder() -> Path:
    """Where downloaded archives are kept, laid out like a mirror."""
    return data_folder() / "archives"


def folder_of(dataset: DataSet) -> Path:
    """The folder of a data set; where it leads, if it is a link to another disk. Raises DataError if it leads nowhere."""
    folder = data_folder() / dataset.name
    if not folder.is_symlink():
        return folder
    if not folder.exists():
        raise DataError(f"{folder} is a link that leads nowhere; make the folder {os.readlink(folder)}, or remove the link")
    return folder.resolve()


def describe(counts: Mapping[str, int]) -> str:
    """Counts as words: ``943 users, 1,682 items``."""
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items())


def defect(dataset: DataSet, folder: Path) -> str | None:
    """Why `folder` is not the whole, prepared data set, in a few words; None if it is.

    Large arrays are not held against their digests here, but by who loads them.
    """
    try:
        manifest = strict.parse((folder / "manifest.json").read_bytes())
    except FileNotFoundError:
        return "not prepared"
    except (OSError, ValueError) as error:
        return f"its manifest.json cannot be read: {error}"
    if not isinstance(manifest, dict) or manifest.get("name") != dataset.name or manifest.get("format") != FORMAT:
        return "its manifest.json is of another data set or format"
    written = manifest.pop("digest", None)
    if written != (strict.digest(manifest) if "files" in manifest else None):  # there were manifests before there were digests
        return "its manifest.json is damaged: its digest is not that of its content"
    if manifest.get("counts") != dict(dataset.counts):
        return f"its counts are {manifest.get('counts')}, not {dict(dataset.counts)}"
    return array_defect(dataset, folder) or digest_defect(dataset, folder, manifest.get("files"))


def digest_defect(dataset: DataSet, folder: Path, written: object) -> str | None:
    """Which small file in `folder` is not what was `written` into the manifest; None if all are, or nothing was."""
    if written is None:
        return None
    if not isinstance(written, dict) or not dataset.layout(dataset.counts).keys() <= written.keys():
        return "its manifest.json does not name its files"
    for filename in dataset.layout(dataset.counts):
        file = folder / filename
        if file.stat().st_size <= HASHED_BYTES and strict.file_digest(file) != written[filename]:
            return f"{filename} is damaged: its digest is not that of its manifest"
    return None


def array_defect(dataset: DataSet, folder: Path) -> str | None:
    """Which array in `folder` is missing, damaged or of the wrong shape or dtype; None if all are as they should be."""
    for filename, expected in dataset.layout(dataset.counts).items():
        try:
            if filename.endswith(".npy"):
                found: Any = signature(np.lib.format.open_memmap(folder / filename, mode="r"))
            else:
                found = signatures(folder / filename, expected)
        except Exception as error:  # NumPy and zipfile stumble over a damaged file with errors of every kind
            return f"{filename} cannot be read: {error}"
        if found != expected:
            return f"{filename} holds {found}, not {expected}"
    return None


def signature(array: np.ndarray) -> tuple[tuple[int, ...], str]:
    """Shape and dtype name of an array, as layouts state them."""
    return tuple(array.shape), array.dtype.name


def signatures(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Shape and dtype name of each array of an ``.npz``, which is read with its checksums, but never beyond what is expected.

    Raises:
        ValueError: it holds other arrays, or one twice, too large, or compressed by a method that unpacks without a bound.
    """
    with ZipFile(path) as file:
        names = [entry.filename.removesuffix(".npy") for entry in file.infolist()]
        if sorted(names) != sorted(expected):  # none twice: each would be read
            raise ValueError(f"it holds {str(names)[:200]}, not {[*expected]}")
        for name, entry in zip(names, file.infolist(), strict=True):
            most = HEADER_BYTES + layout_bytes({name: expected[name]})
            if entry.file_size > most or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise ValueError(
                    f"{name!r} has {entry.file_size:,} bytes by method {entry.compress_type},"
                    f" not up to {most:,} by {ZIP_STORED} or {ZIP_DEFLATED}"
                )
        members = {name: file.open(entry) for name, entry in zip(names, file.infolist(), strict=True)}
        return {name: signature(np.lib.format.read_array(member, allow_pickle=False)) for name, member in members.items()}


def layout_bytes(layout: Layout) -> int:
    """Bytes that the arrays of a layout take."""
    arrays = [array for entry in layout.values() for array in (entry.values() if isinstance(entry, dict) else [entry])]
    return sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in arrays)


def prepare(dataset: DataSet) -> bool:
    """Fetch and prepare a data set unless it is there already.

    The arrays are made in a temporary folder beside the target, checked, and renamed into place; after any failure the
    target is as it was.

    Returns: whether there was anything to do.
    Raises:
        Unreachable: no archive to prepare it from.
        DataError: anything else that stops it, such as a damaged archive or a full disk.
    """
    target = folder_of(dataset)  # a link stays: what is prepared beside it could not take its place
    if defect(dataset, target) is None:
        with suppress(OSError):  # who may not write there, or while another works there, need not tidy up
            if any(leftovers(target)):
                with lock(target, blocking=False):
                    remove_leftovers(target)
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_one(dataset, target):
            remove_leftovers(target)
            if (reason := defect(dataset, target)) is None:
                return False
            if target.exists():
                refuse_foreign_files(dataset, target)
                print(f"{dataset.name}: preparing it again, because {reason}")
            require_space(dataset, target.parent)
            print(f"{dataset.name}: {dataset.title}, {dataset.page}")
            print(f"{dataset.name}: licence: {dataset.licence}", flush=True)
            sources = dataset.obtain()
            with staging(target) as folder:
                further = dataset.build(sources, folder, dataset.counts)
                if (reason := array_defect(dataset, folder)) is not None:
                    raise DataError(f"{dataset.name}: {reason}")
                write_manifest(dataset, sources, further, folder)
        print(f"{dataset.name}: prepared {describe(dataset.counts)} in {target}", flush=True)
        return True
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk of {target.parent} is full; free some space and run again"
            raise DataError(f"{dataset.name}: {reason}") from error
        place = error.filename or target.parent
        raise DataError(f"{dataset.name}: cannot read or write {place}: {error.strerror or error}") from error


def write_manifest(dataset: DataSet, sources: Sequence[Source], further: dict, folder: Path) -> None:
    """Write ``manifest.json``: what the arrays are, what they were made from, and when; with the digests that readers check."""
    manifest = {
        "name": dataset.name,
        "format": FORMAT,
        "title": dataset.title,
        "source": dataset.page,
        "licence": dataset.licence,
        "counts": dict(dataset.counts),
        "sha256": {source.name: source.sha256 for source in sources},
        "official": all(source.official for source in sources),
        "prepared": date.today().isoformat(),
        **further,
        "files": {filename: strict.file_digest(folder / filename) for filename in dataset.layout(dataset.counts)},
    }
    manifest["digest"] = strict.digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def require_space(dataset: DataSet, folder: Path) -> None:
    """Raise DataError if the disk of `folder` has no room for the arrays."""
    needed, free = layout_bytes(dataset.layout(dataset.counts)) + SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{dataset.name}: needs {needed / 1e9:.2f} GB in {folder}, but the disk has {free / 1e9:.2f} GB left;"
            " free some space, or set AMAML_DATA to a folder on another disk"
        )


def refuse_foreign_files(dataset: DataSet, target: Path) -> None:
    """Raise DataError if `target` holds files that are not ours: putting new arrays in place would delete them."""
    if not target.is_dir():
        raise DataError(f"{target} is not a folder; move it away and run again")
    foreign = sorted({entry.name for entry in target.iterdir()} - {"manifest.json", *dataset.layout(dataset.counts)})
    if foreign:
        raise DataError(f"{target} holds files that are not prepared data ({foreign[0]}); move them away and run again")


def lock(target: Path, blocking: bool = True) -> FileLock:
    """What keeps a second run off the same data set; the lock is the system's and goes when the process does."""
    return FileLock(target.parent / f".{target.name}.lock", blocking=blocking)


@contextmanager
def only_one(dataset: DataSet, target: Path) -> Iterator[None]:
    """Keep a second run off the same data set, and say so to one that has to wait."""
    try:
        held = lock(target, blocking=False).acquire()
    except Timeout:
        print(f"{dataset.name}: another run is preparing it; waiting for it to end", flush=True)
        held = lock(target).acquire()
    with held:
        yield


def leftovers(target: Path) -> Iterator[Path]:
    """The temporary folders of runs that were killed, and of one that is at work."""
    return target.parent.glob(f".{target.name}.tmp-*")


def remove_leftovers(target: Path) -> None:
    """Remove the temporary folders of runs that were killed."""
    for leftover in leftovers(target):
        shutil.rmtree(leftover)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place if the block ends well and else vanishes."""
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    retired = temporary.with_name(f"{temporary.name}-old")
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            target.rename(retired)  # no folder can be renamed over one that holds files
        temporary.rename(target)
    except BaseException:
        if retired.exists():
            retired.rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    remove_leftovers(target)


def command(dataset: DataSet, arguments: Sequence[str] | None = None) -> int:
    """The command line of one data set's script: prepare it, say what happened, and return the exit status."""
    argparse.ArgumentParser(
        prog=f"python -m data_scripts.{Path(sys.argv[0]).stem}",
        description=f"Fetch and prepare {dataset.title}. Licence: {dataset.licence}",
        epilog="AMAML_DATA: folder for the arrays. AMAML_MIRROR: folder with the archives, instead of the network.",
    ).parse_args(arguments)
    try:
        if not prepare(dataset):
            print(f"{dataset.name}: already prepared in {data_folder() / dataset.name}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(INTERRUPTED.format(dataset.name), file=sys.stderr)
        return 130
    return 0
