"""Show stored results as a table, a picture, a page, or data.

rrd report                                   everything under ./results
rrd report last --plot curve.svg             the newest subject, and its curve
rrd report mnist-lenet-pgd_at --format latex > table.tex
rrd report results/evals --format html -o page.html
rrd report --item aicr/table2                a reproduced table, ours beside the printed numbers
rrd report --item aicr --format html -o aicr.html   all reproduced items of a paper
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UserError, did_you_mean
from .options import DEFAULT_RESULTS, Debug, Json, Quiet, Results

if TYPE_CHECKING:
    from ..evaluation.store import StoredResult
    from ..report.item import Item

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


def _items(ctx: typer.Context, incomplete: str) -> list[str]:
    folder = Path(ctx.params.get("results") or DEFAULT_RESULTS) / "items"
    names = [
        path.parents[1].relative_to(folder).as_posix() for path in folder.glob("*/*/*/result.json")
    ]
    return sorted({*names, *(name.partition("/")[0] for name in names)})


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
    item: Annotated[
        str | None,
        typer.Option(
            "--item",
            metavar="PAPER[/ITEM]",
            help="A reproduced table or figure (rrd reproduce), or all of a paper.",
            autocompletion=_items,
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="P",
            help="With --item: the preset it was made at; the newest unless given.",
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
    if item is not None:
        if results_of:
            raise UserError("--item takes no results beside it", hint=f"rrd report --item {item}")
        _report_items(item, preset, chosen, plot, output, results, quiet)
        return
    if preset is not None:
        raise UserError("--preset goes with --item PAPER/ITEM")
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


def _report_items(
    name: str,
    preset: str | None,
    chosen: str,
    plot: Path | None,
    output: Path | None,
    results: Path,
    quiet: bool,
) -> None:
    """Show stored items as `command` shows results."""
    from ..report import item_figure, item_select
    from .console import note, out

    items = item_select.select(name, preset, results)
    written: list[Path] = []
    if plot is not None:
        if len(items) > 1:
            raise UserError("--plot draws one item", hint=f"--item {items[0].id}")
        written += item_figure.plot(items[0], plot)
    if output is not None:
        from ..core.files import write_text

        write_text(output, _items_content(items, chosen, results, output.resolve().parent))
        written.append(output)
    elif chosen == "terminal":
        from ..report.item_formats import terminal

        out.print("\n".join(terminal(one, out.width) for one in items), soft_wrap=True, end="")
    else:
        import sys

        sys.stdout.write(_items_content(items, chosen, results, Path.cwd()))
    if not quiet:
        for path in written:
            note(f"wrote {path}")


def _items_content(items: list[Item], chosen: str, results: Path, folder: Path) -> str:
    """Items as text in one of the formats; links are relative to `folder`."""
    from ..report import item_formats, item_page

    if chosen == "html":
        return item_page.page(items, results, folder)
    if chosen == "csv":
        return item_formats.csv_of(items)
    if chosen == "json" and len(items) > 1:
        return item_formats.all_as_json(items)
    return "\n".join(item_formats.FORMATS[chosen](one) for one in items)


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
