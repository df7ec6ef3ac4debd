"""`rrd report`: formats, files, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustbench_defenses.cli.main import main
from tests.evaluation import builders


@pytest.fixture(autouse=True)
def _results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builders.three_defenses(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RRD_RESULTS", raising=False)


def test_a_table_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()[1:4]] == ["pgd_at", "aicr", "nt"]
    assert shown.err == ""
    assert "\x1b" not in shown.out


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("markdown", "digits, Linf"),
        ("csv", "label,attack_label,subject"),
        ("latex", "% digits"),
        ("html", "<!doctype html>"),
        ("json", "{"),
    ],
)
def test_formats_on_stdout_and_in_files(
    name: str, start: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["report", "--format", name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(start)
    suffix = {"markdown": "md", "latex": "tex"}.get(name, name)
    assert main(["report", "-o", f"out/report.{suffix}"]) == 0
    after = capsys.readouterr()
    assert after.out == ""
    assert f"wrote out/report.{suffix}" in after.err
    written = (tmp_path / "out" / f"report.{suffix}").read_text()
    assert written.startswith(start)
    if name != "html":  # links are relative to the file
        assert written == shown


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "digits-lenet-nt", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["defense"] for row in rows} == {"nt"}
    assert len(rows) == len(builders.GRID)


def test_plot_writes_the_picture_and_its_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["report", "--plot", "curve.svg"]) == 0
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")
    assert (tmp_path / "curve.csv").read_text().startswith("label,")
    shown = capsys.readouterr()
    assert "wrote curve.svg" in shown.err
    assert "pgd_at" in shown.out
    assert main(["report", "--plot", "curve.svg", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["digits-lenet-ntt"], "error: no results of 'digits-lenet-ntt' in results/evals"),
        (["--format", "latx"], "error: unknown format 'latx'"),
        (["--plot", "curve.jpg"], "error: cannot draw curve.jpg"),
        (["absent.json"], "error: there is no file absent.json"),
        (["--results", "nowhere"], "error: no results in nowhere/evals"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["report", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(error)
    assert len(shown.err.splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_damaged_files_are_named_and_the_rest_is_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (victim,) = (tmp_path / "results/evals").glob("*-nt-*/*.json")
    victim.write_text("{")
    assert main(["report"]) == 0
    shown = capsys.readouterr()
    assert "aicr" in shown.out
    assert shown.err.startswith(f"warning: {victim.relative_to(tmp_path)} is not valid JSON")


def test_a_missing_record_is_told_beside_every_format(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stored = builders.stored(tmp_path / "results", defense="nt", attack="square")
    stored.record_path.unlink()
    assert main(["report", "--format", "csv"]) == 0
    shown = capsys.readouterr()
    assert "square" in shown.out
    assert "worst_case" not in shown.out
    assert "no worst case for nt" in shown.err
