"""One question, one answer: a subject under an attack, as a stored result."""

from __future__ import annotations

import contextlib
import datetime
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import plugins
from ..core.device import Machine
from ..core.errors import Interrupted
from ..core.files import check_writable
from ..core.identity import file_digest, short_hash
from ..core.progress import Progress, Silent
from ..engine.ensemble import search_for
from ..engine.search import BATCH_SIZE, Block
from ..engine.twin import Twin, search_twin
from ..engine.verdict import evaluation_mode
from ..training import environment
from . import blocks, diagnostics, metrics, schema, store
from .examples import Examples, targets
from .facts import Facts, buffers_digest, look
from .foreign import guarded
from .question import AttackQuestion
from .record import Record
from .subject import Subject

GPU_BATCH_SIZE = 2048


@dataclass(frozen=True)
class Settings:
    """How questions are answered; none of it but `precision` and `seed` decides numbers."""

    machine: Machine
    results_dir: Path
    precision: str = "auto"  # as requested: the machine's resolved one steers the search
    seed: int = 0
    view: str | None = None
    batch_size: int | None = None
    fresh: bool = False
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class Answer:
    """A stored result; `cached` when it was there already."""

    stored: store.StoredResult
    cached: bool


def question_key(
    subject: Subject, examples: Examples, question: AttackQuestion, settings: Settings
) -> str:
    """The hash of everything that decides the numbers (design 5)."""
    return short_hash(
        {
            "weights": subject.about.weights,
            "code": subject.code,
            "options": subject.about.options,
            "attack": question.name,
            "entry": question.entry.family,
            "version": question.entry.version,
            "source": _source(question),
            "parameters": question.parameters,
            "grid": question.grid,
            "sweep": question.sweep,
            "targeted": question.targeted,
            "data": examples.digest,
            "subset": examples.subset,
            "n": len(examples),
            "view": subject.view(settings.view).name,
            "precision": settings.precision,
            "seed": settings.seed,
        }
    )


def answer(
    subject: Subject,
    examples: Examples,
    question: AttackQuestion,
    settings: Settings,
    one_step: Record | None = None,
) -> Answer:
    """The stored answer to `question`, made now where it is not there yet.

    `one_step`: an fgsm record of the same examples, for the diagnostics.
    """
    key = question_key(subject, examples, question, settings)
    if not settings.fresh:
        found = store.find(settings.results_dir, subject.about.id, question.name, key)
        if found is not None:
            found.record()  # a damaged one is told now, not when it is needed
            return Answer(found, cached=True)
    check_writable(settings.results_dir)
    folder = _partial(settings, subject, question, key)
    started = time.perf_counter()
    try:
        with guards(subject, question):
            facts = look(subject, examples)
            with evaluation_mode(subject.deployed):
                pieces = _blocks(subject, examples, question, settings, folder)
            facts.buffers_changed = facts.buffers != buffers_digest(subject)
            record = _record(pieces, question, examples)
            evidence = _evidence(record, question, pieces, facts, one_step)
    except KeyboardInterrupt:
        raise Interrupted(_stopped(subject, question, settings, folder, len(examples))) from None
    seconds = time.perf_counter() - started
    result = _result(subject, examples, question, settings, key, record, pieces, seconds)
    result = result.model_copy(update={"diagnostics": diagnostics.run_checks(evidence)})
    stored = store.save(result, record, settings.results_dir)
    shutil.rmtree(folder, ignore_errors=True)
    return Answer(stored, cached=False)


@contextlib.contextmanager
def guards(subject: Subject, question: AttackQuestion) -> Iterator[None]:
    """Around an attack on a subject: faults of the user's own files are told as such."""
    with contextlib.ExitStack() as stack:
        if question.entry.origin != "rrd":
            stack.enter_context(plugins.user_code(question.entry.source_file))
        if subject.about.kind == "file":
            stack.enter_context(guarded(subject.name))
        yield


def _source(question: AttackQuestion) -> str | None:
    """The digest of the user's file behind `FILE.py:NAME`: its author raises no version."""
    entry = question.entry
    return file_digest(entry.source_file) if entry.module is None else None


def _stopped(
    subject: Subject, question: AttackQuestion, settings: Settings, folder: Path, total: int
) -> str:
    """What is left of an interrupted answer, and how to go on."""
    kept = 0 if settings.fresh else blocks.kept_examples(folder, total)
    about = f"interrupted: {question.name} on {subject.name}"
    if kept == 0:
        return f"{about} is not finished; the same command begins it again"
    return f"{about}, {kept:,} of {total:,} examples are kept; the same command goes on"


