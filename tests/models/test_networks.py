"""The networks: sizes, taps, and that nothing but the weights decides what they answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.registry import entries, find
from robustbench_defenses.core.view import Tapped, View
from robustbench_defenses.engine.layers import ExactFirst, InFloat32
from robustbench_defenses.engine.twin import search_twin
from robustbench_defenses.models.cnn6 import CNN6, CNN6Network
from robustbench_defenses.models.lenet import LeNet
from robustbench_defenses.models.resize import at_least

NAMES = [entry.name for entry in entries("model")]
# MNIST and its kin, CIFAR and SVHN, STL-10 (whole, and as SAT takes it), digits, and odd sides.
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 96, 96), (1, 8, 8), (2, 9, 13)]
# Printed, or derived layer by layer in the files' words, for K = 10.
SIZES = {
    "cnn3": ((1, 28, 28), 416 + 12_832 + 51_264 + 57_700 + 1_010),
    "cnn6": ((1, 28, 28), 1_418_666),  # AICR, protocol of table 1
    "lenet": ((1, 28, 28), 3_274_634),
    "resnet110": ((3, 32, 32), 1_418_586),  # AICR
    "resnet164": ((3, 32, 32), 1_975_002),  # AICR, published code
    "resnet18": ((3, 32, 32), 11_173_962),
    "resnet20": ((3, 32, 32), 269_722),
    "vgg11": ((3, 32, 32), 9_231_114),
    "vgg16": ((3, 32, 32), 14_728_266),
    "vgg19": ((3, 32, 32), 20_040_522),
}
# One block per stage, and narrow: what a smoke preset asks for.
SMALL: dict[str, dict[str, object]] = {
    "cnn3": {"width": 4, "hidden": 16},
    "cnn6": {"width": 4},
    "lenet": {"width": 4, "hidden": 16},
    "resnet110": {"blocks_per_stage": 1, "width": 4},
    "resnet18": {"blocks": 1, "width": 8},
    "resnet20": {"blocks": 1, "width": 8},
    "vgg11": {"convs": (1, 1, 1, 1, 1), "width": 8},
    # Variants keep what they are variants for.
    "resnet110_printed": {"blocks_per_stage": 1},
    "resnet164": {"blocks_per_stage": 2},
    "vgg16": {"width": 8},
    "vgg19": {"width": 8},
}


def settled(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """In eval mode, with statistics in its BatchNorms that fit its weights."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.rand(32, *shape))
    return network.eval()


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
    # At full size once: the other sizes differ by the images alone.
    settings = {} if shape == SHAPES[1] else SMALL.get(name, {})
    network = find("model", name).create(**settings).build(shape, 7)
    images = torch.rand(3, *shape, requires_grad=True)
    logits = network(images)
    assert logits.shape == (3, 7)
    gradient, *weights = torch.autograd.grad(
        logits.square().sum(), [images, *network.parameters()], allow_unused=True
    )
    assert gradient is not None
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    # Every weight has a part in the answer.
    assert all(weight is not None and weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize("name", NAMES)
def test_taps_come_from_the_same_pass_as_the_logits(name: str) -> None:
    network = find("model", name).create(**SMALL.get(name, {})).build((1, 28, 28), 10).eval()
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


@pytest.mark.parametrize("name", SIZES)
def test_every_network_of_ours_has_a_width(name: str) -> None:
    """Presets and users make any of them narrow by the same word."""
    narrow, wide = (find("model", name).create(width=n).build((3, 32, 32), 10) for n in (4, 8))
    assert count(narrow) < count(wide) < count(find("model", name).create().build((3, 32, 32), 10))


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name: str) -> None:
    shape, parameters = SIZES[name]
    assert count(find("model", name).create().build(shape, 10)) == parameters


def test_the_thin_resnet_of_afd() -> None:
    network = find("model", "resnet18_thin").create().build((1, 28, 28), 10)
    norm = {width: 2 * width for width in (16, 32, 48, 64)}
    total = 9 * 16 + norm[16]  # the stem
    before = 16
    for width in norm:
        total += 9 * before * width + 3 * 9 * width * width + 4 * norm[width]
        # Every stage halves the image, so every first block has a projection.
        total += before * width + norm[width]
        before = width
    assert count(network) == total + 64 * 10 + 10
    assert isinstance(network, Tapped)
    assert network.tapped(torch.rand(2, 1, 28, 28))["features"].shape == (2, 64)


