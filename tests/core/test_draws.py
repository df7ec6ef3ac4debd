"""Subjects that answer at random: what they declare, how draws are joined, whence they come."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_defenses.core.draws import Randomness, declared, randomness_of, seeded
from robustbench_defenses.core.errors import UserError

CPU = torch.device("cpu")


class Says(nn.Module):
    def __init__(self, **said: object) -> None:
        super().__init__()
        for name, value in said.items():
            setattr(self, name, value)


def test_what_a_subject_declares() -> None:
    assert randomness_of(Says()) is None
    assert randomness_of(Says(random=False, draws=8)) is None
    assert randomness_of(Says(random=np.random.default_rng())) is None  # a generator of its own
    assert randomness_of(Says(random=True)) == Randomness(20, "vote", "loss_mean")
    mean = Says(random=True, draws=8, aggregation="prob_mean")
    assert randomness_of(mean) == Randomness(8, "prob_mean", "prob_mean")
    other = Says(random=True, draws=8, aggregation="prob_mean", eot="loss_mean")
    assert randomness_of(other) == Randomness(8, "prob_mean", "loss_mean")


@pytest.mark.parametrize(
    "said", [{"draws": 0}, {"draws": 2.5}, {"draws": True}, {"aggregation": "mean"}, {"eot": "no"}]
)
def test_nonsense_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(UserError, match="Says is random with"):
        randomness_of(Says(random=True, **said))


def test_votes_decide_and_probabilities_settle_ties() -> None:
    """Two draws for class 0, one sure one for class 1; then one each, the surer one wins."""
    draws = torch.tensor([[[1.0, 0.0, -5.0]], [[1.0, 0.0, -5.0]], [[-9.0, 9.0, -5.0]]]).double()
    vote, mean = declared("x", 3, "vote"), declared("x", 3, "logits_mean")
    assert vote.scores(draws).argmax(1).item() == 0
    assert mean.scores(draws).argmax(1).item() == 1
    assert declared("x", 3, "prob_mean").scores(draws).argmax(1).item() == 1
    assert vote.scores(draws[1:]).argmax(1).item() == 1


def test_scores_are_the_means_they_say() -> None:
    draws = torch.randn(7, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(declared("x", 7, "logits_mean").scores(draws), draws.mean(0))
    likely = declared("x", 7, "prob_mean").scores(draws)
    torch.testing.assert_close(likely.exp(), draws.softmax(2).mean(0))
    votes = declared("x", 7, "vote").scores(draws)
    count = torch.stack([(draws.argmax(2) == k).sum(0) for k in range(5)], 1)
    expected = (count + draws.softmax(2).mean(0)) / 8
    torch.testing.assert_close(votes.exp(), expected)
    assert not bool(torch.isnan(declared("x", 7, "vote").scores(draws * 1e4)).any())


def drawn() -> tuple[float, float, float]:
    return torch.rand(1).item(), random.random(), float(np.random.rand())


def test_seeded_draws_repeat_and_leave_no_trace() -> None:
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    with seeded(5, CPU):
        first = drawn()
    with seeded(5, CPU):
        again = drawn()
    with seeded(6, CPU):
        other = drawn()
    assert first == again
    assert all(a != b for a, b in zip(first, other))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert str(before[2]) == str(np.random.get_state(legacy=False))


def test_states_come_back_after_an_exception() -> None:
    before = torch.random.get_rng_state(), random.getstate()
    with pytest.raises(ZeroDivisionError), seeded(5, CPU):
        _ = drawn()[0] / 0
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
