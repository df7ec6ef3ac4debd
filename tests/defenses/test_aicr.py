"""AICR as a whole: equation 12 in both readings, its noise, its centres, its deployed rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core import rng
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.registry import find
from robustbench_defenses.core.view import Tapped
from robustbench_defenses.defenses.aicr import AICR, sign_noise
from robustbench_defenses.defenses.aicr_centres import Centres, start_at_class_means
from robustbench_defenses.defenses.base import Batch, Phase, Setup, TrainSettings

from . import transcription

SHAPE, CLASSES = (1, 3, 3), 3


class Tiny(nn.Module):
    """Two taps and logits, smooth, in float64."""

    tap_names = ("low.a", "high")

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(9, 6), nn.Linear(6, 4)
        self.classifier = nn.Linear(4, CLASSES)
        self.double()

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        low = self.low(images.double().flatten(1)).tanh()
        high = self.high(low)
        return {"low.a": low.view(-1, 2, 3), "high": high, "logits": self.classifier(high)}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def batch(count: int = 5, progress: float = 0.5, step: int = 3) -> Batch:
    index = torch.arange(count)
    return Batch(
        images=images(count),
        labels=torch.tensor([0, 2, 1, 2, 0, 1, 0])[:count],
        index=index,
        key=rng.row_keys(0, "epoch", index),
        phase="aicr",
        epoch=0,
        step=step,
        progress=progress,
        seed=0,
    )


def examples() -> Iterator[tuple[Tensor, Tensor]]:
    yield images(4), torch.tensor([0, 2, 0, 2])
    yield images(3, 1), torch.tensor([2, 2, 0])


def make(**settings: Any) -> tuple[AICR, Setup, dict[str, nn.Module]]:
    torch.manual_seed(0)
    defense = AICR(projector_width=5, **settings)
    setup = Setup(SHAPE, CLASSES, "digits", Tiny, TrainSettings(epochs=2), examples=examples)
    parts = defense.parts(setup)
    for name, module in parts.items():
        if name != "network":
            module.double()
    return defense, setup, parts


PAPER = find("defense", "aicr").card["readings"]["paper"]


def taps_of(parts: dict[str, nn.Module], points: Tensor) -> dict[str, Tensor]:
    network = parts["network"]
    assert isinstance(network, Tapped)
    return {name: tap.flatten(1) for name, tap in network.tapped(points).items()}


def centres_of(parts: dict[str, nn.Module], part: str, tap: str) -> Tensor:
    module = parts[part]
    assert isinstance(module, Centres)
    return module.of(tap)


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_equation_12_in_both_readings(reading: str) -> None:
    defense, setup, parts = make(**(PAPER if reading == "paper" else {}))
    given = batch()
    terms = defense.objective(setup, parts, given)
    perturbed = defense.perturb(setup, parts["network"], given)
    clean, noisy = taps_of(parts, given.images), taps_of(parts, perturbed)
    labels = given.labels.tolist()
    ce, ce_noisy = (transcription.cross_entropy(t["logits"], labels) for t in (clean, noisy))
    attractive = torch.zeros((), dtype=torch.float64)
    decorrelation = torch.zeros((), dtype=torch.float64)
    projectors = dict(parts["projectors"].named_children())
    for tap, key in (("low.a", "low/a"), ("high", "high")):
        h, hp, a = clean[tap], noisy[tap], centres_of(parts, "centres", tap)
        if reading == "paper":
            attractive = attractive + transcription.attract_repulse_equation_8(h, hp, a, labels)
        else:
            b = centres_of(parts, "repulsive", tap)
            both = torch.cat([h, hp])
            pull, push = transcription.squared_pull_and_push(both, a, b, labels + labels)
            attractive = attractive + pull - 0.001 * push
        var = transcription.barlow_equations_10_and_11(
            projectors[key](h), projectors[key](hp), 0.005
        )
        decorrelation = decorrelation + var
    if reading == "paper":
        printed = ce + ce_noisy + attractive + 1.0 * decorrelation
    else:
        printed = (ce + ce_noisy) / 2 + attractive + 0.01 / 32 * decorrelation
    ours = torch.stack(list(terms.values())).sum()
    torch.testing.assert_close(ours, printed, rtol=1e-8, atol=1e-10)
    weights = [weight for module in parts.values() for weight in module.parameters()]
    mine, literal = (torch.autograd.grad(total, weights) for total in (ours, printed))
    for x, y in zip(mine, literal):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-10)


def test_variance_is_off_before_its_start() -> None:
    defense, setup, parts = make()
    early = defense.objective(setup, parts, batch(progress=0.06))
    late = defense.objective(setup, parts, batch(progress=0.07))
    assert early["variance"].item() == 0.0
    assert late["variance"].item() > 0.0
    assert early["attract"].item() == late["attract"].item()


def test_sign_noise_moves_every_pixel_by_eps_inside_the_box() -> None:
    points = 0.2 + 0.6 * torch.rand(64, 1, 8, 8)
    key = rng.row_keys(0, "noise", torch.arange(64))
    moved = sign_noise(points, 0.1, key)
    torch.testing.assert_close((moved - points).abs(), torch.full_like(points, 0.1))
    share_up = (moved > points).double().mean().item()
    assert abs(share_up - 0.5) < 0.03
    assert torch.equal(sign_noise(points, 0.1, key), moved)
    assert torch.equal(sign_noise(points[5:6], 0.1, key[5:6]), moved[5:6])  # batch mates: no part
    white = sign_noise(torch.ones(4, 1, 8, 8), 0.3, key[:4])
    assert white.max() == 1.0
    assert (white < 1).any()


def test_one_eps_per_batch_from_the_interval() -> None:
    defense, setup, parts = make()
    sizes = []
    for step in range(200):
        given = replace(batch(step=step), images=torch.full((5, *SHAPE), 0.5))
        sizes.append((defense.perturb(setup, parts["network"], given) - 0.5).abs().unique())
    assert all((s.max() - s.min()).item() < 1e-6 for s in sizes)
    drawn = torch.stack([s[0] for s in sizes])
    assert drawn.min() >= 0.1 - 1e-6
    assert drawn.max() <= 0.3 + 1e-6
    assert abs(drawn.mean().item() - 0.2) < 0.02


def test_fgsm_images_step_along_the_sign_of_the_gradient() -> None:
    defense, setup, parts = make(perturbation="fgsm")
    given = batch()
    network = parts["network"]
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    moved = defense.perturb(setup, network, given)
    eps = 0.1 + 0.2 * given.share("eps")
    points = given.images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(network(points), given.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, points)
    torch.testing.assert_close(moved, (given.images + eps * gradient.sign()).clamp(0, 1))
    assert network.training
    assert all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(before[n], w) for n, w in network.state_dict().items())


def test_centres_start_at_the_class_means_of_all_examples() -> None:
    _, setup, parts = make(centre_init="class_means")
    unseen = centres_of(parts, "centres", "high")[1].clone()
    start_at_class_means(setup, parts)
    points = torch.cat([images(4), images(3, 1)])
    labels = [0, 2, 0, 2, 2, 2, 0]
    for tap in ("low.a", "high"):
        features = taps_of(parts, points)[tap]
        for k in (0, 2):
            mean = sum(f for f, y in zip(features, labels) if y == k) / labels.count(k)
            torch.testing.assert_close(centres_of(parts, "centres", tap)[k], mean)
    assert torch.equal(centres_of(parts, "centres", "high")[1], unseen)


def test_nearest_centre_rule_orders_by_distance_and_is_differentiable() -> None:
    defense, _, parts = make()
    points = images(6).requires_grad_()
    scores = defense.deployed(parts, {"rule": "nearest_centre"})(points)
    features, centres = taps_of(parts, points)["high"], centres_of(parts, "centres", "high")
    for i in range(6):
        for k in range(CLASSES):
            literal = -transcription.norm(features[i] - centres[k], squared=True)
            torch.testing.assert_close(scores[i, k], literal)
    (gradient,) = torch.autograd.grad(scores.sum(), points)
    assert (gradient != 0).any()
    low = defense.deployed(parts, {"rule": "nearest_centre", "tap": "low.a"})(points)
    assert not torch.allclose(low, scores)
    assert defense.deployed(parts, {}) is parts["network"]


@pytest.mark.parametrize(
    "options",
    [{"rule": "knn"}, {"k": "3"}, {"rule": "nearest_centre", "tap": "middle"}, {"tap": "high"}],
)
def test_unknown_deployment_options_are_refused(options: dict[str, str]) -> None:
    defense, _, parts = make()
    with pytest.raises(UserError):
        defense.deployed(parts, options)


def phases(**settings: Any) -> list[Phase]:
    defense, setup, parts = make(**settings)
    return list(defense.phases(setup, parts))


def test_two_stages_and_the_rates_of_the_code() -> None:
    first, second = phases(pretrain_epochs=4)
    assert (first.name, first.epochs, first.selects) == ("pretrain", 4, False)
    assert (second.name, second.epochs, second.selects) == ("aicr", 2, True)
    # Rescaled gradients: 0.1; 0.001 / 0.001; 0.1 / 0.01, the code's 1/32 staying in the loss.
    rates = [optimiser.rates[0] for optimiser in second.optimisers]
    assert rates == pytest.approx([0.001, 0.1, 1.0, 10.0])
    assert [p.name for p in phases(pretrain_epochs=0)] == ["aicr"]


def test_fgsm_training_is_chosen_by_robust_accuracy() -> None:
    assert phases(perturbation="fgsm")[-1].robust is not None
    assert phases()[-1].robust is None


def test_without_variance_there_are_no_projectors() -> None:
    defense, setup, parts = make(variance=False)
    assert set(parts) == {"network", "centres", "repulsive"}
    assert "variance" not in defense.objective(setup, parts, batch())
    assert find("defense", "ar").settings()["variance"] is False


def test_chosen_taps_only() -> None:
    _, _, parts = make(taps=("high",))
    centres = parts["centres"]
    assert isinstance(centres, Centres)
    assert centres.names == ["high"]
    with pytest.raises(UserError, match="no tap 'middle'"):
        make(taps=("middle",))


def test_a_network_without_taps_is_refused() -> None:
    setup = Setup(SHAPE, CLASSES, "digits", lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 3)))
    with pytest.raises(UserError, match="no named taps"):
        AICR().parts(setup)


def test_an_empty_eps_interval_is_refused() -> None:
    with pytest.raises(UserError, match="eps_low"):
        AICR(eps_low=0.3, eps_high=0.1)


def test_the_monitor_reads_geometry_off_the_features() -> None:
    defense, setup, parts = make()
    monitor = list(defense.phases(setup, parts))[-1].monitor
    assert monitor is not None
    points, labels = images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    found = monitor(points, labels)
    features = taps_of(parts, points)["high"]
    assert found["feature_norm.high"] == pytest.approx(features.norm(dim=1).mean().item())
    nearest = (-defense.deployed(parts, {"rule": "nearest_centre"})(points)).argmin(1)
    assert found["nearest_centre.high"] == pytest.approx((nearest == labels).double().mean().item())
    logits = taps_of(parts, points)["logits"]
    margins = [row[y] - max(row[j] for j in range(3) if j != y) for row, y in zip(logits, labels)]
    assert found["margin"] == pytest.approx(torch.stack(margins).median().item())