def test_the_printed_widths_of_resnet110() -> None:
    network = find("model", "resnet110_printed").create().build((3, 32, 32), 10)
    convs = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    wide = [layer for layer in convs if layer.kernel_size == (3, 3) and layer.in_channels == 128]
    assert len(wide) == 12
    # 1 + 3 x 36 + 2 weight layers, and a projection in each stage's first block.
    assert len(convs) == 1 + 108 + 3


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("resnet110", {"stage2": 128, "stage3": 256, "fc1024": 1024}),
        ("resnet110_printed", {"stage2": 128, "stage3": 256, "fc1024": 1024}),
        ("resnet18", {"stage1": 64, "stage2": 128, "stage3": 256, "features": 512}),
        ("resnet20", {"stage1": 16, "stage2": 32, "features": 64}),
        ("vgg11", {"block3": 256, "block4": 512, "features": 512}),
    ],
)
def test_taps_are_flat_whatever_the_size_of_the_images(name: str, widths: dict[str, int]) -> None:
    settings = {"blocks_per_stage": 1} if name.startswith("resnet110") else {}
    network = find("model", name).create(**settings).build((3, 32, 32), 10).eval()
    assert isinstance(network, Tapped)
    for side in (32, 64):
        with torch.no_grad():
            taps = network.tapped(torch.rand(2, 3, side, side))
        sizes = {name: tuple(taps[name].shape) for name in network.tap_names}
        assert sizes == {name: (2, width) for name, width in widths.items()}
        classifier = network.classifier
        assert isinstance(classifier, nn.Linear)
        last = taps[network.tap_names[-1]]
        assert torch.allclose(classifier(last), taps["logits"], atol=1e-5)


def test_pools_of_resnet110_are_those_of_the_published_code() -> None:
    network = find("model", "resnet110").create(blocks_per_stage=1).build((3, 32, 32), 10).eval()
    images = torch.rand(2, 3, 32, 32)
    assert isinstance(network, Tapped)
    second = network.stages[1](network.stages[0](network.stem(images)))  # type: ignore[operator, index]
    third = network.stages[2](second)  # type: ignore[operator, index]
    assert (second.shape[2:], third.shape[2:]) == ((16, 16), (8, 8))
    taps = network.tapped(images)
    assert torch.equal(taps["stage2"], nn.functional.max_pool2d(second, 16).flatten(1))
    assert torch.allclose(taps["stage3"], nn.functional.avg_pool2d(third, 8).flatten(1), atol=1e-6)


def test_small_images_are_resized_inside() -> None:
    images = torch.rand(2, 3, 8, 40)
    assert at_least(images, 8) is images
    assert at_least(images, 32).shape == (2, 3, 32, 40)
    flat = torch.full((1, 1, 5, 5), 0.25)
    assert torch.allclose(at_least(flat, 9), torch.full((1, 1, 9, 9), 0.25))
    with torch.autocast("cpu", torch.bfloat16):
        assert at_least(flat, 9).dtype == torch.float32  # bf16 would lose steps of the attack
    network = find("model", "vgg11").create(width=4).build((3, 32, 32), 10).eval()
    images = images[..., :8]
    assert torch.equal(network(images), network(at_least(images, 32)))


@pytest.mark.parametrize("name", NAMES)
def test_the_search_twin_takes_every_network(name: str) -> None:
    """In bf16, its first convolution exact and its last layer in float32; BatchNorm with the
    statistics it has, which stay."""
    shape = (3, 32, 32)
    network = settled(find("model", name).create(**SMALL.get(name, {})).build(shape, 10), shape)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.rand(16, *shape)
    twin = search_twin(View("network", network), images, "bf16")
    assert twin.autocast
    assert isinstance(twin.coarse, nn.Module)
    exact, last = (
        sum(isinstance(layer.forward, kind) for layer in twin.coarse.modules())
        for kind in (ExactFirst, InFloat32)
    )
    assert exact == any(isinstance(layer, nn.Conv2d) for layer in network.modules())
    assert 1 <= last <= 2 - exact
    points = images.clone().requires_grad_()
    labels = torch.arange(16) % 10
    gradients = []
    for fine in (False, True):
        logits = twin(points, fine=fine)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        gradients.append(torch.autograd.grad(loss, points)[0].flatten(1))
    assert torch.allclose(logits, network(images), atol=1e-4)
    # Untrained weights spread rounding errors more than trained ones.
    assert float(nn.functional.cosine_similarity(*gradients).min()) > 0.7
    after = network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_settings_that_fit_no_network_are_refused() -> None:
    for name, settings in (
        ("resnet18", {"strides": (1, 2, 0, 2)}),
        ("resnet110", {"width": 0}),
        ("vgg11", {"convs": (1, 1, 0, 1, 1)}),
    ):
        with pytest.raises(UserError, match=name):
            find("model", name).create(**settings)


@pytest.mark.parametrize(("name", "side"), [("lenet", 3), ("cnn6", 7)])
def test_images_too_small_are_refused(name: str, side: int) -> None:
    with pytest.raises(UserError, match=rf"{name} needs images of at least"):
        find("model", name).create().build((1, side, 28), 10)
