"""DeepFool: its step in closed form, foolbox image by image, bisection, refused successes."""

from __future__ import annotations

from dataclasses import replace

import foolbox
import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.attacks.deepfool import TOLERANCE, DeepFool, State
from robustbench_defenses.core.norms import distance
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.protocol import Answer, Rows
from robustbench_defenses.engine.twin import Twin
from tests.attacks import nets
from tests.engine import builders, oracles

REFERENCE = {
    "l2": foolbox.attacks.L2DeepFoolAttack,
    "linf": foolbox.attacks.LinfDeepFoolAttack,
}
NORMS = ["l2", "linf"]
MOST_PROBES = 1 + 9  # at 1 - TOLERANCE, and halvings of the rest down to TOLERANCE


def linear() -> tuple[oracles.Linear, Tensor, Tensor]:
    model = oracles.Linear((1, 4, 4), 5)
    images = oracles.middle_images(12, (1, 4, 4))
    return model, images, oracles.predicted(model, images)


def correct(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network and images that it classifies correctly."""
    images, labels = nets.digits("test")
    model = nets.trained()
    right = oracles.predicted(model, images) == labels
    return model, images[right][:count], labels[right][:count]


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_on_a_linear_network(norm: str) -> None:
    """Linear: the first step ends (1 + overshoot)(d + 1e-4) from the image, over the boundary."""
    model, images, labels = linear()
    exact = model.distances(images, labels, norm)
    outcome = oracles.run(DeepFool(norm=norm, refine=False), model, images, labels, ())
    torch.testing.assert_close(outcome.distance, 1.02 * (exact + 1e-4), rtol=1e-6, atol=0)
    assert (outcome.queries == 3).all()  # clean, start, and the point that succeeds
    assert outcome.cost.backward == 2 * 4 * len(images)


@pytest.mark.parametrize("norm", NORMS)
def test_refine_ends_at_the_boundary(norm: str) -> None:
    """A segment that ends 2 % too far is halved until it is short enough."""
    model, images, labels = linear()
    exact = model.distances(images, labels, norm)
    outcome = oracles.run(DeepFool(norm=norm), model, images, labels, ())
    assert (outcome.distance >= exact).all()
    assert (outcome.distance <= exact * (1 + 1.1 * TOLERANCE)).all()
    assert (outcome.queries == 3 + MOST_PROBES).all()
    assert outcome.cost.backward == 2 * 4 * len(images)  # bisections ask for logits only


@pytest.mark.parametrize("norm", NORMS)
def test_a_boundary_at_the_end_costs_one_pass(norm: str) -> None:
    """Without overshoot the point lies just beyond the boundary: there is nothing to halve."""
    model, images, labels = linear()
    exact = model.distances(images, labels, norm)
    outcome = oracles.run(DeepFool(norm=norm, overshoot=0.0), model, images, labels, ())
    near = (exact + 1e-4) * (1 - TOLERANCE) < exact
    assert near.any()
    assert (outcome.queries[near] == 3 + 1).all()
    assert (outcome.queries[~near] == 3 + MOST_PROBES).all()


@pytest.mark.parametrize("norm", NORMS)
def test_equals_foolbox_image_by_image(norm: str) -> None:
    model, images, labels = correct(60)
    attack = DeepFool(norm=norm, refine=False, sum_steps=True)
    ours = oracles.run(attack, model, images, labels, ()).distance
    _, points, success = REFERENCE[norm]()(
        foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=None
    )
    theirs = distance(points, images, norm).masked_fill(~success, torch.inf)
    assert torch.isfinite(ours).sum() >= torch.isfinite(theirs).sum()
    both = torch.isfinite(ours) & torch.isfinite(theirs)
    ratio = (ours / theirs)[both]
    # A step that just crosses in one float32 arithmetic may need another one in the other.
    assert ((ratio - 1).abs() < 1e-3).double().mean() >= 0.9
    assert ratio.median() == pytest.approx(1, abs=1e-4)


def test_refine_never_lengthens() -> None:
    model, images, labels = correct(40)
    plain = oracles.run(DeepFool(refine=False), model, images, labels, ()).distance
    refined = oracles.run(DeepFool(), model, images, labels, ()).distance
    assert (refined <= plain * (1 + 1e-9)).all()
    assert refined.mean() < plain.mean()


class Coarse(DeepFool):
    """Asks the coarse twin first."""

    def start(self, rows: Rows) -> State:
        state = super().start(rows)
        return replace(state, near=torch.zeros_like(state.near))


def test_goes_on_where_the_verdict_refuses() -> None:
    """A coarse twin that sees success too early does not end the search."""
    model, images, labels = linear()
    exact = model.distances(images, labels, "l2")
    with torch.no_grad():
        top = model(images).topk(2, dim=1).values
    lead = top[:, 0] - top[:, 1]

    def eager(points: Tensor) -> Tensor:
        """The true class lacks a third of its lead: the boundary seems nearer than it is."""
        nearest = torch.cdist(points.flatten(1), images.flatten(1)).argmin(1)
        own = torch.nn.functional.one_hot(labels[nearest], 5)
        return model(points) - own * lead[nearest, None] / 3

    attack = Coarse(refine=False)
    twin = Twin(eager, model, autocast=True)
    found = oracles.run(attack, model, images, labels, (), twin=twin, deployed=model)
    assert torch.isfinite(found.distance).all()
    assert (found.distance >= exact).all()
    assert (found.distance <= exact * 1.06).all()
    # Clean, start, the false success, the same point in float32, the true success.
    assert (found.queries == 5).sum() >= 6


def test_points_and_not_sums_are_clipped() -> None:
    """A pixel that the box stops does not go on outside: less is to be undone, more is found."""
    rows = builders.rows(torch.full((1, 1, 1, 2), 0.9), torch.zeros(1).long(), float("inf"))
    rows = replace(rows, rivals=torch.tensor([[1]]))
    up, down = torch.tensor([[[[[3.0, 4.0]]]]]), torch.tensor([[[[[-3.0, 0.0]]]]])
    ends = []
    for summed in (False, True):
        attack = DeepFool(overshoot=0.0, sum_steps=summed)
        state = attack.start(rows)
        for slopes in (up, down):  # five long, then one long: (0.6, 0.8), (-0.2, 0)
            gap = 1.0 * float(slopes.norm()) - 1e-4 * float(slopes.norm())
            gap *= 1.0 if slopes is up else 0.2
            logits = torch.tensor([[gap, 0.0]])
            state = attack.tell(state, rows, Answer(logits, class_gradients=slopes))
        ends.append(state.points.flatten().tolist())
    assert ends[0] == pytest.approx([0.8, 1.0], abs=1e-3)
    assert ends[1] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_robust_networks_are_crossed() -> None:
    """Adversarially trained: not less often than by the authors' sums, and not farther away."""
    images, labels = nets.digits("test")
    model = nets.trained(eps=0.2)
    right = (oracles.predicted(model, images) == labels).nonzero()[:80, 0]
    images, labels = images[right], labels[right]
    ours, summed = (
        oracles.run(DeepFool(sum_steps=sums), model, images, labels, ()).distance
        for sums in (False, True)
    )
    assert torch.isfinite(ours).sum() >= max(76, int(torch.isfinite(summed).sum()))
    both = torch.isfinite(ours) & torch.isfinite(summed)
    assert (ours / summed)[both].mean() <= 1.0


def test_targeted_steps_reach_the_target() -> None:
    model, images, labels = correct(30)
    target = (labels + 1) % 10
    crafted = craft(model, DeepFool(), images, labels, float("inf"), target=target)
    reached = oracles.predicted(model, crafted) == target
    assert reached.double().mean() > 0.8
    untargeted = craft(model, DeepFool(), images, labels, float("inf"))
    far, near = (distance(points, images, "l2") for points in (crafted, untargeted))
    assert far[reached].mean() > near[reached].mean()


def test_passes_follow_the_candidates() -> None:
    assert DeepFool(steps=7, refine=False).passes(10) == (7, 63)
    assert DeepFool(steps=7).passes(4) == (7 + MOST_PROBES, 21)
    assert DeepFool(steps=7, candidates=3, refine=False).passes(100) == (7, 14)
