"""Downloads: resumable, checked, and whole or not there.

torchvision knows the mirrors and the checksums, and we take both from it; its own download starts
from nothing after an interruption, so the transfer is ours: urllib, with a `.part` file beside the
final name and HTTP Range to go on with it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ..core import registry
from ..core.errors import Interrupted, UserError
from ..core.progress import Progress, Silent
from . import digest, locate
from .locate import KnownFile, Sums

TIMEOUT = 30.0  # seconds without a byte
TRIES = 3  # connections per mirror that may break before the next mirror's turn
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Fetched:
    """One file after `fetch`: `downloaded` False where it was here and whole already."""

    path: Path
    downloaded: bool


class _BrokenError(Exception):
    """A transfer ended early: what arrived is kept, and worth going on with."""


class _RefusedError(Exception):
    """This mirror has not got the file, or another file: no use in asking it again."""


def fetch(
    name: str,
    data_dir: str | Path | None = None,
    *,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> list[Fetched]:
    """Download what is missing or altered of a registered data set into the data folder.

    `mirror` (default: `$RRD_MIRROR`, else torchvision's list): a base address that serves a data
    folder, so a file is at `<mirror>/<data set>/<file>`. Files are verified before they get their
    names; after an interruption the next call goes on. No network, no such file, truncated or
    altered files: `UserError`, and nothing under the final name.
    """
    entry = registry.find("dataset", name)
    root = locate.data_dir(data_dir)
    if not locate.known_files(entry.card):
        return []
    mirror = mirror or os.environ.get("RRD_MIRROR")
    if not mirror and "torchvision" not in entry.card:
        raise UserError(
            f"{entry.name} cannot be fetched: nobody publishes it in a place known to rrd",
            hint=f"put its files into {root / entry.name}, or name a server of them: --mirror URL",
        )
    everything = [(found, _whole(found)) for found in locate.find_files(entry.card, root)]
    here = [
        Fetched(found.path, downloaded=False)
        for found, whole in everything
        if whole and found.path is not None
    ]
    # A part that is missing or altered comes with its archive.
    wanted = {found.archive or found.known: None for found, whole in everything if not whole}
    if not wanted:
        return here
    bases, sums = _origin(entry, mirror)
    fetched = []
    for file in wanted:
        known = _agreed(file, sums)
        target = root / entry.card["folders"][0] / known.name
        urls = [base + known.name for base in bases]
        _download(urls, target, known.sums, progress or Silent())
        fetched.append(Fetched(target, downloaded=True))
    return [*here, *fetched]


def _whole(found: locate.FoundFile) -> bool:
    if found.path is None:
        return False
    try:
        digest.check_file(found)
    except UserError:
        return False
    return True


def _origin(entry: registry.Entry, mirror: str | None) -> tuple[list[str], Mapping[str, str]]:
    """Base addresses (with a slash at the end), and the checksums that go with them."""
    if mirror:
        if urlsplit(mirror).scheme not in ("http", "https") or not urlsplit(mirror).netloc:
            raise UserError(f"mirror {mirror!r} is not an http(s) address")
        return [f"{mirror.rstrip('/')}/{entry.name}/"], {}
    from . import torchvision_shim

    mirrors, sums = torchvision_shim.origin(entry.card["torchvision"])
    return [base.rstrip("/") + "/" for base in mirrors], sums


def _agreed(known: KnownFile, sums: Mapping[str, str]) -> KnownFile:
    """`known` with torchvision's MD5: two lists must not tell two stories."""
    listed = sums.get(known.name)
    if listed is None or listed == known.sums.md5:
        return known
    if known.sums.md5 is None:
        return replace(known, sums=replace(known.sums, md5=listed))
    raise UserError(
        f"{known.name}: this torchvision lists MD5 {listed}, rrd knows {known.sums.md5}",
        hint="one of the two is out of date: please report it",
    )


def _download(urls: Sequence[str], target: Path, sums: Sums, progress: Progress) -> None:
    """Bring one file from the first mirror that has it, by way of `target` + `.part`."""
    part = target.with_name(target.name + ".part")
    shown = f"{target.parent.name}/{target.name}"
    made: list[Path] = []
    try:
        made = _make_folder(target.parent)
        with _alone(part) as handle:
            progress.start(f"fetch {shown}", sums.size or 0)
            reasons = _first_that_works(urls, handle, part, sums, progress)
            kept = handle.tell()
            if reasons is None:
                os.replace(part, target)
            elif not kept:
                _remove(part, made)
            progress.finish("failed" if reasons else "")
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted while fetching {shown}; the same command goes on") from None
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent}: {error.strerror}", hint="choose another: --data DIR"
        ) from error
    if reasons is None:
        return
    by_hand = f"put the file into {target.parent} by hand, or name another source: --mirror URL"
    raise UserError(
        f"cannot fetch {shown} ({'; '.join(reasons)})",
        hint=f"the same command goes on after {kept:,} bytes" if kept else by_hand,
    )


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents; those that were not there before, innermost first."""
    made = []
    while not folder.exists():
        made.append(folder)
        folder = folder.parent
    for new in reversed(made):
        new.mkdir(exist_ok=True)
    return made


def _remove(part: Path, made: Sequence[Path]) -> None:
    """Leave no trace of a download that brought nothing."""
    part.unlink()
    with contextlib.suppress(OSError):  # another process may have put something there
        for folder in made:
            folder.rmdir()


def _first_that_works(
    urls: Sequence[str], handle: IO[bytes], part: Path, sums: Sums, progress: Progress
) -> list[str] | None:
    """None when the file is whole, else what was wrong with each mirror."""
    reasons = []
    for url in urls:
        try:
            _from_mirror(url, handle, part, sums, progress)
        except (_BrokenError, _RefusedError) as error:
            reasons.append(f"{urlsplit(url).netloc}: {error}")
        else:
            return None
    return reasons


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[IO[bytes]]:
    """The `.part` file, open at its end; a second process that wants it gets a `UserError`."""
    # The temporary name has to be the same in every try: it is what a later try goes on with.
    with open(part, "ab") as handle:
        try:
            import fcntl
        except ImportError:  # no such locks on this system: the checksum still decides
            yield handle
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is fetching {part}") from None
        if not part.exists() or not os.path.samestat(os.fstat(handle.fileno()), part.stat()):
            # The other process finished between our open and our lock: this is its file now.
            raise UserError(f"another process has just fetched {part.with_suffix('')}")
        yield handle


def _from_mirror(url: str, handle: IO[bytes], part: Path, sums: Sums, progress: Progress) -> None:
    """Bring the whole, verified content of `url` into `handle`, or say why not."""
    resumed = handle.tell() > 0
    for attempt in range(1, TRIES + 1):
        before = handle.tell()
        try:
            if sums.size is None or handle.tell() < sums.size:
                _transfer(url, handle, sums, progress)
        except _BrokenError:
            # A connection that brought nothing is a mirror that does not work.
            if attempt == TRIES or handle.tell() == before:
                raise
            continue
        handle.flush()
        os.fsync(handle.fileno())
        problem = digest.problem_of(part, sums)
        if problem is None:
            return
        _empty(handle)
        if not resumed:
            raise _RefusedError(f"what it sends {problem}")
        # The beginning may have come from elsewhere, or long ago: once more, from nothing.
        resumed = False
    raise _RefusedError("what it sends does not hold")


def _transfer(url: str, handle: IO[bytes], sums: Sums, progress: Progress) -> None:
    """Append what `handle` lacks of `url`; starts from nothing where the server knows no Range."""
    start = handle.tell()
    headers = {"User-Agent": "robustbench-defenses", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        ) as response:
            if start and not _goes_on(response, start):
                _empty(handle)
                start = 0
            total = _announced(response, start)
            if None not in (total, sums.size) and total != sums.size:
                _empty(handle)
                kind = "truncated" if int(total or 0) < int(sums.size or 0) else "altered"
                raise _RefusedError(f"its file is {kind}: {total:,} of {sums.size:,} bytes")
            for chunk in _chunks(response):
                handle.write(chunk)
                progress.update(handle.tell())
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            _empty(handle)
            raise _BrokenError("it has less than was here") from None
        raise _RefusedError(f"{error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise _BrokenError(f"no connection: {reason}") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _BrokenError(f"no answer: {error}") from None
    if total is not None and handle.tell() < total:
        raise _BrokenError(f"interrupted after {handle.tell():,} of {total:,} bytes")


def _chunks(response: Any) -> Iterator[bytes]:
    """What arrives, until the end or a fault of the connection (never one of our disk)."""
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (http.client.HTTPException, OSError) as error:
            raise _BrokenError(f"interrupted: {error}") from None
        if not chunk:
            return
        yield chunk


def _goes_on(response: Any, start: int) -> bool:
    """Whether the answer to a Range request begins where it was asked to."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return bool(response.status == http.client.PARTIAL_CONTENT and found and int(found[1]) == start)


def _announced(response: Any, start: int) -> int | None:
    """The size of the whole file as the server tells it."""
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _empty(handle: IO[bytes]) -> None:
    handle.truncate(0)
    handle.seek(0)
