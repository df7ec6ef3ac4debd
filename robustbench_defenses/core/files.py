"""Files that are either whole or not there: temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for writing; it appears under its name only when the block ends without error.

    The temporary name is unique, so any number of processes may write the same path: the last
    rename wins and no reader ever sees half a file. What processes killed in the middle left beside
    `path` is removed. A folder that cannot be written is a `UserError`.
    """
    unique = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(temporary, "wb")  # noqa: SIM115 (closed below, before the rename)
    except OSError as error:
        raise UserError(
            f"cannot write to {path.parent}: {error.strerror}",
            hint="choose another folder with --results DIR (or RRD_RESULTS)",
        ) from error
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):
            _remove_orphans(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        raise


def _machine() -> str:
    """A short name of where process numbers mean what they mean here: this machine since it was
    started, and in it this container."""
    told = [platform.node()]
    with contextlib.suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]


def _remove_orphans(path: Path) -> None:
    """Remove temporary files for `path` whose processes, of this machine, have ended."""
    if os.name != "posix":  # no way to ask for a process without a signal that ends it
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.{_machine()}-*-*.tmp"):
        number = left.name.split("-")[-2]
        if number.isdecimal() and not _lives(int(number)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it lives and is somebody else's
        pass
    return True


def check_writable(folder: Path) -> None:
    """A `UserError` where nothing could be written below `folder` (which need not exist yet)."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        reason = f"{there} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"no permission in {there}"
    else:
        return
    raise UserError(
        f"cannot write to {folder}: {reason}",
        hint="choose another folder with --results DIR (or RRD_RESULTS)",
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_open(path) as handle:
        handle.write(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8 to `path` atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON to `path` atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as a compressed npz to `path` atomically."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_json(path: Path) -> Any:
    """Read JSON from `path`; a missing, unreadable or malformed file is a `UserError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
