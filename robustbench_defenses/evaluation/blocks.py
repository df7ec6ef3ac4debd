"""An evaluation under way, on disk until its result is whole: finished blocks, and of the running
block a snapshot now and then, from which it goes on to the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import OutOfTime, UserError
from ..core.files import write_bytes, write_npz
from ..core.stopping import StopRequest
from ..engine.search import Outcome, Trace
from ..engine.snapshot import State
from . import members
from .limit import TimeLimit

BLOCK_SIZE = 1000
# Seconds between two snapshots of a running block; writing them takes at most this share.
KEEP_EVERY = 60.0
LARGEST_SHARE = 0.05
# What a snapshot must have been made by: (seconds worked, share done, this number).
FORMAT = 1
DRAWS = "broken_draws"  # of random subjects only
_ARRAYS = {
    *("clean_prediction", "distance", "budget", "broken", "queries"),
    *("forward", "backward", "invalid", "seconds"),
    *(f"trace_{part.name}" for part in fields(Trace)),
}


def size(start: int, total: int) -> int:
    """Number of examples in the block that begins at `start`."""
    return min(BLOCK_SIZE, total - start)


def arrays(out: Outcome, seconds: float) -> dict[str, Any]:
    """An outcome as plain arrays, the form in which blocks are kept and joined.

    `seconds`: worked on it, by all processes together.
    """
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
        "seconds": np.array(seconds),
        **trace,
        **({} if out.broken_draws is None else {DRAWS: out.broken_draws.cpu().numpy()}),
        **members.arrays(out),
    }


@dataclass
class Keeper:
    """Looks at a block between its steps: keeps a snapshot now and then, and when work has to end.

    `spent`: seconds that earlier processes worked on the block; `share`: of the block that is done.
    """

    path: Path
    limit: TimeLimit | None = None
    stop: StopRequest | None = None
    spent: float = 0.0
    share: float = 0.0
    _begun: float = field(default_factory=time.monotonic, init=False)
    _next: float = field(init=False)

    def __post_init__(self) -> None:
        self._next = self._begun + KEEP_EVERY

    @property
    def seconds(self) -> float:
        """Worked on the block so far, by all processes together."""
        return self.spent + time.monotonic() - self._begun

    def __call__(self, take: Callable[[], State]) -> None:
        """Keep what `take` gives if it is time for it; `OutOfTime` once all time is over, after
        Ctrl-C what that does."""
        over = self.limit is not None and self.limit.over
        stopped = self.stop is not None and self.stop.asked
        now = time.monotonic()
        if over or stopped or now >= self._next:
            _write(self.path, take() | {"kept": self._about()})
            done = time.monotonic()
            self._next = done + max(KEEP_EVERY, (done - now) / LARGEST_SHARE)
        if self.stop is not None:
            self.stop.deliver()
        if over:
            raise OutOfTime("the time is over")

    def _about(self) -> Tensor:
        return torch.tensor([self.seconds, self.share, FORMAT], dtype=torch.float64)


def snapshot_path(folder: Path, start: int) -> Path:
    """Where the snapshot of the block that begins at `start` is kept."""
    return folder / f"{start}.safetensors"


def snapshot(folder: Path, start: int) -> tuple[State, float, float] | None:
    """The snapshot of a block, the seconds worked and the share done; None where there is none.

    A damaged one is none: the block is simply begun again.
    """
    import safetensors.torch

    try:
        state = safetensors.torch.load(snapshot_path(folder, start).read_bytes())
        seconds, share, made_by = state.pop("kept").tolist()
    except Exception:  # whatever is wrong with the file
        return None
    return (state, seconds, share) if made_by == FORMAT else None


def _write(path: Path, state: State) -> None:
    import safetensors.torch

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    _patiently(lambda: write_bytes(path, safetensors.torch.save(tensors)))


def keep(folder: Path, start: int, piece: dict[str, Any]) -> None:
    """Keep a finished block; a full or read-only disk is a `UserError`."""
    _patiently(lambda: write_npz(folder / f"{start}.npz", piece))
    snapshot_path(folder, start).unlink(missing_ok=True)


def _patiently(write: Callable[[], None]) -> None:
    for _ in range(3):
        try:
            write()
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
        names = set(piece) - members.ARRAYS - {DRAWS}
        whole = names == _ARRAYS and len(piece["distance"]) == size(start, total)
    except Exception:  # numpy raises many kinds for damaged archives; the block is simply redone
        return None
    return piece if whole else None


def kept_examples(folder: Path, total: int) -> int:
    """How many examples the finished blocks cover."""
    starts = [int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal()]
    return sum(size(start, total) for start in starts)


def kept_share(folder: Path, total: int) -> float:
    """Which share of all the work is kept, finished blocks and snapshots."""
    done = float(kept_examples(folder, total))
    for start in range(0, total, BLOCK_SIZE):
        found = None if (folder / f"{start}.npz").exists() else snapshot(folder, start)
        done += 0.0 if found is None else found[2] * size(start, total)
    return min(1.0, done / total)
