"""The image cells on a machine with a GPU that can download nothing: what must travel there in parts, and what comes back.

Here, ``python -m tools.images_gpu pack`` writes into ``_gpu``: the prepared data in parts of at most 60 MiB, the libraries that
such a machine may lack, as wheels, and ``README``, which says what to run. There, with this checkout, ``join`` puts together what
has come, and ``run`` trains until its minutes are over; training goes on from checkpoints at the next call. Here again, ``merge``
adds the records that came back to ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amaml_core import strict
from amaml_core.locations import data_root
from amaml_core.records import write_beside
from data_scripts.common import lock

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "_gpu"
NAMES = ("omniglot", "mini-imagenet")  # in the order of what is worth most
WHEELS = ("safetensors", "scipy", "joblib")
PART_MIB = 60
MOST_PARTS = 10_000  # of one data set, and more than ten times what the largest has
STEPS = """\
1. There, for each part in turn, with the checkout and that part alone:  python -m tools.images_gpu join
2. There, again and again, with _gpu/back of the call before:            python -m tools.images_gpu run --minutes 8
3. Here, with the _gpu/back that came back:                              python -m tools.images_gpu merge _gpu/back
The wheels travel with the first part. Cells that have a record are not run again.
"""


def pack(data: Path, folder: Path = FOLDER, part_mib: float = PART_MIB, wheels: Sequence[str] = WHEELS) -> list[Path]:
    """Write the parts of each prepared data set, ``NAME.json`` that says what they are, and the wheels; the parts' paths.

    Raises:
        FileNotFoundError: no image data set is prepared.
    """
    found = [name for name in NAMES if (data / name / "manifest.json").is_file()]
    if not found:
        raise FileNotFoundError(f"{data} holds no image data: run `make data-images` first")
    write_beside(folder / "README", STEPS.encode())
    parts, limit = [], int(part_mib * 2**20)
    for name in found:
        files, number = [], 0
        for path in sorted((data / name).iterdir()):
            sizes = []
            with open(path, "rb") as source:
                digest = hashlib.sha256()
                while piece := source.read(limit):
                    digest.update(piece)
                    parts.append(folder / f"{name}.{number:03d}")
                    write_beside(parts[-1], piece)
                    sizes.append(len(piece))
                    number += 1
            files.append({"name": path.name, "parts": len(sizes), "sha256": digest.hexdigest()})
        write_beside(folder / f"{name}.json", json.dumps(files, indent=1).encode())
    if wheels:
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--python-version",
            "3.12",
        ]
        versions = ["-c", str(ROOT / "requirements.lock"), "-d", str(folder / "wheels"), *wheels]
        if subprocess.run(download + versions, check=False).returncode:
            print(f"no wheels: without a network, put those of {', '.join(wheels)} into {folder / 'wheels'} yourself")
    return parts


def read_listing(path: Path) -> list[dict[str, Any]]:
    """What ``NAME.json`` says of a data set. It came from elsewhere, so the names in it must be plain: they become files here.

    Raises:
        ValueError: it is damaged, or no listing that ``pack`` writes.
    """
    try:
        if path.stem not in NAMES:
            raise ValueError(f"no data set is called {path.stem!r}; there are {', '.join(NAMES)}")
        files = strict.parse(path.read_bytes())
        if not isinstance(files, list):
            raise ValueError("it is no list of files")
        for entry in files:
            if not isinstance(entry, dict) or set(entry) != {"name", "parts", "sha256"}:
                raise ValueError(f"an entry is not a name, a number of parts and a SHA-256: {str(entry)[:80]}")
            if not isinstance(entry["name"], str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", entry["name"]):
                raise ValueError(f"{str(entry['name'])[:80]!r} is no plain name of a file")
            if type(entry["parts"]) is not int or not 0 <= entry["parts"] <= MOST_PARTS:
                raise ValueError(f"{entry['name']} cannot have {str(entry['parts'])[:80]} parts")
        if sum(entry["parts"] for entry in files) > MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS:,} parts")
        if len({entry["name"].lower() for entry in files}) < len(files):
            raise ValueError("a file stands there twice")
        if "manifest.json" not in {entry["name"] for entry in files}:
            raise ValueError("it lists no manifest.json")
    except ValueError as error:
        raise ValueError(f"{path} is no listing of parts: {error}; send it again, as `pack` wrote it") from error
    return files


def join(data: Path, folder: Path = FOLDER) -> dict[str, int]:
    """Put the data sets together whose parts are all here; for each, how many parts are still missing.

    A data set that is complete is not made again, and its parts may go.

    Raises:
        ValueError: a listing or a part is not what was packed, or something else lies where a data set goes.
    """
    missing = {}
    for listing in sorted(folder.glob("*.json")):
        name, files = listing.stem, read_listing(listing)
        target = data / name
        if (target / "manifest.json").is_file():
            missing[name] = 0
            continue
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise ValueError(f"{target} is in the way, and no data set: move it away and join again")
        numbers = iter(range(sum(entry["parts"] for entry in files)))
        places = {entry["name"]: [folder / f"{name}.{next(numbers):03d}" for _ in range(entry["parts"])] for entry in files}
        missing[name] = sum(not part.is_file() for parts in places.values() for part in parts)
        if not missing[name]:
            data.mkdir(parents=True, exist_ok=True)
            with lock(target):  # as `make data` does, so neither takes away what the other is making
                put_together(target, files, places)
    return missing


def put_together(target: Path, files: Sequence[dict[str, Any]], places: dict[str, list[Path]]) -> None:
    """Make a data set of its parts, beside its place; what a killed call left there goes first.

    Raises:
        ValueError: a part is not what was packed.
    """
    for left in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(left)
    if (target / "manifest.json").is_file():  # by another call, while this one waited
        return
    beside = target.with_name(f".{target.name}-joined")
    beside.mkdir()
    try:
        for entry in files:
            digest = hashlib.sha256()
            with open(beside / entry["name"], "wb") as file:
                for part in places[entry["name"]]:
                    digest.update(piece := part.read_bytes())
                    file.write(piece)
            if digest.hexdigest() != entry["sha256"]:
                raise ValueError(f"{target.name}/{entry['name']} is not what was packed: send the parts of {target.name} again")
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def install(wheels: Sequence[Path], site: Path) -> None:
    """Install the wheels into a folder, which is there only when all of them are in it.

    Raises:
        subprocess.CalledProcessError: pip cannot; it says why.
    """
    beside = site.with_name(f".{site.name}")
    shutil.rmtree(beside, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(beside)]
    subprocess.run([*command, *map(str, wheels)], check=True)
    beside.rename(site)


def run(minutes: float, command: Sequence[str]) -> bool:
    """Run a command for at most so many minutes, then interrupt it, so that it saves; whether it came to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{FOLDER / 'site'}"})
    try:
        code = process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return False
    if code:
        raise subprocess.CalledProcessError(code, command)
    return True


