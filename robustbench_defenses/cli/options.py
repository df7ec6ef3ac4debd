"""Options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ..core.errors import UserError

COMMON = "Common options"

DEFAULT_RESULTS = Path("results")


def names_of(kind: str) -> Callable[[str], list[tuple[str, str]]]:
    """A completion callback: the registry's names of a kind, also behind a comma."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from ..core import registry

        before, comma, _ = incomplete.rpartition(",")
        return [
            (before + comma + entry.name, entry.summary) for entry in registry.scan(kind).entries
        ]

    return complete


def run_ids() -> Callable[[typer.Context, str], list[str]]:
    """A completion callback: `last` and the run ids of the results folder."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        folder = ctx.params.get("results") or os.environ.get("RRD_RESULTS") or DEFAULT_RESULTS
        runs = sorted(path.parent.name for path in Path(folder).glob("runs/*/run.json"))
        return ["last", *runs]

    return complete


Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="RRD_DATA",
        show_envvar=True,
        metavar="DIR",
        help="Folder of the data sets; ./data unless given.",
        rich_help_panel=COMMON,
        show_default=False,
    ),
]
Results: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--results",
        envvar="RRD_RESULTS",
        show_envvar=True,
        metavar="DIR",
        help="Folder of runs and results.",
        rich_help_panel=COMMON,
    ),
]
Device: TypeAlias = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:1 or mps; auto takes CUDA where there is one.",
        rich_help_panel=COMMON,
    ),
]
Precision: TypeAlias = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="CLASS",
        help="auto, fp32, bf16 or tf32, of search and training; verdicts are always fp32.",
        rich_help_panel=COMMON,
    ),
]
Seed: TypeAlias = Annotated[
    int,
    typer.Option(
        "--seed", metavar="S", min=0, help="Seed of all randomness.", rich_help_panel=COMMON
    ),
]
BatchSize: TypeAlias = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="auto|N",
        help="Images per forward pass; memory and speed only, never the result.",
        rich_help_panel=COMMON,
    ),
]
Threads: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="CPU threads; torch's own choice unless given.",
        rich_help_panel=COMMON,
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=COMMON),
]
Quiet: TypeAlias = Annotated[
    bool,
    typer.Option("--quiet", help="Only the answer and errors.", rich_help_panel=COMMON),
]
Debug: TypeAlias = Annotated[
    bool,
    typer.Option("--debug", help="Show tracebacks for errors.", rich_help_panel=COMMON),
]
Fresh: TypeAlias = Annotated[
    bool,
    typer.Option("--fresh", help="Ignore stored results.", rich_help_panel=COMMON),
]
Dataset: TypeAlias = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="D",
        help="A data set (rrd list datasets), folder:PATH, npz:FILE or FILE.py:NAME.",
        autocompletion=names_of("dataset"),
        show_default=False,
    ),
]
TestSet: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="D",
        help="Where the test examples come from; a run's own data set unless given.",
        autocompletion=names_of("dataset"),
        show_default=False,
    ),
]
Count: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "-n",
        metavar="N",
        help="Number of test examples, or all; 1,000 unless given (rrd attack: 100).",
        show_default=False,
    ),
]
Subset: TypeAlias = Annotated[
    str,
    typer.Option(
        "--subset", metavar="RULE", help="first, random:SEED, correct or fold:K (ten folds)."
    ),
]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A parameter of the entry (rrd info NAME shows them); may be repeated.",
        show_default=False,
    ),
]


def parse_set(settings: list[str] | None) -> dict[str, str]:
    """`["steps=40", "pgd_linf.loss=ce"]` as a dictionary; hyphens in keys are underscores.

    A setting without `=`, without a key, or given twice is a `UserError`.
    """
    result: dict[str, str] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UserError(f"--set {setting!r} has no value", hint="write --set KEY=VALUE")
        if not key:
            raise UserError(f"--set {setting!r} has no key", hint="write --set KEY=VALUE")
        if key in result:
            raise UserError(f"--set {key} is given twice: {result[key]!r} and {value.strip()!r}")
        result[key] = value.strip()
    return result


def parse_batch_size(text: str) -> int | None:
    """`auto` as None, a whole number from 1 as itself; else a `UserError`."""
    if text.strip().lower() == "auto":
        return None
    if text.strip().isdecimal() and int(text) > 0:
        return int(text)
    raise UserError(f"--batch-size {text} is neither auto nor a whole number from 1")


def split_names(given: list[str]) -> list[str]:
    """Names separated by commas or blanks, in order, each once; an empty list is a `UserError`."""
    names = list(dict.fromkeys(name for text in given for name in text.replace(",", " ").split()))
    if not names:
        raise UserError("--attack names no attack", hint="all: rrd list attacks")
    return names


def parse_count(text: str | None) -> int | None:
    """A number of examples from 1; `all` as -1, None as itself; else a `UserError`."""
    if text is None:
        return None
    if text.strip().lower() == "all":
        return -1
    if text.strip().isdecimal() and int(text) > 0:
        return int(text)
    raise UserError(f"-n {text} is neither a whole number from 1 nor all")
