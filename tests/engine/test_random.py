"""Random subjects: verdicts over fresh draws, gradients averaged over draws, equal runs equal."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.core.view import View
from robustbench_defenses.engine.caller import Caller, Cost
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.protocol import Query
from robustbench_defenses.engine.search import Outcome
from robustbench_defenses.engine.twin import Twin, search_twin
from robustbench_defenses.engine.verdict import Judge
from tests.engine import builders, oracles


class Chance(nn.Module):
    """Each draw names class 1 with probability `wrong`, whatever the image, else class 0."""

    random = True

    def __init__(self, wrong: float, draws: int, aggregation: str = "vote") -> None:
        super().__init__()
        self.wrong, self.draws, self.aggregation = wrong, draws, aggregation

    def forward(self, images: Tensor) -> Tensor:
        odd = (torch.rand(len(images)) < self.wrong).to(images)
        return torch.stack([1 - odd, odd], 1) + 0 * images.flatten(1).sum(1)[:, None]


class Far(nn.Module):
    """Class 1 within a radius of a centre, seen through input noise that drowns the gradient.

    Margin |x + n - c|^2 - d s^2 - r^2: its mean is |x - c|^2 - r^2, its slope 2 (x + n - c).
    """

    random, aggregation = True, "logits_mean"
    noise, radius, away = 0.4, 11.0, 0.1

    def __init__(self, draws: int, eot: str = "loss_mean") -> None:
        super().__init__()
        self.draws, self.eot = draws, eot

    def forward(self, images: Tensor) -> Tensor:
        seen = images + self.noise * torch.randn_like(images) - (0.5 + self.away)
        size = images[0].numel()
        margin = seen.flatten(1).square().sum(1) - size * self.noise**2 - self.radius
        return torch.stack([margin, torch.zeros_like(margin)], 1) / 10


def noisy(
    aggregation: str = "vote", draws: int = 5, eot: str | None = None, noise: float = 0.1
) -> nn.Module:
    """A smooth network behind input noise."""

    class Noisy(nn.Module):
        random = True

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.draws, self.aggregation = oracles.convolution(2, 5), draws, aggregation
            if eot is not None:
                self.eot = eot

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(images + noise * torch.randn_like(images))
            return logits

    return Noisy().double().eval()


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 2, 6, 5, generator=torch.Generator().manual_seed(0)).double()


def labels_of(model: nn.Module, points: Tensor) -> Tensor:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return torch.stack([model(points) for _ in range(64)]).mean(0).argmax(1)


def run(attack: Any, model: nn.Module, points: Tensor, labels: Tensor, **options: Any) -> Outcome:
    return oracles.run(attack, model, points, labels, options.pop("grid", (0.1,)), **options)


@pytest.mark.parametrize("name", ["pgd_linf", "square_linf", "ddn", "deepfool_l2", "autoattack"])
def test_one_lucky_draw_breaks_nothing(name: str) -> None:
    """Three draws of ten are wrong, the majority is right: many claims find no image."""
    points, labels = builders.grey(*[0.5] * 15), torch.zeros(15).long()
    attack = oracles.build(name, steps=40, n_queries=40, restarts=2)
    found = run(attack, Chance(0.3, 41), points, labels)
    assert (found.clean_prediction == 0).all()
    assert torch.isinf(found.distance).all()
    assert found.broken_draws is not None
    # One draw alone would have believed any of them.
    believed = run(attack, Chance(0.3, 1), points, labels)
    attacked = believed.clean_prediction == 0
    assert torch.isfinite(believed.distance[attacked]).double().mean() > 0.2


def test_the_share_of_broken_draws_is_told() -> None:
    """Of survivors at their last points; of broken ones at the point that broke them."""
    points, labels = builders.grey(*[0.5] * 60), torch.zeros(60).long()
    attack = oracles.build("pgd_linf", steps=3)
    stands = run(attack, Chance(0.3, 41), points, labels)
    assert stands.broken_draws is not None
    assert stands.broken_draws.shape == (1, 60)
    assert stands.broken_draws.mean() == pytest.approx(0.3, abs=0.03)
    wrong = run(attack, Chance(0.8, 41), points, labels)
    assert wrong.broken_draws is not None
    assert (wrong.distance == 0).all()
    assert wrong.broken_draws.mean() == pytest.approx(0.8, abs=0.03)
    assert run(attack, oracles.Constant(2), points, labels).broken_draws is None


@pytest.mark.parametrize("eot", ["loss_mean", "logits_mean", "prob_mean"])
def test_averaged_gradients_break_what_single_ones_cannot(eot: str) -> None:
    points = torch.full((6, 3, 32, 32), 0.5)
    labels = torch.zeros(6).long()
    model, attack = Far(40, eot).eval(), oracles.build("pgd_linf", loss="margin")
    single = search_twin(View("one draw", model, True, 1, "logits_mean"), points, "fp32")
    plain = run(attack, model, points, labels, grid=(0.06,), twin=single)
    averaged = run(attack, model, points, labels, grid=(0.06,))
    assert (plain.clean_prediction == 0).all()
    assert torch.isinf(plain.distance).all()
    assert torch.isfinite(averaged.distance).all()


@pytest.mark.parametrize("want", ["logits", "gradient", "class_gradients"])
@pytest.mark.parametrize("eot", ["loss_mean", "logits_mean", "prob_mean"])
def test_answers_are_means_over_draws(want: str, eot: str) -> None:
    """Against a literal loop over the same draws."""
    model, points = noisy("prob_mean", 7, eot), images(5)
    labels = labels_of(model, points)
    rows = builders.rows(points, labels, 0.1)
    twin = search_twin(View("v", model), points, "fp32")
    queries = torch.zeros(5, dtype=torch.int64)
    caller = Caller(twin, "the subject", torch.arange(5), queries, 256, Cost(), seed="s")
    query = Query(points, want, classes=labels[:, None])  # type: ignore[arg-type]
    answer = caller.answer(query, rows, None)
    backward = 0 if want == "logits" else 35
    assert (caller.cost.forward, caller.cost.backward) == (35, backward)
    assert queries.tolist() == [7] * 5

    asked = points.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(_seed_of(caller, 35))
        laid = asked.contiguous(memory_format=torch.channels_last)  # as noise is drawn in memory
        draws = torch.stack([model(laid) for _ in range(7)])
    by_prob = draws.softmax(2).mean(0).log()
    inner = by_prob if eot == "prob_mean" else draws.mean(0)
    torch.testing.assert_close(answer.logits, inner.detach())
    torch.testing.assert_close(answer.decided, by_prob.detach())
    if want == "gradient":
        losses = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in draws])
        joint = F.cross_entropy(inner, labels, reduction="none")
        loss = losses.mean(0) if eot == "loss_mean" else joint
        torch.testing.assert_close(answer.loss, loss.detach())
        torch.testing.assert_close(answer.gradient, torch.autograd.grad(loss.sum(), asked)[0])
    elif want == "class_gradients":
        own = draws.mean(0).gather(1, labels[:, None]).sum()
        assert answer.class_gradients is not None
        torch.testing.assert_close(answer.class_gradients[:, 0], torch.autograd.grad(own, asked)[0])


def _seed_of(caller: Caller, forward: int) -> int:
    from robustbench_defenses.core.rng import name_key

    return name_key("draws", caller.seed, int(caller.numbers[0]), forward, False, 0)


@pytest.mark.parametrize("name", ["pgd_linf", "ddn", "square_linf", "fab_t_l2", "autoattack"])
@pytest.mark.parametrize("aggregation", ["vote", "logits_mean", "prob_mean"])
def test_equal_runs_are_equal_and_nobody_notices(name: str, aggregation: str) -> None:
    model, points = noisy(aggregation), images()
    labels = labels_of(model, points)
    attack = oracles.build(name, steps=6, n_queries=20, targets=2)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    first, again = (run(attack, model, points, labels, grid=(0.05, 0.2)) for _ in range(2))
    craft_first, craft_again = (
        craft(model, oracles.build("pgd_linf", steps=3), points, labels, 0.1) for _ in range(2)
    )
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1] == random.getstate()
    assert str(states[2]) == str(np.random.get_state(legacy=False))
    assert torch.equal(first.distance, again.distance)
    assert torch.equal(first.queries, again.queries)
    assert asdict(first.cost) == asdict(again.cost)
    assert torch.equal(craft_first, craft_again)
    other = run(attack, model, points, labels, grid=(0.05, 0.2), seed=1)
    assert first.broken_draws is not None
    assert other.broken_draws is not None
    assert not torch.equal(first.broken_draws, other.broken_draws)


def test_declared_budgets_are_kept_times_the_draws() -> None:
    model, points = noisy(draws=4), images()
    labels = labels_of(model, points)
    attack = oracles.build("pgd_linf", steps=6)
    found = run(attack, model, points, labels, grid=(1e-6,))
    forward, backward = attack.passes(5)
    right = (found.clean_prediction == labels).sum()
    assert found.cost.backward == 4 * backward * int(right)
    assert int(found.queries.max()) <= 4 * (forward + 1)
    assert (found.queries[found.clean_prediction != labels] == 4).all()


@pytest.mark.parametrize("name", ["ddn", "deepfool_l2", "fab_t_l2"])
def test_nearest_images_lie_where_the_majority_turns(name: str) -> None:
    """About half of new draws are wrong there, at no image far fewer."""
    model, points = noisy("vote", 21, noise=0.05), images(16)
    labels = labels_of(model, points)
    attack = oracles.build(name, steps=30, targets=4)
    found = run(attack, model, points, labels, grid=(5.0,), keep_points=True)
    assert found.points is not None
    hit = (torch.isfinite(found.distance) & (found.distance > 0)).nonzero()[:, 0]
    assert len(hit) > 8
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        wrong = [model(found.points[hit]).argmax(1) != labels[hit] for _ in range(400)]
    share = torch.stack(wrong).double().mean(0)
    assert share.median() > 0.45
    assert share.min() > 0.35


def test_every_eps_has_its_own_verdict() -> None:
    """A table's shares differ from budget to budget: draws are fresh, not remembered."""
    points, labels = builders.grey(*[0.5] * 30), torch.zeros(30).long()
    attack, grid = oracles.build("pgd_linf", steps=2), (0.1, 0.2, 0.3)
    found = run(attack, Chance(0.4, 41), points, labels, grid=grid, sweep="independent")
    assert found.broken_draws is not None
    assert found.broken_draws.shape == (3, 30)
    standing = found.clean_prediction == 0
    assert not torch.equal(found.broken_draws[0, standing], found.broken_draws[1, standing])


