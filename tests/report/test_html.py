"""The page: whole, self-contained, escaped, themed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from robustbench_defenses.evaluation.schema import Member
from robustbench_defenses.evaluation.store import StoredResult
from robustbench_defenses.report import curve, html
from tests.evaluation import builders
from tests.report.pages import BROWSER, in_browser, read


@pytest.fixture
def stored(tmp_path: Path) -> list[StoredResult]:
    other = builders.stored(
        tmp_path,
        builders.record(500, 0.02),
        defense="nt",
        dataset_changes={"name": "cifar10"},
        grid=[0, 2 / 255, 8 / 255],
    )
    square = builders.stored(tmp_path, builders.record(scale=0.28, clean=0.956), attack="square")
    return [*builders.three_defenses(tmp_path), square, other]


def test_the_page_is_whole_and_needs_nothing_else(stored: list[StoredResult]) -> None:
    page = html.page(stored)
    reader = read(page)
    assert reader.tags["svg"] == reader.tags["table"] == 2
    assert reader.tags["script"] == reader.tags["img"] == reader.tags["link"] == 0
    assert all(link.startswith("#") for link in reader.links)


def test_ids_of_all_pictures_are_different(stored: list[StoredResult]) -> None:
    reader = read(html.page(stored))
    assert [name for name, times in Counter(reader.ids).items() if times > 1] == []
    assert {link[1:] for link in reader.links} <= set(reader.ids)


def test_the_page_says_what_is_stored(stored: list[StoredResult], tmp_path: Path) -> None:
    text = read(html.page(stored)).text
    for part in ("worst case", "warning", "3.1 % of images have a gradient of exactly zero"):
        assert part in text
    assert "rrd eval last --attack pgd --eps-sweep" in text
    assert "accuracy in % on cifar10, Linf, n = 500" in text
    assert "1 check ran, 1 fired." in text
    assert "No checks ran." in text
    point = stored[-1].result.curve[-1]
    assert f"keeps {100 * point.robust_accuracy:.1f} %" in text
    assert "pgd_at keeps" in text  # several subjects: one sentence each


def test_rows_link_to_their_files(stored: list[StoredResult], tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    reader = read(html.page(stored, folder=folder))
    targets = {(folder / link).resolve() for link in reader.links if not link.startswith("#")}
    assert targets == {entry.path.resolve() for entry in stored}


def test_skipped_checks_are_named(tmp_path: Path) -> None:
    skipped = builders.diagnostic(fired=False, skipped="needs 3 classes", name="few classes")
    page = html.page([builders.stored(tmp_path, diagnostics=[skipped])])
    assert "Skipped: few classes (needs 3 classes)." in read(page).text


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    changes = {"name": evil, "defense": None}
    page = html.page([builders.stored(tmp_path, subject_changes=changes)])
    assert evil not in page
    assert read(page).tags["script"] == 0
    assert evil in read(page).text


def test_pictures_follow_the_theme(stored: list[StoredResult]) -> None:
    page = html.page(stored)
    body = page[page.index("<body>") :].lower()
    for colour in (*curve.PALETTE, curve.INK, curve.QUIET, "#ffffff"):
        assert colour.lower() not in body
    for used in ("var(--c1)", "var(--c3)", "currentcolor", "var(--quiet)", "var(--page)"):
        assert used in body
    assert "prefers-color-scheme: dark" in page


def test_results_without_a_curve_have_no_picture(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path, grid=[], auc=None, unbounded_accuracy=0.1)
    reader = read(html.page([stored]))
    assert reader.tags["svg"] == 0
    assert "10.0" in reader.text


def _card(folder: Path) -> list[StoredResult]:
    """One subject under an ensemble, two minimum-norm attacks, and one with a warning."""
    members = [
        Member(name=name, robust_accuracy=[0.95, 0.91, 0.9, 0.8, 0.7, 0.6, 0.5, last], seconds=2.0)
        for name, last in (("apgd_ce", 0.412), ("square", 0.397))
    ]
    rows = builders.record(scale=0.3)
    return [
        builders.stored(folder, rows, attack="autoattack", members=members),
        builders.stored(folder, builders.record(scale=0.31), attack="fmn", unbounded_accuracy=0.0),
        builders.stored(folder, builders.record(scale=0.28), attack="ddn", unbounded_accuracy=0.0),
        builders.stored(folder, builders.record(scale=0.4), diagnostics=[builders.diagnostic()]),
    ]


def test_the_card_of_one_subject(tmp_path: Path) -> None:
    page = html.page(_card(tmp_path), folder=tmp_path)
    text = read(page).text
    assert page.index("<svg") < page.index("classifies") < page.index("<table>")
    assert "under the worst case over 4 attacks, keeps" in text
    assert "The strongest attack alone, ddn, leaves" in text
    assert "Of the minimum-norm attacks ddn finds the nearest images (optimality 1.000)" in text
    assert "Half of the images are broken by eps 0.25." in text
    assert "Diagnostics speak against these numbers (zero gradient)" in text
    assert page.count('<tr class="member">') == 2
    for part in ("apgd_ce", "41.2", "square", "39.7", "optimality"):
        assert part in text
    heads = re.findall(r"<th [^>]*>(.*?)</th>", page)
    assert heads[:2] == ["attack", "clean"]  # subject and n are the same in every row
    assert "n = 360" in text


def test_what_is_told_for_information_does_not_bury_errors(tmp_path: Path) -> None:
    found = [
        builders.diagnostic(severity="info", name="sample size", sentence="up to 9.6 points"),
        builders.diagnostic(severity="warning", name="late warning"),
        builders.diagnostic(severity="error", name="loud error"),
    ]
    page = html.page([builders.stored(tmp_path, diagnostics=found)])
    page = page[page.index("<h3>Diagnostics") :]
    assert page.index("loud error") < page.index("late warning") < page.index("For information")
    assert page.index("For information") < page.index("up to 9.6 points")
    assert "3 checks ran, 2 fired." in page


def test_of_attacks_that_leave_the_same_the_strongest_has_the_smallest_area(tmp_path: Path) -> None:
    rows = {name: builders.record(scale=scale) for name, scale in (("fgsm", 0.1), ("pgd", 0.05))}
    stored = [
        builders.stored(tmp_path, record, attack=name, grid=[0, 0.05, 0.1, 5.0])
        for name, record in rows.items()
    ]
    assert [entry.result.curve[-1].robust_accuracy for entry in stored] == [0, 0]
    assert "The strongest attack alone, pgd, leaves 0.0 %" in read(html.page(stored)).text


def test_a_card_without_checks_says_so(tmp_path: Path) -> None:
    assert "No diagnostics ran." in read(html.page([builders.stored(tmp_path)])).text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_card_fits_every_screen(width: int, dark: bool, tmp_path: Path) -> None:
    seen = in_browser(html.page(_card(tmp_path), folder=tmp_path), width, tmp_path, dark)
    assert (seen["width"], seen["dark"]) == (width, dark)
    assert seen["scroll"] <= width
    assert seen["overlaps"] == seen["cut"] == seen["requests"] == []
