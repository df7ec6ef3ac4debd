"""Defects known from other attack libraries: passes that are wasted, or declared and not made."""

from __future__ import annotations

import pytest
import torch

from robustbench_defenses.engine.search import runs_of
from tests.attacks.defects import EPS, SHORT, UNKNOWN, digits_setting, one_of, talking, trail
from tests.attacks.test_properties import ATTACKS, EVERY, FEW, FIXED, setting
from tests.engine import oracles

STEPS = 40


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("classes", [2, 3, 4, 9, 10, 100])
def test_any_number_of_classes_with_survivors(name: str, classes: int) -> None:
    """Survivors see every run and target; of the wrong classes at most those that there are."""
    model, images, labels = setting(name, count=1, classes=classes)
    attack = oracles.build(name, **SHORT)
    out = oracles.run(attack, model, images, labels, (1e-6,))
    assert (out.distance > 0).all()
    forward = {"square": 6, "apgd_t": 3, "fab_t": 3, "apgd_ce": 3}
    runs = {"apgd_t": min(9, classes - 1), "fab_t": min(9, classes - 1)}
    if name.startswith("autoattack"):
        if name.endswith("l1"):
            runs |= {"apgd_t": min(5, classes - 1), "apgd_ce": 5}
        asked = sum(passes * runs.get(member, 1) for member, passes in forward.items())
        assert (out.queries == 1 + asked).all()
    elif name.startswith(("apgd", "fab", "square")):
        family = name.removesuffix("_linf").removesuffix("_l2").removesuffix("_l1")
        assert (out.queries == 1 + forward.get(family, 3) * runs.get(family, 1)).all()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("steps", [1, 9])
