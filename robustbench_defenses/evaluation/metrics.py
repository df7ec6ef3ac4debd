"""What a number means: every figure we print is an exact function of stored records.

Accuracies are shares in [0, 1]; distances and eps are in pixel units of images in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..core.errors import UserError
from ..core.norms import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from .record import Record
from .schema import CurvePoint, Distances

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# The 97.5 % quantile of the standard normal distribution.
Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def largest_allowed(eps: float) -> float:
    """The numpy twin of `core.norms.largest_allowed`: the largest norm that counts as inside."""
    return eps * (1 + RELATIVE_TOLERANCE) + ABSOLUTE_TOLERANCE


def robust_accuracy(distance: ArrayLike, eps: float) -> float:
    """Share of examples whose breaking distance (N,) exceeds `eps`."""
    values = np.asarray(distance, dtype=np.float64)
    _not_empty(values.size)
    return int((values > largest_allowed(eps)).sum()) / values.size


def accuracy_from_table(record: Record) -> NDArray[np.float64]:
    """Robust accuracy (E,) at every eps of a table sweep."""
    if record.broken is None:
        raise ValueError("this record holds no table")
    _not_empty(len(record))
    standing: NDArray[np.int64] = (~record.broken).sum(1)  # (E, N) -> (E,)
    return standing / len(record)


def wilson(successes: int, n: int) -> Interval:
    """Wilson's 95 % score interval of a share (Wilson 1927)."""
    _not_empty(n)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    share, square = successes / n, Z95 * Z95
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past the value.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high)


def clean_accuracy(record: Record) -> Interval:
    """Share of clean images that are classified rightly, with its Wilson interval."""
    return wilson(int(record.clean_right.sum()), len(record))


def unbounded_accuracy(record: Record) -> float:
    """Share of examples for which nothing was found inside the box at any norm."""
    _not_empty(len(record))
    return int(np.isinf(record.distance).sum()) / len(record)


def curve(record: Record, grid: Sequence[float] | None = None) -> list[CurvePoint]:
    """Robust accuracy with Wilson 95 % intervals at every eps of the rising `grid`.

    A table answers at its own eps only (and at 0, by the clean predictions); it is also the
    default grid. Another eps asked of a table is a `ValueError`.
    """
    if grid is None:
        if record.eps is None:
            raise ValueError("a record of distances needs a grid")
        grid = record.eps.tolist()
    points = []
    for eps in grid:
        found = wilson(_standing(record, eps), len(record))
        points.append(
            CurvePoint(eps=eps, robust_accuracy=found.value, low=found.low, high=found.high)
        )
    return points


def _standing(record: Record, eps: float) -> int:
    """Number of examples that survive `eps`."""
    if record.eps is None or record.broken is None:
        return int((record.distance > largest_allowed(eps)).sum())
    at = np.flatnonzero(np.isclose(record.eps, eps, rtol=1e-9, atol=0))
    if at.size:
        return int((~record.broken[at[0]]).sum())
    if eps == 0:
        return int(record.clean_right.sum())
    raise ValueError(f"eps {eps:g} is not in the table")


def auc(eps: ArrayLike, accuracy: ArrayLike, clean: float | None = None) -> float:
    """Area under accuracy over eps by the trapezoid rule, divided by the width: 1 is perfect.

    `eps` (E,) rises; where it does not start at 0, `clean` is the accuracy there. Fewer than two
    points have no area: `ValueError`.
    """
    x, y = np.asarray(eps, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"eps {x.shape} and accuracy {y.shape} do not match")
    if x.size and x[0] > 0:
        if clean is None:
            raise ValueError("the grid does not start at 0 and no clean accuracy is given")
        x, y = np.insert(x, 0, 0.0), np.insert(y, 0, clean)
    if x.size < 2 or (np.diff(x) <= 0).any():
        raise ValueError("an area needs at least two rising eps")
    return min(1.0, float(np.trapezoid(y, x) / (x[-1] - x[0])))


def curve_auc(points: Sequence[CurvePoint], clean: float) -> float | None:
    """`auc` of a curve, with the clean accuracy where it lacks eps 0; None without any eps > 0."""
    if not any(point.eps > 0 for point in points):
        return None
    return auc([p.eps for p in points], [p.robust_accuracy for p in points], clean)


def distance_summary(record: Record) -> Distances:
    """Count, median and mean of the distances of examples that were right and then broken."""
    found = record.distance[record.clean_right & np.isfinite(record.distance)]
    if not found.size:
        return Distances(broken=0, median=None, mean=None)
    return Distances(
        broken=int(found.size), median=float(np.median(found)), mean=float(found.mean())
    )


