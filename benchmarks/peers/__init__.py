"""The libraries that we compare ourselves with, one file each, asked for one thing in one form.

Such a file has `PACKAGE`, the distribution whose version is reported, and `ATTACKS`: the name of a
task (`tasks.py`) -> a function (model, images (N, C, H, W), labels (N,), `Ask`) that returns
images. It sets every parameter that decides the work or the strength, so that all libraries
spend the same budget, and leaves the rest at the library's defaults. The import of the library
stands inside, so a library that is not installed is left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor, nn

NAMES = ("foolbox", "torchattacks", "pyautoattack", "adv_lib")


@dataclass(frozen=True)
class Ask:
    """What is to be done.

    `norm`: linf, l2 or l1; `eps`: the budget in pixel units (nan: the nearest point is wanted);
    `steps` of a run, `step`: length of one in pixel units; `searches`: values of C&W's constant;
    `queries`: of Square; `targets`: classes tried; `batch`: images at a time; `seed`.
    """

    norm: str
    eps: float
    steps: int
    step: float
    searches: int = 9
    queries: int = 5000
    targets: int = 9
    batch: int = 250
    seed: int = 0


Attack = Callable[[nn.Module, Tensor, Tensor, Ask], Tensor]


@dataclass(frozen=True)
class Peer:
    """A library that is installed: its version and its attacks by task."""

    name: str
    version: str
    attacks: dict[str, Attack]


def load(name: str) -> Peer | None:
    """A peer by name, None where it is not installed."""
    try:
        module = importlib.import_module(f"{__name__}.{name}")
        return Peer(name, metadata.version(module.PACKAGE), module.ATTACKS)
    except (ImportError, metadata.PackageNotFoundError):
        return None


def in_batches(attack: Attack) -> Attack:
    """`attack` on `Ask.batch` images at a time."""

    def run(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
        parts = zip(images.split(ask.batch), labels.split(ask.batch))
        return torch.cat([attack(model, x, y, ask).detach() for x, y in parts])

    return run
