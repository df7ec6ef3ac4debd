"""`train`: from names to a finished run, or straight to it when it was trained before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.device import Machine, machine
from ..core.draws import seeded
from ..core.errors import UserError
from ..core.layout import any_layout, suits_channels_last
from ..core.progress import Progress, Silent
from ..data.loader import Loader, split_validation
from ..data.source import DataInfo, Split, describe, load, take, to_float
from ..defenses.base import Defense, Parts, Setup
from . import environment, resume
from .assemble import fresh_parts, make_defense, model_factory
from .question import Question, ask
from .resume import Standing
from .runs import Run, RunInfo, clear, read_info, runs_folder
from .trainer import Trainer

EXAMPLES = 500  # images of one batch of `Setup.examples`


def train(
    defense: str,
    dataset: str,
    model: str | None = None,
    *,
    preset: str = "quick",
    variant: str | None = None,
    seed: int = 0,
    settings: Mapping[str, object] | None = None,
    epochs: int | None = None,
    limit_train: int | None = None,
    data_dir: str | Path | None = None,
    results_dir: str | Path = "results",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train `defense` on `dataset`; a run that exists already comes back at once.

    `model`: a registered network or `FILE.py:NAME` (default: the defense's for this data set);
    `settings`: as `--set` (texts are converted): training settings (`defenses.base.TrainSettings`),
    the defense's own, and the network's as `model.NAME`; `epochs`, `limit_train`: short for the
    settings of that name; `fresh`: forget an earlier run and train again.

    An unfinished run goes on where it was; on the CPU it ends with the weights of an uninterrupted
    one, bit for bit. Bad input: `UserError`, before anything is written. Ctrl-C: `Interrupted`.
    """
    named = {"epochs": epochs, "limit_train": limit_train}
    chosen = {**(settings or {}), **{k: v for k, v in named.items() if v is not None}}
    question = ask(
        defense,
        dataset,
        model,
        preset=preset,
        variant=variant,
        seed=seed,
        settings=chosen,
        precision=precision,
    )
    made = make_defense(question.defense, question.defense_settings)
    split = load(question.dataset, "train", data_dir) if ":" in question.dataset else None
    run_id = question.run_id(split.digest if split else None)
    folder = runs_folder(results_dir) / run_id
    if not fresh and (stored := _stored(folder)) is not None:
        return stored
    split = split or load(question.dataset, "train", data_dir)
    about = describe(question.dataset, data_dir)
    threads_before = torch.get_num_threads()
    try:
        earlier = None if fresh else _unfinished(folder, split.digest)
        if earlier is not None:
            # Bits depend on both: an interrupted training goes on with those it began with.
            precision = earlier.precision if precision == "auto" else precision
            threads = threads or earlier.threads
        resolved = machine(device, precision, threads)
        ready = prepare(question, made, about, split, resolved)
        info = _info(run_id, question, ready, split.digest, resolved)
        with any_layout(ready.relaxed), resume.alone(folder, progress or Silent()):
            return _train(folder, info, made, ready, resolved, fresh, progress or Silent())
    finally:
        torch.set_num_threads(threads_before)


def _train(
    folder: Path,
    info: RunInfo,
    defense: Defense,
    ready: Ready,
    resolved: Machine,
    fresh: bool,
    progress: Progress,
) -> Run:
    """Begin, or go on, in a folder that nobody else trains in."""
    if not fresh and (stored := _stored(folder)) is not None:
        return stored
    earlier = None if fresh else _unfinished(folder, info.data_digest)
    restored = resume.load(folder) if earlier else None
    if restored is None:
        clear(folder)
    trainer = Trainer(
        folder=folder,
        info=replace(info, started=earlier.started) if earlier and restored else info,
        defense=defense,
        setup=ready.setup,
        parts=ready.parts,
        loader=ready.loader,
        held_out=ready.held_out,
        machine=resolved,
        progress=progress,
        standing=restored[0] if restored else Standing(),
        restored=restored[1] if restored else None,
    )
    trainer.run()
    return Run(folder, read_info(folder))


@dataclass(frozen=True)
class Ready:
    """Everything a trainer needs beside names and folders; `relaxed`: it runs in `any_layout`."""

    setup: Setup
    parts: Parts
    loader: Loader
    held_out: tuple[Tensor, Tensor] | None
    training_images: int
    relaxed: bool