def _partial(settings: Settings, subject: Subject, question: AttackQuestion, key: str) -> Path:
    path, _ = store.paths(settings.results_dir, subject.about.id, question.name, key)
    return path.with_suffix(".part")


def _blocks(
    subject: Subject,
    examples: Examples,
    question: AttackQuestion,
    settings: Settings,
    folder: Path,
) -> list[dict[str, Any]]:
    """The outcome of every block; finished ones are kept in `folder` until the result is whole."""
    view = subject.view(settings.view)
    twin = search_twin(view, examples.images, settings.machine.precision)
    progress, total = settings.progress, len(examples)
    progress.start(f"{question.name} on {subject.name}", total)
    pieces = []
    for start in range(0, total, blocks.BLOCK_SIZE):
        piece = None if settings.fresh else blocks.kept(folder, start, total)
        if piece is None:
            piece = _block(subject, examples, question, settings, twin, start)
            if total > blocks.BLOCK_SIZE:
                blocks.keep(folder, start, piece)
        pieces.append(piece)
        standing = sum(int(np.isinf(one["distance"]).sum()) for one in pieces)
        progress.update(start + blocks.size(start, total), f"{standing} standing")
    progress.finish(f"{standing} of {total} standing")
    return pieces


def _block(
    subject: Subject,
    examples: Examples,
    question: AttackQuestion,
    settings: Settings,
    twin: Twin,
    start: int,
) -> dict[str, Any]:
    stop = start + blocks.size(start, len(examples))
    part = slice(start, stop)
    labels = examples.labels[part]
    wanted = torch.full_like(labels, -1)
    if question.targeted:
        wanted = targets(examples, examples.info.classes, settings.seed)[part]
    gpu = settings.machine.device.type == "cuda"
    progress = settings.progress
    search = search_for(
        question.attack,
        twin=twin,
        deployed=subject.deployed,
        block=Block(
            images=examples.images[part],
            labels=labels,
            target=wanted,
            numbers=examples.index[part],
            grid=question.budgets,
            sweep=question.sweep,
        ),
        subject=subject.name,
        seed=settings.seed,
        attack_name=question.name,
        batch_size=settings.batch_size or (GPU_BATCH_SIZE if gpu else BATCH_SIZE),
        report=lambda done, share: progress.update(
            start + int(share * (stop - start)), f"{stop - start - done} standing"
        ),
    )
    return blocks.arrays(search.run())


def _record(pieces: list[dict[str, Any]], question: AttackQuestion, examples: Examples) -> Record:
    index = examples.index.cpu().numpy()
    label = examples.labels.cpu().numpy()

    def joined(name: str) -> Any:
        return np.concatenate([piece[name] for piece in pieces], axis=-1)

    if question.sweep == "independent" and question.budgets:
        return Record.from_table(
            index, label, joined("clean_prediction"), joined("queries"),
            np.array(question.budgets, dtype=np.float64), joined("broken"),
        )  # fmt: skip
    return Record(
        index, label, joined("clean_prediction"), joined("distance"), joined("budget"),
        joined("queries"),
    )  # fmt: skip


def _evidence(
    record: Record,
    question: AttackQuestion,
    pieces: list[dict[str, Any]],
    facts: Facts,
    one_step: Record | None,
) -> diagnostics.Evidence:
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
    )


def _result(
    subject: Subject,
    examples: Examples,
    question: AttackQuestion,
    settings: Settings,
    key: str,
    record: Record,
    pieces: list[dict[str, Any]],
    seconds: float,
) -> schema.Result:
    clean = metrics.clean_accuracy(record)
    curve = metrics.curve(record, list(question.grid))
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
            parameters=question.parameters,
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
        unbounded_accuracy=metrics.unbounded_accuracy(record) if question.minimum else None,
        distances=metrics.distance_summary(record),
        cost=schema.Cost(
            forward_passes=sum(int(piece["forward"]) for piece in pieces),
            backward_passes=sum(int(piece["backward"]) for piece in pieces),
            seconds=seconds,
            peak_memory_mb=_peak_memory(machine),
            threads=machine.threads,
        ),
        environment=current_environment(machine),
    )


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
