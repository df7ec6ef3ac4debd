"""Files that come in an archive: read from it, or from where they lie unpacked.

Nothing is extracted to disk, so no path inside an archive is ever followed. What takes long to
decode is kept, decoded, in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import cache
from ..core.errors import UserError
from ..core.files import atomic_open
from . import digest, locate

if TYPE_CHECKING:
    import numpy as np

_DAMAGED = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError)


def checked_file(name: str, card: Mapping[str, Any], file: str, root: Path) -> Path:
    """Where the listed `file` of a card is, held against its checksums; else a `UserError`."""
    known = next(known for known in locate.known_files(card) if known.name == file)
    found = locate.find_file(card, known, root)
    if found.path is None:
        raise locate.missing(name, card, known, root)
    digest.check_file(found, hint=locate.how_to_get(name, card))
    return found.path


def parts(
    name: str, card: Mapping[str, Any], wanted: Sequence[str], root: Path
) -> dict[str, bytes]:
    """The content of the `wanted` files of the card's archive, from it or unpacked, checked.

    Of files that lie unpacked only the wanted ones are looked at. Missing, truncated or altered
    files are `UserError`s that name them.
    """
    (archive,) = locate.known_files(card)
    found = locate.find_files(card, root)
    if found[0].archive is None:
        return _from_tar(checked_file(name, card, archive.name, root), wanted)
    content = {}
    for one in found:
        if one.known.name not in wanted:
            continue
        if one.path is None:
            raise UserError(
                f"{name} is not whole: no {one.known.name} where its other files are",
                hint=locate.how_to_get(name, card),
            )
        digest.check_file(one, hint=locate.how_to_get(name, card))
        content[one.known.name] = _read(one.path)
    return content


def each_file(path: Path) -> Generator[tuple[str, bytes]]:
    """Names and contents of the plain files of a tar archive, compressed or not, in its order."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isfile():
                    handle = archive.extractfile(member)
                    assert handle is not None
                    yield member.name.removeprefix("./"), handle.read()
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _from_tar(path: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    with contextlib.closing(each_file(path)) as files:
        for member, data in files:
            if member in wanted:
                content[member] = data
                if len(content) == len(set(wanted)):
                    break
    lacking = [member for member in wanted if member not in content]
    if lacking:
        raise UserError(f"{path} has no {lacking[0]}")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def decoded(
    name: str, stamp: Sequence[object], decode: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, C) and labels (N,), both uint8: from the cache, else by `decode()`.

    `stamp` is all that decides them: digests of files, versions of decoders. A cache that is
    damaged, or was written for another stamp, is not used; one that cannot be written is fine.
    """
    import numpy as np

    folder = cache.cache_dir()
    key = hashlib.sha256(repr([name, *stamp]).encode()).hexdigest()[:16]
    path = None if folder is None else folder / "decoded" / f"{name}-{key}.npz"
    if path is not None:
        unusable = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
        with contextlib.suppress(*unusable), np.load(path, allow_pickle=False) as stored:
            images, labels = stored["images"], stored["labels"]
            if str(stored["digest"]) == _digest(images, labels):
                return images, labels
    images, labels = decode()
    if path is not None:
        with contextlib.suppress(OSError, UserError), atomic_open(path) as handle:
            np.savez(handle, images=images, labels=labels, digest=_digest(images, labels))
    return images, labels


def _digest(images: np.ndarray, labels: np.ndarray) -> str:
    state = hashlib.sha256(repr((images.shape, str(images.dtype), labels.shape)).encode())
    state.update(images.tobytes())
    state.update(labels.tobytes())
    return state.hexdigest()
