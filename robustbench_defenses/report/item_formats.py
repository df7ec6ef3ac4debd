"""An item as a terminal table, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv as csv_
import io
import json
import textwrap
from collections.abc import Callable, Sequence

from .export import escape_latex, escape_markdown
from .item import Item, ItemCell, ItemClaim
from .item_feet import feet
from .item_grid import Grid, grids, heading, parts, shown

WIDTH = 100
VERDICT = {True: "yes", False: "no", None: "-"}


def terminal(item: Item, width: int = WIDTH) -> str:
    """Every arm's table in at most `width` columns: columns that do not fit follow below."""
    lines = [*wrapped(heading(item), width), *wrapped(item.title, width)]
    for arm in item.arms:
        tables = grids(item, arm)
        if arm and tables:
            lines += ["", *wrapped(reading(item, arm), width)]
        for found in tables:
            for part in _slices(found, width):
                lines += ["", *_lines(part)]
    lines.append("")
    for foot in feet(item):
        lines += wrapped(foot, width)
    lines += claims(item, width)
    return "\n".join(lines) + "\n"


def reading(item: Item, arm: str) -> str:
    """What an arm is, in a line."""
    said = item.readings.get(arm, "")
    return f"reading {arm}: {said}" if said else f"reading {arm}"


def claims(item: Item, width: int = WIDTH) -> list[str]:
    """Each checked claim with whether it holds for us and in print, and what speaks against it."""
    checked = [claim for claim in item.claims if claim.sentence]
    lines = ["", "claims (ours / printed)"] if checked else []
    for claim in checked:
        head = f" {VERDICT[claim.ours]:>3} / {VERDICT[claim.printed]:<3}  "
        said = wrapped(claim.text, width - len(head))
        if not claim.ours:
            said += wrapped(claim.sentence, width - len(head))
        lines += [(" " * len(head) if at else head) + line for at, line in enumerate(said)]
    return lines


def wrapped(line: str, width: int) -> list[str]:
    """`line` in lines of at most `width` characters; words are never cut."""
    return textwrap.wrap(line, max(width, 20), break_long_words=False, break_on_hyphens=False) or [
        ""
    ]


def _head_widths(found: Grid) -> list[int]:
    return [
        max(len(name), *(len(head[at]) for head in found.rows))
        for at, name in enumerate(found.row_names)
    ]


def _column(found: Grid, at: int) -> list[str]:
    """The cells of a column, decimal points under one another."""
    cells = [found.cells.get((row, at)) for row in range(len(found.rows))]
    written = [parts(cell) for cell in cells if cell is not None]
    ours, printed, difference = (max(map(len, part)) for part in zip(*written))
    return [shown(cell, (ours, printed, difference)) for cell in cells]


def _column_width(found: Grid, at: int) -> int:
    return max(map(len, [found.columns[at][-1], *_column(found, at)]))


def _slices(found: Grid, width: int) -> list[Grid]:
    """Parts of the grid whose columns fit beside the row heads, about as many in each; rows that
    a part leaves empty are left out of it."""
    left = sum(size + 2 for size in _head_widths(found)) + 1
    needs = [_column_width(found, at) + 2 for at in range(len(found.columns))]
    fewest = _ranges(needs, width + 2 - left, len(needs))
    even = _ranges(needs, width + 2 - left, -(-len(needs) // len(fewest)))
    return [
        found.part(sorted({row for row, column in found.cells if column in columns}), columns)
        for columns in (even if len(even) == len(fewest) else fewest)
    ]


def _ranges(needs: Sequence[int], room: int, most: int) -> list[list[int]]:
    """Neighbouring columns together, at most `most`, as far as their `needs` have `room`."""
    ranges: list[list[int]] = [[]]
    for at, need in enumerate(needs):
        used = sum(needs[other] for other in ranges[-1])
        if ranges[-1] and (used + need > room or len(ranges[-1]) == most):
            ranges.append([])
        ranges[-1].append(at)
    return ranges


def _lines(found: Grid) -> list[str]:
    heads = _head_widths(found)
    columns = [_column(found, at) for at in range(len(found.columns))]
    widths = _widths(found)
    lines = []
    for level in range(len(found.column_names)):
        bottom = level == len(found.column_names) - 1
        names = list(found.row_names) if bottom else [""] * len(heads)
        over = [""] * len(columns)
        for at, _, name in found.spans(level):
            over[at] = name
        lines.append(_line(names, heads, over, widths))
    for row, head in enumerate(found.rows):
        shown_head = _unrepeated(head, found.rows[row - 1]) if row else list(head)
        lines.append(_line(shown_head, heads, [cells[row] for cells in columns], widths))
    return [line for line in lines if line]


def _line(
    heads: Sequence[str], sizes: Sequence[int], cells: Sequence[str], widths: Sequence[int]
) -> str:
    left = "".join(f"{name:<{size}}  " for name, size in zip(heads, sizes))
    right = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths))
    return f" {left}{right}".rstrip()


def _widths(found: Grid) -> list[int]:
    """Widths of the columns; the last one under a head gives the head the room it needs."""
    widths = [_column_width(found, at) for at in range(len(found.columns))]
    for level in range(len(found.column_names) - 1):
        for first, count, name in found.spans(level):
            room = sum(widths[first : first + count]) + 2 * (count - 1)
            widths[first + count - 1] += max(len(name) - room, 0)
    return widths


def _unrepeated(head: tuple[str, ...], above: tuple[str, ...]) -> list[str]:
    """The head without the leading parts that the row above has too."""
    result = list(head)
    for at in range(len(head) - 1):
        if head[: at + 1] == above[: at + 1]:
            result[at] = ""
    return result


