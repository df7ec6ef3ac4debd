"""Defects known from other attack libraries: NaN, flat losses, ranges and number formats."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import robustbench_defenses as rrd
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.engine.craft import craft
from tests.attacks.defects import (
    EPS,
    SHORT,
    chosen_points,
    digits_setting,
    one_of,
    short,
    stored,
    trail,
)
from tests.attacks.test_properties import ATTACKS, EVERY, FEW, FIXED, NEAREST, setting
from tests.engine import oracles


@pytest.mark.parametrize("name", [*ATTACKS, "cw tanh"])
def test_pixels_at_exactly_0_and_1_can_move(name: str) -> None:
    """With tanh in place of the clip too, whose ends are flat."""
    net, images, labels = digits_setting(25)
    right = oracles.predicted(net, images) == labels
    images, labels = images[right], labels[right]
    at_bound = (images == 0) | (images == 1)
    assert at_bound.float().mean() > 0.3
    name, *form = name.split()
    more: dict[str, object] = {"form": form[0], "steps": 40} if form else {"steps": 20}
    attack = oracles.build(name, **{**FEW, "search_steps": 3, **more})
    points = craft(net, attack, images, labels, EPS[attack.norm])
    moved = ((points != images) & at_bound).flatten(1).any(1)
    # L1 steps change few pixels; searches that find nothing return the image.
    assert moved.float().mean() > (0.3 if attack.norm == "l1" else 0.8 if name in NEAREST else 0.99)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eps_zero_returns_the_image_itself(name: str, dtype: torch.dtype) -> None:
    """0/0 in a projection gives NaN, which reads as success."""
    net, images, labels = digits_setting(20)
    net = net.to(dtype)
    try:
        points = craft(net, oracles.build(name, **FEW), images.to(dtype), labels, 0.0)
    finally:
        net.to(torch.float32)
    assert torch.equal(points, images.to(dtype))


@pytest.mark.parametrize("name", EVERY)
def test_accuracy_at_eps_zero_is_the_clean_one(name: str, tmp_path: Path) -> None:
    net, images, labels = digits_setting(8)
    labels = oracles.predicted(net, images)
    labels[:2] = (labels[:2] + 1) % 10
    stored(tmp_path, images, labels)
    found = rrd.evaluate(
        net, name, dataset=f"npz:{tmp_path}/set.npz", eps=0.0, settings=short(name),
        results=tmp_path / "results", threads=1,
    )  # fmt: skip
    assert [point.robust_accuracy for point in found.curve] == [6 / 8]
    assert found.clean_accuracy == 6 / 8


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e12])
def test_nan_is_never_returned(name: str, scale: float) -> None:
    """Flat, vanishing and saturated losses, and an image whose gradient is zero among others."""
    net, images, _ = digits_setting(6)
    images = images.clone()
    images[3] = 0
    attack = oracles.build(name, **SHORT)

    def scaled(points: Tensor) -> Tensor:
        return scale * net(points)

    labels = oracles.predicted(scaled, images)
    if name in ATTACKS:
        points = craft(scaled, attack, images, labels, 0.3)
        assert torch.isfinite(points).all()
        assert ((points >= 0) & (points <= 1)).all()
    out = oracles.run(attack, scaled, images, labels, (0.3,))
    assert out.invalid_claims == 0
    assert not out.distance.isnan().any()


def test_saturated_logits_do_not_stop_the_l2_attack() -> None:
    """Gradients of 1e-20 have a direction: dividing by max(norm, 1e-12) would stand still."""
    net, images, labels = digits_setting()
    attack = oracles.build("pgd_l2", steps=20, random_start=False)
    plain = craft(net, attack, images, labels, EPS["l2"])
    with torch.no_grad():
        logits = net(images)
        gap = logits.gather(1, labels[:, None]) - logits.scatter(
            1, labels[:, None], -torch.inf
        ).amax(1, keepdim=True)
    factor = 45 / gap.clamp_min(1)[:, :, None, None]  # clean gaps of about 45: gradients of 1e-19
    scaled = craft(
        lambda x: factor[:, :, 0, 0] * net(x), attack, images, labels, EPS["l2"]
    )  # fmt: skip
    with torch.no_grad():
        clean = (net(plain).argmax(1) == labels).float().mean()
        saturated = (net(scaled).argmax(1) == labels).float().mean()
    assert clean < 0.5
    assert saturated < clean + 0.2


def test_nan_logits_are_told_not_counted() -> None:
    net, images, labels = digits_setting(20)

    def sick(points: Tensor) -> Tensor:
        logits = net(points)
        return torch.where(points.flatten(1).mean(1, keepdim=True) > 0.33, torch.nan, logits)

    with pytest.raises(UserError, match="NaN for test image"):
        rrd.attack(sick, images, labels, "pgd", eps=0.1)
    with pytest.raises(UserError, match="NaN for test image"):
        oracles.run(oracles.build("pgd_linf", steps=5), sick, images, labels, (0.1,))


@pytest.mark.parametrize("name", EVERY)
def test_nan_logits_away_from_the_images_are_told(name: str) -> None:
    """Finite at the images themselves, NaN wherever an attack goes from there."""
    model, images, labels = setting(name, count=4)

    def sick(points: Tensor) -> Tensor:
        clean = (points[:, None] == images[None]).flatten(2).all(2).any(1, keepdim=True)
        return torch.where(clean, model(points), torch.nan)

    attack = oracles.build(name, **SHORT)
    with pytest.raises(UserError, match="NaN for test image"):
        oracles.run(attack, sick, images, labels, (EPS[attack.norm],))
    with pytest.raises(UserError, match="NaN for test image"):
        rrd.attack(sick, images, labels, name, eps=EPS[attack.norm], **short(name))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ATTACKS)
def test_a_single_nan_is_told(name: str) -> None:
    """At one point in the middle: the largest of NaN is class 0, which here is the right one."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **SHORT)

    def turned(points: Tensor) -> Tensor:
        logits: Tensor = model(points).roll(-int(labels), 1)
        return logits

    zero = torch.zeros_like(labels)
    eps = 1e-4 * EPS[attack.norm]
    points, _ = trail(attack, turned, images, zero, eps)
    place = chosen_points(points, images, attack.norm, torch.tensor(torch.inf))[0]

    def sick(asked: Tensor) -> Tensor:
        there = (asked == points[place]).flatten(1).all(1)[:, None]
        return torch.where(there, torch.nan, turned(asked))

    with pytest.raises(UserError, match="NaN for test image 0"):
        trail(attack, sick, images, zero, eps)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: 255 * x, r"\[0, 1\]"),
        (lambda x: 2 * x - 1, r"\[0, 1\]"),
        (lambda x: x.masked_fill(x == x.max(), torch.nan), r"\[0, 1\]"),
        (lambda x: (255 * x).to(torch.uint8), "not float"),
    ],
)
def test_the_range_of_images_is_checked(name: str, change: object, message: str) -> None:
    net, images, labels = digits_setting(8)
    with pytest.raises(UserError, match=message):
        rrd.attack(net, change(images), labels, name, eps=0.1)  # type: ignore[operator]


