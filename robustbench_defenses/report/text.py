"""How numbers and names are written, the same in every format."""

from __future__ import annotations

from collections.abc import Sequence

NORM_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}
ABSENT = "–"


def percent(share: float | None) -> str:
    """A share as percent with one decimal, without the sign."""
    return ABSENT if share is None else f"{100 * share:.1f}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def count(number: int) -> str:
    """An integer with thousands separated: 1,797."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `3.1 s`, `1 min 52 s`, `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` characters, with its middle left out where it is longer."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def in_255ths(eps: Sequence[float]) -> bool:
    """True where the grid is made of multiples of 1/255 (or halves of it), not of short decimals.

    0.2 is 51/255 as well: a grid that three decimals write exactly is decimal.
    """
    values = [value for value in eps if value > 0]
    if all(abs(value - round(value, 3)) < 1e-9 for value in values):
        return False
    return all(abs(value * 510 - round(value * 510)) < 1e-6 for value in values)


def eps_labels(eps: Sequence[float]) -> list[str]:
    """Budgets as text: `8/255` in a grid of such, else equally many decimals, as few as do; `0`
    where there is nothing else."""
    if in_255ths(eps):
        return [f"{round(value * 510) / 2:g}/255" if value else "0" for value in eps]
    if not any(eps):
        return ["0"] * len(eps)
    for digits in range(1, 7):
        if all(abs(value - round(value, digits)) < 1e-9 for value in eps):
            return [f"{value:.{digits}f}" for value in eps]
    for digits in range(3, 10):
        labels = [f"{value:.{digits}f}" for value in eps]
        if len(set(labels)) == len(set(eps)):
            return labels
    return [f"{value!r}" for value in eps]
