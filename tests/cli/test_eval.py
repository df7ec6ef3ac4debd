"""`rrd eval` as a user runs it: stdout is the answer, stderr the rest, the store is asked first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_defenses.cli.main import main

from . import subjects

SMALL = ["--threads", "1", "-n", "40"]
Ask = Callable[..., Any]


@pytest.fixture
def ask(results: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs `rrd eval` on a copy of the shared run and returns the exit code."""
    monkeypatch.chdir(results.parent)
    monkeypatch.delenv("RRD_RESULTS", raising=False)

    def run(*arguments: str) -> int:
        return main(["eval", *arguments, *SMALL])

    return run


def document(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["results"]
    results: list[dict[str, Any]] = found["results"]
    return results


def stored(results: Path) -> list[Path]:
    return sorted(results.glob("evals/*/*.json"))


def test_the_answer_is_a_table(ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--eps", "0.1,0.2") == 0
    said = capsys.readouterr()
    (path,) = stored(results)
    for part in ("pgd_linf", "0.1", "0.2", "n = 40", "nt", "digits", "Linf"):
        assert part in said.out
    assert f"stored {path.relative_to(results.parent)}" in said.err
    assert "stored" not in said.out


def test_asked_again_it_answers_from_the_store(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("--eps", "0.1") == 0
    first = capsys.readouterr()
    (path,) = stored(results)
    written = path.stat().st_mtime_ns
    assert ask("--eps", "0.1") == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "ago; --fresh to ask again" in again.err
    assert path.stat().st_mtime_ns == written
    assert ask("--eps", "0.1", "--fresh") == 0
    assert "ago" not in capsys.readouterr().err
    assert stored(results) == [path]
    assert path.stat().st_mtime_ns > written


def test_json_is_the_stored_file_and_its_paths(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("last", "--attack", "pgd,fgsm", "--eps", "0.1", "--json") == 0
    found = document(capsys)
    assert {one["attack"]["name"] for one in found} == {"fgsm_linf", "pgd_linf"}
    for one in found:
        path, record = Path(one.pop("path")), Path(one.pop("record"))
        assert one == json.loads(path.read_text())
        assert record == path.with_suffix(".npz")
        with np.load(record) as arrays:
            assert set(arrays.files) == {
                *("index", "label", "clean_prediction", "distance", "budget", "queries")
            }
    assert len(stored(results)) == 2


def test_quiet_leaves_only_the_answer(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--eps", "0.1", "--quiet") == 0
    said = capsys.readouterr()
    assert "pgd_linf" in said.out
    assert said.err == ""


def test_the_published_grid(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    from robustbench_defenses.data.source import describe

    for arguments in ([], ["--eps-sweep"], ["--eps-sweep", "--attack", "pgd_linf"]):
        assert ask(*arguments, "--set", "steps=2", "--json") == 0
        (one,) = document(capsys)
        assert [point["eps"] for point in one["curve"]] == describe("digits").grids["linf"]
    assert ask("--norm", "l2", "--set", "steps=2", "--json") == 0
    (one,) = document(capsys)
    assert one["attack"]["name"] == "pgd_l2"
    assert [point["eps"] for point in one["curve"]] == describe("digits").grids["l2"]


@pytest.mark.parametrize(
    ("arguments", "norm"),
    [
        (["--attack", "pgd_l2"], "l2"),
        (["--attack", "pgd", "--norm", "l2"], "l2"),
        (["--attack", "pgd", "--set", "norm=l2"], "l2"),
        (["--attack", "pgd_l1"], "l1"),
    ],
)
def test_large_eps_are_fine_in_other_norms(
    arguments: list[str], norm: str, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(*arguments, "--eps", "0.5:1.5:0.5", "--set", "steps=2", "--json") == 0
    (one,) = document(capsys)
    assert one["attack"]["norm"] == norm
    assert [point["eps"] for point in one["curve"]] == [0.5, 1.0, 1.5]


def test_settings_of_one_attack_and_of_all(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    some = ["--set", "pgd_linf.steps=3", "--set", "bim.steps=2", "--set", "loss=margin"]
    assert ask("--attack", "pgd,bim", "--eps", "8/255", *some, "--json") == 0
    found = {one["attack"]["name"]: one["attack"]["parameters"] for one in document(capsys)}
    assert found["pgd_linf"]["steps"] == 3
    assert found["bim_linf"]["steps"] == 2
    assert {one["loss"] for one in found.values()} == {"margin"}


def test_several_subjects_each_once(
    ask: Ask, results: Path, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (results.parent / "net.py").write_text(subjects.GOOD)
    assert ask(run_id, "last", f"{run_id}@last", run_id, "--eps", "0.1", "--json") == 0
    found = document(capsys)
    assert [one["subject"]["id"] for one in found] == [run_id, run_id, f"{run_id}@last"]
    assert found[0] == found[1]
    assert len(stored(results)) == 2


def test_a_bad_subject_stops_before_the_first_is_attacked(ask: Ask, results: Path) -> None:
    assert ask("last", "nobody", "--eps", "0.1") == 2
    assert stored(results) == []


def test_a_subject_that_prints(ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results.parent / "net.py").write_text(subjects.GOOD)
    np.savez(results.parent / "set.npz", **subjects.images(40))  # type: ignore[arg-type]
    arguments = ["net.py:speaks", "--dataset", "npz:set.npz", "--eps", "0.1"]
    assert ask(*arguments, "--json") == 0
    said = capsys.readouterr()
    (one,) = json.loads(said.out)["results"]
    assert one["clean_accuracy"] == 1.0
    assert "the factory speaks" in said.err
    assert "the network speaks" in said.err


def test_a_run_on_other_files_of_its_shape(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(results.parent / "set.npz", **subjects.images(40))  # type: ignore[arg-type]
    assert ask("--dataset", "npz:set.npz", "--eps", "0.1", "--json") == 0
    (one,) = document(capsys)
    assert one["dataset"]["name"] == "npz:set.npz"
    assert one["n"] == 40
    assert ask("--dataset", "Digits", "--eps", "0.1", "--json") == 0
    (one,) = document(capsys)
    assert one["dataset"]["name"] == "digits"


def test_read_only_results_still_answer_from_the_store(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_defenses.core.errors import UserError
    from robustbench_defenses.evaluation import evaluate

    def refuse(folder: Path) -> None:
        raise UserError(f"cannot write to {folder}")

    assert ask("--eps", "0.1") == 0
    monkeypatch.setattr(evaluate, "check_writable", refuse)
    assert ask("--eps", "0.1") == 0
    assert ask("--eps", "0.2") == 2
    assert "cannot write to results" in capsys.readouterr().err


def test_a_damaged_record_is_named_and_fresh_mends_it(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("--eps", "0.1") == 0
    (path,) = stored(results)
    record = path.with_suffix(".npz")
    whole = record.read_bytes()
    record.write_bytes(whole[:200])
    capsys.readouterr()
    assert ask("--eps", "0.1") == 2
    said = capsys.readouterr()
    assert f"{record.name} is damaged" in said.err
    assert "--fresh" in said.err
    assert ask("--eps", "0.1", "--fresh") == 0
    assert record.read_bytes() == whole
