"""An item as a terminal table, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv as csv_
import io
import json
from collections.abc import Callable

from .export import escape_latex, escape_markdown
from .item import Item, ItemCell
from .item_grid import Grid, feet, grid, heading, shown

WIDTH = 100


def terminal(item: Item, width: int = WIDTH) -> str:
    """Every arm's table in at most `width` columns: columns that do not fit follow below."""
    parts = [heading(item)]
    for arm in item.arms:
        found = grid(item, arm)
        if not found.cells:
            continue
        if arm:
            parts.append(f"\nreading {arm}")
        for first, last in _slices(found, width):
            parts.append("\n" + "\n".join(_lines(found, first, last)))
    parts.append("")
    parts += [line for foot in feet(item) for line in _wrapped(foot, width)]
    parts += claims(item, width)
    return "\n".join(parts) + "\n"


def claims(item: Item, width: int = WIDTH) -> list[str]:
    """One line per claim: whether it holds for us and in print."""
    verdict = {True: "yes", False: "no", None: "-"}
    lines = []
    checked = [claim for claim in item.claims if claim.ours is not None]
    if checked:
        lines += ["", "claims (ours / printed)"]
    for claim in checked:
        head = f" {verdict[claim.ours]:>3} / {verdict[claim.printed]:<3}  "
        first, *rest = _wrapped(claim.text, width - len(head))
        lines.append(head + first)
        lines += [" " * len(head) + line for line in rest]
        if claim.ours is False:
            lines += [
                " " * len(head) + line for line in _wrapped(claim.sentence, width - len(head))
            ]
    return lines


