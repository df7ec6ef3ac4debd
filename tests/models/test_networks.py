"""The networks: sizes, taps, and that nothing but the weights decides what they answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.registry import entries, find
from robustbench_defenses.core.view import Tapped
from robustbench_defenses.models.cnn6 import CNN6, CNN6Network
from robustbench_defenses.models.lenet import LeNet

NAMES = [entry.name for entry in entries("model")]
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 9, 13)]


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_network_maps_images_to_logits_with_gradient(
    name: str, shape: tuple[int, int, int]
) -> None:
    network = find("model", name).create().build(shape, 7)
    images = torch.rand(3, *shape, requires_grad=True)
    logits = network(images)
    assert logits.shape == (3, 7)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_taps_come_from_the_same_pass_as_the_logits(name: str) -> None:
    network = find("model", name).create().build((1, 28, 28), 10).eval()
    assert isinstance(network, Tapped)
    images = torch.rand(2, 1, 28, 28)
    taps = network.tapped(images)
    assert set(taps) == {*network.tap_names, "logits"}
    assert torch.equal(taps["logits"], network(images))
    assert all(len(tap) == 2 for tap in taps.values())


def test_lenet_has_the_size_of_the_mnist_challenge_network() -> None:
    # 5*5*32 + 32, 5*5*32*64 + 64, 3136*1024 + 1024, 1024*10 + 10
    network = LeNet().build((1, 28, 28), 10)
    assert count(network) == 832 + 51_264 + 3_212_288 + 10_250
    assert isinstance(network, Tapped)
    taps = network.tapped(torch.rand(2, 1, 28, 28))
    assert taps["conv1"].shape == (2, 32, 14, 14)
    assert taps["conv2"].shape == (2, 64, 7, 7)
    assert taps["fc1"].shape == (2, 1024)


def test_cnn6_has_the_printed_taps_and_parameter_count() -> None:
    network = CNN6().build((1, 28, 28), 10)
    assert count(network) == 1_418_666
    assert isinstance(network, Tapped)
    taps = network.tapped(torch.rand(2, 1, 28, 28))
    sizes = {name: tap.shape[1] for name, tap in taps.items()}
    assert sizes == {"features": 1152, "fc512": 512, "fc64": 64, "logits": 10}


def test_half_width_cnn6_halves_the_features() -> None:
    network = CNN6(width=16).build((1, 28, 28), 10)
    assert isinstance(network, Tapped)
    taps = network.tapped(torch.rand(2, 1, 28, 28))
    assert [taps[name].shape[1] for name in network.tap_names] == [576, 512, 64]


def test_the_head_of_cnn6_is_linear_unless_asked() -> None:
    def head(network: CNN6Network, features: Tensor) -> Tensor:
        fc512 = network.fc512(features)
        fc64 = network.fc64(fc512.relu() if network.head_relu else fc512)
        logits: Tensor = network.classifier(fc64.relu() if network.head_relu else fc64)
        return logits

    images = torch.rand(4, 1, 28, 28)
    for relu in (False, True):
        network = CNN6(width=4, head_relu=relu).build((1, 28, 28), 10)
        assert isinstance(network, CNN6Network)
        taps = network.tapped(images)
        assert torch.allclose(head(network, taps["features"]), taps["logits"])
        # An affine head maps the midpoint of two features to the midpoint of their logits.
        a, b = taps["features"][:2], taps["features"][2:]
        middle = head(network, (a + b) / 2)
        straight = (taps["logits"][:2] + taps["logits"][2:]) / 2
        assert torch.allclose(middle, straight, atol=1e-6) != relu


@pytest.mark.parametrize(("name", "side"), [("lenet", 3), ("cnn6", 7)])
def test_images_too_small_are_refused(name: str, side: int) -> None:
    with pytest.raises(UserError, match=rf"{name} needs images of at least"):
        find("model", name).create().build((1, side, 28), 10)
