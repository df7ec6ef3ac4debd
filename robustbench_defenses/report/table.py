"""Results as terminal tables: quiet, exact, no cell ever wrapped.

One subject under one budget gets the answer form (interval, passes, time); everything else gets
one row per subject and attack, with as many points of the curve as fit the width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..evaluation.schema import CurvePoint, Member, Result
from ..evaluation.store import StoredResult
from . import text
from .feet import feet
from .panels import Line, Panel, panels
from .seeds import over_seeds

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100
LABEL_WIDTH = 36


@dataclass(frozen=True)
class Column:
    """Cells under one head. `keep`: the column is never dropped; `bold`: rows shown in bold."""

    head: str
    cells: list[str]
    right: bool = True
    keep: bool = False
    bold: frozenset[int] = frozenset()

    @property
    def width(self) -> int:
        return max(map(len, [self.head, *self.cells]))


def results_table(stored: Sequence[StoredResult], width: int = WIDTH) -> RenderableType:
    """The table of one or many results, in at most `width` columns, notes underneath.

    Several attacks on one subject get a worst-case row (the per-example minimum). Accuracies are
    in percent; `!` marks a number that a diagnostic speaks against.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for panel in panels(stored):
        if parts:
            parts.append("")
        answer = len(panel.subjects) == 1 and all(_budgets(line) <= 1 for line in panel.lines)
        columns = answer_columns(panel) if answer else comparison_columns(panel, width)
        columns = _fitting(columns, width)
        parts += [_render(columns), *_feet(panel, answer)]
        if not answer and (without := _left_out(panel, columns)):
            parts.append(Text(f" {without}", style="dim"))
    return Group(*parts)


def as_text(stored: Sequence[StoredResult], width: int = WIDTH) -> str:
    """`results_table` as plain text."""
    import io

    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(results_table(stored, width))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def comparison_columns(panel: Panel, width: int = WIDTH) -> list[Column]:
    """Columns subject, attack, clean, points of the curve, AUC, and the deciding attack.

    One subject's ensembles have their members indented below them; trainings that differ in their
    seed alone have their mean and its interval in a row at the end.
    """
    lines, seeds = panel.lines, over_seeds(panel)
    members = any(_members(panel, line) for line in lines)
    several = members or len(lines) > len(panel.subjects)
    results = [line.result for line in lines]
    flagged = any(result.flagged for result in results)
    named = all(result.subject.defense for result in results)
    labels = [text.shorten(line.subject, LABEL_WIDTH) for line in lines]
    first = [label if at == 0 or labels[at - 1] != label else "" for at, label in enumerate(labels)]
    start = [Column("defense" if named else "subject", first, right=False, keep=True)]
    start = [_below(start[0], [text.shorten(group.label, LABEL_WIDTH) for group in seeds])]
    if several:
        names = _attacks([*lines, *(group.lines[0] for group in seeds)])
        start.append(Column("attack", names, right=False, keep=True))
    clean = Column("clean", [text.percent(r.clean_accuracy) for r in results], keep=True)
    start.append(_below(clean, [g.spread(lambda line: line.result.clean_accuracy) for g in seeds]))
    end = _distance_columns(panel)
    if any(result.auc is not None for result in results):
        areas = Column("AUC", [_marked(text.decimal(r.auc), r, flagged) for r in results])
        means = [g.spread(lambda line: line.result.auc, text.decimal) for g in seeds]
        end.append(_below(areas, [_marked(mean, None, flagged) for mean in means]))
    elif flagged:
        end.append(Column("", [_marked("", r, flagged) for r in results]))
    points = _point_columns(panel, several)
    scores = _score_columns(lines)
    if _width([*start, *end, *scores, *points[-3:]]) > width:
        scores = []  # three points tell more
    end += scores
    if not several:
        end.append(Column("worst case", _attacks(lines), right=False))
    if len({result.n for result in results}) > 1:
        end.append(Column("n", [text.count(result.n) for result in results]))
    end = [_below(column, [""] * (len(lines) + len(seeds) - len(column.cells))) for column in end]
    if members:
        start = [
            _spread(panel, column, _name if column.head == "attack" else lambda *_: "")
            for column in start
        ]
        end = [_spread(panel, column, lambda *_: "") for column in end]
    return [*start, *_thinned(points, [*start, *end], width), *end]


