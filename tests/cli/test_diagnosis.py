"""`rrd eval --diagnose` and `rrd info` of a diagnostic, as a user runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robustbench_defenses.cli.main import main

NETS = """
import torch
import robustbench_defenses as rrd


class Sharp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = rrd.load("last")

    def forward(self, images):
        return 1e4 * self.net(images)
"""


@pytest.fixture(autouse=True)
def folder(results: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(results.parent)
    monkeypatch.delenv("RRD_RESULTS", raising=False)
    (results.parent / "nets.py").write_text(NETS)
    return results.parent


def ask(*arguments: str) -> int:
    given = ["--attack", "pgd", "--eps", "0.05", "-n", "30", "--threads", "1", "--diagnose"]
    return main(["eval", *arguments, *given])


@pytest.mark.slow
def test_an_error_is_told_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("nets.py:Sharp", "--dataset", "digits") == 1
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 100
    head, _, rest = said.partition("Is this robustness real?")
    assert "pgd_linf" in head
    assert re.search(r"ERROR +logit scale +pgd on rescaled logits: .* threshold", rest)
    assert re.search(r"ok +\d+ other checks", rest)
    flat = " ".join(rest.split())
    assert "No, its gradients are masked: its logits are so large" in flat
    assert "at most" in flat


@pytest.mark.slow
def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    code = ask("last", "--json")
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"results", "diagnoses"}
    (one,) = document["diagnoses"]
    assert code == (1 if one["summary"]["errors"] else 0)
    assert len(one["checks"]) == 32
    assert one["n"] == 30
    assert one["worst_case"] <= one["robust_accuracy"]
    (result,) = document["results"]
    assert set(result["summary"]) == {"errors", "warnings"}


def test_the_card_of_a_diagnostic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "zero_gradient"]) == 0
    said = capsys.readouterr().out
    for part in ("zero gradient", "diagnostic D6", "what to do", "loss=margin", "error > 1 %"):
        assert part in said
    assert main(["info", "D6", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["id"], document["unit"]) == ("diagnostic", "D6", "%")
    assert document["levels"] == {"warning": 0.0, "error": 0.01}


def test_an_unknown_name_stays_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "zero_gravity"]) == 2
    assert "nothing is called 'zero_gravity'" in capsys.readouterr().err
