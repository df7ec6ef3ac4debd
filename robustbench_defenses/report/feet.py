"""The lines under a table of results: what its numbers are, and what speaks against them."""

from __future__ import annotations

from ..evaluation.schema import Result
from . import text
from .panels import Panel
from .seeds import over_seeds

FOOTNOTES = 6


def feet(panel: Panel, answer: bool = False) -> list[str]:
    """Unit, data set, norm, n and widest interval; then one line per diagnostic that fired."""
    results = [line.result for line in panel.lines]
    where = f"{panel.dataset}, {text.NORM_NAMES[panel.norm]}"
    if answer:
        subset = _subsets(results)
        lines = [f"{results[0].subject.name} on {where}{subset and f', {subset}'}"]
    else:
        lines = [f"accuracy in % on {where}{_numbers(results)}"]
        if over_seeds(panel):
            lines.append("over seeds: mean ± half of Student's 95 % interval")
    random = {
        line.subject: line.result.subject.draws
        for line in panel.lines
        if line.result.subject.random
    }
    for subject, draws in random.items():
        lines.append(f"{subject} answers at random: verdicts over {draws} draws")
    return lines + remarks(panel) + footnotes(panel) + panel.notes


def remarks(panel: Panel) -> list[str]:
    """One line per thing that a library does otherwise, and in which attacks."""
    concerned: dict[str, list[str]] = {}
    for line in panel.lines:
        attack = line.result.attack
        if attack.remark is not None and not line.worst:
            names = concerned.setdefault(attack.remark, [])
            names += [attack.name] if attack.name not in names else []
    lines = []
    for remark, names in concerned.items():
        library, colon, otherwise = remark.partition(": ")
        lines.append(f"{library}, {', '.join(names)}{colon}{otherwise}")
    return lines + _substitutes(panel)


def _substitutes(panel: Panel) -> list[str]:
    """One line where a subject has too few classes for a loss, which then is another one."""
    said = {
        diagnostic.sentence: None
        for line in panel.lines
        for diagnostic in line.result.diagnostics
        if diagnostic.id == "D28" and diagnostic.fired
    }
    return list(said)


def footnotes(panel: Panel) -> list[str]:
    """One line per diagnostic that fired: whom it concerns, and its sentence."""
    concerned: dict[str, list[str]] = {}
    for line in panel.lines:
        for diagnostic in [] if line.worst else line.result.flagged:
            found = concerned.setdefault(f"{diagnostic.name}: {diagnostic.sentence}", [])
            label = line.subject if len(panel.subjects) > 1 else line.attack
            if label not in found:
                found.append(label)
    notes = [f"! {', '.join(labels)}: {sentence}" for sentence, labels in concerned.items()]
    if len(notes) > FOOTNOTES:
        left = len(notes) - FOOTNOTES + 1
        notes = [*notes[: FOOTNOTES - 1], f"! and {left} more (--format html shows them all)"]
    return notes


def _numbers(results: list[Result]) -> str:
    sizes = {result.n for result in results}
    widest = max(
        (
            max(p.high - p.robust_accuracy, p.robust_accuracy - p.low)
            for r in results
            for p in r.curve
        ),
        default=None,
    )
    parts = [f"n = {text.count(*sizes)}"] if len(sizes) == 1 else []
    parts += filter(None, [_subsets(results)])
    parts += [] if widest is None else [f"95 % interval up to ±{text.percent(widest)}"]
    return "".join(f", {part}" for part in parts)


def _subsets(results: list[Result]) -> str:
    """How the examples were chosen, where it was not simply the first n."""
    chosen = sorted({result.dataset.subset for result in results})
    return "" if chosen == ["first"] else f"examples: {' and '.join(chosen)}"
