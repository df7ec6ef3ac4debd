"""Carlini and Wagner's L2 attack: Adam on distance plus c times a hinge of the margin.

minimise over x':  ||x' - x||_2^2 + c max(m(x') + confidence, 0)   (Carlini and Wagner 2017, sec. V)
m = Z_y - max_{k != y} Z_k;  targeted: m = max_{k != t} Z_k - Z_t

c is found per image by `search_steps` rounds: after a success it moves towards the largest c that
failed, after a failure up (tenfold while none has succeeded). One round with a given `const` is the
fixed-c variant of many tables. The box: clip after each step, or x' = (tanh(w) + 1) / 2 (authors).

The rate falls by a cosine within each round, and a round begins at the nearest adversarial point so
far. From the image, a hundred steps at the authors' rate end at 1.7 times the distance that DDN
finds on an adversarially trained network; so they end at 1.1 times. The authors' form: const=0.001
learning_rate=0.01 final_rate=1 warm_start=false form=tanh steps=10000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core.norms import per_row
from ..engine.losses import margin, misclassified
from ..engine.protocol import Answer, Query, Rows

CARD = {
    "object": "CW",
    "version": 3,
    "source": "Carlini and Wagner 2017, sections V and VI",
    "aliases": ["cw_l2", "carlini_wagner"],
    "variants": {
        "cw_quick": {
            "set": {"search_steps": 5, "steps": 200},
            "summary": "Carlini and Wagner's attack, shortened (5 x 200; weaker)",
            "budgets": None,
        }
    },
    "cost": "at most search_steps x steps forward and backward passes (9,000)",
    # Three rounds leave no time to climb: from c = 1 they miss a fifth of robust images.
    "budgets": {"quick": {"search_steps": 3, "steps": 100, "const": 10.0}},
    "differences": (
        "the authors and foolbox use tanh and stop a batch together; here each image stops alone. "
        "foolbox returns a black image where it finds nothing and may count it as a success. "
        "torchattacks does not search c and ignores the confidence. Reference defaults are 10,000 "
        "steps; with few steps tanh hardly moves black and white pixels. `--budget quick` "
        "(3 x 100) is weaker than these defaults."
    ),
    "params": {
        "steps": {
            "unit": "iterations",
            "min": 1,
            "help": "most steps of Adam in one round",
            "papers": {"cw": 10000, "torchattacks": 50},
        },
        "search_steps": {
            "unit": "rounds",
            "min": 1,
            "help": "rounds of the search for c; 1: c is fixed",
            "papers": {"cw": 9, "torchattacks": 1},
        },
        "const": {
            "min": 0,
            "help": "first c, the weight of the hinge",
            "papers": {"cw": 0.001, "torchattacks": 1.0},
        },
        "learning_rate": {
            "min": 0,
            "help": "of Adam, at the start of a round",
            "papers": {"cw": 0.01, "torchattacks": 0.01},
        },
        "final_rate": {
            "min": 0,
            "max": 1,
            "help": "share of the rate that is left at the end of a round; 1: it does not fall",
            "papers": {"cw": 1.0},
        },
        "warm_start": {
            "help": "begin a round at the nearest adversarial point so far, not at the image",
            "papers": {"cw": False},
        },
        "confidence": {
            "unit": "logits",
            "min": 0,
            "help": "margin that an adversarial point must have",
        },
        "form": {"help": "how x' stays in the box", "papers": {"cw": "tanh"}},
        "abort_early": {
            "help": "end a round at a tenth that brought no progress (warm: of its second half)"
        },
    },
}

FIRST, SECOND, GUARD = 0.9, 0.999, 1e-8  # Adam's betas and epsilon
PROGRESS = 0.9999
INSIDE = 1 - 1e-6  # keeps the inverse of tanh finite at black and white pixels


@dataclass
class State:
    """`free` (B, C, H, W): the variables of Adam, `mean` and `square` its averages; `done` (B,)
    int64 steps of this round; `turn` (B,) int64 rounds made; `const`, `lower`, `upper` (B,): c and
    its bracket; `found` (B,) bool: success in this round; `before` (B,): loss at the last check;
    `nearest` (B, C, H, W): variables of the nearest success, `shortest` (B,) its squared distance
    (inf: none); `doubted` (B,) bool: the verdict has refused a success, to be asked in float32."""

    free: Tensor
    mean: Tensor
    square: Tensor
    done: Tensor
    turn: Tensor
    const: Tensor
    lower: Tensor
    upper: Tensor
    found: Tensor
    before: Tensor
    nearest: Tensor
    shortest: Tensor
    doubted: Tensor


@dataclass(frozen=True)
class CW:
    steps: int = 1000
    search_steps: int = 9
    const: float = 1.0
    learning_rate: float = 0.05
    final_rate: float = 0.1
    warm_start: bool = True
    confidence: float = 0.0
    form: Literal["clamp", "tanh"] = "clamp"
    abort_early: bool = True

    minimum: ClassVar[bool] = True
    norm: ClassVar[str] = "l2"
    restarts: ClassVar[int] = 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at their images."""
        free, count = self._variables(rows.images), torch.zeros_like(rows.labels)
        zeros = count.to(free.dtype)
        return State(
            free=free,
            mean=torch.zeros_like(free),
            square=torch.zeros_like(free),
            done=count,
            turn=count.clone(),
            const=zeros + self.const,
            lower=zeros,
            upper=zeros + torch.inf,
            found=torch.zeros_like(count, dtype=torch.bool),
            before=zeros + torch.inf,
            nearest=free.clone(),
            shortest=zeros + torch.inf,
            doubted=torch.zeros_like(count, dtype=torch.bool),
        )

    def _variables(self, images: Tensor) -> Tensor:
        if self.form == "clamp":
            return images.clone()
        return torch.atanh((2 * images - 1) * INSIDE)

    def _points(self, free: Tensor) -> Tensor:
        return free if self.form == "clamp" else (torch.tanh(free) + 1) / 2

    def ask(self, state: State, rows: Rows) -> Query:
        """The gradient of the hinge; c enters in `tell`, as it differs from row to row."""
        return Query(self._points(state.free), "gradient", self._hinge)

    def fine(self, state: State, rows: Rows) -> Tensor:
        """Rows at their image or in doubt: where a twin errs the hinge is flat, and nothing moves
        them."""
        return (state.done == 0) | state.doubted

    def _hinge(self, logits: Tensor, rows: Rows) -> Tensor:
        """-max(m + confidence, 0), to be increased."""
        return (margin(logits, rows) - self.confidence).clamp_max(0)

    def claims(self, logits: Tensor, rows: Rows) -> Tensor:
        """Points that succeed (B,) bool: misclassified, with the wanted confidence."""
        wrong = misclassified(logits, rows.labels, rows.target)
        return wrong & (margin(logits, rows) >= self.confidence)

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """One step of Adam; rows at the end of a round go on with another c."""
        assert answer.gradient is not None
        assert answer.loss is not None
        # A twin may err on the image itself: the start of a round is no success.
        hit = self.claims(answer.logits, rows) & (state.done > 0)
        points = self._points(state.free)
        centre = rows.images
        if self.form == "tanh":
            centre = self._points(self._variables(centre))
        away = points - centre
        length = away.flatten(1).square().sum(1)
        nearer = hit & (length < state.shortest)
        state = replace(
            state,
            found=state.found | hit,
            nearest=torch.where(per_row(nearer, away), state.free, state.nearest),
            shortest=torch.where(nearer, length, state.shortest),
        )
        loss = length - state.const * answer.loss.to(state.const)
        slope = 2 * away - per_row(state.const, away) * answer.gradient
        if self.form == "tanh":
            slope = slope * (2 * points * (1 - points))  # dx' / dw
        state, over = self._progress(state, loss)
        moved = self._adam(state, slope)
        if not bool(over.any()):
            return moved
        final = over & (moved.turn + 1 >= self.search_steps)
        # The verdict on a last point knows no confidence: with one, rows end at a round's start.
        again = over if self.confidence > 0 else over & ~final
        return self._next_round(moved, rows, over, again)

    def _progress(self, state: State, loss: Tensor) -> tuple[State, Tensor]:
        """The state after the tenth-wise check, and the rows (B,) bool whose round is over."""
        over = state.done + 1 >= self.steps
        if not self.abort_early:
            return state, over
        check = state.done % max(1, self.steps // 10) == 0
        # Adam's first steps lead away from a good start: a warm round is given half its steps.
        late = state.done > (self.steps // 2 if self.warm_start else 0)
        over = over | (check & late & (loss > PROGRESS * state.before))
        return replace(state, before=torch.where(check, loss, state.before)), over

    def _adam(self, state: State, slope: Tensor) -> State:
        """One step of Adam (Kingma and Ba 2015, algorithm 1), with the clip to the box."""
        count = (state.done + 1).to(slope)
        mean = torch.lerp(slope, state.mean, FIRST)
        square = torch.addcmul(SECOND * state.square, slope, slope, value=1 - SECOND)
        late = (1 - SECOND**count).sqrt()
        share = (1 + torch.cos(math.pi * state.done / self.steps)) / 2
        fall = (self.final_rate + (1 - self.final_rate) * share).to(slope)
        rate = self.learning_rate * fall * late / (1 - FIRST**count)
        scale = square.sqrt().add_(per_row(GUARD * late, slope))
        free = state.free - per_row(rate, slope) * mean / scale
        if self.form == "clamp":
            free = free.clamp_(0, 1)
        return replace(state, free=free, mean=mean, square=square, done=state.done + 1)

    def _next_round(self, state: State, rows: Rows, over: Tensor, again: Tensor) -> State:
        """Rows `over` (B,) have ended a round: bracket c; rows `again` (B,) start the next one."""
        won, lost = over & state.found, over & ~state.found
        upper = torch.where(won, torch.minimum(state.upper, state.const), state.upper)
        lower = torch.where(lost, torch.maximum(state.lower, state.const), state.lower)
        const = torch.where(torch.isinf(upper), 10 * state.const, (lower + upper) / 2)
        turn = state.turn + over.long()
        if self.search_steps >= 10:  # a long search ends with the smallest c that succeeded
            sure = (turn == self.search_steps - 1) & torch.isfinite(upper)
            const = torch.where(sure, upper, const)
        fresh = per_row(again, state.free)
        begin = state.nearest if self.warm_start else self._variables(rows.images)
        return replace(
            state,
            free=torch.where(fresh, begin, state.free),
            mean=state.mean.masked_fill(fresh, 0),
            square=state.square.masked_fill(fresh, 0),
            done=state.done.masked_fill(again, 0),
            turn=turn,
            const=torch.where(again, const, state.const),
            lower=lower,
            upper=upper,
            found=state.found & ~again,
            before=state.before.masked_fill(again, torch.inf),
        )

    def settle(self, state: State, rows: Rows, refused: Tensor) -> State:
        """A refused claim is no success of its round, and any other is nearer."""
        return replace(
            state,
            found=state.found & ~refused,
            shortest=state.shortest.masked_fill(refused, torch.inf),
            doubted=state.doubted | refused,
        )

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose rounds are used up."""
        return state.turn >= self.search_steps

    def last(self, state: State) -> Tensor:
        """The current points: made by the last update, not yet scored."""
        return self._points(state.free)

    def passes(self, classes: int) -> tuple[int, int]:
        """At most `steps` forward and backward passes in each of `search_steps` rounds."""
        return self.search_steps * self.steps, self.search_steps * self.steps
