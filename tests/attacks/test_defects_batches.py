"""Defects known from other attack libraries: one image of a batch changes what others get."""

from __future__ import annotations

import pytest
import torch

from robustbench_defenses.core import rng
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.search import runs_of
from tests.attacks.defects import EPS, SHORT, UNKNOWN, digits_setting, talking
from tests.attacks.test_properties import ATTACKS, EVERY, FEW, NEAREST, setting
from tests.engine import oracles


@pytest.mark.parametrize("name", ATTACKS)
def test_batch_mates_change_nothing(name: str) -> None:
    """Alone, among others, among extreme others: the same image (to float tolerance)."""
    model, images, labels = setting(name, count=8)
    attack = oracles.build(name, **FEW)
    eps = EPS[attack.norm]
    together = craft(model, attack, images, labels, eps)
    wild = torch.where(torch.arange(8).view(-1, 1, 1, 1) == 1, images, images.round())
    keys = rng.run_keys(0, "craft", torch.arange(8))
    among = craft(model, attack, wild, labels, eps)
    alone = craft(model, attack, images[1:2], labels[1:2], eps, key=keys[1:2])
    assert (alone != images[1:2]).any()
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(among[1:2], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_one_hopeless_image_spoils_nothing(name: str) -> None:
    """One image shall become what none can be: the others' results and one that is open."""
    model, images, labels = setting(name, count=10)
    attack = oracles.build(name, **SHORT)
    grid = (2 * EPS[attack.norm],)
    others = torch.arange(10) != 6
    target = torch.where(others, -1, UNKNOWN)
    out = oracles.run(attack, talking(model), images, labels, grid, target=target)
    numbers = others.nonzero()[:, 0]
    alone = oracles.run(
        attack, talking(model), images[others], labels[others], grid, numbers=numbers
    )
    assert torch.isinf(out.distance[6])
    assert torch.isfinite(alone.distance).any()
    torch.testing.assert_close(out.distance[others], alone.distance, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["boundary", *(n for n in NEAREST if n.startswith("brendel"))])
def test_one_image_without_a_start_fails_no_other(name: str) -> None:
    """Neither noise nor any image is what it is to become: 49 results and one that is open."""
    net, images, labels = digits_setting(60)
    with torch.no_grad():
        right = (net(images).argmax(1) == labels).nonzero()[:50, 0]
    images, labels = images[right], labels[right]
    target = torch.full_like(labels, -1)
    target[17] = UNKNOWN
    attack = oracles.build(name, steps=20, init_draws=30)
    out = oracles.run(attack, talking(net), images, labels, (), target=target)
    assert torch.isinf(out.distance).nonzero().tolist() == [[17]]
    others = oracles.run(attack, net, images[:17], labels[:17], ())
    torch.testing.assert_close(others.distance, out.distance[:17], rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "name", [name for name in ATTACKS if runs_of(oracles.build(name), 10) == 1]
)
def test_passes_of_an_image_do_not_depend_on_others(name: str) -> None:
    """Nobody is asked again because another image of the batch goes on."""
    model, images, labels = setting(name, count=8)
    attack = oracles.build(name, **FEW)
    eps = (EPS[attack.norm],)
    whole = oracles.run(attack, model, images, labels, eps)
    for i in (0, 3, 5):
        alone = oracles.run(
            attack, model, images[i : i + 1], labels[i : i + 1], eps, numbers=torch.tensor([i])
        )
        assert alone.queries.tolist() == whole.queries[i : i + 1].tolist()
