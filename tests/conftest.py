"""What tests of several folders share: one small trained run."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

# In the background of a shell Ctrl-C is ignored, and children inherit that; the tests of it need
# what a terminal gives.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is as wide as without a terminal, wherever the tests run."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def digits_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one finished run: `nt` on digits, a second's training. Not to touch."""
    from robustbench_defenses.training.train import train

    folder = tmp_path_factory.mktemp("digits") / "results"
    settings = {"model.width": 8, "model.hidden": 32, "learning_rate": 0.003}
    named = {"preset": "smoke", "epochs": 6, "precision": "fp32", "threads": 1}
    train("nt", "digits", settings=settings, results_dir=folder, **named)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def results(digits_results: Path, tmp_path: Path) -> Path:
    """A copy of `digits_results` that a test may write to."""
    return Path(shutil.copytree(digits_results, tmp_path / "results"))


@pytest.fixture
def run_id(digits_results: Path) -> str:
    """The id of the run in `digits_results`."""
    (folder,) = (digits_results / "runs").iterdir()
    return folder.name
