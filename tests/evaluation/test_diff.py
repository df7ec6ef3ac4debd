"""`diff`: pairs by question, exact tests, Holm's correction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from robustbench_defenses.cli.main import main
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation import store
from robustbench_defenses.evaluation.diff import Change, _corrected, diff, standing
from robustbench_defenses.evaluation.record import Record

from . import builders


def _store(folder: Path, record: Record, **changes: Any) -> Path:
    result = builders.result(record, **changes)
    return store.save(result, record, folder).path


def _weakened(record: Record, count: int) -> Record:
    """The first `count` standing examples break at once."""
    distance = record.distance.copy()
    distance[np.flatnonzero(distance > 0.3)[:count]] = 0.05
    return replace(record, distance=distance, budget=distance.copy())


def test_equal_results_do_not_differ(tmp_path: Path) -> None:
    record = builders.record()
    first = _store(tmp_path / "a", record)
    second = _store(tmp_path / "b", record)
    found = diff(first, second)
    assert not found.significant
    assert {change.p for change in found.changes} == {1.0}
    assert [change.eps for change in found.changes] == [0.0, *builders.GRID[1:]]


def test_a_loss_is_counted_example_by_example(tmp_path: Path) -> None:
    record = builders.record(scale=0.4)
    first = _store(tmp_path / "a", record)
    second = _store(tmp_path / "b", _weakened(record, 30))
    at = {change.eps: change for change in diff(first, second).changes}
    assert (at[0.3].only_first, at[0.3].only_second) == (30, 0)
    assert at[0.3].difference == pytest.approx(-30 / 360)
    wanted = stats.binomtest(0, 30).pvalue
    assert at[0.3].p == pytest.approx(wanted)
    assert at[0.3].significant
    assert not at[0.0].significant


def test_records_in_another_order_are_aligned(tmp_path: Path) -> None:
    record = builders.record()
    order = np.random.default_rng(3).permutation(len(record))
    turned = Record(*(getattr(record, name)[order] for name in (
        "index", "label", "clean_prediction", "distance", "budget", "queries")))  # fmt: skip
    first = _store(tmp_path / "a", record)
    second = _store(tmp_path / "b", turned)
    assert all(c.only_first == c.only_second == 0 for c in diff(first, second).changes)


def test_tables_are_compared_at_their_own_points() -> None:
    base, table = builders.record(), builders.table()
    for eps in builders.GRID[1:]:
        assert np.array_equal(standing(base, eps), standing(table, eps))


def test_two_folders_are_compared_question_by_question(tmp_path: Path) -> None:
    record = builders.record(scale=0.4)
    for folder, mine in (("a", record), ("b", _weakened(record, 30))):
        _store(tmp_path / folder, mine, subject=builders.subject("pgd_at"))
        _store(
            tmp_path / folder, record, subject=builders.subject("aicr", id="other", name="other")
        )
    _store(tmp_path / "b", record, subject=builders.subject("nt", id="third", name="third"))
    found = diff(tmp_path / "a", tmp_path / "b")
    assert {change.subject for change in found.significant} == {builders.subject("pgd_at").name}
    assert found.only_first == []
    assert len(found.only_second) == 1


def test_holm_is_that_of_the_textbook() -> None:
    def change(p: float) -> Change:
        return Change("a", "a", "pgd", 0.1, 10, 0.5, 0.5, 0, 0, p)

    found = [one.corrected for one in _corrected([change(p) for p in (0.04, 0.01, 0.03, 0.005)])]
    assert found == pytest.approx([0.06, 0.03, 0.06, 0.02])


def test_nothing_in_common_is_a_user_error(tmp_path: Path) -> None:
    first = _store(tmp_path / "a", builders.record())
    second = _store(tmp_path / "b", builders.record(n=100))
    with pytest.raises(UserError, match="no question in common"):
        diff(first, second)
    with pytest.raises(UserError, match="there is no result"):
        diff(first, tmp_path / "nothing")


def test_the_command_exits_with_1_on_a_significant_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = builders.record(scale=0.4)
    first = _store(tmp_path / "a", record)
    second = _store(tmp_path / "b", _weakened(record, 30))
    assert main(["diff", str(first), str(first)]) == 0
    assert "no example differs" in capsys.readouterr().out
    assert main(["diff", str(first), str(second)]) == 1
    assert "e-0" in (table := capsys.readouterr().out)
    assert " *" in table
    assert main(["diff", str(first), str(second), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["significant"] == sum(c["significant"] for c in document["changes"]) > 0
    assert main(["diff", str(first), str(tmp_path / "none")]) == 2


def test_budgets_in_files_of_their_own_are_all_compared(tmp_path: Path) -> None:
    """As `rrd reproduce` stores them: one result per eps, and newer ones on one side."""
    record = builders.record(scale=0.4)
    for folder, grid in (("a", (0.1, 0.2, 0.3)), ("b", (0.3, 0.2))):
        for at, eps in enumerate(grid):
            result = builders.result(record)
            point = next(point for point in result.curve if point.eps == eps)
            place = result.environment.model_copy(update={"date": f"2026-01-0{at + 1}T00:00:00"})
            single = result.model_copy(
                update={"curve": [point], "key": f"{at}" * 8, "environment": place}
            )
            store.save(single, record, tmp_path / folder)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert sorted(change.eps for change in found.changes if change.eps) == [0.2, 0.3]
    assert [text.rpartition(" ")[2] for text in found.only_first] == ["0.1"]
    assert found.only_second == []


def test_questions_of_one_attack_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    record = builders.record(scale=0.4)
    for folder in ("a", "b"):
        for steps in (10, 20):
            result = builders.result(record)
            attack = result.attack.model_copy(
                update={"parameters": {**result.attack.parameters, "steps": steps}}
            )
            changed = result.model_copy(update={"attack": attack, "key": f"{steps:08d}"})
            store.save(changed, record, tmp_path / folder)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert {change.settings for change in found.changes} == {"steps=10", "steps=20"}


def test_an_ambiguous_beginning_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = builders.record()
    for name in ("one-a", "one-b"):
        _store(tmp_path, record, subject=builders.subject("nt", id=name, name=name))
    assert main(["diff", "one", "one-a", "--results", str(tmp_path)]) == 2
    assert "is the beginning of 2 subjects" in capsys.readouterr().err
