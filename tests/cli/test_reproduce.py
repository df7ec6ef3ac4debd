"""`rrd reproduce` from the outside: the smoke preset whole, bad input, kills, failures."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from robustbench_defenses.cli.main import main
from robustbench_defenses.report import item as items
from robustbench_defenses.reproduce import recipe as recipes

SOME = ["aicr/table6", "--preset", "smoke", "--only", "defense=nt,pcl",
        "--only", "attack=none,fgsm,pgd_linf"]  # fmt: skip


def _cells(folder: Path, item: str = "aicr/table6") -> dict[str, Any]:
    stored = items.load(items.folder(folder, item, "smoke") / "result.json")
    return {
        json.dumps(cell.keys): None
        if cell.ours is None
        else (cell.ours.value, cell.ours.low, cell.ours.high, cell.ours.n)
        for cell in stored.cells
    }


@pytest.mark.slow
def test_every_item_of_aicr_at_smoke_with_strong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        [
            "reproduce",
            "aicr",
            "--preset",
            "smoke",
            "--strong",
            "--results",
            str(tmp_path),
            "--quiet",
        ]
    )
    shown = capsys.readouterr()
    assert code == 0, shown.err
    for recipe in recipes.named("aicr"):
        folder = items.folder(tmp_path, recipe.id, "smoke")
        assert {"result.json", "table.md", "table.csv", "table.tex"} <= {
            path.name for path in folder.iterdir()
        }
        item = items.load(folder / "result.json")
        assert item.agreement.measured == item.agreement.printed
        assert all(cell.ours is not None for cell in item.cells)
        assert set(item.stand_ins.values()) == {"digits"}
        for cell in item.strong():
            assert cell.ours is not None
            plain = [
                other.ours.value
                for other in item.headline()
                if other.ours is not None
                and other.keys.get("eps") == cell.keys.get("eps")
                and all(other.keys.get(k) == cell.keys.get(k) for k in ("dataset", "defense"))
            ]
            # 40 of the 100 images: a worst case is lower, up to what the images themselves differ.
            assert cell.ours.value <= max(plain) + 15
        for name in (path for cell in item.cells if cell.ours for path in cell.ours.results):
            assert (tmp_path / name).is_file()
        assert f"{recipe.id} · smoke" in shown.out


def test_the_same_again_is_answered_from_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", *SOME, "--results", str(tmp_path), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    weights = sorted((tmp_path / "runs").glob("*/weights/*"))
    stamps = [path.stat().st_mtime_ns for path in weights]
    assert main(command) == 0
    second = json.loads(capsys.readouterr().out)
    assert first["items"][0]["cells"] == second["items"][0]["cells"]
    assert first["items"][0]["made"] == second["items"][0]["made"]
    assert stamps == [path.stat().st_mtime_ns for path in weights]
    assert first["failed"] == []


def test_cells_measured_before_stay_in_the_item(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["reproduce", "aicr/table6", "--preset", "smoke", "--results", str(tmp_path), "--quiet"]
    assert main([*base, "--only", "defense=nt", "--only", "attack=fgsm"]) == 0
    before = {k: v for k, v in _cells(tmp_path).items() if v is not None}
    assert len(before) == 2
    assert main([*base, "--only", "defense=nt", "--only", "attack=none"]) == 0
    after = {k: v for k, v in _cells(tmp_path).items() if v is not None}
    assert before.items() <= after.items()
    assert len(after) == 3
    capsys.readouterr()


def test_children_give_what_one_process_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["reproduce", *SOME, "--results", str(one), "--quiet", "--threads", "1"]) == 0
    code = main(
        ["reproduce", *SOME, "--results", str(two), "--quiet", "--threads", "1", "--jobs", "2"]
    )
    assert code == 0, capsys.readouterr().err
    assert _cells(one) == _cells(two)


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_results(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def start(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "robustbench_defenses", "reproduce", *SOME, "--results",
             str(folder), "--quiet", "--threads", "1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    begun = time.monotonic()
    assert start(whole).wait(600) == 0
    took = time.monotonic() - begun
    files = len(list(whole.rglob("*")))
    moments = random.Random(0)
    killed = 0
    for _ in range(30):
        # A moment is so much progress and a little more: how fast the machine is plays no part.
        progress, more = moments.randrange(1, files), moments.uniform(0, 0.1) * took
        child = start(broken)
        while child.poll() is None and len(list(broken.rglob("*"))) < progress:
            time.sleep(0.01)
        try:
            child.wait(more)
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            killed += 1
            if killed == 10:
                break
        else:
            assert child.returncode == 0
            assert _cells(whole) == _cells(broken)
            shutil.rmtree(broken)
    assert killed == 10
    assert start(broken).wait(600) == 0
    assert _cells(whole) == _cells(broken)
    assert not list(broken.rglob("*.tmp*"))


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    assert main(["reproduce", *SOME, "--results", str(results), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not results.exists()
    assert "train digits-lenet-nt-smoke-s0-" in shown
    assert "to do" in shown


def test_a_dry_run_in_json_is_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert main(["reproduce", *SOME, "--results", str(results), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {job["kind"] for job in plan["jobs"]} == {"train", "eval"}
    assert all(job["state"] == "to do" and job["seconds"] > 0 for job in plan["jobs"])
    assert plan["seconds"] == pytest.approx(sum(job["seconds"] for job in plan["jobs"]))
    assert plan["cells"]["selected"] == 10
    assert not results.exists()


def test_a_dry_run_counts_the_answers_that_the_run_would_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same attack on the same network under another seed, precision, sweep, ... none."""
    where = ["--results", str(tmp_path)]
    base = ["reproduce", "aicr/table6", "--preset", "smoke", "--only", "defense=nt", *where]
    wanted = [*base, "--only", "attack=fgsm"]
    measured = [*base, "--only", "attack=none"]

    def standing(command: list[str]) -> dict[str, Any]:
        assert main([*command, "--dry-run", "--json"]) == 0
        return {job["kind"]: job for job in json.loads(capsys.readouterr().out)["jobs"]}

    assert main([*measured, "--quiet"]) == 0
    capsys.readouterr()
    assert {job["state"] for job in standing(measured).values()} == {"done"}
    assert {job["state"] for job in standing([*measured, "--fresh"]).values()} == {"to do"}
    (run,) = [path.name for path in (tmp_path / "runs").iterdir()]
    asked = ["eval", run, "--attack", "fgsm", "--quiet", *where]
    independent = ["--sweep", "independent"]
    used = [*independent, "-n", "100"]
    cells = recipes.named("aicr/table6")[0].cells()
    budgets = sorted({str(cell.keys["eps"]) for cell in cells if cell.keys["attack"] == "fgsm"})
    for eps in budgets:
        for other in (
            [*used, "--seed", "7"],
            [*used, "--precision", "fp32"],
            [*used, "--set", "random_start=true"],
            [*used, "--subset", "random:1"],
            [*independent, "-n", "90"],
            ["-n", "100"],
        ):
            assert main([*asked, *other, "--eps", eps]) == 0
    capsys.readouterr()
    found = standing(wanted)["eval"]
    assert (found["state"], found["done"], found["of"]) == ("to do", 0, len(budgets))
    for eps in budgets:
        assert main([*asked, *used, "--eps", eps]) == 0
    capsys.readouterr()
    assert standing(wanted)["eval"]["state"] == "done"


