"""Arrays of your own: npz:FILE.

Its `images` and `labels` are the test set. `images`: uint8 (0 to 255) or float in [0, 1], of shape
(N, H, W), (N, C, H, W) with 1 to 4 channels, or (N, H, W, C) with 1 or 3. Where both readings are
possible, channels come first. `labels`: N whole numbers from 0. To train on the file it also needs
`train_images` and `train_labels`. The number of classes is the array `classes` (one number) where
given, else the highest label + 1. Pickled arrays are refused.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError, did_you_mean
from .source import Split, as_tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.lib.npyio import NpzFile
    from torch import Tensor

CARD = {
    "object": "Npz",
    "version": 1,
    "prefix": "npz",
    "params": {"file": {"help": "an npz file with the arrays images and labels"}},
}

_PREFIX = {"test": "", "train": "train_"}


@dataclass(frozen=True)
class Npz:
    """The arrays of one npz file."""

    file: str

    @property
    def classes(self) -> int:
        """The array `classes`, else the highest label of the file + 1 (at least 2)."""
        with _opened(self.file) as arrays:
            if "classes" in arrays.files:
                given = _read(arrays, "classes", self.file)
                if given.size != 1 or given.dtype.kind not in "iu" or int(given.item()) < 2:
                    raise UserError(f"{self.file}: classes is not one whole number from 2")
                return int(given.item())
            found = [name for name in ("labels", "train_labels") if name in arrays.files]
            labels = [_read(arrays, name, self.file) for name in found]
        # Whatever is wrong with labels, `load` says it better.
        usable = [array for array in labels if array.dtype.kind in "iu" and array.size]
        return max([2, *(int(array.max()) + 1 for array in usable)])

    def load(self, split: str, where: Path) -> Split:
        """The arrays of a split; FILE is relative to the current folder, not to `where`."""
        prefix = _PREFIX[split]
        with _opened(self.file) as arrays:
            if prefix and not {f"{prefix}images", f"{prefix}labels"} <= set(arrays.files):
                raise UserError(
                    f"{self.file} has no training images",
                    hint="training needs the arrays train_images and train_labels in it",
                )
            images = _read(arrays, f"{prefix}images", self.file)
            labels = _read(arrays, f"{prefix}labels", self.file)
        pixels = as_tensor(images, self.file, f"{prefix}images")
        numbers = as_tensor(labels, self.file, f"{prefix}labels")
        return Split(_channels_first(pixels, f"{self.file}: {prefix}images"), numbers)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[NpzFile]:
    """An npz file, open for reading; anything else under that name is a `UserError`."""
    import numpy as np

    try:
        opened = np.load(Path(file).expanduser(), allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or 'not an npz file'}") from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        opened = None
    if not isinstance(opened, np.lib.npyio.NpzFile):
        raise UserError(
            f"{file} is not an npz file, or it is truncated",
            hint="numpy.savez(FILE, images=..., labels=...) writes one",
        )
    with opened:
        yield opened


def _read(arrays: NpzFile, name: str, file: str) -> np.ndarray:
    if name not in arrays.files:
        known = list(arrays.files)
        hint = did_you_mean(name, known, ", ".join(known) or "the file is empty")
        raise UserError(f"{file} has no array {name!r}", hint=hint)
    try:
        array: np.ndarray = arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" not in str(error):
            raise UserError(f"{file}: {name} is damaged: {error}") from None
        raise UserError(
            f"{file}: {name} is a pickled array of objects, which is never loaded",
            hint="save it as an array of numbers",
        ) from None
    return array


def _channels_first(images: Tensor, name: str) -> Tensor:
    """(N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W)."""
    if images.dim() == 3:
        return images[:, None]
    if images.dim() == 4 and 1 <= images.shape[1] <= 4:
        return images
    if images.dim() == 4 and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2)
    raise UserError(
        f"{name} have shape {tuple(images.shape)}",
        hint="(N, H, W), (N, C, H, W), or (N, H, W, C) with C 1 or 3",
    )
