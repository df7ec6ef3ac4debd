"""Finished blocks of an evaluation that is under way: kept on disk until the result is whole."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.files import write_npz
from ..engine.search import Outcome, Trace

BLOCK_SIZE = 1000
_ARRAYS = {
    *("clean_prediction", "distance", "budget", "broken", "queries"),
    *("forward", "backward", "invalid"),
    *(f"trace_{part.name}" for part in fields(Trace)),
}


def size(start: int, total: int) -> int:
    """Number of examples in the block that begins at `start`."""
    return min(BLOCK_SIZE, total - start)


def arrays(out: Outcome) -> dict[str, Any]:
    """An outcome as plain arrays, the form in which blocks are kept and joined."""
    trace = {f"trace_{name}": value.cpu().numpy() for name, value in asdict(out.trace).items()}
    return {
        "clean_prediction": out.clean_prediction.cpu().numpy(),
        "distance": out.distance.cpu().numpy(),
        "budget": out.budget.cpu().numpy(),
        "broken": out.broken.cpu().numpy(),
        "queries": out.queries.cpu().numpy(),
        "forward": np.array(out.cost.forward),
        "backward": np.array(out.cost.backward),
        "invalid": np.array(out.invalid_claims),
        **trace,
    }


def keep(folder: Path, start: int, piece: dict[str, Any]) -> None:
    """Keep a finished block; a full or read-only disk is a `UserError`."""
    for _ in range(3):
        try:
            write_npz(folder / f"{start}.npz", piece)
        except (UserError, FileNotFoundError) as error:
            # Another process that has answered the same question clears the folder.
            if not isinstance(error.__cause__ or error, FileNotFoundError):
                raise
        else:
            return


def kept(folder: Path, start: int, total: int) -> dict[str, Any] | None:
    """A finished block, None where there is none or it is damaged."""
    try:
        with np.load(folder / f"{start}.npz", allow_pickle=False) as archive:
            piece = {name: archive[name] for name in archive.files}
        whole = set(piece) == _ARRAYS and len(piece["distance"]) == size(start, total)
    except Exception:  # numpy raises many kinds for damaged archives; the block is simply redone
        return None
    return piece if whole else None


def kept_examples(folder: Path, total: int) -> int:
    """How many examples the kept blocks cover."""
    starts = [int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal()]
    return sum(size(start, total) for start in starts)
