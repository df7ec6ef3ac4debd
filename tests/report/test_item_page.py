"""The page of reproduced items: whole, self-contained, escaped, linked; in a browser it fits."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from robustbench_defenses.report import curve, item_page
from robustbench_defenses.report.item import Item, folder
from tests.report import items
from tests.report.pages import BROWSER, in_browser, read


def _store(item: Item, results: Path) -> Path:
    place = folder(results, item.id, item.preset)
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps(item.document()))
    return place


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with the files that the sample items link to."""
    root = tmp_path / "results"
    file = root / items.RESULT
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    return root


def _cells(page: str) -> list[str]:
    return re.findall(r"<td[^>]*data-value.*?</td>", page)


def test_the_page_is_whole_and_needs_nothing_else(results: Path) -> None:
    page = item_page.page([items.table(), items.figure()], results, results)
    reader = read(page)
    assert reader.tags["svg"] == 2
    assert reader.tags["script"] == 1
    assert reader.tags["img"] == reader.tags["link"] == reader.tags["iframe"] == 0
    assert [name for name, times in Counter(reader.ids).items() if times > 1] == []
    assert set(reader.targets) <= set(reader.ids)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)


def test_cells_show_ours_printed_difference_and_shade(results: Path) -> None:
    page = item_page.page([items.table()], results, results)
    (flagged,) = [cell for cell in _cells(page) if ">22.0<" in cell]
    assert 'class="below3"' in flagged
    assert "40.0<span>\N{MINUS SIGN}18.0</span>" in flagged
    assert "95 % interval 19.5 to 24.0" in flagged
    near = [cell for cell in _cells(page) if ">88.0<" in cell]
    assert len(near) == 6
    assert all("class=" not in cell.partition(">")[0] for cell in near)  # within 2 points
    assert "printed as .875" in near[0]
    above = [cell for cell in _cells(page) if "+3.5" in cell]
    assert above
    assert all('class="above1"' in cell for cell in above)
    assert "2 seeds: 93.0, 94.0" in page
    for part in (">cited<", ">failed<"):
        assert part in page


def test_cells_link_to_results_that_are_there(results: Path) -> None:
    place = results / "items" / "afd" / "table1" / "quick"
    reader = read(item_page.page([items.table()], results, place))
    files = {(place / link).resolve() for link in reader.links if not link.startswith("#")}
    assert files == {(results / items.RESULT).resolve()}
    (results / items.RESULT).unlink()
    assert read(item_page.page([items.table()], results, place)).links == []


def test_diagnostics_are_a_dot_a_sentence_on_tap_and_a_list(results: Path) -> None:
    page = item_page.page([items.table()], results, results)
    reader = read(page)
    assert len(reader.targets) == page.count('class="dot error"') == 1
    popover = re.search(rf'<div id="{reader.targets[0]}" popover>(.*?)</div></div>', page)
    assert popover is not None
    assert "logit &lt;scale&gt;: 94 % -&gt; 11 %" in popover[1]
    assert "zero gradient" in popover[1]
    assert "sample size" not in reader.text
    listed = page[page.index("<h3>Diagnostics</h3>") :]
    assert "(cifar10, afd, white_box, pgd_linf)" in listed


def test_the_head_says_paper_preset_date_and_verdict(results: Path) -> None:
    text = " ".join(read(item_page.page([items.table()], results, results)).text.split())
    assert "afd, table 1" in text
    assert "Bashivan and others 2021, table 1 · quick · n = 1,000 · 2026-01-02" in text
    assert (
        "22 of 24 printed cells are measured, 6 of them within 2 points of the print; the printed "
        "order is kept in 1 of 2 columns; 1 of 2 checked statements of the paper hold here; "
        "strong attacks take up to 19.5 points more than the paper's (afd, mnist)."
    ) in text
    assert "digits stands in for cifar10" in text


def test_strong_attacks_that_find_nothing_more_are_not_mentioned() -> None:
    cells = [items.cell(items.keys("nt", name), 10.0) for name in ("pgd_linf", "strong")]
    assert "strong" not in item_page.verdict([items.item(cells)])


def test_rows_are_named_by_defense_or_attack(results: Path) -> None:
    places = [("none", "none"), ("fgsm", "eps=0.1"), ("fgsm", "eps=0.2")]
    cells = [items.cell({"attack": a, "budget": b, "defense": "nt"}, 1.0) for a, b in places]
    item = items.item(cells, rows=("attack", "budget"), columns=("defense",))
    page = item_page.page([item], results, results)
    heads = re.findall(r'<th scope="row"[^>]*>(.*?)</th>', page)
    assert heads == ["clean", "fgsm<small>eps=0.1</small>", "fgsm<small>eps=0.2</small>"]


def test_claims_runs_notes_and_commands_are_there(results: Path) -> None:
    text = read(item_page.page([items.table()], results, results)).text
    for part in (
        "afd fgsm 88.0 against 90.0 and 2 more",
        "features are salient",
        "rrd reproduce afd/table1 --strong",
        "the loss diverged in epoch 3",
        "98.1 %",
        "batch_size 64 instead of 128",
        "eps is on [0,1] pixels.",
        "read from a scan",
        "reading paper: the losses as printed",
        "1 cell failed: out of memory",
        "Accuracy of four defenses under white-box & transfer attacks <b>",
    ):
        assert part in text


