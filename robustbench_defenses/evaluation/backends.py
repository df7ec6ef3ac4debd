"""The same question answered by a reference library, for comparison (`--backend`).

The library is handed the attack view in float32. Images that it returns are candidates: the verdict
of the deployed subject decides, as in our own searches, so a result says what the library's attack
really achieves. Whatever a library does to the process (global random state, modes, gradients of
weights, traces, log lines) is undone or kept from happening. Its randomness depends on the batch.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import rng
from ..core.errors import Interrupted, UserError
from ..core.view import Logits, View
from ..engine.caller import Cost, blaming, check_tensor
from ..engine.donors import nearest_donors
from ..engine.memory import out_of_memory
from ..engine.outcome import Found, Outcome, empty_trace
from ..engine.search import Block
from ..engine.verdict import Judge, clean_shares, evaluation_mode
from .libraries import BACKENDS as BACKENDS
from .libraries import PACKAGES, Run, Work
from .libraries import Call as Call
from .libraries import call_for as call_for

BATCH_SIZE = 250


def identity(backend: str, batch_size: int | None) -> dict[str, object]:
    """What decides a library's numbers beside the question: its version and the batch."""
    if backend == "native":
        return {}
    return {"backend": _version(backend), "batch": batch_size or BATCH_SIZE}


def remark(backend: str, call: Call | None) -> str | None:
    """The library, its version, and what it does otherwise, as one phrase; None where native."""
    if call is None:
        return None
    return _version(backend) + (f": {call.remark}" if call.remark else "")


def _version(backend: str) -> str:
    return f"{PACKAGES[backend]} {importlib.metadata.version(PACKAGES[backend])}"


class Asked(nn.Module):
    """The view as a library sees it: float32, counted, and without a way to the weights.

    The view is no child of this module and gradients end at the images, so a library can neither
    change a mode nor leave gradients in weights.
    """

    def __init__(self, view: Logits, subject: str, numbers: Tensor, cost: Cost) -> None:
        super().__init__()
        self._view = (view,)
        self.subject, self.numbers, self.cost = subject, numbers, cost
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = _Gradient.apply(images, self)  # type: ignore[no-untyped-call]
        return logits

    def ask(self, images: Tensor) -> Tensor:
        """Logits (B, K) of the view, counted and checked."""
        self.cost.forward += len(images)
        with (
            torch.autocast(images.device.type, enabled=False),
            blaming(self.subject, self.numbers),
        ):
            logits: Tensor = self._view[0](images)
        check_tensor(logits, self.subject)
        if bool(torch.isnan(logits).any()):
            first = int(self.numbers[0])
            raise UserError(
                f"{self.subject} gives NaN for a point near one of {len(self.numbers)} "
                f"test images that begin with {first}"
            )
        return logits


