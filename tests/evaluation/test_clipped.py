"""`--sweep clipped`: what a minimum-norm attack found, clipped to each eps and classified again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.engine.caller import Cost
from robustbench_defenses.engine.clipped import clip, clipped
from robustbench_defenses.engine.search import Block, Outcome, empty_trace
from robustbench_defenses.evaluation.evaluate import Answer
from robustbench_defenses.evaluation.run import evaluate

NORMS = ("linf", "l2", "l1")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [1e-4, 0.05, 0.7, 30.0])
def test_clip_ends_in_ball_and_box(norm: str, eps: float) -> None:
    """The rule of foolbox: Linf clamps every pixel, L2 and L1 scale the whole change."""
    generator = torch.Generator().manual_seed(0)
    images, points = torch.rand(2, 20, 3, 8, 8, generator=generator).unbind(0)
    images[:5], points[:5] = images[:5].round(), points[:5].round()
    moved = clip(points, images, eps, norm)
    assert ((moved >= 0) & (moved <= 1)).all()
    allowed = largest_allowed(torch.full((20,), eps, dtype=torch.float64))
    length, before = distance(moved, images, norm), distance(points, images, norm)
    assert (length <= allowed).all()
    near = before <= eps
    assert torch.equal(moved[near], points[near])
    # As far as it may go, along the same way.
    farthest = torch.full_like(length[~near], eps)
    torch.testing.assert_close(length[~near], farthest, rtol=1e-4, atol=1.5e-5)
    delta = (points - images).double()
    if norm == "linf":
        wanted = images + delta.clamp(-eps, eps)
    else:
        wanted = images + delta * (eps / before).clamp_max(1)[:, None, None, None]
    torch.testing.assert_close(moved.double(), wanted, rtol=0, atol=2e-7)


class Stripe(nn.Module):
    """Class 1 where the mean pixel lies between 0.5 and 0.6, else class 0."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1)
        inside = ((mean > 0.5) & (mean < 0.6)).to(images)
        return torch.stack([1 - inside, inside], 1)


def test_the_clipped_image_is_asked_not_the_distance() -> None:
    """Points beyond a stripe are right again; clipped into it they are broken, and no other way."""
    images = torch.full((4, 1, 2, 2), 0.4)
    labels = torch.tensor([0, 0, 1, 0])
    points = images.clone()
    points[0] += 0.15  # in the stripe
    points[1] += 0.19
    block = Block(images, labels, torch.full((4,), -1), torch.arange(4), (0.05, 0.12, 0.18, 0.3))
    infinite = torch.inf
    out = Outcome(
        clean_prediction=torch.zeros(4, dtype=torch.int64),
        distance=torch.tensor([0.15, 0.19, 0.0, infinite], dtype=torch.float64),
        budget=torch.zeros(4, dtype=torch.float64),
        broken=torch.zeros(4, 4, dtype=torch.bool),
        queries=torch.ones(4, dtype=torch.int64),
        cost=Cost(),
        trace=empty_trace(4, images.device),
        points=points,
    )
    table = clipped(out, block, "linf", Stripe(), "stripe")
    assert table.tolist() == [
        [False, False, True, False],
        [True, True, True, False],
        [True, True, True, False],
        [True, True, True, False],
    ]
    assert out.queries.tolist() == [5, 5, 1, 1]
    # Beyond the stripe: the point itself is no success, its shorter forms are.
    points[0], out.distance[0] = 0.4 + 0.25, 0.25
    again = clipped(out, block, "linf", Stripe(), "stripe")
    assert again[:, 0].tolist() == [False, True, True, False]


@pytest.fixture
def ask(results: Path) -> Any:
    def run(attack: str, **named: Any) -> Answer:
        given = {"n": 40, "threads": 1, "results_dir": results, **named}
        (answer,) = evaluate("last", [attack], **given)
        return answer

    return run


@pytest.mark.parametrize(("attack", "norm"), [("ddn", "l2"), ("fmn", "l1"), ("deepfool", "linf")])
def test_the_record_is_a_table_checked_by_hand(
    attack: str, norm: str, ask: Any, results: Path
) -> None:
    import robustbench_defenses as rrd
    from robustbench_defenses.data.source import load

    grid = {"l2": [0.3, 0.6, 1.2], "l1": [0.5, 1.5, 4.0], "linf": [0.05, 0.1, 0.2]}[norm]
    answer = ask(attack, norm=norm, sweep="clipped", eps=grid)
    plain = ask(attack, norm=norm, eps=grid)
    assert answer.stored.path != plain.stored.path
    result, record = answer.stored.result, answer.stored.record()
    distances = plain.stored.record().distance
    assert result.sweep == "clipped"
    assert record.eps is not None
    assert record.broken is not None
    assert record.eps.tolist() == grid
    assert record.broken[:, ~record.clean_right].all()
    for place, (eps, point) in enumerate(zip(grid, result.curve)):
        assert point.robust_accuracy == (~record.broken[place]).mean()
        # Where the found image lies inside, it is the clipped one.
        assert record.broken[place][distances <= eps].all()
    smallest = np.where(record.broken, np.array(grid)[:, None], np.inf).min(0)
    smallest[~record.clean_right] = 0
    np.testing.assert_array_equal(record.distance, smallest)
    # What the attack found at any norm is told all the same, as in an envelope.
    assert result.unbounded_accuracy == plain.stored.result.unbounded_accuracy
    assert result.distances == plain.stored.result.distances
    assert (record.queries[record.clean_right] >= 4).all()
    # The same images once more, by hand.
    network = rrd.load("last", results=results)
    split = load("digits", "test")
    images, labels = split.images[:40], split.labels[:40]
    assert ((network(images).argmax(1) == labels).numpy() == record.clean_right).all()


def test_every_eps_afresh_is_the_same_question_for_them(ask: Any) -> None:
    """Given no budget, the attack is the same at every eps: its distances decide the table."""
    grid = [0.3, 0.6, 1.2]
    plain = ask("ddn", eps=grid).stored
    table = ask("ddn", eps=grid, sweep="independent").stored
    assert [p.robust_accuracy for p in table.result.curve] == [
        p.robust_accuracy for p in plain.result.curve
    ]
    assert table.result.curve[-1].robust_accuracy < table.result.clean_accuracy
    assert table.record().broken is not None
    assert table.result.unbounded_accuracy == plain.result.unbounded_accuracy


@pytest.mark.parametrize("attack", ["pgd", "autoattack", "square"])
def test_others_are_refused(attack: str, ask: Any, results: Path) -> None:
    with pytest.raises(UserError, match="nothing that could be clipped"):
        ask(attack, sweep="clipped", eps=[0.1])
    assert not list(results.glob("evals/*"))


def test_targeted_counts_the_target_alone(ask: Any) -> None:
    grid = [0.6, 1.2, 4.0]
    plain = ask("ddn", eps=grid, sweep="clipped").stored.record()
    aimed = ask("ddn", eps=grid, sweep="clipped", targeted=True).stored.record()
    assert plain.broken.sum() > aimed.broken.sum() > (~aimed.clean_right).sum() * 3
