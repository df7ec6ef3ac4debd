"""What the blocks of an evaluation say, joined: its record, its evidence, its result."""

from __future__ import annotations

import datetime
import resource
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.device import Machine
from ..core.settings import plain
from ..training import environment
from . import backends, diagnostics, members, metrics, schema
from .examples import Examples
from .facts import Facts
from .question import AttackQuestion
from .record import Record
from .subject import Subject

if TYPE_CHECKING:
    from .evaluate import Settings


def record_of(pieces: list[dict[str, Any]], question: AttackQuestion, examples: Examples) -> Record:
    """What happened to every example: distances, or the table of a table sweep."""
    index = examples.index.cpu().numpy()
    label = examples.labels.cpu().numpy()

    def joined(name: str) -> Any:
        return np.concatenate([piece[name] for piece in pieces], axis=-1)

    draws = joined("broken_draws") if all("broken_draws" in piece for piece in pieces) else None
    if question.table:
        return Record.from_table(
            index, label, joined("clean_prediction"), joined("queries"),
            np.array(question.budgets, dtype=np.float64), joined("broken"),
            None if question.minimum else draws,
        )  # fmt: skip
    budget = joined("budget")
    if draws is not None:  # at the budget where an example fell, else at the largest
        place = np.searchsorted(question.budgets, budget).clip(0, len(draws) - 1)
        draws = draws[0 if question.minimum else place, np.arange(len(budget))]
    return Record(
        index, label, joined("clean_prediction"), joined("distance"), budget, joined("queries"),
        broken_draws=draws,
    )  # fmt: skip


def evidence_of(
    record: Record,
    question: AttackQuestion,
    pieces: list[dict[str, Any]],
    facts: Facts,
    one_step: Record | None,
    transfer: bool = False,
) -> diagnostics.Evidence:
    """What the diagnostics may look at."""

    def joined(name: str) -> Any:
        return diagnostics.evidence_arrays(pieces, name)

    travel = getattr(question.attack, "travel", None)
    return diagnostics.Evidence(
        record=record,
        grid=question.grid,
        norm=question.norm,
        attack=question.name,
        targeted=question.targeted,
        classes=facts.classes,
        zero_start=joined("trace_zero_start"),
        zero_end=joined("trace_zero_end"),
        tried=joined("trace_tried"),
        compared=joined("trace_compared"),
        loss_rose=joined("trace_loss_rose"),
        reach=joined("trace_reach"),
        travel={eps: travel(eps) for eps in question.budgets} if travel is not None else {},
        invalid_claims=sum(int(piece["invalid"]) for piece in pieces),
        pixel_range=facts.pixel_range,
        probabilities=facts.probabilities,
        coupling=facts.coupling,
        buffers_changed=facts.buffers_changed,
        trained_mode=facts.trained_mode,
        one_step=one_step,
        random=facts.random,
        dataset=facts.dataset,
        parameters=question.parameters,
        trained_eps=facts.trained_eps,
        unbounded=question.minimum,
        transfer=transfer,
        only_without_gradients=members.only_without_gradients(pieces),
    )


def result_of(
    subject: Subject,
    examples: Examples,
    question: AttackQuestion,
    settings: Settings,
    key: str,
    record: Record,
    pieces: list[dict[str, Any]],
) -> schema.Result:
    """The result to store, without its diagnostics."""
    clean = metrics.clean_accuracy(record)
    curve = metrics.curve(record, list(question.grid))
    found = _without_table(record, pieces) if question.minimum else record
    machine = settings.machine
    c, h, w = (int(size) for size in examples.images.shape[1:])
    return schema.Result(
        schema="rrd.result/1",
        key=key,
        subject=subject.about,
        dataset=schema.Dataset(
            name=examples.info.name,
            digest=examples.digest,
            subset=examples.subset,
            n=len(examples),
            classes=examples.info.classes,
            shape=(c, h, w),
        ),
        attack=schema.Attack(
            name=question.name,
            entry=question.entry.family,
            version=question.entry.version,
            norm=question.norm,  # type: ignore[arg-type]
            targeted=question.targeted,
            parameters=plain(question.parameters),
            source=None if settings.source is None else settings.source.name,
            backend=question.backend,  # type: ignore[arg-type]
            remark=backends.remark(question.backend, question.call),
        ),
        view=subject.view(settings.view).name,
        sweep=question.sweep,  # type: ignore[arg-type]
        precision=settings.precision,
        seed=settings.seed,
        n=len(examples),
        clean_accuracy=clean.value,
        clean_low=clean.low,
        clean_high=clean.high,
        curve=curve,
        auc=metrics.curve_auc(curve, clean.value) if len(question.budgets) > 1 else None,
        unbounded_accuracy=metrics.unbounded_accuracy(found) if question.minimum else None,
        distances=metrics.distance_summary(found),
        cost=schema.Cost(
            forward_passes=sum(int(piece["forward"]) for piece in pieces),
            backward_passes=sum(int(piece["backward"]) for piece in pieces),
            seconds=sum(float(piece["seconds"]) for piece in pieces),
            peak_memory_mb=_peak_memory(machine),
            threads=machine.threads,
        ),
        environment=current_environment(machine),
        members=members.joined(pieces, record, question.grid),
    )


def _without_table(record: Record, pieces: list[dict[str, Any]]) -> Record:
    """The record of a table sweep with the distances that its attack found at any norm."""
    distance = np.concatenate([piece["distance"] for piece in pieces])
    return replace(record, distance=distance, eps=None, broken=None, broken_draws=None)


def _peak_memory(machine: Machine) -> float:
    """Largest memory in MB: of the device on a GPU, else of this process so far."""
    if machine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(machine.device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def current_environment(machine: Machine) -> schema.Environment:
    """Where this process runs."""
    found = environment.versions()
    device = str(machine.device)
    if machine.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(machine.device)})"
    return schema.Environment(
        rrd=found["rrd"],
        torch=found["torch"],
        python=found["python"],
        platform=found["platform"],
        device=device,
        threads=machine.threads,
        precision=machine.precision,
        git_commit=environment.git_commit(),
        command=environment.command(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
