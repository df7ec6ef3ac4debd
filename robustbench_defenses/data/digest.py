"""File checksums: a file is read once with suspicion, then trusted until it changes.

A success is remembered in the user's cache folder by path, size and modification time; without a
writable cache every use checks again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..core import cache
from ..core.errors import UserError
from .locate import FoundFile, Sums

_CHUNK = 1 << 20


def md5(path: Path) -> str:
    """MD5 of a file in hex: no protection, but what the publishers of data sets list."""
    return _hash(path, hashlib.md5(usedforsecurity=False))


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    return _hash(path, hashlib.sha256())


def check_file(found: FoundFile, *, hint: str | None = None, fresh: bool = False) -> None:
    """Hold a file against its known size and its strongest known checksum.

    `fresh`: ignore what is remembered. A truncated, altered or unreadable file is a `UserError`
    that names it, with `hint`.
    """
    path = found.path
    if path is None:
        raise ValueError("no file to check")
    stamp = [str(path.resolve()), cache.file_stamp(path), _expected(found.sums)]
    name = f"digests/{hashlib.sha256(str(stamp[0]).encode()).hexdigest()[:16]}.json"
    if not fresh and cache.read_cache(name, stamp):
        return
    try:
        problem = problem_of(path, found.sums)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if problem:
        raise UserError(f"{path} {problem}", hint=hint)
    cache.write_cache(name, stamp, {"holds": True})


def problem_of(path: Path, sums: Sums) -> str | None:
    """What is wrong with a file, in words that follow its name; None: it is what it should be."""
    size = path.stat().st_size
    if sums.size is not None and size < sums.size:
        return f"is truncated: {size:,} of {sums.size:,} bytes"
    if sums.size is not None and size > sums.size:
        return f"is altered: {size:,} bytes instead of {sums.size:,}"
    for name, known, compute in (("sha256", sums.sha256, sha256), ("md5", sums.md5, md5)):
        if known is not None:
            actual = compute(path)
            if actual != known:
                return f"is altered: its {name} is {actual[:12]}..., not {known[:12]}..."
            return None
    return None


def _expected(sums: Sums) -> list[int | str | None]:
    return [sums.size, sums.md5, sums.sha256]


def _hash(path: Path, state: hashlib._Hash) -> str:
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()
