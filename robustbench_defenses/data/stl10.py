"""Photographs of ten kinds, 96x96 colour.

Coates, Lee and Ng 2011; cut from ImageNet, no licence stated. The binary version:
`stl10_binary.tar.gz`, or its folder `stl10_binary`, in `stl10/` of the data folder or in the data
folder itself, as torchvision leaves them. Only the labelled images; the Linf grid is that of the ER
paper. Training crops after padding by 4 pixels and flips.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from . import locate
from .archive import checked_file, decoded, parts
from .source import Split

if TYPE_CHECKING:
    import numpy as np

CARD = {
    "object": "STL10",
    "version": 1,
    "source": "Coates, Lee and Ng 2011",
    "shape": [3, 96, 96],
    "classes": 10,
    "train": 5000,
    "test": 8000,
    "class_names": [
        "airplane",
        "bird",
        "car",
        "cat",
        "deer",
        "dog",
        "horse",
        "monkey",
        "ship",
        "truck",
    ],
    "licence": "none stated",
    "grids": {
        "linf": [
            0.0,
            0.005,
            0.01,
            0.015,
            0.02,
            0.025,
            0.03,
            0.035,
            0.04,
            0.045,
            0.05,
            0.055,
            0.06,
        ],
        "l2": [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0],
        "l1": [0.0, 10.0, 50.0, 100.0, 200.0],
    },
    "model": "resnet18",
    "training": {"augment": "crop_flip"},
    "torchvision": "STL10",
    "folders": ["stl10", "."],
    "files": {
        "stl10_binary.tar.gz": {
            "bytes": 2640397119,
            "md5": "91f7769df0f17e558f3565bffb0c7dfb",
            "sha256": "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
            "unpacked": {
                "stl10_binary/train_X.bin": {"md5": "918c2871b30a85fa023e0c44e0bee87f"},
                "stl10_binary/train_y.bin": {"md5": "5a34089d4802c674881badbb80307741"},
                "stl10_binary/test_X.bin": {"md5": "7f263ba9f9e0b06b93213547f721ac82"},
                "stl10_binary/test_y.bin": {"md5": "36f9794fa4beb8a2c72628de14fa638e"},
            },
        },
    },
}

SIDE = 96


@dataclass(frozen=True)
class STL10:
    """The labelled part of STL-10's binary files."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 3, 96, 96) uint8 and labels (N,), found under the data folder `where`."""
        import torch

        (found, *_) = locate.find_files(CARD, where)
        stamp = [split, found.sums.sha256]
        if found.archive is None and found.path is not None:
            # Unpacking the archive takes a minute: once is enough.
            checked_file("stl10", CARD, found.known.name, where)
            images, labels = decoded("stl10", stamp, lambda: _read(split, where))
        else:
            images, labels = _read(split, where)
        return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long())


def _read(split: str, where: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 96, 96, 3) and labels (N,) from 0, both uint8."""
    import numpy as np

    files = [f"stl10_binary/{split}_{kind}.bin" for kind in "Xy"]
    pixels, labels = (
        np.frombuffer(content, np.uint8) for content in parts("stl10", CARD, files, where).values()
    )
    if len(pixels) != len(labels) * 3 * SIDE * SIDE or not ((labels > 0) & (labels < 11)).all():
        raise UserError(f"stl10: {files[0]} and {files[1]} do not fit together")
    # Column by column: the third axis of the file runs down the picture.
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(images), labels - 1