def test_ensembles_take_their_random_version() -> None:
    """And the clean verdict is asked once: members do not draw it again until it fails."""
    model, points = noisy(), images()
    labels = labels_of(model, points)
    attack = oracles.build("autoattack", steps=4, n_queries=10)
    found = run(attack, model, points, labels)
    assert [member.name for member in found.members] == ["apgd_ce", "apgd_dlr"]
    fixed = run(attack, oracles.convolution(2, 5), points, labels)
    assert [member.name for member in fixed.members] == ["apgd_ce", "apgd_t", "fab_t", "square"]
    plus = oracles.build("autoattack", version="plus", steps=2, n_queries=4)
    asked = run(plus, model, points, labels)
    assert [one.name for one in asked.members] == [
        "apgd_ce", "apgd_dlr", "square", "apgd_t", "fab_t",
    ]  # fmt: skip
    unlucky = Chance(0.45, 3)
    grey, zero = builders.grey(*[0.5] * 60), torch.zeros(60).long()
    clean = run(attack, unlucky, grey, zero)
    assert torch.equal(clean.distance == 0, clean.clean_prediction != 0)


@pytest.mark.parametrize("most", [1, 4])
def test_out_of_memory_changes_only_the_draws(most: int) -> None:
    """Joint gradients hold all draws at once; in parts they are as many and as fresh."""
    inner = noisy("logits_mean", 6, "logits_mean", noise=0.0)
    labels = labels_of(inner, images())
    rows = builders.rows(images(), labels, 0.1)
    whole = search_twin(View("v", inner), images(), "fp32")

    def caller(call: Any) -> Caller:
        twin = Twin(call, call, False, whole.randomness)
        return Caller(twin, "s", torch.arange(12), torch.zeros(12).long(), 256)

    tight = caller(builders.limited(inner, most, builders.cuda_memory))
    exact = caller(inner).answer(Query(rows.images), rows, None)
    found = tight.answer(Query(rows.images), rows, None)
    torch.testing.assert_close(found.gradient, exact.gradient, rtol=1e-9, atol=1e-14)
    assert tight.cost.forward == 72


def test_a_verdict_has_to_come_twice() -> None:
    """At even odds about a quarter counts, not a half; their share is that of the second time."""
    count = 400
    judge = Judge(Chance(0.5, 11), "s", torch.arange(count), Cost())
    points, labels = builders.grey(*[0.5] * count), torch.zeros(count).long()
    eps = torch.ones(count).double()
    found = judge.verdict(
        points, points, labels, torch.full_like(labels, -1), eps, "linf", torch.arange(count)
    )
    assert 0.18 < found.counts.double().mean() < 0.32
    assert (found.share[found.counts] > 0.5).all()
    assert 11 * count < judge.cost.forward < 22 * count


def test_image_runs_average_too() -> None:
    points = torch.full((3, 3, 32, 32), 0.5)
    labels = torch.zeros(3).long()
    attack = oracles.build("pgd_linf", loss="margin")
    model = Far(40).eval()
    one = craft(View("one", model, True, 1, "logits_mean"), attack, points, labels, 0.06)
    many = craft(model, attack, points, labels, 0.06)
    centre = 0.5 + Far.away
    near = (many - centre).flatten(1).norm(dim=1)
    assert (near < 0.8 * (one - centre).flatten(1).norm(dim=1)).all()
