"""Trainings that differ in nothing but their seed, put together: mean and Student's interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..evaluation import metrics
from . import text
from .panels import Line, Panel


@dataclass(frozen=True)
class Seeds:
    """Lines of one attack on one training under several seeds; `label` says how many."""

    label: str
    attack: str
    lines: list[Line]

    def spread(
        self,
        value: Callable[[Line], float | None],
        shown: Callable[[float | None], str] = text.percent,
    ) -> str:
        """`value` over the seeds as mean ± half of the 95 % interval, as `shown` writes numbers."""
        values = [value(line) for line in self.lines]
        known = [each for each in values if each is not None]
        if len(known) < len(values):
            return text.ABSENT
        found = metrics.student_interval(known)
        return f"{shown(found.value)} ±{shown(found.high - found.value)}"


def over_seeds(panel: Panel) -> list[Seeds]:
    """One group per training and attack that has results of two seeds or more."""
    groups: dict[object, list[Line]] = {}
    for line in panel.lines:
        if line.result.subject.seed is not None:
            groups.setdefault(_training(line), []).append(line)
    found = []
    for lines in groups.values():
        seeds = {line.result.subject.seed for line in lines}
        if 1 < len(seeds) == len(lines):
            label = f"{_without_seed(lines[0])}, {len(lines)} seeds"
            found.append(Seeds(label, lines[0].attack, lines))
    return found


def _training(line: Line) -> object:
    """What lines over seeds have in common."""
    result, subject = line.result, line.result.subject
    numbers = (result.n, result.dataset.subset)
    options = tuple(sorted((name, str(value)) for name, value in subject.options.items()))
    name = subject.name.replace(f"-s{subject.seed}-", "-s-")
    return name, subject.checkpoint, options, subject.draws, numbers, line.attack


def _without_seed(line: Line) -> str:
    seed = f"s{line.result.subject.seed}"
    return " ".join(word for word in line.subject.split(" ") if word != seed)
