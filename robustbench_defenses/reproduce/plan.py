"""The plan: from recipes to a graph of trainings and evaluations, shared between items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..core import registry
from ..core.errors import UserError, did_you_mean
from ..report.item import STRONG, Key
from . import recipe as recipes
from .jobs import CLEAN, Asked, Evaluation, Job, Training, frozen
from .levels import LEVELS, STAND_INS, Level
from .recipe import Cell, Recipe, Rules, SubjectRule

Only = Mapping[str, Sequence[str]]
HEADLINE = "headline"  # what `--only arm=` calls the first reading


@dataclass(frozen=True)
class Wanted:
    """One cell under one arm and the answers it is made of, one per seed; a strong cell is made
    of `worst`: all answers whose per-example worst case it is, by seed. `reason`: why there will
    be no number."""

    recipe: str
    cell: Cell
    arm: str = ""
    answers: tuple[Evaluation, ...] = ()
    worst: tuple[tuple[Evaluation, ...], ...] = ()
    dataset: str | None = None
    status: str = "selected"
    reason: str | None = None

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return (*self.answers, *(one for group in self.worst for one in group))


@dataclass
class Plan:
    """What will be measured, and the jobs for it in an order that respects their needs."""

    preset: str
    level: Level
    recipes: list[Recipe]
    wanted: list[Wanted]
    jobs: list[Job]
    stand_ins: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # data set: what is wrong with it
    only: dict[str, list[str]] = field(default_factory=dict)
    strong: bool = False
    seed: int = 0
    precision: str = "auto"

    def of(self, item: str) -> list[Wanted]:
        """The cells of one item."""
        return [one for one in self.wanted if one.recipe == item]


def make(
    chosen: Sequence[Recipe],
    preset: str,
    data_dir: Path,
    *,
    only: Only | None = None,
    stand_in: bool = False,
    strong: bool = False,
    seed: int = 0,
    precision: str = "auto",
) -> Plan:
    """The plan of some recipes at a preset; everything that can be known before is checked.

    `only`: cell keys (and `arm`, `item`) to the texts of wanted values; `stand_in`: declared
    stand-ins take the place of data sets that are not here; `seed` is added to those of the
    trainings, `precision` is theirs. Unknown names: `UserError`.
    """
    if preset not in LEVELS:
        raise UserError(
            f"unknown preset {preset!r}", did_you_mean(preset, list(LEVELS), ", ".join(LEVELS))
        )
    level = LEVELS[preset]
    used = [one.with_two_points() if level.two_points else one for one in chosen]
    plan = Plan(preset, level, used, [], [], strong=strong, seed=seed, precision=precision)
    plan.only = {name: list(values) for name, values in (only or {}).items()}
    _check_only(plan)
    for recipe in plan.recipes:
        plan.wanted += _cells(plan, recipe, data_dir, stand_in)
    plan.jobs = _jobs(plan.wanted)
    return plan


def _check_only(plan: Plan) -> None:
    """Every name and value of `--only` has to speak of some cell."""
    known: dict[str, set[str]] = {}
    for recipe in plan.recipes:
        known.setdefault("item", set()).update((recipe.id, recipe.id.partition("/")[2]))
        known.setdefault("arm", {HEADLINE}).update(arm.name for arm in recipe.arms)
        for cell in recipe.cells():
            for name, value in cell.keys.items():
                known.setdefault(name, set()).add(_text(value))
    for name, values in plan.only.items():
        if name not in known:
            raise UserError(
                f"--only {name}: no cell has a {name}", hint=f"they have {', '.join(sorted(known))}"
            )
        for value in values:
            if _text(value) not in known[name]:
                hint = did_you_mean(value, sorted(known[name]), ", ".join(sorted(known[name])))
                raise UserError(f"--only {name}={value}: no cell has that value", hint)


def _text(value: Key) -> str:
    """A cell's value as one writes it: 10.0 is 10."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return str(value)


