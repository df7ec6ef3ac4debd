"""What an interrupted training needs to go on: one file, and who may write it.

The file holds the tensors of all parts and optimisers and, in its header, where training stands.
Everything random is a function of counters, so nothing else has to be kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.progress import Progress
from ..defenses.base import Optimiser, Parts
from . import weights

FORMAT = "rrd.resume/1"


@dataclass
class Standing:
    """Where training stands; the next step to do is `step` of `epoch` of `phase`, from 0.

    `begun`: the phase's `begin` has run; `steps`, `epochs` count over all phases; `sums`: loss
    terms summed over the steps of the running epoch, by name; `best`, `final`: the best and the
    latest validation; `best_robust` of the running phase; `log_lines` written so far.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    begun: bool = False
    steps: int = 0
    epochs: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    best_robust: float = 0.0
    log_lines: int = 0
    samples: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    warnings: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)


def path_of(folder: Path) -> Path:
    """The one file of a run's resume folder."""
    return folder / "resume" / "state.safetensors"


def save(folder: Path, standing: Standing, parts: Parts, optimisers: tuple[Optimiser, ...]) -> None:
    """Write everything that is needed to go on from `standing`, atomically."""
    tensors = {f"part/{name}": tensor for name, tensor in weights.flatten(parts).items()}
    for number, optimiser in enumerate(optimisers):
        for position, state in enumerate(_states(optimiser)):
            for name, value in state.items():
                if isinstance(value, Tensor):
                    key = f"optimiser/{number}/{position}/{name}"
                    tensors[key] = value.detach().cpu().contiguous().clone()
    header = {"format": FORMAT, "standing": json.dumps(dataclasses.asdict(standing))}
    weights.save_tensors(path_of(folder), tensors, header)


def load(folder: Path) -> tuple[Standing, dict[str, Tensor]] | None:
    """The saved standing and tensors, or None when there is nothing to go on from."""
    path = path_of(folder)
    if not path.is_file():
        return None
    tensors, header = weights.load(path)
    try:
        if header["format"] != FORMAT:
            raise ValueError
        return Standing(**json.loads(header["standing"])), tensors
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} does not hold the state of a training of this version",
            hint="--fresh starts this training anew",
        ) from None


def fill_parts(parts: Parts, tensors: dict[str, Tensor], source: Path) -> None:
    """Put the saved weights into the parts."""
    saved = {
        name.removeprefix("part/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("part/")
    }
    weights.fill(parts, saved, str(source))


def fill_optimisers(optimisers: tuple[Optimiser, ...], tensors: dict[str, Tensor]) -> None:
    """Put the saved states (moments, step counts) into the optimisers."""
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind != "optimiser":
            continue
        number, position, key = rest.split("/", 2)
        parameter = _parameters(optimisers[int(number)])[int(position)]
        if tensor.shape == parameter.shape:
            # Fused steps walk over memory: a moment must lie there as its parameter does.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        optimisers[int(number)].stepper.state[parameter][key] = tensor


def _parameters(optimiser: Optimiser) -> list[nn.Parameter]:
    return [weight for group in optimiser.stepper.param_groups for weight in group["params"]]


def _states(optimiser: Optimiser) -> list[dict[str, Any]]:
    return [optimiser.stepper.state.get(weight, {}) for weight in _parameters(optimiser)]


def forget(folder: Path) -> None:
    """Remove the resume folder and what killed processes left half-written: training is over."""
    shutil.rmtree(folder / "resume", ignore_errors=True)
    for left in [*folder.glob(".*.tmp"), *folder.glob("weights/.*.tmp")]:
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process trains this run, and keep others waiting inside.

    The lock is the operating system's own, on the folder: it ends with its process, however that
    process ends.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this platform: equal trainings write equal files
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder.parent}: {error.strerror}",
            hint="choose another folder with --results DIR (or RRD_RESULTS)",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.start("wait for another process that trains this run", 0)
            fcntl.flock(handle, fcntl.LOCK_EX)
            progress.finish()
        except OSError:
            pass  # a file system without locks: as above
        yield
    finally:
        os.close(handle)
