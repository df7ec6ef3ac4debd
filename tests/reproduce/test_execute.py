"""Running plans: order, failures, interruption, child processes that are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from robustbench_defenses.core.errors import Interrupted, UserError
from robustbench_defenses.reproduce import execute as executing
from robustbench_defenses.reproduce.execute import Outcome, execute
from robustbench_defenses.reproduce.jobs import Job, Place, Training


def _job(name: str, *needs: str) -> Job:
    return Job(name, needs, training=Training("nt", "digits", None, "smoke"))


def _place(folder: Path) -> Place:
    return Place(results_dir=folder)


def test_jobs_run_in_order_and_a_failure_stops_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def run(job: Job, place: Place, progress: object) -> dict[str, str]:
        if job.name == "bad":
            raise UserError("no such thing", hint="look")
        if job.name == "worse":
            raise ZeroDivisionError("by zero")
        done.append(job.name)
        return {"run": job.name}

    monkeypatch.setattr(executing, "run", run)
    jobs = [_job("a"), _job("bad"), _job("worse"), _job("b", "a"), _job("c", "bad"),
            _job("d", "c")]  # fmt: skip
    told: list[str] = []
    outcomes = execute(
        jobs, _place(tmp_path), told=lambda outcome, *_: told.append(outcome.job.name)
    )
    assert done == ["a", "b"]
    assert told == [job.name for job in jobs]
    states = {name: outcome.state for name, outcome in outcomes.items()}
    assert states == {
        "a": "done", "b": "done", "bad": "failed", "worse": "failed",
        "c": "not_run", "d": "not_run",
    }  # fmt: skip
    assert outcomes["bad"].sentence == "no such thing (look)"
    assert outcomes["c"].sentence == "not run because bad did not finish"
    log = outcomes["worse"].log
    assert log is not None
    assert "ZeroDivisionError" in log.read_text()


def test_an_interruption_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(job: Job, place: Place, progress: object) -> dict[str, str]:
        raise Interrupted("stopped")

    monkeypatch.setattr(executing, "run", run)
    with pytest.raises(Interrupted):
        execute([_job("a")], _place(tmp_path))


# A child process of a test: what its job's name says.
CHILD = """
import json, os, pathlib, signal, sys, time
message = json.loads(sys.stdin.read())
folder = pathlib.Path(message["place"]["results_dir"])
name = message["job"]["name"]
tries = folder / f"{name}.tries"
with open(tries, "a") as handle:
    handle.write("x")
if name.startswith("killed-once") and len(tries.read_text()) == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if name.startswith("poison"):
    os.kill(os.getpid(), signal.SIGKILL)
if name.startswith("bad"):
    print("the sentence", file=sys.stderr)
    sys.exit(2)
if name.startswith("slow"):
    time.sleep(60)
(folder / f"{name}.threads").write_text(os.environ["OMP_NUM_THREADS"])
print(json.dumps({"run": name}))
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    original = executing.subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        return original([command[0], str(script)], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(executing.subprocess, "Popen", popen)
    return tmp_path


def test_children_retry_what_was_killed_and_nothing_else(child: Path) -> None:
    jobs = [_job("a"), _job("killed-once"), _job("bad"), _job("poison"), _job("b", "killed-once"),
            _job("c", "poison")]  # fmt: skip
    outcomes = execute(jobs, _place(child), workers=2)
    states = {name: outcome.state for name, outcome in outcomes.items()}
    assert states == {
        "a": "done", "killed-once": "done", "bad": "failed", "poison": "failed", "b": "done",
        "c": "not_run",
    }  # fmt: skip
    assert outcomes["a"].made == {"run": "a"}
    assert outcomes["bad"].sentence == "the sentence"
    assert "signal 9" in outcomes["poison"].sentence
    tries = {name: len((child / f"{name}.tries").read_text()) for name in states if name != "c"}
    assert tries == {"a": 1, "killed-once": 2, "bad": 1, "poison": 3, "b": 1}
    assert (child / "a.threads").read_text() == str(max(1, (os.cpu_count() or 1) // 2))


def test_ctrl_c_stops_the_children(child: Path) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not (child / "slow.tries").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        execute([_job("slow"), _job("slow-2")], _place(child), workers=2)


def test_at_least_one_worker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--jobs 0"):
        execute([], _place(tmp_path), workers=0)


def test_an_outcome_says_what_it_made() -> None:
    assert Outcome(_job("a"), "done", {"run": "x"}).made == {"run": "x"}
