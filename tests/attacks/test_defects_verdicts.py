"""Defects known from other attack libraries: which of the points asked count, and which do not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import robustbench_defenses as rrd
from robustbench_defenses.core.norms import distance
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.search import runs_of
from robustbench_defenses.engine.twin import Twin
from robustbench_defenses.evaluation import metrics
from tests.attacks.defects import (
    EPS,
    SHORT,
    allowed,
    chosen_points,
    digits_setting,
    one_of,
    short,
    trail,
    wrong_at,
)
from tests.attacks.test_properties import ATTACKS, EVERY, FEW, FIXED, NEAREST, budgets, setting
from tests.engine import oracles


class BlackIsWrong(oracles.Constant):
    """Class 0 wherever it is asked but at the black image, and no gradient anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images)
        black = (images.flatten(1) == 0).all(1)[:, None]
        return logits + 2 * black * torch.eye(self.classes).to(logits)[1]


@pytest.mark.parametrize("name", EVERY)
def test_failures_are_not_reported_as_successes(name: str) -> None:
    """A subject that nothing can move: success is the clean error, and no image gets worse."""
    images = oracles.middle_images(12, (1, 3, 3)).float()
    labels = torch.zeros(12).long()
    labels[::4] = 3  # clean errors
    attack, model = oracles.build(name, **SHORT), BlackIsWrong()
    eps = EPS[attack.norm]
    out = oracles.run(attack, model, images, labels, (eps,), keep_points=True)
    assert torch.isfinite(out.distance).tolist() == (labels == 3).tolist()
    assert (out.distance[::4] == 0).all()
    assert not out.broken[:, labels == 0].any()
    returned = rrd.attack(model, images, labels, name, eps=eps, **short(name))
    assert returned.broken.tolist() == (labels == 3).tolist()
    assert out.points is not None
    for points in (out.points, returned.images):
        assert (oracles.predicted(model, points) == 0).all()
    if name in FIXED:
        points = craft(model, attack, images, labels, eps)
        assert (distance(points, images, attack.norm) <= allowed(eps)).all()
    elif name in NEAREST:
        points = craft(model, attack, images, labels, torch.inf)
        assert torch.equal(points[labels == 0], images[labels == 0])


@pytest.mark.parametrize("name", ["bim", "mim_linf", "pgd_linf", "pgd_l2", "pgd_l1", "fgsm_linf"])
def test_the_last_update_is_scored(name: str) -> None:
    """One step on a linear subject from the image: only the point after it is wrong."""
    images = oracles.middle_images(10, (1, 4, 4))
    model = oracles.Linear((1, 4, 4), 2)
    with torch.no_grad():  # the boundary passes through the middle of the images
        logits = model(images).mean(0)
        model.bias += logits.flip(0)
    labels = oracles.predicted(model, images)
    attack = oracles.build(name, steps=1, random_start=False, rel_step=1.0, quantile=0.99)
    exact = model.distances(images, labels, attack.norm)
    assert exact.max() < 0.4  # one L1 step moves one pixel: not past the box
    for i in range(10):
        eps = 1.05 * float(exact[i])
        out = oracles.run(attack, model, images[i : i + 1], labels[i : i + 1], (eps,))
        assert torch.isfinite(out.distance).all()
        assert out.queries.tolist() == [2]  # the clean image and the one start


def test_earlier_successes_are_kept() -> None:
    """Long steps reach the target and leave it again; an iterate in between counts."""
    net, images, labels = digits_setting(200)
    attack = oracles.build("pgd_linf", steps=9, rel_step=1.9)
    target = (labels + 1) % 10
    points = craft(net, attack, images, labels, 0.25, target=target)
    with torch.no_grad():
        right = net(images).argmax(1) == labels
        last = right & (net(points).argmax(1) == target)
    out = oracles.run(attack, net, images, labels, (0.25,), name="craft", target=target)
    every = torch.isfinite(out.distance) & right
    assert bool((every | ~last).all())
    assert int(every.sum()) > 1.2 * int(last.sum()) > 0


