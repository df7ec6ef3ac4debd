"""Reproduce a paper's printed table or figure: train, attack, and put our numbers beside theirs.

rrd reproduce aicr/table6 --dry-run                  what it would take
rrd reproduce aicr/table6 --only dataset=mnist       only some cells
rrd reproduce aicr --preset smoke                    every item of a paper, in minutes
rrd reproduce aicr/table2 --strong                   and what a strong attack leaves

Interrupted anywhere, the same command goes on; what was trained or measured before is used again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import UserError
from . import options

if TYPE_CHECKING:
    from ..core.device import Machine
    from ..report.item import Item
    from ..reproduce.estimate import Standing
    from ..reproduce.execute import Outcome
    from ..reproduce.jobs import Job, Place
    from ..reproduce.plan import Plan


def command(
    item: Annotated[
        str,
        typer.Argument(metavar="PAPER[/ITEM]", help="aicr/table2, a whole paper, or all."),
    ],
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="P", help="smoke, quick, short or paper."),
    ] = "quick",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="KEY=VALUE",
            help="Only cells with this key: dataset=mnist, defense=nt,aicr, attack=fgsm; arm=NAME "
            "takes another reading of the paper; may be repeated.",
            show_default=False,
        ),
    ] = None,
    stand_in: Annotated[
        bool,
        typer.Option("--stand-in", help="Use declared stand-ins for data sets that are not here."),
    ] = False,
    strong: Annotated[
        bool,
        typer.Option(
            "--strong", help="Add the worst case over the paper's attacks and AutoAttack."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and an estimate, and do nothing.")
    ] = False,
    jobs: Annotated[
        int,
        typer.Option("--jobs", metavar="N", min=1, help="Child processes that work side by side."),
    ] = 1,
    data: options.Data = None,
    results: options.Results = options.DEFAULT_RESULTS,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    fresh: options.Fresh = False,
) -> None:
    """Plan, run, and print the items in the paper's shape."""
    from ..data.locate import data_dir
    from ..reproduce import recipe as recipes
    from ..reproduce.estimate import machine_of
    from ..reproduce.jobs import Place
    from ..reproduce.plan import make
    from .console import print_json, progress

    chosen = recipes.named(item)
    plan = make(
        chosen,
        preset,
        data_dir(data),
        only=parse_only(only),
        stand_in=stand_in,
        strong=strong,
        seed=seed,
        precision=precision,
    )
    if not plan.jobs:
        reasons = sorted({str(o.reason) for o in plan.wanted if o.status == "missing_data"})
        raise UserError(f"nothing of {item} can be measured here", hint="; ".join(reasons) or None)
    images = options.parse_batch_size(batch_size)
    place = Place(results, data, device, threads, fresh, precision, images, seed)
    here = machine_of(device, threads, precision)
    if dry_run or not (quiet or json_):
        rows = standings(plan, place, here, timed=dry_run)
        if json_:
            print_json(plan_document(item, plan, rows))
        else:
            show_plan(plan, item, rows, timed=dry_run)
    if dry_run:
        return

    from ..core.files import check_writable
    from ..reproduce.execute import execute

    check_writable(results)
    outcomes = execute(
        plan.jobs,
        place,
        jobs,
        progress(quiet),
        told=lambda outcome, done, total: _tell(outcome, done, total, quiet),
    )
    items = build_all(plan, outcomes, results, here)
    show(items, outcomes, results, as_json=json_, quiet=quiet)
    if any(outcome.state != "done" for outcome in outcomes.values()):
        raise typer.Exit(1)


def parse_only(texts: list[str] | None) -> dict[str, list[str]]:
    """`["dataset=mnist,cifar10", "eps=0.3"]` by key; a text without `=` is a `UserError`."""
    found: dict[str, list[str]] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        values = [part.strip() for part in value.split(",") if part.strip()]
        if not equals or not key.strip() or not values:
            raise UserError(f"--only {text!r} cannot be read", hint="write --only dataset=mnist")
        found.setdefault(key.strip().replace("-", "_"), []).extend(values)
    return found


def standings(
    plan: Plan, place: Place, machine: Machine, timed: bool
) -> list[tuple[Job, Standing]]:
    """Every job and how it stands; `timed`: with an estimate."""
    from ..reproduce.estimate import Estimator

    estimator = Estimator(place, machine, plan.level, timed)
    return [(job, estimator.standing(job)) for job in plan.jobs]


