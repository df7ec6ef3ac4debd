"""The comparison with peers: runs without any of them, and judges by itself what a library says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmark's modules, imported as its script imports them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import comparison
    import peers
    import subjects
    import tasks

    return SimpleNamespace(comparison=comparison, peers=peers, subjects=subjects, tasks=tasks)


@pytest.fixture
def asked(modules: SimpleNamespace) -> Any:
    """PGD at 0.1 on a linear network, which classifies all of 12 images correctly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    images = torch.rand(12, 1, 8, 8)
    labels = model(images).argmax(1)
    subject = modules.subjects.Subject("linear", "digits", model, images, labels, "fp32")
    task = modules.tasks.TASKS["pgd"]
    return modules.comparison.question("pgd", task, subject, 0.1, 5)


def peer(modules: SimpleNamespace, attack: Any) -> Any:
    return modules.peers.Peer("peer", "1", {"pgd": modules.peers.in_batches(attack)})


def judged(modules: SimpleNamespace, asked: Any, attack: Any) -> Any:
    made = modules.comparison.run_peer(asked, peer(modules, attack), 0)
    return modules.comparison.judge(asked, made)


def towards(model: nn.Module, images: Tensor, labels: Tensor, length: float) -> Tensor:
    """One step of the sign of the gradient."""
    points = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(points), labels, reduction="sum")
    return images + length * torch.autograd.grad(loss, points)[0].sign()


def test_only_images_within_the_rules_count(modules: SimpleNamespace, asked: Any) -> None:
    """An image too far, outside the box or with NaN is no success, whatever it is taken for."""

    def fair(model: nn.Module, images: Tensor, labels: Tensor, ask: Any) -> Tensor:
        return towards(model, images, labels, ask.eps).clamp(0, 1)

    def far(model: nn.Module, images: Tensor, labels: Tensor, ask: Any) -> Tensor:
        return towards(model, images, labels, 0.5).clamp(0, 1)

    def outside(model: nn.Module, images: Tensor, labels: Tensor, ask: Any) -> Tensor:
        return towards(model, images, labels, ask.eps) + 1

    def nothing(model: nn.Module, images: Tensor, labels: Tensor, ask: Any) -> Tensor:
        return images * math.nan

    assert judged(modules, asked, fair).broken.any()
    for attack in (far, outside, nothing):
        assert not judged(modules, asked, attack).broken.any()


def test_peer_is_asked_in_batches_and_counted(modules: SimpleNamespace, asked: Any) -> None:
    sizes = []

    def fair(model: nn.Module, images: Tensor, labels: Tensor, ask: Any) -> Tensor:
        sizes.append(len(images))
        return towards(model, images, labels, ask.eps).clamp(0, 1)

    made = modules.comparison.run_peer(asked, peer(modules, fair), 0)
    assert sizes == [5, 5, 2]
    assert (made.forward, made.backward) == (12, 12)


def test_every_claim_of_ours_is_confirmed(modules: SimpleNamespace, asked: Any) -> None:
    made = modules.comparison.run_ours(asked, 0)
    verdict = modules.comparison.judge(asked, made)
    facts = modules.comparison.summary(asked, made, verdict)
    assert verdict.broken.any()
    assert facts["unconfirmed"] == [0]
    claimed = (made.found.distance <= 0.1 + 1e-6) | ~verdict.right
    assert torch.equal(claimed, verdict.broken[0])
    counted = facts["passes"]
    total = sum(counted[name]["forward"] for name in ("coarse", "fine", "verdict"))
    assert facts["forward_per_image"] == total / 12


def test_a_weaker_attack_is_told(modules: SimpleNamespace, asked: Any) -> None:
    """Beside a peer that breaks one image of twelve more, ours is the weaker one."""
    right = torch.ones(12, dtype=torch.bool)
    fewer, more = torch.zeros(1, 12, dtype=torch.bool), torch.zeros(1, 12, dtype=torch.bool)
    more[0, 3] = True
    length = torch.full((12,), torch.inf, dtype=torch.float64)
    mine = modules.comparison.Verdict(fewer, length, right)
    theirs = modules.comparison.Verdict(more, length, right)
    beside = modules.comparison.against(asked, mine, theirs)
    assert beside["only_peer_breaks"] == [1]
    assert beside["excess"] == pytest.approx(1 / 12)
    assert modules.comparison.against(asked, theirs, mine)["excess"] < 0


def test_strength_is_measured_beside_the_reference_alone(
    modules: SimpleNamespace, asked: Any
) -> None:
    """Speed pairs every peer with a run of ours; strength runs ours once, beside one library."""

    def fair(model: nn.Module, images: Tensor, labels: Tensor, ask: Any) -> Tensor:
        return towards(model, images, labels, ask.eps).clamp(0, 1)

    attacks = {"pgd": modules.peers.in_batches(fair)}
    able = [modules.peers.Peer(name, "1", attacks) for name in ("torchattacks", "foolbox")]
    speed = modules.comparison.compare(asked, able, 2)
    strength = modules.comparison.compare(asked, able, 2, "strength")
    assert (len(speed["ours"]["runs"]), list(speed["peers"])) == (4, ["torchattacks", "foolbox"])
    assert (len(strength["ours"]["runs"]), list(strength["peers"])) == (2, ["foolbox"])
    assert "median_over_bare" in speed["ours"]
    assert "median_over_bare" not in strength["ours"]


def test_every_task_fits_our_attack(modules: SimpleNamespace) -> None:
    from robustbench_defenses.core import registry

    for task in modules.tasks.TASKS.values():
        for dataset, budgets in modules.tasks.EPS.items():
            settings = task.ours_settings(dataset, budgets["linf"])
            registry.find("attack", task.ours).create(**settings)


@pytest.mark.slow
def test_script_runs_without_peers(tmp_path: Path) -> None:
    """A task with a budget, a sweep, one of the nearest point, and the growth of the cost."""
    (tmp_path / "net.py").write_text(NETWORK)
    out = tmp_path / "out.json"
    tasks = ["pgd", "sweep", "ddn", "scaling"]
    options = ["--network", f"{tmp_path}/net.py:build", "--dataset", "digits", "-n", "16"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "attacks.py"), *tasks, *options, "--predicted-labels",
         "--peers", "none", "--repeats", "1", "--threads", "1", "--json", str(out)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [task["task"] for task in found["tasks"]] == tasks[:3]
    assert all(task["ours"]["median_over_bare"] > 0 for task in found["tasks"])
    curve = found["tasks"][1]["ours"]["runs"][0]["robust_accuracy"]
    assert curve == sorted(curve, reverse=True)
    assert found["tasks"][2]["ours"]["runs"][0]["success"] == 1
    assert [row["points"] for row in found["scaling"]] == [8, 16, 32]
