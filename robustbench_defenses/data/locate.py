"""Where image files are looked for, and what a card knows of each of them. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core import registry
from ..core.errors import UserError

DEFAULT_DIR = Path("data")


@dataclass(frozen=True)
class Sums:
    """Size in bytes and checksums (hex) of one form of a file; None where nobody published it."""

    size: int | None = None
    md5: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class KnownFile:
    """One file of a data set as its card lists it.

    `unzipped`: the same without its `.gz`; `unpacked`: of an archive, the files in it that count.
    """

    name: str
    sums: Sums
    unzipped: Sums | None = None
    unpacked: tuple[KnownFile, ...] = ()


@dataclass(frozen=True)
class FoundFile:
    """A known file and the form of it that is here (`path` None: no form is).

    `archive`: where the file comes from, for one that lies unpacked.
    """

    known: KnownFile
    path: Path | None
    archive: KnownFile | None = None

    @property
    def sums(self) -> Sums:
        """What the form that is here must add up to."""
        if self.path is not None and self.path.name != self.known.name and self.known.unzipped:
            return self.known.unzipped
        return self.known.sums


def data_dir(given: str | Path | None = None) -> Path:
    """`given` (`--data`), else `$RRD_DATA`, else `./data`."""
    if given is not None:
        return Path(given).expanduser()
    named = os.environ.get("RRD_DATA")
    return Path(named).expanduser() if named else DEFAULT_DIR


def known_files(card: Mapping[str, Any]) -> list[KnownFile]:
    """The files of a card: `CARD["files"][NAME] = {"bytes", "md5", "sha256", ...}`.

    Beside the checksums: `unzipped` (those of the file without its `.gz`), `unpacked` (of an
    archive: the files in it, by their paths, each with its checksums).
    """
    return [
        KnownFile(
            name,
            _sums(about),
            _sums(about["unzipped"]) if "unzipped" in about else None,
            tuple(KnownFile(part, _sums(own)) for part, own in about.get("unpacked", {}).items()),
        )
        for name, about in card.get("files", {}).items()
    ]


def _sums(about: Mapping[str, Any]) -> Sums:
    return Sums(about.get("bytes"), about.get("md5"), about.get("sha256"))


def find_file(card: Mapping[str, Any], known: KnownFile, root: Path) -> FoundFile:
    """The first form of a file that exists: folder by folder, as listed, then unzipped."""
    names = [known.name, known.name.removesuffix(".gz")] if known.unzipped else [known.name]
    for folder in card.get("folders", []):
        for name in names:
            path = root / folder / name
            if path.is_file():
                return FoundFile(known, path)
    return FoundFile(known, None)


def find_files(card: Mapping[str, Any], root: Path) -> list[FoundFile]:
    """Every file of a card, here or not; the parts of an archive where it lies unpacked."""
    found = []
    for known in known_files(card):
        whole = find_file(card, known, root)
        parts = [replace(find_file(card, part, root), archive=known) for part in known.unpacked]
        unpacked = whole.path is None and any(part.path is not None for part in parts)
        found += parts if unpacked else [whole]
    return found


def stand_ins(name: str, root: Path) -> list[str]:
    """Data sets that are here and declare that they stand in for `name`, which is not."""
    return [
        entry.name
        for entry in registry.scan("dataset").entries
        if entry.card.get("stand_in_for") == name
        and all(found.path is not None for found in find_files(entry.card, root))
    ]


def missing(name: str, card: Mapping[str, Any], known: KnownFile, root: Path) -> UserError:
    """The error for a file that is not here: which, where it was looked for, how to get it."""
    shown = known.name.removesuffix(".gz") + "(.gz)" if known.unzipped else known.name
    folders = dict.fromkeys(part.name.partition("/")[0] + "/" for part in known.unpacked)
    shown = " or ".join([shown, *folders])
    places = [str(root / folder) for folder in card.get("folders", [])]
    where = " or ".join([", ".join(places[:-1]), places[-1]] if places[1:] else places)
    named = os.environ.get("RRD_DATA")
    if not root.is_dir():
        where += f" (there is no folder {root})"
    elif not named and root == DEFAULT_DIR:
        where += " (RRD_DATA is not set)"
    message, hint = f"{name} is not here: no {shown} in {where}", how_to_get(name, card)
    others = stand_ins(name, root)
    if others:
        # Never silently: other pixels, other numbers.
        verb = "is here, which only stands" if len(others) == 1 else "are here, which only stand"
        message += f"; {' and '.join(others)} {verb} in for it"
        hint += f"; a stand-in has to be named: --dataset {others[0]}"
    return UserError(message, hint=hint)


def how_to_get(name: str, card: Mapping[str, Any]) -> str:
    """One line: the command that fetches the files, or what to do where none does."""
    if "torchvision" not in card:
        return "put the files there, or name their folder with --data DIR"
    return f"rrd data fetch {name}   ({megabytes(card)}), or --data DIR"


def total_bytes(card: Mapping[str, Any]) -> int:
    """Bytes of all listed files, as fetched."""
    return sum(known.sums.size or 0 for known in known_files(card))


def megabytes(card: Mapping[str, Any]) -> str:
    """The size of all files in words: `12 MB`."""
    return f"{max(1, round(total_bytes(card) / 1e6))} MB"
