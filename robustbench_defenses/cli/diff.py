"""Compare two results, or two folders of results: what changed, and is it more than chance?

rrd diff results/evals/A results/evals/B       two subjects, example by example
rrd diff before/evals after/evals              every question that both folders answer

McNemar's exact test on the same examples, corrected for the number of comparisons. Exit code 1
when a difference is significant (5 %).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DEFAULT_RESULTS, Debug, Json, Quiet, Results

if TYPE_CHECKING:
    from ..evaluation.diff import Change, Diff

SHOWN = 40


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="A result's file, a folder, or a subject.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    results: Results = DEFAULT_RESULTS,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print every difference, the significant ones first."""
    from ..evaluation.diff import diff

    found = diff(_path(a, results), _path(b, results))
    if json_:
        _document(found)
    else:
        _table(found, quiet)
    if found.significant:
        raise typer.Exit(1)


def _path(name: str, results: Path) -> Path:
    """A file or folder as it stands, else a subject's folder (the beginning of an id is enough)."""
    path = Path(name)
    if path.exists():
        return path
    from ..evaluation import store

    folder = store.evals(results)
    ids = sorted(each.name for each in folder.glob("*") if each.is_dir())
    whole = store.beginning_with(name, ids)
    return path if whole is None else folder / whole


def _document(found: Diff) -> None:
    from dataclasses import asdict

    from .console import print_json

    changes = [
        {**asdict(change), "difference": change.difference, "significant": change.significant}
        for change in found.changes
    ]
    print_json(
        {
            "significant": len(found.significant),
            "changes": changes,
            "only_a": found.only_first,
            "only_b": found.only_second,
        }
    )


def _table(found: Diff, quiet: bool) -> None:
    from .console import note, out, print_table

    moved = [change for change in found.changes if change.only_first or change.only_second]
    moved.sort(key=lambda change: (change.corrected, change.p, -abs(change.difference)))
    if not moved:
        fewest = min(change.n for change in found.changes)
        out.print(f" no example differs in {len(found.changes)} comparisons (n >= {fewest})")
    else:
        pairs = {(change.subject, change.other) for change in found.changes}
        if len(pairs) == 1:
            ((one, other),) = pairs
            note(f"A  {one}")
            note(f"B  {other}")
        heads = ["attack", "eps", "A", "B", "B - A", "p", "only A:B"]
        rows = [_row(change) for change in moved[:SHOWN]]
        if len(pairs) > 1:
            heads = ["subject", *heads]
            rows = [[_subject(change), *row] for change, row in zip(moved, rows)]
        print_table(heads, rows, right=heads[-6:])
    if len(moved) > SHOWN:
        note(f"and {len(moved) - SHOWN} smaller ones (--json shows all)")
    for side, names in (("A", found.only_first), ("B", found.only_second)):
        if names and not quiet:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            note(f"only in {side}: {'; '.join(names[:3])}{more}")
    if not quiet:
        said = f"{len(found.significant)} of {len(found.changes)} differences are significant"
        note(f"{said} (* McNemar, exact, Holm-corrected, 5 %)")


def _subject(change: Change) -> str:
    from ..report.text import shorten

    if change.subject == change.other:
        return shorten(change.subject, 38)
    return f"{shorten(change.subject, 24)} / {shorten(change.other, 24)}"


def _row(change: Change) -> list[str]:
    eps = "any" if change.eps is None else "clean" if change.eps == 0 else f"{change.eps:g}"
    return [
        " ".join(filter(None, [change.attack, change.settings])),
        eps,
        f"{100 * change.first:.1f}",
        f"{100 * change.second:.1f}",
        f"{100 * change.difference:+.1f}",
        f"{change.corrected:.2g} {'*' if change.significant else ' '}",
        f"{change.only_first}:{change.only_second}",
    ]
