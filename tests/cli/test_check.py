"""`rrd check`: what is stored holds, what was altered is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robustbench_defenses.cli.main import main
from robustbench_defenses.evaluation.record import Record

EPS = 0.1
FEW = ["--threads", "1", "--set", "steps=5", "--eps", f"0.05,{EPS}"]


@pytest.fixture(scope="module")
def asked(digits_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a run and one result of 100 examples; not to touch."""
    folder = tmp_path_factory.mktemp("check") / "results"
    shutil.copytree(digits_results, folder)
    assert main(["eval", "last", *FEW, "-n", "100", "--results", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(asked: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may alter."""
    return Path(shutil.copytree(asked, tmp_path / "results"))


def only(folder: Path, suffix: str = ".json") -> Path:
    (path,) = folder.glob(f"evals/*/*{suffix}")
    return path


def alter(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = only(folder, ".npz")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_stored_holds_and_is_left_alone(
    folder: Path, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(folder)
    assert main(["check", str(folder), "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert run_id in said.out
    assert "same" in said.out
    assert "1 hold" in said.err
    assert "smallest drop this could have seen: 1.0 points (n = 100)" in said.err
    assert content(folder) == before


def test_all_kinds_of_results_hold(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Targeted, independent, another norm, subset, checkpoint and data set are asked as stored."""
    with np.load(only(folder, ".npz")) as archive:
        labels = archive["label"][:40]
    pixels = np.random.default_rng(0).random((40, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "set.npz", images=pixels, labels=labels)
    common = ["--results", str(folder), "--threads", "1", "--set", "steps=3", "-n", "40"]
    for more in (
        ["--targeted", "--eps", "0.2"],
        ["--sweep", "independent", "--eps", "0.1,0.2", "--seed", "3"],
        ["--norm", "l2", "--eps", "1", "--subset", "random:1"],
        ["--eps", "0.1", "--subset", "correct"],
        ["--dataset", f"npz:{tmp_path / 'set.npz'}", "--eps", "0.1"],
    ):
        assert main(["eval", "last", *common, *more]) == 0
    assert main(["eval", "last@last", *common, "--eps", "0.1"]) == 0
    capsys.readouterr()
    assert main(["check", str(folder), "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is True
    assert len(found["checked"]) == 7
    assert all(one["holds"] and one["worse"] == one["better"] == [] for one in found["checked"])


def test_a_record_that_claims_more_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three examples that fell are stored as standing: the check finds exactly these."""
    with np.load(only(folder, ".npz")) as archive:
        fell = archive["index"][(archive["distance"] > 0.01) & (archive["distance"] <= EPS)]
    chosen = [int(i) for i in fell[:3]]

    def raise_accuracy(arrays: dict[str, np.ndarray]) -> None:
        rows = np.isin(arrays["index"], chosen)
        arrays["distance"][rows] = arrays["budget"][rows] = np.inf

    alter(folder, raise_accuracy)
    before = content(folder)
    assert main(["check", str(folder), "--threads", "1"]) == 1
    said = capsys.readouterr()
    assert "MOVED, 3 of 100" in said.out
    assert f"examples that no longer hold: {', '.join(map(str, chosen))}" in said.out
    assert "1 of 1 moved" in said.err
    assert content(folder) == before
    assert main(["check", str(folder), "--threads", "1", "--json"]) == 1
    (one,) = json.loads(capsys.readouterr().out)["checked"]
    assert one["worse"] == chosen
    assert one["better"] == []
    assert one["before"] - one["now"] == pytest.approx(0.03)


def test_a_result_that_claims_more_than_its_record_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = only(folder)
    document = json.loads(path.read_text())
    true = document["curve"][-1]["robust_accuracy"]
    document["curve"][-1]["robust_accuracy"] = true + 0.02
    path.write_text(json.dumps(document))
    assert main(["check", str(folder), "--threads", "1"]) == 1
    said = capsys.readouterr()
    assert f"{100 * (true + 0.02):.1f} % @ {EPS:g}" in said.out
    assert f"{100 * true:.1f} %" in said.out
    assert "MOVED" in said.out


def test_the_tolerance_is_the_user_s(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def raise_accuracy(arrays: dict[str, np.ndarray]) -> None:
        row = np.flatnonzero((arrays["distance"] > 0.01) & (arrays["distance"] <= EPS))[0]
        arrays["distance"][row] = arrays["budget"][row] = np.inf

    alter(folder, raise_accuracy)
    assert main(["check", str(folder), "--threads", "1", "--tolerance", "1"]) == 0
    said = capsys.readouterr()
    assert "holds, 1 of 100" in said.out
    assert "no longer hold" in said.out
    assert "smallest drop this could have seen: 2.0 points" in said.err
    assert main(["check", str(folder), "--threads", "1", "--tolerance", "0.9"]) == 1


def test_a_rise_is_told_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same weights it means a weaker attack."""

    def lower_accuracy(arrays: dict[str, np.ndarray]) -> None:
        rows = np.flatnonzero(np.isinf(arrays["distance"]))[:2]
        arrays["distance"][rows], arrays["budget"][rows] = 0.03, 0.05

    alter(folder, lower_accuracy)
    assert main(["check", str(folder), "--threads", "1"]) == 1
    said = capsys.readouterr()
    assert "MOVED, 2 of 100" in said.out
    assert "examples that now hold" in said.out


def test_other_weights_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The network forgets class 3: every example of it falls."""
    import safetensors
    import safetensors.torch

    (path,) = folder.glob("runs/*/weights/best.safetensors")
    with safetensors.safe_open(path, framework="pt") as opened:
        header = opened.metadata()
    tensors = safetensors.torch.load(path.read_bytes())
    tensors["network.fc2.bias"][3] -= 1000
    path.write_bytes(safetensors.torch.save(tensors, header))
    record = Record.load(only(folder, ".npz"))
    standing = (record.label == 3) & (record.distance > 0.05)
    assert standing.any()
    assert main(["check", str(folder), "--threads", "1", "--json"]) == 1
    (one,) = json.loads(capsys.readouterr().out)["checked"]
    assert set(record.index[standing]) <= set(one["worse"])


def test_the_subset_of_correct_examples_may_shrink(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An example that is no longer classified rightly leaves the subset, not the check."""
    import safetensors
    import safetensors.torch

    for path in folder.glob("evals/*/*"):
        path.unlink()
    few = [*FEW, "--subset", "correct", "-n", "60", "--results", str(folder)]
    assert main(["eval", "last", *few]) == 0
    labels = Record.load(only(folder, ".npz"))
    threes = [int(i) for i in labels.index[labels.label == 3]]
    (path,) = folder.glob("runs/*/weights/best.safetensors")
    with safetensors.safe_open(path, framework="pt") as opened:
        header = opened.metadata()
    tensors = safetensors.torch.load(path.read_bytes())
    tensors["network.fc2.bias"][3] -= 1000
    path.write_bytes(safetensors.torch.save(tensors, header))
    capsys.readouterr()
    assert main(["check", str(folder), "--threads", "1", "--json"]) == 1
    (one,) = json.loads(capsys.readouterr().out)["checked"]
    assert set(threes) <= set(one["worse"])


def test_a_damaged_file_is_bad_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = only(folder, ".npz")
    path.write_bytes(path.read_bytes()[:100])
    assert main(["check", str(folder), "--threads", "1"]) == 2
    assert f"{path.name} is damaged" in capsys.readouterr().err


def test_json_says_where_and_how_much(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder), "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(folder)
    (one,) = found["checked"]
    assert one["n"] == 100
    assert one["before"] == one["now"]
    assert one["tolerance"] == 0.005
    assert one["smallest_drop"] == 0.01
