"""Which results an argument means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation.store import StoredResult
from robustbench_defenses.report.select import select
from tests.evaluation import builders


@pytest.fixture
def stored(tmp_path: Path) -> list[StoredResult]:
    return [
        *builders.three_defenses(tmp_path),
        builders.stored(tmp_path, defense="nt", attack="square"),
    ]


def _silent(text: str) -> None:
    raise AssertionError(text)


def _names(found: list[StoredResult]) -> list[tuple[str | None, str]]:
    return sorted((e.result.subject.defense, e.result.attack.name) for e in found)


NT = [("nt", "pgd_linf"), ("nt", "square")]


def test_nothing_means_everything(stored: list[StoredResult], tmp_path: Path) -> None:
    assert len(select([], tmp_path, _silent)) == 4


def test_subjects_by_id_beginning_and_last(stored: list[StoredResult], tmp_path: Path) -> None:
    whole = stored[0].result.subject.id
    assert _names(select([whole], tmp_path, _silent)) == NT
    assert _names(select(["digits-lenet-nt"], tmp_path, _silent)) == NT
    os.utime(stored[1].path, ns=(1 << 62, 1 << 62))
    assert _names(select(["last"], tmp_path, _silent)) == [("pgd_at", "pgd_linf")]


def test_subjects_by_name(tmp_path: Path) -> None:
    changes = {"id": "net-build-1f3c", "name": "net.py:build", "kind": "file"}
    builders.stored(tmp_path, subject_changes=changes)
    (found,) = select(["net.py:build"], tmp_path, _silent)
    assert found.result.subject.id == "net-build-1f3c"


def test_files_folders_and_runs(stored: list[StoredResult], tmp_path: Path) -> None:
    nowhere = tmp_path / "elsewhere"
    assert select([str(stored[1].path)], nowhere, _silent) == [stored[1]]
    assert select([str(stored[1].record_path)], nowhere, _silent) == [stored[1]]
    folder = str(stored[0].path.parent)
    assert _names(select([folder], nowhere, _silent)) == NT
    assert len(select([str(tmp_path)], nowhere, _silent)) == 4
    run = tmp_path / "runs" / stored[0].result.subject.id
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    assert _names(select([str(run)], tmp_path, _silent)) == NT
    # The folder of runs holds JSON of another kind: what has a record beside it counts.
    assert len(select([str(tmp_path)], nowhere, _silent)) == 4


def test_each_result_once(stored: list[StoredResult], tmp_path: Path) -> None:
    arguments = [str(stored[0].path), "digits-lenet-nt", str(tmp_path)]
    assert len(select(arguments, tmp_path, _silent)) == 4


@pytest.mark.parametrize(
    ("argument", "message", "hint"),
    [
        ("digits-lenet-ntt", "no results of 'digits-lenet-ntt'", "digits-lenet-nt-smoke"),
        ("digits", "'digits' is the beginning of 3 subjects", "digits-lenet-aicr"),
        ("absent.json", "there is no file absent.json", "rrd list results"),
    ],
)
def test_what_is_not_there_is_named(
    stored: list[StoredResult], tmp_path: Path, argument: str, message: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        select([argument], tmp_path, _silent)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_empty_places_say_so(tmp_path: Path) -> None:
    for arguments in ([], ["last"], [str(tmp_path)]):
        with pytest.raises(UserError, match="no results in"):
            select(arguments, tmp_path, _silent)


def test_a_damaged_file_is_fatal_only_when_named(
    stored: list[StoredResult], tmp_path: Path
) -> None:
    stored[0].path.write_text('{"schema": "rrd.result/1"')
    warnings: list[str] = []
    assert len(select([], tmp_path, warnings.append)) == 3
    assert len(warnings) == 1
    with pytest.raises(UserError, match="not valid JSON"):
        select([str(stored[0].path)], tmp_path, warnings.append)
