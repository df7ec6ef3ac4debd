"""`rrd report --item`: formats, files, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustbench_defenses.cli.main import main
from robustbench_defenses.report.item import folder
from tests.report import items


@pytest.fixture(autouse=True)
def _results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for item in (items.table(), items.figure(id="afd/figure2")):
        place = folder(tmp_path / "results", item.id, item.preset)
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(item.document()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RRD_RESULTS", raising=False)


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("terminal", "afd/table1 · quick"),
        ("markdown", "### afd/table1"),
        ("csv", "item,preset,dataset"),
        ("latex", "% afd/table1"),
        ("json", '{\n "schema": "rrd.item/1"'),
        ("html", "<!doctype html>"),
    ],
)
def test_formats_on_stdout_and_in_files(
    form: str, start: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["report", "--item", "afd/table1", "--format", form]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(start)
    assert shown.err == ""
    suffix = {"terminal": "txt", "markdown": "md", "latex": "tex"}.get(form, form)
    assert main(["report", "--item", "afd/table1", "-o", f"table.{suffix}"]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / f"table.{suffix}").read_text() == shown.out


def test_brackets_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    item = items.table(title="pixels in [bold] and [0,1]")
    place = folder(Path("results"), item.id, item.preset)
    (place / "result.json").write_text(json.dumps(item.document()))
    assert main(["report", "--item", "afd/table1"]) == 0
    assert "pixels in [bold] and [0,1]\n" in capsys.readouterr().out


def test_a_whole_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--item", "afd", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [item["id"] for item in document["items"]] == ["afd/figure2", "afd/table1"]
    assert main(["report", "--item", "afd", "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("item,preset") == 1
    assert main(["report", "--item", "afd"]) == 0
    assert "\nafd/table1 · quick" in capsys.readouterr().out


def test_a_figure_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", "--item", "afd/figure2", "--plot", "curves.svg"]) == 0
    assert "wrote curves.svg" in capsys.readouterr().err
    assert (tmp_path / "curves.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--item", "afd/table9"], "no item 'afd/table9'"),
        (["--item", "afd/table1", "--preset", "paper"], "not stored at preset 'paper'"),
        (["last", "--item", "afd/table1"], "--item takes no results"),
        (["--preset", "quick"], "--preset goes with --item"),
        (["--item", "afd", "--plot", "a.png"], "--plot draws one item"),
        (["--item", "afd/table1", "--plot", "a.png"], "no curves to draw"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["report", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
