"""Carlini and Wagner: Adam against torch's, the search for c, confidence, strength."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import foolbox
import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.attacks.cw import CW, State
from robustbench_defenses.core.norms import distance
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.protocol import Answer, Rows
from tests.attacks import nets
from tests.engine import builders, oracles


def correct(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network and images that it classifies correctly."""
    images, labels = nets.digits("test")
    model = nets.trained()
    right = oracles.predicted(model, images) == labels
    return model, images[right][:count], labels[right][:count]


def some_rows(count: int = 2) -> Rows:
    images = oracles.middle_images(count, (1, 3, 3))
    return builders.rows(images, torch.zeros(count, dtype=torch.int64), float("inf"))


def told(attack: CW, state: State, rows: Rows, gap: list[float]) -> State:
    """The state after logits whose wrong class leads by `gap` (per row)."""
    ahead = torch.tensor(gap).double()
    logits = torch.stack([torch.zeros_like(ahead), ahead], 1)
    loss = (ahead - attack.confidence).clamp_max(0)
    return attack.tell(state, rows, Answer(logits, loss, torch.ones_like(rows.images)))


@pytest.mark.parametrize("form", ["clamp", "tanh"])
def test_steps_are_those_of_torch_adam(form: str) -> None:
    """Twenty steps of the published objective, by torch's own optimiser and gradients."""
    model = oracles.convolution(1, 4)
    images = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    labels = oracles.predicted(model, images)
    attack = CW(
        steps=1000, search_steps=1, const=3.0, learning_rate=0.01, final_rate=1.0, form=form,
        abort_early=False,
    )  # fmt: skip
    rows = builders.rows(images, labels, float("inf"))
    state = attack.start(rows)
    free = state.free.clone().requires_grad_()
    optimiser = torch.optim.Adam([free], lr=0.01)
    centre = attack.ask(state, rows).points.clone()
    for _ in range(20):
        query = attack.ask(state, rows)
        points = query.points.detach().requires_grad_()
        logits = model(points)
        loss = query.loss(logits, rows)
        (gradient,) = torch.autograd.grad(loss.sum(), points)
        state = attack.tell(state, rows, Answer(logits.detach(), loss.detach(), gradient))
        optimiser.zero_grad()
        moved = free if form == "clamp" else (torch.tanh(free) + 1) / 2
        logits = model(moved)
        own = logits.gather(1, labels[:, None])[:, 0]
        other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        hinge = (own - other).clamp_min(0)
        ((moved - centre).square().flatten(1).sum(1) + 3.0 * hinge).sum().backward()
        optimiser.step()
        if form == "clamp":
            with torch.no_grad():
                free.clamp_(0, 1)
        torch.testing.assert_close(state.free, free.detach(), rtol=1e-9, atol=1e-12)


def test_search_for_c() -> None:
    """Tenfold while nothing succeeds, then halving; each row at its own pace."""
    attack = CW(steps=2, search_steps=9, const=0.001, abort_early=False, warm_start=False)
    rows = some_rows()
    state = attack.start(rows)
    constants = []
    # Two steps a round; row 0 never succeeds, row 1 succeeds in rounds 3 and 4 (c 0.1, 0.055).
    for round_ in range(5):
        constants.append(state.const.tolist())
        for _ in range(2):
            state = told(attack, state, rows, [-1.0, 1.0 if round_ in (2, 3) else -1.0])
    expected = [[0.001, 0.001], [0.01, 0.01], [0.1, 0.1], [1.0, 0.055], [10.0, 0.0325]]
    torch.testing.assert_close(torch.tensor(constants), torch.tensor(expected))
    assert state.lower.tolist() == pytest.approx([10.0, 0.0325])
    assert state.upper.tolist() == pytest.approx([torch.inf, 0.055])
    assert (state.free == rows.images).all()  # a round starts at the image
    assert not state.mean.any()


def test_long_searches_end_with_the_smallest_c_that_succeeded() -> None:
    attack = CW(steps=2, search_steps=10, const=1.0, abort_early=False)
    rows = some_rows(1)
    state = attack.start(rows)
    for round_ in range(9):
        for _ in range(2):
            state = told(attack, state, rows, [1.0 if round_ == 0 else -1.0])
    assert state.turn.tolist() == [9]
    assert state.const.tolist() == [1.0]


def test_rounds_end_early_image_by_image() -> None:
    """At a tenth of the steps, for the row alone whose loss has not fallen."""
    attack = CW(steps=100, search_steps=9, const=1.0, warm_start=False)
    rows = some_rows()
    state = attack.start(rows)
    for step in range(11):
        state = told(attack, state, rows, [-1.0, -5.0 + 0.4 * step])
    assert state.turn.tolist() == [1, 0]
    kept = replace(attack, abort_early=False)
    state = kept.start(rows)
    for _ in range(11):
        state = told(kept, state, rows, [-1.0, -1.0])
    assert state.turn.tolist() == [0, 0]
    # A warm round is checked in its second half only.
    warm = replace(attack, warm_start=True)
    state = warm.start(rows)
    for step in range(61):
        assert state.turn.tolist() == [0, 0]
        state = told(warm, state, rows, [-1.0 - 0.1 * step, -10.0])
    assert state.turn.tolist() == [1, 1]


