"""Golden records: numbers that move without a new `version` in the attack's CARD fail here.

A result's key holds the card's version, so an old stored answer may only be taken for a new one
when the numbers are the same. Every registered attack is asked once, at a small budget, in float32
on one thread, about a fixed network; the breaking distances stand in `golden/<attack>.json`.

`python -m tests.evaluation.test_golden [ATTACK...]` writes them anew.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core import registry
from robustbench_defenses.core.files import write_text
from robustbench_defenses.core.view import View
from robustbench_defenses.data.source import load
from robustbench_defenses.engine.ensemble import search_for
from robustbench_defenses.engine.search import Block
from robustbench_defenses.engine.twin import search_twin
from robustbench_defenses.evaluation.question import named

GOLDEN = Path(__file__).parent / "golden"
COMMAND = "python -m tests.evaluation.test_golden"
EPS = {
    "linf": (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12),
    "l2": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6),
    "l1": (0.1, 0.3, 0.6, 1.0, 1.5, 2.5),
}
# The largest budget of work; parameters that an attack has not are left out.
FEW = {"steps": 12, "n_queries": 60, "search_steps": 3, "targets": 3}
COUNT = 16


class Net(nn.Module):
    """A small smooth network whose weights are numbers of a fixed generator."""

    def __init__(self) -> None:
        super().__init__()
        draw = np.random.default_rng(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Linear(64, 10)
        with torch.no_grad():
            for weight in self.parameters():
                fan = weight[0].numel() if weight.dim() > 1 else 4
                weight.copy_(torch.from_numpy(draw.normal(0, fan**-0.5, tuple(weight.shape))))
            self.last.weight.mul_(4)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.tanh(nn.functional.avg_pool2d(self.first(images), 2))
        logits: Tensor = self.last(features.flatten(1))
        return logits


def attacks() -> list[str]:
    """Every registered attack under its full name, each once."""
    return list(dict.fromkeys(named(entry.name, None).name for entry in registry.entries("attack")))


@cache
def block(norm: str, every: int) -> Block:
    """Digits, labelled by what the network says of them; the first two labels are wrong."""
    images = load("digits", "test").images[:COUNT]
    with torch.no_grad():
        labels = Net()(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    nobody = torch.full_like(labels, -1)
    return Block(images, labels, nobody, torch.arange(COUNT), EPS[norm][::-every][::-1])


def measured(name: str, **settings: int) -> dict[str, Any]:
    """What a golden file holds: the question and the breaking distance of every example."""
    entry = registry.find("attack", name)
    defaults = entry.defaults()
    few = {key: most for key, most in FEW.items() if (defaults.get(key) or 0) > most}
    attack = entry.create(**few, **settings)
    # An ensemble runs all its members at every budget, and each has a golden record of its own.
    examples, network = block(attack.norm, 3 if hasattr(attack, "members") else 1), Net()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        twin = search_twin(View("deployed", network), examples.images, "fp32")
        search = search_for(
            attack, twin=twin, deployed=network, block=examples, attack_name=entry.name
        )
        found = search.run().distance.tolist()
    finally:
        torch.set_num_threads(threads)
    return {
        "attack": name,
        "version": entry.version,
        "settings": few,
        "eps": list(examples.grid),
        "distance": [round(d, 8) if np.isfinite(d) else None for d in found],
    }


def moved(golden: dict[str, Any], now: dict[str, Any]) -> list[int]:
    """Examples whose distance is another one, by more than rounding."""
    pairs = zip(golden["distance"], now["distance"], strict=True)
    infinite = [(np.inf if a is None else a, np.inf if b is None else b) for a, b in pairs]
    return [i for i, (a, b) in enumerate(infinite) if not (a == b or abs(a - b) <= 1e-5)]


@pytest.mark.parametrize("name", attacks())
def test_numbers_move_only_with_a_new_version(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"a new attack, without a golden record yet: {COMMAND} {name}")
    golden, now = json.loads(path.read_text()), measured(name)
    assert golden["version"] == now["version"], f"a new version: {COMMAND} {name}"
    same = {key: golden[key] == now[key] for key in ("settings", "eps")}
    assert all(same.values()), f"the golden question has changed: {COMMAND} {name}"
    assert moved(golden, now) == [], (
        f"the numbers of {name} have moved: raise the version in its CARD, then {COMMAND} {name}"
    )


def test_every_golden_record_belongs_to_an_attack() -> None:
    recorded = {path.stem for path in GOLDEN.glob("*.json")}
    assert recorded <= set(attacks())
    assert len(recorded) > 0.8 * len(attacks())


def test_golden_records_tell_attacks_apart() -> None:
    """They hold clean errors, examples that fall and, over all attacks, examples that stand."""
    found = [json.loads(path.read_text())["distance"] for path in GOLDEN.glob("*.json")]
    assert all(distance[:2] == [0.0, 0.0] for distance in found)
    assert sum(any(d for d in distance if d) for distance in found) > 0.8 * len(found)
    assert any(None in distance for distance in found)
    assert len({json.dumps(distance) for distance in found}) > 0.8 * len(found)


def test_a_small_change_is_seen() -> None:
    """One restart more of one attack moves its numbers: the tolerance is not too wide."""
    golden = json.loads((GOLDEN / "pgd_l2.json").read_text())
    assert moved(golden, measured("pgd_l2")) == []
    assert moved(golden, measured("pgd_l2", restarts=2))


def main(names: list[str]) -> None:
    """Write the golden records of these attacks, or of all."""
    for name in names or attacks():
        now, path = measured(name), GOLDEN / f"{name}.json"
        old = json.loads(path.read_text()) if path.is_file() else None
        if old is not None and old["version"] == now["version"] and moved(old, now):
            print(f"{name}: moved at the same version {now['version']}; raise it in the CARD")
        write_text(path, json.dumps(now) + "\n")
    if not names:
        for path in GOLDEN.glob("*.json"):
            if path.stem not in attacks():
                path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
