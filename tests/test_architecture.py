"""The house stands: imports point downwards, and listings import nothing heavy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import robustbench_defenses.core.registry as registry

FLOORS = [
    "core",
    "data",
    "models",
    "engine",
    "attacks",
    "defenses",
    "training",
    "evaluation",
    "report",
    "reproduce",
    "cli",
]
ROOT = registry.ROOT
FILES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in FLOORS)


def imported_modules(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module from the package on) of every import of ours in a file."""
    package = list(path.relative_to(ROOT.parent).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == ROOT.name:
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == ROOT.name:
                for alias in node.names:
                    yield node.lineno, f"{module}.{alias.name}"
            elif module.split(".")[0] == ROOT.name:
                yield node.lineno, module


def upward(path: Path, source: str) -> list[str]:
    """The imports of a file that point to a higher floor, or to nothing we know."""
    own = FLOORS.index(path.relative_to(ROOT).parts[0])
    wrong = []
    for line, module in imported_modules(path, source):
        floor = module.split(".")[1]
        if floor == "__version__":
            continue
        if floor not in FLOORS or FLOORS.index(floor) > own:
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    assert upward(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "from ..engine import search",
        "from ..attacks.pgd import PGD",
        "from .. import cli",
        "import robustbench_defenses.training.trainer",
        "def f():\n    from robustbench_defenses.evaluation import store",
    ],
)
def test_an_upward_import_is_seen(line: str) -> None:
    assert len(upward(ROOT / "data" / "new.py", line)) == 1


@pytest.mark.parametrize(
    "line", ["from ..core import rng", "from .idx import read", "import torch", "from . import idx"]
)
def test_a_downward_import_is_allowed(line: str) -> None:
    assert upward(ROOT / "data" / "new.py", line) == []


def test_every_folder_is_a_floor() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "_."}
    assert folders <= set(FLOORS)
    assert {folder.split("/")[0] for folder in registry.KINDS.values()} <= set(FLOORS)
