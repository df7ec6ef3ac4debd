"""Brendel-Bethge attack: along the decision boundary to its nearest point, by its local slope.

z_0: a misclassified point, bisected down to the boundary. Each step  (Brendel et al. 2019, eq. 1)
    b <- 0.8 b + 0.2 grad m(z),   m = max_{k != y} Z_k - Z_y
    c  = -1.1 m(z) where z is not misclassified, else -0.9 m(z)      cross the boundary, or near it
    D  = argmin ||x - (z + D)||_p   where   b.D = c,  ||D||_2 <= r,  0 <= z + D <= 1
    z <- z + D,   r = lr (number of pixels), halved `lr_num_decay` times

Where b.D = c is out of reach, D goes as far that way as r and the box allow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core.norms import per_row
from ..engine.losses import misclassified
from ..engine.protocol import Answer, Query, Rows
from ..engine.rows import take
from . import starts
from .starts import Start
from .trust_region import Problem, nearest_on_plane

CARD = {
    "object": "BrendelBethge",
    "version": 2,
    "source": "Brendel, Rauber, Kuemmerer, Ustyuzhaninov and Bethge 2019, equation 1",
    "variants": {
        "brendel_bethge_linf": {
            "set": {"norm": "linf"},
            "summary": "Brendel-Bethge for the Linf norm",
        },
        "brendel_bethge_l2": {"set": {"norm": "l2"}, "summary": "Brendel-Bethge for the L2 norm"},
        "brendel_bethge_l1": {"set": {"norm": "l1"}, "summary": "Brendel-Bethge for the L1 norm"},
    },
    "cost": (
        "steps forward and backward passes, and at most init_draws + init_blends + 11 forward "
        "passes and one backward pass for the start"
    ),
    "differences": (
        "foolbox counts the elements of the whole batch for the trust region, so that its radius "
        "grows with the batch; one image without a start stops them all; its solver takes one "
        "image after the other. It has an L0 form, which is missing here."
    ),
    "budgets": {"quick": {"steps": 200}},
    "params": {
        "norm": {"help": "norm to minimise"},
        "steps": {
            "unit": "iterations",
            "min": 1,
            "help": "steps along the boundary",
            "papers": {"foolbox": 1000},
        },
        "lr": {
            "unit": "pixel units",
            "min": 0,
            "help": "first radius of the trust region (L2) per pixel",
            "papers": {"foolbox": 0.001},
        },
        "lr_num_decay": {
            "unit": "times",
            "min": 0,
            "help": "how often the radius is halved",
            "papers": {"foolbox": 20},
        },
        "momentum": {
            "min": 0,
            "max": 1,
            "help": "weight of earlier slopes",
            "papers": {"foolbox": 0.8},
        },
        "overshoot": {
            "min": 1,
            "max": 2,
            "help": "share of the way to the boundary, from the image's side of it",
            "papers": {"foolbox": 1.1},
        },
        "init": {"help": "where to start: noise first, or at once images of other classes"},
        "init_draws": {
            "unit": "forward passes",
            "min": 1,
            "help": "most noise images before an image of another class is taken",
            "papers": {"foolbox": 1000},
        },
        "init_blends": {
            "unit": "forward passes",
            "min": 1,
            "help": "points of the grid from the image to the misclassified one",
            "papers": {"foolbox": 1000},
        },
        "restarts": {"unit": "runs", "min": 1, "help": "independent runs, each from its own noise"},
    },
}

BISECTIONS = 10
LOOK, SEEK, HALVE, WALK = range(4)
TINY = 1e-12


@dataclass
class State:
    """`points` (B, C, H, W): asked now; `slope` (B, C, H, W): b; `stage` (B,) int64; `low`, `high`
    (B,): shares of the path from the image to the start between which the boundary lies; `done`
    (B,) int64: bisections or steps made; `doubted` (B,) bool: the verdict has refused a point, so
    that the row is asked in float32."""

    start: Start
    points: Tensor
    slope: Tensor
    stage: Tensor
    low: Tensor
    high: Tensor
    done: Tensor
    doubted: Tensor


@dataclass(frozen=True)
class BrendelBethge:
    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 1000
    lr: float = 0.02
    lr_num_decay: int = 20
    momentum: float = 0.8
    overshoot: float = 1.1
    init: Literal["noise", "images"] = "noise"
    init_draws: int = 1000
    init_blends: int = 50
    restarts: int = 1

    minimum: ClassVar[bool] = True
    donors: ClassVar[bool] = True

    def start(self, rows: Rows) -> State:
        """Fresh rows at their images: a gradient that is zero there is worth a warning."""
        count = torch.zeros_like(rows.labels)
        zeros = count.to(rows.images)
        return State(
            start=starts.begin(rows, self.init == "noise"),
            points=rows.images.clone(),
            slope=torch.zeros_like(rows.images),
            stage=count + LOOK,
            low=zeros,
            high=zeros + 1,
            done=count.clone(),
            doubted=torch.zeros_like(count, dtype=torch.bool),
        )

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient of the margin at the boundary; logits only on the way there."""
        seeking = (state.stage == SEEK) | (state.stage == HALVE)
        return Query(state.points, "gradient", "margin", bare=seeking)

    def fine(self, state: State, rows: Rows) -> Tensor:
        """Images of other classes: there is only one to start from. And rows in doubt: a boundary
        that a twin misplaces is walked along in vain."""
        return (state.start.stage == starts.DONOR) | state.doubted

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One question of the search for a start, one bisection, or one step."""
        wrong = misclassified(answer.decided, rows.labels, rows.target)
        stage = state.stage.clone()
        walking = (stage == WALK).nonzero()[:, 0]
        halving = (stage == HALVE).nonzero()[:, 0]
        seeking = (stage == SEEK).nonzero()[:, 0]
        looking = (stage == LOOK).nonzero()[:, 0]
        if len(walking):
            self._walk(state, rows, answer, walking)
        if len(halving):
            self._halve(state, rows, wrong, halving)
        if len(seeking):
            self._seek(state, rows, wrong, seeking)
        if len(looking):
            state.stage[looking] = SEEK
            state.points[looking] = state.start.points[looking]
        return state

    def _seek(self, state: State, rows: Rows, wrong: Tensor, index: Tensor) -> None:
        """Another point that may be misclassified, in rows `index`."""
        part = take(rows, index)
        begun = take(state.start, index)
        begun = starts.advance(begun, part, wrong[index], self.init_draws, self.init_blends)
        whole = state.start
        whole.points[index], whole.far[index] = begun.points, begun.far
        whole.stage[index], whole.asked[index] = begun.stage, begun.asked
        state.points[index] = begun.points
        ready = (begun.stage == starts.READY).nonzero()[:, 0]
        if len(ready):
            there = index[ready]
            state.stage[there] = HALVE
            state.points[there] = self.between(take(part, ready), begun.points[ready], 0.5)

    def _halve(self, state: State, rows: Rows, wrong: Tensor, index: Tensor) -> None:
        """One bisection of the path to the start, in rows `index`."""
        asked = (state.low + state.high) / 2
        state.high[index] = torch.where(wrong, asked, state.high)[index]
        state.low[index] = torch.where(wrong, state.low, asked)[index]
        state.done[index] += 1
        over = index[state.done[index] >= BISECTIONS]
        share = (state.low + state.high) / 2
        share[over] = state.high[over]
        state.stage[over], state.done[over] = WALK, 0
        far = state.start.points[index]
        state.points[index] = self.between(take(rows, index), far, share[index])

    def between(self, rows: Rows, far: Tensor, share: Tensor | float) -> Tensor:
        """The point (B, C, H, W) at `share` of the path, along which the norm grows evenly, from
        the images to `far`."""
        away = far - rows.images
        t = torch.as_tensor(share).to(away).expand(len(away))
        t = per_row(t, away)
        if self.norm == "l2":
            moved = away * t
        elif self.norm == "linf":
            moved = away.maximum(-t).minimum(t)
        else:
            moved = away.sign() * (away.abs() - (1 - t)).clamp_min(0)
        return (rows.images + moved).clamp_(0, 1)

    def _walk(self, state: State, rows: Rows, answer: Answer, index: Tensor) -> None:
        """One step along the boundary, in rows `index`."""
        assert answer.gradient is not None
        assert answer.loss is not None
        gradient, old = answer.gradient[index], state.slope[index]
        first = per_row(state.done[index] == 0, old)
        slope = torch.where(first, gradient, torch.lerp(gradient, old, self.momentum))
        state.slope[index] = slope
        margin = answer.loss[index].to(slope)
        size = slope.flatten(1).norm(dim=1)
        factor = torch.where(margin < 0, self.overshoot, 2 - self.overshoot)
        points, images = state.points[index].flatten(1), rows.images[index].flatten(1)
        problem = Problem(
            away=images - points,
            normal=slope.flatten(1) / size.clamp_min(TINY)[:, None],
            gain=-factor.to(margin) * margin / size.clamp_min(TINY),
            radius=self.radius(state.done[index], points.shape[1]).to(points),
            low=-points,
            high=1 - points,
        )
        step = nearest_on_plane(problem, self.norm)
        state.points[index] = (points + step).clamp_(0, 1).view_as(slope)
        state.done[index] += 1

    def radius(self, done: Tensor, size: int) -> Tensor:
        """The trust region's radius (B,) float64 after `done` (B,) steps, for images of `size`
        values."""
        return self.lr * size * 0.5 ** (done * self.lr_num_decay // self.steps).double()

    def settle(self, state: State, rows: Rows, refused: Tensor) -> State:
        """Rows whose nearest point was refused walk on in float32."""
        return replace(state, doubted=state.doubted | refused)

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose steps are used up, and rows that found no start."""
        hopeless = state.start.stage == starts.HOPELESS
        return hopeless | ((state.stage == WALK) & (state.done >= self.steps))

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """Passes of the walk, of the longest search for a start, and of one look at the image."""
        seek = self.init_draws + self.init_blends + BISECTIONS
        return 1 + seek + self.steps, 1 + self.steps