def _selected(plan: Plan, recipe: Recipe, cell: Cell, arm: str) -> bool:
    """Whether `--only` lets a cell through; readings beside the headline come on demand."""
    if (arm or HEADLINE) not in plan.only.get("arm", [HEADLINE]):
        return False
    for name, values in plan.only.items():
        wanted = {_text(value) for value in values}
        if name == "arm":
            continue
        if name == "item":
            if not wanted & {recipe.id, recipe.id.partition("/")[2]}:
                return False
        elif name not in cell.keys or _text(cell.keys[name]) not in wanted:
            return False
    return True


def _cells(plan: Plan, recipe: Recipe, data_dir: Path, stand_in: bool) -> list[Wanted]:
    found: list[Wanted] = []
    for cell in recipe.cells():
        if any(recipes.matches(where, cell.keys) for where in recipe.cited_only):
            found.append(Wanted(recipe.id, cell, status="cited", reason="cited by the paper only"))
            continue
        for arm in ("", *(a.name for a in recipe.arms if recipes.matches(a.where, cell.keys))):
            if not _selected(plan, recipe, cell, arm):
                if not arm:
                    left = Wanted(recipe.id, cell, status="left_out", reason="not asked for")
                    found.append(left)
                continue
            found.append(_wanted(plan, recipe, cell, arm, data_dir, stand_in))
    if plan.strong:
        # A worst case is over all of the paper's attacks, those that were not asked for too.
        beside = [
            _wanted(plan, recipe, one.cell, "", data_dir, stand_in)
            for one in found
            if one.status == "left_out" and not one.arm
        ]
        found += _strong(plan, recipe, found, beside)
    return found


def _wanted(
    plan: Plan, recipe: Recipe, cell: Cell, arm: str, data_dir: Path, stand_in: bool
) -> Wanted:
    rules = recipe.rules(cell)
    for each in recipe.arms:
        if each.name == arm:
            rules = rules.under(each)
    rules = rules.filled(cell.keys)
    dataset, reason = _dataset(plan, rules.subject.dataset, data_dir, stand_in)
    if reason is not None:
        return Wanted(recipe.id, cell, arm, dataset=dataset, status="missing_data", reason=reason)
    if cell.metric != "accuracy":
        reason = f"{cell.metric} cannot be measured yet"
        return Wanted(recipe.id, cell, arm, dataset=dataset, status="left_out", reason=reason)
    seeds = rules.subject.seeds.get(plan.preset, (0,))
    answers = tuple(_evaluation(plan, rules, cell, dataset, seed) for seed in seeds)
    return Wanted(recipe.id, cell, arm, answers, dataset=dataset)


def _dataset(plan: Plan, name: str, data_dir: Path, stand_in: bool) -> tuple[str, str | None]:
    """The data set that is really used, and what is wrong where it cannot be."""
    if plan.level.collapse is not None:
        return plan.level.collapse, None
    if _here(plan, name, data_dir):
        return name, None
    instead = STAND_INS.get(name)
    if stand_in and instead is not None and _here(plan, instead, data_dir):
        plan.stand_ins[name] = instead
        return instead, None
    reason = plan.missing[name]
    if instead is not None and not stand_in and _here(plan, instead, data_dir):
        reason += f"; --stand-in takes {instead} in its place"
    return name, reason


def _here(plan: Plan, name: str, data_dir: Path) -> bool:
    """Whether a data set's files are here and whole; what is wrong is noted in the plan."""
    from ..data import inventory

    if name not in plan.missing:
        entry = registry.find("dataset", name)
        found = inventory.standing(entry, data_dir)
        fault = {"missing": f"{name} is not here (rrd data fetch {name})"}
        fault["altered"] = "; ".join(found.problems)
        plan.missing[name] = fault.get(found.state, "")
    return not plan.missing[name]


def _evaluation(plan: Plan, rules: Rules, cell: Cell, dataset: str, seed: int) -> Evaluation:
    source = None
    if rules.source is not None:
        source = _training(plan, rules.source, dataset, seed=0)
    if rules.attack is None or cell.keys.get("eps") == 0:
        asked = Asked(CLEAN, (), None, plan.level.n)
        source = None
    else:
        eps = cell.keys.get("eps")
        asked = Asked(
            attack=rules.attack.name,
            settings=frozen(
                {**rules.attack.settings, **plan.level.attacks.get(rules.attack.name, {})}
            ),
            eps=None if eps is None else float(eps),
            n=plan.level.few.get(rules.attack.name, plan.level.n),
        )
    training = _training(plan, rules.subject, dataset, seed)
    return Evaluation(training, frozen(rules.subject.options), source, asked)


