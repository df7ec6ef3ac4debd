"""Decoupling direction and norm: step along the gradient, then set the norm by a rule of its own.

delta_0 = 0, r_0 = init_norm;  for t = 0 .. T - 1:                 (Rony et al. 2019, algorithm 1)
    g       = grad L(x + delta_t, y) / ||grad||_2       (a random direction where it is zero)
    delta'  = delta_t + a_t g,   a_t = 0.01 + 0.99 (1 + cos(pi t / T)) / 2
    r_{t+1} = (1 - gamma) r_t if x + delta_t is adversarial, else (1 + gamma) r_t
    delta_{t+1} = P(r_{t+1} delta' / ||delta'||_2),   P: clip x + delta to the box
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import rng
from ..core.norms import per_row
from ..engine.losses import misclassified
from ..engine.protocol import Answer, Query, Rows
from .gradient import steepest

CARD = {
    "object": "DDN",
    "version": 2,
    "source": "Rony et al. 2019, algorithm 1",
    "cost": "steps forward and backward passes",
    "budgets": {"deep": {"steps": 1000}},
    "differences": (
        "the authors round to 256 levels, here nothing is rounded; the last perturbation, "
        "unchecked there, is judged too."
    ),
    "params": {
        "steps": {
            "unit": "iterations",
            "min": 1,
            "help": "gradient steps",
            "papers": {"ddn": 1000, "foolbox": 100},
        },
        "gamma": {"min": 0, "max": 1, "help": "share by which the norm grows or shrinks"},
        "init_norm": {"unit": "pixel units", "min": 0, "help": "norm of the first perturbation"},
        "loss": {"help": "loss to increase"},
        "logit_scale": {"help": "factor on the logits before the loss (undoes saturation)"},
    },
}


@dataclass
class State:
    """`delta` (B, C, H, W); `radius` (B,) its wanted norm; `longest` (B,) of any perturbation in
    the box; `done` (B,) int64 steps made."""

    delta: Tensor
    points: Tensor
    radius: Tensor
    longest: Tensor
    done: Tensor


@dataclass(frozen=True)
class DDN:
    steps: int = 100
    gamma: float = 0.05
    init_norm: float = 1.0
    loss: Literal["ce", "margin", "dlr"] = "ce"
    logit_scale: float = 1.0

    minimum: ClassVar[bool] = True
    norm: ClassVar[str] = "l2"
    restarts: ClassVar[int] = 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at their images."""
        images = rows.images
        longest = torch.maximum(images, 1 - images).flatten(1).norm(dim=1)
        return State(
            torch.zeros_like(images),
            images.clone(),
            torch.full_like(longest, self.init_norm),
            longest,
            torch.zeros_like(rows.labels),
        )

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient at the current points."""
        return Query(state.points, "gradient", self.loss, self.logit_scale)

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One step of the algorithm."""
        assert answer.gradient is not None
        gradient = self._direction(answer.gradient, rows, state)
        rate = 0.01 + 0.99 * (1 + torch.cos(math.pi * state.done / self.steps)) / 2
        moved = state.delta + gradient * per_row(rate.to(gradient), gradient)
        found = misclassified(answer.logits, rows.labels, rows.target)
        radius = state.radius * torch.where(found, 1 - self.gamma, 1 + self.gamma)
        radius = torch.minimum(radius.to(state.radius), state.longest)
        size = moved.flatten(1).norm(dim=1).clamp_min(1e-12)
        points = (rows.images + moved * per_row(radius / size, moved)).clamp_(0, 1)
        return replace(
            state, delta=points - rows.images, points=points, radius=radius, done=state.done + 1
        )

    def _direction(self, gradient: Tensor, rows: Rows, state: State) -> Tensor:
        """The gradient at unit length; a random direction for rows where it is zero."""
        unit = steepest(gradient, state.points, "l2")
        flat = (gradient.flatten(1) == 0).all(1).nonzero()[:, 0]
        if len(flat):
            key = rng.fold(rows.key[flat], state.done[flat].to(torch.int32))
            noise = rng.normal(key, tuple(gradient.shape[1:]), gradient.dtype)
            size = noise.flatten(1).norm(dim=1).clamp_min(1e-12)
            unit[flat] = noise / per_row(size, noise)
        return unit

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose steps are used up."""
        return state.done >= self.steps

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """`steps` forward and backward passes."""
        return self.steps, self.steps
