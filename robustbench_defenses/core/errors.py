"""Errors that a user can mend, told apart from defects of ours."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Bad input: the command line prints one sentence and exits with 2.

    `message` names the thing and says what is wrong with it; `hint` says what would be right.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Interrupted(Exception):  # noqa: N818 (it is not an error)
    """Work was stopped by the user (Ctrl-C, SIGTERM) after what was finished has been saved.

    `message` says where it stopped and how to go on; the command line prints it and exits with 130.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class OutOfTime(Interrupted):
    """Work reached the time limit that the user gave; `left` says what has no result."""

    def __init__(self, message: str, left: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.left = list(left)


class Notice(UserWarning):
    """Something the user should know though nothing is wrong: one line on stderr."""


def did_you_mean(name: str, known: list[str], listing: str) -> str:
    """A hint that names close entries of `known` and the command that lists all of them."""
    import difflib

    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if not close and len(name) >= 3:
        close = [entry for entry in known if name.lower() in entry][:3]
    if close:
        return f"did you mean {' or '.join(repr(entry) for entry in close)}? all: {listing}"
    return f"all: {listing}"
