"""What an attack may ask of a subject."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.draws import Randomness
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.view import Tapped, View, read


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


IMAGES = torch.arange(8.0).view(2, 1, 2, 2)


def test_features_and_logits_from_one_pass() -> None:
    logits, (half, again) = read(WithTaps(), IMAGES, ("half", "logits"))
    assert torch.equal(logits, IMAGES.flatten(1))
    assert torch.equal(again, logits)
    assert torch.equal(half, logits / 2)
    assert read(WithTaps(), IMAGES, None)[1] == ()


def test_the_default_tap_is_the_last_one_or_the_logits() -> None:
    assert torch.equal(read(WithTaps(), IMAGES, ())[1][0], IMAGES.flatten(1) / 2)
    assert torch.equal(read(nn.Flatten(), IMAGES, ())[1][0], IMAGES.flatten(1))
    assert torch.equal(read(lambda x: x.flatten(1) + 1, IMAGES, ())[1][0], IMAGES.flatten(1) + 1)


def test_parts_of_a_module_are_taps_too() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Flatten()), nn.Hardtanh())
    before = [len(part._forward_hooks) for part in net.modules()]
    logits, (relu, flat) = read(net, IMAGES - 3, ("0", "1.0"))
    assert torch.equal(relu, (IMAGES - 3).relu().flatten(1))
    assert torch.equal(flat, relu)
    assert torch.equal(logits, relu.clamp(-1, 1))
    assert [len(part._forward_hooks) for part in net.modules()] == before
    with pytest.raises(UserError, match="Sequential has no tap '7'"):
        read(net, IMAGES, ("0", "7"))
    assert [len(part._forward_hooks) for part in net.modules()] == before


def test_parts_that_do_not_run_or_give_no_tensor() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.pair = nn.ReLU(), nn.LSTM(4, 2, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.pair(images.flatten(1)[:, None])[0][:, 0]
            return logits

    with pytest.raises(UserError, match="tap 'idle' of Odd gives nothing"):
        read(Odd(), IMAGES, ("idle",))
    with pytest.raises(UserError, match="tap 'pair' of Odd gives tuple"):
        read(Odd(), IMAGES, ("pair",))


def test_randomness_of_a_view() -> None:
    assert View("a", nn.Flatten()).randomness is None
    assert View("a", nn.Flatten(), True, 8).randomness == Randomness(8, "vote", "loss_mean")
    net = WithTaps()
    net.random, net.draws = True, 3  # type: ignore[assignment]
    assert View("a", net).randomness == Randomness(3, "vote", "loss_mean")
    with pytest.raises(UserError, match="view 'a' is random with draws = 0"):
        _ = View("a", net, True, 0).randomness
