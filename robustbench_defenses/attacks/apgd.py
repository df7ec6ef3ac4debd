"""Auto-PGD: projected gradient steps with momentum and a step size that adapts itself.

z       = P(x_t + eta_t d(grad L(x_t)))                       (Croce and Hein 2020, algorithm 1)
x_{t+1} = P(x_t + a (z - x_t) + (1 - a)(x_t - x_{t-1})),      a = 0.75, at the first step 1
eta_0   = 2 eps; at a checkpoint eta is halved, and the run goes on from its best point, if
  (1) the loss rose in at most rho k of the last k steps, or
  (2) eta was not halved at the checkpoint before and the best loss is the same as there.

L1 (Croce and Hein 2021): no momentum. A step of length eta along the signs of the share q of the
entries with the largest gradients, projected onto ball and box together. eta_0 = eps, q_0 = 0.2;
every 4 % of the steps q becomes s / (1.5 n), s the non-zeros of the best perturbation, and eta is
divided by 1.5 (not below eps / 10), or set to eps at the best point if s fell by more than 5 %.

The targeted form (`apgd_t`) makes one run towards each of the classes ranked next to the true one
by the clean logits; any misclassification counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..core import rng
from ..core.errors import UserError
from ..core.norms import per_row, project
from ..engine.protocol import Answer, Query, Rows
from .gradient import steepest

CARD = {
    "object": "APGD",
    "name": "apgd_ce",
    "version": 2,
    "source": "Croce and Hein 2020, algorithm 1; L1: Croce and Hein 2021, algorithm 1",
    "aliases": ["apgd"],
    "variants": {
        "apgd_ce_linf": {"set": {"norm": "linf"}, "summary": "APGD on cross-entropy, Linf ball"},
        "apgd_ce_l2": {"set": {"norm": "l2"}, "summary": "APGD on cross-entropy, L2 ball"},
        "apgd_ce_l1": {
            "set": {"norm": "l1", "large_radius": True},
            "summary": "APGD on cross-entropy, L1 ball",
        },
        "apgd_dlr": {
            "set": {"loss": "dlr"},
            "summary": "APGD on the difference of logits ratio, which no logit scale can saturate",
        },
        "apgd_dlr_linf": {"set": {"loss": "dlr"}, "summary": "APGD on the DLR loss, Linf ball"},
        "apgd_dlr_l2": {
            "set": {"loss": "dlr", "norm": "l2"},
            "summary": "APGD on the DLR loss, L2 ball",
        },
        "apgd_dlr_l1": {
            "set": {"loss": "dlr", "norm": "l1", "large_radius": True},
            "summary": "APGD on the DLR loss, L1 ball",
        },
        "apgd_t": {
            "set": {"loss": "dlr", "targets": 9},
            "summary": "APGD towards the nine classes next in rank, one run each (targeted DLR)",
        },
        "apgd_t_linf": {
            "set": {"loss": "dlr", "targets": 9},
            "summary": "APGD towards nine classes, Linf ball",
        },
        "apgd_t_l2": {
            "set": {"loss": "dlr", "targets": 9, "norm": "l2"},
            "summary": "APGD towards nine classes, L2 ball",
        },
        "apgd_t_l1": {
            "set": {"loss": "dlr", "targets": 9, "norm": "l1", "large_radius": True},
            "summary": "APGD towards nine classes, L1 ball",
        },
    },
    "cost": "steps forward and backward passes per restart and target",
    "budgets": {"quick": {"steps": 50}, "deep": {"restarts": 5}},
    "differences": (
        "pyautoattack and torchattacks compare the oldest loss with 0 instead of the loss at the "
        "start at the first checkpoint, and spend one pass more to judge the last point. "
        "foolbox has no APGD. In L1 the first two of the three phases make one step less: the leap "
        "to the next radius takes its place."
    ),
    "params": {
        "norm": {"help": "norm of the budget"},
        "steps": {
            "unit": "iterations",
            "min": 1,
            "help": "gradient steps of one run",
            "papers": {"autoattack": 100},
        },
        "restarts": {
            "unit": "runs",
            "min": 1,
            "help": "independent runs, each from its own start (targets: per target)",
            "papers": {"autoattack": 1, "autoattack l1": 5},
        },
        "loss": {"help": "loss to increase"},
        "targets": {
            "unit": "classes",
            "min": 0,
            "help": "wrong classes tried one by one, by falling clean logits; 0: untargeted loss",
            "papers": {"autoattack": 9, "autoattack l1": 5},
        },
        "rho": {"min": 0, "max": 1, "help": "share of steps that must raise the loss"},
        "large_radius": {
            "help": "L1 only: 30 % of the steps in a ball of 3 eps, 30 % in 2 eps, the rest in eps",
            "papers": {"autoattack l1": True},
        },
        "logit_scale": {"help": "factor on the logits before the loss (undoes saturation)"},
    },
}


FEW_CLASSES = 3  # for which the targeted DLR is not defined: it needs a fourth


@dataclass
class Momentum:
    """Linf and L2: `past` (B, C, H, W), the point before; `loss` (B,), there; `rises` (B,) int64
    since the last checkpoint; `checked` (B,), the best loss there; `halved` (B,) bool, what was
    done there; `due`, `interval` (B,) int64, the steps at and up to the next checkpoint."""

    past: Tensor
    loss: Tensor
    rises: Tensor
    checked: Tensor
    halved: Tensor
    due: Tensor
    interval: Tensor


@dataclass
class Sparsity:
    """L1: `share` (B,) of the entries that a step moves; `support` (B,): non-zeros of the best
    perturbation when last counted."""

    share: Tensor
    support: Tensor


@dataclass
class State:
    """`points`, and `best` with its `best_gradient` (B, C, H, W); `best_loss`, `step` (B,);
    `done` (B,) int64 steps made; `memory`: what the norm's rule remembers."""

    points: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    done: Tensor
    memory: Momentum | Sparsity


