"""Measure robust accuracy: which examples break, at which budget.

rrd eval last --attack pgd --eps-sweep                 the published grid of the data set
rrd eval last --attack fgsm,pgd --eps 0.3 -n 1000
rrd eval net.py:build --dataset mnist --attack pgd --norm l2 --eps 0:3:0.5
rrd eval RUN@last --attack pgd --set steps=100 --set restarts=5
rrd eval last --attack all --eps 0.3 --budget standard --time-limit 30

The same question again is answered from the store; --fresh asks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..core.errors import UserError
from . import options
from .asked import implied_norm, settings_by_attack

if TYPE_CHECKING:
    from ..evaluation.diagnose import Diagnosis
    from ..evaluation.evaluate import Answer
    from ..evaluation.limit import Unfinished
    from ..evaluation.run import Evaluation

THREAT = "Attack"
# Declared passes from which on a run is announced.
LONG = 5_000_000


def command(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUBJECT",
            help="A run, the beginning of its id, its folder, last, or FILE.py:FACTORY; RUN@last "
            "picks a checkpoint, RUN[rule=nearest_centre] a deployment option.",
            autocompletion=options.run_ids(),
            show_default="last",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            metavar="A[,B...]",
            help="Attacks (rrd list attacks), FILE.py:NAME, or all: every attack that fits.",
            autocompletion=options.names_of("attack"),
            rich_help_panel=THREAT,
            show_default="pgd",
        ),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps",
            metavar="E[,E...]",
            help="Budgets in pixel units: 0.3, 8/255, 0:0.5:0.05.",
            rich_help_panel=THREAT,
            show_default=False,
        ),
    ] = None,
    eps_sweep: Annotated[
        str | None,
        typer.Option(
            "--eps-sweep",
            metavar="[GRID]",
            help="A grid of budgets; without one, the published grid (rrd info DATASET).",
            rich_help_panel=THREAT,
            show_default=False,
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            "--norm",
            metavar="NORM",
            help="linf, l2 or l1; the attack's own unless given.",
            rich_help_panel=THREAT,
            show_default=False,
        ),
    ] = None,
    settings: options.Set = None,
    sweep: Annotated[
        str,
        typer.Option(
            "--sweep",
            metavar="RULE",
            help="envelope: what broke stays broken at larger eps; independent: every eps afresh; "
            "clipped: what a minimum-norm attack found, clipped to each eps.",
            rich_help_panel=THREAT,
        ),
    ] = "envelope",
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="LEVEL",
            help="quick, standard or deep: parameters and number of examples of each attack.",
            rich_help_panel=THREAT,
            show_default="quick with --attack all",
        ),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit",
            metavar="MIN",
            help="Stop after so many minutes; what is done is kept, the same command goes on.",
            rich_help_panel=THREAT,
            show_default=False,
        ),
    ] = None,
    targeted: Annotated[
        bool,
        typer.Option(
            "--targeted",
            help="Towards a random wrong class of each example.",
            rich_help_panel=THREAT,
        ),
    ] = False,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="native, or foolbox or autoattack: the library's own attack, for comparison "
            "(its randomness depends on --batch-size).",
            rich_help_panel=THREAT,
        ),
    ] = "native",
    view: Annotated[
        str | None,
        typer.Option(
            "--view",
            metavar="NAME",
            help="The attack view; the strongest known unless given.",
            rich_help_panel=THREAT,
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="SUBJECT",
            help="Transfer: images are made on this subject, the evaluated one only judges them.",
            autocompletion=options.run_ids(),
            rich_help_panel=THREAT,
            show_default=False,
        ),
    ] = None,
    dataset: options.TestSet = None,
    n: options.Count = None,
    subset: options.Subset = "first",
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose",
            help="Then ask whether this robustness is real: a battery of checks on 200 images.",
        ),
    ] = False,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = "auto",
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
    """Evaluate every subject under every attack and print the table."""
    from ..core.norms import parse_grid

    if eps is not None and eps_sweep is not None:
        raise UserError("--eps and --eps-sweep exclude each other")
    grid = eps if eps is not None else (eps_sweep or None)
    names = options.split_names(attack or ["pgd"])
    chosen = settings_by_attack(options.parse_set(settings), expanded(names, norm))
    budgets = None if grid is None else parse_grid(grid, norm or implied_norm(names, chosen))
    count = options.parse_count(n)
    images = options.parse_batch_size(batch_size)

    from ..evaluation.limit import TimeLimit
    from ..evaluation.overall import Overall
    from ..evaluation.run import evaluate
    from .console import err, progress

    doubts: dict[str, Any] = {}
    if diagnose:
        from ..core.device import machine
        from ..evaluation.budgets import settings_for
        from ..evaluation.diagnose import diagnose as diagnose_
        from ..evaluation.diagnose import suspected

        if targeted or source is not None:
            what = "--targeted" if targeted else "--source"
            raise UserError(
                f"--diagnose doubts untargeted attacks on the subject itself; it has no {what}",
                hint=f"once with {what}, once with --diagnose",
            )
        suspects = [name for name in names if name != "all"] or ["pgd"]
        given = chosen | {"": {}} if "all" in names else chosen
        doubts = {
            "attacks": suspects,
            "dataset": dataset,
            "eps": None if budgets is None else budgets[-1],
            "norm": norm,
            "n": count,
            "settings": settings_for(suspects, suspects, given, norm, budget),
            "subset": subset,
            "data_dir": data,
            "results_dir": results,
        }
        for subject in dict.fromkeys(subjects or ["last"]):
            suspected(subject, device=machine(device, precision, threads).device, **doubts)
    reporter = Overall(progress(quiet))
    limit = None if time_limit is None else TimeLimit(time_limit)
    # Every subject is checked before the first is attacked.
    asked = [
        evaluate(
            subject,
            names,
            dataset=dataset,
            eps=budgets,
            norm=norm,
            n=count,
            settings=chosen,
            sweep=sweep,
            targeted=targeted,
            backend=backend,
            view=view,
            subset=subset,
            source=source,
            budget=budget,
            time_limit=limit,
            seed=seed,
            device=device,
            precision=precision,
            batch_size=images,
            threads=threads,
            data_dir=data,
            results_dir=results,
            fresh=fresh,
            progress=reporter,
        )
        for subject in dict.fromkeys(subjects or ["last"])
    ]
    works = [sum(each.passes) for one in asked for each in one.asked]
    reporter.expect(works, one_subject=len(asked) == 1)
    if not quiet:
        announce(asked)
    answered, unfinished, said = answers_of(asked)
    diagnoses = []
    if diagnose and not unfinished:
        for subject in dict.fromkeys(subjects or ["last"]):
            diagnoses.append(
                diagnose_(
                    subject,
                    view=view,
                    seed=seed,
                    device=device,
                    precision=precision,
                    threads=threads,
                    progress=progress(quiet),
                    **doubts,
                )
            )
    show(answered, diagnoses, as_json=json_, quiet=quiet, unfinished=unfinished)
    for sentence in said:
        err.print(sentence, soft_wrap=True)
    if unfinished:
        raise typer.Exit(1)
    if any(one.errors for one in diagnoses):
        raise typer.Exit(1)


def expanded(names: list[str], norm: str | None) -> list[str]:
    """The attacks that may be spoken of by `--set`; `all` is every attack of the norm."""
    if "all" not in names:
        return names
    from ..evaluation.budgets import expand

    return expand(names, norm)


def announce(asked: list[Evaluation]) -> None:
    """Before a long run: how much it may cost."""
    from .console import note

    left = [each.passes for one in asked for each in one.open()]
    forward, backward = (sum(pair) for pair in zip(*left)) if left else (0, 0)
    if forward + backward < LONG:
        return
    what = "1 attack" if len(left) == 1 else f"{len(left)} attacks"
    note(
        f"{what} to run, at most {_millions(forward)} forward and {_millions(backward)} backward "
        "passes of one image; broken images cost no more"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} million" if count >= 1e7 else f"{count / 1e6:.1f} million"


def answers_of(asked: list[Evaluation]) -> tuple[list[Answer], list[Unfinished], list[str]]:
    """The answers; what a time limit has cut; and the sentences that say so."""
    from ..core.errors import OutOfTime

    answered: list[Answer] = []
    unfinished: list[Unfinished] = []
    said: list[str] = []
    for one in asked:
        try:
            answered.extend(one)
        except OutOfTime as stop:
            unfinished += cast("list[Unfinished]", stop.left)
            said.append(stop.message)
    return answered, unfinished, said


def show(
    answers: list[Answer],
    diagnoses: list[Diagnosis],
    as_json: bool,
    quiet: bool,
    unfinished: list[Unfinished] | None = None,
) -> None:
    """The answers on stdout: one JSON document, or a table with what a reader needs to know."""
    import time

    from .console import duration, err, note, out, print_json

    err.release()
    stored = [answer.stored for answer in answers]
    from ..report.panels import optimality_scores

    if as_json:
        document: dict[str, object] = {"results": [one.document() for one in stored]}
        if diagnoses:
            document["diagnoses"] = [one.document() for one in diagnoses]
        if scores := optimality_scores(stored):
            document["optimality"] = scores
        if unfinished:
            document["unfinished"] = [one.document() for one in unfinished]
        print_json(document)
        return
    from ..report.table import results_table
    from .diagnosis import show_diagnosis

    if stored:
        out.print(results_table(stored, out.width))
    for diagnosis in diagnoses:
        show_diagnosis(diagnosis)
    if quiet:
        return
    for answer in answers:
        path = answer.stored.path
        if answer.cached:
            age = duration(max(0.0, time.time() - path.stat().st_mtime))
            note(f"stored {age} ago; --fresh to ask again: {path}")
        else:
            note(f"stored {path}")
