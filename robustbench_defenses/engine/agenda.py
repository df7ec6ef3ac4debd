"""Which piece of work comes next: (example, budget, restart) in an order that wastes none.

In an `envelope` sweep an example climbs the grid: all restarts at one budget, then the next budget,
until it breaks; what broke at a budget counts as broken at all larger ones. In an `independent`
sweep every budget is attacked afresh. Free places are filled with later restarts of examples that
are still running; later budgets of one example are started ahead of time only when the batch would
otherwise be almost empty, because a success at the smaller budget makes them worthless.

The success that counts is the first in order of (budget, restart), whichever came first in time, so
an outcome does not depend on what happened to run side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

# Below this many running rows a pass costs the same for a few rows more (measured on the CPU).
ALMOST_EMPTY = 32


class Item(NamedTuple):
    """One run of an attack: positions of the example in the block and of the budget in the grid."""

    example: int
    budget: int
    restart: int


@dataclass
class _Unit:
    """The runs of one example (independent: of one example at one budget), in order."""

    items: list[Item]
    position: int = 0
    running: int = 0
    counted: int = 0  # items that ended or became worthless


@dataclass
class Agenda:
    """Hands out items and forgets those that a success has made worthless."""

    examples: Iterable[int]
    budgets: int
    restarts: int
    sweep: str
    first: dict[int, tuple[int, int]] = field(default_factory=dict)  # example: (budget, restart)
    broken: dict[tuple[int, int], int] = field(default_factory=dict)  # (example, budget): restart

    def __post_init__(self) -> None:
        self._units: dict[tuple[int, int], _Unit] = {}
        grid = range(self.budgets)
        starts = range(self.restarts)
        for budget in [0] if self.sweep == "envelope" else grid:
            for example in self.examples:
                mine = grid if self.sweep == "envelope" else [budget]
                items = [Item(example, one, restart) for one in mine for restart in starts]
                if items:
                    self._units[self._name(items[0])] = _Unit(items)
        self._total = sum(len(unit.items) for unit in self._units.values())
        self._ended = 0
        self._ready = deque(self._units)
        self._busy: dict[tuple[int, int], None] = {}

    def _name(self, item: Item) -> tuple[int, int]:
        return (item.example, 0 if self.sweep == "envelope" else item.budget)

    def worthless(self, item: Item) -> bool:
        """True when a success already decides what `item` could tell."""
        if self.sweep == "envelope":
            known = self.first.get(item.example)
            return known is not None and (item.budget, item.restart) >= known
        restart = self.broken.get((item.example, item.budget))
        return restart is not None and item.restart >= restart

    def succeed(self, item: Item) -> bool:
        """Note that the example fell at the item's budget; True when no earlier success counts."""
        place = (item.example, item.budget)
        self.broken[place] = min(item.restart, self.broken.get(place, item.restart))
        mine = (item.budget, item.restart)
        known = self.first.get(item.example)
        if known is not None and known <= mine:
            return False
        self.first[item.example] = mine
        return True

    def leave(self, item: Item) -> None:
        """Note that a running item has ended, whatever came of it."""
        name = self._name(item)
        unit = self._units[name]
        unit.running -= 1
        counted = unit.counted + 1
        if unit.running == 0:
            self._busy.pop(name, None)
            if self._peek(unit) is not None:
                self._ready.append(name)
            else:
                counted = len(unit.items)
        self._ended += counted - unit.counted
        unit.counted = counted

    @property
    def share(self) -> float:
        """Share of all items that ended or became worthless."""
        return self._ended / max(1, self._total)

    @property
    def total(self) -> int:
        """Number of all items."""
        return self._total

    def _peek(self, unit: _Unit) -> Item | None:
        while unit.position < len(unit.items):
            item = unit.items[unit.position]
            if not self.worthless(item):
                return item
            unit.position += 1
        return None

    def _start(self, name: tuple[int, int], unit: _Unit, item: Item) -> Item:
        unit.position += 1
        unit.running += 1
        self._busy[name] = None
        return item

    def take(self, free: int, running: int) -> list[Item]:
        """At most `free` items to start now, while `running` rows are under way."""
        taken: list[Item] = []
        while self._ready and len(taken) < free:
            name = self._ready.popleft()
            unit = self._units[name]
            item = self._peek(unit)
            if item is not None:
                taken.append(self._start(name, unit, item))
        if self._ready:
            return taken
        taken += self._ahead(free - len(taken), running + len(taken))
        return taken

    def _ahead(self, free: int, running: int) -> list[Item]:
        """Items of busy examples, started early because there is room."""
        taken: list[Item] = []
        for name in list(self._busy):
            if len(taken) >= free:
                break
            unit = self._units[name]
            item = self._peek(unit)
            if item is None:
                continue
            same_budget = item.budget == unit.items[unit.position - 1].budget
            if same_budget or running + len(taken) < ALMOST_EMPTY:
                taken.append(self._start(name, unit, item))
        return taken


@dataclass
class Again:
    """An agenda of given items, for runs that are repeated in float32."""

    agenda: Agenda
    items: deque[Item]

    def take(self, free: int, running: int) -> list[Item]:
        """At most `free` items that are still worth something."""
        taken: list[Item] = []
        while self.items and len(taken) < free:
            item = self.items.popleft()
            if not self.worthless(item):
                taken.append(item)
        return taken

    def worthless(self, item: Item) -> bool:
        """As the first agenda says."""
        return self.agenda.worthless(item)

    def succeed(self, item: Item) -> bool:
        """As the first agenda does."""
        return self.agenda.succeed(item)

    def leave(self, item: Item) -> None:
        """Nothing follows a repeated item."""

    @property
    def share(self) -> float:
        """As the first agenda says: the repeats are few."""
        return self.agenda.share

    @property
    def total(self) -> int:
        """As the first agenda says."""
        return self.agenda.total
