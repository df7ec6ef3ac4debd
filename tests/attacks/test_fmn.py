"""FMN: its schedule and radius rules, the linear oracle, and strength beside foolbox."""

from __future__ import annotations

from dataclasses import replace

import foolbox
import pytest
import torch
from torch import Tensor

from robustbench_defenses.attacks.fmn import FMN, State
from robustbench_defenses.core.norms import distance
from robustbench_defenses.engine.protocol import Answer, Rows
from tests.attacks import nets
from tests.engine import builders, oracles

REFERENCE = {
    "linf": foolbox.attacks.LInfFMNAttack,
    "l2": foolbox.attacks.L2FMNAttack,
    "l1": foolbox.attacks.L1FMNAttack,
}


def some_rows() -> Rows:
    images = oracles.middle_images(2, (1, 3, 3))
    return builders.rows(images, torch.zeros(2, dtype=torch.int64), float("inf"))


def told(attack: FMN, state: State, rows: Rows, gap: float) -> State:
    """The state after logits that exceed the true class's by `gap`, along a constant gradient."""
    logits = torch.tensor([[0.0, gap]]).double().repeat(len(rows.labels), 1)
    gradient = torch.full_like(rows.images, 0.5)
    return attack.tell(state, rows, Answer(logits, logits[:, 1], gradient))


def length(state: State, rows: Rows, norm: str) -> Tensor:
    return distance(state.points, rows.images, norm)


def test_first_radius_is_the_linear_estimate_grown_by_gamma() -> None:
    """|m| / ||grad m||_q: 0.3 / 1.5 in L2 (nine entries of 0.5), and 0.3 / 4.5 in Linf."""
    for norm, slope in (("l2", 1.5), ("linf", 4.5), ("l1", 0.5)):
        rows = some_rows()
        attack = FMN(norm=norm, gamma=0.05, step_size=100.0)
        state = told(attack, attack.start(rows), rows, -0.3)
        radius = torch.full((2,), 1.05 * 0.3 / slope).double()
        torch.testing.assert_close(state.radius, radius)
        torch.testing.assert_close(length(state, rows, norm), radius, rtol=1e-6, atol=0)


def test_radius_rules_after_a_success() -> None:
    rows = some_rows()
    attack = FMN(norm="l2", steps=100, gamma=0.05)
    state = told(attack, attack.start(rows), rows, -0.3)
    before = state.radius
    state = told(attack, state, rows, 0.1)  # adversarial: shrink, not beyond the shortest
    torch.testing.assert_close(state.radius, before * 0.95, rtol=1e-3, atol=0)
    assert state.found.all()
    shrunk = state.radius
    state = told(attack, state, rows, -5.0)  # not adversarial any more: grow, without estimate
    torch.testing.assert_close(state.radius, shrunk * 1.05, rtol=1e-3, atol=0)


def test_the_first_image_is_no_success_and_a_refused_one_is_forgotten() -> None:
    rows = some_rows()
    attack = FMN(norm="l2")
    state = told(attack, attack.start(rows), rows, 0.3)
    assert not state.found.any()
    assert (state.radius > 0).all()
    state = told(attack, state, rows, 0.3)
    assert torch.isfinite(state.shortest).all()
    state = attack.settle(state, rows, torch.tensor([True, False]))
    assert torch.isinf(state.shortest).tolist() == [True, False]


def test_step_length_falls_by_a_cosine_to_a_hundredth() -> None:
    """Steps of a length in L2; nine entries move alike, and the ball is far."""
    rows = some_rows()
    attack = FMN(norm="linf", steps=100, step_size=0.03)
    start = attack.start(rows)
    for done, expected in ((0, 0.03), (50, 0.01515), (100, 0.0003)):
        state = replace(start, done=torch.full((2,), done))
        moved = told(attack, state, rows, -50.0)
        torch.testing.assert_close(
            length(moved, rows, "l2"), torch.full((2,), expected).double(), rtol=1e-6, atol=0
        )


def test_l1_steps_are_shorter_once_the_boundary_was_crossed() -> None:
    rows = some_rows()
    for attack, expected in (
        (FMN(norm="l1"), (0.03, 0.01)),
        (FMN(norm="linf"), (0.1, 0.1)),
        (FMN(norm="l1", step_size=2.0), (0.02, 0.02)),
    ):
        start = attack.start(rows)
        crossed = torch.tensor([False, True])
        state = replace(start, found=crossed, done=torch.full((2,), attack.steps))
        moved = told(attack, state, rows, -50.0)
        torch.testing.assert_close(
            length(moved, rows, "l2"), torch.tensor(expected).double(), rtol=1e-6, atol=0
        )


def test_l2_perturbations_are_scaled_up_to_the_radius() -> None:
    """A step of a hundredth, a radius of 0.21: the point lies on the sphere."""
    rows = some_rows()
    attack = FMN(norm="l2", step_size=0.01)
    state = told(attack, attack.start(rows), rows, -0.3)
    torch.testing.assert_close(length(state, rows, "l2"), state.radius, rtol=1e-6, atol=0)
    assert (state.radius > 0.2).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_linear_oracle_within_a_thousandth(norm: str) -> None:
    """300 steps meet the closed form (L1: a corner of the ball, a hundredth)."""
    model = oracles.Linear((1, 4, 4), 3)
    images = oracles.middle_images(16, (1, 4, 4))
    labels = oracles.predicted(model, images)
    exact = model.distances(images, labels, norm)
    inside = exact < {"linf": 0.3, "l2": 0.9, "l1": 0.4}[norm]
    found = oracles.run(FMN(norm=norm, steps=300), model, images, labels, ()).distance
    assert inside.sum() >= 4
    assert ((found / exact)[inside] < (1.01 if norm == "l1" else 1.001)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_not_weaker_than_foolbox(norm: str) -> None:
    """Equal steps on a small network: finds as many, and not farther away."""
    images, labels = (values[:60] for values in nets.digits("test"))
    model = nets.trained()
    ours = oracles.run(FMN(norm=norm, steps=60), model, images, labels, ()).distance
    reference = REFERENCE[norm](steps=60)
    _, points, success = reference(
        foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=None
    )
    theirs = distance(points, images, norm).masked_fill(~success, torch.inf)
    assert torch.isfinite(ours).sum() >= torch.isfinite(theirs).sum()
    both = torch.isfinite(ours) & torch.isfinite(theirs) & (ours > 0)
    assert both.sum() > 30
    assert ours[both].mean() <= 1.02 * theirs[both].mean()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_robust_networks_are_crossed_everywhere(norm: str) -> None:
    """Adversarially trained: every image breaks, and in L2 about as near as by DDN."""
    images, labels = nets.digits("test")
    model = nets.trained(eps=0.2)
    right = (oracles.predicted(model, images) == labels).nonzero()[:60, 0]
    images, labels = images[right], labels[right]
    ours = oracles.run(FMN(norm=norm), model, images, labels, ()).distance
    assert torch.isfinite(ours).all()
    if norm == "l2":
        ddn = oracles.run(oracles.build("ddn"), model, images, labels, ()).distance
        assert (ours / ddn).mean() <= 1.03


def test_close_to_ddn() -> None:
    """Two L2 searches of equal length agree in the median within a tenth."""
    images, labels = (values[:60] for values in nets.digits("test"))
    model = nets.trained()
    first = oracles.run(FMN(norm="l2"), model, images, labels, ()).distance
    second = oracles.run(oracles.build("ddn"), model, images, labels, ()).distance
    assert first.median() == pytest.approx(float(second.median()), rel=0.1)
