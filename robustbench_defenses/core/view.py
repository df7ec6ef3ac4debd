"""Views: what an attack may ask of a subject, and nothing else.

A view maps float images (N, C, H, W) in [0, 1] to logits (N, K). Where a network offers them, it
also gives named taps: intermediate features, one tensor (N, ...) per name, from one forward pass
and without hooks. A network of ours says so by two attributes, `tap_names` and `tapped`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

Logits = Callable[[Tensor], Tensor]


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
    gradients are averaged over `draws` (EOT).
    """

    name: str
    logits: Logits
    random: bool = False
    draws: int = 1

    @property
    def module(self) -> nn.Module | None:
        """The module behind the view, or None for a bare callable."""
        return self.logits if isinstance(self.logits, nn.Module) else None

    @property
    def tap_names(self) -> tuple[str, ...]:
        return self.logits.tap_names if isinstance(self.logits, Tapped) else ()
