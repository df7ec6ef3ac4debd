"""An item in the paper's shape: heads of rows and columns, and which cell stands where."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from . import text
from .item import STRONG, Item, ItemCell, Key

Head = tuple[str, ...]
Place = tuple[Key, ...]
BUDGETS = (
    "eps",
    "train_eps",
    "step_size",
)  # keys in pixel units, printed as k/255 on colour images
SPARSE = 0.7  # a grid is parted where the parts need less than this share of its places


@dataclass(frozen=True)
class Grid:
    """`rows`, `columns`: heads in the printed order; `column_places`: the keys behind the heads of
    columns; `cells`: by (row, column) place."""

    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    rows: list[Head]
    columns: list[Head]
    column_places: list[Place]
    cells: dict[tuple[int, int], ItemCell]

    def tau(self, item: Item, column: int) -> float | None:
        """Kendall's tau of a column, None where there is none."""
        wanted = dict(zip(self.column_names, self.column_places[column]))
        for found in item.agreement.columns:
            if found.column == wanted:
                return found.tau
        return None

    def spans(self, level: int) -> list[tuple[int, int, str]]:
        """The heads of a level: first column, number of columns, text. Neighbours that agree down
        to this level share one; on the lowest level each column has its own."""
        lowest = level == len(self.column_names) - 1
        found: list[tuple[int, int, str]] = []
        for at, head in enumerate(self.columns):
            same = at > 0 and head[: level + 1] == self.columns[at - 1][: level + 1]
            if same and not lowest:
                first, count, name = found[-1]
                found[-1] = (first, count + 1, name)
            else:
                found.append((at, 1, head[level]))
        return found

    def blocks(self) -> list[Grid]:
        """The grid, or one for each first head of rows or of columns where these share few
        columns or rows, as data sets with budgets of their own do."""
        size = SPARSE * len(self.rows) * len(self.columns)
        for found in (self._by_rows(), self._by_columns()):
            if sum(len(one.rows) * len(one.columns) for one in found) <= size:
                return found
        return [self]

    def _by_rows(self) -> list[Grid]:
        firsts = dict.fromkeys(head[0] for head in self.rows) if self.row_names else {}
        return [
            self.part([at for at, head in enumerate(self.rows) if head[0] == first])
            for first in firsts
        ] or [self]

    def _by_columns(self) -> list[Grid]:
        """By the first of several heads; the rows of a part that begin alike stand together."""
        if len(self.column_names) < 2:
            return [self]
        found = []
        for first in dict.fromkeys(head[0] for head in self.columns):
            columns = [at for at, head in enumerate(self.columns) if head[0] == first]
            rows = sorted({row for row, column in self.cells if column in columns})
            order = list(dict.fromkeys(self.rows[row][:1] for row in rows))
            rows.sort(key=lambda row: order.index(self.rows[row][:1]))
            found.append(self.part(rows, columns))
        return found

    def part(self, rows: Sequence[int], columns: Sequence[int] | None = None) -> Grid:
        """Some rows, and some columns: by default those that the rows fill."""
        if columns is None:
            columns = sorted({column for row, column in self.cells if row in rows})
        return replace(
            self,
            rows=[self.rows[at] for at in rows],
            columns=[self.columns[at] for at in columns],
            column_places=[self.column_places[at] for at in columns],
            cells={
                (rows.index(row), columns.index(column)): cell
                for (row, column), cell in self.cells.items()
                if row in rows and column in columns
            },
        )


def grids(item: Item, arm: str = "") -> list[Grid]:
    """The tables of one arm, none where it has no cells; `grid` as `blocks` parts it."""
    found = grid(item, arm)
    return found.blocks() if found.cells else []


