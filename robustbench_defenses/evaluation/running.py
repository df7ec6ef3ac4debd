"""Running the attack of one question, block by block; what is done is kept on disk meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.errors import OutOfTime
from ..core.stopping import StopRequest
from ..engine.clipped import by_distance, clipped
from ..engine.ensemble import search_for
from ..engine.guides import Pool
from ..engine.protocol import taps_of
from ..engine.search import BATCH_SIZE, Block, Outcome
from ..engine.snapshot import MismatchError, State
from ..engine.transfer import Source, TransferSearch
from ..engine.twin import Twin, search_twin
from . import backends, blocks
from .examples import Examples, targets
from .question import AttackQuestion
from .subject import Subject

if TYPE_CHECKING:
    from .evaluate import Settings

GPU_BATCH_SIZE = 2048


def run_blocks(
    subject: Subject,
    examples: Examples,
    question: AttackQuestion,
    settings: Settings,
    folder: Path,
) -> list[dict[str, Any]]:
    """The outcome of every block; finished ones are kept in `folder` until the result is whole.

    Over the time limit: `OutOfTime`; after Ctrl-C `KeyboardInterrupt`: where our engine works,
    both once a snapshot of the running block has been kept.
    """
    view = subject.view(settings.view)
    twin = search_twin(
        view, examples.images, settings.machine.precision, taps_of(question.attack) is not None
    )
    progress, total = settings.progress, len(examples)
    progress.start(f"{question.label} on {subject.name}", total)
    pieces: list[dict[str, Any]] = []
    for start in range(0, total, blocks.BLOCK_SIZE):
        piece = blocks.kept(folder, start, total)
        if piece is None:
            if pieces and settings.limit is not None and settings.limit.over:
                raise OutOfTime("the time is over")
            block = _block(examples, question, settings, start)
            with StopRequest(active=_in_steps(question, settings)) as stop:
                piece = _run(subject, question, settings, twin, block, start, folder, stop)
                if total > blocks.BLOCK_SIZE or stop.asked:
                    blocks.keep(folder, start, piece)
                stop.deliver()
        pieces.append(piece)
        standing = sum(int(np.isinf(one["distance"]).sum()) for one in pieces)
        progress.update(start + blocks.size(start, total), f"{standing} standing")
    progress.finish(f"{standing} of {total} standing")
    return pieces


def _in_steps(question: AttackQuestion, settings: Settings) -> bool:
    """Our engine searches, and a keeper sees every step of it."""
    return settings.source is None and question.call is None


def transfer_source(source: Subject, block: Block, precision: str, features: bool) -> Source:
    """The source of a transfer attack, ready for a block's images; `features`: of its parts will
    be asked."""
    view = source.views[0]
    twin = search_twin(view, block.images, precision, features)
    return Source(source.name, view.logits, twin, source.deployed)


def _block(examples: Examples, question: AttackQuestion, settings: Settings, start: int) -> Block:
    """The examples of the block that begins at `start`, and what is asked about them."""
    part = slice(start, start + blocks.size(start, len(examples)))
    labels = examples.labels[part]
    wanted = torch.full_like(labels, -1)
    if question.targeted:
        wanted = targets(examples, examples.info.classes, settings.seed)[part]
    return Block(
        images=examples.images[part],
        labels=labels,
        target=wanted,
        numbers=examples.index[part],
        grid=question.budgets,
        sweep=question.sweep,
        pool=Pool.of(examples.images[part], labels),
    )


def _run(
    subject: Subject,
    question: AttackQuestion,
    settings: Settings,
    twin: Twin,
    block: Block,
    start: int,
    folder: Path,
    stop: StopRequest,
) -> dict[str, Any]:
    """The outcome of one block, from its snapshot on where there is one."""
    keeper = blocks.Keeper(blocks.snapshot_path(folder, start), settings.limit, stop)
    count, stepped = len(block.labels), _in_steps(question, settings)

    def report(broken: int, share: float) -> None:
        keeper.share = share
        settings.progress.update(start + int(share * count), f"{count - broken} standing")
        if not stepped and share < 1 and settings.limit is not None and settings.limit.over:
            raise OutOfTime("the time is over")

    def run(resume: State | None) -> Outcome:
        search = _search(subject, question, settings, twin, block, report, keeper, resume)
        out: Outcome = search.run()
        return out

    found = blocks.snapshot(folder, start)
    try:
        state, keeper.spent, keeper.share = (None, 0.0, 0.0) if found is None else found
        out = run(state)
    except MismatchError:  # made by another version of the attack: begun again
        keeper.spent = keeper.share = 0.0
        out = run(None)
    if question.minimum:
        out.broken = by_distance(out, block)
    if question.sweep == "clipped":
        out.broken = clipped(out, block, question.norm, subject.deployed, subject.name)
    return blocks.arrays(out, keeper.seconds)


def _search(
    subject: Subject,
    question: AttackQuestion,
    settings: Settings,
    twin: Twin,
    block: Block,
    report: Callable[[int, float], None],
    keeper: blocks.Keeper,
    resume: State | None,
) -> Any:
    """What answers about `block`: our engine, on a source of images or not, or another library."""
    common: dict[str, Any] = {
        "deployed": subject.deployed,
        "block": block,
        "subject": subject.name,
        "seed": settings.seed,
        "attack_name": question.name,
        "report": report,
    }
    keep_points = question.sweep == "clipped"
    if settings.source is not None:
        source = transfer_source(
            settings.source, block, settings.machine.precision, taps_of(question.attack) is not None
        )
        common["batch_size"] = settings.batch_size or BATCH_SIZE
        return TransferSearch(attack=question.attack, source=source, **common)
    if question.call is not None:
        return backends.BackendSearch(
            call=question.call,
            library=question.backend,
            minimum=question.minimum,
            norm=question.norm,
            view=subject.view(settings.view),
            targeted=question.targeted,
            batch_size=settings.batch_size or backends.BATCH_SIZE,
            keep_points=keep_points,
            **common,
        )
    gpu = settings.machine.device.type == "cuda"
    return search_for(
        question.attack,
        twin=twin,
        batch_size=settings.batch_size or (GPU_BATCH_SIZE if gpu else BATCH_SIZE),
        watch=keeper,
        resume=resume,
        keep_points=keep_points,
        **common,
    )
