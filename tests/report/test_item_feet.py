"""The lines under an item's tables."""

from __future__ import annotations

from robustbench_defenses.report import item_feet
from robustbench_defenses.report.item import Agreement, ColumnAgreement, ItemCell, ItemRun
from tests.report import items


def test_feet_say_what_a_reader_must_know() -> None:
    feet = item_feet.feet(items.table())
    assert feet[0] == (
        "22 of 24 printed cells measured · 6 within 2 points · printed order kept in 1 of 2 "
        "columns (Kendall tau 0.83 on average)"
    )
    assert feet[1] == "accuracy in percent · 95 % interval up to ±2.5 · mean over 2 seeds"
    assert "! logit <scale> (afd)" in feet
    assert not any("sample size" in line for line in feet)
    assert (
        "strong: worst case per image over all of the paper's attacks and AutoAttack, n = 200"
        in (feet)
    )
    assert "digits stands in for cifar10: not the data that the paper used" in feet
    assert "quick: 6 epochs instead of 100, 1 other setting differs" in feet
    assert any("the loss diverged in epoch 3" in line for line in feet)
    assert "1 cell failed: out of memory" in feet
    assert "1 cell cannot be measured here: no svhn" in feet
    assert "1 cell cited by the paper only, not run by us" in feet


def test_feet_of_an_empty_item_are_silent() -> None:
    bare = items.item([items.cell({"defense": "nt", "attack": "fgsm"})])
    bare = bare.model_copy(update={"agreement": Agreement(printed=0, measured=0, within_two=0)})
    assert item_feet.feet(bare) == []


def test_the_mean_tau_is_over_columns_that_have_one() -> None:
    columns = tuple(
        ColumnAgreement(column={"attack": str(at)}, tau=tau, cells=3)
        for at, tau in enumerate((1.0, None, 0.0))
    )
    found = Agreement(printed=9, measured=9, within_two=9, columns=columns)
    line = item_feet.agreement(items.table(agreement=found))
    assert line.endswith("printed order kept in 1 of 2 columns (Kendall tau 0.50 on average)")


def test_epochs_and_images_are_told_and_other_deviations_counted() -> None:
    def run(*deviations: str) -> ItemRun:
        return ItemRun(
            id="a", defense="nt", dataset="d", model="m", seed=0, epochs=1, deviations=deviations
        )

    runs = (
        run("epochs 3 instead of 300", "limit_train 2000 instead of 0", "loss a instead of b"),
        run("epochs 3 instead of 40", "limit_train 2000 instead of 0", "width 8 instead of 32"),
    )
    said = "3 epochs instead of 40 to 300, 2,000 training images instead of all"
    assert item_feet.schedule(items.table(runs=runs)) == [f"quick: {said}, 2 other settings differ"]
    alone = items.table(runs=(run("limit_train 100 instead of 500"),))
    assert item_feet.schedule(alone) == ["quick: 100 training images instead of 500"]
    unread = items.table(runs=(run("limit_train some instead of many", "b"),))
    said = "quick: some training images instead of many, 1 other setting differs"
    assert item_feet.schedule(unread) == [said]
    assert item_feet.schedule(items.table(runs=(run(),))) == []


def test_attacks_with_fewer_images_are_named() -> None:
    cells = [items.cell({"attack": "fgsm"}, 1.0), items.cell({"attack": "cw"}, 1.0)]
    assert cells[1].ours is not None
    fewer = cells[1].ours.model_copy(update={"n": 200})
    cells[1] = cells[1].model_copy(update={"ours": fewer})
    assert "cw: n = 200" in item_feet.feet(items.item(cells))
    assert not [line for line in item_feet.feet(items.item(cells[:1])) if "fgsm: n" in line]


def _printed(defense: str, attack: str, **changes: object) -> ItemCell:
    return items.cell({"defense": defense, "attack": attack}, 1.0, printed=2.0, **changes)


def test_copied_and_flagged_values_are_told_by_what_they_have_in_common() -> None:
    cells = [
        _printed("nt", "fgsm", cited=True),
        _printed("nt", "pgd", cited=True),
        _printed("afd", "fgsm"),
        _printed("afd", "pgd", flag="above_bound"),
    ]
    found = items.item(cells, rows=("attack",), columns=("defense",))
    assert item_feet.flagged(found) == [
        "probably copied from other papers: nt (2 cells)",
        "printed, above bound: pgd, afd (1 cell)",
    ]
    assert item_feet.flagged(items.item([_printed("nt", "fgsm")])) == []


def test_agreement_counts_copied_values_apart() -> None:
    found = Agreement(printed=9, measured=8, within_two=5, cited=6, cited_within_two=4)
    line = item_feet.agreement(items.table(agreement=found))
    assert line == (
        "8 of 9 printed cells measured · 5 within 2 points "
        "(of the 2 that the paper did not copy: 1)"
    )
    copied = Agreement(printed=9, measured=8, within_two=5, cited=8, cited_within_two=5)
    assert item_feet.agreement(items.table(agreement=copied)).endswith("2 points (all copied)")


def test_a_failure_is_told_though_an_earlier_number_stands_there() -> None:
    cells = [
        items.cell({"attack": "fgsm"}, 1.0, status="failed", reason="out of memory"),
        items.cell({"attack": "pgd"}, status="failed", reason="out of memory"),
    ]
    feet = item_feet.feet(items.item(cells))
    assert "1 cell failed: out of memory" in feet
    assert "1 cell failed this time and shows an earlier number: out of memory" in feet
