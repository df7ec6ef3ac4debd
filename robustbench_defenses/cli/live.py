"""The live progress bar of a terminal."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from .console import duration, err

# Columns for the note, the times and the blanks between.
NOTES = 54


class LiveProgress:
    """A bar on the terminal: task, bar, share, note, time spent, time left."""

    def __init__(self) -> None:
        self._total = 0

    def start(self, task: str, total: int) -> None:
        """Begin a line of its own; a task still running is closed first."""
        err.release()
        self._total = total
        wide = err.width >= 90
        bar = 16 if wide else 8
        # Note and times are what changes: the name of the task gives way to them.
        room = max(12, err.width - bar - NOTES)
        task = task if len(task) <= room else task[: room - 1] + "…"
        err.bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=bar, complete_style="default", finished_style="default"),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            _Times(),
            console=err,
            refresh_per_second=4,
        )
        err.bar.add_task(task, total=total or None, note="")
        err.bar.start()

    def update(self, done: int, note: str = "") -> None:
        """Move the bar."""
        if err.bar is not None:
            task = err.bar.tasks[0]
            fields: dict[str, Any] = {"note": note} if note else {}
            err.bar.update(task.id, completed=done, **fields)

    def finish(self, note: str = "") -> None:
        """Fill the bar and leave its last line standing."""
        if err.bar is not None:
            task = err.bar.tasks[0]
            total = self._total or max(1, int(task.completed))
            fields: dict[str, Any] = {"note": note} if note else {}
            err.bar.update(task.id, total=total, completed=total, **fields)
        err.release()


class _Times(ProgressColumn):
    """Time spent, and time left while it can be told."""

    def render(self, task: Task) -> Text:
        spent = task.finished_time if task.finished else task.elapsed
        text = duration(spent or 0.0)
        if not task.finished and task.total and 0 < task.completed < task.total and spent:
            left = spent * (task.total - task.completed) / task.completed
            text += f"   about {duration(left)} left"
        return Text(text, style="dim")
