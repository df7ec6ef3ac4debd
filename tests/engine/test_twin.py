"""The search twin: cheap, close to the original, and never a change to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.view import View
from robustbench_defenses.engine import twin as twins
from robustbench_defenses.engine.layers import ExactFirst, InFloat32
from robustbench_defenses.engine.twin import Twin, search_twin, smallest_margin
from tests.engine import builders
from tests.engine.small import gradient, images, network, relative

# Which twin a subject gets.


def test_a_network_gets_a_bf16_twin_where_that_was_asked_for() -> None:
    net, x = network(), images()
    for precision, autocast in (("bf16", True), ("fp32", False), ("tf32", False)):
        twin = search_twin(View("v", net), x, precision)
        assert twin.autocast is autocast
        assert twin.coarse is not net
        assert twin.fine is not net
        assert (twin.coarse is twin.fine) is not autocast


def test_float32_answers_are_the_networks_own() -> None:
    net, x = network(), images()
    twin = search_twin(View("v", net), x, "bf16")
    torch.testing.assert_close(twin(x, fine=True), net(x), rtol=1e-4, atol=1e-5)
    coarse = twin(x)
    assert coarse.dtype == torch.float32
    assert 1e-6 < relative(coarse, net(x)) < 0.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_of_images_are_searched_as_they_are(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    x = images().to(dtype)
    twin = search_twin(View("v", net), x, "bf16")
    assert not twin.autocast
    assert twin(x).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


class Explosive(nn.Module):
    """A difference that bf16 cannot see, made large: its bf16 logits are nonsense."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(144, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.third = nn.Linear(1, 1, bias=False)
        for layer in (self.first, self.second, self.third):
            layer.weight.data.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        total = self.first(x.flatten(1))
        return torch.cat([1e4 * (self.third(self.second(total)) - total + 1e-3), 0 * total], 1)


class Rounding(nn.Module):
    """Casts to bf16 by itself where autocast is on, and is right only where it is off."""

    def forward(self, x: Tensor) -> Tensor:
        sign = -1.0 if torch.is_autocast_enabled("cpu") else 1.0
        return sign * torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)


@pytest.mark.parametrize("net", [Explosive(), Rounding()])
def test_bf16_is_used_only_where_it_stays_close(net: nn.Module) -> None:
    twin = search_twin(View("v", net), images(), "bf16")
    assert not twin.autocast
    torch.testing.assert_close(twin(images()), net(images()), rtol=1e-3, atol=2.0)


def test_the_limit_of_closeness_is_the_one_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), images()
    exact, coarse = net(x).detach(), search_twin(View("v", net), x, "bf16")(x)
    spread = exact.amax(1) - exact.amin(1)
    median = float(((coarse - exact).abs().amax(1) / spread).median())
    monkeypatch.setattr(twins, "LARGEST_DEVIATION", median * 1.01)
    assert search_twin(View("v", net), x, "bf16").autocast
    monkeypatch.setattr(twins, "LARGEST_DEVIATION", median * 0.99)
    assert not search_twin(View("v", net), x, "bf16").autocast


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(144, 3)

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("not this one")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class OnlyUnderFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("no autocast here")
        return x.flatten(1)[:, :3]


def test_what_cannot_be_copied_is_searched_itself() -> None:
    net = Uncopyable()
    twin = search_twin(View("v", net), images(), "bf16")
    assert twin.coarse is twin.fine is net
    assert not twin.autocast
    assert torch.equal(twin(images()), net(images()))
    assert net.layer.weight.requires_grad


def test_what_fails_under_bf16_is_searched_in_float32() -> None:
    twin = search_twin(View("v", OnlyUnderFloat32()), images(), "bf16")
    assert not twin.autocast
    assert twin(images()).shape == (16, 3)


def test_a_bare_callable_is_searched_as_it_is() -> None:
    net = network()
    call = lambda x: net(x)  # noqa: E731
    twin = search_twin(View("v", call), images(), "bf16")
    assert twin == Twin(call, call, autocast=False)


# The original.


