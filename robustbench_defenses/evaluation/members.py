"""The members of an ensemble in its result: what was left after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.outcome import Outcome
from . import metrics
from .diagnostics import survivors
from .record import Record
from .schema import Member

_SUMMED = ("seconds", "forward", "backward")
ARRAYS = {f"member_{name}" for name in ("names", "distance", "place", *_SUMMED)}


def arrays(out: Outcome) -> dict[str, Any]:
    """The members of an outcome as plain arrays (M, ...); nothing where it has none."""
    if not out.members:
        return {}
    return {
        "member_names": np.array([one.name for one in out.members]),
        "member_distance": np.stack([one.distance.cpu().numpy() for one in out.members]),
        "member_place": np.stack([one.place.cpu().numpy() for one in out.members]),
        "member_seconds": np.array([one.seconds for one in out.members]),
        "member_forward": np.array([one.cost.forward for one in out.members]),
        "member_backward": np.array([one.cost.backward for one in out.members]),
    }


def only_without_gradients(pieces: Sequence[dict[str, Any]]) -> NDArray[np.bool_] | None:
    """(N,) bool: broken by a member that asks no gradients, after members that follow them had
    failed at the same eps; None where the blocks tell of no members of both kinds."""
    if not all("member_names" in piece for piece in pieces):
        return None
    blind = sum(piece["member_backward"] for piece in pieces) == 0  # (M,)
    asked = sum(piece["member_forward"] for piece in pieces) > 0
    first = int(np.argmax(blind & asked))
    if not (blind & asked).any() or blind[:first].all():
        return None
    distance = np.concatenate([piece["member_distance"] for piece in pieces], axis=-1)
    nearest = distance.min(0)
    found: NDArray[np.bool_] = blind[distance.argmin(0)] & np.isfinite(nearest) & (nearest > 0)
    return found


def joined(
    pieces: Sequence[dict[str, Any]], record: Record, grid: Sequence[float]
) -> list[Member] | None:
    """The members over all blocks, at every eps of `grid`; None where a block does not tell.

    At each eps a member's accuracy is what it has left: without the examples that it and the
    members before it broke at that eps, and without those that fell at another one, which the
    members were not asked about again. So the last one's is the ensemble's.
    """
    if not all("member_names" in piece for piece in pieces):
        return None
    names = pieces[0]["member_names"].tolist()
    if any(piece["member_names"].tolist() != names for piece in pieces):
        return None
    distance = np.concatenate([piece["member_distance"] for piece in pieces], axis=-1)  # (M, N)
    place = np.concatenate([piece["member_place"] for piece in pieces], axis=-1)
    nearest = distance.argmin(0)  # who broke each example
    where = place[nearest, np.arange(len(record))]
    budgets = [eps for eps in grid if eps > 0]
    total = {name: sum(piece[f"member_{name}"] for piece in pieces) for name in _SUMMED}

    def left(turn: int, eps: float) -> float:
        if eps == 0:
            return metrics.clean_accuracy(record).value
        early = (where != budgets.index(eps)) | (nearest <= turn) | ~record.clean_right
        return float((survivors(record, eps) | ~early).mean())

    return [
        Member(
            name=name,
            robust_accuracy=[left(at, eps) for eps in grid],
            seconds=float(total["seconds"][at]),
            forward_passes=int(total["forward"][at]),
            backward_passes=int(total["backward"][at]),
        )
        for at, name in enumerate(names)
    ]
