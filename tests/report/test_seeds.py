"""Trainings that differ in their seed alone: mean and Student's interval over them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustbench_defenses.evaluation.metrics import student_interval
from robustbench_defenses.evaluation.store import StoredResult
from robustbench_defenses.report import html, table
from robustbench_defenses.report.panels import panels
from robustbench_defenses.report.seeds import over_seeds
from tests.evaluation import builders


def trained(folder: Path, seed: int, scale: float, key: str = "0a1b2c3d") -> StoredResult:
    """A result of `nt` under one seed; another `key`: with other settings."""
    run = f"digits-lenet-nt-smoke-s{seed}-{key}"
    return builders.stored(
        folder, builders.record(360, scale), defense="nt",
        subject_changes={"id": run, "name": run, "seed": seed, "weights": f"{seed:064x}"},
    )  # fmt: skip


@pytest.fixture
def three(tmp_path: Path) -> list[StoredResult]:
    return [trained(tmp_path, seed, 0.1 + 0.03 * seed) for seed in (0, 1, 2)]


def test_mean_and_half_of_students_interval(three: list[StoredResult]) -> None:
    (panel,) = panels(three)
    (group,) = over_seeds(panel)
    assert group.label == "nt, 3 seeds"
    kept = [entry.result.curve[2].robust_accuracy for entry in three]
    found = student_interval(kept)
    expected = f"{100 * found.value:.1f} ±{100 * (found.high - found.value):.1f}"
    assert len(set(kept)) == 3
    shown = table.as_text(three)
    row = next(line for line in shown.splitlines() if "3 seeds" in line)
    assert expected in row
    assert re.search(
        rf"nt, 3 seeds.*{re.escape(expected)}", re.sub(r"<[^>]+>|\n", " ", html.page(three))
    )
    assert "mean ± half of Student's 95 % interval" in shown


def test_no_line_is_wider_than_the_screen(three: list[StoredResult]) -> None:
    for width in (60, 80, 100):
        assert max(map(len, table.as_text(three, width).splitlines())) <= width


@pytest.mark.parametrize("change", ["one seed", "other settings", "a seed twice"])
def test_only_what_differs_in_nothing_else(tmp_path: Path, change: str) -> None:
    second = {
        "one seed": [],
        "other settings": [trained(tmp_path, 1, 0.2, "ffffffff")],
        "a seed twice": [trained(tmp_path, 0, 0.2)],
    }[change]
    shown = table.as_text([trained(tmp_path, 0, 0.1), *second])
    assert "seeds" not in shown
