"""Three subjects on digits: large logits, rounded inputs, honest training; and the cards."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import robustbench_defenses as rrd
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.registry import normal
from robustbench_defenses.evaluation import battery, checks, diagnostics
from robustbench_defenses.evaluation.diagnose import FAULT, TOLD, Diagnosis, diagnose

from .defects import Wrapped, rounding, same

SHIPPED = Path(__file__).parents[2] / "results" / "checkpoints"


def network(defense: str) -> nn.Module:
    (folder,) = (SHIPPED / "runs").glob(f"digits-lenet-{defense}-*")
    return rrd.load(str(folder))


def diagnosed(subject: nn.Module, **options: Any) -> Diagnosis:
    given = {"dataset": "digits", "eps": 0.1, "n": 100, "results_dir": SHIPPED}
    given |= {"precision": "fp32", "threads": 1}
    return diagnose(subject, **(given | options))


def ids(found: Diagnosis, severity: str) -> set[str]:
    return {one.id for one in found.fired(severity)}


Change = Callable[[Tensor], Tensor]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "errors", "silent", "reason"),
    [
        (same, lambda z: 300 * z, {"D4", "D6", "D7", "D8", "D9", "D24"}, {"D18"}, "so large that"),
        (rounding(4), same, {"D1", "D4", "D6", "D8", "D9", "D10", "D18", "D24"}, {"D7"}, "flat in"),
    ],
    ids=["logits x 300", "inputs rounded to four levels"],
)
def test_masked_gradients_are_told_with_their_reason(
    before: Change, after: Change, errors: set[str], silent: set[str], reason: str
) -> None:
    found = diagnosed(Wrapped(before, after, network("nt")))
    assert ids(found, "error") == errors
    fired = {one.id for one in found.checks if one.fired}
    assert not fired & silent
    assert found.conclusion.startswith("No, its gradients are masked: ")
    assert reason in found.conclusion
    assert f"at most {100 * found.left:.1f} %" in found.conclusion
    assert found.left < found.base - 0.2


@pytest.mark.parametrize(
    ("base", "left", "begins"),
    [
        (0.50, 0.46, "Nothing here speaks against it."),
        (0.78, 0.55, "Partly: no check finds masked gradients, but pgd is too weak"),
        (0.01, 0.00, "There is little robustness to doubt"),
    ],
)
def test_what_a_weak_attack_leaves_is_not_called_sound(
    base: float, left: float, begins: str
) -> None:
    found = Diagnosis("s", "digits", "pgd", "linf", 0.2, 200, [], base, left, ["pgd"], 0, 0, 0.0)
    assert found.conclusion.startswith(begins)


@pytest.mark.slow
def test_an_honest_defense_is_not_accused() -> None:
    found = diagnosed(network("pgd_at"))
    assert ids(found, "error") == set()
    assert [one.id for one in found.checks] == [f"D{number}" for number in range(1, 33)]
    assert {one.id for one in found.checks if one.skipped is not None} == {"D28", "D30", "D32"}
    assert found.conclusion.startswith("Nothing here speaks against it.")
    assert found.left > 0.5
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert document["summary"] == {"errors": 0, "warnings": len(found.fired("warning"))}
    assert {"id", "severity", "value", "threshold", "n", "attack", "eps", "images", "hint"} <= set(
        document["checks"][0]
    )


@pytest.mark.slow
def test_little_robustness_is_not_doubted() -> None:
    found = diagnosed(network("nt"), eps=0.3, n=40)
    assert ids(found, "error") == set()
    assert found.conclusion.startswith("There is little robustness to doubt")


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="above 0"):
        diagnosed(network("nt"), eps=0.0)


# Cards.


def test_every_diagnostic_has_one_card() -> None:
    cards = checks.cards()
    assert [card.id for card in cards] == [f"D{number}" for number in range(1, 33)]
    assert len({card.name for card in cards}) == 32
    for card in cards:
        assert card.blames in checks.GROUPS
        assert card.unit in checks.UNITS
        assert set(card.levels) <= set(checks.ORDER)
        assert card.formula
        assert card.means.endswith(".")
        assert card.do
        assert card.source
        assert card.thresholds
        if "error" in card.levels or "error" in card.also:
            assert card.cause, card.id
    assert {card.blames for card in cards} == set(FAULT)
    assert set(TOLD) <= {card.id for card in cards}


def test_what_is_read_is_what_is_registered() -> None:
    """`cards()` reads the sources; the decorators made the same cards."""
    registered = [one.card for one in [*diagnostics.CHECKS, *battery.CHECKS]]
    assert sorted(registered, key=lambda card: card.number) == checks.cards()
    assert {card.id for card in checks.cards() if card.always} == {
        one.card.id for one in diagnostics.CHECKS
    }


def test_a_card_is_a_literal_above_its_function() -> None:
    files = [checks.HERE / checks.ALWAYS, *sorted((checks.HERE / "battery").glob("*.py"))]
    decorated = [
        node.name
        for path in files
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef) and node.decorator_list
        if any(getattr(getattr(d, "func", None), "id", "") == "check" for d in node.decorator_list)
    ]
    assert len(decorated) == len(set(decorated)) == 32


@pytest.mark.parametrize("name", ["zero_gradient", "Zero gradient", "zero-gradient", "D6", "d6"])
def test_names_lead_to_cards(name: str) -> None:
    assert checks.find(name).id == "D6"


def test_near_names_are_suggested() -> None:
    with pytest.raises(UserError) as caught:
        checks.find("zero_gradeint")
    assert "zero_gradient" in str(caught.value.hint)
    assert normal(checks.find("D23").name) == "min_norm_against_fixed_eps"


def test_levels_in_words() -> None:
    assert checks.find("D6").thresholds == "error > 1 %, warning > 0 %"
    assert checks.find("D12").thresholds == "warning > 2 points and two images"
    assert checks.find("D1").thresholds.startswith("error > 1 % and two images")
    assert checks.find("D9").cost == "1,000 forward on each of 50 images"
    assert checks.find("D16").cost == "none"