def test_a_data_set_of_its_own_table_is_its_caption(results: Path) -> None:
    page = item_page.page([items.figure()], results, results)
    assert re.findall(r"<caption>(.*?)</caption>", page) == ["mnist", "cifar10"]
    assert "<small>mnist</small>" not in page


def test_names_schedule_and_key_are_explained(results: Path) -> None:
    page = item_page.page([items.table()], results, results)
    text = read(page).text
    assert "Natural training: cross-entropy on clean images" in text
    assert "quick: 6 epochs instead of 100, 1 other setting differs" in text
    key = "Ours, under it the printed value and the difference"
    assert page.index(key) < page.index("<table") < page.index("What the paper says of it")
    assert page.index("What the paper says of it") < page.index("<h3>Diagnostics</h3>")


def test_strong_attacks_are_held_against_the_papers_on_the_same_images() -> None:
    """Other cells of the table may be about more images."""
    known = items.cell(items.keys("nt", "strong"), 20.0, measured={"own_attacks": 35.0})
    cells = [items.cell(items.keys("nt", "fgsm"), 30.0), known]
    gap = "strong attacks take up to 15.0 points more than the paper's (nt, mnist)"
    assert gap in item_page.verdict([items.item(cells)])
    unknown = items.cell(items.keys("nt", "strong"), 20.0)
    assert "strong" not in item_page.verdict([items.item([cells[0], unknown])])


def test_deviations_are_told_once_for_all_and_once_for_each() -> None:
    assert item_page._deviations(items.table().runs) == [
        ("all", "epochs 6 instead of 100"),
        ("afd, lenet", "batch_size 64 instead of 128"),
    ]


def test_figures_are_drawn_with_anchors_named(results: Path) -> None:
    page = item_page.page([items.figure()], results, results)
    body = page[page.index("<body>") :].lower()
    for colour in (*curve.PALETTE, curve.INK, curve.QUIET):
        assert colour.lower() not in body
    text = read(page).text
    assert "Hollow marks: printed values (table2)." in text
    assert "The paper prints no grid; this one is ours." in text
    assert "table2: 95.0" in text
    assert "8/255" in text


def test_pages_are_written_beside_the_item_and_for_the_paper(results: Path) -> None:
    other = items.table(id="afd/table2", source="Bashivan and others 2021, table 2")
    elsewhere = items.table(id="afd/table3", preset="smoke")
    for item in (items.table(), other, elsewhere):
        _store(item, results)
    (results / "items" / "afd" / "damaged" / "quick").mkdir(parents=True)
    (results / "items" / "afd" / "damaged" / "quick" / "result.json").write_text("{")
    path = item_page.write_item(items.table(), results)
    assert path == results / "items" / "afd" / "table1" / "quick" / "index.html"
    whole = item_page.write_paper(results, "afd", "quick")
    assert whole == results / "items" / "afd" / "quick.html"
    up = [link for link in read(path.read_text()).links if link.endswith("quick.html")]
    assert [(path.parent / link).resolve() for link in up] == [whole.resolve()]
    reader = read(whole.read_text())
    assert "Bashivan and others 2021 · quick" in reader.text
    assert {"#table1", "#table2"} <= set(reader.links)
    assert "#table3" not in reader.links
    assert item_page.write_paper(results, "afd", "paper") is None
    for link in reader.links:
        assert link.startswith("#") or (whole.parent / link).is_file()


_SORT = """
const doc = frame.contentDocument, table = doc.querySelector("table.grid");
const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].firstChild.textContent);
const button = table.tHead.rows[1].cells[3].querySelector("button");
const seen = [names()];
for (let i = 0; i < 3; i++) { button.click(); seen.push(names()); }
doc.querySelector("button.dot").click();
return { seen, open: doc.querySelectorAll(":popover-open").length };
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_heads_sort_and_dots_open(results: Path, tmp_path: Path) -> None:
    page = item_page.page([items.table()], results, results)
    seen = in_browser(page, 1280, tmp_path, script=_SORT)
    printed, falling, rising, again = seen["seen"]
    assert printed == again == ["nt", "pgd_at", "afd"] * 2
    # pgd_linf: mnist nt failed and stands last both times
    assert falling == ["pgd_at", "pgd_at", "nt", "afd", "afd", "nt"]
    assert rising == ["afd", "afd", "nt", "pgd_at", "pgd_at", "nt"]
    assert seen["open"] == 1


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_fits_every_screen(width: int, dark: bool, results: Path, tmp_path: Path) -> None:
    page = item_page.page([items.table(), items.figure()], results, results)
    opened = page.replace("<details>", "<details open>")
    seen = in_browser(opened, width, tmp_path, dark)
    assert (seen["width"], seen["dark"]) == (width, dark)
    assert seen["scroll"] <= width
    assert seen["overlaps"] == seen["cut"] == seen["requests"] == []
    assert seen["background"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
