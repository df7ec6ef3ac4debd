"""One question, one answer: a subject under an attack, as a stored result."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import plugins
from ..core.device import Machine
from ..core.errors import Interrupted
from ..core.files import check_writable
from ..core.identity import file_digest, short_hash
from ..core.progress import Progress, Silent
from ..engine.twin import VERSION as SEARCH_VERSION
from ..engine.verdict import evaluation_mode
from . import backends, blocks, diagnostics, store
from .examples import Examples
from .facts import buffers_digest, look
from .foreign import guarded
from .limit import TimeLimit, Unfinished
from .question import AttackQuestion
from .record import Record
from .result import evidence_of, record_of, result_of
from .running import run_blocks
from .subject import Subject


@dataclass(frozen=True)
class Settings:
    """How questions are answered; none of it but `precision` and `seed` decides numbers."""

    machine: Machine
    results_dir: Path
    precision: str = "auto"  # as requested: the machine's resolved one steers the search
    seed: int = 0
    view: str | None = None
    source: Subject | None = None  # who makes the images, where it is not the subject (transfer)
    batch_size: int | None = None
    fresh: bool = False
    progress: Progress = field(default_factory=Silent)
    limit: TimeLimit | None = None


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
            **backends.identity(question.backend, settings.batch_size),
            **_searched(question, settings),
            **_draws(subject, settings),
            **_transferred(settings),
        }
    )


def _searched(question: AttackQuestion, settings: Settings) -> dict[str, Any]:
    """How the engine searches where it need not do so in float32."""
    if settings.precision == "fp32" or question.backend != "native":
        return {}
    return {"twin": SEARCH_VERSION}


def _draws(subject: Subject, settings: Settings) -> dict[str, Any]:
    """What decides the answers of a random subject and what an attacker averages."""
    random = subject.view(settings.view).randomness
    if random is None and not subject.about.random:
        return {}
    seen = None if random is None else [random.draws, random.aggregation, random.eot]
    return {"draws": [subject.about.draws, subject.about.aggregation, seen]}


def _transferred(settings: Settings) -> dict[str, Any]:
    """What decides the images of a transfer attack."""
    source = settings.source
    if source is None:
        return {}
    who = [source.about.weights, source.code, source.about.options, source.views[0].name]
    return {"images_from": who}


def answer(
    subject: Subject,
    examples: Examples,
    question: AttackQuestion,
    settings: Settings,
    one_step: Record | None = None,
) -> Answer:
    """The stored answer to `question`, made now where it is not there yet.

    `one_step`: an fgsm record of the same examples, for the diagnostics. Ctrl-C: `Interrupted`;
    over the time limit: `OutOfTime`; both keep what is done.
    """
    known = stored_answer(subject, examples, question, settings)
    if known is not None:
        return known
    check_writable(settings.results_dir)
    key = question_key(subject, examples, question, settings)
    folder = _partial(settings, subject, question, key)
    if settings.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if settings.limit is not None:
        settings.limit.begin()
    try:
        with guards(subject, question):
            facts = look(subject, examples)
            with evaluation_mode(subject.deployed, *_asked(settings.source)):
                pieces = run_blocks(subject, examples, question, settings, folder)
            facts.buffers_changed = facts.buffers != buffers_digest(subject)
            record = record_of(pieces, question, examples)
            transfer = settings.source is not None
            evidence = evidence_of(record, question, pieces, facts, one_step, transfer)
    except KeyboardInterrupt:
        raise Interrupted(_stopped(subject, question, settings, folder, len(examples))) from None
    result = result_of(subject, examples, question, settings, key, record, pieces)
    result = result.model_copy(update={"diagnostics": diagnostics.run_checks(evidence)})
    stored = store.save(result, record, settings.results_dir)
    shutil.rmtree(folder, ignore_errors=True)
    return Answer(stored, cached=False)


def _asked(source: Subject | None) -> list[object]:
    """What a transfer attack asks of its source."""
    return [] if source is None else [source.deployed, *(view.logits for view in source.views)]


def stored_answer(
    subject: Subject, examples: Examples, question: AttackQuestion, settings: Settings
) -> Answer | None:
    """The answer that is there already, unless a fresh one is wanted."""
    if settings.fresh:
        return None
    key = question_key(subject, examples, question, settings)
    found = store.find(settings.results_dir, subject.about.id, question.name, key)
    if found is None:
        return None
    found.record()  # a damaged one is told now, not when it is needed
    return Answer(found, cached=True)


def unfinished(
    subject: Subject, examples: Examples, question: AttackQuestion, settings: Settings
) -> Unfinished:
    """A question that has no answer yet, and how much of it is kept."""
    key = question_key(subject, examples, question, settings)
    folder = _partial(settings, subject, question, key)
    share = blocks.kept_share(folder, len(examples))
    return Unfinished(subject.name, question.name, share)


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
    share = 0.0 if settings.fresh else blocks.kept_share(folder, total)
    about = f"interrupted: {question.name} on {subject.name}"
    if share == 0:
        return f"{about} is not finished; the same command begins it again"
    if share > kept / total:
        return f"{about}, {100 * share:.0f} % of the work is kept; the same command goes on"
    return f"{about}, {kept:,} of {total:,} examples are kept; the same command goes on"


def _partial(settings: Settings, subject: Subject, question: AttackQuestion, key: str) -> Path:
    path, _ = store.paths(settings.results_dir, subject.about.id, question.name, key)
    return path.with_suffix(".part")
