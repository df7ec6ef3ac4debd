"""Results as one self-contained page: tables, inline curves, diagnostics, commands; no network."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..evaluation.schema import CurvePoint, Member, Result
from ..evaluation.store import StoredResult
from . import curve, table, text
from .feet import feet
from .panels import Line, Panel, panels
from .seeds import Seeds, over_seeds

TEMPLATES = Path(__file__).parent / "templates"


def page(
    stored: Sequence[StoredResult], title: str | None = None, folder: Path | None = None
) -> str:
    """An HTML document of `stored`; with `folder`, rows link to their files relative to it."""
    found = panels(stored)
    subjects = list(dict.fromkeys(entry.result.subject.name for entry in stored))
    heading = title or (subjects[0] if len(subjects) == 1 else "Robust accuracy")
    counted = f"{len(stored)} result{'s' * (len(stored) != 1)}"
    dates = [entry.result.environment.date[:10] for entry in stored]
    versions = sorted({entry.result.environment.rrd for entry in stored})
    return render(
        "results.html.j2",
        title=heading,
        subtitle=f"{counted}, made by rrd {', '.join(versions)} until {max(dates)}",
        sections=[_section(panel, at, folder) for at, panel in enumerate(found)],
    )


def render(template: str, **context: Any) -> str:
    """A page: one of the templates with its context, everything escaped, in the common style."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(
        light=curve.PALETTE, dark=curve.DARK_PALETTE, **context
    )


def link(path: Path, folder: Path) -> str:
    """`path` as a page in `folder` links to it."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def _section(panel: Panel, number: int, folder: Path | None) -> dict[str, Any]:
    stored = [line.stored for line in panel.lines if line.stored is not None]
    grid = panel.grid()
    results = [line.result for line in panel.lines]
    unbounded = any(result.unbounded_accuracy is not None for result in results)
    scored = any(line.optimality is not None for line in panel.lines)
    heads = ["subject", "attack", "n", "clean"]
    heads += [f"eps {label}" for label in text.eps_labels(grid)]
    heads += ["unbounded"] * unbounded + ["AUC"] + ["optimality"] * scored
    rows = [row for line in panel.lines for row in _rows(line, grid, unbounded, scored, folder)]
    for row, before in zip(rows[1:], rows):
        if row["subject"] != before["subject"]:
            row["kind"] = f"first {row['kind']}".strip()
    rows += [_over_seeds(group, grid, unbounded, scored) for group in over_seeds(panel)]
    single = len(panel.subjects) == 1
    # What is the same in every row stands in the title and under the table.
    same = {"subject"} if single else set()
    same |= {"n"} if len({result.n for result in results}) == 1 else set()
    kept = [at for at, head in enumerate(heads) if head not in same]
    for row in rows:
        row["cells"] = [row["cells"][at] for at in kept]
    picture = curve.svg(stored)
    fired = _fired(panel)
    bands = "Bands are 95 % intervals"
    if curve.crowded(panel):
        bands = "The band is the 95 % interval of the worst case"
    return {
        "title": f"{panel.dataset}, {text.NORM_NAMES[panel.norm]}",
        "verdict": _verdict(panel),
        "svg": picture and themed(picture, f"p{number}"),
        "figcaption": f"Accuracy over eps, {curve.attacks_of(panel)}. {bands}; the number after a "
        "name is the area under its curve.",
        "caption": feet(panel)[0],
        "heads": [heads[at] for at in kept],
        "names": 1 if single else 2,
        "rows": rows,
        "notes": panel.notes,
        "fired": [one for one in fired if one["severity"] != "info"],
        "told": [one for one in fired if one["severity"] == "info"],
        "checks": _checks(panel),
        "details": [_details(line) for line in panel.lines if not line.worst],
    }


def themed(svg: str, prefix: str, label: str = "accuracy over eps") -> str:
    """An SVG whose colours follow the page's theme and whose ids cannot meet another picture's."""
    named = {curve.INK: "currentColor", curve.QUIET: "var(--quiet)", curve.FAINT: "var(--line)"}
    named |= {colour: f"var(--c{at + 1})" for at, colour in enumerate(curve.PALETTE)}
    named["#ffffff"] = "var(--page)"
    for colour, name in named.items():
        svg = re.sub(re.escape(colour), name, svg, flags=re.IGNORECASE)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    # The page gives the size; the view box keeps the proportions.
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(label)}">{rest}'


def _rows(
    line: Line, grid: list[float], unbounded: bool, scored: bool, folder: Path | None
) -> list[dict[str, Any]]:
    """The row of a line; below an ensemble's, one for each member."""
    result = line.result
    clean_range = f"{text.percent(result.clean_low)} to {text.percent(result.clean_high)}"
    cells = [
        _cell(line.subject),
        _cell(line.attack),
        _cell(text.count(result.n)),
        _cell(text.percent(result.clean_accuracy), clean_range),
    ]
    points = {point.eps: point for point in result.curve}
    for eps in grid:
        point = points.get(eps)
        if point is None:
            cells.append(_cell(text.ABSENT))
        else:
            ends = f"{text.percent(point.low)} to {text.percent(point.high)}"
            cells.append(_cell(text.percent(point.robust_accuracy), ends))
    cells += [_cell(text.percent(result.unbounded_accuracy))] * unbounded
    cells.append(_cell(text.decimal(result.auc)))
    cells += [_cell(text.decimal(line.optimality, 3))] * scored
    file = line.stored.path if line.stored is not None else None
    own = {
        "subject": line.subject,
        "cells": cells,
        "kind": "worst" if line.worst else "",
        "severity": min((d.severity for d in result.flagged), default=None),
        "link": link(file, folder) if folder is not None and file is not None else None,
    }
    rest = unbounded + 1 + scored
    members = [] if line.worst else (result.members or [])
    return [own, *(_member(line, each, grid, rest) for each in members)]


