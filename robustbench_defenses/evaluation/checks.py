"""What a diagnostic is: its card, the decorator that registers one, and the verdict it gives.

A check is one function under its card:

    @check("D6", "zero gradient", levels={"warning": 0.0, "error": 0.01}, ...)
    def zero_gradient(e: Evidence) -> Finding | Skip: ...

Those of `diagnostics.py` look at the evidence of every stored result; those of the folder `battery`
ask more of the subject, under `--diagnose`. The card is a literal: `cards()` reads all of them
without importing anything heavy, for `rrd info` and the documentation.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..core.errors import UserError, did_you_mean
from ..core.registry import normal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from .schema import Diagnostic

HERE = Path(__file__).parent
ALWAYS = "diagnostics.py"  # its checks see every stored result
ORDER = ("error", "warning", "info")
GROUPS = ("measurement", "attack", "gradients", "number")
ROUNDING = 1e-9  # a difference of two shares may exceed what it is by this much
LISTED = 20  # images that a fired check names

# A level is a number, or ("images", x): x, but never less than two images (`tolerance`).
Level = float | tuple[str, float]
Levels = Mapping[str, Level]
UNITS = {"%": (100.0, " %"), "points": (100.0, " points"), "": (1.0, "")}


@dataclass(frozen=True)
class Card:
    """What is fixed about a check.

    `levels`: above which value it fires, by severity; `unit` of the value: % (a share), points
    (a difference of shares) or none; `blames`: measurement, attack, gradients or number;
    `passes`: forward and backward example-passes on each of `images` images, at most; `cause`: why
    the number is wrong, as the end of the sentence "No: ...".
    """

    id: str
    name: str
    levels: Mapping[str, Level]
    blames: str
    formula: str
    means: str
    do: str
    unit: str = ""
    passes: tuple[int, int] = (0, 0)
    images: int = 200
    also: str = ""
    cause: str = ""
    source: str = ""
    file: str = ""

    @property
    def number(self) -> int:
        """The check's place in the list."""
        return int(self.id[1:])

    @property
    def always(self) -> bool:
        """True for a check of every stored result."""
        return self.file == ALWAYS

    @property
    def thresholds(self) -> str:
        """`warning > 0 %, error > 1 %` and what else makes it fire."""
        parts = [f"{level} > {self.shown(self.levels[level])}" for level in self.levels]
        return ", ".join([*reversed(parts), *([self.also] if self.also else [])])

    @property
    def cost(self) -> str:
        """Its example-passes under --diagnose in words; stored results have what they need."""
        forward, backward = self.passes
        if not forward:
            return "none"
        passes = f"{forward:,} forward" + (f", {backward:,} backward" if backward else "")
        return f"{passes} on each of {self.images} images"

    def shown(self, level: Level) -> str:
        """A value or level in the check's unit."""
        factor, unit = UNITS[self.unit]
        if isinstance(level, tuple):
            return f"{self.shown(max(level[1], tolerance(1000)))} and two images"
        amount = f"{factor * level:.3g}"
        return f"{amount}{unit.removesuffix('s') if amount == '1' else unit}"

    def document(self) -> dict[str, Any]:
        """The card in JSON's terms."""
        return {
            "kind": "diagnostic",
            "id": self.id,
            "name": self.name,
            "blames": self.blames,
            "formula": self.formula,
            "levels": {name: _plain(level) for name, level in self.levels.items()},
            "unit": self.unit,
            "thresholds": self.thresholds,
            "runs": "on every result" if self.always else "under --diagnose",
            "cost": self.cost,
            "means": self.means,
            "do": self.do,
            "source": self.source,
        }


@dataclass(frozen=True)
class Finding:
    """What a check saw: its `value`, in a sentence; `images`: numbers of those concerned.

    `levels`, `eps`, `n`: where they are not the card's, the question's or that of all examples.
    """

    value: float
    sentence: str
    images: Sequence[int] | NDArray[np.int64] | Tensor = ()
    levels: Levels | None = None
    n: int | None = None
    eps: float | None = None


@dataclass(frozen=True)
class Skip:
    """Why a check could not run; `n`: how many examples there were."""

    reason: str
    n: int = 0


