"""Boundary attack: a random walk along the decision boundary towards the image; decisions only.

b: a misclassified start;  v = x - b, D = ||v||, u = v / D, eta ~ N(0, I)   (Brendel et al. 2018)
eta <- delta D (eta - (u.eta) u) / ||eta - (u.eta) u||                      across, on the sphere
s   = P(x + (eta - v) / sqrt(1 + delta^2))
c   = P(s + max(e D + ||x - s|| - D, 0) (x - s) / ||x - s||)                and towards the image
b  <- c  where c is misclassified and ||x - c|| < D

P clips to the box. The step sizes delta and e follow the shares of misclassified points: both grow
by `adaptation` where that of the last 100 s is above 1/2 and shrink where it is below 1/5; e alone
does where that of the last 30 c is above 1/4 or below 1/10. A walk ends early where e < 1e-7.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import rng
from ..core.norms import per_row
from ..engine.losses import misclassified
from ..engine.protocol import Answer, Query, Rows
from ..engine.rows import take
from . import starts
from .starts import Start

CARD = {
    "object": "Boundary",
    "version": 1,
    "source": "Brendel, Rauber and Bethge 2018, section 2",
    "cost": (
        "1.1 times steps forward passes, and at most init_draws + init_blends for the start; "
        "no backward pass"
    ),
    "differences": (
        "foolbox draws one step across for a whole batch, gives no result for any image where one "
        "finds no start, keeps asking about walks that have ended, and looks at one in ten points "
        "c when it adapts e (record_every=10), which takes ten times as long to find its size."
    ),
    # From other images it comes nearer in 250 steps than from noise in 1,000 (MNIST, LeNet).
    "budgets": {
        "quick": {"steps": 1000, "init": "images"},
        "standard": {"steps": 5000, "init": "images"},
        "deep": {"init": "images"},
    },
    "params": {
        "steps": {
            "unit": "iterations",
            "min": 1,
            "help": "most steps of the walk",
            "papers": {"foolbox": 25000},
        },
        "spherical_step": {
            "unit": "share of the distance",
            "min": 0,
            "help": "first size delta of a step across",
            "papers": {"foolbox": 0.01},
        },
        "source_step": {
            "unit": "share of the distance",
            "min": 0,
            "help": "first size e of a step towards the image",
            "papers": {"foolbox": 0.01},
        },
        "adaptation": {
            "min": 1,
            "help": "factor by which step sizes grow and shrink",
            "papers": {"foolbox": 1.5},
        },
        "probe_every": {
            "unit": "steps",
            "min": 1,
            "help": "how often to ask about s too",
            "papers": {"foolbox": 10},
        },
        "record_every": {
            "unit": "steps",
            "min": 1,
            "help": "how often the answer about c counts for its size",
            "papers": {"foolbox": 10},
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
            "papers": {"foolbox": 50},
        },
    },
}

CONVERGED = 1e-7
TINY = 1e-12
# A verdict on step sizes: answers it looks at, shrink below this share, grow above that one.
Rule = tuple[int, float, float]
ACROSS: Rule = (100, 0.2, 0.5)
TOWARDS: Rule = (30, 0.1, 0.25)


@dataclass
class Record:
    """The latest answers of each row: `answers` (B, L) bool, a ring; `count` (B,) int64 of those
    since the last change."""

    answers: Tensor
    count: Tensor


@dataclass
class State:
    """`best` (B, C, H, W): the nearest misclassified point, at L2 distance `length` (B,); `points`
    (B, C, H, W): asked now; `trial` (B, C, H, W): the c that follows where `probing` (B,) bool,
    which means that `points` is s; `spherical`, `source` (B,): delta and e; `across`, `towards`:
    which s and c were misclassified; `done` (B,) int64 steps made."""

    start: Start
    best: Tensor
    length: Tensor
    points: Tensor
    trial: Tensor
    probing: Tensor
    spherical: Tensor
    source: Tensor
    across: Record
    towards: Record
    done: Tensor


@dataclass(frozen=True)
class Boundary:
    steps: int = 25000
    spherical_step: float = 0.01
    source_step: float = 0.01
    adaptation: float = 1.5
    probe_every: int = 10
    record_every: int = 1
    init: Literal["noise", "images"] = "noise"
    init_draws: int = 1000
    init_blends: int = 50

    minimum: ClassVar[bool] = True
    donors: ClassVar[bool] = True
    norm: ClassVar[str] = "l2"
    restarts: ClassVar[int] = 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at the first point that may be misclassified."""
        start = starts.begin(rows, self.init == "noise")
        count = torch.zeros_like(rows.labels)
        no, zeros = torch.zeros_like(count, dtype=torch.bool), count.to(rows.images)
        return State(
            start=start,
            best=start.points.clone(),
            length=zeros + torch.inf,
            points=start.points.clone(),
            trial=start.points.clone(),
            probing=no,
            spherical=zeros + self.spherical_step,
            source=zeros + self.source_step,
            across=Record(no[:, None].repeat(1, ACROSS[0]), count),
            towards=Record(no[:, None].repeat(1, TOWARDS[0]), count.clone()),
            done=count.clone(),
        )

    def ask(self, state: State, rows: Rows) -> Query:
        """The logits: the walk looks at their class only."""
        return Query(state.points, "logits")

    def fine(self, state: State, rows: Rows) -> Tensor:
        """All but noise images. The walk, as it gathers every step that bf16 takes for one across
        the boundary (measured: 15 % farther after 4,000 steps); blends and images of other classes,
        as each row has one start, and none comes back from a wrong one."""
        return state.start.stage != starts.DRAW

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One step, one answer about the sphere, or one step of the search for a start."""
        wrong = misclassified(answer.decided, rows.labels, rows.target)
        walking = state.start.stage == starts.READY
        probe, step = walking & state.probing, walking & ~state.probing
        length = (state.points - rows.images).flatten(1).norm(dim=1)
        better = (step & wrong & (length < state.length)).nonzero()[:, 0]
        state.best[better] = state.points[better]
        state.length[better] = length[better]
        state.done = state.done + step
        state = self._adapted(state, wrong, probe, step)
        shown = probe.nonzero()[:, 0]
        state.points[shown] = state.trial[shown]
        state.probing = state.probing & ~probe
        if not bool(walking.all()):
            state = self._begun(state, rows, wrong, walking)
        # A probe is followed by its c; all others that have a start need a new pair.
        return self._proposed(state, rows, (state.start.stage == starts.READY) & ~probe)

    def _begun(self, state: State, rows: Rows, wrong: Tensor, walking: Tensor) -> State:
        """The search for a start goes on in all rows but those `walking` (B,)."""
        start = starts.advance(state.start, rows, wrong, self.init_draws, self.init_blends)
        moved = (~walking).nonzero()[:, 0]
        state.best[moved] = state.points[moved] = start.points[moved]
        ready = (start.stage == starts.READY) & ~walking
        length = (start.points - rows.images).flatten(1).norm(dim=1)
        return replace(state, start=start, length=torch.where(ready, length, state.length))

    def _adapted(self, state: State, wrong: Tensor, probe: Tensor, step: Tensor) -> State:
        """Write down the answers `wrong` (B,) and change step sizes by them."""
        noted = step & (state.done % self.record_every == 0)
        across, both = judged(state.across, wrong, probe, ACROSS)
        towards, alone = judged(state.towards, wrong, noted, TOWARDS)
        return replace(
            state,
            across=across,
            towards=towards,
            spherical=state.spherical * self.adaptation**both,
            source=state.source * self.adaptation ** (both + alone),
        )

    def _proposed(self, state: State, rows: Rows, wanted: Tensor) -> State:
        """The next s and c of the rows `wanted` (B,); s is asked at every tenth step only."""
        index = wanted.nonzero()[:, 0]
        if len(index) == 0:
            return state
        part, which = take(state, index), take(rows, index)
        sphere, trial = proposals(part, which)
        probing = (part.done + 1) % self.probe_every == 0
        state.trial[index] = trial
        state.points[index] = torch.where(per_row(probing, trial), sphere, trial)
        state.probing[index] = probing
        return state

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose steps are used up or have become tiny, and rows that found no start."""
        hopeless = state.start.stage == starts.HOPELESS
        return hopeless | (state.done >= self.steps) | (state.source < CONVERGED)

    def last(self, state: State) -> Tensor:
        """The nearest misclassified points; of rows without a start the last point tried."""
        return state.best

    def passes(self, classes: int) -> tuple[int, int]:
        """Forward passes of the walk and of the longest search for a start."""
        return self.steps + self.steps // self.probe_every + self.init_draws + self.init_blends, 0