def merge(folder: Path, results: Path | None = None, commit: str = "unknown") -> int:
    """Add the image records in a folder to ours; how many there were.

    Args:
        commit: of the code that travelled, for records that were made outside a checkout and do not know it.
    """
    from experiments.common import records

    found = records.read("images", folder)
    for record in found:
        known = replace(record, commit=commit) if record.commit == "unknown" else record
        records.write(known, "images", results or records.RESULTS)
    return len(found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 after an error, which is one line, after what a program that was called has said."""
    parser = argparse.ArgumentParser(prog="python -m tools.images_gpu", description=__doc__.split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("pack", help="write what must travel")
    verbs.add_parser("join", help="put together what has come")
    runs = verbs.add_parser("run", help="train for some minutes")
    runs.add_argument("--minutes", type=float, default=8.0)
    runs.add_argument("--jobs", type=int, default=7, help="rows at once; they share the GPU")
    merges = verbs.add_parser("merge", help="add the records that came back")
    merges.add_argument("folder", type=Path)
    merges.add_argument("--commit", default="unknown", help="of the checkout that travelled, where it travelled without .git")
    arguments = parser.parse_args(argv)
    try:
        act(arguments)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{shlex.join(map(str, error.cmd))} ended with status {error.returncode}; see above", file=sys.stderr)
        return 1
    return 0


def act(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    if arguments.verb == "pack":
        parts = pack(data_root())
        print(f"{len(parts)} parts of at most {PART_MIB} MiB in {FOLDER}; {FOLDER / 'README'} says what to do with them")
    elif arguments.verb == "join":
        if (wheels := sorted((FOLDER / "wheels").glob("*.whl"))) and not (FOLDER / "site").exists():
            install(wheels, FOLDER / "site")
        for name, count in join(data_root()).items():
            print(f"{name}: {f'{count} parts are missing' if count else 'ready'}")
    elif arguments.verb == "run":
        back, jobs = str(FOLDER / "back"), str(arguments.jobs)
        cells = [sys.executable, "-m", "experiments", "--out", back, "--jobs", jobs, "--only", "images size=gpu"]
        print("all cells have a record" if run(arguments.minutes, cells) else "not at the end: run it again")
    else:
        print(f"{merge(arguments.folder, commit=arguments.commit)} records added")


if __name__ == "__main__":
    sys.exit(main())
