"""Ensembles: several attacks, one after the other, each on what the ones before have left.

At each budget of the grid, rising, every member attacks the examples that still stand; what a
minimum-norm member finds counts at every budget above its distance. The outcome of an ensemble is
the per-example worst case over its members.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.norms import largest_allowed
from ..core.view import Logits
from . import snapshot
from .caller import Cost
from .minimum import MinimumSearch
from .outcome import empty_trace
from .protocol import Attack
from .search import BATCH_SIZE, Block, Found, Outcome, Search, Trace, Watch
from .twin import Twin
from .verdict import Judge


class Ensemble(Protocol):
    """An attack made of attacks: `members(classes)` gives (name, attack) in order.

    Optional: `when_random()`, the ensemble that takes its place for a subject that is random.
    """

    def members(self, classes: int) -> tuple[tuple[str, Attack], ...]:
        """The attacks to run for a subject of so many classes."""


@dataclass(frozen=True)
class _Stage:
    """One member at one budget: their positions, and what was found before it."""

    name: str
    place: int
    turn: int
    turns: int
    begun: float
    total: Outcome | None


@dataclass
class EnsembleSearch:
    """One ensemble on one block; fields as of `Search`."""

    attack: Ensemble
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

    def run(self) -> Outcome:
        """Members in order at every budget, on the examples that stand."""
        grid, images = self.block.grid, self.block.images
        judge = Judge(self.deployed, self.subject, self.block.numbers, Cost(), seed=self.seed)
        self._clean = judge.draws(images, torch.arange(len(images), device=images.device))
        attack = self.attack
        if self.twin.randomness is not None and hasattr(attack, "when_random"):
            attack = attack.when_random()
        names = attack.members(int(self._clean.shape[2]))
        total, first = None, (0, 0)
        if self.resume is not None:
            with snapshot.matching():
                total = self._total_from(self.resume, names)
                first = tuple(self.resume["at"].tolist())
        for place, eps in enumerate(grid):
            for turn, (name, member) in enumerate(names):
                if (place, turn) < first:
                    continue
                begun = time.perf_counter()
                inner = None
                if self.resume is not None and (place, turn) == first:
                    inner = snapshot.below(self.resume, "inner.")
                    begun -= float(self.resume["spent"])
                standing = self._standing(total, eps)
                if len(standing) == 0:
                    continue
                stage = _Stage(name, place, turn, len(names), begun, total)
                part = self._one(member, standing, eps, stage, inner)
                if total is None:
                    total = _blank(part.clean_prediction, self.block, self.keep_points)
                    total.queries += len(self._clean)
                    total.cost.forward += judge.cost.forward
                    if part.broken_draws is not None:
                        total.broken_draws = torch.zeros_like(total.broken, dtype=torch.float64)
                    total.members = [_nothing(name, total) for name, _ in names]
                self._merge(total, total.members[turn], part, standing, place)
                total.members[turn].seconds += time.perf_counter() - begun
        return self._unattacked(names[0][1]) if total is None else total

    def _unattacked(self, member: Attack) -> Outcome:
        """The outcome where there is no budget to attack at."""
        search = Search(
            member, self.twin, self.deployed, self.block, self.subject, self.seed,
            keep_points=self.keep_points, clean=self._clean,
        )  # fmt: skip
        out = search.run()
        out.queries += len(self._clean)
        out.cost.forward += len(self._clean) * len(self.block.images)
        return out

    def _standing(self, total: Outcome | None, eps: float) -> Tensor:
        """Positions of the examples that survive `eps` so far."""
        if total is None:
            return torch.arange(len(self.block.images), device=self.block.images.device)
        return (total.distance > largest_allowed(torch.tensor(eps).double())).nonzero()[:, 0]

    def _one(
        self,
        member: Attack,
        standing: Tensor,
        eps: float,
        stage: _Stage,
        resume: snapshot.State | None,
    ) -> Outcome:
        """One member on the standing examples."""
        whole = self.block
        block = Block(
            images=whole.images[standing],
            labels=whole.labels[standing],
            target=whole.target[standing],
            numbers=whole.numbers[standing],
            grid=(eps,),
            sweep="envelope",
            pool=whole.pool,
        )
        report, watch = self.report, self.watch
        width = 1 / stage.turns / len(whole.grid)
        share = (stage.place * stage.turns + stage.turn) * width
        gone = len(whole.images) - len(standing)
        common: dict[str, Any] = {
            "attack": member,
            "twin": self.twin,
            "deployed": self.deployed,
            "block": block,
            "subject": self.subject,
            "seed": self.seed,
            "attack_name": f"{self.attack_name}.{stage.name}",
            "batch_size": self.batch_size,
            "keep_points": self.keep_points,
            "report": None
            if report is None
            else lambda broken, inner: report(gone + broken, share + inner * width),
            "watch": None
            if watch is None
            else lambda take: watch(lambda: self._snapshot(stage, take())),
            "resume": resume,
            "clean": self._clean[:, standing],
        }
        if getattr(member, "minimum", False):
            return MinimumSearch(**common, enough=eps).run()
        return Search(**common).run()

    def _snapshot(self, stage: _Stage, inner: snapshot.State) -> snapshot.State:
        """The outcome so far and the running member's own snapshot `inner`."""
        state = {f"inner.{name}": tensor for name, tensor in inner.items()}
        state["at"] = torch.tensor([stage.place, stage.turn])
        state["spent"] = torch.tensor(time.perf_counter() - stage.begun, dtype=torch.float64)
        if stage.total is not None:
            state |= snapshot.outcome_state(stage.total, "total.")
            for at, member in enumerate(stage.total.members):
                state |= snapshot.flat(member, f"members.{at}.")
                made = [member.seconds, member.cost.forward, member.cost.backward]
                state[f"members.{at}.cost"] = torch.tensor(made, dtype=torch.float64)
        return state

    def _total_from(
        self, state: snapshot.State, names: tuple[tuple[str, Attack], ...]
    ) -> Outcome | None:
        """The outcome that `_snapshot` saw, None where the first member was still running."""
        if "total.clean_prediction" not in state:
            return None
        prediction = state["total.clean_prediction"].to(self.block.images.device)
        total = _blank(prediction, self.block, self.keep_points)
        if "total.broken_draws" in state:
            total.broken_draws = torch.zeros_like(total.broken, dtype=torch.float64)
        snapshot.restore_outcome(total, state, "total.")
        for at, (name, _) in enumerate(names):
            member = _nothing(name, total)
            member = snapshot.filled(member, state, f"members.{at}.", prediction.device)
            member.seconds, forward, backward = state[f"members.{at}.cost"].tolist()
            member.cost = Cost(int(forward), int(backward))
            total.members.append(member)
        return total

    def _merge(
        self, total: Outcome, member: Found, part: Outcome, standing: Tensor, place: int
    ) -> None:
        """Add to the worst case so far what a member's `part` says of the examples `standing`."""
        nearer = part.distance < total.distance[standing]
        chosen = standing[nearer]
        if total.points is not None and part.points is not None:
            newer = nearer | torch.isinf(total.distance[standing])
            total.points[standing[newer]] = part.points[newer]
        for found in (total.distance, member.distance):
            found[chosen] = part.distance[nearer]
        member.place[chosen] = place
        grid = torch.tensor(self.block.grid, dtype=torch.float64, device=standing.device)
        fits = part.distance[nearer][:, None] <= largest_allowed(grid)[None]  # (M, E)
        fits &= torch.arange(len(grid), device=standing.device) >= place
        first = torch.where(fits, grid, torch.inf).amin(1)
        total.budget[chosen] = torch.where(part.distance[nearer] == 0, 0.0, first)
        total.broken[:, chosen] |= fits.T | (part.distance[nearer] == 0)
        total.queries[standing] += part.queries
        for cost in (total.cost, member.cost):
            cost.forward += part.cost.forward
            cost.backward += part.cost.backward
        total.invalid_claims += part.invalid_claims
        if total.broken_draws is not None and part.broken_draws is not None:
            above = total.broken_draws[place:, standing]
            total.broken_draws[place:, standing] = above.maximum(part.broken_draws[:1])
        for item in fields(Trace):
            mine, new = getattr(total.trace, item.name), getattr(part.trace, item.name)
            if mine.dtype == torch.bool:
                mine[standing] |= new
            else:
                old = mine[standing]
                mine[standing] = torch.where(old.isnan(), new, old.fmax(new))


def _nothing(name: str, total: Outcome) -> Found:
    """A member that has broken nothing yet, for the examples of `total`."""
    return Found(name, torch.full_like(total.distance, torch.inf), torch.zeros_like(total.queries))


def _blank(prediction: Tensor, block: Block, keep_points: bool) -> Outcome:
    """An outcome of nothing tried on `block`, whose clean images are predicted as said (N,)."""
    count, device = len(prediction), prediction.device
    infinite = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
    return Outcome(
        clean_prediction=prediction,
        distance=infinite,
        budget=infinite.clone(),
        broken=torch.zeros((len(block.grid), count), dtype=torch.bool, device=device),
        queries=torch.zeros(count, dtype=torch.int64, device=device),
        cost=Cost(),
        trace=empty_trace(count, device),
        points=block.images.clone() if keep_points else None,
    )


def search_for(attack: Any, enough: float = 0.0, **common: Any) -> Any:
    """The search that fits an attack; `common` as of `Search`, `enough` as of `MinimumSearch`."""
    if hasattr(attack, "members"):
        return EnsembleSearch(attack=attack, **common)
    if getattr(attack, "minimum", False):
        return MinimumSearch(attack=attack, enough=enough, **common)
    return Search(attack=attack, **common)
