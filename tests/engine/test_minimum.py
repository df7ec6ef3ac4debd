"""Verdict runs of minimum-norm attacks: which claims count, which are mended, who leaves early."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine.minimum import JUDGE_EVERY
from robustbench_defenses.engine.protocol import Answer, Query, Rows
from robustbench_defenses.engine.search import Outcome
from robustbench_defenses.engine.twin import Twin
from tests.engine import oracles
from tests.engine.builders import Bands, WalkState, grey

DARK = torch.zeros(1, dtype=torch.int64)
BELOW = Bands(0.18, 0.6)  # class 1 above a mean of 0.39


@dataclass(frozen=True)
class Visit:
    """Shows images of these means in turn, in one tensor that it overwrites."""

    means: tuple[float, ...]

    minimum: ClassVar[bool] = True
    norm: ClassVar[str] = "linf"
    restarts: ClassVar[int] = 1

    def start(self, rows: Rows) -> WalkState:
        return WalkState(rows.images.clone(), torch.zeros_like(rows.labels))

    def ask(self, state: WalkState, rows: Rows) -> Query:
        return Query(state.points, "logits")

    def tell(self, state: WalkState, rows: Rows, answer: Answer) -> WalkState:
        following = torch.tensor(self.means).to(state.points)[state.done]
        state.points.copy_(following.view(-1, 1, 1, 1).expand_as(state.points))
        return replace(state, done=state.done + 1)

    def finished(self, state: WalkState, rows: Rows) -> Tensor:
        return state.done >= len(self.means)

    def last(self, state: WalkState) -> Tensor:
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        return len(self.means), 0


def visited(
    *means: float, twin: Logits = BELOW, deployed: Logits = BELOW, enough: float = 0.0
) -> Outcome:
    """From an image of mean 0.2."""
    asked = Twin(twin, twin, autocast=False)
    return oracles.run(
        Visit(means), deployed, grey(0.2), DARK, (), twin=asked, deployed=deployed, enough=enough
    )


def test_the_nearest_claim_counts_though_its_points_are_overwritten() -> None:
    assert visited(0.6, 0.45, 0.5, 0.3).distance.tolist() == pytest.approx([0.25])


def test_the_last_point_is_judged() -> None:
    out = visited(0.3, 0.45)
    assert out.distance.tolist() == pytest.approx([0.25])
    assert out.queries.tolist() == [3]  # the clean image, the start, 0.3


def test_nothing_found_is_no_result() -> None:
    assert visited(0.3, 0.35).distance.tolist() == [torch.inf]


def test_a_twin_that_errs_on_the_image_hides_nothing() -> None:
    """A claim of norm 0 would be nearer than every honest one."""

    def erring(points: Tensor) -> Tensor:
        logits = BELOW(points)
        at_image = points.flatten(1).mean(1, keepdim=True) < 0.25
        return torch.where(at_image, logits.flip(1), logits)

    assert visited(0.3, 0.45, 0.3, twin=erring).distance.tolist() == pytest.approx([0.25])


def test_a_refused_claim_gives_way_to_longer_ones() -> None:
    """The twin's boundary lies at 0.3: 0.32 is refused, 0.45 comes after the verdict."""
    near = Bands(0.1, 0.5)
    out = visited(*[0.32] * (JUDGE_EVERY - 1), 0.45, 0.3, twin=near)
    assert out.distance.tolist() == pytest.approx([0.25])


def test_a_claim_just_inside_the_boundary_is_stretched_over_it() -> None:
    """0.389 is 0.189 away; the factor 1.005 does not yet cross 0.39, 1.01 does."""
    early = Bands(0.176, 0.6)  # its boundary lies at 0.388
    out = visited(0.389, 0.3, twin=early)
    assert out.distance.tolist() == pytest.approx([0.189 * 1.01])


def test_an_example_leaves_once_it_is_near_enough() -> None:
    means = [0.45] * (3 * JUDGE_EVERY)
    assert visited(*means).queries.tolist() == [1 + 3 * JUDGE_EVERY]
    assert visited(*means, enough=0.2).queries.tolist() == [1 + 3 * JUDGE_EVERY]
    assert visited(*means, enough=0.25).queries.tolist() == [1 + JUDGE_EVERY]


def blind(points: Tensor) -> Tensor:
    """Sees class 0 everywhere."""
    return torch.tensor([[1.0, 0.0]]).repeat(len(points), 1) + 0 * points.flatten(1)[:, :1]


def test_what_bf16_does_not_find_is_sought_again_in_float32() -> None:
    found = {}
    for name, twin in (
        ("blind", Twin(blind, BELOW, autocast=True)),
        ("seeing", Twin(BELOW, BELOW, autocast=True)),
        ("float32", Twin(blind, blind, autocast=False)),
    ):
        attack = Visit((0.45, 0.42, 0.2))
        found[name] = oracles.run(attack, BELOW, grey(0.2), DARK, (), twin=twin, deployed=BELOW)
    assert found["blind"].distance.tolist() == pytest.approx([0.22])
    assert found["seeing"].distance.tolist() == pytest.approx([0.22])
    assert found["float32"].distance.tolist() == [float("inf")]
    queries = {name: outcome.queries.tolist() for name, outcome in found.items()}
    assert queries == {"blind": [1 + 6], "seeing": [1 + 3], "float32": [1 + 3]}


@pytest.mark.parametrize("name", ["ddn", "fmn_l2", "deepfool_l2", "fab_t_l2", "cw"])
def test_attacks_survive_a_twin_that_errs_on_every_image(name: str) -> None:
    model = oracles.Linear((1, 4, 4), 3)
    images = oracles.middle_images(8, (1, 4, 4))
    labels = oracles.predicted(model, images)

    def erring(points: Tensor) -> Tensor:
        logits = model(points)
        nearest = torch.cdist(points.flatten(1), images.flatten(1)).amin(1, keepdim=True)
        return torch.where(nearest < 1e-6, -logits, logits)

    attack = oracles.build(name, steps=100, search_steps=4)
    twin = Twin(erring, model, autocast=True)
    found = oracles.run(attack, model, images, labels, (), twin=twin, deployed=model).distance
    exact = model.distances(images, labels, "l2")
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= exact * 1.05).all()
