"""Strength beside foolbox: equal networks, images, budgets and steps."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.engine.craft import craft
from tests.attacks import nets
from tests.engine import oracles

EPS = {"linf": 0.12, "l2": 0.8, "l1": 3.0}
STEPS = 40


def robust(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, eps: float, precision: str = "fp32",
    **settings: object,
) -> float:  # fmt: skip
    """Our robust accuracy."""
    attack = oracles.build(name, steps=STEPS, **settings)
    out = oracles.run(attack, net, images, labels, (eps,), precision=precision, name=name)
    return float(torch.isinf(out.distance).double().mean())


def foolbox_points(
    kind: str, net: nn.Module, images: Tensor, labels: Tensor, eps: float, random_start: bool
) -> Tensor:
    """What foolbox returns with our steps and step sizes: its last iterates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its imports
        import foolbox
    make = getattr(foolbox.attacks, kind)
    attack = make(rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=random_start)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, points, _ = attack(
            foolbox.PyTorchModel(net, bounds=(0, 1)), images, labels, epsilons=eps
        )
    net.zero_grad(set_to_none=True)  # foolbox leaves gradients in the weights
    return points.detach()


def surviving(net: nn.Module, images: Tensor, points: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        right = (net(images).argmax(1) == labels) & (net(points).argmax(1) == labels)
    return float(right.double().mean())


@pytest.mark.parametrize("training", [0.0, 0.1])
@pytest.mark.parametrize(("norm", "kind"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_at_least_as_strong_as_foolbox(norm: str, kind: str, training: float) -> None:
    """Natural and adversarially trained, equal steps from the image, in float32 and in bf16."""
    images, labels = nets.digits("test")
    net, eps = nets.trained(eps=training), EPS[norm]
    points = foolbox_points(kind, net, images, labels, eps, random_start=False)
    theirs = surviving(net, images, points, labels)
    assert 0.05 < theirs < 0.95  # the budget breaks some and leaves some
    for precision in ("fp32", "bf16"):
        ours = robust(f"pgd_{norm}", net, images, labels, eps, precision, random_start=False)
        assert ours <= theirs + 0.005


@pytest.mark.parametrize(("norm", "kind"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_at_least_as_strong_as_foolbox_from_random_starts(norm: str, kind: str) -> None:
    """The mean of four seeds each: one start alone moves the number by half a point."""
    images, labels = nets.digits("test")
    images, labels = images.repeat(4, 1, 1, 1), labels.repeat(4)
    net, eps = nets.trained(), EPS[norm]
    points = foolbox_points(kind, net, images, labels, eps, random_start=True)
    theirs = surviving(net, images, points, labels)
    assert robust(f"pgd_{norm}", net, images, labels, eps) <= theirs + 0.005


def test_l1_attack_beats_scaled_gradients() -> None:
    """foolbox steps along g / ||g||_1 and rescales instead of projecting onto the L1 ball."""
    images, labels = nets.digits("test")
    net, eps = nets.trained(), EPS["l1"]
    points = foolbox_points("L1PGD", net, images, labels, eps, random_start=False)
    theirs = surviving(net, images, points, labels)
    assert robust("pgd_l1", net, images, labels, eps) < theirs - 0.1


@pytest.mark.parametrize("eps", [0.0025, 0.005, 2 / 255])
def test_tiny_budgets_survive_bf16(eps: float) -> None:
    """Bright images, where bf16 cannot tell steps of 1/255 apart, nearest to the boundary."""
    images, _ = nets.digits("train")
    net = nets.trained()
    bright = 0.5 + images / 2
    with torch.no_grad():
        top = net(bright).topk(2, dim=1).values
    near = bright[(top[:, 0] - top[:, 1]).argsort()[:200]]
    labels = oracles.predicted(net, near)
    exact = robust("pgd_linf", net, near, labels, eps)
    coarse = robust("pgd_linf", net, near, labels, eps, "bf16")
    assert 0 < exact < 1
    assert coarse <= exact + 1.5 / 200


@pytest.mark.parametrize(("norm", "kind"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_images_transfer_as_often_as_foolboxes(norm: str, kind: str) -> None:
    """Image runs return last iterates: first-broken ones would hardly transfer."""
    images, labels = nets.digits("test")
    source, other, eps = nets.trained(seed=0), nets.trained(seed=1), EPS[norm]
    attack = oracles.build(f"pgd_{norm}", steps=STEPS, random_start=False)
    ours = surviving(other, images, craft(source, attack, images, labels, eps), labels)
    points = foolbox_points(kind, source, images, labels, eps, random_start=False)
    theirs = surviving(other, images, points, labels)
    assert ours == pytest.approx(theirs, abs=0.01)
    assert theirs < surviving(other, images, images, labels) - 0.1