def test_the_original_is_not_touched() -> None:
    net = network().train()
    net[3].eval()
    net[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    flags = [weight.requires_grad for weight in net.parameters()]
    layouts = [weight.stride() for weight in net.parameters()]
    hooks = [len(part._forward_pre_hooks) for part in net.modules()]
    twin = search_twin(View("v", net), images(), "bf16")
    gradient(twin, images(), torch.ones(16, 10))
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert all(value.dtype == after[name].dtype for name, value in state.items())
    assert modes == [part.training for part in net.modules()]
    assert flags == [weight.requires_grad for weight in net.parameters()]
    assert layouts == [weight.stride() for weight in net.parameters()]
    assert hooks == [len(part._forward_pre_hooks) for part in net.modules()]
    assert all(weight.grad is None for weight in net.parameters())


def test_the_twin_is_frozen_and_in_evaluation_mode() -> None:
    twin = search_twin(View("v", network().train()), images(), "bf16")
    for copy in (twin.coarse, twin.fine):
        assert isinstance(copy, nn.Module)
        assert not any(part.training for part in copy.modules())
        assert not any(weight.requires_grad for weight in copy.parameters())
        assert not any(part._forward_pre_hooks for part in copy.modules())


def test_what_float32_copies_do_not_change_is_not_stored_again() -> None:
    net, x = network(), images()
    kept = {name: (value, value.clone()) for name, value in net.named_parameters()}
    for value in net.parameters():
        value.grad = torch.ones_like(value)
    twin = search_twin(View("v", net), x, "bf16")
    assert isinstance(twin.fine, nn.Module)
    shown = dict(twin.fine.named_parameters())
    assert shown["6.weight"].data_ptr() == net[6].weight.data_ptr()
    assert shown["3.weight"].data_ptr() != net[3].weight.data_ptr()  # in another layout
    for name, (parameter, before) in kept.items():
        assert shown[name] is not parameter
        assert not shown[name].requires_grad
        assert dict(net.named_parameters())[name] is parameter
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert torch.equal(parameter, before)
        assert parameter.is_contiguous()
        assert parameter.dtype == torch.float32


# How it is asked.


def test_images_arrive_channels_last() -> None:
    seen = []

    def call(x: Tensor) -> Tensor:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.flatten(1)[:, :2]

    twin = Twin(call, call, autocast=False, layout=torch.channels_last)
    picked = images(6, (3, 5, 5)).contiguous(memory_format=torch.channels_last)
    twin(picked.index_select(0, torch.tensor([1, 4])))  # loses the layout
    twin(images(2, (3, 5, 5)))
    assert seen == [True, True]


class Viewing(nn.Module):
    """A network that flattens its features as much code does: for the default layout only.

    `strict`: by a question that no help with `Tensor.view` answers.
    """

    def __init__(self, strict: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 8, 3)
            self.last = nn.Linear(8 * 5 * 5, 10)
        self.strict = strict

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.second(torch.relu(self.first(x)))), 2)
        if self.strict and not x.is_contiguous():
            raise RuntimeError("not in the default layout")
        return self.last(x.view(-1, 8 * 5 * 5))


@pytest.mark.parametrize("strict", [False, True])
def test_networks_that_view_their_features_get_a_bf16_twin(strict: bool) -> None:
    net, x = Viewing(strict).eval(), images(shape=(3, 12, 12))
    twin = search_twin(View("v", net), x, "bf16")
    assert twin.autocast
    assert twin.layout is (torch.contiguous_format if strict else torch.channels_last)
    weight = images(1, (16, 10)).view(16, 10)
    torch.testing.assert_close(twin(x, fine=True), net(x), rtol=1e-4, atol=1e-5)
    exact = gradient(net, x, weight)
    assert relative(gradient(lambda z: twin(z, fine=True), x, weight), exact) < 1e-5
    # In bf16 some maxima are others.
    assert relative(gradient(twin, x, weight), exact) < 0.2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fine", [False, True])
def test_all_of_a_twin_runs_in_channels_last(channels: int, fine: bool) -> None:
    x = images(shape=(channels, 12, 12))
    twin = search_twin(View("v", network(channels)), x, "bf16")
    seen = []
    for part in (twin.fine if fine else twin.coarse).children():
        part.register_forward_hook(lambda part, given, output: seen.append(output))
    twin(x, fine)
    before = [one for one in seen if one.dim() == 4]
    assert len(before) == 5
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in before)
    assert not any(one.is_contiguous() for one in before)


def test_a_callable_around_a_network_is_asked_in_the_default_layout() -> None:
    net, x = Viewing(strict=True).eval(), images(shape=(3, 12, 12))
    twin = search_twin(View("v", lambda z: net(z)), x, "bf16")
    torch.testing.assert_close(twin(x), net(x))


def test_images_that_are_no_images_are_passed_on() -> None:
    twin = Twin(lambda x: x[:, :2], lambda x: x[:, :2], autocast=False)
    assert torch.equal(twin(torch.eye(4)), torch.eye(4)[:, :2])


def test_weights_are_cast_once() -> None:
    twin = search_twin(View("v", network()), images(), "bf16")
    assert isinstance(twin.coarse, nn.Sequential)
    assert isinstance(twin.coarse[0].forward, ExactFirst)
    assert twin.coarse[3].weight.dtype == torch.bfloat16
    assert twin.coarse[3].bias.dtype == torch.float32  # a rounded one shifts a whole channel
    assert isinstance(twin.coarse[6].forward, InFloat32)
    assert twin.coarse[6].weight.dtype == torch.float32
    assert twin.coarse[1].weight.dtype == torch.float32  # statistics stay exact
    assert all(weight.dtype == torch.float32 for weight in twin.fine.parameters())


