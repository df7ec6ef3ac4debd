"""What an evaluation leaves for the diagnostics to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metrics
from .record import Record

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """What the checks may look at. Arrays have one entry per example of `record`."""

    record: Record
    grid: tuple[float, ...]
    norm: str
    attack: str
    targeted: bool
    classes: int
    zero_start: Bools
    zero_end: Bools
    tried: Bools
    compared: Bools  # a run failed whose loss is known at its start and its end
    loss_rose: Bools
    reach: NDArray[np.float64]  # norm(delta) / eps where a run failed, else NaN
    travel: Mapping[float, float]  # eps -> farthest the attack's steps can go
    invalid_claims: int  # claimed points outside ball or box, or not finite
    pixel_range: tuple[float, float]
    probabilities: bool
    coupling: float  # largest relative change of logits when an image is asked alone
    buffers_changed: bool
    trained_mode: bool
    one_step: Record | None = field(default=None)  # fgsm on the same examples
    random: bool = False  # the subject says that its answers are random
    dataset: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trained_eps: float | None = None  # the budget that the subject was trained at
    # broken only by a member of the ensemble that asks no gradients
    only_without_gradients: Bools | None = field(default=None)
    transfer: bool = False  # the images were made on another network
    unbounded: bool = False  # the attack looked for the nearest point at any distance

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.record)

    @property
    def eps(self) -> float | None:
        """The one budget of the grid."""
        budgets = [eps for eps in self.grid if eps > 0]
        return budgets[0] if len(budgets) == 1 else None

    def robust(self, eps: float) -> Bools:
        """Examples (N,) that survive `eps`."""
        return survivors(self.record, eps)


def survivors(record: Record, eps: float) -> Bools:
    """Examples (N,) of `record` that survive `eps`."""
    if record.broken is not None and record.eps is not None:
        at = np.flatnonzero(np.isclose(record.eps, eps, rtol=1e-9, atol=0))
        if len(at):
            left: Bools = ~record.broken[at[0]]
            return left
    standing: Bools = record.distance > metrics.largest_allowed(eps)
    return standing


def evidence_arrays(traces: list[dict[str, Any]], name: str) -> Any:
    """One array over all blocks."""
    return np.concatenate([trace[name] for trace in traces])