def plan_document(item: str, plan: Plan, rows: list[tuple[Job, Standing]]) -> dict[str, Any]:
    """The plan as JSON: jobs with state and seconds still to come, cells by status, data sets."""
    jobs = [
        {
            "job": job.name,
            "kind": job.kind,
            "state": standing.state,
            "done": standing.there,
            "of": standing.total,
            "seconds": standing.seconds,
        }
        for job, standing in rows
    ]
    return {
        "item": item,
        "preset": plan.preset,
        "cells": dict(Counter(one.status for one in plan.wanted)),
        "jobs": jobs,
        "seconds": sum(standing.seconds or 0.0 for _, standing in rows),
        "stand_ins": plan.stand_ins,
        "missing": {name: fault for name, fault in plan.missing.items() if fault},
    }


def show_plan(plan: Plan, item: str, rows: list[tuple[Job, Standing]], timed: bool) -> None:
    """What will be done: a line per job with its state and, when `timed`, an estimate."""
    from .console import duration, err, out

    screen = out if timed else err
    said = Counter(one.status for one in plan.wanted)
    counted = [f"{said['selected']} cells selected"]
    if said["cited"]:
        counted.append(f"{said['cited']} cited by the paper only")
    if said["missing_data"]:
        names = sorted(name for name, fault in plan.missing.items() if fault)
        counted.append(f"{said['missing_data']} without data ({', '.join(names)})")
    screen.print(f"{item} · {plan.preset} · {' · '.join(counted)}", style="bold")
    lines, total = [], 0.0
    for job, standing in rows:
        state: str = standing.state
        if job.kind == "eval" and 0 < standing.there < standing.total:
            state = f"{standing.there} of {standing.total} done"
        seconds = standing.seconds if standing.state != "done" else None
        total += seconds or 0.0
        what = job.name if job.kind == "train" else f"{job.name} ({standing.total})"
        lines.append((what, state, "" if seconds is None else duration(seconds)))
    width = min(max(len(line[0]) for line in lines), 74)
    for what, state, estimate in lines:
        shown = what if len(what) <= width else what[: width - 1] + "…"
        line = f" {shown:<{width}}  {state:<12} {estimate:>9}"
        screen.print(line.rstrip(), soft_wrap=True)
    if timed:
        screen.print(
            f" {'at most, from a few timed batches on this machine':<{width}}  {'':<12} "
            f"{duration(total):>9}", soft_wrap=True
        )  # fmt: skip
    for asked, used in plan.stand_ins.items():
        screen.print(f" {asked} is not here: {used} stands in, and every cell says so")
    for name, fault in plan.missing.items():
        if fault and name not in plan.stand_ins:
            screen.print(f" {fault}", soft_wrap=True)
    screen.print()


def _tell(outcome: Outcome, done: int, total: int, quiet: bool) -> None:
    from .console import duration, err

    if outcome.state == "done":
        if not quiet and outcome.seconds > 1:
            err.print(
                f"{done} of {total} jobs · {outcome.job.name} · {duration(outcome.seconds)}",
                style="dim", soft_wrap=True,
            )  # fmt: skip
        return
    err.print(f"failed: {outcome.job.name}: {outcome.sentence}", soft_wrap=True)
    if outcome.log is not None:
        err.print(f"  log: {outcome.log}", soft_wrap=True)


def build_all(
    plan: Plan, outcomes: dict[str, Outcome], results: Path, machine: Machine
) -> list[Item]:
    """Build and write every item that has something to show."""
    from ..evaluation.result import current_environment
    from ..reproduce import build
    from ..training import environment

    here = current_environment(machine)
    items = []
    for recipe in plan.recipes:
        if not any(one.status == "selected" for one in plan.of(recipe.id)):
            continue
        item = build.build(plan, recipe, outcomes, results, environment.command(), here)
        build.save(item, results)
        items.append(item)
    build.save_papers(items, results)
    return items


def show(
    items: list[Item], outcomes: dict[str, Outcome], results: Path, as_json: bool, quiet: bool
) -> None:
    """The items on stdout: one JSON document, or tables in the paper's shape."""
    from ..report import item as stored
    from ..report.item_formats import terminal
    from ..report.item_page import PAGE, path_of
    from .console import note, out, print_json

    lost = [one for one in outcomes.values() if one.state != "done"]
    if as_json:
        failed = [{"job": one.job.name, "reason": one.sentence} for one in lost]
        print_json({"items": [item.document() for item in items], "failed": failed})
        return
    for item in items:
        out.print(terminal(item, out.width), soft_wrap=True)
    if quiet:
        return
    for item in items:
        note(f"page   {stored.folder(results, item.id, item.preset) / PAGE}")
    for paper, preset in dict.fromkeys((item.id.split("/")[0], item.preset) for item in items):
        if len(items) > 1:
            note(f"all    {path_of(results, paper, preset)}")
    if lost:
        note(f"{len(lost)} of {len(outcomes)} jobs did not finish; the same command tries again")
