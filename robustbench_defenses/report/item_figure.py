"""The curves of a figure item: our values as lines with bands, printed ones as hollow marks."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import UserError
from ..core.files import write_bytes, write_text
from . import curve, text
from .item import Item, ItemCell, Key
from .item_feet import stand_ins
from .item_grid import is_strong, key_label, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.2  # inches of one panel
NOTE_WIDTH, NOTE_STEP = 68, 0.15  # characters of a note's line, inches between two
WIDE = 32.0  # a range of this factor or more gets a logarithmic axis
TRACK = "point"  # key that numbers the places of a track; no curve of its own


class Point(NamedTuple):
    """One place of a curve; NaN where there is nothing. `x_mark`, `mark`: what is printed."""

    x: float
    y: float
    low: float
    high: float
    x_mark: float
    mark: float


@dataclass(frozen=True)
class Series:
    """One curve; `shade` numbers its colour, None for the worst case of `--strong`."""

    name: str
    points: list[Point]
    shade: int | None
    flagged: bool

    def ours(self) -> list[Point]:
        """The points with a value of ours, along x."""
        return [point for point in self.points if math.isfinite(point.x + point.y)]

    def marks(self) -> list[Point]:
        """The points with a printed value."""
        return [point for point in self.points if math.isfinite(point.x_mark + point.mark)]


@dataclass(frozen=True)
class CurvePanel:
    """Curves over the same x in the same unit. `pairs`: x is a measured value too."""

    name: str
    x_key: str
    x_label: str
    y_label: str
    unit: str
    series: list[Series]
    pairs: bool = False

    def grid(self) -> list[float]:
        """Every x, rising."""
        every = {x for one in self.series for p in one.points for x in (p.x, p.x_mark)}
        return sorted(x for x in every if math.isfinite(x))


def panels(item: Item, arm: str = "") -> list[CurvePanel]:
    """The panels of one arm of a figure; none for tables and for figures without an x axis."""
    x = item.axes.get("x")
    if item.kind != "figure" or not isinstance(x, Mapping):
        return []
    name = str(x["name"])
    pairs = "metric" in item.columns and any(c.keys.get("metric") == name for c in item.cells)
    panel_key = _panel_key(item, name)
    hidden = {name, panel_key} | ({"metric", TRACK} if pairs else set())
    identity = [key for key in (*item.rows, *item.columns) if key not in hidden]
    groups: dict[Key, dict[tuple[Key, ...], list[tuple[ItemCell, Point]]]] = {}
    found = _pairs(item, arm, name) if pairs else _over_key(item, arm, name)
    for cell, point in found:
        place = tuple(cell.keys.get(key, "") for key in identity)
        if is_strong(cell) and "strong" not in place:
            place = (*place, "strong")
        panel = groups.setdefault(cell.keys.get(panel_key, ""), {})
        panel.setdefault(place, []).append((cell, point))
    order = [str(each) for each in item.axes.get("panels", ())]
    names = sorted(groups, key=lambda key: order.index(str(key)) if key in order else len(order))
    shades: dict[str, int] = {}
    y = item.axes.get("y", {})
    return [
        CurvePanel(
            name=_panel_name(item, key),
            x_key=name,
            x_label=str(x.get("label", name)),
            y_label=str(y.get("label", y.get("name", item.metric))),
            unit=next(iter(groups[key].values()))[0][0].unit,
            series=_series(groups[key], identity, item, shades),
            pairs=pairs,
        )
        for key in names
    ]


def _panel_key(item: Item, x: str) -> str:
    """The key that tells panels apart: the one with the values that the axes name, else the data
    set."""
    wanted = set(map(str, item.axes.get("panels", ())))
    keys = [key for key in (*item.rows, *item.columns) if key != x]
    for key in keys:
        if wanted & {str(cell.keys.get(key)) for cell in item.cells}:
            return key
    return "dataset" if "dataset" in keys else ""


def _panel_name(item: Item, key: Key) -> str:
    """The panel's name and, where the axes describe it, its properties."""
    described = item.axes.get("panels")
    said = described.get(str(key)) if isinstance(described, Mapping) else None
    if not isinstance(said, Mapping):
        return str(key)
    return f"{key}: " + ", ".join(str(value).replace("_", " ") for value in said.values())


def _over_key(item: Item, arm: str, x: str) -> Iterator[tuple[ItemCell, Point]]:
    """Cells with a number under the key `x`."""
    for cell in item.cells:
        at = cell.keys.get(x)
        if cell.arm != arm or isinstance(at, str) or at is None:
            continue
        yield cell, _point(cell, float(at), float(at))


