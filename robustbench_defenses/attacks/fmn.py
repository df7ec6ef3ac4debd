"""Fast minimum norm: steps up the margin inside a ball whose radius closes in on the boundary.

delta_0 = 0, r = inf;  for t = 0 .. T - 1:                  (Pintor et al. 2021, algorithm 1)
    h      = (1 + cos(pi t / T)) / 2;  a = a_T + (a_0 - a_T) h;  gamma = g_T + (g_0 - g_T) h
    r      = min((1 - gamma) r, shortest so far)     if x + delta is adversarial
             (1 + gamma) r                           if it is not, but an earlier one was
             (1 + gamma) max(||delta||_p + |m| / ||grad m||_q, r)     before the first one
    delta <- P(delta - a grad m / ||grad m||_2)      onto the ball of radius r and the box

m = Z_y - max_{k != y} Z_k is the margin; a_T = a_0 / 100 and g_T = 0.001; q is dual to p.
Before the first success the paper takes the linear estimate of the radius as it is. Then the points
creep up to a curved boundary from inside and may never cross it, so here the radius always grows.
In L2 every perturbation is scaled to the radius: inside a ball that has outgrown them the points
climb into local maxima of robust networks, short of the boundary, and stay there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core.norms import dual, per_row, project
from ..engine.losses import misclassified
from ..engine.protocol import Answer, Query, Rows

CARD = {
    "object": "FMN",
    "version": 3,
    "source": "Pintor et al. 2021, algorithm 1",
    "variants": {
        "fmn_linf": {"set": {"norm": "linf"}, "summary": "FMN for the Linf norm"},
        "fmn_l2": {"set": {"norm": "l2"}, "summary": "FMN for the L2 norm"},
        "fmn_l1": {"set": {"norm": "l1"}, "summary": "FMN for the L1 norm"},
    },
    "cost": "steps forward and backward passes",
    "budgets": {"deep": {"steps": 1000}},
    "differences": (
        "foolbox does not project for L2 (it divides a norm by itself) and projects for L1 before "
        "it clips, which loses budget; here L1 is the exact projection onto ball and box. The "
        "radius grows until the first success: the estimate alone crossed no boundary for 13 % of "
        "images (small MNIST network, L2; 36 % in adversarial-library). L2 perturbations are also "
        "scaled up to the radius, as there: the ball alone missed 13 % of images on an "
        "adversarially trained network. The last perturbation, unchecked elsewhere, is judged too."
    ),
    "params": {
        "norm": {"help": "norm to minimise"},
        "steps": {
            "unit": "iterations",
            "min": 1,
            "help": "gradient steps",
            "papers": {"fmn": 1000, "foolbox": 100},
        },
        "step_size": {
            "unit": "pixel units",
            "min": 0,
            "help": "L2 length of the first step, falls to 1/100; none: 1 (L2), 10 (Linf), 3 (L1; "
            "1 once the boundary was crossed)",
            "papers": {"foolbox": 1.0},
        },
        "gamma": {
            "min": 0,
            "max": 1,
            "help": "first share by which the radius grows or shrinks; it falls to 0.001",
            "papers": {"fmn": 0.05},
        },
    },
}

LAST_GAMMA = 0.001
# First steps before and after the first success: where the ball has corners robust networks need
# longer ones, in L1 only to cross the boundary at all.
FIRST_STEPS = {"linf": (10.0, 10.0), "l2": (1.0, 1.0), "l1": (3.0, 1.0)}
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


# Images whose margin is below this share of the logit range are near a boundary.
CLOSE = 0.02


@dataclass
class State:
    """`points` (B, C, H, W); `radius` (B,) of the ball; `shortest` (B,): norm of the shortest
    adversarial perturbation so far (inf: none); `found` (B,) bool: there was one; `longest` (B,):
    norm of the longest perturbation in the box; `done` (B,) int64 steps made; `doubted` (B,) bool:
    the image is near a boundary, or the verdict has refused a success; to be asked in float32."""

    points: Tensor
    radius: Tensor
    shortest: Tensor
    found: Tensor
    longest: Tensor
    done: Tensor
    doubted: Tensor


@dataclass(frozen=True)
class FMN:
    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 100
    step_size: float | None = None
    gamma: float = 0.05

    minimum: ClassVar[bool] = True
    restarts: ClassVar[int] = 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at their images."""
        images = rows.images
        longest = _length(torch.maximum(images, 1 - images), self.norm)
        infinite = torch.full_like(longest, torch.inf)
        no = torch.zeros_like(rows.labels, dtype=torch.bool)
        done = torch.zeros_like(rows.labels)
        return State(images.clone(), infinite, infinite.clone(), no, longest, done, no.clone())

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient of the margin (negated: towards misclassification) at the points."""
        return Query(state.points, "gradient", "margin")

    def fine(self, state: State, rows: Rows) -> Tensor:
        """Rows in doubt: a twin may misclassify the image itself and all around it, and the ball
        closes in vain (measured: 43 of the 100 bright digits nearest to a boundary were lost), or
        its boundary lies many times as far away as the subject's (up to 23 times)."""
        return state.doubted

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One step of the algorithm."""
        assert answer.gradient is not None
        assert answer.loss is not None
        gradient = answer.gradient
        share = (1 + torch.cos(math.pi * state.done / self.steps)) / 2
        given = self.step_size
        long, short = FIRST_STEPS[self.norm] if given is None else (given, given)
        rate = torch.where(state.found, short, long) * (0.01 + 0.99 * share).to(gradient)
        length = _length(state.points - rows.images, self.norm)
        # A twin may err on the image itself; a radius of zero would end the search there.
        found = misclassified(answer.logits, rows.labels, rows.target) & (state.done > 0)
        shortest = torch.where(found, torch.minimum(length, state.shortest), state.shortest)
        slope = _length(gradient, dual(self.norm))
        estimate = length + answer.loss.abs().to(length) / slope
        change = (LAST_GAMMA + (self.gamma - LAST_GAMMA) * share).to(length)
        before = torch.where(state.done > 0, state.radius, 0)
        outside = torch.where(state.found, before, torch.maximum(estimate, before))
        inside = torch.minimum((1 - change) * state.radius, shortest)
        # nan_to_num: zero margin over zero slope.
        radius = torch.where(found, inside, (1 + change) * outside)
        radius = radius.nan_to_num(nan=torch.inf, posinf=torch.inf)
        radius = torch.minimum(radius, state.longest)
        spread = answer.logits.amax(1) - answer.logits.amin(1)
        near = (state.done == 0) & (answer.loss.abs() < CLOSE * spread)
        size = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        moved = torch.addcmul(state.points, gradient, per_row(rate / size, gradient))
        return replace(
            state,
            points=_project(moved, rows.images, radius, self.norm),
            radius=radius,
            shortest=shortest,
            found=state.found | found,
            done=state.done + 1,
            doubted=state.doubted | near,
        )

    def settle(self, state: State, rows: Rows, refused: Tensor) -> State:
        """Rows whose shortest perturbation was refused have found nothing yet."""
        return replace(
            state,
            shortest=state.shortest.masked_fill(refused, torch.inf),
            found=state.found & ~refused,
            doubted=state.doubted | refused,
        )

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose steps are used up."""
        return state.done >= self.steps

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """`steps` forward and backward passes."""
        return self.steps, self.steps


def _project(moved: Tensor, images: Tensor, radius: Tensor, norm: str) -> Tensor:
    """`moved` (B, C, H, W) onto the ball of `radius` (B,) around `images` and the box; L2: scaled
    to the sphere, then clipped."""
    if norm != "l2":
        return project(moved, images, radius, norm)
    delta = moved - images
    scale = radius / _length(delta, norm).clamp_min(1e-12)
    return (images + delta * per_row(scale, delta)).clamp_(0, 1)


def _length(delta: Tensor, norm: str) -> Tensor:
    """Norms (B,) of perturbations or gradients (B, C, H, W), in their own precision."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=ORDER[norm], dim=1)
    return length
