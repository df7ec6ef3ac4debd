"""The layers of a bf16 twin: which are exact, and how exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.view import View
from robustbench_defenses.engine import twin as twins
from robustbench_defenses.engine.layers import ExactFirst, InFloat32
from robustbench_defenses.engine.twin import Twin, search_twin
from tests.engine.small import gradient, images, network, relative

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 5, "stride": 2, "padding": 2},
    {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "stride": 3, "padding": 1, "bias": False},
    {"kernel_size": 1},
    {"kernel_size": 12},
    {"kernel_size": 7, "padding": 3, "stride": 2},  # more columns than the shifted sums take
    {"kernel_size": 3, "groups": 3},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]


def first_layers() -> list[tuple[str, nn.Module]]:
    """Subjects of three channels that begin with another layer each."""
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for options in CONVOLUTIONS:
            named = ", ".join(f"{key}={value}" for key, value in options.items())
            found.append((named, nn.Sequential(nn.Conv2d(3, 6, **options), nn.Flatten())))
        found.append(("linear", nn.Sequential(nn.Flatten(), nn.Linear(432, 20))))
    return found


LAYERS = first_layers()


@pytest.mark.parametrize("net", [net for _, net in LAYERS], ids=[name for name, _ in LAYERS])
def test_the_first_layer_is_exact_forward_and_close_backward(net: nn.Module) -> None:
    x = images(8, (3, 12, 12))
    coarse = twins._bf16_copy(twins._frozen_copy(net), x)
    kinds = [type(part.forward) for part in coarse.modules()]
    assert (ExactFirst in kinds) != (InFloat32 in kinds)
    twin = Twin(coarse, net, autocast=True)
    exact = net(x).detach()
    assert relative(twin(x), exact) < 4e-3  # outputs are rounded to bf16, inputs are not
    weight = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    expected = gradient(net, x, weight)
    found = gradient(twin, x, weight)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    assert relative(found, expected) < 1e-2
    assert ((found == 0) == (expected == 0)).float().mean() > 0.999  # pixels no kernel touches


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_steps_that_bf16_rounds_away_are_seen(kind: str) -> None:
    """0.999 is 1 in bf16: an ordinary first layer would see no step at all."""
    layer = nn.Conv2d(1, 4, 3, bias=False) if kind == "conv" else nn.Linear(144, 4, bias=False)
    generator = torch.Generator().manual_seed(0)
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * 0.1
    layer.weight.data -= (
        layer.weight.data.flatten(1).mean(1).view(-1, *[1] * (layer.weight.dim() - 1))
    )
    net = (
        nn.Sequential(nn.Flatten(), layer)
        if kind == "linear"
        else nn.Sequential(layer, nn.Flatten())
    )
    white = torch.ones(1, 1, 12, 12)
    chosen = torch.rand(white.shape, generator=generator) < 0.5
    stepped = torch.where(chosen, 0.999, 1.0)
    assert torch.equal(stepped.to(torch.bfloat16), white.to(torch.bfloat16))
    twin = Twin(twins._bf16_copy(twins._frozen_copy(net), white), net, autocast=True)
    exact = (net(stepped) - net(white)).detach()
    assert relative(twin(stepped) - twin(white), exact) < 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ordinary = net(stepped) - net(white)
    assert relative(ordinary, exact) == 1


def test_the_order_of_running_decides_which_layers_are_first_and_last() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.middle = nn.Linear(4, 4)
            self.first = nn.Conv2d(1, 4, 12)
            self.idle = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.first(x).flatten(1)))

    twin = search_twin(View("v", Backwards().eval()), images(), "bf16")
    assert twin.autocast
    assert isinstance(twin.coarse.first.forward, ExactFirst)  # type: ignore[attr-defined,union-attr]
    assert isinstance(twin.coarse.last.forward, InFloat32)  # type: ignore[attr-defined,union-attr]
    assert twin.coarse.middle.weight.dtype == torch.bfloat16  # type: ignore[attr-defined]


def test_code_that_reads_weights_beside_a_pass_finds_them() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 12)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.last(self.first(x).flatten(1))
            size = self.last.weight.norm() + self.first.weight.norm()
            return logits * size / self.last.in_features / self.first.kernel_size[0]

    net = Reading().eval()
    twin = search_twin(View("v", net), images(), "bf16")
    assert twin.autocast
    assert relative(twin(images()), net(images())) < 0.02


def test_logits_far_from_zero_still_move_in_small_steps() -> None:
    """In bf16 numbers near 100 are a half apart."""
    net, x = network(), images(1)
    net[6].bias.data += 100
    twin = search_twin(View("v", net), x, "bf16")
    assert twin.autocast
    with torch.no_grad():
        path = torch.cat([x + 0.002 * step for step in range(20)])
        found, exact = twin(path), net(path)
    assert len(found[:, 0].unique()) >= 12  # one, were the last layer rounded
    assert (found - exact).abs().max() < 0.02


def test_a_module_that_is_its_own_first_layer() -> None:
    class Votes(nn.Linear):
        pass

    for net in (nn.Conv2d(1, 3, 12), nn.Linear(12, 3), Votes(12, 3), nn.Flatten()):
        twin = search_twin(View("v", net), images(), "bf16")
        torch.testing.assert_close(
            twin(images()).float(), net(images()).detach(), rtol=0.05, atol=0.05
        )


class Aliased(nn.Module):
    """Its layers are attributes, and stand in the list that runs."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        layers = list(network())
        self.stem, self.head = layers[0], layers[-1]
        self.body = layers if plain else nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return x


