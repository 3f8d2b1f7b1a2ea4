"""Download an archive through pooch, going on where an earlier attempt was cut short."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from http.client import responses
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from data_scripts.archives import LARGEST_ZIP
from data_scripts.common import DataError, Unreachable

SCHEMES = ("https",)
CONNECT_SECONDS = 7
READ_SECONDS = 30  # for each read, of which a file can be made up of any number
SLOW_SECONDS, SLOW_BYTES = 120, 2**16  # a host that sends less of a file in that time is given up
CHUNK_BYTES = 2**14  # what is lost at most when the connection breaks, since whole chunks are handed over


class ListedHosts(requests.Session):
    """A session that asks no host but these, and none without encryption, wherever it is sent on to."""

    def __init__(self, hosts: frozenset[str]) -> None:
        super().__init__()
        self.hosts = hosts

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send one request, the first or one after a redirect. Raises Unreachable if it leads elsewhere or to no address."""
        address = urlsplit(str(request.url))
        if address.scheme not in SCHEMES or address.netloc.lower() not in self.hosts:
            place, listed = f"{address.scheme}://{address.netloc}", ", ".join(sorted(self.hosts))
            raise Unreachable(f"{place} was not asked, though it was sent for: archives come from {listed} by {SCHEMES[0]} alone")
        try:
            return super().send(request, **options)
        except ValueError as error:  # what an address or a length that is none makes of an answer
            raise Unreachable(f"{address.netloc} gives no answer that can be used ({error})") from error


@dataclass
class ResumingDownloader:
    """A pooch downloader that collects the bytes in `part` and goes on from there when it is called again.

    A download that is cut short leaves `part` behind. A complete one hands its file over to pooch, which compares the
    hash and throws a wrong file away, so that a bad part is never resumed again and again.
    """

    part: Path
    hosts: frozenset[str]
    arrived: int = 0  # bytes
    given_up: bool = False  # by who waits for it: nothing more may be written

    def __call__(self, url: str, output_file: Any, _pooch: Any = None) -> None:
        """Bring `url` into `output_file`. Raises requests' exceptions, Unreachable for an early end, OSError."""
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with (
            ListedHosts(self.hosts) as session,
            session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response,
        ):
            if have and response.status_code == requests.codes.requested_range_not_satisfiable:
                # Nothing is left to send: the part is as long as the file, or longer and then of no use.
                if response.headers.get("Content-Range") != f"bytes */{have}":
                    self.part.unlink()
                    raise Unreachable(f"{url}: the partial download did not fit and was removed; run again")
            else:
                response.raise_for_status()
                self.append(response, have if resumes_at(response, have) else 0)
        os.replace(self.part, output_file)

    def append(self, response: requests.Response, have: int) -> None:
        """Write the body of `response` behind the first `have` bytes of the part; from the start if that is 0.

        Raises DataError, and keeps nothing, if there is more than an archive can have; Unreachable if it ends too early, or says
        no length that is one.
        """
        length = response.headers.get("Content-Length", "")
        if length and not (length.isascii() and length.isdecimal() and len(length) < 20):
            raise Unreachable(f"{response.url} says that it is {length[:80]!r} bytes long")
        total = have + int(length) if length else None
        name = self.part.name.removesuffix(".part")
        with (
            open(self.part, "ab" if have else "wb") as stream,
            tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, disable=None) as progress,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                if self.given_up:
                    raise Unreachable(f"{response.url} was given up")
                self.arrived += len(chunk)
                stream.write(chunk)
                progress.update(len(chunk))
                if stream.tell() > LARGEST_ZIP:
                    self.part.unlink()
                    raise DataError(f"{response.url} sends more than {LARGEST_ZIP:,} bytes, which is no archive of these data")
        if total is not None and (size := self.part.stat().st_size) != total:
            raise Unreachable(f"{response.url} ended after {size:,} of {total:,} bytes; run again to resume")


def resumes_at(response: requests.Response, position: int) -> bool:
    """Whether the host answers a request for a range with the bytes from `position` on."""
    content_range = response.headers.get("Content-Range", "")
    return response.status_code == requests.codes.partial_content and content_range.startswith(f"bytes {position}-")


def unless_slow(fetch: Callable[[], str], downloader: ResumingDownloader, url: str) -> str:
    """What `fetch`, which uses the downloader, returns or raises; Unreachable if next to nothing arrives, be it in time.

    The work is done by a thread of its own, since what is read ends by itself only between two bytes that come too late.
    """
    outcome: Future[str] = Future()

    def work() -> None:
        try:
            outcome.set_result(fetch())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        before = 0
        while not wait([outcome], SLOW_SECONDS).done:
            before, arrived = downloader.arrived, downloader.arrived - before
            if arrived < SLOW_BYTES:
                raise Unreachable(f"{url} sent {arrived:,} bytes in {SLOW_SECONDS} seconds and was given up; run again to resume")
        return outcome.result()
    finally:
        downloader.given_up = True


def download(urls: tuple[str, ...], known_hash: str, target: Path) -> None:
    """Bring a file to `target` from the first of `urls` that serves it, unless it is there and whole already.

    Raises:
        Unreachable: no host serves it.
        DataError: a host serves something else.
    """
    pooch.get_logger().setLevel("WARNING")
    hosts = frozenset(urlsplit(url).netloc.lower() for url in urls)
    # pooch collects in a temporary file, which a kill would leave: it has a folder of its own, and the caller works alone.
    scratch = target.with_name(f".{target.name}.fetching")
    shutil.rmtree(scratch, ignore_errors=True)
    if target.exists():
        print(f"{target.name}: checking the copy of {urls[0]}", flush=True)
        algorithm, _, expected = known_hash.partition(":")
        if pooch.file_hash(str(target), alg=algorithm) == expected:
            return
    failures: list[DataError] = []
    silent: set[str] = set()
    for url in urls:
        host = urlsplit(url).netloc
        if host in silent:
            continue
        print(f"{target.name}: fetching {url}", flush=True)
        try:
            downloader = ResumingDownloader(target.with_name(f"{target.name}.part"), hosts)
            fetch = partial(pooch.retrieve, url, known_hash, fname=target.name, path=scratch, downloader=downloader)
            os.replace(unless_slow(fetch, downloader, url), target)
            return
        except DataError as error:
            failures.append(error)
        except requests.HTTPError as error:
            status = error.response.status_code
            failures.append(Unreachable(f"{url} answers {status} {responses.get(status, '')}"))  # not in the host's own words
        except requests.RequestException as error:
            silent.add(host)
            failures.append(Unreachable(f"{host} cannot be reached ({short_reason(error)})"))
        except ValueError as error:  # pooch's word for a wrong hash
            failures.append(DataError(f"{url} serves a file that is not the official one ({error})"))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    # A wrong file weighs more than a silent host.
    kind = Unreachable if all(isinstance(failure, Unreachable) for failure in failures) else DataError
    raise kind("; ".join(map(str, failures)))


def short_reason(error: requests.RequestException) -> str:
    """A request's failure in a few words."""
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not valid"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke; run again to resume"
    return "no connection"
