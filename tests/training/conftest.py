"""One small training, shared by the tests that only read it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_defenses.training.runs import Run
from robustbench_defenses.training.train import train

SMALL = {"model.width": 4, "model.hidden": 16, "validation": 60}


def small(results: Path, defense: str = "nt", **rest: Any) -> Run:
    """A training of a second: 256 digits, 4 steps an epoch."""
    settings = {**SMALL, **rest.pop("settings", {})}
    named = {"preset": "smoke", "limit_train": 256, "threads": 1, **rest}
    return train(defense, "digits", settings=settings, results_dir=results, **named)


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small(tmp_path_factory.mktemp("results"))


@pytest.fixture
def run_copy(shared_run: Run, tmp_path: Path) -> Callable[[], Run]:
    """A copy of the shared run that a test may damage."""

    def copy() -> Run:
        folder = tmp_path / "results" / "runs" / shared_run.id
        shutil.copytree(shared_run.folder, folder)
        return Run(folder, shared_run.info)

    return copy
