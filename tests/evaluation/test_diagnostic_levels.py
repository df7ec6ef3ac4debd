"""The levels at which the checks fire, from evidence made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_defenses.core.norms import largest_allowed
from robustbench_defenses.evaluation.diagnostics import (
    Evidence,
    run_checks,
    survivors,
    tolerance,
)
from robustbench_defenses.evaluation.record import Record
from robustbench_defenses.evaluation.schema import Diagnostic

CHECKS = ["D4", "D5", "D6", "D8", "D13", "D16", "D17", "D20", "D28", "D29", "D30", "D32"]
INF = np.inf


def evidence(count: int = 1000, **changes: Any) -> Evidence:
    """Evidence without any flaw: all examples fall at eps 0.2, none at 0.1."""
    label = np.arange(count) % 10
    record = Record(
        np.arange(count) + 5000, label, label.copy(), np.full(count, 0.15), np.full(count, 0.2),
        np.full(count, 41),
    )  # fmt: skip
    no = np.zeros(count, dtype=bool)
    base = Evidence(
        record=record, grid=(0.1, 0.2), norm="linf", attack="pgd_linf", targeted=False, classes=10,
        zero_start=no, zero_end=no, tried=~no, compared=~no, loss_rose=~no, reach=np.ones(count),
        travel={0.1: 0.25, 0.2: 0.5}, invalid_claims=0, pixel_range=(0.0, 1.0),
        probabilities=False, coupling=0.0, buffers_changed=False, trained_mode=False,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def share(count: int, value: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.arange(count) < round(value * count)


def result(id_: str, e: Evidence) -> Diagnostic:
    return {one.id: one for one in run_checks(e)}[id_]


def level(id_: str, e: Evidence) -> str:
    one = result(id_, e)
    return one.severity if one.fired else "silent"


def with_survivors(e: Evidence, alive: np.ndarray[Any, np.dtype[np.bool_]]) -> Evidence:
    distance = np.where(alive, INF, e.record.distance)
    budget = np.where(alive, INF, e.record.budget)
    return dataclasses.replace(
        e, record=dataclasses.replace(e.record, distance=distance, budget=budget)
    )


def test_flawless_evidence_is_silent() -> None:
    # D29 is about n alone.
    assert [one.id for one in run_checks(evidence(9000)) if one.fired] == []
    assert [one.id for one in run_checks(evidence())] == CHECKS


@pytest.mark.parametrize(
    ("zero", "expected"), [(0.0, "silent"), (0.001, "warning"), (0.01, "warning"), (0.011, "error")]
)
@pytest.mark.parametrize("when", ["zero_start", "zero_end"])
def test_zero_gradient_levels(zero: float, expected: str, when: str) -> None:
    mask = share(1000, zero)
    e = with_survivors(evidence(**{when: mask}), share(1000, 0.5))
    assert level("D6", e) == expected
    # A zero gradient of an example that fell all the same did no harm.
    assert level("D6", evidence(**{when: mask})) == "silent"


@pytest.mark.parametrize(
    ("stuck", "expected"), [(0.05, "silent"), (0.051, "warning"), (0.5, "warning"), (0.51, "error")]
)
def test_loss_rises_levels(stuck: float, expected: str) -> None:
    assert level("D8", evidence(loss_rose=~share(1000, stuck))) == expected
    assert level("D8", evidence(loss_rose=~share(1000, stuck), attack="fgsm_linf")) == "silent"
    # Only runs that failed are looked at, and whose loss is known.
    compared = ~share(1000, stuck)
    assert level("D8", evidence(loss_rose=~share(1000, stuck), compared=compared)) == "silent"
    assert level("D8", evidence(loss_rose=share(1000, 0), compared=share(1000, 0))) == "silent"


@pytest.mark.parametrize(("coupling", "expected"), [(1e-4, "silent"), (1.1e-4, "error")])
def test_coupling_levels(coupling: float, expected: str) -> None:
    assert level("D13", evidence(coupling=coupling)) == expected
    assert level("D13", evidence(buffers_changed=True)) == "error"


def test_invalid_claims_level() -> None:
    assert level("D16", evidence(invalid_claims=0)) == "silent"
    assert level("D16", evidence(invalid_claims=1)) == "error"


@pytest.mark.parametrize(("low", "high"), [(-0.01, 1.0), (0.0, 1.01), (0.0, 255.0)])
def test_pixel_range_level(low: float, high: float) -> None:
    assert level("D17", evidence(pixel_range=(low, high))) == "error"
    assert "wrong units" in result("D17", evidence(pixel_range=(low, high))).sentence


@pytest.mark.parametrize(
    ("reach", "expected"), [(1.0, "silent"), (0.91, "silent"), (0.89, "warning")]
)
def test_budget_use_levels(reach: float, expected: str) -> None:
    assert level("D20", evidence(reach=np.full(1000, reach))) == expected


def test_budget_use_by_declared_travel() -> None:
    assert level("D20", evidence(travel={0.1: 0.1, 0.2: 0.2})) == "silent"
    assert level("D20", evidence(travel={0.1: 0.25, 0.2: 0.19})) == "error"
    assert level("D20", evidence(travel={})) == "silent"
    assert result("D20", evidence(travel={}, reach=np.full(1000, np.nan))).skipped is not None


@pytest.mark.parametrize(
    ("only", "expected"), [(0.002, "silent"), (0.003, "warning"), (0.02, "error")]
)
def test_one_step_levels(only: float, expected: str) -> None:
    """fgsm breaks a share of the examples at 0.1, where the attack at hand breaks none."""
    e = evidence()
    mask = share(1000, only)
    stronger = dataclasses.replace(
        e.record, distance=np.where(mask, 0.05, 0.15), budget=np.where(mask, 0.1, 0.2)
    )
    assert level("D5", dataclasses.replace(e, one_step=stronger)) == expected
    assert level("D5", dataclasses.replace(e, one_step=e.record)) == "silent"
    other = dataclasses.replace(stronger, index=stronger.index + 1)
    assert result("D5", dataclasses.replace(e, one_step=other)).skipped is not None
    # Images of one step often carry over better to another network: that is no fault.
    carried = dataclasses.replace(e, one_step=stronger, transfer=True)
    assert result("D5", carried).skipped is not None


def test_one_step_names_the_images() -> None:
    e = evidence()
    mask = np.zeros(1000, dtype=bool)
    mask[[3, 70]] = True
    mask[100:140] = True
    record = dataclasses.replace(
        e.record, distance=np.where(mask, 0.05, 0.15), budget=np.where(mask, 0.1, 0.2)
    )
    found = result("D5", dataclasses.replace(e, one_step=record))
    assert found.images[:3] == [5003, 5070, 5100]  # numbers of the test set
    assert len(found.images) == 20
    assert found.value == pytest.approx(0.042)


def test_large_eps_allows_the_largest_class_and_chance() -> None:
    """At most a tenth survives a budget of 0.5, give or take three standard errors."""
    e = evidence(grid=(0.1, 0.5))
    limit = 0.1 + 3 * (0.1 * 0.9 / 1000) ** 0.5
    assert level("D4", with_survivors(e, share(1000, limit - 0.001))) == "silent"
    assert level("D4", with_survivors(e, share(1000, limit + 0.002))) == "error"
    assert result("D4", evidence(grid=(0.1, 0.49))).skipped is not None
    assert result("D4", evidence(grid=(0.1, 0.5), transfer=True)).skipped is not None
    assert result("D4", evidence(grid=(0.1, 0.5), norm="l2")).skipped is not None


def test_a_search_at_any_distance_has_to_find_something() -> None:
    e = evidence(unbounded=True)
    assert level("D4", with_survivors(e, share(1000, 0.12))) == "silent"
    found = result("D4", with_survivors(e, share(1000, 0.2)))
    assert (found.severity, found.fired, found.eps) == ("error", True, None)
    assert found.sentence.startswith("20.0 % survive a search at any distance")
    assert result("D4", evidence(unbounded=True, targeted=True)).skipped == "a targeted attack"


def test_sample_size() -> None:
    assert not result("D29", evidence(9000)).fired
    few = with_survivors(evidence(100), share(100, 0.5))
    assert result("D29", few).fired
    assert result("D29", few).severity == "info"
    assert "n = 100" in result("D29", few).sentence


def test_random_subjects_are_not_held_to_their_batch() -> None:
    assert result("D13", evidence(coupling=0.5, random=True)).skipped is not None
    assert level("D13", evidence(buffers_changed=True, random=True)) == "error"


@pytest.mark.parametrize(
    ("attack", "parameters", "classes", "expected"),
    [
        ("pgd_linf", {"loss": "ce"}, 2, "silent"),
        ("pgd_linf", {"loss": "dlr"}, 3, "silent"),
        ("pgd_linf", {"loss": "dlr"}, 2, "info"),
        ("apgd_t_linf", {"loss": "dlr", "targets": 9}, 4, "silent"),
        ("apgd_t_linf", {"loss": "dlr", "targets": 9}, 3, "info"),
        ("autoattack_linf", {}, 3, "info"),
    ],
)
def test_few_classes(attack: str, parameters: dict[str, Any], classes: int, expected: str) -> None:
    e = evidence(attack=attack, parameters=parameters, classes=classes)
    assert level("D28", e) == expected


@pytest.mark.parametrize(("accuracy", "expected"), [(0.98, "silent"), (0.985, "warning")])
def test_better_than_all_that_is_known(accuracy: float, expected: str) -> None:
    e = with_survivors(evidence(dataset="mnist", grid=(0.1, 0.3)), share(1000, accuracy))
    assert level("D30", e) == expected
    assert level("D30", dataclasses.replace(e, dataset="digits")) == "silent"
    assert level("D30", dataclasses.replace(e, grid=(0.1, 0.2))) == "silent"


@pytest.mark.parametrize(("left", "expected"), [(0.69, "silent"), (0.72, "warning")])
def test_robust_beyond_its_training(left: float, expected: str) -> None:
    """All survive the training eps 0.3; a share survives 0.4."""
    e = evidence(grid=(0.3, 0.4), trained_eps=0.3)
    distance = np.where(share(1000, left), INF, 0.35)
    record = dataclasses.replace(
        e.record, distance=distance, budget=np.where(share(1000, left), INF, 0.4)
    )
    e = dataclasses.replace(e, record=record)
    assert level("D30", e) == expected
    assert level("D30", dataclasses.replace(e, trained_eps=0.1)) == "silent"
    assert level("D30", dataclasses.replace(e, trained_eps=None)) == "silent"


def test_a_value_that_is_no_number_is_skipped() -> None:
    assert "finite" in str(result("D13", evidence(coupling=float("nan"))).skipped)


def test_what_is_stored() -> None:
    """Id, severity, value, threshold, n, attack, eps, images and what to do."""
    e = with_survivors(evidence(zero_start=share(1000, 0.05), grid=(0.2,)), share(1000, 0.5))
    found = result("D6", e)
    assert (found.attack, found.eps, found.n) == ("pgd_linf", 0.2, 1000)
    assert found.value == pytest.approx(0.05)
    assert found.images == list(range(5000, 5020))
    assert "loss=margin" in str(found.hint)
    quiet = result("D6", evidence())
    assert (quiet.eps, quiet.hint, quiet.images) == (None, None, [])


def test_survivors_by_distance_and_by_table() -> None:
    e = evidence(4)
    limit = float(largest_allowed(torch.tensor(0.1, dtype=torch.float64)))
    record = dataclasses.replace(e.record, distance=np.array([0.05, limit, 0.11, INF]))
    assert survivors(record, 0.1).tolist() == [False, False, True, True]
    eps = np.array([0.1, 0.2])
    broken = np.array([[True, False, False, False], [False, False, True, False]])
    table = Record.from_table(
        record.index, record.label, record.clean_prediction, record.queries, eps, broken
    )
    assert survivors(table, 0.1).tolist() == [False, True, True, True]
    assert survivors(table, 0.2).tolist() == [True, True, False, True]  # afresh at every budget


def test_tolerance() -> None:
    assert tolerance(100) == 0.02
    assert tolerance(10_000) == 0.002