def test_rate_falls_by_a_cosine_within_a_round() -> None:
    """Under a constant slope every step of Adam is as long as its rate."""
    attack = CW(steps=100, const=1e6, learning_rate=0.004, final_rate=0.1, abort_early=False)
    rows = some_rows(1)
    state = attack.start(rows)
    for step in range(100):
        before = state.free
        state = told(attack, state, rows, [-1.0])
        rate = 0.004 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2)
        if step == 99:
            break  # the next round has begun
        moved = (state.free - before)[(state.free > 0) & (state.free < 1)].abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=0)
        if step == 50:
            assert len(moved) == 9
    assert (state.free == rows.images).all()  # no success yet: the image is where rounds begin


def test_warm_rounds_begin_at_the_nearest_adversarial_point() -> None:
    attack = CW(steps=6, search_steps=9, const=1.0, abort_early=False)
    rows = some_rows()
    state = attack.start(rows)
    seen = []
    for step in range(6):
        seen.append(state.free.clone())
        # Row 0 succeeds at steps 2 to 4 while it moves away, row 1 never.
        state = told(attack, state, rows, [1.0 if 2 <= step <= 4 else -1.0, -1.0])
    lengths = [float(distance(points[:1], rows.images[:1], "l2")) for points in seen]
    nearest = min((2, 3, 4), key=lambda step: lengths[step])
    assert lengths[nearest] > 0
    assert torch.equal(state.free[0], seen[nearest][0])
    assert torch.equal(state.free[1], rows.images[1])
    assert state.turn.tolist() == [1, 1]
    # Where the verdict refuses it, any later success replaces it.
    state = attack.settle(state, rows, torch.tensor([True, False]))
    assert torch.isinf(state.shortest).all()


def test_refused_success_is_none() -> None:
    attack = CW()
    rows = some_rows()
    state = told(attack, told(attack, attack.start(rows), rows, [1.0, 1.0]), rows, [1.0, 1.0])
    assert state.found.tolist() == [True, True]
    state = attack.settle(state, rows, torch.tensor([True, False]))
    assert state.found.tolist() == [False, True]


def test_linear_oracle() -> None:
    """9 x 300 steps end within a hundredth of the closed form."""
    model = oracles.Linear((1, 4, 4), 3)
    images = oracles.middle_images(8, (1, 4, 4))
    labels = oracles.predicted(model, images)
    exact = model.distances(images, labels, "l2")
    found = oracles.run(CW(steps=300), model, images, labels, ()).distance
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= exact * 1.01).all()


def test_confidence_is_kept_by_images() -> None:
    """With a confidence, the image that comes back has that margin, and lies farther away."""
    net, images, labels = correct(16)
    model, images = copy.deepcopy(net).double(), images.double()
    plain = CW(steps=100, search_steps=4, const=1.0)
    sure = replace(plain, confidence=3.0)
    near, far = (craft(model, attack, images, labels, torch.inf) for attack in (plain, sure))
    with torch.no_grad():
        logits = model(far)
    own = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    moved = distance(far, images, "l2") > 0
    assert moved.sum() >= 14
    assert (other - own)[moved].min() >= 3.0 - 1e-4
    assert distance(far, images, "l2")[moved].mean() > distance(near, images, "l2")[moved].mean()
    outcome = oracles.run(sure, model, images, labels, (), name="craft").distance
    # A verdict run keeps to the same points: none with less confidence counts.
    torch.testing.assert_close(outcome[moved], distance(far, images, "l2")[moved])


def test_not_weaker_than_foolbox() -> None:
    """Equal rounds and steps on a small network."""
    model, images, labels = correct(40)
    ours = oracles.run(CW(steps=60, search_steps=5, const=0.1), model, images, labels, ()).distance
    reference = foolbox.attacks.L2CarliniWagnerAttack(
        steps=60, binary_search_steps=5, initial_const=0.1
    )
    _, points, success = reference(
        foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=None
    )
    # Where it finds nothing, foolbox returns a black image, which often is "misclassified".
    found = success & (points > 0).flatten(1).any(1)
    theirs = distance(points, images, "l2").masked_fill(~found, torch.inf)
    assert torch.isfinite(ours).sum() >= torch.isfinite(theirs).sum()
    both = torch.isfinite(ours) & torch.isfinite(theirs)
    assert both.sum() >= 20
    assert ours[both].mean() <= 1.03 * theirs[both].mean()


def test_tanh_comes_near_clamp() -> None:
    """With steps long enough to leave the flat ends of tanh, where black pixels start."""
    model, images, labels = correct(20)
    attack = CW(steps=150, search_steps=4, const=1.0, learning_rate=0.05, form="tanh")
    tanh = oracles.run(attack, model, images, labels, ()).distance
    clamp = oracles.run(replace(attack, form="clamp"), model, images, labels, ()).distance
    assert torch.isfinite(tanh).double().mean() >= 0.9
    assert tanh.median() <= 1.3 * clamp.median()


@pytest.mark.parametrize("training", [0.0, 0.2])
def test_close_to_a_long_ddn(training: float) -> None:
    """9 x 100 steps, on a natural and on a robust network, where the authors' rate falls short."""
    images, labels = nets.digits("test")
    model = nets.trained(eps=training)
    right = (oracles.predicted(model, images) == labels).nonzero()[:60, 0]
    images, labels = images[right], labels[right]
    ours = oracles.run(CW(steps=100), model, images, labels, ()).distance
    ddn = oracles.run(oracles.build("ddn", steps=1000), model, images, labels, ()).distance
    assert torch.isfinite(ours).all()
    assert ours.median() <= 1.05 * ddn.median()
    assert ours.mean() <= 1.2 * ddn.mean()
