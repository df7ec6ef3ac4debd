"""What an attack may ask of a subject."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.view import Tapped, View


class WithTaps(nn.Module):
    tap_names = ("half",)

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        return {"half": images.flatten(1) / 2, "logits": self(images)}

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_a_module_is_seen_as_one() -> None:
    net = nn.Flatten()
    view = View("deployed", net)
    assert view.module is net
    assert view.tap_names == ()
    assert (view.random, view.draws) == (False, 1)


def test_a_bare_callable_has_no_module() -> None:
    view = View("votes", lambda images: images.flatten(1), random=True, draws=8)
    assert view.module is None
    assert view.tap_names == ()
    assert (view.random, view.draws) == (True, 8)


def test_taps_are_found() -> None:
    net = WithTaps()
    assert isinstance(net, Tapped)
    assert not isinstance(nn.Flatten(), Tapped)
    assert View("deployed", net).tap_names == ("half",)
    taps = net.tapped(torch.ones(2, 1, 2, 2))
    assert sorted(taps) == ["half", "logits"]


def test_views_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        View("a", nn.Flatten()).draws = 2  # type: ignore[misc]
