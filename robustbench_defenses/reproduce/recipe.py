"""Recipes: a printed table or figure as data, and how to produce it.

`recipes/<paper>/<item>.yaml` holds every printed cell and the rules that say which subject is
trained and which attack is run for it. A rule applies to the cells that its `where` matches; the
first that matches a cell is its rule. A value "$name" of a rule stands for that key of the cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ..core.errors import UserError, did_you_mean
from ..core.registry import ROOT
from ..report.item import Key

Keys = dict[str, Key]
Where = dict[str, Key | list[Key]]
# What a printed cell may say beside its keys.
REMARKS = {
    *("value", "std", "metric", "unit", "printed", "printed_name", "relation", "cited"),
    *("replicated", "source", "flag", "note", "eps_printed", "eps_unit"),
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SubjectRule(_Part):
    """Who is attacked (or, among `sources`, who makes the images of a transfer attack)."""

    where: Where = Field(default_factory=dict)
    defense: str = "$defense"
    dataset: str = "$dataset"
    model: str | None = None
    variant: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    by_preset: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict, description="further settings of one preset"
    )
    options: dict[str, str] = Field(default_factory=dict)
    seeds: dict[str, tuple[int, ...]] = Field(
        default_factory=dict, description="seeds by preset; [0] unless named"
    )


class AttackRule(_Part):
    """Which attack makes a cell; `settings` are its parameters."""

    where: Where = Field(default_factory=dict)
    name: str = "$attack"
    settings: dict[str, JsonValue] = Field(default_factory=dict)


class Arm(_Part):
    """Another honest reading of some cells: its fields replace those of the rules."""

    name: str
    text: str
    where: Where = Field(default_factory=dict)
    subject: dict[str, JsonValue] = Field(default_factory=dict)
    source: dict[str, JsonValue] = Field(default_factory=dict)
    attack: dict[str, JsonValue] = Field(default_factory=dict)


class Check(_Part):
    """A test of a claim on cells; `reproduce.claims` says what each kind means."""

    kind: Literal["greater", "at_most", "at_least", "monotone", "spread", "order", "top"]
    where: Where = Field(default_factory=dict)
    left: Where = Field(default_factory=dict)
    right: Where = Field(default_factory=dict)
    by: float = 0.0
    value: float | None = None
    along: str | None = None
    order: list[Key] = Field(default_factory=list)
    tolerance: float = 0.0


class Claim(_Part):
    """What the paper says of the item, and how to see whether it holds: by one check or several;
    `own`: our statement, not the paper's."""

    id: str
    text: str
    check: Check | tuple[Check, ...] | None = None
    own: bool = False

    @property
    def checks(self) -> tuple[Check, ...]:
        if self.check is None:
            return ()
        return self.check if isinstance(self.check, tuple) else (self.check,)


class Layout(_Part):
    """The cell keys that make rows and columns."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]


class Recipe(_Part):
    """One printed item and its production; see `docs/reproduce.md` for the format."""

    id: str
    kind: Literal["table", "figure"]
    title: str
    source: str
    metric: str
    unit: str
    layout: Layout
    row_order: tuple[str, ...] = ()
    column_order: tuple[str, ...] = ()
    axes: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    subjects: Annotated[tuple[SubjectRule, ...], Field(min_length=1)]
    sources: tuple[SubjectRule, ...] = ()
    attacks: tuple[AttackRule, ...] = ()
    arms: tuple[Arm, ...] = ()
    measure: tuple[Where, ...] = Field(
        default=(), description="points without a printed number, lists multiplied out"
    )
    claims: tuple[Claim, ...] = ()
    cited_only: tuple[Where, ...] = Field(
        default=(), description="cells that are not produced; allowed for cited ones alone"
    )
    printed: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _every_cell_is_whole(self) -> Recipe:
        seen: set[tuple[tuple[str, Key], ...]] = set()
        for cell in self.cells():
            missing = [k for k in (*self.layout.rows, *self.layout.columns) if k not in cell.keys]
            if missing:
                raise ValueError(f"{cell.label} lacks {', '.join(missing)}")
            place = tuple(sorted(cell.keys.items()))
            if place in seen:
                raise ValueError(f"{cell.label} is there twice")
            seen.add(place)
            left_out = any(matches(where, cell.keys) for where in self.cited_only)
            if left_out and not cell.cited:
                raise ValueError(f"{cell.label} is left out, and is not cited")
            if not left_out:
                self.rules(cell)
        return self

    @property
    def paper(self) -> str:
        return self.id.partition("/")[0]

    def cells(self) -> list[Cell]:
        """Printed cells in file order, then the points to measure that have none."""
        cells = [Cell.of(raw, self) for raw in self.printed]
        known = {tuple(sorted(cell.keys.items())) for cell in cells}
        for where in self.measure:
            for keys in expand(where):
                if tuple(sorted(keys.items())) not in known:
                    cells.append(Cell(keys=keys, metric=self.metric, unit=self.unit))
        return cells

    def with_two_points(self) -> Recipe:
        """The recipe with two values of every numeric list that is multiplied out."""
        measure = tuple(
            {name: _two(value) if isinstance(value, list) else value for name, value in one.items()}
            for one in self.measure
        )
        return self.model_copy(update={"measure": measure})

    def rules(self, cell: Cell) -> Rules:
        """The rules that produce a cell; a cell without a producer is a `ValueError`."""
        subject = first(self.subjects, cell.keys)
        if subject is None:
            raise ValueError(f"no subject for {cell.label}")
        attack = source = None
        if cell.keys.get("setting") != "clean" and cell.keys.get("attack") != "none":
            attack = first(self.attacks, cell.keys)
            if attack is None:
                raise ValueError(f"no attack for {cell.label}")
        if cell.keys.get("setting") == "black_box":
            source = first(self.sources, cell.keys)
            if source is None:
                raise ValueError(f"no source for {cell.label}")
        return Rules(subject=subject, attack=attack, source=source)


class Rules(_Part):
    """What produces one cell, values filled in by `filled`."""

    subject: SubjectRule
    attack: AttackRule | None = None
    source: SubjectRule | None = None

    def filled(self, keys: Keys) -> Rules:
        """Every "$name" replaced by the cell's value of that name."""
        return Rules.model_validate(
            {
                name: None if part is None else fill(part.model_dump(exclude={"where"}), keys)
                for name, part in (
                    ("subject", self.subject), ("attack", self.attack), ("source", self.source)
                )
            }
        )  # fmt: skip

    def under(self, arm: Arm) -> Rules:
        """The rules as the arm reads them."""
        changes = (
            ("subject", self.subject, arm.subject),
            ("attack", self.attack, arm.attack),
            ("source", self.source, arm.source),
        )
        return Rules.model_validate(
            {
                name: None if part is None else _over(part.model_dump(), change)
                for name, part, change in changes
            }
        )


