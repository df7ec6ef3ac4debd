"""Show one entry's card: what it is, its source, its parameters.

rrd info pgd
rrd info mnist
rrd info attack:pgd            where two kinds share a name
rrd info zero_gradient         a diagnostic of evaluations
rrd info my_attack.py:MyAttack
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..core import registry
from ..core.errors import UserError
from ..core.settings import Param, shown
from . import diagnosis, stored
from .console import out, print_json
from .options import DEFAULT_RESULTS, Debug, Json, Quiet, Results

_DIGEST = re.compile(r"[0-9a-f]{32,}")


def _complete(incomplete: str) -> list[tuple[str, str]]:
    found = [entry for kind in registry.KINDS for entry in registry.scan(kind).entries]
    return [(entry.name, entry.summary) for entry in found]


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Anything that rrd list shows, an alias, or FILE.py:NAME.",
            autocompletion=_complete,
        ),
    ],
    results: Results = DEFAULT_RESULTS,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print the card of one entry, run, result or recipe."""
    try:
        entry = registry.find_any(name)
    except UserError:
        card = diagnosis.card_of(name)
        if card is not None:
            diagnosis.show_card(card, as_json=json)
            return
        kept = stored.find_stored(name, results)
        if kept is None:
            raise
        kind, document = kept
        if json:
            print_json({"kind": kind, **document})
        else:
            _show_document(kind, document)
        return
    if json:
        print_json(entry.document())
    else:
        _show_entry(entry)


def _show_entry(entry: registry.Entry) -> None:
    title = Text(entry.name, style="bold")
    title.append(f"   {entry.kind}", style="dim")
    if entry.name != entry.family:
        title.append(f" · variant of {entry.family}", style="dim")
    out.print(title)
    out.print(f"{entry.summary}.\n" if entry.summary else "")
    doc = "\n".join(line.rstrip() for line in entry.doc.splitlines()).strip("\n")
    if doc:
        out.print(Text(doc), soft_wrap=out.width >= 100)
        out.print()
    facts = {
        "source": entry.source,
        "aliases": ", ".join(entry.aliases),
        "variants": ", ".join(entry.variants),
        "version": f"{entry.version} · {entry.origin} · {_near(entry)}",
    }
    _show_extra({**{key: value for key, value in facts.items() if value}, **entry.extra})
    if entry.params:
        _show_params(entry.params)


def _near(entry: registry.Entry) -> str:
    """The source file, from the package's folder on where it lies in it."""
    try:
        return entry.source_file.relative_to(registry.ROOT.parent).as_posix()
    except ValueError:
        return str(entry.source_file)


def _show_params(params: tuple[Param, ...]) -> None:
    """Name, default, what it takes, help: the help may wrap, in a column of its own."""
    out.print(Text("\nparameters (--set NAME=VALUE)", style="dim"))
    rows = [(p, "required" if p.required else shown(p.default) or '""') for p in params]
    wide = out.width >= 80
    table = Table(box=None, padding=(0, 1), header_style="dim", show_header=False)
    for _ in range(3 if wide else 2):
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=26)
    table.add_column(overflow="fold")
    for param, default in rows:
        takes = [Text(param.shown_type, style="dim")] if wide else []
        table.add_row(Text(param.name), Text(default), *takes, _help(param))
    out.print(table)


def _help(param: Param) -> Text:
    """Help, unit, range and the papers' values in one sentence after another."""
    parts = [param.help] if param.help else []
    low, high = param.minimum, param.maximum
    if low is not None and high is not None:
        bounds = f"{low:g} to {high:g}"
    else:
        bounds = f">= {low:g}" if low is not None else f"<= {high:g}" if high is not None else ""
    unit = ", ".join(part for part in (param.unit, bounds) if part)
    if unit:
        parts.append(f"[{unit}]")
    text = Text(" ".join(parts))
    if param.papers:
        values = ", ".join(f"{paper} {shown(value)}" for paper, value in param.papers.items())
        text.append(f" · {values}" if parts else values, style="dim")
    return text


def _show_extra(extra: Mapping[str, Any]) -> None:
    """Whatever else the CARD says: scalars as facts, nested dictionaries as small tables."""
    facts = {key: value for key, value in extra.items() if not _nested(value)}
    _show_facts({key.replace("_", " "): _text(value) for key, value in facts.items()})
    for key, value in extra.items():
        if _nested(value):
            out.print(Text(f"\n{key.replace('_', ' ')}", style="dim"))
            _show_facts({str(name): _text(content) for name, content in value.items()}, indent=1)


def _show_document(kind: str, document: Mapping[str, Any]) -> None:
    title = Text(str(document["id"]), style="bold")
    title.append(f"   {kind}", style="dim")
    out.print(title)
    _show_extra({key: value for key, value in document.items() if key != "id"})


def _show_facts(facts: Mapping[str, str], indent: int = 0) -> None:
    if not facts:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(" " * indent + name, Text(value))
    out.print(table)


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _text(value: Any) -> str:
    """A value in one cell; digests are shown by their beginning (`--json` has all of them)."""
    if isinstance(value, Mapping):
        parts = [
            f"{key} ({_text(item)})" if _nested(item) else f"{key}={_text(item)}"
            for key, item in value.items()
        ]
        return ", ".join(parts) or "defaults"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:8]}…"
    return shown(value)
