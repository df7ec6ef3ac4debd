"""Starting points of attacks that come from the far side of the boundary.

Uniform noise images are drawn until one is misclassified; where none is, an image of another class
takes its place. The start is the first misclassified point on a grid of blends from the image to
that far point. Every row has its own noise and its own end: a row without a start stops nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import rng
from ..core.norms import per_row
from ..engine.protocol import Rows
from ..engine.rows import take

DRAW, DONOR, BLEND, READY, HOPELESS = range(5)


@dataclass
class Start:
    """`points` (B, C, H, W): asked now, or the start of rows that are ready; `far` (B, C, H, W):
    the misclassified end of the blends; `stage` (B,) int64; `asked` (B,) int64: questions of this
    stage that have their answer."""

    points: Tensor
    far: Tensor
    stage: Tensor
    asked: Tensor

    @property
    def over(self) -> Tensor:
        """Rows (B,) bool that have their start or will have none."""
        return self.stage >= READY


def begin(rows: Rows, noise_first: bool) -> Start:
    """Fresh rows at their first noise image or at the image of another class."""
    none = torch.zeros_like(rows.labels)
    points = _noise(rows, none) if noise_first else _donors(rows).clone()
    stage = none + (DRAW if noise_first else DONOR)
    return Start(points, rows.images.clone(), stage, none)


def advance(start: Start, rows: Rows, wrong: Tensor, draws: int, blends: int) -> Start:
    """The next points after the answers `wrong` (B,) bool; rows that are over stay as they are.

    `draws`: most noise images of a row; `blends`: points of the grid from the image (left out) to
    the far point (known to be misclassified, so not asked again).
    """
    old, asked = start.stage, start.asked + 1
    found = (old < BLEND) & wrong
    empty = (old == DRAW) & ~wrong & (asked >= draws)
    settled = (old == BLEND) & wrong
    asked = asked.masked_fill(found | empty, 0)
    stage = old.masked_fill((old == DONOR) & ~wrong, HOPELESS).masked_fill(empty, DONOR)
    stage = stage.masked_fill(found, BLEND).masked_fill(settled, READY)
    end = (stage == BLEND) & (asked + 1 >= blends)  # the far point closes the grid
    stage = stage.masked_fill(end, READY)

    points, far = start.points.clone(), start.far.clone()
    chosen = found.nonzero()[:, 0]
    far[chosen] = points[chosen]
    points[end] = far[end]
    chosen = empty.nonzero()[:, 0]
    if len(chosen):
        points[chosen] = _donors(rows)[chosen]
    chosen = (stage == DRAW).nonzero()[:, 0]
    if len(chosen):
        points[chosen] = _noise(take(rows, chosen), asked[chosen])
    chosen = (stage == BLEND).nonzero()[:, 0]
    if len(chosen):
        share = per_row((asked[chosen] + 1).to(far) / blends, far)
        points[chosen] = torch.lerp(rows.images[chosen], far[chosen], share)
    return Start(points, far, stage, asked)


def _noise(rows: Rows, draw: Tensor) -> Tensor:
    """Noise images (B, C, H, W) uniform in the box, number `draw` (B,) of each row."""
    shape, dtype = tuple(rows.images.shape[1:]), rows.images.dtype
    return rng.uniform(rng.fold(rows.key, draw), shape, dtype)


def _donors(rows: Rows) -> Tensor:
    assert rows.donors is not None
    return rows.donors
