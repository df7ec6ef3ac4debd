"""The lines under an item's tables: agreement, intervals, marks, what is missing and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import item_grid, text
from .item import Item, ItemCell

# Deviations that decide how far a number can be from the paper's, and how they are told.
SCHEDULE = {
    "epochs": "{} epochs instead of {}",
    "limit_train": "{} training images instead of {}",
}


def feet(item: Item) -> list[str]:
    """The lines under the table: agreement, intervals, marks, stand-ins, what is missing."""
    lines = [agreement(item), *_numbers(item), *_fewer(item), *_marks(item)]
    if item.strong_n:
        lines.append(
            "strong: worst case per image over all of the paper's attacks and AutoAttack, "
            f"n = {text.count(item.strong_n)}"
        )
    lines += [*flagged(item), *stand_ins(item), *schedule(item), *_faults(item), *absent(item)]
    return [line for line in lines if line]


def _fewer(item: Item) -> list[str]:
    """Which attacks had fewer images than the rest."""
    found: dict[int, list[str]] = {}
    for cell in item.headline():
        if cell.ours is not None and item.n and cell.ours.n < item.n:
            names = found.setdefault(cell.ours.n, [])
            attack = str(cell.keys.get("attack", ""))
            names += [attack] if attack not in names else []
    return [f"{', '.join(names)}: n = {text.count(n)}" for n, names in found.items()]


def agreement(item: Item) -> str:
    """How many cells are measured, how many are near, and whether the order is kept."""
    found = item.agreement
    if not found.measured:
        return ""
    line = (
        f"{found.measured} of {found.printed} printed cells measured · "
        f"{found.within_two} within 2 points"
    )
    if found.cited:
        own, near = found.measured - found.cited, found.within_two - found.cited_within_two
        line += f" (of the {own} that the paper did not copy: {near})" if own else " (all copied)"
    taus = [column.tau for column in found.columns if column.tau is not None]
    if taus:
        kept = sum(tau == 1 for tau in taus)
        line += (
            f" · printed order kept in {kept} of {len(taus)} columns "
            f"(Kendall tau {sum(taus) / len(taus):.2f} on average)"
        )
    return line


def _numbers(item: Item) -> list[str]:
    """Unit, widest interval and seeds of our numbers."""
    ours = [(cell.unit, cell.ours) for cell in item.headline() if cell.ours is not None]
    said = []
    for unit in dict.fromkeys(unit for unit, _ in ours):
        ends = [
            max(one.value - one.low, one.high - one.value)
            for other, one in ours
            if other == unit and one.low is not None and one.high is not None
        ]
        if ends:
            said.append(f"95 % interval up to ±{item_grid.value(max(ends), unit)}")
    seeds = max((len(one.seeds) for _, one in ours), default=0)
    if seeds > 1:
        said.append(f"mean over {seeds} seeds")
    unit = "" if item.unit in ("mixed", "none") else f"{item.metric} in {item.unit}"
    return [" · ".join(filter(None, [unit, *said]))] if said else []


def _marks(item: Item) -> list[str]:
    """One line per diagnostic that fired, with the defenses that it concerns."""
    names: dict[str, list[str]] = {}
    for cell in item.cells:
        for diagnostic in [] if cell.ours is None else cell.ours.flagged:
            concerned = names.setdefault(diagnostic.name, [])
            who = str(cell.keys.get("defense", ""))
            if who and who not in concerned:
                concerned.append(who)
    return [
        f"! {name}" + (f" ({', '.join(concerned)})" if concerned else "")
        for name, concerned in names.items()
    ]


def flagged(item: Item) -> list[str]:
    """One line for printed values that were copied, and one per flag, with the places."""
    printed = [cell for cell in item.headline() if cell.printed is not None]
    measured = [cell for cell in printed if cell.ours is not None]
    copied = [cell for cell in measured if cell.cited]
    lines = [_concerned("probably copied from other papers", copied, measured, item)]
    for flag in dict.fromkeys(cell.flag for cell in printed if cell.flag):
        cells = [cell for cell in printed if cell.flag == flag]
        lines.append(_concerned(f"printed, {flag.replace('_', ' ')}", cells, printed, item))
    return [line for line in lines if line]


def _concerned(said: str, cells: Sequence[ItemCell], among: Sequence[ItemCell], item: Item) -> str:
    """`said` and the cells: by a key of which these are all that there are, or one by one."""
    if not cells:
        return ""
    for name in (*item.columns, *item.rows):
        keys = list(dict.fromkeys(cell.keys[name] for cell in cells if name in cell.keys))
        if [cell for cell in among if cell.keys.get(name) in keys] == list(cells):
            labels = [item_grid.key_label(name, key) for key in keys]
            numbers = not all(isinstance(key, str) for key in keys)
            return f"{said}: {f'{name} ' * numbers}{', '.join(labels)} ({_cells(len(cells))})"
    names = (*item.rows, *item.columns)
    few = "; ".join(item_grid.named(cell, names) for cell in cells[:3])
    more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
    return f"{said}: {few}{more} ({_cells(len(cells))})"


def stand_ins(item: Item) -> list[str]:
    """One line per data set that took the place of others."""
    places: dict[str, list[str]] = {}
    for asked, used in item.stand_ins.items():
        places.setdefault(used, []).append(asked)
    return [
        f"{used} stands in for {listed(asked)}: not the data that the paper used"
        for used, asked in places.items()
    ]


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def schedule(item: Item) -> list[str]:
    """How the trainings differ from the paper's, in one line: epochs and training images, and how
    many other settings."""
    values: dict[str, list[tuple[str, str]]] = {}
    for deviation in (one for run in item.runs for one in run.deviations):
        name, _, rest = deviation.partition(" ")
        ours, _, theirs = rest.partition(" instead of ")
        values.setdefault(name, []).append((ours, theirs))
    said = []
    for name, form in SCHEDULE.items():
        if name in values:
            ours, theirs = map(_range, zip(*values.pop(name)))
            everything = name == "limit_train" and theirs == "0"
            said.append(form.format(ours, "all" if everything else theirs))
    if values:
        several = len(values) > 1
        more = "other " if said else ""
        said.append(f"{len(values)} {more}setting{'s differ' if several else ' differs'}")
    return [f"{item.preset}: {', '.join(said)}"] if said else []


def _range(values: Iterable[str]) -> str:
    """`40 to 300` of several numbers, or one value; where they are no numbers, all of them."""
    found = list(dict.fromkeys(values))
    try:
        found = list(dict.fromkeys([min(found, key=float), max(found, key=float)]))
    except ValueError:
        return listed(found)
    return " to ".join(text.count(int(one)) if one.isdigit() else one for one in found)


def _faults(item: Item) -> list[str]:
    """One line per warning of a training."""
    return [f"training {run.id}: {sentence}" for run in item.runs for sentence in run.warnings]


def absent(item: Item) -> list[str]:
    """Why cells have no number of ours."""
    lines = []
    for status, said in (("failed", "failed"), ("missing_data", "cannot be measured here")):
        for older in (False, True):
            cells = [
                cell for cell in item.cells
                if cell.status == status and (cell.ours is not None) == older
            ]  # fmt: skip
            reasons = dict.fromkeys(cell.reason for cell in cells if cell.reason)
            if cells:
                cause = "; ".join(reasons) or "no reason is stored"
                shows = "shows" if len(cells) == 1 else "show"
                shown = f" this time and {shows} an earlier number" if older else ""
                lines.append(f"{_cells(len(cells))} {said}{shown}: {cause}")
    cited = sum(cell.status == "cited" and cell.ours is None for cell in item.headline())
    if cited:
        lines.append(f"{_cells(cited)} cited by the paper only, not run by us")
    return lines


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"