def headed_by_a_convolution() -> nn.Module:
    net = network()
    return nn.Sequential(*list(net)[:5], nn.Conv2d(8, 10, 1), nn.AvgPool2d(5), nn.Flatten())


def parametrized() -> nn.Module:
    net = network()
    for layer in (net[0], net[-1]):
        nn.utils.parametrizations.weight_norm(layer)
    return net


ENDS: list[tuple[str, nn.Module]] = [
    ("aliases", Aliased(False)), ("a list", Aliased(True)),
    ("a convolution at the end", headed_by_a_convolution()), ("weight_norm", parametrized()),
]  # fmt: skip


@pytest.mark.parametrize("net", [net for _, net in ENDS], ids=[name for name, _ in ENDS])
def test_small_steps_are_seen_however_layers_are_kept(net: nn.Module) -> None:
    net, x = net.eval(), images(1)
    twin = search_twin(View("v", net), x, "bf16")
    assert twin.autocast
    with torch.no_grad():
        path = torch.cat([x * 0.9 + 0.001 * step for step in range(40)])
        found, exact = twin(path), net(path)
    assert len(found[:, 0].unique()) >= 35
    assert relative(found, exact) < 0.02


def test_hooks_and_kinds_of_layers_stay() -> None:
    net, x = network(), images()
    net[0].register_forward_pre_hook(lambda layer, given: (given[0].round(),))
    twin = search_twin(View("v", net), x, "bf16")
    assert twin.autocast
    assert isinstance(twin.coarse[0], nn.Conv2d)  # type: ignore[index]
    assert relative(twin(x), net(x)) < 0.02
    assert torch.equal(twin(x), twin(x.round()))


def test_search_gradients_follow_float32() -> None:
    """Through a whole network: the sign that PGD uses agrees on nearly all of the gradient."""
    net, x = network(), images(32)
    twin = search_twin(View("v", net), x, "bf16")
    weight = torch.randn(32, 10, generator=torch.Generator().manual_seed(1))
    coarse, exact = gradient(twin, x, weight), gradient(net, x, weight)
    agree = (coarse.sign() == exact.sign()).float()
    share = (agree * exact.abs()).sum() / exact.abs().sum()
    assert share > 0.98
