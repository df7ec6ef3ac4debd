"""Brendel-Bethge: its steps, paths and radii, the linear oracle, and other minimum-norm attacks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustbench_defenses.attacks.brendel_bethge import (
    BISECTIONS,
    HALVE,
    WALK,
    BrendelBethge,
    State,
)
from robustbench_defenses.core.norms import distance
from robustbench_defenses.engine.protocol import Answer, Rows
from tests.attacks import nets
from tests.engine import builders, oracles

NORMS = ["linf", "l2", "l1"]


def walking(attack: BrendelBethge, points: Tensor, images: Tensor) -> tuple[State, Rows]:
    """Rows at `points` on the boundary."""
    rows = builders.rows(images, torch.zeros(len(images), dtype=torch.int64), float("inf"))
    rows.donors = images
    state = attack.start(rows)
    state.points, state.stage = points, torch.full_like(rows.labels, WALK)
    return state, rows


def told(attack: BrendelBethge, state: State, rows: Rows, gap: float, slope: Tensor) -> State:
    """The state after a margin m = `gap` with the gradient `slope`."""
    logits = torch.tensor([[0.0, gap]]).double().repeat(len(rows.labels), 1)
    return attack.tell(state, rows, Answer(logits, logits[:, 1], slope))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("gap", "factor"), [(-0.02, 1.1), (0.02, 0.9)])
def test_steps_go_over_the_boundary_or_nearly_back_to_it(
    norm: str, gap: float, factor: float
) -> None:
    """b.D = -1.1 m from the image's side, -0.9 m from the other one; and towards the image."""
    images = oracles.middle_images(3, (1, 4, 4))
    slope = torch.linspace(0.2, 1, 16).double().view(1, 1, 4, 4).repeat(3, 1, 1, 1)
    far = images + torch.linspace(0.3, -0.2, 16).double().view(1, 4, 4)
    attack = BrendelBethge(norm=norm, lr=0.01)
    state, rows = walking(attack, far.clone(), images)
    state = told(attack, state, rows, gap, slope)
    step = (state.points - far).flatten(1)
    along = (step * slope.flatten(1)).sum(1)
    torch.testing.assert_close(along, torch.full((3,), -factor * gap).double(), rtol=0.02, atol=0)
    assert (step.norm(dim=1) <= 0.01 * 16 * (1 + 1e-9)).all()
    assert (step.norm(dim=1) > 0.9 * 0.01 * 16).all()
    assert (distance(state.points, images, norm) < distance(far, images, norm)).all()


def test_slopes_are_smoothed() -> None:
    """The first is taken as it is, later ones count for a fifth."""
    images = oracles.middle_images(2, (1, 4, 4))
    attack = BrendelBethge(norm="l2", momentum=0.8)
    state, rows = walking(attack, images + 0.1, images)
    first, second = torch.ones_like(images), torch.rand_like(images)
    state = told(attack, state, rows, 0.01, first)
    assert torch.equal(state.slope, first)
    state = told(attack, state, rows, 0.01, second)
    torch.testing.assert_close(state.slope, 0.8 * first + 0.2 * second)


def test_radius_counts_one_image_and_is_halved() -> None:
    attack = BrendelBethge(steps=1000, lr=0.001, lr_num_decay=20)
    done = torch.tensor([0, 49, 50, 99, 100, 999])
    expected = 0.784 * 0.5 ** torch.tensor([0, 0, 1, 1, 2, 19]).double()
    torch.testing.assert_close(attack.radius(done, 784), expected)


