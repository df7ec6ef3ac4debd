"""What a search finds out, per example of its block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .caller import Cost


@dataclass
class Trace:
    """What the diagnostics want to know of the search, per example of the block."""

    zero_start: Tensor  # (N,) bool: gradient exactly zero at the start of a run
    zero_end: Tensor  # (N,) bool: the same at the last gradient of a run that failed
    tried: Tensor  # (N,) bool: attacked at all
    reach: Tensor  # (N,) float64: largest norm(delta) / eps among runs that failed, else NaN
    compared: Tensor  # (N,) bool: a run failed whose loss is known at its start and its end
    loss_rose: Tensor  # (N,) bool: in such a run the loss ended above its start


@dataclass
class Found:
    """What one member of an ensemble broke: `distance` (N,) float64 (inf: nothing nearer than the
    members before it), and `place` (N,) int64, the position in the grid at which it found that."""

    name: str
    distance: Tensor
    place: Tensor
    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)


@dataclass
class Outcome:
    """`distance`, `budget` (N,) float64 (inf: not broken); `broken` (E, N) bool; `queries` (N,).

    `points` (N, C, H, W), where they were to be kept: the verified image at `distance`; of an
    example that did not break the last iterate; of a misclassified one the image itself.
    `broken_draws` (E, N) float64, of random subjects (minimum norm: (1, N)): the share of draws
    that are misclassified, where an example broke and else at the last point of a run.
    """

    clean_prediction: Tensor
    distance: Tensor
    budget: Tensor
    broken: Tensor
    queries: Tensor
    cost: Cost
    trace: Trace
    invalid_claims: int = 0
    points: Tensor | None = None
    members: list[Found] = field(default_factory=list)
    broken_draws: Tensor | None = None

    def note_draws(
        self, share: Tensor, budget: Tensor, example: Tensor, counts: Tensor, claims: int
    ) -> None:
        """Keep the shares (M,) of draws that points at the budgets (M,) broke: of points that
        `counts` (M,), and of those after the first `claims`. Refused claims are the unlucky ones
        of many: they say too much."""
        if self.broken_draws is None:
            return
        told = counts | (torch.arange(len(counts), device=counts.device) >= claims)
        place = budget[told] * self.broken_draws.shape[1] + example[told]
        self.broken_draws.view(-1).scatter_reduce_(0, place, share[told], "amax")


def empty_trace(count: int, device: torch.device) -> Trace:
    no = torch.zeros(count, dtype=torch.bool, device=device)
    return Trace(
        zero_start=no.clone(),
        zero_end=no.clone(),
        tried=no.clone(),
        reach=torch.full((count,), torch.nan, dtype=torch.float64, device=device),
        compared=no.clone(),
        loss_rose=no.clone(),
    )
