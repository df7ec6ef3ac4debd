"""log.jsonl: one line per epoch (and a few events), which a resumed training carries on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..core import files
from ..core.errors import UserError


def append(folder: Path, line: dict[str, Any]) -> None:
    """Add one line; numbers that are not finite are written as text."""
    text = json.dumps({key: _plain(value) for key, value in line.items()}, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.jsonl", "a", encoding="utf-8") as handle:
            handle.write(text + "\n")
    except OSError as error:
        raise UserError(f"cannot write {folder / 'log.jsonl'}: {error.strerror}") from error


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines; a half-written last one is left out."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def cut(folder: Path, lines: int) -> None:
    """Keep the first `lines` lines: what came after belongs to steps that are done again."""
    path = folder / "log.jsonl"
    if path.is_file():
        kept = path.read_text(encoding="utf-8").split("\n")[:-1][:lines]
        files.write_text(path, "".join(f"{line}\n" for line in kept))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return round(value, 6) if isinstance(value, float) else value