def _wrapped(line: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(line, max(width, 20)) or [""]


def _head_widths(found: Grid) -> list[int]:
    return [
        max(len(name), *(len(head[at]) for head in found.rows))
        for at, name in enumerate(found.row_names)
    ]


def _column(found: Grid, at: int) -> list[str]:
    return [shown(found.cells.get((row, at))) for row in range(len(found.rows))]


def _column_width(found: Grid, at: int) -> int:
    return max(map(len, [*found.columns[at], *_column(found, at)]), default=1)


def _slices(found: Grid, width: int) -> list[tuple[int, int]]:
    """Ranges of columns that fit beside the row heads."""
    left = sum(size + 2 for size in _head_widths(found)) + 1
    slices, first, used = [], 0, left
    for at in range(len(found.columns)):
        need = _column_width(found, at) + 2
        if at > first and used + need > width + 2:
            slices.append((first, at))
            first, used = at, left
        used += need
    return [*slices, (first, len(found.columns))]


def _lines(found: Grid, first: int, last: int) -> list[str]:
    heads = _head_widths(found)
    columns = range(first, last)
    widths = {at: _column_width(found, at) for at in columns}
    cells = {at: _column(found, at) for at in columns}
    lines = []
    for level in range(len(found.column_names)):
        bottom = level == len(found.column_names) - 1
        names = found.row_names if bottom else ("",) * len(heads)
        left = "  ".join(name.ljust(size) for name, size in zip(names, heads))
        right = "  ".join(_over(found, at, first, level).ljust(widths[at]) for at in columns)
        lines.append(f" {left}  {right}".rstrip())
    for row, head in enumerate(found.rows):
        if not any(cells[at][row] for at in columns):
            continue
        shown_head = head if row == 0 else _unrepeated(head, found.rows[row - 1])
        left = "  ".join(name.ljust(size) for name, size in zip(shown_head, heads))
        right = "  ".join(cells[at][row].ljust(widths[at]) for at in columns)
        lines.append(f" {left}  {right}".rstrip())
    return lines


def _over(found: Grid, at: int, first: int, level: int) -> str:
    """A head above a column, once for neighbours that share it (not on the lowest level)."""
    name = found.columns[at][level]
    lowest = level == len(found.column_names) - 1
    same = at > first and found.columns[at][: level + 1] == found.columns[at - 1][: level + 1]
    return name if lowest or not same else ""


def _unrepeated(head: tuple[str, ...], above: tuple[str, ...]) -> list[str]:
    """The head without the leading parts that the row above has too."""
    result = list(head)
    for at in range(len(head) - 1):
        if head[: at + 1] == above[: at + 1]:
            result[at] = ""
    return result


def markdown(item: Item) -> str:
    """The tables as Markdown, feet as a list."""
    parts = [f"### {escape_markdown(heading(item))}\n"]
    for arm in item.arms:
        found = grid(item, arm)
        if not found.cells:
            continue
        if arm:
            parts.append(f"Reading `{arm}`:\n")
        heads = [*found.row_names, *(" ".join(filter(None, head)) for head in found.columns)]
        parts.append(_markdown_row(heads))
        parts.append("|" + " --- |" * len(found.row_names) + " ---: |" * len(found.columns))
        for row, head in enumerate(found.rows):
            cells = [shown(found.cells.get((row, at))) for at in range(len(found.columns))]
            parts.append(_markdown_row([*head, *cells]))
        parts.append("")
    parts += [f"- {escape_markdown(line)}" for line in feet(item)]
    verdict = {True: "holds", False: "does not hold", None: "not checked"}
    for claim in item.claims:
        if claim.ours is not None:
            line = (
                f"claim {claim.id}: {claim.text} – ours: {verdict[claim.ours]}, "
                f"printed: {verdict[claim.printed]}"
            )
            parts.append(f"- {escape_markdown(line)}")
    return "\n".join(parts) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


def latex(item: Item) -> str:
    """One booktabs `tabular` per arm; needs `\\usepackage{booktabs}`."""
    blocks = []
    for arm in item.arms:
        found = grid(item, arm)
        if not found.cells:
            continue
        count = len(found.row_names)
        lines = [
            f"% {heading(item)}{f', reading {arm}' if arm else ''}",
            r"\begin{tabular}{" + "l" * count + "r" * len(found.columns) + "}",
            r"\toprule",
        ]
        for level in range(len(found.column_names)):
            names = found.row_names if level == len(found.column_names) - 1 else ("",) * count
            heads = [*names, *(head[level] for head in found.columns)]
            lines.append(" & ".join(map(escape_latex, heads)) + r" \\")
        lines.append(r"\midrule")
        for row, head in enumerate(found.rows):
            cells = [shown(found.cells.get((row, at))) for at in range(len(found.columns))]
            lines.append(" & ".join(map(escape_latex, [*head, *cells])) + r" \\")
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")
    return "\n".join(blocks)


def csv(item: Item) -> str:
    """One row per cell: its keys, the printed number, ours with interval and n."""
    names = list(dict.fromkeys(name for cell in item.cells for name in cell.keys))
    columns = list(dict.fromkeys(["item", "preset", *names, *_row(item, item.cells[0])]))
    buffer = io.StringIO()
    writer = csv_.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for cell in item.cells:
        writer.writerow({**cell.keys, **_row(item, cell)})
    return buffer.getvalue()


def _row(item: Item, cell: ItemCell) -> dict[str, object]:
    ours = cell.ours
    difference = cell.difference
    return {
        "item": item.id,
        "preset": item.preset,
        "arm": cell.arm,
        "metric": cell.metric,
        "unit": cell.unit,
        "printed": cell.printed,
        "ours": None if ours is None else ours.value,
        "low": None if ours is None else ours.low,
        "high": None if ours is None else ours.high,
        "difference": None if difference is None else round(difference, 4),
        "n": None if ours is None else ours.n,
        "dataset_used": cell.dataset or cell.keys.get("dataset"),
        "status": cell.status,
        "reason": cell.reason,
        "diagnostics": "" if ours is None else " ".join(one.id for one in ours.flagged),
        "results": "" if ours is None else " ".join(ours.results),
    }


def as_json(item: Item) -> str:
    """The stored document."""
    return json.dumps(item.document(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Item], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": csv,
    "latex": latex,
    "json": as_json,
}
# What `rrd reproduce` writes beside an item's result.json.
FILES = {"table.md": "markdown", "table.csv": "csv", "table.tex": "latex"}
