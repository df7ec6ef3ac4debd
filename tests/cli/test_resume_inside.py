"""A long attack on one block: killed in the middle it goes on from its last snapshot."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_defenses.cli.main import main
from robustbench_defenses.evaluation import blocks

from . import subjects
from .test_resume import killed, same

COUNT = 300
COMMON = ["eval", "net.py:build", "--dataset", "npz:set.npz", "--threads", "1", "--set", "steps=6"]
PGD = [*COMMON, "--attack", "pgd", "--eps", "0.002,0.005,0.01", "--set", "restarts=2"]
CASCADE = [*COMMON, "--attack", "autoattack", "--eps", "0.004", "--set", "n_queries=30"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inside")
    (folder / "net.py").write_text(subjects.GOOD)
    np.savez(folder / "set.npz", **subjects.images(COUNT))  # type: ignore[arg-type]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [PGD, CASCADE], ids=["pgd", "autoattack"])
def test_killed_inside_a_block(arguments: list[str], place: Path) -> None:
    name = arguments[arguments.index("--attack") + 1]
    named: dict[str, Any] = {"arguments": arguments, "SNAPSHOTS": "always"}
    (whole,) = killed(place, f"{name}-whole:", **named)[f"{name}-whole"]
    events: list[str] = whole["events"]
    snapshots = [at for at, event in enumerate(events) if event == "after 0.safetensors"]
    assert len(snapshots) > 10
    moments = random.Random(1).sample(range(snapshots[0] + 2, len(events)), 3)
    kept = snapshots[len(snapshots) // 2]
    plans = [f"{name}-{moment}:{moment}" for moment in moments]
    plans += [f"{name}-again:{snapshots[4]},9,{snapshots[3]},12", f"{name}-kept:{kept + 1}"]
    for folder, ends in killed(place, *plans, **named).items():
        assert [end["signal"] for end in ends] == [signal.SIGKILL] * (len(ends) - 1) + [0]
        assert ends[-1]["code"] == 0
        same(place / folder, place / f"{name}-whole")
        assert not list((place / folder).glob("evals/*/*.part"))
    # Killed just after a snapshot was kept: only the questions after it are asked again.
    left = events[kept:].count("question")
    assert 0 < left < 0.7 * events.count("question")
    assert ends[-1]["events"].count("question") == left


@pytest.fixture
def small(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the network and the images, for commands in this process."""
    for name in ("net.py", "set.npz"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RRD_RESULTS", raising=False)
    monkeypatch.setattr(blocks, "KEEP_EVERY", 0.0)
    return tmp_path


def test_a_time_limit_keeps_what_is_done(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step a call: many calls end in the result of one, and none shows a wrong number."""
    assert main([*CASCADE, "--results", "whole", "--quiet"]) == 0
    limited = [*CASCADE, "--results", "cut", "--time-limit", "1e-9"]
    capsys.readouterr()
    shares, code = [], 1
    while code == 1:
        code = main([*limited, "--json"])
        said = capsys.readouterr()
        document = json.loads(said.out)
        if code == 1:
            assert document["results"] == []
            (cut,) = document["unfinished"]
            assert (cut["attack"], cut["subject"]) == ("autoattack_linf", "net.py:build")
            shares.append(cut["share"])
            assert (
                "the time limit of 1e-09 min is over, on net.py:build autoattack_linf" in said.err
            )
            assert said.err.rstrip().endswith("the same command goes on")
            assert not list(small.glob("cut/evals/*/*.json"))
    assert code == 0
    assert list(document) == ["results"]
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert shares[-1] > 0.5
    same(small / "cut", small / "whole")
    assert not list(small.glob("cut/evals/*/*.part"))


def test_finished_attacks_are_shown_and_others_not_begun(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [*PGD[:-2], "--attack", "bim", "--results", "a"]
    assert main([*PGD[:-2], "--results", "a"]) == 0
    capsys.readouterr()
    # bim comes second in the list, pgd is there already.
    assert main([*two, "--time-limit", "1e-9"]) == 1
    said = capsys.readouterr()
    assert "pgd_linf" in said.out
    assert "bim_linf" not in said.out
    assert "bim_linf" in said.err
    assert main(["eval", *two[1:], "--attack", "mim", "--time-limit", "1e-9"]) == 1
    said = capsys.readouterr()
    assert "mim_linf not begun" in said.err
    assert main([*two, "--time-limit", "60"]) == 0
    assert "bim_linf" in capsys.readouterr().out


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_a_limit_that_is_none(
    minutes: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PGD, "--results", "a", "--time-limit", minutes]) == 2
    assert "minutes above 0 are needed" in capsys.readouterr().err
    assert not (small / "a").exists()


def test_a_damaged_snapshot_is_not_believed(small: Path) -> None:
    assert main([*CASCADE, "--results", "whole", "--quiet"]) == 0
    for name, damage in (
        ("cut", lambda data: data[: len(data) // 2]),
        ("empty", lambda data: b""),
        ("noise", lambda data: bytes(reversed(data))),
    ):
        arguments = [*CASCADE, "--results", name, "--quiet"]
        assert main([*arguments, "--time-limit", "1e-9"]) == 1
        (kept,) = small.glob(f"{name}/evals/*/*.part/0.safetensors")
        kept.write_bytes(damage(kept.read_bytes()))
        assert main(arguments) == 0
        same(small / name, small / "whole")


def test_a_snapshot_of_another_shape_is_not_believed(small: Path) -> None:
    """As an attack leaves it whose state has changed since."""
    import safetensors.torch

    assert main([*PGD, "--results", "whole", "--quiet"]) == 0
    arguments = [*PGD, "--results", "a", "--quiet"]
    assert main([*arguments, "--time-limit", "1e-9"]) == 1
    (kept,) = small.glob("a/evals/*/*.part/0.safetensors")
    state = safetensors.torch.load(kept.read_bytes())
    del state["state.points"]
    kept.write_bytes(safetensors.torch.save(state))
    assert main(arguments) == 0
    same(small / "a", small / "whole")


def test_fresh_begins_again(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = [*CASCADE, "--results", "a", "--time-limit", "1e-9"]
    for _ in range(4):
        assert main(limited) == 1
    shares = []
    for _ in range(2):
        capsys.readouterr()
        assert main([*limited, "--fresh", "--json"]) == 1
        said = capsys.readouterr()
        shares.append(json.loads(said.out)["unfinished"][0]["share"])
        assert "the same command begins them again, without --fresh it goes on" in said.err
    assert shares[0] == shares[1]
    assert main(limited) == 1


def test_seconds_add_up(small: Path) -> None:
    """What earlier processes have spent is part of the cost."""
    for _ in range(3):
        assert main([*CASCADE, "--results", "a", "--quiet", "--time-limit", "1e-9"]) == 1
    (kept,) = small.glob("a/evals/*/*.part")
    found = blocks.snapshot(kept, 0)
    assert found is not None
    _, spent, share = found
    assert spent > 0
    assert 0 < share < 1
    assert main([*CASCADE, "--results", "a", "--quiet"]) == 0
    (path,) = small.glob("a/evals/*/*.json")
    document = json.loads(path.read_text())
    assert document["cost"]["seconds"] > spent
