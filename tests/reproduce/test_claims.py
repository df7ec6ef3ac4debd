"""Checks of claims: what holds, what does not, what cannot be decided."""

from __future__ import annotations

import pytest

from robustbench_defenses.report.item import ItemCell, Measured
from robustbench_defenses.reproduce.claims import judge
from robustbench_defenses.reproduce.recipe import Check, Claim

LAYOUT = ("d", "eps", "attack")


def _cells(*values: tuple[dict[str, object], float]) -> list[ItemCell]:
    return [
        ItemCell(
            keys=keys, metric="accuracy", unit="percent", printed=50.0,
            ours=Measured(value=value, n=100),
        )
        for keys, value in values
    ]  # fmt: skip


def _by(name: str, **values: float) -> list[ItemCell]:
    return _cells(*(({name: key, "attack": "pgd"}, value) for key, value in values.items()))


def _along(name: str, values: dict[float, float]) -> list[ItemCell]:
    return _cells(*(({name: key, "attack": "pgd"}, value) for key, value in values.items()))


@pytest.mark.parametrize(
    ("check", "cells", "holds"),
    [
        ({"kind": "greater", "left": {"d": "a"}, "right": {"d": "b"}}, _by("d", a=2, b=1), True),
        ({"kind": "greater", "left": {"d": "a"}, "right": {"d": "b"}}, _by("d", a=1, b=1), False),
        (
            {"kind": "greater", "left": {"d": "a"}, "right": {"d": "b"}, "by": 10},
            _by("d", a=12, b=3),
            False,
        ),
        ({"kind": "greater", "left": {"d": "a"}, "right": {"d": "b"}}, _by("d", a=1, c=0), None),
        ({"kind": "at_most", "value": 11.35}, _by("d", a=11.3, b=5), True),
        ({"kind": "at_most", "value": 11.35}, _by("d", a=11.4, b=5), False),
        ({"kind": "at_least", "value": 5}, _by("d", a=5), True),
        ({"kind": "at_least", "where": {"d": "b"}, "value": 5}, _by("d", a=5, b=4), False),
        ({"kind": "monotone", "along": "eps"}, _along("eps", {0.1: 9, 0.2: 9, 0.3: 1}), True),
        ({"kind": "monotone", "along": "eps"}, _along("eps", {0.3: 1, 0.1: 9, 0.2: 10}), False),
        (
            {"kind": "monotone", "along": "eps", "order": ["rising"]},
            _along("eps", {0.1: 1, 0.2: 5}),
            True,
        ),
        ({"kind": "monotone", "along": "eps", "by": 1}, _along("eps", {0.1: 9, 0.2: 9}), False),
        ({"kind": "monotone", "along": "eps", "by": 1}, _along("eps", {0.1: 9, 0.2: 8}), True),
        (
            {"kind": "monotone", "along": "eps", "order": ["rising"], "by": 1},
            _along("eps", {0.1: 1, 0.2: 1}),
            False,
        ),
        ({"kind": "spread", "along": "d", "value": 1}, _by("d", a=1, b=2), True),
        ({"kind": "spread", "along": "d", "value": 1}, _by("d", a=1, b=2.5), False),
        ({"kind": "spread", "along": "d", "value": 1}, _by("d", a=1), None),
        (
            {"kind": "order", "along": "d", "order": ["a", "b", "c"]},
            _by("d", c=1, a=3, b=2),
            True,
        ),
        ({"kind": "order", "along": "d", "order": ["a", "b"]}, _by("d", a=1, b=2), False),
        ({"kind": "order", "along": "d", "order": ["a", "b"]}, _by("d", a=2, b=2), False),
        ({"kind": "order", "along": "d", "order": ["a", "z"]}, _by("d", a=1, b=2), None),
        ({"kind": "top", "along": "d", "order": ["a"], "value": 2}, _by("d", a=2, b=3, c=1), True),
        ({"kind": "top", "along": "d", "order": ["a"]}, _by("d", a=2, b=3), False),
        ({"kind": "top", "along": "d", "order": ["a"]}, _by("d", a=3, b=3), False),
        ({"kind": "top", "along": "d", "order": ["a"], "value": 2}, _by("d", a=3, b=3, c=1), True),
        ({"kind": "top", "along": "d", "order": ["a", "b"], "value": 2}, _by("d", a=2, b=3, c=1),
         True),
        ({"kind": "top", "along": "d", "order": ["a", "b"], "value": 2}, _by("d", a=0, b=3, c=1),
         False),
    ],
)  # fmt: skip
def test_each_kind(check: dict[str, object], cells: list[ItemCell], holds: bool | None) -> None:
    claim = Claim(id="c", text="said", check=Check.model_validate(check))
    assert judge(claim, cells, LAYOUT).ours is holds


