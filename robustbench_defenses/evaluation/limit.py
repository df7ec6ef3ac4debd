"""A limit on the time of an evaluation: what is done is kept, what is not has no result."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from ..core.errors import UserError


@dataclass
class TimeLimit:
    """So many minutes for all questions together, counted from the first that needs work."""

    minutes: float
    _end: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minutes) and self.minutes > 0):
            raise UserError(f"--time-limit {self.minutes:g}: minutes above 0 are needed")

    def begin(self) -> None:
        """Work begins now, unless it has before."""
        if self._end is None:
            self._end = time.monotonic() + 60 * self.minutes

    @property
    def over(self) -> bool:
        """The time is over."""
        return self._end is not None and time.monotonic() >= self._end


@dataclass(frozen=True)
class Unfinished:
    """A question that the time limit has cut: which, and which share of it is kept on disk."""

    subject: str
    attack: str
    share: float

    def document(self) -> dict[str, object]:
        """In JSON's terms."""
        return {"subject": self.subject, "attack": self.attack, "share": round(self.share, 4)}

    def __str__(self) -> str:
        done = f"{100 * self.share:.0f} % done" if self.share > 0 else "not begun"
        return f"{self.attack} {done}"


def sentence(minutes: float, left: list[Unfinished], fresh: bool) -> str:
    """What is left when the time is over, and how to go on."""
    by_subject: dict[str, list[str]] = {}
    for one in left:
        by_subject.setdefault(one.subject, []).append(str(one))
    what = "; ".join(f"on {name} {', '.join(names)}" for name, names in by_subject.items())
    how = "begins them again, without --fresh it goes on" if fresh else "goes on"
    return f"the time limit of {minutes:g} min is over, {what}; the same command {how}"
