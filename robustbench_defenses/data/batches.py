"""The python batches of CIFAR: pickles of arrays and lists, read without letting them run code.

A pickle may name any function for the reader to call. The files are held against their digests
before they come here; and here only what makes an array of numbers may be named.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from . import archive
from .source import Split

SIDE = 32
CHANNELS = 3


class _Unpickler(pickle.Unpickler):
    """Numbers, text, bytes, lists and dictionaries need no names; arrays need these alone."""

    def find_class(self, module: str, name: str) -> Any:
        import codecs

        import numpy as np
        from numpy._core import multiarray

        # numpy 1 wrote the second module's name without the underscore.
        rebuild: Callable[..., Any] = multiarray._reconstruct
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy._core.multiarray", "_reconstruct"): rebuild,
            ("_codecs", "encode"): codecs.encode,  # how python 2 pickles spell bytes
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch needs")
        return allowed[module, name]


def read_batch(content: bytes, label_key: str, name: str) -> tuple[Any, list[int]]:
    """Pixels (N, 3072) uint8 and labels of one python batch; anything else is a `UserError`.

    `label_key`: the entry that holds the labels; `name`: how messages call the file.
    """
    import numpy as np

    try:
        # latin1: python 2 wrote its byte strings without saying what they are.
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise UserError(f"{name} is not a CIFAR batch: {error}") from None
    if not isinstance(batch, dict) or not {"data", label_key} <= set(batch):
        raise UserError(f"{name} is not a CIFAR batch: it has no data and {label_key}")
    pixels, labels = batch["data"], batch[label_key]
    wide = SIDE * SIDE * CHANNELS
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise UserError(f"{name}: its data are no array of unsigned bytes")
    if pixels.shape[1] != wide or len(pixels) != len(labels):
        raise UserError(f"{name}: {pixels.shape} data and {len(labels)} labels do not fit")
    return pixels, list(labels)


def load_batches(
    name: str, card: Mapping[str, Any], files: list[str], label_key: str, root: Path
) -> Split:
    """Images (N, 3, 32, 32) uint8 and labels (N,) of the batches `files`, joined in that order."""
    import numpy as np
    import torch

    content = archive.parts(name, card, files, root)
    read = [read_batch(content.pop(file), label_key, f"{name}: {file}") for file in files]
    images = np.concatenate([pixels for pixels, _ in read]).reshape(-1, CHANNELS, SIDE, SIDE)
    labels = [label for _, batch in read for label in batch]
    return Split(torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64))
