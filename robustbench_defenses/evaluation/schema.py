"""The stored result `rrd.result/1` (JSON); its per-example record is in `record.py`.

`python -m robustbench_defenses.evaluation.schema [FILE]` writes the published JSON Schema, by
default to `docs/result.schema.json`.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    computed_field,
    model_validator,
)

from ..core.errors import UserError
from ..core.files import write_text
from .record import Record as Record

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "rrd.result/1"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Severity = Literal["error", "warning", "info"]


class _Part(BaseModel):
    """Every part is frozen and refuses names it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_serialization_defaults_required=True
    )


class Subject(_Part):
    """What was attacked: a run of ours or a model from the user's file, as deployed."""

    id: str = Field(description="folder name under results/evals")
    kind: Literal["run", "file"]
    name: str = Field(description="what the user called it")
    defense: str | None = None
    model: str | None = None
    preset: str | None = None
    seed: int | None = None
    checkpoint: str | None = None
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="deployment options, such as the decision rule"
    )
    weights: str = Field(description="digest of every deployed tensor")
    random: bool = False
    draws: Count = Field(default=1, description="draws that a random subject's answer is made of")
    aggregation: Literal["vote", "logits_mean", "prob_mean"] | None = Field(
        default=None, description="how a random subject joins its draws"
    )


class Dataset(_Part):
    """The test examples."""

    name: str
    digest: str
    subset: str = Field(description="first, random:SEED, correct or fold:K")
    n: Count
    classes: Count
    shape: tuple[int, int, int] = Field(description="channels, height, width")


class Attack(_Part):
    """The attack with every parameter resolved."""

    name: str = Field(description="the name it is listed under, such as pgd_linf")
    entry: str = Field(description="the registry entry or FILE.py:NAME behind the name")
    version: int
    norm: Literal["linf", "l2", "l1", "l0"]
    targeted: bool = False
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    source: str | None = Field(default=None, description="subject that made the images (transfer)")
    backend: Literal["native", "foolbox", "autoattack"] = "native"
    remark: str | None = Field(
        default=None, description="the library that answered, and what it does otherwise"
    )
    access: str | None = None


class CurvePoint(_Part):
    """Robust accuracy at one budget, with its Wilson 95 % interval."""

    eps: Positive
    robust_accuracy: Share
    low: Share
    high: Share


class Distances(_Part):
    """Breaking distances of the examples that were right and then broken."""

    broken: Count
    median: Positive | None
    mean: Positive | None


class Cost(_Part):
    """What the answer cost; passes are example-passes (one image through the network once)."""

    forward_passes: Count
    backward_passes: Count
    seconds: Positive
    peak_memory_mb: Positive | None
    threads: Count


class Diagnostic(_Part):
    """One named check of the number's own credibility."""

    id: str
    name: str
    severity: Severity
    value: Number | None
    threshold: Number | None
    n: Count
    fired: bool
    sentence: str
    attack: str | None = None
    eps: Positive | None = Field(default=None, description="null: several budgets")
    images: list[int] = Field(default_factory=list, description="the first examples concerned")
    hint: str | None = Field(default=None, description="what to do about it")
    skipped: str | None = Field(default=None, description="why the check could not run")

    @model_validator(mode="after")
    def _skipped_never_fires(self) -> Diagnostic:
        if self.fired and self.skipped is not None:
            raise ValueError(f"diagnostic {self.id} is skipped and fired at once")
        return self


class Summary(_Part):
    """How many diagnostics fired."""

    errors: Count
    warnings: Count


class Environment(_Part):
    """Where and how the result was made."""

    rrd: str
    torch: str
    python: str
    platform: str
    device: str
    threads: Count
    precision: str
    git_commit: str | None
    command: str
    date: str = Field(description="ISO 8601 in UTC")


class Member(_Part):
    """One attack of an ensemble: accuracy left by it and those before it, per point of the curve.

    Of a worst case over stored results: accuracy left by it alone.
    """

    name: str
    robust_accuracy: list[Share]
    seconds: Positive
    forward_passes: Count | None = Field(default=None, description="example-passes, as in cost")
    backward_passes: Count | None = None