def _pairs(item: Item, arm: str, x: str) -> Iterator[tuple[ItemCell, Point]]:
    """Cells of the y metric, with the value of the metric `x` in the same row as their x."""
    rows: dict[tuple[Key, ...], dict[Key, ItemCell]] = {}
    for cell in item.cells:
        if cell.arm == arm:
            place = tuple(cell.keys.get(key, "") for key in item.rows)
            rows.setdefault(place, {})[cell.keys["metric"]] = cell
    for row in rows.values():
        for metric, cell in row.items():
            if metric != x and x in row:
                across = row[x]
                ours = math.nan if across.ours is None else across.ours.value
                yield cell, _point(cell, ours, _printed(across))


def _point(cell: ItemCell, x: float, x_mark: float) -> Point:
    ours = cell.ours
    if ours is None:
        return Point(x, math.nan, math.nan, math.nan, x_mark, _printed(cell))
    low = ours.value if ours.low is None else ours.low
    high = ours.value if ours.high is None else ours.high
    return Point(x, ours.value, low, high, x_mark, _printed(cell))


def _printed(cell: ItemCell) -> float:
    known = cell.elsewhere if cell.printed is None else cell.printed
    return math.nan if known is None else known


def _series(
    group: Mapping[tuple[Key, ...], list[tuple[ItemCell, Point]]],
    identity: Sequence[str],
    item: Item,
    shades: dict[str, int],
) -> list[Series]:
    """The curves of a panel, as the axes name them; a name has one colour in all panels."""
    places = list(group)
    varies = [
        at for at in range(len(identity)) if len({place[at] for place in places}) > 1
    ] or range(len(identity))
    wanted = [str(name) for name in item.axes.get("curves", ())]

    def label(place: tuple[Key, ...]) -> str:
        shown = [key_label(identity[at], place[at]) for at in varies] + [*place[len(identity) :]]
        return " ".join(map(str, filter(None, shown))) or item.metric

    def rank(place: tuple[Key, ...]) -> int:
        return min((wanted.index(str(key)) for key in place if key in wanted), default=len(wanted))

    series = []
    for place in sorted(places, key=rank):
        cells = group[place]
        points = [point for _, point in cells]
        if not any(math.isfinite(point.y) or math.isfinite(point.mark) for point in points):
            continue
        worst = is_strong(cells[0][0]) and sum("strong" in other for other in places) == 1
        name = label(place)
        series.append(
            Series(
                name=name,
                points=sorted(points) if TRACK not in item.rows else points,
                shade=None if worst else shades.setdefault(name, len(shades)),
                flagged=any(cell.ours is not None and cell.ours.flagged for cell, _ in cells),
            )
        )
    return series


def svgs(item: Item, arm: str = "") -> list[tuple[CurvePanel, str]]:
    """Each panel with its picture, an SVG element: transparent, narrow, without a heading."""
    made = []
    for panel in panels(item, arm):
        drawn = curve.rendered("svg", functools.partial(figure, [panel]), clear=True).decode()
        made.append((panel, drawn[drawn.index("<svg") :]))
    return made


def plot(item: Item, path: Path) -> list[Path]:
    """Draw a figure item to `path` (.png, .svg, .pdf), and its cells as CSV beside it."""
    from .item_formats import csv

    curve.check_suffix(path)
    found = panels(item)
    if not any(one.ours() or one.marks() for panel in found for one in panel.series):
        raise UserError(
            f"{item.id} has no curves to draw", hint="--plot is for items of kind figure"
        )
    heading = f"{item.paper}, {title(item)}, {item.preset}"
    said = notes(item, found)
    content = curve.rendered(path.suffix.lower()[1:], lambda: figure(found, heading, said))
    write_bytes(path, content)
    data = path.with_suffix(".csv")
    write_text(data, csv(item))
    return [path, data]


def notes(item: Item, found: list[CurvePanel]) -> list[str]:
    """What a picture has to say of itself where no page stands around it, in short lines."""
    series = [one for panel in found for one in panel.series]
    said = [f"n = {text.count(item.n)}"] if item.n else []
    said += ["bands: 95 % intervals"] if not all(panel.pairs for panel in found) else []
    said += ["hollow marks: printed"] if any(one.marks() for one in series) else []
    if item.strong_n and any(one.shade is None for one in series):
        said.append(f"strong: worst case with AutoAttack, n = {text.count(item.strong_n)}")
    said += ["! a diagnostic fired"] if any(one.flagged for one in series) else []
    said += [line.partition(":")[0] for line in stand_ins(item)]
    return textwrap.wrap(" · ".join(said), NOTE_WIDTH)


