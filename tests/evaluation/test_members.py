"""The members of an ensemble in stored results: over blocks, from kept blocks, at every budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation import blocks, members
from robustbench_defenses.evaluation.run import evaluate
from robustbench_defenses.evaluation.schema import Result

FEW = {"": {"steps": 4, "n_queries": 20}}
GRID = [0.05, 0.1, 0.2]


def ask(results: Path, **named: Any) -> Result:
    given = {
        "eps": GRID,
        "n": 40,
        "threads": 1,
        "precision": "fp32",
        "settings": FEW,
        "results_dir": results,
        **named,
    }
    (answer,) = evaluate("last", ["autoattack"], **given)
    return answer.stored.result


def left(result: Result) -> dict[str, list[float]]:
    assert result.members is not None
    return {one.name: one.robust_accuracy for one in result.members}


def test_an_ensemble_is_no_sweep_of_independent_budgets(results: Path) -> None:
    with pytest.raises(UserError, match="an envelope"):
        ask(results, sweep="independent", eps=list(GRID))
    assert ask(results, sweep="independent", eps=[GRID[0]]).sweep == "independent"


def test_each_member_leaves_less_and_the_last_one_what_the_ensemble_leaves(
    results: Path,
) -> None:
    result = ask(results, eps=[0.0, *GRID])
    found = left(result)
    assert list(found) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    rows = np.array(list(found.values()))  # (M, E)
    assert (np.diff(rows, axis=0) <= 0).all()
    np.testing.assert_array_equal(rows[-1], [p.robust_accuracy for p in result.curve])
    assert (rows[:, 0] == result.clean_accuracy).all()
    # The first member broke something at every budget, and not everything.
    assert (rows[0, 1:] < rows[0, :-1]).all()
    assert result.members is not None
    assert sum(one.backward_passes or 0 for one in result.members) == result.cost.backward_passes
    forward = sum(one.forward_passes or 0 for one in result.members)
    assert forward == pytest.approx(result.cost.forward_passes, abs=40)  # but for the clean images
    assert sum(one.seconds for one in result.members) <= result.cost.seconds


def test_blocks_are_joined_and_kept_ones_still_tell(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(results)
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 15)
    kept: list[Path] = []
    keep = blocks.keep

    def noted(folder: Path, start: int, piece: dict[str, Any]) -> None:
        keep(folder, start, piece)
        kept.append(folder)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "keep", noted)
    with pytest.raises(Exception, match="the same command goes on"):
        ask(results, fresh=False, seed=1)
    assert blocks.kept_examples(kept[0], 40) == 30
    monkeypatch.setattr(blocks, "keep", keep)
    again = ask(results, seed=1)
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 1000)
    assert left(again) == left(ask(results, seed=1, fresh=True))
    assert left(again).keys() == left(whole).keys()


def test_a_block_that_was_kept_without_members_is_readable(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 20)
    pieces: list[dict[str, Any]] = []
    keep = blocks.keep

    def noted(folder: Path, start: int, piece: dict[str, Any]) -> None:
        pieces.append(piece)
        keep(folder, start, piece)

    monkeypatch.setattr(blocks, "keep", noted)
    (answer,) = evaluate(
        "last", ["autoattack"], eps=GRID, n=40, threads=1, settings=FEW, results_dir=results
    )
    record = answer.stored.record()
    assert set(pieces[0]) >= members.ARRAYS
    assert members.joined(pieces, record, GRID) == answer.stored.result.members
    older = {name: value for name, value in pieces[0].items() if name not in members.ARRAYS}
    keep(tmp_path, 0, older)
    back = blocks.kept(tmp_path, 0, 40)
    assert back is not None
    assert set(back) == set(older)
    assert members.joined([back, pieces[1]], record, GRID) is None


def test_an_attack_alone_has_no_members(results: Path) -> None:
    (answer,) = evaluate(
        "last", ["pgd"], eps=0.1, n=10, threads=1, settings={"": {"steps": 2}}, results_dir=results
    )
    assert answer.stored.result.members is None


MASKED = '''
import torch
from torch import nn


class Blind(torch.autograd.Function):
    """The image forwards; backwards waves that have nothing to do with it."""

    @staticmethod
    def forward(context, images):
        context.save_for_backward(images)
        return images.clone()

    @staticmethod
    def backward(context, gradient):
        return torch.sin(1000 * context.saved_tensors[0])


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.map = nn.Linear(64, 10)

    def forward(self, images):
        return self.map(Blind.apply(images).flatten(1))


def build():
    return Masked()
'''


def test_masked_gradients_show_in_what_only_square_breaks(tmp_path: Path) -> None:
    file = tmp_path / "masked.py"
    file.write_text(MASKED)
    few = {"n_queries": 300, "steps": 5}
    (answer,) = evaluate(
        f"{file}:build", ["autoattack"], dataset="digits", eps=[0.05], n=30, threads=1,
        subset="correct", settings={"": few}, results_dir=tmp_path,
    )  # fmt: skip
    result = answer.stored.result
    (check,) = [one for one in result.diagnostics if one.id == "D32"]
    found = left(result)
    assert check.value == pytest.approx(found["fab_t"][-1] - found["square"][-1])
    assert (check.severity, check.fired) == ("error", True)


def test_one_attack_has_no_members_to_compare(results: Path) -> None:
    (answer,) = evaluate("last", ["pgd"], eps=[0.1], n=20, threads=1, results_dir=results)
    (check,) = [one for one in answer.stored.result.diagnostics if one.id == "D32"]
    assert check.skipped == "no ensemble with members of both kinds"
