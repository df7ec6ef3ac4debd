"""What changed between two results, or two folders of results, and is it more than chance?

Results are paired by their question: data, examples, attack, parameters, norm. Where both have
records of the same examples, each eps is compared example by example with McNemar's exact test;
over all comparisons p-values are corrected by Holm's method (Holm 1979), so that many equal
results do not make one significant by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UserError
from . import metrics, store
from .record import Record
from .schema import Result
from .store import StoredResult

LEVEL = 0.05


@dataclass(frozen=True)
class Change:
    """One eps of one pair of results (0: clean accuracy; None: unbounded accuracy).

    `first`, `second`: accuracies (shares); `only_first`, `only_second`: examples that only one gets
    right; `p`: McNemar's exact p-value, `corrected`: by Holm over all comparisons.
    """

    subject: str
    other: str
    attack: str
    eps: float | None
    n: int
    first: float
    second: float
    only_first: int
    only_second: int
    p: float
    corrected: float = 1.0

    @property
    def significant(self) -> bool:
        return self.corrected < LEVEL

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


@dataclass(frozen=True)
class Diff:
    """All changes, and the results that have no partner on the other side, by name."""

    changes: list[Change]
    only_first: list[str]
    only_second: list[str]

    @property
    def significant(self) -> list[Change]:
        return [change for change in self.changes if change.significant]


def diff(first: Path, second: Path) -> Diff:
    """Compare two results' files, or two folders of results.

    Two folders with one subject each are compared across subjects; with more, subject by subject.
    Nothing to compare: `UserError`.
    """
    before, after = _results(first), _results(second)
    alone = len(_subjects(before)) == len(_subjects(after)) == 1
    left = _by_question(before, with_subject=not alone)
    right = _by_question(after, with_subject=not alone)
    shared = [question for question in left if question in right]
    if not shared:
        raise UserError(
            f"{first} and {second} have no question in common",
            hint="they need the same data, examples, attack and parameters",
        )
    changes = [
        change for question in shared for change in _compared(left[question], right[question])
    ]
    return Diff(
        changes=_corrected(changes),
        only_first=[_name(entry) for question, entry in left.items() if question not in right],
        only_second=[_name(entry) for question, entry in right.items() if question not in left],
    )


def _results(path: Path) -> list[StoredResult]:
    if path.is_file():
        return [store.load(path)]
    if not path.is_dir():
        raise UserError(f"there is no result and no folder {path}")
    faults: list[str] = []
    files = [each for each in sorted(path.rglob("*.json")) if each.with_suffix(".npz").is_file()]
    found = store.load_all(files, faults.append)
    if faults:
        raise UserError(faults[0])
    if not found:
        raise UserError(f"no results in the folder {path}")
    return found


def _subjects(results: Sequence[StoredResult]) -> set[str]:
    return {entry.result.subject.name for entry in results}


def _by_question(
    results: Sequence[StoredResult], with_subject: bool
) -> dict[tuple[object, ...], StoredResult]:
    """Results by their question; of equal questions the newest."""
    found: dict[tuple[object, ...], StoredResult] = {}
    for entry in sorted(results, key=lambda entry: entry.result.environment.date):
        found[_question(entry.result, with_subject)] = entry
    return found


def _question(result: Result, with_subject: bool) -> tuple[object, ...]:
    attack, data = result.attack, result.dataset
    parameters = tuple(sorted((name, str(value)) for name, value in attack.parameters.items()))
    asked = (attack.name, attack.norm, attack.targeted, attack.backend, attack.source, parameters)
    about = (data.name, data.digest, data.subset, result.n, result.sweep, result.view)
    return (*asked, *about, result.subject.name if with_subject else None)


def _name(entry: StoredResult) -> str:
    return f"{entry.result.subject.name}, {entry.result.attack.name}"


def _compared(first: StoredResult, second: StoredResult) -> list[Change]:
    """One change per eps that both results report."""
    one, two = first.record(), second.record()
    two = _aligned(one, two, second)
    grid: list[float | None] = [0.0]
    both = {point.eps for point in second.result.curve}
    grid += [point.eps for point in first.result.curve if point.eps > 0 and point.eps in both]
    if first.result.unbounded_accuracy is not None and second.result.unbounded_accuracy is not None:
        grid.append(None)
    changes = []
    for eps in grid:
        before, after = standing(one, eps), standing(two, eps)
        lost, won = int((before & ~after).sum()), int((after & ~before).sum())
        changes.append(
            Change(
                subject=first.result.subject.name,
                other=second.result.subject.name,
                attack=first.result.attack.name,
                eps=eps,
                n=len(one),
                first=float(before.mean()),
                second=float(after.mean()),
                only_first=lost,
                only_second=won,
                p=metrics.mcnemar_exact(lost, won),
            )
        )
    return changes


def standing(record: Record, eps: float | None) -> NDArray[np.bool_]:
    """(N,) bool: right at `eps` (0: clean; None: nothing found at any norm)."""
    if eps is None:
        return np.asarray(np.isinf(record.distance), dtype=bool)
    if eps == 0:
        return record.clean_right
    if record.eps is not None and record.broken is not None:
        at = int(np.abs(record.eps - eps).argmin())
        return np.asarray(~record.broken[at] & record.clean_right, dtype=bool)
    return np.asarray(record.distance > metrics.largest_allowed(eps), dtype=bool)


def _aligned(one: Record, two: Record, entry: StoredResult) -> Record:
    """The second record in the order of the first; other examples are a `UserError`."""
    order = np.argsort(one.index)
    sorted_two = np.argsort(two.index)
    if not np.array_equal(one.index[order], two.index[sorted_two]):
        raise UserError(f"{entry.path} is about other examples")
    match = np.empty_like(order)
    match[order] = sorted_two
    table = None if two.broken is None else two.broken[:, match]
    return Record(
        two.index[match], two.label[match], two.clean_prediction[match], two.distance[match],
        two.budget[match], two.queries[match], two.eps, table,
    )  # fmt: skip


def _corrected(changes: list[Change]) -> list[Change]:
    """Changes with Holm's step-down p-values."""
    order = sorted(range(len(changes)), key=lambda at: changes[at].p)
    corrected = [1.0] * len(changes)
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, changes[at].p * (len(changes) - rank)))
        corrected[at] = largest
    return [replace(change, corrected=p) for change, p in zip(changes, corrected)]