def proposals(state: State, rows: Rows) -> tuple[Tensor, Tensor]:
    """The points s and c (B, C, H, W) of the next step, each row with noise of its own."""
    images, shape = rows.images.flatten(1), rows.images.shape
    length = state.length[:, None].clamp_min(TINY)
    delta, source = state.spherical[:, None], state.source[:, None]
    away = images - state.best.flatten(1)
    # Negative numbers: the draws of the start have the others.
    noise = rng.normal(rng.fold(rows.key, -1 - state.done), (images.shape[1],), images.dtype)
    noise -= away * ((away * noise).sum(1, keepdim=True) / length.square())
    noise *= delta * length / noise.norm(dim=1, keepdim=True).clamp_min(TINY)
    sphere = images.addcdiv(noise - away, (1 + delta.square()).sqrt()).clamp_(0, 1)
    inwards = images - sphere
    size = inwards.norm(dim=1, keepdim=True)
    # The clip to the box shortens s already.
    step = (source * length + size - length).clamp_min(0) / size.clamp_min(TINY)
    trial = torch.addcmul(sphere, inwards, step).clamp_(0, 1)
    return sphere.view(shape), trial.view(shape)


def judged(record: Record, wrong: Tensor, noted: Tensor, rule: Rule) -> tuple[Record, Tensor]:
    """The record with the answers `wrong` (B,) of the rows `noted` (B,), and for each row 1, -1 or
    0: its step size grows, shrinks or stays. A row that changes begins its record anew."""
    length, low, high = rule
    index = noted.nonzero()[:, 0]
    record.answers[index, record.count[index] % length] = wrong[index]
    count = record.count + noted
    share = record.answers.double().mean(1)
    change = ((share > high).long() - (share < low).long()) * (noted & (count >= length))
    return Record(record.answers, count.masked_fill(change != 0, 0)), change
