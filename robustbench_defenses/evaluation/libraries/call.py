"""What a call of a reference library is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...core.errors import UserError


@dataclass(frozen=True)
class Work:
    """What a library is given: `images` (B, C, H, W), `labels` (B,), the `target` (B,) of targeted
    questions, a budget (inf: none), a seed for generators of the library's own, and, for calls that
    want `donors` (B, C, H, W), the nearest image of the block that lies in another class."""

    images: Tensor
    labels: Tensor
    target: Tensor | None
    eps: float
    seed: int
    donors: Tensor | None = None


# Asks a module and gives candidate images (B, C, H, W), perhaps several for each example.
Run = Callable[[nn.Module, Work], Iterable[Tensor]]


@dataclass(frozen=True)
class Call:
    """A library's attacks for one of ours: `members` in order, each run `restarts` times by us, on
    what is left; `when_random`: other members for a subject that answers at random; `remark`: what
    the library does otherwise."""

    members: tuple[tuple[str, Run], ...]
    restarts: int = 1
    remark: str = ""
    when_random: tuple[tuple[str, Run], ...] | None = None
    donors: bool = False


# An attack of ours, whether a target class is wanted, and the number of classes.
Make = Callable[[Any, bool, int], Call]


def only(attack: Any, library: str, **taken: object) -> None:
    """A `UserError` where `attack` has another value than the only one that the library takes."""
    for name, value in taken.items():
        if (given := getattr(attack, name)) != value:
            raise UserError(f"{library} takes only {name}={value} here, not {name}={given}")
