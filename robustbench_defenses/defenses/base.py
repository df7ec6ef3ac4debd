"""What a defense is made of: the set-up it is given, the phases it asks the trainer to run.

The trainer (`training/trainer.py`) owns epochs, precision, checkpoints, resume, logging and
validation; a defense owns the mathematics. It says

    parts(setup)              every module that is trained and saved, by name
    phases(setup, parts)      what is minimised, with which optimisers, for how long
    deployed(parts, options)  the module that answers users
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from ..core import rng
from ..core.errors import UserError, did_you_mean
from ..core.view import Tapped, View
from . import schedules
from .schedules import Schedule

if TYPE_CHECKING:
    from ..engine.protocol import Attack

Parts = dict[str, nn.Module]
Terms = dict[str, Tensor]
Examples = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class TrainSettings:
    """Training settings that every defense shares; `--set` reaches each of them.

    `epochs` of the main phase; `batch_size` images a step; `learning_rate` of the network at
    factor 1; `warmup`, `hold`, `milestones`, `peak`: shares of a phase; `floor`: smallest factor
    of the linear schedule; `validation`: images of the training set held out to choose the best
    checkpoint (never more than a tenth of it; 0: none); `limit_train`: only so many training
    images (0: all); `save_every`: a checkpoint `step-N` every so many steps (0: none).
    """

    epochs: int = 10
    batch_size: int = 128
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "multistep", "triangle", "cosine", "linear"] = "linear"
    warmup: float = 0.05
    hold: float = 0.6
    floor: float = 0.02
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    peak: float = 0.4
    augment: Literal["none", "crop_flip"] = "none"
    validation: int = 1000
    limit_train: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        for name in ("learning_rate", "weight_decay", "validation", "limit_train", "save_every"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} = {getattr(self, name)}: a finite number >= 0 is needed")
        for name in ("warmup", "hold", "floor", "peak"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)}: a share in [0, 1] is needed")
        for name, schedule in (("warmup", "cosine"), ("hold", "linear"), ("peak", "triangle")):
            value = getattr(self, name)
            if self.schedule == schedule and (value == 1 or (name == "peak" and value == 0)):
                raise UserError(f"{name} = {value:g} leaves nothing of the {schedule} schedule")


def schedule_of(settings: TrainSettings) -> Schedule:
    """The learning-rate schedule that the settings name."""
    if settings.schedule == "multistep":
        return schedules.multistep(settings.milestones, settings.gamma)
    if settings.schedule == "triangle":
        return schedules.triangle(settings.peak)
    if settings.schedule == "cosine":
        return schedules.cosine(settings.warmup)
    if settings.schedule == "linear":
        return schedules.linear(
            settings.warmup, max(settings.warmup, settings.hold), settings.floor
        )
    return schedules.constant


@dataclass(frozen=True)
class Setup:
    """What a defense is given.

    `shape` (C, H, W); `model()` builds a fresh network; `examples()` passes over the training
    images once in file order, without augmentation: images (B, C, H, W) float32 in [0, 1] and
    labels (B,). Networks run through `forward` or `tapped`, which own precision: the passes are in
    bf16 where `autocast` says so, what comes back (and so every loss) is float32.
    """

    shape: tuple[int, int, int]
    classes: int
    dataset: str
    model: Callable[[], nn.Module]
    settings: TrainSettings = field(default_factory=TrainSettings)
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: bool = False
    examples: Examples = lambda: iter(())

    def mixed(self) -> AbstractContextManager[object]:
        """The precision of network passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """What `network` makes of images (B, C, H, W), in float32."""
        with self.mixed():
            output: Tensor = network(images)
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output

    def tapped(self, network: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """All taps of a network and its `logits`, in float32."""
        if not isinstance(network, Tapped):
            raise UserError(
                f"{type(network).__name__} has no named taps, and this defense reads them",
                hint="give the network `tap_names` and `tapped(images)`, or choose another --model",
            )
        with self.mixed():
            taps = network.tapped(images)
        half = (torch.bfloat16, torch.float16)
        return {name: tap.float() if tap.dtype in half else tap for name, tap in taps.items()}


@dataclass(frozen=True)
class Batch:
    """One step's examples and where training stands.

    `images` (B, C, H, W) float32 in [0, 1]; `labels` (B,) int64; `index` (B,) int64: positions in
    the training set; `key` (B,) int32: randomness of each row in this epoch; `epoch` and `step`
    count from 0 within the phase; `progress` in [0, 1) is the share of the phase that is done.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    key: Tensor
    phase: str
    epoch: int
    step: int
    progress: float
    seed: int

    def keys(self, name: str) -> Tensor:
        """Keys (B,) int32 of one random quantity of the rows."""
        return rng.fold(self.key, rng.name_key(name) >> 1)

    def share(self, name: str) -> float:
        """One number in [0, 1) for the whole batch."""
        key = rng.row_keys(self.seed, f"{self.phase}|{name}", torch.tensor([self.step]))
        return rng.uniform(key, (1,), torch.float64).item()


@dataclass(frozen=True)
class Optimiser:
    """A torch optimiser and the schedule of its rates; the rates at construction are factor 1."""

    stepper: torch.optim.Optimizer
    schedule: Schedule = schedules.constant
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        rates = tuple(group["lr"] for group in self.stepper.param_groups)
        object.__setattr__(self, "rates", rates)

    def set_rate(self, progress: float) -> float:
        """Set the rates for `progress`; returns the first group's."""
        factor = self.schedule(progress)
        for group, rate in zip(self.stepper.param_groups, self.rates):
            group["lr"] = rate * factor
        return self.rates[0] * factor


@dataclass(frozen=True)
class RobustCheck:
    """How robust validation accuracy is measured: an attack that returns images, and its budget."""

    attack: Attack
    eps: float


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    `loss(batch)`: named scalars whose sum is minimised; or `update(batch)`: does its own backward
    passes and steps (games with several optimisers) and returns named scalars for the log.
    `trains`: names of the parts that train (None: all); the others stay fixed, in eval mode.
    `begin()` runs once before the first step. `monitor(images, labels)` gives numbers for the log
    after each epoch, on held-out images. `robust`: choose the best checkpoint by accuracy under
    this attack instead of clean accuracy. `selects`: whether checkpoints of this phase may be best.
    `ramped`: share of the phase after which the training budget has reached its full size.
    """

    name: str
    epochs: int
    optimisers: tuple[Optimiser, ...]
    loss: Callable[[Batch], Terms] | None = None
    update: Callable[[Batch], Terms] | None = None
    trains: tuple[str, ...] | None = None
    begin: Callable[[], None] | None = None
    monitor: Callable[[Tensor, Tensor], dict[str, float]] | None = None
    robust: RobustCheck | None = None
    selects: bool = True
    ramped: float = 0.0

    def __post_init__(self) -> None:
        if (self.loss is None) == (self.update is None):
            raise ValueError(f"phase {self.name!r} needs either a loss or an update")


class Defense(Protocol):
    """What the trainer needs of a defense; parameters are the fields of its frozen dataclass."""

    def parts(self, setup: Setup) -> Parts:
        """Everything that is trained and saved."""

    def phases(self, setup: Setup, parts: Parts) -> Iterator[Phase]:
        """The phases of training, in order."""

    def deployed(self, parts: Parts, options: Mapping[str, str]) -> nn.Module:
        """The module that answers users: images (N, C, H, W) to logits (N, K)."""


def attack_views(defense: Defense, parts: Parts, options: Mapping[str, str]) -> list[View]:
    """The differentiable views an attacker would use, the strongest known first.

    A defense names its own with a method `attack_views(parts, options)`; without one it is
    attacked through what it deploys.
    """
    own = getattr(defense, "attack_views", None)
    if own is not None:
        views: list[View] = own(parts, options)
        return views
    return [View("deployed", defense.deployed(parts, options))]


def optimiser(
    parameters: Iterator[nn.Parameter],
    settings: TrainSettings,
    *,
    weight_decay: float | None = None,
    schedule: Schedule | None = None,
) -> Optimiser:
    """The optimiser that the settings name, fused where torch has it, with its schedule."""
    decay = settings.weight_decay if weight_decay is None else weight_decay
    rate, chosen = settings.learning_rate, list(parameters)
    stepper: torch.optim.Optimizer
    if settings.optimiser == "adam":
        stepper = torch.optim.Adam(chosen, lr=rate, weight_decay=decay, fused=True)
    elif settings.optimiser == "adamw":
        stepper = torch.optim.AdamW(chosen, lr=rate, weight_decay=decay, fused=True)
    else:
        stepper = torch.optim.SGD(
            chosen, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=True
        )
    return Optimiser(stepper, schedule or schedule_of(settings))


def check_options(options: Mapping[str, str], known: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse deployment options that a defense does not have, or values it does not know."""
    for name, value in options.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"unknown deployment option {name!r}", hint=has)
        if known[name] and value not in known[name]:
            raise UserError(
                f"deployment option {name}={value} is not known",
                hint=did_you_mean(value, list(known[name]), ", ".join(known[name])),
            )
