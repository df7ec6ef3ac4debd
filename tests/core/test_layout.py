"""Networks take channels-last tensors, whatever their code assumes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.core.layout import any_layout, suits_channels_last

LAST = torch.channels_last


def features(shape: tuple[int, ...] = (3, 4, 5, 5)) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return values.contiguous(memory_format=LAST)


def test_view_is_what_reshape_is() -> None:
    values = features()
    with pytest.raises(RuntimeError, match="view size"):
        values.view(3, -1)
    with any_layout():
        assert torch.equal(values.view(3, -1), values.reshape(3, -1))
        assert torch.equal(values.view(size=(3, 100)), values.reshape(3, -1))
        assert torch.equal(values.view([-1]), values.reshape(-1))
        assert values.view(3, 2, 2, 5, 5).data_ptr() == values.data_ptr()  # no copy without need
    with pytest.raises(RuntimeError, match="view size"):
        values.view(3, -1)


def test_what_no_layout_allows_stays_an_error() -> None:
    values = features()
    with any_layout():
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            values.view(7, -1)
        with pytest.raises(RuntimeError):
            values[:, :3].contiguous().view(torch.float64)


@pytest.mark.parametrize("flatten", [
    lambda x: x.flatten(1), lambda x: torch.flatten(x, 1), lambda x: x.reshape(len(x), -1),
    lambda x: torch.reshape(x, (len(x), -1)), lambda x: x.view(len(x), -1), nn.Flatten(),
])  # fmt: skip
def test_gradients_come_back_in_the_layout_of_the_features(flatten: nn.Module) -> None:
    seen, weight = [], torch.linspace(-1, 1, 100)
    leaf = features().requires_grad_()
    with any_layout():
        values = leaf * 1
        # Before the hooks of its own users, as a pooling layer would be.
        before = F.relu(values)
        total = flatten(before) @ weight
    values.register_hook(lambda grad: seen.append(grad.is_contiguous(memory_format=LAST)))
    (grad,) = torch.autograd.grad(total.sum(), leaf)
    assert seen == [True]
    (exact,) = torch.autograd.grad((F.relu(leaf).flatten(1) @ weight).sum(), leaf)
    assert torch.equal(grad, exact)


def test_inactive_it_changes_nothing() -> None:
    with any_layout(False), pytest.raises(RuntimeError, match="view size"):
        features().view(3, -1)


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(36, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.flat(self.first(images)))

    def flat(self, values: Tensor) -> Tensor:
        return values.view(len(values), -1)


class Writing(Convolved):
    """What it writes through the view is lost where the view is a copy."""

    def flat(self, values: Tensor) -> Tensor:
        values.view(len(values), -1).mul_(torch.linspace(-1, 1, 36))
        return values.flatten(1)


class Noisy(Convolved):
    def flat(self, values: Tensor) -> Tensor:
        return (values + torch.randn_like(values)).flatten(1)


class Centring(Convolved):
    """Writes on the images that it is given."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5))


class Unyielding(Convolved):
    """No gradient reaches its images: the backward pass fails in every layout."""

    def flat(self, values: Tensor) -> Tensor:
        return values.register_hook(lambda grad: grad[:, :1]) and values.flatten(1)


@pytest.mark.parametrize(
    ("kind", "suits"),
    [(Convolved, True), (Centring, True), (Writing, False), (Noisy, False), (Unyielding, False)],
)
def test_networks_that_compute_the_same_in_channels_last(
    kind: type[Convolved], suits: bool
) -> None:
    images = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    network = kind()
    state = torch.default_generator.get_state()
    assert suits_channels_last(network, images) == suits
    assert torch.equal(torch.default_generator.get_state(), state)


def test_a_network_that_fails_in_channels_last() -> None:
    def failing(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].is_contiguous(memory_format=LAST):
            raise ValueError("not mine")

    network = Convolved()
    network.first.register_forward_pre_hook(failing)
    assert not suits_channels_last(network, torch.rand(2, 3, 5, 5))
