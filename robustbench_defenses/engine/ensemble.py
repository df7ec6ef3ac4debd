"""Ensembles: several attacks, one after the other, each on what the ones before have left.

At each budget of the grid, rising, every member attacks the examples that still stand; what a
minimum-norm member finds counts at every budget above its distance. The outcome of an ensemble is
the per-example worst case over its members.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.norms import largest_allowed
from ..core.view import Logits
from .caller import Cost
from .minimum import MinimumSearch
from .protocol import Attack
from .search import BATCH_SIZE, Block, Outcome, Search, Trace
from .twin import Twin


class Ensemble(Protocol):
    """An attack made of attacks: `members(classes)` gives (name, attack) in order."""

    def members(self, classes: int) -> tuple[tuple[str, Attack], ...]:
        """The attacks to run for a subject of so many classes."""


@dataclass
class Stage:
    """What one member did: standing examples after it at each budget, and its seconds."""

    standing: list[int]
    seconds: float = 0.0


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
    stages: dict[str, Stage] = field(default_factory=dict)

    def run(self) -> Outcome:
        """Members in order at every budget, on the examples that stand."""
        total: Outcome | None = None
        grid = self.block.grid
        with torch.no_grad():
            classes = int(self.twin(self.block.images[:1]).shape[1])
        names = self.attack.members(classes)
        for place, eps in enumerate(grid):
            for turn, (name, member) in enumerate(names):
                begun = time.perf_counter()
                standing = self._standing(total, eps)
                stage = self.stages.setdefault(name, Stage([0] * len(grid)))
                if len(standing):
                    share = (place + turn / len(names)) / len(grid)
                    part = self._one(name, member, standing, eps, share, 1 / len(names) / len(grid))
                    total = self._merge(total, part, standing, place)
                stage.standing[place] = len(self._standing(total, eps))
                stage.seconds += time.perf_counter() - begun
        assert total is not None
        return total

    def _standing(self, total: Outcome | None, eps: float) -> Tensor:
        """Positions of the examples that survive `eps` so far."""
        if total is None:
            return torch.arange(len(self.block.images), device=self.block.images.device)
        return (total.distance > largest_allowed(torch.tensor(eps).double())).nonzero()[:, 0]

    def _one(
        self, name: str, member: Attack, standing: Tensor, eps: float, share: float, width: float
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
        )
        report = self.report
        gone = len(whole.images) - len(standing)
        common: dict[str, Any] = {
            "attack": member,
            "twin": self.twin,
            "deployed": self.deployed,
            "block": block,
            "subject": self.subject,
            "seed": self.seed,
            "attack_name": f"{self.attack_name}.{name}",
            "batch_size": self.batch_size,
            "report": None
            if report is None
            else lambda broken, inner: report(gone + broken, share + inner * width),
        }
        if getattr(member, "minimum", False):
            return MinimumSearch(**common, enough=eps).run()
        return Search(**common).run()

    def _merge(self, total: Outcome | None, part: Outcome, standing: Tensor, place: int) -> Outcome:
        """The worst case so far, with `part`'s examples at the positions `standing`."""
        if total is None:
            total = _blank(part, len(self.block.grid))
        nearer = part.distance < total.distance[standing]
        chosen = standing[nearer]
        total.distance[chosen] = part.distance[nearer]
        grid = torch.tensor(self.block.grid, dtype=torch.float64, device=standing.device)
        fits = part.distance[nearer][:, None] <= largest_allowed(grid)[None]  # (M, E)
        fits &= torch.arange(len(grid), device=standing.device) >= place
        first = torch.where(fits, grid, torch.inf).amin(1)
        total.budget[chosen] = torch.where(part.distance[nearer] == 0, 0.0, first)
        total.broken[:, chosen] |= fits.T | (part.distance[nearer] == 0)
        total.queries[standing] += part.queries
        total.cost.forward += part.cost.forward
        total.cost.backward += part.cost.backward
        total.invalid_claims += part.invalid_claims
        for item in fields(Trace):
            mine, new = getattr(total.trace, item.name), getattr(part.trace, item.name)
            if mine.dtype == torch.bool:
                mine[standing] |= new
            else:
                old = mine[standing]
                mine[standing] = torch.where(old.isnan(), new, old.fmax(new))
        return total


def _blank(first: Outcome, budgets: int) -> Outcome:
    """An outcome of nothing tried, for the examples of the first member (all of the block)."""
    count, device = len(first.distance), first.distance.device
    no = torch.zeros(count, dtype=torch.bool, device=device)
    infinite = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
    return Outcome(
        clean_prediction=first.clean_prediction,
        distance=infinite,
        budget=infinite.clone(),
        broken=torch.zeros((budgets, count), dtype=torch.bool, device=device),
        queries=torch.zeros_like(first.queries),
        cost=Cost(),
        trace=Trace(
            zero_start=no.clone(),
            zero_end=no.clone(),
            tried=no.clone(),
            reach=torch.full((count,), torch.nan, dtype=torch.float64, device=device),
            loss_rose=no.clone(),
        ),
    )


def search_for(attack: Any, enough: float = 0.0, **common: Any) -> Any:
    """The search that fits an attack; `common` as of `Search`, `enough` as of `MinimumSearch`."""
    if hasattr(attack, "members"):
        return EnsembleSearch(attack=attack, **common)
    if getattr(attack, "minimum", False):
        return MinimumSearch(attack=attack, enough=enough, **common)
    return Search(attack=attack, **common)
