"""Verdict runs of minimum-norm attacks: how near is the nearest adversarial point?

Every asked point after a row's start is a candidate. A row keeps the nearest point that the search
twin misclassifies as an open claim; every ten steps and at the end of the row open claims get their
verdict. A refused claim is repaired by tiny stretches away from the image, in float32; where none
helps it is dropped, and longer norms count again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.norms import distance, largest_allowed
from . import snapshot
from .agenda import Again, Agenda, Item
from .losses import misclassified
from .protocol import Answer, Rows
from .rows import join, take
from .search import Search, _Running

JUDGE_EVERY = 10
# A bf16 twin misplaces the boundary by a little; these factors on the perturbation mend it.
STRETCHES = (1.002, 1.005, 1.01, 1.02, 1.05)


@dataclass
class _Claims:
    """Per row: `open` (B,) float64 norm of the unjudged claim (inf: none) and its `point`;
    `best` (B,) float64: norm of the nearest point that has its verdict."""

    open: Tensor
    point: Tensor
    best: Tensor


@dataclass
class MinimumSearch(Search):
    """One minimum-norm attack on one block; the block's grid is not used.

    `enough`: an example leaves once a verified distance is at most this (a cascade's budget).
    """

    enough: float = 0.0
    _claims: _Claims | None = field(default=None, init=False, repr=False)
    _satisfied: set[int] = field(default_factory=set, init=False, repr=False)

    def _more(self) -> snapshot.State:
        assert self._claims is not None
        satisfied = torch.tensor(sorted(self._satisfied), dtype=torch.int64)
        return {**snapshot.flat(self._claims, "claims."), "satisfied": satisfied}

    def _more_from(self, state: snapshot.State) -> None:
        self._satisfied = set(state["satisfied"].tolist())
        if self._claims is not None:
            device = self.block.images.device
            self._claims = snapshot.filled(self._claims, state, "claims.", device)

    def _begin(self, items: list[Item]) -> _Running:
        running = super()._begin(items)
        infinite = torch.full((len(items),), torch.inf, dtype=torch.float64)
        infinite = infinite.to(running.budget.device)
        fresh = _Claims(infinite, running.rows.images.clone(), infinite.clone())
        self._claims = join(self._claims, fresh)
        return running

    def _rescued(self) -> list[Item]:
        return [item for item in super()._rescued() if self._out.distance[item.example].isinf()]

    def _fallen(self) -> int:
        """Those of a cascade's budget, where there is one."""
        most = self.enough if self.enough > 0 else torch.finfo(torch.float64).max
        return int((self._out.distance <= largest_allowed(torch.tensor(most).double())).sum())

    def _budgets(self, budget: Tensor) -> Tensor:
        """No budget: everything inside the box counts."""
        return torch.full_like(budget, torch.inf, dtype=torch.float64)

    def _step(self, running: _Running, agenda: Agenda | Again, fine: bool) -> _Running:
        rows = running.rows
        query = self.attack.ask(running.state, rows)
        answer = self._caller.answer(query, rows, self._fine(running, fine))
        self._collect(running, query.points, self._claimed(answer, rows))
        gradient = answer.class_gradients if answer.gradient is None else answer.gradient
        self._watch_start(running, gradient, self._loss(running, answer))
        running.state = self.attack.tell(running.state, rows, answer)
        running.age += 1
        done = self._settle(running, self.attack.finished(running.state, rows))
        return self._go_on(running, done, agenda, fine)

    def _claimed(self, answer: Answer, rows: Rows) -> Tensor:
        """Rows (B,) bool whose asked points are to be claimed."""
        wrong = misclassified(answer.decided, rows.labels, rows.target)
        claims = getattr(self.attack, "claims", None)
        if claims is None:
            return wrong
        wish = torch.as_tensor(claims(answer.logits, rows))
        return wish if answer.scores is None else wish & wrong

    def _collect(self, running: _Running, points: Tensor, wrong: Tensor) -> None:
        """Open claims: asked points nearer than all before. The start itself never counts:
        where the twin errs on a clean image, a claim of norm 0 would hide every honest one."""
        claims = self._claims
        assert claims is not None
        chosen = (wrong & (running.age > 0)).nonzero()[:, 0]
        if len(chosen) == 0:
            return
        length = distance(points[chosen], running.rows.images[chosen], self.attack.norm)
        nearer = length < torch.minimum(claims.open, claims.best)[chosen]
        chosen = chosen[nearer]
        claims.open[chosen] = length[nearer]
        claims.point[chosen] = points[chosen]

    def _settle(self, running: _Running, done: Tensor) -> Tensor:
        """Give open claims their verdict where it is due, and finished rows that of their last
        point. Returns which rows (B,) are finished after it: a refused claim may move on."""
        claims = self._claims
        assert claims is not None
        due = done | (running.age % JUDGE_EVERY == 0)
        chosen = (due & (claims.open < claims.best)).nonzero()[:, 0]
        if len(chosen):
            counts = self._judge_points(running, chosen, claims.point[chosen])
            refused = chosen[~counts]
            for stretch in STRETCHES:
                if len(refused) == 0:
                    break
                images = running.rows.images[refused]
                points = (images + stretch * (claims.point[refused] - images)).clamp_(0, 1)
                refused = refused[~self._judge_points(running, refused, points)]
            claims.open[chosen] = torch.inf
            settle = getattr(self.attack, "settle", None)
            if settle is not None and len(refused):
                mask = torch.zeros_like(done)
                mask[refused] = True
                running.state = settle(running.state, running.rows, mask)
                done = self.attack.finished(running.state, running.rows)
        ending = done.nonzero()[:, 0]
        if len(ending):
            last = self.attack.last(running.state)[ending]
            length = distance(last, running.rows.images[ending], self.attack.norm)
            nearer = length < claims.best[ending]
            self._judge_points(running, ending[nearer], last[nearer])
            self._hold(running.rows.example[ending], last)
        return done

    def _judge_points(self, running: _Running, where: Tensor, points: Tensor) -> Tensor:
        """Verdicts (M,) on `points` of the rows `where`; what counts is written down."""
        claims = self._claims
        assert claims is not None
        if len(where) == 0:
            return torch.zeros(0, dtype=torch.bool, device=points.device)
        rows = take(running.rows, where)
        counts, length, share = self._judge.verdict(
            points, rows.images, rows.labels, rows.target, self._budgets(rows.example),
            self.attack.norm, rows.example,
        )  # fmt: skip
        hit = counts.nonzero()[:, 0]
        claims.best[where[hit]] = torch.minimum(claims.best[where[hit]], length[hit])
        out, example = self._out, rows.example[hit]
        out.distance.scatter_reduce_(0, example, length[hit], "amin")
        out.budget.copy_(out.distance)
        nearest = length[hit] <= out.distance[example]
        if out.points is not None:
            out.points[example[nearest]] = points[hit[nearest]]
        if out.broken_draws is not None:
            out.broken_draws[0, example[nearest]] = share[hit[nearest]]
        if self.enough > 0:
            near = length[hit] <= self.enough * (1 + 1e-6) + 1e-7
            self._satisfied.update(example[near].tolist())
        return counts

    def _go_on(
        self, running: _Running, done: Tensor, agenda: Agenda | Again, fine: bool
    ) -> _Running:
        """Drop finished rows and those of satisfied examples. Rows whose example has nothing yet
        run again in float32: DeepFool finds fewer images of a robust network in bf16."""
        if not bool(done.any()) and not self._satisfied:
            return running
        ended = done.tolist()
        lost = (done & torch.isinf(self._out.distance[running.rows.example])).tolist()
        staying = []
        rows = zip(running.rows.example.tolist(), running.budget.tolist(), running.restart.tolist())
        for position, row in enumerate(rows):
            if ended[position] or row[0] in self._satisfied:
                agenda.leave(Item(*row))
                if lost[position] and not fine:
                    self._near.append(Item(*row))
            else:
                staying.append(position)
        if len(staying) == len(ended):
            return running
        index = torch.tensor(staying, dtype=torch.int64, device=done.device)
        assert self._claims is not None
        self._claims = take(self._claims, index)
        return take(running, index)
