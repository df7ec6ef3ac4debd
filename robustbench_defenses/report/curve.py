"""Accuracy over eps as a picture: interval bands, labels at the ends of the lines, no legend."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import UserError
from ..core.files import write_bytes, write_text
from ..evaluation.store import StoredResult
from . import export, text
from .panels import Line, Panel, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ordered so that the first ones differ most in lightness (28, 62, 48, 71, 37, 77 of 100): they
# stay apart in grey print, and under the three common kinds of colour blindness. Markers repeat
# what colours say.
PALETTE = ("#12407F", "#D9822B", "#3F7F4F", "#6FB7DC", "#A3245B", "#DDBB3F")
DARK_PALETTE = ("#4C82E6", "#F0A04B", "#5FAE76", "#B5E3FA", "#D0508A", "#F6E27A")
INK, QUIET, FAINT = "#1C1F24", "#6A7079", "#DFE2E6"
MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)))
SUFFIXES = (".png", ".svg", ".pdf")

_WIDTH, _NARROW, _HEIGHT = 7.6, 5.4, 4.5  # inches of one panel
LABEL_STEP, TICK_STEP = 0.185, 0.53  # inches between two end labels, two ticks
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "svg.hashsalt": "rrd",
}


class End(NamedTuple):
    """The end of a drawn line: its x, all its values, label, colour, marker."""

    x: float
    y: list[float]
    label: str
    shade: str
    marker: str | None


def plot_curves(stored: Sequence[StoredResult], path: Path, title: str | None = None) -> list[Path]:
    """Draw accuracy over eps to `path` (.png, .svg or .pdf), and its data as CSV beside it.

    One panel per data set and norm. One subject: a line per attack and the worst case, thick;
    several: a line per subject, its worst case over the attacks. Returns the files written.
    """
    check_suffix(path)
    found = _drawable(stored)
    content = rendered(path.suffix.lower()[1:], lambda: figure(found, title))
    data = path.with_suffix(".csv")
    write_bytes(path, content)
    write_text(data, export.csv(export.frame(stored)))
    return [path, data]


def check_suffix(path: Path) -> None:
    """A picture that no format of ours fits is a `UserError`."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"cannot draw {path}: unknown kind of picture {path.suffix or '(no suffix)'!r}",
            hint=f"end the name in {', '.join(SUFFIXES)}",
        )


def svg(stored: Sequence[StoredResult]) -> str | None:
    """The picture as an SVG element for a page: transparent, narrow, without a heading.

    None where there is no curve.
    """
    try:
        found = _drawable(stored)
    except UserError:
        return None
    drawn = rendered("svg", lambda: figure(found, width=_NARROW, headed=False), clear=True)
    content = drawn.decode()
    return content[content.index("<svg") :]


def _drawable(stored: Sequence[StoredResult]) -> list[Panel]:
    found = [panel for panel in panels(stored) if panel.grid()]
    if not found:
        raise UserError(
            "nothing to draw: these results hold no accuracy at any eps above 0",
            hint="evaluate with --eps-sweep",
        )
    return found


def rendered(kind: str, draw: Callable[[], Figure], clear: bool = False) -> bytes:
    """A figure as a file of this kind; `clear`: without a background."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        drawing = draw()
        buffer = io.BytesIO()
        # No date and no version: equal data give equal files.
        metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        drawing.savefig(buffer, format=kind, dpi=200, transparent=clear, metadata=metadata[kind])
    return buffer.getvalue()


def figure(
    found: list[Panel], title: str | None = None, width: float = _WIDTH, headed: bool = True
) -> Figure:
    """The figure of all panels, one under the other, `width` inches wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [max(_HEIGHT, 1.6 + LABEL_STEP * len(chosen_lines(panel))) for panel in found]
    drawing = Figure(figsize=(width, sum(heights)))
    FigureCanvasAgg(drawing)
    total, top = sum(heights), sum(heights)
    for panel, height in zip(found, heights):
        top -= height
        upper = (0.62 if headed else 0.14) + 0.3 * text.in_255ths(panel.grid())
        box = (0.62 / width, (top + 0.58) / total, 0.5, (height - upper - 0.58) / total)
        axes = drawing.add_axes(box)
        _draw_panel(axes, panel)
        if headed:
            _head(axes, panel, title)
    return drawing


def chosen_lines(panel: Panel) -> list[Line]:
    """What is drawn: every attack on a single subject, else one line per subject, best first."""
    lines = panel.lines if len(panel.subjects) == 1 else panel.best_first()
    return [line for line in lines if line.result.curve]