def test_the_printed_numbers_are_judged_apart() -> None:
    check = Check.model_validate({"kind": "greater", "left": {"d": "a"}, "right": {"d": "b"}})
    found = judge(Claim(id="c", text="said", check=check), _by("d", a=2, b=1), LAYOUT)
    assert found.ours is True
    assert found.printed is False  # 50 is not above 50


def test_a_fault_names_its_cells() -> None:
    check = Check.model_validate({"kind": "greater", "left": {"d": "a"}, "right": {"d": "b"}})
    found = judge(Claim(id="c", text="said", check=check), _by("d", a=1.25, b=3), LAYOUT)
    assert found.sentence == "does not hold: pgd: a 1.2 against b 3.0"


def test_without_a_check_nothing_is_decided() -> None:
    found = judge(Claim(id="c", text="said"), _by("d", a=1), LAYOUT)
    assert (found.ours, found.printed) == (None, None)


GREATER = Check.model_validate({"kind": "greater", "left": {"d": "a"}, "right": {"d": "b"}})


def _half(*values: tuple[float, float | None]) -> list[ItemCell]:
    """Pairs (a, b) at one eps after the other; None is not measured."""
    return [
        cell.model_copy(update={"ours": None}) if value is None else cell
        for at, pair in enumerate(values)
        for name, value in zip("ab", pair)
        for cell in _cells(({"d": name, "eps": 0.1 * at, "attack": "pgd"}, value or 0.0))
    ]


def test_a_claim_holds_only_when_every_cell_is_measured() -> None:
    found = judge(Claim(id="c", text="said", check=GREATER), _half((2, 1), (2, None)), LAYOUT)
    assert found.ours is None
    assert found.sentence == "holds so far: 2 of 4 cells are measured"
    whole = judge(Claim(id="c", text="said", check=GREATER), _half((2, 1), (2, 1)), LAYOUT)
    assert (whole.ours, whole.sentence) == (True, "holds")


def test_one_cell_refutes_a_claim_for_good() -> None:
    found = judge(Claim(id="c", text="said", check=GREATER), _half((1, 2), (2, None)), LAYOUT)
    assert found.ours is False


def test_cells_that_are_only_cited_are_not_waited_for() -> None:
    cited = [cell.model_copy(update={"status": "cited"}) for cell in _half((2, None))]
    found = judge(Claim(id="c", text="said", check=GREATER), [*_half((2, 1)), *cited], LAYOUT)
    assert found.ours is True


def test_of_several_checks_all_have_to_hold() -> None:
    other = Check.model_validate({"kind": "at_most", "where": {"d": "b"}, "value": 0.5})
    claim = Claim(id="c", text="said", check=(GREATER, other))
    assert judge(claim, _by("d", a=2, b=1), LAYOUT).ours is False
    assert judge(claim, _by("d", a=2, b=0.5), LAYOUT).ours is True


def test_twins_are_found_by_their_place_in_the_table() -> None:
    """A clean cell has no eps, and is the twin of every attacked one."""
    check = Check.model_validate(
        {"kind": "greater", "where": {"d": "a"}, "left": {"attack": "pgd"},
         "right": {"attack": "none"}, "by": -5}
    )  # fmt: skip
    cells = _cells(({"d": "a", "attack": "none"}, 99), ({"d": "a", "attack": "pgd", "eps": 1}, 96))
    assert judge(Claim(id="c", text="said", check=check), cells, ("d", "attack")).ours is True
