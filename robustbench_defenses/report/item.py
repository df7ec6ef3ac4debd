"""The stored item `rrd.item/1`: one printed table or figure, our numbers beside the printed ones.

Written by `rrd reproduce` as `results/items/<paper>/<item>/<preset>/result.json`, read by every
format of the report. Values are in the unit of their cell (`percent`: 0 to 100).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import UserError
from ..evaluation.schema import Diagnostic, Environment

SCHEMA: Literal["rrd.item/1"] = "rrd.item/1"
STRONG = "strong"  # the name under which a `--strong` cell stands in the axis of attacks

Number = Annotated[float, Field(allow_inf_nan=False)]
Key = str | int | float
Status = Literal["measured", "selected", "cited", "missing_data", "failed", "left_out"]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_serialization_defaults_required=True
    )


class Measured(_Part):
    """Our number for one cell: the mean over seeds where there are several.

    `low`, `high`: Wilson 95 % interval, over seeds Student's; `results`: files of the results it
    comes from, relative to the results folder; `date`: of the command that put it here (`made` of
    the item); `own_attacks`, in a worst-case cell: what the paper's own attacks alone leave of the
    same images.
    """

    value: Number
    low: Number | None = None
    high: Number | None = None
    n: int
    seeds: tuple[Number, ...] = ()
    results: tuple[str, ...] = ()
    date: str = ""
    own_attacks: Number | None = None
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def flagged(self) -> list[Diagnostic]:
        """Errors and warnings that fired, errors first."""
        fired = [one for one in self.diagnostics if one.fired and one.severity != "info"]
        return sorted(fired, key=lambda one: one.severity != "error")


class ItemCell(_Part):
    """One place of the item. `keys` hold every name of the layout, and more (`eps`, `c`, ...).

    `printed` is None where nothing is printed (curve points, strong cells); `elsewhere`: a value
    for this place that stands elsewhere, and `source` where (another table of the paper, the
    authors' log or picture): drawn, not compared; `cited`: copied from another paper by this one;
    `dataset`: what was really used where that is a stand-in; `arm`: the reading of the paper ("" is
    the headline); `reason`: why there is no number of ours.
    """

    keys: dict[str, Key]
    metric: str
    unit: str
    arm: str = ""
    printed: Number | None = None
    elsewhere: Number | None = None
    source: str | None = None
    printed_as: str | None = None
    flag: str | None = None
    cited: bool = False
    note: str | None = None
    dataset: str | None = None
    ours: Measured | None = None
    status: Status = "measured"
    reason: str | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus printed, None where one is missing."""
        if self.ours is None or self.printed is None:
            return None
        return self.ours.value - self.printed


class ItemClaim(_Part):
    """A statement of the paper (`own`: of ours). `ours`, `printed`: whether it holds for our
    numbers and for the printed ones (None: not checked, or cells are missing); `sentence` says what
    was seen, and is empty where nothing was."""

    id: str
    text: str
    own: bool = False
    ours: bool | None = None
    printed: bool | None = None
    sentence: str = ""


class ItemRun(_Part):
    """One training behind the numbers: what a reader needs to judge it."""

    id: str
    defense: str
    dataset: str
    model: str
    seed: int
    epochs: int
    clean_accuracy: Number | None = None
    seconds: Number | None = None
    warnings: tuple[str, ...] = ()
    deviations: tuple[str, ...] = Field(
        default=(), description="settings that differ from the paper's schedule"
    )


class Made(_Part):
    """A command that numbers of the item come from; `cells`: how many."""

    command: str
    date: str
    git_commit: str | None = None
    cells: int


class ColumnAgreement(_Part):
    """Kendall's tau between our order and the printed one down a column (None: too few cells)."""

    column: dict[str, Key]
    tau: Number | None
    cells: int


class Agreement(_Part):
    """How near we came, over headline cells with a printed number; `cited`, `cited_within_two`:
    those of the measured ones, and of the near ones, that the paper copied from elsewhere."""

    printed: int
    measured: int
    within_two: int
    cited: int = 0
    cited_within_two: int = 0
    columns: tuple[ColumnAgreement, ...] = ()


class Item(_Part):
    """One reproduced item."""

    schema_: Literal["rrd.item/1"] = Field(alias="schema", default=SCHEMA)
    id: str = Field(description="paper/item")
    kind: Literal["table", "figure"]
    title: str
    metric: str
    unit: str
    preset: str
    n: int
    strong_n: int | None = None
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_order: tuple[str, ...] = ()
    column_order: tuple[str, ...] = ()
    axes: dict[str, Any] = Field(default_factory=dict)
    source: str = Field(default="", description="where it is printed")
    notes: tuple[str, ...] = ()
    readings: dict[str, str] = Field(default_factory=dict, description="what each arm means")
    cells: tuple[ItemCell, ...]
    claims: tuple[ItemClaim, ...] = ()
    runs: tuple[ItemRun, ...] = ()
    agreement: Agreement
    stand_ins: dict[str, str] = Field(
        default_factory=dict, description="data set that was asked for: the one that was used"
    )
    only: dict[str, list[Key]] = Field(default_factory=dict)
    made: tuple[Made, ...] = Field(
        default=(), description="where the numbers come from, newest last"
    )
    command: str
    environment: Environment

    @property
    def paper(self) -> str:
        return self.id.partition("/")[0]

    @property
    def arms(self) -> tuple[str, ...]:
        """The readings in the item, the headline first."""
        return tuple(dict.fromkeys(["", *(cell.arm for cell in self.cells)]))

    def headline(self) -> list[ItemCell]:
        """The cells of the first arm, without the strong ones."""
        return [cell for cell in self.cells if not cell.arm and cell.keys.get("attack") != STRONG]

    def strong(self) -> list[ItemCell]:
        """The worst-case cells of `--strong`."""
        return [cell for cell in self.cells if cell.keys.get("attack") == STRONG]

    def document(self) -> dict[str, Any]:
        """The item in JSON's terms."""
        return self.model_dump(mode="json", by_alias=True)


def load(path: Path) -> Item:
    """A stored item; damaged or of another schema: `UserError`."""
    try:
        return Item.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is no {SCHEMA} item: {first}") from error


def folder(results_dir: Path, item: str, preset: str) -> Path:
    """Where an item's files are."""
    return results_dir / "items" / item / preset


def stored(results_dir: Path, paper: str | None = None) -> list[Path]:
    """Every stored item's file, of one paper where it is named."""
    pattern = f"{paper or '*'}/*/*/result.json"
    return sorted((results_dir / "items").glob(pattern))
