"""Momentum iterative method (MI-FGSM): steps along a running mean of normalised gradients.

x_0 = x
g_{t+1} = mu g_t + grad L(x_t, y) / ||grad L(x_t, y)||_1                (Dong et al. 2018, eq. 6)
x_{t+1} = P(x_t + a * direction(g_{t+1}))                                                    (eq. 7)

Without a past (mu = 0) this is the basic iterative method, `bim` (Kurakin et al. 2017, 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..core.norms import per_row
from ..engine.protocol import Answer, Query, Rows
from .gradient import ascend, step_sizes

CARD = {
    "object": "MIM",
    "version": 1,
    "source": "Dong et al. 2018, equations 6 and 7; bim: Kurakin et al. 2017, section 2.2",
    "aliases": ["mifgsm", "mi_fgsm"],
    "variants": {
        "mim_linf": {"set": {"norm": "linf"}, "summary": "MIM in the Linf ball"},
        "mim_l2": {"set": {"norm": "l2"}, "summary": "MIM in the L2 ball"},
        "bim": {
            "set": {"decay": 0.0},
            "summary": "Basic iterative method: gradient steps inside the ball, from the image",
        },
        "bim_linf": {"set": {"decay": 0.0}, "summary": "BIM in the Linf ball"},
        "bim_l2": {"set": {"decay": 0.0, "norm": "l2"}, "summary": "BIM in the L2 ball"},
    },
    "cost": "steps forward and backward passes",
    "budgets": {"standard": {"steps": 40}, "deep": {"steps": 100}},
    "differences": (
        "foolbox accumulates the sign of the gradient, which is another method; "
        "torchattacks divides by the mean size, which moves the same way."
    ),
    "params": {
        "norm": {"help": "norm of the budget"},
        "steps": {"unit": "iterations", "min": 1, "help": "gradient steps", "papers": {"aicr": 10}},
        "decay": {"min": 0, "help": "mu: weight of the past", "papers": {"dong": 1.0, "aicr": 1.0}},
        "step_size": {
            "unit": "pixel units",
            "min": 0,
            "help": "length of one step; none: rel_step times eps",
        },
        "rel_step": {
            "unit": "share of eps",
            "min": 0,
            "help": "length of one step; none: 1 / steps",
            "papers": {"dong": 0.1, "aicr": 0.1},
        },
        "loss": {"help": "loss to increase"},
        "logit_scale": {"help": "factor on the logits before the loss (undoes saturation)"},
    },
}


@dataclass
class State:
    """`points`, `momentum` (B, C, H, W); `done` (B,) int64 steps made; `step` (B,) step size."""

    points: Tensor
    momentum: Tensor
    done: Tensor
    step: Tensor


@dataclass(frozen=True)
class MIM:
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 10
    decay: float = 1.0
    step_size: float | None = None
    rel_step: float | None = None
    loss: Literal["ce", "margin", "dlr"] = "ce"
    logit_scale: float = 1.0

    @property
    def restarts(self) -> int:
        """One: nothing in the method is random."""
        return 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at their images, without a past."""
        relative = 1 / self.steps if self.rel_step is None else self.rel_step
        return State(
            rows.images.clone(),
            torch.zeros_like(rows.images),
            torch.zeros_like(rows.labels),
            step_sizes(rows, self.step_size, relative),
        )

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient of the loss at the current points."""
        return Query(state.points, "gradient", self.loss, self.logit_scale)

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """Equations 6 and 7."""
        assert answer.gradient is not None
        length = answer.gradient.flatten(1).abs().sum(1)
        length = length.clamp_min(torch.finfo(length.dtype).tiny)  # saturated losses: 1e-30
        momentum = self.decay * state.momentum + answer.gradient / per_row(length, state.points)
        points = ascend(state.points, momentum, state.step, rows, self.norm)
        return replace(state, points=points, momentum=momentum, done=state.done + 1)

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose steps are used up."""
        return state.done >= self.steps

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """`steps` forward and backward passes."""
        return self.steps, self.steps

    def travel(self, eps: float) -> float:
        """The farthest that the steps can go, pixel units."""
        if self.step_size is not None:
            return self.steps * self.step_size
        return (1.0 if self.rel_step is None else self.steps * self.rel_step) * eps
