"""Fast gradient sign method: one step as long as the budget allows.

x' = P(x + eps * direction(grad L(x, y)))                 (Goodfellow, Shlens, Szegedy 2015, eq. 1)

With `random_start` the step begins at a uniform point of the ball ("fast" training of Wong, Rice,
Kolter 2020 uses it with `rel_step` 1.25).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..engine.protocol import Answer, Query, Rows
from .gradient import ascend, uniform_start

CARD = {
    "object": "FGSM",
    "version": 1,
    "source": "Goodfellow, Shlens, Szegedy 2015, equation 1",
    "aliases": ["fgm"],
    "variants": {
        "fgsm_linf": {"set": {"norm": "linf"}, "summary": "FGSM in the Linf ball"},
        "fgsm_l2": {
            "set": {"norm": "l2"},
            "summary": "One normalised gradient step in the L2 ball",
        },
        "fgsm_l1": {"set": {"norm": "l1"}, "summary": "One SLIDE step in the L1 ball"},
    },
    "cost": "one forward and backward pass",
    "differences": "none worth naming: foolbox and torchattacks take the same step.",
    "params": {
        "norm": {"help": "norm of the budget"},
        "rel_step": {"unit": "share of eps", "min": 0, "help": "length of the step"},
        "random_start": {"help": "step from a uniform point of the ball instead of the image"},
        "loss": {"help": "loss to increase"},
        "logit_scale": {"help": "factor on the logits before the loss (undoes saturation)"},
    },
}


@dataclass
class State:
    """`points` (B, C, H, W); `done` (B,) bool: the step was made."""

    points: Tensor
    done: Tensor


@dataclass(frozen=True)
class FGSM:
    norm: Literal["linf", "l2", "l1"] = "linf"
    rel_step: float = 1.0
    random_start: bool = False
    loss: Literal["ce", "margin", "dlr"] = "ce"
    logit_scale: float = 1.0

    @property
    def restarts(self) -> int:
        """One step from one start."""
        return 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at the image or at a random start."""
        points = uniform_start(rows, self.norm) if self.random_start else rows.images.clone()
        return State(points, torch.zeros_like(rows.labels, dtype=torch.bool))

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient of the loss at the start."""
        return Query(state.points, "gradient", self.loss, self.logit_scale)

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """Equation 1."""
        assert answer.gradient is not None
        step = rows.eps * self.rel_step
        points = ascend(state.points, answer.gradient, step, rows, self.norm)
        return replace(state, points=points, done=torch.ones_like(state.done))

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows that have made their step."""
        return state.done

    def last(self, state: State) -> Tensor:
        """The stepped points, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """One forward and one backward pass."""
        return 1, 1

    def travel(self, eps: float) -> float:
        """The farthest that the steps can go, pixel units."""
        return self.rel_step * eps
