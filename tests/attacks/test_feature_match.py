"""Feature matching: its loss, its guides, its taps, and the subject that only it can break."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.core.view import View
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.guides import Gallery, Pool
from robustbench_defenses.engine.search import Outcome
from robustbench_defenses.engine.twin import search_twin
from tests.attacks import nets
from tests.engine import builders, oracles

EPS = {"linf": 0.06, "l2": 0.4, "l1": 2.5}


class Tapped(nn.Module):
    """Two taps of a small smooth network in float64."""

    tap_names = ("low", "high")

    def __init__(self) -> None:
        super().__init__()
        self.body = oracles.convolution(2, 5)
        self.seen = 0

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        self.seen += 1
        low = self.body[:3](images)
        high = self.body[3:5](low)
        return {"low": low, "high": high, "logits": self.body[5](high)}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]


def setting(count: int = 12) -> tuple[Tapped, Tensor, Tensor]:
    model = Tapped().eval()
    images = torch.rand(count, 2, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    return model, images, oracles.predicted(model, images)


def build(**settings: Any) -> Any:
    return oracles.build("feature_match", **settings)


def pull(own: Tensor, guide: Tensor) -> Tensor:
    """Relative Euclidean distance (N,) of features (N, ...)."""
    return (own - guide).flatten(1).norm(dim=1) / guide.flatten(1).norm(dim=1)


@pytest.mark.parametrize("taps", [(), ("low",), ("low", "high"), ("logits",), ("body.3", "high")])
def test_literally(taps: tuple[str, ...]) -> None:
    """BIM on the distance to the nearest image of another class, by a loop of its own."""
    model, images, labels = setting()
    eps = 0.2
    attack = build(taps=taps, steps=4, step_size=0.1, random_start=False, finish=0.0)
    found = craft(model, attack, images, labels, eps, pool=Pool.of(images, labels))

    def features(points: Tensor) -> list[Tensor]:
        seen = model.tapped(points)
        seen["body.3"] = model.body[3](seen["low"])
        return [seen[name].flatten(1) for name in taps or ("high",)]

    with torch.no_grad():
        own = torch.cat(features(images), 1)
    far = torch.cdist(own, own).masked_fill(labels[:, None] == labels, torch.inf)
    guide = [one[far.argmin(1)] for one in features(images)]
    points = images.clone()
    for _ in range(4):
        points.requires_grad_()
        loss = sum((pull(f, g.detach()) for f, g in zip(features(points), guide)), torch.zeros(()))
        (gradient,) = torch.autograd.grad(loss.sum(), points)
        moved = points.detach() - 0.1 * gradient.sign()
        points = torch.minimum(torch.maximum(moved, images - eps), images + eps).clamp(0, 1)
    torch.testing.assert_close(found, points)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
@pytest.mark.parametrize("guide", ["nearest", "centre"])
def test_features_come_near_the_guides(norm: str, kind: str, guide: str) -> None:
    """In every ball, by either distance; the images stay in it."""
    model, images, labels = setting(24)
    attack = build(norm=norm, distance=kind, guide=guide, steps=30, finish=0.0)
    eps = 4 * EPS[norm]
    points = craft(model, attack, images, labels, eps, pool=Pool.of(images, labels))
    assert (distance(points, images, norm) <= largest_allowed(torch.tensor(eps).double())).all()
    with torch.no_grad():
        own, after = model.tapped(images)["high"], model.tapped(points)["high"]
    gallery = Gallery(own, labels)
    if guide == "centre":
        gallery = gallery.centres
    nobody, first = torch.full_like(labels, -1), torch.zeros_like(labels)
    goal, has = gallery.guides(own, labels, nobody, first, kind)
    assert has.all()

    def apart(features: Tensor) -> Tensor:
        if kind == "cosine":
            return 1 - F.cosine_similarity(features, goal)
        return (features - goal).norm(dim=1)

    assert (apart(after) < 0.8 * apart(own)).double().mean() > 0.9


def test_away_leaves_its_own_features() -> None:
    model, images, labels = setting()
    with torch.no_grad():
        own = model.tapped(images)["high"]
        pushed = craft(model, build(guide="away", finish=0.0), images, labels, 0.06)
        chance = craft(model, build(steps=1, step_size=0.0, finish=0.0), images, labels, 0.06)
        moved, random = (model.tapped(points)["high"] for points in (pushed, chance))
    assert ((moved - own).norm(dim=1) > 2 * (random - own).norm(dim=1)).all()
    # Without a pool there is no guide, and the attack does the same.
    alone = craft(model, build(finish=0.0), images, labels, 0.06)
    torch.testing.assert_close(alone, pushed)
    still = craft(model, build(guide="away", random_start=False, finish=0.0), images, labels, 0.06)
    assert (still != images).flatten(1).any(1).all(), "at the image the slope is zero"


def test_guides_are_other_classes_by_distance() -> None:
    """Run r the r-th nearest class, around and around; towards a target that class alone."""
    features = torch.tensor([[0.0], [1.0], [3.0], [3.5], [10.0]]).double()
    gallery = Gallery(features, torch.tensor([0, 1, 2, 2, 3]))
    own = torch.zeros(6, 1).double()
    labels, nobody = torch.zeros(6).long(), torch.full((6,), -1)
    guide, has = gallery.guides(own, labels, nobody, torch.arange(6))
    assert guide[:, 0].tolist() == [1.0, 3.0, 10.0, 1.0, 3.0, 10.0]
    assert has.all()
    target = torch.tensor([3, 2, 1, 3, 2, 4])
    guide, has = gallery.guides(own, labels, target, torch.arange(6))
    assert guide[:, 0].tolist() == [10.0, 3.0, 1.0, 10.0, 3.0, 0.0]
    assert has.tolist() == [True] * 5 + [False]
    assert gallery.centres.features[:, 0].tolist() == [0.0, 1.0, 3.25, 10.0]
    nothing = Gallery(features[:0], torch.zeros(0).long())
    assert not nothing.guides(own, labels, nobody, labels)[1].any()
    assert len(nothing.centres.features) == 0


def test_guides_are_images_that_the_subject_gets_right() -> None:
    """An image that it takes for the row's own class has that class's features."""
    model, images, labels = setting(4)
    pool = Pool(images[1:2], (labels[1:2] + 1) % 5)  # its label is wrong in the subject's eyes
    attack = build(finish=0.0, random_start=False, steps=2)
    alone = craft(model, attack, images[:1], labels[:1], 0.1)
    mistaken = craft(model, attack, images[:1], labels[:1], 0.1, pool=pool)
    assert torch.equal(alone, mistaken)


class Masked(nn.Module):
    """Its logits are rounded: no gradient passes, but the features before them are as they were."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (self.inner(images) * 4).round() / 4
        return logits


