"""An evaluation that is stopped at any moment goes on with the same command, to equal results."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_defenses.cli.main import main
from robustbench_defenses.core.errors import Interrupted
from robustbench_defenses.engine.search import Search
from robustbench_defenses.evaluation.record import Record
from robustbench_defenses.evaluation.schema import parse_result

from . import subjects
from .children import environment

COUNT = 2400  # three blocks
EVAL = ["eval", "net.py:build", "--dataset", "npz:set.npz", "-n", "all", "--attack", "pgd"]
EVAL += ["--eps", "0.002,0.005,0.01", "--set", "steps=4", "--threads", "1", "--precision", "fp32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "net.py").write_text(subjects.GOOD)
    np.savez(folder / "set.npz", **subjects.images(COUNT))  # type: ignore[arg-type]
    return folder


def killed(
    place: Path, *plans: str, arguments: list[str] = EVAL, **more: str
) -> dict[str, list[dict[str, Any]]]:
    """For each plan `RESULTS:MOMENT,...` the command, killed at the moments, then left alone."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.children", "kill", *plans, "--", *arguments],
        cwd=place,
        env=environment(**more),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    names = [plan.partition(":")[0] for plan in plans]
    return {name: [end for end in ends if end["results"] == name] for name in names}


def answer(results: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The stored result without what tells when and where it was made, and its record."""
    (path,) = results.glob("evals/*/*.json")
    document = json.loads(path.read_text())
    parse_result(document, str(path))
    del document["environment"]
    for measured in ("seconds", "peak_memory_mb"):
        del document["cost"][measured]
    for member in document["members"] or []:
        del member["seconds"]
    with np.load(path.with_suffix(".npz")) as archive:
        return document, {name: archive[name] for name in archive.files}


def same(one: Path, other: Path) -> None:
    (document, record), (expected, wanted) = answer(one), answer(other)
    assert document == expected
    assert set(record) == set(wanted)
    for name in record:
        np.testing.assert_array_equal(record[name], wanted[name])


@pytest.fixture(scope="module")
def events(place: Path) -> list[str]:
    """What happens in an undisturbed evaluation, whose result lies in `whole`."""
    (ended,) = killed(place, "whole:")["whole"]
    assert ended["code"] == 0
    found: list[str] = ended["events"]
    return found


@pytest.mark.slow
def test_killed_at_any_moment_the_result_is_equal(place: Path, events: list[str]) -> None:
    blocks = [events.index(f"after {start}.npz") + 1 for start in (0, 1000, 2000)]
    assert 5 < blocks[0] < blocks[1] < blocks[2] < len(events)
    moments = random.Random(0).sample(range(1, len(events) + 1), 5)
    # Between the renames of the record and of the result; and again and again.
    plans = [f"at-{moment}:{moment}" for moment in [*moments, len(events) - 1]]
    plans.append(f"again:{blocks[1] - 2},5,7,3")
    for name, ends in killed(place, *plans, f"kept:{blocks[1]}").items():
        assert [end["signal"] for end in ends] == [signal.SIGKILL] * (len(ends) - 1) + [0]
        assert ends[-1]["code"] == 0
        same(place / name, place / "whole")
        assert not list((place / name).glob("evals/*/*.part"))
        if name == "kept":
            # Killed just after the second block was kept: the third one's questions are left.
            left = events[blocks[1] :].count("question")
            assert 0 < left < 0.5 * events.count("question")
            assert ends[-1]["events"].count("question") == left
            assert "before 0.npz" not in ends[-1]["events"]


@pytest.mark.slow
def test_ctrl_c_of_the_real_command(place: Path, events: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "robustbench_defenses", *EVAL, "--results", "stopped"],
        cwd=place,
        env=environment(SLOW="0.03"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(place.glob("stopped/evals/*/*.part/0.npz")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate()
    assert process.returncode == 130, said
    assert out == ""
    assert "Traceback" not in said
    *_, last = said.splitlines()
    assert last.startswith("interrupted: pgd_linf on net.py:build, ")
    assert last.endswith("% of the work is kept; the same command goes on")
    kept = float(last.split("build, ")[1].split(" %")[0]) / 100
    assert kept > 0.4  # more than the first of three blocks
    (again,) = killed(place, "stopped:")["stopped"]
    left = again["events"].count("question") / events.count("question")
    assert left == pytest.approx(1 - kept, abs=0.1)
    same(place / "stopped", place / "whole")


def steps_and_stop(at: int, presses: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ctrl-C `presses` times in the step of this number; returns how many steps were made."""
    step, made = Search._step, [0]

    def pressed(self: Search, *given: Any) -> Any:
        made[0] += 1
        for _ in range(presses if made[0] == at else 0):
            signal.raise_signal(signal.SIGINT)
        return step(self, *given)

    monkeypatch.setattr(Search, "_step", pressed)
    return made


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_keeps_every_step_and_twice_stops_at_once(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], presses: int
) -> None:
    one = [*EVAL, "-n", "500", "--batch-size", "100"]
    with monkeypatch.context() as patch:
        made = steps_and_stop(0, 0, patch)
        assert main([*one, "--results", "whole"]) == 0
    whole = made[0]
    assert whole > 8
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for at in (1, whole // 2, whole):
        name = f"at-{at}"
        with monkeypatch.context() as patch:
            made = steps_and_stop(at, presses, patch)
            capsys.readouterr()
            assert main([*one, "--results", name]) == 130
        said = capsys.readouterr().err
        assert made == [at]
        if presses == 1:
            assert "of the work is kept; the same command goes on" in said
        else:
            assert "the same command begins it again" in said
        with monkeypatch.context() as patch:
            made = steps_and_stop(0, 0, patch)
            assert main([*one, "--results", name]) == 0
        assert made == [whole - at if presses == 1 else whole]
        same(small / name, small / "whole")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the network and 2,400 images, for commands in this process."""
    (tmp_path / "net.py").write_text(subjects.GOOD)
    np.savez(tmp_path / "set.npz", **subjects.images(COUNT))  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RRD_RESULTS", raising=False)
    return tmp_path


def stop_at(block: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ctrl-C when the block of this number begins; returns the list of blocks that began."""
    run, begun = Search.run, [0]

    def interrupted(self: Search) -> object:
        begun[0] += 1
        if begun[0] == block:
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Search, "run", interrupted)
    return begun