class Cell(_Part):
    """One place of an item: its keys, and the printed number where there is one."""

    keys: Keys
    metric: str
    unit: str
    value: float | None = None
    printed_as: str | None = None
    flag: str | None = None
    cited: bool = False
    printed_here: bool = False
    source: str | None = None
    note: str | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any], recipe: Recipe) -> Cell:
        """A cell of the file: what is no remark is a key."""
        keys = {name: value for name, value in raw.items() if name not in REMARKS}
        return cls(
            keys=keys,
            metric=raw.get("metric", recipe.metric),
            unit=raw.get("unit", recipe.unit),
            value=raw["value"],
            printed_as=raw.get("printed"),
            flag=raw.get("flag"),
            cited=raw.get("cited", False) in (True, "inferred"),
            printed_here="source" not in raw,
            source=raw.get("source"),
            note=raw.get("note"),
        )

    @property
    def label(self) -> str:
        """The cell in a few words, for messages."""
        return "cell " + ", ".join(f"{name} {value}" for name, value in self.keys.items())


Rule = TypeVar("Rule", SubjectRule, AttackRule)


def first(rules: tuple[Rule, ...], keys: Keys) -> Rule | None:
    """The first rule that speaks of a cell with these keys."""
    return next((rule for rule in rules if matches(rule.where, keys)), None)


def matches(where: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    """Whether every name of `where` has (one of) the wanted values in `keys`."""
    return all(
        name in keys and keys[name] in (wanted if isinstance(wanted, list) else [wanted])
        for name, wanted in where.items()
    )


def expand(where: Mapping[str, Any]) -> Iterator[Keys]:
    """All keys that a mapping with lists stands for."""
    names = list(where)
    lists = [value if isinstance(value, list) else [value] for value in where.values()]
    for values in itertools.product(*lists):
        yield dict(zip(names, values))


def fill(value: Any, keys: Mapping[str, Any]) -> Any:
    """`value` with every text "$name" replaced by `keys[name]`."""
    if isinstance(value, dict):
        return {name: fill(inner, keys) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [fill(inner, keys) for inner in value]
    if isinstance(value, str) and value.startswith("$"):
        if value[1:] not in keys:
            raise ValueError(f"a rule speaks of {value}, and the cell has no {value[1:]}")
        return keys[value[1:]]
    return value


def _two(values: list[Key]) -> list[Key]:
    """The first and the middle of numbers; names all stay."""
    if len(values) <= 2 or any(isinstance(value, str) for value in values):
        return values
    return [values[0], values[len(values) // 2]]


def _over(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` laid over `base`; settings and options are merged, everything else replaced."""
    merged = dict(base)
    for name, value in change.items():
        both = isinstance(value, Mapping) and isinstance(base.get(name), dict)
        merged[name] = {**base[name], **value} if both else value
    return merged


def folder() -> Path:
    """Where the recipes are: in the installed package, or in the source folder beside it."""
    shipped = ROOT / "_shipped" / "recipes"
    return shipped if shipped.is_dir() else ROOT.parent / "recipes"


def load(path: Path, root: Path | None = None) -> Recipe:
    """A recipe file; whatever is wrong with it is a `UserError` that names the file."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        recipe = Recipe.model_validate(raw)
    except (OSError, yaml.YAMLError, ValidationError, KeyError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path} is no recipe: {said[:400]}") from error
    name = path.relative_to(root or folder()).with_suffix("").as_posix()
    if recipe.id != name:
        raise UserError(f"{path} calls itself {recipe.id}; by its place it is {name}")
    return recipe


def named(name: str, root: Path | None = None) -> list[Recipe]:
    """The recipes of `paper/item`, of a paper, or of `all`, in the order of their names."""
    root = root or folder()
    every = {p.relative_to(root).with_suffix("").as_posix(): p for p in root.glob("*/*.yaml")}
    chosen = sorted(
        item for item in every if name == "all" or item == name or item.startswith(f"{name}/")
    )
    if not chosen:
        known = sorted({*every, *(item.partition("/")[0] for item in every), "all"})
        raise UserError(
            f"there is no recipe {name!r}", did_you_mean(name, known, "rrd list recipes")
        )
    return [load(every[item], root) for item in chosen]
