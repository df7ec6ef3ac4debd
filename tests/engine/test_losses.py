"""Losses against their formulas, written out literally for one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustbench_defenses.engine.losses import LOSSES, loss_of, misclassified, rivals
from robustbench_defenses.engine.protocol import Rows
from tests.engine import builders

CLASSES = (2, 3, 4, 10, 100)


def literal_ce(z: list[float], y: int) -> float:
    top = max(z)
    return -(z[y] - top) + math.log(sum(math.exp(value - top) for value in z))


def literal_margin(z: list[float], y: int) -> float:
    return max(value for k, value in enumerate(z) if k != y) - z[y]


def literal_dlr(z: list[float], y: int) -> float:
    down = sorted(z, reverse=True)
    if len(z) == 2:
        return literal_margin(z, y)
    return -(z[y] - max(v for k, v in enumerate(z) if k != y)) / (down[0] - down[2] + 1e-12)


def literal_dlr_targeted(z: list[float], y: int, t: int) -> float:
    down = sorted(z, reverse=True)
    if len(z) < 4:
        return -literal_margin(z, t)
    lower = (down[2] + down[3]) / 2
    return -(z[y] - z[t]) / (down[0] - lower + 1e-12)


UNTARGETED: dict[str, Callable[[list[float], int], float]] = {
    "ce": literal_ce,
    "margin": literal_margin,
    "dlr": literal_dlr,
}
TARGETED: dict[str, Callable[[list[float], int, int], float]] = {
    "ce": lambda z, y, t: -literal_ce(z, t),
    "margin": lambda z, y, t: -literal_margin(z, t),
    "dlr": literal_dlr_targeted,
}


def setting(classes: int, count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator).double()
    labels = torch.randint(classes, (count,), generator=generator)
    target = (labels + 1 + torch.randint(classes - 1, (count,), generator=generator)) % classes
    return logits, labels, target


def row_set(labels: Tensor, target: Tensor | None = None) -> Rows:
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.float64)
    return builders.rows(images, labels, 0.1, target)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", CLASSES)
def test_untargeted(name: str, classes: int) -> None:
    logits, labels, _ = setting(classes)
    found = loss_of(name)(logits, row_set(labels))
    expected = [UNTARGETED[name](z, y) for z, y in zip(logits.tolist(), labels.tolist())]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", CLASSES)
def test_targeted(name: str, classes: int) -> None:
    logits, labels, target = setting(classes)
    found = loss_of(name)(logits, row_set(labels, target))
    triples = zip(logits.tolist(), labels.tolist(), target.tolist())
    expected = [TARGETED[name](z, y, t) for z, y, t in triples]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", CLASSES)
def test_every_target_has_a_gradient(name: str, classes: int) -> None:
    """Among few classes too: of three the last one is the DLR's own denominator."""
    logits, labels, target = setting(classes)
    logits.requires_grad_()
    loss = loss_of(name)(logits, row_set(labels, target))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient.abs().amax(1) > 1e-9).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [3, 10])
def test_targeted_and_untargeted_rows_mix(name: str, classes: int) -> None:
    logits, labels, target = setting(classes)
    mixed = torch.where(torch.arange(len(labels)) % 2 == 0, target, -1)
    found = loss_of(name)(logits, row_set(labels, mixed))
    torch.testing.assert_close(found[::2], loss_of(name)(logits, row_set(labels, target))[::2])
    torch.testing.assert_close(found[1::2], loss_of(name)(logits, row_set(labels))[1::2])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("shift", [-1000.0, -50.0, 50.0])
def test_a_constant_added_to_all_logits_changes_nothing(
    name: str, targeted: bool, shift: float
) -> None:
    logits, labels, target = setting(10)
    rows = row_set(labels, target if targeted else None)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    plain, moved = loss_of(name)(a, rows), loss_of(name)(b + shift, rows)
    torch.testing.assert_close(plain, moved, rtol=1e-9, atol=1e-9)
    (g,) = torch.autograd.grad(plain.sum(), a)
    (h,) = torch.autograd.grad(moved.sum(), b)
    torch.testing.assert_close(g, h, rtol=1e-8, atol=1e-9)


