"""Train, attack and compare three defenses on embedded data: offline, under two minutes.

rrd quickstart
rrd quickstart --results /tmp/first-look
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from ..evaluation.schema import Result
    from ..evaluation.store import StoredResult
    from ..training.runs import Run

DEFENSES = ("nt", "pgd_at", "aicr")
EPS = 0.2


def command(
    results: options.Results = options.DEFAULT_RESULTS,
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """The whole story on digits."""
    from ..core.device import machine
    from ..evaluation.run import evaluate
    from ..report.curve import plot_curves
    from ..training.train import train
    from .console import err, print_json, progress

    here = machine(device, "auto", threads)
    if not quiet:
        err.print(
            "rrd quickstart · digits (1,797 images of 8x8, embedded) · "
            f"{here.device}, {here.threads} threads, {here.precision} search"
        )
    runs: list[Run] = []
    stored: list[StoredResult] = []
    common: dict[str, Any] = {
        "seed": seed,
        "results_dir": results,
        "device": device,
        "threads": threads,
        "progress": progress(quiet),
    }
    for defense in DEFENSES:
        runs.append(train(defense, "digits", preset="quick", **common))
    for run in runs:
        answers = evaluate(str(run.folder), ["pgd"], n=-1, **common)
        stored += [answer.stored for answer in answers]
    picture = results / "quickstart" / "curve.svg"
    files = [*plot_curves(stored, picture), *plot_curves(stored, picture.with_suffix(".png"))]
    if json_:
        print_json(
            {
                "runs": [run.id for run in runs],
                "results": [one.document() for one in stored],
                "files": [str(path) for path in dict.fromkeys(files)],
            }
        )
        return
    _show(runs, stored, str(picture))


def _show(runs: list[Run], stored: list[StoredResult], picture: str) -> None:
    from ..report.table import results_table
    from .console import out

    out.print(results_table(stored, out.width))
    for sentence in ("", *sentences(dict(zip(DEFENSES, (one.result for one in stored))))):
        out.print(sentence)
    out.print(f"\ncurve   {picture}")
    subject = runs[-1].id
    for command_, meaning in (
        ("rrd train pgd_at --dataset mnist", "the real images (rrd data fetch mnist, 11 MB)"),
        (f"rrd eval {subject} --attack fgsm,mim,pgd --norm l2", "other attacks, another norm"),
        (f"rrd attack {subject} --eps 0.2 --png adversarial.png", "see what an attack changes"),
    ):
        head = "next    " if "train" in command_ else "        "
        out.print(f"{head}{command_}", soft_wrap=True)
        out.print(f"          {meaning}", style="dim")


def sentences(results: dict[str, Result]) -> tuple[str, str]:
    """What the reader just saw, in two sentences made from the numbers."""

    def left(defense: str) -> float:
        return next(p.robust_accuracy for p in results[defense].curve if abs(p.eps - EPS) < 1e-9)

    trained, plain, noise = left("pgd_at"), left("nt"), left("aicr")
    first = (
        f"PGD may change every pixel by {EPS:g}: adversarial training (pgd_at) still classifies "
        f"{100 * trained:.0f} % of the test images rightly, the undefended network (nt) "
        f"{100 * plain:.0f} %."
    )
    gained = noise - plain
    if gained <= 0.05:
        verdict = "which buys no robustness here"
    elif noise < trained - 0.05:
        verdict = "which buys some robustness, less than training on attacks"
    else:
        verdict = "which holds as well as training on attacks against this one attack"
    second = f"AICR trains on noise, not on attacks: {100 * noise:.0f} % are left, {verdict}."
    return first, second
