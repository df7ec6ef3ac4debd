"""The result store: whole files, damaged files, many writers."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation import metrics, store
from robustbench_defenses.evaluation.worst import worst_result

from . import builders


def test_layout_is_the_contract(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path, key="77ab01c2")
    folder = tmp_path / "evals" / stored.result.subject.id
    assert stored.path == folder / "pgd_linf-77ab01c2.json"
    assert stored.record_path == folder / "pgd_linf-77ab01c2.npz"
    assert sorted(path.name for path in folder.iterdir()) == [
        "pgd_linf-77ab01c2.json",
        "pgd_linf-77ab01c2.npz",
    ]


def test_what_is_saved_is_found(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path)
    subject, attack, key = stored.result.subject.id, "pgd_linf", stored.result.key
    found = store.find(tmp_path, subject, attack, key)
    assert found == stored
    assert len(found.record()) == 360
    assert found.document()["record"] == str(stored.record_path)
    assert store.find(tmp_path, subject, attack, "00000000") is None
    assert store.find(tmp_path, "another", attack, key) is None
    assert store.load(stored.record_path) == stored


@pytest.mark.parametrize("name", ["a/b.py:Attack", "../up", "C:\\x", "a b", "...", "/abs", "ü*?"])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    for path in store.paths(tmp_path, name, name, "1a2b"):
        assert path.parent.parent == tmp_path / "evals"
        assert path.resolve().is_relative_to(tmp_path.resolve() / "evals")
        assert path.name.endswith((".json", ".npz"))


def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path)
    question = (stored.result.subject.id, "pgd_linf", stored.result.key)
    stored.record_path.unlink()
    with pytest.raises(UserError, match="npz is not there"):
        store.find(tmp_path, *question)
    content = stored.path.read_text()
    stored.path.write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match="not valid JSON") as caught:
        store.find(tmp_path, *question)
    assert str(stored.path) in caught.value.message
    document = json.loads(content) | {"key": "ffffffff"}
    stored.path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="another question"):
        store.find(tmp_path, *question)


def test_a_record_of_another_size_is_refused(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path)
    builders.record(n=10).save(stored.record_path)
    with pytest.raises(UserError, match="holds 10 examples, its result says 360"):
        stored.record()
    with pytest.raises(ValueError, match="record of 10"):
        store.save(stored.result, builders.record(n=10), tmp_path)


def test_listing_goes_on_past_damaged_files(tmp_path: Path) -> None:
    whole = builders.three_defenses(tmp_path)
    broken = whole[1].path
    broken.write_text("{")
    (broken.parent / "notes.json").write_text("[1]")
    (broken.parent / f".{broken.name}.77.ab.tmp").write_text("half")
    warnings: list[str] = []
    found = store.all_results(tmp_path, warnings.append)
    assert {entry.path for entry in found} == {whole[0].path, whole[2].path}
    assert len(warnings) == 2
    assert any(str(broken) in text for text in warnings)
    assert store.all_results(tmp_path / "nowhere", warnings.append) == []


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "evals").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write"):
        builders.stored(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["evals"]


def _write_some(folder: str, writer: int) -> None:
    for at in range(6):
        builders.stored(Path(folder), builders.record(n=50, seed=at), key=f"{at:08x}")
        builders.stored(Path(folder), builders.record(n=50), key=f"{writer:04x}{at:04x}")


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    """Both write the same six questions and six of their own, into one folder."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_some, args=(str(tmp_path), w)) for w in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    warnings: list[str] = []
    found = store.all_results(tmp_path, warnings.append)
    assert warnings == []
    assert len(found) == 6 + 12
    for entry in found:
        assert metrics.curve(entry.record(), builders.GRID) == entry.result.curve
    assert len(list(found[0].path.parent.iterdir())) == 2 * len(found)


def test_worst_result_is_an_ensemble_of_what_is_stored(tmp_path: Path) -> None:
    first = builders.stored(tmp_path, builders.record(scale=0.2))
    second = builders.stored(
        tmp_path,
        builders.record(scale=0.21, failed=0.2),
        attack="square",
        diagnostics=[builders.diagnostic()],
    )
    worst = worst_result([first, second])
    distance = metrics.worst_case([first.record(), second.record()]).distance
    assert worst.attack.name == "worst_case"
    assert worst.attack.parameters == {"attacks": ["pgd_linf", "square"]}
    assert [point.eps for point in worst.curve] == builders.GRID
    for point in worst.curve:
        assert point.robust_accuracy == metrics.robust_accuracy(distance, point.eps)
    assert worst.members is not None
    assert worst.members[0].robust_accuracy == [p.robust_accuracy for p in first.result.curve]
    assert worst.cost.seconds == pytest.approx(2 * 3.04)
    assert [d.id for d in worst.flagged] == ["D6"]


def test_the_nearest_distances_stand_beside_tables(tmp_path: Path) -> None:
    """A clipped sweep has a table for its curve, and the distances that were found."""
    clipped = [
        dataclasses.replace(builders.table(seed=seed), distance=builders.record(seed=seed).distance)
        for seed in (0, 0)
    ]
    farther = np.where(np.arange(360) % 2, 1.0, 3.0)
    clipped[1] = dataclasses.replace(clipped[1], distance=clipped[1].distance * farther)
    kept = [
        builders.stored(tmp_path, rows, attack=name, sweep="clipped", unbounded_accuracy=0.0)
        for rows, name in zip(clipped, ("ddn", "fmn"))
    ]
    worst = worst_result(kept)
    found = clipped[0].distance[clipped[0].clean_right]
    assert worst.distances is not None
    assert worst.distances.median == pytest.approx(float(np.median(found)))
    assert worst.distances.median <= min(
        entry.result.distances.median for entry in kept if entry.result.distances is not None
    )
    assert worst.unbounded_accuracy == 0
    assert [p.robust_accuracy for p in worst.curve] == [
        p.robust_accuracy for p in kept[0].result.curve
    ]


def test_an_attack_at_one_eps_keeps_the_curve_of_the_other(tmp_path: Path) -> None:
    sweep = builders.stored(tmp_path, builders.record(scale=0.3))
    single = builders.stored(tmp_path, builders.record(scale=0.2), attack="autoattack", grid=[0.2])
    worst = worst_result([sweep, single])
    assert [point.eps for point in worst.curve] == builders.GRID
    at = builders.GRID.index(0.2)
    assert worst.curve[at].robust_accuracy <= single.result.curve[0].robust_accuracy
    for ours, theirs in zip(worst.curve, sweep.result.curve):
        assert ours.robust_accuracy <= theirs.robust_accuracy


@pytest.mark.parametrize(
    "other",
    [
        {"defense": "nt"},
        {"dataset_changes": {"subset": "random:1"}},
        {"attack_changes": {"norm": "l2"}},
        {"subject_changes": {"weights": "00" * 32}},
    ],
)
def test_worst_result_refuses_another_question(tmp_path: Path, other: dict[str, object]) -> None:
    one = builders.stored(tmp_path)
    two = builders.stored(tmp_path, attack="square", **other)
    with pytest.raises(UserError, match="do not answer one question"):
        worst_result([one, two])
