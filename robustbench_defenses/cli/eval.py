"""Measure robust accuracy: which examples break, at which budget.

rrd eval last --attack pgd --eps-sweep                 the published grid of the data set
rrd eval last --attack fgsm,pgd --eps 0.3 -n 1000
rrd eval net.py:build --dataset mnist --attack pgd --norm l2 --eps 0:3:0.5
rrd eval RUN@last --attack pgd --set steps=100 --set restarts=5

The same question again is answered from the store; --fresh asks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UserError
from . import options

if TYPE_CHECKING:
    from ..evaluation.diagnose import Diagnosis
    from ..evaluation.evaluate import Answer

THREAT = "Attack"


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
            help="Attacks (rrd list attacks) or FILE.py:NAME.",
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
            help="envelope: what broke stays broken at larger eps; independent: every eps afresh.",
            rich_help_panel=THREAT,
        ),
    ] = "envelope",
    targeted: Annotated[
        bool,
        typer.Option(
            "--targeted",
            help="Towards a random wrong class of each example.",
            rich_help_panel=THREAT,
        ),
    ] = False,
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
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="D",
            help="Where the test examples come from; a run's own data set unless given.",
            autocompletion=options.names_of("dataset"),
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        str | None,
        typer.Option(
            "-n", metavar="N", help="Number of test examples, or all.", show_default="1000"
        ),
    ] = None,
    subset: Annotated[
        str,
        typer.Option(
            "--subset", metavar="RULE", help="first, random:SEED, correct or fold:K (ten folds)."
        ),
    ] = "first",
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
    chosen = settings_by_attack(options.parse_set(settings), names)
    budgets = None if grid is None else parse_grid(grid, norm or implied_norm(names, chosen))
    count = options.parse_count(n)
    images = options.parse_batch_size(batch_size)

    from ..evaluation.run import evaluate
    from .console import progress

    reporter = progress(quiet)
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
            view=view,
            subset=subset,
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
    answered = [answer for answers in asked for answer in answers]
    diagnoses = []
    if diagnose:
        from ..evaluation.diagnose import diagnose as diagnose_

        for subject in dict.fromkeys(subjects or ["last"]):
            diagnoses.append(
                diagnose_(
                    subject,
                    dataset=dataset,
                    eps=None if budgets is None else budgets[-1],
                    norm=norm or implied_norm(names, chosen),
                    n=count,
                    subset=subset,
                    view=view,
                    seed=seed,
                    device=device,
                    precision=precision,
                    threads=threads,
                    data_dir=data,
                    results_dir=results,
                    progress=reporter,
                )
            )
    show(answered, diagnoses, as_json=json_, quiet=quiet)
    if any(one.errors for one in diagnoses):
        raise typer.Exit(1)


def implied_norm(names: list[str], settings: dict[str, dict[str, object]]) -> str:
    """The norm that names or settings say, for the check of budgets before anything loads."""
    given = {str(values["norm"]) for values in settings.values() if "norm" in values}
    if given:
        return "linf" if given == {"linf"} else "l2"
    ends = {name.rpartition("_")[2] for name in names} & {"l2", "l1"}
    return ends.pop() if len(ends) == 1 and len(names) == 1 else "l2" if ends else "linf"


def settings_by_attack(settings: dict[str, str], names: list[str]) -> dict[str, dict[str, object]]:
    """`steps=40` for every attack as "", `pgd_linf.steps=40` for that one alone.

    An attack may be called as in `names`, or with its norm: `pgd` is `pgd_linf` too.
    """
    chosen: dict[str, dict[str, object]] = {"": {}}
    for key, value in settings.items():
        attack, _, name = key.rpartition(".")
        for one in _called(attack, names) if attack else [""]:
            chosen.setdefault(one, {})[name] = value
    return chosen


def _called(attack: str, names: list[str]) -> list[str]:
    """Those of `names` that the user calls `attack` (whose hyphens are underscores by now)."""
    from ..core import registry
    from ..core.errors import did_you_mean

    literally = [name for name in names if name.replace("-", "_") == attack]
    if literally:
        return literally
    found = []
    for name in names:
        full = registry.find("attack", name).name
        if attack == full or attack.rpartition("_")[0] == full or full.rpartition("_")[0] == attack:
            found.append(name)
    if not found:
        hint = did_you_mean(attack, names, ", ".join(names))
        raise UserError(f"--set {attack}: {attack!r} is not among the attacks", hint)
    return found


def show(answers: list[Answer], diagnoses: list[Diagnosis], as_json: bool, quiet: bool) -> None:
    """The answers on stdout: one JSON document, or a table with what a reader needs to know."""
    import time

    from .console import duration, note, out, print_json

    stored = [answer.stored for answer in answers]
    if as_json:
        document: dict[str, object] = {"results": [one.document() for one in stored]}
        if diagnoses:
            document["diagnoses"] = [one.document() for one in diagnoses]
        print_json(document)
        return
    from ..report.table import results_table

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


def show_diagnosis(found: Diagnosis) -> None:
    """One screen: what fired, how much was checked, and the answer in a sentence."""
    from .console import duration, out

    out.print()
    out.print(
        f"Is this robustness real?  {found.subject}, eps {found.eps:g} ({found.norm}), "
        f"{found.n} images, {duration(found.seconds)}",
        style="bold",
    )
    ranks = {"error": "ERROR", "warning": "WARN "}
    fired = sorted(
        (one for one in found.checks if one.fired and one.severity in ranks),
        key=lambda one: list(ranks).index(one.severity),
    )
    for one in fired:
        out.print(f" {ranks[one.severity]}  {one.name}: {one.sentence}")
    for one in found.checks:
        if one.skipped is not None:
            out.print(f" -      {one.name}: {one.sentence}", style="dim")
    quiet_ones = sum(not one.fired and one.skipped is None for one in found.checks)
    out.print(f" ok     {quiet_ones} other checks")
    out.print()
    left, base = 100 * found.left, 100 * found.base
    if found.errors:
        out.print(
            f"No: {found.errors[0].sentence}. At eps {found.eps:g} at most {left:.1f} % are right "
            f"(worst case over all that was tried; pgd alone says {base:.1f} %)."
        )
    else:
        out.print(
            f"Nothing here speaks against it: {left:.1f} % survive everything that was tried at "
            f"eps {found.eps:g} (pgd alone {base:.1f} %). A stronger attack may leave less."
        )
