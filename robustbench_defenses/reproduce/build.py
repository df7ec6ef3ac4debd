"""From outcomes to the stored item: our numbers beside the printed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.files import write_json, write_text
from ..evaluation import metrics, store
from ..evaluation.schema import Diagnostic, Environment, Result
from ..report import item as items
from ..report import item_formats, item_grid, item_page
from ..report.item import (
    Agreement,
    ColumnAgreement,
    Item,
    ItemCell,
    ItemRun,
    Key,
    Measured,
)
from ..training.runs import RunInfo, read_info, runs_folder
from . import merge
from .claims import judge
from .execute import Outcome
from .jobs import CLEAN, Evaluation, Training
from .plan import Plan, Wanted
from .recipe import Recipe

WITHIN = 2.0  # points: what counts as agreement


class Answers:
    """The stored results behind evaluations, read once each."""

    def __init__(self, outcomes: Mapping[str, Outcome], results_dir: Path) -> None:
        self.results_dir = results_dir
        self._paths = {
            key: path
            for outcome in outcomes.values()
            if outcome.job.kind == "eval"
            for key, path in outcome.made.items()
        }
        self._failed = {
            each.key: outcome
            for outcome in outcomes.values()
            if outcome.state != "done"
            for each in outcome.job.evaluations
        }
        self._read: dict[str, store.StoredResult] = {}

    def path(self, one: Evaluation) -> str:
        """The result's file, relative to the results folder."""
        return self._paths[one.key]

    def of(self, one: Evaluation) -> store.StoredResult | None:
        """The stored result, None where its job did not finish."""
        if one.key not in self._paths:
            return None
        if one.key not in self._read:
            self._read[one.key] = store.load(self.results_dir / self._paths[one.key])
        return self._read[one.key]

    def fault(self, one: Evaluation) -> str:
        """Why there is no result."""
        outcome = self._failed.get(one.key)
        return outcome.sentence if outcome is not None else "was not run"


def build(
    plan: Plan, recipe: Recipe, outcomes: Mapping[str, Outcome], results_dir: Path,
    command: str, environment: Environment,
) -> Item:  # fmt: skip
    """The item of a recipe; what is not measured now is taken over from an earlier item of the
    same preset, where it has it."""
    answers = Answers(outcomes, results_dir)
    cells = [_cell(one, answers) for one in plan.of(recipe.id)]
    runs = _runs(plan.of(recipe.id), results_dir)
    cells = [merge.dated(cell, environment.date) for cell in cells]
    earlier = merge.stored(results_dir, recipe.id, plan.preset)
    if earlier is not None:
        cells, runs = merge.merged(cells, runs, earlier, recipe)
    headline = [cell for cell in cells if not cell.arm and cell.keys.get("attack") != items.STRONG]
    layout = (*recipe.layout.rows, *recipe.layout.columns)
    return Item(
        id=recipe.id,
        kind=recipe.kind,
        title=recipe.title,
        metric=recipe.metric,
        unit=recipe.unit,
        preset=plan.preset,
        n=_largest(cell.ours.n for cell in headline if cell.ours is not None),
        strong_n=plan.level.strong_n if any(c.keys.get("attack") == items.STRONG for c in cells)
        else None,
        rows=recipe.layout.rows,
        columns=recipe.layout.columns,
        row_order=recipe.row_order,
        column_order=recipe.column_order,
        axes=recipe.axes,
        source=recipe.source,
        notes=recipe.notes,
        readings={arm.name: arm.text for arm in recipe.arms},
        cells=tuple(cells),
        claims=tuple(judge(claim, headline, layout) for claim in recipe.claims),
        runs=tuple(runs),
        agreement=_agreement(recipe, headline),
        stand_ins=_stand_ins(plan, recipe),
        only={name: list(values) for name, values in plan.only.items()},
        made=merge.made(cells, command, environment, earlier),
        command=command,
        environment=environment,
    )  # fmt: skip


def save(item: Item, results_dir: Path) -> Path:
    """Write result.json of an item, its tables and its page beside it; returns the folder."""
    folder = items.folder(results_dir, item.id, item.preset)
    write_json(folder / "result.json", item.document())
    for name, form in item_formats.FILES.items():
        write_text(folder / name, item_formats.FORMATS[form](item))
    item_page.write_item(item, results_dir)
    return folder


