"""The baselines of AICR's tables: each loss against its slow transcription, and their wholes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.registry import find
from robustbench_defenses.defenses.adp import ADP, Ensemble, entropy, log_diversity
from robustbench_defenses.defenses.base import Batch, Setup, TrainSettings
from robustbench_defenses.defenses.fgsm_at import FGSMAT
from robustbench_defenses.defenses.pcl import PCL
from robustbench_defenses.defenses.triplet import (
    Triplet,
    absolute_cosine_distance,
    another_of_class,
    cosine_triplets,
    hardest_triplets,
)

from . import transcription
from .test_aicr import CLASSES, SHAPE, Tiny, batch, examples

LABELS = [0, 2, 1, 2, 0, 1, 0]


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _equal_with_gradients(fast: Any, slow: Any, *inputs: Tensor) -> None:
    """Two functions agree in value and in every input's gradient."""
    results = []
    for function in (fast, slow):
        leaves = [value.clone().requires_grad_() for value in inputs]
        value = function(*leaves)
        results.append((value, torch.autograd.grad(value, leaves)))
    (one, first), (two, second) = results
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def _setup() -> Setup:
    return Setup(SHAPE, CLASSES, "digits", Tiny, TrainSettings(epochs=2), examples=examples)


def _one(phases: Any) -> Any:
    return list(phases)[-1]


