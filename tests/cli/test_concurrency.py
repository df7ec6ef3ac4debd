"""Processes that write into one results folder at once lose nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from robustbench_defenses.evaluation import store

from . import subjects
from .children import environment

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "result.schema.json").read_text())
COMMON = ["--dataset", "npz:set.npz", "--threads", "1", "--precision", "fp32", "--eps", "0.005"]
COMMON += ["-n", "all", "--results", "results"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(subjects.GOOD)
    np.savez(tmp_path / "set.npz", **subjects.images(2100))  # type: ignore[arg-type]
    return tmp_path


def whole(place: Path) -> dict[str, store.StoredResult]:
    """Every result by its attack: readable, valid by the published schema, with its record."""
    damaged: list[str] = []
    found = store.all_results(place / "results", damaged.append)
    assert damaged == []
    for one in found:
        jsonschema.validate(json.loads(one.path.read_text()), SCHEMA)
        record = one.record()
        assert len(record) == one.result.n == 2100
        standing = (record.distance > 0.005 * (1 + 1e-6) + 1e-7).mean()
        assert one.result.curve[-1].robust_accuracy == pytest.approx(float(standing))
    left = [
        path.name for path in (place / "results").rglob("*") if path.suffix in (".part", ".tmp")
    ]
    assert left == []
    names = [one.result.attack.name for one in found]
    assert len(set(names)) == len(names)
    return {one.result.attack.name: one for one in found}


@pytest.mark.slow
def test_two_commands_at_once(place: Path) -> None:
    """Two questions each, one of them the same."""
    command = [sys.executable, "-m", "robustbench_defenses", "eval", "net.py:build", *COMMON]
    running = [
        subprocess.Popen(
            [*command, "--attack", attacks, "--json"],
            cwd=place,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for attacks in ("fgsm,mim", "mim,bim")
    ]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    found = whole(place)
    assert set(found) == {"fgsm_linf", "mim_linf", "bim_linf"}
    for out, _ in said:
        for document in json.loads(out)["results"]:
            stored = found[document["attack"]["name"]].result
            assert document["curve"] == stored.to_json()["curve"]


@pytest.mark.slow
def test_many_processes_with_the_same_questions(place: Path) -> None:
    """Each asks afresh: they keep blocks in one folder and clear it under each other."""
    one = ["eval", "net.py:build", *COMMON, "--attack", "fgsm,bim", "--fresh"]
    commands = [part for _ in range(5) for part in ["--", *one]]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.children", "together", *commands],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
    )
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(end["signal"], end["code"]) for end in ends] == [(0, 0)] * 5, done.stderr
    assert set(whole(place)) == {"fgsm_linf", "bim_linf"}
