"""The console: width, colour, tables, JSON, progress."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from robustbench_defenses.cli import console
from robustbench_defenses.core.progress import Silent


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_progress_prints_a_line_at_most_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    reporter = console.PlainProgress(clock)
    reporter.start("train nt", 40)
    for second in range(1, 36):
        clock.now = float(second)
        reporter.update(second, "loss 0.5")
    reporter.finish("clean 97.8 %")
    reporter.start("train aicr", 10)
    assert capsys.readouterr().err.splitlines() == [
        "train nt",
        "train nt: 10 of 40 · loss 0.5 · 10 s · about 30 s left",
        "train nt: 20 of 40 · loss 0.5 · 20 s · about 20 s left",
        "train nt: 30 of 40 · loss 0.5 · 30 s · about 10 s left",
    ]
    clock.now = 45.0
    reporter.finish("done well")
    assert capsys.readouterr().err == "train aicr: done · done well · 10 s\n"


def screen(**settings: Any) -> console.Screen:
    return console.Screen(file=io.StringIO(), **settings)


def test_live_progress_shows_bar_note_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_defenses.cli import live

    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = screen(force_terminal=True, width=100, color_system="standard")
    monkeypatch.setattr(live, "err", terminal)
    reporter = live.LiveProgress()
    reporter.start("train nt", 4)
    reporter.update(2, "epoch 2 of 4")
    assert terminal.bar is not None
    assert terminal.bar.tasks[0].percentage == 50
    reporter.finish("clean 97.8 %")
    assert terminal.bar is None
    lines = terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]
    last = [line for line in lines if "train nt" in line][-1]
    for part in ("━", "clean 97.8 %", " s"):
        assert part in last
    assert "left" not in last
    reporter.start("search", 0)
    reporter.update(7)
    terminal.release()
    reporter.finish()
    assert terminal.bar is None


def test_which_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_defenses.cli.live import LiveProgress

    assert isinstance(console.progress(quiet=True), Silent)
    monkeypatch.setattr(console, "err", screen(force_terminal=False))
    assert isinstance(console.progress(), console.PlainProgress)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "err", screen(force_terminal=True))
    assert isinstance(console.progress(), LiveProgress)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(console, "err", screen(force_terminal=True))
    assert isinstance(console.progress(), console.PlainProgress)


@pytest.mark.parametrize(
    ("columns", "terminal", "width"),
    [("", False, 100), ("60", False, 60), ("300", False, 100), ("70", True, 70)],
)
def test_width(monkeypatch: pytest.MonkeyPatch, columns: str, terminal: bool, width: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert screen(force_terminal=terminal).width == width


def test_no_colour_unless_a_terminal_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def printed(**settings: Any) -> str:
        made = screen(**settings)
        made.print("x", style="red")
        return str(made.file.getvalue())  # type: ignore[attr-defined]

    assert "\x1b[31m" in printed(force_terminal=True, color_system="standard")
    assert printed() == "x\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in printed(force_terminal=True, color_system="standard")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert printed(force_terminal=True) == "x\n"


def test_tables_drop_columns_and_cut_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["pgd", "projected steps", "1"], ["square", "random search", "20"]]

    def lines(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        console.print_table(["name", "summary", "n"], rows, right=["n"])
        return capsys.readouterr().out.splitlines()

    assert lines(80) == [
        " name    summary           n",
        " pgd     projected steps   1",
        " square  random search    20",
    ]
    assert lines(26) == [" name    summary", " pgd     projected steps", " square  random search"]
    rows[0][1] = "projected steps, many of them indeed"
    assert lines(38)[1] == " pgd     projected steps, many of th…"
    assert lines(20) == [" name    summary", " pgd     projected…", " square  random se…"]
    rows[1][2] = "twenty, or a hundred: who counts them all"
    assert lines(72)[2] == " square  random search                         twenty, or a hundred: w…"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.8, "9.8 s"),
        (41.6, "42 s"),
        (59.7, "1 min 0 s"),
        (100, "1 min 40 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 3600 * 4, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"path": Path("a/b"), "share": 0.5, "name": "Szabó"})
    assert json.loads(capsys.readouterr().out) == {"path": "a/b", "share": 0.5, "name": "Szabó"}
    with pytest.raises(ValueError):
        console.print_json({"share": float("nan")})
