"""Verdict runs: which examples of a block break, at which budget, and how near.

The loop keeps the batch full: broken and finished rows leave after each round and others take their
places, so a broken example costs nothing more at any budget or restart. Every asked point is a
candidate, and so is the point of the last update: k steps score k + 1 points.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import rng
from ..core.norms import distance
from ..core.view import Logits
from . import snapshot
from .agenda import Again, Agenda, Item
from .caller import Caller, Cost
from .donors import nearest_donors
from .guides import Gallery, Pool, look
from .losses import misclassified, rivals
from .outcome import Found as Found
from .outcome import Outcome as Outcome
from .outcome import Trace as Trace
from .outcome import empty_trace as empty_trace
from .protocol import Answer, Attack, Rows, taps_of
from .rows import join, take
from .twin import Twin, smallest_margin
from .verdict import Judge, clean_shares

# Between two steps of a search: it may take a snapshot by calling its argument.
Watch = Callable[[Callable[[], snapshot.State]], None]
BATCH_SIZE = 256
# Rows that end unbroken but came this near (share of the logit range) on a bf16 twin run again in
# float32: bf16 alone is measurably weaker (APGD), and few rows are concerned.
RESCUE_MARGIN = 0.02


@dataclass(frozen=True)
class Block:
    """The examples of one verdict run and what is asked about them.

    `images` (N, C, H, W) in [0, 1]; `labels`, `target` (N,) int64, target -1 for untargeted;
    `numbers` (N,) int64: their numbers in the data set; `grid`: rising budgets > 0, pixel units;
    `pool`: images that feature attacks take their guides from.
    """

    images: Tensor
    labels: Tensor
    target: Tensor
    numbers: Tensor
    grid: tuple[float, ...]
    sweep: str = "envelope"
    pool: Pool | None = None


@dataclass
class _Running:
    """Rows under way: the engine's and the attack's tensors, and where each row belongs."""

    rows: Rows
    state: Any
    budget: Tensor  # (B,) position in the grid
    restart: Tensor
    margin: Tensor  # smallest seen
    first_loss: Tensor
    age: Tensor

    def __len__(self) -> int:
        return len(self.budget)


@dataclass
class Search:
    """One attack on one block.

    `report(broken, share)`: how many examples are broken, which share of the work is done;
    `watch`: is called between two steps; `resume`: a snapshot of an equal search to go on from;
    `clean` (draws, N, K): the judge's logits of the clean images where it has been asked already.
    """

    attack: Attack
    twin: Twin
    deployed: Logits
    block: Block
    subject: str = "the subject"
    seed: int = 0
    attack_name: str = "attack"
    batch_size: int = BATCH_SIZE
    report: Callable[[int, float], None] | None = None
    keep_points: bool = False
    watch: Watch | None = None
    resume: snapshot.State | None = None
    clean: Tensor | None = None

    def run(self) -> Outcome:
        """Attack every example that is classified correctly, at every budget of the grid."""
        block = self.block
        device, count = block.images.device, len(block.images)
        queries = torch.zeros(count, dtype=torch.int64, device=device)
        cost = Cost()
        self._caller = Caller(
            self.twin, self.subject, block.numbers, queries, self.batch_size, cost,
            seed=(self.seed, self.attack_name),
        )  # fmt: skip
        self._judge = Judge(self.deployed, self.subject, block.numbers, cost, seed=self.seed)
        draws = self.clean
        if draws is None:
            draws = self._judge.draws(block.images, torch.arange(count, device=device))
            queries += len(draws)
        logits = self._judge.scores(draws)
        clean, self._rivals = logits.argmax(1), rivals(logits, block.labels)
        self._donors: Tensor | None = None
        if getattr(self.attack, "donors", False):
            self._donors = nearest_donors(block.images, clean, block.labels, block.target)
        correct = clean == block.labels
        infinite = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        self._out = Outcome(
            clean_prediction=clean,
            distance=torch.where(correct, infinite, 0.0),
            budget=torch.where(correct, infinite, 0.0),
            broken=(~correct).repeat(len(block.grid), 1),
            queries=queries,
            cost=cost,
            trace=empty_trace(count, device),
            points=block.images.clone() if self.keep_points else None,
        )
        self._out.broken_draws = clean_shares(self._judge, draws, block.labels, len(block.grid))
        self._features: Tensor | None = None
        self._gallery: Gallery | None = None
        taps = taps_of(self.attack)
        if taps is not None and bool(correct.any()):
            chosen = correct.nonzero()[:, 0]
            found = look(self._caller, taps, block.images, chosen, block.pool)
            self._features, self._gallery = found
        self._grid = torch.tensor(block.grid, dtype=torch.float64, device=device)
        self._near: list[Item] = []
        minimum = getattr(self.attack, "minimum", False)
        self._points = 1 if minimum else len(block.grid)
        runs = runs_of(self.attack, logits.shape[1])
        passes = getattr(self.attack, "passes", None)
        self._once = 1 if passes is None else max(1, passes(logits.shape[1])[0])
        agenda = Agenda(correct.nonzero()[:, 0].tolist(), self._points, runs, block.sweep)
        current: Agenda | Again = agenda
        running, fine = None, False
        if self.resume is not None:
            current, running, fine = snapshot.resumed(self, agenda, self.resume)
        self._loop(current, fine, running)
        again = self._rescued() if self.twin.autocast and not fine else []
        if again:
            self._loop(Again(agenda, deque(again)), fine=True)
        self._out.invalid_claims = self._judge.invalid
        return self._out

    def _rescued(self) -> list[Item]:
        """The runs that are repeated in float32."""
        return sorted(set(self._near), key=lambda item: (item.budget, item))

    def _loop(self, agenda: Agenda | Again, fine: bool, running: _Running | None = None) -> None:
        while True:
            alive = 0 if running is None else len(running)
            items = agenda.take(self.batch_size - alive, alive)
            if items:
                running = join(running, self._begin(items))
            if running is None or len(running) == 0:
                return
            running = self._step(running, agenda, fine)
            if self.report is not None:
                self.report(self._fallen(), self._share(agenda, running))
            if self.watch is not None:
                self.watch(partial(snapshot.taken, self, agenda, running, fine))

    def _share(self, agenda: Agenda | Again, running: _Running) -> float:
        """Share of the work that is done; of rows under way, by the passes declared for a run."""
        under_way = float((running.age.double() / self._once).clamp_max(1).sum())
        return min(1.0, agenda.share + under_way / max(1, agenda.total))

    def _more(self) -> snapshot.State:
        """What a snapshot of this kind of search holds besides."""
        return {}

    def _more_from(self, state: snapshot.State) -> None:
        """Take up what `_more` gave; the rows under way have begun again."""

    def _fallen(self) -> int:
        """How many examples are broken so far."""
        return int(torch.isfinite(self._out.distance).sum())

    def _budgets(self, budget: Tensor) -> Tensor:
        """The budgets (B,) float64 at positions `budget` of the grid."""
        return self._grid[budget]

    def _begin(self, items: list[Item]) -> _Running:
        """Fresh rows for `items`."""
        block = self.block
        device = block.images.device
        example, budget, restart = torch.tensor(items, dtype=torch.int64, device=device).unbind(1)
        rows = Rows(
            example=example,
            images=block.images[example],
            labels=block.labels[example],
            eps=self._budgets(budget).to(block.images.dtype),
            target=block.target[example],
            key=rng.run_keys(self.seed, self.attack_name, block.numbers[example], restart),
            run=restart,
            rivals=self._rivals[example],
            donors=None if self._donors is None else block.images[self._donors[example]],
            features=None if self._features is None else self._features[example],
            gallery=self._gallery,
        )
        zeros = torch.zeros(len(items), device=device)
        return _Running(
            rows=rows,
            state=self.attack.start(rows),
            budget=budget,
            restart=restart,
            margin=zeros + torch.inf,
            first_loss=zeros.clone(),
            age=torch.zeros_like(example),
        )

    def _step(self, running: _Running, agenda: Agenda | Again, fine: bool) -> _Running:
        """One question, its verdicts, and the rows that go on."""
        rows = running.rows
        query = self.attack.ask(running.state, rows)
        answer = self._caller.answer(query, rows, self._fine(running, fine))
        wrong = misclassified(answer.decided, rows.labels, rows.target)
        near = smallest_margin(answer.decided, rows.labels, rows.target).to(running.margin)
        inside = getattr(self.attack, "inside", None)
        if inside is not None:
            allowed = inside(running.state, rows)
            wrong, near = wrong & allowed, near.masked_fill(~allowed, torch.inf)
        claimed = wrong.nonzero()[:, 0]
        points = query.points[claimed]  # a copy: `tell` may move the points in place
        running.margin = torch.minimum(running.margin, near)
        loss = self._loss(running, answer)
        self._watch_start(running, answer.gradient, loss)
        running.state = self.attack.tell(running.state, rows, answer)
        running.age += 1
        done = self.attack.finished(running.state, rows)
        ending = done.nonzero()[:, 0]
        last = self.attack.last(running.state)[ending]
        broken = self._verdict(
            torch.cat([points, last]), torch.cat([claimed, ending]), running, agenda, len(claimed)
        )
        self._hold(rows.example[ending], last)
        self._watch_end(running, done & ~broken, last, ending, answer.gradient, loss)
        return self._leave(running, broken, done, agenda, fine)

    def _fine(self, running: _Running, everything: bool) -> Tensor | None:
        """Rows (B,) bool to ask in float32, None for none."""
        if everything:
            return torch.ones(len(running), dtype=torch.bool, device=running.budget.device)
        wish = getattr(self.attack, "fine", None)
        return None if wish is None or not self.twin.autocast else wish(running.state, running.rows)

    def _loss(self, running: _Running, answer: Answer) -> Tensor | None:
        """What is compared over time (B,): the loss asked unless the attack says otherwise."""
        score = getattr(self.attack, "score", None)
        return answer.loss if score is None else score(running.state, running.rows, answer)

    def _verdict(
        self, points: Tensor, where: Tensor, running: _Running, agenda: Agenda | Again, claims: int
    ) -> Tensor:
        """Judge `points` of the rows `where`; returns which rows (B,) broke. After the first
        `claims` come last points of rows that end."""
        broken = torch.zeros(len(running), dtype=torch.bool, device=points.device)
        if len(where) == 0:
            return broken
        rows = take(running.rows, where)
        budget = running.budget[where]
        counts, length, share = self._judge.verdict(
            points, rows.images, rows.labels, rows.target, self._budgets(budget),
            self.attack.norm, rows.example,
        )  # fmt: skip
        self._out.note_draws(share, budget, rows.example, counts, claims)
        hit = counts.nonzero()[:, 0]
        if len(hit) == 0:
            return broken
        broken[where[hit]] = True
        out, example = self._out, rows.example[hit]
        out.broken[budget[hit], example] = True
        restart = running.restart[where[hit]]
        items = zip(example.tolist(), budget[hit].tolist(), restart.tolist())
        ahead = [i for i, item in enumerate(items) if agenda.succeed(Item(*item))]
        for i in ahead:
            out.distance[example[i]] = length[hit[i]]
            out.budget[example[i]] = self._grid[budget[hit[i]]]
            if out.points is not None:
                out.points[example[i]] = points[hit[i]]
        return broken

    def _hold(self, example: Tensor, last: Tensor) -> None:
        """Keep the `last` iterates (M, C, H, W) of examples (M,) that nothing has broken."""
        if self._out.points is not None:
            whole = torch.isinf(self._out.distance[example])
            self._out.points[example[whole]] = last[whole]

    def _leave(
        self, running: _Running, broken: Tensor, done: Tensor, agenda: Agenda | Again, fine: bool
    ) -> _Running:
        """Drop broken, finished and worthless rows."""
        if not bool((broken | done).any()):
            return running
        rows = zip(running.rows.example.tolist(), running.budget.tolist(), running.restart.tolist())
        items = [Item(*row) for row in rows]
        ended, failed = (broken | done).tolist(), (done & ~broken).tolist()
        close = (running.margin < RESCUE_MARGIN).tolist()
        staying = []
        for position, item in enumerate(items):
            if ended[position] or agenda.worthless(item):
                agenda.leave(item)
                if failed[position] and close[position] and not fine:
                    self._near.append(item)
            else:
                staying.append(position)
        if len(staying) == len(items):
            return running
        return take(running, torch.tensor(staying, dtype=torch.int64, device=broken.device))

    def _watch_start(self, running: _Running, gradient: Tensor | None, loss: Tensor | None) -> None:
        trace, fresh = self._out.trace, running.age == 0
        if not bool(fresh.any()):
            return
        trace.tried[running.rows.example[fresh]] = True
        if gradient is not None:
            zero = fresh & (gradient.flatten(1) == 0).all(1)
            trace.zero_start[running.rows.example[zero]] = True
        if loss is not None:
            running.first_loss = torch.where(fresh, loss.to(running.first_loss), running.first_loss)

    def _watch_end(
        self, running: _Running, failed: Tensor, last: Tensor, ending: Tensor,
        gradient: Tensor | None, loss: Tensor | None,
    ) -> None:  # fmt: skip
        keep = failed[ending]
        index = ending[keep]
        if len(index) == 0:
            return
        trace, rows = self._out.trace, take(running.rows, index)
        used = distance(last[keep], rows.images, self.attack.norm) / rows.eps.double()
        # Several runs of one example may end together: the maximum over all of them.
        trace.reach[rows.example] = trace.reach[rows.example].nan_to_num(0)
        trace.reach.scatter_reduce_(0, rows.example, used, "amax")
        if gradient is not None:
            zero = (gradient[index].flatten(1) == 0).all(1)
            trace.zero_end[rows.example[zero]] = True
        if loss is not None:
            trace.compared[rows.example] = True
            rose = loss[index].to(running.first_loss) > running.first_loss[index]
            rose |= running.age[index] <= 1  # one question: there is no second loss to compare
            trace.loss_rose[rows.example[rose]] = True


def runs_of(attack: Attack, classes: int) -> int:
    """Runs of `attack` per example and budget where there are `classes` classes."""
    runs = getattr(attack, "runs", None)
    return attack.restarts if runs is None else int(runs(classes))