def grid(item: Item, arm: str = "") -> Grid:
    """The grid of one arm; strong cells stand at the end of their row or column.

    Rows and columns that hold nothing of ours and nothing printed are left out.
    """
    chosen = [cell for cell in item.cells if cell.arm == arm and _shown(cell)]
    headline = [cell for cell in chosen if not is_strong(cell)]
    strong = [cell for cell in chosen if is_strong(cell)] if not arm else []
    rows = _order([_keys(cell, item.rows) for cell in headline], item, item.row_order)
    columns = _order([_keys(cell, item.columns) for cell in headline], item, item.column_order)
    rows = _with_strong(rows, [_keys(cell, item.rows) for cell in strong])
    columns = _with_strong(columns, [_strong_column(cell, item) for cell in strong])
    place_of_row = {keys: at for at, keys in enumerate(rows)}
    place_of_column = {keys: at for at, keys in enumerate(columns)}
    cells: dict[tuple[int, int], ItemCell] = {}
    for cell in [*headline, *strong]:
        column = _strong_column(cell, item) if is_strong(cell) else _keys(cell, item.columns)
        cells.setdefault((place_of_row[_keys(cell, item.rows)], place_of_column[column]), cell)
    named = (*item.rows, *item.columns)
    return Grid(
        row_names=item.rows,
        column_names=item.columns,
        rows=[_head(keys, item.rows, named) for keys in rows],
        columns=[
            tuple(
                label if isinstance(key, str) else f"{name} {label}"
                for label, key, name in zip(_head(keys, item.columns, named), keys, item.columns)
            )
            for keys in columns
        ],
        column_places=columns,
        cells=cells,
    )


def is_strong(cell: ItemCell) -> bool:
    """A worst-case cell of `--strong`."""
    return STRONG in (cell.keys.get("attack"), cell.keys.get("setting"))


def _shown(cell: ItemCell) -> bool:
    return cell.ours is not None or cell.status not in ("left_out", "missing_data")


def _keys(cell: ItemCell, names: Sequence[str]) -> Place:
    return tuple(cell.keys.get(name, "") for name in names)


def _strong_column(cell: ItemCell, item: Item) -> Place:
    """The column of a strong cell; one of its own where the layout names no attack."""
    keys = _keys(cell, item.columns)
    named = {cell.keys.get(name) for name in (*item.rows, *item.columns)}
    if STRONG in named or not keys:
        return keys
    return (*keys[:-1], f"{STRONG} {item.columns[-1]} {key_label(item.columns[-1], keys[-1])}")


def _order(found: Iterable[Place], item: Item, printed: Sequence[str]) -> list[Place]:
    """Each place once: as printed where the item says so; else as the cells come, in a figure by
    number and as its axes name panels and curves."""
    places = list(dict.fromkeys(found))
    if item.kind == "figure" and not printed:
        named = [*item.axes.get("panels", ()), *item.axes.get("curves", ())]
        named += [key for place in places for key in place if isinstance(key, str)]
        rank = {name: float(at) for at, name in reversed(list(enumerate(named)))}
        return sorted(places, key=lambda keys: [rank[k] if isinstance(k, str) else k for k in keys])
    at_print = {name: at for at, name in enumerate(printed)}
    return sorted(places, key=lambda keys: at_print.get("|".join(map(str, keys)), len(at_print)))


def _with_strong(places: list[Place], strong: Iterable[Place]) -> list[Place]:
    """`places` and the strong ones by budget, each behind the last place that begins as it does."""
    result = list(places)
    for keys in sorted(dict.fromkeys(strong), key=lambda keys: _amount(keys[-1:])):
        if keys in result:
            continue
        alike = [at for at, known in enumerate(result) if known[:1] == keys[:1] and len(keys) > 1]
        result.insert(alike[-1] + 1 if alike else len(result), keys)
    return result


def _amount(last: Place) -> float:
    """The number in a budget such as `eps=0.1`; 0 where there is none."""
    found = re.search(r"[-+.\d]+(e[-+]?\d+)?$", str(last[0])) if last else None
    return float(found[0]) if found else 0.0


