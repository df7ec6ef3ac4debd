"""Train a defense on a data set.

  rrd train nt --dataset digits --preset smoke       seconds, offline
  rrd train pgd_at --dataset mnist                   under ten minutes on two cores
  rrd train aicr --dataset mnist --variant paper --seeds 0-2
  rrd train pgd_at --dataset mnist --set eps=0.2 --set model.width=16

--set speaks of the defense's parameters (rrd info DEFENSE), of training (epochs, batch_size,
optimiser, learning_rate, momentum, weight_decay, schedule, warmup, hold, floor, milestones, gamma,
peak, augment, validation, limit_train, save_every) and of the network (model.NAME).

The same command again answers from the store, or goes on where it was interrupted.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UserError
from ..training.presets import COMMON
from . import options

if TYPE_CHECKING:
    from ..training.runs import Run


def command(
    defense: Annotated[
        str,
        typer.Argument(
            metavar="DEFENSE",
            help="A defense (rrd list defenses) or FILE.py:NAME.",
            autocompletion=options.names_of("defense"),
        ),
    ],
    dataset: options.Dataset,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="M",
            help="A network (rrd list models) or FILE.py:NAME; the defense's own unless given.",
            autocompletion=options.names_of("model"),
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="P",
            help="smoke (seconds), quick (minutes on two cores), short (one GPU), paper (printed).",
            autocompletion=lambda: list(COMMON),
        ),
    ] = "quick",
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            metavar="V",
            help="paper or code: what is printed, or what the published code does.",
            show_default=False,
        ),
    ] = None,
    seed: options.Seed = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="A-B",
            help="One training for each seed: 0-2 or 0,3,7.",
            show_default=False,
        ),
    ] = None,
    settings: options.Set = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="E", help="Epochs of the main phase.", show_default=False),
    ] = None,
    limit_train: Annotated[
        int | None,
        typer.Option(
            "--limit-train",
            metavar="N",
            min=1,
            help="Train on the first N training images only.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option("--batch-size", metavar="auto|N", help="Images per step; auto: the preset's."),
    ] = "auto",
    data: options.Data = None,
    results: options.Results = options.DEFAULT_RESULTS,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    fresh: options.Fresh = False,
) -> None:
    chosen: dict[str, object] = dict(options.parse_set(settings))
    if (images := options.parse_batch_size(batch_size)) is not None:
        chosen["batch_size"] = images
    numbers = parse_seeds(seeds) if seeds is not None else [seed]

    from ..training.train import train
    from .console import print_json, progress

    begun = datetime.now(UTC).isoformat()
    runs: list[Run] = []
    for number in numbers:
        run = train(
            defense,
            dataset,
            model,
            preset=preset,
            variant=variant,
            seed=number,
            settings=chosen,
            epochs=epochs,
            limit_train=limit_train,
            data_dir=data,
            results_dir=results,
            device=device,
            precision=precision,
            threads=threads,
            fresh=fresh,
            progress=progress(quiet),
        )
        runs.append(run)
        if not json_:
            _show(run, stored=(run.info.finished or "") < begun)
    documents = [{"run": run.id, "path": str(run.folder)} for run in runs]
    if json_:
        print_json(documents[0] if seeds is None else {"runs": documents})
    elif not quiet:
        _next(runs[-1], results)


def parse_seeds(text: str) -> list[int]:
    """`0-2` or `0,3,7` as a rising list of seeds without doubles."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UserError(f"--seeds {text!r} cannot be read", hint="write 0-2 or 0,3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= 1000:
            raise UserError(f"--seeds {text!r}: {part.strip()} is empty or too long a range")
        found.update(range(first, last + 1))
    return sorted(found)


def _show(run: Run, stored: bool) -> None:
    """The run in a few lines: what was trained, how good it looked, where it lies."""
    from .console import duration, note, out

    info = run.info
    phases = " + ".join(str(phase["epochs"]) for phase in info.phases)
    took = f"{phases} epochs · {duration(info.seconds)} · {info.samples_per_second:,.0f} images/s"
    out.print(info.id, style="bold", soft_wrap=True)
    out.print(f" network  {info.model}, {info.parameters:,} parameters · {info.device}, "
              f"{info.threads} threads, {info.precision}", soft_wrap=True)  # fmt: skip
    out.print(f" trained  {took}", soft_wrap=True)
    for name, found in (("best", info.best), ("last", info.final)):
        if found is not None:
            out.print(f" {name:<8} {_accuracy(found, info.validation_images)}", soft_wrap=True)
    out.print(f" stored   {run.folder}", soft_wrap=True)
    for warning in info.warnings:
        out.print(f" warning  epoch {warning['epoch']}: {warning['sentence']}", soft_wrap=True)
    if stored and info.finished:
        age = datetime.now(UTC) - datetime.fromisoformat(info.finished)
        note(f"stored {duration(age.total_seconds())} ago; --fresh to train again")


def _accuracy(found: dict[str, object], images: int) -> str:
    def percent(value: object) -> str:
        return f"{100 * float(str(value)):.1f} %"

    text = f"epoch {found['epoch']}: clean {percent(found['validation_accuracy'])}"
    if found["metric"] == "robust_validation_accuracy":
        text += f", under PGD-10 {percent(found['value'])}"
    return f"{text} of {images:,} held-out training images"


def _next(run: Run, results: Path) -> None:
    from .console import note

    where = "" if results == options.DEFAULT_RESULTS else f" --results {results}"
    note(f"next  rrd eval {run.id} --attack pgd --eps-sweep{where}")
