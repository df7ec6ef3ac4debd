"""Learning-rate schedules: a factor on the rate, as a function of the share of training done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[float], float]
"""Progress in [0, 1) to a factor on the initial learning rate."""


def constant(progress: float) -> float:
    """No change."""
    return 1.0


def multistep(milestones: Sequence[float], gamma: float = 0.1) -> Schedule:
    """Times `gamma` at each of `milestones` (shares of the run)."""
    return lambda progress: gamma ** sum(progress >= milestone for milestone in milestones)


def triangle(peak: float = 0.4) -> Schedule:
    """From 0 up to 1 at `peak`, then down to 0."""
    return lambda progress: progress / peak if progress < peak else (1 - progress) / (1 - peak)


def cosine(warmup: float = 0.0) -> Schedule:
    """Linear warm-up over the share `warmup`, then half a cosine down to 0."""

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    return factor


def linear(warmup: float = 0.0, hold: float = 0.0, floor: float = 0.0) -> Schedule:
    """Linear warm-up over the share `warmup`, constant until `hold`, then linear to `floor`."""

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        if progress < hold:
            return 1.0
        return max(floor, (1 - progress) / (1 - hold))

    return factor