def save_papers(made: Sequence[Item], results_dir: Path) -> list[Path]:
    """Write the page of every paper of which items were made; returns the pages."""
    papers = dict.fromkeys((item.paper, item.preset) for item in made)
    pages = [item_page.write_paper(results_dir, paper, preset) for paper, preset in papers]
    return [page for page in pages if page is not None]


def _largest(numbers: Any) -> int:
    return max(numbers, default=0)


def _stand_ins(plan: Plan, recipe: Recipe) -> dict[str, str]:
    used = {}
    for one in plan.of(recipe.id):
        asked = one.cell.keys.get("dataset")
        if one.dataset and isinstance(asked, str) and asked != one.dataset:
            used[asked] = one.dataset
    return used


def _cell(one: Wanted, answers: Answers) -> ItemCell:
    cell = one.cell
    ours, status, reason = None, one.status, one.reason
    if one.status == "selected":
        lost = next((e for e in one.evaluations if answers.of(e) is None), None)
        if lost is None:
            ours = _worst(one, answers) if one.worst else _measured(one, answers)
            status = "measured"
        else:
            status, reason = "failed", answers.fault(lost)
    asked = cell.keys.get("dataset")
    return ItemCell(
        keys=cell.keys,
        metric=cell.metric,
        unit=cell.unit,
        arm=one.arm,
        printed=cell.value if cell.printed_here else None,
        elsewhere=None if cell.printed_here else cell.value,
        source=cell.source,
        printed_as=cell.printed_as,
        flag=cell.flag,
        cited=cell.cited,
        note=cell.note,
        dataset=one.dataset if one.dataset != asked else None,
        ours=ours,
        status=status,  # type: ignore[arg-type]
        reason=reason,
    )


def _factor(unit: str) -> float:
    return 100.0 if unit == "percent" else 1.0


def _value(result: Result, asked: Evaluation) -> tuple[float, float | None, float | None]:
    """Accuracy that an answer gives to its cell, with its interval where it has one."""
    if asked.asked.attack == CLEAN:
        return result.clean_accuracy, result.clean_low, result.clean_high
    if asked.asked.eps is None:
        if result.unbounded_accuracy is None:
            raise UserError(f"{asked.asked.attack} needs an eps: it is no minimum-norm attack")
        share = result.unbounded_accuracy
        interval = metrics.wilson(round(share * result.n), result.n)
        return share, interval.low, interval.high
    point = next(p for p in result.curve if p.eps == asked.asked.eps)
    return point.robust_accuracy, point.low, point.high


def _measured(one: Wanted, answers: Answers) -> Measured:
    found = [(each, answers.of(each)) for each in one.answers]
    results = [(each, stored.result) for each, stored in found if stored is not None]
    values = [_value(result, each) for each, result in results]
    own = {d.id: d for _, result in results for d in result.diagnostics}
    return _summary(
        one, values, results[0][1].n, [answers.path(each) for each in one.answers],
        tuple(own.values()),
    )  # fmt: skip


def _worst(one: Wanted, answers: Answers) -> Measured:
    """Per example broken by any of the answers, on the examples that all of them share."""
    values, alone, files = [], [], []
    n = 0
    for group in one.worst:
        eps = group[0].asked.eps
        assert eps is not None
        records = []
        for each in group:
            stored = answers.of(each)
            assert stored is not None
            records.append(stored.record())
        shared = records[0].index
        standing = own = np.ones(len(shared), dtype=bool)
        for at, record in enumerate(records):  # AutoAttack first, then the paper's
            place = {int(index): at for at, index in enumerate(record.index)}
            rows = [place[int(index)] for index in shared]
            stands = metrics.least_distance(record)[rows] > metrics.largest_allowed(eps)
            standing = standing & stands
            own = own & stands if at else own
        n = len(shared)
        interval = metrics.wilson(int(standing.sum()), n)
        values.append((interval.value, interval.low, interval.high))
        alone.append(float(own.mean()))
        files += [answers.path(each) for each in group]
    found = _summary(one, values, n, files, ())
    own_attacks = round(_factor(one.cell.unit) * sum(alone) / len(alone), 4)
    return found.model_copy(update={"own_attacks": own_attacks})


