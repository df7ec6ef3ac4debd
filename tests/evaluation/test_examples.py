"""Which test examples a question is about, and where a targeted attack wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data import source
from robustbench_defenses.evaluation.examples import Examples, load, only_correct, targets
from robustbench_defenses.evaluation.subject import resolve

CPU = torch.device("cpu")
ALL = 360


def digits(n: int | None = None, subset: str = "first") -> Examples:
    return load("digits", n, subset, None, CPU)


def test_the_first_in_file_order() -> None:
    chosen = digits(7)
    raw = source.load("digits", "test")
    assert len(chosen) == 7
    assert chosen.index.tolist() == list(range(7))
    assert torch.equal(chosen.images, source.to_float(raw.images[:7]))
    assert torch.equal(chosen.labels, raw.labels[:7])
    assert chosen.images.dtype == torch.float32
    assert chosen.digest == raw.digest
    assert chosen.info.classes == 10
    assert len(digits()) == ALL


def test_random_subsets_are_reproducible_draws_without_repetition() -> None:
    first, again = digits(50, "random:3"), digits(50, "random:3")
    assert torch.equal(first.index, again.index)
    assert len(first.index.unique()) == 50
    assert not torch.equal(first.index, digits(50, "random:4").index)
    assert first.index.tolist() != sorted(first.index.tolist())
    raw = source.load("digits", "test")
    assert torch.equal(first.labels, raw.labels[first.index])
    whole = digits(None, "random:3")
    assert whole.index.sort().values.tolist() == list(range(ALL))
    assert torch.equal(whole.index[:50], first.index)  # a larger n goes on, it does not reshuffle


def test_random_subsets_favour_nobody() -> None:
    counts = np.zeros(ALL)
    for seed in range(60):
        counts[digits(90, f"random:{seed}").index.numpy()] += 1
    # Each example is drawn with probability 1/4: 15 of 60 on average.
    assert stats.chisquare(counts).pvalue > 1e-3
    assert counts.min() > 0


def test_folds_partition_the_test_set() -> None:
    folds = [digits(None, f"fold:{k}").index for k in range(10)]
    assert torch.cat(folds).sort().values.tolist() == list(range(ALL))
    assert {len(fold) for fold in folds} == {36}


@pytest.mark.parametrize(
    "subset",
    ["", "last", "random", "random:", "random:x", "random:-1", "random:1.5", "fold:10", "fold:",
     "fold:-1", "first:3", "correct:1", "random:²"],
)  # fmt: skip
def test_unknown_subsets_are_refused(subset: str) -> None:
    with pytest.raises(UserError, match="unknown subset") as caught:
        digits(5, subset)
    assert "random:SEED" in str(caught.value.hint)


@pytest.mark.parametrize("n", [0, -1, -5])
def test_at_least_one_example(n: int) -> None:
    with pytest.raises(UserError, match=f"-n {n}"):
        digits(n)


@pytest.mark.parametrize(("n", "subset", "count"), [(361, "first", 360), (37, "fold:0", 36)])
def test_not_more_than_there_are(n: int, subset: str, count: int) -> None:
    with pytest.raises(UserError, match=f"only {count} such test examples"):
        digits(n, subset)


def test_pick_and_head() -> None:
    chosen = digits(20)
    some = chosen.pick(torch.tensor([3, 1]))
    assert some.index.tolist() == [3, 1]
    assert torch.equal(some.images, chosen.images[[3, 1]])
    assert chosen.head(4).index.tolist() == [0, 1, 2, 3]
    assert len(chosen.head(None)) == len(chosen.head(99)) == 20
    assert some.digest == chosen.digest


class Parity(nn.Module):
    """Right on images whose number is even: it reads the number from a table of images."""

    def __init__(self, examples: Examples) -> None:
        super().__init__()
        self.register_buffer("known", examples.images.flatten(1))
        wrong = (examples.labels + 1) % 10
        answer = torch.where(examples.index % 2 == 0, examples.labels, wrong)
        self.register_buffer("answer", answer)

    def forward(self, images: Tensor) -> Tensor:
        nearest = torch.cdist(images.flatten(1), self.known).argmin(1)
        return nn.functional.one_hot(self.answer[nearest], 10).float()


def test_only_the_correctly_classified(tmp_path: Path) -> None:
    chosen = digits(None, "correct")
    assert len(chosen) == ALL  # which of them are correct, the subject says
    subject = resolve(Parity(chosen), tmp_path, CPU)
    right = only_correct(chosen, subject, 5)
    assert right.index.tolist() == [0, 2, 4, 6, 8]
    assert only_correct(chosen, subject, None).index.tolist() == list(range(0, ALL, 2))
    with pytest.raises(UserError, match="only 180 test examples correctly"):
        only_correct(chosen, subject, 181)


def test_a_subject_that_knows_nothing(tmp_path: Path) -> None:
    chosen = digits(20).pick(torch.arange(1, 20, 2))
    subject = resolve(Parity(chosen), tmp_path, CPU)
    with pytest.raises(UserError, match="classifies no example correctly"):
        only_correct(chosen, subject, None)


def test_targets_are_wrong_and_uniform_among_the_wrong() -> None:
    base = digits()
    index = torch.arange(9000)
    many = Examples(
        base.images, base.labels.repeat(25), index, base.info, base.digest, base.subset
    )  # fmt: skip
    wanted = targets(many, 10, seed=0)
    assert (wanted != many.labels).all()
    assert wanted.min() >= 0
    assert wanted.max() < 10
    offset = (wanted - many.labels) % 10
    counts = torch.bincount(offset, minlength=10)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3


def test_a_target_belongs_to_its_example() -> None:
    """Not to its place in the batch: another subset wants the same class of the same image."""
    base = digits()
    wanted = targets(base, 10, seed=1)
    some = base.pick(torch.tensor([200, 7, 33]))
    assert torch.equal(targets(some, 10, seed=1), wanted[[200, 7, 33]])
    assert not torch.equal(targets(base, 10, seed=2), wanted)


def test_two_classes_leave_one_target() -> None:
    base = digits(20)
    two = Examples(base.images, base.labels % 2, base.index, base.info, "", "first")
    assert torch.equal(targets(two, 2, seed=0), 1 - two.labels)
