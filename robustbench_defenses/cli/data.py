"""Look after the image files: what is here, fetch what is missing, check every byte.

rrd data status
rrd data fetch mnist
rrd data verify
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data import inventory, locate
from .console import note, out, print_json, print_table, progress
from .options import Data, Debug, Json, Quiet, names_of

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATASET",
        help="Registered data sets; all unless given.",
        autocompletion=names_of("dataset"),
        show_default=False,
    ),
]


@app.command()
def status(
    datasets: Names = None,
    data: Data = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what is here, and where.

    A file's checksum is computed when it is new or has changed since.
    """
    root = locate.data_dir(data)
    found = [inventory.standing(entry, root) for entry in inventory.chosen(datasets or [])]
    if json:
        print_json({"data_dir": str(root), "datasets": [asdict(one) for one in found]})
        return
    rows = [
        [one.name, one.state, _images(one), _size(one), one.licence, _where(one)] for one in found
    ]
    columns = ["data set", "state", "train + test", "size", "licence", "where"]
    print_table(columns, rows, right=("train + test", "size"))
    _faults([problem for one in found if one.state == "altered" for problem in one.problems])
    if not quiet:
        _how_to_mend(found)


@app.command()
def verify(
    datasets: Names = None,
    data: Data = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Read and check every byte again.

    Exit 1 if a file, a count or the digest of the decoded images does not hold. A data set that is
    not here at all is a fault only when it was asked for by name.
    """
    root = locate.data_dir(data)
    report = progress(quiet or json)
    found, rows, faults = [], [], []
    for entry in inventory.chosen(datasets or []):
        report.start(f"verify {entry.name}", 0)
        one = inventory.standing(entry, root, fresh=True)
        problems = list(one.problems)
        absent = one.state == "missing" and not one.folders
        if not problems:
            problems = inventory.decoded(entry, root)
        report.finish()
        holds = not problems
        failed = not holds and (not absent or bool(datasets))
        found.append(one)
        faults += problems if failed else []
        verdict = "holds" if holds else "missing" if absent else "does not hold"
        rows.append([one.name, verdict, _images(one), _where(one)])
    if json:
        documents = [
            {**asdict(one), "verdict": row[1]} for one, row in zip(found, rows, strict=True)
        ]
        print_json({"data_dir": str(root), "datasets": documents, "problems": faults})
    else:
        columns = ["data set", "verdict", "train + test", "where"]
        print_table(columns, rows, right=("train + test",))
        _faults(faults)
    if faults:
        raise typer.Exit(1)


@app.command()
def fetch(
    datasets: Names = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            "--mirror",
            envvar="RRD_MIRROR",
            show_envvar=True,
            metavar="URL",
            help="Server of a data folder (URL/DATASET/FILE) to use instead of the public ones.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download what is missing or altered.

    Goes on after an interruption. Addresses and checksums are those of torchvision; a file gets
    its name when it was verified.
    """
    from ..data.fetch import fetch as download

    root = locate.data_dir(data)
    documents: list[dict[str, Any]] = []
    for entry in inventory.chosen(datasets or []):
        if not datasets and entry.card.get("files") and "torchvision" not in entry.card:
            note(f"{entry.name} cannot be fetched; its files have to be put there by hand")
            continue
        files = download(entry.name, root, mirror=mirror, progress=progress(quiet or json))
        documents.append({"name": entry.name, "files": [_file(file) for file in files]})
        if not json:
            out.print(f"{entry.name}: {_told(files)}", soft_wrap=True)
    if json:
        print_json({"data_dir": str(root), "datasets": documents})


def _file(file: Any) -> dict[str, Any]:
    return {"path": str(file.path), "downloaded": file.downloaded}


def _told(files: Sequence[Any]) -> str:
    if not files:
        return "embedded, nothing to fetch"
    new = [file.path for file in files if file.downloaded]
    folder = (new or [file.path for file in files])[0].parent
    if not new:
        return f"already here, {_count(len(files))} in {folder}"
    size = sum(Path(path).stat().st_size for path in new)
    return f"{_count(len(new))} fetched and verified, {size / 1e6:.1f} MB, in {folder}"


def _count(files: int) -> str:
    return f"{files} file" if files == 1 else f"{files} files"


def _images(one: inventory.Standing) -> str:
    counts = [f"{count:,}" for count in (one.train, one.test) if count is not None]
    return " + ".join(counts)


def _size(one: inventory.Standing) -> str:
    return f"{one.size / 1e6:.1f} MB" if one.size else ""


def _where(one: inventory.Standing) -> str:
    if one.state == "embedded":
        return "in an installed package"
    return ", ".join(one.folders)


def _faults(problems: Sequence[str]) -> None:
    for problem in problems:
        out.print(problem, soft_wrap=True)


def _how_to_mend(found: Sequence[inventory.Standing]) -> None:
    names = [one.name for one in found if one.fetchable and one.state in ("missing", "altered")]
    if names:
        note(f"rrd data fetch {' '.join(names)}")