def crowded(panel: Panel) -> bool:
    """Whether only the worst case gets its band: those of a subject's attacks lie over it."""
    return len(panel.subjects) == 1 and any(line.worst for line in panel.lines)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    ends: list[End] = []
    colour = 0
    for line in chosen_lines(panel):
        thick = line.worst and len(panel.subjects) == 1
        x, y, low, high = _points(line)
        shade = INK if thick else PALETTE[colour % len(PALETTE)]
        marker = None if thick else MARKERS[colour % len(MARKERS)]
        dash = "-" if thick else DASHES[colour // len(PALETTE) % len(DASHES)]
        colour += not thick
        if thick or not crowded(panel):
            axes.fill_between(x, low, high, color=shade, alpha=0.14, linewidth=0, zorder=1)
        axes.plot(
            x,
            y,
            color=shade,
            linestyle=dash,
            linewidth=2.6 if thick else 1.7,
            marker=marker,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.7,
            clip_on=False,
            zorder=3 if thick else 2,
        )
        ends.append(End(x[-1], y, _end_label(line, panel), shade, marker))
    _frame(axes, panel)
    widest = label_ends(axes, ends)
    width = fit_width(axes, widest)
    _ticks(axes, panel, width)


def _points(line: Line) -> tuple[list[float], list[float], list[float], list[float]]:
    """Eps, accuracy and interval in percent, starting with the clean accuracy at 0."""
    result = line.result
    rows = [(p.eps, p.robust_accuracy, p.low, p.high) for p in result.curve]
    if rows[0][0] > 0:
        rows.insert(0, (0.0, result.clean_accuracy, result.clean_low, result.clean_high))
    eps, *shares = ([float(value) for value in column] for column in zip(*rows))
    accuracy, low, high = ([100 * value for value in column] for column in shares)
    return eps, accuracy, low, high


def _end_label(line: Line, panel: Panel) -> str:
    label = text.shorten(line.attack if len(panel.subjects) == 1 else line.subject, 34)
    auc = "" if line.result.auc is None else f"  {text.decimal(line.result.auc)}"
    return f"{label}{auc}{' !' if line.result.flagged else ''}"


def _frame(axes: Axes, panel: Panel) -> None:
    """Limits, accuracy in percent, and as few lines as will do."""
    axes.set_xlim(0, panel.grid()[-1])
    percent_scale(axes)
    plain_frame(axes)
    axes.set_xlabel(f"eps ({text.NORM_NAMES[panel.norm]}, pixels in [0, 1])", labelpad=6)


def percent_scale(axes: Axes) -> None:
    """Y from 0 to 100, the unit at the upper end."""
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20), [*map(str, range(0, 100, 20)), "100 %"])


def plain_frame(axes: Axes) -> None:
    """As few lines as will do: a base line and faint ones across."""
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, axis="y")
    axes.tick_params(length=3, axis="x", width=0.8)


def _ticks(axes: Axes, panel: Panel, width: float) -> None:
    """Ticks at eps of the grid; where it is made of k/255, decimals on top. `width` in inches."""
    grid = [0.0, *panel.grid()]
    in_255ths = text.in_255ths(grid)
    labels = dict(zip(grid, text.eps_labels(grid)))
    labels[0.0] = "0"
    ticks = spread_ticks(grid, grid[-1] / width * TICK_STEP)
    axes.set_xticks(ticks, [labels[tick] for tick in ticks])
    if in_255ths:
        upper = axes.secondary_xaxis("top")
        upper.set_xticks(ticks, [f"{tick:.3f}" if tick else "0" for tick in ticks])
        upper.tick_params(length=3, width=0.8, labelsize=8)
        upper.spines["top"].set_visible(False)


def spread_ticks(grid: list[float], gap: float) -> list[float]:
    """Values that may carry a tick: from the largest down, at least `gap` apart, and the first."""
    kept = [grid[-1]]
    for eps in reversed(grid[1:-1]):
        if kept[-1] - eps >= gap and eps - grid[0] >= gap:
            kept.append(eps)
    return [grid[0], *reversed(kept)] if len(grid) > 1 else kept


