"""The screen of `rrd eval --diagnose`, and the card of a diagnostic for `rrd info`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ..core.errors import UserError
from .console import duration, out, print_json

if TYPE_CHECKING:
    from ..evaluation.checks import Card
    from ..evaluation.diagnose import Diagnosis

STYLES = {"ERROR": "bold red", "WARN": "yellow"}


def show_diagnosis(found: Diagnosis) -> None:
    """One screen: a line per check that fired, the number of others, and the answer."""
    out.print()
    head = Text("Is this robustness real?", style="bold")
    head.append(
        f"  {found.subject}, {found.attack} at eps {found.eps:.3g}, {found.n} images, "
        f"{duration(found.seconds)}",
        style="not bold",
    )
    out.print(head)
    out.print()
    out.print(_lines(found))
    out.print()
    out.print(Text(found.conclusion))


def _lines(found: Diagnosis) -> Table:
    """Mark, name, what was seen, threshold; narrow screens drop the threshold."""
    from ..evaluation.checks import find

    wide = out.width >= 80
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=wide, overflow="fold")
    table.add_column(overflow="fold")
    if wide:
        table.add_column(no_wrap=True, style="dim")
    for mark, severity in (("ERROR", "error"), ("WARN", "warning")):
        for one in found.fired(severity):
            cells = [Text(f" {mark}", style=STYLES[mark]), Text(one.name), Text(one.sentence)]
            if wide:
                limit = 0.0 if one.threshold is None else one.threshold
                cells.append(Text(f"threshold {find(one.id).shown(limit)}"))
            table.add_row(*cells)
    quiet = sum(one.skipped is None and not _told(one) for one in found.checks)
    table.add_row(Text(" ok"), Text(f"{quiet} other checks"))
    for one in found.checks:
        if one.skipped is not None:
            table.add_row(*(Text(cell, style="dim") for cell in (" -", one.name, one.sentence)))
    return table


def _told(one: object) -> bool:
    return bool(getattr(one, "fired", False)) and getattr(one, "severity", "") != "info"


def card_of(name: str) -> Card | None:
    """The card of the diagnostic that goes by this name or number."""
    from ..evaluation.checks import find

    try:
        return find(name)
    except UserError:
        return None


def show_card(card: Card, as_json: bool) -> None:
    """What a diagnostic compares, when it fires, what it means and what to do."""
    if as_json:
        print_json(card.document())
        return
    title = Text(card.name, style="bold")
    title.append(f"   diagnostic {card.id}", style="dim")
    out.print(title)
    out.print(Text(f"{card.means}\n"))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    runs = "on every result, and under --diagnose" if card.always else "under rrd eval --diagnose"
    facts = {
        "what to do": card.do,
        "value": card.formula,
        "fires": card.thresholds,
        "runs": runs,
        "passes": card.cost,
        "blames": f"the {card.blames}",
        "source": card.source,
    }
    for name, value in facts.items():
        table.add_row(name, Text(value))
    out.print(table)