def run(attack: Any, model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Outcome:
    pool = Pool.of(images, labels)
    return oracles.run(attack, model, images, labels, (eps,), pool=pool)


def test_it_breaks_what_hides_the_gradient_of_its_logits() -> None:
    images, labels = (part[:100] for part in nets.digits("test"))
    model = Masked(nets.trained()).eval()
    blind = run(oracles.build("pgd_linf"), model, images, labels, 0.15)
    last = run(build(taps=("inner.7",), finish=0.0, restarts=3), model, images, labels, 0.15)
    hidden = run(build(taps=("inner.5",), finish=0.0, restarts=3), model, images, labels, 0.15)
    standing = [float(torch.isinf(out.distance).double().mean()) for out in (blind, last, hidden)]
    assert standing[0] > 0.8
    assert standing[1] < 0.5
    assert standing[2] < 0.5


def test_the_last_steps_make_it_as_strong_as_pgd() -> None:
    """Alone it is weaker, with its last quarter on the margin and three guides it is not."""
    images, labels = (part[:100] for part in nets.digits("test"))
    model = nets.trained(eps=0.1)
    pgd = run(oracles.build("pgd_linf"), model, images, labels, 0.15)
    pure = run(build(taps=("5",), restarts=3, finish=0.0), model, images, labels, 0.15)
    whole = run(build(taps=("5",), restarts=3), model, images, labels, 0.15)
    left = [float(torch.isinf(out.distance).double().mean()) for out in (pgd, pure, whole)]
    assert left[2] <= left[0] + 0.01
    assert left[2] < left[1]


def test_a_target_is_reached() -> None:
    images, labels = (part[:60] for part in nets.digits("test"))
    model = nets.trained()
    target = (labels + 1) % 10
    points = craft(
        model, build(taps=("5",), finish=0.0), images, labels, 0.4, target=target,
        pool=Pool.of(images, labels),
    )  # fmt: skip
    assert (oracles.predicted(model, points) == target).double().mean() > 0.5


def test_passes_are_counted() -> None:
    """One for the clean features of an example, one for an image of the pool, and its steps."""
    model, images, labels = setting()
    labels[0] = (labels[0] + 1) % 5
    pool = Pool.of(images[:7], labels[:7])
    attack = build(steps=5)
    out = oracles.run(attack, model, images, labels, (1e-9,), pool=pool)
    assert out.queries.tolist() == [1] + [1 + 1 + 5] * 11
    assert out.cost.forward >= 12 + 11 + 7 + 11 * 5  # and the verdicts on last points
    assert out.cost.backward == 11 * 5


def test_one_pass_gives_features_and_logits() -> None:
    model, images, labels = setting(3)
    model.seen = 0
    craft(model, build(steps=5, guide="away"), images, labels, 0.1)
    assert model.seen == 6


def test_a_tap_that_is_not_there() -> None:
    model, images, labels = setting(3)
    with pytest.raises(UserError, match="Tapped has no tap 'middle'") as error:
        craft(model, build(taps=("middle",)), images, labels, 0.1)
    assert error.value.hint is not None
    assert "low, high, logits" in error.value.hint
    with pytest.raises(UserError, match="has no tap 'x'"):
        run(build(taps=("x",)), oracles.convolution(2, 5), images, labels, 0.1)
    with pytest.raises(UserError, match="has no tap 'x'"):
        craft(lambda points: model(points), build(taps=("x",)), images, labels, 0.1)


def test_features_of_a_coarse_twin() -> None:
    """In bf16 too the taps are those of the copy, and its attack is about as strong."""
    images, labels = (part[:80] for part in nets.digits("test"))
    model = nets.trained()
    twin = search_twin(View("v", model), images, "bf16")
    assert twin.autocast
    logits, (features, first) = twin.see(images, taps=("5", "0"))
    exact = model[:6](images)
    assert features.dtype == torch.float32
    assert ((features - exact).norm(dim=1) / exact.norm(dim=1)).median() < 0.02
    torch.testing.assert_close(first, model[0](images).flatten(1), rtol=0.02, atol=0.02)
    torch.testing.assert_close(logits, model(images), rtol=0.1, atol=0.2)
    attack, pool = build(taps=("5",), steps=20), Pool.of(images, labels)
    coarse, fine = (
        oracles.run(attack, model, images, labels, (0.1,), twin=one, pool=pool)
        for one in (twin, search_twin(View("v", model), images, "fp32"))
    )
    broken = [float(torch.isfinite(out.distance).double().mean()) for out in (coarse, fine)]
    assert abs(broken[0] - broken[1]) <= 0.04


def test_best_loss_is_by_the_margin() -> None:
    """Losses of the two parts do not compare; margins do."""
    model, images, labels = setting(30)
    attack = build(steps=8, rel_step=0.9, finish=0.0)
    best = craft(model, attack, images, labels, 0.1, keep="best_loss")
    last = craft(model, attack, images, labels, 0.1)
    rows = builders.rows(images, labels, 0.1)

    def margin(points: Tensor) -> Tensor:
        logits = model(points)
        own = logits.gather(1, rows.labels[:, None])[:, 0]
        mask = F.one_hot(rows.labels, 5).bool()
        return logits.masked_fill(mask, -torch.inf).amax(1) - own

    assert (margin(best) >= margin(last) - 1e-12).all()
    assert (margin(best) > margin(last) + 1e-9).any()
