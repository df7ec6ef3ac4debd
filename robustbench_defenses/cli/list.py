"""List what there is: data sets, defenses, attacks, runs, results, ...

rrd list attacks
rrd list runs --json
"""

from __future__ import annotations

from typing import Annotated

import typer

from ..core import registry
from ..core.errors import UserError, did_you_mean
from . import stored
from .console import err, note, print_json, print_table
from .options import DEFAULT_RESULTS, Debug, Json, Quiet, Results

LISTED = [f"{kind}s" for kind in (*registry.KINDS, *stored.KINDS)]


def _complete(incomplete: str) -> list[str]:
    return LISTED


def command(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help=", ".join(LISTED) + ".", autocompletion=_complete),
    ],
    results: Results = DEFAULT_RESULTS,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print the listing of one kind; a file that cannot be read is named on stderr (exit 2)."""
    name = registry.normal(kind).removesuffix("s")
    if name in registry.KINDS:
        listing = _registered(name)
    elif name in stored.KINDS:
        listing = stored.KINDS[name](results)
    else:
        hint = did_you_mean(kind, LISTED, ", ".join(LISTED))
        raise UserError(f"there is no kind {kind!r} to list", hint=hint)
    if json:
        print_json(listing.documents)
    elif listing.rows:
        print_table(listing.columns, listing.rows, right=listing.right)
    if not listing.rows and not quiet and not listing.problems:
        note(listing.hint)
    if listing.problems and name in stored.KINDS:
        # Someone's damaged file is no reason to fail: what is there has been listed.
        for problem in listing.problems:
            err.print(f"warning: {problem}", soft_wrap=True)
    elif listing.problems:
        raise UserError("; ".join(listing.problems))


def _registered(kind: str) -> stored.Listing:
    found = registry.scan(kind)
    shapes = kind == "dataset"
    listing = stored.Listing(
        ["name", "images", "classes", "train", "test", "summary"]
        if shapes
        else ["name", "summary", "source"],
        hint=f"no {kind}s are installed",
        right=("classes", "train", "test"),
        problems=found.problems,
    )
    for entry in found.entries:
        listing.documents.append(entry.document())
        name = entry.name if entry.name == entry.family else f"  {entry.name}"
        if shapes:
            size = "x".join(str(side) for side in entry.card.get("shape", ()))
            counts = [_count(entry.card.get(key)) for key in ("classes", "train", "test")]
            listing.rows.append([name, size, *counts, entry.summary])
        else:
            listing.rows.append([name, entry.summary, entry.source])
    return listing


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
