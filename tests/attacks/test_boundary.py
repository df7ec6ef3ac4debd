"""Boundary: its proposals and step sizes, starts of every kind, the linear oracle, foolbox."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.attacks import starts
from robustbench_defenses.attacks.boundary import (
    ACROSS,
    CONVERGED,
    TOWARDS,
    Boundary,
    Record,
    State,
    judged,
    proposals,
)
from robustbench_defenses.core.norms import distance
from robustbench_defenses.engine.protocol import Rows
from tests.attacks import nets
from tests.engine import builders, oracles


def beside(images: Tensor, best: Tensor, delta: float, source: float) -> tuple[State, Rows]:
    """Rows on their walk, with `best` as their nearest misclassified points."""
    rows = builders.rows(images, torch.zeros(len(images), dtype=torch.int64), float("inf"))
    rows.donors = images
    state = Boundary(spherical_step=delta, source_step=source).start(rows)
    state.best, state.length = best, (best - images).flatten(1).norm(dim=1)
    return state, rows


def test_proposals_in_the_open() -> None:
    """Far from the box: s on the sphere, delta D / sqrt(1 + delta^2) across; c nearer by e D."""
    images = oracles.middle_images(5, (1, 6, 6))
    best = images + 0.05 * torch.linspace(-1, 1, 36).double().view(1, 6, 6)
    state, rows = beside(images, best, 0.1, 0.03)
    sphere, trial = proposals(state, rows)
    torch.testing.assert_close(distance(sphere, images, "l2"), state.length)
    torch.testing.assert_close(distance(trial, images, "l2"), 0.97 * state.length)
    axis = ((best - images) / state.length.view(-1, 1, 1, 1)).flatten(1)
    along = ((sphere - images).flatten(1) * axis).sum(1)
    torch.testing.assert_close(along, state.length / (1 + 0.1**2) ** 0.5)
    moves = (sphere - best).flatten(1)
    assert (moves @ moves.T / moves.norm(dim=1) ** 2).fill_diagonal_(0).abs().max() < 0.9


def test_proposals_stay_in_the_box_and_differ_by_key() -> None:
    images = oracles.middle_images(4, (1, 6, 6)).round()
    images[1] = images[0]
    best = (images + 0.4).clamp(0, 1) * 0.9
    state, rows = beside(images, best, 0.5, 0.5)
    for points in proposals(state, rows):
        assert points.min() >= 0
        assert points.max() <= 1
        assert not torch.equal(points[0], points[1])
    rows.key[1] = rows.key[0]
    sphere, _ = proposals(state, rows)
    assert torch.equal(sphere[0], sphere[1])


@pytest.mark.parametrize("rule", [ACROSS, TOWARDS])
def test_records_judge_the_latest_answers(rule: tuple[int, float, float]) -> None:
    """Rows of shares 0, between the bounds, 1; a row that is never noted; afresh after a change."""
    length, low, high = rule
    shares = torch.tensor([0.0, (low + high) / 2, 1.0, 1.0])
    noted = torch.tensor([True, True, True, False])
    record = Record(torch.zeros(4, length, dtype=torch.bool), torch.zeros(4, dtype=torch.int64))
    for turn in range(2 * length):
        wrong = (turn * shares).floor() != ((turn + 1) * shares).floor()
        record, change = judged(record, wrong, noted, rule)
        due = turn + 1 in (length, 2 * length)
        assert change.tolist() == ([-1, 0, 1, 0] if due else [0, 0, 0, 0])
    assert record.count.tolist() == [0, 2 * length, 0, 0]
    # The second row has a window that slides: after a hundred failures it shrinks too.
    turns = 0
    while change[1] == 0:
        record, change = judged(record, torch.zeros(4, dtype=torch.bool), noted, rule)
        turns += 1
    assert 1 < turns < length


def linear(classes: int = 2) -> tuple[oracles.Linear, Tensor, Tensor, Tensor]:
    model, images = oracles.Linear((1, 4, 4), classes), oracles.middle_images(12, (1, 4, 4))
    labels = oracles.predicted(model, images)
    return model, images, labels, model.distances(images, labels, "l2")


def test_linear_oracle_and_rest() -> None:
    """The default 25,000 steps end on the closed form; each walk has its own, earlier, end."""
    model, images, labels, exact = linear(3)
    out = oracles.run(Boundary(), model, images, labels, ())
    inside = exact < 0.9
    assert inside.sum() >= 4
    assert (out.distance >= exact * (1 - 1e-9)).all()
    assert ((out.distance / exact)[inside] < 1.001).all()
    assert out.queries.max() < 10_000
    assert len(set(out.queries.tolist())) > 6
    assert out.cost.backward == 0


def test_a_walk_ends_at_tiny_steps() -> None:
    images = oracles.middle_images(2, (1, 4, 4))
    state, rows = beside(images, images + 0.1, 0.01, 0.01)
    attack = Boundary(steps=10)
    state.source = torch.tensor([0.9 * CONVERGED, 1.1 * CONVERGED])
    assert attack.finished(state, rows).tolist() == [True, False]
    state.done += 10
    assert attack.finished(state, rows).all()
    state.done.zero_()
    state.start.stage[1] = starts.HOPELESS
    assert attack.finished(state, rows).all()


# Starts. Noise of 64 pixels has a mean near 0.5: always class 0.
BANDS = (0.45, 0.85)


def greys(*means: float) -> Tensor:
    return builders.grey(*means).repeat(1, 1, 4, 4)


def test_images_of_other_classes_start_where_noise_fails() -> None:
    model, images = builders.Bands(*BANDS), greys(0.45, 0.9, 0.5)
    labels = torch.tensor([0, 1, 0])
    attack = Boundary(steps=2000, init_draws=7, init_blends=10)
    out = oracles.run(attack, model, images, labels, ())
    exact = 8 * (images.mean((1, 2, 3)) - 0.65).abs()
    assert ((out.distance / exact)[[0, 2]] < 1.1).all()
    # Draws, the image, and blends up to 0.5 or 0.45 of the way, the first of which that is wrong.
    alone = oracles.run(attack, model, images[[0, 2]], labels[[0, 2]], ())
    assert torch.isinf(alone.distance).all()
    assert (alone.queries == 1 + 7 + 1).all()


@pytest.mark.parametrize("init", ["noise", "images"])
def test_start_is_the_first_misclassified_blend(init: str) -> None:
    model, images = builders.Bands(*BANDS), greys(0.45, 0.9)
    labels = torch.tensor([0, 1])
    rows = builders.rows(images, labels, float("inf"))
    rows.donors = images[[1, 0]]
    start = starts.begin(rows, init == "noise")
    asked = 0
    while not bool(start.over.all()):
        wrong = oracles.predicted(model, start.points) != labels
        start = starts.advance(start, rows, wrong, draws=3, blends=10)
        asked += 1
    assert (start.stage == starts.READY).all()
    # Row 0: three draws, the image, blends at .1 to .5 (mean .675). Row 1: the image, .1 to .6.
    assert asked == (3 + 1 + 5 if init == "noise" else 1 + 6)
    torch.testing.assert_close(start.points[0], torch.full((1, 8, 8), 0.675).double())
    share = (start.points[1] - images[1]) / (start.far[1] - images[1])
    torch.testing.assert_close(share, share.mean().expand(1, 8, 8))
    assert float(share.mean()) == pytest.approx(round(10 * float(share.mean())) / 10)
    before = start.points[1] + 0.1 * (images[1] - start.far[1])
    assert oracles.predicted(model, torch.stack([start.points[1], before])).tolist() == [0, 1]


def test_the_far_point_is_the_last_blend() -> None:
    """Wrong at the far point alone: the start is the far point itself, which is not asked twice."""
    images = greys(0.45)
    rows = builders.rows(images, torch.tensor([0]), float("inf"))
    rows.donors = greys(0.9)
    for blends in (1, 2, 5):
        start = starts.begin(rows, noise_first=False)
        asked = 0
        while not bool(start.over.all()):
            wrong = (start.points == rows.donors).flatten(1).all(1)
            start = starts.advance(start, rows, wrong, draws=1, blends=blends)
            asked += 1
        assert asked == blends
        assert torch.equal(start.points, rows.donors)


def test_what_is_asked_is_within_the_budget() -> None:
    """All draws, all blends, all steps and probes; steps of 1e-3 do not converge."""
    model, images = builders.Bands(*BANDS), greys(0.45, 0.9)
    attack = Boundary(steps=100, init_draws=5, init_blends=4, source_step=1e-3)
    out = oracles.run(attack, model, images, torch.tensor([0, 1]), ())
    assert out.queries[0] == 1 + 5 + 1 + 2 + 100 + 10
    assert attack.passes(10) == (100 + 10 + 5 + 4, 0)


def theirs(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """foolbox's distances, inf where its point is not misclassified."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its imports
        import foolbox
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subject = foolbox.PyTorchModel(net, bounds=(0, 1))
        points = foolbox.attacks.BoundaryAttack(steps=steps)(subject, images, labels, epsilons=None)
    wrong = oracles.predicted(net, points[1]) != labels
    return distance(points[1], images, "l2").masked_fill(~wrong, torch.inf)


def test_not_weaker_than_foolbox() -> None:
    """Equal steps from noise: nearer, with the records of every step and (as noisy as the walks
    are) with every tenth as foolbox keeps them; nearer still from images, in bf16 too."""
    net, (images, labels) = nets.trained(), nets.digits("test")
    right = (oracles.predicted(net, images) == labels).nonzero()[:40, 0]
    images, labels = images[right], labels[right]
    reference = float(theirs(net, images, labels, 600).mean())

    def ours(precision: str = "fp32", **settings: object) -> float:
        attack = oracles.build("boundary", steps=600, **settings)
        return float(oracles.run(attack, net, images, labels, (), precision=precision)
                     .distance.mean())  # fmt: skip

    fast = ours()
    assert fast < 0.95 * reference
    assert ours(record_every=10) == pytest.approx(reference, rel=0.1)
    near = ours(init="images")
    assert near < fast
    assert ours("bf16", init="images") == pytest.approx(near, rel=0.03)