class Source(Protocol):
    """What a check is asked about: the evidence of a result, or a probe."""

    @property
    def attack(self) -> str:
        """The attack in question."""

    @property
    def eps(self) -> float | None:
        """The budget, None where there are several."""

    @property
    def n(self) -> int:
        """Number of examples."""


S = TypeVar("S", bound=Source)


@dataclass(frozen=True)
class Check(Generic[S]):
    """A card and its function; called, it gives the diagnostic."""

    card: Card
    function: Callable[[S], Finding | Skip]

    def __call__(self, source: S) -> Diagnostic:
        """The verdict about `source`."""
        return diagnostic(self.card, self.function(source), source)


def registrar(
    into: list[Check[S]],
) -> Callable[..., Callable[[Callable[[S], Finding | Skip]], Check[S]]]:
    """The decorator `check(id, name, **card)` that adds checks to the list `into`."""

    def check(
        id: str, name: str, **about: Any
    ) -> Callable[[Callable[[S], Finding | Skip]], Check[S]]:
        def register(function: Callable[[S], Finding | Skip]) -> Check[S]:
            file = Path(function.__code__.co_filename).relative_to(HERE).as_posix()
            one = Check(Card(id, name, file=file, **about), function)
            into.append(one)
            return one

        return register

    return check


def tolerance(n: int) -> float:
    """What two equal attacks may differ by on `n` examples."""
    return max(0.002, 2 / max(n, 1))


def diagnostic(card: Card, found: Finding | Skip, source: Source) -> Diagnostic:
    """The stored form of what a check found."""
    from .schema import Diagnostic

    common: dict[str, Any] = {"id": card.id, "name": card.name, "attack": source.attack}
    if isinstance(found, Finding) and not math.isfinite(found.value):
        found = Skip("its value is not a finite number", source.n)
    if isinstance(found, Skip):
        return Diagnostic(
            severity="info", value=None, threshold=None, n=found.n, fired=False, eps=source.eps,
            sentence=f"not checked: {found.reason}", skipped=found.reason, **common,
        )  # fmt: skip
    n = source.n if found.n is None else found.n
    levels = card.levels if found.levels is None else found.levels
    limits = {name: _limit(levels[name], n) for name in ORDER if name in levels}
    fired = [name for name, limit in limits.items() if found.value > limit + ROUNDING]
    severity = fired[0] if fired else "info"
    threshold = limits[severity] if fired else min(limits.values(), default=None)
    return Diagnostic(
        severity=severity, value=found.value, threshold=threshold, n=n, fired=bool(fired),  # type: ignore[arg-type]
        eps=source.eps if found.eps is None else found.eps, sentence=found.sentence,
        images=[int(i) for i in found.images[:LISTED]] if fired else [],
        hint=card.do if fired else None, **common,
    )  # fmt: skip


def _limit(level: Level, n: int) -> float:
    return max(tolerance(n), level[1]) if isinstance(level, tuple) else level


def cards() -> list[Card]:
    """The cards of all checks by number, read from the sources."""
    files = [HERE / ALWAYS, *sorted((HERE / "battery").glob("*.py"))]
    found = [card for path in files for card in _read(path)]
    return sorted(found, key=lambda card: card.number)


def find(name: str) -> Card:
    """The card of a check by its id or name; case and hyphens do not matter."""
    known = cards()
    for card in known:
        if normal(name) in (normal(card.name), card.id.lower()):
            return card
    names = [normal(card.name) for card in known]
    raise UserError(f"unknown diagnostic {name!r}", hint=did_you_mean(normal(name), names, "D1"))


def _read(path: Path) -> list[Card]:
    """The cards that stand above the functions of a file."""
    found = []
    for node in ast.parse(path.read_bytes()).body:
        for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "check":
                about: dict[str, Any] = {
                    str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords
                }
                about["id"], about["name"] = map(ast.literal_eval, call.args)
                found.append(Card(file=path.relative_to(HERE).as_posix(), **about))
    return found


def _plain(level: Level) -> Any:
    return list(level) if isinstance(level, tuple) else level
