"""Recipes: every printed cell has a producer that the registry knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_defenses.core import registry
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation.question import named as attack_named
from robustbench_defenses.report.item import ItemCell, Measured
from robustbench_defenses.reproduce import recipe as recipes
from robustbench_defenses.reproduce.claims import judge
from robustbench_defenses.reproduce.jobs import Training, frozen
from robustbench_defenses.reproduce.recipe import Recipe, expand, fill, matches

ITEMS = recipes.named("all")
# Numbers that the papers print in each item.
PRINTED = {
    "aicr/figure2": 0,
    "aicr/figure3": 0,
    "aicr/table2": 165,
    "aicr/table3": 104,
    "aicr/table4": 20,
    "aicr/table5": 96,
    "aicr/table6": 84,
}


def test_the_items_of_each_paper_are_there() -> None:
    assert {item.id for item in ITEMS} == set(PRINTED)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.id)
def test_every_printed_number_is_there_and_has_a_producer(item: Recipe) -> None:
    cells = item.cells()
    assert sum(cell.printed_here and cell.value is not None for cell in cells) == PRINTED[item.id]
    for cell in cells:
        if any(matches(where, cell.keys) for where in item.cited_only):
            assert cell.cited, cell.label
            continue
        for arm in (None, *(arm for arm in item.arms if matches(arm.where, cell.keys))):
            rules = item.rules(cell)
            rules = (rules if arm is None else rules.under(arm)).filled(cell.keys)
            for rule in filter(None, (rules.subject, rules.source)):
                registry.find("dataset", rule.dataset)
                # Resolves defense, network and every setting; a `UserError` otherwise.
                Training(
                    rule.defense, rule.dataset, rule.model, "quick", rule.variant, 0,
                    frozen(rule.settings),
                ).question  # fmt: skip
            if rules.attack is not None:
                attack_named(rules.attack.name, None).settings(rules.attack.settings)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.id)
def test_claims_speak_of_cells_that_exist(item: Recipe) -> None:
    cells = item.cells()
    for claim in item.claims:
        for check in claim.checks:
            for side in (check.where, check.left, check.right):
                assert any(matches(side, cell.keys) for cell in cells), (claim.id, side)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.id)
def test_every_check_is_decided_once_all_is_measured(item: Recipe) -> None:
    layout = (*item.layout.rows, *item.layout.columns)
    cells = [
        ItemCell(keys=cell.keys, metric=cell.metric, unit=cell.unit, ours=Measured(value=1, n=9))
        for cell in item.cells()
    ]
    for claim in item.claims:
        for check in claim.checks:
            alone = claim.model_copy(update={"check": check})
            assert judge(alone, cells, layout).ours is not None, claim.id


MINIMAL = {
    "id": "p/t",
    "kind": "table",
    "title": "t",
    "source": "somebody",
    "metric": "accuracy",
    "unit": "percent",
    "layout": {"rows": ["defense"], "columns": ["attack"]},
    "subjects": [{}],
    "attacks": [{"where": {"attack": "fgsm"}}],
}


def _cell(**keys: object) -> dict[str, object]:
    return {"dataset": "digits", "defense": "nt", "setting": "white_box", "value": 1.0, **keys}


def test_a_cell_without_a_producer_is_refused() -> None:
    with pytest.raises(ValueError, match="no attack for cell"):
        Recipe.model_validate({**MINIMAL, "printed": [_cell(attack="pgd", eps=0.1)]})
    black = _cell(attack="fgsm", eps=0.1, setting="black_box")
    with pytest.raises(ValueError, match="no source for cell"):
        Recipe.model_validate({**MINIMAL, "printed": [black]})


def test_only_cited_cells_may_be_left_out() -> None:
    base = {**MINIMAL, "cited_only": [{"attack": "pgd"}]}
    with pytest.raises(ValueError, match="is left out, and is not cited"):
        Recipe.model_validate({**base, "printed": [_cell(attack="pgd", eps=0.1)]})
    Recipe.model_validate({**base, "printed": [_cell(attack="pgd", eps=0.1, cited=True)]})


def test_doubles_and_incomplete_cells_are_refused() -> None:
    cell = _cell(attack="fgsm", eps=0.1)
    with pytest.raises(ValueError, match="is there twice"):
        Recipe.model_validate({**MINIMAL, "printed": [cell, {**cell, "value": 2.0}]})
    with pytest.raises(ValueError, match="lacks attack"):
        Recipe.model_validate({**MINIMAL, "printed": [_cell(eps=0.1)]})


def test_expand_multiplies_lists_out_and_fill_puts_values_in() -> None:
    assert list(expand({"a": [1, 2], "b": "x"})) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    filled = fill({"width": "$width", "steps": 3, "more": ["$width"]}, {"width": 64})
    assert filled == {"width": 64, "steps": 3, "more": [64]}
    with pytest.raises(ValueError, match=r"speaks of \$depth"):
        fill("$depth", {"width": 1})


def test_broken_files_are_told_with_their_name(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    path = tmp_path / "p" / "t.yaml"
    path.write_text("title: [unfinished")
    with pytest.raises(UserError, match=r"t\.yaml is no recipe"):
        recipes.load(path, tmp_path)
    path.write_text("title: x\nnonsense: 1\n")
    with pytest.raises(UserError, match=r"t\.yaml is no recipe"):
        recipes.load(path, tmp_path)


def test_an_unknown_item_is_a_user_error() -> None:
    with pytest.raises(UserError, match="there is no recipe 'aicr/table9'") as caught:
        recipes.named("aicr/table9")
    assert "aicr/table" in str(caught.value.hint)
