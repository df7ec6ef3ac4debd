"""DeepFool: steps to the nearest boundary of the linearised network until the class changes.

x_0 = x;  while argmax Z(x_i) = y, at most `steps` times:   (Moosavi-Dezfooli et al. 2016, alg. 2)
    f_k = Z_k(x_i) - Z_y(x_i);   w_k = grad f_k;   k over the most likely classes of x
    l   = argmin_k |f_k| / ||w_k||_q                             (q dual to p)
    s_i = (|f_l| / ||w_l||_q + 1e-4) * d,   d = w_l / ||w_l||_2 (L2) or sign(w_l) (Linf)
    x_{i+1} = clip(x_i + (1 + overshoot) s_i, 0, 1)

The authors clip x + (1 + overshoot) (s_0 + ... + s_i) instead (`sum_steps`): what the box cuts off
adds up there, and on an adversarially trained network a fifth of the images never broke in L2.
Targeted rows step towards the boundary between the target and the class that leads. With `refine`
the segment from the image to the adversarial point is bisected afterwards, where the boundary does
not lie at its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core.norms import per_row
from ..engine.losses import misclassified
from ..engine.protocol import Answer, Query, Rows

CARD = {
    "object": "DeepFool",
    "version": 3,
    "source": "Moosavi-Dezfooli et al. 2016, algorithm 2 and section 3.3",
    "variants": {
        "deepfool_l2": {"set": {"norm": "l2"}, "summary": "DeepFool for the L2 norm"},
        "deepfool_linf": {"set": {"norm": "linf"}, "summary": "DeepFool for the Linf norm"},
    },
    "cost": "one forward and candidates - 1 backward passes per step, usually 2 to 5 steps",
    "differences": (
        "foolbox and torchattacks bisect nothing. foolbox sums the steps outside the box, as the "
        "authors do (sum_steps without refine is their algorithm), and takes the predicted class "
        "for the true one; torchattacks and adversarial-library move the clipped point, as here."
    ),
    "params": {
        "norm": {"help": "norm to minimise"},
        "steps": {
            "unit": "iterations",
            "min": 1,
            "help": "most steps to the linearised boundary",
            "papers": {"deepfool": 50},
        },
        "overshoot": {
            "unit": "share of the perturbation",
            "min": 0,
            "help": "how far beyond the boundary",
            "papers": {"deepfool": 0.02},
        },
        "candidates": {
            "unit": "classes",
            "min": 2,
            "help": "most likely classes of the image to consider, its own included",
            "papers": {"deepfool": 10},
        },
        "refine": {
            "help": "bisect from the image to the adversarial point",
            "papers": {"deepfool": False},
        },
        "sum_steps": {
            "help": "clip the sum of all steps, not each point: fails more often",
            "papers": {"deepfool": True},
        },
    },
}

# The first point that is asked between the image and the adversarial point lies this near to the
# latter: mostly the boundary does too. Otherwise the segment is halved until it is this short.
TOLERANCE = 0.002
# Asked in float32: first steps, as their signs of tiny slopes decide much in Linf, and rows with a
# boundary this near (share of the logit range), which bf16 would steer in circles.
NEAR = 0.02
EXTRA = 1e-4  # the authors' guard against steps that vanish


@dataclass
class State:
    """`points` (B, C, H, W) to ask about; `path` (B, C, H, W): sum of all steps; `end`
    (B, C, H, W): the adversarial point found; `done` (B,) int64 steps made; `halved` (B,) int64
    bisections made; `low`, `high` (B,): the segment's shares between which the boundary lies;
    `broken` (B,) bool: `end` is set; `near` (B,) bool: to be asked in float32."""

    points: Tensor
    path: Tensor
    end: Tensor
    done: Tensor
    halved: Tensor
    low: Tensor
    high: Tensor
    broken: Tensor
    near: Tensor


@dataclass(frozen=True)
class DeepFool:
    norm: Literal["l2", "linf"] = "l2"
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    refine: bool = True
    sum_steps: bool = False

    minimum: ClassVar[bool] = True
    ranks_classes: ClassVar[bool] = True
    restarts: ClassVar[int] = 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at their images."""
        images, count = rows.images, torch.zeros_like(rows.labels)
        zeros, no = count.to(images.dtype), torch.zeros_like(count, dtype=torch.bool)
        return State(
            points=images.clone(),
            path=torch.zeros_like(images),
            end=images.clone(),
            done=count,
            halved=count.clone(),
            low=zeros,
            high=zeros + 1,
            broken=no,
            near=~no,
        )

    def ask(self, state: State, rows: Rows) -> Query:
        """Gradients of the candidates' logits minus the true one's; for bisections logits only."""
        classes = self._classes(rows).masked_fill(state.broken[:, None], -1)
        return Query(state.points, "class_gradients", classes=classes, against=rows.labels)

    def fine(self, state: State, rows: Rows) -> Tensor:
        """Rows near a boundary and rows that bisect."""
        return state.near | state.broken

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One step, or one bisection."""
        # A twin may err on the image itself: that is no success.
        wrong = misclassified(answer.logits, rows.labels, rows.target) & (state.done > 0)
        fresh = wrong & ~state.broken
        halving = state.broken
        share = _share(state.low, state.high, state.halved)
        high = torch.where(halving & wrong, share, state.high)
        low = torch.where(halving & ~wrong, share, state.low)
        broken = state.broken | fresh
        halved = state.halved + halving.long()
        middle = per_row(_share(low, high, halved), state.points)
        end = torch.where(per_row(fresh, state.points), state.points, state.end)
        step, near = self._step(rows, answer)
        path = torch.where(per_row(broken, step), state.path, state.path + step)
        begin, way = (rows.images, path) if self.sum_steps else (state.points, step)
        ahead = (begin + (1 + self.overshoot) * way).clamp_(0, 1)
        # Where nothing follows, the points stay at the end: there is nothing new to judge.
        back = (rows.images + middle * (end - rows.images)).clamp_(0, 1) if self.refine else end
        return State(
            points=torch.where(per_row(broken, ahead), back, ahead),
            path=path,
            end=end,
            done=state.done + (~broken).long(),
            halved=halved,
            low=low,
            high=high,
            broken=broken,
            near=torch.where(broken, state.near, near),
        )

    def _classes(self, rows: Rows) -> Tensor:
        """Candidates (B, M): the likeliest wrong classes of the images; a target is among them."""
        classes = rows.rivals[:, : self.candidates - 1]
        absent = (rows.target >= 0) & ~(classes == rows.target[:, None]).any(1)
        if bool(absent.any()):
            classes = classes.clone()
            classes[:, -1] = torch.where(absent, rows.target, classes[:, -1])
        return classes

    def _step(self, rows: Rows, answer: Answer) -> tuple[Tensor, Tensor]:
        """The step (B, C, H, W) to the nearest linearised boundary, and which rows are near one."""
        assert answer.class_gradients is not None
        classes, slopes = self._classes(rows), answer.class_gradients
        logits = answer.logits.to(slopes)
        gaps = logits.gather(1, classes) - logits.gather(1, rows.labels[:, None])  # (B, M): f_k
        if bool((rows.target >= 0).any()):
            gaps, slopes = _towards_target(gaps, slopes, classes == rows.target[:, None])
        order = 2.0 if self.norm == "l2" else 1.0
        lengths = torch.linalg.vector_norm(slopes.flatten(2), ord=order, dim=2)  # (B, M)
        distances = (gaps.abs() / lengths).nan_to_num(nan=torch.inf, posinf=torch.inf)
        nearest = distances.argmin(1, keepdim=True)
        every = torch.arange(len(slopes), device=slopes.device)
        slope = slopes[every, nearest[:, 0]]
        size = distances.gather(1, nearest)[:, 0] + EXTRA
        # No boundary in sight (zero slopes, excluded classes): no step.
        size = size.masked_fill(torch.isinf(size), 0)
        length = lengths.gather(1, nearest)[:, 0].clamp_min(torch.finfo(slope.dtype).tiny)
        unit = slope / per_row(length, slope) if self.norm == "l2" else slope.sign()
        spread = logits.amax(1) - logits.amin(1)
        near = gaps.abs().amin(1) < NEAR * spread
        return unit * per_row(size, unit), near

    def settle(self, state: State, rows: Rows, refused: Tensor) -> State:
        """Rows whose adversarial point was refused search on from there, in float32.

        What was asked in vain counts as steps: a verdict that never agrees ends the run too.
        """
        again = refused & state.broken
        return replace(
            state,
            points=torch.where(per_row(again, state.points), state.end, state.points),
            done=state.done + again * (1 + state.halved),
            halved=state.halved.masked_fill(refused, 0),
            low=state.low.masked_fill(refused, 0),
            high=state.high.masked_fill(refused, 1),
            broken=state.broken & ~refused,
            near=state.near | refused,
        )

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows that are through with bisecting, or whose steps are used up."""
        wanted = TOLERANCE if self.refine else 1.0
        through = state.high - state.low <= 1.001 * wanted
        return torch.where(state.broken, through, state.done >= self.steps)

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """Most forward and backward passes of one run."""
        forward = self.steps + (1 + math.ceil(-math.log2(TOLERANCE)) if self.refine else 0)
        return forward, self.steps * min(self.candidates - 1, classes - 1)


def _share(low: Tensor, high: Tensor, halved: Tensor) -> Tensor:
    """Where on the segment (B,) to ask next."""
    return torch.where(halved == 0, 1 - TOLERANCE, (low + high) / 2)


def _towards_target(gaps: Tensor, slopes: Tensor, aimed: Tensor) -> tuple[Tensor, Tensor]:
    """For rows with a target (`aimed` (B, M) marks it) every column becomes the one boundary that
    matters: target against the class that leads among the others, the true one included."""
    targeted = aimed.any(1)
    every = torch.arange(len(gaps), device=gaps.device)
    column = aimed.int().argmax(1)
    lead, place = gaps.masked_fill(aimed, -torch.inf).max(1)
    ahead = lead > 0  # otherwise the true class leads, whose gap and slope are 0
    gap = gaps[every, column] - lead.clamp_min(0)
    slope = slopes[every, column] - slopes[every, place] * per_row(ahead, slopes[:, 0])
    mask = targeted[:, None]
    return (
        torch.where(mask, gap[:, None], gaps),
        torch.where(per_row(targeted, slopes), slope[:, None], slopes),
    )
