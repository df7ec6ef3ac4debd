"""The result store: `results/evals/<subject-id>/<attack>-<key>.json` and `.npz`.

The record is written before the JSON, both by rename: a JSON file that exists has its record.
Equal keys mean equal numbers, so any number of processes may write the same question at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from ..core.files import read_json, write_json
from .record import Record
from .schema import Result, parse_result

FRESH = "delete it, or evaluate again with --fresh"


@dataclass(frozen=True)
class StoredResult:
    """A result and the files it lives in; the record is read when it is asked for."""

    result: Result
    path: Path
    record_path: Path

    def record(self) -> Record:
        """The per-example record; missing, damaged or of another size is a `UserError`."""
        record = Record.load(self.record_path)
        if len(record) != self.result.n:
            raise UserError(
                f"record {self.record_path} holds {len(record)} examples, "
                f"its result says {self.result.n}",
                hint=FRESH,
            )
        return record

    def document(self) -> dict[str, object]:
        """The stored content plus the two file names, as `rrd eval --json` prints it."""
        files = {"path": str(self.path), "record": str(self.record_path)}
        return self.result.to_json() | files


def file_name(name: str) -> str:
    """`name` with everything that could mean something to a file system replaced by `-`."""
    return re.sub(r"[^A-Za-z0-9._+=@-]+", "-", name).strip(".-") or "unnamed"


def evals(results_dir: Path) -> Path:
    """The folder that holds one folder per subject."""
    return results_dir / "evals"


def paths(results_dir: Path, subject_id: str, attack: str, key: str) -> tuple[Path, Path]:
    """The JSON and the npz file of a question."""
    folder = evals(results_dir) / file_name(subject_id)
    stem = f"{file_name(attack)}-{file_name(key)}"
    return folder / f"{stem}.json", folder / f"{stem}.npz"


def save(result: Result, record: Record, results_dir: Path) -> StoredResult:
    """Write a result: the record first, then the JSON, each whole or not at all."""
    if len(record) != result.n:
        raise ValueError(f"record of {len(record)} examples for a result of {result.n}")
    path, record_path = paths(results_dir, result.subject.id, result.attack.name, result.key)
    record.save(record_path)
    write_json(path, result.to_json())
    return StoredResult(result, path, record_path)


def find(results_dir: Path, subject_id: str, attack: str, key: str) -> StoredResult | None:
    """The stored answer to a question, or None. A damaged one is a `UserError` naming it."""
    path, _ = paths(results_dir, subject_id, attack, key)
    if not path.exists():
        return None
    stored = load(path)
    if stored.result.key != key:
        raise UserError(f"{path} answers another question: its key is {stored.result.key!r}", FRESH)
    if not stored.record_path.exists():
        raise UserError(f"record {stored.record_path} is not there", FRESH)
    return stored


def load(path: Path) -> StoredResult:
    """Read one result by its JSON (or its record's) file; `UserError` where it is none."""
    path = path.with_suffix(".json") if path.suffix == ".npz" else path
    result = parse_result(read_json(path), str(path))
    return StoredResult(result, path, path.with_suffix(".npz"))


def beginning_with(name: str, ids: Sequence[str]) -> str | None:
    """The id that is `name`, or the only one that begins so; None where none does. Several:
    `UserError`."""
    matching = [name] if name in ids else [each for each in ids if each.startswith(name)]
    if len(matching) > 1:
        raise UserError(
            f"{name!r} is the beginning of {len(matching)} subjects",
            hint=f"one of {', '.join(matching[:3])}{', ...' if len(matching) > 3 else ''}",
        )
    return matching[0] if matching else None


def load_all(files: Iterable[Path], warn: Callable[[str], None]) -> list[StoredResult]:
    """Read many results; each damaged file gives `warn` one sentence and is left out."""
    stored = []
    for path in files:
        try:
            stored.append(load(path))
        except UserError as error:
            warn(error.message)
    return stored


def all_results(results_dir: Path, warn: Callable[[str], None]) -> list[StoredResult]:
    """Every stored result under `results_dir`, in the order of subject and file names."""
    return load_all(sorted(evals(results_dir).glob("*/*.json")), warn)
