"""Regression check: cached checkpoints asked again, compared with their stored results.

A folder holds `runs/` and `evals/` as any results folder does. Every stored result of one of its
runs is asked again, with the same parameters, and compared example by example.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import Interrupted, UserError
from ..core.progress import Progress
from . import metrics, store
from .diagnostics import survivors
from .record import Record
from .run import evaluate
from .schema import Result

TOLERANCE = 0.005
SHIPPED = Path(__file__).parents[1] / "_shipped" / "checkpoints"
IN_SOURCES = Path(__file__).parents[2] / "results" / "checkpoints"


@dataclass(frozen=True)
class Checked:
    """One stored result beside its repetition.

    `eps`: the budget of the largest change; `before`, `now`: robust accuracies there, `before` as
    the stored result or its record says, whichever is farther from `now`; `worse`: examples (their
    numbers in the test set) that survived and no longer do, at any budget; `better`: those that did
    not survive and now do.
    """

    stored: Result
    eps: float
    before: float
    now: float
    worse: list[int]
    better: list[int]
    tolerance: float

    @property
    def change(self) -> float:
        """Change of robust accuracy at `eps` (of clean accuracy at 0); negative is a loss."""
        return self.now - self.before

    @property
    def holds(self) -> bool:
        """True when no accuracy moved by more than the tolerance, in either direction.

        A rise is no gain in robustness when the weights are the same: it is a weaker attack.
        """
        return abs(self.change) <= self.tolerance + 1e-12

    @property
    def smallest_drop(self) -> float:
        """The smallest drop that this check could have seen."""
        return metrics.smallest_drop_above(self.stored.n, self.tolerance)


def default_folder() -> Path:
    """`./results/checkpoints` where it exists, else the checkpoints shipped with the package."""
    here = Path("results") / "checkpoints"
    for folder in (here, SHIPPED, IN_SOURCES):
        if (folder / "evals").is_dir():
            return folder
    raise UserError(
        f"there are no checkpoints to check in {here}", hint="rrd check FOLDER (a results folder)"
    )


def check(
    folder: Path,
    *,
    tolerance: float = TOLERANCE,
    data_dir: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Checked]:
    """Ask every stored result of `folder` again; the folder itself is not written to."""
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance {100 * tolerance:g}: points between 0 and 100 are needed")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    stored = _load(folder)
    with tempfile.TemporaryDirectory(prefix="rrd-check-") as scratch:
        # New results go to a scratch folder that sees the same runs.
        (Path(scratch) / "runs").symlink_to((folder / "runs").resolve(), target_is_directory=True)
        for one in stored:
            before, result = one.record(), one.result
            try:
                (again,) = evaluate(
                    result.subject.id,
                    [result.attack.name],
                    dataset=result.dataset.name,
                    eps=[point.eps for point in result.curve] or None,
                    n=-1 if result.dataset.subset == "correct" else result.n,
                    settings={"": dict(result.attack.parameters)},
                    sweep=result.sweep,
                    targeted=result.attack.targeted,
                    view=result.view,
                    subset=result.dataset.subset,
                    seed=result.seed,
                    device=device,
                    precision=result.precision,
                    batch_size=batch_size,
                    threads=threads,
                    data_dir=data_dir,
                    results_dir=Path(scratch),
                    progress=progress,
                )
            except Interrupted:
                raise Interrupted("interrupted; a check keeps nothing, it begins again") from None
            if again.stored.result.dataset.digest != result.dataset.digest:
                raise UserError(
                    f"{result.dataset.name} is not the data that {one.path.name} was made with"
                )
            yield _compare(result, before, again.stored.record(), tolerance)


def _load(folder: Path) -> list[store.StoredResult]:
    damaged: list[str] = []
    stored = [
        one
        for one in store.all_results(folder, damaged.append)
        if one.result.subject.kind == "run" and one.result.attack.backend == "native"
    ]
    if damaged:
        raise UserError(damaged[0])
    if not stored:
        raise UserError(
            f"{folder} holds no result of a run", hint="train and evaluate with --results FOLDER"
        )
    return stored


def _compare(result: Result, before: Record, now: Record, tolerance: float) -> Checked:
    """Example by example; those that the subset `correct` no longer holds count as broken."""
    order = _positions(before.index, now.index)
    if (order < 0).any() and result.dataset.subset != "correct":
        raise UserError(f"{result.subject.id}: the repetition attacked other examples")
    # (size of the change, minus the distance from one half, eps, before, now): the largest change
    # is shown; where nothing changed, the accuracy that says most.
    largest = (-1.0, 0.0, 0.0, 0.0, 0.0)
    worse = better = np.zeros(len(before), dtype=bool)
    clean = (0.0, result.clean_accuracy, before.clean_right, now.clean_right)
    points = [
        (p.eps, p.robust_accuracy, survivors(before, p.eps), survivors(now, p.eps))
        for p in result.curve
    ]
    for eps, printed, old, again in [clean, *points]:
        new = np.where(order >= 0, again[order], False)
        worse, better = worse | (old & ~new), better | (new & ~old)
        is_ = float(new.mean())
        # Result and record are two files: what either of them claims has to hold.
        for was in (float(old.mean()), printed):
            largest = max(largest, (abs(is_ - was), -abs(is_ - 0.5), eps, was, is_))
    return Checked(
        stored=result,
        eps=largest[2],
        before=largest[3],
        now=largest[4],
        worse=[int(i) for i in before.index[worse]],
        better=[int(i) for i in before.index[better]],
        tolerance=tolerance,
    )


def _positions(wanted: NDArray[np.int64], given: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of `wanted` (N,) stands in `given` (M,); -1 where it does not."""
    place = {int(number): position for position, number in enumerate(given)}
    return np.array([place.get(int(number), -1) for number in wanted], dtype=np.int64)
