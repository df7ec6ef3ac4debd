"""Curves: the right lines, labels that never meet, equal files from equal data."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation.store import StoredResult
from robustbench_defenses.report import curve
from robustbench_defenses.report.panels import panels
from tests.evaluation import builders
from tests.report.pictures import collisions

GRID_255 = [0, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255]


def _stored(folder: Path, case: str) -> list[StoredResult]:
    if case == "three":
        return builders.three_defenses(folder)
    if case == "attacks":
        return [
            builders.stored(folder, builders.record(scale=s), attack=a)
            for a, s in (("pgd_linf", 0.2), ("fgsm", 0.21), ("square", 0.2), ("mim", 0.19))
        ]
    if case == "many":
        return [
            builders.stored(
                folder,
                builders.record(1000, 0.002 * (at + 1)),
                defense=f"a_rather_long_defense_name_{at}",
                grid=GRID_255,
            )
            for at in range(14)
        ]
    if case == "two panels":
        two = builders.stored(folder, attack="pgd_l2", attack_changes={"norm": "l2"}, grid=[0.5, 1])
        return [*builders.three_defenses(folder), two]
    raise AssertionError(case)


@pytest.mark.parametrize("case", ["three", "attacks", "many", "two panels"])
@pytest.mark.parametrize(("width", "headed"), [(7.6, True), (5.4, False)])
def test_no_text_meets_another_or_the_edge(
    tmp_path: Path, case: str, width: float, headed: bool
) -> None:
    found = panels(_stored(tmp_path, case))
    assert collisions(curve.figure(found, width=width, headed=headed)) == []


def test_the_collision_check_can_fail() -> None:
    drawing = Figure(figsize=(4, 3))
    drawing.text(0.5, 0.5, "one")
    drawing.text(0.51, 0.5, "two")
    drawing.text(0.99, 0.1, "over the edge")
    assert set(collisions(drawing)) == {("one", "two"), ("over the edge", "the edge")}


def test_lines_are_the_stored_numbers(tmp_path: Path) -> None:
    stored = builders.three_defenses(tmp_path)
    drawn = [line.result.subject.defense for line in curve.chosen_lines(panels(stored)[0])]
    assert drawn == ["pgd_at", "aicr", "nt"]
    axes = curve.figure(panels(stored)).axes[0]
    curves = [line.get_xydata() for line in axes.lines if len(np.asarray(line.get_xdata())) == 8]
    expected = {entry.result.subject.defense: entry.result.curve for entry in stored}
    for name, points in zip(drawn, curves):
        wanted = [(p.eps, 100 * p.robust_accuracy) for p in expected[name]]
        np.testing.assert_allclose(np.asarray(points), wanted)
    bands: Any = axes.collections
    assert len(bands) == 3


def test_a_curve_without_zero_starts_at_the_clean_accuracy(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path, grid=[0.1, 0.2])
    axes = curve.figure(panels([stored])).axes[0]
    start = np.asarray(axes.lines[0].get_xydata())[0]
    np.testing.assert_allclose(start, [0, 100 * stored.result.clean_accuracy])


def test_one_subject_shows_its_attacks_and_a_thick_worst_case(tmp_path: Path) -> None:
    found = panels(_stored(tmp_path, "attacks"))
    widths = [line.get_linewidth() for line in curve.figure(found).axes[0].lines[:5]]
    assert widths.count(max(widths)) == 1
    assert widths[-1] == max(widths)


def test_a_worst_case_is_solid_and_has_the_only_band(tmp_path: Path) -> None:
    attacks = ("pgd_linf", "fgsm", "square", "mim", "bim", "fab", "apgd_ce")
    stored = [
        builders.stored(tmp_path, builders.record(scale=0.2 + 0.01 * at), attack=name)
        for at, name in enumerate(attacks)
    ]
    axes = curve.figure(panels(stored)).axes[0]
    thick = max(axes.lines, key=lambda line: line.get_linewidth())
    assert thick.get_linestyle() == "-"  # also behind more attacks than colours
    assert len(axes.collections) == 1


def test_grids_of_255ths_show_both_scales(tmp_path: Path) -> None:
    drawing = curve.figure(panels(_stored(tmp_path, "many")))
    FigureCanvasAgg(drawing).draw()
    lower = [label.get_text() for label in drawing.axes[0].get_xticklabels()]
    (upper,) = drawing.axes[0].child_axes
    assert lower[-2:] == ["8/255", "16/255"]
    assert [label.get_text() for label in upper.get_xticklabels()][-2:] == ["0.031", "0.063"]
    decimal = curve.figure(panels(builders.three_defenses(tmp_path / "b"))).axes[0]
    assert decimal.child_axes == []


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_equal_data_give_equal_files_with_csv_beside(tmp_path: Path, suffix: str) -> None:
    stored = builders.three_defenses(tmp_path)
    first = curve.plot_curves(stored, tmp_path / "a" / f"curve{suffix}")
    second = curve.plot_curves(stored, tmp_path / "b" / f"curve{suffix}")
    assert [path.name for path in first] == [f"curve{suffix}", "curve.csv"]
    for one, two in zip(first, second):
        assert one.read_bytes() == two.read_bytes()
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert first[0].read_bytes().startswith(head)
    with open(first[1], newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3 * len(builders.GRID)


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path / "results", grid=[])
    with pytest.raises(UserError, match="nothing to draw"):
        curve.plot_curves([stored], tmp_path / "a.svg")
    for name in ("a.jpg", "a"):
        with pytest.raises(UserError, match="unknown kind of picture"):
            curve.plot_curves([stored], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert curve.svg([stored]) is None


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=15).map(sorted), st.sampled_from([0.5, 4.0])
)
def test_labels_keep_their_order_and_distance(wanted: list[float], step: float) -> None:
    found = curve.spread_labels(wanted, step, 0.0, 100.0)
    assert len(found) == len(wanted)
    assert all(b - a >= step - 1e-9 for a, b in itertools.pairwise(found))
    assert min(found) >= 0
    assert max(found) <= 100 + 1e-9
    if all(b - a >= step for a, b in itertools.pairwise(wanted)):
        np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_labels_without_room_still_keep_their_distance() -> None:
    found = curve.spread_labels([50.0] * 40, 4.0, 0.0, 100.0)
    assert found == [4.0 * at for at in range(40)]


def _lab(colour: str) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour under D65."""
    return _lab_of(_linear(colour))


def _linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _lab_of(linear: np.ndarray) -> np.ndarray:
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratio = np.array(matrix) @ linear / [0.9505, 1, 1.089]
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), ratio * 841 / 108 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Simulation of full protanopia, deuteranopia and tritanopia (Machado et al. 2009, severity 1).
BLINDNESS = {
    "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]],
    "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


@pytest.mark.parametrize("palette", [curve.PALETTE, curve.DARK_PALETTE], ids=["light", "dark"])
def test_colours_stay_apart_for_every_eye_and_in_grey(palette: tuple[str, ...]) -> None:
    for matrix in [np.eye(3), *map(np.array, BLINDNESS.values())]:
        seen = [_lab_of(np.clip(matrix @ _linear(colour), 0, 1)) for colour in palette]
        for one, two in itertools.combinations(seen, 2):
            assert np.linalg.norm(one - two) > 12
    lightness = sorted(_lab(colour)[0] for colour in palette[:4])
    assert min(b - a for a, b in itertools.pairwise(lightness)) > 6
