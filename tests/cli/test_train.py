"""`rrd train` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustbench_defenses.cli.main import main
from robustbench_defenses.cli.train import parse_seeds
from robustbench_defenses.core.errors import UserError

TINY = ["--dataset", "digits", "--preset", "smoke", "--limit-train", "256", "--threads", "1"]
TINY += ["--set", "model.width=4", "--set", "model.hidden=16"]
RRD = [sys.executable, "-m", "robustbench_defenses"]


def train(*arguments: str | Path) -> int:
    return main(["train", *map(str, arguments)])


def test_the_answer_names_the_run_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("nt", *TINY, "--results", tmp_path) == 0
    said = capsys.readouterr()
    (folder,) = (tmp_path / "runs").iterdir()
    assert said.out.startswith(folder.name)
    for part in ("lenet, ", "3 epochs", "best     epoch ", "held-out", str(folder)):
        assert part in said.out
    assert f"next  rrd eval {folder.name}" in said.err
    assert train("nt", *TINY, "--results", tmp_path, "--quiet") == 0
    again = capsys.readouterr()
    assert again.out == said.out
    assert "--fresh to train again" in again.err
    assert "next" not in again.err


def test_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("nt", *TINY, "--results", tmp_path, "--json") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads(capsys.readouterr().out) == {"run": folder.name, "path": str(folder)}


def test_several_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        train("nt", *TINY, "--results", tmp_path, "--seeds", "0-1,4", "--epochs", 1, "--json") == 0
    )
    document = json.loads(capsys.readouterr().out)
    seeds = [run["run"].split("-")[4] for run in document["runs"]]
    assert seeds == ["s0", "s1", "s4"]
    for run in document["runs"]:
        assert json.loads((Path(run["path"]) / "run.json").read_text())["epochs_done"] == 1


def test_settings_reach_training_defense_and_network(tmp_path: Path) -> None:
    chosen = ["--set", "learning-rate=0.01", "--set", "eps=8/255", "--set", "steps=2"]
    chosen += ["--batch-size", "32", "--epochs", "1", "--seed", "7"]
    assert train("pgd_at", *TINY, *chosen, "--results", tmp_path) == 0
    (path,) = (tmp_path / "runs").glob("*/run.json")
    said = json.loads(path.read_text())
    assert said["seed"] == 7
    assert said["settings"]["train"]["learning_rate"] == 0.01
    assert said["settings"]["train"]["batch_size"] == 32
    assert said["settings"]["train"]["limit_train"] == 256
    assert said["settings"]["defense"]["eps"] == 8 / 255
    assert said["settings"]["defense"]["steps"] == 2
    assert said["settings"]["model"] == {"width": 4, "hidden": 16}


VIEWING = """
from torch import nn