@pytest.mark.parametrize("name", FIXED)
def test_every_point_of_a_run_is_scored(name: str) -> None:
    """Wrong at one point of its way alone, first, in the middle or made by the last update: the
    run ends there, and costs nothing more."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **{**FEW, "targets": 2})
    eps = 1e-4 * EPS[attack.norm]
    points, whole = trail(attack, model, images, labels, eps)
    assert torch.isinf(whole.distance).all()
    asked, runs = int(whole.queries) - 1, runs_of(attack, 10)
    judged = points[-1 - runs :]
    assert torch.equal(judged[0], images[0]), "the image itself and the last point of each run"
    for place in chosen_points(points, images, attack.norm, allowed(eps)):
        subject = wrong_at(model, points[place], int(labels))
        _, out = trail(attack, subject, images, labels, eps)
        length = distance(points[place][None], images, attack.norm)
        torch.testing.assert_close(out.distance, length, rtol=1e-12, atol=0)
        assert int(out.queries) <= 1 + min(place + 1, asked)


@pytest.mark.parametrize("name", NEAREST)
def test_every_point_of_a_search_is_scored(name: str) -> None:
    """The same of minimum-norm attacks, far from every boundary."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **FEW, targets=2, search_steps=2)

    def aloof(points: Tensor) -> Tensor:
        return model(points) + 50 * F.one_hot(labels[:1], 10)

    points, whole = trail(attack, aloof, images, labels, 1.0)
    assert torch.isinf(whole.distance).all()
    judged = points[-1 - runs_of(attack, 10) :]
    assert torch.equal(judged[0], images[0]), "the image itself and the last point of each run"
    for place in chosen_points(points, images, attack.norm, torch.tensor(torch.inf)):
        _, out = trail(attack, wrong_at(aloof, points[place], int(labels)), images, labels, 1.0)
        length = distance(points[place][None], images, attack.norm)
        torch.testing.assert_close(out.distance, length, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NEAREST)
def test_the_nearest_point_asked_is_the_one_reported(name: str) -> None:
    model, images, labels = setting(name, count=4)
    attack = oracles.build(name, **FEW)
    found = 0
    for image, label in zip(images.split(1), labels.split(1)):
        points, out = trail(attack, model, image, label, 1.0)
        seen = torch.stack(points)
        wrong = oracles.predicted(model, seen) != label
        length = distance(seen, image.expand_as(seen), attack.norm)[wrong]
        found += len(length)
        if len(length):
            assert out.distance[0] <= length.min() * (1 + 1e-12)
        else:
            assert torch.isinf(out.distance[0])
    assert found > 0


@pytest.mark.parametrize("name", [name for name in EVERY if name not in NEAREST])
def test_curves_fall(name: str) -> None:
    """Broken at the smallest budget and, by runs of their own, at no larger one: what breaks at a
    budget counts at all above it."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **SHORT)
    small = 1e-4 * EPS[attack.norm]
    grid = (small, 2.7 * small, 7.3 * small)
    points, _ = trail(attack, model, images, labels, small)
    place = chosen_points(points, images, attack.norm, allowed(small))[0]
    subject = wrong_at(model, points[place], int(labels))

    def robust(*budgets: float, at: float) -> float:
        out = oracles.run(attack, subject, images, labels, budgets, batch_size=1)
        return metrics.robust_accuracy(out.distance.numpy(), at)

    assert [robust(eps, at=eps) for eps in grid] == [0, 1, 1]
    assert robust(*grid, at=grid[1]) == robust(*grid, at=grid[2]) == 0


@pytest.mark.parametrize("name", EVERY)
def test_returned_images_are_misclassified_afresh(name: str) -> None:
    """No image is rounded to levels or otherwise changed after its verdict."""
    model, images, labels = setting(name, count=12)
    attack = oracles.build(name, **FEW)
    out = oracles.run(attack, model, images, labels, budgets(attack), keep_points=True)
    broken = torch.isfinite(out.distance)
    assert broken.any()
    assert out.points is not None
    points = out.points[broken]
    assert (oracles.predicted(model, points) != labels[broken]).all()
    length = distance(points, images[broken], attack.norm)
    torch.testing.assert_close(length, out.distance[broken], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_verdict_that_never_agrees_ends_the_run(name: str) -> None:
    """A view that is misclassified where the deployed subject is not: refused claims are part of
    the budget, and no result."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **{**SHORT, "steps": 20, "n_queries": 50}, targets=2)
    runs = runs_of(attack, 10)
    left = [2 * (2 + runs * attack.passes(10)[0])]

    def counted(points: Tensor) -> Tensor:
        left[0] -= len(points)
        if left[0] < 0:
            raise RuntimeError("asked far beyond the budget")
        logits: Tensor = model(points)
        return logits

    def right(points: Tensor) -> Tensor:
        return F.one_hot(labels.expand(len(points)), 10).double()

    twin = Twin(counted, counted, autocast=False)
    grid = (2 * EPS[attack.norm],)
    out = oracles.run(attack, model, images, labels, grid, twin=twin, deployed=right)
    assert torch.isinf(out.distance).all()
    assert int(out.queries) <= 2 + runs * attack.passes(10)[0]