def intervals(steps: int) -> tuple[int, int, int]:
    """First interval between checkpoints, what each next one is shorter by, and the shortest."""
    return max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)


@dataclass(frozen=True)
class APGD:
    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "margin", "dlr"] = "ce"
    targets: int = 0
    rho: float = 0.75
    large_radius: bool = False
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.large_radius and self.norm != "l1":
            raise UserError(
                f"large_radius belongs to the L1 form of APGD, not to {self.norm}",
                hint="leave it out, or use norm l1",
            )

    @property
    def ranks_classes(self) -> bool:
        """The targeted form needs the rows' rivals."""
        return self.targets > 0

    def runs(self, classes: int) -> int:
        """Restarts times targets; there are classes - 1 targets at most."""
        return self.restarts * (min(self.targets, classes - 1) if self.targets else 1)

    def start(self, rows: Rows) -> State:
        """Fresh rows at a random point of the sphere (L1: a projected Gaussian one)."""
        points = self._start_points(rows)
        nothing = torch.full_like(rows.eps, -torch.inf)
        zero = torch.zeros_like(rows.labels)
        memory: Momentum | Sparsity
        if self.norm == "l1":
            share = torch.full_like(rows.eps, 0.2)
            memory = Sparsity(share, torch.full_like(zero, points[0].numel()))
            if self.large_radius:
                memory.support = _support(points, rows)
                memory.share = memory.support / (1.5 * points[0].numel())
            step = rows.eps * self._radius(zero)
        else:
            first = torch.full_like(zero, intervals(self.steps)[0])
            # Halved "before" the first checkpoint: rule (2) cannot hold there.
            halved = torch.ones_like(zero, dtype=torch.bool)
            memory = Momentum(points, nothing.clone(), zero.clone(), nothing, halved, first, first)
            step = 2 * rows.eps
        gradient = torch.zeros_like(points)
        return State(points, points.clone(), gradient, nothing.clone(), step, zero, memory)

    def _start_points(self, rows: Rows) -> Tensor:
        images = rows.images
        shape = tuple(images.shape[1:])
        if self.norm == "linf":
            noise = rng.uniform(rows.key, shape, images.dtype).mul_(2).sub_(1)
            length = noise.flatten(1).abs().amax(1)
        else:
            noise = rng.normal(rows.key, shape, images.dtype)
            if self.norm == "l1":
                radius = rows.eps * self._radius(torch.zeros_like(rows.labels))
                return project(images + noise, images, radius, "l1")
            length = noise.flatten(1).norm(dim=1)
        scale = rows.eps / length.clamp_min(1e-12)
        return noise.mul_(per_row(scale, noise)).add_(images).clamp_(0, 1)

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient of the loss at the current points; targeted runs aim it at their class.

        Of three classes DLR cannot aim at the last: its denominator is the gap to that very class.
        These runs take the untargeted form.
        """
        aim = None
        classes = rows.rivals.shape[1] + 1
        if self.targets and not (self.loss == "dlr" and classes == FEW_CLASSES):
            rank = rows.run % min(self.targets, rows.rivals.shape[1])
            aim = rows.rivals.gather(1, rank[:, None])[:, 0]
            aim = torch.where(rows.target >= 0, rows.target, aim)
        return Query(state.points, "gradient", self.loss, self.logit_scale, aim)

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """The best point so far, the step size, and one step."""
        assert answer.gradient is not None
        assert answer.loss is not None
        loss = answer.loss.to(state.best_loss)
        higher = loss > state.best_loss
        improved = higher.nonzero()[:, 0]
        state.best.index_copy_(0, improved, state.points[improved])
        state.best_gradient.index_copy_(0, improved, answer.gradient[improved])
        state.best_loss = torch.maximum(loss, state.best_loss)
        if isinstance(state.memory, Sparsity):
            return self._tell_l1(state, state.memory, rows, answer.gradient)
        memory = _counted(state.memory, loss, state.done)
        points, gradient, step = state.points, answer.gradient, state.step
        due = state.done == memory.due
        if bool(due.any()):
            memory, halved = self._checkpoint(memory, due, state.best_loss)
            step = torch.where(halved, step / 2, step)
            back = halved.nonzero()[:, 0]
            points = points.index_copy(0, back, state.best[back])
            gradient = gradient.index_copy(0, back, state.best_gradient[back])
        moved = self._moved(points, memory.past, gradient, step, state.done, rows)
        return replace(
            state, points=moved, step=step, done=state.done + 1,
            memory=replace(memory, past=points),
        )  # fmt: skip

    def _checkpoint(self, memory: Momentum, due: Tensor, best: Tensor) -> tuple[Momentum, Tensor]:
        """The two rules: the new memory, and which of the rows that are `due` (B,) are halved."""
        rarely = memory.rises <= self.rho * memory.interval
        stuck = ~memory.halved & (memory.checked >= best)
        halved = due & (rarely | stuck)
        _, shrink, shortest = intervals(self.steps)
        interval = torch.where(due, (memory.interval - shrink).clamp_min(shortest), memory.interval)
        memory = replace(
            memory,
            rises=memory.rises.masked_fill(due, 0),
            checked=torch.where(due, best, memory.checked),
            halved=torch.where(due, halved, memory.halved),
            due=memory.due + interval * due,
            interval=interval,
        )
        return memory, halved

    def _moved(
        self, points: Tensor, past: Tensor, gradient: Tensor, step: Tensor, done: Tensor, rows: Rows
    ) -> Tensor:
        """Algorithm 1, lines 3 and 7 (Linf, L2)."""
        length = per_row(step, points)
        # a z + (1 - a)(2 x_t - x_{t-1}) is the same sum in fewer operations.
        ahead = torch.lerp(past, points, 2.0)
        weight = per_row(torch.where(done == 0, 1.0, 0.75).to(points), points)
        if self.norm == "linf":
            radius = per_row(rows.eps, points)
            lower, upper = (
                (rows.images - radius).clamp_(min=0),
                (rows.images + radius).clamp_(max=1),
            )
            z = torch.addcmul(points, gradient.sign(), length)
            torch.clamp(z, lower, upper, out=z)
            moved = torch.lerp(ahead, z, weight)
            return torch.clamp(moved, lower, upper, out=moved)
        z = torch.addcmul(points, steepest(gradient, points, "l2"), length)
        z = project(z, rows.images, rows.eps, "l2")
        return project(torch.lerp(ahead, z, weight), rows.images, rows.eps, "l2")

    def _tell_l1(self, state: State, memory: Sparsity, rows: Rows, gradient: Tensor) -> State:
        """The L1 rule and its step."""
        done, points, step = state.done, state.points, state.step
        radius = rows.eps * self._radius(done)
        due = self._due_l1(done)
        if bool(due.any()):
            support = torch.where(due, _support(state.best, rows), memory.support)
            sparser = due & (support < 0.95 * memory.support)
            slower = torch.where(sparser, radius, step / 1.5)
            slower = torch.minimum(torch.maximum(slower, radius / 10), radius)
            step = torch.where(due, slower, step)
            share = torch.where(due, support / (1.5 * points[0].numel()), memory.share)
            memory = Sparsity(share.to(memory.share), support)
            back = sparser.nonzero()[:, 0]
            points = points.index_copy(0, back, state.best[back])
            gradient = gradient.index_copy(0, back, state.best_gradient[back])
        moved = points + _sparse_direction(gradient, memory.share) * per_row(step, points)
        following = rows.eps * self._radius(done + 1)
        leaping = following != radius
        leap = bool(leaping.any())
        if leap:  # the next, smaller ball begins at the best point of this one
            moved = torch.where(per_row(leaping, moved), state.best, moved)
        moved = project(moved, rows.images, following, "l1")
        state = replace(state, points=moved, step=step, done=done + 1, memory=memory)
        return self._leap(state, memory, leaping, following, rows) if leap else state

    def _leap(
        self, state: State, memory: Sparsity, leaping: Tensor, radius: Tensor, rows: Rows
    ) -> State:
        """Rows that enter a smaller ball begin anew there, but for their sparsity."""
        support = torch.where(leaping, _support(state.points, rows), memory.support)
        share = support / (1.5 * state.points[0].numel())
        share = torch.where(leaping, share.to(memory.share), memory.share)
        return replace(
            state,
            best_loss=state.best_loss.masked_fill(leaping, -torch.inf),
            step=torch.where(leaping, radius, state.step),
            memory=Sparsity(share, support),
        )

    def _phases(self) -> tuple[int, int]:
        """At which steps the balls of 3 eps and of 2 eps are left."""
        if not self.large_radius:
            return 0, 0
        part = math.ceil(0.3 * self.steps)
        return part, min(2 * part, self.steps)

    def _radius(self, done: Tensor) -> Tensor:
        """Radius (B,) of the ball after `done` steps, in units of eps."""
        first, second = self._phases()
        return 1 + (done < first).int() + (done < second).int()

    def _due_l1(self, done: Tensor) -> Tensor:
        """Rows (B,) bool whose sparsity is counted now: every 4 % of the steps in a ball."""
        first, second = self._phases()
        due = torch.zeros_like(done, dtype=torch.bool)
        for begin, end in ((0, first), (first, second), (second, self.steps)):
            every = max(int(0.04 * (end - begin)), 1)
            due |= (done > begin) & (done < end) & ((done - begin) % every == 0)
        return due

    def inside(self, state: State, rows: Rows) -> Tensor:
        """Rows whose current points lie in their own ball and not in a larger one."""
        return self._radius(state.done) == 1

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
        """The farthest that the steps can go, pixel units: the first ones cross the whole ball."""
        return 2 * eps * self.steps


def _counted(memory: Momentum, loss: Tensor, done: Tensor) -> Momentum:
    """The memory after a new loss (B,): one rise more where it is higher than the one before."""
    rises = memory.rises + ((loss > memory.loss) & (done > 0))
    return replace(memory, rises=rises, loss=loss)


def _support(points: Tensor, rows: Rows) -> Tensor:
    """Number (B,) int64 of entries in which `points` differ from the images."""
    return (points != rows.images).flatten(1).sum(1)


def _sparse_direction(gradient: Tensor, share: Tensor) -> Tensor:
    """Signs of the `share` (B,) of entries with the largest gradients, of L1 length 1."""
    size = gradient.flatten(1).abs()
    count = size.shape[1]
    kept = count - ((1 - share) * count).long().clamp(0, count - 1)  # (B,), at least 1
    largest = size.topk(int(kept.max()), dim=1).values
    smallest = largest.gather(1, kept[:, None] - 1)
    signs = gradient.flatten(1).sign() * (size >= smallest)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)
