"""The stored result: what it accepts, what it refuses, and the published JSON Schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation import schema
from robustbench_defenses.evaluation.record import Record

from . import builders

PUBLISHED = Path(__file__).parents[2] / "docs" / "result.schema.json"


def test_published_schema_is_generated_from_the_models(tmp_path: Path) -> None:
    assert json.loads(PUBLISHED.read_text()) == schema.json_schema()
    schema.main([str(tmp_path / "schema.json")])
    assert (tmp_path / "schema.json").read_text() == PUBLISHED.read_text()


@pytest.mark.parametrize("rows", [builders.record(), builders.table()], ids=["distances", "table"])
def test_result_survives_json_and_validates(rows: Record) -> None:
    result = builders.result(rows, diagnostics=[builders.diagnostic()])
    text = json.dumps(result.to_json(), allow_nan=False)
    assert schema.parse_result(json.loads(text), "here") == result
    jsonschema.validate(json.loads(text), json.loads(PUBLISHED.read_text()))


def test_absent_values_are_null_and_never_left_out() -> None:
    document = builders.result().to_json()
    assert document["members"] is None
    assert document["attack"]["source"] is None
    assert document["schema"] == "rrd.result/1"
    assert set(document) == set(schema.json_schema()["required"])


def _changed(path: str, value: object) -> dict[str, object]:
    document = builders.result().to_json()
    place = document
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("clean_accuracy", 1.5, "clean_accuracy"),
        ("clean_accuracy", float("nan"), "clean_accuracy"),
        ("curve.1.eps", -0.1, "curve.1.eps"),
        ("curve.1.eps", 0.0, "must rise"),
        ("attack.norm", "l3", "attack.norm"),
        ("subject.colour", "red", "subject.colour"),
        ("n", "many", "n"),
        ("cost", None, "cost"),
        ("sweep", "upwards", "sweep"),
        ("dataset.shape", [1, 8], "dataset.shape"),
    ],
)
def test_a_wrong_value_is_named(path: str, value: object, named: str) -> None:
    with pytest.raises(UserError, match=r"results/x\.json is not a valid result") as caught:
        schema.parse_result(_changed(path, value), "results/x.json")
    assert named in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("found", ["rrd.result/0", "rrd.result/2", 1, None])
def test_another_schema_is_refused_by_name(found: object) -> None:
    with pytest.raises(UserError, match=r"this version reads 'rrd\.result/1'"):
        schema.parse_result(_changed("schema", found), "x.json")


@pytest.mark.parametrize("document", [[], 3, {}, {"results": []}, None])
def test_other_json_is_no_result(document: object) -> None:
    with pytest.raises(UserError, match="is not a result of rrd"):
        schema.parse_result(document, "x.json")


def test_members_need_one_accuracy_per_point() -> None:
    member = schema.Member(name="square", robust_accuracy=[0.5], seconds=1.0)
    with pytest.raises(ValidationError, match="1 accuracies"):
        builders.result(members=[member])


def test_a_member_without_passes_is_an_older_one() -> None:
    members = [{"name": "square", "robust_accuracy": [0.5] * len(builders.GRID), "seconds": 1.0}]
    document = builders.result().to_json() | {"members": members}
    document["attack"].pop("remark")
    result = schema.parse_result(document, "here")
    assert result.members is not None
    assert result.members[0].forward_passes is None
    assert result.attack.remark is None


def test_a_skipped_check_cannot_fire() -> None:
    with pytest.raises(ValidationError, match="skipped and fired"):
        builders.diagnostic(skipped="too few classes")


def test_flagged_leaves_out_information() -> None:
    found = [
        builders.diagnostic(id="D1"),
        builders.diagnostic(id="D2", severity="info"),
        builders.diagnostic(id="D3", fired=False),
    ]
    assert [d.id for d in builders.result(diagnostics=found).flagged] == ["D1"]


def test_frame_has_one_row_per_eps() -> None:
    result = builders.result()
    frame = result.frame()
    assert list(frame["eps"]) == builders.GRID
    assert list(frame["robust_accuracy"]) == [p.robust_accuracy for p in result.curve]
    assert set(frame["attack"]) == {"pgd_linf"}
    empty = builders.result(grid=[], auc=None).frame()
    assert len(empty) == 1
    assert empty["eps"].isna().all()


def test_record_survives_its_file(tmp_path: Path) -> None:
    for rows in (builders.record(failed=0.1), builders.table()):
        rows.save(tmp_path / "a.npz")
        back = Record.load(tmp_path / "a.npz")
        for name, value in vars(rows).items():
            np.testing.assert_array_equal(getattr(back, name), value)


def test_record_holds_the_share_of_broken_draws(tmp_path: Path) -> None:
    plain = builders.table(n=20)
    assert plain.eps is not None
    assert plain.broken is not None
    share = plain.broken * 0.75
    rows = Record.from_table(
        plain.index,
        plain.label,
        plain.clean_prediction,
        plain.queries,
        plain.eps,
        plain.broken,
        share,
    )
    rows.save(tmp_path / "a.npz")
    np.testing.assert_array_equal(Record.load(tmp_path / "a.npz").broken_draws, share)
    plain = builders.record(n=20)
    share = np.where(plain.distance <= 0.2, 0.75, 0.25)
    dataclasses.replace(plain, broken_draws=share).save(tmp_path / "b.npz")
    np.testing.assert_array_equal(Record.load(tmp_path / "b.npz").broken_draws, share)
    for wrong in (share + 1, share[:-1], share[None]):
        with pytest.raises(ValueError, match="broken_draws"):
            dataclasses.replace(plain, broken_draws=wrong)


def test_a_table_counts_misclassified_images_as_broken_everywhere() -> None:
    ones = np.ones(3, np.int64)
    eps = np.array([0.1, 0.2])
    broken = np.array([[False, False, True], [False, True, False]])
    rows = Record.from_table(np.arange(3), ones, np.array([2, 1, 1]), ones, eps, broken)
    assert rows.broken is not None
    assert rows.broken[:, 0].all()
    assert rows.distance.tolist() == [0.0, 0.2, 0.1]
    assert rows.budget.tolist() == [0.1, 0.2, 0.1]


def test_every_truncation_of_a_record_is_refused_by_name(tmp_path: Path) -> None:
    builders.record(n=50).save(tmp_path / "whole.npz")
    content = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in [0, 1, 4, *range(50, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.npz is damaged"):
            Record.load(path)


def test_an_altered_byte_is_noticed(tmp_path: Path) -> None:
    builders.record(n=50).save(tmp_path / "whole.npz")
    content = bytearray((tmp_path / "whole.npz").read_bytes())
    content[len(content) // 3] ^= 0xFF
    (tmp_path / "altered.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"altered\.npz is damaged"):
        Record.load(tmp_path / "altered.npz")


def _arrays() -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(builders.record(n=8)).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"distance": np.zeros(7)}, "distance has shape"),
        ({"distance": np.zeros(8, np.float32)}, "distance has type float32"),
        ({"distance": np.full(8, np.nan)}, "negative number or NaN"),
        ({"index": np.zeros(8, np.int64)}, "index names an example twice"),
        ({"index": np.zeros((2, 4), np.int64)}, "index has shape"),
        ({"queries": np.full(8, -1)}, "queries holds a negative number"),
        ({"clean_prediction": np.full(8, 99)}, "distance must be 0"),
        ({"eps": np.array([0.1])}, "eps and broken belong together"),
        ({"eps": np.array([0.1]), "broken": np.zeros((2, 8), bool)}, "broken has shape"),
        ({"eps": np.array([0.2, 0.1]), "broken": np.ones((2, 8), bool)}, "eps must be finite"),
        ({"colour": np.zeros(8)}, "unknown array 'colour'"),
        ({"label": np.array([None] * 8, dtype=object)}, "damaged"),
    ],
)
def test_a_malformed_record_is_refused(
    tmp_path: Path, change: dict[str, np.ndarray], named: str
) -> None:
    np.savez(tmp_path / "bad.npz", **(_arrays() | change))
    with pytest.raises(UserError, match=r"bad\.npz is damaged") as caught:
        Record.load(tmp_path / "bad.npz")
    assert named in caught.value.message


def test_a_record_needs_every_array_and_an_archive(tmp_path: Path) -> None:
    arrays = _arrays()
    del arrays["budget"]
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(UserError, match="array 'budget' is missing"):
        Record.load(tmp_path / "less.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(UserError, match="damaged"):
        Record.load(tmp_path / "single.npy")
    with pytest.raises(UserError, match="is not there"):
        Record.load(tmp_path / "absent.npz")