class _Gradient(torch.autograd.Function):
    """Logits of images; backwards the gradient by the images alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, asked: Asked) -> Tensor:
        wanted = bool(ctx.needs_input_grad[0])
        with torch.set_grad_enabled(wanted):
            ctx.points = images.detach().requires_grad_(wanted)
            ctx.logits = asked.ask(ctx.points)
        ctx.asked = asked
        logits: Tensor = ctx.logits.detach().clone()
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.asked.cost.backward += len(ctx.points)
        found = None
        if ctx.logits.requires_grad:
            (found,) = torch.autograd.grad(
                ctx.logits, ctx.points, grads[0], retain_graph=True, allow_unused=True
            )
        return torch.zeros_like(ctx.points) if found is None else found, None


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Inside, a library may seed, trace, warn and log; afterwards the process is as before."""
    ready = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if ready else ()
    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    state, others, silent = random.getstate(), np.random.get_state(), logger.disabled
    try:
        logger.disabled = True
        with (
            torch.random.fork_rng(devices=devices),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = silent
        np.random.set_state(others)
        random.setstate(state)
        sys.settrace(trace)


@dataclass
class BackendSearch:
    """One attack of a library on one block; fields as of `engine.search.Search`.

    `minimum`: the attack is given no budget; `keep_points` keeps the images that it found. In an
    envelope sweep an example leaves once it is broken; independent: every budget afresh. Forward
    passes of a batch are shared out evenly among its examples.
    """

    call: Call
    library: str
    minimum: bool
    norm: str
    view: View
    deployed: Logits
    block: Block
    targeted: bool
    subject: str = "the subject"
    seed: int = 0
    attack_name: str = "attack"
    batch_size: int = BATCH_SIZE
    report: Callable[[int, float], None] | None = None
    keep_points: bool = False

    def run(self) -> Outcome:
        """Every example that is classified correctly, at every budget of the grid."""
        block = self.block
        everyone = torch.arange(len(block.images), device=block.images.device)
        self._judge = Judge(self.deployed, self.subject, block.numbers, Cost(), seed=self.seed)
        members = self.call.members
        if self.call.when_random is not None and self.view.randomness is not None:
            members = self.call.when_random
        self._several = len(members) > 1
        with evaluation_mode(self.view.logits, self.deployed), contained():
            self._out = out = self._untouched(self._judge.draws(block.images, everyone))
            self._donors: Tensor | None = None
            if self.call.donors:
                of = (out.clean_prediction, block.labels, block.target)
                self._donors = block.images[nearest_donors(block.images, *of)]
            budgets = [(0, torch.inf)] if self.minimum else list(enumerate(block.grid))
            for place, eps in budgets:
                for turn, (name, run) in enumerate(members):
                    self._member(place, eps, turn, name, run)
                    if self.report is not None:
                        share = (place + (turn + 1) / len(members)) / len(budgets)
                        self.report(int(torch.isfinite(out.distance).sum()), share)
        if self.minimum:
            out.budget.copy_(out.distance)
        out.invalid_claims = self._judge.invalid
        return out

    def _standing(self, place: int) -> Tensor:
        """Positions of the examples that are still to be attacked at a budget."""
        out = self._out
        left = torch.isinf(out.distance) if self.minimum else ~out.broken[place]
        return left.nonzero()[:, 0]

    def _member(self, place: int, eps: float, turn: int, name: str, run: Run) -> None:
        """One attack of the library, all restarts, on what stands at a budget."""
        out, begun = self._out, time.perf_counter()
        before = Cost(self._judge.cost.forward, self._judge.cost.backward)
        distance = out.distance.clone()
        for restart in range(self.call.restarts):
            standing = self._standing(place)
            if len(standing) == 0:
                break
            for part in torch.split(standing, self.batch_size):
                named = (self.seed, self.attack_name, name, eps, restart)
                number = int(self.block.numbers[part[0]])
                seed = rng.name_key(*named, number)
                self._part(part, place, eps, seed, run)
        # A table tells nothing of who broke what: only an envelope has members.
        if self._several and self.block.sweep == "envelope":
            if turn == len(out.members):
                nothing = torch.full_like(out.distance, torch.inf)
                out.members.append(Found(name, nothing, torch.zeros_like(out.queries)))
            mine = out.members[turn]
            nearer = out.distance < distance
            mine.distance[nearer] = out.distance[nearer]
            mine.place[nearer] = place
            mine.seconds += time.perf_counter() - begun
            mine.cost.forward += self._judge.cost.forward - before.forward
            mine.cost.backward += self._judge.cost.backward - before.backward

    def _part(self, part: Tensor, place: int, eps: float, seed: int, run: Run) -> None:
        """One batch, in halves where the memory does not suffice."""
        try:
            self._batch(part, place, eps, seed, run)
        except Exception as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
            self.batch_size = max(1, len(part) // 2)
            for half in torch.split(part, self.batch_size):
                self._part(half, place, eps, seed, run)

    def _batch(self, part: Tensor, place: int, eps: float, seed: int, run: Run) -> None:
        """Candidates of the library for the examples `part` (B,), judged."""
        block, cost = self.block, self._judge.cost
        images, labels = block.images[part].contiguous(), block.labels[part]
        forward = cost.forward
        asked = Asked(self.view.logits, self.subject, block.numbers[part], cost)
        target = block.target[part] if self.targeted else None
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))
        limit = torch.full((len(part),), eps, dtype=torch.float64, device=part.device)
        donors = None if self._donors is None else self._donors[part]
        work = Work(images.clone(), labels.clone(), target, eps, seed, donors)
        with self._told():
            for points in run(asked, work):
                counts, length, share = self._judge.verdict(
                    points.detach().to(images), images, labels, block.target[part], limit,
                    self.norm, part,
                )  # fmt: skip
                self._out.note_draws(share, torch.full_like(part, place), part, counts, 0)
                self._write(part[counts], points.detach()[counts], length[counts], place)
        self._out.queries[part] += round((cost.forward - forward) / len(part))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Faults of the library are told as such."""
        try:
            yield
        except (UserError, Interrupted):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            said = (str(error).strip().splitlines() or ["no message"])[0]
            raise UserError(
                f"{self.library} raises {type(error).__name__} in {self.attack_name}: {said}",
                hint="--backend native",
            ) from error

    def _write(self, example: Tensor, points: Tensor, length: Tensor, place: int) -> None:
        """Examples (M,) that verified images `points` at distance `length` (M,) have broken."""
        out = self._out
        if out.points is not None:
            nearer = length < out.distance[example]
            out.points[example[nearer]] = points[nearer].to(out.points)
        out.distance[example] = torch.minimum(out.distance[example], length)
        if self.minimum:
            return
        last = place + 1 if self.block.sweep == "independent" else len(self.block.grid)
        out.broken[place:last, example] = True
        eps = torch.full_like(length, self.block.grid[place])
        out.budget[example] = torch.minimum(out.budget[example], eps)

    def _untouched(self, draws: Tensor) -> Outcome:
        """What is known before anything is attacked: the `draws` (draws, N, K) of clean images.

        What a library sees on its way is not watched: checks that need it say so.
        """
        block = self.block
        clean = self._judge.scores(draws).argmax(1)
        wrong = clean != block.labels
        infinite = torch.full((len(clean),), torch.inf, dtype=torch.float64, device=clean.device)
        distance = infinite.masked_fill(wrong, 0.0)
        out = Outcome(
            clean_prediction=clean,
            distance=distance,
            budget=distance.clone(),
            broken=wrong.repeat(len(block.grid), 1),
            queries=torch.full_like(clean, len(draws)),
            cost=self._judge.cost,
            trace=empty_trace(len(clean), clean.device),
            points=block.images.clone() if self.keep_points else None,
        )
        rows = 1 if self.minimum else len(block.grid)
        out.broken_draws = clean_shares(self._judge, draws, block.labels, rows)
        return out
