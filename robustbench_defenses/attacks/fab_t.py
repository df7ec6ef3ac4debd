"""FAB towards each likely class in turn: steps to the nearest point of the linearised boundary.

At the asked point u, for the target t: f(u) = Z_t(u) - Z_y(u), w = grad f(u); boundary plane
P = {v : w.v = w.u - f(u)}                                          (Croce and Hein 2020, section 2)
    base  = x + beta (u - x) if u is misclassified (backward step, 2.4), else u
    d1    = step from base to P inside the box, d2 = step from the image x to P        (equation 5)
    alpha = min(||d1|| / (||d1|| + ||d2||), alpha_max)                                 (equation 7)
    u'    = clip((1 - alpha) (base + eta d1) + alpha (x + eta d2))                     (equation 9)

One run per target: the wrong classes by falling clean logits. A plane is taken where the network
was asked, before the backward step: so each point is scored once, not twice, at equal strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..engine.losses import margin, misclassified
from ..engine.protocol import Answer, Query, Rows

CARD = {
    "object": "FabT",
    "version": 2,
    "source": "Croce and Hein 2020 (FAB), algorithm 1; targets: Croce and Hein 2020 (AutoAttack)",
    "aliases": ["fab"],
    "variants": {
        "fab_t_linf": {"set": {"norm": "linf"}, "summary": "FAB-T, smallest Linf norm"},
        "fab_t_l2": {"set": {"norm": "l2"}, "summary": "FAB-T, smallest L2 norm"},
        "fab_t_l1": {"set": {"norm": "l1"}, "summary": "FAB-T, smallest L1 norm"},
    },
    "cost": "targets times steps forward and backward passes",
    "budgets": {"quick": {"steps": 30, "targets": 3}},
    "differences": (
        "AutoAttack asks twice per step, before and after the backward step; here the gradient "
        "comes from the point before it. No random restarts, no final search on the segment."
    ),
    "params": {
        "norm": {"help": "norm to be made small"},
        "steps": {
            "unit": "iterations",
            "min": 1,
            "help": "gradient steps towards one target",
            "papers": {"autoattack": 100},
        },
        "targets": {
            "unit": "classes",
            "min": 1,
            "help": "likeliest wrong classes tried, one run each; at most all of them",
            "papers": {"autoattack": 9},
        },
        "alpha_max": {"min": 0, "max": 1, "help": "largest pull towards the clean image"},
        "eta": {"min": 1, "help": "overshoot of the steps to the plane"},
        "beta": {"min": 0, "max": 1, "help": "backward step: share of the perturbation kept"},
    },
}

# The last steps are asked in float32: this share of them, and of perturbations without a larger
# entry than `SMALL` that one. In bf16 alone FAB ends 0.1 % too far away from digits of MNIST, but
# several times too far where the boundary is nearer than bf16 tells pixels apart.
FINE_SHARE, FINE_SHARE_OF_SMALL = 0.1, 0.4
SMALL = 0.05


@dataclass
class State:
    """`points` (B, C, H, W) to be asked; `done` (B,) int64 steps made."""

    points: Tensor
    done: Tensor


@dataclass(frozen=True)
class FabT:
    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 100
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    minimum: ClassVar[bool] = True
    ranks_classes: ClassVar[bool] = True

    @property
    def restarts(self) -> int:
        """One run per target."""
        return self.targets

    def runs(self, classes: int) -> int:
        """No more targets than wrong classes."""
        return min(self.targets, classes - 1)

    def start(self, rows: Rows) -> State:
        """Fresh rows at their images."""
        return State(rows.images.clone(), torch.zeros_like(rows.labels))

    def ask(self, state: State, rows: Rows) -> Query:
        """f and its gradient at the current points."""
        return Query(state.points, "gradient", difference)

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One step: equations 5, 7 and 9."""
        assert answer.gradient is not None
        assert answer.loss is not None
        clean, asked = rows.images.flatten(1), state.points.flatten(1)
        plane = answer.gradient.flatten(1)
        # In units of the largest entry: saturated logits have gradients of 1e-30.
        largest = plane.abs().amax(1).clamp_min(torch.finfo(plane.dtype).tiny)
        plane, value = plane / largest[:, None], answer.loss.to(plane) / largest
        found = misclassified(answer.logits, rows.labels, rows.target)
        kept = torch.where(found, self.beta, 1.0).to(asked)
        base = torch.lerp(clean, asked, kept[:, None])
        begin, planes = torch.cat([base, clean]), torch.cat([plane, plane])
        gap = (planes * (torch.cat([asked, asked]) - begin)).sum(1) - torch.cat([value, value])
        step = step_to_plane(begin, planes, gap, self.norm)
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[self.norm]
        length = torch.linalg.vector_norm(step, order, dim=1).clamp_min(1e-8)
        first, second = length.chunk(2)
        alpha = (first / (first + second)).clamp_max(self.alpha_max)
        ends = begin.add_(step, alpha=self.eta)
        points = torch.lerp(ends[: len(base)], ends[len(base) :], alpha[:, None]).clamp_(0, 1)
        return State(points.view_as(rows.images), state.done + 1)

    def fine(self, state: State, rows: Rows) -> Tensor:
        """Rows in their last steps: there the boundary decides."""
        last = state.done >= round(self.steps * (1 - FINE_SHARE))
        late = state.done >= round(self.steps * (1 - FINE_SHARE_OF_SMALL))
        if bool(late.any()):
            largest = (state.points - rows.images).flatten(1).abs().amax(1)
            last |= late & (largest < SMALL)
        return last

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose steps are used up; of a question with a target, all runs but the first."""
        return (state.done >= self.steps) | ((rows.target >= 0) & (rows.run > 0))

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        """`steps` forward and backward passes."""
        return self.steps, self.steps


def difference(logits: Tensor, rows: Rows) -> Tensor:
    """Z_t - Z_y (B,), t the row's own rival: another class than y is wanted, whichever.

    With the question's target: Z_t - max_{k != t} Z_k. There t itself has to lead, and behind the
    plane between t and y a third class may.
    """
    rank = rows.run.clamp_max(rows.rivals.shape[1] - 1)
    aim = rows.rivals.gather(1, rank[:, None])[:, 0]
    pair = logits.gather(1, torch.stack([aim, rows.labels], 1))
    value = pair[:, 0] - pair[:, 1]
    targeted = rows.target >= 0
    return torch.where(targeted, margin(logits, rows), value) if bool(targeted.any()) else value


def step_to_plane(points: Tensor, plane: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The shortest d (N, D) with `plane`.d = `gap` and `points` + d in [0, 1]; exact.

    `points`, `plane` (N, D); `gap` (N,). With s = sign(gap) and u_i the room of entry i towards
    s w_i: d_i = s sign(w_i) min(h_i(l), u_i), h = l for Linf, l |w_i| for L2, where l solves
    sum |w_i| min(h_i(l), u_i) = |gap|. L1 fills the entries of largest |w_i| up to u_i in turn.
    Where even the corner does not reach the plane, d goes to the corner (Croce and Hein 2020,
    section 2.2 and appendix).
    """
    towards = plane * gap.sign()[:, None]
    weight, needed = plane.abs(), gap.abs()
    room = (towards > 0).to(points).sub_(points).abs_()  # 1 - x where the entry rises, else x
    if norm == "l1":
        return towards.sign() * _fill(weight, room, needed)
    if norm == "linf":
        return towards.sign_() * room.minimum(_level(room, weight, weight * room, needed))
    # h_i(l) reaches the room at l = u_i / |w_i|; entries of weight 0 take no part.
    knots = room / weight.clamp_min(torch.finfo(weight.dtype).tiny)
    level = _level(knots, weight.square(), weight * room, needed)
    return towards.sign_() * room.minimum(level * weight)


