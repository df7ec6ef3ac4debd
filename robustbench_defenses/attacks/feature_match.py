"""Feature matching: gives an image the features of another class, or takes it away from its own.

x_0 = x + uniform start;  x_{t+1} = P(x_t + a * direction(grad L(x_t)))
L(x') = -sum_l d(h_l(x'), h_l(g)) + w m(x', y)        towards a guide g; away: + d(h_l(x'), h_l(x))

h_l are the features at the taps l (default: the last one before the logits), d is the Euclidean
distance as a share of |h_l(g)| or 1 - cosine, m the margin of the logits. The guide is the image of
another class that is nearest to x in these features, among the images that the engine has at hand;
run r takes the r-th nearest class, a targeted question the target's. The last share `finish` of the
steps climbs the margin alone, as a PGD of its own that starts where the features have led: features
like those of another class are not yet a wrong answer.
Sabour et al. 2016 (Euclidean distance to a guide, Linf ball); `away`: latent disparity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..engine.losses import margin
from ..engine.protocol import Answer, Features, Query, Rows
from .gradient import ascend, step_sizes, uniform_start

CARD = {
    "object": "FeatureMatch",
    "version": 1,
    "source": "Sabour, Cao, Faghri and Fleet 2016, section 3",
    "variants": {
        "feature_match_linf": {
            "set": {"norm": "linf"},
            "summary": "feature matching in the Linf ball",
        },
        "feature_match_l2": {"set": {"norm": "l2"}, "summary": "feature matching in the L2 ball"},
        "feature_match_l1": {
            "set": {"norm": "l1", "steps": 100},
            "summary": "feature matching in the L1 ball",
        },
    },
    "needs": ["taps"],
    "budgets": {
        "standard": {"steps": 100, "restarts": 3},
        "deep": {"steps": 1000, "restarts": 9},
    },
    "cost": (
        "steps forward and backward passes per restart, one forward pass more for the clean "
        "image and one for every image of the pool"
    ),
    "differences": (
        "Sabour et al. minimise with L-BFGS-B inside the ball and never look at the logits; here "
        "steps are PGD's, and the last quarter of them climbs the margin (finish=0: as published)."
    ),
    "params": {
        "norm": {"help": "norm of the budget"},
        "steps": {"unit": "iterations", "min": 1, "help": "gradient steps of one run"},
        "step_size": {
            "unit": "pixel units",
            "min": 0,
            "help": "length of one step; none: rel_step times eps",
        },
        "rel_step": {
            "unit": "share of eps",
            "min": 0,
            "help": ("length of one step; none: 2.5 / steps of its part (L1: 1/4, then less)"),
        },
        "restarts": {
            "unit": "runs",
            "min": 1,
            "help": "runs, towards the nearest class, the second nearest and so on",
            "papers": {"er": 3},
        },
        "random_start": {"help": "start at a uniform point of the ball instead of the image"},
        "taps": {
            "help": "features to match, or names of parts of the module; none given: the last one",
        },
        "guide": {
            "help": "nearest image of another class, nearest centre of one, or away from its own",
            "papers": {"aicr": "centre", "hldr": "away"},
        },
        "distance": {"help": "between features"},
        "weight": {
            "min": 0,
            "help": "weight of the margin of the logits beside the distance",
            "papers": {"hldr": 1},
        },
        "finish": {
            "unit": "share of steps",
            "min": 0,
            "max": 1,
            "help": "last steps, which climb the margin of the logits alone",
        },
        "quantile": {"min": 0, "max": 1, "help": "L1 only: share of pixels left alone per step"},
    },
}


@dataclass
class State:
    """`points` (B, C, H, W); `done` (B,) int64 steps made; `guide` (B, D): features; `sign` (B,):
    -1 towards the guide, 1 away from it."""

    points: Tensor
    done: Tensor
    guide: Tensor
    sign: Tensor


@dataclass(frozen=True)
class FeatureMatch:
    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 40
    step_size: float | None = None
    rel_step: float | None = None
    restarts: int = 1
    random_start: bool = True
    taps: tuple[str, ...] = ()
    guide: Literal["nearest", "centre", "away"] = "nearest"
    distance: Literal["euclidean", "cosine"] = "euclidean"
    weight: float = 0.0
    finish: float = 0.25
    quantile: float = 0.99

    def start(self, rows: Rows) -> State:
        """Fresh rows at their start points; those without a guide are to leave their own features.

        Away from its own features a run needs a random start: at the image their slope is zero.
        """
        assert rows.features is not None
        own = rows.features
        guide, has = own, torch.zeros_like(rows.labels, dtype=torch.bool)
        if self.guide != "away" and rows.gallery is not None:
            gallery = rows.gallery.centres if self.guide == "centre" else rows.gallery
            guide, has = gallery.guides(own, rows.labels, rows.target, rows.run, self.distance)
        chance = uniform_start(rows, self.norm)
        still = has.view(-1, *([1] * (chance.dim() - 1)))
        points = chance if self.random_start else torch.where(still, rows.images, chance)
        sign = torch.where(has, -1.0, 1.0).to(own)
        return State(points, torch.zeros_like(rows.labels), guide, sign)

    @property
    def _matching(self) -> int:
        """Steps before those that climb the margin alone."""
        return self.steps - round(self.finish * self.steps)

    def _step(self, state: State, rows: Rows) -> Tensor:
        """Step sizes (B,) in pixel units; the defaults can reach any point of the ball in each of
        the two parts."""
        if self.step_size is not None:
            return step_sizes(rows, self.step_size, 1.0)
        if self.rel_step is not None:
            return rows.eps * self.rel_step
        ending = state.done >= self._matching
        length = torch.where(ending, self.steps - self._matching, self._matching)
        if self.norm != "l1":
            return rows.eps * 2.5 / length
        done = state.done - ending * self._matching
        late = (done * 2 >= length).int() + (done * 4 >= 3 * length).int()
        return rows.eps * 0.25 * 0.5**late

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient of the distance, in the last steps that of the margin."""
        ending = state.done >= self._matching
        wish = Features(
            self.taps,
            guide=state.guide,
            weight=state.sign.masked_fill(ending, 0),
            share=torch.full_like(state.sign, self.weight).masked_fill(ending, 1),
            distance=self.distance,
        )
        return Query(state.points, "gradient", "margin", features=wish)

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One projected step."""
        assert answer.gradient is not None
        step = self._step(state, rows)
        points = ascend(state.points, answer.gradient, step, rows, self.norm, self.quantile)
        return replace(state, points=points, done=state.done + 1)

    def score(self, state: State, rows: Rows, answer: Answer) -> Tensor:
        """Distances to different guides do not compare: the margin (B,) does."""
        return margin(answer.logits, rows)

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose steps are used up."""
        return state.done >= self.steps

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """`steps` forward and backward passes, and one forward pass for the clean features."""
        return self.steps + 1, self.steps

    def travel(self, eps: float) -> float:
        """The farthest that the steps can go, pixel units."""
        if self.step_size is not None:
            return self.steps * self.step_size
        if self.rel_step is not None:
            return self.steps * self.rel_step * eps
        return (0.25 * self.steps if self.norm == "l1" else 2.5) * eps