def test_weights_of_convolutions_are_channels_last() -> None:
    twin = search_twin(View("v", network(3)), images(4, (3, 12, 12)), "fp32")
    weight = twin.fine[3].weight  # type: ignore[index]
    assert weight.is_contiguous(memory_format=torch.channels_last)


class Own(nn.Linear):
    """A subclass that uses its weight in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ self.weight.float().T


def test_subclasses_of_layers_keep_their_weights() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), Own(200, 4))
    twin = search_twin(View("v", net), images(), "bf16")
    assert twin.autocast
    assert twin.coarse[2].weight.dtype == torch.float32  # type: ignore[index]


# A copy that is another function, or fails in its backward pass, is no twin.


class Standardising(nn.Module):
    """Writes through a view: lost where the view is a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x.view(len(x), -1).sub_(torch.linspace(-1, 1, 432)).div_(0.25)
        return self.net(x)


class _Strict(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0].view(-1).view(grads[0].shape)


class StrictBackwards(nn.Module):
    """A backward pass of its own that wants gradients in the default layout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(3)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.net):
            x = layer(x)
            if index == 3:
                x = _Strict.apply(x)  # type: ignore[no-untyped-call]
        return x


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", [Standardising, StrictBackwards])
def test_a_twin_computes_what_the_network_does(kind: type[nn.Module], precision: str) -> None:
    net, x = kind().eval(), images(8, (3, 12, 12))
    twin = search_twin(View("v", net), x, precision)
    weight = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    assert relative(twin(x, fine=True), net(x)) < 1e-5
    assert (
        relative(gradient(lambda x: twin(x, fine=True), x, weight), gradient(net, x, weight)) < 1e-4
    )
    assert relative(twin(x), net(x)) < 0.05
    assert relative(gradient(twin, x, weight), gradient(net, x, weight)) < 0.2


def test_what_is_no_tensor_is_left_to_the_caller() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x.flatten(1)}

    net = Named()
    twin = search_twin(View("v", net), images(), "bf16")  # type: ignore[arg-type]
    assert twin.coarse is net


# Margins.


def test_smallest_margin() -> None:
    logits = torch.tensor([[4.0, 3.0, 0.0], [1.0, 3.0, -1.0], [2.0, 2.0, 2.0], [0.0, 1.0, 5.0]])
    labels = torch.tensor([0, 0, 0, 2])
    none = torch.full((4,), -1)
    expected = [1 / 4, -2 / 4, 0.0, 4 / 5]
    assert smallest_margin(logits, labels, none).tolist() == pytest.approx(expected)
    target = torch.tensor([1, 1, 1, 0])
    expected = [1 / 4, -2 / 4, 0.0, 5 / 5]  # how far from *being* the target
    assert smallest_margin(logits, labels, target).tolist() == pytest.approx(expected)


def test_margins_do_not_see_shift_and_scale() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    labels, none = torch.arange(20) % 5, torch.full((20,), -1)
    plain = smallest_margin(logits, labels, none)
    torch.testing.assert_close(plain, smallest_margin(7 * logits - 3, labels, none))


class Tight(nn.Module):
    """Out of memory above `most` images."""

    def __init__(self, most: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.inner, self.most, self.error = network(), most, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error()
        logits: Tensor = self.inner(x)
        return logits


@pytest.mark.parametrize("most", [1, 5])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("error", [builders.cuda_memory, builders.cpu_memory])
def test_out_of_memory_makes_no_other_twin(
    most: int, precision: str, error: Callable[[], Exception]
) -> None:
    """It is a frozen copy in bf16 all the same, tried on as many images as fit."""
    net, x = Tight(most, error).eval(), images()
    twin = search_twin(View("v", net), x, precision)
    roomy = search_twin(View("v", network()), x, precision)
    assert twin.autocast == roomy.autocast == (precision == "bf16")
    assert isinstance(twin.fine, nn.Module)
    assert not any(weight.requires_grad for weight in twin.fine.parameters())
    one = x[:1]
    torch.testing.assert_close(twin(one), roomy(one), rtol=0.02, atol=0.02)


def test_random_subjects_are_compared_draw_by_draw() -> None:
    """Noise far above the rounding of bf16 does not keep a network from being searched in bf16."""

    class Noisy(nn.Module):
        random, draws = True, 4

        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x + 0.5 * torch.randn_like(x))
            return logits

    state = torch.random.get_rng_state()
    twin = search_twin(View("v", Noisy().eval()), images(), "bf16")
    assert torch.equal(state, torch.random.get_rng_state())
    assert twin.autocast
    assert twin.randomness is not None
    assert twin.randomness.draws == 4
