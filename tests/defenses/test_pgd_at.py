"""Natural and adversarial training: what their loss is taken at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.attacks.pgd import PGD
from robustbench_defenses.core import rng
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.view import View
from robustbench_defenses.defenses.base import Batch, Parts, Setup, TrainSettings, attack_views
from robustbench_defenses.defenses.nt import NT, cross_entropy
from robustbench_defenses.defenses.pgd_at import PGDAT, ramp
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.models.lenet import LeNet

from . import transcription

SHAPE = (1, 8, 8)


def setup_() -> Setup:
    return Setup(SHAPE, 10, "digits", lambda: LeNet(width=4, hidden=8).build(SHAPE, 10))


def batch(progress: float = 1.0) -> Batch:
    index = torch.arange(6)
    pixels = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    key = rng.row_keys(0, "epoch", index)
    return Batch(pixels, torch.tensor([3, 1, 4, 1, 5, 9]), index, key, "train", 0, 0, progress, 0)


def loss_of(defense: NT | PGDAT, given: Batch) -> tuple[Tensor, nn.Module]:
    torch.manual_seed(0)
    setup = setup_()
    parts = defense.parts(setup)
    (phase,) = defense.phases(setup, parts)
    assert phase.loss is not None
    terms = phase.loss(given)
    return torch.stack(list(terms.values())).sum(), parts["network"]


def test_natural_training_is_the_cross_entropy_of_clean_images() -> None:
    given = batch()
    loss, network = loss_of(NT(), given)
    literal = transcription.cross_entropy(network(given.images), given.labels.tolist())
    torch.testing.assert_close(loss, literal)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    logs = logits.log_softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        for k in range(5):
            share = 0.2 / 5 + (0.8 if k == labels[i] else 0.0)
            total = total - share * logs[i, k] / 4
    torch.testing.assert_close(cross_entropy(logits, labels, 0.2), total)


def test_adversarial_training_is_the_cross_entropy_at_the_last_iterate() -> None:
    given = batch()
    loss, network = loss_of(PGDAT(eps=0.2, steps=5), given)
    clean = transcription.cross_entropy(network(given.images), given.labels.tolist())
    crafted = craft(
        network,
        PGD(steps=5, rel_step=0.25),
        given.images,
        given.labels,
        0.2,
        key=given.keys("inner"),
    )
    literal = transcription.cross_entropy(network(crafted), given.labels.tolist())
    torch.testing.assert_close(loss, literal)
    assert loss > clean
    assert (crafted - given.images).abs().max() <= 0.2 + 1e-6
    assert all(weight.requires_grad and weight.grad is None for weight in network.parameters())
    assert network.training


def test_the_budget_ramps_from_zero() -> None:
    assert ramp(0.3, 0.5, 0.0) == 0.0
    assert ramp(0.3, 0.5, 0.25) == pytest.approx(0.15)
    assert ramp(0.3, 0.5, 0.5) == ramp(0.3, 0.5, 1.0) == 0.3
    assert ramp(0.3, 0.0, 0.0) == 0.3
    given = batch(progress=0.0)
    loss, network = loss_of(PGDAT(eps_ramp=0.5), given)
    torch.testing.assert_close(
        loss, nn.functional.cross_entropy(network(given.images), given.labels)
    )


def test_random_starts_change_with_the_epoch_and_not_with_the_batch() -> None:
    given = batch()
    other = replace(given, key=rng.row_keys(0, "next epoch", given.index))
    assert not torch.equal(given.keys("inner"), other.keys("inner"))
    assert not torch.equal(given.keys("inner"), given.keys("noise"))
    part = replace(given, key=given.key[2:4])
    assert torch.equal(part.keys("inner"), given.keys("inner")[2:4])


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(UserError, match="8"):
        PGDAT(eps=8)


@pytest.mark.parametrize("defense", [NT(), PGDAT()])
def test_the_network_is_deployed_and_has_no_options(defense: NT | PGDAT) -> None:
    parts = defense.parts(setup_())
    assert defense.deployed(parts, {}) is parts["network"]
    with pytest.raises(UserError, match="rule"):
        defense.deployed(parts, {"rule": "softmax"})


def test_attack_views_default_to_the_deployed_module() -> None:
    parts = NT().parts(setup_())
    (view,) = attack_views(NT(), parts, {})
    assert view.module is parts["network"]

    class WithView(NT):
        def attack_views(self, parts: Parts, options: dict[str, str]) -> list[View]:
            return [View("soft", parts["network"]), View("other", parts["network"])]

    assert [view.name for view in attack_views(WithView(), parts, {})] == ["soft", "other"]


def test_bf16_passes_come_back_as_float32() -> None:
    setup = replace(setup_(), autocast=True, settings=TrainSettings())
    network = setup.model()
    images = batch().images
    logits, taps = setup.forward(network, images), setup.tapped(network, images)
    assert logits.dtype == torch.float32
    assert all(tap.dtype == torch.float32 for tap in taps.values())
    assert not torch.equal(logits, network(images))  # the pass itself was in bf16
    torch.testing.assert_close(logits, network(images), rtol=0.05, atol=0.02)