def figure(found: list[CurvePanel], heading: str | None = None, said: Sequence[str] = ()) -> Figure:
    """All panels, one under the other; with a heading, and lines `said` under it, each is
    named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    upper = 0.2 if heading is None else 0.42
    heights = [max(HEIGHT, 1.0 + curve.LABEL_STEP * len(one.series)) + upper for one in found]
    head = 0.0 if heading is None else 0.35 + NOTE_STEP * len(said)
    total = sum(heights) + head
    drawing = Figure(figsize=(WIDTH, total))
    FigureCanvasAgg(drawing)
    top = total - head
    for panel, height in zip(found, heights):
        top -= height
        box = (0.62 / WIDTH, (top + 0.58) / total, 0.5, (height - upper - 0.58) / total)
        axes = drawing.add_axes(box)
        _draw(axes, panel)
        if heading is not None:
            axes.set_title(panel.name, loc="left", fontsize=10.5, pad=16)
    if heading is not None:
        drawing.text(
            0.2 / WIDTH, 1 - 0.1 / total, heading, fontsize=12, fontweight="bold", va="top"
        )
        for at, line in enumerate(said):
            height = 1 - (0.36 + NOTE_STEP * at) / total
            drawing.text(0.2 / WIDTH, height, line, fontsize=8, color=curve.QUIET, va="top")
    return drawing


def _draw(axes: Axes, panel: CurvePanel) -> None:
    shown = [one for one in panel.series if one.ours() or one.marks()]
    _scales(axes, panel)
    ends = [_draw_series(axes, one, panel.pairs) for one in shown]
    widest = curve.label_ends(axes, ends)
    _ticks(axes, panel, curve.fit_width(axes, widest))


def _scales(axes: Axes, panel: CurvePanel) -> None:
    grid = panel.grid()
    if _logarithmic(panel):
        axes.set_xscale("log", base=2)
    room = 0.5 if grid[0] == grid[-1] else 0.0
    axes.set_xlim(grid[0] - room, grid[-1] + room)
    curve.plain_frame(axes)
    if panel.unit == "percent" and all(0 <= value <= 100 for value in _values(panel)):
        curve.percent_scale(axes)
    else:
        low, high = min(_values(panel)), max(_values(panel))
        if panel.unit == "fraction" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        edge = 0.0 if (low, high) == (0.0, 1.0) else 0.08 * (high - low or 1.0)
        axes.set_ylim(low - edge, high + edge)
        axes.set_title(panel.y_label, loc="left", color=curve.QUIET, fontsize=9, pad=4)
    axes.set_xlabel(panel.x_label, labelpad=6)


def _values(panel: CurvePanel) -> list[float]:
    every = [v for one in panel.series for p in one.points for v in (p.low, p.high, p.mark)]
    return [value for value in every if math.isfinite(value)]


def _logarithmic(panel: CurvePanel) -> bool:
    grid = panel.grid()
    return not panel.pairs and grid[0] > 0 and grid[-1] / grid[0] >= WIDE


def _draw_series(axes: Axes, one: Series, pairs: bool) -> curve.End:
    """Band, line and marks of a curve; where its label goes."""
    thick = one.shade is None
    at = one.shade or 0
    shade = curve.INK if thick else curve.PALETTE[at % len(curve.PALETTE)]
    marker = None if thick else curve.MARKERS[at % len(curve.MARKERS)]
    ours, marks = one.ours(), one.marks()
    if thick and len(ours) == 1:
        marker = "o"  # a line of one point would not be seen
    style: dict[str, Any] = {"color": shade, "clip_on": False, "marker": marker}
    if ours:
        xs = [point.x for point in ours]
        if not pairs:
            low, high = [point.low for point in ours], [point.high for point in ours]
            axes.fill_between(xs, low, high, color=shade, alpha=0.14, linewidth=0, zorder=1)
        dash = curve.DASHES[at // len(curve.PALETTE) % len(curve.DASHES)]
        width = 2.6 if thick else (0.8 if pairs else 1.7)
        axes.plot(
            xs, [point.y for point in ours], linestyle=dash, linewidth=width, markersize=5,
            markeredgecolor="white", markeredgewidth=0.7, zorder=3 if thick else 2, **style,
        )  # fmt: skip
    if marks:
        axes.plot(
            [point.x_mark for point in marks], [point.mark for point in marks], linestyle="none",
            markersize=7, markerfacecolor="none", markeredgecolor=shade, markeredgewidth=1.1,
            zorder=2.5, **(style | {"marker": marker or "o"}),
        )  # fmt: skip
    last = [(p.x, p.y) for p in ours] or [(p.x_mark, p.mark) for p in marks]
    label = one.name + ("" if ours else " (printed)") + (" !" if one.flagged else "")
    return curve.End(last[-1][0], [y for _, y in last], label, shade, marker)


def _ticks(axes: Axes, panel: CurvePanel, width: float) -> None:
    """Ticks where there are values, as far as their labels have room."""
    if panel.pairs:
        return
    grid = panel.grid()
    scale = [math.log2(x) for x in grid] if _logarithmic(panel) else grid
    gap = (scale[-1] - scale[0]) / width * curve.TICK_STEP
    kept = [grid[scale.index(x)] for x in curve.spread_ticks(scale, gap)]
    axes.set_xticks(kept, [key_label(panel.x_key, x) for x in kept])
    axes.set_xticks([], minor=True)
