"""Metrics against closed forms, other implementations, and their own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustbench_defenses.core import norms
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.evaluation import metrics
from robustbench_defenses.evaluation.record import Record

from . import builders

GRID = builders.GRID


@pytest.mark.parametrize("eps", [0.0, 1e-9, 0.0025, 8 / 255, 0.3, 1.0, 12.5])
def test_the_tolerance_is_the_one_of_the_norms(eps: float) -> None:
    twin = norms.largest_allowed(torch.tensor(eps, dtype=torch.float64)).item()
    assert metrics.largest_allowed(eps) == twin


def test_robust_accuracy_counts_distances_beyond_the_tolerance() -> None:
    edge = metrics.largest_allowed(0.3)
    distance = [0.0, 0.3, edge, np.nextafter(edge, 1), 0.31, np.inf]
    assert metrics.robust_accuracy(distance, 0.3) == 3 / 6
    assert metrics.robust_accuracy(distance, 0.0) == 5 / 6
    with pytest.raises(ValueError, match="no examples"):
        metrics.robust_accuracy([], 0.3)


@pytest.mark.parametrize("n", [1, 7, 360, 10_000])
def test_wilson_equals_scipy(n: int) -> None:
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
        ours = metrics.wilson(k, n)
        assert ours.value == k / n
        assert ours.low == pytest.approx(theirs.low, abs=1e-12)
        assert ours.high == pytest.approx(theirs.high, abs=1e-12)
        assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_wilson_refuses_impossible_counts() -> None:
    for successes, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match=r"successes|examples"):
            metrics.wilson(successes, n)


def test_curve_of_distances_and_of_their_table_agree() -> None:
    rows = builders.record(failed=0.05)
    eps = np.array(GRID)
    broken = rows.distance[None] <= metrics.largest_allowed(1.0) * eps[:, None] + 1e-7
    table = Record.from_table(
        rows.index, rows.label, rows.clean_prediction, rows.queries, eps, broken
    )
    assert metrics.curve(table) == metrics.curve(rows, GRID)
    shares = [point.robust_accuracy for point in metrics.curve(table)]
    np.testing.assert_allclose(metrics.accuracy_from_table(table), shares, rtol=1e-15)


def test_a_table_answers_only_its_own_eps() -> None:
    table = builders.table()
    assert table.eps is not None
    assert table.broken is not None
    without_zero = Record.from_table(
        table.index,
        table.label,
        table.clean_prediction,
        table.queries,
        table.eps[1:],
        table.broken[1:],
    )
    (point,) = metrics.curve(without_zero, [0.0])
    assert point.robust_accuracy == metrics.clean_accuracy(table).value
    with pytest.raises(ValueError, match=r"eps 0\.12 is not in the table"):
        metrics.curve(table, [0.12])
    with pytest.raises(ValueError, match="needs a grid"):
        metrics.curve(builders.record())


@given(st.lists(st.floats(0, 2) | st.just(math.inf), min_size=1, max_size=30))
def test_accuracy_falls_with_eps_and_never_exceeds_clean(distances: list[float]) -> None:
    shares = [metrics.robust_accuracy(distances, eps) for eps in (0, 0.1, 0.5, 1, 2, 3)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] <= sum(d > 0 for d in distances) / len(distances)
    assert shares[-1] == sum(map(math.isinf, distances)) / len(distances)


def test_auc_of_known_curves() -> None:
    assert metrics.auc([0, 0.1, 0.3], [1, 1, 1]) == 1
    assert metrics.auc([0, 0.1, 0.3], [0, 0, 0]) == 0
    assert metrics.auc([0, 0.2, 0.4], [1, 0.5, 0]) == pytest.approx(0.5)
    # An uneven grid: 0.1 wide at mean 0.75, 0.3 wide at mean 0.25.
    assert metrics.auc([0, 0.1, 0.4], [1, 0.5, 0]) == pytest.approx((0.075 + 0.075) / 0.4)
    assert metrics.auc([0.1, 0.4], [0.5, 0], clean=1) == metrics.auc([0, 0.1, 0.4], [1, 0.5, 0])


@pytest.mark.parametrize(
    ("eps", "accuracy"), [([0.1, 0.2], [1, 1]), ([0], [1]), ([0, 0.2, 0.1], [1, 1, 1]), ([0], [])]
)
def test_auc_needs_a_rising_grid_from_zero(eps: list[float], accuracy: list[float]) -> None:
    with pytest.raises(ValueError, match=r"eps|grid"):
        metrics.auc(eps, accuracy)


def test_curve_auc_is_none_without_a_budget() -> None:
    rows = builders.record()
    assert metrics.curve_auc(metrics.curve(rows, [0.0]), 0.9) is None
    assert metrics.curve_auc([], 0.9) is None
    points = metrics.curve(rows, [0.2])
    clean = metrics.clean_accuracy(rows).value
    assert metrics.curve_auc(points, clean) == pytest.approx(
        (clean + points[0].robust_accuracy) / 2
    )


def test_summaries_speak_of_broken_examples() -> None:
    ones = np.ones(5, np.int64)
    distance = np.array([0.0, 0.1, 0.2, 0.6, np.inf])
    rows = Record(np.arange(5), ones, np.array([0, 1, 1, 1, 1]), distance, distance, ones)
    found = metrics.distance_summary(rows)
    assert (found.broken, found.median) == (3, 0.2)
    assert found.mean == pytest.approx(0.3)
    assert metrics.unbounded_accuracy(rows) == 0.2
    none = metrics.distance_summary(builders.record(n=3, failed=1.0, clean=1.0))
    assert (none.broken, none.median, none.mean) == (0, None, None)


def test_worst_case_is_the_minimum_per_example_in_any_order() -> None:
    first, second = builders.record(scale=0.2), builders.record(scale=0.21, failed=0.3)
    rng = np.random.default_rng(1)
    mixed = rng.permutation(len(second))
    shuffled = Record(
        *(
            getattr(second, name)[mixed]
            for name in ("index", "label", "clean_prediction", "distance", "budget", "queries")
        )
    )
    worst = metrics.worst_case([first, shuffled])
    np.testing.assert_array_equal(worst.distance, np.minimum(first.distance, second.distance))
    np.testing.assert_array_equal(worst.budget, np.minimum(first.budget, second.budget))
    np.testing.assert_array_equal(worst.queries, first.queries + second.queries)
    for eps in GRID:
        shares = [metrics.robust_accuracy(r.distance, eps) for r in (worst, first, second)]
        assert shares[0] <= min(shares[1:])


def test_a_table_brings_its_smallest_broken_eps_to_a_worst_case() -> None:
    one = np.ones(4, np.int64)
    eps = np.array([0.1, 0.2, 0.3])
    # Example 0 falls at 0.2 and stands again at 0.3: only the fall counts.
    broken = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], bool)
    table = Record.from_table(np.arange(4), one, np.array([1, 1, 1, 0]), one, eps, broken)
    distance = np.array([0.25, 0.05, np.inf, 0.0])
    plain = Record(np.arange(4), one, np.array([1, 1, 1, 0]), distance, distance, one)
    assert metrics.worst_case([plain, table]).distance.tolist() == [0.2, 0.05, np.inf, 0.0]


def test_worst_case_of_a_random_subject_keeps_the_wrong_prediction() -> None:
    one = np.ones(2, np.int64)
    right = Record(np.arange(2), one, one, np.array([0.1, 0.2]), np.array([0.1, 0.2]), one)
    wrong = Record(
        np.arange(2), one, np.array([1, 3]), np.array([0.3, 0.0]), np.array([0.3, 0.0]), one
    )
    worst = metrics.worst_case([right, wrong])
    assert worst.clean_prediction.tolist() == [1, 3]
    assert worst.distance.tolist() == [0.1, 0.0]


def test_worst_case_refuses_other_examples() -> None:
    with pytest.raises(UserError, match="same examples"):
        metrics.worst_case([builders.record(n=10), builders.record(n=11)])
    with pytest.raises(UserError, match="same examples"):
        metrics.worst_case([builders.record(n=10), builders.record(n=10, seed=5)])


def test_optimality_by_hand() -> None:
    inf = np.inf
    scores = metrics.optimality({"a": [0, 1, 2, inf], "b": [0, 2, 1, inf], "none": [0, *[inf] * 3]})
    # d* = 0, 1, 1, inf; D = 1; A* = (0 + 1 + 1 + 1) / 4: no room below D at all.
    assert scores == {"a": 1.0, "b": 1.0, "none": 1.0}
    scores = metrics.optimality({"a": [0, 1, 4, inf], "b": [0, 2, 2, inf], "none": [0, *[inf] * 3]})
    # d* = 0, 1, 2, inf; D = 2; A* = 5/4, clean D = 6/4, A_a = 5/4, A_b = 6/4.
    assert scores == {"a": 1.0, "b": 0.0, "none": 0.0}
    scores = metrics.optimality({"a": [1, 2, 4], "b": [2, 3, 4]})
    # D = 4, A* = 7/3, clean D = 4, A_b = 3.
    assert scores["a"] == 1.0
    assert scores["b"] == pytest.approx(1 - (3 - 7 / 3) / (4 - 7 / 3))


def test_optimality_integrates_the_step_function() -> None:
    rows = [builders.record(scale=s, failed=0.1, seed=2).distance for s in (0.2, 0.3)]
    scores = metrics.optimality(dict(enumerate(map(np.asarray, rows))))  # type: ignore[arg-type]
    best = np.minimum(*rows)
    limit = best[np.isfinite(best)].max()
    t = (np.arange(200_000) + 0.5) * limit / 200_000

    def area(distance: np.ndarray) -> float:
        return float((1 - np.searchsorted(np.sort(distance), t, "right") / 360).mean() * limit)

    room = (best > 0).mean() * limit - area(best)
    for name, distance in enumerate(rows):
        expected = 1 - (area(distance) - area(best)) / room
        assert scores[name] == pytest.approx(expected, abs=1e-3)  # type: ignore[index]


def test_optimality_is_undefined_where_nothing_was_found() -> None:
    assert metrics.optimality({}) == {}
    assert metrics.optimality({"a": [0, np.inf]}) == {"a": None}
    with pytest.raises(ValueError, match="same examples"):
        metrics.optimality({"a": [1.0], "b": [1.0, 2.0]})


def test_student_interval_equals_scipy() -> None:
    values = [0.91, 0.93, 0.9, 0.95]
    found = metrics.student_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high))
    with pytest.raises(ValueError, match="at least two"):
        metrics.student_interval([0.5])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_exact_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert metrics.mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_does_not_underflow() -> None:
    assert metrics.mcnemar_exact(5_000, 5_000) == 1.0
    assert 0 <= metrics.mcnemar_exact(0, 5_000) < 1e-300
    with pytest.raises(ValueError, match="not negative"):
        metrics.mcnemar_exact(-1, 3)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.0625])
def test_smallest_detectable_drop_is_just_significant(level: float) -> None:
    flips = round(metrics.smallest_detectable_drop(1000, level) * 1000)
    assert metrics.mcnemar_exact(flips, 0) < level <= metrics.mcnemar_exact(flips - 1, 0)
    assert math.isinf(metrics.smallest_detectable_drop(flips - 1, level))


def test_smallest_drop_above_a_tolerance() -> None:
    assert metrics.smallest_drop_above(360, 0.005) == 2 / 360
    assert metrics.smallest_drop_above(1000, 0.005) == 6 / 1000
    assert metrics.smallest_drop_above(10, 0.0) == 1 / 10
