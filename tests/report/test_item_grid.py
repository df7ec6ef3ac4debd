"""Items in the paper's shape: heads, order, strong cells, marks."""

from __future__ import annotations

import math
from typing import Any

import pytest

from robustbench_defenses.report import item_grid
from tests.report import items


def test_heads_and_cells_stand_where_the_paper_has_them() -> None:
    found = item_grid.grid(items.table())
    assert found.columns == [
        ("clean", ""),
        ("white_box", "fgsm"),
        ("white_box", "pgd_linf"),
        ("white_box", "strong"),  # behind the last column of its setting
        ("black_box", "fgsm"),
    ]
    assert found.rows == [(d, n) for d in ("mnist", "cifar10") for n in items.DEFENSES]
    for (row, column), cell in found.cells.items():
        assert cell.keys["defense"] == found.rows[row][1]
        assert cell.keys["setting"] == found.columns[column][0]
    assert len(found.cells) == 30
    assert found.spans(0) == [(0, 1, "clean"), (1, 3, "white_box"), (4, 1, "black_box")]
    assert [count for _, count, _ in found.spans(1)] == [1] * 5


def test_cells_without_data_and_without_a_number_have_no_place() -> None:
    assert all(head[0] != "svhn" for head in item_grid.grid(items.table()).rows)


def test_an_arm_has_a_grid_of_its_own_without_strong_cells() -> None:
    found = item_grid.grid(items.table(), "paper")
    assert found.rows == [("mnist", "afd")]
    assert found.columns == [("white_box", "fgsm"), ("white_box", "pgd_linf")]


def test_printed_order_comes_first() -> None:
    cells = [items.cell({"defense": d, "attack": "fgsm"}, 1.0) for d in ("b", "c", "a")]
    item = items.item(cells, rows=("defense",), columns=("attack",), row_order=("a", "b"))
    assert item_grid.grid(item).rows == [("a",), ("b",), ("c",)]
    assert item_grid.grid(item.model_copy(update={"row_order": ()})).rows[0] == ("b",)


def test_strong_cells_get_a_column_where_the_layout_names_no_attack() -> None:
    place = {"defense": "nt", "eps": 0.3}
    cells = [
        items.cell(place | {"attack": "pgd_linf"}, 40.0, printed=41.0),
        items.cell(place | {"attack": "strong"}, 20.0),
    ]
    found = item_grid.grid(items.item(cells, rows=("defense",), columns=("eps",)))
    assert found.columns == [("eps 0.3",), ("strong eps 0.3",)]
    values = [found.cells[0, at].ours for at in (0, 1)]
    assert [one.value for one in values if one] == [40.0, 20.0]


def test_strong_rows_close_their_group() -> None:
    places = [("mnist", "fgsm"), ("cifar10", "fgsm"), ("mnist", "strong")]
    cells = [items.cell({"dataset": d, "attack": a, "eps": 0.1}, 1.0) for d, a in places]
    item = items.item(cells, rows=("dataset", "attack"), columns=("eps",))
    assert item_grid.grid(item).rows == [places[0], places[2], places[1]]


def test_strong_rows_stand_by_budget() -> None:
    budgets = ("eps=0.1", "eps=0.2", "eps=0.15")
    cells = [
        items.cell({"attack": attack, "budget": budget, "defense": "nt"}, 1.0)
        for attack in ("fgsm", "strong")
        for budget in budgets
    ]
    item = items.item(cells, rows=("attack", "budget"), columns=("defense",))
    heads = item_grid.grid(item).rows
    assert [head[1] for head in heads[:3]] == list(budgets)  # as printed
    assert [head[1] for head in heads[3:]] == ["eps=0.1", "eps=0.15", "eps=0.2"]


def test_data_sets_with_budgets_of_their_own_are_parted_by_column() -> None:
    places = [("mnist", "fgsm", 0.1), ("mnist", "fgsm", 0.2), ("mnist", "pgd", 0.1)]
    places += [("mnist", "pgd", 0.2), ("svhn", "fgsm", 0.1), ("svhn", "pgd", 0.1)]
    places += [("svhn", a, e) for e in (0.01, 0.02, 0.03, 0.04) for a in ("fgsm", "pgd")]
    cells = [
        items.cell({"dataset": d, "attack": a, "eps": e, "defense": name}, 1.0)
        for d, a, e in places
        for name in ("nt", "afd")
    ]
    item = items.item(cells, rows=("attack", "eps"), columns=("dataset", "defense"))
    mnist, svhn = item_grid.grids(item)
    assert mnist.columns == [("mnist", "nt"), ("mnist", "afd")]
    assert [row[0] for row in mnist.rows] == ["fgsm"] * 2 + ["pgd"] * 2
    assert svhn.columns == [("svhn", "nt"), ("svhn", "afd")]
    assert [row[0] for row in svhn.rows] == ["fgsm"] * 5 + ["pgd"] * 5  # what begins alike
    assert len(mnist.cells) + len(svhn.cells) == len(cells)
    assert all(c.keys["dataset"] == "svhn" for c in svhn.cells.values())
    assert all(c.keys["attack"] == svhn.rows[row][0] for (row, _), c in svhn.cells.items())


