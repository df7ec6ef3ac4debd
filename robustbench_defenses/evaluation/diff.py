"""What changed between two results, or two folders of results, and is it more than chance?

Results are paired by their question (data, examples, attack, parameters, norm) and eps; where a
side answers one several times, the newest counts. Each pair is compared example by example with
McNemar's exact test; over all comparisons p-values are corrected by Holm's method (Holm 1979), so
that many equal results do not make one significant by luck.
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

    `settings`: in which parameters the attack differs from others of its name that are compared.
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
    settings: str = ""

    @property
    def significant(self) -> bool:
        return self.corrected < LEVEL

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


@dataclass(frozen=True)
class Diff:
    """All changes, and what has no partner on the other side: subject, attack and eps."""

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
    settings = _settings(shared)
    changes = [
        _compared(left[question][eps], right[question][eps], eps, settings[question])
        for question in shared
        for eps in left[question]
        if eps in right[question]
    ]
    return Diff(
        changes=_corrected(changes),
        only_first=_alone(left, right),
        only_second=_alone(right, left),
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


Question = tuple[tuple[str, str], ...]
Answers = dict[float | None, StoredResult]


def _by_question(results: Sequence[StoredResult], with_subject: bool) -> dict[Question, Answers]:
    """Results by question and eps (0: clean, None: without a budget), the newest of each."""
    found: dict[Question, Answers] = {}
    for entry in sorted(results, key=lambda entry: entry.result.environment.date):
        answers = found.setdefault(_question(entry.result, with_subject), {})
        answers[0.0] = entry
        for point in entry.result.curve:
            if point.eps > 0:
                answers[point.eps] = entry
        if entry.result.unbounded_accuracy is not None:
            answers[None] = entry
    return found


def _question(result: Result, with_subject: bool) -> Question:
    """What was asked, as names and values; the attack's name comes first."""
    attack, data = result.attack, result.dataset
    asked = {
        "attack": attack.name, "norm": attack.norm, "targeted": attack.targeted,
        "backend": attack.backend, "source": attack.source,
        **dict(sorted(attack.parameters.items())),
        "dataset": data.name, "digest": data.digest, "subset": data.subset, "n": result.n,
        "sweep": result.sweep, "view": result.view,
        "subject": result.subject.name if with_subject else None,
    }  # fmt: skip
    return tuple((name, str(value)) for name, value in asked.items())


def _settings(questions: Sequence[Question]) -> dict[Question, str]:
    """What tells apart the questions of one attack on one subject: `const=0.1`."""
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        groups.setdefault((question[0][1], question[-1][1]), []).append(question)
    found = {}
    for group in groups.values():
        shared = set(group[0]).intersection(*group)
        for question in group:
            own = [f"{name}={value}" for name, value in question if (name, value) not in shared]
            found[question] = " ".join(own)
    return found


def _alone(these: dict[Question, Answers], others: dict[Question, Answers]) -> list[str]:
    """What only these answer, one text for each result."""
    missing: dict[str, list[float | None]] = {}
    for question, answers in these.items():
        for eps, entry in answers.items():
            if eps not in others.get(question, {}):
                name = f"{entry.result.subject.name}, {entry.result.attack.name}"
                missing.setdefault(name, []).append(eps)
    return [
        f"{name} at eps {', '.join(f'{eps:g}' for eps in grid if eps)}" if any(grid) else name
        for name, grid in missing.items()
    ]


def _compared(
    first: StoredResult, second: StoredResult, eps: float | None, settings: str
) -> Change:
    """The change at one eps that both results report."""
    one = first.record()
    two = _aligned(one, second.record(), second)
    before, after = standing(one, eps), standing(two, eps)
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return Change(
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
        settings=settings,
    )


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