def _summary(
    one: Wanted,
    values: Sequence[tuple[float, float | None, float | None]],
    n: int,
    files: Sequence[str],
    diagnostics: tuple[Diagnostic, ...],
) -> Measured:
    factor = _factor(one.cell.unit)
    shares = [value for value, _, _ in values]
    value, low, high = values[0]
    if len(shares) > 1:
        spread = metrics.student_interval(shares)
        value, low, high = spread.value, spread.low, spread.high

    def scaled(number: float | None) -> float | None:
        return None if number is None else round(factor * number, 4)

    return Measured(
        value=round(factor * value, 4),
        low=scaled(low),
        high=scaled(high),
        n=n,
        seeds=tuple(round(factor * share, 4) for share in shares) if len(shares) > 1 else (),
        results=tuple(dict.fromkeys(files)),
        diagnostics=diagnostics,
    )


def _runs(wanted: Sequence[Wanted], results_dir: Path) -> list[ItemRun]:
    """The trainings behind the measured cells, sources last."""
    trainings: dict[str, Training] = {}
    for one in wanted:
        for each in one.evaluations:
            trainings.setdefault(each.training.run_id, each.training)
    for one in wanted:
        for each in one.evaluations:
            if each.source is not None:
                trainings.setdefault(each.source.run_id, each.source)
    found = []
    for run_id, training in trainings.items():
        folder = runs_folder(results_dir) / run_id
        if (folder / "run.json").is_file():
            found.append(_run(read_info(folder), training, folder))
    return found


def _run(info: RunInfo, training: Training, folder: Path) -> ItemRun:
    epochs = sum(int(phase["epochs"]) for phase in info.phases)
    clean = (info.best or {}).get("validation_accuracy")
    return ItemRun(
        id=info.id,
        defense=info.defense,
        dataset=info.dataset,
        model=info.model,
        seed=info.seed,
        epochs=epochs,
        clean_accuracy=clean if isinstance(clean, float) else None,
        seconds=round(info.seconds, 1),
        warnings=tuple(str(one.get("sentence", one)) for one in info.warnings),
        deviations=_deviations(training),
    )


def _deviations(training: Training) -> tuple[str, ...]:
    """Training settings that are not those of the preset `paper`."""
    from dataclasses import asdict, replace

    ours = training.question
    printed = replace(training, preset="paper", settings=training.printed_settings).question
    pairs = [
        *zip(asdict(ours.train).items(), asdict(printed.train).items()),
        *zip(ours.defense_settings.items(), printed.defense_settings.items()),
        *zip(ours.model_settings.items(), printed.model_settings.items()),
    ]
    return tuple(
        f"{name} {mine} instead of {theirs}"
        for (name, mine), (_, theirs) in pairs
        if mine != theirs
    )


def _agreement(recipe: Recipe, headline: Sequence[ItemCell]) -> Agreement:
    printed = [cell for cell in headline if cell.printed is not None]
    both = [cell for cell in printed if cell.ours is not None]
    near = [cell for cell in both if abs(item_grid.points(cell) or 0.0) <= WITHIN]
    groups: dict[tuple[Key, ...], list[ItemCell]] = {}
    for cell in both:
        groups.setdefault(tuple(cell.keys[k] for k in recipe.layout.columns), []).append(cell)
    columns = tuple(
        ColumnAgreement(
            column=dict(zip(recipe.layout.columns, place)), tau=_tau(group), cells=len(group)
        )
        for place, group in groups.items()
    )
    return Agreement(
        printed=len(printed),
        measured=len(both),
        within_two=len(near),
        cited=sum(cell.cited for cell in both),
        cited_within_two=sum(cell.cited for cell in near),
        columns=columns,
    )


def _tau(cells: Sequence[ItemCell]) -> float | None:
    """Kendall's tau-b of our values and the printed ones; None below three cells, or where one
    side does not vary."""
    from scipy.stats import kendalltau

    ours = [cell.ours.value for cell in cells if cell.ours is not None]
    printed = [cell.printed for cell in cells if cell.printed is not None]
    if len(ours) < 3 or len(set(ours)) == 1 or len(set(printed)) == 1:
        return None
    return round(float(kendalltau(ours, printed).statistic), 4)
