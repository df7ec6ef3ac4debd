"""The generated parts of the documentation: tables from the registry and from stored results.

    python -m robustbench_defenses.report.reference docs README.md
    python -m robustbench_defenses.report.reference --results results/mnist README.md

The first form rewrites every block of the named pages (of all pages of a named folder):

    <!-- generated: parameters attack:pgd -->
    ...
    <!-- end -->

and, in a folder with `attacks/` or `defenses/`, adds a page for each registered family that has
none. The second form fills the block between `<!-- results:begin -->` and `<!-- results:end -->`
with a table of stored results. `--check` writes nothing and fails where a page would change.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..core import registry
from ..core.errors import UserError
from ..core.files import write_text
from ..core.settings import Param, shown

_BLOCK = re.compile(r"(<!-- generated: (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_RESULTS = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)
_SOURCE = re.compile(r"^<!-- from: (.+) -->$", re.MULTILINE)
PLACEHOLDER = "No results yet.\n"
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


def refreshed(page: str) -> str:
    """The text of a page with every generated block made anew.

    An unknown kind of block, or a name that is not registered, is a `UserError`.
    """

    def fresh(match: re.Match[str]) -> str:
        kind, name = match[2], match[3]
        if kind not in BLOCKS:
            raise UserError(f"unknown block {kind!r}", hint=f"one of {', '.join(BLOCKS)}")
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
    """A table of all diagnostics: number and what the check looks at (`name` is of no meaning)."""
    from ..evaluation.diagnostics import CHECKS

    rows = []
    for function in CHECKS:
        number, _, sentence = str(function.__doc__).partition(": ")
        first = sentence.strip().partition("\n")[0]
        rows.append([number, function.__name__.replace("_", " "), first])
    return table(["", "name", "looks at"], rows)


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


def results(folder: str) -> str:
    """The results block's content: one table per data set and norm, and how it was made.

    `folder`: as `rrd report` takes it. One row per subject and attack, the most robust first.
    """
    from .panels import panels
    from .select import select
    from .text import NORM_NAMES, count, eps_labels, percent

    parts = [f"<!-- from: {folder} -->\n"]
    for panel in panels(select([folder], Path("results"), warn=_refuse)):
        grid = panel.grid()
        heads = ["defense", "network", "preset", "attack", "n", "clean"]
        heads += [*eps_labels(grid), "AUC"]
        rows = []
        for best in panel.best_first():
            for line in panel.of(best.subject):
                result, subject = line.result, line.result.subject
                at = {point.eps: point.robust_accuracy for point in result.curve}
                names = [
                    subject.defense or subject.name,
                    subject.model or "",
                    subject.preset or "",
                    f"{line.attack}{' !' if result.flagged else ''}",
                    count(result.n),
                    percent(result.clean_accuracy),
                ]
                area = "" if result.auc is None else f"{result.auc:.2f}"
                rows.append([*names, *(percent(at.get(eps)) for eps in grid), area])
        widest = max(
            max(p.high - p.robust_accuracy, p.robust_accuracy - p.low)
            for line in panel.lines
            for p in line.result.curve
        )
        title = f"{panel.dataset}, {NORM_NAMES[panel.norm]}: accuracy in % by eps"
        title += f", 95 % interval up to ±{percent(widest)}"
        parts.append(f"\n{title}\n\n{table(heads, rows, right=4)}")
    return "".join(parts)


def results_source(page: str) -> str | None:
    """The folder that the results block of a page was made from; None while it has none."""
    block = _RESULTS.search(page)
    if block is None:
        raise UserError("the page has no results block", hint="<!-- results:begin -->")
    source = _SOURCE.search(block[0])
    return source[1] if source else None


def with_results(page: str, folder: str) -> str:
    """The page with its results block made from a folder."""
    results_source(page)  # refuses a page without a block
    content = results(folder)
    return _RESULTS.sub(lambda match: f"{match[1]}{content}\n{match[2]}", page)


def pages(paths: Sequence[Path]) -> list[Path]:
    """The Markdown files among `paths`, and all of those in folders among them."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}")
        found += sorted(path.rglob("*.md")) if path.is_dir() else [path]
    return found


def stale(paths: Sequence[Path], folder: str | None = None) -> dict[Path, str]:
    """The pages that a fresh generation changes, with their new text."""
    changed: dict[Path, str] = {}
    for path in paths:
        if path.is_dir() and folder is None:
            changed |= {page: refreshed(skeleton(entry)) for page, entry in missing(path)}
    for page in pages(paths):
        before = page.read_text(encoding="utf-8")
        after = refreshed(before) if folder is None else with_results(before, folder)
        if after != before:
            changed[page] = after
    return changed


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns its exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m robustbench_defenses.report.reference")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a change")
    parser.add_argument("--results", metavar="FOLDER", help="fill the results block from FOLDER")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE|FOLDER")
    given = parser.parse_args(arguments)
    try:
        changed = stale(given.pages, given.results)
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
