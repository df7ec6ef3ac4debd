"""The generated parts of the documentation: tables from the registry and from stored results.

    python -m robustbench_defenses.report.reference docs README.md

rewrites every block of the named pages (of all pages of a named folder),

    <!-- generated: parameters attack:pgd -->
    ...
    <!-- end -->

and, in a folder with `attacks/` or `defenses/`, adds a page for each registered family that has
none. `--check` writes nothing and fails where a page would change. A table of stored results is
`generated: results FOLDER ATTACK`, that of a reproduced item `generated: item FOLDER`, the folders
seen from the page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..core import registry
from ..core.errors import UserError
from ..core.files import write_text
from ..core.registry import normal
from ..core.settings import Param, shown

_BLOCK = re.compile(r"(<!-- generated: (\w+) (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGES = {"attack": "attacks", "defense": "defenses"}
HEADINGS = {
    "attack": (
        "What it does",
        "Equation",
        "Parameters",
        "Cost",
        "Source",
        "Differences from other libraries",
    ),
    "defense": (
        "Idea",
        "Losses",
        "Networks",
        "Training",
        "What is deployed and what is attacked",
        "Paper against code",
        "Known breaks",
        "Cost",
        "Parameters",
    ),
}


def refreshed(page: str, folder: Path) -> str:
    """The text of a page that lies in `folder`, with every generated block made anew.

    An unknown kind of block, or a name that is not registered, is a `UserError`.
    """

    def fresh(match: re.Match[str]) -> str:
        kind, name = match[2], match[3]
        if kind in STORED:
            return f"{match[1]}{STORED[kind](name, folder)}{match[4]}"
        if kind not in BLOCKS:
            known = ", ".join([*STORED, *BLOCKS])
            raise UserError(f"unknown block {kind!r}", hint=f"one of {known}")
        return f"{match[1]}{BLOCKS[kind](name)}{match[4]}"

    return _BLOCK.sub(fresh, page)


def parameters(name: str) -> str:
    """A table of an entry's parameters: default, what it takes, meaning, the papers' values."""
    entry = registry.find_any(name)
    rows = [
        [f"`{param.name}`", _code(_default(param)), _takes(param), _meaning(param), _papers(param)]
        for param in entry.params
    ]
    return table(["parameter", "default", "takes", "meaning", "papers"], rows)


def variants(name: str) -> str:
    """A table of the further names that an entry's file declares, and what each of them sets."""
    entry = registry.find_any(name)
    defaults = entry.defaults()
    rows = []
    for variant in (registry.find(entry.kind, other) for other in entry.variants):
        changed = [
            f"`{key}={shown(value)}`"
            for key, value in variant.defaults().items()
            if value != defaults.get(key)
        ]
        rows.append([f"`{variant.name}`", ", ".join(changed) or "the defaults", variant.summary])
    return table(["name", "sets", "is"], rows)


def presets(name: str) -> str:
    """A table of a defense's presets: `P:D` speaks of data set or variant D, `*` of all presets."""
    entry = registry.find_any(name)
    rows = [
        [f"`{preset}`", ", ".join(f"`{key}={shown(value)}`" for key, value in settings.items())]
        for preset, settings in entry.card.get("presets", {}).items()
    ]
    return table(["preset", "settings"], rows)


def budgets(name: str) -> str:
    """A table of what attacks are given at the levels of `--budget` (`name` is of no meaning)."""
    from ..evaluation.budgets import LEVELS

    rows = []
    for entry in registry.entries("attack"):
        given = entry.card.get("budgets") or {}
        if entry.name == entry.family and entry.origin == "rrd" and given:
            said = [_given(given.get(level, {})) or "its defaults" for level in LEVELS]
            rows.append([f"`{entry.name}`", *said])
    rows.append(["all others", *["their defaults"] * len(LEVELS)])
    return table(["attack", *LEVELS], [["images", *map(str, LEVELS.values())], *rows])


def _given(settings: Mapping[str, object]) -> str:
    return ", ".join(f"`{key}={shown(value)}`" for key, value in settings.items())


def entries(kind: str) -> str:
    """A table of all families of a kind, with a link to the page of each that has one."""
    rows = []
    for entry in registry.entries(kind.removesuffix("s")):
        if entry.name == entry.family and entry.origin == "rrd":
            page = f"{PAGES[entry.kind]}/{entry.name}.md" if entry.kind in PAGES else ""
            linked = f"[`{entry.name}`]({page})" if page else f"`{entry.name}`"
            others = ", ".join(f"`{variant}`" for variant in entry.variants)
            rows.append([linked, entry.summary, others])
    return table(["name", "is", "variants"], rows)


def diagnostics(name: str) -> str:
    """A table of all diagnostics, a row per check (`name` is of no meaning)."""
    from ..evaluation.checks import cards

    rows = [
        [
            card.id,
            f"`{normal(card.name)}`",
            "every result" if card.always else "`--diagnose`",
            card.formula,
            card.thresholds,
            card.cost,
            f"{card.means} *{card.do[:1].upper()}{card.do[1:]}.*",
        ]
        for card in cards()
    ]
    heads = ["", "name", "runs on", "value", "fires", "passes", "what it means, *what to do*"]
    return table(heads, rows)


def fact(key: str) -> Callable[[str], str]:
    """A block that is one text of the card (`summary`, `source`, `cost`, ...) as a sentence."""

    def block(name: str) -> str:
        entry = registry.find_any(name)
        said = {"summary": entry.summary, "source": entry.source} | entry.extra
        sentence = str(said.get(key, "")).strip().rstrip(".")
        return f"{sentence[:1].upper()}{sentence[1:]}.\n" if sentence else ""

    return block