def test_files_of_the_wrong_range_are_refused(tmp_path: object) -> None:
    net, images, labels = digits_setting(8)
    for name, wrong in (("levels", 255 * images), ("centred", images - 0.5)):
        np.savez(f"{tmp_path}/{name}.npz", images=wrong.numpy(), labels=labels.numpy())
        with pytest.raises(UserError, match="not 0 to 1"):
            rrd.evaluate(
                net, "pgd", dataset=f"npz:{tmp_path}/{name}.npz", eps=0.1, results=f"{tmp_path}/r"
            )


@pytest.mark.parametrize("name", EVERY)
def test_a_float32_model_sees_float32(name: str) -> None:
    """Verdicts, searches and image runs; and float64 images stay what they are."""
    net, images, labels = digits_setting(4)
    net = copy.deepcopy(net)
    attack = oracles.build(name, **SHORT)
    eps = EPS[attack.norm]
    for dtype in (torch.float32, torch.float64):
        asked: set[torch.dtype] = set()

        def typed(points: Tensor, asked: set[torch.dtype] = asked) -> Tensor:
            asked.add(points.dtype)
            logits: Tensor = net(points.float())
            return logits

        given = images.to(dtype)
        oracles.run(attack, typed, given, labels, (eps,))
        returned = rrd.attack(typed, given, labels, name, eps=eps, **short(name))  # type: ignore[arg-type]
        assert asked == {dtype}
        assert returned.images.dtype == dtype
    # Behind a bare function nobody can freeze the weights.
    assert all(weight.grad is None for weight in net.parameters())
