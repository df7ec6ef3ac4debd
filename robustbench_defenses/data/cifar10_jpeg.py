"""CIFAR-10 encoded anew as JPEG: a stand-in for it.

All 60,000 images. Order and labels are those of CIFAR-10, the pixels are not: they are off by
5.8/255 on average, by 40/255 at the worst pixel of an image. That is as large as the usual budget
of 8/255, so trends between defenses carry over, absolute accuracies may not. It is never taken for
`cifar10`: it has to be asked for by its name. Two archives of JPEG files `NUMBER_LABEL.jpg`. The
decoded images are kept in the user's cache folder. JPEG libraries may differ by a grey level, so
the archives and the labels are held against their digests, the pixels are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from .archive import checked_file, decoded, each_file
from .pictures import stack
from .source import Split

if TYPE_CHECKING:
    import numpy as np

CARD = {
    "object": "CIFAR10JPEG",
    "version": 1,
    "source": "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    "stand_in_for": "cifar10",
    "shape": [3, 32, 32],
    "classes": 10,
    "train": 50000,
    "test": 10000,
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
    "folders": ["cifar10_jpeg"],
    "files": {
        "train.tar.xz": {
            "bytes": 15520136,
            "md5": "bc2117e3d17772655b3be47398b0645f",
            "sha256": "0f26d33285dfb52941698d0f6946885f806794564c3423ec74a83fdb489f50fa",
        },
        "test.tar.xz": {
            "bytes": 3106784,
            "md5": "64a159c64649a1118db5ba0a726408c3",
            "sha256": "f9b9935f47dd5c62cf8deff6fa458cf8dbd4f59e8923a2f196ff81db6b5bb8f9",
        },
    },
    "label_digests": {
        "train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
}

_NAME = re.compile(r"(?:.*/)?(\d{5})_(\d)\.jpg")


@dataclass(frozen=True)
class CIFAR10JPEG:
    """CIFAR-10 as JPEG pictures."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 3, 32, 32) uint8 and labels (N,), found under the data folder `where`."""
        import PIL
        import torch
        from PIL import features

        path = checked_file("cifar10_jpeg", CARD, f"{split}.tar.xz", where)
        files: dict[str, dict[str, Any]] = CARD["files"]  # type: ignore[assignment]
        # Another decoder may round another way, so each has its own cache.
        decoder = [PIL.__version__, features.version("jpg"), features.version("libjpeg_turbo")]
        stamp = [split, files[path.name]["sha256"], *decoder]
        images, labels = decoded("cifar10_jpeg", stamp, lambda: _read(path))
        return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long())


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N,) in the order of their numbers, both uint8."""
    import numpy as np

    found: dict[int, tuple[bytes, int]] = {}
    for name, content in each_file(path):
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{path}: {name} is not called NUMBER_LABEL.jpg")
        found[int(match[1])] = content, int(match[2])
    if sorted(found) != list(range(len(found))):
        raise UserError(f"{path}: its pictures are not numbered from 0 without gaps")
    ordered = [(number, *found[number]) for number in range(len(found))]
    images = stack((content, f"{path}: {number:05d}") for number, content, _ in ordered)
    return images.transpose(0, 2, 3, 1), np.array([label for *_, label in ordered], np.uint8)
