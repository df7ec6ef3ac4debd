"""Curves of figure items: which points, panels, names and colours; the picture."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.report import curve, item_figure
from robustbench_defenses.report.item_figure import CurvePanel
from tests.evaluation import builders
from tests.report import items
from tests.report.pictures import collisions


def _names(panel: CurvePanel) -> list[str]:
    return [one.name for one in panel.series]


def test_panels_and_curves_are_those_of_the_axes() -> None:
    mnist, cifar = item_figure.panels(items.figure())
    assert (mnist.name, cifar.name) == ("mnist", "cifar10")
    assert _names(mnist) == ["pgd_linf", "fgsm", "strong"]
    assert _names(cifar) == ["pgd_linf", "fgsm"]
    first = mnist.series[0]
    assert [(p.x, p.y) for p in first.ours()] == [(0.0, 80.0), (0.1, 65.0), (0.3, 35.0)]
    assert [(p.low, p.high) for p in first.ours()][2] == (32.5, 37.0)
    assert [(p.x_mark, p.mark) for p in first.marks()] == [(0.3, 95.0)]
    assert mnist.grid() == [0.0, 0.1, 0.3]


def test_a_name_has_one_colour_everywhere_and_the_worst_case_is_ink() -> None:
    mnist, cifar = item_figure.panels(items.figure())
    shades = {one.name: one.shade for one in mnist.series}
    assert shades["strong"] is None
    assert {one.name: one.shade for one in cifar.series} == {
        name: shade for name, shade in shades.items() if shade is not None
    }


def test_tables_have_no_curves(tmp_path: Path) -> None:
    assert item_figure.panels(items.table()) == []
    assert item_figure.svgs(items.table()) == []
    with pytest.raises(UserError, match="no curves"):
        item_figure.plot(items.table(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_are_named_by_what_tells_them_apart() -> None:
    cells = [
        items.cell({"panel": "a", "defense": d, "setting": s, "eps": eps}, 50.0)
        for d, s in (("nt", "white_box"), ("nt", "black_box"), ("afd", "white_box"))
        for eps in (0.0, 0.1)
    ]
    axes = {
        "x": {"name": "eps"},
        "panels": {"a": {"dataset": "fashion_mnist", "y": "gain_over_nt"}},
        "curves": ["afd", "nt"],
    }
    one = items.item(
        cells, kind="figure", rows=("panel", "defense", "setting"), columns=("eps",), axes=axes
    )
    (panel,) = item_figure.panels(one)
    assert _names(panel) == ["afd white_box", "nt white_box", "nt black_box"]
    assert panel.name == "a: fashion mnist, gain over nt"
    single = one.model_copy(update={"cells": tuple(cells[:2])})
    assert _names(item_figure.panels(single)[0]) == ["nt white_box"]


def test_flagged_curves_are_marked() -> None:
    cells = [
        items.cell({"attack": "fgsm", "eps": eps}, 50.0, measured={"diagnostics": found})
        for eps, found in ((0.0, ()), (0.1, (builders.diagnostic(),)))
    ]
    axes = {"x": {"name": "eps"}}
    one = items.item(cells, kind="figure", rows=("attack",), columns=("eps",), axes=axes)
    assert item_figure.panels(one)[0].series[0].flagged


def _tracks() -> list[items.ItemCell]:
    cells = []
    for point, (accuracy, success) in enumerate([(0.9, 0.2), (0.8, 0.6), (0.85, 0.4)]):
        place = {"panel": "small", "defense": "sat", "point": str(point)}
        for metric, ours in (("accuracy", accuracy), ("dsr", success)):
            cells.append(
                items.cell(
                    place | {"metric": metric}, ours, metric=metric, unit="fraction",
                    elsewhere=ours - 0.1, source="public_image",
                )
            )  # fmt: skip
    return cells


def test_a_measured_x_makes_pairs() -> None:
    axes = {"x": {"name": "accuracy"}, "y": {"name": "dsr"}, "panels": ["small", "large"]}
    one = items.item(
        _tracks(), kind="figure", rows=("panel", "defense", "point"), columns=("metric",),
        axes=axes, unit="fraction",
    )  # fmt: skip
    (panel,) = item_figure.panels(one)
    assert panel.pairs
    assert _names(panel) == ["sat"]
    track = panel.series[0]
    assert [(p.x, p.y) for p in track.ours()] == [(0.9, 0.2), (0.8, 0.6), (0.85, 0.4)]
    mark = track.marks()[0]
    assert (mark.x_mark, mark.mark) == (pytest.approx(0.8), pytest.approx(0.1))
    assert item_figure.svgs(one)[0][1].startswith("<svg")


def test_points_that_are_only_printed_are_drawn_without_a_line() -> None:
    cells = [items.cell({"attack": "fgsm", "eps": eps}, printed=50.0) for eps in (0.0, 0.1)]
    axes = {"x": {"name": "eps"}}
    one = items.item(cells, kind="figure", rows=("attack",), columns=("eps",), axes=axes)
    series = item_figure.panels(one)[0].series[0]
    assert series.ours() == []
    assert len(series.marks()) == 2
    assert all(math.isnan(point.y) for point in series.points)
    drawing = item_figure.figure(item_figure.panels(one))
    hollow = [line for line in drawing.axes[0].get_lines() if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 1


@pytest.mark.parametrize(
    ("values", "logarithmic"), [((16, 256, 4096), True), ((0.0, 0.1, 0.5), False), ((1, 2), False)]
)
def test_wide_ranges_get_a_logarithmic_axis(values: tuple[float, ...], logarithmic: bool) -> None:
    cells = [items.cell({"setting": "clean", "width": width}, 50.0) for width in values]
    axes = {"x": {"name": "width", "label": "projector width"}}
    one = items.item(cells, kind="figure", rows=("setting",), columns=("width",), axes=axes)
    (axis,) = item_figure.figure(item_figure.panels(one)).axes
    assert (axis.get_xscale() == "log") == logarithmic
    assert axis.get_xlabel() == "projector width"
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert ticks == [f"{value:g}" for value in values]


def test_a_single_point_can_be_drawn() -> None:
    cells = [items.cell({"attack": "fgsm", "eps": 0.1}, 50.0, unit="ratio")]
    axes = {"x": {"name": "eps"}}
    one = items.item(cells, kind="figure", rows=("attack",), columns=("eps",), axes=axes)
    assert len(item_figure.svgs(one)) == 1


def test_pictures_are_the_same_each_time_and_use_the_palette_of_curves() -> None:
    first, again = item_figure.svgs(items.figure()), item_figure.svgs(items.figure())
    assert [svg for _, svg in first] == [svg for _, svg in again]
    assert len(first) == 2
    for shade in (curve.PALETTE[0], curve.PALETTE[1], curve.INK):
        assert shade.lower() in first[0][1].lower()


def test_a_picture_of_its_own_says_what_its_marks_are() -> None:
    one = items.figure(stand_ins={"cifar10": "digits"}, strong_n=200)
    drawing = item_figure.figure(
        item_figure.panels(one), "a heading", item_figure.notes(one, item_figure.panels(one))
    )
    said = " ".join(text.get_text() for text in drawing.texts)
    for part in (
        "n = 1,000",
        "hollow marks: printed",
        "strong: worst case with AutoAttack, n = 200",
        "digits stands in for cifar10",
    ):
        assert part in said
    assert "diagnostic" not in said
    assert collisions(drawing) == []


def test_a_figure_is_written_with_its_data(tmp_path: Path) -> None:
    written = item_figure.plot(items.figure(), tmp_path / "figure.png")
    assert written == [tmp_path / "figure.png", tmp_path / "figure.csv"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert len(rows) == len(items.figure().cells)
    with pytest.raises(UserError, match="unknown kind of picture"):
        item_figure.plot(items.figure(), tmp_path / "figure.bmp")