def _training(plan: Plan, rule: SubjectRule, dataset: str, seed: int) -> Training:
    """The training behind a subject; where everything collapses, networks are the default ones."""
    collapsed = plan.level.collapse is not None
    made = Training(
        defense=rule.defense,
        dataset=dataset,
        model=None if collapsed else rule.model,
        preset=plan.preset,
        variant=rule.variant,
        seed=plan.seed + seed,
        settings=frozen({**rule.settings, **rule.by_preset.get(plan.preset, {})}),
        precision=plan.precision,
        printed=frozen({**rule.settings, **rule.by_preset.get("paper", {})}),
    )
    # Networks for colour images have no place on a stand-in of another shape, so ask at once.
    _ = made.run_id
    return made


def _strong(
    plan: Plan, recipe: Recipe, found: Sequence[Wanted], beside: Sequence[Wanted]
) -> list[Wanted]:
    """One worst-case cell per subject and Linf budget of the headline cells in `found`, over them
    and those of `beside`."""
    groups: dict[tuple[tuple[str, Key], ...], list[Wanted]] = {}
    for at, one in enumerate((*found, *beside)):
        eps = one.cell.keys.get("eps")
        if one.arm or not one.answers or not eps or not _is_linf(one.answers[0].asked.attack):
            continue
        place = tuple(sorted(strong_keys(recipe, one.cell.keys).items()))
        if at < len(found):
            groups.setdefault(place, []).append(one)
        elif place in groups:
            groups[place].append(one)
    made = []
    for place, members in groups.items():
        worst = []
        for at in range(len(members[0].answers)):
            first = members[0].answers[at]
            asked = Asked(
                "autoattack", frozen(plan.level.strong), first.asked.eps, plan.level.strong_n
            )
            own = replace(first, source=None, asked=asked)
            worst.append((own, *(member.answers[at] for member in members)))
        cell = Cell(keys=dict(place), metric="accuracy", unit=members[0].cell.unit)
        made.append(Wanted(recipe.id, cell, worst=tuple(worst), dataset=members[0].dataset))
    return made


def _is_linf(attack: str) -> bool:
    from .jobs import full_name

    return attack != CLEAN and (attack == "fgsm" or full_name(attack).endswith("_linf"))


def strong_keys(recipe: Recipe, keys: Mapping[str, Key]) -> dict[str, Key]:
    """The keys of the worst-case cell beside a cell."""
    layout = (*recipe.layout.rows, *recipe.layout.columns)
    changed = {**keys, "attack": STRONG}
    if "setting" in keys:
        changed["setting"] = "white_box" if "attack" in layout else STRONG
    return changed


def _jobs(wanted: Sequence[Wanted]) -> list[Job]:
    """Trainings first, then for each subject its evaluations; the strong ones apart."""
    trainings: dict[str, Training] = {}
    answers: dict[tuple[str, bool], dict[str, Evaluation]] = {}
    plain = {e.key for one in wanted for e in one.answers}
    for one in wanted:
        for each in one.evaluations:
            for training in filter(None, (each.training, each.source)):
                trainings.setdefault(training.run_id, training)
            strong = each.key not in plain
            place = (each.training.run_id, strong)
            answers.setdefault(place, {}).setdefault(each.key, each)
    jobs = [Job(f"train {run_id}", training=made) for run_id, made in trainings.items()]
    for (run_id, strong), mine in answers.items():
        sources = {e.source.run_id for e in mine.values() if e.source is not None}
        jobs.append(
            Job(
                name=f"{'strong' if strong else 'eval'} {run_id}",
                needs=tuple(f"train {one}" for one in sorted({run_id, *sources})),
                evaluations=tuple(mine.values()),
                strong=strong,
            )
        )
    return jobs
