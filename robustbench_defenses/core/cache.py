"""Small caches in the user's cache folder: a help when they are there, never a need."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import write_text


def cache_dir() -> Path | None:
    """`$XDG_CACHE_HOME/robustbench_defenses`, else `~/.cache/robustbench_defenses`.

    None where the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "robustbench_defenses"
    try:
        return Path.home() / ".cache" / "robustbench_defenses"
    except RuntimeError:
        return None


def read_cache(name: str, stamp: Any) -> dict[str, Any]:
    """The content stored under `name`, or {} when it is missing, damaged or of another `stamp`."""
    folder = cache_dir()
    if folder is None:
        return {}
    try:
        stored = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict) or stored.get("stamp") != stamp:
        return {}
    content = stored.get("content")
    return content if isinstance(content, dict) else {}


def write_cache(name: str, stamp: Any, content: dict[str, Any]) -> None:
    """Store `content` under `name`; a cache folder that cannot be written is silently fine."""
    folder = cache_dir()
    if folder is None:
        return
    text = json.dumps({"stamp": stamp, "content": content}, separators=(",", ":"))
    with contextlib.suppress(UserError, OSError):
        write_text(folder / name, text)


def file_stamp(path: Path | str) -> list[int] | None:
    """Modification time (ns) and size of a file or folder, or None when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]