def _member(line: Line, member: Member, grid: list[float], rest: int) -> dict[str, Any]:
    """The row of a member: what it and those before it left, at each eps; `rest` empty cells."""
    left = dict(zip((point.eps for point in line.result.curve), member.robust_accuracy))
    cells = ["", member.name, "", "", *(text.percent(left.get(eps)) for eps in grid), *[""] * rest]
    shown = [_cell(each) for each in cells]
    own = {"subject": line.subject, "cells": shown, "kind": "member"}
    return own | {"severity": None, "link": None}


def _over_seeds(group: Seeds, grid: list[float], unbounded: bool, scored: bool) -> dict[str, Any]:
    """The row of several seeds: means, each with half of its interval."""
    cells = [group.label, group.attack, "", group.spread(lambda line: line.result.clean_accuracy)]
    cells += [group.spread(functools.partial(table.kept, eps)) for eps in grid]
    cells += [""] * unbounded + [group.spread(lambda line: line.result.auc, text.decimal)]
    cells += [""] * scored
    shown = [_cell(each) for each in cells]
    own = {"subject": group.label, "cells": shown, "kind": "first worst"}
    return own | {"severity": None, "link": None}


def _cell(shown: str, ends: str = "") -> dict[str, str]:
    return {"text": shown, "range": ends}


def _verdict(panel: Panel) -> str:
    """What is left of each subject at the largest eps; of a single one, and whether to believe
    it."""
    said = []
    for line in panel.best_first():
        point = next((p for p in reversed(line.result.curve) if p.eps > 0), None)
        if point is not None:
            said.append(f"{line.subject} keeps {_kept(point)}")
    if len(panel.subjects) > 1 or not panel.lines:
        return f"{'; '.join(said)}." if said else ""
    (line,) = panel.deciding()
    result = line.result
    attacks = [each.attack for each in panel.lines if not each.worst]
    by = f"the worst case over {len(attacks)} attacks" if line.worst else line.attack
    sentences = [
        f"{line.subject} classifies {text.percent(result.clean_accuracy)} % of "
        f"{text.count(result.n)} clean images rightly"
        + (f" and, under {by}, {said[0].removeprefix(line.subject + ' ')}." if said else ".")
    ]
    sentences += [*_halved(line), *_strongest(panel, line), *_nearest(panel), _believed(panel)]
    return " ".join(sentences)


def _kept(point: CurvePoint) -> str:
    (label,) = text.eps_labels([point.eps])
    ends = f"[{text.percent(point.low)}, {text.percent(point.high)}]"
    return f"{text.percent(point.robust_accuracy)} % {ends} at eps {label}"


def _halved(line: Line) -> list[str]:
    """The smallest budget of the curve that breaks half of the images."""
    eps = [point.eps for point in line.result.curve]
    half = next((p.eps for p in line.result.curve if p.eps > 0 and p.robust_accuracy < 0.5), None)
    if half is None or len(eps) < 3:
        return []
    return [f"Half of the images are broken by eps {text.eps_labels(eps)[eps.index(half)]}."]


