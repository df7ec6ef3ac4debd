"""Whether the paper's statements hold: for our numbers, and for the printed ones.

greater   every cell that `where` and `left` match lies above (by `by`) its twin, the cell whose
          keys differ only as `right` says
at_most, at_least   every cell against `value`
monotone  along the key `along`, rising, values never rise by more than `tolerance` (`order:
          [rising]`: never fall), and the last lies below (above) the first by `by` at least
spread    largest minus smallest value along a key is at most `value`
order     values fall along a key in the order given
top       the best `value` (1) places along a key hold only entries of `order`
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from ..report.item import ItemCell, ItemClaim, Key
from .recipe import Check, Claim, Where, matches

Value = Callable[[ItemCell], float | None]
Point = tuple[Mapping[str, Key], float]


def judge(claim: Claim, cells: Sequence[ItemCell]) -> ItemClaim:
    """The claim with its verdicts on headline `cells`; without a check, or cells, undecided."""
    if claim.check is None:
        return ItemClaim(id=claim.id, text=claim.text)
    ours = _points(claim.check, cells, lambda cell: cell.ours.value if cell.ours else None)
    printed = _points(claim.check, cells, lambda cell: cell.printed)
    seen = TESTS[claim.check.kind](claim.check, ours)
    return ItemClaim(
        id=claim.id,
        text=claim.text,
        ours=None if seen is None else not seen,
        printed=_holds(TESTS[claim.check.kind](claim.check, printed)),
        sentence="" if seen is None else _sentence(seen),
    )


def _holds(faults: list[str] | None) -> bool | None:
    return None if faults is None else not faults


def _sentence(faults: list[str]) -> str:
    if not faults:
        return "holds"
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"does not hold: {faults[0]}{more}"


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


def _label(keys: Mapping[str, Key], names: Sequence[str]) -> str:
    return " ".join(str(keys[name]) for name in names if name in keys and keys[name] != "none")


def _named(keys: Mapping[str, Key]) -> str:
    return _label(keys, [name for name in keys if name not in ("setting", "budget")])


def _greater(check: Check, points: list[Point]) -> list[str] | None:
    """Faults of pairs; None where no pair is complete."""
    changed = [*check.left, *check.right]
    rights = {
        tuple(sorted((k, v) for k, v in keys.items() if k not in changed)): (keys, value)
        for keys, value in points
        if matches(check.right, keys)
    }
    faults, pairs = [], 0
    for keys, value in points:
        if not matches(check.left, keys):
            continue
        rest = tuple(sorted((k, v) for k, v in keys.items() if k not in changed))
        if rest not in rights or rights[rest][0] is keys:
            continue
        pairs += 1
        other, against = rights[rest]
        if not value > against + check.by:
            faults.append(f"{_named(keys)} {value:.1f} against {_named(other)} {against:.1f}")
    return faults if pairs else None


def _at_most(check: Check, points: list[Point]) -> list[str] | None:
    limit = check.value or 0.0
    faults = [f"{_named(k)} {v:.1f} is above {limit:g}" for k, v in points if v > limit]
    return faults if points else None


def _at_least(check: Check, points: list[Point]) -> list[str] | None:
    limit = check.value or 0.0
    faults = [f"{_named(k)} {v:.1f} is below {limit:g}" for k, v in points if v < limit]
    return faults if points else None


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


def _monotone(check: Check, points: list[Point]) -> list[str] | None:
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
    return faults if groups else None


def _spread(check: Check, points: list[Point]) -> list[str] | None:
    groups = _groups(check, points)
    faults = []
    for group in groups:
        width = max(group.values()) - min(group.values())
        if width > (check.value or 0.0):
            faults.append(f"values {width:.1f} points apart along {check.along}")
    return faults if groups else None


def _order(check: Check, points: list[Point]) -> list[str] | None:
    faults, whole = [], 0
    for group in _groups(check, points):
        values = [group.get(name) for name in check.order]
        if any(value is None for value in values):
            continue
        whole += 1
        known = [value for value in values if value is not None]
        if any(a < b for a, b in itertools.pairwise(known)):
            shown = ", ".join(f"{v:.1f} at {check.along} {n}" for n, v in zip(check.order, known))
            faults.append(f"the values do not fall in this order: {shown}")
    return faults if whole else None


def _top(check: Check, points: list[Point]) -> list[str] | None:
    places = int(check.value or 1)
    faults, whole = [], 0
    for group in _groups(check, points):
        ours = [value for name, value in group.items() if name in check.order]
        if not ours:
            continue
        whole += 1
        ranked = sorted(group.values(), reverse=True)
        # With one name: it is among the best `places`; with several: they are these places.
        worst = ours[0] if len(check.order) == 1 else min(ours)
        if worst < ranked[min(places, len(ranked)) - 1]:
            best = max(group, key=lambda name: group[name])
            faults.append(f"{best} has {group[best]:.1f}, {check.order[0]} {ours[0]:.1f}")
    return faults if whole else None


TESTS: dict[str, Callable[[Check, list[Point]], list[str] | None]] = {
    "greater": _greater,
    "at_most": _at_most,
    "at_least": _at_least,
    "monotone": _monotone,
    "spread": _spread,
    "order": _order,
    "top": _top,
}