def test_dlr_does_not_see_the_scale_of_logits() -> None:
    logits, labels, target = setting(10)
    for rows in (row_set(labels), row_set(labels, target)):
        small, large = loss_of("dlr")(logits, rows), loss_of("dlr")(1e4 * logits, rows)
        torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(
    ("name", "targeted"),
    [("ce", False), ("ce", True), ("margin", False), ("margin", True), ("dlr", False)],
)
def test_raising_the_loss_leads_to_success(name: str, classes: int, targeted: bool) -> None:
    """Plain gradient ascent on the logits alone ends misclassified (in the target).

    Not so for the targeted dlr: it only sets the target above the true class, not above the others.
    """
    logits, labels, target = setting(classes, count=20)
    rows = row_set(labels, target if targeted else None)
    point = logits.clone()
    for _ in range(50):
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(name)(point, rows).sum(), point)
        length = gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
        point = (point + 0.4 * gradient / length).detach()
    assert misclassified(point, labels, rows.target).all()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_per_row(name: str) -> None:
    logits, labels, target = setting(10)
    rows = row_set(labels, target)
    together = logits.clone().requires_grad_()
    (whole,) = torch.autograd.grad(loss_of(name)(together, rows).sum(), together)
    alone = logits[3:4].clone().requires_grad_()
    value = loss_of(name)(alone, row_set(labels[3:4], target[3:4]))
    (single,) = torch.autograd.grad(value.sum(), alone)
    torch.testing.assert_close(whole[3:4], single, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ce", "margin"])
def test_classes_that_are_ruled_out(name: str) -> None:
    """-inf for some classes: finite values and gradients all the same."""
    logits, labels, _ = setting(10)
    logits[torch.arange(len(labels)), (labels + 5) % 10] = -torch.inf
    logits.requires_grad_()
    value = loss_of(name)(logits, row_set(labels))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_equal_logits_stay_finite() -> None:
    logits = torch.zeros(3, 10, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 4, 9])
    for name in LOSSES:
        value = loss_of(name)(logits, row_set(labels))
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_a_callable_is_its_own_loss() -> None:
    def mine(logits: Tensor, rows: Rows) -> Tensor:
        return logits[:, 0]

    assert loss_of(mine) is mine
    with pytest.raises(KeyError):
        loss_of("cw")


def test_misclassified() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 0])
    none = torch.full((4,), -1)
    # A tie with the true class first in order counts as right.
    assert misclassified(logits, labels, none).tolist() == [False, True, True, False]
    wanted = torch.tensor([1, 0, 2, 1])
    assert misclassified(logits, labels, wanted).tolist() == [False, True, False, False]


def test_rivals_by_falling_logits() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0], [5.0, 0.0, 0.0, 7.0]])
    assert rivals(logits, torch.tensor([1, 0])).tolist() == [[3, 2, 0], [3, 1, 2]]
    assert rivals(logits[:, :2], torch.tensor([0, 0])).tolist() == [[1], [1]]


@pytest.mark.parametrize("kept", [2, 3, 4])
@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_leaves_out_classes_that_the_subject_rules_out(kept: int, targeted: bool) -> None:
    """As if the network had only the classes that it keeps, and with a gradient."""
    few, labels, target = setting(kept)
    full = torch.full((len(few), 10), -torch.inf, dtype=few.dtype)
    full[:, :kept] = few
    few, full = few.requires_grad_(), full.requires_grad_()
    rows = row_set(labels, target if targeted else None)
    small, large = loss_of("dlr")(few, rows), loss_of("dlr")(full, rows)
    torch.testing.assert_close(small, large)
    (g,) = torch.autograd.grad(small.sum(), few)
    (h,) = torch.autograd.grad(large.sum(), full)
    torch.testing.assert_close(g, h[:, :kept])
    assert bool((h[:, :kept] != 0).flatten(1).any(1).all())
    assert bool((h[:, kept:] == 0).all())