def test_few_steps_are_no_special_case(name: str, steps: int) -> None:
    net, images, labels = digits_setting(6)
    attack = oracles.build(name, **{**FEW, "steps": steps, "n_queries": steps})
    out = oracles.run(attack, net, images, labels, (EPS[attack.norm],))
    forward, backward = attack.passes(10)
    runs = runs_of(attack, 10)
    assert int(out.queries.max()) <= 2 + runs * forward
    assert (out.cost.backward > 0) == (backward > 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_autoattack_has_the_published_budget(norm: str) -> None:
    """100 iterations a run and 5,000 queries; APGD in L1 with five restarts and five targets."""
    attack = oracles.build(f"autoattack_{norm}")
    starts, targets = (5, 5) if norm == "l1" else (1, 9)
    members = [(name, runs_of(one, 10), one.passes(10)) for name, one in attack.members(10)]
    assert members == [
        ("apgd_ce", starts, (100, 100)), ("apgd_t", targets, (100, 100)), ("fab_t", 9, (100, 100)),
        ("square", 1, (5000, 0)),
    ]  # fmt: skip
    # And these are what an image that survives costs.
    model, images, labels = one_of(norm)
    short = oracles.build(f"autoattack_{norm}", n_queries=20)
    out = oracles.run(short, model, images, labels, (1e-6,))
    assert not out.broken.any()
    assert out.cost.backward == 100 * (starts + targets + 9)
    assert out.queries.tolist() == [1 + out.cost.backward + 20]


@pytest.mark.parametrize("name", FIXED)
def test_survivors_get_the_declared_passes(name: str) -> None:
    model, images, labels = setting(name, count=6)
    attack = oracles.build(name, **FEW)
    out = oracles.run(attack, model, images, labels, (1e-6,))
    assert torch.isinf(out.distance).all()
    forward, backward = attack.passes(10)
    runs = runs_of(attack, 10)
    assert out.cost.backward == 6 * runs * backward
    assert (out.queries == 1 + runs * forward).all()


def test_broken_images_cost_nothing_more() -> None:
    """A budget that breaks everything needs a few of the 40 passes; survivors need all 40."""
    net, images, labels = digits_setting(200)
    out = oracles.run(oracles.build("pgd_linf", steps=STEPS), net, images, labels, (0.5,))
    assert torch.isfinite(out.distance).all()
    assert out.cost.backward / len(labels) < 10
    strong = oracles.run(oracles.build("pgd_linf", steps=STEPS), net, images, labels, (0.01,))
    survivors = torch.isinf(strong.distance)
    assert survivors.float().mean() > 0.8
    assert (strong.queries[survivors] == 1 + STEPS).all()


def test_restarts_attack_survivors_only() -> None:
    net, images, labels = digits_setting(200)
    one = oracles.run(oracles.build("pgd_linf", steps=10), net, images, labels, (0.1,))
    five = oracles.run(
        oracles.build("pgd_linf", steps=10, restarts=5), net, images, labels, (0.1,), batch_size=8
    )
    left = int(torch.isinf(one.distance).sum())
    assert 0 < left < 200
    first = one.cost.backward
    assert five.cost.backward <= first + left * 4 * 10 + 8 * 10  # at most a batch of speculation


@pytest.mark.parametrize("name", ["deepfool_l2", "deepfool_linf"])
def test_deepfool_pays_for_its_own_steps_only(name: str) -> None:
    """One forward pass a step for all classes, a backward pass for each other class; no step after
    the last one of the image itself."""
    net, images, labels = digits_setting(60)
    right = oracles.predicted(net, images) == labels
    out = oracles.run(oracles.build(name, steps=50, refine=False), net, images, labels, ())
    steps = out.queries - 1
    assert (steps[~right] == 0).all()
    assert 0 < steps[right].min() < steps.max() < 50, "some images end before others"
    assert out.cost.backward == 9 * int(steps.sum())


def test_cw_asks_once_a_step() -> None:
    net, images, labels = digits_setting(6)
    attack = oracles.build("cw", steps=20, search_steps=9, abort_early=False)
    out = oracles.run(attack, net, images, labels, ())
    right = oracles.predicted(net, images) == labels
    assert (out.queries[right] == 1 + 9 * 20).all()
    assert out.cost.backward == 9 * 20 * int(right.sum())


@pytest.mark.parametrize("name", ["fab_t_linf", "fab_t_l2", "fab_t_l1"])
def test_no_point_is_asked_twice(name: str) -> None:
    """One question per step and target; only the image itself begins every target's run."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, steps=10, targets=3)
    points, out = trail(attack, model, images, labels, 1.0)
    assert out.queries.tolist() == [1 + 3 * 10]
    asked = torch.stack(points[:30]).flatten(1)
    assert len(asked.unique(dim=0)) == 30 - 2


@pytest.mark.parametrize("name", ["boundary", "brendel_bethge_l2"])
def test_converged_walks_are_not_asked_again(name: str) -> None:
    """Examples that end, and those that never start, leave: passes are those of the others."""
    net, images, labels = digits_setting(30)
    target = torch.full_like(labels, -1)
    target[::3] = UNKNOWN
    attack = oracles.build(name, steps=150, init_draws=20)
    out = oracles.run(attack, talking(net), images, labels, (), target=target)
    tried = oracles.predicted(net, images) == labels
    hopeless = tried & (target == UNKNOWN)
    assert hopeless.sum() > 5
    # The clean image, its own gradient (Brendel-Bethge), twenty draws, one image of another class.
    assert (out.queries[hopeless] <= 1 + 1 + 20 + 1).all()
    assert (out.queries[tried & ~hopeless] > 150).all()
    assert (out.queries[~tried] == 1).all()
    clean_and_claims = len(labels) + out.cost.forward - int(out.queries.sum())
    assert clean_and_claims < 30 * (1 + 150 * 6 / 10)


def test_a_walk_with_tiny_steps_rests() -> None:
    """One of two walks has converged: only the other one is asked."""
    model, images = oracles.Linear((1, 4, 4), 2), oracles.middle_images(12, (1, 4, 4))
    labels = oracles.predicted(model, images)
    out = oracles.run(oracles.build("boundary", steps=20000), model, images, labels, ())
    queries = out.queries.sort().values
    assert queries[-1] < 20000
    assert queries[0] < queries[-1]