def least_distance(record: Record) -> NDArray[np.float64]:
    """Breaking distance (N,) for a worst case: of a table, the smallest broken eps."""
    if record.eps is None or record.broken is None:
        return record.distance
    fell = np.where(record.broken, record.eps[:, None], np.inf).min(0, initial=np.inf)
    return np.where(record.clean_right, fell, 0.0)


def worst_case(records: Sequence[Record]) -> Record:
    """The per-example minimum of distances over attacks at one norm; queries add up.

    The records must speak of the same examples, in any order; others are a `UserError`.
    """
    if not records:
        raise ValueError("a worst case needs at least one record")
    first = records[0]
    distance, budget = least_distance(first), first.budget
    queries, prediction = first.queries, first.clean_prediction
    order = np.argsort(first.index)
    for other in records[1:]:
        sorted_other = np.argsort(other.index)
        same = np.array_equal(first.index[order], other.index[sorted_other])
        if not same or not np.array_equal(first.label[order], other.label[sorted_other]):
            raise UserError(
                "a worst case needs the same examples under every attack",
                hint="evaluate all attacks with the same -n and --subset",
            )
        match = np.empty_like(order)  # row of `other` that holds each example of `first`
        match[order] = sorted_other
        distance = np.minimum(distance, least_distance(other)[match])
        budget = np.minimum(budget, other.budget[match])
        queries = queries + other.queries[match]
        # A random subject may be wrong in one run and right in another: wrong counts.
        prediction = np.where(prediction != first.label, prediction, other.clean_prediction[match])
    return Record(first.index, first.label, prediction, distance, budget, queries)


def optimality(distances: Mapping[str, ArrayLike]) -> dict[str, float | None]:
    """Optimality score of each minimum-norm attack against the ensemble of all of them.

    `distances`: breaking distances (N,) of the same examples by attack name. With d* the minimum
    over attacks and D its largest finite value, 1 - (A_a - A*) / (clean D - A*), where A is the
    integral over [0, D] of the share of examples whose distance exceeds t. The share is a step
    function, so the integral is exactly the mean of min(d, D) (AttackBench, Cina et al. 2025,
    which integrates by trapezoids). 1: as good as the ensemble; 0: found nothing. None where no
    attack found anything.
    """
    arrays = {name: np.asarray(d, dtype=np.float64) for name, d in distances.items()}
    if not arrays:
        return {}
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError("the attacks must have the same examples")
    best = np.minimum.reduce(list(arrays.values()))
    finite = best[np.isfinite(best)]
    limit = float(finite.max()) if finite.size else 0.0
    if limit == 0.0:
        return dict.fromkeys(arrays)
    ideal = float(np.minimum(best, limit).mean())
    room = float((best > 0).mean()) * limit - ideal
    scores: dict[str, float | None] = {}
    for name, array in arrays.items():
        excess = float(np.minimum(array, limit).mean()) - ideal
        # Without room every example that could fall falls at D, the least that counts as found.
        scores[name] = 1 - excess / room if room > 0 else 1.0
    return scores


def student_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's 95 % interval, over seeds or folds; needs at least two values."""
    from scipy import stats

    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size < 2:
        raise ValueError("an interval over seeds needs at least two values")
    mean = float(sample.mean())
    error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
    half = float(stats.t.ppf(0.975, sample.size - 1)) * error
    return Interval(mean, mean - half, mean + half)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p-value of McNemar's test (McNemar 1947).

    `b`, `c`: number of examples that only the first and only the second gets right. Under the
    null hypothesis b follows Binomial(b + c, 1/2).
    """
    if b < 0 or c < 0:
        raise ValueError("counts are not negative")
    total = b + c
    # Integers throughout: no underflow, however many examples differ.
    tail = ways = 1  # ways = total choose k
    for k in range(min(b, c)):
        ways = ways * (total - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << total))


def smallest_detectable_drop(n: int, level: float = 0.05) -> float:
    """Smallest drop in accuracy on `n` examples that McNemar's test calls significant.

    The most favourable case: every example that differs differs in the same direction. inf where
    no drop on so few examples could be significant.
    """
    _not_empty(n)
    flips = 1
    while mcnemar_exact(flips, 0) >= level:
        flips += 1
    return flips / n if flips <= n else math.inf


def smallest_drop_above(n: int, tolerance: float) -> float:
    """Smallest drop on `n` examples that exceeds a `tolerance` (a share, such as 0.005)."""
    _not_empty(n)
    return (math.floor(tolerance * n + 1e-9) + 1) / n


def _not_empty(n: int) -> None:
    if n < 1:
        raise ValueError("no examples: accuracy of nothing is undefined")
