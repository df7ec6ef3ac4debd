"""Killed, stopped or interrupted: the same command ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_defenses.core.errors import Interrupted, UserError
from robustbench_defenses.core.progress import Silent
from robustbench_defenses.training import resume, trainer
from robustbench_defenses.training.runs import Run, load_run

from .conftest import small

REPOSITORY = Path(__file__).parents[2]
CLOCKS = ("seconds", "samples_per_second", "started", "finished", "command")


def killed(defense: str, plans: dict[Path, list[int]]) -> list[tuple[str, int]]:
    """Events and ending signal of each process of each results folder (see killed.py)."""
    texts = [f"{results}:{','.join(map(str, moments))}" for results, moments in plans.items()]
    output = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", defense, *texts],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [(line.split()[0], int(line.split()[1])) for line in output.splitlines()]


def content(run: Run) -> dict[str, bytes]:
    """The bytes of all weights files."""
    return {path.name: path.read_bytes() for path in (run.folder / "weights").iterdir()}


def lines(run: Run) -> list[dict[str, Any]]:
    """The log without its clocks."""
    text = (run.folder / "log.jsonl").read_text()
    read = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read]


def facts(run: Run) -> dict[str, Any]:
    said = json.loads((run.folder / "run.json").read_text())
    return {k: v for k, v in said.items() if k not in CLOCKS}


def same(run: Run, whole: Run) -> None:
    assert content(run) == content(whole)
    assert lines(run) == lines(whole)
    assert facts(run) == facts(whole)
    assert not (run.folder / "resume").exists()


@pytest.mark.parametrize("defense", ["nt", "pgd_at", "aicr"])
def test_sigkill_at_random_moments(defense: str, tmp_path: Path) -> None:
    often = [9, 8, 7, 12, 11, 10]
    whole, *others = (tmp_path / name for name in ("whole", "often", "a", "b", "c", "d", "e"))
    first = random.Random(defense).sample(range(1, 30), 5)
    plans = {whole: [], others[0]: often, **{path: [m] for path, m in zip(others[1:], first)}}
    endings = killed(defense, plans)
    assert int(endings[0][0]) > 30
    expected = [0] + [signal.SIGKILL] * len(often) + [0] + [signal.SIGKILL, 0] * 5
    assert [ended for _, ended in endings] == expected
    for results in others:
        same(load_run("last", results), load_run("last", whole))


class StopAt(Silent):
    """Presses Ctrl-C after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def update(self, done: int, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("steps", [1, 4, 6, 8])
def test_ctrl_c_saves_and_says_how_to_go_on(steps: int, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="the same command goes on"):
        small(tmp_path / "a", progress=StopAt(steps))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    (folder,) = (tmp_path / "a" / "runs").iterdir()
    assert load_run(folder, unfinished=True).info.status == "unfinished"
    found = resume.load(folder)
    assert found is not None
    assert found[0].steps == steps
    same(small(tmp_path / "a"), small(tmp_path / "b"))


def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    class Twice(Silent):
        def update(self, done: int, note: str = "") -> None:
            if done == 6:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, progress=Twice())
    (folder,) = (tmp_path / "runs").iterdir()
    found = resume.load(folder)
    assert found is not None
    assert found[0].steps == 4  # what the end of the first epoch had saved


def test_a_state_that_cannot_be_read_is_refused_until_fresh(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        small(tmp_path, progress=StopAt(6))
    (folder,) = (tmp_path / "runs").iterdir()
    path = resume.path_of(folder)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        small(tmp_path)
    assert small(tmp_path, fresh=True).finished


def test_other_data_under_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        small(tmp_path, progress=StopAt(6))
    (path,) = (tmp_path / "runs").glob("*/run.json")
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "data_digest": "0" * 64}))
    with pytest.raises(UserError, match="began with other data"):
        small(tmp_path)


def test_moments_lie_in_memory_as_their_weights_do(tmp_path: Path) -> None:
    run = small(tmp_path, "pgd_at")
    network = torch.nn.Conv2d(2, 3, 5).to(memory_format=torch.channels_last)
    from robustbench_defenses.defenses.base import TrainSettings, optimiser

    made = optimiser(network.parameters(), TrainSettings())
    network(torch.rand(1, 2, 8, 8)).sum().backward()
    made.stepper.step()
    resume.save(run.folder, resume.Standing(), {"network": network}, (made,))
    found = resume.load(run.folder)
    assert found is not None
    again = optimiser(network.parameters(), TrainSettings())
    resume.fill_optimisers((again,), found[1])
    state, copy = made.stepper.state[network.weight], again.stepper.state[network.weight]
    assert set(copy) == set(state) == {"step", "exp_avg", "exp_avg_sq"}
    for name, value in state.items():
        assert torch.equal(copy[name], value)
        assert copy[name].stride() == value.stride()


def test_two_processes_train_one_run_once(tmp_path: Path) -> None:
    inside = threading.Event()
    order: list[str] = []

    class Watch(Silent):
        def start(self, task: str, total: int) -> None:
            order.append(task)

    def second() -> None:
        inside.wait()
        small(tmp_path, progress=Watch())

    class First(Silent):
        def update(self, done: int, note: str = "") -> None:
            inside.set()

    thread = threading.Thread(target=second)
    thread.start()
    run = small(tmp_path, progress=First())
    thread.join()
    # The second one waited (or came when all was done) and trained nothing.
    assert set(order) <= {"wait for another process that trains this run"}
    assert run.finished


def test_the_lock_is_exclusive(tmp_path: Path) -> None:
    waited = threading.Event()

    class Watch(Silent):
        def start(self, task: str, total: int) -> None:
            waited.set()

    def second() -> None:
        with resume.alone(tmp_path / "run", Watch()):
            pass

    with resume.alone(tmp_path / "run", Silent()):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(30)
        assert thread.is_alive()
    thread.join(30)
    assert not thread.is_alive()


def test_saving_inside_an_epoch_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small(tmp_path / "a")
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    same(small(tmp_path / "b"), plain)
