"""From names and settings to objects: the defense, its set-up, its freshly initialised parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from ..core import rng
from ..core.errors import UserError
from ..core.plugins import user_code
from ..core.registry import find
from ..defenses.base import Defense, Parts, Setup, TrainSettings
from .question import TRAIN_PARAMS
from .runs import RunInfo


def make_defense(name: str, settings: dict[str, Any]) -> Defense:
    """The defense's object; one without the methods of a defense is a `UserError`."""
    made = find("defense", name).create(**settings)
    missing = [part for part in ("parts", "phases", "deployed") if not hasattr(made, part)]
    if missing:
        raise UserError(
            f"{name} is not a defense: it has no {', '.join(missing)}",
            hint="docs/architecture.md shows what a defense has",
        )
    return cast(Defense, made)


def defense_of(info: RunInfo) -> Defense:
    """The defense's object as the run was trained."""
    return make_defense(info.defense, info.settings["defense"])


def model_factory(
    name: str, settings: dict[str, Any], shape: tuple[int, int, int], classes: int
) -> Callable[[], nn.Module]:
    """A function that builds the network, held to logits (N, K) once."""
    entry = find("model", name)
    builder = entry.create(**settings)

    def build() -> nn.Module:
        if entry.origin == "rrd":
            network = builder.build(shape, classes)
        else:
            with user_code(entry.source_file):
                network = builder.build(shape, classes)
        if not isinstance(network, nn.Module):
            raise UserError(f"model {name} gave a {type(network).__name__}, not a torch.nn.Module")
        training = network.training
        with torch.no_grad():
            try:
                logits = network.eval()(torch.zeros(2, *shape))
            except RuntimeError as error:
                first = str(error).splitlines()[0]
                raise UserError(f"model {name} fails on images {shape}: {first}") from error
        if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, classes):
            found = (
                tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            )
            raise UserError(f"model {name} gives {found} for two images, not (2, {classes})")
        return network.train(training)

    return build


def fresh_parts(defense: Defense, setup: Setup) -> Parts:
    """The parts as initialised from the seed; the global random state is as before."""
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(rng.name_key(setup.seed, "initial weights"))
        return defense.parts(setup)
    finally:
        torch.default_generator.set_state(state)


def rebuild(info: RunInfo) -> tuple[Setup, Parts]:
    """The set-up of a stored run and its parts, on the CPU, not yet filled with weights."""
    train = {
        name: TRAIN_PARAMS[name].fit(value, "train")
        for name, value in info.settings["train"].items()
        if name in TRAIN_PARAMS
    }
    setup = Setup(
        shape=info.shape,
        classes=info.classes,
        dataset=info.dataset,
        model=model_factory(info.model, info.settings["model"], info.shape, info.classes),
        settings=TrainSettings(**train),
        seed=info.seed,
    )
    return setup, fresh_parts(defense_of(info), setup)
