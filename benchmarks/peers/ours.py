"""Our side: verdict runs of the engine, the passes that they make, and what bare passes cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.core import registry
from robustbench_defenses.core.view import Logits, View
from robustbench_defenses.engine.ensemble import search_for
from robustbench_defenses.engine.search import Block
from robustbench_defenses.engine.twin import search_twin

BLOCK = 1000
BARE_BATCH = 256


@dataclass
class Meter:
    """A network that counts the images it sees, forward and backward."""

    network: Logits
    forward: int = 0
    backward: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        self.forward += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


@dataclass(frozen=True)
class Passes:
    """Images through one network: forward and backward."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Found:
    """What a verdict run found: `images` (N, C, H, W), the clean one where nothing was found;
    `distance` (N,) float64 as the engine says it; passes of the twin in bf16 and in float32, and of
    the verdict."""

    images: Tensor
    distance: Tensor
    coarse: Passes
    fine: Passes
    verdict: Passes

    @property
    def forward(self) -> int:
        return self.coarse.forward + self.fine.forward + self.verdict.forward

    @property
    def backward(self) -> int:
        return self.coarse.backward + self.fine.backward


def missing(name: str) -> bool:
    """True where no attack of ours has this name."""
    return all(entry.name != name for entry in registry.entries("attack"))


def run(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, settings: dict[str, object],
    grid: tuple[float, ...], enough: float, precision: str, seed: int,
) -> Found:  # fmt: skip
    """A verdict run of the attack `name` as an evaluation makes it: twin, blocks, verdicts.

    `grid`: rising budgets; `enough`: a distance that suffices (minimum-norm attacks, else 0).
    """
    attack = registry.find("attack", name).create(**settings)
    twin = search_twin(View("benchmark", model), images, precision)
    coarse, deployed = Meter(twin.coarse), Meter(model)
    fine = Meter(twin.fine) if twin.autocast else coarse
    metered = replace(twin, coarse=coarse, fine=fine)
    points, lengths = [], []
    for start in range(0, len(images), BLOCK):
        part = slice(start, start + BLOCK)
        x, y = images[part], labels[part]
        numbers = torch.arange(start, start + len(y))
        out = search_for(
            attack, enough, twin=metered, deployed=deployed, seed=seed, attack_name=name,
            block=Block(x, y, torch.full_like(y, -1), numbers, grid), keep_points=True,
        ).run()  # fmt: skip
        found = torch.isfinite(out.distance).view(-1, 1, 1, 1)
        points.append(torch.where(found, out.points, x))
        lengths.append(out.distance)
    return Found(
        torch.cat(points),
        torch.cat(lengths),
        Passes(coarse.forward, coarse.backward),
        Passes() if fine is coarse else Passes(fine.forward, fine.backward),
        Passes(deployed.forward),
    )


@dataclass(frozen=True)
class Bare:
    """CPU seconds per image of a forward and of a backward pass, alone, at a full batch."""

    forward: float
    backward: float


class BareCost:
    """What the passes of a run would have cost without anything around them."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
        self.twin = search_twin(View("benchmark", model), images, precision)
        self.model = model
        count = BARE_BATCH if _seconds(lambda: self.twin(images[:16])) < 0.02 else 64
        rounds = -(-count // len(images))
        self.images = images.repeat(rounds, 1, 1, 1)[:count]
        self.labels = labels.repeat(rounds)[:count]

    def seconds(self, found: Found) -> float:
        """The bare cost, measured now, of the passes of `found`."""
        total = 0.0
        for passes, network in (
            (found.coarse, lambda x: self.twin(x)),
            (found.fine, lambda x: self.twin(x, True)),
            (found.verdict, self.model),
        ):
            if passes.forward:
                bare = self._measured(network, passes.backward > 0)
                total += passes.forward * bare.forward + passes.backward * bare.backward
        return total

    def _measured(self, network: Logits, gradient: bool) -> Bare:
        def forward() -> None:
            with torch.no_grad():
                network(self.images)

        def both() -> None:
            points = self.images.clone().requires_grad_()
            loss = F.cross_entropy(network(points), self.labels, reduction="sum")
            torch.autograd.grad(loss, points)

        count = len(self.images)
        alone = _least(forward) / count
        return Bare(alone, max(_least(both) / count - alone, 0.0) if gradient else 0.0)


def _seconds(task: Callable[[], object]) -> float:
    begun = time.process_time()
    task()
    return time.process_time() - begun


def _least(task: Callable[[], object], most: int = 8, budget: float = 2.0) -> float:
    """The least CPU seconds of a few calls, after one that warms up."""
    _seconds(task)
    best, spent = float("inf"), 0.0
    for _ in range(most):
        took = _seconds(task)
        best, spent = min(best, took), spent + took
        if spent > budget:
            break
    return best