def _below(column: Column, cells: list[str]) -> Column:
    return replace(column, cells=[*column.cells, *cells])


def _members(panel: Panel, line: Line) -> list[Member]:
    """The members to show below a line: of ensembles, where one subject has the table alone."""
    alone = len(panel.subjects) == 1 and not line.worst
    return (line.result.members or []) if alone else []


def _name(line: Line, member: Member) -> str:
    return f"  {member.name}"


def _spread(panel: Panel, column: Column, cell: Callable[[Line, Member], str]) -> Column:
    """`column` with a cell for each member below its line's own."""
    cells: list[str] = []
    bold = set()
    for at, (line, own) in enumerate(zip(panel.lines, column.cells)):
        if at in column.bold:
            bold.add(len(cells))
        cells += [own, *(cell(line, member) for member in _members(panel, line))]
    return replace(column, cells=cells, bold=frozenset(bold))


def answer_columns(panel: Panel) -> list[Column]:
    """Columns attack, eps, robust accuracy with its interval, n, passes per image, time."""
    rows: list[tuple[str, ...]] = []
    flagged = any(line.result.flagged for line in panel.lines)
    scored = any(line.optimality is not None for line in panel.lines)
    for line in panel.lines:
        result = line.result
        # Eps 0 is a budget too: who asks for it alone is told the clean accuracy.
        point = result.curve[-1] if result.curve else None
        shown = result.unbounded_accuracy if point is None else point.robust_accuracy
        accuracy = text.ABSENT if shown is None else f"{text.percent(shown)} %"
        interval = "" if point is None else _interval(point)
        n, cost = max(result.n, 1), result.cost
        passes = f"{cost.forward_passes / n:,.0f} f {cost.backward_passes / n:,.0f} b"
        rows.append(
            (
                line.attack,
                "any" if point is None else text.eps_labels([point.eps])[0],
                _marked(accuracy, result, flagged),
                interval,
                text.count(result.n),
                text.decimal(line.optimality, 3),
                passes,
                text.duration(cost.seconds),
            )
        )
        if point is not None:
            at = result.curve.index(point)
            for member in _members(panel, line):
                left = f"{text.percent(member.robust_accuracy[at])} %"
                took = text.duration(member.seconds)
                rows.append((f"  {member.name}", "", _marked(left, None, flagged), *[""] * 4, took))
    heads = ("attack", "eps", "robust accuracy", "", "n", "optimality", "passes/image", "time")
    return [
        Column(head, list(cells), right=at not in (0, 3), keep=at < 3)
        for at, (head, cells) in enumerate(zip(heads, zip(*rows)))
        if scored or head != "optimality"
    ]


def _budgets(line: Line) -> int:
    return sum(point.eps > 0 for point in line.result.curve)


def _attacks(lines: list[Line]) -> list[str]:
    return [text.shorten(line.attack, LABEL_WIDTH) for line in lines]


def _marked(cell: str, result: Result | None, flagged: bool) -> str:
    """`cell` with the mark where a diagnostic fired; all cells equally wide where one did."""
    if not flagged:
        return cell
    return f"{cell} !" if result is not None and result.flagged else f"{cell}  "


def _interval(point: CurvePoint) -> str:
    return f"[{text.percent(point.low)}, {text.percent(point.high)}]"


def _point_columns(panel: Panel, several: bool) -> list[Column]:
    grid, seeds = panel.grid(), over_seeds(panel)
    labels = text.eps_labels(grid)
    columns = []
    for eps, label in zip(grid, labels):
        points = [_at(line.result, eps) for line in panel.lines]
        cells = [text.percent(None if p is None else p.robust_accuracy) for p in points]
        worst = {at for at, line in enumerate(panel.lines) if line.worst}
        column = Column(label, cells, bold=frozenset(worst if several else _clear_best(points)))
        column = _spread(panel, column, functools.partial(_left, eps))
        columns.append(_below(column, [g.spread(functools.partial(kept, eps)) for g in seeds]))
    return columns


