"""Whether the paper's statements hold: for our numbers, and for the printed ones.

greater   every cell that `where` and `left` match lies above (by `by`) its twin, the cell whose
          place in the table differs only as `right` says
at_most, at_least   every cell against `value`
monotone  along the key `along`, rising, values never rise by more than `tolerance` (`order:
          [rising]`: never fall), and the last lies below (above) the first by `by` at least
spread    largest minus smallest value along a key is at most `value`
order     values fall along a key in the order given; equal ones do not
top       the best `value` (1) places along a key hold the entries of `order`, and nobody else

A claim with several checks holds where all of them do. One cell is enough to refute a claim; it
holds only when every cell it speaks of is measured, and until then "so far".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..report.item import ItemCell, ItemClaim, Key
from .recipe import Check, Claim, Where, matches

Value = Callable[[ItemCell], float | None]
Point = tuple[Mapping[str, Key], float]


@dataclass(frozen=True)
class Seen:
    """`faults`: what speaks against a check; `used`: how many cells were compared."""

    faults: list[str]
    used: int

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.faults + other.faults, self.used + other.used)


def judge(claim: Claim, cells: Sequence[ItemCell], layout: Sequence[str]) -> ItemClaim:
    """The claim with its verdicts on headline `cells`, whose place the keys of `layout` tell;
    without a check, or before every cell is measured, undecided."""
    if not claim.checks:
        return ItemClaim(id=claim.id, text=claim.text, own=claim.own)
    cells = [cell for cell in cells if cell.status != "cited"]
    whole = _seen(claim, cells, layout, lambda cell: 0.0).used
    ours = _seen(claim, cells, layout, lambda cell: cell.ours.value if cell.ours else None)
    printed = _seen(claim, cells, layout, lambda cell: cell.printed)
    return ItemClaim(
        id=claim.id,
        text=claim.text,
        own=claim.own,
        ours=_verdict(ours, whole),
        printed=_verdict(printed, whole),
        sentence=_sentence(ours, whole),
    )


def _seen(claim: Claim, cells: Sequence[ItemCell], layout: Sequence[str], value: Value) -> Seen:
    found = Seen([], 0)
    for check in claim.checks:
        points = _points(check, cells, value)
        if check.kind == "greater":
            found += _greater(check, points, layout)
        else:
            found += TESTS[check.kind](check, points)
    return found


def _verdict(seen: Seen, whole: int) -> bool | None:
    if seen.faults:
        return False
    return True if 0 < seen.used == whole else None


def _sentence(seen: Seen, whole: int) -> str:
    if seen.faults:
        more = f" and {len(seen.faults) - 1} more" if len(seen.faults) > 1 else ""
        return f"does not hold: {seen.faults[0]}{more}"
    if 0 < seen.used < whole:
        return f"holds so far: {seen.used} of {whole} cells are measured"
    return "holds" if seen.used else ""


def _points(check: Check, cells: Sequence[ItemCell], value: Value) -> list[Point]:
    """The cells that the check speaks of and that have a value."""
    sides: list[Where] = [check.where]
    if check.kind == "greater":
        # `left` and `right` may say more of a key than `where` does.
        rest = {k: v for k, v in check.where.items() if k not in check.left}
        sides = [{**rest, **check.left}, _without(check.where, check.right) | check.right]
    found: list[Point] = []
    for cell in cells:
        number = value(cell)
        if number is not None and any(matches(side, cell.keys) for side in sides):
            found.append((cell.keys, number))
    return found


def _without(where: Where, names: Mapping[str, object]) -> Where:
    return {name: value for name, value in where.items() if name not in names}


def _label(keys: Mapping[str, Key], names: Iterable[str]) -> str:
    """Values of keys in a row; numbers with the names that they belong to."""
    known = [(name, keys[name]) for name in names if keys.get(name, "none") != "none"]
    return " ".join(key if isinstance(key, str) else f"{name} {key:g}" for name, key in known)


def _named(keys: Mapping[str, Key], without: Collection[str] = ()) -> str:
    return _label(keys, [k for k in keys if k not in ("setting", "budget", *without)])


def _greater(check: Check, points: list[Point], layout: Sequence[str]) -> Seen:
    changed = {*check.left, *check.right}

    def place(keys: Mapping[str, Key]) -> tuple[object, ...]:
        return tuple(keys.get(name) for name in layout if name not in changed)

    rights = {place(keys): (keys, value) for keys, value in points if matches(check.right, keys)}
    faults, used = [], 0
    for keys, value in points:
        twin = rights.get(place(keys))
        if not matches(check.left, keys) or twin is None or twin[0] is keys:
            continue
        used += 2
        other, against = twin
        if not value > against + check.by:
            mine, theirs = _label(keys, check.left), _label(other, check.right)
            common = _named(keys, changed)
            faults.append(f"{common}: {mine} {value:.1f} against {theirs} {against:.1f}")
    return Seen(faults, used)


def _at_most(check: Check, points: list[Point]) -> Seen:
    limit = check.value or 0.0
    faults = [f"{_named(k)}: {v:.1f} is above {limit:g}" for k, v in points if v > limit]
    return Seen(faults, len(points))


def _at_least(check: Check, points: list[Point]) -> Seen:
    limit = check.value or 0.0
    faults = [f"{_named(k)}: {v:.1f} is below {limit:g}" for k, v in points if v < limit]
    return Seen(faults, len(points))


def _groups(check: Check, points: list[Point]) -> list[dict[Key, float]]:
    """Values by the key `along`, one mapping for each setting of the other keys; those with a
    single value say nothing and are left out."""
    assert check.along is not None
    groups: dict[tuple[tuple[str, Key], ...], dict[Key, float]] = {}
    for keys, value in points:
        if check.along in keys:
            # A projector of no layers has no width: depth alone tells cells apart.
            hidden = {check.along, "width"} if check.along == "depth" else {check.along}
            rest = tuple(sorted((k, v) for k, v in keys.items() if k not in hidden))
            groups.setdefault(rest, {})[keys[check.along]] = value
    return [group for group in groups.values() if len(group) > 1]


def _monotone(check: Check, points: list[Point]) -> Seen:
    groups = _groups(check, points)
    sign = -1.0 if check.order == ["rising"] else 1.0
    faults = []
    for group in groups:
        line = sorted(group.items(), key=lambda item: float(item[0]))
        for (a, first), (b, second) in itertools.pairwise(line):
            if sign * (second - first) > check.tolerance:
                faults.append(f"{first:.1f} at {check.along} {a}, {second:.1f} at {b}")
        (a, first), (b, second) = line[0], line[-1]
        if sign * (first - second) < check.by:
            faults.append(f"{first:.1f} at {check.along} {a}, and {second:.1f} still at {b}")
    return Seen(faults, sum(map(len, groups)))


def _spread(check: Check, points: list[Point]) -> Seen:
    groups = _groups(check, points)
    faults = []
    for group in groups:
        width = max(group.values()) - min(group.values())
        if width > (check.value or 0.0):
            faults.append(f"values {width:.1f} points apart along {check.along}")
    return Seen(faults, sum(map(len, groups)))


def _order(check: Check, points: list[Point]) -> Seen:
    faults, used = [], 0
    for group in _groups(check, points):
        known = [(name, group[name]) for name in check.order if name in group]
        if len(known) < 2:
            continue
        used += len(known)
        if any(a <= b for (_, a), (_, b) in itertools.pairwise(known)):
            shown = ", ".join(f"{value:.1f} at {check.along} {name}" for name, value in known)
            faults.append(f"the values do not fall in this order: {shown}")
    return Seen(faults, used)


def _top(check: Check, points: list[Point]) -> Seen:
    assert check.along is not None
    along, places = check.along, int(check.value or 1)
    faults, used = [], 0
    for group in _groups(check, points):
        ours = [value for name, value in group.items() if name in check.order]
        if not ours:
            continue
        used += len(group)
        rivals = {name: value for name, value in group.items() if name not in check.order}
        before = sum(value >= min(ours) for value in rivals.values())
        if len(check.order) + before > places:
            best = max(rivals, key=lambda name: rivals[name])
            mine = next(name for name in check.order if group.get(name) == min(ours))
            beaten, ahead = (_label({along: name}, [along]) for name in (mine, best))
            faults.append(f"{ahead} has {rivals[best]:.1f}, {beaten} {min(ours):.1f}")
    return Seen(faults, used)


TESTS: dict[str, Callable[[Check, list[Point]], Seen]] = {
    "at_most": _at_most,
    "at_least": _at_least,
    "monotone": _monotone,
    "spread": _spread,
    "order": _order,
    "top": _top,
}