class Result(_Part):
    """One answer: how many of `n` examples a subject still classifies rightly under an attack."""

    schema_id: Literal["rrd.result/1"] = Field(default="rrd.result/1", alias="schema")
    key: str = Field(description="hash of everything that decides the numbers")
    subject: Subject
    dataset: Dataset
    attack: Attack
    view: str
    sweep: Literal["envelope", "independent", "clipped", "none"]
    precision: str
    seed: int
    n: Count
    clean_accuracy: Share
    clean_low: Share
    clean_high: Share
    curve: list[CurvePoint]
    auc: Share | None
    unbounded_accuracy: Share | None
    distances: Distances | None
    cost: Cost
    diagnostics: list[Diagnostic] = Field(default_factory=list)
    environment: Environment
    members: list[Member] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_summary(cls, given: Any) -> Any:
        """A stored summary is not believed but counted again."""
        if isinstance(given, dict):
            return {name: value for name, value in given.items() if name != "summary"}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Result:
        eps = [point.eps for point in self.curve]
        if any(b <= a for a, b in itertools.pairwise(eps)):
            raise ValueError("the eps of the curve must rise")
        for member in self.members or []:
            if len(member.robust_accuracy) != len(eps):
                raise ValueError(
                    f"member {member.name} has {len(member.robust_accuracy)} accuracies, "
                    f"the curve has {len(eps)} points"
                )
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> Summary:
        """Number of diagnostics that fired as errors and as warnings."""
        severities = [d.severity for d in self.flagged]
        return Summary(errors=severities.count("error"), warnings=severities.count("warning"))

    @property
    def flagged(self) -> list[Diagnostic]:
        """Diagnostics that fired as an error or a warning: the number is printed with a mark."""
        return [d for d in self.diagnostics if d.fired and d.severity != "info"]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values; absent values are null, never left out."""
        return self.model_dump(mode="json", by_alias=True)

    def frame(self) -> pd.DataFrame:
        """One row per eps (one row without eps for an empty curve), as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The long form: one mapping per eps, with all that tells one result from another."""
        head: dict[str, Any] = {
            "subject": self.subject.id,
            "name": self.subject.name,
            "defense": self.subject.defense,
            "model": self.subject.model,
            "preset": self.subject.preset,
            "seed": self.subject.seed,
            "dataset": self.dataset.name,
            "subset": self.dataset.subset,
            "n": self.n,
            "attack": self.attack.name,
            "norm": self.attack.norm,
            "targeted": self.attack.targeted,
            "source": self.attack.source,
            "view": self.view,
            "sweep": self.sweep,
            "clean_accuracy": self.clean_accuracy,
        }
        tail: dict[str, Any] = {
            "auc": self.auc,
            "unbounded_accuracy": self.unbounded_accuracy,
            "fired": " ".join(d.id for d in self.flagged),
            "key": self.key,
        }
        points = [point.model_dump() for point in self.curve] or [
            dict.fromkeys(CurvePoint.model_fields)
        ]
        return [head | point | tail for point in points]


def parse_result(document: Any, where: str) -> Result:
    """The `Result` in a parsed JSON `document`; anything else is a `UserError` naming `where`."""
    if not isinstance(document, dict) or "schema" not in document:
        hint = None
        if isinstance(document, dict) and "results" in document:
            hint = "it lists results: give the files that it names under 'path'"
        raise UserError(f'{where} is not a result of rrd: it has no "schema"', hint)
    found = document["schema"]
    if found != SCHEMA:
        raise UserError(
            f"{where} has schema {found!r}; this version reads {SCHEMA!r}",
            hint="read it with the version of rrd that wrote it, or evaluate again",
        )
    try:
        return Result.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(
            f"{where} is not a valid result: {place}: {first['msg'].removeprefix('Value error, ')}"
        ) from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `Result`, as published in `docs/result.schema.json`."""
    schema = Result.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def main(arguments: list[str]) -> None:
    """Write the published JSON Schema."""
    path = Path(arguments[0]) if arguments else Path("docs/result.schema.json")
    write_text(path, json.dumps(json_schema(), indent=2) + "\n")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