def _stored(folder: Path) -> Run | None:
    """The finished run of a folder, if it is whole."""
    if not (folder / "run.json").is_file():
        return None
    run = Run(folder, read_info(folder))
    if not run.finished or not {"best", "last"} <= set(run.checkpoints()):
        return None
    resume.forget(folder)
    return run


def _unfinished(folder: Path, data_digest: str) -> RunInfo | None:
    """What run.json says about an interrupted training of this folder, if it can go on."""
    if not (folder / "run.json").is_file() or not resume.path_of(folder).is_file():
        return None
    info = read_info(folder)
    if info.data_digest != data_digest:
        raise UserError(
            f"run {folder.name} began with other data than are here now",
            hint="--fresh starts this training anew",
        )
    return info


def prepare(
    question: Question, defense: Defense, about: DataInfo, split: Split, resolved: Machine
) -> Ready:
    """Everything a trainer needs; nothing is written."""
    settings, device = question.train, resolved.device
    kept = min(settings.validation, len(split.labels) // 10)
    training, validation = split, None
    if kept:
        training, validation = split_validation(split, kept, question.seed)
    if settings.limit_train:
        training = take(training, torch.arange(min(settings.limit_train, len(training))))
    size = min(settings.batch_size, len(training.labels))
    if size < 2:
        raise UserError(f"{size} training images are too few", hint="at least 2 are needed")
    augment = None if settings.augment == "none" else settings.augment
    shape = (about.shape[0], about.shape[1], about.shape[2])
    setup = Setup(
        shape=shape,
        classes=about.classes,
        dataset=question.dataset,
        model=model_factory(question.model, question.model_settings, shape, about.classes),
        settings=settings,
        seed=question.seed,
        device=device,
        autocast=resolved.autocast,
        examples=lambda: _examples(training, device, layout),
    )
    layout, relaxed = _layout(question.model, setup)
    loader = Loader(training, size, question.seed, device, augment, layout=layout)
    parts = fresh_parts(defense, setup)
    for module in parts.values():
        # torch declares this overload of `to` for four-dimensional tensors' modules only.
        module.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    held = None
    if validation is not None:
        images = to_float(validation.images).to(device, memory_format=layout)
        held = (images, validation.labels.to(device))
    return Ready(setup, parts, loader, held, len(training.labels), relaxed)


def _layout(model: str, setup: Setup) -> tuple[torch.memory_format, bool]:
    """The layout of weights and images, and whether the training runs in `any_layout`.

    Networks of ours need no help with channels-last: on a GPU, where what it costs would be seen in
    the time of small ones, they go without. One from outside is asked whether it can be helped.
    """
    if ":" not in model:
        return torch.channels_last, setup.device.type == "cpu"
    with seeded(setup.seed, setup.device):
        network = setup.model().eval().to(setup.device)
        few = torch.rand(2, *setup.shape).to(setup.device)
        suits = suits_channels_last(network, few)
    return torch.channels_last if suits else torch.contiguous_format, suits


def _examples(
    split: Split, device: torch.device, layout: torch.memory_format
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(split.labels), EXAMPLES):
        images = to_float(split.images[start : start + EXAMPLES])
        labels = split.labels[start : start + EXAMPLES]
        yield images.to(device, memory_format=layout), labels.to(device)


def _info(
    run_id: str, question: Question, ready: Ready, data_digest: str, resolved: Machine
) -> RunInfo:
    """run.json as it stands before the first step."""
    settings: dict[str, dict[str, Any]] = {
        "train": asdict(question.train),
        "defense": question.defense_settings,
        "model": question.model_settings,
    }
    # The network is what is deployed; a defense without a part of that name counts them all.
    counted = [ready.parts["network"]] if "network" in ready.parts else list(ready.parts.values())
    return RunInfo(
        id=run_id,
        status="unfinished",
        dataset=question.dataset,
        data_digest=data_digest,
        shape=ready.setup.shape,
        classes=ready.setup.classes,
        defense=question.defense,
        defense_version=question.defense_version,
        variant=question.variant,
        model=question.model,
        model_version=question.model_version,
        preset=question.preset,
        seed=question.seed,
        settings=settings,
        precision=resolved.precision,
        device=str(resolved.device),
        threads=resolved.threads,
        parameters=sum(weight.numel() for part in counted for weight in part.parameters()),
        training_images=ready.training_images,
        validation_images=0 if ready.held_out is None else len(ready.held_out[1]),
        versions=environment.versions(),
        git_commit=environment.git_commit(),
        command=environment.command(),
        started=datetime.now(UTC).isoformat(),
    )