class Viewing(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.last = nn.Linear(36, classes)

    def forward(self, images):
        return self.last(self.features(images).view(-1, 36))
"""


@pytest.mark.parametrize("defense", ["nt", "pgd_at"])
def test_a_network_that_views_its_features(defense: str, tmp_path: Path) -> None:
    """`view` takes only one layout, and networks are trained and attacked in another."""
    (tmp_path / "net.py").write_text(VIEWING)
    chosen = ["--dataset", "digits", "--model", f"{tmp_path}/net.py:Viewing", "--preset", "smoke"]
    chosen += ["--epochs", "1", "--threads", "1", "--quiet", "--results", str(tmp_path / "results")]
    assert main(["train", defense, *chosen]) == 0
    told = ["-n", "20", "--attack", "pgd,fab_t", "--eps", "0.1", "--budget", "quick", "--quiet"]
    assert main(["eval", "last", *told, "--results", str(tmp_path / "results")]) == 0


WRITING = (
    VIEWING.replace(
        "self.features(images).view(-1, 36)", "self.masked(self.features(images)).flatten(1)"
    )
    + """
    def masked(self, values):
        values.view(len(values), -1)[:, ::2] *= -1
        return values
"""
)


def test_a_network_that_writes_through_a_view_is_trained_as_it_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a view is a copy, what is written is lost, and another network would be trained."""
    (tmp_path / "net.py").write_text(WRITING)
    chosen = ["--dataset", "digits", "--model", f"{tmp_path}/net.py:Viewing", "--preset", "smoke"]
    chosen += ["--threads", "1", "--quiet", "--results", str(tmp_path / "results")]
    assert main(["train", "nt", *chosen, "--epochs", "20"]) == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    best = json.loads((folder / "run.json").read_text())["best"]
    capsys.readouterr()
    told = ["-n", "all", "--attack", "fgsm", "--eps", "0.1", "--json"]
    assert main(["eval", "last", *told, "--results", str(tmp_path / "results")]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["results"]
    assert best["value"] > 0.6
    assert answer["clean_accuracy"] == pytest.approx(best["value"], abs=0.1)


def test_a_network_that_no_evaluation_could_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its view fails in the default layout, though training in channels-last could help it."""
    (tmp_path / "net.py").write_text(VIEWING.replace(".view(", ".transpose(1, 3).view("))
    chosen = ["--dataset", "digits", "--model", f"{tmp_path}/net.py:Viewing", "--preset", "smoke"]
    assert main(["train", "nt", *chosen, "--results", str(tmp_path / "results")]) == 2
    assert "fails on images (1, 8, 8): view size is not compatible" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ntt", "--dataset", "digits"], "unknown defense 'ntt'"),
        (["nt"], "needs --dataset"),
        (["nt", "--dataset", "digitz"], "unknown dataset 'digitz'"),
        (["nt", "--dataset", "digits", "--model", "lenot"], "unknown model 'lenot'"),
        (["nt", "--dataset", "digits", "--preset", "quik"], "unknown preset 'quik'"),
        (["nt", "--dataset", "digits", "--variant", "code"], "nt has no variant 'code'"),
        (["nt", "--dataset", "digits", "--set", "epochs"], "has no value"),
        (["nt", "--dataset", "digits", "--set", "epohcs=3"], "nt has no setting 'epohcs'"),
        (["nt", "--dataset", "digits", "--epochs", "0"], "epochs = 0"),
        (["nt", "--dataset", "digits", "--epochs", "x"], "--epochs"),
        (["nt", "--dataset", "digits", "--limit-train", "0"], "--limit-train"),
        (["nt", "--dataset", "digits", "--batch-size", "0"], "--batch-size 0"),
        (["nt", "--dataset", "digits", "--seed", "-1"], "--seed"),
        (["nt", "--dataset", "digits", "--seeds", "2-0"], "--seeds"),
        (["pgd_at", "--dataset", "digits", "--set", "eps=9/0"], "eps=9/0"),
        (["pgd_at", "--dataset", "digits", "--set", "eps=8"], "8/255"),
        (["nt", "--dataset", "digits", "--device", "tpu"], "tpu"),
        (["nt", "--dataset", "digits", "--precision", "fp64"], "fp64"),
        (["nt", "--dataset", "digits", "--threads", "0"], "--threads"),
        (["nt.py:NT", "--dataset", "digits"], "nt.py"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_results_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert train("nt", *TINY, "--results", tmp_path / "results") == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_results_path_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").write_text("")
    assert train("nt", *TINY, "--results", tmp_path / "results") == 2
    assert "cannot write" in capsys.readouterr().err


def test_seeds_are_read() -> None:
    assert parse_seeds("0-2") == [0, 1, 2]
    assert parse_seeds("7, 3,3") == [3, 7]
    for bad in ("", "a", "1-", "-1", "2-1", "0-5000"):
        with pytest.raises(UserError):
            parse_seeds(bad)


LONG = ["train", "nt", *TINY, "--set", "save_every=100000"]


def start(results: Path, epochs: int) -> subprocess.Popen[str]:
    """A training in a process of its own, once its first epoch is logged."""
    process = subprocess.Popen(
        [*RRD, *LONG, "--epochs", str(epochs), "--results", str(results)],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not list(results.glob("runs/*/log.jsonl")):
        time.sleep(0.01)
    return process


def weights_of(results: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in results.glob("runs/*/weights/*")}


def test_sigkill_of_the_real_command(tmp_path: Path) -> None:
    process = start(tmp_path / "a", 30)
    process.kill()
    process.wait()
    for name in ("a", "b"):
        assert main([*LONG, "--epochs", "30", "--results", str(tmp_path / name)]) == 0
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert set(weights_of(tmp_path / "b")) == {"best.safetensors", "last.safetensors"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_of_the_real_command(number: int, tmp_path: Path) -> None:
    process = start(tmp_path, 20000)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert list(tmp_path.glob("runs/*/resume/*"))
