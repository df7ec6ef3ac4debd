"""Views: what an attack may ask of a subject, and nothing else.

A view maps float images (N, C, H, W) in [0, 1] to logits (N, K). Where a network offers them, it
also gives named taps: intermediate features, one tensor (N, ...) per name, from one forward pass
and without hooks. A network of ours says so by two attributes, `tap_names` and `tapped`. Of any
other module the outputs of its parts can be read, under the parts' names. Every subject has the
tap `logits`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from .draws import Aggregation, Eot, Randomness, declared, randomness_of
from .errors import UserError

Logits = Callable[[Tensor], Tensor]
LOGITS = "logits"


@runtime_checkable
class Tapped(Protocol):
    """A network whose intermediate features can be read by name."""

    tap_names: tuple[str, ...]

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        """All taps of one forward pass, by name, and the logits as `logits`."""
        ...


@dataclass(frozen=True)
class View:
    """A differentiable map from images to logits, as an attacker sees it.

    `logits`: an `nn.Module` or any callable; `random`: its answers differ from call to call, so
    gradients are averaged over `draws` (EOT) as `eot` says (none: as `aggregation` does). A module
    that declares its randomness itself needs none of this here.
    """

    name: str
    logits: Logits
    random: bool = False
    draws: int = 1
    aggregation: Aggregation = "vote"
    eot: Eot | None = None

    @property
    def module(self) -> nn.Module | None:
        """The module behind the view, or None for a bare callable."""
        return self.logits if isinstance(self.logits, nn.Module) else None

    @property
    def tap_names(self) -> tuple[str, ...]:
        return self.logits.tap_names if isinstance(self.logits, Tapped) else ()

    @property
    def randomness(self) -> Randomness | None:
        """How the view answers where it does so at random."""
        if self.random:
            return declared(f"view {self.name!r}", self.draws, self.aggregation, self.eot)
        return randomness_of(self.logits)


def read(
    subject: Logits, images: Tensor, taps: tuple[str, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits (N, K) and the features (N, D) of `taps`, flattened, from one forward pass.

    A tap is one of the network's own, `logits`, or the name of a part of a module, whose output is
    taken. A name that is none of these is a `UserError`. Empty: the network's last tap before the
    logits, or the logits where it names none; None: no features.
    """
    if taps is None:
        return subject(images), ()
    own = subject.tap_names if isinstance(subject, Tapped) else ()
    taps = taps or own[-1:] or (LOGITS,)
    parts = [name for name in taps if name != LOGITS and name not in own]
    found: dict[str, Any] = {}
    with _listening(subject, parts, own, found):
        if isinstance(subject, Tapped) and any(name in own for name in taps):
            found |= subject.tapped(images)
        else:
            found[LOGITS] = subject(images)
    for name in taps:
        if not isinstance(found.get(name), Tensor):
            said = type(found[name]).__name__ if name in found else "nothing"
            raise UserError(f"tap {name!r} of {type(subject).__name__} gives {said}, no tensor")
    return found[LOGITS], tuple(found[name].flatten(1) for name in taps)


@contextlib.contextmanager
def _listening(
    subject: Logits, parts: list[str], own: tuple[str, ...], found: dict[str, Any]
) -> Iterator[None]:
    """Inside, a pass writes the outputs of the parts of these names into `found`."""
    inner = dict(subject.named_modules()) if isinstance(subject, nn.Module) and parts else {}
    handles = []
    try:
        for name in parts:
            if not name or name not in inner:
                known = ", ".join([*own, LOGITS])
                raise UserError(
                    f"{type(subject).__name__} has no tap {name!r}",
                    hint=f"it names {known}; the name of a part of the module will do too",
                )
            handles.append(
                inner[name].register_forward_hook(
                    lambda part, given, output, name=name: found.__setitem__(name, output)
                )
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
