"""Square: random search with square windows on the margin; no gradients.

x_0 = x + stripes (Linf) or a tiling of patterns (L2, L1) of size eps
x'  = x_t with a random window of side round(sqrt(p_t H W)) redrawn on the surface of the ball
x_{t+1} = x' if max_{k != y} Z_k - Z_y rises there, else x_t         (Andriushchenko et al. 2020)

Linf (algorithm 2): the window becomes x +- eps, one random sign per channel. L2 (algorithm 3): the
perturbation of a second window moves into the first, added to a pattern of nested rectangles. L1
(Croce and Hein 2021): as L2 with L1 norms and a steeper pattern. The share p_t halves by a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ..core import rng
from ..core.errors import UserError
from ..core.norms import per_row, project
from ..engine.losses import margin
from ..engine.protocol import Answer, Query, Rows

CARD = {
    "object": "Square",
    "version": 1,
    "source": "Andriushchenko et al. 2020, algorithms 1 to 3; L1: Croce and Hein 2021",
    "variants": {
        "square_linf": {"set": {"norm": "linf"}, "summary": "Square in the Linf ball"},
        "square_l2": {"set": {"norm": "l2"}, "summary": "Square in the L2 ball"},
        "square_l1": {"set": {"norm": "l1"}, "summary": "Square in the L1 ball"},
    },
    "cost": "n_queries forward passes per restart, no backward pass",
    "budgets": {"quick": {"n_queries": 500}, "deep": {"n_queries": 20000}},
    "differences": (
        "AutoAttack draws one window and one set of signs for a whole batch, never at the last row "
        "or column, and does not rescale the schedule; here each example has its own, anywhere."
    ),
    "params": {
        "norm": {"help": "norm of the budget"},
        "n_queries": {
            "unit": "forward passes",
            "min": 1,
            "help": "points asked in one run, the start among them",
            "papers": {"square": 10000, "autoattack": 5000},
        },
        "p_init": {
            "min": 0,
            "max": 1,
            "help": "share of the pixels in the first windows",
            "papers": {"square linf": 0.05, "autoattack": 0.8},
        },
        "rescale_schedule": {
            "help": "stretch the table for 10000 queries to n_queries (AutoAttack: no)"
        },
        "restarts": {"unit": "runs", "min": 1, "help": "independent runs, each from its own start"},
    },
}

# After so many of 10000 queries p has halved once more: 0.8, 0.4, ..., 0.8 / 512.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Margins below this share of the logit range are asked in float32: bf16 cannot see them rise.
CLOSE = 0.005


@dataclass
class State:
    """`best`, `trial` (B, C, H, W); `score` (B,) margin of the best, misclassified above 0;
    `close` (B,) bool: near the boundary, asked in float32; `done` (B,) int64 queries made."""

    best: Tensor
    trial: Tensor
    score: Tensor
    close: Tensor
    done: Tensor


@dataclass(frozen=True)
class Square:
    norm: Literal["linf", "l2", "l1"] = "linf"
    n_queries: int = 5000
    p_init: float = 0.8
    rescale_schedule: bool = True
    restarts: int = 1

    def start(self, rows: Rows) -> State:
        """Fresh rows at stripes or tiles."""
        if rows.images.dim() != 4:
            raise UserError(
                f"square changes windows of images (N, C, H, W), not {rows.images.dim() - 1} axes",
                hint="an attack with gradients, or images.view(N, 1, 1, D)",
            )
        key = rng.fold(rows.key, 0)
        trial = stripes(rows, key) if self.norm == "linf" else tiles(rows, key, self.norm)
        return State(
            trial.clone(),
            trial,
            torch.full_like(rows.eps, -torch.inf),
            torch.zeros_like(rows.labels, dtype=torch.bool),
            torch.zeros_like(rows.labels),
        )

    def ask(self, state: State, rows: Rows) -> Query:
        """The logits at the trial points."""
        return Query(state.trial, "logits", "margin")

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        """Keep the trial where the margin rises, and draw the next one."""
        score = margin(answer.logits, rows).to(state.score)
        better = (score > state.score) | (score >= 0)
        chosen = better.nonzero()[:, 0]
        state.best[chosen] = state.trial[chosen]
        state.score = torch.where(better, score, state.score)
        state.done = state.done + 1
        spread = answer.logits.amax(1) - answer.logits.amin(1)
        state.trial = self._trial(state, rows)
        # A row that comes near asks its best point again: its margin in float32 is the one to beat.
        again = (better & ~state.close & (score > -CLOSE * spread)).nonzero()[:, 0]
        state.trial[again] = state.best[again]
        state.score[again] = -torch.inf
        state.close[again] = True
        return state

    def score(self, state: State, rows: Rows, answer: Answer) -> Tensor:
        """The margin (B,) of the best point so far: there is no loss."""
        return torch.maximum(state.score, margin(answer.logits, rows).to(state.score))

    def _trial(self, state: State, rows: Rows) -> Tensor:
        """The next points (B, C, H, W)."""
        height, width = rows.images.shape[2:]
        device, dtype = rows.images.device, rows.images.dtype
        sides, pattern = tables(self.p_init, height, width, self.norm, device, dtype)
        stage = self.stage(state.done - 1)
        key = rng.fold(rows.key, state.done)
        if self.norm == "linf":
            return redraw_linf(state.best, rows, key, sides[stage])
        return redraw(state.best, rows, key, sides[stage], pattern[stage], self.norm)

    def stage(self, step: Tensor) -> Tensor:
        """How often (B,) p has halved at the candidates numbered `step` (B,) from 0."""
        if self.rescale_schedule:
            step = step * 10000 // self.n_queries
        return torch.bucketize(step, torch.tensor(HALVINGS, device=step.device))

    def fine(self, state: State, rows: Rows) -> Tensor:
        """Rows near the boundary."""
        return state.close

    def finished(self, state: State, rows: Rows) -> Tensor:
        """Rows whose queries are used up."""
        return state.done >= self.n_queries

    def last(self, state: State) -> Tensor:
        """The best points."""
        return state.best

    def passes(self, classes: int) -> tuple[int, int]:
        """`n_queries` forward passes."""
        return self.n_queries, 0


def window_sides(p_init: float, height: int, width: int, norm: str) -> tuple[int, ...]:
    """The side of the window at each stage of the schedule; odd and at least 3 for L2 and L1."""
    sides = [round(math.sqrt(p_init / 2**k * height * width)) for k in range(len(HALVINGS) + 1)]
    if norm != "linf":
        sides = [max(side, 3) | 1 for side in sides]
    return tuple(min(max(side, 1), height, width) for side in sides)


def pattern_of(side: int, norm: str) -> Tensor:
    """The pattern (side, side) float64 of unit norm: nested rectangles up, and down below them.

    Each half is a sum of centred squares of side 2 k + 1 and height 1 / (k + 1)^2 (L1: power 4).
    """
    power = 2 if norm == "l2" else 4
    steps = 1 / torch.arange(1, side // 2 + 2, dtype=torch.float64) ** power
    heights = steps.flip(0).cumsum(0).flip(0)  # by distance from the centre
    halves = []
    for rows, sign in ((side // 2, 1.0), (side - side // 2, -1.0)):
        i, j = (torch.arange(size) - size // 2 for size in (rows, side))
        half = sign * heights[torch.maximum(i.abs()[:, None], j.abs()[None])]
        halves.append(half / length_of(half, norm, (0, 1)).clamp_min(1e-12))
    pattern = torch.cat(halves)
    return pattern / length_of(pattern, norm, (0, 1))


@lru_cache(maxsize=16)
def tables(
    p_init: float, height: int, width: int, norm: str, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Window sides (10,) and patterns (10, S, S), edges repeated, of all stages."""
    sides = window_sides(p_init, height, width, norm)
    patterns = []
    for side in sides:
        spread = torch.arange(max(sides)).clamp_max(side - 1)
        patterns.append(pattern_of(side, norm)[spread][:, spread])
    return torch.tensor(sides, device=device), torch.stack(patterns).to(device, dtype)


