"""Waiting threads sleep where other processes are at work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustbench_defenses.core.threads import CHOSEN, yield_on_a_busy_machine


@pytest.fixture(autouse=True)
def _unchosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CHOSEN, "OMP_NUM_THREADS"):
        # Set first: what the function writes is then taken back at the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def _load(folder: Path, text: str) -> Path:
    path = folder / "loadavg"
    path.write_text(text)
    return path


def test_beside_another_process_threads_sleep(tmp_path: Path) -> None:
    assert yield_on_a_busy_machine(_load(tmp_path, "0.00 0.10 0.20 3/88 3525\n"))
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_where_cores_are_left_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert not yield_on_a_busy_machine(_load(tmp_path, "9.00 9.00 9.00 5/88 3525\n"))
    assert yield_on_a_busy_machine(_load(tmp_path, "9.00 9.00 9.00 6/88 3525\n"))


@pytest.mark.parametrize("text", ["2.00 2.00 2.00 1/88 3525\n", "", "who knows\n", "1 1 1 x/y 1"])
def test_alone_or_where_nothing_is_known_nothing_changes(tmp_path: Path, text: str) -> None:
    assert not yield_on_a_busy_machine(_load(tmp_path, text))
    assert not yield_on_a_busy_machine(tmp_path / "absent")
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize("name", CHOSEN)
def test_what_the_environment_chooses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "7")
    assert not yield_on_a_busy_machine(_load(tmp_path, "0.00 0.10 0.20 3/88 3525\n"))
    assert os.environ[name] == "7"