def test_a_damaged_block_is_done_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert main([*EVAL, "--results", "a"]) == 130
    blocks = sorted(small.glob("a/evals/*/*.part/*.npz"))
    assert [path.name for path in blocks] == ["0.npz", "1000.npz"]
    blocks[0].write_bytes(blocks[0].read_bytes()[:300])
    with np.load(blocks[1]) as archive:
        arrays = {name: archive[name][..., :500] for name in archive.files if archive[name].ndim}
    np.savez(blocks[1], **arrays)  # type: ignore[arg-type]
    begun = stop_at(0, monkeypatch)
    for name in ("a", "b"):
        assert main([*EVAL, "--results", name]) == 0
    assert begun == [6]  # three of each: neither damaged block was believed
    same(small / "a", small / "b")


def test_fresh_does_not_believe_kept_blocks(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert main([*EVAL, "--results", "a"]) == 130
    (block,) = small.glob("a/evals/*/*.part/0.npz")
    with np.load(block) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["distance"] = np.full(1000, np.inf)
    np.savez(block, **arrays)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        capsys.readouterr()
        assert main([*EVAL, "--results", "a", "--fresh"]) == 130
        assert "the same command begins it again" in capsys.readouterr().err
    assert main([*EVAL, "--results", "a", "--fresh"]) == 0
    (path,) = small.glob("a/evals/*/*.npz")
    assert not np.isinf(Record.load(path).distance[:1000]).all()


def test_small_questions_have_nothing_to_keep(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        assert main([*EVAL, "-n", "50", "--results", "a"]) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert "pgd_linf on net.py:build is not finished; the same command begins it again" in said.err
    assert not list(small.glob("a/**/*.*"))


def test_finished_attacks_are_kept(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        arguments = [*EVAL, "-n", "50", "--attack", "fgsm,mim", "--results", "a"]
        arguments = [part for part in arguments if part not in ("--set", "steps=4")]
        assert main(arguments) == 130
    (path,) = small.glob("a/evals/*/*.json")
    assert path.name.startswith("fgsm_linf-")


def test_the_python_function_says_it_too(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import robustbench_defenses as rrd

    stop_at(2, monkeypatch)
    with pytest.raises(Interrupted, match="1,000 of 2,400 examples are kept"):
        rrd.evaluate(
            "net.py:build", "fgsm", eps=0.01, dataset="npz:set.npz", n=-1, results="a", threads=1
        )