def test_figures_are_sorted_by_number_and_by_their_axes() -> None:
    mnist, cifar = item_grid.grids(items.figure())
    assert mnist.columns == [("eps 0",), ("eps 0.1",), ("eps 0.3",)]
    assert cifar.columns == [("eps 0",), ("eps 2/255",), ("eps 8/255",)]
    assert [head[1] for head in mnist.rows] == ["pgd_linf", "fgsm", "strong"]
    assert [head[0] for head in cifar.rows] == ["cifar10", "cifar10"]
    assert sum(len(one.cells) for one in (mnist, cifar)) == len(items.figure().cells)


def test_tables_that_are_well_filled_stay_whole() -> None:
    assert len(item_grid.grids(items.table())) == 1
    assert item_grid.grids(items.item([])) == []


@pytest.mark.parametrize(
    ("name", "key", "label"),
    [
        ("eps", 0.031373, "8/255"),
        ("eps", 0.0019608, "0.5/255"),
        ("eps", 0.3, "0.3"),
        ("eps", 0.0025, "0.0025"),
        ("eps", 0, "0"),
        ("depth", 1024, "1024"),
        ("defense", "nt", "nt"),
    ],
)
def test_keys_are_written_as_papers_do(name: str, key: Any, label: str) -> None:
    assert item_grid.key_label(name, key) == label


def test_cells_are_written_with_difference_and_mark() -> None:
    place = {"defense": "nt"}
    shown = item_grid.shown
    assert shown(None) == ""
    assert shown(items.cell(place, 91.2, printed=95.2)) == "91.2 (95.2, -4.0)"
    assert shown(items.cell(place, 95.24, printed=95.2)) == "95.2 (95.2, 0.0)"
    assert shown(items.cell(place, 96.0, printed=95.2)) == "96.0 (95.2, +0.8)"
    assert shown(items.cell(place, 96.0)) == "96.0"
    assert shown(items.cell(place, printed=95.2)) == "– (95.2)"
    assert shown(items.cell(place, 0.512, printed=0.5, unit="fraction")) == "0.512 (0.500, +0.012)"
    assert shown(items.cell(place, 7.0, printed=9.0, unit="count")) == "7 (9, -2)"
    assert shown(items.cell(place, 1.0, printed=10.0), (4, 5, 6)) == " 1.0 ( 10.0,   -9.0)"
    flagged = items.table().cells[-6]
    assert shown(flagged) == "22.0 (40.0, -18.0) !"
    only_info = flagged.ours.diagnostics[2:] if flagged.ours else ()
    quiet = items.cell(place, 22.0, measured={"diagnostics": only_info})
    assert shown(quiet) == "22.0"


def test_differences_of_all_units_are_put_on_one_scale() -> None:
    def points(ours: float, printed: float, unit: str) -> float | None:
        return item_grid.points(items.cell({}, ours, printed=printed, unit=unit))

    assert points(91.0, 95.0, "percent") == -4.0
    assert points(0.91, 0.95, "fraction") == pytest.approx(-4.0)
    assert points(1.5, 2.0, "l2") == pytest.approx(-25.0)
    assert points(0.0, 0.0, "l2") == 0.0
    assert points(1.0, 0.0, "l2") == math.inf
    assert item_grid.points(items.cell({}, 1.0)) is None


def test_kendall_tau_stands_under_its_column() -> None:
    found = item_grid.grid(items.table())
    taus = [found.tau(items.table(), at) for at in range(len(found.columns))]
    assert taus == [1.0, 0.6667, None, None, None]


def test_the_heading_of_an_item_without_a_print() -> None:
    bare = items.item([items.cell({"defense": "nt", "attack": "fgsm"})])
    assert item_grid.heading(bare) == "afd/table1 · quick · n = 1,000"


def test_titles_of_items() -> None:
    assert item_grid.title(items.table()) == "table 1"
    assert item_grid.title(items.figure()) == "figure A2"
