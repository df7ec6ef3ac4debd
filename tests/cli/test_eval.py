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


def test_a_library_may_answer(ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--eps", "0.1", "--set", "steps=4"]
    assert ask("--backend", "foolbox", *few) == 0
    said = capsys.readouterr()
    assert "pgd_linf (foolbox)" in said.out
    assert "judges the last iterate alone" in said.out
    assert ask("--backend", "foolbox", *few, "--json") == 0
    (one,) = document(capsys)
    assert one["attack"]["backend"] == "foolbox"
    assert ask(*few, "--json") == 0
    (one,) = document(capsys)
    assert one["attack"]["backend"] == "native"
    assert len(stored(results)) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attack", "square", "--backend", "foolbox"], "foolbox has no attack that does what"),
        (["--backend", "foolbox", "--set", "loss=dlr"], "foolbox takes only loss=ce here"),
        (["--backend", "advertorch"], "unknown backend 'advertorch'"),
    ],
)
def test_what_a_library_cannot_do_is_one_sentence(
    arguments: list[str], said: str, ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(*arguments, "--eps", "0.1") == 2
    assert said in capsys.readouterr().err
    assert stored(results) == []


def test_all_attacks_of_a_library(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--norm", "l2", "--eps", "0.5", "--set", "steps=2", "-n", "10"]
    assert ask("--attack", "all", "--backend", "foolbox", *few, "--json") == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert {one["attack"]["backend"] for one in found} == {"foolbox"}
    names = {one["attack"]["name"] for one in found}
    assert {"pgd_l2", "ddn", "fmn_l2"} <= names
    assert not any(name.startswith(("apgd", "square", "fab")) for name in names)


def test_minimum_norm_attacks_are_scored_against_each_other(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ["--attack", "ddn,deepfool", "--set", "ddn.steps=10"]
    assert ask(*some, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    scores = {one["attack"]: one["optimality"] for one in found["optimality"]}
    assert scores.keys() == {"ddn", "deepfool_l2"}
    assert all(0 < score <= 1 for score in scores.values())
    assert {one["key"] for one in found["optimality"]} == {one["key"] for one in found["results"]}
    assert not any("optimality" in one for one in found["results"])
    assert ask(*some, "--eps", "1") == 0
    shown = capsys.readouterr().out
    assert "optimality" in shown
    assert ask("--attack", "ddn", "--set", "steps=10", "--json") == 0
    assert len(document(capsys)) == 1


def test_minimum_norm_attacks_need_no_eps(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the data set has no published grid."""
    np.savez(results.parent / "set.npz", **subjects.images(40))  # type: ignore[arg-type]
    few = ["--attack", "ddn", "--set", "steps=10", "--dataset", "npz:set.npz"]
    assert ask(*few, "--json") == 0
    (one,) = document(capsys)
    assert one["curve"] == []
    assert one["auc"] is None
    assert one["unbounded_accuracy"] is not None
    assert ask(*few) == 0
    assert "any" in capsys.readouterr().out


def test_an_ensemble_at_no_budget_is_the_clean_accuracy(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("--attack", "autoattack", "--eps", "0", "--json") == 0
    (one,) = document(capsys)
    assert one["curve"][0]["robust_accuracy"] == one["clean_accuracy"]
    assert one["cost"]["forward_passes"] == 40


@pytest.mark.parametrize("attack", ["fgsm", "ddn", "autoattack"])
def test_the_table_at_eps_zero_shows_the_clean_accuracy(
    ask: Ask, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    assert ask("--attack", attack, "--eps", "0", "--json") == 0
    (one,) = document(capsys)
    assert ask("--attack", attack, "--eps", "0", "--quiet") == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[0].startswith(attack)
    assert row[1:4] == ["0", f"{100 * one['clean_accuracy']:.1f}", "%"]


@pytest.mark.parametrize("attack", ["ddn", "cw", "deepfool", "pgd_l1,ddn"])
def test_the_norm_of_an_attack_decides_what_a_budget_may_be(
    ask: Ask, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    """Budgets above 1 are for L2 and L1, whether or not the attack's name says its norm."""
    few = ["--set", "cw.steps=3"] if attack == "cw" else []
    assert ask("--attack", attack, "--eps", "1.5", "--json", *few) == 0
    assert all(one["curve"][0]["eps"] == 1.5 for one in document(capsys))
    assert ask("--attack", "fmn", "--eps", "1.5") == 2
    assert "larger than the pixel range" in capsys.readouterr().err


def test_a_time_limit_cuts_a_transfer(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--source", "last", "--eps", "0.1,0.2", "--batch-size", "8"]
    assert ask(*source, "--time-limit", "0.00001") == 1
    assert "time limit" in capsys.readouterr().err
    assert stored(results) == []
    assert ask(*source) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--eps", "0"], "needs a budget above 0"),
        (["--eps", "0.1", "--targeted"], "it has no --targeted"),
        (["--eps", "0.1", "--source", "last"], "it has no --source"),
    ],
)
def test_what_cannot_be_diagnosed_is_told_before_the_attack(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert ask(*options, "--diagnose") == 2
    assert said in capsys.readouterr().err
    assert stored(results) == []


def test_an_ensemble_shows_its_members(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--attack", "autoattack", "--set", "steps=4", "--set", "n_queries=20"]
    for eps in ("0.1", "0.1,0.2"):
        assert ask(*few, "--eps", eps) == 0
        shown = capsys.readouterr().out.splitlines()
        at = next(i for i, line in enumerate(shown) if "autoattack_linf" in line)
        names = [line.split()[0] for line in shown[at + 1 : at + 5]]
        assert names == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert ask(*few, "--eps", "0.1,0.2", "--json") == 0
    (one,) = document(capsys)
    left = [point["robust_accuracy"] for point in one["curve"]]
    assert one["members"][-1]["robust_accuracy"] == left


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


def test_all_ends_in_a_worst_case(
    ask: Ask, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--attack", "all", "--eps", "0.2", "-n", "15", "--set", "steps=3"]
    arguments = [*few, "--set", "square.n_queries=5"]
    assert main(["eval", *arguments, "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    names = [one["attack"]["name"] for one in found]
    assert names[0] == "fgsm_linf"
    assert {"pgd_linf", "square_linf", "deepfool_linf"} <= set(names)
    assert len(names) == len(set(names)) == len(stored(results))
    given = {one["attack"]["name"]: one["attack"]["parameters"] for one in found}
    assert given["pgd_linf"]["steps"] == 3
    assert given["square_linf"]["n_queries"] == 5
    assert given["fab_t_linf"]["targets"] == 3  # quick
    distances = []
    for one in found:
        with np.load(one["record"]) as record:
            distances.append(record["distance"])
    least = min(int((distance > 0.2000003).sum()) for distance in distances)
    worst = int((np.minimum.reduce(distances) > 0.2000003).sum())
    assert worst <= least
    for columns in ("80", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["eval", *arguments, "--threads", "1"]) == 0
        rows = capsys.readouterr().out.splitlines()
        assert max(map(len, rows)) <= int(columns)
        lines = [row for row in rows if " 0.2 " in row]
        assert lines[-1].split()[:2] == ["worst", "case"]
        assert f" {100 * worst / 15:.1f} %" in lines[-1]


def test_a_long_run_is_announced(
    ask: Ask, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_defenses.cli import eval as command

    monkeypatch.setattr(command, "LONG", 3000)
    assert ask("--attack", "pgd", "--eps", "0.1", "--set", "steps=10") == 0
    assert "to run" not in capsys.readouterr().err
    assert ask("--attack", "pgd,bim", "--eps", "0.1,0.2", "--set", "pgd.steps=40") == 0
    said = capsys.readouterr().err
    # 40 images at 2 budgets, 40 and 10 steps
    assert "2 attacks to run, at most 0.0 million forward and 0.0 million backward passes" in said
    assert ask("--attack", "pgd,bim", "--eps", "0.1,0.2", "--set", "pgd.steps=40") == 0
    assert "to run" not in capsys.readouterr().err  # all of it is stored


def test_a_budget_of_named_attacks(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--eps", "0.2", "--set", "pgd.steps=2", "--json"]
    assert ask("--attack", "pgd,mim", "--budget", "standard", *few) == 0
    found = {one["attack"]["name"]: one for one in document(capsys)}
    assert found["pgd_linf"]["attack"]["parameters"]["restarts"] == 5
    assert found["pgd_linf"]["attack"]["parameters"]["steps"] == 2
    assert found["mim_linf"]["attack"]["parameters"]["steps"] == 40
    assert {one["n"] for one in found.values()} == {40}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attack", "pgd,pdg"], "unknown attack 'pdg'"),
        (["--attack", "pgd,ddn", "--norm", "linf"], "ddn works in l2, not in linf"),
        (["--attack", "all", "--budget", "fast"], "unknown budget 'fast'"),
        (["--attack", "all", "--set", "stepz=3"], "has a parameter 'stepz'"),
        (["--attack", "all", "--set", "ddn.steps=3"], "'ddn' is not among the attacks"),
        (["--attack", "pgd", "--sweep", "clipped"], "nothing that could be clipped"),
        (["--attack", "pgd", "--time-limit", "0"], "minutes above 0 are needed"),
        (["--attack", "all", "--eps", "8"], "larger than the pixel range"),
    ],
)
def test_bad_questions_stop_before_the_first_runs(
    arguments: list[str],
    said: str,
    ask: Ask,
    results: Path,
    run_id: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ask("last", f"{run_id}@last", *arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert stored(results) == []
