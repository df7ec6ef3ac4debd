"""What lies in folders rather than in the registry: recipes, runs, results."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import read_json
from ..core.registry import ROOT

_BLOCK = re.compile(r"^[A-Za-z_]\w*:\s*(?:[|>][-+]?)?\s*$", re.MULTILINE)
_HEAD_BYTES = 8192


@dataclass
class Listing:
    """Rows for people and `documents` for programs; `problems`: files that cannot be read.

    `hint`: one line for an empty listing: why there is nothing, and what would make some.
    """

    columns: list[str]
    hint: str
    rows: list[list[str]] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    right: tuple[str, ...] = ()


def runs(results: Path) -> Listing:
    """Training runs, newest first: `results/runs/*/run.json`."""
    listing = Listing(
        ["run", "status", "best", "finished"],
        hint=f"no runs in {results / 'runs'}; rrd train DEFENSE --dataset NAME makes one",
        right=("best",),
    )
    for path in _newest_first(list(results.glob("runs/*/run.json"))):
        content = _content(path, listing)
        if content is None:
            continue
        listing.documents.append({**content, "id": path.parent.name, "path": str(path.parent)})
        best, finished = _best(content.get("best")), _date(content.get("finished"))
        status = str(content.get("status", ""))
        listing.rows.append([path.parent.name, status, best, finished])
    return listing


def results(folder: Path) -> Listing:
    """Evaluations, newest first: `results/evals/<subject>/<attack>-<key>.json`."""
    listing = Listing(
        ["subject", "attack", "n", "clean %", "robust %", "auc", "date"],
        hint=f"no results in {folder / 'evals'}; rrd eval SUBJECT --attack NAME makes one",
        right=("n", "clean %", "robust %", "auc"),
    )
    for path in _newest_first(list(folder.glob("evals/**/*.json"))):
        content = _content(path, listing)
        if content is None or not str(content.get("schema", "")).startswith("rrd.result/"):
            continue
        document, row = _result(content, path)
        listing.documents.append(document)
        listing.rows.append(row)
    return listing


def recipes(folder: Path | None = None) -> Listing:
    """The printed tables and figures that can be reproduced: `recipes/<paper>/<item>.yaml`."""
    folder = folder or recipes_folder()
    listing = Listing(["item", "title"], hint=f"no recipes in {folder}")
    for path in sorted(folder.glob("**/*.yaml")):
        try:
            head = _head(path)
        except (OSError, ValueError) as error:
            listing.problems.append(f"{path}: {error}")
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        listing.documents.append({**head, "id": name, "path": str(path)})
        listing.rows.append([name, str(head.get("title", ""))])
    return listing


def recipes_folder() -> Path:
    """Where the recipes are: in the installed package, or in the source folder beside it."""
    shipped = ROOT / "_shipped" / "recipes"
    return shipped if shipped.is_dir() else ROOT.parent / "recipes"


KINDS: dict[str, Callable[[Path], Listing]] = {
    "recipe": lambda _: recipes(),
    "run": runs,
    "result": results,
}


def find_stored(name: str, folder: Path) -> tuple[str, dict[str, Any]] | None:
    """(kind, document) of the run, result or recipe called `name`, or of the only one whose name
    begins so (`last`: the newest run); None when there is none, `UserError` when several."""
    if name == "last":
        newest = runs(folder).documents
        return ("run", newest[0]) if newest else None
    for kind, listed in KINDS.items():
        documents = listed(folder).documents
        exact = [document for document in documents if document["id"] == name]
        close = exact or [document for document in documents if document["id"].startswith(name)]
        if len(close) > 1:
            names = ", ".join(str(document["id"]) for document in close[:4])
            raise UserError(f"{name!r} begins {len(close)} names of {kind}s", hint=f"{names} ...")
        if close:
            return kind, close[0]
    return None


def _newest_first(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (-path.stat().st_mtime, str(path)))


def _content(path: Path, listing: Listing) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except UserError as error:
        listing.problems.append(error.message)
        return None
    if not isinstance(content, dict):
        listing.problems.append(f"{path} holds no JSON object")
        return None
    return content


def _result(content: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    subject, attack = _part(content, "subject"), _part(content, "attack")
    curve = [point for point in content.get("curve") or [] if isinstance(point, dict)]
    last = curve[-1] if curve else {}
    date = _part(content, "environment").get("date")
    document = {
        "id": f"{path.parent.name}/{path.stem}",
        "path": str(path),
        "subject": subject.get("id", path.parent.name),
        "dataset": _part(content, "dataset").get("name"),
        "attack": attack.get("name"),
        "norm": attack.get("norm"),
        "n": content.get("n"),
        "clean_accuracy": content.get("clean_accuracy"),
        "eps": last.get("eps"),
        "robust_accuracy": last.get("robust_accuracy"),
        "auc": content.get("auc"),
        "date": date,
    }
    robust = _percent(last.get("robust_accuracy"))
    row = [
        str(document["subject"]),
        str(document["attack"] or ""),
        f"{document['n']:,}" if isinstance(document["n"], int) else "",
        _percent(document["clean_accuracy"]),
        f"{robust} @ {last['eps']:g}"
        if robust and isinstance(last.get("eps"), float | int)
        else "",
        f"{document['auc']:.3f}" if isinstance(document["auc"], float | int) else "",
        _date(date),
    ]
    return document, row


def _head(path: Path) -> dict[str, Any]:
    """The keys of a recipe before its first block: title, source, metric, unit."""
    import yaml

    with open(path, "rb") as handle:
        text = handle.read(_HEAD_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")
    block = _BLOCK.search(text)
    if block:
        text = text[: block.start()]
    elif len(text) >= _HEAD_BYTES // 4:
        text = text[: text.rfind("\n") + 1]
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        head = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(f"malformed YAML: {' '.join(str(error).split())}") from None
    if not isinstance(head, dict):
        raise ValueError("the file does not begin with `key: value` lines")
    return head


def _part(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, float | int) else ""


def _best(value: Any) -> str:
    """The best checkpoint in a few characters, from whatever the run recorded of it."""
    if not isinstance(value, dict):
        return ""
    numbers = [value.get(key) for key in ("accuracy", "value", "metric", "score")]
    found = next((number for number in numbers if isinstance(number, float | int)), None)
    return "" if found is None else f"{_percent(found)} %"


def _date(value: Any) -> str:
    return str(value)[:16].replace("T", " ") if value else ""
