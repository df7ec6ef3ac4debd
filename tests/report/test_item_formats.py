"""Items as terminal table, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json

import pytest

from robustbench_defenses.report import item_formats
from robustbench_defenses.report.item import Item
from tests.report import items


def _table_lines(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith(" ") and "/" not in line[:12]]


@pytest.mark.parametrize("width", [100, 80, 60])
def test_the_terminal_table_fits_and_keeps_every_cell(width: int) -> None:
    shown = item_formats.terminal(items.table(), width)
    assert max(map(len, shown.splitlines())) <= width
    for part in ("77.2 (94.5, -17.2)", "– (60.0)", "22.0 (40.0, -18.0) !", "88.0 (87.5, +0.5)"):
        assert part in shown
    assert shown.count("88.0 (87.5, +0.5)") == 6
    assert shown.splitlines()[0].startswith("afd/table1 · quick · n = 1,000")


def test_decimal_points_stand_under_one_another() -> None:
    cells = [
        items.cell({"defense": name, "attack": "fgsm"}, ours, printed=printed)
        for name, ours, printed in (("nt", 0.0, 100.0), ("afd", 91.2, 9.5))
    ]
    item = items.item(cells, rows=("defense",), columns=("attack",))
    head, first, second = _table_lines(item_formats.terminal(item))[:3]
    assert [one.index("(") for one in (first, second)] == [head.index("fgsm") + 5] * 2
    assert [first.index(", "), first.rindex(".")] == [second.index(", "), second.rindex(".")]


def test_heads_are_not_repeated_and_columns_that_do_not_fit_follow_below() -> None:
    narrow = item_formats.terminal(items.table(), 70)
    wide = item_formats.terminal(items.table(), 200)
    assert wide.count("dataset  defense") == 2  # the headline's and the arm's
    assert narrow.count("dataset  defense") == 3
    assert sum(line.startswith(" mnist") for line in wide.splitlines()) == 2
    assert sum("cifar10  " in line for line in wide.splitlines()) == 1
    assert sum("white_box" in line for line in wide.splitlines()) == 2


def test_parts_below_one_another_hold_about_as_many_columns() -> None:
    cells = [items.cell({"defense": "nt", "depth": at}, 50.0, printed=40.0) for at in range(4)]
    item = items.item(cells, rows=("defense",), columns=("depth",))
    heads = [line for line in item_formats.terminal(item, 80).splitlines() if "depth" in line]
    assert [line.count("depth") for line in heads] == [2, 2]  # three would fit


def test_arms_are_explained() -> None:
    assert "\nreading paper: the losses as printed\n" in item_formats.terminal(items.table())
    assert "reading paper: the losses as printed" in item_formats.markdown(items.table())
    assert "% reading paper: the losses as printed" in item_formats.latex(items.table())
    assert item_formats.reading(items.table(readings={}), "paper") == "reading paper"


def test_claims_say_whether_they_hold_and_what_speaks_against_them() -> None:
    shown = item_formats.terminal(items.table())
    assert " yes / yes  afd beats nt\n" in shown
    assert "  no / yes  black box lies above white box\n" in shown
    assert "does not hold: afd fgsm 88.0 against 90.0" in shown
    assert "features are salient" not in shown  # not checked


def test_markdown_is_a_table_with_as_many_cells_everywhere() -> None:
    found = item_formats.markdown(items.table())
    rows = [line for line in found.splitlines() if line.startswith("|")]
    counts = {line.replace("\\|", "").count("|") for line in rows[:8]}
    assert counts == {8}  # two heads and five columns
    assert "| mnist | pgd\\_at |" in found or "| mnist | pgd_at |" in found
    assert "- claim c2: black box lies above white box – ours: does not hold" in found


def test_markdown_and_latex_escape() -> None:
    cells = [items.cell({"defense": "a|b_c", "attack": "50 % & *more*"}, 1.0, printed=2.0)]
    item = items.item(cells, rows=("defense",), columns=("attack",))
    markdown = item_formats.markdown(item)
    assert "a\\|b_c" in markdown
    assert "\\*more\\*" in markdown
    latex = item_formats.latex(item)
    assert r"a|b\_c & 1.0 (2.0, -1.0) \\" in latex
    assert r"50 \% \& *more*" in latex


def test_latex_spans_its_heads_and_balances() -> None:
    found = item_formats.latex(items.table())
    assert r"\multicolumn{3}{c}{white\_box}" in found
    assert r"\cmidrule(lr){4-6}" in found
    assert found.count(r"\begin{tabular}") == found.count(r"\end{tabular}") == 2
    body = [line for line in found.splitlines() if line.endswith(r"\\")]
    wide = [line for line in body if "multicolumn" not in line][:7]
    assert {line.count(" & ") for line in wide} == {6}
    assert r"\addlinespace" in found


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_gives_back_every_cell() -> None:
    item = items.table()
    rows = _rows(item_formats.csv(item))
    assert len(rows) == len(item.cells)
    for row, cell in zip(rows, item.cells):
        assert {name: row[name] for name in cell.keys} == {k: str(v) for k, v in cell.keys.items()}
        ours = "" if cell.ours is None else str(cell.ours.value)
        printed = "" if cell.printed is None else str(cell.printed)
        assert (row["ours"], row["printed"], row["arm"]) == (ours, printed, cell.arm)
        assert row["status"] == cell.status
    assert rows[0]["seeds"] == "93.0 94.0"
    assert rows[-6]["diagnostics"] == "D6 D6"
    assert rows[-7]["results"] == items.RESULT


def test_csv_of_several_items_has_one_head_and_keeps_keys_that_are_called_as_columns_are() -> None:
    odd = items.item(
        [items.cell({"defense": "nt", "metric": "l2"}, 1.0, metric="l2")],
        id="sat/table1", rows=("defense",), columns=("metric",),
    )  # fmt: skip
    rows = _rows(item_formats.csv_of([odd, items.figure()]))
    assert {row["item"] for row in rows} == {"sat/table1", "aicr/figure_a2"}
    assert rows[0]["metric"] == "l2"
    assert rows[1]["metric"] == "accuracy"
    assert rows[1]["eps"] == "0.3"


def test_json_is_the_stored_document() -> None:
    item = items.table()
    assert Item.model_validate(json.loads(item_formats.as_json(item))) == item
    both = json.loads(item_formats.all_as_json([item, items.figure()]))
    assert [one["id"] for one in both["items"]] == ["afd/table1", "aicr/figure_a2"]


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "csv", "json"])
def test_items_without_any_number_can_be_shown(form: str) -> None:
    for cells in ((), (items.cell({"defense": "nt", "attack": "fgsm"}),)):
        bare = items.item(cells, rows=("defense",), columns=("attack",))
        assert "afd/table1" in item_formats.FORMATS[form](bare) or form == "csv" or not cells