def length_of(values: Tensor, norm: str, dims: tuple[int, ...]) -> Tensor:
    """L2 or L1 norm over `dims`, which are kept."""
    order = 2 if norm == "l2" else 1
    result: Tensor = torch.linalg.vector_norm(values, order, dim=dims, keepdim=True)
    return result


def _signs(numbers: Tensor, like: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0).to(like)


def _pixels(numbers: Tensor, side: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """A window per row at a random place: flat pixel positions (B, S S), and which of them lie
    inside (B, S S). S is the largest side of the batch; smaller windows repeat their edge."""
    height, width = images.shape[2:]
    largest = torch.arange(int(side.max()), device=side.device)
    offset = largest.minimum(side[:, None] - 1)
    top = (numbers[:, 0] * (height - side + 1)).long()[:, None] + offset
    left = (numbers[:, 1] * (width - side + 1)).long()[:, None] + offset
    inside = largest < side[:, None]
    return (
        (top[:, :, None] * width + left[:, None]).flatten(1),
        (inside[:, :, None] & inside[:, None]).flatten(1),
    )


def stripes(rows: Rows, key: Tensor) -> Tensor:
    """Linf start: one random sign per channel and column."""
    _, channels, _, width = rows.images.shape
    noise = _signs(rng.uniform(key, (channels, 1, width)), rows.images)
    return (rows.images + noise * per_row(rows.eps, noise)).clamp_(0, 1)


def redraw_linf(best: Tensor, rows: Rows, key: Tensor, side: Tensor) -> Tensor:
    """`best` with one window at x +- eps, one sign per channel."""
    channels = best.shape[1]
    numbers = rng.uniform(key, (2 + channels,), torch.float64)
    pixels, _ = _pixels(numbers, side, best)
    index = pixels[:, None].expand(-1, channels, -1)
    change = _signs(numbers[:, 2:], best) * rows.eps[:, None]
    content = rows.images.flatten(2).gather(2, index).add_(change[:, :, None]).clamp_(0, 1)
    trial = best.clone(memory_format=torch.contiguous_format)
    trial.view(*best.shape[:2], -1).scatter_(2, index, content)
    return trial


def tiles(rows: Rows, key: Tensor, norm: str) -> Tensor:
    """L2 and L1 start: patterns of a fifth of the height side by side, turned and signed at random,
    scaled to eps."""
    images = rows.images
    count, channels, height, width = images.shape
    side = max(1, min(height // 5, width))
    down, across = height // side, width // side
    turned = rng.uniform(rng.fold(key, 1), (1, down, 1, across, 1)) < 0.5
    signs = _signs(rng.uniform(key, (channels, down, 1, across, 1)), images)
    pattern = pattern_of(side, norm).to(images)
    tile = torch.where(turned, pattern.T[:, None], pattern[:, None])  # (B, 1, down, s, across, s)
    inner = (signs * tile).reshape(count, channels, down * side, across * side)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta = torch.zeros_like(images)
    delta[:, :, top : top + down * side, left : left + across * side] = inner
    if norm == "l1":  # at least eps long; what is longer becomes sparse in the projection
        delta *= (per_row(rows.eps, delta) / length_of(delta, norm, (1, 2, 3))).clamp_min(1)
    return _on_the_sphere(delta, rows, norm)


def _on_the_sphere(delta: Tensor, rows: Rows, norm: str) -> Tensor:
    """Points at distance eps in the direction of `delta`; L1: its projection onto ball and box."""
    length = length_of(delta, norm, (1, 2, 3))
    if norm == "l2":
        scale = per_row(rows.eps, delta) / length.clamp_min(1e-12)
        return torch.addcmul(rows.images, delta, scale).clamp_(0, 1)
    return project(rows.images + delta, rows.images, rows.eps, norm)


def redraw(
    best: Tensor, rows: Rows, key: Tensor, side: Tensor, pattern: Tensor, norm: str
) -> Tensor:
    """`best` with the perturbation of two windows gathered in the first (algorithm 3).

    The first gets sign * pattern + its old content at unit norm, scaled to what both windows held
    and what is left of eps; the second becomes zero.
    """
    channels, order = best.shape[1], 2 if norm == "l2" else 1
    numbers = rng.uniform(key, (5 + channels,), torch.float64)
    delta = (best - rows.images).flatten(2)
    left = per_row(rows.eps, delta) ** order - delta.abs().pow(order).sum((1, 2), keepdim=True)
    first, inside = _pixels(numbers, side, best)
    second, _ = _pixels(numbers[:, 2:], side, best)
    one, two = (pixels[:, None].expand(-1, channels, -1) for pixels in (first, second))
    held = inside[:, None].to(delta)  # repeated edges do not count in sums
    old = delta.gather(2, one)
    delta.scatter_(2, one, 0.0)
    others = delta.gather(2, two)
    delta.scatter_(2, two, 0.0)

    largest = math.isqrt(first.shape[1])
    shape = pattern[:, :largest, :largest]
    shape = torch.where(per_row(numbers[:, 4] < 0.5, shape), shape.mT, shape).flatten(1)
    new = old / length_of(old * held, norm, (2,)).clamp_min(1e-12)
    new = new + _signs(numbers[:, 5:], delta)[:, :, None] * shape[:, None]
    room = ((old.abs() ** order + others.abs() ** order) * held).sum(2, keepdim=True)
    room = room + left.clamp_min(0) / channels
    # L1 aims beyond the ball on colour images: the projection makes the perturbation sparse again.
    scale = room.sqrt() if norm == "l2" else room * channels
    new = new * (scale / length_of(new * held, norm, (2,)).clamp_min(1e-12))
    delta.scatter_(2, one, new)
    return _on_the_sphere(delta.view_as(best), rows, norm)
