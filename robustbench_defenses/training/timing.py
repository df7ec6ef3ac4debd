"""How long a training will take, from a few timed steps of each of its phases."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from ..core.device import Machine
from ..core.layout import any_layout
from ..data.source import describe, load, take
from ..defenses.base import Defense
from .assemble import make_defense
from .question import Question
from .train import Ready, prepare
from .trainer import batch_of, own_randomness, step

TIMED_STEPS = 2  # after one that warms up
LONG = 1.0  # seconds; where so many are spent, no further step is timed


def estimate(question: Question, machine: Machine, data_dir: str | Path | None = None) -> float:
    """Seconds that the training of `question` takes on `machine`; nothing is written.

    Each phase is timed in its middle, where everything that starts late has started.
    """
    defense = make_defense(question.defense, question.defense_settings)
    split = load(question.dataset, "train", data_dir)
    settings = question.train
    images = len(split.labels) - min(settings.validation, len(split.labels) // 10)
    images = min(images, settings.limit_train or images)
    size = min(settings.batch_size, images)
    few = take(split, torch.arange(min(len(split.labels), size * (TIMED_STEPS + 1))))
    small = replace(question, train=replace(settings, validation=0, limit_train=0, batch_size=size))
    about = describe(question.dataset, data_dir)
    ready = prepare(small, defense, about, few, machine)
    with any_layout(ready.relaxed), own_randomness(machine.device):
        return _seconds(ready, defense, question.seed, images // size, machine)


def _seconds(ready: Ready, defense: Defense, seed: int, steps: int, machine: Machine) -> float:
    """Of all phases, of `steps` steps an epoch."""
    seconds = 0.0
    for phase in defense.phases(ready.setup, ready.parts):
        for name, module in ready.parts.items():
            module.train(phase.trains is None or name in phase.trains)
        taken = []
        for number, batch in enumerate(ready.loader.epoch(0)):
            begun = time.perf_counter()
            middle = (phase.epochs // 2, steps // 2 + number, steps)
            terms = step(phase, batch_of(phase, *batch, seed, *middle), machine.device)
            torch.stack(list(terms.values())).sum().item()  # waits for the device
            taken.append(time.perf_counter() - begun)
            if sum(taken) > LONG:
                break
        timed = taken[1:] or taken
        seconds += phase.epochs * steps * sum(timed) / len(timed)
    return seconds