def test_a_dry_run_knows_answers_under_deployment_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their folder's name cannot hold the signs of the subject's."""
    command = ["reproduce", "aicr/table6", "--preset", "smoke", "--only", "defense=aicr", "--only",
               "attack=none", "--only", "arm=nearest_centre", "--results",
               str(tmp_path)]  # fmt: skip
    assert main([*command, "--quiet"]) == 0
    capsys.readouterr()
    assert main([*command, "--dry-run", "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert {job["state"] for job in jobs} == {"done"}


def test_precision_seed_and_batch_size_reach_the_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "aicr/table6", "--preset", "smoke", "--only", "defense=nt",
               "--only", "attack=pgd_linf", "--results", str(tmp_path), "--json",
               "--precision", "fp32", "--seed", "3", "--batch-size", "50"]  # fmt: skip
    assert main(command) == 0
    item = json.loads(capsys.readouterr().out)["items"][0]
    assert [run["seed"] for run in item["runs"]] == [3]
    (name, *_) = next(cell["ours"]["results"] for cell in item["cells"] if cell["ours"])
    stored = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    assert stored["environment"]["precision"] == "fp32"
    assert main([*command, "--batch-size", "0"]) == 2


def _pcl_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_defenses.core.errors import UserError
    from robustbench_defenses.reproduce import jobs

    original = jobs._train

    def train(training: Any, place: Any, progress: Any) -> str:
        if training.defense.startswith("pcl"):
            raise UserError("training diverged")
        return original(training, place, progress)

    monkeypatch.setattr(jobs, "_train", train)


def _item(folder: Path) -> items.Item:
    return items.load(items.folder(folder, "aicr/table6", "smoke") / "result.json")


def test_an_earlier_number_does_not_hide_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["reproduce", *SOME, "--results", str(tmp_path)]
    assert main(base) == 0
    first = _item(tmp_path)
    _pcl_diverges(monkeypatch)
    assert main([*base, "--fresh"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    second = _item(tmp_path)
    pcl = [cell for cell in second.cells if cell.keys["defense"] == "pcl" and cell.ours]
    assert {cell.status for cell in pcl} == {"failed"}
    assert f"{len(pcl)} cells failed this time and show an earlier number" in shown
    assert {cell.ours.date for cell in pcl if cell.ours} == {first.environment.date}
    assert [made.cells for made in second.made] == [10]  # nt came out as before


def test_what_is_printed_is_taken_from_the_recipe_of_today(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["reproduce", "aicr/table6", "--preset", "smoke", "--results", str(tmp_path), "--quiet"]
    assert main([*base, "--only", "defense=nt", "--only", "attack=fgsm", "--strong"]) == 0
    path = items.folder(tmp_path, "aicr/table6", "smoke") / "result.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    at = next(i for i, cell in enumerate(stored["cells"]) if cell["ours"])
    stored["cells"][at]["printed"] = 12.3
    gone = {**stored["cells"][at], "keys": {**stored["cells"][at]["keys"], "attack": "other"}}
    stored["cells"].append(gone)
    path.write_text(json.dumps(stored), encoding="utf-8")
    time.sleep(1.1)  # commands are told apart by their second
    assert main([*base, "--only", "defense=nt", "--only", "attack=none"]) == 0
    again = _item(tmp_path)
    assert 12.3 not in [cell.printed for cell in again.cells]
    assert "other" not in {cell.keys["attack"] for cell in again.cells}
    assert sum(cell.ours is not None for cell in again.strong()) == 2  # kept, not asked for
    assert again.cells[at].ours is not None
    assert [made.cells for made in again.made] == [4, 1]


def test_a_damaged_item_is_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["reproduce", "aicr/table6", "--preset", "smoke", "--results", str(tmp_path), "--quiet",
            "--only", "defense=nt", "--only", "attack=none"]  # fmt: skip
    assert main(base) == 0
    path = items.folder(tmp_path, "aicr/table6", "smoke") / "result.json"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    assert main(base) == 0
    assert "it is now result.damaged" in capsys.readouterr().err
    assert path.with_suffix(".damaged").is_file()
    assert _cells(tmp_path)


def test_a_failed_job_is_told_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pcl_diverges(monkeypatch)
    assert main(["reproduce", *SOME, "--results", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "failed: train digits-lenet-pcl_at_fgsm" in shown.err
    assert "training diverged" in shown.err
    found = [value for value in _cells(tmp_path).values() if value is not None]
    assert len(found) == 5  # those of nt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aicr/table9"], "there is no recipe"),
        (["aicr/table6", "--preset", "big"], "unknown preset"),
        (["aicr/table6", "--only", "defense"], "cannot be read"),
        (["aicr/table6", "--only", "defense=nothing"], "no cell has that value"),
        (["aicr/table6", "--only", "colour=red"], "no cell has a colour"),
        (["aicr/table5", "--preset", "quick"], "nothing of aicr/table5 can be measured here"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    code = main(
        ["reproduce", *arguments, "--results", str(results), "--data", str(tmp_path / "none")]
    )
    assert code == 2
    assert message in capsys.readouterr().err
    assert not results.exists()