def test_paths_to_the_start() -> None:
    """L2: a straight line; Linf: clipped; L1: soft threshold. The norm rises from 0 to its end."""
    images = torch.full((1, 1, 1, 4), 0.5).double()
    far = torch.tensor([1.0, 0.4, 0.5, 0.2]).double().view(1, 1, 1, 4)
    rows = builders.rows(images, torch.tensor([0]), float("inf"))
    expected = {
        "l2": [0.75, 0.45, 0.5, 0.35],
        "linf": [0.75, 0.4, 0.5, 0.25],
        "l1": [0.5 + 0.25, 0.5, 0.5, 0.5 - 0.05],
    }
    shares = {"l2": 0.5, "linf": 0.25, "l1": 0.75}
    for norm in NORMS:
        attack = BrendelBethge(norm=norm)
        point = attack.between(rows, far, torch.tensor([shares[norm]]).double())
        torch.testing.assert_close(point.flatten(), torch.tensor(expected[norm]).double())
        ends = [attack.between(rows, far, torch.tensor([t]).double()) for t in (0.0, 1.0)]
        torch.testing.assert_close(torch.cat(ends), torch.cat([images, far]))


@pytest.mark.parametrize("norm", NORMS)
def test_bisection_ends_just_beyond_the_boundary(norm: str) -> None:
    model = builders.Bands(0.3, 0.7)
    images = builders.grey(0.3).repeat(1, 1, 4, 4)
    rows = builders.rows(images, torch.tensor([0]), float("inf"))
    rows.donors = torch.full_like(images, 0.9)
    attack = BrendelBethge(norm=norm, init="images", init_blends=1)
    state, asked = attack.start(rows), 0
    while not bool((state.stage == WALK).all()):
        logits = model(state.points)
        halving = bool((state.stage == HALVE).all())
        state = attack.tell(state, rows, Answer(logits))
        asked += 1
    assert halving
    assert asked == 1 + 1 + BISECTIONS
    mean = float(state.points.mean())
    assert 0.5 < mean <= 0.5 + 1.01 / 2**BISECTIONS
    assert state.done.tolist() == [0]


@pytest.mark.parametrize("norm", NORMS)
def test_linear_oracle_within_a_hundredth(norm: str) -> None:
    model, images = oracles.Linear((1, 4, 4), 3), oracles.middle_images(16, (1, 4, 4))
    labels = oracles.predicted(model, images)
    exact = model.distances(images, labels, norm)
    inside = exact < {"linf": 0.3, "l2": 0.9, "l1": 0.4}[norm]
    out = oracles.run(BrendelBethge(norm=norm, steps=100), model, images, labels, ())
    assert inside.sum() >= 4
    assert (out.distance >= exact * (1 - 1e-9)).all()
    assert ((out.distance / exact)[inside] < 1.01).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", NORMS)
def test_beside_fmn(norm: str, precision: str) -> None:
    """A walk ends in the nearest of its own minima: from noise a little farther away than an
    attack from the image, from the nearest image of another class about as near, and from the best
    of some noise images nearer."""
    images, labels = (values[:40] for values in nets.digits("test"))
    net = nets.trained()

    def mean(name: str, **settings: object) -> float:
        attack = oracles.build(name, norm=norm, steps=100, **settings)
        out = oracles.run(attack, net, images, labels, (), precision=precision)
        return float(out.distance.mean())

    theirs = mean("fmn")
    assert mean("brendel_bethge") < 1.45 * theirs
    assert mean("brendel_bethge", init="images") < 1.15 * theirs
    assert mean("brendel_bethge", restarts=10) < theirs


def test_only_steps_cost_backward_passes() -> None:
    """One look at the image and the walk; draws, blends and bisections are forward passes."""
    images, labels = (values[:20] for values in nets.digits("test"))
    net = nets.trained()
    labels = oracles.predicted(net, images)
    attack = BrendelBethge(norm="l2", steps=12)
    out = oracles.run(attack, net, images, labels, (), batch_size=7)
    assert torch.isfinite(out.distance).all()
    assert out.cost.backward == 20 * (1 + 12)
    assert (out.queries >= 1 + 1 + 2 + BISECTIONS + 12).all()
    assert out.queries.max() <= 1 + attack.passes(10)[0]