def _strongest(panel: Panel, worst: Line) -> list[str]:
    """Which attack alone comes nearest to the worst case at the largest budget."""
    alone = [line for line in panel.lines if not line.worst and line.result.curve]
    if not worst.worst or len(alone) < 2:
        return []
    best = min(alone, key=lambda line: (line.last_accuracy, line.result.auc or 0.0))
    return [
        f"The strongest attack alone, {best.attack}, leaves {text.percent(best.last_accuracy)} %."
    ]


def _nearest(panel: Panel) -> list[str]:
    """The minimum-norm attack that comes nearest to the best of all of them."""
    scored = [(line.optimality, line.attack) for line in panel.lines if line.optimality is not None]
    if len(scored) < 2:
        return []
    score, attack = max(scored)
    return [
        f"Of the minimum-norm attacks {attack} finds the nearest images (optimality {score:.3f})."
    ]


def _believed(panel: Panel) -> str:
    """What the diagnostics say of the numbers."""
    every = [d for line in panel.lines if not line.worst for d in line.result.diagnostics]
    names = list(dict.fromkeys(d.name for d in every if d.fired and d.severity != "info"))
    ran = sum(d.skipped is None for d in every)
    if names:
        concerned = ", ".join(names)
        return f"Diagnostics speak against these numbers ({concerned}): read them as upper bounds."
    return f"No diagnostic of {ran} speaks against it." if ran else "No diagnostics ran."


def _fired(panel: Panel) -> list[dict[str, str]]:
    """What fired: errors first, then warnings, then what is said for information."""
    found = [
        {
            "who": line.attack if len(panel.subjects) == 1 else f"{line.subject}, {line.attack}",
            "name": diagnostic.name,
            "severity": diagnostic.severity,
            "sentence": diagnostic.sentence,
        }
        for line in panel.lines
        if not line.worst
        for diagnostic in line.result.diagnostics
        if diagnostic.fired
    ]
    return sorted(found, key=lambda one: ("error", "warning", "info").index(one["severity"]))


def _checks(panel: Panel) -> str:
    """How many checks ran, fired and were skipped, so that silence is not taken for a pass."""
    every = [d for line in panel.lines if not line.worst for d in line.result.diagnostics]
    skipped = sorted({f"{d.name} ({d.skipped})" for d in every if d.skipped is not None})
    fired = sum(d.fired and d.severity != "info" for d in every)
    ran = sum(d.skipped is None for d in every)
    parts = [f"{ran} check{'s' * (ran != 1)} ran, {fired} fired." if ran else "No checks ran."]
    if skipped:
        parts.append(f"Skipped: {', '.join(skipped)}.")
    return " ".join(parts)


def _details(line: Line) -> dict[str, Any]:
    result = line.result
    return {
        "who": f"{line.subject}, {line.attack}",
        "command": result.environment.command,
        "facts": _facts(result),
    }


def _facts(result: Result) -> list[tuple[str, str]]:
    subject, data, attack = result.subject, result.dataset, result.attack
    place, cost = result.environment, result.cost
    parameters = ", ".join(f"{name} {value}" for name, value in attack.parameters.items())
    options = ", ".join(f"{name} {value}" for name, value in subject.options.items())
    n = max(result.n, 1)
    facts = [
        ("subject", subject.name),
        ("checkpoint", subject.checkpoint or ""),
        ("options", options),
        ("weights", subject.weights[:16]),
        ("examples", f"{data.name}, {data.subset}, n = {text.count(result.n)}"),
        ("attack", f"{attack.name}, version {attack.version}, {attack.remark or attack.backend}"),
        ("parameters", parameters),
        ("images from", attack.source or ""),
        ("view", f"{result.view}, {result.sweep} sweep, seed {result.seed}"),
        ("passes per image", f"{cost.forward_passes / n:,.0f} forward"),
        ("", f"{cost.backward_passes / n:,.0f} backward"),
        ("time", text.duration(cost.seconds)),
        ("machine", f"{place.device}, {place.threads} threads, {result.precision}"),
        ("software", f"rrd {place.rrd}, torch {place.torch}, python {place.python}"),
        ("commit", place.git_commit or ""),
        ("date", place.date),
    ]
    return [(name, value) for name, value in facts if value]
