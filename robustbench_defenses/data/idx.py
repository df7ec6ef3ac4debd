"""The idx format of MNIST and its kin: big-endian magic and sizes, then bytes; gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from .archive import checked_file
from .source import Split

if TYPE_CHECKING:
    import numpy as np

_UNSIGNED_BYTE = 0x08
_PREFIX = {"train": "train", "test": "t10k"}


def load_idx(name: str, card: Mapping[str, Any], split: str, root: Path) -> Split:
    """The images (N, 1, H, W) uint8 and labels (N,) of one split of an idx data set.

    Files are found by `card`, held against its checksums, then read. A missing, truncated or
    altered file is a `UserError` that names it.
    """
    import torch

    arrays = []
    for part in ("images-idx3", "labels-idx1"):
        wanted = f"{_PREFIX[split]}-{part}-ubyte.gz"
        path = checked_file(name, card, wanted, root)
        arrays.append(read_idx(path, dimensions=3 if part.startswith("images") else 1))
    images, labels = arrays
    if len(images) != len(labels):
        raise UserError(f"{name} {split}: {len(images)} images but {len(labels)} labels")
    return Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file (gzipped if its first bytes say so) as a uint8 array of `dimensions` axes.

    A truncated stream, another magic number, other axes, or more or fewer bytes than the header
    announces: `UserError` naming the file.
    """
    import numpy as np

    content = _content(path)
    if len(content) < 4 or content[0] or content[1]:
        begins = f"begins with 0x{content[:4].hex()}" if content else "is empty"
        raise UserError(f"{path} is not an idx file: it {begins}")
    if content[2] != _UNSIGNED_BYTE or content[3] != dimensions:
        raise UserError(
            f"{path}: magic number 0x{content[:4].hex()} is not that of "
            f"{dimensions}-dimensional unsigned bytes (0x{bytes([0, 0, 8, dimensions]).hex()})"
        )
    head = 4 + 4 * dimensions
    if len(content) < head:
        raise UserError(f"{path} is truncated inside its header")
    shape = struct.unpack(f">{dimensions}I", content[4:head])
    if len(content) - head != math.prod(shape):
        raise UserError(
            f"{path} is damaged: its header announces {math.prod(shape):,} bytes "
            f"({' x '.join(map(str, shape))}), and {len(content) - head:,} follow"
        )
    # A copy, because torch wants memory that may be written.
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape).copy()


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except EOFError:
        raise UserError(f"{path} is truncated: its gzip stream has no end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
