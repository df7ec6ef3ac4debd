"""An item and the one that was stored before: earlier numbers stay, and know their command."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import Notice, UserError
from ..evaluation.schema import Environment
from ..report import item as items
from ..report.item import Item, ItemCell, ItemRun, Made
from .plan import strong_keys
from .recipe import Recipe


def dated(cell: ItemCell, date: str) -> ItemCell:
    """The cell, its number marked with the date of the command that it comes from."""
    if cell.ours is None:
        return cell
    return cell.model_copy(update={"ours": cell.ours.model_copy(update={"date": date})})


def made(
    cells: Sequence[ItemCell], command: str, environment: Environment, earlier: Item | None
) -> tuple[Made, ...]:
    """The commands that the cells' numbers come from, this one last."""
    count = Counter(cell.ours.date for cell in cells if cell.ours is not None)
    before = () if earlier is None else _commands(earlier)
    now = Made(command=command, date=environment.date, git_commit=environment.git_commit, cells=0)
    return tuple(
        one.model_copy(update={"cells": count[one.date]})
        for one in (*before, now)
        if count[one.date]
    )


def _commands(item: Item) -> tuple[Made, ...]:
    """Where an item's numbers come from; one of before `made` has its last command alone."""
    here = item.environment
    whole = Made(command=item.command, date=here.date, git_commit=here.git_commit, cells=0)
    return item.made or (whole,)


def stored(results_dir: Path, item: str, preset: str) -> Item | None:
    """The item as it was stored before; a damaged file is put aside, not in the way."""
    path = items.folder(results_dir, item, preset) / "result.json"
    if not path.is_file():
        return None
    try:
        return items.load(path)
    except UserError as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        said = f"{error.message}; it is now {aside.name}, and the item is made without it"
        warnings.warn(said, Notice, stacklevel=2)
        return None


def merged(
    cells: list[ItemCell], runs: list[ItemRun], earlier: Item, recipe: Recipe
) -> tuple[list[ItemCell], list[ItemRun]]:
    """New cells, with the earlier numbers in the places that were not measured now.

    What is printed, and what became of a cell this time, is always as it is now.
    """

    def place(cell: ItemCell, arm: str | None = None) -> str:
        named = cell.arm if arm is None else arm
        return json.dumps([named, sorted(cell.keys.items())], default=str)

    older = [
        cell if cell.ours is None or cell.ours.date else dated(cell, earlier.environment.date)
        for cell in earlier.cells
    ]
    before = {place(cell): cell for cell in older if cell.ours is not None}
    merged = []
    for cell in cells:
        old = before.pop(place(cell), None)
        if old is not None and cell.ours is None:
            status = "failed" if cell.status == "failed" else "measured"
            cell = cell.model_copy(update={"ours": old.ours, "status": status})
        elif old is not None and old.ours is not None:
            same = dated(cell, old.ours.date)
            cell = same if same.ours == old.ours else cell  # the same again is nothing new
        merged.append(cell)
    # Readings and worst cases that were not asked for this time.
    headline = {place(cell): cell for cell in merged if not cell.arm}
    arms = {arm.name for arm in recipe.arms}
    worst = [strong_keys(recipe, cell.keys) for cell in recipe.cells()]
    for old in before.values():
        now = headline.get(place(old, ""))
        if old.arm in arms and now is not None:
            kept = {"arm": old.arm, "ours": old.ours, "status": "measured", "reason": None}
            merged.append(now.model_copy(update=kept))
        elif not old.arm and old.keys in worst:
            merged.append(old)
    known = {run.id for run in runs}
    return merged, runs + [run for run in earlier.runs if run.id not in known]
