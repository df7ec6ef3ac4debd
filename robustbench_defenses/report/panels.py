"""Results put side by side: who may stand in one table, under which label, worst cases added."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import UserError
from ..evaluation.schema import Result
from ..evaluation.store import StoredResult
from ..evaluation.worst import optimality, question, worst_result
from .text import eps_labels


@dataclass(frozen=True)
class Line:
    """One row of a table or one line of a plot."""

    result: Result
    subject: str
    attack: str
    worst: bool = False
    stored: StoredResult | None = None
    optimality: float | None = None  # among the minimum-norm attacks on the same question

    @property
    def last_accuracy(self) -> float:
        """Accuracy at the largest eps: where there is no area, this orders the lines."""
        curve = self.result.curve
        return curve[-1].robust_accuracy if curve else self.result.clean_accuracy


@dataclass(frozen=True)
class Panel:
    """Lines over the same data set and norm, so that their eps mean the same."""

    dataset: str
    norm: str
    lines: list[Line]
    notes: list[str] = field(default_factory=list)

    @property
    def subjects(self) -> list[str]:
        """Subject labels in order, each once."""
        return list(dict.fromkeys(line.subject for line in self.lines))

    def of(self, subject: str) -> list[Line]:
        """The lines of one subject, attacks first, its worst case last."""
        return [line for line in self.lines if line.subject == subject]

    def deciding(self) -> list[Line]:
        """One line per subject: its worst case where it has one, else its weakest result."""
        return [
            next((line for line in lines if line.worst), min(lines, key=_order))
            for lines in map(self.of, self.subjects)
        ]

    def best_first(self) -> list[Line]:
        """`deciding`, the most robust subject first."""
        return sorted(self.deciding(), key=_order, reverse=True)

    def grid(self) -> list[float]:
        """Every eps above 0 that some line reports, rising."""
        return sorted({p.eps for line in self.lines for p in line.result.curve if p.eps > 0})


def panels(stored: Sequence[StoredResult]) -> list[Panel]:
    """Group results by data set and norm, label them, and add a worst case per subject.

    A worst case whose records cannot be read is left out, with a note that says why.
    """
    groups: dict[tuple[str, str, str], list[StoredResult]] = {}
    for entry in stored:
        data, norm = entry.result.dataset, entry.result.attack.norm
        groups.setdefault((data.name, data.digest, norm), []).append(entry)
    return [_panel(name, norm, entries) for (name, _, norm), entries in groups.items()]


def optimality_scores(stored: Sequence[StoredResult]) -> list[dict[str, Any]]:
    """The optimality score of every result that has one, with what tells the result from others."""
    return [
        {
            "subject": line.result.subject.id,
            "attack": line.result.attack.name,
            "backend": line.result.attack.backend,
            "key": line.result.key,
            "optimality": line.optimality,
        }
        for panel in panels(stored)
        for line in panel.lines
        if line.optimality is not None
    ]


def _panel(dataset: str, norm: str, stored: list[StoredResult]) -> Panel:
    results = [entry.result for entry in stored]
    subjects = _labels(results, _subject_base, _subject_traits, question)
    by_question: dict[object, list[int]] = {}
    for at, result in enumerate(results):
        by_question.setdefault(question(result), []).append(at)
    lines: list[Line] = []
    notes: list[str] = []
    for members in by_question.values():
        entries = [stored[at] for at in members]
        chosen = [entry.result for entry in entries]
        attacks = _labels(chosen, _attack_base, _attack_traits, lambda r: r.key)
        scores, worst = None, None
        if len(entries) > 1:
            try:
                scores, worst = optimality(entries), worst_result(entries)
            except UserError as error:
                notes.append(f"no worst case for {subjects[members[0]]}: {error.message}")
        for entry, at, attack, score in zip(
            entries, members, attacks, scores or [None] * len(entries)
        ):
            lines.append(Line(entry.result, subjects[at], attack, False, entry, score))
        if worst is not None:
            lines.append(Line(worst, subjects[members[0]], "worst case", worst=True))
    panel = Panel(dataset, norm, lines, notes)
    ranked = [line.subject for line in panel.best_first()]
    first: dict[tuple[str, str | None], int] = {}
    for line in lines:
        first.setdefault((line.result.attack.name, line.result.attack.source), len(first))
    lines.sort(key=lambda line: _place(line, ranked, first))
    return panel


def _place(
    line: Line, ranked: Sequence[str], first: dict[tuple[str, str | None], int]
) -> tuple[int, bool, int, float]:
    """Sort key: subjects by rank, then attacks as they came, each by its smallest eps."""
    attack = line.result.attack
    eps = min((point.eps for point in line.result.curve if point.eps > 0), default=0.0)
    return ranked.index(line.subject), line.worst, first[attack.name, attack.source], eps


def _order(line: Line) -> tuple[float, float]:
    """Sort key, rising with robustness."""
    auc = line.result.auc
    return (-1.0 if auc is None else auc, line.last_accuracy)


Traits = Callable[[Result], dict[str, Any]]


def _labels(
    results: Sequence[Result],
    base: Callable[[Result], str],
    traits: Traits,
    identity: Callable[[Result], object],
) -> list[str]:
    """The shortest labels that tell different identities apart: base, then what differs."""
    labels = [base(result) for result in results]
    for name in _merged([list(traits(result)) for result in results]):
        for label in set(labels):
            same = [at for at, other in enumerate(labels) if other == label]
            if len({identity(results[at]) for at in same}) < 2:
                continue
            shown = {at: traits(results[at]).get(name) for at in same}
            if len(set(map(str, shown.values()))) > 1:
                for at in same:
                    labels[at] = " ".join(filter(None, (label, _trait(name, shown[at]))))
    for label in set(labels):
        same = [at for at, other in enumerate(labels) if other == label]
        keys = list(dict.fromkeys(identity(results[at]) for at in same))
        if len(keys) > 1:
            for at in same:
                labels[at] = f"{label} #{keys.index(identity(results[at])) + 1}"
    return labels


def _merged(lists: list[list[str]]) -> list[str]:
    """Every name once, an unseen one behind the name that it follows in its own list."""
    names: list[str] = []
    for each in lists:
        at = 0
        for name in each:
            if name not in names:
                names.insert(at, name)
            at = names.index(name) + 1
    return names


def _trait(name: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    if name in ("model", "preset", "subset", "at"):
        return str(value)
    if name == "seed":
        return f"s{value}"
    if name == "checkpoint":
        return f"@{value}"
    shown = value if isinstance(value, str) else json.dumps(value)
    return f"{name}={shown}"


def _subject_base(result: Result) -> str:
    return result.subject.defense or result.subject.name


def _subject_traits(result: Result) -> dict[str, Any]:
    subject = result.subject
    return {
        "model": subject.model,
        "preset": subject.preset,
        "seed": subject.seed,
        "checkpoint": subject.checkpoint,
        **subject.options,
        "draws": subject.draws,
        "n": result.n,
        "subset": result.dataset.subset,
        "id": subject.id,
        "weights": subject.weights[:8],
    }


def _attack_base(result: Result) -> str:
    attack = result.attack
    base = f"transfer {attack.name}" if attack.source else attack.name
    if attack.backend != "native":
        base += f" ({attack.backend})"
    return base + (" targeted" if attack.targeted else "")


def _budgets(result: Result) -> str:
    grid = [point.eps for point in result.curve]
    if not grid:
        return "at any eps"
    eps = [value for value in grid if value > 0] or grid
    return f"at {eps_labels(eps)[0]}" if len(eps) == 1 else f"at {len(eps)} eps"


def _attack_traits(result: Result) -> dict[str, Any]:
    attack = result.attack
    return {
        **attack.parameters,
        "source": attack.source,
        "view": result.view,
        "sweep": result.sweep,
        "precision": result.precision,
        "seed": result.seed,
        "at": _budgets(result),
        "version": attack.version,
    }
