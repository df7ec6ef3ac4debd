"""What a preset means for a reproduction: how many examples, how strong, what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Level:
    """`n` test examples (-1: all), `few` for slow attacks by name, `strong_n` for `--strong`, whose
    AutoAttack has the parameters `strong`; `collapse`: every data set becomes this one, on its
    default networks; `two_points`: sweeps without printed numbers keep their first and their middle
    point; `attacks`: parameters that replace those of the recipes, by attack."""

    n: int
    strong_n: int
    few: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    strong: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    collapse: str | None = None
    two_points: bool = False
    attacks: Mapping[str, Mapping[str, object]] = field(
        default_factory=lambda: MappingProxyType({})
    )


LEVELS: dict[str, Level] = {
    "smoke": Level(
        n=100,
        strong_n=40,
        strong={"steps": 10, "n_queries": 100},
        collapse="digits",
        two_points=True,
        attacks={"cw": {"steps": 10, "search_steps": 2}},
    ),
    "quick": Level(n=1000, strong_n=200, few={"cw": 200}),
    "short": Level(n=-1, strong_n=1000),
    "paper": Level(n=-1, strong_n=1000),
}

# Data sets that may take another's place where the user says so.
STAND_INS = {"cifar10": "cifar10_jpeg"}