def markdown(item: Item) -> str:
    """The tables as Markdown, feet as a list."""
    lines = [f"### {escape_markdown(heading(item))}", "", escape_markdown(item.title), ""]
    for arm in item.arms:
        tables = markdown_tables(item, arm)
        if arm and tables:
            lines += [escape_markdown(reading(item, arm)), ""]
        lines += tables
    lines += [f"- {escape_markdown(line)}" for line in feet(item)]
    lines += [f"- {escape_markdown(_claim(one))}" for one in item.claims if one.sentence]
    return "\n".join(lines) + "\n"


def markdown_tables(item: Item, arm: str = "") -> list[str]:
    """The lines of an arm's tables, a blank one behind each."""
    return [line for found in grids(item, arm) for line in (*_markdown_table(found), "")]


def _markdown_table(found: Grid) -> list[str]:
    heads = [*found.row_names, *(" ".join(filter(None, head)) for head in found.columns)]
    rule = "|" + " --- |" * len(found.row_names) + " ---: |" * len(found.columns)
    lines = [_markdown_row(heads), rule]
    for row, head in enumerate(found.rows):
        cells = [shown(found.cells.get((row, at))) for at in range(len(found.columns))]
        lines.append(_markdown_row([*head, *cells]))
    return lines


def _claim(claim: ItemClaim) -> str:
    verdict = {True: "holds", False: "does not hold", None: "not decided"}
    against = f" ({claim.sentence.removeprefix('does not hold: ')})" if not claim.ours else ""
    return (
        f"claim {claim.id}: {claim.text} – ours: {verdict[claim.ours]}{against}, "
        f"printed: {verdict[claim.printed]}"
    )


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


def latex(item: Item) -> str:
    """One booktabs `tabular` per table of each arm; needs `\\usepackage{booktabs}`."""
    blocks = []
    for arm in item.arms:
        for found in grids(item, arm):
            lines = [f"% {heading(item)}", f"% {item.title}"]
            lines += [f"% {reading(item, arm)}"] if arm else []
            blocks.append("\n".join([*lines, *_latex_table(found)]) + "\n")
    return "\n".join(blocks)


def _latex_table(found: Grid) -> list[str]:
    count = len(found.row_names)
    lines = [r"\begin{tabular}{" + "l" * count + "r" * len(found.columns) + "}", r"\toprule"]
    for level in range(len(found.column_names)):
        lines += _latex_heads(found, level)
    lines.append(r"\midrule")
    for row, head in enumerate(found.rows):
        above = found.rows[row - 1] if row else None
        if above is not None and count > 1 and head[0] != above[0]:
            lines.append(r"\addlinespace")
        left = head if above is None else _unrepeated(head, above)
        cells = [shown(found.cells.get((row, at))) for at in range(len(found.columns))]
        lines.append(" & ".join(map(escape_latex, [*left, *cells])) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _latex_heads(found: Grid, level: int) -> list[str]:
    """One line of heads, and the rules under those that span several columns."""
    count = len(found.row_names)
    if level == len(found.column_names) - 1:
        heads = [*found.row_names, *(head[level] for head in found.columns)]
        return [" & ".join(map(escape_latex, heads)) + r" \\"]
    heads, rules = [""] * count, []
    for at, size, head in found.spans(level):
        name = escape_latex(head)
        heads.append(rf"\multicolumn{{{size}}}{{c}}{{{name}}}" if size > 1 else name)
        if size > 1 and name:
            rules.append(rf"\cmidrule(lr){{{count + at + 1}-{count + at + size}}}")
    return [" & ".join(heads) + r" \\", *([" ".join(rules)] if rules else [])]


def csv(item: Item) -> str:
    """One row per cell: its keys, the printed number, ours with interval and n."""
    return csv_of([item])


def csv_of(found: Sequence[Item]) -> str:
    """The cells of several items under one head."""
    rows = [
        {"item": item.id, "preset": item.preset, **cell.keys, **_row(item, cell)}
        for item in found
        for cell in item.cells
    ]
    keys = dict.fromkeys(name for item in found for cell in item.cells for name in cell.keys)
    rest = dict.fromkeys(name for row in rows for name in row)
    buffer = io.StringIO()
    writer = csv_.DictWriter(
        buffer, list({"item": None, "preset": None} | keys | rest), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _row(item: Item, cell: ItemCell) -> dict[str, object]:
    ours = cell.ours
    difference = cell.difference
    own = {
        "arm": cell.arm,
        "metric": cell.metric,
        "unit": cell.unit,
        "printed": cell.printed,
        "ours": None if ours is None else ours.value,
        "low": None if ours is None else ours.low,
        "high": None if ours is None else ours.high,
        "difference": None if difference is None else round(difference, 4),
        "n": None if ours is None else ours.n,
        "seeds": "" if ours is None else " ".join(map(str, ours.seeds)),
        "dataset_used": cell.dataset or cell.keys.get("dataset"),
        "status": cell.status,
        "reason": cell.reason,
        "cited": "yes" if cell.cited else "",
        "flag": cell.flag,
        "note": cell.note,
        "diagnostics": "" if ours is None else " ".join(one.id for one in ours.flagged),
        "results": "" if ours is None else " ".join(ours.results),
    }
    # A key of the layout may be called as a column is (`metric`); it says the same.
    return {name: value for name, value in own.items() if name not in cell.keys}


def as_json(item: Item) -> str:
    """The stored document."""
    return json.dumps(item.document(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def all_as_json(found: Sequence[Item]) -> str:
    """Several items as one document `{"items": [...]}`."""
    document = {"items": [item.document() for item in found]}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Item], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": csv,
    "latex": latex,
    "json": as_json,
}
# What `rrd reproduce` writes beside an item's result.json.
FILES = {"table.md": "markdown", "table.csv": "csv", "table.tex": "latex"}
