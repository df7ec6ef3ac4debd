"""Transfer: images made on a source, judged by another subject.

At every eps the attack makes its images on the source afresh, for every example, and nobody leaves
early: what transfers is the last iterate (`engine.craft`), of a minimum-norm attack the nearest
image that the source misclassifies. The verdict is the subject's; what it misclassifies without
any attack counts as broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import rng
from ..core.draws import seeded
from ..core.errors import UserError
from ..core.norms import largest_allowed
from ..core.view import Logits
from .caller import Cost
from .craft import craft
from .minimum import MinimumSearch
from .protocol import Attack
from .search import BATCH_SIZE, Block, Outcome, empty_trace
from .twin import Twin
from .verdict import Judge, clean_shares


@dataclass(frozen=True)
class Source:
    """Who makes the images: its attack `view`, the view's search twin, and what it deploys."""

    name: str
    view: Logits
    twin: Twin
    deployed: Logits


@dataclass
class TransferSearch:
    """One attack on one block; fields as of `Search`, but the attack runs on `source`."""

    attack: Attack
    source: Source
    deployed: Logits
    block: Block
    subject: str = "the subject"
    seed: int = 0
    attack_name: str = "attack"
    batch_size: int = BATCH_SIZE
    report: Callable[[int, float], None] | None = None

    def run(self) -> Outcome:
        """Make images at every budget of the grid and have them judged."""
        if hasattr(self.attack, "members"):
            raise UserError(
                f"{self.attack_name} stops at the first success and has no images to transfer",
                hint="name one of its members",
            )
        block, cost = self.block, Cost()
        count, device = len(block.images), block.images.device
        judge = Judge(self.deployed, self.subject, block.numbers, cost, seed=self.seed)
        everyone = torch.arange(count, device=device)
        draws = judge.draws(block.images, everyone)
        clean = judge.scores(draws).argmax(1)
        right = clean == block.labels
        infinite = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        out = Outcome(
            clean_prediction=clean,
            distance=torch.where(right, infinite, 0.0),
            budget=torch.where(right, infinite, 0.0),
            broken=(~right).repeat(len(block.grid), 1),
            queries=torch.full((count,), len(draws), dtype=torch.int64, device=device),
            cost=cost,
            trace=empty_trace(count, device),
        )
        minimum = getattr(self.attack, "minimum", False)
        rows = 1 if minimum else len(block.grid)
        out.broken_draws = clean_shares(judge, draws, block.labels, rows)
        chosen = right.nonzero()[:, 0]
        if minimum:
            self._nearest(out, judge, chosen)
        else:
            for place, eps in enumerate(block.grid):
                self._at(out, judge, chosen, place, eps)
        out.invalid_claims = judge.invalid
        return out

    def _part(self, chosen: Tensor) -> Block:
        whole = self.block
        return Block(
            images=whole.images[chosen],
            labels=whole.labels[chosen],
            target=whole.target[chosen],
            numbers=whole.numbers[chosen],
            grid=whole.grid,
            pool=whole.pool,
        )

    def _at(self, out: Outcome, judge: Judge, chosen: Tensor, place: int, eps: float) -> None:
        """The images of one budget and their verdicts."""
        block = self._part(chosen)
        forward, backward = self.attack.passes(self._classes(block)) if len(chosen) else (0, 0)
        for start in range(0, len(chosen), self.batch_size):
            part = slice(start, start + self.batch_size)
            points = craft(
                self.source.view,
                self.attack,
                block.images[part],
                block.labels[part],
                eps,
                key=rng.run_keys(self.seed, self.attack_name, block.numbers[part]),
                target=block.target[part],
                pool=block.pool,
            )
            example = chosen[part]
            budget = torch.full((len(example),), eps, dtype=torch.float64, device=points.device)
            counts, length, share = judge.verdict(
                points, block.images[part], block.labels[part], block.target[part], budget,
                self.attack.norm, example,
            )  # fmt: skip
            out.note_draws(share, torch.full_like(example, place), example, counts, 0)
            out.broken[place, example] = counts
            fresh = counts & torch.isinf(out.distance[example])
            out.distance[example[fresh]] = length[fresh]
            out.budget[example[fresh]] = eps
            out.queries[example] += forward
            out.cost.forward += forward * len(example)
            out.cost.backward += backward * len(example)
            self._tell(out, (place + (start + len(example)) / len(chosen)) / len(block.grid))

    def _classes(self, block: Block) -> int:
        """How many classes the source tells apart; a random one draws nothing of the caller's."""
        with torch.no_grad(), seeded(0, block.images.device):
            return int(self.source.deployed(block.images[:1]).shape[1])

    def _nearest(self, out: Outcome, judge: Judge, chosen: Tensor) -> None:
        """The images of a minimum-norm attack, and their verdicts."""
        if len(chosen) == 0:
            return
        block = self._part(chosen)
        made = MinimumSearch(
            attack=self.attack,
            twin=self.source.twin,
            deployed=self.source.deployed,
            block=block,
            subject=self.source.name,
            seed=self.seed,
            attack_name=self.attack_name,
            batch_size=self.batch_size,
            report=lambda _, share: self._tell(out, share),
            keep_points=True,
        ).run()
        assert made.points is not None
        infinite = torch.full_like(out.distance[chosen], torch.inf)
        counts, length, share = judge.verdict(
            made.points, block.images, block.labels, block.target, infinite,
            self.attack.norm, chosen,
        )  # fmt: skip
        out.note_draws(share, torch.zeros_like(chosen), chosen, counts, 0)
        out.distance[chosen[counts]] = length[counts]
        out.budget[chosen[counts]] = length[counts]
        for place, eps in enumerate(block.grid):
            out.broken[place, chosen] = counts & (
                length <= largest_allowed(torch.tensor(eps).double())
            )
        out.queries[chosen] += made.queries
        out.cost.forward += made.cost.forward
        out.cost.backward += made.cost.backward

    def _tell(self, out: Outcome, share: float) -> None:
        if self.report is not None:
            self.report(int(torch.isfinite(out.distance).sum()), share)
