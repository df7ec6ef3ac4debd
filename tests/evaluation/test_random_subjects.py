"""Subjects that answer at random, through the whole evaluation: identity, record, repetition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_defenses as rrd
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation import store
from robustbench_defenses.evaluation.record import Record
from robustbench_defenses.evaluation.run import evaluate
from robustbench_defenses.evaluation.schema import Result
from robustbench_defenses.evaluation.subject import resolve
from tests.attacks import nets

CPU = torch.device("cpu")


class Noisy(nn.Module):
    """A trained network behind input noise."""

    def __init__(self, **said: object) -> None:
        super().__init__()
        self.inner = nets.trained()
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images + 0.1 * torch.randn_like(images))
        return logits


def ask(subject: nn.Module, folder: Path, attack: str = "pgd", **options: Any) -> Result:
    given: dict[str, Any] = {
        "dataset": "digits", "n": 20, "threads": 1, "precision": "fp32", "eps": [0.05, 0.2],
        "settings": {"": {"steps": 5}},
    }  # fmt: skip
    (answer,) = evaluate(subject, [attack], results_dir=folder, **(given | options))
    return answer.stored.result


def record(result: Result, folder: Path) -> Record:
    found = store.find(folder, result.subject.id, result.attack.name, result.key)
    assert found is not None
    return found.record()


def test_a_subject_says_that_it_is_random() -> None:
    plain = resolve(Noisy(), Path("results"), CPU)
    assert (plain.about.random, plain.about.draws, plain.about.aggregation) == (False, 1, None)
    said = resolve(Noisy(random=True, draws=7, aggregation="prob_mean"), Path("results"), CPU)
    assert (said.about.random, said.about.draws, said.about.aggregation) == (True, 7, "prob_mean")
    assert said.views[0].random
    assert said.views[0].randomness is not None
    assert said.views[0].randomness.eot == "prob_mean"
    assert said.about.id != plain.about.id, "another subject than one that hides its draws"
    with pytest.raises(UserError, match="Noisy is random with draws = 0"):
        resolve(Noisy(random=True, draws=0), Path("results"), CPU)


@pytest.mark.parametrize(
    ("attack", "sweep", "shape"),
    [("pgd", "envelope", (20,)), ("pgd", "independent", (2, 20)), ("ddn", "envelope", (20,))],
)
def test_the_record_holds_the_broken_draws(
    attack: str, sweep: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = Noisy(random=True, draws=7)
    states = torch.random.get_rng_state(), str(np.random.get_state(legacy=False))
    result = ask(model, tmp_path, attack, sweep=sweep)
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1] == str(np.random.get_state(legacy=False))
    rows = record(result, tmp_path)
    assert rows.broken_draws is not None
    assert rows.broken_draws.shape == shape
    assert set(np.round(rows.broken_draws * 7, 6).ravel()) <= set(range(8))
    fell = rows.distance < np.inf if rows.broken is None else rows.broken
    # Most votes of seven, among ten classes: three wrong ones can beat two right ones.
    assert (rows.broken_draws[fell & rows.clean_right] >= 3 / 7).all()
    assert fell.any()
    assert result.subject.draws == 7
    # The same question again: the same numbers, from the store and afresh.
    assert ask(model, tmp_path, attack, sweep=sweep).cost == result.cost
    again = ask(model, tmp_path / "other", attack, sweep=sweep)
    for name, value in vars(rows).items():
        np.testing.assert_array_equal(getattr(record(again, tmp_path / "other"), name), value)


def test_deterministic_subjects_have_none(tmp_path: Path) -> None:
    result = ask(nets.trained(), tmp_path)
    assert record(result, tmp_path).broken_draws is None
    assert not result.subject.random


def test_what_is_averaged_decides_the_question(tmp_path: Path) -> None:
    """Other draws, another rule or another average: another answer."""
    kinds: list[dict[str, object]] = [
        {"draws": 3}, {"draws": 5}, {"draws": 3, "aggregation": "logits_mean"},
        {"draws": 3, "eot": "prob_mean"},
    ]  # fmt: skip
    keys = {ask(Noisy(random=True, **kind), tmp_path, n=4).key for kind in kinds}
    assert len(keys) == len(kinds)


def test_autoattack_takes_its_random_version(tmp_path: Path) -> None:
    model = Noisy(random=True, draws=3)
    result = ask(model, tmp_path, "autoattack", eps=[0.1], n=6)
    assert result.members is not None
    assert [member.name for member in result.members] == ["apgd_ce", "apgd_dlr"]
    clean = ask(model, tmp_path, "pgd", eps=[0.1], n=6).clean_accuracy
    assert result.clean_accuracy == clean, "the clean verdict is the same under every attack"


def test_images_of_a_random_subject() -> None:
    model = Noisy(random=True, draws=9)
    images, labels = (part[:8] for part in nets.digits("test"))
    made, again = (rrd.attack(model, images, labels, "pgd", eps=0.3, steps=5) for _ in range(2))
    assert torch.equal(made.images, again.images)
    assert torch.equal(made.broken, again.broken)
    assert made.broken.double().mean() > 0.5
