"""Results for other programs and for papers: one long-form frame, one function per format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.store import StoredResult
from . import text
from .panels import panels

if TYPE_CHECKING:
    import pandas as pd

# The columns of the frame that are identity rather than numbers, for the wide tables.
ROW = ["label", "attack_label"]


def frame(stored: Sequence[StoredResult]) -> pd.DataFrame:
    """One row per (subject, attack, eps): the long form that every other format is made from.

    Rows carry all of `Result.rows` and the labels of the tables; several attacks on one subject
    add rows with the attack `worst_case`. A result without a curve has one row without eps.
    """
    import pandas as pd

    rows = [
        {"label": line.subject, "attack_label": line.attack} | row | {"optimality": line.optimality}
        for panel in panels(stored)
        for line in panel.lines
        for row in line.result.rows()
    ]
    table = pd.DataFrame(rows)
    # Models from a file have no seed; without this a single one would make every seed a float.
    return table.astype({"seed": "Int64"}) if len(table) else table


def csv(table: pd.DataFrame) -> str:
    """The long form as CSV, shares in [0, 1], eps in pixel units."""
    return table.to_csv(index=False, lineterminator="\n")


def as_json(table: pd.DataFrame) -> str:
    """The long form as one JSON document `{"rows": [...]}`, absent values null."""
    return json.dumps(document(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def document(table: pd.DataFrame) -> dict[str, Any]:
    """The long form as plain values: `{"rows": [...]}`."""
    plain = table.astype(object).where(table.notna(), None)
    rows = [
        {name: getattr(value, "tolist", lambda v=value: v)() for name, value in row.items()}
        for row in plain.to_dict(orient="records")
    ]
    return {"rows": rows}


def markdown(table: pd.DataFrame) -> str:
    """One Markdown table per data set and norm, accuracy in percent."""
    blocks = []
    for title, heads, rows in _wide(table):
        cells = [[escape_markdown(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(heads, *cells)]
        # Two columns of names, then numbers: left and right aligned.
        rule = ["-" * (w + 2) if at < 2 else "-" * (w + 1) + ":" for at, w in enumerate(widths)]
        lines = [_markdown_row(heads, widths), f"|{'|'.join(rule)}|"]
        lines += [_markdown_row(row, widths) for row in cells]
        blocks.append(f"{title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(blocks)


def latex(table: pd.DataFrame) -> str:
    """One booktabs `tabular` per data set and norm, accuracy in percent, the worst case in bold.

    Needs `\\usepackage{booktabs}`.
    """
    blocks = []
    for title, heads, rows in _wide(table):
        lines = [
            f"% {title}",
            r"\begin{tabular}{ll" + "r" * (len(heads) - 2) + "}",
            r"\toprule",
            " & ".join(map(escape_latex, heads)) + r" \\",
            r"\midrule",
        ]
        for at, row in enumerate(rows):
            if at and row[0] and row[0] != rows[at - 1][0] and len(rows) > _subjects(rows):
                lines.append(r"\addlinespace")
            cells = [escape_latex(cell) for cell in row]
            if row[1].startswith("worst case"):
                cells = [f"\\textbf{{{cell}}}" if at else cell for at, cell in enumerate(cells)]
            lines.append(" & ".join(cells) + r" \\")
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")
    return "\n".join(blocks)


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {
    "markdown": markdown,
    "csv": csv,
    "latex": latex,
    "json": as_json,
}


def _wide(table: pd.DataFrame) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Per data set and norm: title, heads, and one row of cells per subject and attack."""
    for (dataset, norm), panel in table.groupby(["dataset", "norm"], sort=False):
        grid = sorted({eps for eps in panel["eps"].dropna() if eps > 0})
        sizes = sorted(set(panel["n"]))
        optional = [
            (head, column, digits)
            for head, column, digits in (
                ("unbounded", "unbounded_accuracy", None),
                ("AUC", "auc", 2),
                ("optimality", "optimality", 3),
            )
            if panel[column].notna().any()
        ]
        heads = ["subject", "attack", "clean"]
        heads += [f"eps {label}" for label in text.eps_labels(grid)]
        heads += [head for head, _, _ in optional] + (["n"] if len(sizes) > 1 else [])
        keys = [*ROW, "key", "subset", "n"]
        rows = []
        for _, line in panel.groupby(keys, sort=False, dropna=False):
            first = line.iloc[0]
            points = dict(zip(line["eps"], line["robust_accuracy"]))
            mark = " !" if first["fired"] else ""
            row = [str(first["label"]), f"{first['attack_label']}{mark}"]
            row += [text.percent(first["clean_accuracy"])]
            row += [text.percent(points.get(eps)) for eps in grid]
            row += [_number(first[column], digits) for _, column, digits in optional]
            row += [text.count(int(first["n"]))] if len(sizes) > 1 else []
            rows.append(row)
        size = f"n = {text.count(int(sizes[0]))}" if len(sizes) == 1 else "n per row"
        marked = "; ! a diagnostic fired" if panel["fired"].any() else ""
        title = f"{dataset}, {text.NORM_NAMES[str(norm)]}, accuracy in %, {size}"
        title += f"{_widest(panel)}{marked}"
        yield title, heads, rows


def _number(value: Any, digits: int | None) -> str:
    absent = value is None or math.isnan(value)
    if digits is None:
        return text.percent(None if absent else value)
    return text.decimal(None if absent else value, digits)


def _widest(panel: pd.DataFrame) -> str:
    accuracy = panel["robust_accuracy"]
    widest = max((panel["high"] - accuracy).max(), (accuracy - panel["low"]).max())
    return "" if math.isnan(widest) else f", 95 % interval up to ±{text.percent(widest)}"


def _subjects(rows: list[list[str]]) -> int:
    return len({row[0] for row in rows})


def _markdown_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if at < 2 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths))
    ]
    return "| " + " | ".join(padded) + " |"


def escape_markdown(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
    "–": "--",
    "…": r"\ldots{}",
}


def escape_latex(cell: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in cell)
