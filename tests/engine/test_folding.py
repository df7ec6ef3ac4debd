"""Batch normalization in the convolution before it: when, and what stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.view import View
from robustbench_defenses.engine.folding import fold
from robustbench_defenses.engine.twin import search_twin
from tests.engine.small import gradient, images, relative

SHAPE = (3, 12, 12)


class Block(nn.Module):
    """A residual network of one block; `wiring` says what else happens to its maps."""

    def __init__(self, wiring: str = "usual") -> None:
        super().__init__()
        self.wiring = wiring
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)
        self.idle, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.stem(x)).relu_()
        inner = self.conv1(x)
        if self.wiring == "changed between":
            inner.mul_(2)
        y = self.norm1(inner).relu()
        if self.wiring == "read elsewhere":
            y = y + inner
        last = self.norm2(self.conv2(y))
        if self.wiring == "convolved twice":
            last = last + self.norm2.running_mean.mean() + self.conv2(x).mean()
        if self.wiring == "normalized twice":
            last = self.norm2(last)
        return self.head((x + last).mean((2, 3)))


def block(wiring: str = "usual") -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Block(wiring)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 2)
                layer.running_var.uniform_(0.2, 2)
                if layer.affine:
                    nn.init.normal_(layer.weight)
                    nn.init.normal_(layer.bias)
    return net.eval()


def folded(net: nn.Module) -> list[bool]:
    """Of the normalizations of a block, which pass on what they are given."""
    given = torch.randn(2, 8, 4, 4)
    return [
        torch.equal(getattr(net, name)(given), given)
        for name in ("norm0", "norm1", "norm2", "idle")
    ]


def test_a_folded_network_answers_as_before() -> None:
    net, x = block(), images(8, SHAPE)
    expected, weight = net(x).detach(), torch.randn(8, 10)
    slope = gradient(net, x, weight)
    assert fold(net, x) == 3
    assert folded(net) == [True, True, True, False]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert relative(gradient(net, x, weight), slope) < 1e-4
    assert not any(weight.requires_grad for weight in net.parameters())


@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        ("changed between", [True, False, True, False]),
        ("convolved twice", [True, True, False, False]),
        ("normalized twice", [True, True, False, False]),
    ],
)
def test_layers_that_are_used_otherwise_stay(wiring: str, expected: list[bool]) -> None:
    net, x = block(wiring), images(4, SHAPE)
    before = net(x).detach()
    fold(net, x)
    assert folded(net) == expected
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)


def test_normalization_by_the_batch_stays() -> None:
    for change in (
        lambda net: net.norm1.train(),
        lambda net: setattr(net, "norm1", nn.BatchNorm2d(8, track_running_stats=False).eval()),
        lambda net: net.norm1.register_forward_hook(lambda *given: None),
        lambda net: net.conv1.register_forward_pre_hook(lambda *given: None),
    ):
        net = block()
        change(net)
        assert fold(net, images(4, SHAPE)) == 2
        assert net.norm1.forward.__name__ == "forward"


@pytest.mark.parametrize("wiring", ["usual", "changed between", "read elsewhere"])
def test_a_bf16_twin_is_folded_only_where_that_changes_nothing(wiring: str) -> None:
    net, x = block(wiring), images(8, SHAPE)
    twin = search_twin(View("v", net), x, "bf16")
    assert twin.autocast
    assert twin.folded is (wiring != "read elsewhere")
    assert relative(twin(x), net(x)) < 0.01
    torch.testing.assert_close(twin(x, fine=True), net(x), rtol=1e-4, atol=1e-4)
    weight = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    assert relative(gradient(twin, x, weight), gradient(net, x, weight)) < 0.05
    assert folded(net) == [False] * 4


def test_features_are_those_of_the_network() -> None:
    net, x = block(), images(8, SHAPE)
    expected = net.conv1(net.norm0(net.stem(x)).relu()).flatten(1).detach()
    for asked in (False, True):
        twin = search_twin(View("v", net), x, "bf16", features=asked)
        assert twin.autocast
        assert twin.folded is not asked
        _, (found,) = twin.see(x, taps=("conv1",))
        assert relative(found, expected) < (0.01 if asked else 1e-5)


def test_a_rounded_bias_shifts_no_channel() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(512, 10))
    x = images(8, SHAPE)
    with torch.no_grad():
        net[1].bias.uniform_(10.02, 10.04)
    twin = search_twin(View("v", net.eval()), x, "bf16")
    assert twin.autocast
    maps: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, given: object, output: Tensor) -> None:
        maps[layer] = output.detach().float().mean((0, 2, 3))

    assert isinstance(twin.coarse, nn.Sequential)
    for network in (net, twin.coarse):
        network[1].register_forward_hook(keep)
    net(x), twin(x)
    assert (maps[twin.coarse[1]] - maps[net[1]]).abs().max() < 0.01  # bf16 near 10: 1/16 apart


Build = Callable[[], nn.Module]


def pre_activation() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(400, 10),
    ).eval()  # fmt: skip


def without_normalization() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 10)).eval()


@pytest.mark.parametrize("build", [pre_activation, without_normalization])
def test_nothing_to_fold(build: Build) -> None:
    net, x = build(), images(4, SHAPE)
    twin = search_twin(View("v", net), x, "bf16")
    assert twin.autocast
    assert not twin.folded
    assert fold(net, x) == 0
