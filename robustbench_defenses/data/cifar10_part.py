"""CIFAR-10's first images, true to the bit: a stand-in for it.

8,068 and 1,017 of its images, the first ones of each batch (training images 0 to 3,999 and the
first 1,017 of the batches 2 to 5; the first 1,017 test images), unchanged, as records of the binary
version: a label, then 32x32 pixels red, green and blue. Right for checking attacks and budgets.
With so few training images accuracies stay far below those of `cifar10`, and with 1,017 test images
one standard error is 1.6 points at 50 %. It is never taken for `cifar10`: it has to be asked for by
its name.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from .archive import checked_file, decoded
from .source import Split

if TYPE_CHECKING:
    import numpy as np

CARD = {
    "object": "CIFAR10Part",
    "version": 1,
    "source": "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    "stand_in_for": "cifar10",
    "shape": [3, 32, 32],
    "classes": 10,
    "train": 8068,
    "test": 1017,
    "class_names": [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ],
    "licence": "none stated",
    "grids": {
        "linf": [0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255],
        "l2": [0.0, 0.5, 1.0, 1.5, 2.0],
        "l1": [0.0, 10.0, 50.0, 100.0, 200.0],
    },
    "model": "resnet18",
    "training": {"augment": "crop_flip"},
    "folders": ["cifar10_part"],
    "files": {
        "train_part.bin.xz": {
            "bytes": 17333036,
            "md5": "74df372751a560723ab46181b3875b4a",
            "sha256": "5204eb5bc3b1288f86aa145dbec40609efcb809032197064655f7ca85a64742d",
        },
        "test_part.bin.xz": {
            "bytes": 2182460,
            "md5": "c2889288a3e856bd96f3b46b22f45cd4",
            "sha256": "5373c2a5db97f26f3fd2e3b03f7abc61a0213b91c282958fac7c6340a5286172",
        },
    },
    "digests": {
        "train": "de1f9e116f86a4f0ad90245b5eb34db1aeeed36babc75739349df9f2b5a169d1",
        "test": "947536172c53c8883237187e13085bbdc6249b7e908082414af6128730b1ba61",
    },
}

RECORD = 1 + 3 * 32 * 32  # a label and the pixels of one image


@dataclass(frozen=True)
class CIFAR10Part:
    """CIFAR-10 records of the binary version, a part of them."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 3, 32, 32) uint8 and labels (N,), found under the data folder `where`."""
        import torch

        path = checked_file("cifar10_part", CARD, f"{split}_part.bin.xz", where)
        files: dict[str, dict[str, Any]] = CARD["files"]  # type: ignore[assignment]
        stamp = [split, files[path.name]["sha256"]]
        images, labels = decoded("cifar10_part", stamp, lambda: _read(path))
        return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long())


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N,), both uint8."""
    import numpy as np

    try:
        with lzma.open(path) as handle:
            content = handle.read()
    except (lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if len(content) % RECORD:
        raise UserError(f"{path}: {len(content):,} bytes are no whole number of records")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].copy()
