"""The page: whole, self-contained, escaped, themed."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from robustbench_defenses.evaluation.store import StoredResult
from robustbench_defenses.report import curve, html
from tests.evaluation import builders

VOID = {"meta", "br", "link", "img", "input", "hr", "!doctype"}


class _Reader(HTMLParser):
    """Collects tags, ids, links and text; `open` is empty at the end of a well-formed page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "xlink:href") and value:
                self.links.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


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


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_needs_nothing_else(stored: list[StoredResult]) -> None:
    page = html.page(stored)
    reader = _read(page)
    assert reader.tags["svg"] == reader.tags["table"] == 2
    assert reader.tags["script"] == reader.tags["img"] == reader.tags["link"] == 0
    assert all(link.startswith("#") for link in reader.links)
    assert "url(http" not in page
    assert "@import" not in page
    # Addresses occur only as the names of XML name spaces.
    assert set(re.findall(r"https?://[^\"' ]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_ids_of_all_pictures_are_different(stored: list[StoredResult]) -> None:
    reader = _read(html.page(stored))
    assert [name for name, times in Counter(reader.ids).items() if times > 1] == []
    assert {link[1:] for link in reader.links} <= set(reader.ids)


def test_the_page_says_what_is_stored(stored: list[StoredResult], tmp_path: Path) -> None:
    text = _read(html.page(stored)).text
    for part in ("worst case", "warning", "3.1 % of images have a gradient of exactly zero"):
        assert part in text
    assert "rrd eval last --attack pgd --eps-sweep" in text
    assert "accuracy in % on cifar10, Linf, n = 500" in text
    assert "1 check ran, 1 fired." in text
    assert "No checks ran." in text
    point = stored[-1].result.curve[-1]
    assert f"nt keeps {100 * point.robust_accuracy:.1f} %" in text


def test_rows_link_to_their_files(stored: list[StoredResult], tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    reader = _read(html.page(stored, folder=folder))
    targets = {(folder / link).resolve() for link in reader.links if not link.startswith("#")}
    assert targets == {entry.path.resolve() for entry in stored}


def test_skipped_checks_are_named(tmp_path: Path) -> None:
    skipped = builders.diagnostic(fired=False, skipped="needs 3 classes", name="few classes")
    page = html.page([builders.stored(tmp_path, diagnostics=[skipped])])
    assert "Skipped: few classes (needs 3 classes)." in _read(page).text


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    changes = {"name": evil, "defense": None}
    page = html.page([builders.stored(tmp_path, subject_changes=changes)])
    assert evil not in page
    assert _read(page).tags["script"] == 0
    assert evil in _read(page).text


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
    reader = _read(html.page([stored]))
    assert reader.tags["svg"] == 0
    assert "10.0" in reader.text
