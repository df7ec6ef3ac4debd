"""The path of an attack, seen over its shoulder: losses, and what it passed on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.norms import distance, largest_allowed
from ...engine.losses import margin, misclassified
from ...engine.protocol import Answer, Query, Rows


class Path:
    """What the first run of each image (N,) went through.

    `losses`, `margins` (N, T): the loss and the margin (`losses.margin`: above 0 is adversarial) at
    every asked point, NaN where there was none; `age` (N,): their number; `passed` (N,) bool: the
    search saw an adversarial point inside ball and box; `points` (N, C, H, W): that point.
    """

    def __init__(self, images: Tensor) -> None:
        count = len(images)
        self.losses = torch.full((count, 64), torch.nan, device=images.device)
        self.margins = self.losses.clone()
        self.age = torch.zeros(count, dtype=torch.int64, device=images.device)
        self.passed = torch.zeros(count, dtype=torch.bool, device=images.device)
        self.points = images.clone()

    def begin(self, example: Tensor) -> None:
        """The first runs of these images begin (again)."""
        self.age[example] = 0
        self.losses[example] = self.margins[example] = torch.nan

    def add(self, example: Tensor, loss: Tensor, margin: Tensor) -> None:
        """One more loss and margin for each of these images."""
        age = self.age[example]
        if int(age.max()) >= self.losses.shape[1]:
            more = torch.full_like(self.losses, torch.nan)
            self.losses = torch.cat([self.losses, more], 1)
            self.margins = torch.cat([self.margins, more], 1)
        self.losses[example, age] = loss.to(self.losses)
        self.margins[example, age] = margin.to(self.margins)
        self.age[example] += 1

    def best(self) -> Tensor:
        """The largest loss (N,) on the way; NaN where nothing was asked."""
        seen = self.losses.nan_to_num(-torch.inf).amax(1)
        return seen.masked_fill(torch.isinf(seen), torch.nan)


@dataclass
class Watched:
    """An attack that writes down its path; in all else it is the attack itself."""

    attack: Any
    path: Path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attack, name)

    def start(self, rows: Rows) -> Any:
        """As the attack does."""
        self.path.begin(rows.example[rows.run == 0])
        return self.attack.start(rows)

    def ask(self, state: Any, rows: Rows) -> Query:
        """As the attack does; remembers the points."""
        query: Query = self.attack.ask(state, rows)
        self._asked = query.points
        return query

    def tell(self, state: Any, rows: Rows, answer: Answer) -> Any:
        """As the attack does, after a look at the answer."""
        first = rows.run == 0
        if answer.loss is not None and bool(first.any()):
            ahead = margin(answer.logits, rows)
            self.path.add(rows.example[first], answer.loss[first], ahead[first])
        wrong = misclassified(answer.logits, rows.labels, rows.target).nonzero()[:, 0]
        if len(wrong):
            points = self._asked[wrong]
            flat = points.flatten(1)
            valid = (flat >= 0).all(1) & (flat <= 1).all(1)
            length = distance(points, rows.images[wrong], self.attack.norm)
            valid &= length <= largest_allowed(rows.eps[wrong].double())
            example = rows.example[wrong[valid]]
            self.path.passed[example] = True
            self.path.points[example] = points[valid]
        return self.attack.tell(state, rows, answer)
