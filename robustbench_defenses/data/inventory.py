"""What is here of every registered data set. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import registry
from ..core.errors import UserError
from . import digest, locate


@dataclass(frozen=True)
class Standing:
    """How a data set stands: `state` is embedded, here, missing or altered.

    `folders`: where its files are; `problems`: one sentence for each file that is not what it
    should be; `size`: bytes here (missing: bytes to fetch).
    """

    name: str
    state: str
    folders: tuple[str, ...]
    problems: tuple[str, ...]
    size: int
    train: int | None
    test: int | None
    licence: str
    fetchable: bool


def chosen(names: Sequence[str]) -> list[registry.Entry]:
    """The registered data sets of these names (none: all); other kinds of names: `UserError`."""
    if not names:
        return [e for e in registry.entries("dataset") if "prefix" not in e.card]
    result: list[registry.Entry] = []
    for name in names:
        entry = registry.find("dataset", name)
        if ":" in name or "prefix" in entry.card:
            raise UserError(
                f"{name} is not a registered data set: nobody published its digests",
                hint="it is read and checked whenever it is used; registered: rrd list datasets",
            )
        if entry not in result:
            result.append(entry)
    return result


def standing(entry: registry.Entry, root: Path, *, fresh: bool = False) -> Standing:
    """Look for the files of a data set and hold them against their checksums.

    `fresh`: read every byte again, whatever is remembered of earlier checks.
    """
    found = locate.find_files(entry.card, root)
    problems: list[str] = []
    altered = False
    for file in found:
        if file.path is None:
            problems.append(f"{file.known.name} is missing")
            continue
        try:
            digest.check_file(file, fresh=fresh)
        except UserError as error:
            altered = True
            problems.append(error.message)
    here = [file.path for file in found if file.path is not None]
    state = "altered" if altered else "missing" if problems else "here" if found else "embedded"
    if problems and not here:
        problems = [locate.missing(entry.name, entry.card, found[0].known, root).message]
    card: Mapping[str, Any] = entry.card
    return Standing(
        name=entry.name,
        state=state,
        folders=tuple(dict.fromkeys(str(path.parent) for path in here)),
        problems=tuple(problems),
        size=sum(path.stat().st_size for path in here) if here else locate.total_bytes(card),
        train=card.get("train"),
        test=card.get("test"),
        licence=str(card.get("licence", "")),
        fetchable="torchvision" in card,
    )


def decoded(entry: registry.Entry, root: Path) -> list[str]:
    """Read both splits and hold counts and digests against the card: one sentence per fault."""
    from .source import SPLITS, load

    problems = []
    for split in SPLITS:
        try:
            count = len(load(entry.name, split, root))
        except UserError as error:
            problems.append(error.message)
            continue
        expected = entry.card.get(split)
        if expected is not None and count != expected:
            problems.append(f"{entry.name} {split} has {count:,} images, not {expected:,}")
    return problems
