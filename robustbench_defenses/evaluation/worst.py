"""The worst case over attacks as a result of its own, an ensemble of what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..core.errors import UserError
from . import metrics
from .record import Record
from .schema import Attack, Cost, Diagnostic, Member, Result
from .store import StoredResult

NAME = "worst_case"


def worst_result(stored: Sequence[StoredResult]) -> Result:
    """The per-example minimum over `stored` results of one subject, data set and norm.

    Its curve has every eps that some attack reports: an example that falls at one eps stays down
    at every larger one, and an attack that was not asked at an eps can only make the number there
    smaller. Results of different subjects, examples or norms are a `UserError`, and so is a
    missing or damaged record.
    """
    results = [entry.result for entry in stored]
    first = results[0]
    for other in results[1:]:
        if question(other) != question(first):
            raise UserError(
                f"{other.attack.name} on {other.subject.id} and {first.attack.name} on "
                f"{first.subject.id} do not answer one question: a worst case needs one subject, "
                "one norm and the same examples"
            )
    records = [entry.record() for entry in stored]
    record = metrics.worst_case(records)
    # A table says at which eps of the grid an example falls; beside it stands how near it was.
    nearest = metrics.worst_case(
        [replace(each, eps=None, broken=None, broken_draws=None) for each in records]
    )
    clean = metrics.clean_accuracy(record)
    curve = metrics.curve(record, _grid(results))
    unbounded = [r.unbounded_accuracy for r in results if r.unbounded_accuracy is not None]
    return first.model_copy(
        update={
            "key": "",
            "attack": Attack(
                name=NAME,
                entry=NAME,
                version=1,
                norm=first.attack.norm,
                parameters={"attacks": [r.attack.name for r in results]},
            ),
            "clean_accuracy": clean.value,
            "clean_low": clean.low,
            "clean_high": clean.high,
            "curve": curve,
            "auc": metrics.curve_auc(curve, clean.value),
            "unbounded_accuracy": metrics.unbounded_accuracy(nearest) if unbounded else None,
            "distances": metrics.distance_summary(nearest),
            "cost": _total([r.cost for r in results]),
            "diagnostics": _union(results),
            "members": [
                _member(r, rows, [p.eps for p in curve]) for r, rows in zip(results, records)
            ],
        }
    )


def optimality(stored: Sequence[StoredResult]) -> list[float | None]:
    """The score of each minimum-norm attack among `stored`, `metrics.optimality`; None of others.

    All must answer `question` alike. A table holds no distances, so its attack has no score. One
    attack alone has none either: it would be compared with itself. Errors as of `worst_result`.
    """
    chosen = [
        at
        for at, entry in enumerate(stored)
        if entry.result.unbounded_accuracy is not None and entry.result.sweep == "envelope"
    ]
    scores: list[float | None] = [None] * len(stored)
    if len(chosen) > 1:
        records = {at: stored[at].record() for at in chosen}
        distances = {
            str(at): record.distance[np.argsort(record.index)] for at, record in records.items()
        }
        for at, score in metrics.optimality(distances).items():
            scores[int(at)] = score
    return scores


def question(result: Result) -> tuple[object, ...]:
    """What two results must share to enter one worst case."""
    subject, data = result.subject, result.dataset
    options = tuple(sorted((name, str(value)) for name, value in subject.options.items()))
    return (
        (subject.id, subject.checkpoint, subject.weights, options, subject.draws),
        (data.name, data.digest, data.subset, result.n),
        result.attack.norm,
    )


def _grid(results: Sequence[Result]) -> list[float]:
    """Every eps that some result reports, rising."""
    return sorted({point.eps for r in results for point in r.curve})


def _member(result: Result, record: Record, grid: list[float]) -> Member:
    distance = metrics.least_distance(record)
    return Member(
        name=result.attack.name,
        robust_accuracy=[metrics.robust_accuracy(distance, eps) for eps in grid],
        seconds=result.cost.seconds,
        forward_passes=result.cost.forward_passes,
        backward_passes=result.cost.backward_passes,
    )


def _total(costs: list[Cost]) -> Cost:
    memory = [cost.peak_memory_mb for cost in costs if cost.peak_memory_mb is not None]
    return Cost(
        forward_passes=sum(cost.forward_passes for cost in costs),
        backward_passes=sum(cost.backward_passes for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        peak_memory_mb=max(memory, default=None),
        threads=max(cost.threads for cost in costs),
    )


def _union(results: list[Result]) -> list[Diagnostic]:
    """Every diagnostic that fired, once per sentence."""
    fired = {(d.id, d.sentence): d for r in results for d in r.diagnostics if d.fired}
    return list(fired.values())
