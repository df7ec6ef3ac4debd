"""How a lower floor says what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One task at a time: `start`, any number of `update`s, `finish`."""

    def start(self, task: str, total: int) -> None:
        """A task of `total` units begins (0: the length is not known)."""
        ...

    def update(self, done: int, note: str = "") -> None:
        """`done` units of the running task are finished in all; `note` says how it stands."""
        ...

    def finish(self, note: str = "") -> None:
        """The running task is over; `note` is its result in a few words."""
        ...


class Silent:
    """A progress that says nothing."""

    def start(self, task: str, total: int) -> None:
        """Nothing."""

    def update(self, done: int, note: str = "") -> None:
        """Nothing."""

    def finish(self, note: str = "") -> None:
        """Nothing."""
