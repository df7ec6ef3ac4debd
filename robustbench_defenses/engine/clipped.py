"""Tables (eps, example) of attacks that are given no budget.

`clipped`: the rule of foolbox and of AFD (Bashivan et al. 2021): the perturbation that the attack
found is clipped to the ball of each eps and the image classified again. Linf: every pixel's change
is clamped; L2 and L1: the change is scaled. A clipped image lies between two points of the box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.norms import add_inwards, distance, largest_allowed, per_row
from ..core.view import Logits
from .search import Block, Outcome
from .verdict import Judge


def by_distance(out: Outcome, block: Block) -> Tensor:
    """The table (E, N) bool of what the distances say."""
    grid = torch.tensor(block.grid, dtype=torch.float64, device=out.distance.device)
    return out.distance <= largest_allowed(grid)[:, None]


def clip(points: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """`points` (N, C, H, W) moved into the balls of radius `eps` around `images`; those inside
    stay as they are."""
    delta = points - images
    if norm == "linf":
        moved = images + delta.clamp(-eps, eps)
    else:
        length = distance(points, images, norm)
        share = (eps / length.clamp_min(1e-30)).clamp_max(1.0).to(delta)
        moved = add_inwards(images, delta * per_row(share, delta))
    inside = distance(points, images, norm) <= eps
    return torch.where(per_row(inside, points), points, moved.clamp(0, 1))


def clipped(out: Outcome, block: Block, norm: str, deployed: Logits, subject: str) -> Tensor:
    """The table (E, N) bool: is the image that was found, clipped to eps, still misclassified?

    In float32, by the deployed subject. Misclassified clean images are broken at every eps;
    examples for which nothing was found at none. `out` holds the points that were found.
    """
    assert out.points is not None
    judge = Judge(deployed, subject, block.numbers, out.cost)
    table = (out.distance == 0).repeat(len(block.grid), 1)
    found = (torch.isfinite(out.distance) & (out.distance > 0)).nonzero()[:, 0]
    if len(found) == 0:
        return table
    images, points = block.images[found], out.points[found]
    for place, eps in enumerate(block.grid):
        counts, _ = judge.judge(
            clip(points, images, eps, norm), images, block.labels[found], block.target[found],
            torch.full_like(out.distance[found], eps), norm, found,
        )  # fmt: skip
        table[place, found] = counts
        out.queries[found] += 1
    out.invalid_claims += judge.invalid
    return table
