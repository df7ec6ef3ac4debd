"""Which stored items a command speaks of."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import UserError, did_you_mean
from . import item as items
from .item import Item


def select(name: str, preset: str | None, results_dir: Path) -> list[Item]:
    """The stored items of `paper/item`, or of a whole paper, at one preset.

    Without a preset: the one of the newest of them. What is not stored is a `UserError` that says
    what is, or which command makes it.
    """
    root = results_dir / "items"
    stored = {
        path: (path.parents[1].relative_to(root).as_posix(), path.parent.name)
        for path in items.stored(results_dir)
    }
    asked = name.strip("/")
    mine = {
        path: (item, at)
        for path, (item, at) in stored.items()
        if asked in (item, item.partition("/")[0])
    }
    if not mine:
        known = sorted({one for item, _ in stored.values() for one in (item, item.split("/")[0])})
        hint = f"rrd reproduce {asked} makes it; --results DIR looks elsewhere"
        if known:
            hint = did_you_mean(asked, known, f"{', '.join(known)}; rrd reproduce makes more")
        raise UserError(f"no item {name!r} in {root}", hint)
    presets = sorted({at for _, at in mine.values()})
    if preset is None:
        newest = max(mine, key=lambda path: (path.stat().st_mtime_ns, str(path)))
        preset = mine[newest][1]
    if preset not in presets:
        raise UserError(
            f"{asked} is not stored at preset {preset!r}",
            hint=did_you_mean(preset, presets, ", ".join(presets)),
        )
    return [items.load(path) for path, (_, at) in mine.items() if at == preset]
