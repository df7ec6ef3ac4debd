"""Images of other classes, and rows that want logits only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_defenses.core.norms import distance
from robustbench_defenses.engine.caller import Caller
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.donors import CHUNK, nearest_donors
from robustbench_defenses.engine.protocol import Query, Rows
from tests.engine import builders, oracles


def setting(count: int = 2 * CHUNK + 7) -> tuple[Tensor, Tensor, Tensor]:
    """Images, predicted classes and labels, some of which differ."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 3, 3, generator=draw)
    predicted = torch.randint(0, 4, (count,), generator=draw)
    labels = torch.where(torch.rand(count, generator=draw) < 0.9, predicted, (predicted + 1) % 4)
    return images, predicted, labels


def test_the_nearest_of_another_class() -> None:
    images, predicted, labels = setting()
    target = torch.full_like(labels, -1)
    target[::5] = 2
    places = nearest_donors(images, predicted, labels, target)
    for i, place in enumerate(places.tolist()):
        aimed = predicted == 2 if target[i] >= 0 else predicted != labels[i]
        far = distance(images, images[i : i + 1].expand_as(images), "l2")
        assert place == int(far.masked_fill(~aimed, torch.inf).argmin())


def test_order_and_absence() -> None:
    images, predicted, labels = setting()
    nobody = torch.full_like(labels, -1)
    places = nearest_donors(images, predicted, labels, nobody)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    moved = nearest_donors(images[order], predicted[order], labels[order], nobody)
    assert torch.equal(order[moved], places[order])
    alone = nearest_donors(images, torch.ones_like(labels), torch.ones_like(labels), nobody)
    assert torch.equal(alone, torch.arange(len(images)))
    assert len(nearest_donors(images[:0], predicted[:0], labels[:0], nobody[:0])) == 0


@dataclass(frozen=True)
class Borrow(builders.Walk):
    """Ends at the image that it is lent."""

    steps: int = 1
    donors: ClassVar[bool] = True

    def start(self, rows: Rows) -> builders.WalkState:
        assert rows.donors is not None
        return builders.WalkState(rows.donors.clone(), torch.zeros_like(rows.labels))

    def tell(self, state: builders.WalkState, rows: Rows, answer: object) -> builders.WalkState:
        state.done = state.done + 1
        return state


def test_both_kinds_of_runs_lend_images() -> None:
    model, images = builders.Bands(0.25, 0.75), builders.grey(0.1, 0.3, 0.6, 0.9)
    labels = torch.tensor([0, 0, 1, 1])
    expected = images[[2, 2, 1, 1]]
    assert torch.equal(craft(model, Borrow(), images, labels, 1.0), expected)
    out = builders.search(Borrow(), model, images, labels, (1.0,))
    torch.testing.assert_close(out.distance, distance(expected, images, "linf"))
    assert craft(model, builders.Walk(), images, labels, 0.0).equal(images)


def test_bare_rows_cost_no_backward_pass() -> None:
    model, images = oracles.convolution(1, 3), oracles.middle_images(6, (1, 4, 4))
    rows = builders.rows(images, torch.zeros(6, dtype=torch.int64), 1.0)
    caller = Caller(builders.plain(model), "it", rows.example, torch.zeros_like(rows.labels), 4)
    bare = torch.tensor([True, False, False, True, False, True])
    answer = caller.answer(Query(images, "gradient", "margin", bare=bare), rows, None)
    assert (caller.cost.forward, caller.cost.backward) == (6, 3)
    whole = caller.answer(Query(images, "gradient", "margin"), rows, None)
    torch.testing.assert_close(answer.logits, whole.logits)
    assert answer.gradient is not None
    assert answer.loss is not None
    assert whole.gradient is not None
    assert whole.loss is not None
    assert (answer.gradient[bare] == 0).all()
    assert (answer.loss[bare] == 0).all()
    torch.testing.assert_close(answer.gradient[~bare], whole.gradient[~bare])
    torch.testing.assert_close(answer.loss[~bare], whole.loss[~bare])
    none = caller.answer(Query(images, "gradient", bare=torch.ones_like(bare)), rows, None)
    assert none.gradient is not None
    assert (none.gradient == 0).all()
    assert caller.cost.backward == 3 + 6
