"""Square: its tables, its candidates, and the reference implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from robustbench_defenses.attacks.square import Square, pattern_of, window_sides
from robustbench_defenses.core import rng
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.engine.losses import margin
from robustbench_defenses.engine.protocol import Answer, Rows
from tests.attacks.digits import digits_network
from tests.engine import oracles

EPS = {"linf": 0.1, "l2": 0.8, "l1": 4.0}


def rows_of(images: Tensor, labels: Tensor, eps: float) -> Rows:
    example = torch.arange(len(labels))
    return Rows(
        example=example,
        images=images,
        labels=labels,
        eps=torch.full((len(labels),), eps),
        target=torch.full_like(labels, -1),
        key=rng.run_keys(0, "square", example),
        run=torch.zeros_like(labels),
        rivals=labels.new_zeros((len(labels), 0)),
    )


def test_schedule_of_the_paper() -> None:
    """The table for 10,000 queries: after how many p is 0.8 / 2^k."""
    steps = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6000, 6001]
    steps += [8000, 8001, 9999]
    stages = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    assert Square(n_queries=10000).stage(torch.tensor(steps)).tolist() == stages
    assert Square(rescale_schedule=False).stage(torch.tensor(steps)).tolist() == stages
    half = Square(n_queries=5000).stage(torch.tensor([5, 6, 25, 26, 4000, 4001]))
    assert half.tolist() == [0, 1, 1, 2, 8, 9]


def test_sides() -> None:
    assert window_sides(0.8, 32, 32, "linf")[:8] == (29, 20, 14, 10, 7, 5, 4, 3)
    assert window_sides(0.8, 32, 32, "l2") == (29, 21, 15, 11, 7, 5, 5, 3, 3, 3)
    assert window_sides(1.0, 4, 9, "linf")[0] == 4, "never wider than the image"
    assert window_sides(1.0, 1, 2, "l1")[-1] == 1


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("side", [3, 4, 7])
def test_pattern_is_nested_rectangles(norm: str, side: int) -> None:
    power, order = (2, 2) if norm == "l2" else (4, 1)
    slow = torch.zeros(side, side, dtype=torch.float64)
    for top, rows, sign in ((0, side // 2, 1), (side // 2, side - side // 2, -1)):
        half = torch.zeros(rows, side, dtype=torch.float64)
        for k in range(side // 2 + 1):
            for i in range(max(0, rows // 2 - k), min(rows, rows // 2 + k + 1)):
                for j in range(max(0, side // 2 - k), min(side, side // 2 + k + 1)):
                    half[i, j] += 1 / (k + 1) ** power
        slow[top : top + rows] = sign * half / half.norm(p=order)
    torch.testing.assert_close(pattern_of(side, norm), slow / slow.norm(p=order))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_candidates(norm: str) -> None:
    """In ball and box, a window at a time (Linf); the best only gets better."""
    model, images, labels = digits_network()
    images, labels = images[:30], labels[:30]
    eps = EPS[norm]
    rows = rows_of(images, labels, eps)
    attack = Square(norm=norm, n_queries=60)
    state = attack.start(rows)
    limit = largest_allowed(torch.tensor(eps, dtype=torch.float64))
    highest = torch.full((30,), -torch.inf)
    while not attack.finished(state, rows).all():
        points = attack.ask(state, rows).points
        assert ((points >= 0) & (points <= 1)).all()
        assert (distance(points, images, norm) <= limit).all()
        logits = model(points).detach()
        state = attack.tell(state, rows, Answer(logits))
        score = margin(model(state.best).detach(), rows)
        # Beyond the boundary any misclassified point will do.
        assert (score >= highest.clamp_max(0) - 1e-5).all()
        highest = score
        if norm != "linf":
            continue
        changed = state.trial != state.best
        side = window_sides(0.8, 16, 16, norm)[int(attack.stage(state.done[:1] - 1))]
        for axis in (1, 2, 3):
            others = [other for other in (1, 2, 3) if other != axis]
            touched = changed.any(others[1]).any(others[0])
            span = [int(row.nonzero().max() - row.nonzero().min()) for row in touched if row.any()]
            assert max(span, default=0) < (side if axis > 1 else 1)
        at_edge = (state.trial - images).abs() - eps
        at_box = (state.trial == 0) | (state.trial == 1)
        assert (at_box | (at_edge.abs() < 1e-6)).all()
    assert (highest > margin(model(images).detach(), rows)).all()


def test_l2_uses_the_whole_budget() -> None:
    """Where the box is not met, every candidate lies on the sphere, and two windows change."""
    images = torch.full((16, 3, 12, 12), 0.5)
    rows = rows_of(images, torch.zeros(16, dtype=torch.int64), 0.5)
    attack = Square(norm="l2", n_queries=40)
    state = attack.start(rows)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        length = distance(state.trial, images, "l2")
        torch.testing.assert_close(length, torch.full_like(length, 0.5), rtol=1e-5, atol=0)
        state = attack.tell(state, rows, Answer(torch.randn(16, 4, generator=generator)))
        state.close[:] = True
    assert len({tuple(row.tolist()) for row in state.trial.flatten(1)}) == 16


def test_rows_near_the_boundary_are_asked_again_in_float32() -> None:
    images = torch.full((2, 1, 6, 6), 0.5)
    rows = rows_of(images, torch.zeros(2, dtype=torch.int64), 0.1)
    attack = Square()
    state = attack.tell(
        attack.start(rows), rows, Answer(torch.tensor([[5.0, 4.99, 0.0], [5.0, 4.0, 0.0]]))
    )
    assert attack.fine(state, rows).tolist() == [True, False]
    assert torch.equal(state.trial[0], state.best[0])
    assert not torch.equal(state.trial[1], state.best[1])
    state = attack.tell(state, rows, Answer(torch.tensor([[5.0, 4.9, 0.0], [5.0, 3.0, 0.0]])))
    torch.testing.assert_close(state.score, torch.tensor([-0.1, -1.0]))
    assert not torch.equal(state.trial[0], state.best[0])


def test_ages_and_budgets_mix_in_one_batch() -> None:
    """A sweep over budgets, where rows of all ages run side by side, equals single runs."""
    model, images, labels = digits_network()
    model, images, labels = model.double(), images[:20].double(), labels[:20]
    attack = Square(norm="l2", n_queries=25)
    grid = (0.5, 1.0, 1.5)
    sweep = oracles.run(attack, model, images, labels, grid, batch_size=9)
    for eps in grid:
        alone = oracles.run(attack, model, images, labels, (eps,))
        torch.testing.assert_close(torch.isfinite(alone.distance), sweep.budget <= eps)


@pytest.mark.parametrize(
    ("norm", "eps", "slack"), [("linf", 0.14, 0.04), ("l2", 1.1, 0.04), ("l1", 7.0, 0.08)]
)
def test_against_the_reference(norm: str, eps: float, slack: float) -> None:
    """As strong as AutoAttack's Square, over two seeds each.

    Its windows never reach the last row and column: on digits with black edges that is worth two
    points in L1 at so few queries.
    """
    square = pytest.importorskip("pyautoattack.square")
    model, images, labels = digits_network()
    queries, ours, theirs = 300, [], []
    attack = replace(Square(norm=norm), n_queries=queries)
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    for seed in (0, 1):
        outcome = oracles.run(attack, model, images, labels, (eps,), seed=seed)
        ours.append(float(torch.isfinite(outcome.distance).double().mean()))
        state = torch.random.get_rng_state()
        reference = square.SquareAttack(
            model, norm=name, n_queries=queries, eps=eps, seed=seed, device="cpu"
        )
        found = reference.perturb(images, labels)
        torch.random.set_rng_state(state)
        theirs.append(float((oracles.predicted(model, found) != labels).double().mean()))
    assert 0.2 < math.fsum(theirs) / 2 < 0.95, "a budget at which the two can differ"
    assert math.fsum(ours) / 2 >= math.fsum(theirs) / 2 - slack


def test_its_survivors_are_no_sign_of_masked_gradients() -> None:
    """The margin of its best point stands for the loss that it does not have: it rises."""
    model, images, labels = digits_network()
    out = oracles.run(oracles.build("square", n_queries=60), model, images, labels, (0.05,))
    failed = torch.isinf(out.distance)
    assert bool(failed.any())
    assert torch.equal(out.trace.compared, failed)
    assert out.trace.loss_rose[failed].double().mean() > 0.9
