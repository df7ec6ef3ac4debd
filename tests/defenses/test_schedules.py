"""Learning-rate schedules at the points that define them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.defenses import schedules
from robustbench_defenses.defenses.base import TrainSettings, optimiser, schedule_of


def test_multistep_drops_at_the_first_step_of_its_milestones() -> None:
    factor = schedules.multistep((2 / 3, 5 / 6), 0.1)
    steps = 300 * 234
    assert factor((200 * 234 - 1) / steps) == 1.0
    assert factor(200 * 234 / steps) == pytest.approx(0.1)
    assert factor((250 * 234 - 1) / steps) == pytest.approx(0.1)
    assert factor(250 * 234 / steps) == pytest.approx(0.01)


def test_triangle_rises_to_its_peak_and_falls_to_zero() -> None:
    factor = schedules.triangle(0.4)
    assert [factor(p) for p in (0.0, 0.2, 0.4, 0.7, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_cosine_warms_up_and_halves_in_the_middle() -> None:
    factor = schedules.cosine(0.2)
    assert [factor(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_linear_warms_up_holds_and_falls_to_its_floor() -> None:
    factor = schedules.linear(0.05, 0.6, 0.02)
    assert [factor(p) for p in (0.0, 0.025, 0.05, 0.59, 0.6, 0.8, 0.999)] == pytest.approx(
        [0, 0.5, 1, 1, 1, 0.5, 0.02]
    )


def test_an_optimiser_keeps_the_proportions_of_its_rates() -> None:
    weights = list(nn.Linear(2, 2).parameters())
    settings = TrainSettings(learning_rate=0.5, schedule="multistep", milestones=(0.5,))
    made = optimiser(iter(weights), settings)
    assert made.set_rate(0.0) == 0.5
    assert made.set_rate(0.75) == pytest.approx(0.05)
    assert made.stepper.param_groups[0]["lr"] == pytest.approx(0.05)
    assert made.set_rate(0.0) == 0.5  # from the first rate, not from the last


@pytest.mark.parametrize("name", ["constant", "multistep", "triangle", "cosine", "linear"])
def test_every_schedule_stays_in_zero_one(name: str) -> None:
    factor = schedule_of(TrainSettings(schedule=name))  # type: ignore[arg-type]
    values = torch.tensor([factor(step / 200) for step in range(200)])
    assert ((values >= 0) & (values <= 1)).all()
    assert values.max() > 0.99


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"learning_rate": -0.1},
        {"learning_rate": float("inf")},
        {"warmup": 1.5},
        {"schedule": "cosine", "warmup": 1.0},
        {"schedule": "triangle", "peak": 0.0},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(reversed(bad)))):
        TrainSettings(**bad)  # type: ignore[arg-type]
