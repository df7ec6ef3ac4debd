"""Basic iterative method: gradient steps inside the ball that begin at the image itself.

x_0 = x;  x_{t+1} = P(x_t + a * direction(grad L(x_t, y)))                       (Kurakin et al. 2017)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..engine.protocol import Answer, Query, Rows
from .gradient import ascend, step_sizes

CARD = {
    "object": "BIM",
    "version": 1,
    "source": "Kurakin, Goodfellow, Bengio 2017, section 2.2",
    "aliases": ["ifgsm"],
    "variants": {
        "bim_linf": {"set": {"norm": "linf"}, "summary": "BIM in the Linf ball"},
        "bim_l2": {"set": {"norm": "l2"}, "summary": "BIM in the L2 ball"},
    },
    "cost": "steps forward and backward passes",
    "differences": "foolbox and torchattacks judge the last iterate only; here each iterate counts.",
    "params": {
        "norm": {"help": "norm of the budget"},
        "steps": {"unit": "iterations", "min": 1, "help": "gradient steps", "papers": {"aicr": 10}},
        "step_size": {
            "unit": "pixel units",
            "min": 0,
            "help": "length of one step; none: rel_step times eps",
        },
        "rel_step": {
            "unit": "share of eps",
            "min": 0,
            "help": "length of one step; none: 1 / steps",
            "papers": {"aicr": 0.1},
        },
        "loss": {"help": "loss to increase"},
        "logit_scale": {"help": "factor on the logits before the loss (undoes saturation)"},
    },
}


@dataclass
class State:
    """`points` (B, C, H, W); `done` (B,) int64 steps made; `step` (B,) step size."""

    points: Tensor
    done: Tensor
    step: Tensor


@dataclass(frozen=True)
class BIM:
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 10
    step_size: float | None = None
    rel_step: float | None = None
    loss: Literal["ce", "margin", "dlr"] = "ce"
    logit_scale: float = 1.0

    @property
    def restarts(self) -> int:
        """One: nothing in the method is random."""
        return 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at their images."""
        relative = 1 / self.steps if self.rel_step is None else self.rel_step
        return State(
            rows.images.clone(),
            torch.zeros_like(rows.labels),
            step_sizes(rows, self.step_size, relative),
        )

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient of the loss at the current points."""
        return Query(state.points, "gradient", self.loss, self.logit_scale)

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One step of the equation above."""
        assert answer.gradient is not None
        points = ascend(state.points, answer.gradient, state.step, rows, self.norm)
        return replace(state, points=points, done=state.done + 1)

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose steps are used up."""
        return state.done >= self.steps

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """`steps` forward and backward passes."""
        return self.steps, self.steps
