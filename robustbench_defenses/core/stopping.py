"""Ctrl-C that waits for the end of a step, so that what is done can be kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Inside, Ctrl-C (or SIGTERM) is a request: the work ends after its current step and saves.

    A second one stops at once, with what was saved before. Outside the main thread signals cannot
    be caught and stay as they are, as they do where it is not `active`.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """The work is to end."""
        return self.number is not None

    def deliver(self) -> None:
        """What the signal would have done at once, if there was one: `KeyboardInterrupt`."""
        if self.number is not None:
            self._restore()
            signal.raise_signal(self.number)
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.number = number

    def __enter__(self) -> StopRequest:
        if self.active and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