def test_pcl_as_printed_equals_its_equation() -> None:
    defense = PCL(squared=False, separate_centres=False, repulse_weight=1.0,
                  between_prototypes=True)  # fmt: skip
    setup = _setup()
    torch.manual_seed(0)
    parts = defense.parts(setup)
    parts["centres"].double()
    one = batch(7)
    terms = defense.objective(setup, parts, one)
    taps = parts["network"].tapped(one.images)  # type: ignore[operator]
    wanted = sum(
        transcription.prototype_conformity(
            taps[name].flatten(1), parts["centres"].of(name), LABELS  # type: ignore[operator]
        )
        for name in ("low.a", "high")
    )  # fmt: skip
    torch.testing.assert_close(
        terms["attract"] + terms["repulse"] + terms["between"], wanted, rtol=1e-9, atol=1e-9
    )
    leaves = [*parts["network"].parameters(), *parts["centres"].parameters()]
    ours = terms["attract"] + terms["repulse"] + terms["between"]
    assert isinstance(wanted, Tensor)
    first = torch.autograd.grad(ours, leaves, allow_unused=True, retain_graph=True)
    second = torch.autograd.grad(wanted, leaves, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_pcl_of_the_code_has_two_sets_and_takes_the_last_two_taps() -> None:
    defense = PCL()
    setup = _setup()
    parts = defense.parts(setup)
    parts["centres"].double(), parts["repulsive"].double()
    one = batch(7)
    terms = defense.objective(setup, parts, one)
    taps = parts["network"].tapped(one.images)  # type: ignore[operator]
    pull = push = torch.zeros((), dtype=torch.float64)
    for name in ("low.a", "high"):
        a, b = transcription.squared_pull_and_push(
            taps[name].flatten(1), parts["centres"].of(name),  # type: ignore[operator]
            parts["repulsive"].of(name), LABELS,  # type: ignore[operator]
        )  # fmt: skip
        pull, push = pull + a, push + b
    torch.testing.assert_close(terms["attract"], pull)
    torch.testing.assert_close(terms["repulse"], -1e-4 * push)


def test_adp_equals_its_equation() -> None:
    logits = _random(3, 5, 5)
    labels = torch.tensor([0, 4, 1, 2, 0])

    def fast(values: Tensor) -> Tensor:
        cross = sum(F.cross_entropy(one, labels) for one in values)
        probabilities = values.softmax(2)
        found = cross - 2 * entropy(probabilities) - 0.5 * log_diversity(probabilities, labels)
        assert isinstance(found, Tensor)
        return found

    _equal_with_gradients(
        fast, lambda v: transcription.adaptive_diversity(v, labels.tolist(), 2.0, 0.5), logits
    )


def test_adp_diversity_has_its_known_values() -> None:
    labels = torch.tensor([0])
    apart = torch.tensor([[[0.4, 0.6, 0.0, 0.0]], [[0.4, 0.0, 0.6, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(
        log_diversity(apart, labels), torch.tensor(2e-6, dtype=torch.float64), rtol=1e-3, atol=0
    )
    swapped = apart.flip(0)
    assert log_diversity(swapped, labels) == log_diversity(apart, labels)
    alone = log_diversity(apart[:1], labels)
    torch.testing.assert_close(alone, torch.tensor(1e-6, dtype=torch.float64), rtol=1e-3, atol=0)
    equal = log_diversity(apart[:1].expand(2, -1, -1), labels)
    assert float(equal) < -12  # log of about 2e-6


def test_an_ensemble_answers_with_the_log_of_its_mean_probability() -> None:
    torch.manual_seed(0)
    network = Ensemble([Tiny(), Tiny()], SHAPE)
    network.mean.fill_(0.25)
    one = batch(5).images
    wanted = torch.stack([m(one - 0.25).softmax(1) for m in network.members]).mean(0).log()
    torch.testing.assert_close(network(one), wanted)


def test_an_ensemble_subtracts_the_training_mean() -> None:
    defense, setup = ADP(members=2), _setup()
    parts = defense.parts(setup)
    phase = _one(defense.phases(setup, parts))
    assert phase.begin is not None
    phase.begin()
    pixels = torch.cat([images for images, _ in examples()])
    torch.testing.assert_close(parts["network"].mean, pixels.mean(0, keepdim=True))


def test_adp_needs_more_classes_than_members() -> None:
    with pytest.raises(UserError, match="needs at least 4 classes") as caught:
        ADP(members=3).parts(_setup())
    assert caught.value.hint == "--set members=2"


def test_at2l_equals_its_equation() -> None:
    labels = torch.tensor(LABELS)
    _equal_with_gradients(
        lambda a, c: hardest_triplets(a, c, labels, 0.3),
        lambda a, c: transcription.at2l_triplets(a, c, LABELS, 0.3),
        _random(7, 4), _random(7, 4, seed=1),
    )  # fmt: skip


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_anchors_without_a_partner_are_left_out(labels: list[int]) -> None:
    anchor = _random(3, 4).requires_grad_()
    found = hardest_triplets(anchor, _random(3, 4, seed=1), torch.tensor(labels), 0.3)
    assert float(found) == 0
    found.backward()  # a batch without triplets must not stop training


def test_tla_equals_its_equation() -> None:
    labels, there = torch.tensor(LABELS), torch.tensor([True, True, False, True, True, True, False])
    _equal_with_gradients(
        lambda a, p, c: cosine_triplets(a, p, c, labels, there, 0.05, 0.001),
        lambda a, p, c: transcription.tla_triplets(a, p, c, LABELS, there.tolist(), 0.05, 0.001),
        _random(7, 4), _random(7, 4, seed=1), _random(7, 4, seed=2),
    )  # fmt: skip


def test_opposite_embeddings_count_as_equal() -> None:
    u = _random(3, 4)
    torch.testing.assert_close(absolute_cosine_distance(u, -u), torch.zeros(3).double())


def test_positives_are_other_images_of_the_class() -> None:
    labels = torch.tensor(LABELS)
    chosen = another_of_class(labels, torch.arange(7, dtype=torch.int32))
    assert all(int(labels[j]) == LABELS[i] and j != i for i, j in enumerate(chosen.tolist()))
    assert another_of_class(torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int32)).tolist() == [
        -1, -1,
    ]  # fmt: skip


def test_mixed_training_weighs_the_two_halves() -> None:
    defense, setup = FGSMAT(weight=0.3), _setup()
    parts = defense.parts(setup)
    one = batch(6)
    phase = _one(defense.phases(setup, parts))
    terms = phase.loss(one)
    network = parts["network"]
    perturbed = defense.perturb(setup, network, one)
    clean_sum = F.cross_entropy(network(one.images), one.labels, reduction="sum")
    other_sum = F.cross_entropy(network(perturbed), one.labels, reduction="sum")
    wanted = (clean_sum + 0.3 * other_sum) / (6 + 0.3 * 6)
    torch.testing.assert_close(sum(terms.values()), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("labels", ["true", "predicted", "least_likely"])
def test_one_step_moves_every_pixel_by_eps_where_there_is_room(labels: str) -> None:
    defense, setup = FGSMAT(eps_low=0.05, eps_high=0.05, labels=labels), _setup()  # type: ignore[arg-type]
    network = defense.parts(setup)["network"]
    base = batch(6)
    one = Batch(**{**vars(base), "images": base.images * 0.5 + 0.25})
    moved = (defense.perturb(setup, network, one) - one.images).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05), rtol=1e-4, atol=1e-6)
    assert network.training


def test_the_attack_of_least_likely_labels_makes_them_likelier() -> None:
    defense, setup = FGSMAT(eps_low=0.02, eps_high=0.02, labels="least_likely"), _setup()
    network = defense.parts(setup)["network"]
    one = batch(6)
    with torch.no_grad():
        before = network(one.images).log_softmax(1)
        least = before.argmin(1, keepdim=True)
        after = network(defense.perturb(setup, network, one)).log_softmax(1)
    assert bool((after.gather(1, least) > before.gather(1, least)).all())


@pytest.mark.parametrize("name", ["fgsm_at", "pcl", "adp", "triplet"])
def test_intervals_of_budgets_are_checked(name: str) -> None:
    with pytest.raises(UserError, match=r"eps_low 0\.4 is larger than eps_high 0\.2"):
        find("defense", name).create(eps_low=0.4, eps_high=0.2)


@pytest.mark.parametrize("form", ["at2l", "tla"])
def test_triplet_terms_are_those_of_the_form(form: str) -> None:
    settings: dict[str, Any] = {"form": form, "steps": 2}
    if form == "tla":
        settings |= {"embedding": "features", "noisy_positive": True, "perturbation": "pgd"}
    defense, setup = Triplet(**settings), _setup()
    parts = defense.parts(setup)
    terms = _one(defense.phases(setup, parts)).loss(batch(7))
    clean = {"cross_entropy"} if form == "at2l" else set()
    assert set(terms) == {"adversarial_cross_entropy", "triplet"} | clean
    assert all(bool(term.isfinite()) for term in terms.values())