def _head(keys: Place, names: Sequence[str], layout: Sequence[str]) -> Head:
    clean = "" if "setting" in layout else "clean"  # the setting says it already
    shown = {("attack", "none"): clean, ("budget", "none"): ""}
    return tuple(
        shown.get((name, str(key)), key_label(name, key)) for key, name in zip(keys, names)
    )


def key_label(name: str, key: Key) -> str:
    """A key as heads write it: names as they are, numbers short, budgets such as 0.031373 as
    8/255."""
    if isinstance(key, str):
        return key
    if name in BUDGETS and abs(key - round(key, 3)) > 1e-9:
        halves = round(510 * key)
        if abs(510 * key - halves) < 1e-3:  # recipes keep six digits
            return f"{halves / 2:g}/255"
    return f"{key:g}"


def named(cell: ItemCell, names: Iterable[str] = ()) -> str:
    """The cell's keys, or some of them, in a few words."""
    chosen = [name for name in (names or cell.keys) if name in cell.keys]
    shown = {name: key_label(name, cell.keys[name]) for name in chosen}
    return ", ".join(
        label if isinstance(cell.keys[name], str) else f"{name} {label}"
        for name, label in shown.items()
        if label != "none"
    )


def value(number: float | None, unit: str) -> str:
    """A number as the item writes it: percent with one decimal, fractions with three."""
    return text.decimal(number, {"percent": 1, "count": 0, "milliseconds": 2}.get(unit, 3))


def signed(number: float, unit: str) -> str:
    """A difference with its sign; zero without one."""
    shown = value(abs(number), unit)
    if float(shown) == 0:
        return shown
    return ("+" if number > 0 else "-") + shown


def points(cell: ItemCell) -> float | None:
    """The difference on one scale for all units: points of a percentage or of a share, else
    percent of the printed value (infinite where that is 0). None without a difference."""
    difference = cell.difference
    if difference is None or cell.printed is None or cell.unit == "percent":
        return difference
    if cell.unit == "fraction":
        return 100 * difference
    if difference == 0:
        return 0.0
    return (
        100 * difference / abs(cell.printed)
        if cell.printed
        else math.copysign(math.inf, difference)
    )


def mark(cell: ItemCell) -> str:
    """` !` where a diagnostic speaks against our number."""
    return " !" if cell.ours is not None and cell.ours.flagged else ""


def parts(cell: ItemCell) -> tuple[str, str, str]:
    """Ours, printed, difference as text; empty where nothing is printed or measured."""
    ours = value(None if cell.ours is None else cell.ours.value, cell.unit)
    printed = "" if cell.printed is None else value(cell.printed, cell.unit)
    difference = "" if cell.difference is None else signed(cell.difference, cell.unit)
    return ours, printed, difference


def shown(cell: ItemCell | None, widths: tuple[int, int, int] = (0, 0, 0)) -> str:
    """A cell as `ours (printed, difference)`, each part at least `widths` wide; a dash for what
    is not measured, nothing where the paper has no such place."""
    if cell is None:
        return ""
    ours, printed, difference = (part.rjust(size) for part, size in zip(parts(cell), widths))
    if cell.printed is None:
        return ours + mark(cell)
    if cell.difference is None:
        return f"{ours} ({printed})"
    return f"{ours} ({printed}, {difference}){mark(cell)}"


def title(item: Item) -> str:
    """`table 2` of `aicr/table2`, `figure A10` of `afd/figure_a10`."""
    name = item.id.partition("/")[2]
    for kind in ("table", "figure"):
        if name.startswith(kind):
            return f"{kind} {name[len(kind) :].lstrip('_').upper()}"
    return name


def heading(item: Item) -> str:
    """The line above the table: which item, how much of it, and what a cell is."""
    sizes = [f"n = {text.count(item.n)}"] if item.n else []
    compared = any(cell.printed is not None for cell in item.cells)
    form = ["ours (printed, difference)"] if compared else []
    return " · ".join([item.id, item.preset, *sizes, *form])
