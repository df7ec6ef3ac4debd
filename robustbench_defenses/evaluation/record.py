"""The per-example record of a result (npz): what happened to every example."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from ..core.files import write_npz

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Record:
    """What happened to every example.

    `index` (N,) int64 position in the test set; `label`, `clean_prediction` (N,) int64;
    `distance` (N,) float64 breaking distance, 0 where the clean image is misclassified, inf where
    nothing was found; `budget` (N,) float64 eps of the grid at which the example fell, else inf;
    `queries` (N,) int64 forward passes. Table sweeps also hold `eps` (E,) float64, rising, and
    `broken` (E, N) bool. Of random subjects: `broken_draws` (N,) float64, in table sweeps (E, N),
    the share of draws that are misclassified, at the point that broke an example or else at the
    last one tried. Values that contradict each other raise `ValueError`.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    distance: NDArray[np.float64]
    budget: NDArray[np.float64]
    queries: NDArray[np.int64]
    eps: NDArray[np.float64] | None = None
    broken: NDArray[np.bool_] | None = None
    broken_draws: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def clean_right(self) -> NDArray[np.bool_]:
        """(N,) bool: the clean image is classified rightly."""
        return np.equal(self.clean_prediction, self.label)

    @classmethod
    def from_table(
        cls,
        index: NDArray[np.int64],
        label: NDArray[np.int64],
        clean_prediction: NDArray[np.int64],
        queries: NDArray[np.int64],
        eps: NDArray[np.float64],
        broken: NDArray[np.bool_],
        broken_draws: NDArray[np.float64] | None = None,
    ) -> Record:
        """The record of a table sweep; distance and budget are the smallest broken eps.

        A misclassified clean image counts as broken at every eps.
        """
        wrong = clean_prediction != label
        table = broken | wrong
        fell = np.where(table, eps[:, None], np.inf).min(0, initial=np.inf)  # (E, N) -> (N,)
        return cls(
            index,
            label,
            clean_prediction,
            np.where(wrong, 0.0, fell),
            fell,
            queries,
            eps,
            table,
            broken_draws,
        )

    def save(self, path: Path) -> None:
        """Write the record to `path` atomically."""
        arrays = {name: getattr(self, name) for name in _DTYPES}
        write_npz(path, {name: array for name, array in arrays.items() if array is not None})

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record; a missing, truncated or malformed file is a `UserError` naming it."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise ValueError("not an npz archive")
                unknown = sorted(set(archive.files) - set(_DTYPES))
                if unknown:
                    raise ValueError(f"unknown array {unknown[0]!r}")
                missing = [name for name in _REQUIRED if name not in archive.files]
                if missing:
                    raise ValueError(f"array {missing[0]!r} is missing")
                return cls(**{name: archive[name] for name in archive.files})
        except FileNotFoundError:
            raise UserError(f"record {path} is not there") from None
        except _DAMAGED as error:
            raise UserError(
                f"record {path} is damaged: {error}", hint="evaluate again with --fresh"
            ) from None


_DTYPES: dict[str, Any] = {
    "index": np.int64,
    "label": np.int64,
    "clean_prediction": np.int64,
    "distance": np.float64,
    "budget": np.float64,
    "queries": np.int64,
    "eps": np.float64,
    "broken": np.bool_,
    "broken_draws": np.float64,
}
_REQUIRED = ("index", "label", "clean_prediction", "distance", "budget", "queries")
# What numpy and zipfile raise on truncated, altered or hostile archives.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def _check_types(record: Record) -> None:
    n = np.shape(record.index)
    if len(n) != 1:
        raise ValueError(f"index has shape {n}, not (N,)")
    table = None if record.eps is None else (*np.shape(record.eps), *n)
    if (record.eps is None) != (record.broken is None):
        raise ValueError("eps and broken belong together")
    for name, dtype in _DTYPES.items():
        array = getattr(record, name)
        if array is None:
            continue
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            found = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"{name} has type {found}, not {np.dtype(dtype)}")
        if name == "eps":
            expected = array.shape if array.ndim == 1 else ("E",)
        else:
            expected = table if name.startswith("broken") and table is not None else n
        if array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape}, not {expected}")


def _check_values(record: Record) -> None:
    if len(np.unique(record.index)) != len(record.index):
        raise ValueError("index names an example twice")
    for name in ("distance", "budget", "eps"):
        array = getattr(record, name)
        if array is not None and not bool((array >= 0).all()):
            raise ValueError(f"{name} holds a negative number or NaN")
    if bool((record.queries < 0).any()):
        raise ValueError("queries holds a negative number")
    share = record.broken_draws
    if share is not None and not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError("broken_draws must lie in [0, 1]")
    wrong = ~record.clean_right
    if bool((record.distance[wrong] != 0).any()):
        raise ValueError("distance must be 0 where the clean image is misclassified")
    if record.eps is None or record.broken is None:
        return
    if not np.isfinite(record.eps).all() or bool((np.diff(record.eps) <= 0).any()):
        raise ValueError("eps must be finite and rise")
    if not bool(record.broken[:, wrong].all()):
        raise ValueError("broken must be true where the clean image is misclassified")
