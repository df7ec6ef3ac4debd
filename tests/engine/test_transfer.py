"""Transfer: images of the source's last iterates, judged by the subject."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.attacks.autoattack import AutoAttack
from robustbench_defenses.attacks.ddn import DDN
from robustbench_defenses.attacks.feature_match import FeatureMatch
from robustbench_defenses.attacks.pgd import PGD
from robustbench_defenses.core import rng
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.view import View
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.guides import Pool
from robustbench_defenses.engine.search import Block
from robustbench_defenses.engine.transfer import Source, TransferSearch
from robustbench_defenses.engine.twin import search_twin

COUNT, SHAPE = 60, (1, 5, 5)


class Linear(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.map = nn.Linear(25, 4)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.map.weight.copy_(torch.randn(4, 25, generator=generator))
            self.map.bias.copy_(torch.randn(4, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images.flatten(1))


def _images() -> Tensor:
    return torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(7))


def _search(attack: Any, source: nn.Module, subject: nn.Module, grid: tuple[float, ...],
            labels: Tensor | None = None, batch_size: int = 256,
            pool: Pool | None = None) -> TransferSearch:  # fmt: skip
    images = _images()
    with torch.no_grad():
        labels = source(images).argmax(1) if labels is None else labels
    return TransferSearch(
        attack=attack,
        source=Source("source", source, search_twin(View("v", source), images, "fp32"), source),
        deployed=subject,
        block=Block(
            images, labels, torch.full_like(labels, -1), torch.arange(COUNT), grid, pool=pool
        ),
        batch_size=batch_size,
        attack_name="pgd",
    )


def test_the_verdict_is_the_subjects_on_the_sources_last_iterates() -> None:
    source, subject = Linear(0), Linear(0)
    with torch.no_grad():
        subject.map.weight.add_(0.3 * torch.randn_like(subject.map.weight))
    attack = PGD(steps=7, rel_step=0.3)
    search = _search(attack, source, subject, (0.05, 0.15))
    found = search.run()
    images, labels = search.block.images, search.block.labels
    right = subject(images).argmax(1) == labels
    assert torch.equal(found.broken[0] & ~right, ~right)
    for place, eps in enumerate((0.05, 0.15)):
        made = craft(source, attack, images, labels, eps,
                     key=rng.run_keys(0, "pgd", torch.arange(COUNT)))  # fmt: skip
        wrong = subject(made).argmax(1) != labels
        assert torch.equal(found.broken[place], wrong | ~right)
    assert bool((found.distance[~right] == 0).all())
    assert 0 < int(right.sum()) < COUNT  # the test tells the two apart


def test_results_do_not_depend_on_the_batch_size() -> None:
    source, subject = Linear(0), Linear(3)
    one = _search(PGD(steps=5), source, subject, (0.1,)).run()
    two = _search(PGD(steps=5), source, subject, (0.1,), batch_size=7).run()
    assert torch.equal(one.broken, two.broken)


def test_a_minimum_norm_attack_transfers_its_nearest_image() -> None:
    source = Linear(0)
    itself = _search(DDN(steps=60), source, source, (0.2, 2.0)).run()
    assert bool(torch.isfinite(itself.distance).all())  # what fools the source fools the source
    other = _search(DDN(steps=60), source, Linear(5), (0.2, 2.0)).run()
    assert bool(torch.isinf(other.distance).any())  # nearest images hardly transfer
    finite = torch.isfinite(other.distance) & (other.distance > 0)
    assert torch.equal(other.distance[finite], itself.distance[finite])


def test_passes_are_counted() -> None:
    found = _search(PGD(steps=5), Linear(0), Linear(0), (0.1,)).run()
    assert found.cost.backward == 5 * COUNT
    assert int(found.queries.max()) == 6


def test_nothing_is_attacked_where_the_subject_is_wrong_anyway() -> None:
    source = Linear(0)
    with torch.no_grad():
        wrong = (source(_images()).argmax(1) + 1) % 4
    found = _search(PGD(steps=5), source, source, (0.1,), labels=wrong).run()
    assert found.cost.backward == 0
    assert bool(found.broken.all())


def test_an_ensemble_has_no_images_to_transfer() -> None:
    with pytest.raises(UserError, match="has no images to transfer"):
        _search(AutoAttack(), Linear(0), Linear(0), (0.1,)).run()


class Noisy(Linear):
    """Draws from torch's global generator at every question."""

    random = True
    draws = 2

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0.01 * torch.randn(len(images), 4)


def test_a_random_source_draws_nothing_of_the_callers() -> None:
    search = _search(PGD(steps=2), Noisy(0), Linear(1), (0.1, 0.2))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = search.run()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(search.run().broken, first.broken)


def test_feature_attacks_take_their_guides_from_the_pool() -> None:
    class Tapped(Linear):
        tap_names = ("map",)

        def tapped(self, images: Tensor) -> dict[str, Tensor]:
            logits = self(images)
            return {"map": logits, "logits": logits}

    source, subject = Tapped(0), Linear(1)
    images = _images()
    with torch.no_grad():
        pool = Pool.of(images, source(images).argmax(1))
    found = {
        guide: _search(
            FeatureMatch(guide=guide, taps=("map",)), source, subject, (0.1,), pool=pool
        ).run()
        for guide in ("away", "nearest")
    }
    assert not torch.equal(found["away"].broken, found["nearest"].broken)


def test_a_random_subject_tells_the_share_of_draws_that_broke() -> None:
    for attack in (PGD(steps=3), DDN(steps=5)):
        out = _search(attack, Linear(0), Noisy(0), (0.05, 0.2)).run()
        assert out.broken_draws is not None
        nearest = getattr(attack, "minimum", False)
        fell = out.distance.isfinite()[None] if nearest else out.broken
        assert out.broken_draws.shape == fell.shape
        assert (out.broken_draws[fell] > 0).all()
        assert ((out.broken_draws >= 0) & (out.broken_draws <= 1)).all()
    first = _search(PGD(steps=3), Linear(0), Linear(1), (0.05, 0.2)).run()
    assert first.broken_draws is None
