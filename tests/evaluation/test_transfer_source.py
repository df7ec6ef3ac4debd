"""A transfer's source is asked as it is deployed, in evaluation mode, and left as it was."""

from __future__ import annotations

from pathlib import Path

import robustbench_defenses as rrd

NETWORKS = '''
import torch
from torch import nn


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(32, 10),
        )


def subject():
    return network(1).eval()


def source():
    """Fresh from a factory, a module is in training mode."""
    made = network(0)
    made.register_forward_hook(lambda module, given, found: check(module))
    return made


def evaluated():
    return network(0).eval()


def check(module):
    assert not module.training
    assert module[2].num_batches_tracked == 0
'''


def test_a_source_in_training_mode_is_asked_in_evaluation_mode(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(NETWORKS)
    found = [
        rrd.evaluate(
            f"{file}:subject", "pgd", dataset="digits", eps=0.1, n=40, source=f"{file}:{name}",
            settings={"steps": 3}, results=tmp_path / name,
        ).curve
        for name in ("source", "evaluated")
    ]  # fmt: skip
    assert found[0] == found[1]
