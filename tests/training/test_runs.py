"""Stored runs: finding them, loading them, and refusing what is not whole."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.identity import tensors_digest
from robustbench_defenses.training import weights
from robustbench_defenses.training.runs import (
    Run,
    all_runs,
    load_run,
    parse_subject,
    read_info,
)

Copy = Callable[[], Run]


def results_of(run: Run) -> Path:
    return run.folder.parents[1]


def test_a_run_is_found_by_id_prefix_folder_and_last(shared_run: Run) -> None:
    results = results_of(shared_run)
    for reference in (shared_run.id, "digits-lenet-nt", str(shared_run.folder), "last"):
        assert load_run(reference, results).id == shared_run.id


def test_what_was_read_is_what_was_written(shared_run: Run) -> None:
    assert read_info(shared_run.folder) == shared_run.info
    assert shared_run.checkpoints() == ["best", "last"]
    assert shared_run.info.training_images == 256
    assert shared_run.info.validation_images == 60
    assert shared_run.info.weights["best"] == shared_run.weights_digest("best")


def test_the_deployed_module_is_the_trained_one(shared_run: Run) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    deployed = shared_run.deployed()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not deployed.training
    assert deployed(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    tensors, metadata = weights.load(shared_run.weights_path())
    assert tensors_digest(tensors) == shared_run.weights_digest()
    assert metadata["run"] == shared_run.id
    state = deployed.state_dict()
    assert all(torch.equal(tensors[f"network.{name}"], state[name]) for name in state)
    (view,) = shared_run.views()
    assert view.logits(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_last_is_the_newest_finished_run(run_copy: Copy, tmp_path: Path) -> None:
    run = run_copy()
    for name, change in {
        "older": {"finished": "2020-01-01T00:00:00+00:00"},
        "unfinished": {"status": "unfinished", "finished": None},
    }.items():
        folder = run.folder.parent / name
        shutil.copytree(run.folder, folder)
        content = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**content, "id": name, **change}))
    results = tmp_path / "results"
    assert [found.id for found in all_runs(results)] == ["unfinished", "older", run.id]
    assert load_run("last", results).id == run.id
    with pytest.raises(UserError, match="unfinished is unfinished"):
        load_run("unfinished", results)
    assert load_run("unfinished", results, unfinished=True).id == "unfinished"


def test_an_ambiguous_prefix_names_its_runs(run_copy: Copy) -> None:
    run = run_copy()
    shutil.copytree(run.folder, run.folder.with_name(run.id + "0"))
    with pytest.raises(UserError, match="begins 2 runs"):
        load_run("digits", results_of(run))
    assert load_run(run.id, results_of(run)).id == run.id  # whole ids win


@pytest.mark.parametrize("reference", ["digits-lenet-ntt", "", "nowhere/at/all"])
def test_unknown_runs_are_refused(shared_run: Run, reference: str) -> None:
    with pytest.raises(UserError, match="there is no run"):
        load_run(reference, results_of(shared_run))


def test_an_empty_results_folder_has_no_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        load_run("last", tmp_path)


def test_a_damaged_run_json_is_named(run_copy: Copy) -> None:
    run = run_copy()
    path = run.folder / "run.json"
    content = json.loads(path.read_text())
    for text, message in (
        (path.read_text()[:50], "not valid JSON"),
        ("[]", "not a run of this version"),
        (json.dumps({**content, "schema": "rrd.run/9"}), "not a run of this version"),
        (json.dumps({k: v for k, v in content.items() if k != "shape"}), "lacks shape"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_run(run.id, results_of(run))
        assert all_runs(results_of(run)) == []


def test_checkpoints_that_are_not_there(run_copy: Copy) -> None:
    run = run_copy()
    run.weights_path("best").unlink()
    for name, message in (
        ("best", "no checkpoint 'best'"),
        ("step-7", "no checkpoint 'step-7'"),
        ("../last", "unknown checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            run.deployed(name)


def test_truncated_weights_are_refused(run_copy: Copy) -> None:
    run = run_copy()
    path = run.weights_path()
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="truncated or not a safetensors file"):
            run.deployed()


def test_headers_of_any_length_are_read(tmp_path: Path) -> None:
    """The first bytes are a length, and may look like those of a pickle or an archive."""
    path, heads = tmp_path / "some.safetensors", set()
    for size in (*range(150, 420), *range(19_050, 19_200)):
        weights.save_tensors(path, {"a": torch.ones(2)}, {"note": "x" * size})
        heads.add(path.read_bytes()[:2])
        assert weights.load(path)[0]["a"].tolist() == [1, 1]
    assert b"\x80\x01" in heads
    assert b"PK" in heads


def test_a_pickle_posing_as_weights_is_not_opened(run_copy: Copy, tmp_path: Path) -> None:
    run = run_copy()
    path, trap = run.weights_path(), tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(trap).touch.__func__, (Path(trap),))  # type: ignore[attr-defined]

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="is a pickle"):
        run.deployed()
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is a pickle"):
        run.deployed()
    assert not trap.exists()


def test_weights_of_another_run_or_network_are_refused(run_copy: Copy) -> None:
    run = run_copy()
    path = run.weights_path()
    tensors, metadata = weights.load(path)
    cases = (
        (tensors, {**metadata, "run": "mnist-lenet-nt-quick-s0-00000000"}, "belongs to run mnist"),
        (tensors, {**metadata, "dataset": "mnist"}, "belongs to dataset mnist"),
        (tensors, {}, "was not written by rrd train"),
        ({**tensors, "network.fc9.bias": torch.zeros(1)}, metadata, "surplus tensor"),
        ({k: v for k, v in tensors.items() if "fc2.bias" not in k}, metadata, "lacks tensor"),
        ({**tensors, "network.fc2.bias": torch.zeros(3)}, metadata, r"fc2.bias is \(3,\)"),
    )
    for content, about, message in cases:
        weights.save_tensors(path, content, about)
        with pytest.raises(UserError, match=message):
            run.deployed()


def test_another_data_set_is_refused(shared_run: Run) -> None:
    shared_run.check_dataset("digits")
    with pytest.raises(UserError, match="trained on digits, not on mnist"):
        shared_run.check_dataset("mnist")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last", ("last", "best", {})),
        ("run-1@last", ("run-1", "last", {})),
        ("run-1[rule=nearest_centre]", ("run-1", "best", {"rule": "nearest_centre"})),
        ("run-1@step-20[rule=softmax, k=5]", ("run-1", "step-20", {"rule": "softmax", "k": "5"})),
    ],
)
def test_subjects_are_read(text: str, expected: tuple[str, str, dict[str, str]]) -> None:
    assert parse_subject(text) == expected


@pytest.mark.parametrize(
    "text", ["", "@last", "run[rule]", "run[rule=]", "run[a=1", "run[a=1]@last"]
)
def test_malformed_subjects_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_subject(text)
