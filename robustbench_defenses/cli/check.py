"""Re-evaluate cached checkpoints and compare with their stored results.

rrd check                       the checkpoints of ./results, else those shipped with rrd
rrd check my_results            any results folder with runs and evals
rrd check --tolerance 1         points of robust accuracy that may move

Exit code 1 when an accuracy moved by more than the tolerance, in either direction: with the same
weights a rise means a weaker attack.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..evaluation.check import Checked


def command(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="A results folder with runs and evals.", show_default=False
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", metavar="POINTS", help="Points of accuracy that may move at any eps."
        ),
    ] = 0.5,
    batch_size: options.BatchSize = "auto",
    data: options.Data = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Ask every stored result again."""
    from ..evaluation.check import check, default_folder
    from .console import progress

    chosen = folder or default_folder()
    checked = list(
        check(
            chosen,
            tolerance=tolerance / 100,
            data_dir=data,
            device=device,
            threads=threads,
            batch_size=options.parse_batch_size(batch_size),
            progress=progress(quiet),
        )
    )
    if json_:
        _document(checked, chosen)
    else:
        _table(checked)
    if not all(one.holds for one in checked):
        raise typer.Exit(1)


def _document(checked: list[Checked], folder: Path) -> None:
    from .console import print_json

    print_json(
        {
            "folder": str(folder),
            "holds": all(one.holds for one in checked),
            "checked": [
                {
                    "subject": one.stored.subject.id,
                    "attack": one.stored.attack.name,
                    "n": one.stored.n,
                    "eps": one.eps,
                    "before": one.before,
                    "now": one.now,
                    "holds": one.holds,
                    "worse": one.worse,
                    "better": one.better,
                    "tolerance": one.tolerance,
                    "smallest_drop": one.smallest_drop,
                }
                for one in checked
            ],
        }
    )


def _table(checked: list[Checked]) -> None:
    from .console import note, out, print_table

    rows = []
    for one in checked:
        where = "clean" if one.eps == 0 else f"@ {one.eps:g}"
        flipped = len(one.worse) + len(one.better)
        says = "MOVED" if not one.holds else "holds" if flipped else "same"
        verdict = f"{says}, {flipped} of {one.stored.n}" if flipped else says
        rows.append(
            [
                one.stored.subject.id,
                one.stored.attack.name,
                verdict,
                f"{100 * one.before:.1f} % {where}",
                f"{100 * one.now:.1f} %",
            ]
        )
    print_table(["checkpoint", "attack", "verdict", "stored", "now"], rows)
    for one in checked:
        for title, numbers in (("no longer hold", one.worse), ("now hold", one.better)):
            if numbers:
                shown = ", ".join(map(str, numbers))
                out.print(f" {one.stored.subject.id}: examples that {title}: {shown}")
    failed = sum(not one.holds for one in checked)
    drop = max(one.smallest_drop for one in checked)
    fewest = min(one.stored.n for one in checked)
    points = 100 * checked[0].tolerance
    head = f"{len(checked)} hold" if not failed else f"{failed} of {len(checked)} moved"
    note(
        f"{head} · tolerance {points:g} points · smallest drop this could have seen: "
        f"{100 * drop:.1f} points (n = {fewest})"
    )
