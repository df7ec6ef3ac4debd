"""An item in the paper's shape: heads of rows and columns, and which cell stands where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import text
from .item import STRONG, Item, ItemCell, Key

Head = tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """`rows`, `columns`: heads in the printed order; `cells`: by (row, column) place."""

    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    rows: list[Head]
    columns: list[Head]
    cells: dict[tuple[int, int], ItemCell]


def grid(item: Item, arm: str = "") -> Grid:
    """The grid of one arm; strong cells stand at the end of their row or column.

    Rows and columns that hold nothing of ours and nothing printed are left out.
    """
    chosen = [cell for cell in item.cells if cell.arm == arm and _shown(cell)]
    headline = [cell for cell in chosen if not is_strong(cell)]
    strong = [cell for cell in chosen if is_strong(cell)] if not arm else []
    rows = _order([_keys(cell, item.rows) for cell in headline], item.row_order)
    columns = _order([_keys(cell, item.columns) for cell in headline], item.column_order)
    rows = _with_strong(rows, [_keys(cell, item.rows) for cell in strong])
    columns = _with_strong(columns, [_keys(cell, item.columns) for cell in strong])
    place_of_row = {keys: at for at, keys in enumerate(rows)}
    place_of_column = {keys: at for at, keys in enumerate(columns)}
    return Grid(
        row_names=item.rows,
        column_names=item.columns,
        rows=[_head(keys, item.rows) for keys in rows],
        columns=[_head(keys, item.columns) for keys in columns],
        cells={
            (
                place_of_row[_keys(cell, item.rows)],
                place_of_column[_keys(cell, item.columns)],
            ): cell
            for cell in [*headline, *strong]
        },
    )


def is_strong(cell: ItemCell) -> bool:
    """A worst-case cell of `--strong`."""
    return STRONG in (cell.keys.get("attack"), cell.keys.get("setting"))


def _shown(cell: ItemCell) -> bool:
    return cell.ours is not None or cell.status not in ("left_out", "missing_data")


def _keys(cell: ItemCell, names: Sequence[str]) -> tuple[Key, ...]:
    return tuple(cell.keys.get(name, "") for name in names)


def _order(found: Iterable[tuple[Key, ...]], printed: Sequence[str]) -> list[tuple[Key, ...]]:
    """Each place once: as printed where the item says so, else as the cells come."""
    places = list(dict.fromkeys(found))
    rank = {name: at for at, name in enumerate(printed)}
    return sorted(places, key=lambda keys: rank.get("|".join(map(str, keys)), len(rank)))


def _with_strong(
    places: list[tuple[Key, ...]], strong: Iterable[tuple[Key, ...]]
) -> list[tuple[Key, ...]]:
    """`places` and the strong ones, each behind the last place that begins as it does."""
    result = list(places)
    for keys in dict.fromkeys(strong):
        if keys in result:
            continue
        alike = [at for at, known in enumerate(result) if known[:1] == keys[:1] and len(keys) > 1]
        result.insert(alike[-1] + 1 if alike else len(result), keys)
    return result


def _head(keys: tuple[Key, ...], names: Sequence[str]) -> Head:
    clean = "" if "setting" in names else "clean"  # the setting says it already
    shown = {("attack", "none"): clean, ("budget", "none"): ""}
    return tuple(shown.get((name, str(key)), _named(key)) for key, name in zip(keys, names))


def _named(key: Key) -> str:
    return str(key) if isinstance(key, str) else f"{key:g}"


def value(number: float | None, unit: str) -> str:
    """A number as the item writes it: percent with one decimal, fractions with three."""
    return text.decimal(number, {"percent": 1, "count": 0}.get(unit, 3))


def signed(number: float, unit: str) -> str:
    """A difference with its sign; zero without one."""
    shown = value(abs(number), unit)
    if float(shown) == 0:
        return shown
    return ("+" if number > 0 else "-") + shown


def mark(cell: ItemCell) -> str:
    """` !` where a diagnostic speaks against our number."""
    return " !" if cell.ours is not None and cell.ours.flagged else ""


def shown(cell: ItemCell | None) -> str:
    """A cell as `ours (printed, difference)`; a dash for what is not there."""
    if cell is None:
        return ""
    ours = value(None if cell.ours is None else cell.ours.value, cell.unit)
    if cell.printed is None:
        return ours + mark(cell)
    printed = value(cell.printed, cell.unit)
    if cell.difference is None:
        return f"{ours} ({printed})"
    return f"{ours} ({printed}, {signed(cell.difference, cell.unit)}){mark(cell)}"


def heading(item: Item) -> str:
    """The line above the table."""
    parts = [f"{item.id}, {item.title}", item.preset]
    if item.n:
        parts.append(f"n = {text.count(item.n)}")
    return " · ".join([*parts, "ours (printed, difference)"])


def feet(item: Item) -> list[str]:
    """The lines under the table: agreement, marks, what stands in, what is missing."""
    found = item.agreement
    lines = []
    if found.measured:
        taus = [column.tau for column in found.columns if column.tau is not None]
        order = ""
        if taus:
            kept = sum(tau == 1 for tau in taus)
            order = (
                f" · printed order kept in {kept} of {len(taus)} columns "
                f"(Kendall tau {sum(taus) / len(taus):.2f} on average)"
            )
        lines.append(
            f"{found.measured} of {found.printed} printed cells measured · "
            f"{found.within_two} within 2 points{order}"
        )
    sentences: dict[str, list[str]] = {}
    for cell in item.headline():
        for diagnostic in [] if cell.ours is None else cell.ours.flagged:
            who = str(cell.keys.get("defense", ""))
            named = sentences.setdefault(diagnostic.name, [])
            if who not in named:
                named.append(who)
    for name, concerned in sentences.items():
        lines.append(f"! {name} ({', '.join(filter(None, concerned))})")
    if item.strong_n:
        lines.append(
            "strong: worst case per image over all of the paper's attacks and AutoAttack, "
            f"n = {item.strong_n}"
        )
    for asked, used in item.stand_ins.items():
        lines.append(f"{used} stands in for {asked}: not the data that the paper used")
    failed = [cell for cell in item.cells if cell.status == "failed" and cell.ours is None]
    if failed:
        lines.append(f"{len(failed)} cells failed: {failed[0].reason}")
    missing = [cell for cell in item.headline() if cell.status == "missing_data" and not cell.ours]
    if missing:
        lines.append(f"{len(missing)} cells are not here: {missing[0].reason}")
    return lines