def _level(knots: Tensor, slopes: Tensor, shares: Tensor, needed: Tensor) -> Tensor:
    """The l (N, 1) where sum over i of min(slope_i l, share_i) = needed; huge where none is.

    Term i is full from `knots_i` on (N, D). The sum is concave and piecewise linear, so Newton's
    method from l = 0 rises monotonically and ends on the exact piece after a few rounds.
    """
    terms = torch.stack([shares, slopes], 1)  # (N, 2, D)
    total, slope = terms.sum(2).unbind(1)
    tiny, huge = torch.finfo(slopes.dtype).tiny, torch.finfo(slopes.dtype).max
    level = needed / slope.clamp_min(tiny)
    while True:
        full = (knots <= level[:, None]).to(slopes)
        inner, used = torch.bmm(terms, full[:, :, None])[:, :, 0].unbind(1)
        higher = (needed - inner) / (slope - used).clamp_min(tiny)
        if not bool((higher > level).any()):
            break
        level = level.maximum(higher)
    return torch.where(total <= needed, huge, level.clamp_max(huge))[:, None]


def _fill(weight: Tensor, room: Tensor, needed: Tensor) -> Tensor:
    """Sizes (N, D): entries by falling weight, each up to its room, until `needed` is used."""
    ordered, order = weight.sort(dim=1, descending=True)
    share = ordered * room.gather(1, order)
    before = share.cumsum(1) - share
    used = (needed[:, None] - before).clamp_min(0).minimum(share)
    size = used / ordered.clamp_min(torch.finfo(weight.dtype).tiny)
    return torch.zeros_like(size).scatter_(1, order, size).minimum(room)
