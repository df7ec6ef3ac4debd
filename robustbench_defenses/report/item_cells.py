"""A table of an item for its page: heads with spans, cells with shade, mark, link and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import item_grid, text
from .item import Item, ItemCell, Measured
from .item_grid import Grid, named

STEPS = (2.0, 5.0, 15.0)  # points from which a difference is shaded, and shaded darker
Link = Callable[[str], str | None]  # from a file, relative to the results, to its address
Popovers = dict[tuple[tuple[str, ...], ...], str]  # what diagnostics say: the id that shows it


def table(
    item: Item,
    found: Grid,
    link: Link,
    popovers: Popovers,
    number: int,
) -> dict[str, Any]:
    """The table's context for the template; a row key that never changes is its caption."""
    main = _main(item)
    others = [at for at in range(len(found.row_names)) if at != main]
    fixed = [at for at in others if len({head[at] for head in found.rows}) == 1]
    others = [at for at in others if at not in fixed]
    caption = [_other(found.row_names[at], found.rows[0][at]) for at in fixed]
    rows = []
    for at, head in enumerate(found.rows):
        under = [_other(found.row_names[other], head[other]) for other in others]
        cells = [found.cells.get((at, column)) for column in range(len(found.columns))]
        rows.append(
            {
                "name": head[main] if head else "",
                "under": " · ".join(filter(None, under)),
                "first": at > 0 and len(head) > 1 and head[0] != found.rows[at - 1][0],
                "cells": [cell and _cell(cell, link, popovers, number) for cell in cells],
            }
        )
    taus = [found.tau(item, at) for at in range(len(found.columns))]
    shown = any(tau is not None for tau in taus) and not any(c.arm for c in found.cells.values())
    return {
        "corner": " · ".join(found.row_names[at] for at in [main, *others]) if main >= 0 else "",
        "caption": " · ".join(filter(None, caption)),
        "heads": _heads(found),
        "rows": rows,
        "taus": ["" if tau is None else _minus(f"{tau:.2f}") for tau in taus] if shown else [],
    }


def _main(item: Item) -> int:
    """Which of the row keys names the row: defense, attack, else the last one that is a name."""
    for name in ("defense", "attack"):
        if name in item.rows:
            return item.rows.index(name)
    names = [
        at
        for at, name in enumerate(item.rows)
        if all(isinstance(cell.keys.get(name, ""), str) for cell in item.cells)
    ]
    return names[-1] if names else 0


def _other(name: str, label: str) -> str:
    """A lesser key of a row; numbers say what they are."""
    return f"{name} {label}" if label[:1].isdigit() and not label.isalpha() else label


def _heads(found: Grid) -> list[list[dict[str, Any]]]:
    """The heads of columns by level; `column`: what a tap on the head sorts by.

    A column without a head of its own (`clean`) carries the one above it.
    """
    lowest = len(found.column_names) - 1
    levels = []
    for level in range(lowest + 1):
        heads: list[dict[str, Any]] = []
        for at, count, name in found.spans(level):
            below = [head[lowest] for head in found.columns[at : at + count]]
            if level == lowest:
                own = name or next(filter(None, reversed(found.columns[at])), "")
            else:
                own = name if any(below) else ""
            heads.append(
                {"text": own, "span": count, "column": at + 1 if level == lowest else None}
            )
        levels.append(heads)
    return levels


def _cell(cell: ItemCell, link: Link, popovers: Popovers, number: int) -> dict[str, Any]:
    ours, printed, difference = item_grid.parts(cell)
    if not printed and cell.elsewhere is not None:
        printed = f"{cell.source or 'elsewhere'}: {item_grid.value(cell.elsewhere, cell.unit)}"
    if cell.ours is None and cell.status in ("cited", "failed"):
        ours = cell.status
    flagged = [] if cell.ours is None else cell.ours.flagged
    said = tuple(dict.fromkeys((one.severity, one.name, one.sentence) for one in flagged))
    popover = popovers.setdefault(said, f"d{number}-{len(popovers) + 1}") if said else None
    kinds = [_shade(cell), "strong" if item_grid.is_strong(cell) else ""]
    files = () if cell.ours is None else cell.ours.results
    return {
        "ours": ours,
        "printed": printed,
        "difference": _minus(difference),
        "kind": " ".join(filter(None, kinds)),
        "order": None if cell.ours is None else cell.ours.value,
        "title": _title(cell),
        "href": next(filter(None, map(link, files)), None),
        "severity": said[0][0] if said else None,
        "said": "; ".join(sentence for _, _, sentence in said),
        "popover": popover,
    }


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _shade(cell: ItemCell) -> str:
    """`above1` ... `below3`: the sign of the difference and how many steps it passes."""
    points = item_grid.points(cell)
    if points is None or abs(points) <= STEPS[0]:
        return ""
    return f"{'above' if points > 0 else 'below'}{sum(abs(points) > step for step in STEPS)}"


def _title(cell: ItemCell) -> str:
    """What stands behind the number, for who points at it."""
    parts = [named(cell)]
    if cell.ours is not None:
        parts += _behind(cell.ours, cell.unit)
    if cell.printed_as is not None:
        parts.append(f"printed as {cell.printed_as}")
    if cell.dataset is not None:
        parts.append(f"measured on {cell.dataset}")
    return "; ".join([*parts, *filter(None, (cell.reason, cell.note))])


def _behind(ours: Measured, unit: str) -> list[str]:
    parts = [f"n = {text.count(ours.n)}"]
    if ours.low is not None and ours.high is not None:
        low, high = item_grid.value(ours.low, unit), item_grid.value(ours.high, unit)
        parts.append(f"95 % interval {low} to {high}")
    if ours.seeds:
        listed = ", ".join(item_grid.value(one, unit) for one in ours.seeds)
        parts.append(f"{len(ours.seeds)} seeds: {listed}")
    return parts
