"""Subjects and attacks with one known defect each, small enough for tests of the diagnostics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_defenses.core.device import Machine
from robustbench_defenses.evaluation.battery import CHECKS, Probe
from robustbench_defenses.evaluation.diagnose import prepare
from robustbench_defenses.evaluation.schema import Diagnostic

N = 2500  # the 95 % interval of any share is then below two points
SHAPE = (1, 4, 4)
CLASSES = 2  # with two, the gradient points straight at the nearest boundary
CPU = Machine(torch.device("cpu"), "fp32", 1)


class Linear(nn.Module):
    """No defect: Z = W x + b, whose distances are known."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = scale * torch.randn(CLASSES, 16, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(-weight.sum(1) / 2)  # boundaries pass through the grey image

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


class Wrapped(nn.Module):
    """A subject behind something done to its images or logits."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor],
        after: Callable[[Tensor], Tensor],
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net or Linear(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


class Counting(Linear):
    """Its buffer counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images)


class Alternating(Linear):
    """Its gradient turns round at every call: an attack goes to and fro."""

    sign = 1

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            self.sign = -self.sign
        return super().forward(self.sign * images + (1 - self.sign) * images.detach())


class Loop(Linear):
    """It takes a gradient step of its own before it answers."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            points = images.detach().requires_grad_()
            (slope,) = torch.autograd.grad(super().forward(points).square().sum(), points)
        return super().forward(images - 1e-4 * slope)


class _Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


def flipped(x: Tensor) -> Tensor:
    """The identity, with a gradient of the wrong sign."""
    result: Tensor = _Flipped.apply(x)  # type: ignore[no-untyped-call]
    return result


def same(x: Tensor) -> Tensor:
    return x


def noisy(x: Tensor) -> Tensor:
    """Noise that no seed of ours controls."""
    return x + 0.02 * torch.randn_like(x)


def rounding(levels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * (levels - 1)).round() / (levels - 1)


def examples() -> tuple[Tensor, Tensor]:
    """Images around 0.5 that the linear subject classifies correctly."""
    generator = torch.Generator().manual_seed(1)
    images = 0.5 + 0.2 * (torch.rand(N, *SHAPE, generator=generator) - 0.5)
    with torch.no_grad():
        return images, Linear()(images).argmax(1)


def write_examples(folder: Path) -> str:
    """The examples as a data set; returns its name."""
    images, labels = examples()
    path = folder / "d.npz"
    np.savez(path, images=images.numpy(), labels=labels.numpy(), classes=CLASSES)
    return f"npz:{path}"


ATTACKS = '''
"""Attacks with a defect."""

from dataclasses import dataclass, replace

import torch

from robustbench_defenses.attacks.pgd import PGD

CARD = {"object": "Overshoot", "version": 1, "source": "none"}


@dataclass(frozen=True)
class Overshoot(PGD):
    """Projects onto twice the ball."""

    def tell(self, state, rows, answer):
        double = replace(rows, eps=2 * rows.eps)
        return super().tell(state, double, answer)


@dataclass(frozen=True)
class LastOnly(PGD):
    """Returns its last point, and walks home in the last step."""

    def inside(self, state, rows):
        return torch.zeros_like(state.done, dtype=torch.bool)

    def tell(self, state, rows, answer):
        moved = super().tell(state, rows, answer)
        home = (moved.done == self.steps)[:, None, None, None]
        return replace(moved, points=torch.where(home, rows.images, moved.points))


@dataclass(frozen=True)
class Tires(PGD):
    """Goes downhill after 40 steps."""

    def tell(self, state, rows, answer):
        if bool((state.done >= 40).any()):
            answer = replace(answer, gradient=-answer.gradient)
        return super().tell(state, rows, answer)


@dataclass(frozen=True)
class Timid(PGD):
    """Does not move in balls larger than 0.02."""

    def tell(self, state, rows, answer):
        small = (rows.eps <= 0.02)[:, None, None, None]
        return super().tell(state, rows, replace(answer, gradient=answer.gradient * small))
'''


def probe(subject: nn.Module, data: str, folder: Path, **question: Any) -> Probe:
    """A probe of 100 examples at eps 0.02."""
    attack = question.pop("attack", "pgd")
    given: dict[str, Any] = {"dataset": data, "n": 100, "eps": 0.02, "results_dir": folder}
    return prepare(subject.eval(), [attack], CPU, **(given | question))


def asked(id: str, about: Probe) -> Diagnostic:
    """One check of the battery."""
    (check,) = [one for one in CHECKS if one.card.id == id]
    return check(about)


def level(found: Diagnostic) -> str:
    """How it fired."""
    return found.severity if found.fired else "skipped" if found.skipped else "ok"
