"""The progress of several questions: which of them is running, and how long all will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..core.progress import Progress

# Before so many seconds of work nothing can be said about the rest.
SOONEST = 2.0


class Overall:
    """Hands everything on to `inner`; tasks are numbered, notes say how long the rest will take.

    The rest is estimated from declared passes and from the time that declared passes have taken so
    far: broken examples cost nothing, and later attacks find the same examples weak.
    """

    def __init__(self, inner: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._clock = inner, clock
        self._left: list[float] = []
        self._count = self._at = 0
        self._short = False
        self._work = self._done = self._seconds = 0.0
        self._total, self._begun = 0, 0.0

    def expect(self, works: Sequence[float], one_subject: bool = False) -> None:
        """The declared passes of all questions; one subject need not be named each time."""
        self._left, self._count, self._at = list(works), len(works), 0
        self._short = one_subject and self._count > 1

    def enter(self, work: float) -> None:
        """The next question comes, of so many declared passes; it may be answered already."""
        self._at += 1
        self._work = work
        self._left = self._left[1:]

    def start(self, task: str, total: int) -> None:
        """A question begins to be worked on."""
        self._total, self._begun = total, self._clock()
        number = f"{self._at} of {self._count} · " if self._count > 1 else ""
        self._inner.start(number + (task.partition(" on ")[0] if self._short else task), total)

    def update(self, done: int, note: str = "") -> None:
        """How far it is; the note says how long the questions after it will take."""
        rest = self._rest(done)
        self._inner.update(done, " · ".join(part for part in (note, rest) if part))

    def finish(self, note: str = "") -> None:
        """The question is answered."""
        self._seconds += self._clock() - self._begun
        self._done += self._work
        self._inner.finish(note)

    def _rest(self, done: int) -> str:
        spent = self._seconds + self._clock() - self._begun
        share = done / self._total if self._total else 0.0
        worked = self._done + share * self._work
        if not self._left or spent < SOONEST or worked <= 0:
            return ""
        return f"then about {_rough(spent / worked * sum(self._left))}"


def _rough(seconds: float) -> str:
    """`40 s`, `4 min`, `2 h 5 min`: an estimate needs no more."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
