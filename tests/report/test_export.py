"""The long form, and the formats made from it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from robustbench_defenses.evaluation.store import StoredResult
from robustbench_defenses.report import export
from tests.evaluation import builders


@pytest.fixture
def stored(tmp_path: Path) -> list[StoredResult]:
    return [
        *builders.three_defenses(tmp_path),
        builders.stored(
            tmp_path, builders.record(scale=0.07, clean=0.978), defense="nt", attack="square"
        ),
        builders.stored(tmp_path, defense="my|odd_&name", dataset_changes={"name": "mnist"}),
    ]


def test_one_row_per_subject_attack_and_eps(stored: list[StoredResult]) -> None:
    frame = export.frame(stored)
    # Five results and the worst case of nt, each over the whole grid.
    assert len(frame) == 6 * len(builders.GRID)
    assert not frame.duplicated(["dataset", "label", "attack", "eps"]).any()
    own = frame[(frame["defense"] == "aicr") & (frame["eps"] == 0.2)]
    point = stored[2].result.curve[builders.GRID.index(0.2)]
    assert own["robust_accuracy"].item() == point.robust_accuracy
    assert own["fired"].item() == "D6"
    worst = frame[frame["attack"] == "worst_case"].set_index("eps")["robust_accuracy"]
    for attack in ("pgd_linf", "square"):
        rows = frame[(frame["defense"] == "nt") & (frame["attack"] == attack)]
        assert (worst <= rows.set_index("eps")["robust_accuracy"]).all()


def test_csv_and_json_lose_nothing(stored: list[StoredResult]) -> None:
    frame = export.frame(stored)
    back = pd.read_csv(io.StringIO(export.csv(frame)))
    pd.testing.assert_series_equal(back["robust_accuracy"], frame["robust_accuracy"])
    rows = json.loads(export.as_json(frame))["rows"]
    assert [row["robust_accuracy"] for row in rows] == list(frame["robust_accuracy"])
    assert rows[0]["unbounded_accuracy"] is None
    assert rows[0]["seed"] == 0
    assert isinstance(rows[0]["seed"], int)
    assert rows[0]["targeted"] is False


def test_scores_of_minimum_norm_attacks_are_a_column(tmp_path: Path) -> None:
    stored = [
        builders.stored(tmp_path, builders.record(scale=s), attack=a, unbounded_accuracy=0.0)
        for a, s in (("ddn", 0.1), ("cw", 0.2))
    ]
    frame = export.frame(stored)
    scores = frame.groupby("attack")["optimality"].first()
    assert scores["ddn"] == 1.0
    assert 0 < scores["cw"] < 1
    shown = export.markdown(frame)
    assert "| optimality |" in shown
    assert re.search(rf"\| cw .* {scores['cw']:.3f} \|$", shown, re.MULTILINE)
    rows = json.loads(export.as_json(frame))["rows"]
    assert {row["optimality"] for row in rows if row["attack"] == "worst_case"} == {None}


def test_markdown_is_a_table_per_data_set(stored: list[StoredResult]) -> None:
    shown = export.markdown(export.frame(stored))
    blocks = shown.strip().split("\n\n")
    assert blocks[0].startswith("digits, Linf, accuracy in %, n = 360, 95 % interval up to ±")
    assert blocks[2].startswith("mnist, Linf, accuracy in %, n = 360")
    for block in (blocks[1], blocks[3]):
        lines = block.splitlines()
        bars = [line.replace("\\|", "").count("|") for line in lines]
        assert len(set(bars)) == 1
        assert len(set(map(len, lines))) == 1
        cells = lines[1].strip("|").split("|")
        assert all(set(cell) == {"-"} for cell in cells[:2])
        assert all(set(cell[:-1]) == {"-"} and cell[-1] == ":" for cell in cells[2:])
    assert "| aicr    | pgd_linf ! |" in blocks[1]
    assert "my\\|odd" in blocks[3]


def test_latex_is_booktabs_and_escaped(stored: list[StoredResult]) -> None:
    shown = export.latex(export.frame(stored))
    assert shown.count(r"\begin{tabular}") == shown.count(r"\end{tabular}") == 2
    for block in shown.split(r"\begin{tabular}")[1:]:
        columns = block[1 : block.index("}")]
        rows = [line for line in block.splitlines() if line.endswith(r"\\")]
        assert {line.replace(r"\&", "").count("&") + 1 for line in rows} == {len(columns)}
        for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
            assert block.count(rule) == 1
    assert r"my|odd\_\&name" in shown
    assert r"\textbf{worst case}" in shown
    assert "_" not in shown.replace(r"\_", "")


def test_a_result_without_a_curve_keeps_its_row(tmp_path: Path) -> None:
    cw = builders.stored(tmp_path, grid=[], attack="cw", auc=None, unbounded_accuracy=0.02)
    frame = export.frame([cw])
    assert len(frame) == 1
    assert json.loads(export.as_json(frame))["rows"][0]["eps"] is None
    assert "| unbounded |" in export.markdown(frame)
    assert "| 2.0 |" in " ".join(export.markdown(frame).split())
