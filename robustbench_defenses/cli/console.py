"""Where output goes: the answer to stdout, progress and messages to stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleDimensions
from rich.text import Text

from ..core import progress as protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

MAX_WIDTH = 100
SMALLEST_CUT = 24
PLAIN_INTERVAL = 10.0


class Screen(Console):
    """A console of at most 100 columns; colour only on a terminal that wants it (`NO_COLOR`)."""

    bar: Bar | None = None

    @property  # type: ignore[misc]  # (nobody sets it)
    def size(self) -> ConsoleDimensions:
        """`COLUMNS` where set, else the terminal's width; 100 where there is no terminal."""
        width, height = super().size
        columns = os.environ.get("COLUMNS", "")
        if columns.isdigit() and int(columns) > 0:
            width = int(columns)
        elif not self.is_terminal:
            width = MAX_WIDTH
        return ConsoleDimensions(min(width, MAX_WIDTH), height)

    def on_broken_pipe(self) -> None:
        """The reader has gone: `main` ends quietly."""
        raise BrokenPipeError

    def release(self) -> None:
        """Take a running bar off the screen (before an error is printed)."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


out = Screen(highlight=False, markup=False, emoji=False)
err = Screen(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(document: Any) -> None:
    """Write exactly one JSON document to stdout; paths become text, NaN is refused."""
    text = json.dumps(document, indent=1, allow_nan=False, default=str)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """One dim line on stderr."""
    err.print(Text(text, style="dim"), soft_wrap=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> None:
    """A table on stdout without lines; `right` names the columns aligned to the right.

    Cells never wrap: where the screen is too narrow, the last column is cut, or dropped where
    not enough of it would be left, and so on to the left.
    """
    widths = [
        max([cell_len(name), *(cell_len(row[i]) for row in rows)]) for i, name in enumerate(columns)
    ]
    kept = len(columns)

    def room() -> int:
        # One blank at either end, two between columns.
        return out.width - 2 * kept - sum(widths[: kept - 1])

    while kept > 2 and room() < min(widths[kept - 1], SMALLEST_CUT):
        kept -= 1
    widths = [*widths[: kept - 1], max(1, min(widths[kept - 1], room()))]
    out.print(Text(_line(columns, columns, widths, right), style="dim"), soft_wrap=True)
    for row in rows:
        out.print(Text(_line(row, columns, widths, right)), soft_wrap=True)


def _line(
    cells: Sequence[str], names: Sequence[str], widths: Sequence[int], right: Sequence[str]
) -> str:
    parts = []
    for cell, name, width in zip(cells, names, widths, strict=False):
        if cell_len(cell) > width:
            cell = set_cell_size(cell, width - 1) + "…"
        blanks = " " * (width - cell_len(cell))
        parts.append(blanks + cell if name in right else cell + blanks)
    return (" " + "  ".join(parts)).rstrip()


def duration(seconds: float) -> str:
    """`8 s`, `1 min 40 s`, `2 h 5 min`, `3 d 4 h`: two units at most."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def progress(quiet: bool = False) -> protocol.Progress:
    """The reporter to hand to lower floors: bars, plain lines or (`quiet`) nothing."""
    if quiet:
        return protocol.Silent()
    if not err.is_terminal or err.is_dumb_terminal:
        return PlainProgress()
    from .live import LiveProgress

    return LiveProgress()


class PlainProgress:
    """Lines for a log file: at most one in ten seconds, over all tasks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._printed = -PLAIN_INTERVAL
        self._task, self._total, self._begun = "", 0, 0.0

    def start(self, task: str, total: int) -> None:
        """Say that the task begins."""
        self._task, self._total, self._begun = task, total, self._clock()
        self._say("")

    def update(self, done: int, note: str = "") -> None:
        """Say how far it is, how long it took and how long it will take."""
        spent = self._clock() - self._begun
        parts = [f"{done} of {self._total}" if self._total else str(done), note, duration(spent)]
        if self._total and 0 < done < self._total:
            parts.append(f"about {duration(spent * (self._total - done) / done)} left")
        self._say(" · ".join(part for part in parts if part))

    def finish(self, note: str = "") -> None:
        """Say the result."""
        spent = duration(self._clock() - self._begun)
        self._say(" · ".join(part for part in ("done", note, spent) if part))

    def _say(self, text: str) -> None:
        now = self._clock()
        if now - self._printed >= PLAIN_INTERVAL:
            self._printed = now
            line = f"{self._task}: {text}" if text else self._task
            print(line, file=sys.stderr, flush=True)