def label_ends(axes: Axes, ends: list[End]) -> float:
    """Write each label beside its line's end, pushed apart where they meet; the widest in inches.

    A thin leader joins label and line, the line's marker stands before the text.
    """
    drawing = axes.get_figure(root=True)
    assert drawing is not None
    height = axes.get_position().height * drawing.get_size_inches()[1]
    low, high = axes.get_ylim()
    step = (high - low) * LABEL_STEP / height
    # Lines that end together are told apart by where they came from: compared from the end on.
    order = sorted(ends, key=lambda end: end.y[::-1])
    heights = spread_labels([end.y[-1] for end in order], step, low, high)
    beside = axes.get_yaxis_transform()  # x in shares of the axes, y in data
    widest = 0.0
    for (x_end, line, label, shade, marker), y in zip(order, heights):
        axes.plot(
            [_share(axes, x_end), 1.025, 1.045],
            [line[-1], y, y],
            transform=beside,
            color=shade,
            linewidth=0.8,
            alpha=0.75,
            clip_on=False,
            zorder=1.5,
        )
        axes.plot(
            [1.045],
            [y],
            transform=beside,
            color=shade,
            marker=marker or "_",
            markersize=5,
            markeredgewidth=0.7 if marker else 2.6,
            markeredgecolor="white" if marker else shade,
            clip_on=False,
            zorder=3,
        )
        written = axes.text(
            1.065,
            y,
            label,
            transform=beside,
            va="center_baseline",
            fontweight="normal" if marker else "bold",
        )
        widest = max(widest, written.get_window_extent().width / drawing.dpi)
    return widest


def _share(axes: Axes, x: float) -> float:
    """Where `x` lies along the axes: 0 at the left, 1 at the right."""
    point = axes.transAxes.inverted().transform(axes.transData.transform((x, axes.get_ylim()[0])))
    return float(point[0])


def spread_labels(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Positions nearest to the rising `wanted` that keep `step` between neighbours.

    Least squares under the order: isotonic regression of `wanted[i] - i step` by pooling adjacent
    violators; then moved into [low, high] as far as there is room.
    """
    pools: list[tuple[float, int]] = []  # (mean, size), means rising
    for at, value in enumerate(wanted):
        mean, size = value - at * step, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    last = max(high - (len(flat) - 1) * step, low)
    return [min(max(value, low), last) + at * step for at, value in enumerate(flat)]


def fit_width(axes: Axes, widest: float) -> float:
    """Give the axes the width that the widest end label leaves; that width in inches."""
    drawing = axes.get_figure(root=True)
    assert drawing is not None
    total = drawing.get_size_inches()[0]
    box = axes.get_position()
    left = box.x0 * total
    # Labels start 6.5 % of the axes' width to the right of the axes.
    width: float = max((total - left - widest - 0.15) / 1.065, 0.35 * total)
    axes.set_position((box.x0, box.y0, width / total, box.height))
    return width


def attacks_of(panel: Panel) -> str:
    """The attacks behind the drawn lines, in a few words."""
    attacks = sorted({line.attack for line in panel.lines if not line.worst})
    listed = ", ".join(attacks)
    if len(listed) > 40:
        listed = f"{len(attacks)} attacks" if len(attacks) > 1 else text.shorten(listed, 40)
    several = len(panel.subjects) > 1 and any(line.worst for line in panel.lines)
    return f"worst case over {listed}" if several else listed


def _head(axes: Axes, panel: Panel, title: str | None) -> None:
    """Title, and under it the attack, n, what band and numbers mean."""
    lines = chosen_lines(panel)
    single = len(panel.subjects) == 1
    name = lines[0].result.subject.name if single else ""
    listed = attacks_of(panel)
    sizes = sorted({line.result.n for line in lines})
    number = "-".join(text.count(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
    where = [f"{panel.dataset}, {text.NORM_NAMES[panel.norm]}"] if single else []
    parts = [*where, listed, f"n = {number}"]
    parts.append("95 % band of the worst case" if crowded(panel) else "95 % bands")
    if any(line.result.auc is not None for line in lines):
        parts.append("AUC at the line's end")
    if any(line.result.flagged for line in lines):
        parts.append("! a diagnostic fired")
    where_or_who = f"of {name}" if single else f"on {panel.dataset}"
    heading = text.shorten(title or f"Robust accuracy {where_or_who}", 66)
    drawing = axes.get_figure(root=True)
    assert drawing is not None
    box, total = axes.get_position(), drawing.get_size_inches()[1]
    top = box.y1 + (0.36 if text.in_255ths(panel.grid()) else 0.12) / total
    left = 0.2 / drawing.get_size_inches()[0]
    fit: dict[str, Any] = {"transform": drawing.transFigure, "ha": "left", "va": "bottom"}
    axes.text(left, top + 0.24 / total, heading, fontsize=12, fontweight="bold", **fit)
    axes.text(left, top + 0.02 / total, " · ".join(parts), color=QUIET, fontsize=9, **fit)
