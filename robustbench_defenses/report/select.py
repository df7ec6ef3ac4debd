"""Which stored results a command speaks of: files, folders, subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.errors import UserError, did_you_mean
from ..evaluation import store
from ..evaluation.store import StoredResult

LISTING = "rrd list results"
Warn = Callable[[str], None]


def select(arguments: Sequence[str], results_dir: Path, warn: Warn) -> list[StoredResult]:
    """The results that `arguments` name, each once; without arguments all under `results_dir`.

    An argument is a result's file, a folder of results, a subject's id, a unique beginning of
    one, a subject's name, or `last` (the subject of the newest result). Damaged files among many
    are told to `warn`; named directly they are a `UserError`, and so is what is not there.
    """
    if not arguments:
        found = store.all_results(results_dir, warn)
        if not found:
            raise UserError(
                f"no results in {store.evals(results_dir)}",
                hint="rrd eval SUBJECT --attack NAME makes one; --results DIR looks elsewhere",
            )
        return found
    chosen = [entry for name in arguments for entry in _one(name, results_dir, warn)]
    return list({entry.path.resolve(): entry for entry in chosen}.values())


def _one(name: str, results_dir: Path, warn: Warn) -> list[StoredResult]:
    path = Path(name)
    if path.is_file() and path.suffix in (".json", ".npz"):
        return [store.load(path)]
    if path.is_dir() and (path / "run.json").is_file():
        return _of_subject(path.resolve().name, results_dir, warn)
    if path.is_dir():
        found = store.load_all(_result_files(path), warn)
        if not found:
            raise UserError(f"no results in the folder {name}", hint=LISTING)
        return found
    if path.suffix in (".json", ".npz"):
        raise UserError(f"there is no file {name}", hint=_near_files(path))
    return _of_subject(name, results_dir, warn)


def _result_files(folder: Path) -> list[Path]:
    """JSON files that have a record beside them, or lie alone in a folder of nothing else."""
    files = sorted(folder.rglob("*.json"))
    with_record = [path for path in files if path.with_suffix(".npz").is_file()]
    return with_record or files


def _of_subject(name: str, results_dir: Path, warn: Warn) -> list[StoredResult]:
    ids = sorted({path.parent.name for path in store.evals(results_dir).glob("*/*.json")})
    if name == "last":
        return _newest(results_dir, warn)
    whole = store.beginning_with(name, ids)
    if whole is not None:
        folder = store.evals(results_dir) / whole
        return store.load_all(sorted(folder.glob("*.json")), warn)
    every = store.all_results(results_dir, warn) if ids else []
    by_name = [entry for entry in every if entry.result.subject.name == name]
    if not by_name:
        known = [*ids, *(entry.result.subject.name for entry in every)]
        raise UserError(
            f"no results of {name!r} in {store.evals(results_dir)}",
            hint=did_you_mean(name, list(dict.fromkeys(known)), LISTING),
        )
    return by_name


def _newest(results_dir: Path, warn: Warn) -> list[StoredResult]:
    files = list(store.evals(results_dir).glob("*/*.json"))
    if not files:
        raise UserError(f"no results in {store.evals(results_dir)}", hint="rrd eval makes one")
    newest = max(files, key=lambda path: (path.stat().st_mtime_ns, str(path)))
    return store.load_all(sorted(newest.parent.glob("*.json")), warn)


def _near_files(path: Path) -> str:
    known = [each.name for each in path.parent.glob("*.json")] if path.parent.is_dir() else []
    return did_you_mean(path.name, known, LISTING)
