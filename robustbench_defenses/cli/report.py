"""Show stored results as a table, a picture, a page, or data.

rrd report                                   everything under ./results
rrd report last --plot curve.svg             the newest subject, and its curve
rrd report mnist-lenet-pgd_at --format latex > table.tex
rrd report results/evals --format html -o page.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UserError, did_you_mean
from .options import DEFAULT_RESULTS, Debug, Json, Quiet, Results

if TYPE_CHECKING:
    from ..evaluation.store import StoredResult

FORMATS = ("terminal", "markdown", "csv", "latex", "json", "html")
BY_SUFFIX = {
    ".txt": "terminal",
    ".md": "markdown",
    ".csv": "csv",
    ".tex": "latex",
    ".json": "json",
    ".html": "html",
}


def _subjects(ctx: typer.Context, incomplete: str) -> list[str]:
    folder = Path(ctx.params.get("results") or DEFAULT_RESULTS)
    return ["last", *sorted(path.name for path in folder.glob("evals/*") if path.is_dir())]


def command(
    results_of: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH|SUBJECT",
            help="Result files, folders, subjects (the beginning of an id is enough) or last;"
            " all results unless given.",
            autocompletion=_subjects,
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"{', '.join(FORMATS)}; by the suffix of -o, else terminal.",
            autocompletion=lambda: list(FORMATS),
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw accuracy over eps (.png, .svg, .pdf), with its data as CSV beside it.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write there, not to stdout.", show_default=False
        ),
    ] = None,
    results: Results = DEFAULT_RESULTS,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print the chosen results; damaged files among them are named on stderr and left out."""
    chosen = _format("json" if json else format, output)
    from ..report.curve import check_suffix, plot_curves
    from ..report.select import select
    from .console import err, note

    if plot is not None:
        check_suffix(plot)
    stored = select(
        results_of or [],
        results,
        warn=lambda text: err.print(f"warning: {text}", soft_wrap=True),
    )
    if not stored:
        raise UserError("none of the chosen results can be read")
    # The picture first: where it cannot be drawn, nothing has been printed.
    written = plot_curves(stored, plot) if plot is not None else []
    if output is not None:
        from ..core.files import write_text

        write_text(output, _content(stored, chosen, output.resolve().parent))
        written.append(output)
    else:
        _print(stored, chosen)
    if not quiet:
        for path in written:
            note(f"wrote {path}")


def _format(asked: str | None, output: Path | None) -> str:
    if asked is None:
        return BY_SUFFIX.get(output.suffix.lower(), "terminal") if output else "terminal"
    if asked not in FORMATS:
        hint = did_you_mean(asked, list(FORMATS), ", ".join(FORMATS))
        raise UserError(f"unknown format {asked!r}", hint)
    return asked


def _print(stored: list[StoredResult], chosen: str) -> None:
    import sys

    from .console import note, out

    if chosen == "terminal":
        from ..report.table import results_table

        out.print(results_table(stored, out.width))
        return
    sys.stdout.write(_content(stored, chosen, Path.cwd()))
    from ..report.panels import panels

    for panel in panels(stored):
        for text in panel.notes:
            note(text)


def _content(stored: list[StoredResult], chosen: str, folder: Path) -> str:
    """The report as text in one of the formats; links are relative to `folder`."""
    if chosen == "terminal":
        from ..report.table import as_text

        return as_text(stored)
    if chosen == "html":
        from ..report.html import page

        return page(stored, folder=folder)
    from ..report.export import FORMATS as EXPORTS
    from ..report.export import frame

    return EXPORTS[chosen](frame(stored))