def text(name: str) -> str:
    """The docstring of an entry's file, below its first line, as it is written there."""
    doc = "\n".join(line.rstrip() for line in registry.find_any(name).doc.splitlines())
    return f"```text\n{doc.strip()}\n```\n"


BLOCKS: dict[str, Callable[[str], str]] = {
    "summary": fact("summary"),
    "source": fact("source"),
    "cost": fact("cost"),
    "differences": fact("differences"),
    "text": text,
    "parameters": parameters,
    "variants": variants,
    "presets": presets,
    "budgets": budgets,
    "entries": entries,
    "diagnostics": diagnostics,
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """A Markdown table; columns from number `right` on are aligned right."""
    rule = ["---" if right is None or at < right else "--:" for at in range(len(heads))]
    lines = [heads, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def skeleton(entry: registry.Entry) -> str:
    """A page for a family that has none: every heading, filled with what the card knows."""
    known = {
        "What it does": ["summary"],
        "Idea": ["summary"],
        "Equation": ["text"],
        "Losses": ["text"],
        "Training": ["presets"],
        "Source": ["source"],
        "Cost": ["cost"],
        "Differences from other libraries": ["differences"],
        "Parameters": [*(["variants"] if entry.variants else []), "parameters"],
    }
    parts = [f"# {entry.name}\n"]
    for heading in HEADINGS[entry.kind]:
        blocks = [
            f"<!-- generated: {kind} {entry.kind}:{entry.name} -->\n<!-- end -->\n"
            for kind in known.get(heading, [])
        ]
        parts += [f"## {heading}\n", *blocks]
    return "\n".join(parts)


def missing(folder: Path) -> list[tuple[Path, registry.Entry]]:
    """The pages that a docs folder lacks, each with its family."""
    return [
        (folder / subfolder / f"{entry.name}.md", entry)
        for kind, subfolder in PAGES.items()
        if (folder / subfolder).is_dir()
        for entry in registry.entries(kind)
        if entry.name == entry.family and entry.origin == "rrd"
        if not (folder / subfolder / f"{entry.name}.md").exists()
    ]


def item(name: str, folder: Path) -> str:
    """The tables of the reproduced item in the folder `name`, seen from `folder`."""
    from .item import load
    from .item_formats import markdown_tables

    return "\n".join(markdown_tables(load(folder / name / "result.json")))


def results(name: str, folder: Path) -> str:
    """A table of the stored sweeps of one attack: `name` is "FOLDER ATTACK", seen from `folder`.

    One row per subject, the most robust first. Where the folder holds several sweeps of a subject
    under that attack, each has a row.
    """
    from .panels import panels
    from .select import select
    from .text import count, eps_labels, percent

    where, _, attack = name.partition(" ")
    stored = select([str(folder / where)], folder, warn=_refuse)
    chosen = [one for one in stored if one.result.attack.name == attack and one.result.auc]
    parts = []
    for panel in panels(chosen):
        lines = [line for line in panel.lines if not line.worst]
        grid = panel.grid()
        rows = []
        for line in sorted(lines, key=lambda line: -(line.result.auc or 0)):
            result, subject = line.result, line.result.subject
            at = {point.eps: point.robust_accuracy for point in result.curve}
            rows.append(
                [
                    f"{subject.defense or subject.name}{' !' if result.flagged else ''}",
                    subject.model or "",
                    subject.preset or "",
                    count(result.n),
                    percent(result.clean_accuracy),
                    *(percent(at.get(eps)) for eps in grid),
                    f"{result.auc:.2f}",
                ]
            )
        budgets = [f"eps {label}" for label in eps_labels(grid)]
        heads = ["defense", "network", "preset", "n", "clean", *budgets, "AUC"]
        parts.append(table(heads, rows, right=3))
    if not parts:
        raise UserError(f"{folder / where} holds no sweep of {attack}")
    return "\n".join(parts)


def pages(paths: Sequence[Path]) -> list[Path]:
    """The Markdown files among `paths`, and all of those in folders among them."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}")
        found += sorted(path.rglob("*.md")) if path.is_dir() else [path]
    return found


def stale(paths: Sequence[Path]) -> dict[Path, str]:
    """The pages that a fresh generation changes, with their new text."""
    changed: dict[Path, str] = {}
    for path in paths:
        if path.is_dir():
            for page, entry in missing(path):
                changed[page] = refreshed(skeleton(entry), page.parent)
    for page in pages(paths):
        before = page.read_text(encoding="utf-8")
        after = refreshed(before, page.parent)
        if after != before:
            changed[page] = after
    return changed


# Blocks made from stored files: a name, and the folder that its paths are seen from.
STORED: dict[str, Callable[[str, Path], str]] = {"results": results, "item": item}


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns its exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m robustbench_defenses.report.reference")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a change")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE|FOLDER")
    given = parser.parse_args(arguments)
    try:
        changed = stale(given.pages)
        for path, text in changed.items():
            print(path)
            if not given.check:
                write_text(path, text)
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    return 1 if given.check and changed else 0


def _refuse(sentence: str) -> None:
    raise UserError(sentence)


def _default(param: Param) -> str:
    return "" if param.required else shown(param.default) or '""'


def _takes(param: Param) -> str:
    low, high = param.minimum, param.maximum
    if low is not None and high is not None:
        bounds = f" from {low:g} to {high:g}"
    else:
        bounds = f" >= {low:g}" if low is not None else f" <= {high:g}" if high is not None else ""
    return f"{param.shown_type}{bounds}"


def _meaning(param: Param) -> str:
    return param.help + (f" ({param.unit})" if param.help and param.unit else param.unit)


def _papers(param: Param) -> str:
    return ", ".join(f"{paper}: {shown(value)}" for paper, value in (param.papers or {}).items())


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    raise SystemExit(main())