def kept(eps: float, line: Line) -> float | None:
    """Robust accuracy of a line at `eps`."""
    point = _at(line.result, eps)
    return None if point is None else point.robust_accuracy


def _left(eps: float, line: Line, member: Member) -> str:
    """What a member left at `eps`."""
    found = [
        accuracy
        for point, accuracy in zip(line.result.curve, member.robust_accuracy)
        if point.eps == eps
    ]
    return text.percent(found[0] if found else None)


def _at(result: Result, eps: float) -> CurvePoint | None:
    return next((point for point in result.curve if point.eps == eps), None)


def _clear_best(points: list[CurvePoint | None]) -> set[int]:
    """The row whose interval lies above all others, if there is one."""
    present = [(at, point) for at, point in enumerate(points) if point is not None]
    if len(present) < 2:
        return set()
    at, best = max(present, key=lambda row: row[1].robust_accuracy)
    return {at} if all(p.high < best.low for other, p in present if other != at) else set()


def _distance_columns(panel: Panel) -> list[Column]:
    """For attacks that search without a bound: what stays at any norm, and the median distance."""
    results = [line.result for line in panel.lines]
    if all(result.unbounded_accuracy is None for result in results):
        return []
    medians = [
        r.distances.median if r.distances and r.unbounded_accuracy is not None else None
        for r in results
    ]
    return [
        Column("unbounded", [text.percent(result.unbounded_accuracy) for result in results]),
        Column("median", [text.decimal(median, 3) for median in medians]),
    ]


def _score_columns(lines: list[Line]) -> list[Column]:
    """Where several minimum-norm attacks ran: how near each comes to the best of all of them."""
    if all(line.optimality is None for line in lines):
        return []
    return [Column("optimality", [text.decimal(line.optimality, 3) for line in lines])]


def _width(columns: Sequence[Column]) -> int:
    """Width of the table: one blank before it, two between columns."""
    return sum(column.width + 2 for column in columns) - 1


def _thinned(points: list[Column], others: list[Column], width: int) -> list[Column]:
    """As many points as fit beside `others`, evenly spread, the largest eps always among them."""
    for number in range(len(points), 0, -1):
        step = len(points) / number
        chosen = [points[round((at + 1) * step) - 1] for at in range(number)]
        chosen[0] = _with_head(chosen[0], f"eps {chosen[0].head}")
        if _width([*others, *chosen]) <= width or number == 1:
            return chosen
    return []


def _left_out(panel: Panel, shown: list[Column]) -> str | None:
    """Which points of the curve found no room."""
    there = {column.head.removeprefix("eps ") for column in shown}
    points = [column.head for column in _point_columns(panel, False)]
    missing = [head for head in points if head not in there]
    return f"no room for eps {', '.join(missing)} (--format html has them)" if missing else None


def _with_head(column: Column, head: str) -> Column:
    return replace(column, head=head)


def _fitting(columns: list[Column], width: int) -> list[Column]:
    """`columns` without those on the right that a narrow terminal has no room for."""
    kept = list(columns)
    while _width(kept) > width:
        loose = [column for column in kept if not column.keep]
        if not loose:
            break
        kept.remove(loose[-1])
    return kept


def _render(columns: list[Column]) -> RenderableType:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(
            Text(column.head), justify="right" if column.right else "left", no_wrap=True
        )
    for at in range(len(columns[0].cells)):
        row = []
        for column in columns:
            cell = Text(column.cells[at], style="bold" if at in column.bold else "")
            cell.highlight_regex(r"!$", "bold yellow")
            row.append(cell)
        table.add_row(*row)
    return Padding(table, (0, 0, 0, 1), expand=False)


def _feet(panel: Panel, answer: bool) -> list[RenderableType]:
    """The lines under a table: what the numbers are, marks, what could not be computed."""
    from rich.text import Text

    return [Text(f" {line}", style="dim") for line in feet(panel, answer)]
